# shellcheck shell=bash
# What Prometheus would read.

said() { # COMPONENT PORT: what each of its pods says, through the API server
    local pod
    for pod in $(kubectl --namespace "$NAMESPACE" get pods --selector "app.kubernetes.io/component=$1" --output 'jsonpath={.items[*].metadata.name}'); do
        kubectl get --raw "/api/v1/namespaces/$NAMESPACE/pods/$pod:$2/proxy/metrics"
    done
}
sum() { # FILE NAME [PART…]: of the samples of that name with all these in their labels
    local parts
    printf -v parts '%s\n' "${@:3}"
    awk -v name="$2" -v parts="$parts" '
        BEGIN { n = split(parts, part, "\n") }
        {
            series = $0
            sub(/ [^ ]*$/, "", series)
            split(series, head, "{")
            if (head[1] != name) next
            for (i = 1; i <= n; i++) if (part[i] != "" && !index(series, part[i])) next
            total += $NF
        }
        END { printf "%.0f\n", total }' "$1"
}
at_least() { (($3 >= $2)) || die "$1: $3, which is less than $2"; } # WHAT LEAST FOUND

scenario metrics "every metric of the dashboard and of the alerts is there, with values that fit what was done"
scenario_metrics() {
    local all=$TIMES.metrics claim mib=$((1 << 20)) name names
    { pvc a 512Mi && pod a; } | apply
    running a
    write a /data/file 16 >/dev/null
    { said node 9808 && said controller 9809; } >"$all"
    claim=("namespace=\"$space\"" 'persistentvolumeclaim="a"' "node=\"$(node_of a)\"" 'lvstore="pool"')
    at_least "bytes written" $((16 * mib)) "$(sum "$all" coppice_lvol_write_bytes_total "${claim[@]}")"
    at_least "bytes allocated" $((16 * mib)) "$(sum "$all" coppice_lvol_allocated_bytes "${claim[@]}")"
    same "size" $((512 * mib)) "$(sum "$all" coppice_lvol_size_bytes "${claim[@]}")"
    at_least "flushes" 1 "$(sum "$all" coppice_lvstore_latency_seconds_count 'operation="flush"' "node=\"$(node_of a)\"")"
    same "ready lvstores" 3 "$(sum "$all" coppice_lvstore_ready)"
    same "bad conditions" 0 "$(sum "$all" coppice_lvstore_condition)"
    same "controllers that lead" 1 "$(sum "$all" coppice_controller_leader)"
    at_least "lvstores that the controllers know" 3 "$(sum "$all" coppice_lvstore_wanted)"
    at_least "room in the lvstores" $((9 << 30)) "$(sum "$all" coppice_lvstore_free_bytes)"
    for name in Controller/CreateVolume Node/NodeStageVolume Node/NodePublishVolume; do
        at_least "calls of $name" 1 "$(sum "$all" csi_plugin_operations_seconds_count "method_name=\"/csi.v1.$name\"" 'grpc_status_code="OK"')"
    done
    ((30 > $(sum "$all" coppice_device_stall_seconds))) || die "a drive stalls: $(grep '^coppice_device_stall' "$all")"

    snapshot a a | apply
    ready a
    { said node 9808 && said controller 9809; } >"$all"
    at_least "snapshots" 1 "$(sum "$all" coppice_lvol_info 'kind="snapshot"')"
    same "what deleting the snapshot gives back, as the volume reads from it" 0 \
        "$(sum "$all" coppice_lvol_exclusive_bytes "lvol=\"$(snapshot_lvol a)\"")"

    names=$({
        jq --raw-output '.panels[].targets[]?.expr' "$ROOT/charts/coppice/files/dashboard.json"
        grep -v '^ *\(summary\|description\|runbook_url\|- alert\)' "$ROOT/charts/coppice/files/rules.yaml"
    } | grep --only-matching '\<\(coppice\|csi_plugin\)_[a-z_]\+\>' | sort --unique)
    at_least "metrics that are asked for" 20 "$(wc -l <<<"$names")"
    for name in $names; do
        grep --quiet "^${name}[{ ]" "$all" || die "nobody says $name"
    done
}
snapshot_lvol() { # SNAPSHOT: the UUID of its lvol
    kubectl get "volumesnapshotcontent/$(k get "volumesnapshot/$1" --output 'jsonpath={.status.boundVolumeSnapshotContentName}')" \
        --output 'jsonpath={.status.snapshotHandle}'
}
