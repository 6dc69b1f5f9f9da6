# shellcheck shell=bash
# What the scenarios are written in. Source it after e2e/lib.sh.
#
# A scenario has a namespace of its own, $space. What it makes, it makes with the emitters below, which print manifests:
#   { pvc a 1Gi; pod a; } | apply

space=${SPACE:-}
k() { kubectl --namespace "$space" "$@"; }
apply() { k apply --filename - >/dev/null; }

# -- manifests ------------------------------------------------------------------------------------------------------
# Options are NAME=VALUE, after the arguments.

pvc() { # NAME SIZE [class= mode=Filesystem|Block access= from=PersistentVolumeClaim/NAME|VolumeSnapshot/NAME]
    local name=$1 size=$2 class=coppice mode=Filesystem access=ReadWriteOnce from=
    shift 2
    if (($#)); then local "$@"; fi
    cat <<END
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: $name}
spec:
  storageClassName: $class
  accessModes: [$access]
  volumeMode: $mode
  resources: {requests: {storage: $size}}
END
    case $from in
    "") ;;
    VolumeSnapshot/*) say "  dataSource: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: ${from#*/}}" ;;
    *) say "  dataSource: {kind: PersistentVolumeClaim, name: ${from#*/}}" ;;
    esac
}

# A pod with the claim at /data, or as the device /dev/volume.
pod() { # NAME [claim= mode=Filesystem|Block node= prefer= readonly=true security=]
    local name=$1 claim=$1 mode=Filesystem node='' prefer='' readonly=false security='{}' volume
    shift
    if (($#)); then local "$@"; fi
    volume='volumeMounts: [{name: volume, mountPath: /data}]'
    if [[ $mode == Block ]]; then volume='volumeDevices: [{name: volume, devicePath: /dev/volume}]'; fi
    cat <<END
---
apiVersion: v1
kind: Pod
metadata: {name: $name}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: $security
  nodeSelector: {${node:+kubernetes.io/hostname: $node}}
END
    if [[ -n $prefer ]]; then
        cat <<END
  affinity:
    nodeAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - {weight: 100, preference: {matchExpressions: [{key: kubernetes.io/hostname, operator: In, values: [$prefer]}]}}
END
    fi
    cat <<END
  containers:
  - name: busybox
    image: docker.io/library/busybox:e2e
    command: [sh, -c, "trap exit TERM; while :; do sleep 1000 & wait; done"]
    $volume
  volumes:
  - {name: volume, persistentVolumeClaim: {claimName: $claim, readOnly: $readonly}}
END
}

snapshot() { # NAME CLAIM
    cat <<END
---
apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: $1}
spec: {volumeSnapshotClassName: coppice, source: {persistentVolumeClaimName: $2}}
END
}

# -- waiting --------------------------------------------------------------------------------------------------------

SECONDS_MAX=60
patience() { SECONDS_MAX=$1; } # SECONDS: for what comes after
bound() { # CLAIM…
    k wait "${@/#/pvc/}" --for 'jsonpath={.status.phase}=Bound' --timeout "${SECONDS_MAX}s" >/dev/null || die "not bound: $*"
}
running() { # POD…
    k wait "${@/#/pod/}" --for condition=Ready --timeout "${SECONDS_MAX}s" >/dev/null || die "does not run: $*"
}
ready() { # SNAPSHOT…
    k wait "${@/#/volumesnapshot/}" --for 'jsonpath={.status.readyToUse}=true' --timeout "${SECONDS_MAX}s" >/dev/null ||
        die "not ready: $*"
}
delete() { # KIND/NAME…
    k delete "$@" --timeout "${SECONDS_MAX}s" >/dev/null || die "not deleted: $*"
}
measure() { # WHAT COMMAND…: how long it took goes to the report
    local what=$1 start
    start=$(now)
    shift
    "$@"
    printf '%s\t%s\n' "$what" "$(since "$start")" >>"$TIMES"
}

# -- looking --------------------------------------------------------------------------------------------------------

in_pod() { k exec "$1" -- "${@:2}"; } # POD COMMAND…
volume_of() { k get "pvc/$1" --output 'jsonpath={.spec.volumeName}'; }
lvol_of() { # CLAIM: the name of its object
    local handle
    handle=$(kubectl get "pv/$(volume_of "$1")" --output 'jsonpath={.spec.csi.volumeHandle}')
    kubectl get lvols --output "jsonpath={.items[?(@.spec.lvolUUID==\"$handle\")].metadata.name}"
}
node_of() { # CLAIM: where Kubernetes lets its pods run
    kubectl get "pv/$(volume_of "$1")" --output 'jsonpath={.spec.nodeAffinity.required.nodeSelectorTerms[0].matchExpressions[0].values[0]}'
}
unstaged() { # CLAIM: whether its node has let go of it; kubelet names the folder by a hash of the handle
    local node handle
    node=$(node_of "$1")
    handle=$(kubectl get "pv/$(volume_of "$1")" --output 'jsonpath={.spec.csi.volumeHandle}' | sha256sum)
    "$HERE/node.sh" run "${node#node}" test ! -e "/var/lib/kubelet/plugins/kubernetes.io/csi/csi.coppice.io/${handle%% *}"
}
pod_node() { k get "pod/$1" --output 'jsonpath={.spec.nodeName}'; }
same() { [[ $2 == "$3" ]] || die "$1: $3 instead of $2"; } # WHAT WANTED FOUND

# -- data -----------------------------------------------------------------------------------------------------------
# Random bytes, known by their hash. A file and a device (/dev/volume) are written and read the same way.

write() { # POD FILE MIB: writes durably and prints the hash
    in_pod "$1" sh -c "dd if=/dev/urandom of=$2 bs=1M count=$3 conv=notrunc,fsync 2>/dev/null && dd if=$2 bs=1M count=$3 2>/dev/null | sha256sum"
}
hash_of() { in_pod "$1" sh -c "dd if=$2 bs=1M count=$3 2>/dev/null | sha256sum"; } # POD FILE MIB
holds() { same "what $1 reads from $2" "$4" "$(hash_of "$1" "$2" "$3")"; }          # POD FILE MIB HASH
place() { if [[ $1 == Block ]]; then say /dev/volume; else say /data/file; fi; }    # MODE

# -- the end --------------------------------------------------------------------------------------------------------

# What there is of Coppice's volumes, one line each; after a scenario the same as before it.
remains() {
    local n pod
    kubectl get lvols --output name
    kubectl get pv --output 'jsonpath={range .items[?(@.spec.csi.driver=="csi.coppice.io")]}PersistentVolume {.metadata.name}{"\n"}{end}'
    kubectl get volumesnapshotcontents --output name
    for n in "${NODES[@]}"; do
        "$HERE/node.sh" run "$n" cat /proc/self/mountinfo |
            awk -v n="$n" '$5 ~ "/plugins/kubernetes.io/csi/.*csi.coppice.io/|/kubernetes.io~csi/|/volumeDevices/" { print "mount on node" n ": " $5 }'
        "$HERE/node.sh" run "$n" sh -c 'ls -d /var/lib/kubelet/plugins/kubernetes.io/csi/csi.coppice.io/*/globalmount 2>/dev/null || true' |
            sed "s/^/directory on node$n: /"
    done
    timeout 10 losetup --list --noheadings --output NAME,BACK-FILE | awk '$2 ~ "^(/run/coppice/.*|/volume)$" { print "loop device", $0 }'
    # The engines themselves, not what the objects say of them.
    for pod in $(kubectl --namespace "$NAMESPACE" get pods --selector app.kubernetes.io/component=node --output name); do
        kubectl --namespace "$NAMESPACE" exec "$pod" --container coppice -- coppice lvol ls --output json |
            jq --raw-output --arg pod "$pod" '.[]? | "in the store of \($pod): \(.name // .uuid)"'
    done
}
left_over() { comm -13 "$1" <(remains | sort); } # FILE: what was there before, sorted
clean() { [[ -z $(left_over "$1") ]]; }
