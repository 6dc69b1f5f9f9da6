# shellcheck shell=bash disable=SC2154 # space: the namespace
# kubectl coppice, as people have it: kubectl finds it in the PATH.

plugin() { # WORD…
    "$HERE/enter.sh" timeout --foreground 120 kubectl coppice --namespace "$space" "$@"
}
says() { # PATTERN WORD…: what the plugin prints has it
    local pattern=$1 text
    shift
    text=$(plugin "$@") || die "kubectl coppice $* failed: $text"
    grep -Eq -- "$pattern" <<<"$text" || die "kubectl coppice $* does not say $pattern: $text"
}

completes() { # WANTED WORD…
    [[ $'\n'$("$HERE/enter.sh" kubectl __complete coppice --namespace "$space" "${@:2}" 2>/dev/null) == *$'\n'"$1"* ]]
}

scenario plugin "kubectl coppice: snapshot, clones that are followed, tree, describe, cordon, drain, dump, completion"
scenario_plugin() {
    local sum folder
    { pvc data 512Mi class=thin-xfs && pod data; } | apply
    running data
    sum=$(write data /data/file 16)
    says 'data-monday can be used' snapshot data data-monday --wait
    measure "clone of a snapshot usable" says 'restored is on node' clone data-monday restored --wait
    measure "clone of a PVC usable" says 'copy is on node' clone pvc/data copy --wait --size 1Gi
    says "thin-xfs-now" clone pvc/data other --dry-run
    { pod restored && pod copy; } | apply
    running restored copy
    holds restored /data/file 16 "$sum"
    holds copy /data/file 16 "$sum"
    same "node of the clone" "$(pod_node data)" "$(pod_node restored)"
    # A class that waits for pods, on the node of its source, without a pod.
    says 'here is on node' clone data-monday here --class thin-xfs --wait
    same "node that was chosen" "$(pod_node data)" "$(node_of here)"

    plugin tree
    wait_for 30 "the snapshot that the clone left to be drawn" says 'Hidden' tree
    says "$space/copy +clone .* Available" tree copy
    says "$space/data-monday +snapshot" tree
    says 'Pods +data on node' describe data
    says "Made from +volume $space/data " describe copy
    says 'restored .*512.0 MiB' get
    says '(node.-pool|pool)' get lvstores
    if plugin drain "$(pod_node data)" >"$TIMES.drain"; then die "a node with volumes could go"; fi
    grep -q "$space/data .* data on node" "$TIMES.drain" || die "drain does not tell: $(cat "$TIMES.drain")"
    rm "$TIMES.drain"
    says cordoned cordon "$(pod_node data)"
    says 'Open, cordoned' get lvstores
    says uncordoned uncordon "$(pod_node data)"

    # What cannot be: said while one waits, not after minutes of silence.
    if plugin clone data-monday never --size 100Gi --wait --timeout 20s >"$TIMES.never" 2>&1; then die "100 GiB fit in 4"; fi
    grep -q ProvisioningFailed "$TIMES.never" || die "nothing was said: $(cat "$TIMES.never")"
    rm "$TIMES.never"
    # The provisioner protects the source for up to half a minute longer.
    measure "PVC that cannot be deleted" delete pvc/never
    folder=$(mktemp -d)
    plugin dump "$folder/" >/dev/null || die "no dump"
    [[ -s $folder/objects/lvols.yaml && -n $(ls "$folder"/logs/coppice-node-*.coppice.log) ]] || die "the dump lacks: $(ls -R "$folder")"
    if grep -rqE '^kind: Secret' "$folder"; then die "a secret in the dump"; fi
    rm -r "$folder"
    # It gives up after two seconds, which a busy machine may take.
    wait_for 20 "completion" completes restored describe res
    delete pod/restored pod/copy pod/data
    delete pvc/restored pvc/copy pvc/here
    measure "snapshot of clones deleted" delete volumesnapshot/data-monday
    measure "PVC of clones deleted" delete pvc/data
}

orphans() { kubectl get lvstores --output json | jq '[.items[].status.orphans // [] | length] | add'; }
are_orphans() { (($(orphans) == $1)); }
lvol_of_snapshot() { # VOLUMESNAPSHOT: the name of its object
    local content handle
    content=$(k get "volumesnapshot/$1" --output 'jsonpath={.status.boundVolumeSnapshotContentName}')
    handle=$(kubectl get "volumesnapshotcontent/$content" --output 'jsonpath={.status.snapshotHandle}')
    kubectl get lvols --output "jsonpath={.items[?(@.spec.lvolUUID==\"$handle\")].metadata.name}"
}

scenario objects-deleted "all Lvol objects deleted by hand under running pods, then adopt: no byte lost, and everything goes on"
scenario_objects_deleted() {
    local sum again objects=() name
    same "orphans before" 0 "$(orphans)"
    { pvc a 512Mi class=thin-xfs && pod a && pvc b 512Mi class=thick-ext4 mode=Block && pod b mode=Block; } | apply
    running a b
    sum=$(write a /data/file 16)
    again=$(write b /dev/volume 16)
    snapshot s a | apply
    ready s
    objects=("$(lvol_of a)" "$(lvol_of b)" "$(lvol_of_snapshot s)")
    kubectl delete lvols "${objects[@]}" --timeout 30s >/dev/null || die "not deleted: ${objects[*]}"
    measure "orphans reported" wait_for 30 "the orphans to be reported" are_orphans 3
    holds a /data/file 16 "$sum"
    measure "three lvols adopted" says "volume ${objects[0]} on .* is adopted, of $space/a" adopt lvol --all
    for name in "${objects[@]}"; do
        same "$name is adopted" true "$(kubectl get "lvol/$name" --output 'jsonpath={.spec.adopted}')"
        [[ -n $(kubectl get "lvol/$name" --output 'jsonpath={.status.created}') ]] || die "$name was never created"
    done
    wait_for 30 "no orphan to be left" are_orphans 0
    # Under the pods that never noticed, and under the next ones.
    holds a /data/file 16 "$sum"
    holds b /dev/volume 16 "$again"
    delete pod/a pod/b
    { pod a && pod b mode=Block && pvc c 512Mi class=thin-xfs-now from=VolumeSnapshot/s && pod c; } | apply
    running a b c
    holds a /data/file 16 "$sum"
    holds b /dev/volume 16 "$again"
    holds c /data/file 16 "$sum"
    snapshot t a | apply
    ready t
    grow a 1Gi
    grown a 1Gi a
    holds a /data/file 16 "$sum"
}

scenario adopt-volume "the Lvol object, the claim and its volume are gone: adopt --pv brings it back for a new claim"
scenario_adopt_volume() {
    local sum volume lvol
    { pvc a 512Mi && pod a; } | apply
    running a
    sum=$(write a /data/file 16)
    volume=$(volume_of a) lvol=$(lvol_of a)
    kubectl patch "pv/$volume" --type merge --patch '{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}' >/dev/null
    delete pod/a pvc/a
    kubectl delete "pv/$volume" --timeout 60s >/dev/null
    kubectl delete lvol "$lvol" --timeout 30s >/dev/null
    wait_for 30 "the orphan to be reported" are_orphans 1
    says "PersistentVolume $lvol is for $space/b, with storageClassName coppice" adopt lvol "$lvol" --pv --claim "$space/b" --class coppice
    { pvc b 512Mi && pod b; } | apply
    running b
    same "volume of the claim" "$lvol" "$(volume_of b)"
    holds b /data/file 16 "$sum"
    # So that it goes with its claim, as everything has to at the end.
    kubectl patch "pv/$lvol" --type merge --patch '{"spec": {"persistentVolumeReclaimPolicy": "Delete"}}' >/dev/null
}
