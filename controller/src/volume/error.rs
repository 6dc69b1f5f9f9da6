//! Why an operation failed, and what the caller may believe afterwards.

use thiserror::Error as ThisError;

pub type Result<T> = std::result::Result<T, Error>;

/// All but `Queue`, `Deadline`, `MayExist` and some engine errors promise that nothing exists (or nothing changed).
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum Error {
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    /// The name is taken by something else than what is asked for.
    #[error("{0}")]
    Exists(String),
    /// The size is impossible.
    #[error("{0}")]
    OutOfRange(String),
    /// No room, or no lvstore where the caller wants the volume.
    #[error("{0}")]
    NoSpace(String),
    /// The request does not fit the state of the object: in use, or not possible on this node.
    #[error("{0}")]
    Precondition(String),
    /// A page token that this driver did not give out.
    #[error("{0}")]
    BadToken(String),
    /// Another call on the same name or id took too long.
    #[error("{0}")]
    Queue(String),
    /// Not now: something else has to be finished first, and will be.
    #[error("{0}")]
    NotYet(String),
    /// A file system did not answer in time.
    #[error("{0}")]
    Deadline(String),
    /// Something may have been made: ask again with the same name.
    #[error("{0}")]
    MayExist(String),
    #[error(transparent)]
    Engine(#[from] coppice_engine::Error),
}

impl From<coppice_proto::turns::TooLong> for Error {
    fn from(late: coppice_proto::turns::TooLong) -> Self {
        Error::Queue(late.0)
    }
}
