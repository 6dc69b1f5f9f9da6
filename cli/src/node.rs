//! `coppice node`: the agent of one node of a Kubernetes cluster, and CSI's Node service for its kubelet.
//!
//! Order of the start: the run directory is ours; what a killed predecessor left is removed; health is served; the agent
//! tries every lvstore of the node, though it does not wait for ever for one that hangs; only then CSI is served, and kubelet
//! told. Nothing of this needs the API server: without it the stores are opened that were open before.
//!
//! At the end nothing new begins, what is mounted is written out and stays, and stores that nobody uses are closed clean.

use crate::http;
use crate::quiesce::NodeQuiesce;
use crate::serving::{self, RunDir, Serving, Signals, check_node_name};
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use coppice_controller::csi::IdentityService;
use coppice_engine::Stores;
use coppice_engine::external::PARENT_PATIENCE;
use coppice_node::Absent;
use coppice_node::admin::AdminService;
use coppice_node::agent::{self, Agent, Export, Timing};
use coppice_node::csi::NodeService;
use coppice_node::metrics::StoreMetrics;
use coppice_node::registration::Registrar;
use coppice_node::staging::Node;
use coppice_proto::capability::DRIVER_NAME;
use coppice_proto::csi::v1::identity_server::IdentityServer;
use coppice_proto::csi::v1::node_server::NodeServer;
use coppice_proto::unix;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{info, warn};

/// How long the agent may take to end what it began.
const AGENT_SECONDS_MAX: u64 = 20;
/// How long nothing may need a pinned snapshot until its pin goes: an API server that was restored from a backup says what was,
/// until the agents have corrected it.
const UNPIN_SECONDS: u64 = 30;

#[derive(Args, Clone, Debug)]
pub struct NodeArgs {
    /// Name of this node's Node object
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,
    /// The unix socket of CSI, as unix:///path/to/csi.sock, by the path that kubelet sees
    #[arg(long, env = "CSI_ENDPOINT", value_name = "unix://PATH")]
    pub endpoint: String,
    /// kubelet's own directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// Admin socket and attach records; one process at a time
    #[arg(long, value_name = "DIR", default_value = crate::standalone::DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Where lvstores lie that are files, and a note of those that are open
    #[arg(long, value_name = "DIR", default_value = "/var/lib/coppice")]
    pub file_dir: PathBuf,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9808")]
    pub http: SocketAddr,
    /// Address of this pod, at which other nodes read the snapshots of this one; without it none are read across nodes
    #[arg(long, env = "POD_IP", value_name = "IP")]
    pub export_ip: Option<IpAddr>,
    #[arg(long, value_name = "PORT", default_value_t = 10809)]
    pub export_port: u16,
    /// Namespace of this pod, where the certificates of the export's authority are
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME", default_value = "coppice")]
    pub pod_namespace: String,
    /// How long a read waits for a node that is away, until it fails
    #[arg(long, value_name = "SECONDS", default_value_t = PARENT_PATIENCE.as_secs())]
    pub parent_timeout: u64,
    /// Most bytes per second that are copied from other nodes into one lvstore; default: as many as possible
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub hydration_rate: Option<u64>,
    /// Data threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub shards: usize,
}

pub async fn run(args: NodeArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    check_node_name(&args.node_name, "--node-name")?;
    if args.shards == 0 {
        bail!("--shards 0: at least one data thread is needed");
    }
    let endpoint = unix::parse_endpoint(&args.endpoint).map_err(anyhow::Error::msg)?;
    let run_dir = RunDir::take(&args.run_dir)?;
    let stores = Stores::default();
    let absent = Absent::default();
    let node = Arc::new(Node::new(stores.clone(), absent.clone(), run_dir.path())?);
    node.recover().await.context("clean up after a killed predecessor")?;
    let engine = serving::start_engine(args.shards);
    if let Err(e) = &engine {
        warn!("the engine does not start: {e}");
    }
    let agent = Agent::new(agent::Config {
        client: kube::Client::try_default().await.context("find the API server")?,
        node: args.node_name.clone(),
        engine: engine.clone().map_err(|e| unfit(&e)),
        stores: stores.clone(),
        absent,
        quiesce: Arc::new(NodeQuiesce(node.clone())),
        file_dir: args.file_dir,
        export: args.export_ip.map(|ip| Export {
            address: SocketAddr::new(ip, args.export_port),
            namespace: args.pod_namespace,
            unpin_after: Duration::from_secs(UNPIN_SECONDS),
            patience: Duration::from_secs(args.parent_timeout),
            hydration_bytes_per_second: args.hydration_rate,
        }),
        timing: Timing::default(),
    });

    let (registrar, registered) = Registrar::new(DRIVER_NAME, &endpoint);
    let ready = move || *registered.borrow();
    let mut serving = Serving::new();
    let metrics = Arc::new(StoreMetrics::new(stores.clone(), args.node_name.clone()));
    let (timings, of) = (serving.timings.clone(), agent.clone());
    let metrics = move || serving::exposition("node", metrics.clone(), of.wanted(), timings.clone());
    let mut http = tokio::spawn(http::serve(args.http, ready, metrics));
    let stop = watch::Sender::new(false);
    let mut working = tokio::spawn(agent.clone().run(stop.subscribe()));

    let ended = tokio::select! {
        () = agent.tried() => {
            let csi = serving.grpc()
                .add_service(IdentityServer::new(IdentityService { alpha: false }))
                .add_service(NodeServer::new(NodeService::new(node.clone(), serving.calls.clone(), args.node_name)));
            let admin = AdminService::new(stores.clone(), node.exports_dir().to_path_buf());
            // Of clones that were made by hand.
            tokio::spawn(admin.near().clone().release(stores.clone()));
            serving.serve(csi, &endpoint)?;
            serving.serve(serving.grpc().add_service(admin.into_server()), &run_dir.path().join("admin.sock"))?;
            serving.serve(serving.grpc().add_service(registrar), &Registrar::socket(&args.kubelet_dir, DRIVER_NAME))?;
            tokio::spawn(node.clone().heal());
            info!(endpoint = %endpoint.display(), "serving");
            tokio::select! {
                ended = serving.until_stopped(signals) => ended,
                _ = &mut working => Err(anyhow!("the agent ended")),
                ended = &mut http => ended.map_err(Into::into).flatten(),
            }
        }
        () = signals.any() => Ok(()),
        ended = &mut http => ended.map_err(Into::into).flatten(),
    };
    serving.drain().await;
    let _ = stop.send(true);
    let limit = Duration::from_secs(AGENT_SECONDS_MAX);
    if !working.is_finished() && tokio::time::timeout(limit, &mut working).await.is_err() {
        working.abort();
    }
    // Before the stores: to others this node is away from here on, not broken.
    agent.stop_serving().await;
    if let Ok(engine) = &engine {
        serving::report_in_use(&serving::close(engine, &stores, &node).await?);
    }
    serving.remove_sockets();
    ended
}

/// Why there is no engine, with advice.
fn unfit(error: &coppice_engine::Error) -> String {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    match sysctl.trim() {
        "1" | "2" => format!("{error}; io_uring is disabled: set the sysctl kernel.io_uring_disabled to 0"),
        _ => format!("{error}; io_uring is needed: a kernel that has it, and no seccomp profile that forbids it"),
    }
}
