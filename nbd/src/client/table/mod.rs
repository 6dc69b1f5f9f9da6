//! Who asked for what, over which connection it was sent, and what becomes of it when things go wrong. No I/O, no clock: the
//! time is given, so that every course of events can be tried.
//!
//! ```text
//!   submit ─▶ fetch ── waiting ──▶ sent over a link ──▶ answered ──▶ its waiters
//!               ▲         ▲  ▲            │
//!   more who    │         │  └────────────┤ the link died, is suspect, or broke the protocol
//!   want it ────┘         │               └─▶ the server's error; the third broken answer
//!                         └── read ahead, and the server cannot read all of it: each waiter's own part
//!   deadline of a waiter: an error for that waiter, wherever its fetch is
//! ```
//!
//! A *link* is a connection in transmission. It is *suspect* when it owes answers and has said nothing for
//! [`Config::silence`]; then all it owes is asked elsewhere, it gets nothing new, and does not count. It is trusted again
//! when it says something, and given up after [`SILENCES_MAX`] times as long. The first answer that comes counts.

mod answers;
mod links;
mod send;
mod time;

use super::cache::Cache;
use super::config::{Address, Config};
use super::pieces::{cut, request_max};
use super::reply::{Asked, Outcome};
use super::schedule::Schedule;
use super::state::{Error, Tallies, Trouble, count};
use crate::proto::{Request, Style};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait; more than all queues of a device hold.
const WAITING_MAX: usize = 1 << 16;
/// So often may the answers to one request break the protocol before its waiters hear of it.
const VIOLATIONS_MAX: u32 = 3;
/// A request that was the oldest on so many links that died is sent after the others from then on.
const DEATHS_MAX: u32 = 3;
/// After so many times [`Config::silence`] a silent link is given up.
const SILENCES_MAX: u32 = 3;
/// Another connection is wanted when every link has so many requests.
const GROW_FROM: usize = 2;
/// A link that lived shorter than this does not count as a success, whatever it did.
const YOUNG: Duration = Duration::from_secs(1);
/// So many streams of small reads are recognised at once.
const RECENT_UNITS: usize = 32;
/// After so long without reads the cache is emptied.
const CACHE_KEEP: Duration = Duration::from_secs(5);

/// What a waiter gets.
pub(super) type Reply = Result<Outcome, Lost>;

#[derive(Debug)]
pub(super) enum Lost {
    Error(Error),
    /// The server takes only smaller requests than this one: cut the read anew.
    CutAnew,
}

/// A part of a read.
pub(super) enum Part {
    Here(Bytes),
    Coming(oneshot::Receiver<Reply>),
}

/// What a link is told to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Order {
    Ask(Request),
    /// Say goodbye and end.
    Close,
}

/// What was agreed with a server.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub address: Address,
    pub style: Style,
    pub size: u64,
    /// Requests are multiples of it.
    pub block: u32,
    pub payload_max: u32,
    /// The number of `base:allocation` on this connection, if the server has it.
    pub context: Option<u32>,
    /// Several connections see the same.
    pub multi: bool,
}

/// Why a link has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// We wanted it to.
    Wanted,
    Lost(String),
    /// What it sent breaks the protocol.
    Broke(String),
    /// The server said that it shuts down.
    ShutDown,
}

/// When a link has last heard something, in milliseconds since the table was made.
#[derive(Clone)]
pub(super) struct Heard {
    start: Instant,
    ms: Arc<AtomicU64>,
}

impl Heard {
    pub fn note(&self) {
        let ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.ms.store(ms, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub fn set(&self, at: Instant) {
        self.ms.store(u64::try_from((at - self.start).as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.ms.load(Ordering::Relaxed))
    }
}

struct Waiter {
    id: u64,
    wanted: Range<u64>,
    deadline: Instant,
    since: Instant,
    reply: oneshot::Sender<Reply>,
}

struct Fetch {
    range: Range<u64>,
    is_status: bool,
    waiters: Vec<Waiter>,
    /// Links that have it.
    at: Vec<u64>,
    queued: bool,
    /// Send it, though a trusted link has it: that one has passed it over.
    again: bool,
    /// Read ahead; others may join.
    enlarged: bool,
    violations: u32,
    /// Links that died when this was the oldest that they owed.
    deaths: u32,
}

struct Sent {
    fetch: u64,
    asked: Asked,
    /// When something that was sent later was answered first.
    passed_over: Option<Instant>,
    /// Some of its answer has come.
    begun: bool,
}

struct Link {
    orders: mpsc::UnboundedSender<Order>,
    peer: Peer,
    heard: Heard,
    /// What it owes, by cookie: in the order in which it was sent.
    owes: BTreeMap<u64, Sent>,
    bytes: u64,
    next_cookie: u64,
    /// Since when it owes something, or owes nothing.
    turned: Instant,
    made: Instant,
    suspect: bool,
    /// It has answered.
    proven: bool,
}

/// What the keeper has to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Try to connect.
    pub dial: bool,
    /// Look again at the latest; `None` if nothing is to be expected.
    pub next: Option<Instant>,
}

pub(super) struct Table {
    config: Config,
    start: Instant,
    size: Option<u64>,
    request_max: u64,
    fetches: HashMap<u64, Fetch>,
    waiting: VecDeque<u64>,
    /// Reads ahead that others may join.
    units: HashMap<(u64, u64), u64>,
    /// Of waiters: deadline, waiter, fetch.
    deadlines: BTreeSet<(Instant, u64, u64)>,
    links: BTreeMap<u64, Link>,
    next_id: u64,
    cache: Cache,
    /// Units that were read in, the newest first.
    recent: VecDeque<u64>,
    last_read: Instant,
    wants_more: bool,
    /// The last connection was closed since nobody needed it.
    resting: bool,
    schedule: Schedule,
    trouble: Option<(Instant, Trouble)>,
    /// When the keeper looks next, if it does.
    planned: Option<Instant>,
    tallies: Arc<Tallies>,
    closed: bool,
}

impl Table {
    pub fn new(config: Config, tallies: Arc<Tallies>, seed: u64, now: Instant) -> Table {
        Table {
            start: now,
            size: config.size,
            request_max: request_max(config.request_bytes, u32::MAX, 1),
            fetches: HashMap::new(),
            waiting: VecDeque::new(),
            units: HashMap::new(),
            deadlines: BTreeSet::new(),
            links: BTreeMap::new(),
            // Cookies and names begin anywhere, so that one of another time or place is not taken for one of ours.
            next_id: seed >> 2,
            cache: Cache::new(config.cache_bytes),
            recent: VecDeque::with_capacity(RECENT_UNITS),
            last_read: now,
            wants_more: false,
            resting: false,
            schedule: Schedule::new(&config, seed),
            trouble: None,
            planned: None,
            tallies,
            closed: false,
            config,
        }
    }

    /// Bytes, if a server or the configuration has said so.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Begins a read; the parts in order.
    pub fn read(&mut self, range: Range<u64>, deadline: Instant, now: Instant) -> Result<Vec<Part>, Error> {
        self.check(&range)?;
        let unit = match u64::from(self.config.readahead_bytes).min(self.request_max) {
            0 => 0,
            unit => 1 << unit.ilog2(),
        };
        let ahead = self.size.filter(|_| unit > 0).map(|size| (unit, size));
        let ahead = ahead.filter(|(unit, _)| range.end - range.start < *unit && self.is_near(range.start / unit));
        let pieces = cut(range, self.request_max, ahead);
        self.last_read = now;
        let mut parts = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let wanted = piece.wanted.clone();
            if let Some(bytes) = self.cache.get(piece.fetch.start, wanted.start, wanted.end - wanted.start) {
                count(&self.tallies.hits);
                parts.push(Part::Here(bytes));
                continue;
            }
            let enlarged = piece.is_enlarged();
            parts.push(Part::Coming(self.want(piece.fetch, wanted, false, enlarged, deadline, now)));
        }
        self.dispatch(now);
        Ok(parts)
    }

    /// Begins a question for block status.
    pub fn status(
        &mut self,
        range: Range<u64>,
        deadline: Instant,
        now: Instant,
    ) -> Result<oneshot::Receiver<Reply>, Error> {
        self.check(&range)?;
        let coming = self.want(range.clone(), range, true, false, deadline, now);
        self.dispatch(now);
        Ok(coming)
    }

    /// Whether somebody has lately read in this unit or the one before it. Of reads that are all over the place nothing is
    /// gained by reading ahead.
    fn is_near(&mut self, unit: u64) -> bool {
        let near = self.recent.iter().any(|recent| unit.checked_sub(*recent).is_some_and(|apart| apart <= 1));
        if !self.recent.contains(&unit) {
            self.recent.truncate(RECENT_UNITS - 1);
            self.recent.push_front(unit);
        }
        near
    }

    fn check(&self, range: &Range<u64>) -> Result<(), Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(Error::TooMany(self.waiting.len()));
        }
        match self.size {
            Some(size) if range.end > size => Err(self.out_of_range(range, size)),
            _ => Ok(()),
        }
    }

    fn out_of_range(&self, range: &Range<u64>, size: u64) -> Error {
        Error::OutOfRange { export: self.config.export.clone(), off: range.start, len: range.end - range.start, size }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn want(
        &mut self,
        range: Range<u64>,
        wanted: Range<u64>,
        is_status: bool,
        enlarged: bool,
        deadline: Instant,
        now: Instant,
    ) -> oneshot::Receiver<Reply> {
        let (reply, coming) = oneshot::channel();
        let waiter = Waiter { id: self.new_id(), wanted, deadline, since: now, reply };
        let joined = self.units.get(&(range.start, range.end)).copied().filter(|_| !is_status);
        match joined.and_then(|id| Some((id, self.fetches.get_mut(&id)?))) {
            Some((id, fetch)) => {
                count(&self.tallies.hits);
                self.deadlines.insert((deadline, waiter.id, id));
                fetch.waiters.push(waiter);
            }
            None => self.add(range, is_status, enlarged, vec![waiter], false),
        }
        // Somebody may be asleep for longer than this can wait.
        let soon = now + self.config.silence;
        let look = if self.trusted().next().is_none() { now } else { deadline.min(soon) };
        self.look_by(look);
        coming
    }

    fn add(&mut self, range: Range<u64>, is_status: bool, enlarged: bool, waiters: Vec<Waiter>, first: bool) {
        let id = self.new_id();
        for waiter in &waiters {
            self.deadlines.insert((waiter.deadline, waiter.id, id));
        }
        if enlarged {
            self.units.insert((range.start, range.end), id);
        }
        let fetch = Fetch {
            range,
            is_status,
            waiters,
            at: Vec::new(),
            queued: false,
            again: false,
            enlarged,
            violations: 0,
            deaths: 0,
        };
        self.fetches.insert(id, fetch);
        self.queue(id, first);
    }

    fn queue(&mut self, id: u64, first: bool) {
        if let Some(fetch) = self.fetches.get_mut(&id)
            && !std::mem::replace(&mut fetch.queued, true)
        {
            if first { self.waiting.push_front(id) } else { self.waiting.push_back(id) }
        }
    }

    /// Ends everything: waiters hear [`Error::Closed`], links say goodbye.
    pub fn close(&mut self) {
        self.closed = true;
        let ids: Vec<u64> = self.fetches.keys().copied().collect();
        for id in ids {
            self.fail(id, |_| Error::Closed);
        }
        self.waiting.clear();
        for (_, link) in std::mem::take(&mut self.links) {
            let _ = link.orders.send(Order::Close);
        }
        self.cache.clear();
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Requests and bytes that trusted links owe.
    pub fn in_flight(&self) -> (usize, u64) {
        self.trusted().fold((0, 0), |(n, bytes), (_, link)| (n + link.owes.len(), bytes + link.bytes))
    }
}

#[cfg(test)]
impl Table {
    /// Fetches, those that wait to be sent, reads ahead, deadlines.
    pub fn left_over(&self) -> (usize, usize, usize, usize) {
        (self.fetches.len(), self.waiting.len(), self.units.len(), self.deadlines.len())
    }
}
