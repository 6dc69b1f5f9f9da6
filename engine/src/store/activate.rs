//! The step from "opened" to "written": before our first write the store is marked as ours, so that SPDK leaves it alone
//! through every crash.
//!
//! ```text
//!   plain store:  system area (copy, heads) ▶ flush ▶ page 0 = COPPICE ▶ flush ▶ first batch: system blob, fix-ups
//!   our store:    [page 0 from its copy ▶ flush] ▶ what the journal holds goes home ▶ flush ▶ new head ▶ flush
//! ```
//!
//! Page 0 is never the only place of its content: the copy is durable before page 0 is touched.

use super::Lvstore;
use super::core::{ATTR_HIDDEN, Core, Lid};
use super::local::StoreShard;
use super::system::{AREA_PAGES_MIN, SystemArea};
use crate::error::{Error, Result, err};
use crate::format::page::blob_id;
use crate::format::{
    BSTYPE_COPPICE, BlobMeta, EXTENTS_MAX, Extents, Flags, PAGE_SIZE, Private, PrivateExtent, PrivateState, SuperBlock,
    encode_page, extent_page, layout, xattr,
};
use crate::shard::sync::{WaitList, lock, wait_until};
use crate::shard::{Port, Shard, all};
use crate::sim::mutation::{Mutation, active};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// What the load leaves for the first write.
#[derive(Default)]
pub struct Start {
    /// The journal as it was found; `None`: a plain store.
    pub area: Option<SystemArea>,
    /// Page 0 was unreadable and has to be written again.
    pub from_copy: bool,
    /// Pages that look like roots and are not: zeroed before our scan could take them for blobs.
    pub stale_roots: BTreeSet<u32>,
    pub system_chain: Vec<u32>,
    pub system_eps: Vec<u32>,
    /// SPDK snapshots whose creation or removal was cut off and that stay: markers to be dropped.
    pub finish_snapshots: BTreeSet<Lid>,
    /// SPDK snapshots that were being merged → the clone.
    pub removing: BTreeMap<Lid, Lid>,
    /// Those of them whose clusters the clone lists already: the merge is finished.
    pub roll_forward: BTreeSet<Lid>,
    /// Extent pages that are longer or shorter than their lvol implies.
    pub rewrite_eps: BTreeSet<(Lid, u32)>,
}

/// How far the step is.
pub enum Phase {
    Idle(Box<Start>),
    Running,
    Done,
    Failed(Error),
}

/// Bytes of the system area for a store of `size` bytes.
fn area_bytes(size: u64) -> u64 {
    (size / 256).clamp(256 << 10, 8 << 20)
}

/// Clusters of the system area: what is wanted, and the fewest with which it works.
pub fn area_clusters(size: u64, cluster_size: u32) -> (u32, u32) {
    let cluster = u64::from(cluster_size);
    let least = u64::from(AREA_PAGES_MIN) * PAGE_SIZE as u64;
    (area_bytes(size).div_ceil(cluster) as u32, least.div_ceil(cluster) as u32)
}

impl Lvstore {
    /// The store is marked as ours and takes writes.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Makes the store ready for writes; cheap when it is.
    pub async fn activate(self: &Arc<Self>, shard: &Shard) -> Result<()> {
        if self.active.load(Ordering::Acquire) {
            return Ok(());
        }
        lock(&self.core).may_change()?;
        let start = wait_until(&self.activating, |(phase, wait): &mut (Phase, WaitList), cx| {
            match std::mem::replace(phase, Phase::Running) {
                Phase::Idle(start) => Poll::Ready(Ok(Some(start))),
                Phase::Running => {
                    wait.register(cx);
                    Poll::Pending
                }
                Phase::Done => {
                    *phase = Phase::Done;
                    Poll::Ready(Ok(None))
                }
                Phase::Failed(e) => {
                    *phase = Phase::Failed(e.clone());
                    Poll::Ready(Err(e))
                }
            }
        })
        .await?;
        let Some(start) = start else { return Ok(()) };
        let result = self.activate_once(shard, *start).await;
        let mut guard = lock(&self.activating);
        guard.0 = match &result {
            Ok(()) => {
                self.active.store(true, Ordering::Release);
                Phase::Done
            }
            Err(e) => Phase::Failed(e.clone()),
        };
        guard.1.wake_all();
        drop(guard);
        if result.is_ok() {
            // Snapshots whose other clones SPDK deleted.
            self.resume_deletes(shard);
        }
        if let Err(e) = &result
            && !matches!(e.kind(), crate::ErrorKind::NoSpace | crate::ErrorKind::NoMetadataSpace)
        {
            self.fail(&e.to_string());
        }
        result
    }

    async fn activate_once(self: &Arc<Self>, shard: &Shard, start: Start) -> Result<()> {
        let local = self.local(shard)?;
        let port = &local.port;
        self.erase_roots(&local, start.stale_roots.iter().copied()).await?;
        let nonce = shard.random();
        if start.from_copy {
            // Before anything that could touch the copy, which is the only one now.
            let image = lock(&self.core).super_block.clone();
            write_page0(port, &image).await?;
            self.device_flush(&local).await?;
        }
        let mut journal = self.journal.acquire().await;
        let area = match &start.area {
            Some(found) => {
                let mut area = found.clone();
                let image = lock(&self.core).super_block.clone();
                if area.copy_problem(port, &image).await?.is_some() {
                    let generation = image.private()?.map_or(1, |p| p.generation);
                    area.write_super_copy(port, &image, generation).await?;
                }
                area.renew(nonce);
                lock(&self.core).record_pages = area.record_pages();
                self.checkpoint(&local, &mut area).await?;
                area
            }
            None => self.first_mark(&local, nonce).await?,
        };
        lock(&self.core).record_pages = area.record_pages();
        *journal = Some(area);
        drop(journal);
        self.fix_ups(shard, &start).await?;
        self.commit().await?;
        // Until such a merge has ended two lvols list the same clusters: nobody may free one of them before that.
        for snapshot in &start.roll_forward {
            self.merge(shard, *snapshot).await?;
        }
        Ok(())
    }

    /// Empties roots of blobs that are nobody's, past the journal. One block is enough, and is not torn: half a page would
    /// look like a damaged lvol.
    pub(super) async fn erase_roots(&self, local: &StoreShard, roots: impl Iterator<Item = u32>) -> Result<()> {
        let zero = local.zeroes.slice(0, self.device.block_size() as usize);
        let write = |root| local.port.write(self.geo.page_offset(root), zero.clone(), false);
        all(roots.map(write).collect(), "cannot write a metadata page").await
    }

    /// Marks a plain store as ours.
    async fn first_mark(&self, local: &Rc<StoreShard>, nonce: u64) -> Result<SystemArea> {
        let (mut image, generation, runs, limit) = {
            let mut core = lock(&self.core);
            let (wanted, least) = area_clusters(core.geo.size, core.geo.cluster_size);
            let mut count = wanted;
            let runs = loop {
                // Clusters reserved for thick lvols stay theirs.
                let room = core.clusters.unreserved() >= u64::from(count);
                match room.then(|| core.clusters.claim_runs_from_end(count, EXTENTS_MAX)).flatten() {
                    Some(runs) => break runs,
                    None if count > least => count = (count / 2).max(least),
                    None => {
                        return Err(err!(
                            NoSpace,
                            "lvstore {}: no room for the journal ({} free clusters are needed): the store can only be \
                             read; free space with the software that filled it",
                            core.name,
                            least
                        ));
                    }
                }
            };
            let generation = match core.super_block.private()? {
                Some(p) => p.generation + 1,
                None => 1,
            };
            (core.super_block.clone(), generation, runs, core.pages.limit())
        };
        let uuid = lock(&self.core).uuid;
        let mut area = SystemArea::new(&runs, self.geo.cluster_size, uuid, nonce);
        image.bstype = BSTYPE_COPPICE;
        image.clean = 0;
        image.size = self.geo.size;
        image.set_private(Some(&Private {
            state: PrivateState::InUse,
            generation,
            store_uuid: *uuid.as_bytes(),
            extents: runs.iter().map(|(s, n)| PrivateExtent { start_cluster: *s, clusters: *n }).collect(),
        }))?;
        area.write_first_heads(&local.port, limit).await?;
        self.replace_super(local, &mut area, image, generation).await?;
        Ok(area)
    }

    /// Puts a new super block in force: copy, flush, page 0, flush.
    pub(super) async fn replace_super(
        &self,
        local: &Rc<StoreShard>,
        area: &mut SystemArea,
        image: SuperBlock,
        generation: u64,
    ) -> Result<()> {
        let port = &local.port;
        if !active(Mutation::LoseSuperCopy) {
            area.write_super_copy(port, &image, generation).await?;
        }
        self.device_flush(local).await?;
        write_page0(port, &image).await?;
        self.device_flush(local).await?;
        lock(&self.core).super_block = image;
        Ok(())
    }

    /// Everything that the load decided, and the system blob, as the first batch.
    async fn fix_ups(&self, shard: &Shard, start: &Start) -> Result<()> {
        for (lid, ep) in &start.rewrite_eps {
            let hot = match lock(&self.core).records.get(lid) {
                Some(r) if r.damaged.is_none() => r.hot.clone(),
                _ => continue,
            };
            self.batch_room(4).await?;
            self.load_leaf(shard, &hot, u64::from(*ep) * super::map::LEAF_CLUSTERS).await?;
            lock(&self.core).mark_leaf(*lid, *ep, true)?;
        }
        let mut core = lock(&self.core);
        for lid in &start.finish_snapshots {
            let clone = start.removing.get(lid).filter(|_| start.roll_forward.contains(lid));
            let clone = clone.map(|c| core.blob_id_of(*c)).transpose()?;
            core.update_meta(*lid, |meta| {
                if let Some(clone) = clone {
                    meta.set_xattr(false, ATTR_HIDDEN.as_bytes(), b"1");
                    // Says, also after a crash, why both list the same clusters.
                    meta.set_xattr(true, xattr::SNAPRM, &clone.to_le_bytes());
                }
                Ok(())
            })?;
            if clone.is_some()
                && let Some(r) = core.records.get_mut(lid)
            {
                r.hidden = true;
            }
        }
        if start.system_chain.is_empty() {
            core.add_system_blob()?;
        }
        Ok(())
    }
}

impl Core {
    /// The private blob that owns the clusters of the system area, so that whoever counts clusters counts them. We do so
    /// from the super block: a store in which no page is left does without it, and so can still be emptied.
    fn add_system_blob(&mut self) -> Result<()> {
        let clusters: Vec<u32> = self.system_extents().iter().flat_map(|(s, n)| *s..*s + *n).collect();
        let mut meta = BlobMeta::new(blob_id(0), clusters.len() as u64, false);
        if (self.pages.free() as usize) < layout::layout(&meta)?.pages + clusters.len().div_ceil(512) {
            return Ok(());
        }
        let root = self.claim_system_page()?;
        self.batch.no_longer_fresh(root);
        meta.id = blob_id(root);
        meta.flags.set_invalid(Flags::PRIVATE_SYSTEM, true);
        let mut eps = Vec::new();
        for (n, entries) in clusters.chunks(512).enumerate() {
            let page = self.claim_system_page()?;
            self.batch.extra.insert(page, Box::new(extent_page::encode(meta.id, n as u32, entries)?));
            eps.push(page);
        }
        meta.extents = Extents::Table { num_clusters: clusters.len() as u64, pages: eps };
        let plan = layout::layout(&meta)?;
        let mut chain = vec![root];
        for _ in 1..plan.pages {
            chain.push(self.claim_system_page()?);
        }
        for n in 0..chain.len() {
            self.batch.extra.insert(chain[n], Box::new(encode_page(&meta, &plan, &chain, n)?));
        }
        let Extents::Table { pages, .. } = &meta.extents else { return Ok(()) };
        self.system_pages = chain.iter().chain(pages).copied().collect();
        Ok(())
    }
}

/// Page 0. Not flushed.
pub async fn write_page0(port: &Port, image: &SuperBlock) -> Result<()> {
    let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
    buf.copy_in(0, &image.encode());
    all(vec![port.write(0, buf, false)], "cannot write the super block").await
}
