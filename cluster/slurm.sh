#!/usr/bin/env bash
#SBATCH --job-name=twilbert
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=twilbert-%j.log
# Pre-train on the nodes of a Slurm job: a Ray of the job's own, one training worker a GPU, or a node where it has none.
# From a checkout that all nodes see, with the environment that cluster/install.sh made in .venv (or $VIRTUAL_ENV):
#   sbatch --nodes=4 --gpus-per-node=8 --time=24:00:00 cluster/slurm.sh recipes/large.yaml \
#       run.storage_path=/shared/runs corpus.path=/shared/corpus corpus.tokenizer=/shared/tokenizer
# The same line resumes, and so does a requeued job. Ten minutes before the time limit the run stops with a checkpoint.
set -euo pipefail

recipe="${1:?usage: sbatch [OPTIONS] cluster/slurm.sh RECIPE [section.key=value ...]}"
shift
source "${VIRTUAL_ENV:-$PWD/.venv}/bin/activate"
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address="${hosts[0]}:$((20000 + SLURM_JOB_ID % 10000))"
gpus="${SLURM_GPUS_ON_NODE:-0}"

settings=("cluster.address=$address")
if [ "$gpus" -gt 0 ]; then
    settings+=("cluster.use_gpu=true" "cluster.num_workers=$((SLURM_JOB_NUM_NODES * gpus))")
else
    settings+=("cluster.use_gpu=false" "cluster.num_workers=$SLURM_JOB_NUM_NODES")
fi
if [ -n "${SLURM_JOB_END_TIME:-}" ]; then
    minutes=$(((SLURM_JOB_END_TIME - $(date +%s)) / 60 - 10))
    if [ "$minutes" -gt 0 ]; then
        settings+=("training.max_time=$minutes")
    fi
fi

# Nodes are shared with other people's jobs before and after this one, and their network with all of them.
RAY_AUTH_TOKEN="$(python -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID"
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds until all nodes are there; Ray's own 30 are few

# symmetric-run exits 0 where Ray did not start; that the command ran, its exit code in this file says.
ended="$(mktemp)"
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    --cpus-per-task="$SLURM_CPUS_ON_NODE" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_ON_NODE" --num-gpus="$gpus" -- \
    bash -c '"$@"; code=$?; echo "$code" > "$0"; exit "$code"' "$ended" \
    python -m twilbert.pretrain "$recipe" "${settings[@]}" "$@"
if [ ! -s "$ended" ]; then
    echo "slurm.sh: Ray did not start on every node, so nothing was trained; what it said stands above" >&2
    exit 1
fi
rm "$ended"
