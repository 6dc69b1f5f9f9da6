//! What the engine answers when it cannot do something.
//!
//! One small, exhaustive [`ErrorKind`] with an errno, and a message that says what was wrong with *this* request and what
//! to do about it. Adding a kind must break the match that maps kinds to gRPC codes, so the enum is exhaustive here.

use std::fmt;

/// Result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// Stable classes of failure; every one has an errno ([`ErrorKind::errno`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// No lvstore, lvol or file of that name or UUID (`ENOENT`).
    NotFound,
    /// The name or UUID is taken (`EEXIST`).
    AlreadyExists,
    /// An argument is malformed: name, size, alignment (`EINVAL`).
    Invalid,
    /// An offset or length lies beyond the end of the lvol (`EINVAL`).
    OutOfRange,
    /// The object is exported, open, or another operation runs on it (`EBUSY`).
    Busy,
    /// A snapshot still has clones or is pinned (`EBUSY`).
    HasClones,
    /// No free clusters, or all free clusters are reserved by thick lvols (`ENOSPC`).
    NoSpace,
    /// No free metadata pages (`ENOSPC`).
    NoMetadataSpace,
    /// The lvol is a snapshot, or the store was opened read-only (`EROFS`).
    ReadOnly,
    /// The operation does not fit this kind of lvol: clone of a writable lvol, snapshot of a snapshot (`EINVAL`).
    WrongKind,
    /// Not built in, or not possible on this kernel or device (`EOPNOTSUPP`).
    Unsupported,
    /// The device holds data; nothing is formatted without force (`EEXIST`).
    NotBlank,
    /// The device does not hold a lvstore (`EILSEQ`).
    NotAStore,
    /// Metadata that does not check out (`EILSEQ`).
    Corrupt,
    /// Another process has the store open (`EBUSY`).
    Locked,
    /// The device returned an error for this request (`EIO`).
    Io,
    /// A flush or journal write failed: nothing is acknowledged until the store is reopened (`EIO`).
    Failed,
    /// The operation was cancelled (`ECANCELED`).
    Cancelled,
    /// The external parent of an esnap clone cannot be reached (`EIO`).
    Away,
}

impl ErrorKind {
    /// The errno that a block device or a C caller would see.
    pub fn errno(self) -> i32 {
        match self {
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::AlreadyExists | ErrorKind::NotBlank => libc::EEXIST,
            ErrorKind::Invalid | ErrorKind::OutOfRange | ErrorKind::WrongKind => libc::EINVAL,
            ErrorKind::Busy | ErrorKind::HasClones | ErrorKind::Locked => libc::EBUSY,
            ErrorKind::NoSpace | ErrorKind::NoMetadataSpace => libc::ENOSPC,
            ErrorKind::ReadOnly => libc::EROFS,
            ErrorKind::Unsupported => libc::EOPNOTSUPP,
            ErrorKind::NotAStore | ErrorKind::Corrupt => libc::EILSEQ,
            ErrorKind::Io | ErrorKind::Failed | ErrorKind::Away => libc::EIO,
            ErrorKind::Cancelled => libc::ECANCELED,
        }
    }
}

/// A failed engine call: its class, and a sentence for a person.
#[derive(Clone, PartialEq, Eq)]
pub struct Error {
    kind: ErrorKind,
    message: Box<str>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into().into_boxed_str() }
    }

    /// An error that a device returned, as an [`ErrorKind`] with what was being done.
    pub fn from_errno(errno: i32, doing: impl fmt::Display) -> Self {
        let kind = match errno {
            libc::ENOENT => ErrorKind::NotFound,
            libc::ENOSPC => ErrorKind::NoSpace,
            libc::EINVAL => ErrorKind::Invalid,
            libc::EBUSY => ErrorKind::Busy,
            libc::EROFS => ErrorKind::ReadOnly,
            libc::EOPNOTSUPP => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Error::new(kind, format!("{doing}: {}", std::io::Error::from_raw_os_error(errno)))
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub fn errno(&self) -> i32 {
        self.kind.errno()
    }

    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same error with what was being done in front.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Error { kind: self.kind, message: format!("{doing}: {}", self.message).into_boxed_str() }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// `err!(Kind, "format {}", args)`: an [`Error`] in one line.
macro_rules! err {
    ($kind:ident, $($arg:tt)*) => {
        $crate::error::Error::new($crate::error::ErrorKind::$kind, format!($($arg)*))
    };
}
pub(crate) use err;
