#!/usr/bin/env bash
# enter.sh [COMMAND…]: runs a command, or a shell, in the cluster's network, where kubectl, with the plugin coppice, helm and curl reach it.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/lib.sh"
need_root
need_cluster
# No proxy: there is no way out of this network, and nobody else has one into it.
in_network control env PATH="$CLUSTER/bin:$KUBERNETES_DIR/bin:$SIDECARS_DIR/bin:$PATH" KUBECONFIG="$PKI/admin.conf" NO_PROXY='*' \
    "${@:-${SHELL:-/bin/bash}}"
