#!/usr/bin/env bash
# make e2e: a cluster, Coppice in it from the chart, the scenarios, and the cluster away again, whatever happened.
#
#   scripts/e2e.sh [SCENARIO…]
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
e2e=$ROOT/e2e

find_coppice
export COPPICE_BIN=$COPPICE
"$e2e/up.sh"
trap '"$e2e/down.sh"' EXIT
trap 'exit 130' INT TERM
"$e2e/install.sh"
"$e2e/run.sh" "$@"
