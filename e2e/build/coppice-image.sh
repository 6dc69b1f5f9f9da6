#!/usr/bin/env bash
# coppice-image.sh FILE BINARY NAME: makes FILE, the image NAME with the coppice BINARY and the programs it calls, without a
# container engine: programs and libraries are this machine's own, so they fit each other.
set -euo pipefail
file=$1 binary=$2 name=$3
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"

# What node/src/host calls, and what those call in turn; a person who looks into the pod gets busybox for the rest.
programs=(blkid losetup mount umount fsck e2fsck fsck.ext4 mkfs.ext4 resize2fs tune2fs
    mkfs.xfs xfs_growfs xfs_repair fsck.xfs xfs_db xfs_io mkfs.btrfs btrfs fsck.btrfs)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc,proc,sys,dev,run,var/lib}
install -d -m 1777 "$root/tmp"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done

# add FILE: itself, the file that it may be a link to, and the libraries that it needs, where the machine has them.
add() {
    local path library
    for path in "$1" "$(realpath "$1")"; do
        path=$(merged "$path")
        [[ -e $root$path ]] && continue
        install -d "$root${path%/*}"
        cp -P --preserve=mode "$path" "$root$path"
    done
    for library in $({ ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*'); do add "$library"; done
}
# /bin and the like are links to /usr/bin, here and in the image; the loader's own path goes through /lib64.
merged() {
    case $1 in
    /bin/* | /sbin/* | /lib/* | /lib64/*) say "/usr$1" ;;
    *) say "$1" ;;
    esac
}

for program in "${programs[@]}"; do add "$(command -v "$program")"; done
cp /etc/mke2fs.conf "$root/etc"
cp "$(command -v busybox)" "$root/usr/bin/busybox"
for applet in $(busybox --list); do
    [[ -e $root/usr/bin/$applet || -e $root/usr/sbin/$applet ]] || ln -s busybox "$root/usr/bin/$applet"
done
cp "$binary" "$root/usr/bin/coppice"
for library in $({ ldd "$binary" 2>/dev/null || true; } | grep -o '/[^ ]*'); do add "$library"; done

"$here/image.sh" "$file" "$name" "$root" /usr/bin/coppice
