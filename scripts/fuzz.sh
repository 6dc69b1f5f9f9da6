#!/usr/bin/env bash
# Fuzzes every parser of bytes from outside.
#
#   scripts/fuzz.sh SECONDS [TARGET…]
#   scripts/fuzz.sh --replay TARGET FILE
#
# A target fails on a panic, on an input that takes more than 10 s, and above 1 GiB of memory. What was found interesting
# is kept in fuzz-out/corpus/TARGET and goes on from there next time; what fails lands in fuzz-out/artifacts/TARGET and, once
# mended, in CRATE/fuzz/seeds/TARGET, which every run starts with. No sanitizer, so that the stable toolchain will do: the
# engine's only unsafe code is the ring and the ioctls, which no target reaches.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
cd "$ROOT"

# cargo-fuzz wants a target folder of its own.
export CARGO_TARGET_DIR=$TARGET_DIR/fuzz
crates=(engine nbd)
limits=(-timeout=10 -rss_limit_mb=1024)

# crate_of TARGET: the crate whose fuzz folder has it; a target's name is one crate's.
crate_of() {
    local crate
    for crate in "${crates[@]}"; do
        [[ -e $crate/fuzz/fuzz_targets/$1.rs ]] && say "$crate" && return
    done
    die "no fuzz target \"$1\" in ${crates[*]}"
}
fuzz_run() { # TARGET ARGUMENT…
    local crate
    crate=$(crate_of "$1") || exit 1
    cargo-fuzz run --fuzz-dir "$crate/fuzz" --sanitizer none "$@"
}

if [[ ${1:-} == --replay ]]; then
    (($# == 3)) || die "say --replay TARGET FILE"
    fuzz_run "$2" "$3" -- "${limits[@]}"
    exit
fi

seconds=${1:-20}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || die "\"$seconds\" is not a number of seconds"
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
    for crate in "${crates[@]}"; do
        mapfile -t -O ${#targets[@]} targets < <(cd "$crate/fuzz/fuzz_targets" && printf '%s\n' *.rs | sed 's/\.rs$//')
    done
fi

for crate in "${crates[@]}"; do
    cargo-fuzz build --fuzz-dir "$crate/fuzz" --sanitizer none </dev/null
done

failed=()
for target in "${targets[@]}"; do
    crate=$(crate_of "$target")
    corpus=fuzz-out/corpus/$target artifacts=fuzz-out/artifacts/$target seeds=$crate/fuzz/seeds/$target
    mkdir -p "$corpus" "$artifacts"
    folders=("$corpus")
    [[ -d $seeds ]] && folders+=("$seeds")
    start=$(now)
    log=$(mktemp)
    if fuzz_run "$target" "${folders[@]}" -- -max_total_time="$seconds" "${limits[@]}" \
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
