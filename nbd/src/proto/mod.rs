//! The NBD protocol without I/O: bytes in, values out, and back. Server and client share it.
//!
//! Facts are those of the protocol's public description (`doc/proto.md` of NetworkBlockDevice/nbd) and of its extension for
//! extended headers. All integers are big-endian.
//!
//! How it is used: a header has a fixed size and is parsed first; it says how many bytes follow, and says so only below a
//! named limit, so that a peer cannot make anyone allocate; then the body is parsed. No parser panics, none allocates by a
//! length that it has not compared with what is there.
//!
//! ```text
//! negotiation   S ServerHello            C ClientHello
//!               C OptionHeader + ClientOption        S OptionReplyHeader + OptionReply, … until one is final
//!               (GO or EXPORT_NAME: transmission begins; STARTTLS: TLS, and all that was negotiated is forgotten)
//! transmission  C Request [+ payload]                S ReplyHeader [+ data | + Chunk], … until one is done
//! ```

mod chunk;
mod error;
pub mod fuzzing;
mod hello;
mod option;
mod option_reply;
mod request;
mod values;
mod wire;

#[cfg(test)]
mod tests;

pub use chunk::{
    CHUNK_DATA_PREFIX_BYTES, Chunk, ERROR_TAIL_BYTES_MAX, Extent, REPLY_HEADER_BYTES_MAX, ReplyHeader, ReplyTo,
    STATUS_EXTENTS_MAX, encode_simple_reply, reply_header_len,
};
pub use error::ProtoError;
pub use hello::{CLIENT_HELLO_BYTES, ClientHello, ExportNameReply, SERVER_HELLO_BYTES, ServerHello};
pub use option::{
    ClientOption, INFO_REQUESTS_MAX, InfoQuery, MetaQuery, OPTION_DATA_BYTES_MAX, OPTION_HEADER_BYTES, OptionHeader,
    QUERIES_MAX,
};
pub use option_reply::{
    BLOCK_SIZE_MIN_MAX, BlockSizes, Info, OPTION_REPLY_DATA_BYTES_MAX, OPTION_REPLY_HEADER_BYTES, OptionReply,
    OptionReplyHeader,
};
pub use request::{REQUEST_HEADER_BYTES_MAX, Request, STATUS_CONTEXTS_MAX, StatusPayload};
pub use values::{
    ChunkKind, ClientFlags, Command, CommandFlags, DEFAULT_PORT, ErrorCode, HandshakeFlags, InfoKind, OptionCode,
    OptionReplyKind, PAYLOAD_DEFAULT_BYTES_MAX, ReplyFlags, STATE_HOLE, STATE_ZERO, STRING_BYTES_MAX, Style,
    TransmissionFlags,
};
