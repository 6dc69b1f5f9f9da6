#!/usr/bin/env bash
# Runs the tests as named steps, each with its time, and goes on after a failure so that one run shows all of them.
#
#   scripts/test.sh                all steps
#   scripts/test.sh --fast         the fast ones (make check)
#   scripts/test.sh --list         what there is
#   scripts/test.sh NAME…          only these
#
# A step's output is also kept in target/test-logs/NAME.log. The last line is "N passed, N failed", counted in steps.
# To add a step: one line in the table below.
set -uo pipefail
# A test that returns an error says all in its message; a backtrace would push that out of what CI keeps.
export RUST_LIB_BACKTRACE=0
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit 1

names=() kinds=() texts=() commands=()
# step NAME fast|full TEXT COMMAND (one string for bash)
step() {
    names+=("$1") kinds+=("$2") texts+=("$3") commands+=("$4")
}

# Tests of the release binary are built as all others are; Cargo would build everything a second time for optimised ones.
with_binary="env COPPICE_BIN=$TARGET_DIR/release/coppice"
tried="$with_binary cargo test --workspace --test"

# -- the table ------------------------------------------------------------------------------------------------------
step unit fast "unit and integration tests" \
    "cargo test --workspace --no-fail-fast"
step simulator full "the real engine on a simulated disk: crashes, faults, deliberate bugs" \
    "cargo test --profile simulate -p coppice-engine --features sim --lib --test 'sim_*'"
step fuzz full "every parser of bytes from outside, 5 s each" \
    "scripts/fuzz.sh 5"
step build full "the release binary, which the next steps use" \
    "cargo build --release -p coppice"
step chart full "the Helm chart: lint, schema, its kinds against coppice crds" \
    "$with_binary scripts/chart.sh"
step monitoring full "alerts, dashboard and metrics: promtool, and names that agree" \
    "scripts/monitoring.sh"
step bench full "coppice bench runs and prints what it promises (figures are not judged)" \
    "$tried bench -- --ignored"
step power-cuts full "power cuts under the real binary, on a disk whose write cache forgets" \
    "$tried power_cut -- --ignored --nocapture"
step csi-sanity full "csi-sanity over {thin, thick} x {mount, block}" \
    "scripts/csi-sanity.sh"
step demo full "the demo: plain, interrupted, twice at once" \
    "scripts/demo-test.sh"
step callers full "random CSI callers while the driver is killed; COPPICE_CALLERS_SECONDS=N goes on with fresh seeds" \
    "timeout --kill-after=10 $((600 + ${COPPICE_CALLERS_SECONDS:-0})) $tried callers -- --ignored --nocapture"
step two-nodes full "a snapshot of one process is a volume of another: bad networks, certificates, kills of either side" \
    "$tried two_nodes -- --ignored"
step file-systems full "ext4, xfs and btrfs under fio while snapshots come and go; kill -9 under load" \
    "scripts/fs-torture.sh"
step e2e full "claims, snapshots, clones and what may happen to them, on a Kubernetes cluster; KILLS=200 for a longer last one" \
    "KILLS=\${KILLS:-60} $with_binary scripts/e2e.sh"
step conformance full "the fast part of Kubernetes' own storage suite" \
    "$with_binary scripts/conformance.sh --fast"
# -------------------------------------------------------------------------------------------------------------------

index_of() {
    local i
    for i in "${!names[@]}"; do [[ ${names[i]} == "$1" ]] && say "$i" && return; done
    die "no step \"$1\"; there are: ${names[*]}"
}

chosen=()
case ${1:-} in
--list)
    for i in "${!names[@]}"; do printf '%-12s %-5s %s\n' "${names[i]}" "${kinds[i]}" "${texts[i]}"; done
    exit 0
    ;;
--fast) for i in "${!names[@]}"; do [[ ${kinds[i]} == fast ]] && chosen+=("$i"); done ;;
"") chosen=("${!names[@]}") ;;
*) for name in "$@"; do
    i=$(index_of "$name") || exit 1
    chosen+=("$i")
done ;;
esac

logs=$TARGET_DIR/test-logs
mkdir -p "$logs"
passed=0 failed=0 results=()
began=$(now)
for i in "${chosen[@]}"; do
    start=$(now)
    say "== ${names[i]}: ${texts[i]}"
    # The pipe waits for tee, so the log is complete when the step is; pipefail hands on the step's own status.
    if bash -c "${commands[i]}" </dev/null 2>&1 | tee "$logs/${names[i]}.log"; then
        result=ok passed=$((passed + 1))
    else
        result=FAILED failed=$((failed + 1))
    fi
    results+=("$(printf '%-12s %8s s  %s' "${names[i]}" "$(since "$start")" "$result")")
    say "== ${names[i]}: $result after $(since "$start") s"
done

say
printf '%s\n' "${results[@]}"
printf '%-12s %8s s\n' total "$(since "$began")"
# CI adds its own parts to these.
if [[ -n ${COPPICE_TEST_COUNTS:-} ]]; then say "$passed $failed" >"$COPPICE_TEST_COUNTS"; fi
say "$passed passed, $failed failed"
((failed == 0))
