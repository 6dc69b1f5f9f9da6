#!/usr/bin/env bash
# The init of a node: brings up containerd with its images and kubelet, keeps both running, and reaps. Its end is the
# node's end.
set -euo pipefail
: "$NODE_ADDRESS" "$POD_SUBNET" "$API_ADDRESS" "$CGROUP"
mkdir -p /etc/containerd /etc/cni/net.d /var/log/pods /var/log/containers /var/lib/kubelet

# A boot has an identity, and this is one. The kernel's own would say that all nodes are one, and that it was never off.
cat /proc/sys/kernel/random/uuid >/run/boot-id
mount --bind /run/boot-id /proc/sys/kernel/random/boot_id

# kubelet sets these for the whole machine unless they are as it wants them: let it see that they are.
facade() { # SYSCTL VALUE
    local file=/run/sysctl/$1
    [[ -e /proc/sys/$1 ]] || return 0
    mkdir -p "${file%/*}"
    echo "$2" >"$file"
    mount --bind "$file" "/proc/sys/$1"
}
facade vm/overcommit_memory 1
facade vm/panic_on_oom 0
facade kernel/panic 10
facade kernel/panic_on_oops 1
facade kernel/keys/root_maxkeys 1000000
facade kernel/keys/root_maxbytes 25000000

# Pods live below a cgroup of this node's own, in every hierarchy.
if [[ -e /sys/fs/cgroup/cgroup.controllers ]]; then
    mkdir -p "/sys/fs/cgroup/$CGROUP"
else
    for hierarchy in /sys/fs/cgroup/*/; do
        [[ -L ${hierarchy%/} || $hierarchy == */unified/ ]] || mkdir -p "$hierarchy$CGROUP"
    done
    # A new cpuset has no processors until it is told.
    for file in cpuset.cpus cpuset.mems; do
        cat "/sys/fs/cgroup/cpuset/$file" >"/sys/fs/cgroup/cpuset/$CGROUP/$file"
    done
fi

cat >/etc/cni/net.d/10-pods.conflist <<EOT
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipam": {"type": "host-local", "dataDir": "/run/cni",
   "ranges": [[{"subnet": "$POD_SUBNET"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}
EOT
cat >/etc/containerd/config.toml <<'EOT'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:e2e"
  restrict_oom_score_adj = true # not every machine lets root lower it
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  base_runtime_spec = "/etc/containerd/runtime-spec.json"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "/etc/cni/net.d"
EOT
ctr oci spec | sed '1s|{|{"hooks": {"createContainer": [{"path": "/opt/boot-id-hook.sh"}]},|' >/etc/containerd/runtime-spec.json
cat >/etc/kubernetes/kubelet.yaml <<EOT
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: /etc/kubernetes/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: /etc/kubernetes/kubelet.crt
tlsPrivateKeyFile: /etc/kubernetes/kubelet.key
volumePluginDir: /var/lib/kubelet/volume-plugins
resolvConf: ""
cgroupDriver: cgroupfs
cgroupRoot: /$CGROUP
failCgroupV1: false
failSwapOn: false
oomScoreAdj: 0
# The nodes' disk is the machine's: how full that is, is not for them to act on.
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 50Mi, nodefs.available: "0%", nodefs.inodesFree: "0%", imagefs.available: "0%", imagefs.inodesFree: "0%"}
EOT

# keep NAME COMMAND…: runs it again whenever it ends, as an init system would.
keep() {
    local name=$1
    shift
    while :; do
        "$@" >>"/var/log/$name.log" 2>&1 || true
        sleep 1
    done &
}
wait_for() { # SECONDS WHAT COMMAND…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || { echo "no $what" >&2 && exit 1; }
        sleep 0.1
    done
}
images() { ctr --namespace k8s.io images "$@"; }

keep containerd containerd
wait_for 60 containerd ctr version
present=$(images list --quiet)
for file in /opt/images/*.tar; do
    # After a power cut they are on the disk already.
    name=$(tar -xOf "$file" manifest.json | sed 's/.*"RepoTags": \["\([^"]*\)"\].*/\1/')
    [[ $present == *"$name"* ]] || images import "$file"
done

wait_for 120 "API server" bash -c "exec 3<>/dev/tcp/$API_ADDRESS/443"
keep kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf \
    --hostname-override="$(hostname)" --node-ip="$NODE_ADDRESS"
echo "up"
while :; do wait || true; done
