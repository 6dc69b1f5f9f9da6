//! Inflate (own everything that is read from ancestors) and decouple (own what the direct parent owns), then cut the link.
//!
//! Cluster by cluster while I/O goes on; cut off at any point, what was copied stays and nothing that is read changes.

use super::Lvol;
use super::external::data_runs;
use super::io::{LvolIo, Seen};
use super::merge::Next;
use crate::api::{LvolInfo, Progress};
use crate::error::{Result, err};
use crate::format::page::blob_id;
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::store::Lvstore;
use crate::store::core::{Core, Lid};
use crate::store::map::{Entry, LEAF_CLUSTERS};
use futures_util::future::join_all;
use std::sync::Arc;
use uuid::Uuid;

/// Clusters copied side by side.
const COPIES: usize = 8;

impl Core {
    /// How much merges have moved into the direct parent, if it still is `parent`.
    fn merged_into_parent(&self, lid: Lid, parent: Lid) -> Result<Option<u64>> {
        let still = self.record(lid)?.parent == Some(parent);
        Ok(self.records.get(&parent).filter(|_| still).map(|p| p.merged))
    }

    /// The lvol's parent is from now on its grandparent, or nobody (`all`).
    fn cut_link(&mut self, lid: Lid, all: bool) -> Result<()> {
        let Some(parent) = self.record(lid)?.parent else { return Ok(()) };
        let p = self.record(parent)?;
        let grandparent = if all { None } else { p.parent };
        let visible = p.visible(u64::from(self.geo.cluster_size));
        let size = p.meta.parent_size();
        let external = p.external().filter(|_| !all).map(|identity| (identity.to_vec(), visible, size));
        let id = match grandparent {
            Some(g) => Some(blob_id(self.record(g)?.root())),
            None => None,
        };
        self.update_meta(lid, |meta| {
            match external {
                Some((identity, visible, size)) => meta.set_external_parent(&identity, visible, size),
                None => meta.set_snapshot_parent(id),
            }
            Ok(())
        })?;
        self.set_parent(lid, grandparent)?;
        self.refresh_external(lid);
        Ok(())
    }
}

/// Called now and then; `false` cancels.
pub type OnProgress = Box<dyn FnMut(Progress) -> bool + Send>;

impl Lvstore {
    pub async fn inflate(self: &Arc<Self>, shard: &Shard, uuid: Uuid, progress: OnProgress) -> Result<LvolInfo> {
        self.detach(shard, uuid, true, progress).await
    }

    pub async fn decouple(self: &Arc<Self>, shard: &Shard, uuid: Uuid, progress: OnProgress) -> Result<LvolInfo> {
        self.detach(shard, uuid, false, progress).await
    }

    async fn detach(
        self: &Arc<Self>,
        shard: &Shard,
        uuid: Uuid,
        all: bool,
        mut progress: OnProgress,
    ) -> Result<LvolInfo> {
        self.activate(shard).await?;
        let carries = {
            let core = lock(&self.core);
            let r = core.record(core.lid_of(uuid)?)?;
            r.external().is_some() && !r.hidden && !r.is_snapshot()
        };
        if carries {
            // Its direct parent is all that it inherits from.
            return self.hydrate(shard, uuid, progress).await;
        }
        let what = if all { "inflate" } else { "decouple" };
        let (lid, io) = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.idle(uuid)?;
            let r = core.record_mut(lid)?;
            if r.hidden {
                return Err(err!(NotFound, "lvol {uuid} was deleted"));
            }
            if r.is_snapshot() {
                return Err(err!(ReadOnly, "{} is a snapshot: {what} works on writable lvols", r.name()));
            }
            if r.parent.is_none() {
                if all {
                    return self.describe(&core, lid);
                }
                return Err(err!(Invalid, "lvol {} has no parent to be decoupled from", r.name()));
            }
            r.busy = Some(what);
            let io = LvolIo::for_lvol(self, self.local(shard)?, r.hot.clone());
            (lid, io)
        };
        let result = self.detach_checked(shard, lid, &io, all, &mut progress).await;
        drop(io);
        if let Ok(r) = lock(&self.core).record_mut(lid) {
            r.busy = None;
        }
        let old_parent = result?;
        self.collapse(shard, old_parent);
        self.commit().await?;
        self.describe(&lock(&self.core), lid)
    }

    /// Answers with the former parent.
    async fn detach_checked(
        self: &Arc<Self>,
        shard: &Shard,
        lid: Lid,
        io: &LvolIo,
        all: bool,
        progress: &mut OnProgress,
    ) -> Result<Lid> {
        let lvol = io.lvol().clone();
        let parent = lock(&self.core).record(lid)?.parent.ok_or_else(|| err!(Invalid, "the parent is gone already"))?;
        loop {
            // A parent that is deleted meanwhile is merged into the lvol: that cuts the link too.
            let Some(merged) = lock(&self.core).merged_into_parent(lid, parent)?.or(all.then_some(0)) else { break };
            self.copy_inherited(shard, lid, io, all, progress).await?;
            if self.cut(shard, &lvol, parent, all, merged).await? {
                break;
            }
        }
        if !lock(&self.core).record(lid)?.inherits() {
            // Nothing is left that a zero mark could hide.
            self.drop_zero_marks(shard, &lvol).await?;
        }
        Ok(parent)
    }

    /// Copies what the lvol inherits: everything, or what its direct parent owns.
    async fn copy_inherited(
        self: &Arc<Self>,
        shard: &Shard,
        lid: Lid,
        io: &LvolIo,
        all: bool,
        progress: &mut OnProgress,
    ) -> Result<()> {
        let lvol = io.lvol();
        // The lvol may grow meanwhile; what it grows into has nothing inherited.
        let clusters = lvol.clusters();
        let mut at = 0;
        while at < clusters {
            let mut todo = self.inherited(shard, lid, lvol, at, all).await?;
            self.leave_holes(lvol, at, &mut todo).await?;
            for group in todo.chunks(COPIES) {
                // All end, also when one fails: a copy that is dropped half-way would keep its claim for ever.
                let copies = join_all(group.iter().map(|c| io.handle().copy_cluster(*c))).await;
                copies.into_iter().collect::<Result<Vec<bool>>>()?;
            }
            at = ((at / LEAF_CLUSTERS + 1) * LEAF_CLUSTERS).min(clusters);
            if !progress(Progress { done: at, total: clusters }) {
                return Err(err!(Cancelled, "cancelled; what was copied stays, and the lvol still has its parent"));
            }
        }
        Ok(())
    }

    /// Takes out of `todo` (clusters of the leaf at `at`) what the external parent calls a hole.
    async fn leave_holes(&self, lvol: &Arc<Lvol>, at: u64, todo: &mut Vec<u64>) -> Result<()> {
        let map = lvol.map.load_full();
        let outside = |c: &u64| map.lookup(*c).is_some_and(|(entry, _)| entry.is_external());
        let Some(from) = lvol.external.load_full().filter(|_| todo.iter().any(outside)) else { return Ok(()) };
        let size = self.cluster_size();
        let end = from.end().await?;
        let len = (LEAF_CLUSTERS * size).min(end.saturating_sub(at * size));
        let runs = match len {
            0 => Vec::new(),
            len => data_runs(&from.link.status(at * size, len).await?, size),
        };
        todo.retain(|c| !outside(c) || runs.iter().any(|(first, n)| (at + first..at + first + n).contains(c)));
        Ok(())
    }

    /// Cuts the link. False: a merge has changed what the direct parent owns since it was `merged`, so there may be more
    /// to copy.
    async fn cut(&self, shard: &Shard, lvol: &Arc<Lvol>, parent: Lid, all: bool, merged: u64) -> Result<bool> {
        loop {
            self.batch_room(8).await?;
            let step = {
                let mut core = lock(&self.core);
                core.may_change()?;
                if !all && core.merged_into_parent(lvol.lid, parent)? != Some(merged) {
                    return Ok(false);
                }
                match if all { None } else { core.mask_step(parent, lvol.lid)? } {
                    None => {
                        core.cut_link(lvol.lid, all)?;
                        return Ok(true);
                    }
                    Some(step) => step,
                }
            };
            if let Next::Load(lvol, at) = step {
                self.load_leaf(shard, &lvol, at).await?;
            }
        }
    }

    /// The clusters of the leaf at `at` that have to be copied. Zero marks of the parent are taken over at once.
    async fn inherited(&self, shard: &Shard, lid: Lid, lvol: &Arc<Lvol>, at: u64, all: bool) -> Result<Vec<u64>> {
        loop {
            self.load_leaf(shard, lvol, at).await?;
            let parent = {
                let core = lock(&self.core);
                core.record(lid)?.parent.and_then(|p| core.records.get(&p)).map(|p| p.hot.clone())
            };
            if let Some(p) = &parent
                && at < p.clusters()
            {
                self.load_leaf(shard, p, at).await?;
            }
            self.batch_room(6).await?;
            let mut core = lock(&self.core);
            let (map, token) = (lvol.map.load_full(), lvol.token());
            let parent_map = parent.as_ref().map(|p| (p.map.load_full(), p.token()));
            let mut todo = Vec::new();
            let mut complete = true;
            for cluster in at..(at + LEAF_CLUSTERS).min(lvol.clusters()) {
                let Some(seen) = Seen::of(&map, token, cluster) else {
                    complete = false;
                    break;
                };
                if seen.mine {
                    continue;
                }
                let above = parent_map.as_ref().and_then(|(m, t)| Seen::of(m, *t, cluster)).filter(|s| s.mine);
                let outside = seen.entry.is_external() && lvol.external.load().is_some();
                let reads_zero = seen.entry.cluster().is_none() && !outside;
                if !all && reads_zero && above.is_some() {
                    // What hides the grandparent's content: a zero mark, which may not show in the leaf yet when it came
                    // with a merge, or the cluster of zeroes that sealing put in a mark's place.
                    core.set_entry(lid, cluster, Entry::OWN_ZERO)?;
                }
                if reads_zero || !all && above.is_none() {
                    continue;
                }
                todo.push(cluster);
            }
            if complete {
                return Ok(todo);
            }
        }
    }

    /// Turns zero marks of a lvol without parent into nothing.
    pub(super) async fn drop_zero_marks(&self, shard: &Shard, lvol: &Arc<Lvol>) -> Result<()> {
        self.each_zero_mark(shard, lvol, |core, cluster| core.set_entry(lvol.lid, cluster, Entry::NONE)).await
    }

    async fn each_zero_mark(
        &self,
        shard: &Shard,
        lvol: &Arc<Lvol>,
        mut change: impl FnMut(&mut Core, u64) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < lvol.clusters() {
            let skip = {
                let core = lock(&self.core);
                let r = core.record(lvol.lid)?;
                if r.zero_marks == 0 {
                    return Ok(());
                }
                r.eps().get((at / LEAF_CLUSTERS) as usize).is_none_or(|p| *p == 0)
            };
            if !skip {
                self.batch_room(4).await?;
                self.load_leaf(shard, lvol, at).await?;
                let mut core = lock(&self.core);
                let (map, token) = (lvol.map.load_full(), lvol.token());
                if !map.has_leaf((at / LEAF_CLUSTERS) as usize) {
                    // Evicted in between.
                    continue;
                }
                for cluster in at..(at + LEAF_CLUSTERS).min(lvol.clusters()) {
                    match Seen::of(&map, token, cluster) {
                        Some(s) if s.mine && s.entry.is_zero_mark() => change(&mut core, cluster)?,
                        _ => {}
                    }
                }
            }
            at += LEAF_CLUSTERS;
        }
        Ok(())
    }

    /// Gives every zero mark of a lvol a cluster of zeroes, so that SPDK reads the same.
    pub(crate) async fn fill_zero_marks(self: &Arc<Self>, shard: &Shard, lvol: &Arc<Lvol>) -> Result<()> {
        let mut marked = Vec::new();
        let inherits = lock(&self.core).record(lvol.lid)?.inherits();
        if !inherits {
            return self.drop_zero_marks(shard, lvol).await;
        }
        self.each_zero_mark(shard, lvol, |_, cluster| {
            marked.push(cluster);
            Ok(())
        })
        .await?;
        let io = LvolIo::for_lvol(self, self.local(shard)?, lvol.clone());
        for cluster in marked {
            io.handle().fill_zero(cluster).await?;
        }
        Ok(())
    }
}
