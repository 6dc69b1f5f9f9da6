//! Where a benchmark runs: a file that was written full, an engine with one data thread, stores made on it anew for each
//! part, and the raw device beside them.
//!
//! The backing file has no name: it is gone when the process is, however it ends.

use super::load::{Job, Slice, run};
use super::stats::Random;
use anyhow::{Context, Result};
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::export::{RawVolume, Volume};
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::{Shard, ShardHandle, all, block_on};
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, CreateStore, Engine, EngineConfig, OpenStore, Store};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
/// Bytes of one write while a file or lvol is filled, and how many are in flight.
const FILL_BYTES: u64 = MIB;
const FILL_DEPTH: usize = 8;

/// A backing file and the engine that works on it.
pub struct Place {
    /// `file` or `memory`.
    pub name: &'static str,
    pub engine: Engine,
    pub size: u64,
    file: File,
}

impl Place {
    /// Makes a file of `size` bytes in `dir` and writes all of it.
    pub fn new(name: &'static str, dir: &Path, size: u64) -> Result<Place> {
        let file = tempfile::tempfile_in(dir).with_context(|| format!("cannot make a file in {}", dir.display()))?;
        file.set_len(size)?;
        let place = Place { name, engine: one_shard()?, size, file };
        let device = Device::open(&place.path(), OpenMode::ReadWrite)?;
        place.on_shard(move |shard| async move { fill(&shard, &device, size).await }).with_context(|| {
            format!("cannot write {} MiB into {} (is there room for it?)", size / MIB, dir.display())
        })?;
        Ok(place)
    }

    /// The nameless file through its descriptor.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    pub fn shard(&self) -> Result<ShardHandle> {
        self.engine.shards().first().cloned().context("the engine has a data thread")
    }

    fn on_shard<R, F>(&self, f: impl FnOnce(Shard) -> F + Send + 'static) -> Result<R>
    where
        R: Send + 'static,
        F: Future<Output = coppice_engine::Result<R>> + 'static,
    {
        Ok(block_on(self.shard()?.call(f))?)
    }

    /// A new store on the file.
    pub fn store(&self, cluster_size: Option<u32>) -> Result<OnStore<'_>> {
        self.store_with(cluster_size, OpenStore::default())
    }

    pub fn store_with(&self, cluster_size: Option<u32>, open: OpenStore) -> Result<OnStore<'_>> {
        let how = CreateStore {
            file_size: None,
            name: "bench".into(),
            cluster_size,
            max_size: None,
            block_size: None,
            force: true,
            owner: None,
        };
        block_on(self.engine.create_store(&self.path(), how))?;
        let store = block_on(self.engine.open_store(&self.path(), open))?;
        Ok(OnStore { place: self, store })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        block_on(self.engine.shutdown());
    }
}

fn one_shard() -> Result<Engine> {
    Ok(Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?)
}

/// Writes a pattern over the first `size` bytes of a device.
async fn fill(shard: &Shard, device: &Device, size: u64) -> coppice_engine::Result<()> {
    let port = device.port(shard);
    let buf = shard.buf(FILL_BYTES as usize).slice(0, FILL_BYTES as usize);
    buf.copy_in(0, &pattern(FILL_BYTES as usize));
    let mut at = 0;
    while at < size {
        let mut ios = Vec::new();
        while at < size && ios.len() < FILL_DEPTH {
            let n = FILL_BYTES.min(size - at);
            ios.push(port.write(at, buf.slice(0, n as usize), false));
            at += n;
        }
        all(ios, "fill").await?;
    }
    port.flush().done("flush").await
}

/// Bytes that no device can take for zeroes or compress away.
pub fn pattern(len: usize) -> Vec<u8> {
    let mut random = Random::new(42);
    (0..len.div_ceil(8)).flat_map(|_| random.next().to_ne_bytes()).take(len).collect()
}

/// A store on a place. Dropped, it is closed.
pub struct OnStore<'a> {
    place: &'a Place,
    pub store: Store,
}

impl Drop for OnStore<'_> {
    fn drop(&mut self) {
        // A failed store cannot be closed cleanly; the next one is formatted over it.
        let _ = block_on(self.store.close());
    }
}

impl OnStore<'_> {
    fn lvstore(&self) -> Arc<Lvstore> {
        self.store.lvstore().clone()
    }

    pub fn cluster_size(&self) -> u64 {
        self.lvstore().cluster_size()
    }

    /// Where the store's data begins on the device: the raw runs use the same part of it as the lvols.
    pub fn raw_base(&self) -> u64 {
        let geo = &self.lvstore().geo;
        u64::from(geo.md_clusters) * u64::from(geo.cluster_size)
    }

    pub fn free_bytes(&self) -> Result<u64> {
        Ok(block_on(self.store.info())?.free_clusters * self.cluster_size())
    }

    pub fn create(&self, name: &str, size: u64) -> Result<Uuid> {
        let how = CreateLvol { name: name.into(), size, ..CreateLvol::default() };
        Ok(block_on(self.store.create_lvol(how))?.uuid)
    }

    pub fn snapshot(&self, lvol: Uuid, name: &str) -> Result<Uuid> {
        let how = CreateSnapshot { lvol, name: name.into(), uuid: None, attributes: Default::default(), hidden: false };
        let made = block_on(self.store.snapshot(vec![how]))?;
        Ok(made.first().context("a snapshot")?.uuid)
    }

    pub fn clone_of(&self, snapshot: Uuid, name: &str) -> Result<Uuid> {
        let attributes = Default::default();
        let how = CreateClone { snapshot, name: name.into(), uuid: None, size: None, thick: false, attributes };
        Ok(block_on(self.store.clone_snapshot(how))?.uuid)
    }

    /// Has nothing left when it answers.
    pub fn remove(&self, lvol: Uuid) -> Result<()> {
        Ok(block_on(self.store.delete(lvol, false))?)
    }

    /// Writes the whole of a lvol, so that every cluster is its own, and makes it durable.
    pub fn fill(&self, lvol: Uuid) -> Result<()> {
        let lv = self.lvstore();
        self.place.on_shard(move |shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            let buf = shard.buf(FILL_BYTES as usize).slice(0, FILL_BYTES as usize);
            buf.copy_in(0, &pattern(FILL_BYTES as usize));
            let mut at = 0;
            while at < io.size() {
                let n = FILL_BYTES.min(io.size() - at);
                io.write(at, buf.slice(0, n as usize), false).await?;
                at += n;
            }
            io.flush().await
        })
    }

    /// Runs a job on a lvol.
    pub fn on_lvol(&self, lvol: Uuid, job: &Job) -> Result<Slice> {
        let (lv, job) = (self.lvstore(), job.clone());
        self.place.on_shard(move |shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            run(&shard, io, job).await
        })
    }

    /// Runs a job on the device below the store. What it writes lands in clusters of the store: only for lvols whose
    /// content nobody looks at any more.
    pub fn on_raw(&self, job: &Job) -> Result<Slice> {
        let (device, size, job) = (self.lvstore().device.clone(), self.place.size, job.clone());
        self.place.on_shard(move |shard| async move {
            let raw = RawVolume::new(device.port(&shard), size, 4096);
            run(&shard, raw, job).await
        })
    }
}

/// Runs both sides `reps` times, in turns, and each first in every other pair, so that a drift of the machine hits both.
pub fn in_turns<A, B>(
    reps: usize,
    mut raw: impl FnMut(usize) -> Result<A>,
    mut lvol: impl FnMut(usize) -> Result<B>,
) -> Result<Vec<(A, B)>> {
    let mut pairs = Vec::with_capacity(reps);
    for n in 0..reps {
        if n % 2 == 0 {
            let a = raw(n)?;
            pairs.push((a, lvol(n)?));
        } else {
            let b = lvol(n)?;
            pairs.push((raw(n)?, b));
        }
    }
    Ok(pairs)
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs of runs per row.
    pub reps: usize,
    /// Length of one run.
    pub slice: Duration,
    /// Bytes of the lvol on which steady I/O is measured.
    pub lvol_bytes: u64,
    /// Bytes of the backing file.
    pub file_bytes: u64,
    /// New clusters that one run of first touches takes at most.
    pub touches: u64,
    /// Snapshots taken under load.
    pub snapshots: usize,
    /// Bytes of the snapshot that is restored on another store.
    pub elsewhere_bytes: u64,
    /// Sizes of the mapped lvols that are snapshotted, GiB.
    pub mapped_gib: &'static [u64],
}

impl Effort {
    pub const FULL: Effort = Effort {
        reps: 21,
        slice: Duration::from_millis(50),
        lvol_bytes: 1 << 30,
        file_bytes: 5 << 29,
        touches: 1024,
        snapshots: 20,
        elsewhere_bytes: 1 << 30,
        mapped_gib: &[1, 64, 1024],
    };
    pub const QUICK: Effort = Effort {
        reps: 3,
        slice: Duration::from_millis(30),
        lvol_bytes: 128 << 20,
        file_bytes: 1 << 30,
        touches: 256,
        snapshots: 5,
        elsewhere_bytes: 128 << 20,
        mapped_gib: &[1, 16],
    };
}
