#!/usr/bin/env bash
# coppice-image.sh FILE BINARY NAME: makes FILE, the image NAME with the coppice BINARY and the programs it calls, without a
# container engine: programs and libraries are this machine's own, so they fit each other.
set -euo pipefail
file=$1 binary=$2 name=$3
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=e2e/build/programs.sh
source "$here/programs.sh"

# What node/src/host calls, what those call in turn, and a shell. Not busybox's, which prefers busybox's own mount,
# losetup and fsfreeze to these; for the rest busybox is there when a person looks into the pod.
programs=(sh blkid losetup mount umount fsfreeze fsck e2fsck fsck.ext4 mkfs.ext4 resize2fs tune2fs dumpe2fs
    mkfs.xfs xfs_growfs xfs_repair fsck.xfs xfs_db xfs_io mkfs.btrfs btrfs fsck.btrfs)

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
merged_root "$root"
for program in "${programs[@]}"; do add_program "$root" "$program"; done
cp /etc/mke2fs.conf "$root/etc"
add_busybox "$root"
cp "$binary" "$root/usr/bin/coppice"
add_libraries "$root" "$binary"

"$here/image.sh" "$file" "$name" "$root" /usr/bin/coppice
