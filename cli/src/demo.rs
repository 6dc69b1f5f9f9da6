//! `coppice demo`: the whole life of a volume on this machine, narrated.
//!
//! Everything goes through the real CSI interface of a standalone server, over its socket, on a lvstore in a temporary file.
//! Whatever happens (an error, Ctrl-C, SIGTERM) the end is the same: volumes unmounted, devices gone, files removed.

mod steps;

use crate::standalone::{Config, Server};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use coppice_engine::{CreateStore, Engine, EngineConfig};
use coppice_node::host::mount::{self, IfBusy};
use coppice_node::host::mountinfo;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The demo's lvstore: a sparse file, of which little is ever written.
const STORE_BYTES: u64 = 4 << 30;
/// How long a mount may stay in use after the demo was interrupted.
const BUSY_SECONDS_MAX: u64 = 15;
/// What a shell reports of a program that Ctrl-C ended.
const INTERRUPTED: i32 = 130;

#[derive(Args, Clone, Debug)]
pub struct DemoArgs {}

pub async fn run(_: DemoArgs) -> Result<()> {
    let mut signals = Signals::catch()?;
    let dir = tempfile::Builder::new().prefix("coppice-demo-").tempdir().context("make a temporary directory")?;
    // Mounts are known by their real paths.
    let base = dir.path().canonicalize()?;
    let outcome = narrate(&base, &mut signals).await;
    let cleaned = sweep(&base).await;
    let removed = dir.close().with_context(|| format!("remove {}", base.display()));
    let interrupted = outcome?;
    cleaned?;
    removed?;
    if interrupted {
        println!("\nInterrupted; everything is cleaned up.");
        std::process::exit(INTERRUPTED);
    }
    println!("\nNothing is left: no mount, no device, no file.");
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn catch() -> Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// True if it was interrupted. The server is stopped in any case.
async fn narrate(base: &Path, signals: &mut Signals) -> Result<bool> {
    let store = base.join("drive.img");
    make_store(&store).await.context("make the lvstore")?;
    println!("A lvstore in a file of {} GiB, and `coppice standalone` serving CSI on it.", STORE_BYTES >> 30);
    let config = Config {
        lvstores: vec![store],
        endpoint: base.join("csi.sock"),
        run_dir: base.join("run"),
        node_id: "this-machine".into(),
        shards: 2,
        alpha: false,
        remote: Default::default(),
    };
    let mut server = Server::start(config).await.context("start the server")?;
    let life = tokio::select! {
        done = steps::run(base, &server) => done.map(|()| false),
        () = signals.any() => Ok(true),
    };
    // A call that was interrupted runs to its end in the server: only then is it known what there is to undo.
    server.drain().await;
    let undone = undo(&server, base).await;
    let stopped = server.close().await.context("stop the server");
    let interrupted = life?;
    undone?;
    let in_use = stopped?;
    match in_use.is_empty() {
        true => Ok(interrupted),
        false => Err(anyhow!("still in use at the end: {}", in_use.join(", "))),
    }
}

async fn make_store(path: &Path) -> Result<()> {
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let how = CreateStore {
        file_size: Some(STORE_BYTES),
        name: "drive".into(),
        cluster_size: None,
        max_size: None,
        block_size: None,
        force: false,
        owner: None,
    };
    let made = engine.create_store(path, how).await;
    engine.shutdown().await;
    made?;
    Ok(())
}

/// Unpublishes and unstages whatever the steps left, as an orchestrator would.
async fn undo(server: &Server, base: &Path) -> Result<()> {
    let (pods, staged) = (base.join(steps::PODS), base.join(steps::STAGING));
    for target in below(&pods) {
        if let Some(id) = target.file_name().and_then(|name| name.to_str()) {
            patiently(async || server.node().unpublish(id, &target).await).await?;
        }
    }
    for staging in below(&staged) {
        if let Some(id) = staging.file_name().and_then(|name| name.to_str()) {
            patiently(async || server.node().unstage(id, &staging).await).await?;
        }
    }
    // A volume that was exported but not mounted yet has no staging path.
    for store in server.stores().all().iter() {
        for export in store.exports() {
            let id = export.lvol().to_string();
            server.node().unstage(&id, &staged.join(&id)).await?;
        }
    }
    Ok(())
}

/// What the demo itself was doing with a file when it was interrupted ends soon, and with it the use of the mount.
async fn patiently(undo: impl AsyncFn() -> coppice_node::Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        match undo().await {
            Err(coppice_node::Error::Precondition(_)) if began.elapsed() < Duration::from_secs(BUSY_SECONDS_MAX) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return Ok(done?),
        }
    }
}

fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// The last resort: whatever is still mounted below the demo's directory, and its devices.
async fn sweep(base: &Path) -> Result<()> {
    let exports = base.join("run/exports");
    let mut mounts = mountinfo::read()?;
    mounts.reverse();
    for there in mounts.iter().filter(|m| m.target.starts_with(base) && !m.target.starts_with(&exports)) {
        mount::unmount(&there.target, IfBusy::Detach).await?;
    }
    if exports.exists() {
        coppice_engine::remove_dead_exports(&exports, &[], &[])?;
    }
    Ok(())
}
