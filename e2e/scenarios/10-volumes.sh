# shellcheck shell=bash
# A claim becomes a volume in a pod: every way to have one.

scenario first "PVC, pod, data, another pod, gone"
scenario_first() {
    local sum
    { pvc a 512Mi && pod one claim=a; } | apply
    measure "PVC Bound" bound a
    measure "pod Running" running one
    sum=$(write one /data/file 16)
    delete pod/one
    pod two claim=a | apply
    measure "next pod Running" running two
    holds two /data/file 16 "$sum"
    delete pod/two
    delete pvc/a
}

scenario kinds "{thin, thick} x {ext4, xfs, btrfs, block}, two pods in turn on each"
scenario_kinds() {
    local class mode name sum
    for class in {thin,thick}-{ext4,xfs,btrfs,block}; do
        mode=Filesystem name=$class
        if [[ $class == *-block ]]; then mode=Block class=${class%-block}-ext4; fi
        { pvc "$name" 512Mi class="$class" mode=$mode && pod "$name" mode=$mode; } | apply
        measure "PVC Bound" bound "$name"
        measure "pod Running" running "$name"
        sum=$(write "$name" "$(place $mode)" 16)
        if [[ $mode == Filesystem ]]; then
            same "file system of $name" "${class#*-}" "$(in_pod "$name" cat /proc/mounts | awk '$2 == "/data" { print $3 }')"
        else
            same "size of $name" $((512 << 20)) "$(in_pod "$name" blockdev --getsize64 /dev/volume)"
        fi
        delete "pod/$name"
        pod "$name-again" claim="$name" mode=$mode | apply
        measure "next pod Running" running "$name-again"
        holds "$name-again" "$(place $mode)" 16 "$sum"
        delete "pod/$name-again" "pvc/$name"
    done
}

scenario once "ReadWriteOncePod: a second pod waits for the first to end"
scenario_once() {
    local sum
    { pvc a 512Mi access=ReadWriteOncePod && pod one claim=a; } | apply
    running one
    sum=$(write one /data/file 4)
    pod two claim=a | apply
    k wait pod/two --for 'jsonpath={.status.conditions[?(@.type=="PodScheduled")].reason}=Unschedulable' --timeout 30s >/dev/null ||
        die "the second pod does not wait: $(k get pod two --output 'jsonpath={.status}')"
    delete pod/one
    running two
    holds two /data/file 4 "$sum"
}

scenario shared "two pods of a node at once on one ReadWriteOnce volume"
scenario_shared() {
    local sum
    { pvc a 512Mi && pod one claim=a; } | apply
    running one
    sum=$(write one /data/file 4)
    pod two claim=a | apply
    running two
    same "node of the second pod" "$(pod_node one)" "$(pod_node two)"
    holds two /data/file 4 "$sum"
    delete pod/one
    sum=$(write two /data/file 4)
    holds two /data/file 4 "$sum"
}

scenario read-only "a claim that a pod uses read-only"
scenario_read_only() {
    local sum
    { pvc a 512Mi && pod one claim=a; } | apply
    running one
    sum=$(write one /data/file 4)
    delete pod/one
    pod two claim=a readonly=true | apply
    running two
    holds two /data/file 4 "$sum"
    if in_pod two touch /data/other 2>/dev/null; then die "a read-only volume was written"; fi
    delete pod/two
    pod three claim=a | apply
    running three
    in_pod three touch /data/other
}

scenario fsgroup "a pod of another user with fsGroup writes"
scenario_fsgroup() {
    { pvc a 512Mi && pod one claim=a security='{runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000}'; } | apply
    running one
    in_pod one touch /data/file
    same "owner of its file" 1000:2000 "$(in_pod one stat -c %u:%g /data/file)"
}
