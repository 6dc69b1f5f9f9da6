# shellcheck shell=bash disable=SC2034
# Which programs the cluster is made of, and where they are kept. Source it after scripts/lib.sh.

KUBERNETES_VERSION=1.37.1 # etcd comes with it, in the version that Kubernetes' own go.mod names
CSI_PROVISIONER_VERSION=6.4.0
CSI_SNAPSHOTTER_VERSION=8.7.0 # snapshot-controller too
CSI_RESIZER_VERSION=2.3.0
HELM_VERSION=4.3.1

# A folder's name ends in a sum of what made it, versions included, so that any change of them builds anew beside it.
built_from() { # FILE…
    (cd "$ROOT/e2e/build" && cat versions.sh module.sh "$@") | cksum | cut -d ' ' -f 1
}
KUBERNETES_DIR=$CACHE/bin/kubernetes-$KUBERNETES_VERSION-$(built_from kubernetes.sh kube/main.go)
SIDECARS_DIR=$CACHE/bin/sidecars-$(built_from sidecars.sh)
IMAGES_DIR=$CACHE/bin/images-$(built_from sidecars.sh images.sh image.sh pause.c)
CONFORMANCE_DIR=$CACHE/bin/conformance-$KUBERNETES_VERSION-$(built_from conformance.sh conformance/main_test.go programs.sh image.sh)
