# shellcheck shell=bash
# Which node a volume is on.

scenario follow-source "a clone with immediate binding is where its source is, and so is its pod"
scenario_follow_source() {
    local n sum
    for n in 1 2 3; do
        { pvc "source$n" 512Mi && pod "source$n" node="node$n"; } | apply
        running "source$n"
        same "node of the volume" "node$n" "$(node_of "source$n")"
        sum=$(write "source$n" /data/file 4)
        snapshot "source$n" "source$n" | apply
        ready "source$n"
        {
            pvc "restore$n" 512Mi class=coppice-clone from="VolumeSnapshot/source$n"
            pvc "clone$n" 512Mi class=coppice-clone from="PersistentVolumeClaim/source$n"
        } | apply
        measure "immediate clone Bound" bound "restore$n" "clone$n"
        { pod "restore$n" && pod "clone$n"; } | apply
        running "restore$n" "clone$n"
        same "node of the restored pod" "node$n" "$(pod_node "restore$n")"
        same "node of the cloned pod" "node$n" "$(pod_node "clone$n")"
        holds "restore$n" /data/file 4 "$sum"
        holds "clone$n" /data/file 4 "$sum"
    done
}

scenario full-node "a pod that would rather be on a full node goes elsewhere"
scenario_full_node() {
    { pvc large 3Gi class=thick-ext4 && pod large node=node1; } | apply
    running large
    { pvc next 2Gi class=thick-ext4 && pod next prefer=node1; } | apply
    measure "pod Running, its node full" running next
    [[ $(pod_node next) != node1 ]] || die "it is on the full node"
    same "node of its volume" "$(pod_node next)" "$(node_of next)"
}

scenario nowhere "a claim that no node has room for waits, and comes when there is room"
scenario_nowhere() {
    local n
    for n in 1 2 3; do { pvc "large$n" 3Gi class=thick-ext4 && pod "large$n" node="node$n"; } | apply; done
    running large{1,2,3}
    { pvc next 2Gi class=thick-ext4 && pod next; } | apply
    sleep 5
    same "phase of the claim" Pending "$(k get pvc/next --output 'jsonpath={.status.phase}')"
    delete pod/large2 pvc/large2
    patience 120
    measure "pod Running, once there is room" running next
    same "node of the pod" node2 "$(pod_node next)"
}
