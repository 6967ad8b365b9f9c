"""srun and scontrol as far as cluster/slurm.sh uses them, on two of the hosts of tests/hosts.py."""

from __future__ import annotations

SCONTROL = """#!/usr/bin/env bash
[ "$*" = "show hostnames host[1-2]" ] || { echo "scontrol: not understood: $*" >&2; exit 1; }
printf 'host1\\nhost2\\n'
"""

# One task on each host, side by side; the exit code is the largest of the tasks', as srun's is.
SRUN = """#!/usr/bin/env bash
declare -A option
while [[ $1 == --* ]]; do
    [[ $1 == *=* ]] || { echo "srun: not understood: $1" >&2; exit 1; }
    name=${1%%=*}
    option[${name#--}]=${1#*=}
    shift
done
[ "${option[nodes]}${option[ntasks]}${option[ntasks-per-node]}" = 221 ] || { echo "srun: not 2 nodes" >&2; exit 1; }
tasks=()
for number in 1 2; do
    host $number "$@" &
    tasks+=($!)
done
worst=0
for task in "${tasks[@]}"; do
    wait "$task"
    code=$?
    [ $code -le $worst ] || worst=$code
done
exit $worst
"""

# What Slurm sets for a job of two nodes with three CPUs each and no GPUs.
ENVIRONMENT = {
    "SLURM_JOB_ID": "4242",
    "SLURM_JOB_NODELIST": "host[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "3",
}
