#!/usr/bin/env bash
# leftovers.sh: what there is on the machine of a cluster, one line each; nothing after make cluster-down.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../lib.sh"

if [[ -e $CLUSTER ]]; then say "folder $CLUSTER"; fi
leftovers_below "$CLUSTER"
find /sys/fs/cgroup -type d -name "${CGROUP}[0-9]" -printf 'cgroup %p\n' 2>/dev/null || true
# Whatever runs one of its programs, or in its cgroups.
for process in /proc/[0-9]*; do
    program=$(readlink "$process/exe" 2>/dev/null) || continue
    if [[ $program == "$KUBERNETES_DIR"/* || $program == "$SIDECARS_DIR"/* ]] ||
        grep -q "/${CGROUP}[0-9]" "$process/cgroup" 2>/dev/null; then
        say "process ${process#/proc/} ($program)"
    fi
done
timeout 10 losetup --list --noheadings --output NAME,BACK-FILE |
    awk '$2 ~ "^(/run/coppice|/var/lib/kubelet)/" { print "loop device", $0 }'
