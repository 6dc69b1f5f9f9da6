//! The way to the stores: a running process through its admin socket, or, with `--image`, an engine in this process
//! behind the same API. The commands cannot tell the two apart.
//!
//! A store that was opened here is closed whatever the command answers, also after Ctrl-C; a close that fails is an error.

use crate::args::Global;
use anyhow::{Context, Result, anyhow, bail};
use coppice_engine::{Engine, EngineConfig, ErrorKind, LvolInfo, OpenStore, Store, StoreInfo, Stores, external};
use coppice_node::admin::{AdminService, client, serve_in_memory};
use coppice_node::remote::Parents;
use coppice_proto::admin::v1;
use coppice_proto::admin::v1::admin_client::AdminClient;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;
use tonic::transport::Channel;

pub type Client = AdminClient<Channel>;

/// What a command does to an image. A command that only looks leaves every byte as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Look,
    Change,
}

/// An interrupted operation lets go of the store within this time.
const CLOSE_TRIES_MAX: usize = 100;
const CLOSE_RETRY: Duration = Duration::from_millis(100);

/// Runs a command's work on the store or stores that the global options name.
pub async fn with<T>(global: &Global, access: Access, work: impl AsyncFnOnce(&mut Client) -> Result<T>) -> Result<T> {
    match &global.image {
        Some(image) => offline(global, image, access, work).await,
        None => {
            let mut client = online(&global.run_dir).await?;
            until_interrupted(work(&mut client)).await
        }
    }
}

async fn online(run_dir: &Path) -> Result<Client> {
    let socket = run_dir.join("admin.sock");
    // Tried by hand first: what the system says is clearer than what a transport makes of it.
    if let Err(e) = UnixStream::connect(&socket) {
        match e.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => bail!(
                "no coppice process answers at {}; start one (coppice standalone --lvstore FILE|DEV), name its directory \
                 with --run-dir, or work on a closed lvstore with --image FILE|DEV",
                socket.display()
            ),
            io::ErrorKind::PermissionDenied => bail!("{} is not yours to use: run this as root", socket.display()),
            _ => return Err(e).with_context(|| format!("cannot connect to {}", socket.display())),
        }
    }
    let channel = coppice_proto::unix::connect(&socket).await;
    Ok(client(channel.with_context(|| format!("cannot connect to {}", socket.display()))?))
}

async fn offline<T>(
    global: &Global,
    image: &Path,
    access: Access,
    work: impl AsyncFnOnce(&mut Client) -> Result<T>,
) -> Result<T> {
    let engine = Engine::start(EngineConfig::default())?;
    let done = on_image(&engine, global, image, access, work).await;
    engine.shutdown().await;
    done
}

async fn on_image<T>(
    engine: &Engine,
    global: &Global,
    image: &Path,
    access: Access,
    work: impl AsyncFnOnce(&mut Client) -> Result<T>,
) -> Result<T> {
    let files = global.external.iter().cloned().collect();
    let shard = engine.shards().first().context("an engine without data threads")?.clone();
    let parents = Parents::new(Stores::default(), shard, files, None, tokio::runtime::Handle::current());
    let external = external::Access {
        resolver: Some(Arc::new(parents)),
        // Nobody else comes along.
        patience: Duration::ZERO,
        ..external::Access::default()
    };
    let store = engine.open_store(image, OpenStore { read_only: access == Access::Look, external }).await?;
    // Exports need a process that stays, so there is no place for them.
    let service = AdminService::new(vec![store.clone()].into(), PathBuf::new());
    let done = match serve_in_memory(service).await {
        Ok(mut client) => until_interrupted(work(&mut client)).await,
        Err(e) => Err(e.into()),
    };
    match (done, close(&store).await) {
        (done, Ok(())) => done,
        (Ok(_), Err(e)) => Err(anyhow!("the work was done, but the lvstore could not be closed: {e}")),
        (Err(first), Err(e)) => Err(anyhow!("{first:#}; and the lvstore could not be closed: {e}")),
    }
}

async fn close(store: &Store) -> coppice_engine::Result<()> {
    for _ in 0..CLOSE_TRIES_MAX {
        match store.close().await {
            // Work that was cancelled is still on its way out.
            Err(e) if e.kind() == ErrorKind::Busy => tokio::time::sleep(CLOSE_RETRY).await,
            done => return done,
        }
    }
    store.close().await
}

/// Dropping the work closes its streams, which cancels what runs at the other end.
async fn until_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        caught = tokio::signal::ctrl_c() => {
            caught.context("cannot wait for an interrupt")?;
            bail!("interrupted")
        }
    }
}

/// What the service answered, as a sentence for a person.
pub fn refused(status: Status) -> anyhow::Error {
    if let Some(cause) = std::error::Error::source(&status) {
        return anyhow!("the coppice process does not answer any more ({cause}); look at its log");
    }
    match status.message() {
        "" => anyhow!("{}", status.code()),
        message => anyhow!("{message}"),
    }
}

pub fn lvol(lvol: v1::Lvol) -> Result<LvolInfo> {
    Ok(LvolInfo::try_from(lvol)?)
}

pub fn store(store: v1::Store) -> Result<StoreInfo> {
    Ok(StoreInfo::try_from(store)?)
}

pub async fn stores(client: &mut Client) -> Result<Vec<StoreInfo>> {
    let answer = client.list_stores(v1::ListStoresRequest {}).await.map_err(refused)?;
    answer.into_inner().stores.into_iter().map(store).collect()
}

/// Lvols in order of creation; those of one store, or of all (`name` empty).
pub async fn lvols(client: &mut Client, name: &str, hidden: bool) -> Result<Vec<LvolInfo>> {
    let request = v1::ListLvolsRequest { store: name.to_string(), hidden };
    let answer = client.list_lvols(request).await.map_err(refused)?;
    answer.into_inner().lvols.into_iter().map(lvol).collect()
}
