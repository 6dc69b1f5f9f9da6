//! A read-only device on another node: the parent of clones whose snapshot is elsewhere.
//!
//! It promises: a read gives the bytes that the export has, or an error; never other bytes, never zeroes that the server did
//! not name, and never later than the request's deadline. Servers may go away, move and come back: while they are away
//! requests wait, and are sent again as often as it takes. What is asked for is in nobody's way: a request that the server
//! cannot answer fails alone.
//!
//! ```text
//!   Remote::read ─▶ table: who asked what, over which connection ─▶ link ─▶ server
//!     (any executor)  ▲   │                                         link ─▶
//!                     │   ▼ when to dial, what has become late
//!                   keeper ──▶ dial: resolver ▶ connect ▶ TLS ▶ negotiate ▶ is it the right export?
//! ```
//!
//! The work is done by tasks on a tokio runtime. The futures that are handed out only wait for channels; any executor may
//! drive them.

mod cache;
mod config;
mod dial;
pub mod fuzzing;
mod keeper;
mod link;
mod pieces;
mod reply;
mod schedule;
mod state;
mod table;
#[cfg(test)]
mod tests;

pub use config::{Address, Config, Endpoint, Resolver, Resolving, fixed};
pub use state::{Counters, Error, Extent, ExtentKind, State};

use bytes::{Bytes, BytesMut};
use reply::Outcome;
use state::Tallies;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use table::{Lost, Part, Reply, Table};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot, watch};

/// So often is a read cut anew because a server takes less at once than the one before.
const CUTS_MAX: usize = 8;

/// A remote device. Cheap to clone; with the last clone its connections end.
#[derive(Clone)]
pub struct Remote(Arc<Owner>);

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the device, its keeper and its connections share.
struct Shared {
    config: Config,
    table: Mutex<Table>,
    keeper: Notify,
    nudged: AtomicBool,
    state: watch::Sender<State>,
    stop: watch::Sender<bool>,
    tallies: Arc<Tallies>,
}

impl Shared {
    fn new(config: Config, seed: u64) -> Shared {
        let tallies = Arc::new(Tallies::default());
        Shared {
            table: Mutex::new(Table::new(config.clone(), tallies.clone(), seed, Instant::now())),
            config,
            keeper: Notify::new(),
            nudged: AtomicBool::new(false),
            state: watch::Sender::new(State::Connecting),
            stop: watch::Sender::new(false),
            tallies,
        }
    }

    /// Does something with the table; then tells the keeper if there is something to do earlier than it thinks, and everyone
    /// if the state is another.
    fn with<R>(&self, act: impl FnOnce(&mut Table) -> R) -> R {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.planned();
        let result = act(&mut table);
        let earlier = match (before, table.planned()) {
            (Some(before), Some(after)) => after < before,
            (None, after) => after.is_some(),
            (Some(_), None) => false,
        };
        if earlier {
            self.keeper.notify_one();
        }
        let now = table.state();
        self.state.send_if_modified(|state| {
            let changed = *state != now;
            if std::mem::discriminant(state) != std::mem::discriminant(&now) {
                match &now {
                    State::Resting => tracing::debug!(export = self.config.export, "the remote device rests"),
                    State::Connecting | State::Connected { .. } => {
                        tracing::info!(export = self.config.export, state = ?now, "the remote device");
                    }
                    State::Away { reason, .. } => {
                        tracing::warn!(export = self.config.export, "the remote device is away: {reason}");
                    }
                    State::Refused { reason, .. } => {
                        tracing::warn!(export = self.config.export, "the remote device is refused: {reason}");
                    }
                }
            }
            *state = now;
            changed
        });
        result
    }

    fn close(&self) {
        self.stop.send_replace(true);
        self.with(Table::close);
        self.keeper.notify_one();
    }
}

impl Remote {
    /// A device that connects in the background, on `runtime`. If the runtime ends, all requests fail with
    /// [`Error::Closed`].
    pub fn new(config: Config, runtime: &Handle) -> Remote {
        let shared = Arc::new(Shared::new(config, RandomState::new().build_hasher().finish()));
        runtime.spawn(keeper::keep(shared.clone()));
        Remote(Arc::new(Owner(shared)))
    }

    /// Reads `len` bytes from `off` on; all of them, or an error. Waits for [`Config::timeout`] at most.
    pub async fn read(&self, off: u64, len: u32) -> Result<Bytes, Error> {
        self.read_by(off, len, Instant::now() + self.shared().config.timeout).await
    }

    /// As `read`, with a deadline of its own.
    pub async fn read_by(&self, off: u64, len: u32, deadline: Instant) -> Result<Bytes, Error> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let range = self.range(off, len.into())?;
        for _ in 0..CUTS_MAX {
            let parts = self.shared().with(|table| table.read(range.clone(), deadline, Instant::now()))?;
            if let Some(bytes) = gather(parts, len).await? {
                return Ok(bytes);
            }
        }
        let reason = "it takes less and less in one request".to_string();
        Err(Error::Protocol { export: self.shared().config.export.clone(), off, reason })
    }

    /// What is where, from `off` on: at least one extent, without a gap, up to `off + len` at most. An answer may end earlier;
    /// ask again from there. What the server does not describe is data. Waits for [`Config::timeout`] at most.
    pub async fn status(&self, off: u64, len: u64) -> Result<Vec<Extent>, Error> {
        self.status_by(off, len, Instant::now() + self.shared().config.timeout).await
    }

    /// As `status`, with a deadline of its own.
    pub async fn status_by(&self, off: u64, len: u64, deadline: Instant) -> Result<Vec<Extent>, Error> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let range = self.range(off, len)?;
        let coming = self.shared().with(|table| table.status(range, deadline, Instant::now()))?;
        match answer(coming).await? {
            Some(Outcome::Extents(extents)) if !extents.is_empty() => Ok(extents),
            _ => {
                let reason = "its block status does not reach what was asked for".to_string();
                Err(Error::Protocol { export: self.shared().config.export.clone(), off, reason })
            }
        }
    }

    /// Bytes: as configured, or as the first server has said.
    pub fn size(&self) -> Option<u64> {
        self.shared().with(|table| table.size())
    }

    /// How it is, now and in future.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared().state.subscribe()
    }

    pub fn state(&self) -> State {
        self.shared().state.borrow().clone()
    }

    pub fn counters(&self) -> Counters {
        self.shared().tallies.read()
    }

    /// Something has changed (the server is elsewhere now, certificates are new): if it is away, try at once.
    pub fn nudge(&self) {
        self.shared().nudged.store(true, Ordering::Relaxed);
        self.shared().with(|table| table.nudge(Instant::now()));
        self.shared().keeper.notify_one();
    }

    fn shared(&self) -> &Shared {
        &self.0.0
    }

    fn range(&self, off: u64, len: u64) -> Result<Range<u64>, Error> {
        match off.checked_add(len) {
            Some(end) => Ok(off..end),
            None => {
                let (export, size) = (self.shared().config.export.clone(), self.size().unwrap_or(u64::MAX));
                Err(Error::OutOfRange { export, off, len, size })
            }
        }
    }
}

/// Waits for a reply. `None` if the request has to be made anew.
async fn answer(coming: oneshot::Receiver<Reply>) -> Result<Option<Outcome>, Error> {
    match coming.await {
        Ok(Ok(outcome)) => Ok(Some(outcome)),
        Ok(Err(Lost::CutAnew)) => Ok(None),
        Ok(Err(Lost::Error(error))) => Err(error),
        Err(_) => Err(Error::Closed),
    }
}

/// Waits for all parts of a read.
async fn gather(parts: Vec<Part>, len: u32) -> Result<Option<Bytes>, Error> {
    let mut whole = BytesMut::new();
    let alone = parts.len() == 1;
    for part in parts {
        let bytes = match part {
            Part::Here(bytes) => bytes,
            Part::Coming(coming) => match answer(coming).await? {
                Some(Outcome::Data(bytes)) => bytes,
                _ => return Ok(None),
            },
        };
        if alone {
            return Ok(Some(bytes));
        }
        if whole.is_empty() {
            whole.reserve(len as usize);
        }
        whole.extend_from_slice(&bytes);
    }
    Ok(Some(whole.freeze()))
}

/// What to say of an error of a connection.
fn lost(e: &io::Error) -> String {
    match e.kind() {
        io::ErrorKind::UnexpectedEof => "it closed the connection".to_string(),
        _ => e.to_string(),
    }
}
