//! The map: which cluster of the device holds which cluster of a lvol. Read by every shard without a lock.
//!
//! A [`Map`] is an array of slots, one per extent page (512 clusters); a slot holds a counted [`Leaf`], or nothing when
//! the leaf is not loaded. A leaf says where *every* cluster of its range is read from, whichever ancestor owns it, so a
//! read never walks the chain. Lvols that see the same content share leaves: a snapshot takes the whole map of its origin,
//! and the origin begins with an empty one whose slots are filled with the snapshot's leaves as they are touched.
//!
//! ```text
//!   snapshot ─▶ Map ─▶ [ leaf A ][ leaf B ][  -  ]          A, B: owner = snapshot's token
//!   origin ───▶ Map ─▶ [ leaf A ][ leaf C ][  -  ]          C: copy of B with one cluster of its own, owner = origin's
//! ```
//!
//! An entry may be written in place only if it says "own" *and* the leaf's owner is the lvol's token. All changes are made
//! under the store's lock; readers see an entry before or after a change, never a mixture.

use crate::format::EXTENTS_PER_PAGE;
use arc_swap::ArcSwapOption;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Clusters of one leaf: as many as an extent page describes.
pub const LEAF_CLUSTERS: u64 = EXTENTS_PER_PAGE as u64;

const OWN: u32 = 1 << 31;
/// Kept free: the cluster is partial, look for its valid bits.
const PARTIAL: u32 = 1 << 30;
const CLUSTER: u32 = PARTIAL - 1;
/// Stands for "reads as zero, whatever the parent has". No cluster has this number (a store has fewer).
const ZERO: u32 = CLUSTER;
/// Stands for "the external parent has it". Only in memory: on disk it is an entry that nobody owns.
const EXTERNAL: u32 = CLUSTER - 1;

/// Where one cluster of a lvol is read from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry(u32);

impl Entry {
    /// Nobody owns anything here: reads as zero.
    pub const NONE: Entry = Entry(0);
    /// Nobody in the store owns anything here: the external parent has it. Zero, if there is none any more.
    pub const EXTERNAL: Entry = Entry(EXTERNAL);
    /// The lvol's own mark that this reads as zero.
    pub const OWN_ZERO: Entry = Entry(OWN | ZERO);

    pub fn own(cluster: u32) -> Entry {
        debug_assert!(cluster > 0 && cluster < EXTERNAL);
        Entry(OWN | cluster)
    }

    /// The cluster to read, if there is one.
    pub fn cluster(self) -> Option<u32> {
        match self.0 & CLUSTER {
            0 | ZERO | EXTERNAL => None,
            c => Some(c),
        }
    }

    pub fn is_own(self) -> bool {
        self.0 & OWN != 0
    }

    pub fn is_zero_mark(self) -> bool {
        self.0 & CLUSTER == ZERO
    }

    pub fn is_external(self) -> bool {
        self.0 & CLUSTER == EXTERNAL
    }

    /// The same place as seen by a child.
    pub fn inherited(self) -> Entry {
        Entry(self.0 & !OWN)
    }
}

/// 512 entries, shared by all lvols that see the same content.
pub struct Leaf {
    /// Token of the lvol for which the "own" bits are meant; 0: nobody's.
    owner: AtomicU64,
    entries: [AtomicU32; LEAF_CLUSTERS as usize],
}

/// Bytes that a resident leaf takes.
pub const LEAF_BYTES: u64 = size_of::<Leaf>() as u64 + 16;

impl Leaf {
    pub fn new(owner: u64, entry: impl Fn(usize) -> Entry) -> Arc<Leaf> {
        Arc::new(Leaf { owner: AtomicU64::new(owner), entries: std::array::from_fn(|n| AtomicU32::new(entry(n).0)) })
    }

    pub fn get(&self, n: usize) -> Entry {
        Entry(self.entries[n].load(Ordering::Acquire))
    }

    pub fn set(&self, n: usize, entry: Entry) {
        self.entries[n].store(entry.0, Ordering::Release);
    }

    pub fn owner(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    pub fn set_owner(&self, token: u64) {
        self.owner.store(token, Ordering::Release);
    }

    pub fn iter(&self) -> impl Iterator<Item = Entry> + '_ {
        self.entries.iter().map(|e| Entry(e.load(Ordering::Acquire)))
    }

    /// The own entries of the lvol with `token`, as its extent page holds them: the first `count`.
    pub fn own_entries(&self, token: u64, count: usize) -> impl Iterator<Item = (usize, Entry)> + '_ {
        let owned = self.owner() == token;
        self.iter().take(count).enumerate().filter(move |(_, e)| owned && e.is_own())
    }
}

/// All leaves of one lvol.
pub struct Map {
    slots: Box<[ArcSwapOption<Leaf>]>,
}

impl Map {
    /// An empty map for a lvol of `clusters` clusters.
    pub fn new(clusters: u64) -> Map {
        let slots = clusters.div_ceil(LEAF_CLUSTERS) as usize;
        Map { slots: (0..slots).map(|_| ArcSwapOption::empty()).collect() }
    }

    /// The same leaves for another size.
    pub fn resized(&self, clusters: u64) -> Map {
        let new = Map::new(clusters);
        for (to, from) in new.slots.iter().zip(&self.slots) {
            to.store(from.load_full());
        }
        new
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The entry of a cluster and the owner of its leaf; `None` if the leaf is not loaded.
    pub fn lookup(&self, cluster: u64) -> Option<(Entry, u64)> {
        let slot = self.slots.get((cluster / LEAF_CLUSTERS) as usize)?;
        let leaf = slot.load();
        let leaf = leaf.as_ref()?;
        Some((leaf.get((cluster % LEAF_CLUSTERS) as usize), leaf.owner()))
    }

    pub fn leaf(&self, slot: usize) -> Option<Arc<Leaf>> {
        self.slots.get(slot)?.load_full()
    }

    pub fn has_leaf(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|s| s.load().is_some())
    }

    pub fn set_leaf(&self, slot: usize, leaf: Option<Arc<Leaf>>) {
        if let Some(s) = self.slots.get(slot) {
            s.store(leaf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_say_what_they_are() {
        let e = Entry::own(7);
        assert!(e.is_own() && e.cluster() == Some(7) && !e.is_zero_mark());
        assert_eq!((e.inherited().is_own(), e.inherited().cluster()), (false, Some(7)));
        assert!(Entry::OWN_ZERO.is_zero_mark() && Entry::OWN_ZERO.cluster().is_none());
        assert!(Entry::OWN_ZERO.inherited().is_zero_mark(), "a child sees the mark");
        assert!(Entry::NONE.cluster().is_none() && !Entry::NONE.is_own());
    }

    #[test]
    fn a_resized_map_shares_its_leaves() {
        let map = Map::new(600);
        assert_eq!(map.slots(), 2);
        assert!(map.lookup(3).is_none());
        map.set_leaf(0, Some(Leaf::new(5, |n| if n == 3 { Entry::own(9) } else { Entry::NONE })));
        let larger = map.resized(2000);
        assert_eq!(larger.slots(), 4);
        assert_eq!(larger.lookup(3), Some((Entry::own(9), 5)));
        larger.leaf(0).expect("leaf").set(4, Entry::own(10));
        assert_eq!(map.lookup(4), Some((Entry::own(10), 5)));
        assert!(map.lookup(100_000).is_none(), "beyond the end there is nothing");
    }
}
