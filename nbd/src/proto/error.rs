//! What is wrong with a message.

/// A message that does not follow the protocol. What stands after it in the stream cannot be trusted, unless the length
/// in its header was sound: then the body has been consumed and the next header stands behind it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    /// The peer speaks something else, or has lost its place.
    #[error("{what} begins with {found:#x}, which is not its magic number")]
    Magic { what: &'static str, found: u64 },
    /// A server of the time before options.
    #[error("this server speaks the old style of the protocol, which has neither options nor TLS: use a newer server")]
    OldStyle,
    /// More than the limit.
    #[error("{what} has {found} bytes or entries, {max} are allowed")]
    TooLong { what: &'static str, found: u64, max: u64 },
    /// Less than the message needs.
    #[error("{what} ends too early: it needs {need} bytes and has {have}")]
    Truncated { what: &'static str, need: usize, have: usize },
    /// Bytes left over.
    #[error("{what} has {extra} bytes too many")]
    Trailing { what: &'static str, extra: usize },
    /// A string that is not UTF-8, or has a NUL in it.
    #[error("{what} is not a string of UTF-8 without NUL")]
    NotAString { what: &'static str },
    /// A value that the protocol forbids.
    #[error("{what} is {found}, which the protocol forbids")]
    Forbidden { what: &'static str, found: u64 },
    /// A message that does not belong here.
    #[error("{what} of type {found:#x} is not expected here")]
    Unexpected { what: &'static str, found: u64 },
}
