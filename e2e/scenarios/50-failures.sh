# shellcheck shell=bash
# What ends without being asked to.

agent_of() { # N: the pod
    kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/component=node --field-selector "spec.nodeName=node$1" \
        --output 'jsonpath={.items[*].metadata.name}'
}
another_agent() { # N POD: whether node N has one that is not POD and works
    local pod
    pod=$(agent_of "$1")
    [[ -n $pod && $pod != "$2" ]] &&
        kubectl --namespace "$NAMESPACE" wait "pod/$pod" --for condition=Ready --timeout 1s
}

scenario agent-killed "the agent's pod is deleted without grace under a running pod: the next pod has the data"
scenario_agent_killed() {
    local class mode name sum agent
    agent=$(agent_of 2)
    : >"$TIMES.data"
    for class in thin-{ext4,xfs,btrfs,block}; do
        mode=Filesystem name=$class
        if [[ $class == *-block ]]; then mode=Block class=thin-ext4; fi
        { pvc "$name" 512Mi class="$class" mode=$mode && pod "$name" mode=$mode node=node2; } | apply
        running "$name"
        sum=$(write "$name" "$(place $mode)" 16)
        say "$name $mode $sum" >>"$TIMES.data"
    done
    kubectl --namespace "$NAMESPACE" delete pod "$agent" --grace-period 0 --force >/dev/null 2>&1
    measure "agent ready after grace 0" wait_for 100 "another agent" another_agent 2 "$agent"
    while read -r name mode sum; do
        delete "pod/$name"
        pod "$name-next" claim="$name" mode="$mode" | apply
    done <"$TIMES.data"
    while read -r name mode sum; do
        running "$name-next"
        holds "$name-next" "$(place "$mode")" 16 "$sum"
    done <"$TIMES.data"
    rm "$TIMES.data"
}

# A container that starts again before its volume is mounted anew still has the dead mount, of which it can read what is in
# memory, and a mere sync(2) tells nothing.
revived() { # POD: whether it can write; if not, its container starts again
    in_pod "$1" sh -c 'echo more | dd of=/data/new conv=fsync 2>/dev/null || { kill 1; exit 1; }'
}

scenario container-restarted "after the agent was killed, a container that starts again in its pod has its data, and the pod ends"
scenario_container_restarted() {
    local class sum agent
    agent=$(agent_of 2)
    : >"$TIMES.data"
    for class in thin-ext4 thick-xfs; do
        { pvc "$class" 512Mi class=$class && pod "$class" node=node2; } | apply
        running "$class"
        sum=$(write "$class" /data/file 16)
        say "$class $sum" >>"$TIMES.data"
    done
    kubectl --namespace "$NAMESPACE" delete pod "$agent" --grace-period 0 --force >/dev/null 2>&1
    wait_for 100 "another agent" another_agent 2 "$agent"
    while read -r class sum; do
        if in_pod "$class" dd if=/dev/zero of=/data/new bs=4k count=1 conv=fsync 2>/dev/null; then die "$class did not notice: its device was not dead"; fi
        measure "container has its data again" wait_for 60 "$class to be itself again" revived "$class"
        holds "$class" /data/file 16 "$sum"
        delete "pod/$class" # and nothing may be left of both mounts
        pod "$class-next" claim="$class" | apply
        running "$class-next"
        holds "$class-next" /data/file 16 "$sum"
        same "what was written meanwhile" more "$(in_pod "$class-next" cat /data/new)"
    done <"$TIMES.data"
    rm "$TIMES.data"
}

scenario agent-restarted "the agent's pod is deleted in the ordinary way"
scenario_agent_restarted() {
    local sum agent
    { pvc a 512Mi && pod a node=node2; } | apply
    running a
    sum=$(write a /data/file 16)
    agent=$(agent_of 2)
    kubectl --namespace "$NAMESPACE" delete pod "$agent" --timeout 100s >/dev/null
    measure "agent ready after deletion" wait_for 100 "another agent" another_agent 2 "$agent"
    delete pod/a
    pod next claim=a | apply
    running next
    holds next /data/file 16 "$sum"
}

scenario agent-no-api "an agent is killed while the API server is down: the next one has the stores open before the API server is back"
scenario_agent_no_api() {
    local sum address status=0
    { pvc a 512Mi && pod a node=node2; } | apply
    running a
    sum=$(write a /data/file 16)
    address=$(kubectl --namespace "$NAMESPACE" get pod "$(agent_of 2)" --output 'jsonpath={.status.podIP}')
    "$HERE/cluster/component.sh" stop kube-apiserver
    # Its guard, which it started, sees to what it leaves.
    "$HERE/node.sh" run 2 pkill -KILL --oldest --full 'coppice node '
    (measure "stores open without the API server" wait_for 90 "the stores to be open" has_stores "$address") || status=1
    "$HERE/cluster/component.sh" start kube-apiserver # whatever comes
    wait_for 60 "the API server" kubectl get --raw /readyz
    ((status == 0)) || die "no store was open"
    wait_for 100 "the agent" another_agent 2 none
    delete pod/a
    pod next claim=a node=node2 | apply
    running next
    holds next /data/file 16 "$sum"
}
has_stores() { # ADDRESS: whether the agent there has a store open
    in_network control curl --silent --show-error --max-time 5 --noproxy '*' "http://$1:9808/metrics" |
        grep -q '^coppice_lvstore_size_bytes'
}

scenario controller-killed "both controllers are deleted without grace while claims come in"
scenario_controller_killed() {
    local n
    for n in 1 2 3 4; do pvc "a$n" 512Mi class=coppice-clone; done | apply
    kubectl --namespace "$NAMESPACE" delete pod --selector app.kubernetes.io/component=controller --grace-period 0 --force >/dev/null 2>&1
    for n in 5 6 7 8; do pvc "a$n" 512Mi class=coppice-clone; done | apply
    patience 120 # the sidecars' leases have to run out
    measure "8 PVCs Bound, controllers killed" bound a{1,2,3,4,5,6,7,8}
    same "lvols" 8 "$(kubectl get lvols --no-headers | wc -l)"
}

scenario power-cut "a node loses power and boots: its pod runs again and has what was flushed"
scenario_power_cut() {
    local sum again
    { pvc a 512Mi && pod a node=node3 && pvc b 512Mi mode=Block && pod b mode=Block node=node3; } | apply
    running a b
    sum=$(write a /data/file 16)
    again=$(write b /dev/volume 16)
    "$HERE/node.sh" off 3
    "$HERE/node.sh" on 3
    measure "pods run again after a power cut" wait_for 150 "the pods to run again" ran_twice a b
    running a b
    holds a /data/file 16 "$sum"
    holds b /dev/volume 16 "$again"
    wait_for 60 "the agent" another_agent 3 none
}
ran_twice() {
    local pod
    for pod in "$@"; do
        (($(k get "pod/$pod" --output 'jsonpath={.status.containerStatuses[0].restartCount}') > 0)) || return 1
    done
}
