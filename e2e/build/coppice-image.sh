#!/usr/bin/env bash
# coppice-image.sh FILE BINARY NAME: makes FILE, the image NAME with the coppice BINARY and the programs it calls, without a
# container engine: programs and libraries are this machine's own, so they fit each other.
set -euo pipefail
file=$1 binary=$2 name=$3
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"

# What node/src/host calls, what those call in turn, and a shell. Not busybox's, which prefers busybox's own mount,
# losetup and fsfreeze to these; for the rest busybox is there when a person looks into the pod.
programs=(sh blkid losetup mount umount fsfreeze fsck e2fsck fsck.ext4 mkfs.ext4 resize2fs tune2fs dumpe2fs
    mkfs.xfs xfs_growfs xfs_repair fsck.xfs xfs_db xfs_io mkfs.btrfs btrfs fsck.btrfs)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root"/{usr/{bin,sbin,lib,lib64},etc,proc,sys,dev,run,var/lib}
install -d -m 1777 "$root/tmp"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done

# add FILE: to the same place in the image, and the file that it may be a link to.
add() {
    local path
    for path in "$1" "$(realpath "$1")"; do
        case $path in # /bin and the like are links to /usr/bin, here and in the image
        /bin/* | /sbin/* | /lib/* | /lib64/*) path=/usr$path ;;
        esac
        if [[ ! -e $root$path && ! -L $root$path ]]; then
            install -d "$root${path%/*}"
            cp --no-dereference --preserve=mode "$path" "$root$path"
        fi
    done
}
libraries_of() { { ldd "$1" 2>/dev/null || true; } | grep -o '/[^ ]*' || true; } # none: a script, or a static program

for program in "${programs[@]}"; do
    program=$(command -v "$program")
    add "$program"
    for library in $(libraries_of "$program"); do add "$library"; done
done
cp /etc/mke2fs.conf "$root/etc"
cp "$(command -v busybox)" "$root/usr/bin/busybox"
for applet in $(busybox --list); do
    [[ -e $root/usr/bin/$applet || -e $root/usr/sbin/$applet ]] || ln -s busybox "$root/usr/bin/$applet"
done
cp "$binary" "$root/usr/bin/coppice"
for library in $(libraries_of "$binary"); do add "$library"; done

"$here/image.sh" "$file" "$name" "$root" /usr/bin/coppice
