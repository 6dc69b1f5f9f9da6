#!/usr/bin/env bash
# component.sh start|stop NAME: one process of the control plane: etcd, kube-apiserver, kube-controller-manager,
# kube-scheduler or snapshot-controller. Stopping is SIGKILL; etcd's data stays in etcd/.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../lib.sh"
need_root
need_cluster
action=${1:-} name=${2:?which component}

program=$KUBERNETES_DIR/bin/$name
case $name in
etcd)
    options=(
        --data-dir="$CLUSTER/etcd"
        --unsafe-no-fsync # a power cut of this machine ends the cluster anyway
        --listen-client-urls=http://127.0.0.1:2379
        --advertise-client-urls=http://127.0.0.1:2379
        --listen-peer-urls=http://127.0.0.1:2380
        --initial-advertise-peer-urls=http://127.0.0.1:2380
        --initial-cluster=default=http://127.0.0.1:2380
        --log-level=warn
    )
    ;;
kube-apiserver)
    options=(
        --etcd-servers=http://127.0.0.1:2379
        --secure-port=443
        --advertise-address="$API_ADDRESS"
        --service-cluster-ip-range="$SERVICE_SUBNET"
        --tls-cert-file="$PKI/apiserver.crt"
        --tls-private-key-file="$PKI/apiserver.key"
        --client-ca-file="$PKI/ca.crt"
        --kubelet-certificate-authority="$PKI/ca.crt"
        --kubelet-client-certificate="$PKI/kubelet-client.crt"
        --kubelet-client-key="$PKI/kubelet-client.key"
        --kubelet-preferred-address-types=InternalIP
        --authorization-mode="Node,RBAC"
        --enable-admission-plugins=NodeRestriction
        --allow-privileged=true
        --service-account-issuer=https://kubernetes.default.svc
        --service-account-key-file="$PKI/service-accounts.key"
        --service-account-signing-key-file="$PKI/service-accounts.key"
        --cert-dir="$CLUSTER/certs"
    )
    ;;
kube-controller-manager)
    options=(
        --use-service-account-credentials
        --service-account-private-key-file="$PKI/service-accounts.key"
        --root-ca-file="$PKI/ca.crt"
        --cluster-signing-cert-file="$PKI/ca.crt"
        --cluster-signing-key-file="$PKI/ca.key"
    )
    ;;
kube-scheduler) options=() ;;
snapshot-controller)
    program=$SIDECARS_DIR/bin/$name
    options=(--kubeconfig="$PKI/$name.conf" --leader-election=false)
    ;;
*) die "no component \"$name\"" ;;
esac
if [[ $name == kube-controller-manager || $name == kube-scheduler ]]; then
    options+=(
        --kubeconfig="$PKI/$name.conf"
        --authentication-kubeconfig="$PKI/$name.conf"
        --authorization-kubeconfig="$PKI/$name.conf"
        --leader-elect=false
        --bind-address=127.0.0.1
        --cert-dir="$CLUSTER/certs"
    )
fi

case $action in
start)
    if pid_of "$name" >/dev/null; then die "$name runs already"; fi
    start "$name" nsenter --net="$CLUSTER/net/control" env NO_PROXY='*' "$program" "${options[@]}"
    ;;
stop) stop "$name" ;;
*) die "start or stop?" ;;
esac
