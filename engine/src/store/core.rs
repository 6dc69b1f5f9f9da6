//! The state of a store, behind one lock that is never held across a wait.
//!
//! Every change of metadata is made here first, in one critical section per operation, and marks what it touched. A
//! *batch* is everything that was changed since the last cut; [`Core::cut`] turns it into page images. So a batch holds
//! whole operations only, and the commit writes it as one transaction.

use super::alloc::{Clusters, Pages};
use super::map::{Entry, LEAF_CLUSTERS, Map};
use crate::error::{Result, err};
use crate::external::{Link, Outside};
use crate::format::layout::layout;
use crate::format::page::blob_id;
use crate::format::{
    BlobMeta, ChainLayout, Extents, Flags, Geometry, PAGE_SIZE, Page, SuperBlock, ZERO_MARK, encode_page, extent_page,
    page_of_ep,
};
use crate::lvol::Lvol;
use crate::shard::sync::WaitList;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Number of a lvol in memory; stays with the volume when a snapshot takes over its blob.
pub type Lid = u32;

/// Attributes of ours that mean something to the engine itself.
pub const ATTR_THICK: &str = "coppice.thick";
pub const ATTR_HIDDEN: &str = "coppice.hidden";
pub const ATTR_SNAPSHOT: &str = "coppice.snapshot";

/// How the name of a deleted snapshot that something still reads begins.
pub const DELETED_PREFIX: &str = ".deleted-";

/// Metadata pages that only deletes and discards may take, so that a full store can still be emptied.
pub const PAGES_KEPT: u32 = 16;

/// Pages of a chain, not counting its root, that one change writes through the journal. Where more change, the chain goes on
/// in new pages: nothing refers to those yet, so they take no room in a record, however long the chain.
const CHAIN_IN_JOURNAL: usize = 4;

/// Entries that all extent tables of a store may have together: each costs memory, assigned or not, and one page on disk can
/// stand for millions. Enough for lvols of four thousand times the store's size, and for a small store's first ones.
pub fn tables_max(geo: &Geometry) -> u64 {
    (1 << 20) + u64::from(geo.total_clusters) * 4096 / LEAF_CLUSTERS
}

/// What the store knows of one lvol.
pub struct Record {
    pub hot: Arc<Lvol>,
    pub meta: BlobMeta,
    /// Metadata pages of the chain; the first is the root.
    pub chain: Vec<u32>,
    /// `None`: the chain lies as SPDK wrote it, and is laid out anew before its first change.
    pub layout: Option<ChainLayout>,
    pub parent: Option<Lid>,
    pub children: BTreeSet<Lid>,
    /// Clusters that the lvol owns.
    pub own: u64,
    /// Clusters claimed for it and not published yet.
    pub claims: u64,
    /// Own entries that only say "zero".
    pub zero_marks: u64,
    /// Steps of merges into it: whoever looked at what it owns and inherits looks again when this has changed.
    pub merged: u64,
    /// Up to this cluster it hides what its grandparent has behind its parent's end.
    pub masked_to: u64,
    /// Clusters set aside for what hydration still has to copy.
    pub promised: u64,
    pub thick: bool,
    pub hidden: bool,
    pub damaged: Option<String>,
    /// The control operation that runs on it.
    pub busy: Option<&'static str>,
    dirty_chain: BTreeSet<usize>,
    pub dirty_leaves: BTreeSet<u32>,
}

impl Record {
    pub fn new(hot: Arc<Lvol>, meta: BlobMeta, chain: Vec<u32>) -> Record {
        Record {
            hot,
            meta,
            chain,
            layout: None,
            parent: None,
            children: BTreeSet::new(),
            own: 0,
            claims: 0,
            zero_marks: 0,
            merged: 0,
            masked_to: 0,
            promised: 0,
            thick: false,
            hidden: false,
            damaged: None,
            busy: None,
            dirty_chain: BTreeSet::new(),
            dirty_leaves: BTreeSet::new(),
        }
    }

    pub fn root(&self) -> u32 {
        self.chain.first().copied().unwrap_or(0)
    }

    pub fn clusters(&self) -> u64 {
        self.meta.extents.num_clusters()
    }

    pub fn eps(&self) -> &[u32] {
        match &self.meta.extents {
            Extents::Table { pages, .. } => pages,
            Extents::Rle(_) => &[],
        }
    }

    pub fn eps_mut(&mut self) -> Option<(&mut u64, &mut Vec<u32>)> {
        match &mut self.meta.extents {
            Extents::Table { num_clusters, pages } => Some((num_clusters, pages)),
            Extents::Rle(_) => None,
        }
    }

    pub fn is_snapshot(&self) -> bool {
        self.meta.flags.is_read_only()
    }

    pub fn external(&self) -> Option<&[u8]> {
        match self.meta.parent() {
            Ok(crate::format::blob::Parent::External(id)) => Some(id),
            _ => None,
        }
    }

    /// Refuses a lvol whose metadata does not check out: it is neither used nor written.
    pub fn intact(&self) -> Result<()> {
        match &self.damaged {
            Some(why) => Err(err!(Corrupt, "lvol {} is damaged: {why}", self.name())),
            None => Ok(()),
        }
    }

    /// Refuses changes of a lvol with flags that nobody here knows: what a change would have to respect is not known either.
    pub fn understood(&self) -> Result<()> {
        let flags = &self.meta.flags;
        if flags.unknown_data_ro() == 0 && flags.unknown_md_ro() == 0 {
            return Ok(());
        }
        Err(err!(
            Unsupported,
            "lvol {} has flags that this version does not know (data {:#x}, metadata {:#x}): it can be read and deleted only",
            self.name(),
            flags.data_ro,
            flags.md_ro
        ))
    }

    /// What it does not own it reads from somebody else.
    pub fn inherits(&self) -> bool {
        self.parent.is_some() || self.external().is_some()
    }

    /// Hidden because it was deleted, not because it was made so.
    pub fn was_deleted(&self) -> bool {
        self.hidden && self.meta.name().is_some_and(|n| n.starts_with(DELETED_PREFIX.as_bytes()))
    }

    /// Entries of extent page `ep` that lie inside the lvol.
    pub fn ep_len(&self, ep: u32) -> usize {
        self.clusters().saturating_sub(u64::from(ep) * LEAF_CLUSTERS).min(LEAF_CLUSTERS) as usize
    }

    pub fn name(&self) -> String {
        self.meta.name().map(|n| String::from_utf8_lossy(n).into_owned()).unwrap_or_default()
    }

    /// Clusters that must stay free for it. A damaged lvol takes none; what it may own is not known to be free.
    pub fn reservation(&self) -> u64 {
        let room = self.clusters().saturating_sub(self.own + self.claims);
        match self.damaged {
            Some(_) => 0,
            None if self.thick => room,
            None => self.promised.min(room),
        }
    }

    /// Bytes of its external parent that show; 0 if it has none.
    pub fn visible(&self, cluster_size: u64) -> u64 {
        if self.external().is_none() {
            return 0;
        }
        let size = self.clusters() * cluster_size;
        self.meta.visible().unwrap_or(size).min(size)
    }

    /// Clusters that have to be set aside for its hydration, as its metadata has it.
    pub fn promise(&self) -> u64 {
        let noted = self.external().and_then(|_| self.meta.hydration());
        noted.map_or(0, |(left, _)| left.min(self.clusters()))
    }

    pub fn is_pinned(&self) -> bool {
        self.meta.pins().next().is_some()
    }

    fn changed_pages(&self) -> usize {
        self.dirty_chain.len() + self.dirty_leaves.len()
    }
}

/// How a chain becomes what it has to be.
struct ChainPlan {
    layout: ChainLayout,
    /// Pages that it gets.
    added: usize,
    /// So many pages, from the root on, are written.
    dirty: usize,
    /// Those of them that new pages replace.
    moved: Vec<usize>,
}

/// A deleted lvol whose clusters are still to be collected from its extent pages.
pub struct Reclaim {
    pub eps: Vec<u32>,
    pub pages: Vec<u32>,
    /// Clusters counted as quarantined for it.
    pub clusters: u64,
    pub name: String,
}

/// What was touched since the last cut.
#[derive(Default)]
pub struct Batch {
    dirty: BTreeSet<Lid>,
    /// Roots that the batch deletes.
    dead_roots: BTreeSet<u32>,
    /// Whole images that the batch adds (the system blob's).
    pub extra: BTreeMap<u32, Box<Page>>,
    /// Pages claimed in this batch.
    fresh: BTreeSet<u32>,
    freed_clusters: Vec<u32>,
    freed_pages: Vec<u32>,
    reclaims: Vec<Reclaim>,
}

impl Batch {
    /// The page goes through the journal although it was claimed in this batch.
    pub fn no_longer_fresh(&mut self, page: u32) {
        self.fresh.remove(&page);
    }
}

/// One batch as page images.
pub struct Cut {
    pub batch: u64,
    /// Pages that no durable page refers to: they go home before the record.
    pub direct: Vec<(u32, Box<Page>)>,
    /// Pages of the journal record.
    pub journal: Vec<(u32, Box<Page>)>,
    /// Clusters that the batch frees.
    pub clusters: Vec<u32>,
    /// Metadata pages that the batch frees.
    pub pages: Vec<u32>,
    pub reclaims: Vec<Reclaim>,
    pub md_limit: u32,
}

pub struct Core {
    pub geo: Geometry,
    pub super_block: SuperBlock,
    pub name: String,
    pub uuid: Uuid,
    /// Chain of the super blob, which holds name and UUID of the store.
    pub super_chain: Vec<u32>,
    pub records: BTreeMap<Lid, Record>,
    pub by_uuid: BTreeMap<Uuid, Lid>,
    pub by_name: BTreeMap<String, Lid>,
    pub next_lid: Lid,
    pub next_token: u64,
    pub clusters: Clusters,
    pub pages: Pages,
    /// Extent pages that thick lvols will need.
    pub pages_reserved: u32,
    /// Committed images that are not home yet: what the journal holds since its tail.
    pub overlay: BTreeMap<u32, Arc<Page>>,

    /// The batch that collects changes now.
    pub open_batch: u64,
    /// Every batch up to this one is durable.
    pub durable_batch: u64,
    pub batch: Batch,
    /// Most pages of a record; a batch must fit.
    pub record_pages: usize,

    pub commit_wanted: bool,
    pub writer_wait: WaitList,
    pub durable_wait: WaitList,
    /// (logical) clusters for which a new cluster is being filled.
    pub allocating: BTreeSet<(Lid, u64)>,
    pub alloc_wait: WaitList,
    /// Extent pages that are being read for the map.
    pub reading: BTreeSet<u32>,
    pub read_wait: WaitList,
    pub space_wait: WaitList,
    pub gate_wait: WaitList,
    pub grace: super::grace::GraceState,
    pub reclaim: super::reclaim::ReclaimState,

    /// Metadata pages of the system blob, its root first.
    pub system_pages: Vec<u32>,
    /// Merges that run.
    pub merges: usize,

    /// Reopen the store: why.
    pub failed: Option<String>,
    /// A close has begun: nothing new is let in.
    pub leaving: bool,
    pub closing: bool,
    pub read_only: bool,
    /// What the load found and did not understand.
    pub load_findings: Vec<crate::api::Finding>,
    /// Clusters that are kept out of use because damaged metadata may have named them.
    pub set_aside: u64,
    /// Leaves of maps in memory.
    pub resident_leaves: u64,

    /// How external parents are reached.
    pub access: crate::external::Access,
    /// Those that lvols of the store have, by what the metadata calls them.
    pub links: BTreeMap<Vec<u8>, Arc<crate::external::Link>>,
    pub hydration: crate::lvol::HydrationState,
    /// External parents that lvols no longer name, with the batch that says so.
    pub given_up: BTreeMap<Uuid, u64>,
    /// Metadata could not be read that may name further ones.
    pub parents_unknown: bool,
}

impl Core {
    pub fn record(&self, lid: Lid) -> Result<&Record> {
        self.records.get(&lid).ok_or_else(|| err!(NotFound, "the lvol is gone"))
    }

    pub fn record_mut(&mut self, lid: Lid) -> Result<&mut Record> {
        self.records.get_mut(&lid).ok_or_else(|| err!(NotFound, "the lvol is gone"))
    }

    pub fn lid_of(&self, uuid: Uuid) -> Result<Lid> {
        self.by_uuid.get(&uuid).copied().ok_or_else(|| err!(NotFound, "no lvol {uuid} in lvstore {}", self.name))
    }

    /// The lvol for a control operation: not damaged, nothing else at work on it.
    pub fn idle(&mut self, uuid: Uuid) -> Result<Lid> {
        let lid = self.lid_of(uuid)?;
        let r = self.record(lid)?;
        r.intact()?;
        r.understood()?;
        if let Some(what) = r.busy {
            return Err(err!(Busy, "lvol {}: {what} is running; try again when it has ended", r.name()));
        }
        Ok(lid)
    }

    pub fn may_change(&self) -> Result<()> {
        if self.read_only {
            return Err(err!(ReadOnly, "lvstore {} was opened read-only", self.name));
        }
        if self.leaving {
            return Err(err!(Busy, "lvstore {} is being closed", self.name));
        }
        if let Some(why) = &self.failed {
            return Err(err!(Failed, "lvstore {} takes no changes until it is reopened: {why}", self.name));
        }
        Ok(())
    }

    pub fn new_token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    // ---- space ----

    /// Changes something that reservations depend on.
    pub fn with_reservation<R>(&mut self, lid: Lid, change: impl FnOnce(&mut Record) -> R) -> Result<R> {
        let r = self.record_mut(lid)?;
        let before = r.reservation();
        let result = change(r);
        let after = r.reservation();
        self.clusters.reserved = self.clusters.reserved + after - before;
        Ok(result)
    }

    /// Claims a cluster for a lvol. `Ok(None)`: there will be one when what is quarantined has come back. What is set aside
    /// for hydration is for hydration only.
    pub fn claim_cluster(&mut self, lid: Lid, after: Option<u32>, hydrating: bool) -> Result<Option<u32>> {
        let r = self.record(lid)?;
        let promised = r.reservation() > 0 && (r.thick || hydrating);
        let name = r.name();
        let room = if promised { u64::from(self.clusters.free()) } else { self.clusters.unreserved() };
        if room == 0 {
            if self.space_is_coming() {
                return Ok(None);
            }
            return Err(err!(
                NoSpace,
                "lvol {name}: no free cluster in lvstore {} ({} reserved for other data{}); delete something or grow the store",
                self.name,
                self.clusters.reserved,
                self.set_aside_hint()
            ));
        }
        let Some(cluster) = self.clusters.claim(after) else { return Ok(None) };
        self.with_reservation(lid, |r| r.claims += 1)?;
        Ok(Some(cluster))
    }

    /// For messages about a lack of space: that some of it may be somebody's.
    pub fn set_aside_hint(&self) -> String {
        match self.set_aside {
            0 => String::new(),
            n => format!(", {n} kept out of use because metadata is damaged, see `coppice lvstore check`"),
        }
    }

    /// Gives back a cluster that was claimed and never published.
    pub fn unclaim(&mut self, lid: Lid, cluster: u32) {
        self.clusters.release(cluster);
        let _ = self.with_reservation(lid, |r| r.claims -= 1);
        self.space_wait.wake_all();
    }

    /// A published cluster goes into quarantine with the open batch.
    pub fn free_cluster(&mut self, cluster: u32) {
        self.clusters.quarantined += 1;
        self.batch.freed_clusters.push(cluster);
        if crate::sim::mutation::active(crate::sim::mutation::Mutation::FreeBeforeCommit) {
            self.batch.freed_clusters.pop();
            self.clusters.quarantined -= 1;
            self.clusters.release(cluster);
        }
    }

    /// Claims a metadata page, if `left` more stay free.
    fn claim_page_leaving(&mut self, left: u32) -> Result<u32> {
        if self.pages.free() <= left {
            return Err(err!(
                NoMetadataSpace,
                "lvstore {} has no free metadata page left ({} in all); delete lvols or snapshots",
                self.name,
                self.pages.total()
            ));
        }
        let page = self.pages.claim().ok_or_else(|| err!(NoMetadataSpace, "no free metadata page"))?;
        self.batch.fresh.insert(page);
        Ok(page)
    }

    /// Pages that only deletes, discards and thick lvols may take.
    pub fn pages_kept(&self) -> u32 {
        PAGES_KEPT.min(self.pages.total() / 8) + self.pages_reserved
    }

    /// A metadata page for ordinary use.
    pub fn claim_page(&mut self) -> Result<u32> {
        self.claim_page_leaving(self.pages_kept())
    }

    /// Counts anew what thick lvols will need: after anything but the assignment of a single page.
    pub fn recount_reserved_pages(&mut self) {
        let thick = self.records.values().filter(|r| r.thick && r.damaged.is_none());
        self.pages_reserved = thick.map(|r| r.eps().iter().filter(|p| **p == 0).count() as u32).sum();
    }

    /// Clusters or pages are on their way back: what does not fit now may fit soon.
    pub fn space_is_coming(&self) -> bool {
        let batch = &self.batch;
        !batch.freed_clusters.is_empty()
            || !batch.freed_pages.is_empty()
            || !batch.reclaims.is_empty()
            || !self.reclaim.is_idle()
            || self.merges > 0
    }

    /// A page of the system blob: any that is left.
    pub fn claim_system_page(&mut self) -> Result<u32> {
        self.claim_page_leaving(0)
    }

    /// A page for a root. It makes its blob exist, so it never goes home before its record.
    pub fn claim_root(&mut self) -> Result<u32> {
        let page = self.claim_page()?;
        self.batch.no_longer_fresh(page);
        Ok(page)
    }

    /// Free from the moment the open batch is durable.
    pub fn free_page(&mut self, page: u32) {
        self.batch.freed_pages.push(page);
    }

    // ---- external parents ----

    /// Whatever has changed of the external parents of a lvol and of its descendants.
    pub fn refresh_external(&mut self, lid: Lid) {
        let size = u64::from(self.geo.cluster_size);
        let mut todo = vec![lid];
        while let Some(lid) = todo.pop() {
            let Some(r) = self.records.get(&lid) else { continue };
            todo.extend(&r.children);
            let outside = match r.external() {
                Some(identity) => {
                    let new = || Link::new(identity, self.access.clone());
                    let link = self.links.entry(identity.to_vec()).or_insert_with(new);
                    let visible = r.visible(size);
                    // Another lvol's is not taken over: it may show another part.
                    let same = |now: &Arc<Outside>| now.carrier == lid && Arc::ptr_eq(&now.link, link);
                    match r.hot.external.load_full().filter(same) {
                        Some(now) => {
                            now.set_visible(visible);
                            Some(now)
                        }
                        None => Some(Outside::new(link.clone(), lid, visible, r.meta.parent_size())),
                    }
                }
                None => r.parent.and_then(|p| self.records.get(&p)).and_then(|p| p.hot.external.load_full()),
            };
            r.hot.external.store(outside);
        }
        // What nobody reads any more is let go.
        self.links.retain(|_, link| Arc::strong_count(link) > 1);
    }

    /// A cluster of an external parent has a place in the store now, as an own cluster of `lid`: descendants that read it
    /// from the parent read it there.
    pub fn show_to_descendants(&mut self, lid: Lid, logical: u64, entry: Entry) {
        let (slot, n) = ((logical / LEAF_CLUSTERS) as usize, (logical % LEAF_CLUSTERS) as usize);
        let mut todo: Vec<Lid> = self.records.get(&lid).iter().flat_map(|r| &r.children).copied().collect();
        while let Some(lid) = todo.pop() {
            let Some(r) = self.records.get(&lid) else { continue };
            todo.extend(&r.children);
            if let Some(leaf) = r.hot.map.load().leaf(slot)
                && leaf.get(n).is_external()
            {
                leaf.set(n, entry.inherited());
            }
        }
    }

    // ---- marking ----

    fn touch(&mut self, lid: Lid) {
        self.batch.dirty.insert(lid);
        if let Some(r) = self.records.get(&lid) {
            r.hot.dirty_batch.store(self.open_batch, Ordering::Release);
        }
    }

    /// What has to be done for a chain to describe `meta`. `whole`: every page changes, whatever it looks like now.
    fn plan_chain(&self, r: &Record, meta: &BlobMeta, whole: bool) -> Result<ChainPlan> {
        let layout = layout(meta)?;
        let same = !whole
            && r.layout.as_ref().is_some_and(|old| {
                old.pages == layout.pages && old.xattr_pages == layout.xattr_pages && old.inline == layout.inline
            });
        let dirty = if same { layout.xattr_pages } else { layout.pages };
        let in_place = |n: &usize| r.chain.get(*n).is_some_and(|page| !self.batch.fresh.contains(page));
        let mut moved: Vec<usize> = (1..dirty).filter(in_place).collect();
        if moved.len() <= CHAIN_IN_JOURNAL {
            moved.clear();
        }
        Ok(ChainPlan { added: layout.pages.saturating_sub(r.chain.len()), layout, dirty, moved })
    }

    /// Metadata pages that `relayout` takes when the lvol's metadata has become `meta`.
    pub fn pages_for_chain(&self, r: &Record, meta: &BlobMeta, whole: bool) -> Result<usize> {
        let plan = self.plan_chain(r, meta, whole)?;
        Ok(plan.added + plan.moved.len())
    }

    /// Brings the chain's pages in line with the metadata: call after any change of xattrs or of the number of clusters.
    /// Takes and frees pages as needed and marks what changed.
    pub fn relayout(&mut self, lid: Lid) -> Result<()> {
        let r = self.record(lid)?;
        let plan = self.plan_chain(r, &r.meta, false)?;
        let need = plan.layout.pages;
        // On a store without pages a long chain has to do with the ones that it has.
        let room = self.pages.free().saturating_sub(self.pages_kept()) as usize >= plan.added + plan.moved.len();
        let moved = if room { plan.moved } else { Vec::new() };
        let mut extra = Vec::new();
        for _ in 0..plan.added + moved.len() {
            match self.claim_page() {
                Ok(page) => extra.push(page),
                Err(e) => {
                    extra.into_iter().for_each(|p| self.free_page(p));
                    return Err(e);
                }
            }
        }
        let r = self.record_mut(lid)?;
        let mut surplus = r.chain.split_off(need.min(r.chain.len()));
        for (n, page) in moved.into_iter().zip(extra.split_off(plan.added)) {
            if let Some(place) = r.chain.get_mut(n) {
                surplus.push(std::mem::replace(place, page));
            }
        }
        r.chain.extend(extra);
        r.layout = Some(plan.layout);
        r.dirty_chain.retain(|n| *n < need);
        r.dirty_chain.extend(0..plan.dirty);
        surplus.into_iter().for_each(|p| self.free_page(p));
        self.touch(lid);
        Ok(())
    }

    /// Changes flags and xattrs of a lvol, all or nothing.
    pub fn update_meta(&mut self, lid: Lid, change: impl FnOnce(&mut BlobMeta) -> Result<()>) -> Result<()> {
        let r = self.record_mut(lid)?;
        let before = (r.meta.flags, r.meta.xattrs.clone());
        let result = change(&mut r.meta);
        let result = result.and_then(|()| self.relayout(lid));
        if result.is_err()
            && let Some(r) = self.records.get_mut(&lid)
        {
            (r.meta.flags, r.meta.xattrs) = before;
        }
        result
    }

    /// The table entry of extent page `ep` changed.
    pub fn mark_table(&mut self, lid: Lid, ep: u32) -> Result<()> {
        if self.record(lid)?.layout.is_none() {
            return self.relayout(lid);
        }
        let r = self.record_mut(lid)?;
        if let Some(layout) = &r.layout {
            let n = page_of_ep(layout, ep as usize);
            r.dirty_chain.insert(n);
        }
        self.touch(lid);
        Ok(())
    }

    /// Makes sure that extent page `ep` has a page and will be written with the open batch. The leaf must be resident and
    /// the lvol's own. `kept_too`: may use the pages kept for discards.
    pub fn mark_leaf(&mut self, lid: Lid, ep: u32, kept_too: bool) -> Result<()> {
        if self.record(lid)?.layout.is_none() {
            self.relayout(lid)?;
        }
        if self.record(lid)?.eps().get(ep as usize).copied() == Some(0) {
            let thick = self.record(lid)?.thick;
            let left = match (thick, kept_too) {
                (true, _) => 0,
                (false, true) => self.pages_reserved,
                (false, false) => self.pages_kept(),
            };
            let page = self.claim_page_leaving(left)?;
            if thick {
                self.pages_reserved = self.pages_reserved.saturating_sub(1);
            }
            if let Some((_, eps)) = self.record_mut(lid)?.eps_mut()
                && let Some(slot) = eps.get_mut(ep as usize)
            {
                *slot = page;
            }
            self.mark_table(lid, ep)?;
        }
        self.record_mut(lid)?.dirty_leaves.insert(ep);
        self.touch(lid);
        Ok(())
    }

    /// Counts an own zero mark more (`1`) or less (`-1`); the blob's private flag follows.
    pub fn count_zero_mark(&mut self, lid: Lid, change: i64) -> Result<()> {
        let r = self.record_mut(lid)?;
        r.zero_marks = r.zero_marks.saturating_add_signed(change);
        let on = r.zero_marks > 0;
        if r.meta.flags.has_zero_marks() != on {
            r.meta.flags.set_invalid(Flags::PRIVATE_ZERO_MARKS, on);
            if r.layout.is_none() {
                return self.relayout(lid);
            }
            self.record_mut(lid)?.dirty_chain.insert(0);
            self.touch(lid);
        }
        Ok(())
    }

    /// The root is erased with the open batch: the blob is gone.
    pub fn kill_root(&mut self, root: u32) {
        self.batch.dead_roots.insert(root);
        self.free_page(root);
    }

    pub fn add_reclaim(&mut self, job: Reclaim) {
        self.clusters.quarantined += job.clusters;
        self.batch.reclaims.push(job);
    }

    /// Pages that the next cut would hold, at most.
    pub fn pending_pages(&self) -> usize {
        let records: usize =
            self.batch.dirty.iter().filter_map(|l| self.records.get(l)).map(Record::changed_pages).sum();
        records + self.batch.dead_roots.len() + self.batch.extra.len()
    }

    pub fn has_pending(&self) -> bool {
        !self.batch.dirty.is_empty()
            || !self.batch.dead_roots.is_empty()
            || !self.batch.extra.is_empty()
            || !self.batch.freed_clusters.is_empty()
            || !self.batch.freed_pages.is_empty()
    }

    pub fn request_commit(&mut self) {
        self.commit_wanted = true;
        self.writer_wait.wake_all();
    }

    // ---- the cut ----

    /// Ends the open batch and answers with its pages. `None`: nothing changed.
    pub fn cut(&mut self) -> Result<Option<Cut>> {
        if !self.has_pending() {
            return Ok(None);
        }
        let mut images: BTreeMap<u32, Box<Page>> = std::mem::take(&mut self.batch.extra);
        for root in std::mem::take(&mut self.batch.dead_roots) {
            images.insert(root, Box::new([0; PAGE_SIZE]));
        }
        for lid in std::mem::take(&mut self.batch.dirty) {
            let Some(r) = self.records.get_mut(&lid) else { continue };
            let map = r.hot.map.load_full();
            for ep in std::mem::take(&mut r.dirty_leaves) {
                let Some(&page) = r.eps().get(ep as usize) else { continue };
                let count = r.ep_len(ep);
                let entries = leaf_entries(&map, r.hot.token(), ep, count)
                    .ok_or_else(|| err!(Corrupt, "lvol {}: leaf {ep} is not resident at its commit", r.name()))?;
                images.insert(page, Box::new(extent_page::encode(r.meta.id, ep, &entries)?));
            }
            if let Some(layout) = &r.layout {
                for n in std::mem::take(&mut r.dirty_chain) {
                    let Some(&page) = r.chain.get(n) else { continue };
                    images.insert(page, Box::new(encode_page(&r.meta, layout, &r.chain, n)?));
                }
            }
        }
        let fresh = std::mem::take(&mut self.batch.fresh);
        let mut cut = Cut {
            batch: self.open_batch,
            direct: Vec::new(),
            journal: Vec::new(),
            clusters: std::mem::take(&mut self.batch.freed_clusters),
            pages: std::mem::take(&mut self.batch.freed_pages),
            reclaims: std::mem::take(&mut self.batch.reclaims),
            md_limit: self.pages.limit(),
        };
        for (page, image) in images {
            // A page with an image in the journal would be overwritten by a replay.
            let straight = fresh.contains(&page) && !self.overlay.contains_key(&page);
            if straight { cut.direct.push((page, image)) } else { cut.journal.push((page, image)) }
        }
        self.open_batch += 1;
        Ok(Some(cut))
    }

    // ---- accounting ----

    pub fn allocated(&self) -> u64 {
        let used = u64::from(self.clusters.total() - self.clusters.free());
        used - u64::from(self.geo.md_clusters) - self.system_clusters() - self.clusters.quarantined
    }

    /// Clusters of the system area: what it holds now, or what is set aside for it.
    pub fn system_clusters(&self) -> u64 {
        self.system_extents().iter().map(|(_, n)| u64::from(*n)).sum()
    }

    pub fn system_extents(&self) -> Vec<(u32, u32)> {
        match self.super_block.private() {
            Ok(Some(p)) if p.state == crate::format::PrivateState::InUse => {
                p.extents.iter().map(|e| (e.start_cluster, e.clusters)).collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn blob_id_of(&self, lid: Lid) -> Result<u64> {
        Ok(blob_id(self.record(lid)?.root()))
    }
}

/// The entries of an extent page from the leaf in memory.
fn leaf_entries(map: &Map, token: u64, ep: u32, count: usize) -> Option<Vec<u32>> {
    let leaf = map.leaf(ep as usize)?;
    let mut entries = vec![0; count];
    for (n, entry) in leaf.own_entries(token, count) {
        entries[n] = if entry.is_zero_mark() { ZERO_MARK } else { entry.cluster().unwrap_or(0) };
    }
    Some(entries)
}

/// An entry of an extent page as the map holds it.
pub fn entry_from_disk(value: u32) -> Entry {
    match value {
        0 => Entry::NONE,
        ZERO_MARK => Entry::OWN_ZERO,
        cluster => Entry::own(cluster),
    }
}
