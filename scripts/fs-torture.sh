#!/usr/bin/env bash
# Real file systems over the tree of lvols, through the real binary: ext4, xfs and btrfs on exported lvols under fio with
# verification, while snapshots are taken (with syncfs before each, as CSI does), clones of them are mounted and checked with
# fsck, the volume grows, and snapshots are deleted in random order. At the end the driver is killed (kill -9) under load, started again, and
# what had been synced must be there.
#   scripts/fs-torture.sh [ext4|xfs|btrfs]…      SECONDS_EACH=N for another length, SEED=N for other random choices
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

find_coppice
SECONDS_EACH=${SECONDS_EACH:-12}
RANDOM=${SEED:-7}
[[ $# -gt 0 ]] || set -- ext4 xfs btrfs

WORK=$(mktemp -d "${TMPDIR:-/tmp}/coppice-torture-XXXXXX")
WORK=$(cd "$WORK" && pwd -P)
RUN=$WORK/run
DRIVER=
cleanup() {
    set +e
    [[ -n ${FIO:-} ]] && kill "$FIO" 2>/dev/null && wait "$FIO" 2>/dev/null
    awk -v dir="$WORK/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | while read -r at; do
        case $at in "$RUN"/*) ;; *) umount "$at" || umount -l "$at" ;; esac
    done
    [[ -n $DRIVER ]] && kill "$DRIVER" 2>/dev/null && wait "$DRIVER" 2>/dev/null
    awk -v dir="$WORK/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
    rm -rf "$WORK"
}
trap cleanup EXIT

ctl() { "$COPPICE" --run-dir "$RUN" "$@"; }
device_of() { ctl lvol export "$1" | grep -o '/dev/loop[0-9]*' | head -n 1; }

start_driver() {
    "$COPPICE" standalone --lvstore "$WORK/store.img" --run-dir "$RUN" --endpoint "unix://$WORK/csi.sock" --node-id torture \
        >>"$WORK/driver.log" 2>&1 &
    DRIVER=$!
    for _ in $(seq 150); do
        [[ -S $RUN/admin.sock ]] && ctl lvstore ls >/dev/null 2>&1 && return
        kill -0 "$DRIVER" 2>/dev/null || { cat "$WORK/driver.log" >&2; die "the driver ended at its start"; }
        sleep 0.1
    done
    die "the driver did not come up"
}

check_fs() { # TYPE DEVICE: after a mount has replayed the journal
    case $1 in
    ext4) e2fsck -fn "$2" >"$WORK/fsck.log" 2>&1 ;;
    xfs) xfs_repair -n "$2" >"$WORK/fsck.log" 2>&1 ;;
    btrfs) btrfs check --readonly "$2" >"$WORK/fsck.log" 2>&1 ;;
    esac || { cat "$WORK/fsck.log" >&2; die "$1: the file system of a clone is not sound"; }
}

mount_options() { case $1 in xfs) echo nouuid ;; *) echo defaults ;; esac; }

grow() { # TYPE VOLUME DEVICE MOUNT MIB: in use, and all of it can be read at once
    ctl lvol resize "$2" "${5}M" >/dev/null
    dd if="$3" of=/dev/null iflag=direct bs=1M skip=$(($5 - 1)) status=none || die "$1: the end of the grown device cannot be read"
    case $1 in
    # A mounted ext4 grows only for whoever has CAP_SYS_RESOURCE (bit 24), which not every machine gives root.
    ext4) ((0x$(awk '/^CapEff/ { print $2 }' /proc/self/status) >> 24 & 1)) || return 0
        resize2fs "$3" >"$WORK/grow.log" 2>&1 ;;
    xfs) xfs_growfs "$4" >"$WORK/grow.log" 2>&1 ;;
    btrfs) btrfs filesystem resize max "$4" >"$WORK/grow.log" 2>&1 ;;
    esac || { cat "$WORK/grow.log" >&2; die "$1: the file system does not grow"; }
}

torture() { # TYPE
    local fs=$1 vol=vol-$1 mnt=$WORK/$1 dev n snaps=() snap clone cdev pick mib=1024
    ctl lvol create "$vol" 1G >/dev/null
    dev=$(device_of "$vol")
    case $fs in ext4) mkfs.ext4 -q "$dev" ;; xfs) mkfs.xfs -q "$dev" ;; btrfs) mkfs.btrfs -q "$dev" >/dev/null 2>&1 ;; esac
    mkdir -p "$mnt" "$mnt-clone"
    mount "$dev" "$mnt"
    fio --name=verify --directory="$mnt" --size=160m --rw=randrw --bsrange=4k-128k --ioengine=psync --numjobs=2 \
        --verify=crc32c --verify_state_save=0 --verify_backlog=512 --do_verify=1 --time_based --runtime="$SECONDS_EACH" --fsync=64 \
        --output="$WORK/fio-$fs.log" >/dev/null 2>&1 &
    FIO=$!
    n=0
    while kill -0 "$FIO" 2>/dev/null; do
        n=$((n + 1))
        snap=snap-$fs-$n
        echo "$fs $n $RANDOM" >"$mnt/marker"
        sync -f "$mnt"
        cp "$mnt/marker" "$WORK/marker-$snap"
        ctl lvol snapshot "$vol" "$snap" >/dev/null
        snaps+=("$snap")
        clone=clone-$fs-$n
        ctl lvol clone "$snap" "$clone" >/dev/null
        cdev=$(device_of "$clone")
        # A btrfs clone has its origin's id: the kernel mounts both only where it knows temp_fsid, as here is assumed.
        mount -o "$(mount_options "$fs")" "$cdev" "$mnt-clone"
        cmp -s "$mnt-clone/marker" "$WORK/marker-$snap" || die "$fs: clone $n does not hold what was synced before its snapshot"
        umount "$mnt-clone"
        check_fs "$fs" "$cdev"
        ctl lvol export --stop "$clone" >/dev/null
        ctl lvol rm "$clone" >/dev/null
        if ((n % 4 == 0)); then
            mib=$((mib + 64))
            grow "$fs" "$vol" "$dev" "$mnt" $mib
        fi
        # Some snapshot goes, any one.
        if ((${#snaps[@]} > 3)); then
            pick=$((RANDOM % ${#snaps[@]}))
            ctl lvol rm "${snaps[pick]}" >/dev/null
            unset "snaps[pick]"
            snaps=("${snaps[@]}")
        fi
    done
    wait "$FIO" || { cat "$WORK/fio-$fs.log" >&2; die "$fs: fio found wrong data"; }
    FIO=
    ctl lvstore check >/dev/null || { ctl lvstore check; die "$fs: the store does not check out"; }
    umount "$mnt"
    check_fs "$fs" "$dev"
    while ((${#snaps[@]} > 0)); do
        pick=$((RANDOM % ${#snaps[@]}))
        ctl lvol rm "${snaps[pick]}" >/dev/null
        unset "snaps[pick]"
        snaps=("${snaps[@]}")
    done
    mount "$dev" "$mnt"
    say "$fs: fio verified its data, $n snapshots, as many clones mounted and checked, grown to $mib MiB"
}

killed_under_load() {
    local fs mnt dev
    for fs in "$@"; do
        mnt=$WORK/$fs
        dd if=/dev/urandom of="$mnt/kept" bs=1M count=16 status=none
        sync -f "$mnt"
        sha256sum <"$mnt/kept" >"$WORK/kept-$fs.sum"
        fio --name=load --directory="$mnt" --size=64m --rw=randwrite --bs=16k --ioengine=psync --time_based --runtime=20 \
            --output=/dev/null >/dev/null 2>&1 &
    done
    sleep 2
    kill -9 "$DRIVER"
    wait "$DRIVER" 2>/dev/null || true
    DRIVER=
    # The devices are dead: their file systems see errors, and go.
    pkill -P $$ fio 2>/dev/null || true
    sleep 1
    for fs in "$@"; do umount "$WORK/$fs" 2>/dev/null || umount -l "$WORK/$fs"; done
    start_driver
    ctl lvstore check >/dev/null || { ctl lvstore check; die "after kill -9 the store does not check out"; }
    for fs in "$@"; do
        mnt=$WORK/$fs
        dev=$(device_of "vol-$fs")
        mount "$dev" "$mnt"
        sha256sum <"$mnt/kept" | cmp -s - "$WORK/kept-$fs.sum" || die "$fs: data that was synced is gone after kill -9"
        umount "$mnt"
        check_fs "$fs" "$dev"
        ctl lvol export --stop "vol-$fs" >/dev/null
        ctl lvol rm "vol-$fs" >/dev/null
    done
    say "kill -9 under load: everything that was synced is there, every file system is sound"
}

"$COPPICE" lvstore create "$WORK/store.img" --size 8G --name torture >/dev/null
start_driver
for fs in "$@"; do torture "$fs"; done
killed_under_load "$@"
kill "$DRIVER"
wait "$DRIVER" || die "the driver did not end well"
DRIVER=
"$COPPICE" lvstore check --image "$WORK/store.img" >/dev/null || die "the closed store does not check out"
left=$(leftovers_below "$WORK")
[[ -z $left ]] || die "left behind: $left"
say "nothing is left behind"
