#!/usr/bin/env bash
# Trains on the cluster of TPDIST_HEAD and ends with the exit code of `tpdist train`. Settings: see common.sh.
#
#   train.sh CONFIG [--set KEY=VALUE ...] [--run-dir RUN]
#
# The run directory and the store must lie where every node sees them: a shared volume.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($# > 0)) || fail "usage: $(basename "$0") CONFIG [further arguments of tpdist train]"

use_token
need_head
join_as_driver

run_training tpdist train "$@" --address "$TPDIST_HEAD:$TPDIST_GCS_PORT"
