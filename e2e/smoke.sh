#!/usr/bin/env bash
# Does the cluster itself work? Up, once; a pod on every node, which reaches the API server and another node's pod; a power cut
# and a new boot of one node; every process of the control plane killed once; down; the machine as it was before.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$here/lib.sh"

# What of the machine a cluster could change, one line each. What others have below /tmp, or as cgroups of their services,
# comes and goes.
machine() {
    "$here/cluster/leftovers.sh"
    ip -oneline link | sed 's/^/link /; s/qdisc.*//'
    ip -oneline address | awk '{ print "address", $2, $4 }'
    ip route | sed 's/^/route /'
    awk '$5 !~ "^/tmp/" { print "mount", $5 }' /proc/self/mountinfo
    find /sys/fs/cgroup -maxdepth 2 -type d -printf 'cgroup %p\n' 2>/dev/null
    sysctl -a 2>/dev/null | grep -E '^(vm\.(overcommit|panic)|kernel\.(panic|keys)|fs\.inotify|net\..*forward)' | sed 's/^/sysctl /'
    find /etc /opt /run /usr/libexec /var/{lib,log,tmp} -xdev -maxdepth 1 -printf 'file %p\n' 2>/dev/null
}

logs=$(mktemp -d)
trap '"$here/down.sh"; rm -rf "$logs"' EXIT
machine | sort >"$logs/before"
"$here/up.sh"
if "$here/up.sh" >"$logs/second" 2>&1; then die "there are two clusters"; fi
grep -q "a cluster is up already" "$logs/second" || die "the second start was refused for another reason: $(cat "$logs/second")"

pod() { # N
    cat <<EOT
---
apiVersion: v1
kind: Pod
metadata: {name: smoke$1}
spec:
  nodeName: node$1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: busybox, image: "docker.io/library/busybox:e2e", command: [sleep, "1000000"]}
EOT
}
for n in "${NODES[@]}"; do pod "$n"; done | kubectl apply -f - >/dev/null
pods_ready() { kubectl wait --for=condition=Ready pod --all --timeout=60s >/dev/null || die "pods: $(kubectl get pods -o wide)"; }
pods_ready
in_pod() { kubectl exec "smoke$1" -- "${@:2}"; }
for n in "${NODES[@]}"; do
    in_pod "$n" nc -w 5 "$SERVICE_ADDRESS" 443 </dev/null || die "the pod of node $n does not reach the API server"
    address=$(kubectl get pod "smoke$((n % ${#NODES[@]} + 1))" -o 'jsonpath={.status.podIP}')
    in_pod "$n" ping -c 1 -w 5 "$address" >/dev/null || die "the pod of node $n does not reach that of another node"
    if in_pod "$n" ping -c 1 -w 1 -W 1 192.0.2.1 >/dev/null 2>&1; then die "the pod of node $n reaches beyond the cluster"; fi
done
say "smoke: pods run on ${#NODES[@]} nodes and reach each other"

boot_id() { in_pod 2 cat /proc/sys/kernel/random/boot_id; }
reported_boot_id() { kubectl get node node2 -o 'jsonpath={.status.nodeInfo.bootID}'; }
restarted() { [[ $(kubectl get pod smoke2 -o 'jsonpath={.status.containerStatuses[0].restartCount}') == 1 ]]; }
before=$(boot_id)
[[ $before == "$(reported_boot_id)" ]] || die "the pod sees boot $before, kubelet $(reported_boot_id)"
"$here/node.sh" run 2 sh -c 'touch /var/lib/disk; truncate --size 1M /run/memory'
loop=$("$here/node.sh" run 2 losetup --find --show /run/memory)
"$here/node.sh" off 2
! losetup "$loop" 2>/dev/null | grep -q /memory || die "$loop outlived the power cut"
"$here/node.sh" on 2
wait_for 120 "the pod of node 2 to run again" restarted
pods_ready
[[ $(boot_id) != "$before" && $(boot_id) == "$(reported_boot_id)" ]] || die "node 2 has no new boot id"
"$here/node.sh" run 2 test -e /var/lib/disk || die "the disk of node 2 did not outlive the power cut"
! "$here/node.sh" run 2 test -e /run/memory || die "the memory of node 2 outlived the power cut"
say "smoke: node 2 was off and on"

for component in etcd kube-apiserver kube-controller-manager kube-scheduler snapshot-controller; do
    "$here/cluster/component.sh" stop "$component"
    "$here/cluster/component.sh" start "$component"
    wait_for 60 "the API server after $component was killed" kubectl get --raw /readyz
done
kubectl delete pod --all --timeout=60s >/dev/null
for n in "${NODES[@]}"; do pod "$n"; done | kubectl apply -f - >/dev/null
pods_ready
say "smoke: the control plane was killed, process by process"

"$here/down.sh"
machine | sort >"$logs/after"
diff "$logs/before" "$logs/after" || die "the machine is not as it was before the cluster"
say "smoke: nothing left over"
