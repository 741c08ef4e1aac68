#!/usr/bin/env bash
# Runs the head node of a Ray cluster until it is ended. Settings: see common.sh.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

use_token
address=$(node_ip)
node_arguments "$address"
echo "head: nodes join at $address:$TPDIST_GCS_PORT; dashboard and jobs at" \
  "http://$TPDIST_DASHBOARD_HOST:$TPDIST_DASHBOARD_PORT"
exec ray start --head "${node[@]}" "--port=$TPDIST_GCS_PORT" --include-dashboard=true \
  "--dashboard-host=$TPDIST_DASHBOARD_HOST" "--dashboard-port=$TPDIST_DASHBOARD_PORT"
