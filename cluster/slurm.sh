#!/usr/bin/env bash
# A training run on a Slurm cluster. From the top of the project, on a file system that all nodes see:
#
#   sbatch --nodes=4 --cpus-per-task=16 cluster/slurm.sh configs/quickstart.yaml --set cluster.workers=64 batching.blocks=16
#   sbatch --nodes=2 --gpus-per-node=8 cluster/slurm.sh CONFIG --set cluster.workers=16 cluster.gpus_per_worker=1
#
# Everything behind the script's name goes to `tpdist train`. To save everything and end (a plain `scancel` ends Ray as
# well, and waits half a minute), and to go on with a run that was cut off:
#
#   scancel --batch --signal=TERM JOB
#   sbatch ... cluster/slurm.sh --resume runs/NAME
#
# The head of the Ray cluster, the driver and the first workers share the first node. Fill in what your site needs:
#SBATCH --job-name=tpdist
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --output=tpdist-%j.log
# five minutes before the end of the time the run is told to save everything and to end
#SBATCH --signal=B:TERM@300
# no second try: after the loss of a node Slurm would begin a new run, from its beginning
#SBATCH --no-requeue
##SBATCH --partition=FILL_IN
##SBATCH --account=FILL_IN
#
#   TPDIST_ENV   a virtual environment with tpdist on the shared file system; default .venv
#   GPUs: if NCCL picks the wrong network, export NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME (such as ib0) before sbatch;
#   NCCL_DEBUG=INFO says what it picked. The ports are those of docker/common.sh: one such job a node (--exclusive).
set -euo pipefail
(($# > 0)) || {
  echo "usage: sbatch [--nodes=N ...] cluster/slurm.sh CONFIG [further arguments of tpdist train]" >&2
  exit 2
}
# Slurm runs a copy of this file, so the project is where sbatch was called
cd "${SLURM_SUBMIT_DIR:?run this with sbatch}"
here=$PWD
# shellcheck source=/dev/null
source "${TPDIST_ENV:-.venv}/bin/activate"

# The token of this one cluster: readable by you alone, gone with the job.
umask 077
private=$(mktemp -d "$here/.tpdist-$SLURM_JOB_ID-XXXXXX")
steps=() nodes=()
# shellcheck disable=SC2329 # the trap calls it
clean() {
  ((${#steps[@]} == 0)) || kill "${steps[@]}" 2>/dev/null || true
  wait || true
  for name in "${nodes[@]}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$name" rm -rf "/tmp/ray-$SLURM_JOB_ID" || true
  done
  rm -rf "$private"
}
trap clean EXIT
python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$private/token"
unset RAY_AUTH_TOKEN # yours, which Ray would take before the file
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$private/token
umask 022
# Ray's sockets need a short path on a local disk
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-$SLURM_JOB_ID}

mapfile -t nodes <<<"$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head=${nodes[0]}
# by address: a node's own name may lead to 127.0.0.1
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | cut -d' ' -f1)
export TPDIST_HEAD=$address TPDIST_GCS_PORT=${TPDIST_GCS_PORT:-6379} TPDIST_WAIT_S=${TPDIST_WAIT_S:-300}
export TPDIST_CPUS=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-}}
# a step's processes would share one core: Slurm binds them to what a task has, and from 22.05 on keeps the job's
# --cpus-per-task from srun
cpus=(--cpu-bind=none)
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || cpus+=("--cpus-per-task=$SLURM_CPUS_PER_TASK")
export TPDIST_DASHBOARD_HOST=127.0.0.1 TPDIST_DASHBOARD_PORT=${TPDIST_DASHBOARD_PORT:-8265}
# behind the settings, of which it has others by default
# shellcheck source=docker/common.sh
source "$here/docker/common.sh"

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" mkdir -p "$RAY_TMPDIR"
TPDIST_NODE_IP=$address srun --overlap --nodes=1 --ntasks=1 "${cpus[@]}" --nodelist="$head" "$here/docker/head.sh" &
steps+=("$!")
# Its own node's port opens last. Before, Ray turns other nodes and drivers away after some 45 s, in which a slow file
# system may not have read all of the head's dashboard.
until answers "$address" "$TPDIST_NODE_PORTS"; do
  kill -0 "${steps[0]}" 2>/dev/null || {
    echo "the head ended; what it said is above" >&2
    exit 2
  }
  sleep 1
done
for name in "${nodes[@]:1}"; do
  srun --overlap --nodes=1 --ntasks=1 "${cpus[@]}" --nodelist="$name" \
    bash -c "mkdir -p '$RAY_TMPDIR' && exec '$here/docker/worker.sh'" &
  steps+=("$!")
done

# The driver must run on a node of the cluster: here on the first, where Slurm runs this script, and not under `srun`,
# which would answer SIGTERM by ending it at once. It waits (cluster.wait_s) until the other nodes have joined.
run_training tpdist train "$@" --address "$address:$TPDIST_GCS_PORT"
