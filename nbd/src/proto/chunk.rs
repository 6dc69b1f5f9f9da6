//! Replies.
//!
//! | simple | structured | extended | field |
//! |---|---|---|---|
//! | 4 | 4 | 4 | magic, one per style |
//! | 4 | | | [`ErrorCode`] |
//! | | 2 | 2 | [`ReplyFlags`] |
//! | | 2 | 2 | [`ChunkKind`] |
//! | 8 | 8 | 8 | cookie of the request |
//! | | | 8 | offset of the request |
//! | | 4 | 8 | length of the chunk |
//!
//! A simple reply to a READ that went well is followed by the data that was asked for, and only the one who asked knows how
//! much that is. All others say their length.

use super::error::ProtoError;
use super::option::u32_len;
use super::values::{
    ChunkKind, ErrorCode, MAGIC_REPLY_EXTENDED, MAGIC_REPLY_SIMPLE, MAGIC_REPLY_STRUCTURED, ReplyFlags,
    STRING_BYTES_MAX, Style,
};
use super::wire::{Reader, bounded, sendable, text};
use bytes::{Buf, BufMut, Bytes};

/// The largest of the headers.
pub const REPLY_HEADER_BYTES_MAX: usize = 32;

/// Most extents in one chunk.
pub const STATUS_EXTENTS_MAX: usize = 1 << 20;

/// What stands before the data in a chunk of data: its offset.
pub const CHUNK_DATA_PREFIX_BYTES: usize = 8;

/// Most that a chunk of an error that we do not know may carry behind its message.
pub const ERROR_TAIL_BYTES_MAX: usize = 4096;

const SIMPLE_HEADER_BYTES: usize = 16;
const STRUCTURED_HEADER_BYTES: usize = 20;
const EXTENDED_HEADER_BYTES: usize = 32;

/// The header of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHeader {
    Simple {
        error: ErrorCode,
        cookie: u64,
    },
    Chunk {
        flags: ReplyFlags,
        kind: ChunkKind,
        cookie: u64,
        /// Of the request; only extended headers have it.
        offset: Option<u64>,
        /// As the server said it: [`ReplyHeader::payload_len`] compares it with what is allowed.
        length: u64,
    },
}

/// How long the header is that begins with these four bytes, if such a header may come in this style.
pub fn reply_header_len(style: Style, magic: [u8; 4]) -> Result<usize, ProtoError> {
    let found = u32::from_be_bytes(magic);
    match (style, found) {
        (Style::Simple | Style::Structured, MAGIC_REPLY_SIMPLE) => Ok(SIMPLE_HEADER_BYTES),
        (Style::Structured, MAGIC_REPLY_STRUCTURED) => Ok(STRUCTURED_HEADER_BYTES),
        (Style::Extended, MAGIC_REPLY_EXTENDED) => Ok(EXTENDED_HEADER_BYTES),
        _ => Err(ProtoError::Magic { what: "a reply", found: found.into() }),
    }
}

impl ReplyHeader {
    /// Parses a header of [`reply_header_len`] bytes, magic number included.
    pub fn parse(style: Style, header: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("a reply", header);
        let magic = reader.u32()?;
        reply_header_len(style, magic.to_be_bytes())?;
        let parsed = if magic == MAGIC_REPLY_SIMPLE {
            Self::Simple { error: ErrorCode(reader.u32()?), cookie: reader.u64()? }
        } else {
            let (flags, kind, cookie) = (ReplyFlags(reader.u16()?), ChunkKind(reader.u16()?), reader.u64()?);
            let (offset, length) = match style {
                Style::Extended => (Some(reader.u64()?), reader.u64()?),
                Style::Simple | Style::Structured => (None, reader.u32()?.into()),
            };
            Self::Chunk { flags, kind, cookie, offset, length }
        };
        reader.end()?;
        Ok(parsed)
    }

    pub fn cookie(&self) -> u64 {
        match self {
            Self::Simple { cookie, .. } | Self::Chunk { cookie, .. } => *cookie,
        }
    }

    /// Whether nothing more comes for this request.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Simple { .. } => true,
            Self::Chunk { flags, .. } => flags.contains(ReplyFlags::DONE),
        }
    }

    /// How many bytes the chunk has behind its header, if its kind allows as many. `data_bytes_max` is the largest piece of
    /// data that the one who asked is ready for. 0 for a simple reply.
    pub fn payload_len(&self, data_bytes_max: usize) -> Result<usize, ProtoError> {
        let Self::Chunk { kind, length, .. } = *self else { return Ok(0) };
        let max = match kind {
            ChunkKind::NONE => 0,
            ChunkKind::OFFSET_DATA => data_bytes_max.saturating_add(CHUNK_DATA_PREFIX_BYTES),
            ChunkKind::OFFSET_HOLE => 12,
            ChunkKind::BLOCK_STATUS => 4 + 8 * STATUS_EXTENTS_MAX,
            ChunkKind::BLOCK_STATUS_EXT => 8 + 16 * STATUS_EXTENTS_MAX,
            ChunkKind::ERROR => 6 + STRING_BYTES_MAX,
            ChunkKind::ERROR_OFFSET => 14 + STRING_BYTES_MAX,
            kind if kind.is_error() => 6 + STRING_BYTES_MAX + ERROR_TAIL_BYTES_MAX,
            kind => return Err(ProtoError::Unexpected { what: "a chunk", found: kind.0.into() }),
        };
        bounded("a chunk", length, max)
    }
}

/// A range and what a context says about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Never 0 in a message.
    pub length: u64,
    /// For `base:allocation`: [`super::STATE_HOLE`], [`super::STATE_ZERO`].
    pub flags: u64,
}

/// A chunk's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// Nothing more to say.
    None,
    /// Bytes of the export from `offset` on.
    Data { offset: u64, data: Bytes },
    /// `length` bytes of zeroes from `offset` on.
    Hole { offset: u64, length: u32 },
    /// Extents, one after the other from the request's offset on; at least one.
    Status { context: u32, extents: Vec<Extent> },
    /// The request failed, nobody says where.
    Error { error: ErrorCode, message: String },
    /// The request failed at `offset`.
    ErrorAt { error: ErrorCode, message: String, offset: u64 },
}

/// Which request a reply belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    pub style: Style,
    pub cookie: u64,
    /// The request's.
    pub offset: u64,
}

impl Chunk {
    /// The chunk of `kind` with all its payload. An error of unknown kind is an [`Chunk::Error`].
    ///
    /// Data is not copied. Whoever wants to read data to where it belongs takes the first [`CHUNK_DATA_PREFIX_BYTES`] off
    /// the stream as a big-endian offset and needs none of this.
    pub fn parse(style: Style, kind: ChunkKind, mut payload: Bytes) -> Result<Self, ProtoError> {
        match kind {
            ChunkKind::NONE => Reader::new("an empty chunk", &payload).end().map(|()| Self::None),
            ChunkKind::OFFSET_DATA => {
                if payload.len() <= CHUNK_DATA_PREFIX_BYTES {
                    let need = CHUNK_DATA_PREFIX_BYTES + 1;
                    return Err(ProtoError::Truncated { what: "a chunk of data", need, have: payload.len() });
                }
                Ok(Self::Data { offset: payload.get_u64(), data: payload })
            }
            ChunkKind::OFFSET_HOLE => {
                let mut reader = Reader::new("a hole", &payload);
                let (offset, length) = (reader.u64()?, reader.u32()?);
                reader.end()?;
                if length == 0 {
                    return Err(ProtoError::Forbidden { what: "the length of a hole", found: 0 });
                }
                Ok(Self::Hole { offset, length })
            }
            ChunkKind::BLOCK_STATUS if style == Style::Structured => parse_status(&payload),
            ChunkKind::BLOCK_STATUS_EXT if style == Style::Extended => parse_status_ext(&payload),
            kind if kind.is_error() => parse_error(kind, &payload),
            kind => Err(ProtoError::Unexpected { what: "a chunk", found: kind.0.into() }),
        }
    }

    /// The kind that this has in `style`.
    pub fn kind(&self, style: Style) -> ChunkKind {
        match self {
            Self::None => ChunkKind::NONE,
            Self::Data { .. } => ChunkKind::OFFSET_DATA,
            Self::Hole { .. } => ChunkKind::OFFSET_HOLE,
            Self::Status { .. } if style == Style::Extended => ChunkKind::BLOCK_STATUS_EXT,
            Self::Status { .. } => ChunkKind::BLOCK_STATUS,
            Self::Error { .. } => ChunkKind::ERROR,
            Self::ErrorAt { .. } => ChunkKind::ERROR_OFFSET,
        }
    }

    /// Header and payload, except the bytes of [`Chunk::Data`]: those the caller sends behind it, without copying them.
    /// Refused if something does not fit: an extent of 4 GiB in a compact chunk, no extents at all.
    pub fn encode(&self, to: ReplyTo, done: bool, out: &mut impl BufMut) -> Result<(), ProtoError> {
        let mut body = Vec::new();
        let mut follows = 0;
        match self {
            Self::None => {}
            Self::Data { offset, data } => {
                body.put_u64(*offset);
                follows = data.len();
            }
            Self::Hole { offset, length } => {
                body.put_u64(*offset);
                body.put_u32(*length);
            }
            Self::Status { context, extents } => encode_status(to.style, *context, extents, &mut body)?,
            Self::Error { error, message } => encode_error(*error, message, &mut body),
            Self::ErrorAt { error, message, offset } => {
                encode_error(*error, message, &mut body);
                body.put_u64(*offset);
            }
        }
        put_header(to, done, self.kind(to.style), body.len().saturating_add(follows), out)?;
        out.put_slice(&body);
        Ok(())
    }

    /// What [`Chunk::encode`] writes for a [`Chunk::Data`] of `len_bytes` bytes, which need not lie in one piece.
    pub fn encode_data_header(
        to: ReplyTo,
        done: bool,
        offset: u64,
        len_bytes: usize,
        out: &mut impl BufMut,
    ) -> Result<(), ProtoError> {
        let len = len_bytes.saturating_add(CHUNK_DATA_PREFIX_BYTES);
        put_header(to, done, ChunkKind::OFFSET_DATA, len, out)?;
        out.put_u64(offset);
        Ok(())
    }
}

fn put_header(to: ReplyTo, done: bool, kind: ChunkKind, len: usize, out: &mut impl BufMut) -> Result<(), ProtoError> {
    let len = u32_len("a chunk", len, usize::MAX)?;
    let flags = ReplyFlags::NONE.with(ReplyFlags::DONE, done);
    let extended = to.style == Style::Extended;
    out.put_u32(if extended { MAGIC_REPLY_EXTENDED } else { MAGIC_REPLY_STRUCTURED });
    out.put_u16(flags.0);
    out.put_u16(kind.0);
    out.put_u64(to.cookie);
    if extended {
        out.put_u64(to.offset);
        out.put_u64(len.into());
    } else {
        out.put_u32(len);
    }
    Ok(())
}

/// A simple reply's header; the data of a READ goes after it.
pub fn encode_simple_reply(error: ErrorCode, cookie: u64, out: &mut impl BufMut) {
    out.put_u32(MAGIC_REPLY_SIMPLE);
    out.put_u32(error.0);
    out.put_u64(cookie);
}

fn parse_status(payload: &[u8]) -> Result<Chunk, ProtoError> {
    let mut reader = Reader::new("a block status", payload);
    let context = reader.u32()?;
    let (pairs, odd) = reader.rest().as_chunks::<8>();
    if !odd.is_empty() {
        return Err(ProtoError::Trailing { what: "a block status", extra: odd.len() });
    }
    let extents = pairs.iter().map(|[a, b, c, d, e, f, g, h]| Extent {
        length: u32::from_be_bytes([*a, *b, *c, *d]).into(),
        flags: u32::from_be_bytes([*e, *f, *g, *h]).into(),
    });
    checked_status(context, pairs.len(), extents)
}

fn parse_status_ext(payload: &[u8]) -> Result<Chunk, ProtoError> {
    let mut reader = Reader::new("a block status", payload);
    let (context, count) = (reader.u32()?, reader.u32()?);
    let (pairs, odd) = reader.rest().as_chunks::<16>();
    if !odd.is_empty() {
        return Err(ProtoError::Trailing { what: "a block status", extra: odd.len() });
    }
    if u64::from(count) != pairs.len() as u64 {
        return Err(ProtoError::Forbidden { what: "the number of extents of a block status", found: count.into() });
    }
    let extents = pairs.iter().map(|pair| {
        let both = u128::from_be_bytes(*pair);
        // The upper half and the lower half.
        Extent { length: (both >> 64) as u64, flags: (both & u128::from(u64::MAX)) as u64 }
    });
    checked_status(context, pairs.len(), extents)
}

fn checked_status(context: u32, count: usize, extents: impl Iterator<Item = Extent>) -> Result<Chunk, ProtoError> {
    bounded("a block status", count as u64, STATUS_EXTENTS_MAX)?;
    let extents: Vec<Extent> = extents.collect();
    if extents.is_empty() {
        return Err(ProtoError::Forbidden { what: "the number of extents of a block status", found: 0 });
    }
    if extents.iter().any(|extent| extent.length == 0) {
        return Err(ProtoError::Forbidden { what: "the length of an extent", found: 0 });
    }
    Ok(Chunk::Status { context, extents })
}

fn parse_error(kind: ChunkKind, payload: &[u8]) -> Result<Chunk, ProtoError> {
    let mut reader = Reader::new("an error", payload);
    let (error, len) = (ErrorCode(reader.u32()?), reader.u16()?);
    if error.is_ok() {
        return Err(ProtoError::Forbidden { what: "the value of an error", found: 0 });
    }
    let len = bounded("the message of an error", len.into(), STRING_BYTES_MAX)?;
    let message = text(reader.take(len)?);
    match kind {
        ChunkKind::ERROR => {
            reader.end()?;
            Ok(Chunk::Error { error, message })
        }
        ChunkKind::ERROR_OFFSET => {
            let offset = reader.u64()?;
            reader.end()?;
            Ok(Chunk::ErrorAt { error, message, offset })
        }
        _ => Ok(Chunk::Error { error, message }),
    }
}

fn encode_error(error: ErrorCode, message: &str, body: &mut Vec<u8>) {
    let message = sendable(message);
    body.put_u32(error.0);
    // At most STRING_BYTES_MAX.
    body.put_u16(u16::try_from(message.len()).unwrap_or(0));
    body.put_slice(message.as_bytes());
}

fn encode_status(style: Style, context: u32, extents: &[Extent], body: &mut Vec<u8>) -> Result<(), ProtoError> {
    if extents.is_empty() {
        return Err(ProtoError::Forbidden { what: "the number of extents of a block status", found: 0 });
    }
    let count = u32_len("a block status", extents.len(), STATUS_EXTENTS_MAX)?;
    body.put_u32(context);
    if style == Style::Extended {
        body.put_u32(count);
    }
    for extent in extents {
        if extent.length == 0 {
            return Err(ProtoError::Forbidden { what: "the length of an extent", found: 0 });
        }
        if style == Style::Extended {
            body.put_u64(extent.length);
            body.put_u64(extent.flags);
            continue;
        }
        for (what, value) in [("the length of an extent", extent.length), ("the flags of an extent", extent.flags)] {
            let max = u32::MAX.into();
            body.put_u32(u32::try_from(value).map_err(|_| ProtoError::TooLong { what, found: value, max })?);
        }
    }
    Ok(())
}
