#!/usr/bin/env bash
# One node of the cluster as one would treat a machine:
#
#   e2e/node.sh on N             power on: a new boot with the disk (/var) of the last
#   e2e/node.sh off N            power cut: every process, mount and tmpfs of it is gone at once
#   e2e/node.sh run N COMMAND…   a command inside it, as root
#   e2e/node.sh load FILE        an image into every running node
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=e2e/lib.sh
source "$here/lib.sh"
need_root
need_cluster

# A node is two processes: "nodeN" is the unshare that made its namespaces, which has to stay because a process cannot
# enter a new PID namespace itself, and "nodeN-init" its child, the first process in there. When that is killed the kernel
# kills all others, and it is gone only after them.

on() {
    local n=$1 init
    if pid_of "node$n" >/dev/null; then die "node $n is on already"; fi
    start "node$n" nsenter --net="$CLUSTER/net/node$n" \
        unshare --mount --uts --ipc --pid --fork --kill-child=KILL --propagation private \
        "$here/cluster/node-root.sh" "$n"
    wait_for 30 "node $n to start" init_of "$n"
    init=$(init_of "$n")
    remember "node$n-init" "$init"
}
init_of() { # N: the child of its unshare, once that is in a PID namespace of its own
    local parent child
    parent=$(pid_of "node$1") || die "node $1 is off"
    read -r child _ <"/proc/$parent/task/$parent/children" || true # there is no end of line in there
    [[ -n $child && $(readlink "/proc/$child/ns/pid") != $(readlink /proc/self/ns/pid) ]] && say "$child"
}

off() {
    local n=$1 devices loops pid device loop
    devices=$(devices_of_node "$n")
    loops=$(kubelet_loops "$n" && loops_on "$devices")
    if pid=$(pid_of "node$n-init"); then kill -KILL "$pid" 2>/dev/null || true; fi
    # Whoever died while it unmounted something that its own FUSE server carries would wait for itself for ever.
    for device in $devices; do
        if [[ -e $CLUSTER/fuse/${device#0:}/abort ]]; then echo 1 >"$CLUSTER/fuse/${device#0:}/abort"; fi
    done
    stop "node$n-init"
    stop "node$n"
    # What the kernel of a real node would have lost too; this one goes on.
    for loop in $loops; do losetup --detach "$loop" 2>/dev/null || true; done
    remove_cgroups "$n"
}

# The file systems that only the node has mounted, its pods included, as MAJOR:MINOR. Asked from inside: pods are in PID
# namespaces of their own, but the node's /proc has them all.
devices_of_node() {
    if pid_of "node$1-init" >/dev/null; then
        comm -13 <(devices </proc/self/mountinfo) <(run "$1" sh -c 'cat /proc/[0-9]*/mountinfo 2>/dev/null' | devices)
    fi
}
devices() { awk '{ print $3 }' | sort -u; }
# Loop devices on files of these file systems. A FUSE server that is stuck does not answer: no longer than 10 s.
loops_on() {
    local loop device
    while read -r loop device; do
        if grep -qxF "$device" <<<"$1"; then say "$loop"; fi
    done < <(timeout 10 losetup --list --noheadings --output NAME,BACK-MAJ:MIN)
}

# kubelet has a loop device of its own on each raw block volume.
kubelet_loops() { # N
    local loop file
    pid_of "node$1-init" >/dev/null || return 0
    while read -r loop file; do
        if [[ $file == /var/lib/kubelet/* ]] && run "$1" test -e "$file"; then say "$loop"; fi
    done < <(timeout 10 losetup --list --noheadings --output NAME,BACK-FILE)
}

remove_cgroups() {
    local folder
    for folder in /sys/fs/cgroup/"$CGROUP$1" /sys/fs/cgroup/*/"$CGROUP$1"; do
        if [[ -d $folder ]]; then wait_for 30 "the processes of $folder to end" empty_cgroup "$folder"; fi
    done
}
empty_cgroup() {
    find "$1" -depth -type d -exec rmdir {} \; 2>/dev/null
    [[ ! -d $1 ]]
}

run() {
    local init
    init=$(pid_of "node$1-init") || die "node $1 is off"
    nsenter --target "$init" --mount --uts --ipc --net --pid -- "${@:2}"
}

load() {
    local n
    for n in "${NODES[@]}"; do
        if pid_of "node$n" >/dev/null; then run "$n" ctr --namespace k8s.io images import - <"$1"; fi
    done
}

action=${1:-}
case $action in
on | off)
    [[ " ${NODES[*]} " == *" ${2:-} "* ]] || die "which node: ${NODES[*]}?"
    "$action" "$2"
    ;;
run | load) "$@" ;;
*) die "on, off, run or load?" ;;
esac
