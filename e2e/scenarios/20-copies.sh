# shellcheck shell=bash
# Snapshots, what is made of them, and clones.

scenario snapshots "VolumeSnapshot to PVC: as large and larger, file system and block"
scenario_snapshots() {
    local class mode name sum other
    for class in thin-{ext4,xfs,btrfs,block}; do
        mode=Filesystem name=$class
        if [[ $class == *-block ]]; then mode=Block class=thin-ext4; fi
        { pvc "$name" 512Mi class="$class" mode=$mode && pod "$name" mode=$mode; } | apply
        running "$name"
        sum=$(write "$name" "$(place $mode)" 16)
        snapshot "$name" "$name" | apply
        measure "snapshot ready" ready "$name"
        other=$(write "$name" "$(place $mode)" 16)
        {
            pvc "$name-same" 512Mi class="$class-now" mode=$mode from="VolumeSnapshot/$name" && pod "$name-same" mode=$mode
            pvc "$name-larger" 1Gi class="$class-now" mode=$mode from="VolumeSnapshot/$name" && pod "$name-larger" mode=$mode
        } | apply
        measure "two restored pods Running" running "$name-same" "$name-larger"
        holds "$name-same" "$(place $mode)" 16 "$sum"
        holds "$name-larger" "$(place $mode)" 16 "$sum"
        holds "$name" "$(place $mode)" 16 "$other"
        larger_than "$name-larger" $mode 600
        delete "pod/$name" "pod/$name-same" "pod/$name-larger"
        delete "volumesnapshot/$name" "pvc/$name" "pvc/$name-same" "pvc/$name-larger"
    done
}
larger_than() { # POD MODE MIB
    local size
    if [[ $2 == Block ]]; then
        size=$(($(in_pod "$1" blockdev --getsize64 /dev/volume) >> 20))
    else
        size=$(in_pod "$1" df -m /data | awk 'END { print $2 }')
    fi
    ((size > $3)) || die "$1 has $size MiB, no more than $3"
}

scenario clones "PVC to PVC, as large and larger, while the source is in use"
scenario_clones() {
    local class sum other
    for class in thin-ext4 thick-xfs; do
        { pvc "$class" 512Mi class=$class && pod "$class"; } | apply
        running "$class"
        sum=$(write "$class" /data/file 16)
        {
            pvc "$class-same" 512Mi class="$class-now" from="PersistentVolumeClaim/$class" && pod "$class-same"
            pvc "$class-larger" 1Gi class="$class-now" from="PersistentVolumeClaim/$class" && pod "$class-larger"
        } | apply
        measure "two cloned pods Running" running "$class-same" "$class-larger"
        other=$(write "$class" /data/file 16)
        holds "$class-same" /data/file 16 "$sum"
        holds "$class-larger" /data/file 16 "$sum"
        holds "$class" /data/file 16 "$other"
        larger_than "$class-larger" Filesystem 600
        delete "pod/$class" "pod/$class-same" "pod/$class-larger"
        delete "pvc/$class" "pvc/$class-same" "pvc/$class-larger"
    done
}

scenario generations "three generations of volume, snapshot, restore, deleted in different orders"
scenario_generations() {
    local order name sums
    for order in "a s b t c" "c t b s a" "s t a b c" "b a c t s" "a b s t c" "t c s b a"; do
        declare -A sums=()
        { pvc a 512Mi class=thin-xfs && pod a; } | apply
        running a
        sums[a]=$(write a /data/file 8)
        snapshot s a | apply
        ready s
        { pvc b 512Mi class=thin-xfs-now from=VolumeSnapshot/s && pod b; } | apply
        running b
        holds b /data/file 8 "${sums[a]}"
        sums[b]=$(write b /data/file 4)
        sums[b]=$(hash_of b /data/file 8)
        snapshot t b | apply
        ready t
        { pvc c 512Mi class=thin-xfs-now from=VolumeSnapshot/t && pod c; } | apply
        running c
        holds c /data/file 8 "${sums[b]}"
        sums[c]=$(write c /data/other 4)
        for name in $order; do
            case $name in
            s | t) delete "volumesnapshot/$name" ;;
            *)
                delete "pod/$name"
                delete "pvc/$name"
                unset "sums[$name]"
                ;;
            esac
            # Who is still there has what it had.
            if [[ -v sums[a] ]]; then holds a /data/file 8 "${sums[a]}"; fi
            if [[ -v sums[b] ]]; then holds b /data/file 8 "${sums[b]}"; fi
            if [[ -v sums[c] ]]; then holds c /data/other 4 "${sums[c]}"; fi
        done
    done
}
