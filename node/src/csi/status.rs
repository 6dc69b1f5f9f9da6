//! Errors of the node as gRPC statuses. Engine errors have their own table: [`coppice_proto::status`].

use crate::Error;
use coppice_proto::status;
use tonic::{Code, Status};

pub fn code(error: &Error) -> Code {
    match error {
        Error::Invalid(_) => Code::InvalidArgument,
        Error::NotFound(_) => Code::NotFound,
        Error::Exists(_) => Code::AlreadyExists,
        Error::OutOfRange(_) => Code::OutOfRange,
        Error::Precondition(_) => Code::FailedPrecondition,
        Error::Unavailable(_) => Code::Unavailable,
        Error::Queue(_) => Code::Aborted,
        Error::Deadline(_) => Code::DeadlineExceeded,
        Error::Host(_) => Code::Internal,
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
    fn codes() {
        let text = || String::from("why");
        let table = [
            (Error::Invalid(text()), Code::InvalidArgument),
            (Error::NotFound(text()), Code::NotFound),
            (Error::Exists(text()), Code::AlreadyExists),
            (Error::OutOfRange(text()), Code::OutOfRange),
            (Error::Precondition(text()), Code::FailedPrecondition),
            (Error::Unavailable(text()), Code::Unavailable),
            (Error::Queue(text()), Code::Aborted),
            (Error::Deadline(text()), Code::DeadlineExceeded),
            (Error::Host(text()), Code::Internal),
        ];
        for (error, want) in table {
            assert_eq!(status(error).code(), want);
        }
    }
}
