#!/usr/bin/env bash
# images.sh FOLDER: makes the images that every node is given, FOLDER/images/*.tar: pause, busybox and the sidecars.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$here/versions.sh"

mkdir -p "$out/images"
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root" # it becomes /, which pods enter as any user

# image NAME PROGRAM: an image of what lies in $root, which is emptied for the next.
image() {
    local file=${1##*/}
    "$here/image.sh" "$out/images/${file%%:*}.tar" "$1" "$root" "${@:2}"
    rm -rf "${root:?}"/*
}

gcc -static -Os -o "$root/pause" "$here/pause.c"
image registry.k8s.io/pause:e2e /pause

mkdir -p "$root/bin" "$root/etc" "$root/root" "$root/var"
install -d -m 1777 "$root/tmp"
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in $(busybox --list); do
    [[ -e $root/bin/$applet ]] || ln -s busybox "$root/bin/$applet"
done
ln -sf /proc/mounts "$root/etc/mtab"
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
image docker.io/library/busybox:e2e

sidecar() { # NAME VERSION
    cp "$SIDECARS_DIR/bin/$1" "$root/$1"
    image "registry.k8s.io/sig-storage/$1:v$2" "/$1"
}
sidecar csi-provisioner "$CSI_PROVISIONER_VERSION"
sidecar csi-snapshotter "$CSI_SNAPSHOTTER_VERSION"
sidecar csi-resizer "$CSI_RESIZER_VERSION"
