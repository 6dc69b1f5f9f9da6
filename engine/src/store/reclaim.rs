//! The way back of freed clusters: durable free ▶ grace period ▶ discard hint to the device ▶ free.
//!
//! A deleted lvol is gone with its root; its clusters are collected afterwards from its extent pages, which nobody takes
//! before that. After a crash there is nothing to resume: what no root leads to is free.

use super::Lvstore;
use super::core::Reclaim;
use super::local::StoreShard;
use crate::error::Result;
use crate::format::{PAGE_SIZE, ZERO_MARK, extent_page};
use crate::shard::sync::{WaitList, lock, wait_until};
use crate::shard::{Shard, all};
use crate::sim::mutation::{Mutation, active};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

#[derive(Default)]
pub struct ReclaimState {
    /// Freed durably.
    pub clusters: Vec<u32>,
    pub jobs: Vec<Reclaim>,
    pub working: bool,
    pub wait: WaitList,
    pub idle_wait: WaitList,
}

impl ReclaimState {
    pub fn is_idle(&self) -> bool {
        self.clusters.is_empty() && self.jobs.is_empty() && !self.working
    }
}

/// Extent pages read side by side.
const READS: usize = 64;

/// Clusters that come back in one go.
const RELEASES: usize = 1 << 14;

impl Lvstore {
    pub(super) async fn reclaimer(self: Arc<Self>, shard: Shard) {
        loop {
            let work = wait_until(&self.core, |core, cx| {
                let state = &mut core.reclaim;
                if core.failed.is_none() && !(state.clusters.is_empty() && state.jobs.is_empty()) {
                    state.working = true;
                    return Poll::Ready(Some((std::mem::take(&mut state.clusters), std::mem::take(&mut state.jobs))));
                }
                if core.closing {
                    return Poll::Ready(None);
                }
                state.wait.register(cx);
                Poll::Pending
            })
            .await;
            let Some((clusters, jobs)) = work else { return };
            if let Err(e) = self.reclaim(&shard, clusters, jobs).await {
                tracing::warn!(error = %e, "freed space stays unused until the store is reopened");
            }
            let mut core = lock(&self.core);
            core.reclaim.working = false;
            core.reclaim.idle_wait.wake_all();
            core.space_wait.wake_all();
        }
    }

    async fn reclaim(&self, shard: &Shard, mut clusters: Vec<u32>, jobs: Vec<Reclaim>) -> Result<()> {
        let local = self.local(shard)?;
        let mut pages = Vec::new();
        for job in jobs {
            clusters.extend(self.clusters_of(&local, &job).await);
            pages.extend(job.eps);
            pages.extend(job.pages);
        }
        if !active(Mutation::ReuseBeforeReadsEnd) {
            self.grace().await?;
        }
        self.hint_unused(&local, &mut clusters).await;
        for page in pages {
            lock(&self.core).pages.release(page);
        }
        // In pieces: a deleted lvol may have had millions, and everybody's writes need the lock and this shard.
        for piece in clusters.chunks(RELEASES) {
            {
                let mut core = lock(&self.core);
                for cluster in piece {
                    core.clusters.release(*cluster);
                }
                core.clusters.quarantined = core.clusters.quarantined.saturating_sub(piece.len() as u64);
                core.space_wait.wake_all();
            }
            shard.yield_now().await;
        }
        Ok(())
    }

    /// The clusters in the extent pages of a deleted lvol. Those of an unreadable page stay out of use.
    async fn clusters_of(&self, local: &StoreShard, job: &Reclaim) -> Vec<u32> {
        let mut found = Vec::new();
        for chunk in job.eps.chunks(READS) {
            let mut reads = Vec::new();
            let mut bufs = Vec::new();
            for page in chunk {
                let image = lock(&self.core).overlay.get(page).cloned();
                let buf = local.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
                match image {
                    Some(image) => buf.copy_in(0, &image[..]),
                    None => reads.push(local.port.read(self.geo.page_offset(*page), buf.clone())),
                }
                bufs.push(buf);
            }
            if let Err(e) = all(reads, "cannot read an extent page").await {
                tracing::warn!(lvol = job.name, error = %e, "its clusters stay out of use until the store is reopened");
                continue;
            }
            for (page, buf) in chunk.iter().zip(bufs) {
                match buf.with(extent_page::parse) {
                    Ok(ep) => found.extend(ep.entries.iter().filter(|e| **e != 0 && **e != ZERO_MARK)),
                    Err(e) => tracing::warn!(lvol = job.name, page, error = %e, "unreadable extent page"),
                }
            }
        }
        let core = lock(&self.core);
        found.retain(|c| core.geo.is_data_cluster(*c) && core.clusters.is_used(*c));
        found
    }

    /// Tells the device that clusters are unused: a hint, whose failure means nothing.
    async fn hint_unused(&self, local: &StoreShard, clusters: &mut [u32]) {
        clusters.sort_unstable();
        if !self.punches.load(Ordering::Relaxed) {
            return;
        }
        let size = u64::from(self.geo.cluster_size);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for cluster in clusters.iter() {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == *cluster => *len += 1,
                _ => runs.push((*cluster, 1)),
            }
        }
        for chunk in runs.chunks(READS) {
            let ios =
                chunk.iter().map(|(start, len)| local.port.punch(u64::from(*start) * size, u64::from(*len) * size));
            if all(ios.collect(), "discard").await.is_err() {
                self.punches.store(false, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Waits until nothing is on its way back.
    pub async fn reclaimed(&self) -> Result<()> {
        wait_until(&self.core, |core, cx| {
            if core.reclaim.is_idle() || core.failed.is_some() {
                return Poll::Ready(Ok(()));
            }
            core.reclaim.idle_wait.register(cx);
            Poll::Pending
        })
        .await
    }
}
