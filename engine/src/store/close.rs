//! Leaving a store: everything durable and home, nothing private left, marked clean for SPDK.
//!
//! ```text
//!   background work ends ▶ commit ▶ all home ▶ flush ▶ system blob's root gone ▶ masks ▶ flush ▶ copy ▶ flush ▶ page 0
//! ```
//!
//! If something private must stay (many zero marks and no order to seal), the store stays marked as ours with an empty
//! journal; `info` says what is left.

use super::Lvstore;
use super::core::Core;
use super::create::write_masks;
use super::info::seal_work;
use crate::error::{Result, err};
use crate::format::{BSTYPE_LVOLSTORE, Bits, Private, PrivateState};
use crate::shard::Shard;
use crate::shard::sync::{lock, wait_until};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// A close fills at most these many bytes of zero marks by itself.
const SEAL_BY_ITSELF: u64 = 256 << 20;

impl Lvstore {
    /// Finishes whatever is private, so that a close leaves a plain SPDK store. I/O goes on meanwhile. A damaged lvol keeps
    /// its zero marks.
    pub async fn seal(self: &Arc<Self>, shard: &Shard) -> Result<()> {
        self.activate(shard).await?;
        self.background_done().await;
        let marked: Vec<_> = {
            let core = lock(&self.core);
            let marked = core.records.values().filter(|r| r.zero_marks > 0 && r.damaged.is_none());
            marked.map(|r| r.hot.clone()).collect()
        };
        for lvol in marked {
            match self.fill_zero_marks(shard, &lvol).await {
                // Deleted meanwhile.
                Err(e) if e.kind() == crate::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        self.commit().await
    }

    /// Closes the store. `Busy` while a lvol is open.
    pub async fn close(self: &Arc<Self>, shard: &Shard) -> Result<()> {
        let _one = self.closes.acquire().await;
        {
            let core = lock(&self.core);
            if core.closing {
                return Ok(());
            }
            if let Some(r) = core.records.values().find(|r| r.hot.is_open()) {
                return Err(err!(Busy, "lvol {}/{} is in use; stop its exports first", core.name, r.name()));
            }
        }
        let result = match self.get_ready(shard).await {
            Ok(true) => self.leave(shard).await.inspect_err(|e| {
                // Whatever it was, what lies on the device is not known for sure.
                self.fail(&e.to_string());
            }),
            Ok(false) => Ok(()),
            Err(e) => Err(e),
        };
        {
            let mut core = lock(&self.core);
            let in_use = core.records.values().find(|r| r.hot.is_open()).map(|r| r.name());
            if in_use.is_some() || (result.is_err() && core.failed.is_none()) {
                // Nothing was torn down: the caller may try again.
                core.leaving = false;
                core.hydration.wake();
                return match in_use {
                    Some(name) => Err(err!(Busy, "lvol {}/{name} is in use; stop its exports first", core.name)),
                    None => result,
                };
            }
            core.leaving = true;
            core.closing = true;
            core.durable_wait.wake_all();
            core.writer_wait.wake_all();
            core.reclaim.wait.wake_all();
            core.hydration.wake();
        }
        wait_until(&self.running, |(count, wait), cx| {
            if *count == 0 {
                return Poll::Ready(());
            }
            wait.register(cx);
            Poll::Pending
        })
        .await;
        for handle in &self.shards {
            let key = self.key;
            let gone = handle.call(move |shard| async move {
                shard.local_remove(key);
                Ok(())
            });
            gone.await?;
        }
        self.device.unlock();
        result
    }

    /// Everything that can be refused: afterwards nothing more is let in, and what was changed is durable. False: there is
    /// nothing to write.
    async fn get_ready(self: &Arc<Self>, shard: &Shard) -> Result<bool> {
        if !self.active.load(Ordering::Acquire) {
            // Nothing was written. A plain store stays as it is; one that a crash left is put in order.
            let ours = super::load::is_ours(&lock(&self.core).super_block);
            if self.read_only || !ours || lock(&self.core).may_change().is_err() {
                return Ok(false);
            }
            if let Err(e) = self.activate(shard).await {
                tracing::warn!(error = %e, "the store stays as it was found");
                return Ok(false);
            }
        }
        let small = {
            let core = lock(&self.core);
            let marked = core.records.values().filter(|r| r.zero_marks > 0 && r.damaged.is_none());
            // Where nothing is inherited a mark is dropped, which takes no space.
            let marks: u64 = marked.clone().filter(|r| r.inherits()).map(|r| r.zero_marks).sum();
            let fit = marks * self.cluster_size() <= SEAL_BY_ITSELF && core.clusters.unreserved() > 2 * marks;
            marked.count() > 0 && (marks == 0 || fit)
        };
        if small && let Err(e) = self.seal(shard).await {
            // The store stays ours; everything else is put in order.
            tracing::warn!(error = %e, "zero marks stay");
        }
        self.background_done().await;
        {
            let mut core = lock(&self.core);
            if let Some(r) = core.records.values().find(|r| r.hot.is_open() || r.busy.is_some()) {
                return Err(err!(Busy, "lvol {}/{} is in use; stop its exports first", core.name, r.name()));
            }
            core.leaving = true;
            core.hydration.wake();
        }
        // What it has claimed it gives back.
        wait_until(&self.core, |core, cx| {
            if core.hydration.is_at_rest() || core.failed.is_some() {
                return Poll::Ready(());
            }
            core.hydration.register(cx);
            Poll::Pending
        })
        .await;
        loop {
            self.commit().await?;
            self.reclaimed().await?;
            let core = lock(&self.core);
            if let Some(why) = &core.failed {
                return Err(err!(Failed, "lvstore {}: {why}", core.name));
            }
            if !core.has_pending() && core.reclaim.is_idle() {
                return Ok(true);
            }
        }
    }

    /// Writes everything home, and the store's plain form if nothing private has to stay.
    async fn leave(self: &Arc<Self>, shard: &Shard) -> Result<()> {
        let local = self.local(shard)?;
        let port = &local.port;
        let mut journal = self.journal.acquire().await;
        let Some(area) = journal.as_mut() else { return Ok(()) };
        self.checkpoint(&local, area).await?;
        let (plain, system_root, masks, mut image, generation) = {
            let core = lock(&self.core);
            let generation = core.super_block.private()?.map_or(1, |p| p.generation + 1);
            let plain = seal_work(&core).is_empty();
            (
                plain,
                core.system_pages.first().copied(),
                core.masks_without_system(),
                core.super_block.clone(),
                generation,
            )
        };
        if !plain {
            return Ok(());
        }
        self.erase_roots(&local, system_root.into_iter()).await?;
        let geo = lock(&self.core).geo.clone();
        let (pages, clusters, ids) = masks;
        write_masks(port, &geo, &pages, &clusters, &ids).await?;
        image.bstype = BSTYPE_LVOLSTORE;
        image.clean = 1;
        let uuid = area.store_uuid;
        image.set_private(Some(&Private {
            state: PrivateState::None,
            generation,
            store_uuid: *uuid.as_bytes(),
            extents: Vec::new(),
        }))?;
        self.replace_super(&local, area, image, generation).await
    }

    /// Waits until no merge is running.
    pub async fn background_done(&self) {
        wait_until(&self.core, |core, cx| {
            if core.merges == 0 || core.failed.is_some() {
                return Poll::Ready(());
            }
            core.reclaim.idle_wait.register(cx);
            Poll::Pending
        })
        .await
    }
}

impl Core {
    /// Masks as they are when the system area is gone: pages, clusters, blob ids.
    fn masks_without_system(&self) -> (Bits, Bits, Bits) {
        let mut pages = self.pages.used_bits().clone();
        self.system_pages.iter().for_each(|p| {
            pages.clear(*p);
        });
        let mut clusters = self.clusters.used_bits().clone();
        for (start, len) in self.system_extents() {
            (start..start + len).for_each(|c| {
                clusters.clear(c);
            });
        }
        let mut ids = Bits::new(pages.len());
        ids.set(self.super_chain.first().copied().unwrap_or(0));
        self.records.values().for_each(|r| {
            ids.set(r.root());
        });
        (pages, clusters, ids)
    }
}
