//! A store that is closed and opened anew while its snapshots are read from outside: readers see an interruption, no error.

use super::{Exports, Parents};
use anyhow::{Context, Result, ensure};
use coppice_engine::external::{Access, Resolver};
use coppice_engine::{
    CreateExternalClone, CreateLvol, CreateSnapshot, CreateStore, Engine, EngineConfig, OpenStore, Store, Stores,
};
use coppice_nbd::client::{Address, Config, Endpoint, Error, Remote, State, fixed};
use coppice_nbd::server::{Exports as _, Identity, Limits, Listener, Peer, Server};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const ESHUTDOWN: i32 = 108;

struct Rig {
    engine: Engine,
    dir: tempfile::TempDir,
    stores: Stores,
    snapshot: Uuid,
    content: Vec<u8>,
}

impl Rig {
    /// A store with a snapshot.
    async fn new() -> Result<Rig> {
        let (engine, dir) =
            (Engine::start(EngineConfig { shards: 2, ..EngineConfig::default() })?, tempfile::tempdir()?);
        let rig = Rig { engine, dir, stores: Stores::default(), snapshot: Uuid::from_u128(1), content: content() };
        let store = rig.create("a").await?;
        let how = CreateLvol { name: "v".into(), size: 4 * MIB, ..CreateLvol::default() };
        let lvol = store.create_lvol(how).await?.uuid;
        store.write(lvol, 0, rig.content.clone()).await?;
        let snapshot = CreateSnapshot {
            lvol,
            name: "s".into(),
            uuid: Some(rig.snapshot),
            attributes: BTreeMap::new(),
            hidden: false,
        };
        store.snapshot(vec![snapshot]).await?;
        rig.stores.add(store);
        Ok(rig)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn create(&self, name: &str) -> Result<Store> {
        let how = CreateStore {
            file_size: Some(64 * MIB),
            name: name.into(),
            cluster_size: Some(64 << 10),
            max_size: None,
            block_size: None,
            force: false,
            owner: None,
        };
        self.engine.create_store(&self.path(name), how).await?;
        self.open(&self.path(name), Access::default()).await
    }

    async fn open(&self, path: &Path, external: Access) -> Result<Store> {
        Ok(self.engine.open_store(path, OpenStore { external, ..OpenStore::default() }).await?)
    }

    /// Takes the store with the snapshot away.
    async fn close(&self) -> Result<()> {
        let store = self.stores.all().first().context("a store")?.clone();
        self.stores.remove(store.uuid());
        Ok(store.close().await?)
    }

    async fn reopen(&self) -> Result<()> {
        self.close().await?;
        self.stores.add(self.open(&self.path("a"), Access::default()).await?);
        Ok(())
    }

    fn at(&self, n: usize) -> (usize, &[u8]) {
        let off = n * 100_003 % (self.content.len() - 70_000);
        (off, &self.content[off..off + 70_000])
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        coppice_engine::shard::block_on(self.engine.shutdown());
    }
}

fn content() -> Vec<u8> {
    (0..4 * MIB).map(|n| (n % 251 + n / 65_536) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_opened_anew_under_its_readers() -> Result<()> {
    let rig = Rig::new().await?;
    let socket = rig.path("nbd.sock");
    let exports = Arc::new(Exports::new(rig.stores.clone()));
    let listener = tokio::net::UnixListener::bind(&socket)?;
    let _server = Server::start(Listener::Unix(listener), exports, Limits::default())?;
    let endpoint = fixed(Endpoint { address: Address::Unix(socket), identity: None });
    let config = Config {
        timeout: Duration::from_secs(20),
        cache_bytes: 0,
        readahead_bytes: 0,
        ..Config::new(rig.snapshot.to_string(), endpoint)
    };
    let remote = Remote::new(config, &Handle::current());
    for n in 0..5 {
        let (off, wanted) = rig.at(n);
        ensure!(remote.read(off as u64, 70_000).await?[..] == *wanted, "read {n} is wrong");
        rig.reopen().await?;
    }
    ensure!(remote.status(0, MIB).await?.len() == 1, "all of it is data");
    // As long as it is not there it is away.
    rig.close().await?;
    let soon = std::time::Instant::now() + Duration::from_millis(500);
    let e = remote.read_by(0, 512, soon).await.err().context("read what is closed")?;
    ensure!(matches!(e, Error::TimedOut { .. }), "{e:?}");
    ensure!(matches!(remote.state(), State::Away { .. }), "{:?}", remote.state());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_open_any_more_is_away_and_what_is_broken_is_broken() -> Result<()> {
    let rig = Rig::new().await?;
    let exports = Exports::new(rig.stores.clone());
    let peer = Peer { identity: Identity::Local, address: None };
    let open = async || exports.open(&peer, &rig.snapshot.to_string()).await.map_err(|e| anyhow::anyhow!("{e:?}"));
    let source = open().await?;
    rig.reopen().await?;
    let e = source.read(4096, 512).await.err().context("read what is closed")?;
    ensure!(e.errno == ESHUTDOWN, "{e:?}");
    let e = source.status("base:allocation", 0, 512, 1).await.err().context("asked what is closed")?;
    ensure!(e.errno == ESHUTDOWN, "{e:?}");
    // The device loses its end.
    let source = open().await?;
    ensure!(source.read(0, 512).await?[..] == rig.content[..512], "wrong bytes");
    let path = rig.path("a");
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(64 << 10)?;
    let e = source.read(MIB, 512).await.err().context("read what is gone")?;
    ensure!(e.errno != ESHUTDOWN && e.offset == Some(MIB), "{e:?}");
    std::fs::OpenOptions::new().write(true).open(&path)?.set_len(64 * MIB)?;
    Ok(())
}

/// A clone in another store of the process reads all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_here_that_is_opened_anew() -> Result<()> {
    let rig = Arc::new(Rig::new().await?);
    let shard = rig.engine.shards().first().context("a shard")?.clone();
    let parents = Parents::new(rig.stores.clone(), shard, BTreeMap::new(), None, Handle::current());
    let parent = parents.resolve(rig.snapshot).context("a parent")?;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let readers: Vec<_> = (0..4)
        .map(|reader: usize| {
            let (rig, parent, stop) = (rig.clone(), parent.clone(), stop.clone());
            tokio::spawn(async move {
                let mut n = reader;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let (off, wanted) = rig.at(n);
                    let found = parent.read(off as u64, wanted.len(), Duration::from_secs(20)).await?;
                    ensure!(found[..] == *wanted, "read {n} is wrong");
                    parent.status(off as u64, 4096, Duration::from_secs(20)).await?;
                    n += 1;
                }
                Ok(n)
            })
        })
        .collect();
    for _ in 0..20 {
        rig.reopen().await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for reader in readers {
        ensure!(reader.await?? > 20, "it read hardly anything");
    }
    rig.close().await?;
    let e = parent.read(0, 512, Duration::from_millis(300)).await.err().context("read what is closed")?;
    ensure!(e.kind() == coppice_engine::ErrorKind::Away, "{e:?}");
    Ok(())
}

/// All of it: a clone, its store, and the parent's store under it.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_whose_parent_is_opened_anew() -> Result<()> {
    let rig = Rig::new().await?;
    let shard = rig.engine.shards().first().context("a shard")?.clone();
    let parents = Parents::new(rig.stores.clone(), shard, BTreeMap::new(), None, Handle::current());
    rig.create("b").await?.close().await?;
    let access = Access { resolver: Some(Arc::new(parents)), ..Access::default() };
    let b = rig.open(&rig.path("b"), access).await?;
    let how = CreateExternalClone { parent: rig.snapshot, name: "c".into(), hydrate: false, ..Default::default() };
    let clone = b.clone_external(how).await?.uuid;
    for n in 0..5 {
        let (off, wanted) = rig.at(n);
        let (read, reopened) = tokio::join!(b.read(clone, off as u64, wanted.len()), rig.reopen());
        reopened?;
        ensure!(read? == wanted, "read {n} is wrong");
    }
    Ok(b.close().await?)
}
