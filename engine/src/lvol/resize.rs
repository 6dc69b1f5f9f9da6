//! Another size for a lvol, and clusters that go back: discard and write-zeroes.

use super::io::{Handle, Seen};
use crate::api::LvolInfo;
use crate::error::{Result, err};
use crate::format::{Extents, Flags, layout};
use crate::shard::Shard;
use crate::shard::sync::{lock, wait_until};
use crate::store::Lvstore;
use crate::store::core::{ATTR_THICK, Core, Lid};
use crate::store::map::{Entry, LEAF_CLUSTERS, Leaf, Map};
use crate::store::{lacks_space, room_for};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use uuid::Uuid;

impl Lvstore {
    /// Grows at any time; shrinks a lvol that is not in use. Rounded up to whole clusters.
    pub async fn resize(self: &Arc<Self>, shard: &Shard, uuid: Uuid, size: u64) -> Result<LvolInfo> {
        self.activate(shard).await?;
        let lid = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.idle(uuid)?;
            let new = core.clusters_for(size)?;
            let r = core.record_mut(lid)?;
            if r.hidden {
                return Err(err!(NotFound, "lvol {uuid} was deleted"));
            }
            if r.is_snapshot() {
                return Err(err!(
                    ReadOnly,
                    "{} is a snapshot: its size is fixed; clone it with a larger size",
                    r.name()
                ));
            }
            if size == 0 {
                return Err(err!(Invalid, "lvol {}: the size must not be 0", r.name()));
            }
            if matches!(r.meta.extents, Extents::Rle(_)) {
                return Err(err!(
                    Unsupported,
                    "lvol {} was made by an old SPDK without extent table: copy it",
                    r.name()
                ));
            }
            if new < r.clusters() && r.hot.is_open() {
                return Err(err!(Busy, "lvol {} is in use and can only grow; stop its export to shrink it", r.name()));
            }
            r.busy = Some("resize");
            lid
        };
        let mut result = self.resize_checked(shard, lid, size).await;
        if result.as_ref().is_err_and(lacks_space) && lock(&self.core).space_is_coming() {
            self.commit().await?;
            self.reclaimed().await?;
            result = self.resize_checked(shard, lid, size).await;
        }
        if let Ok(r) = lock(&self.core).record_mut(lid) {
            r.busy = None;
        }
        self.durable(result?).await?;
        self.describe(&lock(&self.core), lid)
    }

    /// Answers with the batch that holds the change.
    async fn resize_checked(&self, shard: &Shard, lid: Lid, size: u64) -> Result<u64> {
        let (hot, old, new) = {
            let core = lock(&self.core);
            let r = core.record(lid)?;
            (r.hot.clone(), r.clusters(), core.clusters_for(size)?)
        };
        loop {
            self.batch_room(12).await?;
            // The leaf in which the lvol ends changes its length.
            let edge = old.min(new);
            if !edge.is_multiple_of(LEAF_CLUSTERS) {
                self.load_leaf(shard, &hot, edge - 1).await?;
            }
            // What goes has to be known.
            let gone = lock(&self.core).extents_behind(lid, new)?;
            for ep in gone {
                self.load_leaf(shard, &hot, ep * LEAF_CLUSTERS).await?;
            }
            if new > old {
                self.load_parent_leaves(shard, lid, old, new).await?;
            }
            let mut core = lock(&self.core);
            core.may_change()?;
            if !room_for(&core, 12) {
                continue;
            }
            let done = match new.cmp(&old) {
                std::cmp::Ordering::Equal => true,
                std::cmp::Ordering::Less => core.shrink(lid, new)?,
                std::cmp::Ordering::Greater => core.enlarge(lid, old, new)?,
            };
            if done {
                return Ok(core.open_batch);
            }
        }
    }

    /// Loads what the parent has in the range that a clone grows into.
    async fn load_parent_leaves(&self, shard: &Shard, lid: Lid, old: u64, new: u64) -> Result<()> {
        let parent = {
            let core = lock(&self.core);
            let r = core.record(lid)?;
            r.parent.and_then(|p| core.records.get(&p)).map(|p| (p.hot.clone(), p.clusters()))
        };
        let Some((parent, clusters)) = parent else { return Ok(()) };
        let mut at = old / LEAF_CLUSTERS * LEAF_CLUSTERS;
        while at < new.min(clusters) {
            self.load_leaf(shard, &parent, at).await?;
            at += LEAF_CLUSTERS;
        }
        Ok(())
    }
}

impl Core {
    fn set_clusters(&mut self, lid: Lid, new: u64) -> Result<()> {
        let eps_len = new.div_ceil(LEAF_CLUSTERS) as usize;
        let size = u64::from(self.geo.cluster_size);
        let r = self.record_mut(lid)?;
        let visible = r.external().is_some().then(|| r.visible(size).min(new * size));
        if let Some((clusters, eps)) = r.eps_mut() {
            *clusters = new;
            eps.resize(eps_len, 0);
        }
        // What is cut off takes its zero marks along.
        r.masked_to = r.masked_to.min(new);
        // What the external parent had there does not come back.
        if let Some(visible) = visible {
            let size = r.meta.parent_size();
            r.meta.set_visible(visible, size);
        }
        r.hot.map.store(Arc::new(r.hot.map.load().resized(new)));
        r.hot.clusters.store(new, Ordering::Release);
        self.relayout_all(lid)?;
        if visible.is_some() {
            self.refresh_external(lid);
        }
        Ok(())
    }

    /// The number of clusters stands in every page of the table.
    fn relayout_all(&mut self, lid: Lid) -> Result<()> {
        self.record_mut(lid)?.layout = None;
        self.relayout(lid)
    }

    fn shrink(&mut self, lid: Lid, new: u64) -> Result<bool> {
        let r = self.record(lid)?;
        let (token, map) = (r.hot.token(), r.hot.map.load_full());
        if self.extents_behind(lid, new)?.iter().any(|ep| !map.has_leaf(*ep as usize)) {
            return Ok(false);
        }
        // The number of clusters stands in every page of the table.
        let mut meta = r.meta.clone();
        if let Extents::Table { num_clusters, pages } = &mut meta.extents {
            *num_clusters = new;
            pages.truncate(new.div_ceil(LEAF_CLUSTERS) as usize);
        }
        self.check_pages(self.pages_for_chain(r, &meta, true)?)?;
        let edge = (new / LEAF_CLUSTERS) as usize;
        let mut freed = Vec::new();
        let mut marks = 0;
        if !new.is_multiple_of(LEAF_CLUSTERS) {
            let Some(leaf) = map.leaf(edge) else { return Ok(false) };
            let written = r.eps().get(edge).is_some_and(|p| *p != 0);
            if written {
                let from = (new % LEAF_CLUSTERS) as usize;
                for (_, e) in leaf.own_entries(token, LEAF_CLUSTERS as usize).filter(|(n, _)| *n >= from) {
                    freed.extend(e.cluster());
                    marks += i64::from(e.is_zero_mark());
                }
            }
            let inside = (new % LEAF_CLUSTERS) as usize;
            let owner = if written { token } else { 0 };
            let cut = Leaf::new(owner, |n| if n < inside { leaf.get(n) } else { Entry::NONE });
            if written {
                self.mark_leaf(lid, edge as u32, true)?;
                map.set_leaf(edge, Some(cut));
            } else {
                map.set_leaf(edge, None);
            }
        }
        // Whole extent pages beyond the new end.
        let mut pages = Vec::new();
        for ep in self.extents_behind(lid, new)? {
            let Some(leaf) = map.leaf(ep as usize) else { return Ok(false) };
            for (_, e) in leaf.own_entries(token, LEAF_CLUSTERS as usize) {
                freed.extend(e.cluster());
                marks += i64::from(e.is_zero_mark());
            }
            let r = self.record_mut(lid)?;
            r.dirty_leaves.remove(&(ep as u32));
            pages.extend(r.eps().get(ep as usize));
        }
        freed.iter().for_each(|c| self.free_cluster(*c));
        pages.into_iter().for_each(|p| self.free_page(p));
        self.with_reservation(lid, |r| r.own -= freed.len() as u64)?;
        self.count_zero_mark(lid, -marks)?;
        self.with_size(lid, new)?;
        Ok(true)
    }

    /// Extents wholly behind `clusters` that have a page.
    fn extents_behind(&self, lid: Lid, clusters: u64) -> Result<Vec<u64>> {
        let eps = self.record(lid)?.eps();
        let keep = clusters.div_ceil(LEAF_CLUSTERS) as usize;
        Ok((keep..eps.len()).filter(|n| eps[*n] != 0).map(|n| n as u64).collect())
    }

    fn with_size(&mut self, lid: Lid, new: u64) -> Result<()> {
        let before = self.record(lid)?.reservation();
        let result = self.set_clusters(lid, new);
        let after = self.record(lid)?.reservation();
        self.clusters.reserved = self.clusters.reserved + after - before;
        self.recount_reserved_pages();
        result
    }

    fn enlarge(&mut self, lid: Lid, old: u64, new: u64) -> Result<bool> {
        let r = self.record(lid)?;
        if r.thick {
            let name = format!("growing thick lvol {}", r.name());
            self.check_reservation(new - old, &name)?;
        }
        self.check_tables(new - old)?;
        let mut meta = self.record(lid)?.meta.clone();
        if let Extents::Table { num_clusters, pages } = &mut meta.extents {
            *num_clusters = new;
            pages.resize(new.div_ceil(LEAF_CLUSTERS) as usize, 0);
        }
        let r = self.record(lid)?;
        // What the parent has there must not show: the range reads zero.
        let parent = r.parent.and_then(|p| self.records.get(&p)).map(|p| (p.hot.map.load_full(), p.clusters()));
        let mut marks: Vec<u64> = Vec::new();
        if let Some((map, clusters)) = parent {
            for cluster in old..new.min(clusters) {
                match map.lookup(cluster) {
                    None => return Ok(false),
                    Some((entry, _)) if entry != Entry::NONE => marks.push(cluster),
                    Some(_) => {}
                }
            }
        }
        let mark_pages = marks.chunk_by(|a, b| a / LEAF_CLUSTERS == b / LEAF_CLUSTERS).count();
        self.check_pages(layout::layout(&meta)?.pages + mark_pages)?;
        // What is new is not allocated: no longer as SPDK made it, if it made it thick.
        self.allow_holes(lid)?;
        // The last extent page gets more entries.
        let edge = old / LEAF_CLUSTERS;
        if !old.is_multiple_of(LEAF_CLUSTERS) && self.record(lid)?.eps().get(edge as usize).is_some_and(|p| *p != 0) {
            if !self.record(lid)?.hot.map.load().has_leaf(edge as usize) {
                return Ok(false);
            }
            self.mark_leaf(lid, edge as u32, false)?;
        } else if !old.is_multiple_of(LEAF_CLUSTERS) {
            // Inherited up to the old end only: composed anew for the new one.
            self.record(lid)?.hot.map.load().set_leaf(edge as usize, None);
        }
        self.with_size(lid, new)?;
        for group in marks.chunk_by(|a, b| a / LEAF_CLUSTERS == b / LEAF_CLUSTERS) {
            let Some(first) = group.first() else { continue };
            let slot = (first / LEAF_CLUSTERS) as usize;
            let hot = self.record(lid)?.hot.clone();
            if !hot.map.load().has_leaf(slot) {
                let base = self
                    .record(lid)?
                    .parent
                    .and_then(|p| self.records.get(&p))
                    .and_then(|p| p.hot.map.load().leaf(slot));
                let (start, token) = (slot as u64 * LEAF_CLUSTERS, hot.token());
                let leaf = Leaf::new(token, |n| match &base {
                    Some(base) if start + (n as u64) < new => base.get(n).inherited(),
                    _ => Entry::NONE,
                });
                hot.map.load().set_leaf(slot, Some(leaf));
            }
            for cluster in group {
                self.set_entry(lid, *cluster, Entry::OWN_ZERO)?;
            }
        }
        Ok(true)
    }

    /// A lvol that SPDK made thick gets holes: it becomes thin, with a reservation if it is writable.
    pub(super) fn allow_holes(&mut self, lid: Lid) -> Result<()> {
        let r = self.record(lid)?;
        if r.meta.flags.is_thin() {
            return Ok(());
        }
        let thick = r.thick;
        let external = r.external().is_some();
        self.update_meta(lid, |meta| {
            if !external {
                // A parent that was left over in a lvol without holes must not come back.
                meta.set_snapshot_parent(None);
            }
            meta.flags.set_invalid(Flags::THIN_PROV, true);
            if thick {
                meta.set_xattr(false, ATTR_THICK.as_bytes(), b"1");
            }
            Ok(())
        })
    }
}

enum Unmap {
    Done(u64),
    Busy(u64),
    Missing(u64),
    Room(u64),
}

impl Handle {
    /// Lets go of whole clusters from `first` on; answers how many were done. They read zero afterwards.
    pub async fn unmap(&self, first: u64, count: u64) -> Result<u64> {
        let mut waited = false;
        loop {
            let step = match self.unmap_step(first, count) {
                Err(e) if lacks_space(&e) && !waited && lock(&self.store.core).space_is_coming() => {
                    // A metadata page may be on its way back.
                    waited = true;
                    self.store.commit().await?;
                    self.store.background_done().await;
                    self.store.reclaimed().await?;
                    continue;
                }
                step => step?,
            };
            match step {
                Unmap::Done(n) => return Ok(n),
                Unmap::Busy(logical) => {
                    let key = (self.lvol.lid, logical);
                    wait_until(&self.store.core, |core, cx| {
                        if !core.allocating.contains(&key) || core.failed.is_some() {
                            return Poll::Ready(());
                        }
                        core.alloc_wait.register(cx);
                        Poll::Pending
                    })
                    .await;
                }
                Unmap::Missing(logical) => self.store.load_leaf(&self.local.shard, &self.lvol, logical).await?,
                Unmap::Room(batch) => self.store.durable(batch).await?,
            }
        }
    }

    fn unmap_step(&self, first: u64, count: u64) -> Result<Unmap> {
        let lid = self.lvol.lid;
        let end = (first / LEAF_CLUSTERS + 1) * LEAF_CLUSTERS;
        let last = end.min(first + count);
        let mut core = lock(&self.store.core);
        core.may_change()?;
        if !room_for(&core, 4) {
            return Ok(Unmap::Room(core.open_batch));
        }
        let map: Arc<Map> = self.lvol.map.load_full();
        let token = self.lvol.token();
        let r = core.record(lid)?;
        if matches!(r.meta.extents, Extents::Rle(_)) {
            return Err(err!(Unsupported, "lvol {} was made by an old SPDK without extent table: copy it", r.name()));
        }
        let inherits = r.inherits();
        let slot = (first / LEAF_CLUSTERS) as usize;
        // Nothing was ever allocated in this range.
        let untouched = !inherits && r.eps().get(slot) == Some(&0) && !map.has_leaf(slot);
        if untouched && !core.allocating.range((lid, first)..(lid, last)).any(|_| true) {
            return Ok(Unmap::Done(last - first));
        }
        if let Some((_, busy)) = core.allocating.range((lid, first)..(lid, last)).next() {
            return Ok(Unmap::Busy(*busy));
        }
        for logical in first..last {
            let Some(seen) = Seen::of(&map, token, logical) else { return Ok(Unmap::Missing(logical)) };
            let own = seen.entry.cluster().filter(|_| seen.mine);
            let outside = seen.entry.is_external() && self.lvol.external.load().is_some();
            if seen.entry.cluster().is_none() && !outside {
                continue;
            }
            core.allow_holes(lid)?;
            let entry = if inherits { Entry::OWN_ZERO } else { Entry::NONE };
            core.set_entry(lid, logical, entry)?;
            if let Some(cluster) = own {
                core.with_reservation(lid, |r| r.own -= 1)?;
                core.free_cluster(cluster);
            }
        }
        Ok(Unmap::Done(last - first))
    }
}
