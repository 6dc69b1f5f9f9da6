//! The server against real clients and against peers that say what no client would. Needs nbdinfo, nbdcopy, qemu-img and fio
//! (`scripts/setup.sh test`).

mod clients;
mod disk;
mod limits;
mod negotiation;
#[path = "../pki/mod.rs"]
mod pki;
mod raw;
mod tls;
mod transmission;

use anyhow::{Context, Result};
use coppice_nbd::server::{Exports, Limits, Listener, Server};
use coppice_nbd::tls::Certificates;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::{TcpListener, UnixListener};
use tokio::time::timeout;

/// The longest that a test may take.
const TEST_MAX: Duration = Duration::from_secs(50);

/// Runs a test on two threads, within its time.
pub fn run(test: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let done = runtime.block_on(async { timeout(TEST_MAX, test).await });
    runtime.shutdown_timeout(Duration::from_secs(5));
    done.context("the test took too long")?
}

/// A server on a unix socket.
pub struct Local {
    pub server: Server,
    pub socket: PathBuf,
    _folder: TempDir,
}

impl Local {
    pub fn start(exports: impl Exports) -> Result<Self> {
        Self::with(exports, Limits::default())
    }

    pub fn with(exports: impl Exports, limits: Limits) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = folder.path().join("nbd.sock");
        let listener = Listener::Unix(UnixListener::bind(&socket)?);
        let server = Server::start(listener, Arc::new(exports), limits)?;
        Ok(Self { server, socket, _folder: folder })
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }
}

/// A server on a TCP port of this machine.
pub async fn serve_tls(
    exports: Arc<dyn Exports>,
    certificates: Certificates,
    limits: Limits,
) -> Result<(Server, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    Ok((Server::start(Listener::Tcp { listener, certificates }, exports, limits)?, address))
}

/// Waits until it holds.
pub async fn until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(raw::PATIENCE, wait).await.with_context(|| format!("never: {what}"))
}
