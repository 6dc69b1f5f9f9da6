# shellcheck shell=bash
# Volumes that are made on another node than the one that has their source.

ready_condition() { kubectl get "lvol/$1" --output "jsonpath={.status.conditions[?(@.type==\"$2\")].status}/{.status.conditions[?(@.type==\"$2\")].reason}"; } # LVOL TYPE
condition_is() { [[ $(ready_condition "$2" "$3") == "$1" ]]; } # STATUS/REASON LVOL TYPE
hydrated() { # CLAIM: all of it is on its node
    wait_for "${2:-120}" "$1 to be hydrated" condition_is False/Hydrated "$(lvol_of "$1")" Dependent
}
# Pins and what is hidden are in the engines, not in objects.
snapshots_on() { # N: the engine's list
    kubectl --namespace "$NAMESPACE" exec "$(agent_of "$1")" --container coppice -- coppice lvol ls --hidden --output json |
        jq --compact-output '[.[] | select(.kind == "snapshot")]'
}
pins_on() { snapshots_on "$1" | jq '[.[] | .pins // [] | length] | add // 0'; } # N
has_pins() { [[ $(pins_on "$1") == "$2" ]]; }                                     # N COUNT
# options NAME=VALUE…: of the agents, for what comes; they are restarted one by one.
agents_with() {
    local option sets=()
    for option in "$@"; do sets+=(--set "$option"); done
    "$HERE/enter.sh" timeout 120 helm upgrade coppice "$ROOT/charts/coppice" --namespace "$NAMESPACE" --reuse-values "${sets[@]}" >/dev/null
    kubectl --namespace "$NAMESPACE" rollout status daemonset/coppice-node --timeout 150s >/dev/null || die "the agents do not start with $*"
    kubectl wait lvstores --all --for condition=Ready --timeout 60s >/dev/null || die "not every lvstore is ready"
}
slowly() { agents_with node.hydrationRate=4Mi; }
at_full_speed() { agents_with node.hydrationRate=; }
node_back() { "$HERE/node.sh" on "$1" 2>/dev/null || true; } # N, if it is off

# A store that is large enough for the largest volume here; the files are sparse.
large_stores() {
    local n
    for n in 1 2; do
        kubectl apply --filename - >/dev/null <<END
apiVersion: coppice.io/v1alpha1
kind: Lvstore
metadata: {name: node$n-large}
spec: {node: node$n, name: large, device: large.img, fileSize: 100Gi}
END
    done
    kubectl apply --filename - >/dev/null <<END
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-large}
provisioner: csi.coppice.io
volumeBindingMode: WaitForFirstConsumer
parameters: {lvstore: large, csi.storage.k8s.io/fstype: xfs}
END
    kubectl wait lvstore/node1-large lvstore/node2-large --for condition=Ready --timeout 60s >/dev/null || die "the large stores do not open"
}
no_large_stores() {
    local n
    k delete pod,pvc,volumesnapshot --all --timeout 60s >/dev/null
    (wait_for 60 "the large stores to be empty" nothing_in_large) || return
    kubectl delete lvstore/node1-large lvstore/node2-large storageclass/e2e-large --ignore-not-found >/dev/null
    for n in 1 2; do "$HERE/node.sh" run "$n" rm -f /var/lib/coppice/large.img || true; done
}

nothing_in_large() { [[ -z $(kubectl get lvols --selector coppice.io/lvstore=large --output name) ]]; }

scenario other-node-restore "a VolumeSnapshot becomes a volume of another node within a second, of 1 and of 64 GiB, and needs nobody soon"
scenario_other_node_restore() {
    local size sum new
    large_stores
    trap 'node_back 1; no_large_stores' EXIT
    for size in 1Gi 64Gi; do
        { pvc "a-${size,,}" $size class=e2e-large && pod "a-${size,,}" node=node1; } | apply
        running "a-${size,,}"
        sum=$(write "a-${size,,}" /data/file 128)
        snapshot "s-${size,,}" "a-${size,,}" | apply
        ready "s-${size,,}"
        { pvc "b-${size,,}" $size class=e2e-large from="VolumeSnapshot/s-${size,,}" && pod "b-${size,,}" node=node2; } | apply
        measure "restored elsewhere, $size: Bound" bound "b-${size,,}"
        within_a_second "$(lvol_of "b-${size,,}")"
        # At once, before anything can be copied to the end.
        k delete "volumesnapshot/s-${size,,}" "pod/a-${size,,}" "pvc/a-${size,,}" --wait=false >/dev/null
        measure "restored elsewhere, $size: Running" running "b-${size,,}"
        same "node of the copy" node2 "$(node_of "b-${size,,}")"
        new=$(write "b-${size,,}" /data/new 16)
        holds "b-${size,,}" /data/file 128 "$sum"
        measure "restored elsewhere, $size: hydrated" hydrated "b-${size,,}"
        wait_for 120 "node1 to have nothing left" has_nothing 1 large
    done
    "$HERE/node.sh" off 1
    # Nothing of it may come from a cache: a new mount.
    delete pod/b-64gi
    pod again claim=b-64gi node=node2 | apply
    running again
    holds again /data/file 128 "$sum"
    holds again /data/new 16 "$new"
    "$HERE/node.sh" on 1
    wait_for 120 "the agent" another_agent 1 none
    # The deleted things of node1 go when it is back.
    wait_for 120 "node1 to have nothing left" has_nothing 1 large
}
nothing_between() { [[ -z $(kubectl get lvols --output 'jsonpath={.items[?(@.spec.cloneFor)].metadata.name}') ]]; }
has_nothing() { # N STORE: in the engine
    [[ $(kubectl --namespace "$NAMESPACE" exec "$(agent_of "$1")" --container coppice -- coppice lvol ls --hidden --output json |
        jq --arg store "$2" '[.[] | select(.lvstore == $store)] | length') == 0 ]]
}
within_a_second() { # LVOL: from its object to its being ready, by the API server's clocks and the agent's
    local made ready
    made=$(kubectl get "lvol/$1" --output 'jsonpath={.metadata.creationTimestamp}')
    ready=$(kubectl get "lvol/$1" --output 'jsonpath={.status.conditions[?(@.type=="Ready")].lastTransitionTime}')
    # The first is cut to seconds.
    printf 'restored elsewhere: ready\t%s\n' "$(awk -v a="$(date -d "$made" +%s.%N)" -v b="$(date -d "$ready" +%s.%N)" 'BEGIN { print b - a }')" >>"$TIMES"
    awk -v a="$(date -d "$made" +%s.%N)" -v b="$(date -d "$ready" +%s.%N)" 'BEGIN { exit !(b - a < 2) }' ||
        die "it took from $made until $ready"
}

scenario other-node-clone "a PVC becomes a PVC of another node while it is written to, and the snapshot between them goes"
scenario_other_node_clone() {
    local mode name sum other
    for mode in Filesystem Block; do
        name=${mode,,}
        { pvc "$name" 512Mi mode=$mode && pod "$name" mode=$mode node=node1; } | apply
        running "$name"
        sum=$(write "$name" "$(place $mode)" 64)
        { pvc "$name-b" 1Gi mode=$mode from="PersistentVolumeClaim/$name" && pod "$name-b" mode=$mode node=node3; } | apply
        measure "cloned elsewhere: Running" running "$name-b"
        other=$(write "$name" "$(place $mode)" 64)
        holds "$name-b" "$(place $mode)" 64 "$sum"
        holds "$name" "$(place $mode)" 64 "$other"
        larger_than "$name-b" $mode 600
        wait_for 60 "the snapshot between to go" nothing_between
        delete "pod/$name" "pvc/$name"
        holds "$name-b" "$(place $mode)" 64 "$sum"
        hydrated "$name-b"
        wait_for 120 "node1 to have nothing left" has_nothing 1 pool
        holds "$name-b" "$(place $mode)" 64 "$sum"
        delete "pod/$name-b" "pvc/$name-b"
    done
}

scenario other-node-away "the source's node loses power while a volume still depends on it: what is here works, what is not heals"
scenario_other_node_away() {
    local sum own lvol
    agents_with node.hydrationRate=1Mi node.parentTimeoutSeconds=10
    trap 'node_back 1; agents_with node.hydrationRate= node.parentTimeoutSeconds=60' EXIT
    { pvc a 512Mi mode=Block && pod a mode=Block node=node1; } | apply
    running a
    sum=$(write a /dev/volume 128)
    snapshot s a | apply
    ready s
    { pvc b 512Mi mode=Block from=VolumeSnapshot/s && pod b mode=Block node=node2; } | apply
    running b
    lvol=$(lvol_of b)
    "$HERE/node.sh" off 1
    own=$(in_pod b sh -c 'dd if=/dev/urandom of=/dev/volume bs=1M seek=300 count=8 conv=fsync 2>/dev/null && dd if=/dev/volume bs=1M skip=300 count=8 2>/dev/null | sha256sum')
    wait_for 60 "it to be degraded" condition_is True/SourceUnavailable "$lvol" Degraded
    if in_pod b dd if=/dev/volume of=/dev/null bs=1M skip=120 count=8 iflag=direct 2>/dev/null; then die "it reads what is on node1"; fi
    same "its own data" "$own" "$(in_pod b sh -c 'dd if=/dev/volume bs=1M skip=300 count=8 iflag=direct 2>/dev/null | sha256sum')"
    kubectl get --raw "/api/v1/namespaces/$NAMESPACE/pods/$(agent_of 2):9808/proxy/metrics" >"$TIMES.metrics"
    at_least "degraded lvols" 1 "$(sum "$TIMES.metrics" coppice_lvols_degraded 'node="node2"')"
    "$HERE/enter.sh" kubectl coppice get volumes --namespace "$SPACE" | grep -q Degraded || die "kubectl coppice does not say it"
    "$HERE/enter.sh" kubectl coppice tree --namespace "$SPACE" | grep -q 'from node1' || die "the tree does not say it"
    "$HERE/node.sh" on 1
    wait_for 150 "it to heal" condition_is False/AsExpected "$lvol" Degraded
    at_full_speed
    hydrated b
    delete pod/b
    pod again claim=b mode=Block node=node2 | apply
    running again
    holds again /dev/volume 128 "$sum"
    same "its own data" "$own" "$(in_pod again sh -c 'dd if=/dev/volume bs=1M skip=300 count=8 2>/dev/null | sha256sum')"
}

scenario other-node-pin "a node that still reads a snapshot is off: the snapshot, deleted meanwhile, is kept until it has all"
scenario_other_node_pin() {
    local sum
    # Of other volumes: as long as node2 is off it cannot say that it needs them no more.
    wait_for 120 "node1 to have no pins" has_pins 1 0
    slowly
    trap 'node_back 2; at_full_speed' EXIT
    { pvc a 512Mi && pod a node=node1; } | apply
    running a
    sum=$(write a /data/file 128)
    snapshot s a | apply
    ready s
    { pvc b 512Mi from=VolumeSnapshot/s && pod b node=node2; } | apply
    running b
    "$HERE/node.sh" off 2
    delete volumesnapshot/s pod/a pvc/a
    sleep 100 # longer than anything that is only forgotten
    same "pins on node1" 1 "$(pins_on 1)"
    "$HERE/node.sh" on 2
    wait_for 120 "the agent" another_agent 2 none
    patience 150
    running b
    at_full_speed
    hydrated b 240
    wait_for 120 "node1 to have nothing left" has_nothing 1 pool
    k delete pod/b --grace-period 0 --force >/dev/null 2>&1
    pod again claim=b node=node2 | apply
    running again
    holds again /data/file 128 "$sum"
}

scenario other-node-eager "with restore: eager a claim is bound when all its data is there; a copy of a copy that depends has to wait"
scenario_other_node_eager() {
    local sum
    kubectl apply --filename - >/dev/null <<END
apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata: {name: e2e-eager}
provisioner: csi.coppice.io
volumeBindingMode: WaitForFirstConsumer
parameters: {restore: eager, csi.storage.k8s.io/fstype: ext4}
END
    slowly
    trap 'kubectl delete storageclass/e2e-eager --ignore-not-found >/dev/null; node_back 1; at_full_speed' EXIT
    { pvc a 512Mi && pod a node=node1; } | apply
    running a
    sum=$(write a /data/file 64)
    snapshot s a | apply
    ready s
    { pvc lazy 512Mi from=VolumeSnapshot/s && pod lazy node=node2; } | apply
    running lazy
    { pvc third 512Mi from=PersistentVolumeClaim/lazy && pod third node=node3; } | apply
    { pvc eager 512Mi class=e2e-eager from=VolumeSnapshot/s && pod eager node=node2; } | apply
    wait_for 60 "the third node to be told to wait" told third "has itself not received all its data yet"
    same "phase of the eager claim" Pending "$(k get pvc/eager --output 'jsonpath={.status.phase}')"
    patience 150
    bound eager
    "$HERE/node.sh" off 1
    running eager
    holds eager /data/file 64 "$sum"
    "$HERE/node.sh" on 1
    wait_for 120 "the agent" another_agent 1 none
    hydrated lazy
    running third
    holds third /data/file 64 "$sum"
}
told() { k get events --field-selector "involvedObject.name=$1" --output 'jsonpath={.items[*].message}' | grep -qF "$2"; } # CLAIM TEXT
