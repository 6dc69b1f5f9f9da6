//! What a client asks for while it negotiates.
//!
//! | bytes | field |
//! |---|---|
//! | 8 | `IHAVEOPT` |
//! | 4 | [`OptionCode`] |
//! | 4 | length of the data |
//! | … | data: [`ClientOption`] |

use super::error::ProtoError;
use super::values::{InfoKind, MAGIC_OPTION, OptionCode, STRING_BYTES_MAX};
use super::wire::{Reader, bounded, string};
use bytes::BufMut;

pub const OPTION_HEADER_BYTES: usize = 16;

/// Most data that one option may have: a name and a dozen queries of full length.
pub const OPTION_DATA_BYTES_MAX: usize = 64 << 10;

/// Most queries in one LIST_META_CONTEXT or SET_META_CONTEXT.
pub const QUERIES_MAX: usize = 64;

/// Most kinds of information in one INFO or GO; the protocol has four.
pub const INFO_REQUESTS_MAX: usize = 64;

/// What stands before an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    pub code: OptionCode,
    /// As the client said it; a server that does not want so much may skip it ([`OptionHeader::data_len`]).
    pub len_bytes: u32,
}

impl OptionHeader {
    pub fn parse(bytes: &[u8; OPTION_HEADER_BYTES]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("an option", bytes);
        let magic = reader.u64()?;
        if magic != MAGIC_OPTION {
            return Err(ProtoError::Magic { what: "an option", found: magic });
        }
        Ok(Self { code: OptionCode(reader.u32()?), len_bytes: reader.u32()? })
    }

    /// How many bytes follow, if that is within [`OPTION_DATA_BYTES_MAX`].
    pub fn data_len(&self) -> Result<usize, ProtoError> {
        bounded("the data of an option", self.len_bytes.into(), OPTION_DATA_BYTES_MAX)
    }
}

/// The data of INFO and GO: which export, and what the client wants to know besides its size and flags.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct InfoQuery {
    pub name: String,
    pub wanted: Vec<InfoKind>,
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct MetaQuery {
    pub name: String,
    pub queries: Vec<String>,
}

/// An option with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientOption {
    /// Begins transmission without a way to say why not; the name may be empty (the default export).
    ExportName(String),
    Abort,
    List,
    StartTls,
    Info(InfoQuery),
    Go(InfoQuery),
    StructuredReply,
    ListMetaContext(MetaQuery),
    SetMetaContext(MetaQuery),
    ExtendedHeaders,
    /// One that we do not know; its data has been skipped.
    Unknown(OptionCode),
}

impl ClientOption {
    /// The option `code` with all its data.
    pub fn parse(code: OptionCode, data: &[u8]) -> Result<Self, ProtoError> {
        let nothing = |option: Self| Reader::new("an option without data", data).end().map(|()| option);
        match code {
            OptionCode::EXPORT_NAME => Ok(Self::ExportName(string("an export's name", data)?)),
            // Data of ABORT is to be ignored rather than refused.
            OptionCode::ABORT => Ok(Self::Abort),
            OptionCode::LIST => nothing(Self::List),
            OptionCode::STARTTLS => nothing(Self::StartTls),
            OptionCode::INFO => InfoQuery::parse(data).map(Self::Info),
            OptionCode::GO => InfoQuery::parse(data).map(Self::Go),
            OptionCode::STRUCTURED_REPLY => nothing(Self::StructuredReply),
            OptionCode::LIST_META_CONTEXT => MetaQuery::parse(data).map(Self::ListMetaContext),
            OptionCode::SET_META_CONTEXT => MetaQuery::parse(data).map(Self::SetMetaContext),
            OptionCode::EXTENDED_HEADERS => nothing(Self::ExtendedHeaders),
            other => Ok(Self::Unknown(other)),
        }
    }

    pub fn code(&self) -> OptionCode {
        match self {
            Self::ExportName(_) => OptionCode::EXPORT_NAME,
            Self::Abort => OptionCode::ABORT,
            Self::List => OptionCode::LIST,
            Self::StartTls => OptionCode::STARTTLS,
            Self::Info(_) => OptionCode::INFO,
            Self::Go(_) => OptionCode::GO,
            Self::StructuredReply => OptionCode::STRUCTURED_REPLY,
            Self::ListMetaContext(_) => OptionCode::LIST_META_CONTEXT,
            Self::SetMetaContext(_) => OptionCode::SET_META_CONTEXT,
            Self::ExtendedHeaders => OptionCode::EXTENDED_HEADERS,
            Self::Unknown(code) => *code,
        }
    }

    /// Header and data. Refused if a name or list is longer than the protocol or a limit here allows.
    pub fn encode(&self, out: &mut impl BufMut) -> Result<(), ProtoError> {
        let mut data = Vec::new();
        match self {
            Self::ExportName(name) => data.put_slice(sendable_name(name)?),
            Self::Info(query) | Self::Go(query) => query.encode(&mut data)?,
            Self::ListMetaContext(query) | Self::SetMetaContext(query) => query.encode(&mut data)?,
            Self::Abort
            | Self::List
            | Self::StartTls
            | Self::StructuredReply
            | Self::ExtendedHeaders
            | Self::Unknown(_) => {}
        }
        let len = u32_len("the data of an option", data.len(), OPTION_DATA_BYTES_MAX)?;
        out.put_u64(MAGIC_OPTION);
        out.put_u32(self.code().0);
        out.put_u32(len);
        out.put_slice(&data);
        Ok(())
    }
}

impl InfoQuery {
    fn parse(data: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("INFO or GO", data);
        let len = reader.length_u32("an export's name", STRING_BYTES_MAX)?;
        let name = string("an export's name", reader.take(len)?)?;
        let count = bounded("the list of INFO or GO", reader.u16()?.into(), INFO_REQUESTS_MAX)?;
        let wanted = (0..count).map(|_| reader.u16().map(InfoKind)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { name, wanted })
    }

    fn encode(&self, data: &mut Vec<u8>) -> Result<(), ProtoError> {
        put_name(&self.name, data)?;
        let count = bounded("the list of INFO or GO", self.wanted.len() as u64, INFO_REQUESTS_MAX)?;
        data.put_u16(u16::try_from(count).unwrap_or(u16::MAX));
        for kind in &self.wanted {
            data.put_u16(kind.0);
        }
        Ok(())
    }
}

impl MetaQuery {
    fn parse(data: &[u8]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("a query for contexts", data);
        let len = reader.length_u32("an export's name", STRING_BYTES_MAX)?;
        let name = string("an export's name", reader.take(len)?)?;
        let count = reader.length_u32("the list of queries", QUERIES_MAX)?;
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            let len = reader.length_u32("a query", STRING_BYTES_MAX)?;
            queries.push(string("a query", reader.take(len)?)?);
        }
        reader.end()?;
        Ok(Self { name, queries })
    }

    fn encode(&self, data: &mut Vec<u8>) -> Result<(), ProtoError> {
        put_name(&self.name, data)?;
        data.put_u32(u32_len("the list of queries", self.queries.len(), QUERIES_MAX)?);
        for query in &self.queries {
            put_name(query, data)?;
        }
        Ok(())
    }
}

/// `name` as it may go out: what a parser would refuse is not sent.
pub(super) fn sendable_name(name: &str) -> Result<&[u8], ProtoError> {
    u32_len("a name", name.len(), STRING_BYTES_MAX)?;
    if name.contains('\0') {
        return Err(ProtoError::NotAString { what: "a name" });
    }
    Ok(name.as_bytes())
}

fn put_name(name: &str, data: &mut Vec<u8>) -> Result<(), ProtoError> {
    let bytes = sendable_name(name)?;
    data.put_u32(u32_len("a name", bytes.len(), STRING_BYTES_MAX)?);
    data.put_slice(bytes);
    Ok(())
}

pub(super) fn u32_len(what: &'static str, len: usize, max: usize) -> Result<u32, ProtoError> {
    let too_long = || ProtoError::TooLong { what, found: len as u64, max: max as u64 };
    if len > max { Err(too_long()) } else { u32::try_from(len).map_err(|_| too_long()) }
}
