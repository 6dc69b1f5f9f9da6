//! First touch and copy on write: a write that needs new clusters.
//!
//! ```text
//!   claim clusters ▶ read what the rest must keep ▶ write data and rest to the device ▶ publish in the map ▶ answer
//! ```
//!
//! Published only when everything is written, so whoever finds a cluster in the map finds its whole content, and a commit
//! that was cut after that flushes it. Until then nobody but the claim knows the cluster: an error gives it back at once.

use super::io::{Handle, Seen, Source};
use crate::error::{Result, err};
use crate::shard::sync::{lock, wait_until};
use crate::sim::mutation::{Mutation, active};
use crate::store::core::{Core, Lid};
use crate::store::local::ZEROES;
use crate::store::map::{Entry, LEAF_CLUSTERS, Leaf};
use crate::store::{lacks_space, room_for};
use crate::sys::buf::BufSlice;
use std::sync::atomic::Ordering;
use std::task::Poll;

/// Clusters that one round fills at most.
const ROUND: u64 = 32;
/// Bytes of a cluster's rest that are filled at a time.
const WINDOW: u64 = 1 << 20;

/// A cluster that is being filled for cluster `logical` of the lvol.
struct Claim {
    logical: u64,
    cluster: u32,
    seen: Seen,
    /// What an external parent has there.
    base: Option<BufSlice>,
}

/// Why a cluster is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    Write,
    /// What the external parent has is written; only where nobody in the store has anything, and not where an ancestor
    /// carries the parent.
    Hydrate,
}

enum Attempt {
    /// The external parent is asked first what the rest of this cluster must keep.
    Fetch(u64),
    Claimed(Vec<Claim>),
    /// Another write fills this cluster now.
    Busy(u64),
    Missing(u64),
    /// The map says in place by now: plan again.
    Replan,
    /// Space is on its way back.
    Wait,
    Fail(crate::Error),
}

impl Handle {
    /// Writes `[off, off + len)`, which needs new clusters. Answers with the bytes that were done from the start: fewer
    /// than asked when the rest has to be planned anew.
    pub async fn allocate(&self, off: u64, len: u64, source: &Source) -> Result<u64> {
        self.allocate_for(Why::Write, off, len, source).await
    }

    /// As `allocate`; for [`Why::Hydrate`] 0 says that the first cluster has something already.
    pub(super) async fn allocate_for(&self, why: Why, off: u64, len: u64, source: &Source) -> Result<u64> {
        let mut base: Option<(u64, BufSlice)> = None;
        loop {
            self.local.unpaused().await;
            if self.lvol.gate_closed.load(Ordering::Acquire) && !active(Mutation::CopyTooEarly) {
                self.gate().await?;
                continue;
            }
            let guard = self.local.enter();
            match self.claim(why, off, len, &base) {
                Attempt::Claimed(claims) => {
                    let first = claims.iter().map(|c| c.logical).min().unwrap_or(0);
                    let count = claims.len() as u64;
                    let end = ((first + count) * self.store.cluster_size()).min(off + len);
                    let early = active(Mutation::PublishEarly);
                    if early {
                        self.publish(why, &claims).await?;
                    }
                    if let Err(e) = self.fill(off, end, &claims, source).await {
                        self.unclaim(&claims);
                        return Err(e);
                    }
                    let published = if early { count } else { self.publish(why, &claims).await? };
                    drop(guard);
                    let done_to = ((first + published) * self.store.cluster_size()).min(end);
                    return Ok(done_to.saturating_sub(off));
                }
                Attempt::Busy(logical) => {
                    drop(guard);
                    self.wait_for_claim(logical).await;
                }
                Attempt::Missing(logical) => {
                    drop(guard);
                    self.store.load_leaf(&self.local.shard, &self.lvol, logical).await?;
                }
                Attempt::Fetch(logical) => {
                    drop(guard);
                    match self.fetch_cluster(logical).await {
                        Ok(bytes) => base = Some((logical, bytes)),
                        Err(e) if self.is_external(logical) => return Err(e),
                        // Somebody has copied it meanwhile.
                        Err(_) => {}
                    }
                }
                Attempt::Replan => return Ok(0),
                Attempt::Wait => {
                    drop(guard);
                    self.wait_for_space(why).await?;
                }
                Attempt::Fail(e) => return Err(e),
            }
        }
    }

    fn is_external(&self, logical: u64) -> bool {
        let seen = Seen::of(&self.lvol.map.load(), self.lvol.token(), logical);
        seen.is_none_or(|s| s.entry.is_external()) && self.lvol.external.load().is_some()
    }

    /// Copies a cluster that is inherited, changing nothing of what is read. Answers false if it is the lvol's own by now.
    pub async fn copy_cluster(&self, logical: u64) -> Result<bool> {
        let at = logical * self.store.cluster_size();
        loop {
            let seen = {
                let map = self.lvol.map.load();
                Seen::of(&map, self.lvol.token(), logical)
            };
            match seen {
                None => self.store.load_leaf(&self.local.shard, &self.lvol, logical).await?,
                Some(s) if s.mine || s.entry.cluster().is_none() && !self.is_external(logical) => return Ok(false),
                Some(_) => {
                    // A write of nothing at the start of the cluster: everything is "rest".
                    if self.allocate_one(at).await? {
                        return Ok(true);
                    }
                }
            }
        }
    }

    /// Gives a cluster with a zero mark a cluster of zeroes; snapshots too, whose content stays the same.
    pub async fn fill_zero(&self, logical: u64) -> Result<()> {
        let at = logical * self.store.cluster_size();
        loop {
            let seen = Seen::of(&self.lvol.map.load(), self.lvol.token(), logical);
            match seen {
                None => self.store.load_leaf(&self.local.shard, &self.lvol, logical).await?,
                Some(s) if s.mine && s.entry.is_zero_mark() => {
                    self.allocate(at, 0, &Source::Zero).await?;
                }
                Some(_) => return Ok(()),
            }
        }
    }

    async fn allocate_one(&self, at: u64) -> Result<bool> {
        self.allocate(at, 0, &Source::Zero).await?;
        let map = self.lvol.map.load();
        Ok(Seen::of(&map, self.lvol.token(), at / self.store.cluster_size()).is_some_and(|s| s.mine))
    }

    /// Waits until I/O from before a snapshot has completed: it may still change what would be copied.
    async fn gate(&self) -> Result<()> {
        wait_until(&self.store.core, |core, cx| {
            if !self.lvol.gate_closed.load(Ordering::Acquire) || core.failed.is_some() {
                return Poll::Ready(core.may_change());
            }
            core.gate_wait.register(cx);
            Poll::Pending
        })
        .await
    }

    async fn wait_for_claim(&self, logical: u64) {
        let key = (self.lvol.lid, logical);
        wait_until(&self.store.core, |core, cx| {
            if !core.allocating.contains(&key) || core.failed.is_some() {
                return Poll::Ready(());
            }
            core.alloc_wait.register(cx);
            Poll::Pending
        })
        .await;
    }

    /// Frees are made durable and their grace period is waited for.
    async fn wait_for_space(&self, why: Why) -> Result<()> {
        wait_until(&self.store.core, |core, cx| {
            if core.failed.is_some() || core.clusters.unreserved() > 0 || !core.space_is_coming() {
                return Poll::Ready(core.may_change());
            }
            // As a claim sees it.
            let mine = |r: &crate::store::core::Record| r.reservation() > 0 && (r.thick || why == Why::Hydrate);
            let reserved = core.record(self.lvol.lid).is_ok_and(mine);
            if reserved && core.clusters.free() > 0 {
                return Poll::Ready(Ok(()));
            }
            if core.has_pending() && !core.commit_wanted {
                core.request_commit();
            }
            core.space_wait.register(cx);
            Poll::Pending
        })
        .await
    }

    fn claim(&self, why: Why, off: u64, len: u64, base: &Option<(u64, BufSlice)>) -> Attempt {
        let size = self.store.cluster_size();
        let first = off / size;
        let last = if len == 0 { first } else { (off + len - 1) / size };
        let last = last.min(first + ROUND - 1);
        let map = self.lvol.map.load();
        let token = self.lvol.token();
        let external = self.lvol.external.load().is_some();
        let mut core = lock(&self.store.core);
        if let Err(e) = core.may_change().and_then(|()| core.may_hydrate(why, self.lvol.lid)) {
            return Attempt::Fail(e);
        }
        let mut claims: Vec<Claim> = Vec::new();
        // The cluster in front: its neighbour on the device is the best place.
        let mut after = first.checked_sub(1).and_then(|n| Seen::of(&map, token, n)).and_then(|s| s.entry.cluster());
        for logical in first..=last {
            let stop = |attempt| if claims.is_empty() { Some(attempt) } else { None };
            if core.allocating.contains(&(self.lvol.lid, logical)) {
                if let Some(a) = stop(Attempt::Busy(logical)) {
                    return a;
                }
                break;
            }
            let Some(seen) = Seen::of(&map, token, logical) else {
                if let Some(a) = stop(Attempt::Missing(logical)) {
                    return a;
                }
                break;
            };
            if seen.mine && seen.entry.cluster().is_some() {
                if let Some(a) = stop(Attempt::Replan) {
                    return a;
                }
                break;
            }
            let whole = logical * size >= off && (logical + 1) * size <= off + len;
            let outside = external && seen.entry.is_external();
            if why == Why::Hydrate && !outside {
                if let Some(a) = stop(Attempt::Replan) {
                    return a;
                }
                break;
            }
            let base = match outside && !whole {
                false => None,
                true => match base {
                    Some((of, bytes)) if *of == logical => Some(bytes.clone()),
                    _ => {
                        if let Some(a) = stop(Attempt::Fetch(logical)) {
                            return a;
                        }
                        break;
                    }
                },
            };
            match core.claim_cluster(self.lvol.lid, after, why == Why::Hydrate) {
                Ok(Some(cluster)) => {
                    core.allocating.insert((self.lvol.lid, logical));
                    after = Some(cluster);
                    claims.push(Claim { logical, cluster, seen, base });
                }
                Ok(None) => {
                    if let Some(a) = stop(Attempt::Wait) {
                        return a;
                    }
                    break;
                }
                Err(e) => {
                    if let Some(a) = stop(Attempt::Fail(e)) {
                        return a;
                    }
                    break;
                }
            }
        }
        Attempt::Claimed(claims)
    }

    fn unclaim(&self, claims: &[Claim]) {
        let mut core = lock(&self.store.core);
        for claim in claims {
            core.unclaim(self.lvol.lid, claim.cluster);
            core.allocating.remove(&(self.lvol.lid, claim.logical));
        }
        core.alloc_wait.wake_all();
    }

    /// Writes the user's bytes `[off, end)` and, around them, what the clusters' rest must read.
    async fn fill(&self, off: u64, end: u64, claims: &[Claim], source: &Source) -> Result<()> {
        let size = self.store.cluster_size();
        // Whole clusters that lie together go as one write.
        let mut run: Option<(u64, u64, u64)> = None; // (place, from, bytes)
        let mut ios = Vec::new();
        for claim in claims {
            let start = claim.logical * size;
            let (from, to) = (off.max(start), end.min(start + size));
            let place = u64::from(claim.cluster) * size;
            if from > start || to < start + size {
                self.fill_partial(claim, from.max(start) - start, to.max(from) - start, source, from - off).await?;
                continue;
            }
            match &mut run {
                Some((at, _, bytes)) if *at + *bytes == place => *bytes += size,
                _ => {
                    if let Some(done) = run.take() {
                        ios.push(done);
                    }
                    run = Some((place, start - off, size));
                }
            }
        }
        ios.extend(run);
        for (at, from, bytes) in ios {
            self.write_device(at, bytes, &source.slice(from as usize, bytes as usize), false).await?;
        }
        Ok(())
    }

    /// Fills a cluster of which the user writes only `[from, to)`; `skip` bytes of the source lie in front of `from`.
    async fn fill_partial(&self, claim: &Claim, from: u64, to: u64, source: &Source, skip: u64) -> Result<()> {
        let size = self.store.cluster_size();
        let place = u64::from(claim.cluster) * size;
        let port = &self.local.port;
        if let Some(whole) = &claim.base {
            let (at, bytes) = (from as usize, (to - from) as usize);
            match source.slice(skip as usize, bytes) {
                _ if bytes == 0 => {}
                Source::Buf(data) => whole.copy_from(at, &data),
                Source::Zero => whole.zero(at, bytes),
            }
            return self.write_device(place, size, &Source::Buf(whole.clone()), false).await;
        }
        let base = claim.seen.entry.cluster().map(|c| u64::from(c) * size);
        if active(Mutation::SkipZeroFill) && base.is_none() && to > from {
            let part = source.slice(skip as usize, (to - from) as usize);
            return self.write_device(place + from, to - from, &part, false).await;
        }
        let mut at = 0;
        while at < size {
            let n = WINDOW.min(size - at);
            let (a, b) = (from.clamp(at, at + n), to.clamp(at, at + n));
            if b - a == n
                && let Source::Buf(_) = source
            {
                let part = source.slice((skip + a - from) as usize, n as usize);
                self.write_device(place + at, n, &part, false).await?;
            } else if base.is_none() && (a == b || matches!(source, Source::Zero)) {
                let zeroes = self.local.zeroes.slice(0, n.min(ZEROES as u64) as usize);
                port.write(place + at, zeroes, false).done("cannot zero a new cluster").await?;
            } else {
                let buf = match base {
                    None => self.local.take_clean(n as usize),
                    Some(base) => {
                        let buf = port.shard.buf(n as usize).slice(0, n as usize);
                        port.read(base + at, buf.clone()).done("cannot read what is to be copied").await?;
                        buf
                    }
                };
                let (to_at, bytes) = ((a - at) as usize, (b - a) as usize);
                if bytes > 0 {
                    match source.slice((skip + a - from) as usize, bytes) {
                        Source::Buf(data) => buf.copy_from(to_at, &data),
                        Source::Zero => buf.zero(to_at, bytes),
                    }
                }
                port.write(place + at, buf.clone(), false).done("cannot fill a new cluster").await?;
                if base.is_none() {
                    buf.zero(to_at, bytes);
                    self.local.give_clean(buf);
                }
            }
            at += n;
        }
        Ok(())
    }

    /// Makes filled clusters part of the lvol. Answers how many, from the first on; the map changed under the others, and
    /// they are given back.
    async fn publish(&self, why: Why, claims: &[Claim]) -> Result<u64> {
        let (mut published, mut waited) = (0, false);
        while let Some(claim) = claims.get(published) {
            let step = {
                let mut core = lock(&self.store.core);
                match core.may_change() {
                    Err(e) => Step::Fail(e),
                    Ok(()) if !room_for(&core, 4) => Step::Room(core.open_batch),
                    Ok(()) => core.publish(self, why, claim),
                }
            };
            match step {
                Step::Published => published += 1,
                Step::Missing => {
                    let loaded = self.store.load_leaf(&self.local.shard, &self.lvol, claim.logical).await;
                    if let Err(e) = loaded {
                        self.unclaim(&claims[published..]);
                        return Err(e);
                    }
                }
                Step::Room(batch) => {
                    if let Err(e) = self.store.durable(batch).await {
                        self.unclaim(&claims[published..]);
                        return Err(e);
                    }
                }
                Step::Stale => {
                    self.unclaim(&claims[published..]);
                    break;
                }
                Step::Fail(e) if lacks_space(&e) && !waited && lock(&self.store.core).space_is_coming() => {
                    // A metadata page may be on its way back. The clusters are ours; nothing waits for this I/O but them.
                    waited = true;
                    if let Err(e) = self.store.commit().await {
                        self.unclaim(&claims[published..]);
                        return Err(e);
                    }
                }
                Step::Fail(e) => {
                    self.unclaim(&claims[published..]);
                    return Err(e);
                }
            }
        }
        Ok(published as u64)
    }
}

enum Step {
    Published,
    Missing,
    Stale,
    Room(u64),
    Fail(crate::Error),
}

impl Core {
    /// Hydration fills the lvol that carries the external parent, whichever that is by now.
    fn may_hydrate(&self, why: Why, lid: Lid) -> Result<()> {
        let carries = |r: &crate::store::core::Record| r.external().is_some() && r.busy != Some("merge");
        match why == Why::Write || carries(self.record(lid)?) {
            true => Ok(()),
            false => Err(err!(Cancelled, "the lvol has no external parent any more")),
        }
    }

    fn publish(&mut self, handle: &Handle, why: Why, claim: &Claim) -> Step {
        let lid = handle.lvol.lid;
        let now = {
            let map = handle.lvol.map.load();
            match Seen::of(&map, handle.lvol.token(), claim.logical) {
                Some(seen) => seen,
                None => return Step::Missing,
            }
        };
        if now != claim.seen || self.may_hydrate(why, lid).is_err() {
            return Step::Stale;
        }
        let entry = Entry::own(claim.cluster);
        if let Err(e) = self.set_entry(lid, claim.logical, entry) {
            return Step::Fail(e);
        }
        if claim.seen.entry.is_external() {
            self.show_to_descendants(lid, claim.logical, entry);
        }
        if let Some(r) = self.records.get_mut(&lid) {
            // Claimed before, owned now: the reservation does not change.
            r.claims -= 1;
            r.own += 1;
        }
        if why == Why::Hydrate {
            let _ = self.with_reservation(lid, |r| r.promised = r.promised.saturating_sub(1));
        }
        self.allocating.remove(&(lid, claim.logical));
        self.alloc_wait.wake_all();
        Step::Published
    }

    /// Makes the leaf of extent `ep` the lvol's own, so that its entries may be set; it is written with the open batch.
    pub(super) fn own_leaf(&mut self, lid: Lid, ep: u32) -> Result<std::sync::Arc<Leaf>> {
        let r = self.record(lid)?;
        let map = r.hot.map.load_full();
        let token = r.hot.token();
        let leaf = map.leaf(ep as usize).ok_or_else(|| err!(Corrupt, "leaf {ep} is not resident"))?;
        let leaf = if leaf.owner() == token {
            leaf
        } else {
            let copy = Leaf::new(token, |n| leaf.get(n).inherited());
            map.set_leaf(ep as usize, Some(copy.clone()));
            copy
        };
        Ok(leaf)
    }

    /// Changes one entry of a lvol. The leaf is resident. The counts of own clusters are the caller's.
    pub(super) fn set_entry(&mut self, lid: Lid, logical: u64, entry: Entry) -> Result<()> {
        let ep = (logical / LEAF_CLUSTERS) as u32;
        let leaf = self.own_leaf(lid, ep)?;
        let n = (logical % LEAF_CLUSTERS) as usize;
        let old = leaf.get(n);
        self.mark_leaf(lid, ep, entry.is_zero_mark())?;
        let was_mark = old.is_own() && old.is_zero_mark();
        let is_mark = entry.is_own() && entry.is_zero_mark();
        if was_mark != is_mark {
            self.count_zero_mark(lid, if is_mark { 1 } else { -1 })?;
        }
        leaf.set(n, entry);
        Ok(())
    }
}
