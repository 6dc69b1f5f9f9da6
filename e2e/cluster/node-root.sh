#!/usr/bin/env bash
# node-root.sh N: the first process of node N, in namespaces of its own: makes the node's root and goes on inside it.
#
# The root is empty but for what a node needs of the machine: its programs (/usr, read-only), its devices and a few files
# of /etc. /run and all the rest are tmpfs and gone after a power cut; /var is the node's disk and stays. So the node
# sees no file of the machine that it could change, holds none of its mounts, and leaves nothing behind.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../lib.sh"
n=$1
disk=$CLUSTER/node$n
root=$disk/root

bind() { # FROM TO [OPTIONS]
    mkdir -p "$root$2"
    mount --rbind "$1" "$root$2"
    if [[ -n ${3:-} ]]; then mount -o "remount,bind,$3" "$root$2"; fi
}

mkdir -p "$root" "$disk/var"/{lib,log,tmp,cache}
mount -t tmpfs -o mode=755 node "$root"
mkdir -p "$root"/{etc,root,run,tmp,proc,sys,old}
chmod 1777 "$root/tmp"
mount -t tmpfs -o mode=755 run "$root/run"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" # this network's devices
bind /sys/fs/cgroup /sys/fs/cgroup
if [[ -d /sys/fs/fuse/connections ]]; then mount --bind /sys/fs/fuse/connections "$root/sys/fs/fuse/connections"; fi
bind /dev /dev
bind /usr /usr ro
for folder in bin sbin lib lib32 lib64; do
    if [[ -L /$folder ]]; then
        cp -P "/$folder" "$root/$folder"
    elif [[ -d /$folder ]]; then
        bind "/$folder" "/$folder" ro
    fi
done
bind "$disk/var" /var
ln -sfn /run "$root/var/run" # not into what it leads to here: that is the machine's

for file in passwd group nsswitch.conf alternatives mke2fs.conf ld.so.cache ld.so.conf ld.so.conf.d; do
    if [[ -e /etc/$file ]]; then cp -a "/etc/$file" "$root/etc/$file"; fi
done
echo "node$n" >"$root/etc/hostname"
md5sum <<<"coppice node$n" | cut -d ' ' -f 1 >"$root/etc/machine-id"
printf '127.0.0.1 localhost\n%s node%s\n' "$(node_address "$n")" "$n" >"$root/etc/hosts"
hostname "node$n"

mkdir -p "$root/etc/kubernetes"
cp "$PKI/ca.crt" "$root/etc/kubernetes/ca.crt"
for file in crt key conf; do cp "$PKI/node$n.$file" "$root/etc/kubernetes/kubelet.$file"; done
bind "$KUBERNETES_DIR/bin" /opt/kubernetes ro
bind "$IMAGES_DIR/images" /opt/images ro
cp "$(dirname "$0")"/{node-init,boot-id-hook}.sh "$root/opt"

cd "$root"
pivot_root . old
umount -l /old
rmdir /old
mount --make-rshared / # kubelet and the pods that mount for others hand mounts on to each other
exec env -i PATH=/opt/kubernetes:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    NODE_ADDRESS="$(node_address "$n")" POD_SUBNET="$(pod_subnet "$n")" API_ADDRESS="$API_ADDRESS" CGROUP="$CGROUP$n" \
    /opt/node-init.sh
