#!/usr/bin/env bash
# Trains CONFIG once on each number of workers and prints tokens/s of each. Settings: see common.sh, and
#
#   TPDIST_SCALING_WORKERS  numbers of workers; default "1 2"
#   TPDIST_SCALING_DIR      where the runs go, on a shared volume; default runs
#
#   scaling.sh CONFIG [--set KEY=VALUE ...]
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($# > 0)) || fail "usage: $(basename "$0") CONFIG [--set KEY=VALUE ...]"
read -ra counts <<<"${TPDIST_SCALING_WORKERS:-1 2}"
stem=${TPDIST_SCALING_DIR:-runs}/scaling-$(date +%Y%m%d-%H%M%S)-$$

use_token
need_head
join_as_driver

rates=()
for workers in "${counts[@]}"; do
  run=$stem-$workers
  tpdist train "$@" --address "$TPDIST_HEAD:$TPDIST_GCS_PORT" --run-dir "$run" --set "cluster.workers=$workers" >&2
  rates+=("$(sed -n 's/^ *"tokens_per_second": *\([0-9.eE+-]*\),*$/\1/p' "$run/result.json")")
done

echo "workers    tokens/s  times the first"
for i in "${!counts[@]}"; do
  awk -v n="${counts[i]}" -v rate="${rates[i]}" -v first="${rates[0]}" \
    'BEGIN { printf "%7d  %10.0f  %15.2f\n", n, rate, rate / first }'
done
