#!/usr/bin/env bash
# Checks the chart without a cluster: lint, the kinds against `coppice crds`, the versions, what the schema refuses, and that
# every way to render it gives what it should. The rest needs an API server: e2e/install.sh and the scenarios.
#
#   scripts/chart.sh             check
#   scripts/chart.sh --write     write the kinds anew
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$ROOT/e2e/build/versions.sh"
PATH=$SIDECARS_DIR/bin:$PATH
chart=$ROOT/charts/coppice

if [[ -n ${COPPICE_BIN:-} ]]; then
    crds() { "$COPPICE_BIN" crds; }
else
    crds() { (cd "$ROOT" && cargo run --quiet -p coppice -- crds); }
fi
if [[ ${1:-} == --write ]]; then
    crds >"$chart/files/crds.yaml.new"
    mv "$chart/files/crds.yaml.new" "$chart/files/crds.yaml"
    exit 0
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
crds >"$tmp/crds.yaml"
diff "$chart/files/crds.yaml" "$tmp/crds.yaml" || die "the chart's kinds are others than those of coppice crds: scripts/chart.sh --write"

# What a cluster with everything looks like to Helm.
everything=(--api-versions snapshot.storage.k8s.io/v1 --api-versions coppice.io/v1alpha1)
render() { helm template coppice "$chart" --namespace coppice --kube-version "$KUBERNETES_VERSION" "$@"; }
has() { grep -q -- "$2" "$tmp/$1" || die "$1 has no $2"; }
lacks() { ! grep -q -- "$2" "$tmp/$1" || die "$1 has $2"; }

helm lint --strict --quiet "$chart"
for values in "$ROOT"/deploy/*.yaml "$ROOT/e2e/values.yaml"; do
    if grep -q '^kind:' "$values"; then continue; fi # objects, not values
    helm lint --strict --quiet --values "$values" "$chart"
    render --values "$values" "${everything[@]}" >"$tmp/values"
    has values '^kind: Lvstore'
done

render "${everything[@]}" >"$tmp/everything"
render >"$tmp/plain"
has everything 'name: snapshotter'
has everything '^kind: VolumeSnapshotClass'
lacks plain 'name: snapshotter'
lacks plain '^kind: VolumeSnapshotClass'
lacks everything '^kind: PodMonitor'
lacks everything '^kind: PrometheusRule'
lacks everything 'grafana_dashboard'
render --set monitoring.podMonitors=true,monitoring.rules=true,monitoring.dashboard=true >"$tmp/monitored"
has monitored '^kind: PodMonitor'
has monitored 'grafana_dashboard: "1"'
# The rules come out as they went in.
diff --ignore-blank-lines "$chart/files/rules.yaml" <(sed -n '/^kind: PrometheusRule/,/^---/p' "$tmp/monitored" | sed -n '/^  # Alerts/,/^---/{/^---/!p}' | sed 's/^  //') ||
    die "the rules of the PrometheusRule are others than those of the file"
render --set 'lvstores[0].node=a,lvstores[0].name=b,lvstores[0].device=c' >"$tmp/first"
lacks first '^kind: Lvstore$'

# The kinds come out as they went in, but for the labels and the annotation.
render --show-only templates/crds.yaml >"$tmp/crds"
(($(grep -c '^kind: CustomResourceDefinition' "$tmp/crds") == $(grep -c '^kind: CustomResourceDefinition' "$tmp/crds.yaml"))) ||
    die "not every kind is rendered"
(($(grep -c 'helm.sh/resource-policy: keep' "$tmp/crds") == $(grep -c '^kind:' "$tmp/crds"))) || die "a kind would go with the chart"

version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml" | head -n 1)
grep -qxF "appVersion: $version" "$chart/Chart.yaml" || die "appVersion is not the workspace's version, $version"
for sidecar in "csi-provisioner:v$CSI_PROVISIONER_VERSION" "csi-snapshotter:v$CSI_SNAPSHOTTER_VERSION" "csi-resizer:v$CSI_RESIZER_VERSION"; do
    has everything "sig-storage/$sidecar\$"
done

# refused WHY VALUE…: the schema says no, and why.
refused() {
    local why=$1
    shift
    if render "$@" >"$tmp/refused" 2>&1; then die "the schema admits $*"; fi
    grep -qi -- "$why" "$tmp/refused" || die "refused for another reason than \"$why\": $(cat "$tmp/refused")"
}
refused "additional properties" --set nodes.port=1
refused "additional properties" --set node.prot=1
refused "/lvstores/0/device" --set 'lvstores[0].node=a,lvstores[0].name=b,lvstores[0].device=/dev/nvme0n1'
refused "/lvstores/0" --set 'lvstores[0].node=a,lvstores[0].name=b'
refused "provisioning" --set 'storageClasses[0].name=a,storageClasses[0].parameters.provisioning=fat'
refused "runDir" --set node.runDir=run/coppice
refused "dashboard" --set monitoring.dashboards=true
refused "pullPolicy" --set image.pullPolicy=Sometimes
say "chart: lint, kinds, versions, schema and rendering are as they should be"
