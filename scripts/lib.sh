# shellcheck shell=bash
# What the scripts share: where things are, which versions of tools are used, how a step is reported.
# Source it; it changes nothing but the shell that sources it.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ROOT

# Tools that are built once and kept outside the tree, under their version.
CSI_SANITY_VERSION=5.5.0
PROMTOOL_VERSION=0.316.0 # of Prometheus 3.16
CARGO_DENY_VERSION=0.20.2
CARGO_FUZZ_VERSION=0.13.2

CACHE=${COPPICE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/coppice}
CSI_SANITY_DIR=$CACHE/bin/csi-sanity-$CSI_SANITY_VERSION
PROMTOOL_DIR=$CACHE/bin/promtool-$PROMTOOL_VERSION
CARGO_DENY_DIR=$CACHE/bin/cargo-deny-$CARGO_DENY_VERSION
CARGO_FUZZ_DIR=$CACHE/bin/cargo-fuzz-$CARGO_FUZZ_VERSION

# mkfs and losetup live in sbin, which a plain user's PATH lacks; cargo and go in places of their own.
PATH=$CSI_SANITY_DIR/bin:$PROMTOOL_DIR/bin:$CARGO_DENY_DIR/bin:$CARGO_FUZZ_DIR/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin
[[ -d ${HOME:-/root}/.cargo/bin ]] && PATH=$PATH:${HOME:-/root}/.cargo/bin
[[ -d /usr/local/go/bin ]] && PATH=$PATH:/usr/local/go/bin
export PATH

TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}

say() { printf '%s\n' "$*"; }
die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Seconds since some start, with milliseconds.
now() { date +%s.%3N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

# Sets COPPICE to the binary under test: $COPPICE_BIN, else the release build of this tree, brought up to date first.
find_coppice() {
    if [[ -n ${COPPICE_BIN:-} ]]; then
        COPPICE=$COPPICE_BIN
    else
        (cd "$ROOT" && cargo build --quiet --release -p coppice) || die "the release build failed"
        COPPICE=$TARGET_DIR/release/coppice
    fi
    [[ -x $COPPICE ]] || die "no binary at $COPPICE"
}

# Prints what a run left in the kernel below the folder $1, one line each: mounts (FUSE ones too) and loop devices.
leftovers_below() {
    local dir=$1 loop file
    awk -v dir="$dir/" 'index($5 "/", dir) == 1 { for (i = 7; i <= NF; i++) if ($i == "-") { print "mount " $5 " (" $(i + 1) ")"; break } }' \
        /proc/self/mountinfo
    for loop in /sys/block/loop*/loop/backing_file; do
        file=$(cat "$loop" 2>/dev/null) || continue
        if [[ $file == "$dir"/* ]]; then
            loop=${loop#/sys/block/}
            say "loop device /dev/${loop%%/*} ($file)"
        fi
    done
}

# Takes away what leftovers_below would list, so that one failed test does not spoil the next. Never waits for a dead server.
clean_below() {
    local dir=$1 loop file target
    for _ in 1 2 3; do
        while read -r target; do
            umount "$target" 2>/dev/null || umount -l "$target" 2>/dev/null || true
        done < <(awk -v dir="$dir/" 'index($5 "/", dir) == 1 { print $5 }' /proc/self/mountinfo | tac)
        for loop in /sys/block/loop*/loop/backing_file; do
            file=$(cat "$loop" 2>/dev/null) || continue
            if [[ $file == "$dir"/* ]]; then
                loop=${loop#/sys/block/}
                losetup -d "/dev/${loop%%/*}" 2>/dev/null || true
            fi
        done
    done
}

# Waits until process $1 is gone, at most $2 seconds; false if it is still there.
wait_gone() {
    local pid=$1 tenths=$(($2 * 10))
    while kill -0 "$pid" 2>/dev/null; do
        ((tenths-- > 0)) || return 1
        sleep 0.1
    done
}
