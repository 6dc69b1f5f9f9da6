//! The one writer of metadata: turns batches into journal records.
//!
//! ```text
//!   cut the batch ▶ fresh pages home ▶ device flush ▶ record ▶ device flush ▶ durable: acknowledge, start quarantine
//!                                      (data too)
//!   log full: images home ▶ flush ▶ head ▶ flush ▶ log begins anew
//! ```
//!
//! The cut comes before the flush: every map change in the batch was published after its data write had completed, so the
//! flush covers it. After a failed flush or journal write nothing is acknowledged any more (P4).

use super::Lvstore;
use super::core::{Core, Cut};
use super::local::StoreShard;
use super::system::SystemArea;
use crate::error::{Result, err};
use crate::format::PAGE_SIZE;
use crate::shard::sync::{WaitList, lock, wait_until};
use crate::shard::{Port, Shard, all};
use crate::sim::mutation::{Mutation, active};
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::task::Poll;

impl Lvstore {
    /// Runs on the home shard until the store is closed or dropped.
    pub(super) async fn writer(self: Arc<Self>, shard: Shard) {
        loop {
            let go = wait_until(&self.core, |core, cx| {
                let may_commit = core.commit_wanted && core.failed.is_none();
                if core.closing && !may_commit {
                    return Poll::Ready(false);
                }
                if may_commit {
                    core.commit_wanted = false;
                    return Poll::Ready(true);
                }
                core.writer_wait.register(cx);
                Poll::Pending
            })
            .await;
            if !go {
                return;
            }
            let result = self.commit_once(&shard).await;
            if let Err(e) = result {
                self.fail(&e.to_string());
            }
        }
    }

    /// From now on nothing is acknowledged as durable, and no map changes.
    pub fn fail(&self, why: &str) {
        self.has_failed.store(true, Ordering::Release);
        let mut core = lock(&self.core);
        if core.failed.is_none() {
            tracing::error!(lvstore = core.name, why, "the store takes no changes until it is reopened");
            core.failed = Some(why.to_string());
        }
        core.durable_wait.wake_all();
        core.space_wait.wake_all();
        core.alloc_wait.wake_all();
        core.gate_wait.wake_all();
        core.reclaim.wait.wake_all();
        core.reclaim.idle_wait.wake_all();
        core.hydration.wake();
    }

    async fn commit_once(&self, shard: &Shard) -> Result<()> {
        let local = &self.local(shard)?;
        let port = &local.port;
        if active(Mutation::CutAfterFlush) {
            self.device_flush(local).await?;
        }
        // One writer: nobody else takes the journal while the store is open.
        let mut journal = self.journal.acquire().await;
        let Some(area) = journal.as_mut() else {
            return Err(err!(Corrupt, "a change was made before the store was marked as ours"));
        };
        let large = {
            let core = lock(&self.core);
            core.pending_pages() > area.record_pages()
        };
        if large {
            // With everything home, pages that nothing refers to can go straight.
            self.checkpoint(local, area).await?;
        }
        let cut = lock(&self.core).cut()?;
        let Some(mut cut) = cut else { return Ok(()) };
        if cut.journal.len() > area.record_pages() {
            return Err(err!(Corrupt, "a batch of {} pages is larger than the journal", cut.journal.len()));
        }
        if !area.has_room(cut.journal.len()) {
            self.checkpoint(local, area).await?;
        }
        let direct = std::mem::take(&mut cut.direct);
        self.write_pages(port, direct.iter().map(|(n, image)| (*n, &image[..]))).await?;
        if !active(Mutation::CutAfterFlush) {
            self.device_flush(local).await?;
        }
        if active(Mutation::HomeBeforeJournal) {
            self.write_pages(port, cut.journal.iter().map(|(n, image)| (*n, &image[..]))).await?;
        }
        area.append(port, &cut.journal, cut.md_limit).await?;
        if !active(Mutation::SkipFlush) {
            self.device_flush(local).await?;
        }
        self.became_durable(cut);
        Ok(())
    }

    fn became_durable(&self, cut: Cut) {
        let mut core = lock(&self.core);
        for (page, image) in cut.journal {
            core.overlay.insert(page, Arc::new(*image));
        }
        core.durable_batch = cut.batch;
        self.durable_hint.store(cut.batch, Ordering::Release);
        for page in cut.pages {
            core.pages.release(page);
        }
        core.reclaim.clusters.extend(cut.clusters);
        core.reclaim.jobs.extend(cut.reclaims);
        core.reclaim.wait.wake_all();
        core.durable_wait.wake_all();
        core.space_wait.wake_all();
    }

    /// Writes everything that the journal holds to its place and empties the journal.
    pub(super) async fn checkpoint(&self, local: &Rc<StoreShard>, area: &mut SystemArea) -> Result<()> {
        let port = &local.port;
        let (images, limit) = {
            let core = lock(&self.core);
            (core.overlay.clone(), core.pages.limit())
        };
        self.write_pages(port, images.iter().map(|(n, image)| (*n, &image[..]))).await?;
        if !active(Mutation::TailBeforeHome) {
            self.device_flush(local).await?;
        }
        area.restart_log(port, limit).await?;
        self.device_flush(local).await?;
        // Only this writer adds to the overlay, so it still holds what was written.
        lock(&self.core).overlay.clear();
        Ok(())
    }

    /// Writes metadata pages to their places; neighbours in one I/O. Not flushed.
    pub(super) async fn write_pages<'a>(
        &self,
        port: &Port,
        pages: impl Iterator<Item = (u32, &'a [u8])>,
    ) -> Result<()> {
        const RUN_MAX: usize = 256;
        let page_size = self.geo.md_page_size as usize;
        let mut sorted: Vec<(u32, &[u8])> = pages.collect();
        sorted.sort_by_key(|(n, _)| *n);
        let mut rest = sorted.as_slice();
        let mut ios = Vec::new();
        while let Some((first, _)) = rest.first() {
            let mut run = 1;
            // Larger pages carry 4096 bytes of structure each; their rest is left alone.
            let joined = |run: usize| rest.get(run).is_some_and(|(n, _)| *n == first + run as u32);
            while run < RUN_MAX && page_size == PAGE_SIZE && joined(run) {
                run += 1;
            }
            let (now, later) = rest.split_at(run);
            let len = run * PAGE_SIZE;
            let buf = port.shard.buf(len).slice(0, len);
            for (n, (_, image)) in now.iter().enumerate() {
                buf.copy_in(n * PAGE_SIZE, image);
            }
            ios.push(port.write(self.geo.page_offset(*first), buf, false));
            rest = later;
        }
        all(ios, "cannot write a metadata page").await
    }

    // ---- waiting for it ----

    /// Waits until batch `batch` is durable; asks for its commit.
    pub async fn durable(&self, batch: u64) -> Result<()> {
        wait_until(&self.core, |core, cx| {
            if core.durable_batch >= batch {
                return Poll::Ready(Ok(()));
            }
            if let Some(why) = &core.failed {
                return Poll::Ready(Err(err!(Failed, "lvstore {}: {why}; reopen the store", core.name)));
            }
            if core.closing {
                return Poll::Ready(Err(err!(Busy, "lvstore {} was closed", core.name)));
            }
            if batch >= core.open_batch && !core.has_pending() {
                if core.durable_batch + 1 >= core.open_batch {
                    // Nothing was changed under that number after all.
                    return Poll::Ready(Ok(()));
                }
            } else if batch >= core.open_batch && !core.commit_wanted {
                core.request_commit();
            }
            core.durable_wait.register(cx);
            Poll::Pending
        })
        .await
    }

    /// Commits everything that was changed so far.
    pub async fn commit(&self) -> Result<()> {
        let batch = {
            let core = lock(&self.core);
            if core.has_pending() { core.open_batch } else { core.open_batch - 1 }
        };
        self.durable(batch).await
    }

    /// As `durable`, and everything that has completed by now is on the device too.
    pub async fn durable_after_now(&self, shard: &Shard, batch: u64) -> Result<()> {
        let cut_already = batch < lock(&self.core).open_batch;
        if cut_already {
            self.device_flush(&self.local(shard)?).await?;
        }
        self.durable(batch).await
    }

    pub fn durable_batch(&self) -> u64 {
        self.durable_hint.load(Ordering::Acquire)
    }

    /// Makes a change that needs `pages` pages of the batch. If there is no space and some is on its way back, waits for
    /// that and tries again.
    pub async fn change<R>(&self, pages: usize, mut change: impl FnMut(&mut Core) -> Result<R>) -> Result<R> {
        loop {
            self.batch_room(pages).await?;
            {
                let mut core = lock(&self.core);
                core.may_change()?;
                match change(&mut core) {
                    Err(e) if lacks_space(&e) && core.space_is_coming() => {}
                    result => return result,
                }
            }
            self.commit().await?;
            self.background_done().await;
            self.reclaimed().await?;
        }
    }

    /// Waits until the open batch has room for `pages` more. To be called right before the change, again after each wait.
    pub async fn batch_room(&self, pages: usize) -> Result<()> {
        loop {
            let batch = {
                let core = lock(&self.core);
                core.may_change()?;
                if room_for(&core, pages) {
                    return Ok(());
                }
                core.open_batch
            };
            self.durable(batch).await?;
        }
    }

    /// FLUSH of a lvol (P1).
    pub async fn flush_lvol(&self, local: &Rc<StoreShard>, lvol: &crate::lvol::Lvol) -> Result<()> {
        let dirty = lvol.dirty_batch.load(Ordering::Acquire);
        if dirty <= self.durable_hint.load(Ordering::Acquire) {
            return self.device_flush(local).await;
        }
        let (open, durable) = {
            let core = lock(&self.core);
            (core.open_batch, core.durable_batch)
        };
        self.durable_hint.store(durable, Ordering::Release);
        if dirty < open {
            // Cut already, or durable: its flush may have begun before this call.
            self.device_flush(local).await?;
            return self.durable(dirty).await;
        }
        // The batch is cut after this call, and its flush comes after the cut.
        self.durable(dirty).await
    }

    /// A device flush that begins after this call. One at a time: who comes while one runs shares the next. So a flush
    /// that failed is known before any later one is acknowledged; a device may drop what it could not write and report
    /// that once.
    pub(super) async fn device_flush(&self, local: &Rc<StoreShard>) -> Result<()> {
        let needed = lock(&self.flushes).started + 1;
        loop {
            let mine = wait_until(&self.flushes, |f, cx| {
                if self.has_failed.load(Ordering::Acquire) {
                    return Poll::Ready(Err(err!(
                        Failed,
                        "an earlier flush or journal write failed; reopen the store"
                    )));
                }
                if f.finished >= needed {
                    return Poll::Ready(Ok(false));
                }
                if f.running {
                    f.wait.register(cx);
                    return Poll::Pending;
                }
                f.running = true;
                f.started += 1;
                Poll::Ready(Ok(true))
            })
            .await?;
            if !mine {
                return Ok(());
            }
            let turn = FlushTurn(&self.flushes);
            let result = local.port.flush().done("cannot flush the device").await;
            match &result {
                Ok(()) => {
                    let mut flushes = lock(&self.flushes);
                    flushes.finished = flushes.started;
                }
                Err(e) => self.fail(&e.to_string()),
            }
            drop(turn);
            result?;
        }
    }
}

/// The device flushes of a store.
#[derive(Default)]
pub struct Flushes {
    started: u64,
    finished: u64,
    running: bool,
    wait: WaitList,
}

/// The flush that runs; the next may begin when it is dropped.
struct FlushTurn<'a>(&'a Mutex<Flushes>);

impl Drop for FlushTurn<'_> {
    fn drop(&mut self) {
        let mut flushes = lock(self.0);
        flushes.running = false;
        flushes.wait.wake_all();
    }
}

pub fn lacks_space(e: &crate::Error) -> bool {
    matches!(e.kind(), crate::ErrorKind::NoSpace | crate::ErrorKind::NoMetadataSpace)
}

/// A batch keeps a part for control operations, so that writers cannot crowd them out.
pub fn room_for(core: &Core, pages: usize) -> bool {
    let pending = core.pending_pages();
    pending == 0 || pending + pages <= core.record_pages / 2
}
