//! Deleting a snapshot that has a child: the child takes over what it reads from it.
//!
//! The snapshot is *hidden* first (its name is free, it is not listed), durable before the call answers. Then a task moves
//! one extent page range after the other; each step is one transaction after which every cluster has one owner. No data
//! moves and no I/O waits. After a crash the task begins again where the metadata says.
//!
//! A hidden snapshot with several children stays as it is until only one is left.

use crate::error::Result;
use crate::format::Extents;
use crate::format::blob::Parent;
use crate::format::page::blob_id;
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::{ATTR_HIDDEN, Core, DELETED_PREFIX, Lid};
use crate::store::map::{Entry, LEAF_CLUSTERS};
use std::sync::Arc;

/// How far a merge is.
#[derive(Default)]
struct MergeAt {
    /// Extent page of the snapshot to look at next.
    ep: u32,
}

/// What one look at a merge says.
pub(super) enum Next {
    /// The leaf of this lvol is needed.
    Load(Arc<super::Lvol>, u64),
    Stepped,
    /// No range is left: the last step was made.
    Done,
    /// The child is gone: the snapshot is an ordinary lvol to remove.
    Childless,
    /// More children appeared, or it cannot be merged, or the snapshot itself is gone.
    Stop,
}

impl Core {
    /// Takes a snapshot with children out of sight, with the open batch.
    pub(super) fn hide(&mut self, lid: Lid) -> Result<()> {
        let old = self.record(lid)?.name();
        let name = format!("{DELETED_PREFIX}{}", self.record(lid)?.hot.uuid);
        self.update_meta(lid, |meta| {
            meta.set_name(name.as_bytes())?;
            meta.set_xattr(false, ATTR_HIDDEN.as_bytes(), b"1");
            Ok(())
        })?;
        if self.by_name.get(&old) == Some(&lid) {
            self.by_name.remove(&old);
        }
        self.by_name.insert(name, lid);
        self.record_mut(lid)?.hidden = true;
        Ok(())
    }
}

impl Lvstore {
    /// Starts the merge of every hidden snapshot that is due: what a crash cut off.
    pub(crate) fn resume_deletes(self: &Arc<Self>, shard: &Shard) {
        let due: Vec<Lid> = {
            let core = lock(&self.core);
            core.records.iter().filter(|(_, r)| r.hidden && r.damaged.is_none()).map(|(lid, _)| *lid).collect()
        };
        due.into_iter().for_each(|lid| self.collapse(shard, lid));
    }

    /// If `lid` is a hidden snapshot with one child or none, it goes now, in the background.
    pub(super) fn collapse(self: &Arc<Self>, shard: &Shard, lid: Lid) {
        {
            let mut core = lock(&self.core);
            let Ok(r) = core.record_mut(lid) else { return };
            let pinned = r.is_pinned() && !active(Mutation::MergePinned);
            if !r.hidden || r.children.len() > 1 || r.busy.is_some() || r.damaged.is_some() || pinned {
                return;
            }
            r.busy = Some("merge");
            core.merges += 1;
        }
        let (store, on) = (self.clone(), shard.clone());
        shard.spawn(async move {
            let result = match store.activate(&on).await {
                Ok(()) => store.merge(&on, lid).await,
                Err(e) => Err(e),
            };
            let mut core = lock(&store.core);
            if let Err(e) = result {
                tracing::warn!(error = %e, "a deleted snapshot stays until it is deleted again or the store is reopened");
                if let Some(r) = core.records.get_mut(&lid) {
                    r.busy = None;
                }
            }
            core.merges -= 1;
            core.reclaim.idle_wait.wake_all();
            core.space_wait.wake_all();
        });
    }

    /// Merges a hidden snapshot into its only child.
    pub(crate) async fn merge(self: &Arc<Self>, shard: &Shard, lid: Lid) -> Result<()> {
        let mut at = MergeAt::default();
        loop {
            self.batch_room(8).await?;
            let next = lock(&self.core).merge_step(lid, &mut at)?;
            match next {
                Next::Load(lvol, cluster) => self.load_leaf(shard, &lvol, cluster).await?,
                Next::Stepped => {
                    if active(Mutation::MergeWrongOrder) {
                        self.commit().await?;
                    }
                    // Metadata only, but a large snapshot has many ranges: others come first.
                    shard.yield_now().await;
                }
                Next::Done => break,
                Next::Stop => return Ok(()),
                Next::Childless => {
                    let parent = lock(&self.core).remove(lid)?;
                    // An ancestor that only waited for this child goes too.
                    parent.into_iter().for_each(|p| self.collapse(shard, p));
                    break;
                }
            }
        }
        self.commit().await
    }
}

impl Core {
    /// Moves the next range of snapshot `s` to its only child.
    fn merge_step(&mut self, s: Lid, at: &mut MergeAt) -> Result<Next> {
        self.may_change()?;
        let Some(snapshot) = self.records.get(&s) else { return Ok(Next::Stop) };
        let Some(c) = snapshot.children.first().copied() else { return Ok(Next::Childless) };
        let (several, runs) = (snapshot.children.len() > 1, matches!(snapshot.meta.extents, Extents::Rle(_)));
        let child = self.record(c)?;
        let foreign = child.damaged.is_some() || child.understood().is_err();
        // Others read what it has by its own map.
        let pinned = snapshot.is_pinned() && !active(Mutation::MergePinned);
        if several || pinned || runs || foreign || matches!(child.meta.extents, Extents::Rle(_)) {
            // In the same step, so that whoever takes a child away next begins anew.
            self.record_mut(s)?.busy = None;
            return Ok(Next::Stop);
        }
        let (snapshot, child) = (self.record(s)?, self.record(c)?);
        // The next range in which the snapshot owns something.
        let eps = snapshot.eps();
        while eps.get(at.ep as usize) == Some(&0) {
            at.ep += 1;
        }
        let n = at.ep as usize;
        if n >= eps.len() {
            if let Some(next) = self.mask_step(s, c)? {
                return Ok(next);
            }
            // Its own parent may have been merged into it meanwhile, in ranges that were done.
            if let Some(again) = self.record(s)?.eps().iter().position(|page| *page != 0) {
                at.ep = again as u32;
                return Ok(Next::Stepped);
            }
            self.finish_merge(s, c)?;
            return Ok(Next::Done);
        }
        let first = u64::from(at.ep) * LEAF_CLUSTERS;
        if !snapshot.hot.map.load().has_leaf(n) {
            return Ok(Next::Load(snapshot.hot.clone(), first));
        }
        let inside_child = n < child.hot.map.load().slots();
        if inside_child && !child.hot.map.load().has_leaf(n) {
            return Ok(Next::Load(child.hot.clone(), first));
        }
        let whole = snapshot.ep_len(at.ep) == child.ep_len(at.ep);
        let as_it_is = inside_child && whole && child.eps().get(n) == Some(&0);
        // What SPDK made thick has holes from now on.
        self.allow_holes(s)?;
        self.record_mut(c)?.merged += 1;
        if as_it_is {
            self.adopt_page(s, c, at.ep)?;
        } else {
            self.merge_page(s, c, at.ep)?;
        }
        at.ep += 1;
        Ok(Next::Stepped)
    }

    /// A snapshot that is shorter than its parent hides what the parent has behind the snapshot's end. Before it goes, the
    /// child gets zero marks there. `None`: nothing is left to do.
    pub(super) fn mask_step(&mut self, s: Lid, c: Lid) -> Result<Option<Next>> {
        let (snapshot, child) = (self.record(s)?, self.record(c)?);
        let Some(grandparent) = snapshot.parent.and_then(|g| self.records.get(&g)) else { return Ok(None) };
        let limit = child.clusters().min(grandparent.clusters());
        let from = snapshot.clusters().max(child.masked_to);
        if from >= limit {
            return Ok(None);
        }
        let (child, grandparent) = (child.hot.clone(), grandparent.hot.clone());
        let to = limit.min((from / LEAF_CLUSTERS + 1) * LEAF_CLUSTERS);
        if let Some(load) = self.hide_from(&child, &grandparent, from, to)? {
            return Ok(Some(Next::Load(load, from)));
        }
        self.record_mut(c)?.masked_to = to;
        Ok(Some(Next::Stepped))
    }

    /// The lvol has another parent, its children another grandparent.
    pub(super) fn set_parent(&mut self, lid: Lid, parent: Option<Lid>) -> Result<()> {
        if let Some(p) = parent {
            self.record_mut(p)?.children.insert(lid);
        }
        let r = self.record_mut(lid)?;
        let old = std::mem::replace(&mut r.parent, parent);
        r.masked_to = 0;
        let children = r.children.clone();
        for child in children {
            self.record_mut(child)?.masked_to = 0;
        }
        if let Some(p) = old.and_then(|p| self.records.get_mut(&p)) {
            p.children.remove(&lid);
        }
        Ok(())
    }

    /// Marks the clusters `from..to` (of one leaf) of `lvol` as zero where it has nothing of its own and `ancestor`, which
    /// is to become its parent, has something. Answers whose leaf is missing.
    fn hide_from(
        &mut self,
        lvol: &Arc<super::Lvol>,
        ancestor: &Arc<super::Lvol>,
        from: u64,
        to: u64,
    ) -> Result<Option<Arc<super::Lvol>>> {
        let (map, above) = (lvol.map.load_full(), ancestor.map.load_full());
        for cluster in from..to {
            let Some((entry, _)) = map.lookup(cluster) else { return Ok(Some(lvol.clone())) };
            let Some((there, _)) = above.lookup(cluster) else { return Ok(Some(ancestor.clone())) };
            if entry == Entry::NONE && (there.cluster().is_some() || there.is_external()) {
                self.set_entry(lvol.lid, cluster, Entry::OWN_ZERO)?;
            }
        }
        Ok(None)
    }

    /// The child owns nothing in this range: it takes the snapshot's extent page as it is.
    fn adopt_page(&mut self, s: Lid, c: Lid, ep: u32) -> Result<()> {
        let n = ep as usize;
        // Both tables are laid out before anything moves, so that nothing can fail halfway.
        self.mark_table(c, ep)?;
        self.mark_table(s, ep)?;
        let snapshot = self.record_mut(s)?;
        let Some(leaf) = snapshot.hot.map.load().leaf(n) else { return Ok(()) };
        let count = snapshot.ep_len(ep);
        let entries: Vec<_> = leaf.own_entries(snapshot.hot.token(), count).map(|(_, e)| e).collect();
        let own = entries.iter().filter(|e| e.cluster().is_some()).count() as u64;
        let marks = entries.iter().filter(|e| e.is_zero_mark()).count() as i64;
        let unwritten = snapshot.dirty_leaves.remove(&ep);
        let page = match snapshot.eps_mut().and_then(|(_, eps)| eps.get_mut(n)) {
            Some(slot) => std::mem::take(slot),
            None => return Ok(()),
        };
        snapshot.hot.map.load().set_leaf(n, None);
        self.with_reservation(s, |r| r.own -= own)?;
        self.count_zero_mark(s, -marks)?;
        let child = self.record_mut(c)?;
        if let Some((_, eps)) = child.eps_mut()
            && let Some(slot) = eps.get_mut(n)
        {
            *slot = page;
        }
        if unwritten {
            child.dirty_leaves.insert(ep);
        }
        leaf.set_owner(child.hot.token());
        child.hot.map.load().set_leaf(n, Some(leaf));
        self.with_reservation(c, |r| r.own += own)?;
        if self.record(c)?.thick {
            self.recount_reserved_pages();
        }
        self.count_zero_mark(c, marks)
    }

    /// Both own something in this range, or it ends differently: entry by entry.
    fn merge_page(&mut self, s: Lid, c: Lid, ep: u32) -> Result<()> {
        let n = ep as usize;
        let snapshot = self.record(s)?;
        let Some(from) = snapshot.hot.map.load().leaf(n) else { return Ok(()) };
        let own: Vec<_> = from.own_entries(snapshot.hot.token(), snapshot.ep_len(ep)).collect();
        let child_len = self.record(c)?.ep_len(ep);
        let has_grandparent = snapshot.inherits();
        let to = if child_len > 0 {
            let to = self.own_leaf(c, ep)?;
            self.mark_leaf(c, ep, true)?;
            Some(to)
        } else {
            None
        };
        self.mark_table(s, ep)?;
        if active(Mutation::MergeWrongOrder) {
            // The deliberate bug: the clusters are given up, and nobody takes them in this transaction.
            if let Some(r) = self.records.get_mut(&c) {
                r.dirty_leaves.remove(&ep);
            }
        }
        let (mut moved, mut moved_marks, mut freed, mut marks) = (0, 0, Vec::new(), 0);
        for (at, entry) in own {
            let mine = to.as_ref().filter(|_| at < child_len).map(|leaf| leaf.get(at));
            marks += i64::from(entry.is_zero_mark());
            match (&to, mine) {
                (Some(_), Some(there)) if there.is_own() => {
                    // The child hides it. After a half-done SPDK merge it may be the very same cluster.
                    freed.extend(entry.cluster().filter(|x| there.cluster() != Some(*x)));
                }
                (Some(leaf), Some(_)) => match entry.cluster() {
                    Some(_) => {
                        leaf.set(at, entry);
                        moved += 1;
                    }
                    None if has_grandparent => {
                        leaf.set(at, entry);
                        moved_marks += 1;
                    }
                    None => leaf.set(at, Entry::NONE),
                },
                _ => freed.extend(entry.cluster()),
            }
        }
        // What both list after a half-done SPDK merge counts as the child's.
        let gone = moved + freed.len() as u64;
        self.with_reservation(s, |r| r.own = r.own.saturating_sub(gone))?;
        let snapshot = self.record_mut(s)?;
        snapshot.dirty_leaves.remove(&ep);
        snapshot.hot.map.load().set_leaf(n, None);
        let page = match snapshot.eps_mut().and_then(|(_, eps)| eps.get_mut(n)) {
            Some(slot) => std::mem::take(slot),
            None => 0,
        };
        if page != 0 {
            self.free_page(page);
        }
        self.count_zero_mark(s, -marks)?;
        freed.into_iter().for_each(|x| self.free_cluster(x));
        self.with_reservation(c, |r| r.own += moved)?;
        self.count_zero_mark(c, moved_marks)
    }

    /// Nothing is left in the snapshot: the child's parent is the snapshot's parent, and the snapshot is gone.
    fn finish_merge(&mut self, s: Lid, c: Lid) -> Result<()> {
        let snapshot = self.record(s)?;
        let parent = snapshot.parent;
        let external = match snapshot.meta.parent() {
            Ok(Parent::External(id)) => Some(id.to_vec()),
            _ => None,
        };
        let (hydration, promised) = (snapshot.meta.hydration(), snapshot.promised);
        let visible = snapshot.visible(u64::from(self.geo.cluster_size));
        let parent_size = snapshot.meta.parent_size();
        let parent_id = match parent {
            Some(p) => Some(blob_id(self.record(p)?.root())),
            None => None,
        };
        self.update_meta(c, |meta| {
            meta.set_snapshot_parent(parent_id);
            if let Some(id) = external {
                meta.set_external_parent(&id, visible, parent_size);
            }
            if let Some((left, total)) = hydration {
                meta.set_hydration(left, total);
            }
            Ok(())
        })?;
        self.record_mut(s)?.children.clear();
        self.with_reservation(s, |r| r.own = 0)?;
        self.remove(s)?;
        self.with_reservation(c, |r| {
            r.merged += 1;
            r.promised = promised;
        })?;
        self.set_parent(c, parent)?;
        self.refresh_external(c);
        self.hydration.wake();
        Ok(())
    }
}
