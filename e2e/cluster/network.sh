#!/usr/bin/env bash
# network.sh: the wire between control plane and nodes, a bridge in a namespace of its own.
#
#   control: br0 10.98.0.1, lo 10.96.0.1 (the API server's service address)
#   nodeN:   eth0 10.98.0.1N, pods 10.243.N.0/24
#
# The machine's own network gets no device, address, route or rule, and no namespace has a default route: nothing that runs
# in here reaches the world, and no address of in here can be dialled from outside by mistake.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "$0")/../lib.sh"

# A namespace lives as long as its file is mounted.
make() {
    touch "$CLUSTER/net/$1"
    unshare --net="$CLUSTER/net/$1" true
}
configure() { in_network "$1" ip -batch -; }

mkdir -p "$CLUSTER/net"
make control
configure control <<EOT
link set lo up
address add $SERVICE_ADDRESS/32 dev lo
link add br0 type bridge
address add $API_ADDRESS/24 dev br0
link set br0 up
EOT

for n in "${NODES[@]}"; do
    make "node$n"
    configure control <<EOT
link add node$n type veth peer name eth0 netns $CLUSTER/net/node$n
link set node$n master br0 up
route add $(pod_subnet "$n") via $(node_address "$n")
EOT
    {
        cat <<EOT
link set lo up
address add $(node_address "$n")/24 dev eth0
link set eth0 up
route add $SERVICE_ADDRESS/32 via $API_ADDRESS
EOT
        for other in "${NODES[@]}"; do
            ((other == n)) || say "route add $(pod_subnet "$other") via $(node_address "$other")"
        done
    } | configure "node$n"
    in_network "node$n" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward' # pods reach the wire through their node
done
