#!/usr/bin/env bash
# sidecars.sh FOLDER: puts csi-provisioner, csi-snapshotter, snapshot-controller, csi-resizer and helm into FOLDER/bin, and
# what every cluster with VolumeSnapshots needs into FOLDER/manifests.
#
# They are tools of one module on top of Kubernetes' own, so that every library is compiled once, in the newest version
# that one of them asks for.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$here/versions.sh"
# shellcheck source=e2e/build/module.sh
source "$here/module.sh"

csi=github.com/kubernetes-csi
snapshot_api=$csi/external-snapshotter/client/v8
module=$(mktemp -d)
trap 'rm -rf "$module"' EXIT
cd "$module"
kubernetes_module "$KUBERNETES_VERSION"
# Named by itself because the snapshotter's go.mod takes it from its own tree.
go get "$snapshot_api@v$CSI_SNAPSHOTTER_VERSION"
go get -tool \
    "$csi/external-provisioner/v6/cmd/csi-provisioner@v$CSI_PROVISIONER_VERSION" \
    "$csi/external-snapshotter/v8/cmd/csi-snapshotter@v$CSI_SNAPSHOTTER_VERSION" \
    "$csi/external-snapshotter/v8/cmd/snapshot-controller@v$CSI_SNAPSHOTTER_VERSION" \
    "$csi/external-resizer/v2/cmd/csi-resizer@v$CSI_RESIZER_VERSION" \
    "helm.sh/helm/v4/cmd/helm@v$HELM_VERSION"
go build -mod=mod -trimpath -ldflags "-s -w" -o "$out/bin/" tool

# Those of group snapshots too: without them snapshot-controller gives up after half a minute.
mkdir -p "$out/manifests"
install -m 644 "$(module_folder "$snapshot_api")"/config/crd/*snapshot.storage.k8s.io_*.yaml \
    "$(module_folder "$csi/external-snapshotter/v8")/deploy/kubernetes/snapshot-controller/rbac-snapshot-controller.yaml" \
    "$out/manifests"
# The roles are written for kustomize: one binding lacks its namespace.
{
    printf 'namespace: kube-system\nresources:\n'
    (cd "$out/manifests" && printf -- '- %s\n' [!k]*.yaml)
} >"$out/manifests/kustomization.yaml"
