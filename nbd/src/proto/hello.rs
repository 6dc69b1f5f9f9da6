//! The first words of both sides, and the answer to the oldest option.
//!
//! | who | bytes | field |
//! |---|---|---|
//! | server | 8 | `NBDMAGIC` |
//! | | 8 | `IHAVEOPT` |
//! | | 2 | [`HandshakeFlags`] |
//! | client | 4 | [`ClientFlags`] |

use super::error::ProtoError;
use super::values::{ClientFlags, HandshakeFlags, MAGIC_HELLO, MAGIC_OLD_STYLE, MAGIC_OPTION, TransmissionFlags};
use super::wire::Reader;
use bytes::BufMut;

pub const SERVER_HELLO_BYTES: usize = 18;
pub const CLIENT_HELLO_BYTES: usize = 4;

/// The server's first message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerHello {
    pub flags: HandshakeFlags,
}

impl ServerHello {
    pub fn parse(bytes: &[u8; SERVER_HELLO_BYTES]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("the server's greeting", bytes);
        let magic = reader.u64()?;
        if magic != MAGIC_HELLO {
            return Err(ProtoError::Magic { what: "the server's greeting", found: magic });
        }
        match reader.u64()? {
            MAGIC_OPTION => Ok(Self { flags: HandshakeFlags(reader.u16()?) }),
            MAGIC_OLD_STYLE => Err(ProtoError::OldStyle),
            found => Err(ProtoError::Magic { what: "the server's greeting, second word,", found }),
        }
    }

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u64(MAGIC_HELLO);
        out.put_u64(MAGIC_OPTION);
        out.put_u16(self.flags.0);
    }
}

/// The client's answer. A server drops a client that sets a flag which it does not know or did not offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientHello {
    pub flags: ClientFlags,
}

impl ClientHello {
    pub fn parse(bytes: &[u8; CLIENT_HELLO_BYTES]) -> Self {
        Self { flags: ClientFlags(u32::from_be_bytes(*bytes)) }
    }

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u32(self.flags.0);
    }
}

/// The answer to `EXPORT_NAME`, which has no header of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportNameReply {
    pub size_bytes: u64,
    pub flags: TransmissionFlags,
}

impl ExportNameReply {
    /// Without the padding.
    pub const BYTES: usize = 10;
    /// Zeroes that follow unless both sides said `NO_ZEROES`.
    pub const PADDING_BYTES: usize = 124;

    pub fn parse(bytes: &[u8; Self::BYTES]) -> Result<Self, ProtoError> {
        let mut reader = Reader::new("the answer to EXPORT_NAME", bytes);
        Ok(Self { size_bytes: reader.u64()?, flags: TransmissionFlags(reader.u16()?) })
    }

    pub fn encode(&self, no_zeroes: bool, out: &mut impl BufMut) {
        out.put_u64(self.size_bytes);
        out.put_u16(self.flags.0);
        if !no_zeroes {
            out.put_bytes(0, Self::PADDING_BYTES);
        }
    }
}
