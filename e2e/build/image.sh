#!/usr/bin/env bash
# image.sh FILE NAME ROOT [PROGRAM…]: makes FILE, a container image NAME of one layer, the folder ROOT, that runs PROGRAM.
#
# The form is that of `docker save`, which every container engine imports. The same ROOT gives the same bytes.
set -euo pipefail
file=$1 name=$2 root=$3
shift 3

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pack FILE FOLDER ENTRY…
pack() {
    tar --create --file "$1" --directory "$2" --format=gnu --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner "${@:3}"
}
sum_of() { sha256sum "$1" | cut -d ' ' -f 1; }

pack "$work/layer.tar" "$root" .
layer=$(sum_of "$work/layer.tar")

entrypoint=null
if (($#)); then
    printf -v entrypoint '"%s",' "$@"
    entrypoint="[${entrypoint%,}]"
fi
case $(uname -m) in
x86_64) architecture=amd64 ;;
aarch64) architecture=arm64 ;;
*) architecture=$(uname -m) ;;
esac
cat >"$work/config.json" <<EOT
{"architecture": "$architecture", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"Entrypoint": $entrypoint, "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]}}
EOT
config=$(sum_of "$work/config.json")
mv "$work/config.json" "$work/$config.json"
printf '[{"Config": "%s.json", "RepoTags": ["%s"], "Layers": ["layer.tar"]}]\n' "$config" "$name" >"$work/manifest.json"

pack "$file.new" "$work" manifest.json "$config.json" layer.tar
mv "$file.new" "$file"
