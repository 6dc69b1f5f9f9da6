# shellcheck shell=bash
# Everything that can end without being asked to, at random, while volumes live their lives. KILLS is how many (200), SEED
# which (1): what is killed and when follows from it, what that hits does not.

scenario kills "200 seeded kills of everything under volumes, snapshots and clones: no byte lost, nothing left over"
scenario_kills() {
    local kills=${KILLS:-200} seed=${SEED:-1} worker workers=() n failed=0
    LIVES=$(mktemp -d)
    trap 'rm -rf "$LIVES"' EXIT
    for worker in 1 2 3 4; do
        (RANDOM=$((seed * 100 + worker)) && live "$worker") >"$LIVES/$worker.log" 2>&1 &
        workers+=($!)
    done
    RANDOM=$seed
    for ((n = 1; n <= kills; n++)); do
        if [[ -e $LIVES/failed ]]; then break; fi
        kill_one "$n"
        sleep "$((RANDOM % 2)).$((RANDOM % 10))"
    done
    touch "$LIVES/stop"
    for worker in "${workers[@]}"; do wait "$worker" || failed=1; done
    ((failed == 0)) || die "with SEED=$seed: $(tail -n 8 "$LIVES"/*.log)"
    say "$kills kills: $(sort "$LIVES/kills" | uniq -c | awk '{ printf "%s%d × %s", sep, $1, $2; sep = ", " }')"
    say "$(cat "$LIVES"/*.log | grep -c '^lived') lives; $(cat "$LIVES"/*.log | grep -c '^renewed') pods made anew"
}

# -- what is killed -------------------------------------------------------------------------------------------------

kill_one() { # NTH
    local what some pod='' n=$((RANDOM % 3 + 1)) dice=$((RANDOM % 100))
    if ((dice < 30)); then
        what=agent pod=$(agent_of "$n")
    elif ((dice < 60)); then
        what=controller
        read -ra some < <(kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/component=controller \
            --output 'jsonpath={.items[*].metadata.name}')
        pod=${some[RANDOM % (${#some[@]} + 1)]:-}
    elif ((dice < 80)); then
        # kubelet waits longer and longer before it starts a container again, so these are not all there is.
        some=(coppice csi-provisioner csi-snapshotter csi-resizer)
        what=${some[RANDOM % 4]}
        "$HERE/node.sh" run "$n" pkill -KILL --exact "$what" || true
    elif ((dice < 93)); then
        some=(kube-apiserver etcd kube-controller-manager kube-scheduler snapshot-controller)
        what=${some[RANDOM % 5]}
        "$HERE/cluster/component.sh" stop "$what"
        "$HERE/cluster/component.sh" start "$what"
        wait_for 60 "the API server" kubectl get --raw /readyz
        keep_control_plane
    else
        what=node
        "$HERE/node.sh" off "$n"
        "$HERE/node.sh" on "$n"
    fi
    if [[ -n $pod ]]; then
        kubectl --namespace "$NAMESPACE" delete pod "$pod" --grace-period 0 --force --wait=false >/dev/null 2>&1 || true
    fi
    say "$what" >>"$LIVES/kills"
}

# Some of the control plane end by themselves when the API server is away for a moment; elsewhere something starts them again.
keep_control_plane() {
    local name
    for name in kube-controller-manager kube-scheduler snapshot-controller; do
        if ! pid_of "$name" >/dev/null; then "$HERE/cluster/component.sh" start "$name"; fi
    done
}

# -- lives ----------------------------------------------------------------------------------------------------------
# Of a volume, a snapshot of it and what is made from that. A slot is 4 MiB: what was written to it durably is known by its hash.
# Pods do not outlive their node's agent: they are made anew then, and find what was durable.

live() { # WORKER
    local round=0
    until [[ -e $LIVES/stop ]]; do
        round=$((round + 1))
        # Not in a condition: there the first error would not end it.
        one_life "w$1-$round"
        say "lived $1-$round"
    done
}

one_life() { # NAME
    local name=$1 mode=Filesystem class classes=(thin-ext4 thin-xfs thick-ext4 thin-block) order what
    class=${classes[RANDOM % 4]}
    if [[ $class == *-block ]]; then mode=Block class=thin-ext4; fi
    declare -A of=() # hashes
    made "$(pvc "$name" 384Mi class="$class" mode=$mode && pod "$name" mode=$mode)"
    of[$name.0]=$(put "$name" $mode 0)
    made "$(snapshot "$name" "$name")"
    eventually "the snapshot $name" k wait "volumesnapshot/$name" --for 'jsonpath={.status.readyToUse}=true' --timeout 20s
    of[$name.1]=$(put "$name" $mode 1)
    made "$(pvc "$name-r" 384Mi class="$class-now" mode=$mode from="VolumeSnapshot/$name" && pod "$name-r" mode=$mode)"
    holds_slot "$name-r" $mode 0 "${of[$name.0]}"
    of[$name-r.1]=$(put "$name-r" $mode 1)
    made "$(pvc "$name-c" 512Mi class="$class-now" mode=$mode from="PersistentVolumeClaim/$name-r" && pod "$name-c" mode=$mode)"
    holds_slot "$name-c" $mode 0 "${of[$name.0]}"
    holds_slot "$name-c" $mode 1 "${of[$name-r.1]}"
    holds_slot "$name" $mode 1 "${of[$name.1]}"
    # In any order, and who is still there has what it had.
    order=("$name" "$name-r" "$name-c" snapshot)
    while read -r what; do
        case $what in
        snapshot) gone_for_good "volumesnapshot/$name" ;;
        *)
            gone_for_good "pod/$what" "pvc/$what"
            of[$what.0]=
            ;;
        esac
        if [[ $what != "$name-c" && -n ${of[$name.0]} ]]; then holds_slot "$name" $mode 0 "${of[$name.0]}"; fi
    done < <(printf '%s\n' "${order[@]}" | shuf --random-source=<(yes "$RANDOM"))
}

# Nothing here may stop because the API server, the agent or the node is away for a while: five minutes at most.
eventually() { # WHAT COMMAND…
    local what=$1 until=$((SECONDS + 300))
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= until)); then
            touch "$LIVES/failed"
            die "waited in vain for $what"
        fi
        sleep 0.5
    done
}
made() { eventually "the API server to take $1" apply_text "$1"; } # MANIFEST
apply_text() { k apply --filename - <<<"$1"; }
gone_for_good() { eventually "$* to go" k delete "$@" --ignore-not-found --timeout 30s; }

# with_pod POD MODE SCRIPT: in the pod; makes it anew where that does not work.
with_pod() {
    local name=$1 mode=$2 script=$3 until=$((SECONDS + 300)) tries=0
    while ((SECONDS < until)); do
        if ! k wait "pod/$name" --for condition=Ready --timeout 20s >/dev/null 2>&1; then
            # Perhaps it was deleted below, and the API server was away when it was to be made again.
            apply_text "$(pod "$name" mode="$mode")" >/dev/null 2>&1 || true
            continue
        fi
        if in_pod "$name" sh -c "set -o pipefail; $script" 2>/dev/null; then return; fi
        # Once may be the API server; twice is a device that died with its agent.
        if ((++tries % 2 == 0)); then
            say "renewed $name" >&2
            k delete "pod/$name" --ignore-not-found --timeout 60s >/dev/null 2>&1 || true
        fi
        sleep 0.5
    done
    touch "$LIVES/failed"
    die "the pod $name does not: $script"
}
put() { # POD MODE SLOT: writes random bytes durably and prints their hash
    with_pod "$1" "$2" "dd if=/dev/urandom of=$(slot "$2" "$3") bs=1M count=4 conv=notrunc,fsync && $(read_slot "$2" "$3")"
}
holds_slot() { # POD MODE SLOT HASH
    local found
    found=$(with_pod "$1" "$2" "$(read_slot "$2" "$3")")
    [[ $found == "$4" ]] && return
    touch "$LIVES/failed"
    same "slot $3 of $1" "$4" "$found"
}
slot() { if [[ $1 == Block ]]; then say "/dev/volume seek=$(($2 * 4))"; else say "/data/slot$2"; fi; }           # MODE SLOT: for dd's of=
read_slot() { say "dd if=$(slot "$1" "$2" | sed 's/seek/skip/') bs=1M count=4 | sha256sum"; } # MODE SLOT
