#!/usr/bin/env bash
# Starts the cluster and leaves it running (make cluster). One at a time on a machine; e2e/down.sh takes it away.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$here/lib.sh"
need_root
"$ROOT/scripts/setup.sh" cluster

began=$(now)
progress() { printf '%5.1f s  %s\n' "$(since "$began")" "$*"; }

[[ ! -e $CLUSTER ]] || die "a cluster is up already ($(owner)): make cluster-down"
left=$("$here/cluster/leftovers.sh")
[[ -z $left ]] || die "there are remains of a cluster: $left"
# Making the folder is what claims the machine; whoever fails from here on takes it all away again.
mkdir "$CLUSTER"
trap 'failed' EXIT
failed() {
    rm -rf "$FAILURE_LOGS"
    mkdir -p "$(dirname "$FAILURE_LOGS")"
    cp -r "$CLUSTER/log" "$FAILURE_LOGS"
    for n in "${NODES[@]}"; do cp -r "$CLUSTER/node$n/var/log" "$FAILURE_LOGS/node$n" 2>/dev/null || true; done
    say "the cluster did not start; its logs are in $FAILURE_LOGS"
    "$here/down.sh"
}
trap 'exit 1' INT TERM
{
    cat /proc/sys/kernel/random/boot_id
    say "started from $ROOT on $(date -Iseconds)"
} >"$CLUSTER/owner"
mkdir -p "$CLUSTER"/{log,pids,fuse}
mount -t fusectl fusectl "$CLUSTER/fuse" # for power cuts: see node.sh

# Three kubelets and containerds want more of these than most machines grant; down.sh puts it back.
limit=/proc/sys/fs/inotify/max_user_instances
if (($(cat $limit) < 1024)); then
    cat $limit >"$CLUSTER/inotify-instances"
    echo 1024 >$limit
fi

"$here/cluster/pki.sh"
"$here/cluster/network.sh"
progress "keys and network"
# Nodes look for the API server only after they have unpacked their images: it has that long to start.
"$here/cluster/component.sh" start etcd
"$here/cluster/component.sh" start kube-apiserver
for n in "${NODES[@]}"; do "$here/node.sh" on "$n"; done
wait_for 120 "the API server" kubectl get --raw /readyz
progress "API server ready"
"$here/cluster/component.sh" start kube-controller-manager
"$here/cluster/component.sh" start kube-scheduler
(kubectl apply --kustomize "$SIDECARS_DIR/manifests") >"$CLUSTER/log/manifests.log" 2>&1 || {
    cat "$CLUSTER/log/manifests.log" >&2
    die "the API server did not take the snapshot CRDs"
}
"$here/cluster/component.sh" start snapshot-controller

nodes_ready() {
    local n
    for n in "${NODES[@]}"; do [[ $(node_condition "$n") == True ]] || return 1; done
}
node_condition() { kubectl get node "node$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'; }
wait_for 180 "all nodes to be ready" nodes_ready
progress "${#NODES[@]} nodes ready"
# Without it no pod can be made in the namespace.
wait_for 60 "the default service account" kubectl get serviceaccount default
for component in etcd kube-apiserver kube-controller-manager kube-scheduler snapshot-controller; do
    pid_of "$component" >/dev/null || die "$component ended: $(tail -n 5 "$CLUSTER/log/$component.log")"
done
trap - EXIT
progress "up; use it with:  $here/enter.sh kubectl get nodes   (or $here/enter.sh for a shell)"
