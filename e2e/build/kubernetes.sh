#!/usr/bin/env bash
# kubernetes.sh FOLDER: puts Kubernetes' programs and etcd into FOLDER/bin, as links to one binary (kube/main.go).
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$here/versions.sh"
# shellcheck source=e2e/build/module.sh
source "$here/module.sh"

module=$(mktemp -d)
trap 'rm -rf "$module"' EXIT
cp "$here/kube/main.go" "$module"
cd "$module"
kubernetes_module "$KUBERNETES_VERSION"

# Without the version the API server says v0.0.0, which its clients take as a reason to complain.
variable=k8s.io/component-base/version
IFS=. read -r major minor _ <<<"$KUBERNETES_VERSION"
ldflags="-s -w -X $variable.gitVersion=v$KUBERNETES_VERSION -X $variable.gitMajor=$major -X $variable.gitMinor=$minor"
go build -mod=mod -trimpath -ldflags "$ldflags" -o "$out/bin/kube" .

for name in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kubectl; do
    ln -s kube "$out/bin/$name"
done
