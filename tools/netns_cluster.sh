#!/usr/bin/env bash
# Three hosts on one machine: a Ray head and two workers with addresses of their own, and a fourth place from which a
# pre-training job is submitted; with --cut one worker's cable is pulled in mid-run.
#
#   sudo tools/netns_cluster.sh                              # train a small model on both worker hosts
#   sudo tools/netns_cluster.sh --cut 40 [--cut-host one]    # and again, with a host lost at step 40; then compare
#   further options: --work DIR (keep corpus and runs there), --json FILE, --minutes N (patience with a job)
#
# Hosts are network namespaces on a bridge that lies in a namespace too: this machine's own network is not touched.
# Storage is a folder all see. Token authentication is on. Everything made here is removed at the end.
# Exit: 0 done, 1 failed, 2 wrong usage, 77 skipped, with the reason ("skipped: …").
# PYTHON names the interpreter (python). RAY_health_check_* are the head's: how soon it gives a silent host up.
set -euo pipefail
cd "$(dirname "$0")/.."

NET="twb$$" # every namespace's name begins with it
HOSTS=(outside head one two)
SUBNET=10.77.0
declare -A NUMBER=([outside]=254 [head]=1 [one]=2 [two]=3)
CHILD="" # the Python part, while it runs
TMP="" # Ray's folders, the token, and the work folder unless --work names one

skip() {
    echo "skipped: $*"
    exit 77
}

# Run a command on a host.
on() {
    local host=$1
    shift
    ip netns exec "$NET-$host" "$@"
}

cleanup() {
    local status=$? host pids
    trap - EXIT INT TERM
    [ -z "$CHILD" ] || kill -TERM -- "-$CHILD" 2>/dev/null || true # the group: what it started too
    for host in "${HOSTS[@]}"; do
        [ -e "/run/netns/$NET-$host" ] || continue
        # A dying raylet may start one more process: look again until none is left.
        for _ in $(seq 50); do
            pids=$(ip netns pids "$NET-$host")
            [ -n "$pids" ] || break
            # shellcheck disable=SC2086
            kill -KILL $pids 2>/dev/null || true # some have gone in the meantime
            sleep 0.1
        done
    done
    for host in "${HOSTS[@]}"; do
        [ ! -e "/run/netns/$NET-$host" ] || ip netns delete "$NET-$host"
    done
    [ -z "$TMP" ] || rm -rf "$TMP"
    exit "$status"
}

check_rights() {
    [ "$(uname)" = Linux ] || skip "network namespaces are Linux's"
    command -v ip >/dev/null || skip "the command ip is missing: apt-get install iproute2"
    [ "$(id -u)" = 0 ] || skip "making network namespaces needs root: sudo --preserve-env=PYTHON $0"
    local error
    error=$( { ip netns add "$NET-head" && ip -n "$NET-head" link add probe type bridge && ip -n "$NET-head" link delete probe &&
        ip -n "$NET-head" link add probe type veth peer name probe2 && ip -n "$NET-head" link delete probe; } 2>&1) ||
        skip "this machine does not let root make network namespaces, bridges and veth pairs: ${error##*$'\n'}"
    ip netns delete "$NET-head"
}

make_network() {
    local host
    for host in "${HOSTS[@]}"; do
        ip netns add "$NET-$host"
        ip -n "$NET-$host" link set lo up
    done
    ip -n "$NET-outside" link add switch type bridge
    ip -n "$NET-outside" address add "$SUBNET.${NUMBER[outside]}/24" dev switch
    ip -n "$NET-outside" link set switch up
    for host in head one two; do # a cable: eth0 at the host, a port named after it at the switch
        ip -n "$NET-outside" link add "$host" type veth peer name eth0 netns "$NET-$host"
        ip -n "$NET-outside" link set "$host" master switch up
        ip -n "$NET-$host" address add "$SUBNET.${NUMBER[$host]}/24" dev eth0
        ip -n "$NET-$host" link set eth0 up
    done
}

start_ray() {
    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$TMP/token" RAY_USAGE_STATS_ENABLED=0
    # gloo asks what the host's name stands for, which here is an address of the machine around: name the interface.
    export GLOO_SOCKET_IFNAME=eth0
    # A silent host is given up after about 20 s; Ray's own settings (3000, 10000, 5) take about a minute.
    export RAY_health_check_period_ms="${RAY_health_check_period_ms:-2000}"
    export RAY_health_check_timeout_ms="${RAY_health_check_timeout_ms:-5000}"
    export RAY_health_check_failure_threshold="${RAY_health_check_failure_threshold:-3}"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH")
    # One CPU a worker host, hence one training worker; none on the head, which keeps the job's driver alone.
    start_node head --head --port=6379 --dashboard-host=0.0.0.0 --num-cpus=0
    start_node one --address="$SUBNET.1:6379" --num-cpus=1
    start_node two --address="$SUBNET.1:6379" --num-cpus=1
}

start_node() {
    local host=$1
    shift
    on "$host" "$PYTHON" -m ray.scripts.scripts start "$@" --node-ip-address="$SUBNET.${NUMBER[$host]}" \
        --temp-dir="$TMP/$host" --object-store-memory=157286400 --disable-usage-stats >"$TMP/$host.log" 2>&1 || {
        cat "$TMP/$host.log" >&2
        echo "Ray does not start on host $host" >&2
        exit 1
    }
    echo "host $host ($SUBNET.${NUMBER[$host]}): Ray is up"
}

case "${1:-}" in -h | --help) sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//'; exit 0 ;; esac
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
check_rights
PYTHON=$(command -v "${PYTHON:-python}") || { echo "no python: activate the environment, or set PYTHON" >&2; exit 2; }
export PYTHON PATH="${PYTHON%/*}:$PATH" # jobs say `python`
unset RAY_ADDRESS RAY_API_SERVER_ADDRESS
TMP=$(mktemp -d /tmp/tw-net.XXXXXX) # short: Ray's sockets lie in it, and their paths may have 107 bytes

# In the background: a shell hears a signal at once only while it waits. A group of its own, to be ended as a whole.
job() {
    setsid "$PYTHON" -m tools.netns_job --network "$NET" --subnet "$SUBNET" --tmp "$TMP" "$@" &
    CHILD=$!
    wait "$CHILD"
    CHILD=""
}
job "$@" --only-data
make_network
start_ray
job "$@"
