#!/usr/bin/env bash
# Runs a node that joins the cluster of TPDIST_HEAD, until it is ended. Settings: see common.sh.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

use_token
need_head
address=$(node_ip)
node_arguments "$address"
echo "worker: $address joins $TPDIST_HEAD:$TPDIST_GCS_PORT"
exec ray start "--address=$TPDIST_HEAD:$TPDIST_GCS_PORT" "${node[@]}"
