#!/usr/bin/env bash
# conformance.sh FOLDER: puts Kubernetes' external storage suite (conformance/main_test.go) into FOLDER/bin/e2e.test, ginkgo,
# which runs it in several processes, beside it, and the images that the tests ask for into FOLDER/images.
set -euo pipefail
out=$1
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=scripts/lib.sh
source "$here/../../scripts/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$here/versions.sh"
# shellcheck source=e2e/build/module.sh
source "$here/module.sh"
# shellcheck source=e2e/build/programs.sh
source "$here/programs.sh"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/module"
cp "$here/conformance/main_test.go" "$work/module"
cd "$work/module"
kubernetes_module "$KUBERNETES_VERSION"
# One suite, one ginkgo: both come in the version that Kubernetes' go.mod names.
flags="-s -w -X k8s.io/component-base/version.gitVersion=v$KUBERNETES_VERSION"
go test -c -vet=off -mod=mod -trimpath -ldflags "$flags" -o "$out/bin/e2e.test" .
go build -mod=mod -trimpath -ldflags "-s -w" -o "$out/bin/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
go build -mod=mod -trimpath -ldflags "-s -w" -o "$work/agnhost" k8s.io/kubernetes/test/images/agnhost

# What the tests run in these images is a shell with the usual small programs, so busybox is what they are made of. The
# names are the suite's: nothing is ever pulled.
mkdir -p "$out/images"
while read -r name image; do
    root=$work/root
    mkdir "$root"
    merged_root "$root"
    program=()
    case $name in
    agnhost)
        cp "$work/agnhost" "$root/agnhost"
        program=(/agnhost)
        ;;
    coreutils) # busybox's dd lacks oflag=nocache, and its shell prefers its own dd
        add_program "$root" dd
        add_program "$root" sh
        ;;
    esac
    add_busybox "$root"
    ln -s /proc/mounts "$root/etc/mtab"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    "$here/image.sh" "$out/images/$name.tar" "$image" "$root" "${program[@]}"
    rm -rf "$root"
done < <("$out/bin/e2e.test" --storage-images)
