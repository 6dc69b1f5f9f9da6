//! What a server serves: the traits that stand between the protocol and whatever holds the bytes.

use crate::proto::Extent;
use async_trait::async_trait;
use bytes::Bytes;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The context that says what is allocated, with the bits `STATE_HOLE` and `STATE_ZERO`.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// Who has connected.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Someone who may open the unix socket.
    Local,
    /// The name in the certificate: [`crate::tls::identity`].
    Certified(String),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Certified(name) => f.write_str(name),
        }
    }
}

/// The other side of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub identity: Identity,
    /// For logs; nothing is decided by it.
    pub address: Option<SocketAddr>,
}

/// An entry of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    /// For people; may be empty.
    pub description: String,
}

/// Why an export is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none of that name, or it is not for this peer: the peer cannot tell which.
    #[error("no such export for this peer")]
    Unknown,
    /// The peer may have it, but it cannot be opened now.
    #[error("{0}")]
    Unavailable(String),
}

/// What there is, and for whom.
#[async_trait]
pub trait Exports: Send + Sync + 'static {
    /// What `peer` may open.
    async fn list(&self, peer: &Peer) -> Vec<Listed>;

    /// The export `name` for `peer`. Called for questions about an export, too, several times per connection; the source of
    /// the last call is the one that is read. The name may be empty: the default export, if there is one.
    ///
    /// To keep a secret which exports there are, an implementation decides about the peer before it looks for the export.
    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refusal>;
}

/// A request that a source could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SourceError {
    /// Of Linux; the client gets the protocol's value for it, `EIO` if there is none.
    pub errno: i32,
    /// Goes to the client.
    pub message: String,
    /// The first byte that is concerned, if that is known.
    pub offset: Option<u64>,
}

impl SourceError {
    pub fn new(errno: i32, message: impl Into<String>) -> Self {
        Self { errno, message: message.into(), offset: None }
    }

    /// The same, at this byte of the export.
    #[must_use]
    pub fn at(self, offset: u64) -> Self {
        Self { offset: Some(offset), ..self }
    }

    fn read_only() -> Self {
        Self::new(errno::EPERM, "the export is read-only")
    }
}

/// The numbers that this module answers with.
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const EINVAL: i32 = 22;
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ZeroMode {
    /// Keep the range allocated.
    pub no_hole: bool,
    /// Only if it is faster than writing zeroes; else `EOPNOTSUPP`, at once.
    pub fast: bool,
    /// Durable before the answer.
    pub fua: bool,
}

/// The bytes of one export.
///
/// The server asks only for ranges that lie inside, keep to the block sizes and are not empty. Requests of all connections
/// come at the same time and in no order; a source that can stand no more makes them wait. A future is dropped when it takes
/// longer than `Limits::request_max`, or when the server stops and it takes longer than `Limits::drain_max`: it has to
/// leave things whole, and should give up by itself, with a better message, before that.
///
/// A source that is not read-only has to have `write`, `write_zeroes` and `flush`: those here only say no.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Constant while a client has it open.
    fn size_bytes(&self) -> u64;

    /// What offsets and lengths are multiples of: a power of two, at most 64 KiB.
    fn block_bytes(&self) -> u32 {
        1
    }

    /// What requests are best multiples of: a power of two, at least 512 and one block.
    fn preferred_bytes(&self) -> u32 {
        4096
    }

    fn read_only(&self) -> bool {
        true
    }

    /// Whether what one connection has written and flushed is what all others read.
    fn can_multi_conn(&self) -> bool {
        self.read_only()
    }

    /// For people; may be empty.
    fn description(&self) -> String {
        String::new()
    }

    /// Names of the contexts that [`Source::status`] can answer about, each `namespace:rest`.
    fn contexts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Exactly `length` bytes from `offset` on. An error is an error: never zeroes for what could not be read.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, SourceError>;

    /// What `context` says about the range, from `offset` on: at least one extent, at most `extents_max`, together not
    /// necessarily all of the range. What is not known is an error, never a hole.
    async fn status(
        &self,
        context: &str,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> Result<Vec<Extent>, SourceError> {
        let _ = (offset, length, extents_max);
        Err(SourceError::new(errno::EINVAL, format!("this export has no context \"{context}\"")))
    }

    /// The range will be read soon.
    async fn prefetch(&self, offset: u64, length: u64) -> Result<(), SourceError> {
        let _ = (offset, length);
        Ok(())
    }

    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), SourceError> {
        let _ = (offset, data, fua);
        Err(SourceError::read_only())
    }

    async fn write_zeroes(&self, offset: u64, length: u64, mode: ZeroMode) -> Result<(), SourceError> {
        let _ = (offset, length, mode);
        Err(SourceError::read_only())
    }

    /// A hint.
    async fn trim(&self, offset: u64, length: u64, fua: bool) -> Result<(), SourceError> {
        let _ = (offset, length, fua);
        Ok(())
    }

    /// All writes that have been answered are durable.
    async fn flush(&self) -> Result<(), SourceError> {
        Err(SourceError::read_only())
    }
}
