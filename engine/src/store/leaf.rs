//! Map leaves on demand: composed from the extent pages of the lvol and of its ancestors, dropped again under a limit.

use super::Lvstore;
use super::core::{Core, Lid, entry_from_disk};
use super::map::{Entry, LEAF_BYTES, LEAF_CLUSTERS, Leaf, Map};
use crate::error::{Result, err};
use crate::format::{Extents, PAGE_SIZE, extent_page};
use crate::lvol::Lvol;
use crate::shard::Shard;
use crate::shard::sync::{lock, wait_until};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::Duration;

/// How often a store is looked after.
const TICK: Duration = Duration::from_millis(200);
/// A change waits that many ticks at most for its commit.
const COMMIT_TICKS: u64 = 25;

enum Step {
    Done,
    /// A leaf was put in place; look again.
    Again,
    /// Read this page, for extent `ep` of `lid`.
    Read {
        lid: Lid,
        page: u32,
    },
    /// Somebody reads this page now.
    Wait(u32),
}

/// An extent page that is being read. One reader at a time: while it reads nobody else can make the leaf resident, so nobody
/// can change it, and what a slow read brings is never older than what is on the device.
struct Reading<'a> {
    core: &'a Mutex<Core>,
    page: Option<u32>,
}

impl Reading<'_> {
    fn ends(mut self, core: &mut Core) {
        self.page.take().into_iter().for_each(|page| core.no_longer_read(page));
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(page) = self.page.take() {
            lock(self.core).no_longer_read(page);
        }
    }
}

impl Lvstore {
    /// Makes the leaf that describes `cluster` of a lvol resident. Reads at most one page per ancestor.
    pub async fn load_leaf(&self, shard: &Shard, lvol: &Arc<Lvol>, cluster: u64) -> Result<()> {
        let slot = (cluster / LEAF_CLUSTERS) as usize;
        loop {
            let step = lock(&self.core).leaf_step(lvol, slot)?;
            match step {
                Step::Done => return Ok(()),
                Step::Again => {}
                Step::Wait(page) => {
                    wait_until(&self.core, |core, cx| {
                        if !core.reading.contains(&page) {
                            return Poll::Ready(());
                        }
                        core.read_wait.register(cx);
                        Poll::Pending
                    })
                    .await;
                }
                Step::Read { lid, page } => {
                    let reading = Reading { core: &self.core, page: Some(page) };
                    let local = self.local(shard)?;
                    let buf = shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
                    let read = local.port.read(self.geo.page_offset(page), buf.clone());
                    let result = read.done("cannot read an extent page").await;
                    let mut core = lock(&self.core);
                    reading.ends(&mut core);
                    let name = core.records.get(&lid).map(super::core::Record::name).unwrap_or_default();
                    // The page may have changed hands or content while it was read.
                    if !core.still_needs(lid, slot, page) {
                        continue;
                    }
                    result.map_err(|e| e.context(format_args!("lvol {name}, extent page {page}")))?;
                    let bytes = buf.to_vec();
                    core.compose_leaf(lid, slot, Some(&bytes))
                        .map_err(|e| e.context(format_args!("lvol {name}, extent page {page}")))?;
                }
            }
        }
    }

    /// Looks after the store from time to time, as long as it is there: keeps the number of resident leaves below the
    /// limit, and commits changes that nobody flushed.
    pub(super) async fn evictor(store: Weak<Lvstore>, shard: Shard) {
        let mut ticks = 0u64;
        loop {
            shard.sleep(TICK).await;
            let Some(store) = store.upgrade() else { return };
            let limit = (store.map_limit_bytes / LEAF_BYTES).max(64);
            let mut core = lock(&store.core);
            if core.closing {
                return;
            }
            if core.resident_leaves > limit {
                core.evict(limit / 4 * 3);
            }
            ticks += 1;
            if ticks.is_multiple_of(COMMIT_TICKS) && core.has_pending() && core.may_change().is_ok() {
                // Nobody asked for a flush: what is freed comes back all the same.
                core.request_commit();
            }
        }
    }
}

impl Core {
    fn leaf_step(&mut self, lvol: &Arc<Lvol>, slot: usize) -> Result<Step> {
        if lvol.map.load().has_leaf(slot) {
            return Ok(Step::Done);
        }
        // Up to the first ancestor whose own parent can answer.
        let mut at = lvol.lid;
        loop {
            let r = self.record(at)?;
            r.intact()?;
            match r.parent.and_then(|p| self.records.get(&p)) {
                Some(parent) if slot < parent.hot.map.load().slots() && !parent.hot.map.load().has_leaf(slot) => {
                    at = parent.hot.lid;
                }
                _ => break,
            }
        }
        let r = self.record(at)?;
        if slot >= r.hot.map.load().slots() {
            return Err(err!(OutOfRange, "lvol {}: beyond its end", r.name()));
        }
        let page = r.eps().get(slot).copied().unwrap_or(0);
        if page == 0 {
            self.compose_leaf(at, slot, None)?;
            return Ok(Step::Again);
        }
        if let Some(image) = self.overlay.get(&page).cloned() {
            self.compose_leaf(at, slot, Some(&image[..]))?;
            return Ok(Step::Again);
        }
        if !self.reading.insert(page) {
            return Ok(Step::Wait(page));
        }
        Ok(Step::Read { lid: at, page })
    }

    fn no_longer_read(&mut self, page: u32) {
        self.reading.remove(&page);
        self.read_wait.wake_all();
    }

    fn still_needs(&self, lid: Lid, slot: usize, page: u32) -> bool {
        let Some(r) = self.records.get(&lid) else { return false };
        let parent_ready = match r.parent.and_then(|p| self.records.get(&p)) {
            Some(p) => slot >= p.hot.map.load().slots() || p.hot.map.load().has_leaf(slot),
            None => true,
        };
        !r.hot.map.load().has_leaf(slot)
            && r.eps().get(slot) == Some(&page)
            && !self.overlay.contains_key(&page)
            && parent_ready
    }

    /// Puts the leaf of `slot` in place; the parent's is resident if it has one. `image`: the lvol's own extent page.
    fn compose_leaf(&mut self, lid: Lid, slot: usize, image: Option<&[u8]>) -> Result<()> {
        let r = self.record(lid)?;
        let inside = r.ep_len(slot as u32);
        let base = r.parent.and_then(|p| self.records.get(&p)).and_then(|p| p.hot.map.load().leaf(slot));
        let own: Option<Vec<Entry>> = match (&r.meta.extents, image) {
            (_, Some(bytes)) => {
                let ep = extent_page::parse(bytes)?;
                if ep.ep_index() as usize != slot {
                    return Err(err!(Corrupt, "it describes extent {} instead of {slot}", ep.ep_index()));
                }
                let entries: Vec<Entry> = ep.entries.into_iter().map(entry_from_disk).collect();
                let bad = entries.iter().filter_map(|e| e.cluster()).find(|c| !self.geo.is_data_cluster(*c));
                if let Some(cluster) = bad {
                    return Err(err!(Corrupt, "it names cluster {cluster}, which cannot be"));
                }
                Some(entries)
            }
            (Extents::Rle(runs), None) => Some(entries_of_runs(runs, slot)),
            (Extents::Table { .. }, None) => None,
        };
        let token = r.hot.token();
        let outside = r.visible(u64::from(self.geo.cluster_size)).div_ceil(u64::from(self.geo.cluster_size));
        let first = slot as u64 * LEAF_CLUSTERS;
        // Without a parent in the store: what the external one has, as far as it shows.
        let nobodys = |n: usize| if first + (n as u64) < outside { Entry::EXTERNAL } else { Entry::NONE };
        let leaf = match (own, base) {
            (None, None) => Leaf::new(token, nobodys),
            (None, Some(base)) => {
                // What lies beyond a short lvol's end must not show through to a longer child.
                let beyond = base.iter().skip(inside).any(|e| e != Entry::NONE);
                if beyond {
                    Leaf::new(0, |n| if n < inside { base.get(n).inherited() } else { Entry::NONE })
                } else {
                    base
                }
            }
            (Some(own), base) => Leaf::new(token, |n| match own.get(n).copied() {
                _ if n >= inside => Entry::NONE,
                Some(e) if e.is_own() => e,
                _ => base.as_ref().map_or_else(|| nobodys(n), |b| b.get(n).inherited()),
            }),
        };
        self.record(lid)?.hot.map.load().set_leaf(slot, Some(leaf));
        self.resident_leaves += 1;
        Ok(())
    }

    /// Drops leaves until about `target` are left. Those of a lvol with changes that are not durable stay: what is on the
    /// device is older than they are.
    fn evict(&mut self, target: u64) {
        let maps: Vec<_> = self.records.values().map(|r| (r.hot.map.load_full(), r.hot.clone())).collect();
        let count = |map: &Map| (0..map.slots()).filter(|s| map.has_leaf(*s)).count() as u64;
        let mut resident: u64 = maps.iter().map(|(map, _)| count(map)).sum();
        for (map, lvol) in maps {
            let clean = lvol.dirty_batch.load(Ordering::Acquire) <= self.durable_batch;
            for slot in (0..map.slots()).filter(|_| clean) {
                if resident <= target {
                    break;
                }
                if map.has_leaf(slot) {
                    map.set_leaf(slot, None);
                    resident -= 1;
                }
            }
        }
        self.resident_leaves = resident;
    }
}

/// Entries of leaf `slot` of a lvol whose extents are runs.
fn entries_of_runs(runs: &[(u32, u32)], slot: usize) -> Vec<Entry> {
    let first = slot as u64 * LEAF_CLUSTERS;
    let mut entries = vec![Entry::NONE; LEAF_CLUSTERS as usize];
    let mut at = 0u64;
    for (start, len) in runs {
        let end = at + u64::from(*len);
        if *start != 0 {
            for n in at.max(first)..end.min(first + LEAF_CLUSTERS) {
                entries[(n - first) as usize] = Entry::own(start + (n - at) as u32);
            }
        }
        at = end;
    }
    entries
}
