#!/usr/bin/env bash
# make conformance: Kubernetes' own external storage suite on a cluster of the project's, with e2e/test-driver.yaml.
#
#   scripts/conformance.sh                      every test of what we claim; default volumes are thin and have an XFS
#   scripts/conformance.sh FS thin|thick        with other default volumes, those tests in which these occur
#   scripts/conformance.sh --fast               those of conformance-fast.txt, one of each capability
#   scripts/conformance.sh --only TEXT …        those that have this in their full name; a star stands for anything
#   scripts/conformance.sh --list …             says which these are, and runs nothing
#   scripts/conformance.sh --keep …             leaves the cluster up
#
# Fails on a failed test, on a test that did not run without a reason in conformance-skips.txt, and when something is left over.
# Output, JUnit, JSON, logs and the table of results: target/conformance/FS-THIN. PROCESSES=N tests run at a time, and all of
# them MINUTES=N at most.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../e2e/lib.sh"
HERE=$ROOT/e2e
# shellcheck source=e2e/scenarios/lib.sh
source "$HERE/scenarios/lib.sh"

processes=${PROCESSES:-$((2 * $(nproc)))}
minutes=${MINUTES:-60}
wanted=() keep='' list='' all=1
while [[ ${1:-} == --* ]]; do
    case $1 in
    --fast) mapfile -t wanted < <(grep -v '^#' "$ROOT/scripts/conformance-fast.txt") ;;
    --only)
        wanted=("${2:?"--only needs a text"}")
        shift
        ;;
    --list) list=1 ;;
    --keep) keep=1 ;;
    *) die "no option \"$1\"" ;;
    esac
    shift
done
(($# == 0 || $# == 2)) || die "say nothing, or: FS thin|thick"
if ((${#wanted[@]})); then all=''; fi
# What is neither of one file system nor of raw volumes.
if (($#)) && [[ -n $all ]]; then wanted=("(default fs)" "(filesystem volmode)" "Snapshot (") all=''; fi
fs=${1:-xfs} provisioning=${2:-thin}
out=$TARGET_DIR/conformance/$fs-$provisioning

# -- which tests ----------------------------------------------------------------------------------------------------

# regex TEXT: a part of a name, in which a star stands for anything.
regex() { sed 's/[].[()+?{}|^$\\]/\\&/g; s/\*/.*/g' <<<"$1"; }

wanted_regexes=()
for text in "${wanted[@]}"; do wanted_regexes+=("$(regex "$text")"); done
kinds=() regexes=() lines=() used=() # of the skip list
while IFS= read -r line; do
    [[ $line == \#* || -z $line ]] && continue
    [[ $line =~ ^(exclude|late|skips)\ (.*)\ \|\ (.*)$ ]] || die "conformance-skips.txt: not a line of it: $line"
    kinds+=("${BASH_REMATCH[1]}") lines+=("$line") used+=("")
    regexes+=("$(regex "${BASH_REMATCH[2]}")")
done <"$ROOT/scripts/conformance-skips.txt"

# listed KIND NAME: whether a line of this kind names the test; notes that the line is needed.
listed() {
    local i
    for i in "${!kinds[@]}"; do
        if [[ ${kinds[i]} == "$1" && $2 =~ ${regexes[i]} ]]; then used[i]=1 && return; fi
    done
    return 1
}
is_wanted() { # NAME
    local regex
    for regex in "${wanted_regexes[@]}"; do
        if [[ $1 =~ $regex ]]; then return; fi
    done
    [[ -n $all ]]
}

# The tests of a report: state, a tab, full name.
tests_of() {
    jq --raw-output '.[].SpecReports[] | select(.LeafNodeType == "It")
        | select(.ContainerHierarchyTexts[0] | startswith("External Storage"))
        | "\(.State)\t\(.ContainerHierarchyTexts + [.LeafNodeText] | join(" "))"' "$1"
}
enter=() # how to get to where the API server is
# suite FOLDER DRIVER_FILE [OPTION…]: the suite, or what the options leave of it; its report is FOLDER/report.json.
suite() {
    local folder=$1 driver=$2
    shift 2
    mkdir -p "$folder"
    "${enter[@]}" "$CONFORMANCE_DIR/bin/ginkgo" --keep-going --no-color --timeout="${minutes}m" \
        --output-dir="$folder" --json-report=report.json --junit-report=junit.xml "$@" "$CONFORMANCE_DIR/bin/e2e.test" -- \
        --provider=skeleton --storage.testdriver="$driver" --report-dir="$folder/suite" --e2e-output-dir="$folder/suite" \
        >"$folder/output.log" 2>&1 </dev/null
}

"$ROOT/scripts/setup.sh" conformance
rm -rf "$out"
mkdir -p "$out"
suite "$out/plan" "$HERE/test-driver.yaml" --dry-run || die "there is no list of tests: $(tail -n 5 "$out/plan/output.log")"
names=()
declare -A plan # name -> excluded, unwanted, or the pass that it runs in
while IFS=$'\t' read -r _ name; do
    names+=("$name")
    if ! is_wanted "$name"; then
        plan[$name]=unwanted
    elif listed exclude "$name"; then
        plan[$name]=excluded
    elif listed late "$name"; then
        plan[$name]=late
    else
        plan[$name]=at-once
    fi
done < <(tests_of "$out/plan/report.json" | sort)
((${#names[@]} >= 100)) || die "the suite has only ${#names[@]} tests; see $out/plan/output.log"
for i in "${!wanted[@]}"; do
    found=
    for name in "${names[@]}"; do
        if [[ $name =~ ${wanted_regexes[i]} && ${plan[$name]} != excluded ]]; then found=1 && break; fi
    done
    [[ -n $found ]] || die "no test that could run has this in its name: ${wanted[i]}"
done
if [[ -n $list ]]; then
    for name in "${names[@]}"; do
        if [[ ${plan[$name]} != unwanted ]]; then printf '%-8s %s\n' "${plan[$name]}" "$name"; fi
    done
    exit 0
fi

# -- running them ---------------------------------------------------------------------------------------------------

# one_pass NAME: the tests that are planned for it. False if one of them failed.
one_pass() {
    local name focus=''
    for name in "${names[@]}"; do
        # All of a name, with any number of spaces: ginkgo and its reports differ there.
        if [[ ${plan[$name]} == "$1" ]]; then focus+="|$(sed 's/[].[()*+?{}|^$\\]/\\&/g; s/ \+/ +/g' <<<"$name")"; fi
    done
    [[ -n $focus ]] || return 0
    sed "s/FromExistingClassName: conformance/&-$1/" "$HERE/test-driver.yaml" >"$out/$1.yaml"
    suite "$out/$1" "$out/$1.yaml" --procs="$processes" --focus="(${focus#|})\$"
}
class() { # PASS BINDING_MODE
    cat <<EOT
---
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: conformance-$1}
provisioner: csi.coppice.io
volumeBindingMode: $2
allowVolumeExpansion: true
parameters: {provisioning: $provisioning, csi.storage.k8s.io/fstype: $fs}
EOT
}
keep_logs() {
    local n
    kubectl --namespace "$NAMESPACE" get pods -o wide >"$out/pods.txt" 2>&1 || true
    cp -r "$CLUSTER/log" "$out/control-plane" || true
    for n in "${NODES[@]}"; do cp -rL "$CLUSTER/node$n/var/log" "$out/node$n" 2>/dev/null || true; done
}

need_root
find_coppice
export COPPICE_BIN=$COPPICE
"$HERE/up.sh"
if [[ -z $keep ]]; then trap '"$HERE/down.sh"' EXIT; fi
trap 'exit 130' INT TERM
"$HERE/install.sh" "$HERE/conformance-values.yaml"
for image in "$CONFORMANCE_DIR"/images/*.tar; do "$HERE/node.sh" load "$image" >>"$out/images.log"; done
# Most tests bind at once, because the suite makes volumes from snapshots and from other volumes without a word about the
# node, and such a volume goes where its source is.
{ class at-once Immediate; class late WaitForFirstConsumer; } | kubectl apply --filename - >/dev/null
remains | sort >"$out/before"

enter=("$HERE/enter.sh" timeout --kill-after 30 "$((minutes + 5))m")
start=$(now) bad=0
for pass in at-once late; do
    one_pass "$pass" || bad=1
    if [[ -e $out/$pass && ! -s $out/$pass/report.json ]]; then
        tail -n 30 "$out/$pass/output.log"
        keep_logs
        die "no report of the pass \"$pass\""
    fi
done
seconds=$(since "$start")

# -- what came of it ------------------------------------------------------------------------------------------------

declare -A state # name -> passed, failed or skipped
for pass in at-once late; do
    [[ -e $out/$pass ]] || continue
    while IFS=$'\t' read -r result name; do
        [[ ${plan[$name]:-} == "$pass" ]] || continue
        case $result in
        passed | skipped) state[$name]=$result ;;
        pending) state[$name]=skipped ;;
        *) state[$name]=failed ;;
        esac
    done < <(tests_of "$out/$pass/report.json")
    # The failures of what is around the tests, too.
    jq --raw-output '.[].SpecReports[] | select(.State | IN("passed", "skipped", "pending") | not)
        | "FAILED \((.ContainerHierarchyTexts // []) + [.LeafNodeText] | join(" "))\n    \(.Failure.Message)"' "$out/$pass/report.json"
done >"$out/failed.txt"
cat "$out/failed.txt"
passed=0 failed=0 skipped=0
for name in "${names[@]}"; do
    case ${plan[$name]} in
    unwanted) continue ;;
    excluded) state[$name]=skipped ;;
    esac
    case ${state[$name]:-missing} in
    passed) passed=$((passed + 1)) ;;
    failed) failed=$((failed + 1)) ;;
    skipped)
        skipped=$((skipped + 1))
        if [[ ${plan[$name]} != excluded ]] && ! listed skips "$name"; then
            say "did not run, WITHOUT a reason in conformance-skips.txt: $name"
            bad=1
        fi
        ;;
    missing)
        say "planned, but not in the report: $name"
        bad=1
        ;;
    esac
done
((failed == 0)) || bad=1
if [[ -n $all ]]; then
    for i in "${!used[@]}"; do
        if [[ -z ${used[i]} ]]; then
            say "conformance-skips.txt: there is no such test any more: ${lines[i]}"
            bad=1
        fi
    done
fi

# Of each suite and test pattern.
for name in "${!state[@]}"; do printf '%s\t%s\n' "${state[$name]}" "$name"; done | awk -F '\t' '
    { match($2, /\[Testpattern: [^]]*\]/); pattern = substr($2, RSTART + 14, RLENGTH - 15)
      suite = substr($2, RSTART + RLENGTH + 1); sub(/^(\[[^]]*\] )*/, "", suite); sub(/ .*/, "", suite)
      rows[suite " | " pattern]; n[suite " | " pattern, $1]++ }
    END { for (row in rows) printf "| %s | %d | %d | %d |\n", row, n[row, "passed"], n[row, "failed"], n[row, "skipped"] }' | sort |
    sed '1i | suite | test pattern | passed | failed | skipped |\n|---|---|---:|---:|---:|' >"$out/table.md"
cat "$out/table.md"

if ! (wait_for 120 "nothing to be left" clean "$out/before") 2>/dev/null; then
    say "left over:" "$(left_over "$out/before")"
    bad=1
fi
if ((bad)); then keep_logs; fi
say "conformance $fs $provisioning: $passed passed, $failed failed, $skipped skipped, $( ((bad)) && echo FAILED || echo ok), $seconds s"
exit "$bad"
