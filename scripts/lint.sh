#!/usr/bin/env bash
# Everything that reads the tree and runs nothing of it: rustfmt, clippy, cargo deny, shellcheck, tidy.
# Goes on after a failure, so that one run shows all of them.
set -uo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$ROOT" || exit 1

failed=()
part() { # NAME COMMAND…
    local name=$1 start
    shift
    start=$(now)
    if "$@"; then
        say "lint: $name ok ($(since "$start") s)"
    else
        say "lint: $name FAILED ($(since "$start") s)"
        failed+=("$name")
    fi
}

format() {
    cargo fmt --all --check && rustfmt --check --edition 2024 {engine,nbd}/fuzz/fuzz_targets/*.rs
}

deny() {
    # The advisories lie in a repository of their own, which not every machine reaches; the rest needs no network.
    if timeout 60 cargo-deny --log-level off fetch db >/dev/null 2>&1; then
        cargo-deny --log-level warn check --hide-inclusion-graph
    else
        say "lint: the advisory database cannot be fetched here; checking licenses, bans and sources only"
        cargo-deny --log-level warn check --hide-inclusion-graph licenses bans sources
    fi
}

shell() {
    local scripts=(.ci/run)
    mapfile -t -O 1 scripts < <(find scripts e2e deploy -name '*.sh' 2>/dev/null | sort)
    shellcheck --external-sources "${scripts[@]}"
}

part rustfmt format
part clippy cargo clippy --quiet --workspace --all-targets --all-features -- -D warnings
part "cargo deny" deny
part shellcheck shell
part tidy cargo test --quiet --workspace --test tidy

if ((${#failed[@]})); then die "failed: ${failed[*]}"; fi
