//! Create, clone, delete, rename, attributes, revert.
//!
//! Each is one critical section on the store's state, so one transaction on the device: after a crash it has happened or it
//! has not.

use crate::api::{CreateClone, CreateLvol, LvolInfo};
use crate::error::{Result, err};
use crate::format::page::blob_id;
use crate::format::{BlobMeta, Flags, MAX_CLUSTERS_PER_BLOB, layout};
use crate::lvol::Lvol;
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::{ATTR_HIDDEN, ATTR_SNAPSHOT, ATTR_THICK, Core, Lid, Reclaim, Record, tables_max};
use crate::store::map::{LEAF_CLUSTERS, Map};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Bytes of an attribute's name and value together.
const ATTRIBUTE_MAX: usize = 3500;

impl Core {
    pub(super) fn check_new_name(&self, name: &str) -> Result<()> {
        crate::format::blob::check_name(name.as_bytes())?;
        if self.by_name.contains_key(name) {
            return Err(err!(AlreadyExists, "lvstore {} has a lvol {name} already", self.name));
        }
        Ok(())
    }

    pub(super) fn check_new_uuid(&self, uuid: Uuid) -> Result<()> {
        if self.by_uuid.contains_key(&uuid) {
            return Err(err!(AlreadyExists, "lvstore {} has a lvol {uuid} already", self.name));
        }
        Ok(())
    }

    pub(super) fn clusters_for(&self, size: u64) -> Result<u64> {
        let cluster = u64::from(self.geo.cluster_size);
        let clusters = size.div_ceil(cluster);
        // One extent page per 512 clusters must be possible, and its table too.
        if clusters > MAX_CLUSTERS_PER_BLOB || clusters.checked_mul(cluster).is_none_or(|bytes| bytes > i64::MAX as u64)
        {
            return Err(err!(
                Invalid,
                "{size} bytes are too large for a lvol of this store (at most {} bytes)",
                MAX_CLUSTERS_PER_BLOB.saturating_mul(cluster).min(i64::MAX as u64)
            ));
        }
        Ok(clusters)
    }

    /// Refuses if the chain pages of `metas` would not fit.
    pub(super) fn check_pages(&self, needed: usize) -> Result<()> {
        let free = self.pages.free().saturating_sub(self.pages_kept()) as usize;
        if needed > free {
            return Err(err!(
                NoMetadataSpace,
                "lvstore {}: {needed} metadata pages are needed and {free} are free; delete lvols or snapshots",
                self.name
            ));
        }
        Ok(())
    }

    /// Refuses if a further lvol of so many clusters, or one that is larger by that, would be more than a store can have.
    pub(super) fn check_tables(&self, clusters: u64) -> Result<()> {
        let entries = |clusters: u64| clusters.div_ceil(LEAF_CLUSTERS);
        let used: u64 = self.records.values().map(|r| entries(r.clusters())).sum();
        let max = tables_max(&self.geo);
        if used + entries(clusters) > max {
            return Err(err!(
                NoMetadataSpace,
                "lvstore {}: its lvols may have {} bytes together, written or not; ask for less, or delete lvols or snapshots",
                self.name,
                max.saturating_mul(LEAF_CLUSTERS * u64::from(self.geo.cluster_size))
            ));
        }
        Ok(())
    }

    pub(super) fn check_reservation(&self, clusters: u64, what: &str) -> Result<()> {
        let room = self.clusters.unreserved();
        if clusters > room {
            let size = u64::from(self.geo.cluster_size);
            return Err(err!(
                NoSpace,
                "{what} needs {} bytes to be reserved in lvstore {} and {} are free{}; make it thin, delete something or \
                 grow the store",
                clusters * size,
                self.name,
                room * size,
                self.set_aside_hint()
            ));
        }
        Ok(())
    }

    /// Adds a blob to the open batch. Everything has been checked; pages are there.
    pub(super) fn insert(&mut self, uuid: Uuid, mut meta: BlobMeta, thick: bool, parent: Option<Lid>) -> Result<Lid> {
        let root = self.claim_root()?;
        meta.id = blob_id(root);
        let lid = self.next_lid;
        self.next_lid += 1;
        let token = self.new_token();
        let hot = Lvol::new(lid, uuid, meta.extents.num_clusters(), token);
        let mut record = Record::new(hot, meta, vec![root]);
        record.thick = thick;
        record.promised = record.promise();
        record.parent = parent;
        if let Some(p) = parent.and_then(|p| self.records.get_mut(&p)) {
            p.children.insert(lid);
            record.hot.external.store(p.hot.external.load_full());
        }
        self.by_name.insert(record.name(), lid);
        self.by_uuid.insert(uuid, lid);
        self.clusters.reserved += record.reservation();
        self.records.insert(lid, record);
        self.refresh_external(lid);
        if thick {
            self.recount_reserved_pages();
        }
        self.relayout(lid)?;
        Ok(lid)
    }

    /// Removes or hides a lvol, with the open batch. Answers which snapshot may be due for its merge now.
    fn delete(&mut self, lid: Lid, deferred: bool) -> Result<Option<Lid>> {
        let r = self.record(lid)?;
        if let Some(what) = r.busy {
            return Err(err!(Busy, "lvol {}: {what} is running; try again when it has ended", r.name()));
        }
        let children = r.children.len();
        if r.is_pinned() {
            if !deferred && !r.hidden {
                let pins: Vec<String> = r.meta.pins().map(|(lvstore, _)| lvstore.to_string()).collect();
                return Err(err!(
                    HasClones,
                    "snapshot {} is pinned: lvols of other lvstores ({}) read it; ask for deferred deletion",
                    r.name(),
                    pins.join(", ")
                ));
            }
            r.intact()?;
            r.understood()?;
            self.hide(lid)?;
            if active(Mutation::UnpinWithDelete) {
                let pins: Vec<Uuid> = self.record(lid)?.meta.pins().map(|(lvstore, _)| lvstore).collect();
                self.update_meta(lid, |meta| {
                    pins.iter().for_each(|lvstore| meta.set_pin(*lvstore, None));
                    Ok(())
                })?;
                return Ok(Some(lid));
            }
            return Ok(None);
        }
        if r.hot.is_open() {
            return Err(err!(Busy, "lvol {} is in use; stop its export first", r.name()));
        }
        if children == 0 {
            return self.remove(lid);
        }
        // It would be written anew from what could be read of it.
        r.intact()?;
        r.understood()?;
        // One that was born hidden is there for its clones only: it always waits for them.
        if children > 1 && !deferred && !r.hidden {
            let names: Vec<String> = r.children.iter().filter_map(|c| self.records.get(c)).map(Record::name).collect();
            return Err(err!(
                HasClones,
                "snapshot {} has {children} clones ({}): delete clones first, or ask for deferred deletion",
                r.name(),
                names.join(", ")
            ));
        }
        self.hide(lid)?;
        Ok(Some(lid))
    }

    /// Takes a lvol without children out of the store, with the open batch. Answers its parent. The clusters follow.
    pub(super) fn remove(&mut self, lid: Lid) -> Result<Option<Lid>> {
        let r = self.record(lid)?;
        let reservation = r.reservation();
        let (name, uuid, parent) = (r.name(), r.hot.uuid, r.parent);
        self.gives_up_parent(lid);
        self.clusters.reserved -= reservation;
        if self.by_name.get(&name) == Some(&lid) {
            self.by_name.remove(&name);
        }
        if self.by_uuid.get(&uuid) == Some(&lid) {
            self.by_uuid.remove(&uuid);
        }
        let Some(r) = self.records.remove(&lid) else { return Ok(None) };
        if r.thick {
            self.recount_reserved_pages();
        }
        if let Some(p) = parent.and_then(|p| self.records.get_mut(&p)) {
            p.children.remove(&lid);
        }
        let hot = r.hot.clone();
        self.bury(r);
        // Who still has it open in the background must not follow it to what is somebody else's soon.
        hot.map.store(Arc::new(Map::new(0)));
        Ok(parent)
    }

    /// The blob's root goes with the open batch; its pages and clusters are collected afterwards.
    pub(super) fn bury(&mut self, r: Record) {
        if r.damaged.is_some() {
            // What it owns is not known for sure, and may be somebody else's; the next load finds out.
            self.kill_root(r.root());
            return;
        }
        let mut own = r.own;
        let mut eps = r.eps().to_vec();
        let map = r.hot.map.load_full();
        // Changes that were never written are only in memory.
        for ep in &r.dirty_leaves {
            let n = *ep as usize;
            if let (Some(leaf), Some(page)) = (map.leaf(n), eps.get_mut(n)) {
                let entries = leaf.own_entries(r.hot.token(), r.ep_len(*ep));
                let clusters: Vec<u32> = entries.filter_map(|(_, e)| e.cluster()).collect();
                own -= clusters.len() as u64;
                clusters.into_iter().for_each(|c| self.free_cluster(c));
                if *page != 0 {
                    self.free_page(*page);
                    *page = 0;
                }
            }
        }
        if let crate::format::Extents::Rle(runs) = &r.meta.extents {
            for (start, len) in runs.iter().filter(|(s, _)| *s != 0) {
                (*start..start + len).for_each(|c| self.free_cluster(c));
            }
            own = 0;
        }
        self.kill_root(r.root());
        self.add_reclaim(Reclaim {
            eps: eps.into_iter().filter(|p| *p != 0).collect(),
            pages: r.chain.iter().skip(1).copied().collect(),
            clusters: own,
            name: r.name(),
        });
    }
}

fn set_attributes(meta: &mut BlobMeta, attributes: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in attributes {
        set_attribute(meta, name, Some(value))?;
    }
    Ok(())
}

pub(super) fn set_attribute(meta: &mut BlobMeta, name: &str, value: Option<&str>) -> Result<()> {
    if name.is_empty() || ["name", "uuid", ATTR_THICK, ATTR_HIDDEN, ATTR_SNAPSHOT].contains(&name) {
        return Err(err!(Invalid, "attribute \"{name}\" is the engine's own"));
    }
    match value {
        None => {
            meta.remove_xattr(false, name.as_bytes());
        }
        Some(value) if value.is_empty() || name.len() + value.len() > ATTRIBUTE_MAX => {
            return Err(err!(Invalid, "attribute \"{name}\": name and value take 1 to {ATTRIBUTE_MAX} bytes"));
        }
        Some(value) => meta.set_xattr(false, name.as_bytes(), value.as_bytes()),
    }
    Ok(())
}

/// Metadata of a new lvol; the id follows.
pub(super) fn new_meta(
    clusters: u64,
    name: &str,
    uuid: Uuid,
    thick: bool,
    attributes: &BTreeMap<String, String>,
) -> Result<BlobMeta> {
    let mut meta = BlobMeta::new(0, clusters, true);
    meta.set_name(name.as_bytes())?;
    meta.set_uuid(&uuid);
    if thick {
        meta.set_xattr(false, ATTR_THICK.as_bytes(), b"1");
    }
    set_attributes(&mut meta, attributes)?;
    Ok(meta)
}

/// A lvol that is to be.
pub(super) struct NewLvol<'a> {
    pub name: &'a str,
    pub uuid: Uuid,
    pub clusters: u64,
    pub thick: bool,
    pub attributes: &'a BTreeMap<String, String>,
    pub parent: Option<Lid>,
    /// Clusters to be set aside, if it is not thick.
    pub promise: u64,
}

impl Core {
    /// Adds a lvol, whose name and UUID are free, to the open batch, if everything that it takes is there. `what` it is, for
    /// refusals; `complete` says in its metadata where it comes from.
    pub(super) fn add_lvol(&mut self, new: NewLvol, what: &str, complete: impl FnOnce(&mut BlobMeta)) -> Result<Lid> {
        let extents = new.clusters.div_ceil(LEAF_CLUSTERS) as usize;
        // Before anything is built: the table of a huge lvol must fit.
        self.check_tables(new.clusters)?;
        self.check_pages(extents / 500)?;
        let mut meta = new_meta(new.clusters, new.name, new.uuid, new.thick, new.attributes)?;
        complete(&mut meta);
        let pages = layout::layout(&meta)?.pages;
        self.check_pages(pages + if new.thick { extents } else { 0 })?;
        let reserve = if new.thick { new.clusters } else { new.promise };
        self.check_reservation(reserve, &format!("{what} {}", new.name))?;
        self.insert(new.uuid, meta, new.thick, new.parent)
    }
}

impl Lvstore {
    pub async fn create_lvol(self: &Arc<Self>, shard: &Shard, how: CreateLvol) -> Result<LvolInfo> {
        self.activate(shard).await?;
        let uuid = how.uuid.unwrap_or_else(|| shard.random_uuid());
        let change = |core: &mut Core| {
            core.check_new_name(&how.name)?;
            core.check_new_uuid(uuid)?;
            let clusters = core.clusters_for(how.size)?;
            if how.size == 0 {
                return Err(err!(Invalid, "lvol {}: the size must not be 0", how.name));
            }
            let new = NewLvol {
                name: &how.name,
                uuid,
                clusters,
                thick: how.thick,
                attributes: &how.attributes,
                parent: None,
                promise: 0,
            };
            let lid = core.add_lvol(new, "thick lvol", |_| {})?;
            Ok((lid, core.open_batch))
        };
        let (lid, batch) = self.change(8, change).await?;
        self.durable(batch).await?;
        self.describe(&lock(&self.core), lid)
    }

    pub async fn clone_snapshot(self: &Arc<Self>, shard: &Shard, how: CreateClone) -> Result<LvolInfo> {
        self.activate(shard).await?;
        let uuid = how.uuid.unwrap_or_else(|| shard.random_uuid());
        let change = |core: &mut Core| {
            let parent = core.idle(how.snapshot)?;
            let (name, own_clusters, snapshot) = {
                let r = core.record(parent)?;
                if r.was_deleted() {
                    return Err(err!(NotFound, "snapshot {} was deleted", how.snapshot));
                }
                (r.name(), r.clusters(), r.is_snapshot())
            };
            if !snapshot {
                return Err(err!(WrongKind, "lvol {name} is writable: take a snapshot and clone that"));
            }
            core.check_new_name(&how.name)?;
            core.check_new_uuid(uuid)?;
            let clusters = match how.size {
                Some(size) => core.clusters_for(size)?,
                None => own_clusters,
            };
            if clusters < own_clusters {
                return Err(err!(
                    Invalid,
                    "clone {}: {} bytes are fewer than snapshot {name} has ({})",
                    how.name,
                    how.size.unwrap_or(0),
                    own_clusters * u64::from(core.geo.cluster_size)
                ));
            }
            let id = core.blob_id_of(parent)?;
            let new = NewLvol {
                name: &how.name,
                uuid,
                clusters,
                thick: how.thick,
                attributes: &how.attributes,
                parent: Some(parent),
                promise: 0,
            };
            let lid = core.add_lvol(new, "thick clone", |meta| meta.set_snapshot_parent(Some(id)))?;
            Ok((lid, core.open_batch))
        };
        let (lid, batch) = self.change(8, change).await?;
        self.durable(batch).await?;
        self.describe(&lock(&self.core), lid)
    }

    pub async fn rename(self: &Arc<Self>, shard: &Shard, uuid: Uuid, name: &str) -> Result<LvolInfo> {
        self.activate(shard).await?;
        self.batch_room(8).await?;
        let (lid, batch) = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.idle(uuid)?;
            let r = core.record(lid)?;
            if r.hidden {
                return Err(err!(NotFound, "lvol {uuid} was deleted"));
            }
            let old = r.name();
            if old != name {
                core.check_new_name(name)?;
                core.update_meta(lid, |meta| Ok(meta.set_name(name.as_bytes())?))?;
                core.by_name.remove(&old);
                core.by_name.insert(name.to_string(), lid);
            }
            (lid, core.open_batch)
        };
        self.durable(batch).await?;
        self.describe(&lock(&self.core), lid)
    }

    pub async fn set_attributes(
        self: &Arc<Self>,
        shard: &Shard,
        uuid: Uuid,
        set: Vec<(String, Option<String>)>,
    ) -> Result<LvolInfo> {
        self.activate(shard).await?;
        self.batch_room(8).await?;
        let (lid, batch) = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.lid_of(uuid)?;
            let r = core.record(lid)?;
            r.intact()?;
            r.understood()?;
            core.update_meta(lid, |meta| {
                set.iter().try_for_each(|(name, value)| set_attribute(meta, name, value.as_deref()))
            })?;
            (lid, core.open_batch)
        };
        self.durable(batch).await?;
        self.describe(&lock(&self.core), lid)
    }

    /// Deletes a lvol or snapshot; see the rules of the tree in `docs/concepts.md`.
    pub async fn delete(self: &Arc<Self>, shard: &Shard, uuid: Uuid, deferred: bool) -> Result<()> {
        self.activate(shard).await?;
        self.batch_room(8).await?;
        let (batch, next) = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.lid_of(uuid)?;
            let r = core.record(lid)?;
            if r.was_deleted() || r.hidden && r.busy == Some("merge") {
                // Already, but perhaps not durably, and perhaps its merge failed.
                (r.hot.dirty_batch.load(Ordering::Acquire), Some(lid))
            } else {
                let next = core.delete(lid, deferred)?;
                (core.open_batch, next)
            }
        };
        if let Some(next) = next {
            self.collapse(shard, next);
        }
        self.durable(batch).await
    }

    /// The lvol goes back to one of its ancestors: a new clone of it takes over name, UUID and attributes.
    pub async fn revert(self: &Arc<Self>, shard: &Shard, uuid: Uuid, snapshot: Uuid) -> Result<LvolInfo> {
        self.activate(shard).await?;
        self.batch_room(12).await?;
        let (lid, batch, parent) = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let lid = core.idle(uuid)?;
            let target = core.idle(snapshot)?;
            let r = core.record(lid)?;
            let name = r.name();
            if r.is_snapshot() || r.hidden {
                return Err(err!(WrongKind, "lvol {name} is a snapshot: only a writable lvol can be reverted"));
            }
            if r.hot.is_open() {
                return Err(err!(Busy, "lvol {name} is in use; stop its export first"));
            }
            let mut at = r.parent;
            while let Some(p) = at.filter(|p| *p != target) {
                at = core.record(p)?.parent;
            }
            if at.is_none() || core.record(target)?.hidden {
                return Err(err!(Invalid, "{snapshot} is not a snapshot that lvol {name} descends from"));
            }
            let clusters = core.record(target)?.clusters();
            core.check_tables(clusters.saturating_sub(core.record(lid)?.clusters()))?;
            let r = core.record(lid)?;
            let mut meta = BlobMeta::new(0, clusters, true);
            meta.xattrs = r.meta.xattrs.iter().filter(|x| !x.internal).cloned().collect();
            meta.set_snapshot_parent(Some(core.blob_id_of(target)?));
            let before = r.reservation();
            let after = if r.thick { clusters } else { 0 };
            core.check_pages(layout::layout(&meta)?.pages)?;
            // What it owns comes back, but later.
            core.check_reservation(after.saturating_sub(before), &format!("reverting thick lvol {name}"))?;
            let root = core.claim_root()?;
            meta.id = blob_id(root);
            let token = core.new_token();
            let r = core.record_mut(lid)?;
            let (old_parent, thick) = (r.parent, r.thick);
            // The old blob keeps its token and map for collecting its clusters.
            let old_hot = Lvol::new(lid, Uuid::nil(), 0, r.hot.token());
            old_hot.map.store(r.hot.map.swap(Arc::new(Map::new(clusters))));
            let mut new = Record::new(r.hot.clone(), meta, vec![root]);
            new.thick = thick;
            new.parent = Some(target);
            let mut old = std::mem::replace(r, new);
            old.hot = old_hot;
            core.clusters.reserved = core.clusters.reserved + after - before;
            let r = core.record(lid)?;
            r.hot.token.store(token, Ordering::Release);
            r.hot.clusters.store(clusters, Ordering::Release);
            if let Some(p) = old_parent.and_then(|p| core.records.get_mut(&p)) {
                p.children.remove(&lid);
            }
            if let Some(p) = core.records.get_mut(&target) {
                p.children.insert(lid);
            }
            core.relayout(lid)?;
            core.refresh_external(lid);
            core.recount_reserved_pages();
            core.bury(old);
            (lid, core.open_batch, old_parent)
        };
        if let Some(parent) = parent {
            self.collapse(shard, parent);
        }
        self.durable(batch).await?;
        self.describe(&lock(&self.core), lid)
    }
}

/// The bits of a snapshot's flags that its origin's new blob keeps.
pub(super) fn kept_flags(flags: Flags) -> u64 {
    flags.md_ro & Flags::CLEAR_METHOD
}
