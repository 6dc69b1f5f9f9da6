//! One way down for a read and for a write.
//!
//! ```text
//!   request ▶ split where the place on the device jumps ▶ ask the map
//!               ├─ in place ───────────────▶ device
//!               ├─ reads zero ─────────────▶ nothing to read
//!               └─ needs a cluster ────────▶ cow: claim ▶ fill ▶ device ▶ publish
//! ```
//!
//! A read or overwrite of allocated clusters takes no lock, allocates nothing and stays on its shard.

use super::Lvol;
use crate::counters::{Latency, LvolCounts};
use crate::error::{Result, err};
use crate::export::Volume;
use crate::shard::sync::lock;
use crate::shard::{Io, Shard, all};
use crate::store::Lvstore;
use crate::store::local::{StoreShard, ZEROES};
use crate::store::map::{Entry, Map};
use crate::sys::buf::BufSlice;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// A lvol as one shard does I/O on it. While one exists the lvol cannot be deleted or shrunk.
#[derive(Clone)]
pub struct LvolIo(Rc<Handle>);

pub(super) struct Handle {
    pub store: Arc<Lvstore>,
    pub local: Rc<StoreShard>,
    pub lvol: Arc<Lvol>,
    counts: Arc<LvolCounts>,
    cluster_shift: u32,
    /// It keeps nobody from deleting the lvol.
    background: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if !self.background {
            self.lvol.opens.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Where the bytes of a write come from.
#[derive(Clone)]
pub(super) enum Source {
    Buf(BufSlice),
    Zero,
}

impl Source {
    pub fn slice(&self, off: usize, len: usize) -> Source {
        match self {
            Source::Buf(b) => Source::Buf(b.slice(off, len)),
            Source::Zero => Source::Zero,
        }
    }
}

/// What the map says about the beginning of a range. Room for more: a partial cluster will answer with its valid part.
pub(super) enum Plan {
    /// So many bytes lie together at this place of the device; for a write: and may be overwritten there.
    Device { at: u64, len: u64 },
    /// So many bytes read zero.
    Zero { len: u64 },
    /// A write of so many bytes needs new clusters.
    Allocate { len: u64 },
    /// The external parent has to answer for so many bytes.
    External { len: u64 },
    /// The leaf is not loaded.
    Missing,
}

/// A cluster as a lvol sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seen {
    pub entry: Entry,
    /// The lvol's own: may be overwritten in place.
    pub mine: bool,
}

impl Seen {
    pub fn of(map: &Map, token: u64, cluster: u64) -> Option<Seen> {
        let (entry, owner) = map.lookup(cluster)?;
        Some(Seen { entry: entry.inherited(), mine: entry.is_own() && owner == token })
    }
}

impl LvolIo {
    /// Opens a lvol for I/O on this shard. A hidden one cannot be found.
    pub fn open(shard: &Shard, store: &Arc<Lvstore>, uuid: Uuid) -> Result<LvolIo> {
        let local = store.local(shard)?;
        let core = lock(&store.core);
        if core.leaving {
            return Err(err!(Busy, "lvstore {} is being closed", core.name));
        }
        let r = core.record(core.lid_of(uuid)?)?;
        if r.hidden {
            return Err(err!(NotFound, "lvol {uuid} was deleted"));
        }
        r.intact()?;
        let being_taken = r.is_snapshot() && r.busy == Some("snapshot");
        if being_taken || r.busy == Some("resize") {
            return Err(err!(Busy, "lvol {}: an operation is running on it", r.name()));
        }
        Ok(Self::for_lvol(store, local, r.hot.clone()))
    }

    /// For work of the engine itself.
    pub(super) fn for_lvol(store: &Arc<Lvstore>, local: Rc<StoreShard>, lvol: Arc<Lvol>) -> LvolIo {
        lvol.opens.fetch_add(1, Ordering::AcqRel);
        Self::handle_of(store, local, lvol, false)
    }

    /// For work on a lvol that may be deleted meanwhile.
    pub(super) fn in_background(store: &Arc<Lvstore>, local: Rc<StoreShard>, lvol: Arc<Lvol>) -> LvolIo {
        Self::handle_of(store, local, lvol, true)
    }

    fn handle_of(store: &Arc<Lvstore>, local: Rc<StoreShard>, lvol: Arc<Lvol>, background: bool) -> LvolIo {
        LvolIo(Rc::new(Handle {
            cluster_shift: store.geo.cluster_size.trailing_zeros(),
            store: store.clone(),
            counts: lvol.counts(local.shard.id()),
            local,
            lvol,
            background,
        }))
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.0
    }

    pub fn lvol(&self) -> &Arc<Lvol> {
        &self.0.lvol
    }

    /// The end of a range, if it lies inside the lvol.
    pub fn inside(&self, off: u64, len: u64) -> Result<u64> {
        let size = self.size();
        let end = off.checked_add(len).filter(|end| *end <= size);
        end.ok_or_else(|| err!(OutOfRange, "{len} bytes at {off} reach beyond the end of the lvol ({size} bytes)"))
    }

    fn check_range(&self, off: u64, len: u64) -> Result<()> {
        let block = u64::from(self.0.store.block_size());
        if !off.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(err!(Invalid, "offset {off} and length {len} must be multiples of {block}"));
        }
        self.inside(off, len).map(|_| ())
    }

    async fn read_range(&self, off: u64, buf: &BufSlice) -> Result<()> {
        self.check_range(off, buf.len() as u64)?;
        let h = &*self.0;
        loop {
            h.local.unpaused().await;
            let guard = h.local.enter();
            let len = buf.len() as u64;
            match h.plan_read(off, len) {
                Plan::Device { at, len: n } if n == len => {
                    let result = h.local.port.read(at, buf.clone()).done("read").await;
                    drop(guard);
                    return result;
                }
                _ => {}
            }
            let mut ios: Vec<Io> = Vec::new();
            let mut outside = Vec::new();
            let mut done = 0;
            let mut missing = None;
            while done < len {
                let n = match h.plan_read(off + done, len - done) {
                    Plan::Device { at, len: n } => {
                        ios.push(h.local.port.read(at, buf.slice(done as usize, n as usize)));
                        n
                    }
                    Plan::Zero { len: n } => {
                        buf.zero(done as usize, n as usize);
                        n
                    }
                    Plan::External { len: n } => {
                        outside.push((done, n));
                        n
                    }
                    Plan::Missing | Plan::Allocate { .. } => {
                        missing = Some(off + done);
                        break;
                    }
                };
                done += n;
            }
            if let Some(at) = missing {
                drop(ios);
                drop(guard);
                h.store.load_leaf(&h.local.shard, &h.lvol, at >> h.cluster_shift).await?;
                continue;
            }
            let result = all(ios, "read").await;
            drop(guard);
            result?;
            for (done, n) in outside {
                // Without the guard: nothing else may have to wait for somebody on another node.
                Box::pin(self.read_outside(off + done, &buf.slice(done as usize, n as usize))).await?;
            }
            return Ok(());
        }
    }

    async fn read_outside(&self, off: u64, buf: &BufSlice) -> Result<()> {
        let h = &*self.0;
        let Err(e) = h.read_external(off, buf).await else { return Ok(()) };
        // It may have a place in the store by now, and the parent be gone for that reason.
        match h.plan_read(off, buf.len() as u64) {
            Plan::External { len } if len == buf.len() as u64 => Err(e),
            _ => Box::pin(self.read_range(off, buf)).await,
        }
    }

    pub(super) async fn write_range(&self, off: u64, len: u64, source: Source, fua: bool) -> Result<()> {
        self.check_range(off, len)?;
        let h = &*self.0;
        if h.lvol.read_only.load(Ordering::Relaxed) {
            return Err(err!(ReadOnly, "the lvol is read-only"));
        }
        if !h.store.is_active() {
            Box::pin(h.store.activate(&h.local.shard)).await?;
        }
        let mut done = 0;
        while done < len {
            h.local.unpaused().await;
            let guard = h.local.enter();
            match h.plan_write(off + done, len - done) {
                Plan::Device { at, len: n } => {
                    match &source {
                        Source::Buf(buf) if n == len => h.local.port.write(at, buf.clone(), fua).done("write").await?,
                        _ => h.write_device(at, n, &source.slice(done as usize, n as usize), fua).await?,
                    }
                    drop(guard);
                    done += n;
                }
                // Boxed: what rarely happens must not make the future of every write large.
                Plan::Allocate { len: n } => {
                    drop(guard);
                    let part = source.slice(done as usize, n as usize);
                    done += Box::pin(h.allocate(off + done, n, &part)).await?;
                }
                _ => {
                    drop(guard);
                    Box::pin(h.store.load_leaf(&h.local.shard, &h.lvol, (off + done) >> h.cluster_shift)).await?;
                }
            }
        }
        // After a failed flush nothing is acknowledged as durable (P4).
        let unsure = |h: &Handle| h.lvol.dirty_batch.load(Ordering::Acquire) > h.store.durable_batch();
        if fua && (h.store.has_failed() || unsure(h)) {
            Box::pin(h.store.flush_lvol(&h.local, &h.lvol)).await?;
        }
        Ok(())
    }

    /// The range reads zero afterwards; whole clusters go back to the pool.
    async fn unmap_range(&self, off: u64, len: u64) -> Result<()> {
        self.check_range(off, len)?;
        let h = &*self.0;
        if h.lvol.read_only.load(Ordering::Relaxed) {
            return Err(err!(ReadOnly, "the lvol is read-only"));
        }
        h.store.activate(&h.local.shard).await?;
        let size = h.store.cluster_size();
        let (mut at, end) = (off, off + len);
        while at < end {
            let cluster_end = (at / size + 1) * size;
            if at.is_multiple_of(size) && cluster_end <= end {
                let clusters = (end - at) / size;
                at += h.unmap(at / size, clusters).await? * size;
            } else {
                let n = cluster_end.min(end) - at;
                self.zero_part(at, n).await?;
                at += n;
            }
        }
        Ok(())
    }

    /// Zeroes a part of a cluster, unless it reads zero already.
    async fn zero_part(&self, off: u64, len: u64) -> Result<()> {
        let h = &*self.0;
        loop {
            match h.plan_read(off, len) {
                Plan::Zero { .. } => return Ok(()),
                Plan::Missing => h.store.load_leaf(&h.local.shard, &h.lvol, off >> h.cluster_shift).await?,
                _ => return self.write_range(off, len, Source::Zero, false).await,
            }
        }
    }
}

impl Handle {
    fn took(&self, latency: &Latency, began_ns: u64) {
        latency.observe(self.local.shard.round_ns().saturating_sub(began_ns));
    }

    /// Walks the clusters of a range as long as `same` says that the next one continues the first.
    fn plan(&self, off: u64, len: u64, write: bool) -> Plan {
        let size = 1u64 << self.cluster_shift;
        let map = self.lvol.map.load();
        let token = self.lvol.token();
        let first = off >> self.cluster_shift;
        let inside = off & (size - 1);
        let Some(seen) = Seen::of(&map, token, first) else { return Plan::Missing };
        let mut covered = (size - inside).min(len);
        let in_place = |s: Seen| s.entry.cluster().filter(|_| s.mine || !write);
        match in_place(seen) {
            Some(cluster) => {
                let mut next = 1;
                while covered < len {
                    match Seen::of(&map, token, first + next).and_then(in_place) {
                        Some(c) if u64::from(c) == u64::from(cluster) + next => {
                            covered = (covered + size).min(len);
                            next += 1;
                        }
                        _ => break,
                    }
                }
                Plan::Device { at: (u64::from(cluster) << self.cluster_shift) + inside, len: covered }
            }
            None if write => {
                let mut next = 1;
                while covered < len {
                    match Seen::of(&map, token, first + next) {
                        Some(s) if in_place(s).is_none() => {
                            covered = (covered + size).min(len);
                            next += 1;
                        }
                        _ => break,
                    }
                }
                Plan::Allocate { len: covered }
            }
            // The link is cut only after everything has its place: who sees that it is gone looks for that place again.
            None if seen.entry.is_external() && self.lvol.external.load().is_none() => {
                match Seen::of(&map, token, first) {
                    Some(again) if again == seen => Plan::Zero { len: covered },
                    _ => self.plan(off, len, write),
                }
            }
            None if seen.entry.is_external() => {
                let mut next = 1;
                while covered < len {
                    match Seen::of(&map, token, first + next) {
                        Some(s) if s.entry.is_external() => {
                            covered = (covered + size).min(len);
                            next += 1;
                        }
                        _ => break,
                    }
                }
                Plan::External { len: covered }
            }
            None => Plan::Zero { len: covered },
        }
    }

    pub fn plan_read(&self, off: u64, len: u64) -> Plan {
        self.plan(off, len, false)
    }

    fn plan_write(&self, off: u64, len: u64) -> Plan {
        self.plan(off, len, true)
    }

    /// Writes to a place of the device.
    pub async fn write_device(&self, at: u64, len: u64, source: &Source, durable: bool) -> Result<()> {
        match source {
            Source::Buf(buf) => self.local.port.write(at, buf.clone(), durable).done("write").await,
            Source::Zero => {
                let mut done = 0;
                while done < len {
                    let n = (len - done).min(ZEROES as u64);
                    let zeroes = self.local.zeroes.slice(0, n as usize);
                    self.local.port.write(at + done, zeroes, durable).done("write").await?;
                    done += n;
                }
                Ok(())
            }
        }
    }
}

impl Volume for LvolIo {
    fn size(&self) -> u64 {
        self.0.lvol.clusters() << self.0.cluster_shift
    }

    fn block_size(&self) -> u32 {
        self.0.store.block_size()
    }

    fn read_only(&self) -> bool {
        self.0.lvol.read_only.load(Ordering::Relaxed) || self.0.store.read_only
    }

    async fn read(&self, off: u64, buf: BufSlice) -> Result<()> {
        let began = self.0.local.shard.round_ns();
        self.read_range(off, &buf).await?;
        self.0.took(&self.0.local.latency.read, began);
        self.0.counts.read(buf.len() as u64);
        Ok(())
    }

    async fn write(&self, off: u64, buf: BufSlice, fua: bool) -> Result<()> {
        let (len, began) = (buf.len() as u64, self.0.local.shard.round_ns());
        self.write_range(off, len, Source::Buf(buf), fua).await?;
        self.0.took(&self.0.local.latency.write, began);
        self.0.counts.written(len);
        Ok(())
    }

    async fn write_zeroes(&self, off: u64, len: u64) -> Result<()> {
        self.unmap_range(off, len).await
    }

    async fn discard(&self, off: u64, len: u64) -> Result<()> {
        self.unmap_range(off, len).await
    }

    async fn flush(&self) -> Result<()> {
        let began = self.0.local.shard.round_ns();
        self.0.store.flush_lvol(&self.0.local, &self.0.lvol).await?;
        self.0.took(&self.0.local.latency.flush, began);
        Ok(())
    }
}
