//! What a server answers to an option.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | magic |
//! | 4 | [`OptionCode`] that this answers |
//! | 4 | [`OptionReplyKind`] |
//! | 4 | length of the data |
//! | … | data: [`OptionReply`] |
//!
//! ACK and errors are final; SERVER, INFO and META_CONTEXT come before one.

use super::error::ProtoError;
use super::option::{sendable_name, u32_len};
use super::values::{InfoKind, MAGIC_OPTION_REPLY, OptionCode, OptionReplyKind, STRING_BYTES_MAX, TransmissionFlags};
use super::wire::{Reader, bounded, sendable, string, text};
use bytes::BufMut;

pub const OPTION_REPLY_HEADER_BYTES: usize = 20;

/// Most data that one reply may have: a name and a description of full length, with room.
pub const OPTION_REPLY_DATA_BYTES_MAX: usize = 16 << 10;

/// Largest minimum block size that the protocol allows.
pub const BLOCK_SIZE_MIN_MAX: u32 = 64 << 10;

/// What stands before a reply's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHeader {
    pub option: OptionCode,
    pub kind: OptionReplyKind,
    pub len_bytes: u32,
}

impl OptionReplyHeader {
    pub fn parse(bytes: &[u8; OPTION_REPLY_HEADER_BYTES]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("the answer to an option", bytes);
        let magic = reader.u64()?;
        if magic != MAGIC_OPTION_REPLY {
            return Err(ProtoError::Magic { what: "the answer to an option", found: magic });
        }
        let (option, kind) = (OptionCode(reader.u32()?), OptionReplyKind(reader.u32()?));
        Ok(Self { option, kind, len_bytes: reader.u32()? })
    }

    /// How many bytes follow, if that is within [`OPTION_REPLY_DATA_BYTES_MAX`].
    pub fn data_len(&self) -> Result<usize, ProtoError> {
        bounded("the answer to an option", self.len_bytes.into(), OPTION_REPLY_DATA_BYTES_MAX)
    }
}

/// Sizes that requests have to keep to.
///
/// `min` is a power of two and at most [`BLOCK_SIZE_MIN_MAX`], `preferred` is a power of two, at least 512 and `min`;
/// `max_payload` is at least `preferred`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockSizes {
    pub min_bytes: u32,
    pub preferred_bytes: u32,
    /// Most that a read or write may carry.
    pub max_payload_bytes: u32,
}

impl BlockSizes {
    /// Whether the protocol allows these.
    pub fn check(&self) -> Result<(), ProtoError> {
        let forbidden = |what, found: u32| Err(ProtoError::Forbidden { what, found: found.into() });
        if !self.min_bytes.is_power_of_two() || self.min_bytes > BLOCK_SIZE_MIN_MAX {
            return forbidden("the minimum block size", self.min_bytes);
        }
        if !self.preferred_bytes.is_power_of_two() || self.preferred_bytes < self.min_bytes.max(512) {
            return forbidden("the preferred block size", self.preferred_bytes);
        }
        if self.max_payload_bytes < self.preferred_bytes {
            return forbidden("the maximum payload", self.max_payload_bytes);
        }
        Ok(())
    }
}

/// One piece of information about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Info {
    Export {
        size_bytes: u64,
        flags: TransmissionFlags,
    },
    /// The export's canonical name.
    Name(String),
    /// For people.
    Description(String),
    BlockSize(BlockSizes),
    /// To be ignored.
    Unknown(InfoKind),
}

/// A reply with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OptionReply {
    Ack,
    /// An entry of LIST.
    Server {
        name: String,
        /// For people; may be empty.
        description: String,
    },
    Info(Info),
    MetaContext {
        id: u32,
        name: String,
    },
    /// `kind` has bit 31 set; the message is for people and may be empty.
    Error {
        kind: OptionReplyKind,
        message: String,
    },
}

impl OptionReply {
    /// The reply of `kind` with all its data. A kind that is neither known nor an error is not for this client.
    pub fn parse(kind: OptionReplyKind, data: &[u8]) -> Result<Self, ProtoError> {
        match kind {
            OptionReplyKind::ACK => Reader::new("an acknowledgement", data).end().map(|()| Self::Ack),
            OptionReplyKind::SERVER => {
                let mut reader = Reader::new("an entry of the list of exports", data);
                let len = reader.length_u32("an export's name", STRING_BYTES_MAX)?;
                let name = string("an export's name", reader.take(len)?)?;
                Ok(Self::Server { name, description: text(reader.rest()) })
            }
            OptionReplyKind::INFO => Info::parse(data).map(Self::Info),
            OptionReplyKind::META_CONTEXT => {
                let mut reader = Reader::new("a context", data);
                let id = reader.u32()?;
                Ok(Self::MetaContext { id, name: string("a context's name", reader.rest())? })
            }
            kind if kind.is_error() => Ok(Self::Error { kind, message: text(data) }),
            kind => Err(ProtoError::Unexpected { what: "the answer to an option", found: kind.0.into() }),
        }
    }

    pub fn kind(&self) -> OptionReplyKind {
        match self {
            Self::Ack => OptionReplyKind::ACK,
            Self::Server { .. } => OptionReplyKind::SERVER,
            Self::Info(_) => OptionReplyKind::INFO,
            Self::MetaContext { .. } => OptionReplyKind::META_CONTEXT,
            Self::Error { kind, .. } => *kind,
        }
    }

    /// Whether the client may send its next option after this.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Ack | Self::Error { .. })
    }

    /// Header and data. Texts for people are cut to what fits; a name that does not fit is refused.
    pub fn encode(&self, option: OptionCode, out: &mut impl BufMut) -> Result<(), ProtoError> {
        let mut data = Vec::new();
        match self {
            Self::Ack => {}
            Self::Server { name, description } => {
                let name = sendable_name(name)?;
                data.put_u32(u32_len("an export's name", name.len(), STRING_BYTES_MAX)?);
                data.put_slice(name);
                data.put_slice(sendable(description).as_bytes());
            }
            Self::Info(info) => info.encode(&mut data)?,
            Self::MetaContext { id, name } => {
                data.put_u32(*id);
                data.put_slice(sendable_name(name)?);
            }
            Self::Error { message, .. } => data.put_slice(sendable(message).as_bytes()),
        }
        let len = u32_len("the answer to an option", data.len(), OPTION_REPLY_DATA_BYTES_MAX)?;
        out.put_u64(MAGIC_OPTION_REPLY);
        out.put_u32(option.0);
        out.put_u32(self.kind().0);
        out.put_u32(len);
        out.put_slice(&data);
        Ok(())
    }
}

impl Info {
    fn parse(data: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("information about an export", data);
        let info = match InfoKind(reader.u16()?) {
            InfoKind::EXPORT => Self::Export { size_bytes: reader.u64()?, flags: TransmissionFlags(reader.u16()?) },
            InfoKind::NAME => Self::Name(string("an export's name", reader.rest())?),
            InfoKind::DESCRIPTION => Self::Description(text(reader.rest())),
            InfoKind::BLOCK_SIZE => {
                let sizes = BlockSizes {
                    min_bytes: reader.u32()?,
                    preferred_bytes: reader.u32()?,
                    max_payload_bytes: reader.u32()?,
                };
                sizes.check()?;
                Self::BlockSize(sizes)
            }
            kind => {
                reader.rest();
                Self::Unknown(kind)
            }
        };
        reader.end()?;
        Ok(info)
    }

    fn encode(&self, data: &mut Vec<u8>) -> Result<(), ProtoError> {
        match self {
            Self::Export { size_bytes, flags } => {
                data.put_u16(InfoKind::EXPORT.0);
                data.put_u64(*size_bytes);
                data.put_u16(flags.0);
            }
            Self::Name(name) => {
                data.put_u16(InfoKind::NAME.0);
                data.put_slice(sendable_name(name)?);
            }
            Self::Description(description) => {
                data.put_u16(InfoKind::DESCRIPTION.0);
                data.put_slice(sendable(description).as_bytes());
            }
            Self::BlockSize(sizes) => {
                sizes.check()?;
                data.put_u16(InfoKind::BLOCK_SIZE.0);
                data.put_u32(sizes.min_bytes);
                data.put_u32(sizes.preferred_bytes);
                data.put_u32(sizes.max_payload_bytes);
            }
            Self::Unknown(kind) => data.put_u16(kind.0),
        }
        Ok(())
    }
}
