# shellcheck shell=bash disable=SC2034
# What the scripts of the cluster share: where it lives, how its processes are started and ended, how to wait. Source it.

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
# shellcheck source=e2e/build/versions.sh
source "$ROOT/e2e/build/versions.sh"

# Everything of the cluster lies in this one folder, and its being there means that a cluster is up: one on a machine,
# whichever tree it is started from. On a real disk: the nodes' file systems are in it.
CLUSTER=/var/tmp/coppice-cluster
NODES=(1 2 3)
FAILURE_LOGS=$TARGET_DIR/test-logs/cluster # of a start that failed
# The only other name: node N's pods live in the cgroup ${CGROUP}N.
CGROUP=coppice-node

NAMESPACE=coppice # where Coppice is installed
PKI=$CLUSTER/pki
API_ADDRESS=10.98.0.1     # of the control plane on the wire between the nodes; node N is 10.98.0.1N
SERVICE_SUBNET=10.96.0.0/16
SERVICE_ADDRESS=10.96.0.1 # of the API server for pods: the first of those
node_address() { say "10.98.0.1$1"; }
pod_subnet() { say "10.243.$1.0/24"; }

# -- processes ------------------------------------------------------------------------------------------------------
# A process is known by its number and start time, so that nobody is ever killed who got the number later.

identity_of() { # PID: "PID START", or false if there is no such process
    local stat
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # The name, in brackets, may hold anything; start time is the 20th field after it.
    stat=${stat##*) }
    # shellcheck disable=SC2086
    set -- "$1" $stat
    [[ $2 != Z ]] && say "$1 ${21}"
}

# start NAME COMMAND…: in the background, in a session of its own, remembered as NAME.
start() {
    local name=$1
    shift
    setsid "$@" >>"$CLUSTER/log/$name.log" 2>&1 </dev/null &
    remember "$name" $!
}
remember() { identity_of "$2" >"$CLUSTER/pids/$1" || die "$1 ended at once; its log: $(tail -n 5 "$CLUSTER/log/$1.log")"; }

# pid_of NAME: its number, or false if it does not run any more.
pid_of() {
    local pid start
    read -r pid start 2>/dev/null <"$CLUSTER/pids/$1" || return 1
    [[ $(identity_of "$pid") == "$pid $start" ]] && say "$pid"
}

# stop NAME: kills it and waits until it is gone.
stop() {
    local pid
    if pid=$(pid_of "$1"); then
        kill -KILL "$pid" 2>/dev/null || true
        wait_for 60 "$1 to end" gone "$1"
    fi
    rm -f "$CLUSTER/pids/$1"
}
gone() { ! pid_of "$1" >/dev/null; }

# -- waiting --------------------------------------------------------------------------------------------------------

# wait_for SECONDS WHAT COMMAND…: until COMMAND succeeds; dies after SECONDS.
wait_for() {
    local seconds=$1 what=$2 deadline=$((SECONDS + $1))
    shift 2
    # In a subshell, so that a trap that strikes meanwhile can still speak.
    until ("$@") >/dev/null 2>&1; do
        ((SECONDS < deadline)) || die "waited $seconds s in vain for $what"
        sleep 0.1
    done
}

# -- reaching in ----------------------------------------------------------------------------------------------------

# in_network NAME COMMAND…: runs COMMAND in the network of the control plane ("control") or of "nodeN".
in_network() { nsenter --net="$CLUSTER/net/$1" "${@:2}"; }
# Two minutes at most, whatever state the API server is in.
kubectl() { in_network control timeout --foreground 120 "$KUBERNETES_DIR/bin/kubectl" --kubeconfig="$PKI/admin.conf" "$@"; }

owner() { tail -n 1 "$CLUSTER/owner" 2>/dev/null || say "being started"; }
need_cluster() { [[ -d $CLUSTER ]] || die "no cluster is up: make cluster"; }
need_root() { ((EUID == 0)) || die "this makes namespaces and mounts: run it as root"; }
