//! Why bytes were not accepted, in words that can be put behind "lvstore data0: metadata page 17: ".

use crate::error::{Error, ErrorKind};

/// A structure on disk that does not check out, or a value that cannot be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("no blobstore signature: this is not a lvstore")]
    BadSignature,
    #[error("{what}: the first bytes are not its magic")]
    BadMagic { what: &'static str },
    #[error("format version {0} is not known (1 to 3 are)")]
    BadVersion(u32),
    #[error("{what}: checksum does not match (stored {stored:#010x}, computed {computed:#010x})")]
    BadCrc { what: &'static str, stored: u32, computed: u32 },
    #[error("{what}: {need} bytes needed, {have} there")]
    Truncated { what: &'static str, need: usize, have: usize },
    #[error("{field} is {value}: {why}")]
    BadField { field: &'static str, value: u64, why: &'static str },
    #[error("{first} and {second} overlap on the device")]
    Overlap { first: &'static str, second: &'static str },
    #[error("descriptor of type {kind} at byte {offset} of the page: {why}")]
    BadDescriptor { kind: u8, offset: usize, why: &'static str },
    #[error("the blob has {value} extent pages, more than the {max} that this store can hold")]
    TooManyExtentPages { value: u64, max: u64 },
    #[error("xattr \"{name}\": {why}")]
    BadXattr { name: String, why: &'static str },
    /// A store or a structure that was asked for cannot be built.
    #[error("{0}")]
    Unbuildable(String),
}

impl FormatError {
    pub(super) fn field(field: &'static str, value: impl Into<u64>, why: &'static str) -> Self {
        FormatError::BadField { field, value: value.into(), why }
    }

    pub(super) fn xattr(name: &[u8], why: &'static str) -> Self {
        FormatError::BadXattr { name: name.escape_ascii().to_string(), why }
    }
}

impl From<FormatError> for Error {
    fn from(e: FormatError) -> Self {
        let kind = match e {
            FormatError::BadSignature | FormatError::BadVersion(_) => ErrorKind::NotAStore,
            FormatError::Unbuildable(_) => ErrorKind::Invalid,
            FormatError::BadMagic { .. }
            | FormatError::BadCrc { .. }
            | FormatError::Truncated { .. }
            | FormatError::BadField { .. }
            | FormatError::Overlap { .. }
            | FormatError::BadDescriptor { .. }
            | FormatError::TooManyExtentPages { .. }
            | FormatError::BadXattr { .. } => ErrorKind::Corrupt,
        };
        Error::new(kind, e.to_string())
    }
}
