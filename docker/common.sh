# shellcheck shell=bash
# Shared by head.sh, worker.sh, train.sh, scaling.sh and cluster/slurm.sh. They run in a container, and as well without one.
#
#   TPDIST_NODE_IP         this machine's address; default: the first that `hostname -I` prints
#   TPDIST_HEAD            the head's address; needed by worker.sh and train.sh
#   TPDIST_GCS_PORT        where the head answers other nodes; default 6379
#   TPDIST_DASHBOARD_HOST  where the head serves dashboard and job submission; default 127.0.0.1
#   TPDIST_DASHBOARD_PORT  default 8265
#   TPDIST_NODE_PORTS      the first of six ports in a row that Ray's services of a node use; default 6380
#   TPDIST_CPUS            CPUs that Ray may give to workers here; default: as many as there are
#   TPDIST_GPUS            the same for GPUs
#   TPDIST_MEMORY_BYTES    memory that Ray may give to workers here; default: Ray's choice
#   TPDIST_STORE_BYTES     Ray's object store; default 256 MiB: tpdist's workers do not send through it
#   TPDIST_WAIT_S          how long to wait for the head; default 60
#   TPDIST_TOKEN_FILE      a file, mode 0600, with the cluster's token; default /run/secrets/ray_token.
#                          RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token do as well
#   RAY_AUTH_MODE          `disabled` runs without a token: only where nobody else reaches the network
#
# Ray's worker processes listen on 10002-19999, and Gloo and NCCL on ports that the kernel picks: between the
# nodes every port must be open, and none from outside.

TPDIST_GCS_PORT=${TPDIST_GCS_PORT:-6379}
TPDIST_DASHBOARD_HOST=${TPDIST_DASHBOARD_HOST:-127.0.0.1}
TPDIST_DASHBOARD_PORT=${TPDIST_DASHBOARD_PORT:-8265}
TPDIST_NODE_PORTS=${TPDIST_NODE_PORTS:-6380}
TPDIST_STORE_BYTES=${TPDIST_STORE_BYTES:-268435456}
TPDIST_WAIT_S=${TPDIST_WAIT_S:-60}
TPDIST_TOKEN_FILE=${TPDIST_TOKEN_FILE:-/run/secrets/ray_token}

# All GPUs of a node stay visible to its workers, which pick theirs; else NCCL loses its peer-to-peer path.
export RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES=1
export RAY_USAGE_STATS_ENABLED=0
# `tpdist stop` ends a job between two updates, with everything saved; Ray's own 3 s are too short for that.
export RAY_JOB_STOP_WAIT_TIME_S=${RAY_JOB_STOP_WAIT_TIME_S:-120}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# On a network without a way out Ray cannot guess its own address and falls back to 127.0.0.1, which no other
# node reaches.
node_ip() {
  local found
  if [[ -n ${TPDIST_NODE_IP:-} ]]; then
    echo "$TPDIST_NODE_IP"
    return
  fi
  found=$(hostname -I 2>/dev/null | cut -d' ' -f1)
  echo "${found:-127.0.0.1}"
}

use_token() {
  [[ ${RAY_AUTH_MODE:-token} != disabled ]] || return 0
  export RAY_AUTH_MODE=token
  if [[ -z ${RAY_AUTH_TOKEN:-} && -z ${RAY_AUTH_TOKEN_PATH:-} && -e $TPDIST_TOKEN_FILE ]]; then
    export RAY_AUTH_TOKEN_PATH=$TPDIST_TOKEN_FILE
  fi
  [[ -z ${RAY_AUTH_TOKEN:-} ]] || return 0
  local file=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
  [[ -s $file ]] || fail "no token: write one to $TPDIST_TOKEN_FILE (mode 0600; \`openssl rand -hex 32\` makes one), the" \
    "same on every node, or set RAY_AUTH_TOKEN_PATH; RAY_AUTH_MODE=disabled does without"
  [[ -r $file ]] || fail "the token in $file cannot be read by user $(id -un); it must belong to that user, mode 0600"
  case $(stat -Lc %a "$file") in
    *00) ;;
    *) echo "$(basename "$0"): warning: others on this machine can read the token: chmod 600 $file" >&2 ;;
  esac
}

# Whether something listens at host $1, port $2.
answers() {
  timeout 2 bash -c "true >/dev/tcp/$1/$2" 2>/dev/null
}

need_head() {
  [[ -n ${TPDIST_HEAD:-} ]] || fail "TPDIST_HEAD: the head's address is missing"
  local deadline=$((SECONDS + TPDIST_WAIT_S))
  until answers "$TPDIST_HEAD" "$TPDIST_GCS_PORT"; do
    ((SECONDS < deadline)) || fail "no head answered at $TPDIST_HEAD:$TPDIST_GCS_PORT within $TPDIST_WAIT_S s"
    sleep 0.5
  done
}

# Runs the training "$@", and exits with its code. SIGTERM goes on to it, which saves everything and ends.
run_training() {
  local code=0
  training=
  trap '[[ -n $training ]] || exit 143; kill -TERM "$training" 2>/dev/null || true' TERM INT
  "$@" &
  training=$!
  wait "$training" || code=$?
  # a trap ends `wait` before the training has ended
  while kill -0 "$training" 2>/dev/null; do
    code=0
    wait "$training" || code=$?
  done
  exit "$code"
}

# The arguments of `ray start` that every kind of node shares, in the array `node`. $1: this machine's address.
# shellcheck disable=SC2034 # used by the scripts that read this one
node_arguments() {
  local port=$TPDIST_NODE_PORTS
  node=(
    --block
    --disable-usage-stats
    "--node-ip-address=$1"
    "--node-manager-port=$port"
    "--object-manager-port=$((port + 1))"
    "--dashboard-agent-grpc-port=$((port + 2))"
    "--dashboard-agent-listen-port=$((port + 3))"
    "--runtime-env-agent-port=$((port + 4))"
    "--metrics-export-port=$((port + 5))"
    "--object-store-memory=$TPDIST_STORE_BYTES"
  )
  [[ -z ${TPDIST_CPUS:-} ]] || node+=("--num-cpus=$TPDIST_CPUS")
  [[ -z ${TPDIST_GPUS:-} ]] || node+=("--num-gpus=$TPDIST_GPUS")
  [[ -z ${TPDIST_MEMORY_BYTES:-} ]] || node+=("--memory=$TPDIST_MEMORY_BYTES")
}

# A node of the cluster that offers neither CPUs nor GPUs, for as long as this script lives: the driver of a Ray
# program must run on a node of its cluster.
join_as_driver() {
  local address deadline
  address=$(node_ip)
  TPDIST_CPUS=0 TPDIST_GPUS=0 node_arguments "$address"
  ray start "--address=$TPDIST_HEAD:$TPDIST_GCS_PORT" "${node[@]}" >&2 &
  driver_node=$!
  # not `ray stop`: it ends every Ray process of the machine, also those of others
  trap 'kill "$driver_node" 2>/dev/null; wait "$driver_node" 2>/dev/null || true' EXIT
  deadline=$((SECONDS + TPDIST_WAIT_S))
  until answers "$address" "$TPDIST_NODE_PORTS"; do
    kill -0 "$driver_node" 2>/dev/null || fail "this machine's Ray node ended; what it said is above"
    ((SECONDS < deadline)) || fail "this machine's Ray node did not start within $TPDIST_WAIT_S s"
    sleep 0.5
  done
}
