#!/usr/bin/env bash
# Installs Coppice from the chart in the cluster, or what is new of it: builds binary and image, gives them to the nodes, and
# waits until the driver works. COPPICE_BIN names a binary that is there already.
#
#   e2e/install.sh [FILE…]             binary, image, chart; FILEs are more values, the last has the last word
#   e2e/install.sh --chart [FILE…]     the chart only, with the image of the last time
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$here/lib.sh"
need_root
need_cluster

began=$(now)
progress() { printf '%5.1f s  %s\n' "$(since "$began")" "$*"; }

image=$CLUSTER/coppice.tar
if [[ ${1:-} == --chart ]]; then
    shift
else
    find_coppice
    "$here/build/coppice-image.sh" "$image" "$COPPICE" docker.io/library/coppice:e2e
    "$here/node.sh" load "$image" >"$CLUSTER/log/load.log" || die "the nodes do not take the image: $(tail -n 3 "$CLUSTER/log/load.log")"
    progress "image in the nodes"
    # kubectl coppice, and its completion; see enter.sh.
    mkdir -p "$CLUSTER/bin"
    for name in kubectl-coppice kubectl_complete-coppice; do ln -sf "$(realpath "$COPPICE")" "$CLUSTER/bin/$name"; done
fi

values=(--values "$here/values.yaml")
for file in "$@"; do values+=(--values "$file"); done
# The image's sum makes the pods new when the binary is. With the first run the API server learns of Lvstores, with the
# second it gets them.
sum=$(cksum <"$image" | cut -d ' ' -f 1)
for _ in 1 2; do
    "$here/enter.sh" timeout 120 helm upgrade --install coppice "$ROOT/charts/coppice" --namespace "$NAMESPACE" --create-namespace \
        "${values[@]}" --set-string "node.podAnnotations.image=$sum,controller.podAnnotations.image=$sum" \
        >"$CLUSTER/log/helm.log" 2>&1 || die "helm: $(cat "$CLUSTER/log/helm.log")"
done
progress "chart installed"

trap 'failed' EXIT
failed() {
    kubectl --namespace "$NAMESPACE" get pods -o wide || true
    kubectl get lvstores || true
    for component in controller node; do
        kubectl --namespace "$NAMESPACE" logs --selector "app.kubernetes.io/component=$component" \
            --container coppice --prefix --tail 20 || true
    done
}
for workload in deployment/coppice-controller daemonset/coppice-node; do
    kubectl --namespace "$NAMESPACE" rollout status "$workload" --timeout 100s >/dev/null || die "$workload is not ready"
done
progress "controller and agents ready"
kubectl wait lvstores --all --for condition=Ready --timeout 60s >/dev/null || die "not every lvstore is ready"
# kubelet tells the scheduler which nodes have the driver.
registered() { [[ $(kubectl get csinodes -o 'jsonpath={.items[*].spec.drivers[*].name}' | wc -w) == "${#NODES[@]}" ]]; }
wait_for 60 "the driver to be registered on every node" registered
trap - EXIT
progress "lvstores ready"
