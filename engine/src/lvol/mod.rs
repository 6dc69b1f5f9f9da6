//! Volume semantics: I/O, copy on write, the tree of lvols.
//!
//! * `io`: one way down for a read and for a write.
//! * `cow`: first touch and copy on write.
//! * `tree`: create, clone, delete, rename, attributes, revert.
//! * `external`, `hydrate`, `pins`: parents outside of the store, and snapshots that others depend on.
//! * `reader`: a snapshot as those outside of the store read it.
//! * `resize`, `snapshot`, `merge`, `inflate`: what their names say.

mod cow;
mod external;
mod hydrate;
mod inflate;
mod io;
mod merge;
mod pins;
mod reader;
mod resize;
mod snapshot;
mod tree;

pub(crate) use external::parent_uuid;
pub use hydrate::HydrationState;
pub use io::LvolIo;
pub use reader::READ_MAX;

use crate::counters::{LvolCounts, LvolTotals};
use crate::external::Outside;
use crate::shard::sync::lock;
use crate::store::map::Map;
use arc_swap::{ArcSwap, ArcSwapOption};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use uuid::Uuid;

/// What every shard may look at without the store's lock.
pub struct Lvol {
    pub lid: u32,
    pub uuid: Uuid,
    pub map: ArcSwap<Map>,
    /// Whose "own" bits count: see [`crate::store::map::Leaf::owner`].
    pub token: AtomicU64,
    pub clusters: AtomicU64,
    pub read_only: AtomicBool,
    /// Some ancestor is outside the store: its part of the map is out there.
    pub external: ArcSwapOption<Outside>,
    /// Closed while I/O planned before a snapshot is in flight: copies on write wait, because their source may still
    /// change.
    pub gate_closed: AtomicBool,
    /// Number of the batch that holds the newest change of the lvol's metadata.
    pub dirty_batch: AtomicU64,
    /// Handles that may do I/O.
    pub opens: AtomicU32,
    /// By the number of the shard that counts.
    counts: Mutex<BTreeMap<usize, Arc<LvolCounts>>>,
}

impl Lvol {
    pub fn new(lid: u32, uuid: Uuid, clusters: u64, token: u64) -> Arc<Lvol> {
        Arc::new(Lvol {
            lid,
            uuid,
            map: ArcSwap::from_pointee(Map::new(clusters)),
            token: AtomicU64::new(token),
            clusters: AtomicU64::new(clusters),
            read_only: AtomicBool::new(false),
            external: ArcSwapOption::empty(),
            gate_closed: AtomicBool::new(false),
            dirty_batch: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            counts: Mutex::default(),
        })
    }

    /// The counters of a shard, for whoever does I/O there.
    pub(crate) fn counts(&self, shard: usize) -> Arc<LvolCounts> {
        lock(&self.counts).entry(shard).or_default().clone()
    }

    pub fn totals(&self) -> LvolTotals {
        let mut totals = LvolTotals::default();
        lock(&self.counts).values().for_each(|counts| totals.add(counts));
        totals
    }

    pub fn token(&self) -> u64 {
        self.token.load(Ordering::Acquire)
    }

    pub fn clusters(&self) -> u64 {
        self.clusters.load(Ordering::Acquire)
    }

    pub fn is_open(&self) -> bool {
        self.opens.load(Ordering::Acquire) > 0
    }
}
