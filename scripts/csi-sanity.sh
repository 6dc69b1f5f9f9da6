#!/usr/bin/env bash
# Runs csi-sanity against `coppice standalone` on a lvstore in a file.
#
#   scripts/csi-sanity.sh                      {thin, thick} x {mount, block}
#   scripts/csi-sanity.sh thin block           one of them
#
# Fails on a failed test, on a skip that csi-sanity-skips.txt does not explain, when the store does not check out
# afterwards, and when a volume, a mount, a loop device or a file is left. Logs and JUnit: target/csi-sanity/.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

skips=$ROOT/scripts/csi-sanity-skips.txt
out=$TARGET_DIR/csi-sanity
MiB=$((1 << 20))
driver_pid=
tmp=

cleanup() {
    if [[ -n $driver_pid ]] && kill -0 "$driver_pid" 2>/dev/null; then
        kill -KILL "$driver_pid" || true
        wait "$driver_pid" 2>/dev/null || true
    fi
    if [[ -n $tmp ]]; then
        clean_below "$tmp"
        # One file system only: if something is still mounted here, its files are not ours to delete.
        rm -rf --one-file-system "$tmp"
    fi
    driver_pid='' tmp=''
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# explained NAME: prints the number of the line in the skip list that allows it.
explained() {
    local name=$1 line pattern number=0
    while IFS= read -r line; do
        number=$((number + 1))
        [[ $line == \#* || -z $line ]] && continue
        pattern=${line%% | *}
        # shellcheck disable=SC2053 # a pattern is what it is
        if [[ $name == $pattern ]]; then say "$number" && return; fi
    done <"$skips"
    return 1
}

# run_one PROVISIONING ACCESS_TYPE: false if anything is wrong; appends the used lines of the skip list to $used.
run_one() {
    local provisioning=$1 access=$2 size expand start status=0 bad=0 logs name line left
    case $provisioning in
    thin) size=$((1024 * MiB)) expand=$((2048 * MiB)) ;;
    thick) size=$((64 * MiB)) expand=$((128 * MiB)) ;;
    *) die "provisioning is thin or thick, not \"$provisioning\"" ;;
    esac
    [[ $access == mount || $access == block ]] || die "the access type is mount or block, not \"$access\""
    logs=$out/$provisioning-$access
    rm -rf "$logs"
    mkdir -p "$logs"
    start=$(now)

    tmp=$(mktemp -d "${TMPDIR:-/tmp}/coppice-sanity.XXXXXX")
    local store=$tmp/store sock=$tmp/csi.sock
    "$COPPICE" lvstore create "$store" --size 16G --name sanity >"$logs/create.log" 2>&1 || {
        cat "$logs/create.log"
        return 1
    }
    "$COPPICE" standalone --endpoint "unix://$sock" --run-dir "$tmp/run" --node-id sanity-node --lvstore "$store" \
        >"$logs/driver.log" 2>&1 </dev/null &
    driver_pid=$!
    for _ in $(seq 150); do
        [[ -S $sock ]] && break
        kill -0 "$driver_pid" 2>/dev/null || break
        sleep 0.1
    done
    if [[ ! -S $sock ]]; then
        cat "$logs/driver.log"
        say "csi-sanity $provisioning $access: the driver did not open its socket"
        return 1
    fi

    printf 'provisioning: %s\n' "$provisioning" >"$tmp/parameters.yaml"
    timeout --kill-after=10 900 csi-sanity \
        --csi.endpoint "unix://$sock" \
        --csi.mountdir "$tmp/target" --csi.stagingdir "$tmp/staging" \
        --csi.testvolumeparameters "$tmp/parameters.yaml" \
        --csi.testvolumeaccesstype "$access" \
        --csi.testvolumesize "$size" --csi.testvolumeexpandsize "$expand" \
        --ginkgo.no-color --ginkgo.v \
        --ginkgo.junit-report="$logs/junit.xml" --ginkgo.json-report="$logs/report.json" \
        >"$logs/csi-sanity.log" 2>&1 </dev/null || status=$?
    if ((status != 0)); then
        # Only what failed: the whole is in the log.
        jq -r '.[].SpecReports[] | select(.State | IN("failed", "panicked", "timedout", "interrupted", "aborted"))
            | "FAILED \(.ContainerHierarchyTexts + [.LeafNodeText] | join(" "))\n    \(.Failure.Message)"' "$logs/report.json" || true
        say "csi-sanity $provisioning $access: exit code $status; end of the driver's log:"
        tail -n 50 "$logs/driver.log"
        bad=1
    fi

    if ! kill -0 "$driver_pid" 2>/dev/null; then
        say "csi-sanity $provisioning $access: the driver died; end of its log:"
        tail -n 50 "$logs/driver.log"
        bad=1
    else
        kill -TERM "$driver_pid"
        if ! wait_gone "$driver_pid" 30; then
            say "csi-sanity $provisioning $access: the driver did not stop within 30 s of SIGTERM"
            kill -KILL "$driver_pid"
            bad=1
        fi
    fi
    status=0
    wait "$driver_pid" || status=$?
    driver_pid=
    if ((status != 0)); then
        say "csi-sanity $provisioning $access: the driver's exit code is $status"
        bad=1
    fi

    left=$(leftovers_below "$tmp")
    if [[ -n $left ]]; then
        say "csi-sanity $provisioning $access: left behind:" "$left"
        bad=1
    fi
    if ! "$COPPICE" lvstore check --image "$store" >"$logs/check.log" 2>&1; then
        cat "$logs/check.log"
        say "csi-sanity $provisioning $access: the store does not check out"
        bad=1
    fi
    left=$("$COPPICE" lvol ls --image "$store" -o json | jq -r '.[] | "lvol \(.alias) (\(.kind), \(.state))"') || bad=1
    if [[ -n $left ]]; then
        say "csi-sanity $provisioning $access: volumes or snapshots left in the store:" "$left"
        bad=1
    fi

    local skipped=0
    while IFS= read -r name; do
        skipped=$((skipped + 1))
        if line=$(explained "$name"); then
            say "$line" >>"$used"
            say "  skipped: $name: $(sed -n "${line}s/.* | //p" "$skips")"
        else
            say "  skipped WITHOUT a reason in csi-sanity-skips.txt: $name"
            bad=1
        fi
    done < <(jq -r '.[].SpecReports[] | select(.LeafNodeType == "It" and (.State | IN("skipped", "pending")))
        | .ContainerHierarchyTexts + [.LeafNodeText] | join(" ")' "$logs/report.json")
    local ran
    ran=$(jq '[.[].SpecReports[] | select(.LeafNodeType == "It" and .State == "passed")] | length' "$logs/report.json") || ran=0
    # A suite that runs hardly anything is no proof.
    if ((ran < 50)); then
        say "csi-sanity $provisioning $access: only $ran tests passed"
        bad=1
    fi
    cleanup
    say "csi-sanity $provisioning $access: $ran passed, $skipped skipped, $( ((bad)) && echo FAILED || echo ok), $(since "$start") s"
    return "$bad"
}

((EUID == 0)) || die "this mounts file systems: run it as root"
find_coppice
used=$(mktemp)
trap 'cleanup; rm -f "$used"' EXIT
failed=0
if (($# == 0)); then
    for provisioning in thin thick; do
        for access in mount block; do run_one "$provisioning" "$access" || failed=$((failed + 1)); cleanup; done
    done
    # Every reason on the list is still needed.
    number=0
    while IFS= read -r line; do
        number=$((number + 1))
        [[ $line == \#* || -z $line ]] && continue
        if ! grep -qx "$number" "$used"; then
            say "csi-sanity-skips.txt: no test is skipped for this line any more: $line"
            failed=$((failed + 1))
        fi
    done <"$skips"
else
    (($# == 2)) || die "say nothing, or: thin|thick mount|block"
    run_one "$1" "$2" || failed=1
fi
((failed == 0)) || die "$failed problem(s)"
