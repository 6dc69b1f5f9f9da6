# shellcheck shell=bash
# Who may do what: the accounts' rights, all of them, and what the admission policies add to those.

account() { say "system:serviceaccount:$NAMESPACE:$1"; }
# rights_of ACCOUNT: "RESOURCE [NAMES] VERBS", one a line: what it may do that an account without any rights may not.
rights_of() {
    comm -13 <(all_rights_of default) <(all_rights_of "$1")
}
all_rights_of() {
    kubectl auth can-i --list --namespace "$NAMESPACE" --as "$(account "$1")" --no-headers |
        sed -E 's/ +\[\]//g; s/ +/ /g' | in_order | sort
}

# Verbs always in the same order, whichever rule each is from.
in_order() {
    awk '{
        count = split("get list watch create patch update delete", order)
        match($0, /\[[^]]*\]$/)
        verbs = " " substr($0, RSTART + 1, RLENGTH - 2) " "; text = ""
        for (i = 1; i <= count; i++) if (sub(" " order[i] " ", " ", verbs)) text = text " " order[i]
        # What is left are verbs that nobody has thought of.
        text = text verbs; gsub(/^ +| +$/, "", text)
        print substr($0, 1, RSTART) text "]"
    }'
}

scenario rights "both accounts may do what they need, and nothing else"
scenario_rights() {
    diff - <(rights_of coppice-node) <<'END' || die "the agent's rights are others"
certificatesigningrequests.certificates.k8s.io [get create]
configmaps [coppice-export-ca] [get]
events.events.k8s.io [create patch]
lvols.coppice.io [get list watch patch]
lvols.coppice.io/status [patch]
lvstores.coppice.io [get list watch]
lvstores.coppice.io/status [patch]
namespaces [kube-system] [get]
nodes [get]
END
    # Ours and those of the sidecars together.
    diff - <(rights_of coppice-controller) <<'END' || die "the controller's rights are others"
certificatesigningrequests.certificates.k8s.io [list watch]
certificatesigningrequests.certificates.k8s.io/approval [patch]
certificatesigningrequests.certificates.k8s.io/status [patch]
configmaps [coppice-export-ca] [get patch]
configmaps [create]
csinodes.storage.k8s.io [get list watch]
csistoragecapacities.storage.k8s.io [get list watch create patch update delete]
events [create patch update]
events.events.k8s.io [create patch]
leases.coordination.k8s.io [coppice-controller] [get update]
leases.coordination.k8s.io [create]
leases.coordination.k8s.io [csi-coppice-io] [get update]
leases.coordination.k8s.io [external-resizer-csi-coppice-io] [get update]
leases.coordination.k8s.io [external-snapshotter-leader-csi-coppice-io] [get update]
lvols.coppice.io [get list watch create patch update delete]
lvols.coppice.io/status [patch update]
lvstores.coppice.io [get list watch]
lvstores.coppice.io/status [patch update]
nodes [get list watch]
persistentvolumeclaims [get list watch update]
persistentvolumeclaims/status [patch]
persistentvolumes [get list watch create patch delete]
pods [get]
replicasets.apps [get]
secrets [coppice-export-ca] [get patch]
secrets [create]
signers.certificates.k8s.io [coppice.io/export] [approve sign]
storageclasses.storage.k8s.io [get list watch]
volumeattachments.storage.k8s.io [get list watch]
volumeattributesclasses.storage.k8s.io [get list watch]
volumesnapshotclasses.snapshot.storage.k8s.io [get list watch]
volumesnapshotcontents.snapshot.storage.k8s.io [get list watch patch update]
volumesnapshotcontents.snapshot.storage.k8s.io/status [patch update]
volumesnapshots.snapshot.storage.k8s.io [get list watch update]
END
    # And what those lists leave out, asked as a question, in a namespace that is not theirs too.
    local name verb resource
    for name in coppice-node coppice-controller; do
        for verb in get list create update delete; do
            for resource in secrets configmaps pods/exec deployments.apps daemonsets.apps clusterroles.rbac.authorization.k8s.io \
                validatingadmissionpolicies.admissionregistration.k8s.io customresourcedefinitions.apiextensions.k8s.io; do
                if kubectl auth can-i "$verb" "$resource" --as "$(account $name)" --all-namespaces >/dev/null 2>&1; then
                    die "$name may $verb $resource"
                fi
            done
        done
    done
}

# as_agent TOKEN COMMAND…: kubectl with nothing but this token.
as_agent() {
    KUBECONFIG=/dev/null in_network control timeout 60 "$KUBERNETES_DIR/bin/kubectl" --server="https://$API_ADDRESS" \
        --certificate-authority="$PKI/ca.crt" --token="$1" "${@:2}"
}
# write_status TOKEN KIND NAME STATUS: as an agent does, in one request; nothing is kept.
write_status() {
    printf '{"apiVersion": "coppice.io/v1alpha1", "kind": "%s", "metadata": {"name": "%s"}, "status": %s}' "$2" "$3" "$4" |
        as_agent "$1" apply --server-side --force-conflicts --subresource status --dry-run=server --filename -
}
patch() { # TOKEN NAME PATCH: of a lvol
    as_agent "$1" patch lvol "$2" --type merge --patch "$3" --dry-run=server
}
refused() { # WHY COMMAND…
    local why=$1 said
    shift
    if said=$("$@" 2>&1); then die "allowed: $*"; fi
    [[ $said == *"$why"* ]] || die "refused for another reason than \"$why\": $said"
}

scenario other-node "an agent's token changes objects of its node, and no others; people change no lvol's spec"
scenario_other_node() {
    local n token own other loose
    for n in 1 2; do { pvc "a$n" 512Mi && pod "a$n" node="node$n"; } | apply; done
    running a1 a2
    own=$(lvol_of a1) other=$(lvol_of a2)
    token=$(kubectl --namespace "$NAMESPACE" exec "$(agent_of 1)" --container coppice -- \
        cat /var/run/secrets/kubernetes.io/serviceaccount/token)

    write_status "$token" Lvol "$own" '{"allocated": "1Gi"}' >/dev/null || die "it cannot write a status of its node"
    write_status "$token" Lvstore node1-pool '{"exportEndpoint": "x"}' >/dev/null || die "it cannot write the status of its store"
    refused "own node only" write_status "$token" Lvol "$other" '{"allocated": "1Gi"}'
    refused "own node only" write_status "$token" Lvstore node2-pool '{"exportEndpoint": "x"}'
    refused "own node only" patch "$token" "$other" '{"metadata": {"finalizers": []}}'
    refused "being deleted" patch "$token" "$own" '{"metadata": {"finalizers": []}}'
    refused "no metadata" patch "$token" "$own" '{"metadata": {"labels": {"a": "b"}}}'
    # Two policies refuse this; either may speak.
    refused "change" patch "$token" "$own" '{"spec": {"size": "2Gi"}}'
    refused "change" patch "$token" "$own" '{"spec": {"reclaim": "Delete"}}'
    refused "cannot delete" as_agent "$token" delete lvol "$own" --dry-run=server
    refused "cannot list" as_agent "$token" get secrets

    # A token that is not a pod's names no node.
    loose=$(kubectl --namespace "$NAMESPACE" create token coppice-node)
    refused "own node only" write_status "$loose" Lvol "$own" '{"allocated": "1Gi"}'

    refused "only the Coppice controller" kubectl patch lvol "$own" --type merge --patch '{"spec": {"reclaim": "Delete"}}'
    refused "only the Coppice controller" kubectl patch lvol "$own" --type merge --patch '{"spec": {"size": "2Gi"}}'
}
