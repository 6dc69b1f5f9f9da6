//! Hydration: what an esnap clone still reads from its external parent gets a place in the store, in the background; then
//! the link is cut.
//!
//! ```text
//!   ask the parent what it has ▶ read what nobody here has ▶ write to new clusters ▶ publish ▶ … ▶ cut the link
//! ```
//!
//! The lvol that carries the parent is filled, also after that became a snapshot: its content stays the same, its map grows.
//! A cluster is published only where still nobody has anything, so a copy never goes over a newer write. What the parent
//! calls a hole is left out; what it does not answer for is an error, and the link stays. Clusters copied are in the map, so
//! a pass that was cut off, by a crash too, goes on where it was.
//!
//! Clusters for all of it were set aside when the clone was made; pages of metadata were not.
//!
//! Lvols take turns, a few at a time: one whose pass fails goes to the back and rests. Of those whose parent is away only a
//! few at a time are tried, and one of each parent, so that they are in nobody's way; whoever's parent answers goes on.

use super::Lvol;
use super::cow::Why;
use super::external::{SPAN, data_runs};
use super::inflate::OnProgress;
use super::io::{LvolIo, Seen, Source};
use crate::api::{LvolInfo, Progress};
use crate::error::{Error, ErrorKind, Result, err};
use crate::external::{Link, Outside};
use crate::shard::Shard;
use crate::shard::sync::{WaitList, lock, wait_until};
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::{Core, Lid};
use crate::store::map::LEAF_CLUSTERS;
use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use uuid::Uuid;

/// Bytes that one copy moves at most and at least, if clusters are not larger.
const PIECE_MAX: u64 = 1 << 20;
const PIECE_MIN: u64 = 128 << 10;
/// A copy that takes longer says that there are too many, or that they are too large: whoever needs something from the same
/// parent waits behind them.
const COPY_TAKES_MAX: Duration = Duration::from_millis(300);
/// Lvols of a store that are hydrated side by side.
const LVOLS: usize = 16;
/// Of those, whose parents are away and are asked whether they are back.
const PROBES: usize = 4;
/// How long a parent that is away may take to answer such a question: it has its place for no longer.
const PROBE: Duration = Duration::from_secs(2);
/// How long a hydration that failed is left alone; it doubles each time that nothing was copied.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often the space that is still set aside is written down.
const NOTE: Duration = Duration::from_secs(10);
/// Copies side by side as long as users of the store do I/O.
const COPIES_BESIDE_USERS: usize = 2;
/// How long after its last request a store counts as in use.
const USERS_LINGER: Duration = Duration::from_millis(20);

/// What hydration knows of itself, in the store's state.
#[derive(Default)]
pub struct HydrationState {
    /// Who had a turn, by lvol.
    turns: BTreeMap<Lid, Turn>,
    /// Turns that have ended.
    ended: u64,
    wait: WaitList,
    /// Before this moment of the shard's clock nothing more is copied: the rate limit.
    next_ns: u64,
}

#[derive(Default)]
struct Turn {
    /// Not at rest between two passes.
    at_work: bool,
    /// The parent that it asks whether it is back.
    probes: Option<Arc<Link>>,
    copied_bytes: u64,
    failure: Option<Error>,
    /// The last failure that was logged.
    said: Option<String>,
    /// Passes that failed one after the other, without anything copied.
    failures: u32,
    /// How many turns had ended when its last one did: who waits longest is next.
    ended: u64,
    /// It rests until then.
    not_before_ns: u64,
}

impl HydrationState {
    /// Something changed that hydration waits for.
    pub fn wake(&mut self) {
        self.wait.wake_all();
    }

    /// From here on it is a pass as any other, and others of that parent may go on.
    fn parent_answered(&mut self, lid: Lid) {
        if let Some(turn) = self.turns.get_mut(&lid) {
            turn.probes = None;
        }
        self.wake();
    }

    pub fn is_at_rest(&self) -> bool {
        self.turns.values().all(|turn| !turn.at_work)
    }

    pub fn register(&mut self, cx: &Context<'_>) {
        self.wait.register(cx);
    }

    pub fn copied_bytes(&self, lid: Lid) -> u64 {
        self.turns.get(&lid).map_or(0, |turn| turn.copied_bytes)
    }

    pub fn failure(&self, lid: Lid) -> Option<&Error> {
        self.turns.get(&lid).and_then(|turn| turn.failure.as_ref())
    }
}

/// What there is to do.
enum Next {
    /// A pass of this lvol; if its parent is away, after that has answered.
    Pass(Lid, Option<Arc<Link>>),
    /// Somebody rests, or waits for a place or a parent.
    Later,
    Nothing,
}

impl Core {
    fn wants_hydration(&self, lid: Lid) -> bool {
        let wanted = |r: &crate::store::core::Record| {
            r.external().is_some() && r.meta.hydration().is_some() && r.damaged.is_none() && r.understood().is_ok()
        };
        self.records.get(&lid).is_some_and(wanted)
    }

    fn ends(&self) -> bool {
        self.closing || self.failed.is_some() || self.read_only
    }

    /// The next lvol to work on; it has its place then.
    fn next_to_hydrate(&mut self, now_ns: u64) -> Next {
        let mut waiting: Vec<(u64, Lid)> = Vec::new();
        let mut turns = std::mem::take(&mut self.hydration.turns);
        turns.retain(|lid, turn| turn.at_work || self.wants_hydration(*lid));
        self.hydration.turns = turns;
        let at_work = self.hydration.turns.values().filter(|turn| turn.at_work).count();
        let mut rests = false;
        for lid in self.records.keys().filter(|lid| self.wants_hydration(**lid)) {
            match self.hydration.turns.get(lid) {
                Some(turn) if turn.at_work => {}
                Some(turn) if turn.not_before_ns > now_ns => rests = true,
                turn => waiting.push((turn.map_or(0, |turn| turn.ended), *lid)),
            }
        }
        if waiting.is_empty() && !rests {
            return Next::Nothing;
        }
        if at_work >= LVOLS || self.leaving {
            return Next::Later;
        }
        waiting.sort_unstable();
        let probed: Vec<Arc<Link>> = self.hydration.turns.values().filter_map(|turn| turn.probes.clone()).collect();
        // Most of them may have the same few parents.
        let mut away: Vec<(Arc<Link>, bool)> = Vec::new();
        for (_, lid) in waiting {
            let Some(outside) = self.records.get(&lid).and_then(|r| r.hot.external.load_full()) else { continue };
            let link = &outside.link;
            let is_away = match away.iter().find(|(known, _)| Arc::ptr_eq(known, link)) {
                Some((_, is_away)) => *is_away,
                None => {
                    let is_away = link.away().is_some();
                    away.push((link.clone(), is_away));
                    is_away
                }
            };
            if is_away && (probed.len() >= PROBES || probed.iter().any(|other| Arc::ptr_eq(other, link))) {
                continue;
            }
            let probes = is_away.then(|| link.clone());
            let turn = self.hydration.turns.entry(lid).or_default();
            (turn.at_work, turn.probes) = (true, probes.clone());
            return Next::Pass(lid, probes);
        }
        Next::Later
    }

    /// A turn is over. What to say of it, if that is new.
    fn turn_ended(&mut self, lid: Lid, result: Result<()>, copied_before: u64, now_ns: u64) -> Option<String> {
        self.hydration.ended += 1;
        let (ended, wanted) = (self.hydration.ended, self.wants_hydration(lid));
        self.hydration.wake();
        if !wanted {
            self.hydration.turns.remove(&lid);
            return None;
        }
        let turn = self.hydration.turns.get_mut(&lid)?;
        turn.at_work = false;
        turn.ended = ended;
        if turn.copied_bytes != copied_before {
            turn.failures = 0;
        }
        turn.not_before_ns = now_ns.saturating_add(PAUSE.as_nanos() as u64);
        let probes = turn.probes.take();
        turn.failure = result.err().filter(|e| e.kind() != ErrorKind::Cancelled);
        let message = turn.failure.as_ref()?.message().to_string();
        // Of a parent that is still away: it may be back the next moment.
        if probes.is_none() {
            let pause = PAUSE.saturating_mul(1 << turn.failures.min(16)).min(PAUSE_MAX);
            turn.not_before_ns = now_ns.saturating_add(pause.as_nanos() as u64);
            turn.failures = turn.failures.saturating_add(1);
        }
        let is_new = turn.said.as_ref() != Some(&message);
        turn.said = Some(message.clone());
        is_new.then_some(message)
    }
}

impl Lvstore {
    /// Hydrates every lvol that is to be, as long as the store is open.
    pub(crate) async fn hydrator(self: Arc<Self>, shard: Shard) {
        loop {
            let mut look = pin!(shard.sleep(PAUSE));
            let next = wait_until(&self.core, |core, cx| {
                if core.ends() {
                    return Poll::Ready(None);
                }
                let next = core.next_to_hydrate(shard.now_ns());
                let waits = match &next {
                    Next::Pass(..) => false,
                    Next::Later => look.as_mut().poll(cx).is_pending(),
                    Next::Nothing => true,
                };
                if waits {
                    core.hydration.wait.register(cx);
                    return Poll::Pending;
                }
                Poll::Ready(Some(next))
            });
            match next.await {
                Some(Next::Pass(lid, away)) => {
                    self.spawn(&shard, self.clone().hydrate_turn(shard.clone(), lid, away));
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    async fn hydrate_turn(self: Arc<Self>, shard: Shard, lid: Lid, away: Option<Arc<Link>>) {
        let copied_before = lock(&self.core).hydration.copied_bytes(lid);
        let result = match &away {
            Some(parent) => self.unless_leaving(parent.answers(PROBE)).await,
            None => Ok(()),
        };
        let result = match result {
            Ok(()) => {
                lock(&self.core).hydration.parent_answered(lid);
                self.hydrate_pass(&shard, lid).await
            }
            Err(e) => Err(e),
        };
        let mut core = lock(&self.core);
        if let Some(failure) = core.turn_ended(lid, result, copied_before, shard.now_ns()) {
            let name = core.record(lid).map(|r| r.name()).unwrap_or_default();
            drop(core);
            tracing::warn!(lvol = name, "hydration stands still: {failure}");
        }
    }

    /// What a parent answers, unless the store is closed meanwhile.
    async fn unless_leaving<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let leaves = wait_until(&self.core, |core, cx| {
            if core.leaving || core.ends() {
                return Poll::Ready(());
            }
            core.hydration.wait.register(cx);
            Poll::Pending
        });
        match select(pin!(work), pin!(leaves)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(err!(Cancelled, "the store is being closed")),
        }
    }

    /// Once over everything that the parent has, and the cut.
    async fn hydrate_pass(self: &Arc<Self>, shard: &Shard, lid: Lid) -> Result<()> {
        let (lvol, outside) = {
            let core = lock(&self.core);
            let r = core.record(lid)?;
            let outside = r.hot.external.load_full();
            (r.hot.clone(), outside.ok_or_else(|| err!(Cancelled, "the lvol has no external parent any more"))?)
        };
        let token = lvol.token();
        let end = self.unless_leaving(outside.end()).await?;
        // Not before: a store whose parents cannot be reached stays as it is.
        self.activate(shard).await?;
        let pass = Pass { store: self, shard, lid, lvol: lvol.clone(), token, outside, end };
        pass.copy_all().await?;
        if self.cut_external(&pass).await? {
            // Nothing is left that a zero mark could hide.
            let inherits = lock(&self.core).record(lid)?.inherits();
            if !inherits {
                self.drop_zero_marks(shard, &lvol).await?;
            }
            self.commit().await?;
            tracing::info!(lvol = %lvol.uuid, "hydrated: it needs nobody else any more");
        }
        Ok(())
    }

    /// The lvol has no external parent any more. False: it is not this lvol that carries it.
    async fn cut_external(&self, pass: &Pass<'_>) -> Result<bool> {
        self.batch_room(8).await?;
        let mut core = lock(&self.core);
        core.may_change()?;
        let r = core.record(pass.lid)?;
        let same = r.hot.external.load_full().is_some_and(|now| Arc::ptr_eq(&now, &pass.outside));
        // Who was a snapshot's child in between has another token: the pass may have seen something else.
        if !same || r.external().is_none() || r.hot.token() != pass.token {
            return Ok(false);
        }
        if let Some(what) = r.busy {
            return Err(err!(Cancelled, "{what} is running"));
        }
        core.gives_up_parent(pass.lid);
        core.update_meta(pass.lid, |meta| {
            meta.set_snapshot_parent(None);
            Ok(())
        })?;
        core.with_reservation(pass.lid, |r| r.promised = 0)?;
        core.refresh_external(pass.lid);
        core.space_wait.wake_all();
        Ok(true)
    }

    /// Begins, or waits for, the hydration of an esnap clone, and sees it to its end. The error of a hydration that stands
    /// still, and then it goes on in the background all the same; `Cancelled` if `progress` says so.
    pub async fn hydrate(self: &Arc<Self>, shard: &Shard, uuid: Uuid, mut progress: OnProgress) -> Result<LvolInfo> {
        self.begin_hydration(shard, uuid).await?;
        while self.hydrates(uuid, &mut progress)? {
            shard.sleep(Duration::from_millis(100)).await;
        }
        // Only what is durable makes it independent.
        self.commit().await?;
        let core = lock(&self.core);
        self.describe(&core, core.lid_of(uuid)?)
    }

    fn hydrates(&self, uuid: Uuid, progress: &mut OnProgress) -> Result<bool> {
        let core = lock(&self.core);
        let lid = core.lid_of(uuid)?;
        let r = core.record(lid)?;
        let Some((_, total)) = r.meta.hydration() else { return Ok(false) };
        core.may_change()?;
        if let Some(failure) = core.hydration.failure(lid) {
            return Err(failure.clone().context(format_args!("lvol {}", r.name())));
        }
        if !progress(Progress { done: total.saturating_sub(r.promised), total }) {
            return Err(err!(Cancelled, "not waited for any longer; hydration goes on"));
        }
        Ok(true)
    }

    /// Sets aside what it takes to hydrate an esnap clone, and lets it begin. Durable when it returns.
    pub async fn begin_hydration(self: &Arc<Self>, shard: &Shard, uuid: Uuid) -> Result<()> {
        let wanted = |core: &mut Core| {
            let lid = core.idle(uuid)?;
            let r = core.record(lid)?;
            if r.external().is_none() {
                return Err(err!(Invalid, "lvol {} has no external parent", r.name()));
            }
            Ok((lid, r.meta.hydration().is_some()))
        };
        let outside = {
            let mut core = lock(&self.core);
            core.may_change()?;
            let (lid, begun) = wanted(&mut core)?;
            if begun {
                // Who asks again wants it tried again.
                if let Some(turn) = core.hydration.turns.get_mut(&lid).filter(|turn| !turn.at_work) {
                    (turn.not_before_ns, turn.failure) = (0, None);
                }
                core.hydration.wake();
                return Ok(());
            }
            core.record(lid)?.hot.external.load_full()
        };
        let Some(outside) = outside else { return Ok(()) };
        let end = outside.end().await?;
        let data = self.data_clusters(shard, &outside.link, end).await?;
        self.activate(shard).await?;
        let change = |core: &mut Core| {
            let (lid, begun) = wanted(core)?;
            if begun {
                return Ok(core.open_batch);
            }
            let r = core.record(lid)?;
            if !r.thick {
                core.check_reservation(data.min(r.clusters() - r.own), &format!("hydrating {}", r.name()))?;
            }
            core.update_meta(lid, |meta| {
                meta.set_hydration(data, data);
                Ok(())
            })?;
            core.with_reservation(lid, |r| r.promised = data)?;
            core.hydration.wake();
            Ok(core.open_batch)
        };
        let batch = self.change(8, change).await?;
        self.durable(batch).await
    }

    /// Requests that users of the store made so far.
    fn requests(&self) -> u64 {
        self.latencies.iter().map(|latency| latency.requests()).sum()
    }
}

/// One walk over what the parent has.
struct Pass<'a> {
    store: &'a Arc<Lvstore>,
    shard: &'a Shard,
    lid: Lid,
    lvol: Arc<Lvol>,
    /// What the lvol's own entries are known by.
    token: u64,
    outside: Arc<Outside>,
    /// Bytes of the parent that show.
    end: u64,
}

/// Waits for `work` while the copies go on: they hold claims, and may be what it waits for.
async fn beside<F: Future, R>(
    copies: &mut FuturesUnordered<F>,
    done: &mut Vec<F::Output>,
    work: impl Future<Output = R>,
) -> R {
    let mut work = pin!(work);
    while !copies.is_empty() {
        match select(&mut work, copies.next()).await {
            Either::Left((result, _)) => return result,
            Either::Right((copied, _)) => done.extend(copied),
        }
    }
    work.await
}

/// How much is on its way at a time.
struct Pace {
    /// Requests of users, as last counted, and when there were new ones.
    requests: u64,
    seen_ns: Option<u64>,
    /// What the way to the parent bears.
    copies: usize,
    piece: u64,
}

impl Pace {
    fn copy_took(&mut self, took: Duration, most: usize) {
        match took > COPY_TAKES_MAX {
            false => {
                self.piece = (self.piece * 2).min(PIECE_MAX);
                self.copies = (self.copies + 1).min(most);
            }
            true if self.copies > 1 => self.copies /= 2,
            true => self.piece = (self.piece / 2).max(PIECE_MIN),
        }
    }
}

impl Pass<'_> {
    async fn copy_all(&self) -> Result<()> {
        let cluster = self.store.cluster_size();
        let io = LvolIo::in_background(self.store, self.store.local(self.shard)?, self.lvol.clone());
        let mut copies = FuturesUnordered::new();
        let most = lock(&self.store.core).access.hydration_copies.max(1);
        let mut pace = Pace { requests: self.store.requests(), seen_ns: None, copies: most, piece: PIECE_MAX };
        let (mut failure, mut done) = (None, Vec::new());
        let mut noted_ns = self.shard.now_ns();
        let mut at = 0;
        'walk: while at < self.end {
            let len = SPAN.max(cluster).min(self.end - at);
            let asked = self.store.unless_leaving(self.outside.link.status(at, len));
            let runs = match beside(&mut copies, &mut done, asked).await {
                Ok(stretches) => data_runs(&stretches, cluster),
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            };
            for (first, count) in runs {
                let count = if active(Mutation::HydrationLeavesOut) { count - count.min(1) } else { count };
                let (mut next, end) = (at / cluster + first, at / cluster + first + count);
                while next < end {
                    let (from, n) = match beside(&mut copies, &mut done, self.missing(next, end, pace.piece)).await {
                        Ok(Some(run)) => run,
                        Ok(None) => break,
                        Err(e) => {
                            failure = Some(e);
                            break 'walk;
                        }
                    };
                    next = from + n;
                    while copies.len() >= self.side_by_side(&mut pace) {
                        match copies.next().await {
                            Some(copied) => done.push(copied),
                            None => break,
                        }
                    }
                    for copied in done.drain(..) {
                        match copied {
                            Ok(took) => pace.copy_took(took, most),
                            Err(e) => {
                                failure.get_or_insert(e);
                            }
                        }
                    }
                    if failure.is_some() {
                        break 'walk;
                    }
                    copies.push(self.copy(&io, from, n));
                    if self.shard.now_ns().saturating_sub(noted_ns) > NOTE.as_nanos() as u64 {
                        noted_ns = self.shard.now_ns();
                        if let Err(e) = beside(&mut copies, &mut done, self.note()).await {
                            failure = Some(e);
                            break 'walk;
                        }
                    }
                }
            }
            at += len;
        }
        // All end, also when one fails: a copy that is dropped half-way would keep its claim for ever.
        while let Some(copied) = copies.next().await {
            done.push(copied);
        }
        for e in done.into_iter().filter_map(Result::err) {
            failure.get_or_insert(e);
        }
        match failure {
            None => Ok(()),
            Some(e) => {
                // It may take a while until it goes on; what fails with it is not the reason.
                let _ = self.note().await;
                Err(e)
            }
        }
    }

    /// The next clusters of `from..to` that nobody has yet, as many as one copy moves.
    async fn missing(&self, from: u64, to: u64, piece: u64) -> Result<Option<(u64, u64)>> {
        let most = (piece / self.store.cluster_size()).max(1);
        let mut at = from;
        while at < to {
            self.store.load_leaf(self.shard, &self.lvol, at).await?;
            let (map, token) = (self.lvol.map.load_full(), self.lvol.token());
            let leaf_end = ((at / LEAF_CLUSTERS + 1) * LEAF_CLUSTERS).min(to);
            let missing = |c: u64| Seen::of(&map, token, c).is_some_and(|s| s.entry.is_external());
            if let Some(first) = (at..leaf_end).find(|c| missing(*c)) {
                let count = (first..leaf_end.min(first + most)).take_while(|c| missing(*c)).count() as u64;
                return Ok(Some((first, count)));
            }
            at = leaf_end;
        }
        Ok(None)
    }

    /// How many copies may run now.
    fn side_by_side(&self, pace: &mut Pace) -> usize {
        let (requests, now) = (self.store.requests(), self.shard.now_ns());
        if requests != pace.requests {
            pace.requests = requests;
            pace.seen_ns = Some(now);
        }
        if self.outside.link.is_waited_for() {
            return 1;
        }
        match pace.seen_ns {
            Some(seen) if now.saturating_sub(seen) < USERS_LINGER.as_nanos() as u64 => {
                pace.copies.min(COPIES_BESIDE_USERS)
            }
            _ => pace.copies,
        }
    }

    /// Answers with how long the parent took.
    async fn copy(&self, io: &LvolIo, first: u64, count: u64) -> Result<Duration> {
        let cluster = self.store.cluster_size();
        let (off, size) = (first * cluster, (count * cluster) as usize);
        let n = self.end.saturating_sub(off).min(size as u64) as usize;
        self.throttle(n as u64).await?;
        let began = self.shard.now_ns();
        let bytes = self.store.unless_leaving(self.outside.link.read(off, n)).await?;
        let took = Duration::from_nanos(self.shard.now_ns().saturating_sub(began));
        let buf = self.shard.buf(size).slice(0, size);
        buf.copy_in(0, &bytes);
        buf.zero(n, size - n);
        drop(bytes);
        let source = Source::Buf(buf);
        let mut done = 0;
        while done < size {
            let rest = (size - done) as u64;
            let part = source.slice(done, size - done);
            let step = io.handle().allocate_for(Why::Hydrate, off + done as u64, rest, &part).await?;
            if step > 0
                && let Some(turn) = lock(&self.store.core).hydration.turns.get_mut(&self.lid)
            {
                turn.copied_bytes += step;
                turn.failure = None;
            }
            // A cluster that has something by now is left alone; but it must have something.
            let cluster_at = (off + done as u64) / cluster;
            let seen = Seen::of(&self.lvol.map.load(), self.lvol.token(), cluster_at);
            if step == 0 && seen.is_none_or(|seen| seen.entry.is_external()) {
                return Err(err!(Cancelled, "the lvol changed meanwhile"));
            }
            done += if step == 0 { cluster as usize } else { step as usize };
        }
        Ok(took)
    }

    async fn throttle(&self, bytes: u64) -> Result<()> {
        let until = {
            let mut core = lock(&self.store.core);
            let Some(rate) = core.access.hydration_bytes_per_second.filter(|rate| *rate > 0) else { return Ok(()) };
            let takes = (u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64;
            let begins = core.hydration.next_ns.max(self.shard.now_ns());
            core.hydration.next_ns = begins.saturating_add(takes);
            begins
        };
        let wait = Duration::from_nanos(until.saturating_sub(self.shard.now_ns()));
        self.store
            .unless_leaving(async {
                self.shard.sleep(wait).await;
                Ok(())
            })
            .await
    }

    /// Writes down how much space has to stay set aside.
    async fn note(&self) -> Result<()> {
        self.store.batch_room(8).await?;
        let mut core = lock(&self.store.core);
        core.may_change()?;
        let r = core.record(self.lid)?;
        let Some((noted, total)) = r.meta.hydration().filter(|(noted, _)| *noted != r.promised) else { return Ok(()) };
        let left = r.promised.min(noted);
        core.update_meta(self.lid, |meta| {
            meta.set_hydration(left, total);
            Ok(())
        })
    }
}
