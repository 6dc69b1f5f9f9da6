//! Why something could not be done on this machine.

use thiserror::Error as ThisError;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
pub enum Error {
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    /// The volume is in use in another way than is asked for now.
    #[error("{0}")]
    Exists(String),
    #[error("{0}")]
    OutOfRange(String),
    /// The state of the volume or of the machine forbids it; the message says what to do.
    #[error("{0}")]
    Precondition(String),
    /// It may be there, but is out of reach for now.
    #[error("{0}")]
    Unavailable(String),
    /// Another call on the same volume took too long.
    #[error("{0}")]
    Queue(String),
    /// A tool or the kernel did not answer in time.
    #[error("{0}")]
    Deadline(String),
    /// A tool or a system call failed.
    #[error("{0}")]
    Host(String),
    #[error(transparent)]
    Engine(#[from] coppice_engine::Error),
}

impl From<coppice_proto::turns::TooLong> for Error {
    fn from(late: coppice_proto::turns::TooLong) -> Self {
        Error::Queue(late.0)
    }
}

/// Adds what was being done to a failed system call.
pub(crate) trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::Host(format!("{}: {}", what(), e.into())))
    }
}
