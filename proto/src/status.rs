//! The one place where an engine error becomes a gRPC code.
//!
//! A caller of CSI may forget about an object after a *final* code; so those are only for failures after which nothing
//! exists. `Unavailable`, `Aborted` and `DeadlineExceeded` say: it may exist, ask again.

use coppice_engine::{Error, ErrorKind};
use tonic::{Code, Status};

/// The gRPC code of an engine error. Exhaustive on purpose: a new kind must be thought about here.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Invalid | ErrorKind::WrongKind => Code::InvalidArgument,
        ErrorKind::OutOfRange => Code::OutOfRange,
        ErrorKind::Busy | ErrorKind::HasClones => Code::FailedPrecondition,
        ErrorKind::NoSpace | ErrorKind::NoMetadataSpace => Code::ResourceExhausted,
        ErrorKind::ReadOnly | ErrorKind::Unsupported | ErrorKind::NotBlank | ErrorKind::NotAStore => {
            Code::FailedPrecondition
        }
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Io => Code::Internal,
        ErrorKind::Locked | ErrorKind::Failed | ErrorKind::Away => Code::Unavailable,
        ErrorKind::Cancelled => Code::Aborted,
    }
}

/// True if a caller that sees this code may believe that nothing exists.
pub fn is_final(code: Code) -> bool {
    !matches!(code, Code::Unavailable | Code::Aborted | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
}

/// The status of an engine error.
pub fn from_engine(error: &Error) -> Status {
    Status::new(code(error.kind()), error.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kind with its code. The match has no wildcard, so that a new kind fails to compile here too.
    fn expected(kind: ErrorKind) -> Code {
        match kind {
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::AlreadyExists => Code::AlreadyExists,
            ErrorKind::Invalid => Code::InvalidArgument,
            ErrorKind::OutOfRange => Code::OutOfRange,
            ErrorKind::Busy => Code::FailedPrecondition,
            ErrorKind::HasClones => Code::FailedPrecondition,
            ErrorKind::NoSpace => Code::ResourceExhausted,
            ErrorKind::NoMetadataSpace => Code::ResourceExhausted,
            ErrorKind::ReadOnly => Code::FailedPrecondition,
            ErrorKind::WrongKind => Code::InvalidArgument,
            ErrorKind::Unsupported => Code::FailedPrecondition,
            ErrorKind::NotBlank => Code::FailedPrecondition,
            ErrorKind::NotAStore => Code::FailedPrecondition,
            ErrorKind::Corrupt => Code::DataLoss,
            ErrorKind::Locked => Code::Unavailable,
            ErrorKind::Io => Code::Internal,
            ErrorKind::Failed => Code::Unavailable,
            ErrorKind::Cancelled => Code::Aborted,
            ErrorKind::Away => Code::Unavailable,
        }
    }

    const ALL: [ErrorKind; 19] = [
        ErrorKind::NotFound,
        ErrorKind::AlreadyExists,
        ErrorKind::Invalid,
        ErrorKind::OutOfRange,
        ErrorKind::Busy,
        ErrorKind::HasClones,
        ErrorKind::NoSpace,
        ErrorKind::NoMetadataSpace,
        ErrorKind::ReadOnly,
        ErrorKind::WrongKind,
        ErrorKind::Unsupported,
        ErrorKind::NotBlank,
        ErrorKind::NotAStore,
        ErrorKind::Corrupt,
        ErrorKind::Locked,
        ErrorKind::Io,
        ErrorKind::Failed,
        ErrorKind::Cancelled,
        ErrorKind::Away,
    ];

    #[test]
    fn every_kind_has_its_code_and_keeps_its_message() {
        for kind in ALL {
            let status = from_engine(&Error::new(kind, "what to do"));
            assert_eq!(status.code(), expected(kind), "{kind:?}");
            assert_eq!(status.message(), "what to do");
            assert_ne!(status.code(), Code::Unknown);
        }
    }

    #[test]
    fn what_may_exist_is_never_final() {
        for kind in [ErrorKind::Failed, ErrorKind::Locked, ErrorKind::Cancelled, ErrorKind::Away] {
            assert!(!is_final(code(kind)), "{kind:?}");
        }
        for kind in [ErrorKind::NoSpace, ErrorKind::Invalid, ErrorKind::NotFound] {
            assert!(is_final(code(kind)), "{kind:?}");
        }
    }
}
