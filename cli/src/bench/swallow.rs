//! A device that is larger than the machine and faster than any: metadata goes to a sparse file, data I/O completes at
//! once, without a system call, and moves nothing.
//!
//! It makes lvols of a TiB that are really mapped, by the engine's own write path, in seconds: for what depends on the map
//! alone (snapshot, delete). And I/O on it costs what the engine's own code costs, to the nanosecond.

use super::load::{Job, Slice, run};
use anyhow::{Context, Result};
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::export::{RawVolume, Volume};
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::op::IoOp;
use coppice_engine::shard::{Backend, Notifier, ShardHandle, ShardThreads, block_on};
use coppice_engine::store::Lvstore;
use coppice_engine::sys::ring::Ring;
use coppice_engine::{CreateLvol, CreateStore, OpenStore};
use std::cell::{Cell, RefCell};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// The journal lies at the end of the device, in no more than that many bytes.
const TAIL: u64 = 64 << 20;
/// Rounds of the data thread between two looks at the real ring.
const RING_EVERY: u32 = 64;

/// The ring, without the data.
struct Swallow {
    ring: Ring,
    /// Where data begins; nothing is swallowed in front of it. All ones until the store is made.
    data_from: Arc<AtomicU64>,
    data_to: u64,
    done: RefCell<Vec<(u32, i32)>>,
    turn: Cell<u32>,
}

impl Backend for Swallow {
    fn start(&self, key: u32, op: &IoOp) {
        match op {
            IoOp::Write { off, buf, .. } | IoOp::Read { off, buf, .. }
                if *off >= self.data_from.load(Ordering::Relaxed) && *off + buf.len() as u64 <= self.data_to =>
            {
                self.done.borrow_mut().push((key, buf.len() as i32));
            }
            _ => self.ring.start(key, op),
        }
    }

    fn wait(&self, timeout: Option<Duration>, done: &mut Vec<(u32, i32)>) {
        let mut mine = self.done.borrow_mut();
        // While data keeps it busy the ring is looked at now and then: a system call each time would be all one measures.
        let turn = self.turn.get().wrapping_add(1);
        self.turn.set(turn);
        if mine.is_empty() || turn.is_multiple_of(RING_EVERY) {
            self.ring.wait(if mine.is_empty() { timeout } else { Some(Duration::ZERO) }, done);
        }
        done.append(&mut mine);
    }

    fn now_ns(&self) -> u64 {
        self.ring.now_ns()
    }

    fn random(&self) -> u64 {
        self.ring.random()
    }
}

/// A store on such a device, and the data thread that serves it.
pub struct BigStore {
    pub lv: Arc<Lvstore>,
    pub shard: ShardHandle,
    threads: Option<ShardThreads>,
    _file: File,
}

impl BigStore {
    pub fn new(dir: &Path, size: u64, cluster_size: Option<u32>) -> Result<BigStore> {
        let file = tempfile::tempfile_in(dir)?;
        file.set_len(size).with_context(|| format!("a sparse file of {size} bytes in {}", dir.display()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let data_from = Arc::new(AtomicU64::new(u64::MAX));
        let from = data_from.clone();
        let threads = ShardThreads::start_on(1, move |_| {
            let ring = Ring::new()?;
            let notifier: Arc<dyn Notifier> = ring.notifier();
            let (done, turn) = (RefCell::default(), Cell::new(0));
            let swallow = Swallow { ring, data_from: from.clone(), data_to: size - TAIL, done, turn };
            Ok((Box::new(swallow) as Box<dyn Backend>, notifier))
        })?;
        let shard = threads.handles().first().cloned().context("a data thread")?;
        let device = Device::open(&path, OpenMode::ReadWrite)?;
        let how = CreateStore {
            file_size: None,
            name: "big".into(),
            cluster_size,
            max_size: Some(size),
            block_size: None,
            force: true,
            owner: None,
        };
        let handles = vec![shard.clone()];
        let lv = block_on(shard.call(move |shard| async move {
            Lvstore::create(&shard, &device, &how).await?;
            Lvstore::open(&shard, handles, device, OpenStore::default(), 1 << 30).await
        }))?;
        data_from.store(lv.geo.cluster_offset(lv.geo.md_clusters), Ordering::Relaxed);
        Ok(BigStore { lv, shard, threads: Some(threads), _file: file })
    }

    /// A lvol of `size` bytes, all of it written.
    pub fn mapped(&self, name: &str, size: u64) -> Result<Uuid> {
        const PIECE: u64 = 4 << 20;
        let (lv, name) = (self.lv.clone(), name.to_string());
        Ok(block_on(self.shard.call(move |shard| async move {
            let lvol = lv.create_lvol(&shard, CreateLvol { name, size, ..CreateLvol::default() }).await?.uuid;
            let io = LvolIo::open(&shard, &lv, lvol)?;
            let buf = shard.buf(PIECE as usize).slice(0, PIECE as usize);
            for n in 0..io.size() / PIECE {
                io.write(n * PIECE, buf.clone(), false).await?;
            }
            io.flush().await?;
            Ok(lvol)
        }))?)
    }

    pub fn on_lvol(&self, lvol: Uuid, job: &Job) -> Result<Slice> {
        let (lv, job) = (self.lv.clone(), job.clone());
        Ok(block_on(self.shard.call(move |shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            run(&shard, io, job).await
        }))?)
    }

    /// Straight to the device below the store.
    pub fn on_raw(&self, job: &Job) -> Result<Slice> {
        let (lv, job) = (self.lv.clone(), job.clone());
        Ok(block_on(self.shard.call(move |shard| async move {
            let raw = RawVolume::new(lv.device.port(&shard), lv.geo.size, 4096);
            run(&shard, raw, job).await
        }))?)
    }

    /// Where data begins on the device.
    pub fn raw_base(&self) -> u64 {
        self.lv.geo.cluster_offset(self.lv.geo.md_clusters)
    }
}

impl Drop for BigStore {
    fn drop(&mut self) {
        let lv = self.lv.clone();
        let _ = block_on(self.shard.call(move |shard| async move { lv.close(&shard).await }));
        if let Some(threads) = self.threads.take() {
            threads.stop();
        }
    }
}
