//! `coppice standalone`: the whole of CSI on one socket, over an engine in this process, without Kubernetes.
//!
//! The run directory belongs to one process at a time (a lock file says so). It holds the admin socket, the attach records
//! and the mount points of exports. A predecessor that was killed left dead mounts and devices: they are removed before
//! anything is served.

use crate::http;
use crate::quiesce::NodeQuiesce;
use crate::remote::{Remote, RemoteArgs, Servers};
use crate::serving::{self, RunDir, Serving, Signals, check_node_name};
use anyhow::{Context, Result, bail};
use clap::Args;
use coppice_controller::csi::{ControllerService, IdentityService};
use coppice_controller::local::LocalBackend;
use coppice_controller::volume::Volumes;
use coppice_engine::external::Access;
use coppice_engine::{Engine, OpenStore, Stores};
use coppice_node::Absent;
use coppice_node::admin::AdminService;
use coppice_node::csi::NodeService;
use coppice_node::metrics::StoreMetrics;
use coppice_node::staging::Node;
use coppice_proto::csi::v1::controller_server::ControllerServer;
use coppice_proto::csi::v1::identity_server::IdentityServer;
use coppice_proto::csi::v1::node_server::NodeServer;
use coppice_proto::unix;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::task::JoinHandle;
use tracing::info;

/// Where the admin socket and the attach records are, unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/coppice";
#[derive(Args, Clone, Debug)]
pub struct StandaloneArgs {
    /// A lvstore to serve: a file or block device. May be given several times
    #[arg(long = "lvstore", value_name = "FILE|DEV", required = true)]
    pub lvstores: Vec<PathBuf>,
    /// The unix socket of CSI, as unix:///path/to/csi.sock
    #[arg(long, env = "CSI_ENDPOINT", value_name = "unix://PATH")]
    pub endpoint: String,
    /// Admin socket and attach records; one process at a time
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
    pub run_dir: PathBuf,
    /// Name of this node, reported to the orchestrator. Default: the host's name
    #[arg(long, value_name = "NAME")]
    pub node_id: Option<String>,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// Data threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub shards: usize,
    /// Advertise what is alpha in CSI 1.13
    #[arg(long)]
    pub alpha_capabilities: bool,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

/// A standalone server that runs.
pub struct Server {
    engine: Engine,
    stores: Stores,
    node: Arc<Node>,
    serving: Serving,
    served: Servers,
    releasing: JoinHandle<()>,
    // Dropped last: the run directory is ours until then.
    _run_dir: RunDir,
}

/// What `Server::start` needs.
pub struct Config {
    pub lvstores: Vec<PathBuf>,
    pub endpoint: PathBuf,
    pub run_dir: PathBuf,
    pub node_id: String,
    pub shards: usize,
    pub alpha: bool,
    pub remote: RemoteArgs,
}

pub async fn run(args: StandaloneArgs) -> Result<()> {
    let signals = Signals::new()?;
    let config = Config {
        endpoint: unix::parse_endpoint(&args.endpoint).map_err(anyhow::Error::msg)?,
        node_id: match args.node_id {
            Some(name) => name,
            None => host_name()?,
        },
        lvstores: args.lvstores,
        run_dir: args.run_dir,
        shards: args.shards,
        alpha: args.alpha_capabilities,
        remote: args.remote,
    };
    let name = config.node_id.clone();
    let mut server = Server::start(config).await?;
    let metrics = Arc::new(StoreMetrics::new(server.stores.clone(), name));
    let timings = server.serving.timings.clone();
    let metrics = move || serving::exposition("standalone", metrics.clone(), Vec::new(), timings.clone());
    let http = async {
        match args.http {
            Some(at) => http::serve(at, || true, metrics).await,
            None => std::future::pending().await,
        }
    };
    let ended = tokio::select! {
        ended = server.serving.until_stopped(signals) => ended,
        ended = http => ended,
    };
    server.drain().await;
    serving::report_in_use(&server.close().await?);
    ended
}

fn host_name() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    Ok(std::fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_string())
}

impl Server {
    pub async fn start(config: Config) -> Result<Server> {
        check_node_name(&config.node_id, "--node-id")?;
        if config.shards == 0 {
            bail!("--shards 0: at least one data thread is needed");
        }
        let remote = Remote::new(config.remote).await?;
        let run_dir = RunDir::take(&config.run_dir)?;
        let engine = serving::start_engine(config.shards)?;
        let stores = Stores::default();
        let shard = engine.shards().first().context("an engine without data threads")?.clone();
        open_all(&engine, &config.lvstores, &stores, &remote.access(&stores, shard)).await?;
        let node = Arc::new(Node::new(stores.clone(), Absent::default(), run_dir.path())?);
        node.recover().await.context("clean up after a killed predecessor")?;
        let quiesce = Arc::new(NodeQuiesce(node.clone()));
        let backend = LocalBackend::new(stores.clone(), config.node_id.clone(), quiesce);
        let volumes = Arc::new(Volumes::new(Arc::new(backend)));
        volumes.recover().await.context("finish what a killed predecessor left")?;

        let mut serving = Serving::new();
        let calls = serving.calls.clone();
        let csi = serving
            .grpc()
            .add_service(IdentityServer::new(IdentityService { alpha: config.alpha }))
            .add_service(ControllerServer::new(ControllerService::new(volumes, calls.clone(), config.alpha)))
            .add_service(NodeServer::new(NodeService::new(node.clone(), calls, config.node_id)));
        let served = remote.serve(&stores, run_dir.path())?;
        let mut admin = AdminService::new(stores.clone(), node.exports_dir().to_path_buf());
        if let Some(others) = &served.others {
            admin = admin.serving(others.clone());
        }
        let releasing = tokio::spawn(admin.near().clone().release(stores.clone()));
        let admin = admin.into_server();
        let admin_path = run_dir.path().join("admin.sock");
        serving.serve(csi, &config.endpoint)?;
        serving.serve(serving.grpc().add_service(admin), &admin_path)?;
        for store in stores.all().iter() {
            info!(lvstore = store.name(), path = %store.path().display(), "open");
        }
        tokio::spawn(node.clone().heal());
        info!(endpoint = %config.endpoint.display(), admin = %admin_path.display(), "serving");
        Ok(Server { engine, stores, node, serving, served, releasing, _run_dir: run_dir })
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub fn stores(&self) -> &Stores {
        &self.stores
    }

    /// Serves nothing new and waits for the calls that run.
    pub async fn drain(&mut self) {
        self.serving.drain().await;
    }

    /// The end of a drained server, as [`serving::close`] has it.
    pub async fn close(self) -> Result<Vec<String>> {
        self.releasing.abort();
        self.served.stop().await;
        let in_use = serving::close(&self.engine, &self.stores, &self.node).await?;
        self.serving.remove_sockets();
        Ok(in_use)
    }
}

/// They are added as they come: one may have what another reads.
async fn open_all(engine: &Engine, paths: &[PathBuf], stores: &Stores, external: &Access) -> Result<()> {
    for path in paths {
        let how = OpenStore { external: external.clone(), ..OpenStore::default() };
        let store = engine.open_store(path, how).await.with_context(|| format!("open {}", path.display()))?;
        let all = stores.all();
        if let Some(twin) = all.iter().find(|other| other.name() == store.name() || other.uuid() == store.uuid()) {
            let (a, b, name) = (twin.path(), store.path(), store.name());
            bail!("{} and {} are both the lvstore {name}: names must differ", a.display(), b.display());
        }
        stores.add(store);
    }
    Ok(())
}
