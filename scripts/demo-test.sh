#!/usr/bin/env bash
# Runs `coppice demo` plain, cut off by Ctrl-C at several moments, and twice at once; after each, nothing may be left: no
# mount, no loop device, no file, no process.
#
# The demo keeps all it makes below TMPDIR, which is a folder of ours here.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

((EUID == 0)) || die "the demo mounts file systems: run it as root"
find_coppice
base=$(mktemp -d "${TMPDIR:-/tmp}/coppice-demo-test.XXXXXX")
logs=$TARGET_DIR/demo-test
rm -rf "$logs"
mkdir -p "$logs"
groups=()

cleanup() {
    local group
    for group in "${groups[@]}"; do kill -KILL -- "-$group" 2>/dev/null || true; done
    clean_below "$base"
    rm -rf --one-file-system "$base"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

failed=0
fail() {
    say "demo: $*"
    failed=$((failed + 1))
}

# start NAME: runs the demo in a process group of its own, as a terminal would, with a TMPDIR of its own. A background job
# of a script is born with SIGINT ignored; a demo in a terminal is not.
start() {
    mkdir -p "$base/$1"
    TMPDIR=$base/$1 setsid env --default-signal=INT "$COPPICE" demo >"$logs/$1.log" 2>&1 </dev/null &
    pid=$!
    groups+=("$pid")
}

# finish NAME PID: waits, at most 120 s, sets status, and looks for what is left.
finish() {
    local name=$1 pid=$2 left before=$failed
    if ! wait_gone "$pid" 120; then
        fail "$name: still running after 120 s"
        kill -KILL -- "-$pid" 2>/dev/null || true
    fi
    status=0
    wait "$pid" || status=$?
    if kill -0 -- "-$pid" 2>/dev/null; then fail "$name: left a process of its group running"; fi
    left=$(leftovers_below "$base/$name")
    [[ -z $left ]] || fail "$name: left behind: $left"
    clean_below "$base/$name"
    left=$(find "$base/$name" -mindepth 1 -print 2>&1 | head -n 20)
    [[ -z $left ]] || fail "$name: left files: $left"
    left=$(pgrep -af "$base/$name" || true)
    [[ -z $left ]] || fail "$name: left processes: $left"
    if ((failed > before)); then tail -n 40 "$logs/$name.log"; fi
}

expect_success() {
    if ((status != 0)); then
        tail -n 40 "$logs/$1.log"
        fail "$1: exit code $status"
    fi
}

began=$(now)
start plain
finish plain "$pid"
took=$(since "$began")
expect_success plain
say "demo plain: exit code $status, $took s"

# Moments spread over the run just timed, and one at the very start.
interrupted=0
for percent in 1 15 30 45 60 75 90; do
    name=interrupt-$percent
    start "$name"
    sleep "$(awk -v t="$took" -v p="$percent" 'BEGIN { printf "%.3f", t * p / 100 }')"
    if kill -INT -- "-$pid" 2>/dev/null; then interrupted=$((interrupted + 1)); fi
    began=$(now)
    finish "$name" "$pid"
    # 130 is what a shell reports of a program ended by Ctrl-C; 0 if it was through already.
    ((status == 130 || status == 0)) || fail "$name: exit code $status after Ctrl-C"
    say "demo interrupted at $percent %: exit code $status, gone $(since "$began") s later"
done
((interrupted >= 4)) || fail "only $interrupted of 7 runs were still there to be interrupted"

start twin-a
a=$pid
start twin-b
b=$pid
finish twin-a "$a"
expect_success twin-a
finish twin-b "$b"
expect_success twin-b
say "demo twice at once: done"

((failed == 0)) || die "$failed problem(s); logs in $logs"
