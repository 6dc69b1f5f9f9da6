//! `coppice standalone`: the whole of CSI on one socket, over an engine in this process, without Kubernetes.
//!
//! The run directory belongs to one process at a time (a lock file says so). It holds the admin socket, the attach records
//! and the mount points of exports. A predecessor that was killed left dead mounts and devices: they are removed before
//! anything is served.

use crate::guard::Guard;
use crate::quiesce::NodeQuiesce;
use anyhow::{Context, Result, bail};
use clap::Args;
use coppice_controller::csi::{ControllerService, IdentityService};
use coppice_controller::local::LocalBackend;
use coppice_controller::volume::Volumes;
use coppice_engine::{Engine, EngineConfig, ErrorKind, OpenStore, Store};
use coppice_node::admin::AdminService;
use coppice_node::csi::NodeService;
use coppice_node::staging::Node;
use coppice_proto::calls::Calls;
use coppice_proto::csi::v1::controller_server::ControllerServer;
use coppice_proto::csi::v1::identity_server::IdentityServer;
use coppice_proto::csi::v1::node_server::NodeServer;
use coppice_proto::unix;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server as Grpc;
use tracing::{info, warn};

/// Where the admin socket and the attach records are, unless told otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/coppice";
/// How long a store that another process still holds is waited for: a killed predecessor's last I/O.
const LOCK_SECONDS_MAX: u64 = 10;
/// How long a killed predecessor's guard is waited for.
const RUN_DIR_SECONDS_MAX: u64 = 5;
/// How long calls that are running may take to end.
const DRAIN_SECONDS_MAX: u64 = 30;

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
    /// Data threads
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub shards: usize,
    /// Advertise what is alpha in CSI 1.13
    #[arg(long)]
    pub alpha_capabilities: bool,
}

/// A standalone server that runs.
pub struct Server {
    engine: Engine,
    stores: Arc<[Store]>,
    node: Arc<Node>,
    calls: Calls,
    stop: watch::Sender<bool>,
    serving: JoinSet<Result<()>>,
    sockets: [PathBuf; 2],
    // Dropped before the lock.
    _guard: Guard,
    // Held until the end: the run directory is ours.
    _lock: File,
}

/// What `Server::start` needs.
pub struct Config {
    pub lvstores: Vec<PathBuf>,
    pub endpoint: PathBuf,
    pub run_dir: PathBuf,
    pub node_id: String,
    pub shards: usize,
    pub alpha: bool,
}

pub async fn run(args: StandaloneArgs) -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
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
    };
    let mut server = Server::start(config).await?;
    tokio::select! {
        _ = interrupt.recv() => info!("interrupted"),
        _ = terminate.recv() => info!("terminated"),
        ended = server.serving.join_next() => match ended {
            Some(Ok(Err(e))) => warn!("a socket is not served any more: {e:#}"),
            _ => warn!("a socket is not served any more"),
        },
    }
    server.drain().await;
    let in_use = server.close().await?;
    if !in_use.is_empty() {
        warn!("left in use, and without a server now: {}", in_use.join(", "));
    }
    Ok(())
}

fn host_name() -> Result<String> {
    let path = "/proc/sys/kernel/hostname";
    Ok(std::fs::read_to_string(path).with_context(|| format!("read {path}"))?.trim().to_string())
}

impl Server {
    pub async fn start(config: Config) -> Result<Server> {
        check_node_id(&config.node_id)?;
        if config.shards == 0 {
            bail!("--shards 0: at least one data thread is needed");
        }
        let lock = take_run_dir(&config.run_dir)?;
        let run_dir = config.run_dir.canonicalize().with_context(|| config.run_dir.display().to_string())?;
        let guard = Guard::start(&lock, &run_dir.join("exports"))?;
        let engine = Engine::start(EngineConfig { shards: config.shards, ..EngineConfig::default() })?;
        let stores = open_all(&engine, &config.lvstores).await?;
        let node = Arc::new(Node::new(stores.clone(), &run_dir)?);
        node.recover().await.context("clean up after a killed predecessor")?;
        let quiesce = Arc::new(NodeQuiesce(node.clone()));
        let backend = LocalBackend::new(stores.clone(), config.node_id.clone(), quiesce);
        let volumes = Arc::new(Volumes::new(Arc::new(backend)));
        volumes.recover().await.context("finish what a killed predecessor left")?;

        let calls = Calls::default();
        let (stop, stopped) = watch::channel(false);
        let mut serving = JoinSet::new();
        let csi = Grpc::builder()
            .add_service(IdentityServer::new(IdentityService { alpha: config.alpha }))
            .add_service(ControllerServer::new(ControllerService::new(volumes, calls.clone(), config.alpha)))
            .add_service(NodeServer::new(NodeService::new(node.clone(), calls.clone(), config.node_id)));
        let admin_path = run_dir.join("admin.sock");
        let admin = AdminService::new(stores.clone(), node.exports_dir().to_path_buf()).into_server();
        let admin = Grpc::builder().add_service(admin);
        for (router, path) in [(csi, &config.endpoint), (admin, &admin_path)] {
            let listener = unix::listen(path).with_context(|| format!("listen on {}", path.display()))?;
            let mut stopped = stopped.clone();
            serving.spawn(async move {
                let until = async move {
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                };
                Ok(router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await?)
            });
        }
        for store in stores.iter() {
            info!(lvstore = store.name(), path = %store.path().display(), "open");
        }
        info!(endpoint = %config.endpoint.display(), admin = %admin_path.display(), "serving");
        Ok(Server {
            engine,
            stores,
            node,
            calls,
            stop,
            serving,
            sockets: [config.endpoint, admin_path],
            _guard: guard,
            _lock: lock,
        })
    }

    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub fn stores(&self) -> &Arc<[Store]> {
        &self.stores
    }

    /// Serves nothing new and waits for the calls that run.
    pub async fn drain(&mut self) {
        let _ = self.stop.send(true);
        let limit = Duration::from_secs(DRAIN_SECONDS_MAX);
        let drained = tokio::time::timeout(limit, async { while self.serving.join_next().await.is_some() {} });
        if drained.await.is_err() || !self.calls.finish(limit).await {
            warn!("calls are still running after {DRAIN_SECONDS_MAX} s: cut off");
            self.serving.abort_all();
        }
    }

    /// The end of a drained server. Volumes in use stay mounted, written out, and are named in the answer; their store is
    /// left as a crash would leave it. All else is closed clean.
    pub async fn close(self) -> Result<Vec<String>> {
        let in_use = self.node.stop_unused().await?;
        let mut all_closed = true;
        for store in self.stores.iter() {
            if !store.exports().is_empty() {
                for export in store.exports() {
                    store.flush(export.lvol()).await?;
                }
                all_closed = false;
                continue;
            }
            store.close().await.with_context(|| format!("close the lvstore {}", store.name()))?;
            info!(lvstore = store.name(), "closed");
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
        if all_closed {
            self.engine.shutdown().await;
        }
        Ok(in_use)
    }
}

/// Kubernetes' topology values and CSI's limits allow no more.
fn check_node_id(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends =
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if name.len() > 63 || !ends || !name.chars().all(plain) {
        bail!("--node-id {name:?}: up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends");
    }
    Ok(())
}

/// Makes the run directory and locks it.
fn take_run_dir(dir: &Path) -> Result<File> {
    unix::private_dir(dir).with_context(|| format!("make {}", dir.display()))?;
    let mode = std::fs::metadata(dir).with_context(|| dir.display().to_string())?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let dir = dir.display();
        bail!(
            "--run-dir {dir} has the mode {mode:04o}: others must not look into it; use a directory of its own, or chmod 700 {dir}"
        );
    }
    let path = dir.join("lock");
    let mut options = OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.with_context(|| format!("open {}", path.display()))?;
    let deadline = Instant::now() + Duration::from_secs(RUN_DIR_SECONDS_MAX);
    loop {
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another coppice runs with --run-dir {}: stop it, or use another directory", dir.display())
            }
            Err(e) => return Err(e).with_context(|| format!("lock {}", path.display())),
        }
    }
}

async fn open_all(engine: &Engine, paths: &[PathBuf]) -> Result<Arc<[Store]>> {
    let mut stores: Vec<Store> = Vec::new();
    for path in paths {
        let store = open_patiently(engine, path).await.with_context(|| format!("open {}", path.display()))?;
        if let Some(twin) = stores.iter().find(|other| other.name() == store.name() || other.uuid() == store.uuid()) {
            let (a, b, name) = (twin.path(), store.path(), store.name());
            bail!("{} and {} are both the lvstore {name}: names must differ", a.display(), b.display());
        }
        stores.push(store);
    }
    Ok(stores.into())
}

async fn open_patiently(engine: &Engine, path: &Path) -> coppice_engine::Result<Store> {
    let deadline = Instant::now() + Duration::from_secs(LOCK_SECONDS_MAX);
    loop {
        match engine.open_store(path, OpenStore::default()).await {
            Err(e) if e.kind() == ErrorKind::Locked && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        for good in ["a", "node-1.example.org", &"x".repeat(63)] {
            assert!(check_node_id(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a/b", &"x".repeat(64)] {
            assert!(check_node_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_run_dir_has_one_owner_and_no_onlookers() -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir()?;
        let run = dir.path().join("a/run");
        let first = take_run_dir(&run)?;
        let second = take_run_dir(&run).map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(second.contains("another coppice runs"), "{second}");
        drop(first);
        take_run_dir(&run)?;
        std::fs::set_permissions(&run, std::fs::Permissions::from_mode(0o755))?;
        assert!(take_run_dir(&run).is_err());
        Ok(())
    }
}
