//! Snapshots: one lvol, or several of a store at one instant (P2).
//!
//! ```text
//!   check ▶ every shard stops planning ▶ swap maps ▶ go on ▶ I/O planned before has completed ▶ commit ▶ answer
//! ```
//!
//! The snapshot takes over the origin's blob as it is: chain, extent pages, map. The origin keeps its name and UUID and
//! gets a new, empty blob on top. So the cost does not depend on what is mapped: two roots and an empty table.
//!
//! I/O planned before the swap writes into clusters that are the snapshot's now. It belongs to the snapshot: the call
//! answers only when it has completed, and until then copies on write of the origin wait (`gate_closed`).

use super::Lvol;
use super::tree::{kept_flags, set_attribute};
use crate::api::{CreateSnapshot, LvolInfo};
use crate::error::{Result, err};
use crate::format::page::blob_id;
use crate::format::{BlobMeta, Flags, layout};
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::{ATTR_HIDDEN, ATTR_THICK, Core, Lid, Record};
use crate::store::map::Map;
use futures_util::future::try_join_all;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

impl Lvstore {
    /// Snapshots lvols at one instant; all or none.
    pub async fn snapshot(self: &Arc<Self>, shard: &Shard, how: Vec<CreateSnapshot>) -> Result<Vec<LvolInfo>> {
        self.activate(shard).await?;
        let uuids: Vec<Uuid> = how.iter().map(|h| h.uuid.unwrap_or_else(|| shard.random_uuid())).collect();
        let check = |core: &mut Core| {
            for lid in core.check_snapshots(&how, &uuids)? {
                core.record_mut(lid)?.busy = Some("snapshot");
            }
            Ok(())
        };
        self.change(0, check).await?;
        let result = self.snapshot_checked(shard, &how, &uuids).await;
        {
            let mut core = lock(&self.core);
            for (h, uuid) in how.iter().zip(&uuids) {
                let Ok(lid) = core.lid_of(h.lvol) else { continue };
                if let Ok(r) = core.record_mut(lid) {
                    r.busy = None;
                    r.hot.gate_closed.store(false, Ordering::Release);
                }
                if let Ok(taken) = core.lid_of(*uuid).and_then(|s| core.record_mut(s))
                    && taken.children.contains(&lid)
                {
                    taken.busy = None;
                }
            }
            core.gate_wait.wake_all();
        }
        result?;
        let core = lock(&self.core);
        uuids.iter().map(|u| core.lid_of(*u).and_then(|lid| self.describe(&core, lid))).collect()
    }

    async fn snapshot_checked(&self, shard: &Shard, how: &[CreateSnapshot], uuids: &[Uuid]) -> Result<()> {
        self.batch_room(6 * how.len()).await?;
        let key = self.key();
        let each_by_itself = active(Mutation::SwapShardByShard);
        if !each_by_itself {
            let pauses = self.shards.iter().map(|s| {
                s.call(move |shard| async move {
                    Lvstore::local_by_key(&shard, key)?.pause();
                    Ok(())
                })
            });
            try_join_all(pauses).await?;
        }
        let swapped = if each_by_itself {
            let mut result = Ok(());
            for n in 0..how.len() {
                result = result.and_then(|()| lock(&self.core).swap_all(&how[n..=n], &uuids[n..=n]));
                self.grace().await?;
            }
            result
        } else {
            lock(&self.core).swap_all(how, uuids)
        };
        if !each_by_itself {
            for s in &self.shards {
                s.run(move |shard| {
                    if let Ok(local) = Lvstore::local_by_key(shard, key) {
                        local.resume();
                    }
                });
            }
        }
        swapped?;
        let batch = lock(&self.core).open_batch;
        self.grace().await?;
        {
            // Nothing older than the swap is in flight: copies may trust their source.
            let mut core = lock(&self.core);
            for h in how {
                if let Ok(lid) = core.lid_of(h.lvol) {
                    core.record(lid)?.hot.gate_closed.store(false, Ordering::Release);
                }
            }
            core.gate_wait.wake_all();
        }
        // The flush of this commit covers what completed during the grace period.
        self.durable_after_now(shard, batch).await
    }
}

impl Core {
    fn check_snapshots(&mut self, how: &[CreateSnapshot], uuids: &[Uuid]) -> Result<Vec<Lid>> {
        let mut lids = Vec::new();
        let (mut pages, mut reserve) = (0, 0);
        if how.is_empty() {
            return Err(err!(Invalid, "no lvol to snapshot was named"));
        }
        if how.len() * 6 > self.record_pages / 2 && how.len() > 1 {
            return Err(err!(Invalid, "{} lvols are too many for one transaction of this store", how.len()));
        }
        for (n, (h, uuid)) in how.iter().zip(uuids).enumerate() {
            let lid = self.idle(h.lvol)?;
            let r = self.record(lid)?;
            if r.hidden {
                return Err(err!(NotFound, "lvol {} was deleted", h.lvol));
            }
            if r.is_snapshot() {
                return Err(err!(WrongKind, "{} is a snapshot already: clone it instead", r.name()));
            }
            if matches!(r.meta.extents, crate::format::Extents::Rle(_)) {
                return Err(err!(
                    Unsupported,
                    "lvol {} was made by an old SPDK without extent table: copy it",
                    r.name()
                ));
            }
            if lids.contains(&lid) || how[..n].iter().any(|o| o.name == h.name) || uuids[..n].contains(uuid) {
                return Err(err!(Invalid, "a lvol, a name or a UUID is given twice"));
            }
            self.check_new_name(&h.name)?;
            self.check_new_uuid(*uuid)?;
            self.check_tables(r.clusters())?;
            let (snapshot, origin) = metas(r, h, *uuid, 0)?;
            pages += layout::layout(&origin)?.pages;
            pages += self.pages_for_chain(r, &snapshot, false)?;
            if r.thick {
                reserve += r.own + r.promised;
                pages += r.eps().iter().filter(|p| **p != 0).count();
            }
            lids.push(lid);
        }
        self.check_pages(pages)?;
        self.check_reservation(reserve, "the snapshot of a thick lvol")?;
        Ok(lids)
    }

    fn swap_all(&mut self, how: &[CreateSnapshot], uuids: &[Uuid]) -> Result<()> {
        self.may_change()?;
        // Everything was checked before the pause; check again what may have changed since.
        let (mut pages, mut reserve) = (0, 0);
        for (h, uuid) in how.iter().zip(uuids) {
            self.check_new_name(&h.name)?;
            self.check_new_uuid(*uuid)?;
            let r = self.record(self.lid_of(h.lvol)?)?;
            self.check_tables(r.clusters())?;
            let (snapshot, origin) = metas(r, h, *uuid, 0)?;
            pages += layout::layout(&origin)?.pages + self.pages_for_chain(r, &snapshot, false)?;
            if r.thick {
                reserve += r.own + r.promised;
                pages += r.eps().iter().filter(|p| **p != 0).count();
            }
        }
        self.check_pages(pages)?;
        self.check_reservation(reserve, "the snapshot of a thick lvol")?;
        for (h, uuid) in how.iter().zip(uuids) {
            self.swap(h, *uuid)?;
        }
        Ok(())
    }

    fn swap(&mut self, how: &CreateSnapshot, uuid: Uuid) -> Result<()> {
        let origin = self.lid_of(how.lvol)?;
        let root = self.claim_root()?;
        let (lid, token) = (self.next_lid, self.new_token());
        self.next_lid += 1;
        let batch = self.open_batch;
        let r = self.record_mut(origin)?;
        let (snapshot_meta, origin_meta) = metas(r, how, uuid, root)?;
        let clusters = r.clusters();
        let before = r.reservation();

        let hot = Lvol::new(lid, uuid, 0, r.hot.token());
        hot.clusters.store(clusters, Ordering::Release);
        hot.read_only.store(true, Ordering::Release);
        hot.external.store(r.hot.external.load_full());
        hot.dirty_batch.store(batch, Ordering::Release);

        let mut new = Record::new(r.hot.clone(), origin_meta, vec![root]);
        new.thick = r.thick;
        new.claims = r.claims;
        new.busy = r.busy;
        new.parent = Some(lid);
        // The pause makes these three one step for every shard.
        hot.map.store(r.hot.map.swap(Arc::new(Map::new(clusters))));
        r.hot.token.store(token, Ordering::Release);
        r.hot.gate_closed.store(true, Ordering::Release);

        let mut snapshot = std::mem::replace(r, new);
        snapshot.hot = hot;
        snapshot.meta = snapshot_meta;
        snapshot.thick = false;
        snapshot.claims = 0;
        // Until the I/O from before has completed its content is not final: nobody opens, clones or deletes it.
        snapshot.busy = Some("snapshot");
        snapshot.hidden = how.hidden;
        snapshot.children.insert(origin);
        let parent = snapshot.parent;
        let after = self.record(origin)?.reservation() + snapshot.reservation();
        self.clusters.reserved = self.clusters.reserved + after - before;
        if let Some(p) = parent.and_then(|p| self.records.get_mut(&p)) {
            p.children.remove(&origin);
            p.children.insert(lid);
        }
        self.by_name.insert(how.name.clone(), lid);
        self.by_uuid.insert(uuid, lid);
        self.records.insert(lid, snapshot);
        self.relayout(lid)?;
        self.relayout(origin)?;
        self.recount_reserved_pages();
        Ok(())
    }
}

/// What snapshot and origin look like afterwards.
fn metas(r: &Record, how: &CreateSnapshot, uuid: Uuid, root: u32) -> Result<(BlobMeta, BlobMeta)> {
    let mut snapshot = r.meta.clone();
    snapshot.xattrs.retain(|x| x.internal);
    snapshot.set_name(how.name.as_bytes())?;
    snapshot.set_uuid(&uuid);
    for (name, value) in &how.attributes {
        set_attribute(&mut snapshot, name, Some(value))?;
    }
    if how.hidden {
        snapshot.set_xattr(false, ATTR_HIDDEN.as_bytes(), b"1");
    }
    snapshot.flags.data_ro |= Flags::READ_ONLY;
    let mut origin = BlobMeta::new(blob_id(root), r.clusters(), true);
    origin.flags.md_ro = kept_flags(r.meta.flags);
    origin.xattrs = r.meta.xattrs.iter().filter(|x| !x.internal).cloned().collect();
    if r.thick {
        origin.set_xattr(false, ATTR_THICK.as_bytes(), b"1");
    }
    origin.set_snapshot_parent(Some(blob_id(r.root())));
    Ok((snapshot, origin))
}
