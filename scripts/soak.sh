#!/usr/bin/env bash
# Runs the simulator for SECONDS seconds with fresh seeds: scripts/soak.sh SECONDS
#
# It is the ignored test "soak" of the engine, which reads COPPICE_SOAK_SECONDS.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

seconds=${1:-600}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "\"$seconds\" is not a number of seconds"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
COPPICE_SOAK_SECONDS=$seconds cargo test --profile simulate -p coppice-engine --features sim -- \
    --ignored --nocapture soak </dev/null 2>&1 | tee "$log"
# cargo is content when a filter matches nothing; a soak is not.
grep -Eq '^test result: ok\. [1-9]' "$log" || die "there is no test named \"soak\" in the engine"
