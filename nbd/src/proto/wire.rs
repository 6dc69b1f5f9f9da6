//! Big-endian fields and strings, read with every length checked.

use super::error::ProtoError;
use super::values::STRING_BYTES_MAX;

/// Reads the fields of one message, named `what` in errors.
pub(super) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, rest: bytes }
    }

    /// The next `len` bytes; `len` may be what a peer said.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], ProtoError> {
        let Some((taken, rest)) = self.rest.split_at_checked(len) else {
            return Err(ProtoError::Truncated { what: self.what, need: len, have: self.rest.len() });
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ProtoError> {
        let Some((taken, rest)) = self.rest.split_first_chunk::<N>() else {
            return Err(ProtoError::Truncated { what: self.what, need: N, have: self.rest.len() });
        };
        self.rest = rest;
        Ok(*taken)
    }

    pub(super) fn u16(&mut self) -> Result<u16, ProtoError> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, ProtoError> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, ProtoError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A length as the peer said it, no larger than `max`.
    pub(super) fn length_u32(&mut self, what: &'static str, max: usize) -> Result<usize, ProtoError> {
        let found = self.u32()?;
        bounded(what, found.into(), max)
    }

    /// All that is left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> Result<(), ProtoError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(ProtoError::Trailing { what: self.what, extra }),
        }
    }
}

/// `found` as a length in memory, if it is at most `max`.
pub(super) fn bounded(what: &'static str, found: u64, max: usize) -> Result<usize, ProtoError> {
    match usize::try_from(found) {
        Ok(len) if len <= max => Ok(len),
        _ => Err(ProtoError::TooLong { what, found, max: u64::try_from(max).unwrap_or(u64::MAX) }),
    }
}

/// A string that means something: a name.
pub(super) fn string(what: &'static str, bytes: &[u8]) -> Result<String, ProtoError> {
    bounded(what, u64::try_from(bytes.len()).unwrap_or(u64::MAX), STRING_BYTES_MAX)?;
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(ProtoError::NotAString { what }),
    }
}

/// A text for people, from a peer: never refused, cut at the limit, without what could play with a terminal or a log.
pub(super) fn text(bytes: &[u8]) -> String {
    let kept = bytes.get(..STRING_BYTES_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(kept).chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As much of a text as the protocol lets us send, cut between characters; NUL does not go out.
pub(super) fn sendable(message: &str) -> String {
    let mut kept: String = message.chars().filter(|c| *c != '\0').collect();
    let mut end = kept.len().min(STRING_BYTES_MAX);
    while !kept.is_char_boundary(end) {
        end -= 1;
    }
    kept.truncate(end);
    kept
}
