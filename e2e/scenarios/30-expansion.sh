# shellcheck shell=bash
# Volumes that grow. ext4 grows while it is mounted only with CAP_SYS_RESOURCE, which not every machine of ours has: there it
# grows with the next pod.

grow() { # CLAIM SIZE
    k patch "pvc/$1" --type merge --patch "{\"spec\": {\"resources\": {\"requests\": {\"storage\": \"$2\"}}}}" >/dev/null
}
volume_grown() { # CLAIM SIZE: kubelet may be through with its part already
    local status
    status=$(k get "pvc/$1" --output 'jsonpath={.status.conditions[*].type} {.status.capacity.storage}')
    [[ " $status " == *" FileSystemResizePending "* || $status == *" $2" ]]
}
grown() { # CLAIM SIZE [POD]
    # kubelet looks for volumes to grow when it syncs the pod: once a minute, or when the pod changes.
    if [[ -n ${3:-} ]]; then
        wait_for "$SECONDS_MAX" "the volume of $1 to grow" volume_grown "$1" "$2"
        k annotate "pod/$3" --overwrite "grow=$2" >/dev/null
    fi
    k wait "pvc/$1" --for "jsonpath={.status.capacity.storage}=$2" --timeout "${SECONDS_MAX}s" >/dev/null ||
        die "$1 does not grow to $2: $(k get "pvc/$1" --output 'jsonpath={.status}')"
}
can_grow_ext4_online() { (($(setpriv --dump | grep -c '^Capability bounding set:.*sys_resource') == 1)); }

scenario expand-online "file systems and a block device grow while a pod uses them"
scenario_expand_online() {
    local class mode name sum kinds=(thin-xfs thin-btrfs thick-xfs thin-block)
    if can_grow_ext4_online; then kinds+=(thin-ext4); fi
    for class in "${kinds[@]}"; do
        mode=Filesystem name=$class
        if [[ $class == *-block ]]; then mode=Block class=thin-ext4; fi
        { pvc "$name" 512Mi class="$class" mode=$mode && pod "$name" mode=$mode; } | apply
        running "$name"
        sum=$(write "$name" "$(place $mode)" 16)
        grow "$name" 1Gi
        measure "PVC grown" grown "$name" 1Gi "$name"
        wait_for 10 "the pod to see it" larger_than "$name" $mode 600
        holds "$name" "$(place $mode)" 16 "$sum"
        delete "pod/$name" "pvc/$name"
    done
}

scenario expand-offline "file systems grow while no pod uses them, and the next pod has the space"
scenario_expand_offline() {
    local class sum
    for class in thin-ext4 thin-xfs; do
        { pvc "$class" 512Mi class=$class && pod "$class"; } | apply
        running "$class"
        sum=$(write "$class" /data/file 16)
        delete "pod/$class"
        # The pod's object goes before its volume is unmounted.
        wait_for 60 "$class to be unmounted" unstaged "$class"
        grow "$class" 1Gi
        k wait "pvc/$class" --for condition=FileSystemResizePending --timeout "${SECONDS_MAX}s" >/dev/null ||
            die "$class: the volume does not grow"
        pod "$class-next" claim="$class" | apply
        running "$class-next"
        grown "$class" 1Gi
        larger_than "$class-next" Filesystem 600
        holds "$class-next" /data/file 16 "$sum"
        delete "pod/$class-next" "pvc/$class"
    done
}

scenario expand-too-far "an expansion that cannot be, then a smaller one"
scenario_expand_too_far() {
    local sum
    { pvc a 512Mi class=thick-xfs && pod a; } | apply
    running a
    sum=$(write a /data/file 16)
    grow a 100Gi
    k wait pvc/a --for 'jsonpath={.status.allocatedResourceStatuses.storage}=ControllerResizeInfeasible' --timeout "${SECONDS_MAX}s" \
        >/dev/null || die "the PVC does not say that it is infeasible: $(k get pvc/a --output 'jsonpath={.status}')"
    grow a 1Gi
    measure "PVC grown after all" grown a 1Gi a
    wait_for 10 "the pod to see it" larger_than a Filesystem 600
    holds a /data/file 16 "$sum"
}
