//! A lvstore: map, allocator, journal, load and recovery, check.
//!
//! ```text
//!   lvol/ ──changes──▶ core (one lock, memory) ──batches──▶ commit (one writer) ──▶ system (journal) ──▶ home pages
//!     ▲                  │ frees                                │ durable
//!     └──── map ◀────────┘                                      └──▶ reclaim ──▶ grace ──▶ free again
//! ```
//!
//! Promises after a crash: the metadata is that of some batch that was committed or being committed, at least the last one
//! that was acknowledged; every cluster and page that it does not refer to is free; nothing is half done.

mod activate;
pub mod alloc;
mod check;
mod close;
mod commit;
pub mod core;
mod create;
mod grace;
mod grow;
mod info;
mod leaf;
mod load;
pub mod local;
pub mod map;
mod owner;
mod reclaim;
mod scan;
mod system;
#[cfg(test)]
mod tests;

pub use commit::{lacks_space, room_for};

use crate::api::OpenStore;
use crate::counters::StoreLatency;
use crate::device::Device;
use crate::error::{Result, err};
use crate::format::Geometry;
use crate::shard::sync::{AsyncMutex, WaitList, lock};
use crate::shard::{Shard, ShardHandle};
use local::StoreShard;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use system::SystemArea;

/// An open lvstore, shared by all shards.
pub struct Lvstore {
    /// Under which each shard keeps its part.
    key: u64,
    pub device: Device,
    pub shards: Vec<ShardHandle>,
    /// As the store was opened. What growth changes (the number of clusters) is in `core` only.
    pub geo: Geometry,
    pub core: Mutex<core::Core>,
    /// `None` until the first write marks the store as ours.
    journal: AsyncMutex<Option<SystemArea>>,
    /// The store is marked as ours; writes may begin.
    active: AtomicBool,
    activating: Mutex<(activate::Phase, WaitList)>,
    durable_hint: AtomicU64,
    has_failed: AtomicBool,
    flushes: Mutex<commit::Flushes>,
    /// The device takes discard hints, as far as is known.
    punches: AtomicBool,
    pub read_only: bool,
    /// Of each shard.
    pub(crate) latencies: Vec<Arc<StoreLatency>>,
    map_limit_bytes: u64,
    exports: Mutex<std::collections::BTreeMap<uuid::Uuid, Vec<String>>>,
    /// Tasks of the store itself that a close waits for.
    running: Arc<Mutex<(usize, WaitList)>>,
    /// One close at a time: the second must not write what the first has given up.
    closes: AsyncMutex<()>,
}

static NEXT_KEY: AtomicU64 = AtomicU64::new(1);

impl Lvstore {
    /// Opens a store. The shard that this runs on becomes its home: metadata is written and space is reclaimed there.
    pub async fn open(
        shard: &Shard,
        shards: Vec<ShardHandle>,
        device: Device,
        how: OpenStore,
        map_limit_bytes: u64,
    ) -> Result<Arc<Lvstore>> {
        let port = device.port(shard);
        let loaded = load::load(&port, &device, how.read_only, how.external).await?;
        // A store that was left in the middle of something goes on with it; a plain one stays untouched.
        let resume = loaded.start.area.is_some();
        let store = Arc::new(Lvstore {
            key: NEXT_KEY.fetch_add(1, Ordering::Relaxed),
            geo: loaded.core.geo.clone(),
            device,
            latencies: shards.iter().map(|_| Arc::default()).collect(),
            shards,
            journal: AsyncMutex::new(None),
            active: AtomicBool::new(false),
            activating: Mutex::new((activate::Phase::Idle(Box::new(loaded.start)), WaitList::default())),
            durable_hint: AtomicU64::new(0),
            has_failed: AtomicBool::new(false),
            flushes: Mutex::default(),
            punches: AtomicBool::new(true),
            read_only: how.read_only,
            map_limit_bytes,
            core: Mutex::new(loaded.core),
            exports: Mutex::default(),
            running: Arc::default(),
            closes: AsyncMutex::new(()),
        });
        for (handle, latency) in store.shards.iter().zip(&store.latencies) {
            let (key, device, latency) = (store.key, store.device.clone(), latency.clone());
            handle
                .call(move |shard| async move {
                    let port = device.port(&shard);
                    shard.local_set(key, StoreShard::new(shard.clone(), port, latency));
                    Ok(())
                })
                .await?;
        }
        store.spawn(shard, store.clone().writer(shard.clone()));
        store.spawn(shard, store.clone().reclaimer(shard.clone()));
        if !how.read_only {
            store.spawn(shard, store.clone().hydrator(shard.clone()));
        }
        shard.spawn(Lvstore::evictor(Arc::downgrade(&store), shard.clone()));
        if !how.read_only && resume {
            store.resume_deletes(shard);
        }
        Ok(store)
    }

    /// Runs work of the store; a close waits for its end.
    pub(crate) fn spawn(&self, shard: &Shard, work: impl Future<Output = ()> + 'static) {
        let running = self.running.clone();
        lock(&running).0 += 1;
        shard.spawn(async move {
            work.await;
            let mut state = lock(&running);
            state.0 -= 1;
            state.1.wake_all();
        });
    }

    /// A flush or journal write failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub fn key(&self) -> u64 {
        self.key
    }

    pub fn local_by_key(shard: &Shard, key: u64) -> Result<Rc<StoreShard>> {
        Self::local_of(shard, key)
    }

    /// The store's part on this shard.
    pub fn local(&self, shard: &Shard) -> Result<Rc<StoreShard>> {
        Self::local_of(shard, self.key)
    }

    fn local_of(shard: &Shard, key: u64) -> Result<Rc<StoreShard>> {
        shard.local_get(key).ok_or_else(|| err!(Cancelled, "the lvstore is closed"))
    }

    pub fn cluster_size(&self) -> u64 {
        u64::from(self.geo.cluster_size)
    }

    pub fn block_size(&self) -> u32 {
        self.geo.io_unit
    }
}
