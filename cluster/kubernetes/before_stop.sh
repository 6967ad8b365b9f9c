#!/usr/bin/env bash
# What a pod does before Kubernetes ends it (preStop), within terminationGracePeriodSeconds; argument: head or worker.
#   head    the training command gets SIGTERM, upon which it writes a checkpoint and leaves; wait for that
#   worker  its node is announced to be taken, upon which training writes a checkpoint and goes on; wait for its end
set -euo pipefail

# Numbers of the processes whose command line, its words divided by \0, matches. None is no fault.
processes() {
    grep -alsP "$1" /proc/[0-9]*/cmdline | cut -d / -f 3 || true
}

case "${1:-}" in
head)
    waited_for='^\S*python[0-9.]*\x00-m\x00twilbert[.]'
    for process in $(processes "$waited_for"); do
        kill -TERM "$process"
    done
    ;;
worker)
    waited_for='^ray::[R]ayTrainWorker'
    if [ -n "$(processes "$waited_for")" ]; then
        ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message "its pod is ended" \
            --deadline-remaining-seconds 300
    fi
    ;;
*)
    echo "usage: $0 head|worker" >&2
    exit 2
    ;;
esac
while [ -n "$(processes "$waited_for")" ]; do
    sleep 1
done
