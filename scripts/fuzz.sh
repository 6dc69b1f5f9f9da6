#!/usr/bin/env bash
# Fuzzes every parser of bytes from outside.
#
#   scripts/fuzz.sh SECONDS [TARGET…]
#   scripts/fuzz.sh --replay TARGET FILE
#
# A target fails on a panic, on an input that takes more than 10 s, and above 1 GiB of memory. What was found interesting
# is kept in fuzz-out/corpus/TARGET and goes on from there next time; what fails lands in fuzz-out/artifacts/TARGET and, once
# mended, in engine/fuzz/seeds/TARGET, which every run starts with. No sanitizer, so that the stable toolchain will do: the
# engine's only unsafe code is the ring and the ioctls, which no target reaches.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# cargo-fuzz wants a target folder of its own.
export CARGO_TARGET_DIR=$TARGET_DIR/fuzz
fuzz=(--fuzz-dir engine/fuzz --sanitizer none)
limits=(-timeout=10 -rss_limit_mb=1024)

if [[ ${1:-} == --replay ]]; then
    (($# == 3)) || die "say --replay TARGET FILE"
    exec cargo-fuzz run "${fuzz[@]}" "$2" "$3" -- "${limits[@]}"
fi

seconds=${1:-20}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "\"$seconds\" is not a number of seconds"
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
    mapfile -t targets < <(cd engine/fuzz/fuzz_targets && printf '%s\n' *.rs | sed 's/\.rs$//')
fi

cargo-fuzz build "${fuzz[@]}" </dev/null

failed=()
for target in "${targets[@]}"; do
    corpus=fuzz-out/corpus/$target artifacts=fuzz-out/artifacts/$target seeds=engine/fuzz/seeds/$target
    mkdir -p "$corpus" "$artifacts"
    folders=("$corpus")
    [[ -d $seeds ]] && folders+=("$seeds")
    start=$(now)
    log=$(mktemp)
    if cargo-fuzz run "${fuzz[@]}" "$target" "${folders[@]}" -- -max_total_time="$seconds" "${limits[@]}" \
        -print_final_stats=1 -artifact_prefix="$artifacts/" </dev/null >"$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        if [[ ${runs:-0} -eq 0 ]]; then
            cat "$log"
            say "fuzz $target: FAILED; it ran no input"
            failed+=("$target")
        else
            say "fuzz $target: ok, $runs inputs in $(since "$start") s"
        fi
    else
        cat "$log"
        say "fuzz $target: FAILED; replay: scripts/fuzz.sh --replay $target $artifacts/…"
        failed+=("$target")
    fi
    rm -f "$log"
done
if ((${#failed[@]})); then die "failed: ${failed[*]}"; fi
