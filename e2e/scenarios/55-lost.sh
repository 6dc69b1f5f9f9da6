# shellcheck shell=bash
# What is lost, or seems to be: a drive, a node, the cluster's own memory. No volume is ever blank because of it.

state_of() { kubectl get "lvol/$1" --output 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'; }          # LVOL
store_state() { kubectl get "lvstore/$1" --output 'jsonpath={.status.conditions[?(@.type=="Ready")].reason}'; } # LVSTORE
store_on() { kubectl get lvstores --output "jsonpath={.items[?(@.spec.node==\"node$1\")].metadata.name}"; }      # N
is() { [[ $("${@:2}") == "$1" ]]; }                                                                            # WANTED COMMAND…
event_on() { k get events --field-selector "involvedObject.name=$1" --output 'jsonpath={.items[*].message}' | grep -qF "$2"; } # NAME TEXT

scenario swapped-drive "a node boots with a blank drive: its volume is lost, not blank; the old drive brings it back"
scenario_swapped_drive() {
    local sum store lvol
    file=$CLUSTER/node2/var/lib/coppice/pool.img
    { pvc a 512Mi && pod a node=node2; } | apply
    running a
    sum=$(write a /data/file 16)
    store=$(store_on 2) lvol=$(lvol_of a)
    "$HERE/node.sh" off 2
    mv "$file" "$file.old"
    trap 'put_back' EXIT # whatever happens: others want the node
    truncate --size 4G "$file"
    "$HERE/node.sh" on 2
    wait_for 100 "the lvstore to be lost" is DeviceBlank store_state "$store"
    wait_for 30 "the lvol to be lost" is LvstoreLost state_of "$lvol"
    wait_for 100 "the pod to be told" event_on a "$store"
    # Room elsewhere is used; what is promised to node2 waits.
    { pvc b 512Mi && pod b prefer=node2; } | apply
    running b
    [[ $(pod_node b) != node2 ]] || die "a volume was placed on a lost lvstore"
    cmp --bytes 4194304 "$file" /dev/zero || die "something was written to the blank drive"
    put_back
    wait_for 100 "the lvstore to be back" is Open store_state "$store"
    patience 150
    running a
    holds a /data/file 16 "$sum"
}

put_back() {
    [[ -e $file.old ]] || return 0
    "$HERE/node.sh" off 2
    mv "$file.old" "$file"
    "$HERE/node.sh" on 2
}

scenario node-gone "a node is deleted with its volumes, which are then deleted, too: what comes back with its drive goes"
scenario_node_gone() {
    local sum store lvol kept
    { pvc a 512Mi && pod a node=node3 && pvc b 512Mi && pod b node=node3; } | apply
    running a b
    sum=$(write b /data/file 16)
    snapshot s a | apply
    ready s
    store=$(store_on 3) lvol=$(lvol_of a) kept=$(lvol_of b)
    "$HERE/node.sh" off 3
    kubectl delete node node3 >/dev/null
    k delete pod a b --grace-period 0 --force >/dev/null 2>&1
    patience 100
    measure "PVC deleted, its node gone" delete pvc/a
    delete volumesnapshot/s
    wait_for 60 "the object to go" missing "lvol/$lvol"
    same "tombstones" 2 "$(kubectl get "lvstore/$store" --output json | jq '.status.tombstones | length')"
    "$HERE/node.sh" on 3
    wait_for 100 "the agent" another_agent 3 none
    wait_for 60 "the tombstones to go" is 0 tombstones "$store"
    pod b-next claim=b | apply
    running b-next
    holds b-next /data/file 16 "$sum"
    same "object of the volume that was kept" "$kept" "$(lvol_of b)"
}
missing() { [[ -z $(kubectl get "$1" --ignore-not-found --output name) ]]; }
tombstones() { kubectl get "lvstore/$1" --output json | jq '.status.tombstones // [] | length'; }

scenario etcd-restored "etcd comes back as it was: what was deleted since is lost, not blank; what was made since is kept"
scenario_etcd_restored() {
    local sum newer n lvol gone copy=$CLUSTER/etcd.copy
    { pvc a 512Mi && pod a node=node1 && pvc gone 512Mi && pod gone node=node1; } | apply
    running a gone
    sum=$(write a /data/file 16)
    write gone /data/file 4 >/dev/null
    gone=$(lvol_of gone)
    k delete pod gone --timeout 60s >/dev/null
    control_plane stop
    rm -rf "$copy"
    cp -a "$CLUSTER/etcd" "$copy"
    control_plane start
    # From here on nothing will ever have been.
    delete pvc/gone
    newer=$(write a /data/file 16)
    { pvc b 512Mi && pod b node=node1; } | apply
    running b
    lvol=$(uuid_of b)
    write b /data/file 4 >/dev/null
    for n in "${NODES[@]}"; do "$HERE/node.sh" off "$n"; done
    control_plane stop
    rm -rf "$CLUSTER/etcd"
    mv "$copy" "$CLUSTER/etcd"
    control_plane start
    for n in "${NODES[@]}"; do "$HERE/node.sh" on "$n"; done
    for n in "${NODES[@]}"; do wait_for 100 "the agent of node $n" another_agent "$n" none; done
    [[ $sum != "$newer" ]]
    wait_for 150 "the pod to run again" ran_twice a
    running a
    holds a /data/file 16 "$newer"
    # Its claim is back, its bytes are not.
    wait_for 100 "the deleted volume to be lost" is Missing state_of "$gone"
    pod gone-next claim=gone | apply
    wait_for 100 "the pod to be told" event_on gone-next "does not have it"
    [[ $(k get pod/gone-next --output 'jsonpath={.status.phase}') == Pending ]] || die "it runs on something"
    delete pod/gone-next pvc/gone
    # And the other way round.
    engine_has 1 "$lvol" || die "what was made after the copy is gone"
    in_agent 1 coppice lvol rm "$lvol" >/dev/null
}
control_plane() { # start|stop
    local name
    for name in etcd kube-apiserver; do "$HERE/cluster/component.sh" "$1" "$name"; done
    # The others end when they find no API server at their start.
    if [[ $1 == start ]]; then wait_for 100 "the API server" kubectl get --raw /readyz; fi
    for name in kube-controller-manager kube-scheduler snapshot-controller; do "$HERE/cluster/component.sh" "$1" "$name"; done
}
uuid_of() { kubectl get "pv/$(volume_of "$1")" --output 'jsonpath={.spec.csi.volumeHandle}'; } # CLAIM
in_agent() { kubectl --namespace "$NAMESPACE" exec "$(agent_of "$1")" --container coppice -- "${@:2}"; } # N COMMAND…
engine_has() { in_agent "$1" coppice lvol ls --output json | jq --exit-status --arg uuid "$2" 'any(.[]; .uuid == $uuid)' >/dev/null; } # N UUID
