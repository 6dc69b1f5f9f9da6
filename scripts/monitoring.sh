#!/usr/bin/env bash
# Checks what is monitored, without a cluster: promtool reads the alerts, the dashboard's queries and what the real processes
# say; each alert has a test in charts/coppice/tests/rules.yaml; and cli/tests/monitoring.rs compares names: what rules and
# dashboard ask for is exported, and what is exported is in docs/monitoring.md.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
chart=$ROOT/charts/coppice
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

promtool check rules --lint-fatal "$chart/files/rules.yaml"
promtool test rules "$chart/tests/rules.yaml"

# The tests of the rules can fail: with any number of a rule much larger, or half of what it is, one of them does. Numbers are
# those behind "for:" and a comparison; halves of 0 and 1 say nothing.
mkdir -p "$tmp/rules/files" "$tmp/rules/tests"
cp "$chart/tests/rules.yaml" "$tmp/rules/tests"
changed() { # WHICH HOW: the rules with their number WHICH changed; nothing if there is no such number or change
    perl -0pe 'BEGIN { ($which, $how) = splice @ARGV, 0, 2 }
        sub other { my ($before, $number) = @_;
            return $number + 1000 if $how eq "more";
            return $number if $number eq "0" || $number eq "1";
            return $before eq "for: " ? int($number / 2) : $number / 2 }
        s{(for: |[<>]=? |== )([0-9.]+)}{ $1 . ($n++ == $which ? other($1, $2) : $2) }ge' \
        "$1" "$2" "$chart/files/rules.yaml"
}
numbers=$(grep -oE '(for: |[<>]=? |== )[0-9.]+' "$chart/files/rules.yaml" | wc -l)
((numbers > 25)) || die "only $numbers numbers in the rules"
noticed=0
for ((which = 0; which < numbers; which++)); do
    for how in more half; do
        changed "$which" "$how" >"$tmp/rules/files/rules.yaml"
        if difference=$(diff "$chart/files/rules.yaml" "$tmp/rules/files/rules.yaml"); then continue; fi
        promtool check rules "$tmp/rules/files/rules.yaml" >/dev/null
        if promtool test rules "$tmp/rules/tests/rules.yaml" >/dev/null 2>&1; then
            die "no test notices this change of the rules: $difference"
        fi
        noticed=$((noticed + 1))
    done
done
say "$noticed changes of the rules, each noticed by a test"

# The dashboard's queries as rules, so that promtool reads them: its variables stand in strings, except for the interval.
jq '{groups: [{name: "dashboard", rules: [.panels[].targets[]?.expr | gsub("\\$__rate_interval"; "5m")] | to_entries
    | map({record: "query:\(.key)", expr: .value})}]}' "$chart/files/dashboard.json" >"$tmp/dashboard.json"
promtool check rules "$tmp/dashboard.json"

mkdir "$tmp/said"
(cd "$ROOT" && COPPICE_EXPOSITIONS=$tmp/said cargo test --quiet --workspace --test monitoring)
for role in standalone node controller; do
    promtool check metrics <"$tmp/said/$role" || die "promtool finds fault with what $role says"
done
say "monitoring: rules, dashboard, metrics and their document agree"
