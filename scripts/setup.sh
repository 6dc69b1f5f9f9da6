#!/usr/bin/env bash
# Installs what a group of commands needs and says nothing when it is all there.
#
#   scripts/setup.sh build|run|test|lint|fuzz|cluster|conformance…
#
# Debian 12, Debian 13 and Ubuntu, as root, from the distribution's packages, Rust crates and Go modules only. A Rust
# toolchain has to be there already: the distributions' own are too old. Tools built from source go to a cache outside
# the tree (COPPICE_CACHE, by default ~/.cache/coppice), each under its version.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$ROOT/e2e/build/versions.sh"

packages=()
# need COMMAND PACKAGE: the package is wanted if the command is not there.
need() {
    if ! command -v "$1" >/dev/null && [[ " ${packages[*]} " != *" $2 "* ]]; then packages+=("$2"); fi
}

groups=("$@")
((${#groups[@]})) || die "say which group: build, run, test, lint, fuzz, cluster, conformance"
want() { [[ " ${groups[*]} " == *" $1 "* ]]; }
for group in "${groups[@]}"; do
    case $group in
    build | run | test | lint | fuzz | cluster | conformance) ;;
    *) die "no group \"$group\"; there are build, run, test, lint, fuzz, cluster, conformance" ;;
    esac
done

if want build || want lint || want fuzz; then
    need gcc gcc
    need make make
    need pkg-config pkg-config
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
fi
if want run; then
    need losetup mount
    need blkid util-linux
    need mkfs.ext4 e2fsprogs
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
fi
if want test; then
    need fio fio
    need zstd zstd
    need jq jq
    need git git
    need nbdinfo libnbd-bin
    need qemu-img qemu-utils
    need nbdkit nbdkit
fi
if want lint; then need shellcheck shellcheck; fi
if want fuzz; then need g++ g++; fi # libFuzzer is C++
if want cluster; then
    need containerd containerd
    need runc runc
    [[ -x /usr/lib/cni/ptp ]] || packages+=(containernetworking-plugins)
    need ip iproute2
    need nsenter util-linux
    need losetup mount
    need openssl openssl
    need jq jq
    need busybox busybox-static
    need gcc gcc # the pause image's one program
    [[ -e /usr/include/signal.h ]] || packages+=(libc6-dev)
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
fi
if want conformance; then
    need busybox busybox-static
    need jq jq
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || packages+=(ca-certificates)
fi

# Go is only needed to build csi-sanity, promtool, the cluster's programs and Kubernetes' storage suite; 1.21 is the first that fetches the Go release a module
# asks for.
go_version() { # GO: e.g. "1 26", or nothing
    local text
    text=$("$1" version 2>/dev/null) || return 0
    [[ $text =~ go([0-9]+)\.([0-9]+) ]] && say "${BASH_REMATCH[1]} ${BASH_REMATCH[2]}"
}
go_is_new_enough() {
    local major minor _
    read -r major minor _ <<<"$(go_version go) 0 0"
    ((major > 1 || (major == 1 && minor >= 21)))
}
need_go=
wants_go() {
    want test && [[ ! -x $CSI_SANITY_DIR/bin/csi-sanity || ! -x $PROMTOOL_DIR/bin/promtool ]] && return
    want cluster && [[ ! -x $KUBERNETES_DIR/bin/kube || ! -x $SIDECARS_DIR/bin/helm ]] && return
    want conformance && [[ ! -x $CONFORMANCE_DIR/bin/e2e.test ]]
}
if wants_go && ! go_is_new_enough; then need_go=1; fi

if ((${#packages[@]})) || [[ -n $need_go ]]; then
    missing="${packages[*]:-}${need_go:+ golang-go (1.21 or newer)}"
    command -v apt-get >/dev/null || die "this is neither Debian nor Ubuntu; install these yourself, then try again: $missing"
    ((EUID == 0)) || die "only root can install packages; as root: scripts/setup.sh ${groups[*]} (missing: $missing)"
    export DEBIAN_FRONTEND=noninteractive
    say "installing: $missing"
    apt-get update -qq || die "apt-get update failed"
    if [[ -n $need_go ]]; then
        candidate=$(apt-cache policy golang-go | sed -n 's/.*Candidate: [0-9]*:\?//p')
        if [[ $candidate =~ ^1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21)); then
            packages+=(golang-go)
        else
            die "Go 1.21 or newer is needed; this distribution has ${candidate:-none}. Put a newer one in PATH (Debian 12: golang-1.22 or later from backports)"
        fi
    fi
    apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null || die "apt-get install failed: ${packages[*]}"
fi

if want build || want lint || want fuzz; then
    rust_wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    rust_found=$(cargo --version 2>/dev/null | sed -n 's/^cargo \([0-9]*\.[0-9]*\).*/\1/p') || true
    if [[ $(printf '%s\n' "$rust_wanted" "${rust_found:-0}" | sort -V | head -n 1) != "$rust_wanted" ]]; then
        die "Rust $rust_wanted or newer is needed, ${rust_found:-none} was found. Debian's and Ubuntu's are too old: install it with rustup, then try again"
    fi
fi
if want lint; then
    cargo fmt --version >/dev/null 2>&1 || die "rustfmt is missing: rustup component add rustfmt"
    cargo clippy --version >/dev/null 2>&1 || die "clippy is missing: rustup component add clippy"
fi

if want run; then
    ((EUID == 0)) || die "this makes block devices and mounts file systems: run it as root"
    [[ -c /dev/fuse ]] || modprobe fuse 2>/dev/null || true
    [[ -c /dev/loop-control ]] || modprobe loop 2>/dev/null || true
    [[ -c /dev/fuse ]] || die "this kernel has no FUSE (/dev/fuse is missing)"
    [[ -c /dev/loop-control ]] || die "this kernel has no loop devices (/dev/loop-control is missing)"
    disabled=$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)
    [[ $disabled != 2 ]] || die "io_uring is switched off: sysctl kernel.io_uring_disabled=0"
fi

# build_once DIR FILE COMMAND…: runs COMMAND with the variable OUT set to an empty folder, and keeps that folder as DIR
# once OUT/FILE is there. One builder at a time; a cut-off build leaves nothing that looks finished.
build_once() {
    local dir=$1 file=$2 name start
    shift 2
    name=$(basename "$dir")
    [[ -e $dir/$file ]] && return
    mkdir -p "$CACHE/bin" "$CACHE/build"
    exec 9>"$CACHE/lock"
    flock 9
    if [[ ! -e $dir/$file ]]; then
        say "building $name once, into $CACHE (this takes a while)"
        start=$(now)
        OUT=$(mktemp -d "$CACHE/build/$name.XXXXXX")
        if ! (cd "$CACHE/build" && "$@") >"$OUT/log" 2>&1; then
            tail -n 25 "$OUT/log" >&2
            die "building $name failed; the log is $OUT/log"
        fi
        [[ -e $OUT/$file ]] || die "building $name gave no $OUT/$file"
        rm -rf "$dir" "$OUT/target"
        mv "$OUT" "$dir"
        say "built $name in $(since "$start") s"
    fi
    flock -u 9
}
with_go() { # MODULE@VERSION [OPTION…]
    mkdir -p "$OUT/bin"
    env GOFLAGS= GOTOOLCHAIN=auto CGO_ENABLED=0 GOBIN="$OUT/bin" go install -trimpath "${@:2}" "$1"
}
with_script() { # one of e2e/build
    mkdir -p "$OUT/bin"
    env GOFLAGS= GOTOOLCHAIN=auto CGO_ENABLED=0 "$ROOT/e2e/build/$1" "$OUT"
}
with_cargo() {
    env -u RUSTFLAGS CARGO_TARGET_DIR="$OUT/target" cargo install --locked --root "$OUT" --version "$2" "$1"
}

if want test; then
    build_once "$CSI_SANITY_DIR" bin/csi-sanity with_go "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v$CSI_SANITY_VERSION"
    # Without the clients of every cloud that Prometheus can find its targets in.
    build_once "$PROMTOOL_DIR" bin/promtool with_go "github.com/prometheus/prometheus/cmd/promtool@v$PROMTOOL_VERSION" -tags remove_all_sd
fi
if want lint; then build_once "$CARGO_DENY_DIR" bin/cargo-deny with_cargo cargo-deny "$CARGO_DENY_VERSION"; fi
if want fuzz; then build_once "$CARGO_FUZZ_DIR" bin/cargo-fuzz with_cargo cargo-fuzz "$CARGO_FUZZ_VERSION"; fi
if want cluster; then
    build_once "$KUBERNETES_DIR" bin/kubelet with_script kubernetes.sh
    build_once "$SIDECARS_DIR" manifests/kustomization.yaml with_script sidecars.sh
    build_once "$IMAGES_DIR" images/pause.tar with_script images.sh
fi
if want conformance; then build_once "$CONFORMANCE_DIR" images/coreutils.tar with_script conformance.sh; fi
