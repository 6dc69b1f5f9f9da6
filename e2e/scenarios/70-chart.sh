# shellcheck shell=bash
# The chart while there are volumes.

uninstall() { "$HERE/enter.sh" timeout 120 helm uninstall coppice --namespace "$NAMESPACE" 2>&1; }
can_uninstall() { uninstall >"$TIMES.uninstall"; }

scenario uninstall "refused while a pod uses a volume; then volumes outlive uninstalling and installing"
scenario_uninstall() {
    local sum said
    { pvc a 512Mi && pod a && pvc b 512Mi class=coppice-clone; } | apply
    running a
    bound b
    sum=$(write a /data/file 16)
    if said=$(uninstall); then die "it can be uninstalled under a running pod"; fi
    [[ $said == *"is in use on node $(pod_node a)"* ]] || die "it says nothing of the volume in use: $said"
    same "agents" 3 "$(kubectl --namespace "$NAMESPACE" get daemonset coppice-node --output 'jsonpath={.status.numberReady}')"
    delete pod/a
    # The last unmounting has to reach the object.
    wait_for 60 "uninstalling" can_uninstall
    same "lvols" 2 "$(kubectl get lvols --no-headers | wc -l)"
    "$HERE/install.sh" --chart >/dev/null
    { pod a && pod b; } | apply
    running a b
    holds a /data/file 16 "$sum"
}

scenario upgrade "the agents are replaced one by one by an upgrade, under volumes without a pod"
scenario_upgrade() {
    local n sum
    for n in 1 2 3; do { pvc "a$n" 512Mi && pod "a$n" node="node$n"; } | apply; done
    running a1 a2 a3
    sum=$(write a2 /data/file 16)
    delete pod/a1 pod/a2 pod/a3
    "$HERE/enter.sh" timeout 120 helm upgrade coppice "$ROOT/charts/coppice" --namespace "$NAMESPACE" --reuse-values \
        --set-string "node.podAnnotations.again=$sum" >/dev/null
    measure "three agents replaced" kubectl --namespace "$NAMESPACE" rollout status daemonset/coppice-node --timeout 110s >/dev/null
    for n in 1 2 3; do pod "a$n"; done | apply
    running a1 a2 a3
    holds a2 /data/file 16 "$sum"
}
