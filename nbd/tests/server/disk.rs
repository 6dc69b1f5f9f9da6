//! Exports in memory, with everything that can go wrong on order.

use async_trait::async_trait;
use bytes::Bytes;
use coppice_nbd::proto::{Extent, STATE_HOLE, STATE_ZERO};
use coppice_nbd::server::{BASE_ALLOCATION, Exports, Identity, Listed, Peer, Refusal, Source, SourceError, ZeroMode};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, Semaphore};

pub const CLUSTER: usize = 64 << 10;
pub const DELTA: &str = "coppice:delta:0a1b";

pub const EIO: i32 = 5;
pub const ENOTSUP: i32 = 95;

/// What every byte of a fresh disk is made from: no two blocks are equal.
pub fn pattern(offset: usize) -> u8 {
    let block = offset / 512;
    (offset ^ block.wrapping_mul(31) ^ (block >> 8).wrapping_mul(7)) as u8
}

/// The content of a lock. A test that panicked with it has failed already.
pub fn locked<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A disk in memory.
pub struct Disk {
    pub bytes: Mutex<Vec<u8>>,
    /// Clusters that are holes.
    pub holes: Mutex<Vec<bool>>,
    pub read_only: bool,
    pub block: u32,
    /// This byte cannot be read.
    pub bad: Option<u64>,
    /// From here on nobody knows what is allocated.
    pub unknown_from: Option<u64>,
    /// Reads that begin in this cluster wait for the gate.
    pub gated: Option<usize>,
    pub gate: Semaphore,
    /// Someone waits at the gate.
    pub waiting: Notify,
    /// Reads answer one byte less.
    pub short: bool,
    pub panics: bool,
    /// Status says nothing at all.
    pub silent: bool,
    /// Write requests, as the source saw them.
    pub seen: Mutex<Vec<String>>,
    /// Bytes of reads that somebody holds, now and at most.
    pub held: Arc<Held>,
}

#[derive(Default)]
pub struct Held {
    pub now: AtomicUsize,
    pub most: AtomicUsize,
}

struct Counted(Vec<u8>, Arc<Held>);

impl Counted {
    fn new(bytes: Vec<u8>, held: &Arc<Held>) -> Self {
        let now = held.now.fetch_add(bytes.len(), SeqCst) + bytes.len();
        held.most.fetch_max(now, SeqCst);
        Self(bytes, Arc::clone(held))
    }
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1.now.fetch_sub(self.0.len(), SeqCst);
    }
}

impl Disk {
    /// Every third cluster is a hole, the rest is [`pattern`].
    pub fn sparse(clusters: usize) -> Self {
        let hole = |cluster: usize| cluster % 3 == 2;
        let byte = |at: usize| if hole(at / CLUSTER) { 0 } else { pattern(at) };
        Self {
            bytes: Mutex::new((0..clusters * CLUSTER).map(byte).collect()),
            holes: Mutex::new((0..clusters).map(hole).collect()),
            read_only: true,
            block: 1,
            bad: None,
            unknown_from: None,
            gated: None,
            gate: Semaphore::new(0),
            waiting: Notify::new(),
            short: false,
            panics: false,
            silent: false,
            seen: Mutex::default(),
            held: Arc::default(),
        }
    }

    pub fn writable(clusters: usize) -> Self {
        Self { read_only: false, ..Self::sparse(clusters) }
    }

    pub fn content(&self) -> Vec<u8> {
        locked(&self.bytes).clone()
    }

    fn see(&self, what: String) {
        locked(&self.seen).push(what);
    }

    fn overwrite(&self, offset: u64, length: usize, hole: bool, fill: impl FnOnce(&mut [u8])) {
        let start = offset as usize;
        fill(&mut locked(&self.bytes)[start..start + length]);
        let mut holes = locked(&self.holes);
        for cluster in start / CLUSTER..(start + length).div_ceil(CLUSTER) {
            let whole = cluster * CLUSTER >= start && (cluster + 1) * CLUSTER <= start + length;
            holes[cluster] = if hole { holes[cluster] || whole } else { false };
        }
    }
}

#[async_trait]
impl Source for Disk {
    fn size_bytes(&self) -> u64 {
        locked(&self.bytes).len() as u64
    }

    fn block_bytes(&self) -> u32 {
        self.block
    }

    fn preferred_bytes(&self) -> u32 {
        CLUSTER as u32
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn can_multi_conn(&self) -> bool {
        true
    }

    fn description(&self) -> String {
        "a disk in memory".to_owned()
    }

    fn contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_owned(), DELTA.to_owned()]
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, SourceError> {
        assert!(!self.panics, "told to panic");
        let (start, length) = (offset as usize, length as usize);
        if self.gated == Some(start / CLUSTER) {
            self.waiting.notify_one();
            if let Ok(permit) = self.gate.acquire().await {
                permit.forget();
            }
        }
        if let Some(bad) = self.bad.filter(|bad| (offset..offset + length as u64).contains(bad)) {
            return Err(SourceError::new(EIO, "the medium is scratched").at(bad));
        }
        let length = if self.short { length - 1 } else { length };
        let bytes = locked(&self.bytes)[start..start + length].to_vec();
        Ok(Bytes::from_owner(Counted::new(bytes, &self.held)))
    }

    async fn status(&self, context: &str, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, SourceError> {
        if let Some(unknown) = self.unknown_from.filter(|unknown| offset + length > *unknown) {
            return Err(SourceError::new(EIO, "the map cannot be read").at(unknown.max(offset)));
        }
        if self.silent {
            return Ok(Vec::new());
        }
        let holes = locked(&self.holes);
        let mut extents = Vec::new();
        let mut at = offset;
        while at < offset + length && extents.len() < max {
            let cluster = at as usize / CLUSTER;
            // To the end of the cluster, which may be beyond the range.
            let length = ((cluster + 1) * CLUSTER) as u64 - at;
            let flags = match (context, holes[cluster]) {
                (BASE_ALLOCATION, true) => STATE_HOLE | STATE_ZERO,
                (DELTA, false) => 1,
                _ => 0,
            };
            extents.push(Extent { length, flags });
            at += length;
        }
        Ok(extents)
    }

    async fn prefetch(&self, offset: u64, length: u64) -> Result<(), SourceError> {
        self.see(format!("prefetch {offset}+{length}"));
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), SourceError> {
        self.see(format!("write {offset}+{} fua={fua}", data.len()));
        self.overwrite(offset, data.len(), false, |bytes| bytes.copy_from_slice(&data));
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), SourceError> {
        self.see(format!("zero {offset}+{length} {mode:?}"));
        if mode.fast {
            return Err(SourceError::new(ENOTSUP, "not faster than writing"));
        }
        self.overwrite(offset, length as usize, !mode.no_hole, |bytes| bytes.fill(0));
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), SourceError> {
        self.see(format!("trim {offset}+{length} fua={fua}"));
        // A source may answer an error that the protocol reserves for something else.
        Err(SourceError::new(ENOTSUP, "no discard on this disk"))
    }

    async fn flush(&self) -> Result<(), SourceError> {
        self.see("flush".to_owned());
        Ok(())
    }
}

/// Exports by name, each for some peers.
#[derive(Default)]
pub struct Shelf {
    disks: BTreeMap<String, (Arc<dyn Source>, Vec<Identity>)>,
    /// How often anybody asked.
    pub asked: AtomicUsize,
}

pub fn certified(name: &str) -> Identity {
    Identity::Certified(name.to_owned())
}

impl Shelf {
    #[must_use]
    pub fn with(mut self, name: &str, disk: &Arc<impl Source>, peers: &[Identity]) -> Self {
        let disk: Arc<dyn Source> = disk.clone();
        self.disks.insert(name.to_owned(), (disk, peers.to_vec()));
        self
    }
}

#[async_trait]
impl Exports for Shelf {
    async fn list(&self, peer: &Peer) -> Vec<Listed> {
        self.asked.fetch_add(1, SeqCst);
        let mine = self.disks.iter().filter(|(_, (_, peers))| peers.contains(&peer.identity));
        mine.map(|(name, (disk, _))| Listed { name: name.clone(), description: disk.description() }).collect()
    }

    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refusal> {
        self.asked.fetch_add(1, SeqCst);
        if name == "broken" {
            return Err(Refusal::Unavailable("its store is closed".to_owned()));
        }
        match self.disks.get(name) {
            Some((disk, peers)) if peers.contains(&peer.identity) => Ok(Arc::clone(disk)),
            _ => Err(Refusal::Unknown),
        }
    }
}
