# shellcheck shell=bash disable=SC2154 # space: the namespace
# Objects made by hand for what exists already, and very many at once.

scenario static-pv "a PersistentVolume made by hand for a lvol that exists"
scenario_static_pv() {
    local sum volume handle node
    { pvc a 512Mi && pod a; } | apply
    running a
    sum=$(write a /data/file 16)
    volume=$(volume_of a) node=$(node_of a)
    handle=$(kubectl get "pv/$volume" --output 'jsonpath={.spec.csi.volumeHandle}')
    kubectl patch "pv/$volume" --type merge --patch '{"spec": {"persistentVolumeReclaimPolicy": "Retain"}}' >/dev/null
    delete pod/a pvc/a
    kubectl delete "pv/$volume" --timeout 60s >/dev/null
    apply <<END
apiVersion: v1
kind: PersistentVolume
metadata:
  name: $space
  annotations: {pv.kubernetes.io/provisioned-by: csi.coppice.io} # so that it is deleted with its claim
spec:
  capacity: {storage: 512Mi}
  accessModes: [ReadWriteOnce]
  storageClassName: coppice
  persistentVolumeReclaimPolicy: Delete
  claimRef: {namespace: $space, name: b}
  csi: {driver: csi.coppice.io, volumeHandle: $handle, fsType: ext4}
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions: [{key: topology.coppice.io/node, operator: In, values: [$node]}]
END
    { pvc b 512Mi && pod b; } | apply
    running b
    same "volume of the claim" "$space" "$(volume_of b)"
    holds b /data/file 16 "$sum"
}

scenario static-snapshot "a VolumeSnapshotContent made by hand for a snapshot that exists"
scenario_static_snapshot() {
    local sum content handle
    { pvc a 512Mi && pod a; } | apply
    running a
    sum=$(write a /data/file 16)
    snapshot s a | apply
    ready s
    content=$(k get volumesnapshot/s --output 'jsonpath={.status.boundVolumeSnapshotContentName}')
    handle=$(kubectl get "volumesnapshotcontent/$content" --output 'jsonpath={.status.snapshotHandle}')
    kubectl patch "volumesnapshotcontent/$content" --type merge --patch '{"spec": {"deletionPolicy": "Retain"}}' >/dev/null
    delete volumesnapshot/s
    kubectl delete "volumesnapshotcontent/$content" --timeout 60s >/dev/null
    apply <<END
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshotContent
metadata: {name: $space}
spec:
  driver: csi.coppice.io
  deletionPolicy: Delete
  sourceVolumeMode: Filesystem
  source: {snapshotHandle: $handle}
  volumeSnapshotRef: {namespace: $space, name: t}
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: t}
spec: {source: {volumeSnapshotContentName: $space}}
END
    measure "content made by hand ready" ready t
    { pvc b 512Mi class=coppice-clone from=VolumeSnapshot/t && pod b; } | apply
    running b
    holds b /data/file 16 "$sum"
}

# Requests that the API server has answered so far, watches included: all, and those for objects of ours.
api_calls() {
    kubectl get --raw /metrics | awk '/^apiserver_request_total\{/ { all += $NF; if (/group="coppice.io"/) ours += $NF } END { print all + 0, ours + 0 }'
}

scenario many "200 claims at once, thick: all bound, and no node has more than it can hold"
scenario_many() {
    local n most claims=() before after
    read -ra before < <(api_calls)
    for n in {1..200}; do
        pvc "a$n" 56Mi class=thick-ext4-now
    done | apply
    for n in {1..200}; do claims+=("a$n"); done
    patience 300
    measure "200 PVCs Bound" bound "${claims[@]}"
    read -ra after < <(api_calls)
    awk -v all=$((after[0] - before[0])) -v ours=$((after[1] - before[1])) \
        'BEGIN { printf "API requests for each of 200 PVCs: %.1f, of everybody; for Lvols and Lvstores %.1f\n", all / 200, ours / 200 }' >>"$COUNTS"
    most=$(kubectl get pv --output json | jq --raw-output '.items[].spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]' |
        sort | uniq -c | sort -nr | awk 'NR == 1 { print $1 }')
    ((most <= 4096 / 56)) || die "$most volumes of 56 MiB on one node of 4 GiB"
    measure "200 PVCs deleted" k delete pvc --all --timeout 300s >/dev/null
}
