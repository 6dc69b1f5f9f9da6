//! Requests.
//!
//! | compact | extended | field |
//! |---|---|---|
//! | 4 | 4 | magic, one per style |
//! | 2 | 2 | [`CommandFlags`] |
//! | 2 | 2 | [`Command`] |
//! | 8 | 8 | cookie: the replies repeat it |
//! | 8 | 8 | offset |
//! | 4 | 8 | length |
//!
//! A compact WRITE is followed by `length` bytes. With extended headers [`CommandFlags::PAYLOAD_LEN`] says that `length`
//! bytes follow, whatever the command.

use super::error::ProtoError;
use super::values::{Command, CommandFlags, MAGIC_REQUEST, MAGIC_REQUEST_EXTENDED, Style};
use super::wire::{Reader, bounded};
use bytes::BufMut;

/// The larger of the two headers.
pub const REQUEST_HEADER_BYTES_MAX: usize = 32;

/// Most contexts that one block status request may name.
pub const STATUS_CONTEXTS_MAX: usize = 64;

/// A request's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    pub cookie: u64,
    pub command: Command,
    pub flags: CommandFlags,
    pub offset: u64,
    /// Of the range or of the payload: [`Request::payload_len`].
    pub length: u64,
}

impl Style {
    /// The size of a request's header.
    pub const fn request_header_bytes(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => 32,
        }
    }
}

impl Request {
    /// Parses a header of [`Style::request_header_bytes`]. Whether command, flags and range make sense is the server's to
    /// say: it can answer that. After a wrong magic number the connection is good for nothing.
    pub fn parse(style: Style, header: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("a request", header);
        let expected = if style == Style::Extended { MAGIC_REQUEST_EXTENDED } else { MAGIC_REQUEST };
        let magic = reader.u32()?;
        if magic != expected {
            return Err(ProtoError::Magic { what: "a request", found: magic.into() });
        }
        let (flags, command) = (CommandFlags(reader.u16()?), Command(reader.u16()?));
        let (cookie, offset) = (reader.u64()?, reader.u64()?);
        let length = if style == Style::Extended { reader.u64()? } else { reader.u32()?.into() };
        reader.end()?;
        Ok(Self { cookie, command, flags, offset, length })
    }

    /// How many bytes follow the header. Not yet compared with any limit.
    pub fn payload_len(&self, style: Style) -> u64 {
        let carries = match style {
            Style::Simple | Style::Structured => self.command == Command::WRITE,
            Style::Extended => self.flags.contains(CommandFlags::PAYLOAD_LEN),
        };
        if carries { self.length } else { 0 }
    }

    /// The header; the payload goes after it. With extended headers the caller sets [`CommandFlags::PAYLOAD_LEN`] where
    /// there is one, WRITE included. A length that does not fit a compact header is refused.
    pub fn encode(&self, style: Style, out: &mut impl BufMut) -> Result<(), ProtoError> {
        let compact = match style {
            Style::Extended => None,
            Style::Simple | Style::Structured => Some(u32::try_from(self.length).map_err(|_| ProtoError::TooLong {
                what: "the length of a compact request",
                found: self.length,
                max: u32::MAX.into(),
            })?),
        };
        out.put_u32(if compact.is_some() { MAGIC_REQUEST } else { MAGIC_REQUEST_EXTENDED });
        out.put_u16(self.flags.0);
        out.put_u16(self.command.0);
        out.put_u64(self.cookie);
        out.put_u64(self.offset);
        match compact {
            Some(length) => out.put_u32(length),
            None => out.put_u64(self.length),
        }
        Ok(())
    }
}

/// The payload of BLOCK_STATUS: only these contexts, of those that were negotiated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusPayload {
    /// The range's length; the header's is the payload's.
    pub length: u64,
    pub contexts: Vec<u32>,
}

impl StatusPayload {
    /// Largest payload that [`StatusPayload::parse`] takes.
    pub const BYTES_MAX: usize = 8 + 4 * STATUS_CONTEXTS_MAX;

    pub fn parse(payload: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("the payload of BLOCK_STATUS", payload);
        let length = reader.u64()?;
        let rest = reader.rest();
        let (ids, odd) = rest.as_chunks::<4>();
        if !odd.is_empty() {
            return Err(ProtoError::Trailing { what: "the payload of BLOCK_STATUS", extra: odd.len() });
        }
        bounded("the list of contexts", ids.len() as u64, STATUS_CONTEXTS_MAX)?;
        Ok(Self { length, contexts: ids.iter().map(|id| u32::from_be_bytes(*id)).collect() })
    }

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(self.length);
        for id in &self.contexts {
            out.put_u32(*id);
        }
    }
}
