//! What every role that serves sockets has in common: its run directory, its servers, and their end.

use crate::guard::Guard;
use anyhow::{Context, Result, bail};
use coppice_engine::{Engine, EngineConfig, Store, Stores};
use coppice_node::metrics::{StoreMetrics, Wanted};
use coppice_node::staging::Node;
use coppice_proto::calls::Calls;
use coppice_proto::exposition::Exposition;
use coppice_proto::timings::Timings;
use coppice_proto::unix;
use futures_util::future::join_all;
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
use tonic::transport::server::Router;
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

/// How long a store that another process still holds is waited for: a killed predecessor's last I/O.
const LOCK_SECONDS_MAX: u64 = 8;
/// How long a store may take to close.
const CLOSE_SECONDS_MAX: u64 = 20;
/// How long a killed predecessor's guard is waited for.
const RUN_DIR_SECONDS_MAX: u64 = 5;
/// How long calls that are running may take to end; a pod has 30 s by default, for all that it does.
const DRAIN_SECONDS_MAX: u64 = 20;

/// An engine that waits for what a killed predecessor still holds.
pub fn start_engine(shards: usize) -> coppice_engine::Result<Engine> {
    let patience = Duration::from_secs(LOCK_SECONDS_MAX);
    Engine::start(EngineConfig { shards, patience, ..EngineConfig::default() })
}

/// The run directory, which belongs to one process at a time.
pub struct RunDir {
    path: PathBuf,
    // Dropped before the lock.
    _guard: Guard,
    // Held until the end: the run directory is ours.
    _lock: File,
}

impl RunDir {
    /// Waits a moment for a killed predecessor.
    pub fn take(dir: &Path) -> Result<RunDir> {
        let lock = take_run_dir(dir)?;
        let path = dir.canonicalize().with_context(|| dir.display().to_string())?;
        let guard = Guard::start(&lock, &path.join("exports"))?;
        Ok(RunDir { path, _guard: guard, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What every gRPC server is wrapped in.
pub type Timed = Stack<Timings, Identity>;

/// Servers on unix sockets that end together.
pub struct Serving {
    pub calls: Calls,
    pub timings: Timings,
    stop: watch::Sender<bool>,
    servers: JoinSet<Result<()>>,
    sockets: Vec<PathBuf>,
}

impl Serving {
    pub fn new() -> Serving {
        Serving {
            calls: Calls::default(),
            timings: Timings::default(),
            stop: watch::Sender::new(false),
            servers: JoinSet::new(),
            sockets: Vec::new(),
        }
    }

    /// A server whose calls are timed.
    pub fn grpc(&self) -> Grpc<Timed> {
        Grpc::builder().layer(self.timings.clone())
    }

    pub fn serve(&mut self, router: Router<Timed>, path: &Path) -> Result<()> {
        let listener = unix::listen(path).with_context(|| format!("listen on {}", path.display()))?;
        let mut stopped = self.stop.subscribe();
        self.servers.spawn(async move {
            let until = async move {
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            Ok(router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await?)
        });
        self.sockets.push(path.to_path_buf());
        Ok(())
    }

    /// Waits until the process is asked to end. An error if one of the servers ends before.
    pub async fn until_stopped(&mut self, mut signals: Signals) -> Result<()> {
        tokio::select! {
            () = signals.any() => Ok(()),
            ended = self.servers.join_next(), if !self.servers.is_empty() => {
                match ended {
                    Some(Ok(ended)) => ended,
                    _ => Ok(()),
                }
                .and_then(|()| bail!("it ended by itself"))
                .context("a socket is not served any more")
            }
        }
    }

    /// Serves nothing new and waits for the calls that run.
    pub async fn drain(&mut self) {
        let _ = self.stop.send(true);
        let limit = Duration::from_secs(DRAIN_SECONDS_MAX);
        let (servers, calls) = (&mut self.servers, &self.calls);
        let drained = async {
            while servers.join_next().await.is_some() {}
            calls.finish(limit).await
        };
        if !tokio::time::timeout(limit, drained).await.unwrap_or(false) {
            warn!("calls are still running after {DRAIN_SECONDS_MAX} s: cut off; their retries find what they left");
            self.servers.abort_all();
        }
    }

    pub fn remove_sockets(&self) {
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

/// What Prometheus is told of a process that has lvstores.
pub async fn exposition(
    role: &'static str,
    stores: Arc<StoreMetrics>,
    wanted: Vec<Wanted>,
    timings: Timings,
) -> String {
    let mut out = Exposition::of(role);
    stores.expose(&mut out, &wanted).await;
    timings.expose(&mut out);
    out.finish()
}

/// What asks a process to end. Made before anything else, so that none is missed.
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    pub fn new() -> Result<Signals> {
        Ok(Signals { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    pub async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => info!("interrupted"),
            _ = self.terminate.recv() => info!("terminated"),
        }
    }
}

/// The end of what nobody is served from any more. Volumes in use stay mounted, written out, and are named in the answer;
/// their store is left as a crash would leave it. All else is closed clean.
pub async fn close(engine: &Engine, stores: &Stores, node: &Node) -> Result<Vec<String>> {
    let in_use = node.stop_unused().await?;
    let all = stores.all();
    let closed = join_all(all.iter().map(close_one)).await;
    // A store that is open is left as a crash would leave it.
    if closed.iter().all(|closed| matches!(closed, Ok(true))) {
        engine.shutdown().await;
    }
    closed.into_iter().collect::<Result<Vec<bool>>>()?;
    Ok(in_use)
}

/// False: it is in use, and what its volumes had is on the device.
async fn close_one(store: &Store) -> Result<bool> {
    let name = store.name();
    let work = async {
        let exports = store.exports();
        for export in &exports {
            store.flush(export.lvol()).await?;
        }
        if exports.is_empty() {
            store.close().await?;
            info!(lvstore = name, "closed");
        }
        Ok(exports.is_empty())
    };
    let limit = Duration::from_secs(CLOSE_SECONDS_MAX);
    let closed: coppice_engine::Result<bool> = match tokio::time::timeout(limit, work).await {
        Ok(closed) => closed,
        Err(_) => bail!("the device of the lvstore {name} has not answered for {CLOSE_SECONDS_MAX} s: left as it is"),
    };
    closed.with_context(|| format!("close the lvstore {name}"))
}

/// Says what is left in use by a process that ends.
pub fn report_in_use(in_use: &[String]) {
    if !in_use.is_empty() {
        warn!("left in use, and without a server now: {}", in_use.join(", "));
    }
}

/// Kubernetes' topology values and CSI's limits allow no more.
pub fn check_node_name(name: &str, option: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends =
        name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.ends_with(|c: char| c.is_ascii_alphanumeric());
    if name.len() > 63 || !ends || !name.chars().all(plain) {
        bail!("{option} {name:?}: up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends");
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names() {
        for good in ["a", "node-1.example.org", &"x".repeat(63)] {
            assert!(check_node_name(good, "--node-id").is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "a/b", &"x".repeat(64)] {
            assert!(check_node_name(bad, "--node-id").is_err(), "{bad}");
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
