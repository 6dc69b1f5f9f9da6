#!/usr/bin/env bash
# Runs scenarios in the cluster, on the Coppice that e2e/install.sh installed; goes on after a failure.
#
#   e2e/run.sh                 all, in the order of their files
#   e2e/run.sh --list          what there is
#   e2e/run.sh NAME…           only these; a name may be a pattern: 'expand-*'
#
# A scenario is a function of a file in e2e/scenarios with a namespace of its own, which is deleted afterwards; then nothing
# of its volumes may be left anywhere that was not there before. Output, and what the cluster has to say of a failure: target/test-logs/e2e/NAME.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$HERE/lib.sh"

names=() texts=()
scenario() { names+=("$1") texts+=("$2"); } # NAME TEXT: its function is scenario_NAME, with _ for -
# shellcheck source=e2e/scenarios/lib.sh
source "$HERE/scenarios/lib.sh"
for file in "$HERE"/scenarios/[0-9]*.sh; do
    # shellcheck disable=SC1090 # each is checked by itself
    source "$file"
done

if [[ ${1:-} == --list ]]; then
    for i in "${!names[@]}"; do printf '%-20s %s\n' "${names[i]}" "${texts[i]}"; done
    exit 0
fi
if [[ ${1:-} == --one ]]; then # this script's own call: a process for each, so that the first error ends it
    scenario_"${2//-/_}"
    exit 0
fi

need_root
need_cluster
logs=$TARGET_DIR/test-logs/e2e
mkdir -p "$logs"
export TIMES=$logs/times COUNTS=$logs/counts
: >"$TIMES"
: >"$COUNTS"

run_one() { # NAME: false if anything is wrong
    local name=$1 status=0
    export SPACE=e2e-$name space=e2e-$name
    rm -rf "${logs:?}/$name"
    mkdir "$logs/$name"
    kubectl create namespace "$space" >/dev/null || return 1
    (wait_for 30 "its service account" k get serviceaccount default) || return 1
    # Every wait inside has an end of its own; this is for what nobody thought of.
    timeout --kill-after 10 900 "$0" --one "$name" </dev/null >"$logs/$name/output" 2>&1 || status=$?
    if ((status != 0)); then report "$name"; fi
    # Pods first: claims wait for them anyway, and so it is seen who does not end.
    k delete pod --all --timeout 60s >/dev/null 2>>"$logs/$name/output" || status=1
    kubectl delete namespace "$space" --timeout 100s >/dev/null 2>>"$logs/$name/output" || status=1
    if ! (wait_for 60 "nothing to be left" clean "$logs/before") 2>/dev/null; then
        { say "left over:" && left_over "$logs/before"; } >>"$logs/$name/output" 2>&1
        if ((status == 0)); then report "$name"; fi
        status=1
    fi
    if ((status != 0)); then sed 's/^/    /' "$logs/$name/output"; fi
    return "$status"
}

# report NAME: what the cluster has to say, while it is still there.
report() {
    local folder=$logs/$1 component
    {
        k get pods,pvc,volumesnapshots --output wide
        kubectl get pv,lvols,lvstores --output wide
        k get events --sort-by .lastTimestamp
        kubectl --namespace "$NAMESPACE" get pods --output wide
    } >"$folder/objects" 2>&1 || true
    kubectl get lvols,lvstores --output yaml >"$folder/lvols.yaml" 2>&1 || true
    for component in controller node; do
        kubectl --namespace "$NAMESPACE" logs --selector "app.kubernetes.io/component=$component" --all-containers --prefix \
            --tail 400 >"$folder/$component.log" 2>&1 || true
    done
    tail -n 15 "$folder/objects"
}

chosen=()
for name in "${names[@]}"; do
    if (($# == 0)); then chosen+=("$name"); fi
    for pattern in "$@"; do
        # shellcheck disable=SC2053 # a pattern is what it is
        if [[ $name == $pattern ]]; then chosen+=("$name"); fi
    done
done
((${#chosen[@]})) || die "no scenario of that name; e2e/run.sh --list"

# Somebody else may have volumes in this cluster.
remains | sort >"$logs/before"
passed=0 failed=()
for name in "${chosen[@]}"; do
    start=$(now)
    if run_one "$name"; then
        passed=$((passed + 1))
        say "ok      $name ($(since "$start") s)"
    else
        failed+=("$name")
        remains | sort >"$logs/before" # the next is not to blame for what this one left
        say "FAILED  $name ($(since "$start") s), see $logs/$name"
    fi
done

# How long it took, of each kind: the least, the median and the most.
sort --field-separator $'\t' --key 1,1 --key 2,2n "$TIMES" | awk -F '\t' '
    function flush() { if (n) printf "%-28s %3d times  %5.1f  %5.1f  %5.1f s\n", what, n, v[1], v[int((n + 1) / 2)], v[n] }
    $1 != what { flush(); what = $1; n = 0 }
    { v[++n] = $2 }
    END { flush() }'
cat "$COUNTS"
say "$passed passed, ${#failed[@]} failed"
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
