#!/usr/bin/env bash
# Takes the cluster away, whatever state it is in (make cluster-down). Kills only processes that the cluster's scripts
# recorded, and says what is left, if anything is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$here/lib.sh"
need_root
[[ -d $CLUSTER ]] || exit 0

if [[ $(head -n 1 "$CLUSTER/owner" 2>/dev/null) == "$(cat /proc/sys/kernel/random/boot_id)" ]]; then
    for n in "${NODES[@]}"; do "$here/node.sh" off "$n"; done
    for file in "$CLUSTER"/pids/*; do
        if [[ -e $file ]]; then stop "${file##*/}"; fi
    done
    for file in "$CLUSTER"/net/* "$CLUSTER/fuse"; do
        if mountpoint --quiet "$file"; then umount "$file"; fi
    done
    if [[ -e $CLUSTER/inotify-instances ]]; then
        cat "$CLUSTER/inotify-instances" >/proc/sys/fs/inotify/max_user_instances
    fi
fi # else the machine was restarted since, and only files are left

# Never delete through a mount.
mounts=$(leftovers_below "$CLUSTER")
[[ -z $mounts ]] || die "still there, so $CLUSTER stays: $mounts"
rm -rf --one-file-system "$CLUSTER"
left=$("$here/cluster/leftovers.sh")
[[ -z $left ]] || die "left over: $left"
