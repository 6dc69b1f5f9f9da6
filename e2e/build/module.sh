# shellcheck shell=bash
# The Go modules that the cluster's programs are built in. Source it.
#
# k8s.io/kubernetes and most sidecars cannot be had by `go install`: their go.mod replaces modules by folders of their own
# tree, or others by a fixed version, which Go heeds only in the main module. So ours takes over Kubernetes' own go.mod, with
# each such folder replaced by the module that is published from it: exactly the versions that the release was made of.

# kubernetes_module VERSION: makes such a go.mod in the current folder.
kubernetes_module() {
    local version=$1 upstream
    upstream=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/^\t"GoMod": "\(.*\)",$/\1/p')
    sed -e 's|^module .*|module coppice.io/e2e|' \
        -e "s|=> \./staging/src/\(k8s\.io/.*\)|=> \1 v0.${version#*.}|" "$upstream" >go.mod
    printf '\nrequire k8s.io/kubernetes v%s\n' "$version" >>go.mod
}

# module_folder MODULE: where the files of a module of the current build list are.
module_folder() { go list -mod=mod -m -f '{{.Dir}}' "$1"; }
