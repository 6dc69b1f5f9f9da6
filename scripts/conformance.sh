#!/usr/bin/env bash
# make conformance: Kubernetes' own external storage suite on a cluster of the project's, with e2e/test-driver.yaml.
#
#   scripts/conformance.sh                           every test of what we claim; default volumes are thin and have an XFS
#   scripts/conformance.sh FS thin|thick             with other default volumes, those tests in which these occur
#   scripts/conformance.sh --fast                    those of conformance-fast.txt, one of each capability
#   scripts/conformance.sh --focus REGEX [FS THIN]   some, in the words of ginkgo; the skip list is not checked
#   scripts/conformance.sh --keep …                  leaves the cluster up
#
# Fails on a failed test, on a test that did not run without a reason in conformance-skips.txt, and when something is left over.
# Output, JUnit, JSON and the table of results: target/conformance/FS-THIN. PROCESSES=N tests run at a time,
# and all of them MINUTES=N at most.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../e2e/lib.sh"
HERE=$ROOT/e2e
# shellcheck source=e2e/scenarios/lib.sh
source "$HERE/scenarios/lib.sh"

skips=$ROOT/scripts/conformance-skips.txt
fast_list=$ROOT/scripts/conformance-fast.txt
processes=${PROCESSES:-$((2 * $(nproc)))}
minutes=${MINUTES:-60}
fast='' focus='' keep=''
while [[ ${1:-} == --* ]]; do
    case $1 in
    --fast) fast=1 ;;
    --focus)
        focus=${2:?"--focus needs a regular expression"}
        shift
        ;;
    --keep) keep=1 ;;
    *) die "no option \"$1\"" ;;
    esac
    shift
done
(($# == 0 || $# == 2)) || die "say nothing, or: FS thin|thick"
# Patterns that are not of one file system, nor of raw volumes.
if (($#)) && [[ -z $focus ]]; then focus='default fs|filesystem volmode|Snapshot \('; fi
fs=${1:-xfs} provisioning=${2:-thin}
out=$TARGET_DIR/conformance/$fs-$provisioning
report=$out/report.json

# regex PATTERN: a shell pattern of * and ? as a regular expression.
regex() { sed 's/[].[()+{}|^$\\]/\\&/g; s/\*/.*/g; s/?/./g' <<<"$1"; }
# listed KIND: the patterns of a kind in the skip list.
listed() { sed -n "s/^$1 \(.*\) | .*/\1/p" "$skips"; }

# What is tested, as arguments for ginkgo.
selection() {
    local pattern
    if [[ -n $focus ]]; then
        say "--focus=External.Storage.*($focus)"
    elif [[ -n $fast ]]; then
        while IFS= read -r pattern; do say "--focus=$(regex "$pattern")"; done < <(grep -v '^#' "$fast_list")
    else
        say "--focus=External.Storage"
    fi
    while IFS= read -r pattern; do say "--skip=$(regex "$pattern")"; done < <(listed exclude)
}

# Every test of the suite: STATE, a tab, the full name. An excluded one is "skipped" in the report too.
results() {
    jq --raw-output '.[].SpecReports[] | select(.LeafNodeType == "It")
        | select(.ContainerHierarchyTexts[0] | startswith("External Storage"))
        | "\(.State)\t\(.ContainerHierarchyTexts + [.LeafNodeText] | join(" "))"' "$report"
}
# Passed, failed and skipped of each suite and test pattern, as a table.
table() {
    results | awk -F '\t' '
        { match($2, /\[Testpattern: [^]]*\]/); pattern = substr($2, RSTART + 14, RLENGTH - 15)
          suite = substr($2, RSTART + RLENGTH + 1); sub(/^(\[[^]]*\] )*/, "", suite); sub(/ .*/, "", suite)
          row = suite " | " pattern; rows[row] = 1
          n[row, $1 == "passed" ? "passed" : ($1 == "skipped" || $1 == "pending") ? "skipped" : "failed"]++ }
        END { for (row in rows) printf "| %s | %d | %d | %d |\n", row, n[row, "passed"], n[row, "failed"], n[row, "skipped"] }' |
        sort | sed '1i | suite | test pattern | passed | failed | skipped |\n|---|---|---:|---:|---:|'
}
count() { results | grep -c "^$1"$'\t' || true; } # STATE, a pattern

# every_skip_has_a_reason: and every reason a skip.
every_skip_has_a_reason() {
    local name line pattern number bad=0 used=' ' found
    local -a lines
    mapfile -t lines <"$skips"
    while IFS= read -r name; do
        found=
        for number in "${!lines[@]}"; do
            line=${lines[number]}
            [[ $line == \#* || -z $line ]] && continue
            pattern=${line#* }
            # shellcheck disable=SC2053 # a pattern is what it is
            if [[ $name == ${pattern%% | *} ]]; then
                found=1 used+="$number "
                break
            fi
        done
        if [[ -z $found ]]; then
            say "did not run, WITHOUT a reason in conformance-skips.txt: $name"
            bad=1
        fi
    done < <(results | sed -n 's/^\(skipped\|pending\)\t//p')
    for number in "${!lines[@]}"; do
        line=${lines[number]}
        [[ $line == \#* || -z $line || $used == *" $number "* ]] && continue
        say "conformance-skips.txt: there is no such test any more: $line"
        bad=1
    done
    return "$bad"
}
# every_choice_ran: each line of the fast list names a test, which passed.
every_choice_ran() {
    local pattern name found bad=0
    while IFS= read -r pattern; do
        found=
        while IFS= read -r name; do
            # shellcheck disable=SC2053
            if [[ $name == *$pattern* ]]; then found=1 && break; fi
        done < <(results | sed -n 's/^passed\t//p')
        if [[ -z $found ]]; then
            say "conformance-fast.txt: no test of that name passed: $pattern"
            bad=1
        fi
    done < <(grep -v '^#' "$fast_list")
    return "$bad"
}

keep_logs() {
    local n
    kubectl --namespace "$NAMESPACE" get pods -o wide >"$out/pods.txt" 2>&1 || true
    cp -r "$CLUSTER/log" "$out/control-plane" || true
    for n in "${NODES[@]}"; do cp -rL "$CLUSTER/node$n/var/log" "$out/node$n" 2>/dev/null || true; done
}

need_root
"$ROOT/scripts/setup.sh" conformance
find_coppice
export COPPICE_BIN=$COPPICE
rm -rf "$out"
mkdir -p "$out"
"$HERE/up.sh"
if [[ -z $keep ]]; then trap '"$HERE/down.sh"' EXIT; fi
trap 'exit 130' INT TERM
"$HERE/install.sh" "$HERE/conformance-values.yaml"
for image in "$CONFORMANCE_DIR"/images/*.tar; do "$HERE/node.sh" load "$image" >>"$out/images.log"; done
# It binds at once, because the suite makes volumes from snapshots and from other volumes without a word about the node,
# and such a volume goes where its source is. The tests of late binding ask for that themselves.
kubectl apply --filename - >/dev/null <<EOT
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: conformance}
provisioner: csi.coppice.io
volumeBindingMode: Immediate
allowVolumeExpansion: true
parameters: {provisioning: $provisioning, csi.storage.k8s.io/fstype: $fs}
EOT
remains | sort >"$out/before"

mapfile -t arguments < <(selection)
start=$(now)
status=0
"$HERE/enter.sh" timeout --kill-after 30 "$((minutes + 5))m" "$CONFORMANCE_DIR/bin/ginkgo" --procs="$processes" --keep-going --no-color --timeout="${minutes}m" \
    --output-dir="$out" --json-report=report.json --junit-report=junit.xml "${arguments[@]}" \
    "$CONFORMANCE_DIR/bin/e2e.test" -- \
    --provider=skeleton --storage.testdriver="$HERE/test-driver.yaml" --report-dir="$out/suite" --e2e-output-dir="$out/suite" \
    >"$out/output.log" 2>&1 </dev/null || status=$?
seconds=$(since "$start")

bad=0
if ((status != 0)); then bad=1; fi
if [[ ! -s $report ]]; then
    tail -n 30 "$out/output.log"
    keep_logs
    die "no report; ginkgo's exit code is $status"
fi
jq --raw-output '.[].SpecReports[] | select(.State | IN("passed", "skipped", "pending") | not)
    | "FAILED \(.ContainerHierarchyTexts + [.LeafNodeText] | join(" "))\n    \(.Failure.Message)"' "$report" | tee "$out/failed.txt"
table >"$out/table.md"
if [[ -z $focus$fast ]]; then
    every_skip_has_a_reason || bad=1
    cat "$out/table.md"
elif [[ -n $fast ]]; then
    every_choice_ran || bad=1
fi
if ! (wait_for 120 "nothing to be left" clean "$out/before") 2>/dev/null; then
    say "left over:" "$(left_over "$out/before")"
    bad=1
fi
if ((bad)); then keep_logs; fi
say "conformance $fs $provisioning: $(count passed) passed, $(count '\(failed\|panicked\|timedout\|interrupted\|aborted\)') failed," \
    "$( ((bad)) && echo FAILED || echo ok), $seconds s"
exit "$bad"
