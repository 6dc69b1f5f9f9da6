#!/usr/bin/env bash
# pki.sh: one authority, a key pair for whoever talks to the API server, and a kubeconfig for each that is a client.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../lib.sh"
umask 077
mkdir -p "$PKI"
cd "$PKI"

# Nothing from the machine's openssl.cnf, which has extensions of its own.
printf '[req]\ndistinguished_name = subject\n[subject]\n' >openssl.cnf

# request NAME SUBJECT EXTENSION…: a key and a certificate; the authority's own if there is none yet.
request() {
    local name=$1 subject=$2 extension options=()
    shift 2
    [[ -e ca.crt ]] && options=(-CA ca.crt -CAkey ca.key)
    for extension in "$@"; do options+=(-addext "$extension"); done
    openssl req -config openssl.cnf -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj "$subject" \
        -keyout "$name.key" -out "$name.crt" "${options[@]}" 2>openssl.log || die "openssl: $(cat openssl.log)"
}
leaf() { # NAME SUBJECT [NAMES]
    request "$1" "$2" basicConstraints=critical,CA:false keyUsage=digitalSignature extendedKeyUsage=serverAuth,clientAuth \
        ${3:+"subjectAltName=$3"}
}
client() { # NAME SUBJECT [NAMES]
    leaf "$@"
    cat >"$1.conf" <<EOT
apiVersion: v1
kind: Config
clusters:
- {name: coppice, cluster: {server: "https://$API_ADDRESS", certificate-authority-data: $(base64 -w 0 ca.crt)}}
users:
- {name: $1, user: {client-certificate-data: $(base64 -w 0 "$1.crt"), client-key-data: $(base64 -w 0 "$1.key")}}
contexts:
- {name: coppice, context: {cluster: coppice, user: $1}}
current-context: coppice
EOT
}

request ca /CN=coppice-cluster basicConstraints=critical,CA:true keyUsage=critical,keyCertSign,digitalSignature
leaf apiserver /CN=kube-apiserver \
    "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:$SERVICE_ADDRESS,IP:$API_ADDRESS,IP:127.0.0.1"
leaf kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client
openssl ecparam -name prime256v1 -genkey -noout -out service-accounts.key

client admin /O=system:masters/CN=admin
client kube-controller-manager /CN=system:kube-controller-manager
client kube-scheduler /CN=system:kube-scheduler
# It runs outside a pod, but with the rights of the account that its roles are made for.
client snapshot-controller /CN=system:serviceaccount:kube-system:snapshot-controller
for n in "${NODES[@]}"; do
    client "node$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_address "$n")"
done
