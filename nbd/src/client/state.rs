//! What a user of a remote device sees of it: how it is, what went wrong with a request, and how much was done.

use super::config::Address;
use crate::proto::ErrorCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// How a remote device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// No attempt has ended yet.
    Connecting,
    /// So many connections answer.
    Connected { connections: usize },
    /// None is there since nobody asks for anything; all was well.
    Resting,
    /// None does; it is tried again and again.
    Away { since: SystemTime, reason: String },
    /// There is a server, but not the right one: another size, writable, another identity. Nothing is read from it; it is
    /// tried again, slowly.
    Refused { since: SystemTime, reason: String },
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("bytes {off} + {len} are beyond the end of export {export:?} at {size}")]
    OutOfRange { export: String, off: u64, len: u64, size: u64 },
    /// The server's own error; asking again would bring the same.
    #[error("export {export:?} cannot be read at {off}: the server says {code:?}{}{message}", if message.is_empty() { "" } else { ": " })]
    Server { export: String, off: u64, code: ErrorCode, message: String },
    /// The deadline has passed.
    #[error("no answer from export {export:?} for bytes {off} + {len} within {:.1} s: {reason}", waited.as_secs_f64())]
    TimedOut { export: String, off: u64, len: u64, waited: Duration, reason: String },
    /// It answers, but not as the protocol demands, however often it is asked.
    #[error("export {export:?} cannot be read at {off}: the server breaks the protocol: {reason}")]
    Protocol { export: String, off: u64, reason: String },
    #[error("{0} requests wait already: that is too many")]
    TooMany(usize),
    /// The runtime that did the work is gone.
    #[error("the remote device was closed")]
    Closed,
}

/// A piece of the device, as the server describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub len: u64,
    pub kind: ExtentKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Has to be read. All that the server does not say more about.
    Data,
    /// Reads as zeroes.
    Zero,
    /// Reads as zeroes and takes no space.
    Hole,
}

/// Totals since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes of data that the server sent, zeroes that it only named included.
    pub bytes_read: u64,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that had to be sent again: their connection died, was suspect or broke the protocol.
    pub retries: u64,
    /// Reads that were answered from what had been read ahead, or that waited for a request of another.
    pub hits: u64,
    /// Connections that were made, and attempts that failed.
    pub connects: u64,
    pub connect_failures: u64,
    /// Connections that ended otherwise than by our will.
    pub disconnects: u64,
    /// Replies that broke the protocol.
    pub violations: u64,
    /// Requests that failed because their deadline passed.
    pub timeouts: u64,
}

macro_rules! tallies {
    ($($name:ident),*) => {
        /// [`Counters`] while they count.
        #[derive(Default)]
        pub(super) struct Tallies { $(pub $name: AtomicU64),* }
        impl Tallies {
            pub fn read(&self) -> Counters {
                Counters { $($name: self.$name.load(Ordering::Relaxed)),* }
            }
        }
    };
}
tallies!(bytes_read, requests, retries, hits, connects, connect_failures, disconnects, violations, timeouts);

pub(super) fn count(tally: &AtomicU64) {
    tally.fetch_add(1, Ordering::Relaxed);
}

/// What is wrong with the server as a whole.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub since: SystemTime,
    pub address: Option<Address>,
    pub reason: String,
    pub refused: bool,
}

impl Trouble {
    /// "who: what", where who is known.
    pub fn text(&self) -> String {
        match &self.address {
            Some(address) => format!("{address}: {}", self.reason),
            None => self.reason.clone(),
        }
    }

    pub fn state(&self) -> State {
        let (since, reason) = (self.since, self.text());
        if self.refused { State::Refused { since, reason } } else { State::Away { since, reason } }
    }
}
