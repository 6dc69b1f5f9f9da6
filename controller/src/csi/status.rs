//! Errors of the operations as gRPC statuses. Engine errors have their own table: [`coppice_proto::status`].

use crate::volume::Error;
use coppice_proto::status;
use tonic::{Code, Status};

pub fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::Exists(_) => Code::AlreadyExists,
        Error::OutOfRange(_) => Code::OutOfRange,
        Error::NoSpace(_) => Code::ResourceExhausted,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::BadToken(_) | Error::Queue(_) | Error::NotYet(_) => Code::Aborted,
        Error::Deadline(_) => Code::DeadlineExceeded,
        Error::MayExist(_) => Code::Unavailable,
        Error::Engine(e) => status::code(e.kind()),
    }
}

pub fn status(error: Error) -> Status {
    Status::new(code(&error), error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_exist_is_never_final() {
        let text = || String::from("why");
        for open in [Error::Queue(text()), Error::NotYet(text()), Error::Deadline(text()), Error::MayExist(text())] {
            assert!(!status::is_final(code(&open)), "{open:?}");
        }
        let table = [
            (Error::Invalid(text()), Code::InvalidArgument),
            (Error::NotFound(text()), Code::NotFound),
            (Error::Exists(text()), Code::AlreadyExists),
            (Error::OutOfRange(text()), Code::OutOfRange),
            (Error::NoSpace(text()), Code::ResourceExhausted),
            (Error::Precondition(text()), Code::FailedPrecondition),
            (Error::BadToken(text()), Code::Aborted),
        ];
        for (error, want) in table {
            assert_eq!(status(error).code(), want);
        }
    }
}
