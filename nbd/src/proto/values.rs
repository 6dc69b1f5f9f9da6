//! The numbers of the protocol: magic numbers, codes, flags, error values, and its limits of size.
//!
//! Codes are wrapped numbers rather than enums: a peer may send one that we do not know, and it has to survive until
//! someone answers it.

/// The port that IANA has assigned.
pub const DEFAULT_PORT: u16 = 10809;

/// Longest string in any message: names, queries, messages of errors.
pub const STRING_BYTES_MAX: usize = 4096;

/// Largest payload of a read or write with which a server counts that advertised no limit.
pub const PAYLOAD_DEFAULT_BYTES_MAX: u32 = 32 << 20;

pub(super) const MAGIC_HELLO: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
pub(super) const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
pub(super) const MAGIC_OLD_STYLE: u64 = 0x0000_4202_8186_1253;
pub(super) const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
pub(super) const MAGIC_REQUEST: u32 = 0x2560_9513;
pub(super) const MAGIC_REQUEST_EXTENDED: u32 = 0x21e4_1c71;
pub(super) const MAGIC_REPLY_SIMPLE: u32 = 0x6744_6698;
pub(super) const MAGIC_REPLY_STRUCTURED: u32 = 0x668e_33ef;
pub(super) const MAGIC_REPLY_EXTENDED: u32 = 0x6e8a_278c;

/// Bit of `base:allocation`: nothing is allocated for this extent.
pub const STATE_HOLE: u64 = 1 << 0;
/// Bit of `base:allocation`: this extent reads as zeroes.
pub const STATE_ZERO: u64 = 1 << 1;

/// Which headers the two sides have agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Style {
    /// Compact requests, one simple reply each.
    Simple,
    /// Compact requests; replies in chunks, except that those without data may be simple.
    Structured,
    /// Extended requests, and nothing but extended replies: 64-bit lengths everywhere.
    Extended,
}

macro_rules! code {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$each:meta])* $value:ident = $number:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name(pub $int);

        impl $name {
            $($(#[$each])* pub const $value: Self = Self($number);)*

            /// The protocol's name of it, if it has one.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$value => Some(stringify!($value)),)*
                    _ => None,
                }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, concat!(stringify!($name), "({:#x})"), self.0),
                }
            }
        }
    };
}

macro_rules! flags {
    ($(#[$doc:meta])* $name:ident($int:ty) { $($(#[$each:meta])* $value:ident = $bit:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub $int);

        impl $name {
            pub const NONE: Self = Self(0);
            $($(#[$each])* pub const $value: Self = Self(1 << $bit);)*
            /// All flags that the protocol names.
            pub const KNOWN: Self = Self($((1 << $bit) |)* 0);

            /// Whether all of `other` are set.
            pub const fn contains(self, other: Self) -> bool {
                self.0 & other.0 == other.0
            }

            /// Whether no flag outside of `allowed` is set.
            pub const fn within(self, allowed: Self) -> bool {
                self.0 & !allowed.0 == 0
            }

            /// These and `other`, if `wanted`.
            #[must_use]
            pub const fn with(self, other: Self, wanted: bool) -> Self {
                if wanted { Self(self.0 | other.0) } else { self }
            }
        }

        impl std::ops::BitOr for $name {
            type Output = Self;
            fn bitor(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let mut list = f.debug_set();
                $(if self.contains(Self::$value) { list.entry(&format_args!(stringify!($value))); })*
                let unknown = self.0 & !Self::KNOWN.0;
                if unknown != 0 {
                    list.entry(&format_args!("{unknown:#x}"));
                }
                list.finish()
            }
        }
    };
}

flags! {
    /// What the server says first.
    HandshakeFlags(u16) {
        FIXED_NEWSTYLE = 0,
        NO_ZEROES = 1,
    }
}

flags! {
    /// What the client answers to [`HandshakeFlags`].
    ClientFlags(u32) {
        FIXED_NEWSTYLE = 0,
        NO_ZEROES = 1,
    }
}

flags! {
    /// What an export can do.
    TransmissionFlags(u16) {
        /// Always set.
        HAS_FLAGS = 0,
        READ_ONLY = 1,
        SEND_FLUSH = 2,
        SEND_FUA = 3,
        ROTATIONAL = 4,
        SEND_TRIM = 5,
        SEND_WRITE_ZEROES = 6,
        /// Reads understand [`CommandFlags::DF`]; only with structured or extended replies.
        SEND_DF = 7,
        /// What one connection wrote and flushed, all others see.
        CAN_MULTI_CONN = 8,
        SEND_RESIZE = 9,
        SEND_CACHE = 10,
        SEND_FAST_ZERO = 11,
        /// Block status requests may name contexts; only with extended headers.
        BLOCK_STATUS_PAYLOAD = 12,
    }
}

flags! {
    /// Flags of a request.
    CommandFlags(u16) {
        /// Durable before it is answered.
        FUA = 0,
        /// Write zeroes without making a hole.
        NO_HOLE = 1,
        /// One chunk of content at most.
        DF = 2,
        /// One extent per context, not longer than asked.
        REQ_ONE = 3,
        /// Write zeroes only if that is faster than writing.
        FAST_ZERO = 4,
        /// The length is that of a payload; only with extended headers.
        PAYLOAD_LEN = 5,
    }
}

flags! {
    /// Flags of a chunk.
    ReplyFlags(u16) {
        /// The last of its request.
        DONE = 0,
    }
}

code! {
    /// What a client asks for while it negotiates.
    OptionCode(u32) {
        EXPORT_NAME = 1,
        ABORT = 2,
        LIST = 3,
        STARTTLS = 5,
        INFO = 6,
        GO = 7,
        STRUCTURED_REPLY = 8,
        LIST_META_CONTEXT = 9,
        SET_META_CONTEXT = 10,
        EXTENDED_HEADERS = 11,
    }
}

code! {
    /// What a server answers to an option. Bit 31 says that it is an error.
    OptionReplyKind(u32) {
        ACK = 1,
        SERVER = 2,
        INFO = 3,
        META_CONTEXT = 4,
        ERR_UNSUP = 0x8000_0001,
        ERR_POLICY = 0x8000_0002,
        ERR_INVALID = 0x8000_0003,
        ERR_PLATFORM = 0x8000_0004,
        ERR_TLS_REQD = 0x8000_0005,
        ERR_UNKNOWN = 0x8000_0006,
        ERR_SHUTDOWN = 0x8000_0007,
        ERR_BLOCK_SIZE_REQD = 0x8000_0008,
        ERR_TOO_BIG = 0x8000_0009,
        ERR_EXT_HEADER_REQD = 0x8000_000a,
    }
}

impl OptionReplyKind {
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 31) != 0
    }
}

code! {
    /// Kinds of information about an export.
    InfoKind(u16) {
        EXPORT = 0,
        NAME = 1,
        DESCRIPTION = 2,
        BLOCK_SIZE = 3,
    }
}

code! {
    /// What a request asks for.
    Command(u16) {
        READ = 0,
        WRITE = 1,
        DISC = 2,
        FLUSH = 3,
        TRIM = 4,
        CACHE = 5,
        WRITE_ZEROES = 6,
        BLOCK_STATUS = 7,
        RESIZE = 8,
    }
}

code! {
    /// Kinds of chunks of a structured or extended reply. Bit 15 says that it is an error.
    ChunkKind(u16) {
        NONE = 0,
        OFFSET_DATA = 1,
        OFFSET_HOLE = 2,
        BLOCK_STATUS = 5,
        BLOCK_STATUS_EXT = 6,
        ERROR = 0x8001,
        ERROR_OFFSET = 0x8002,
    }
}

impl ChunkKind {
    pub const fn is_error(self) -> bool {
        self.0 & (1 << 15) != 0
    }
}

code! {
    /// The error value of a reply; 0 is success.
    ErrorCode(u32) {
        OK = 0,
        EPERM = 1,
        EIO = 5,
        ENOMEM = 12,
        EINVAL = 22,
        ENOSPC = 28,
        EOVERFLOW = 75,
        ENOTSUP = 95,
        ESHUTDOWN = 108,
    }
}

impl ErrorCode {
    /// The value for an `errno` of Linux. What the protocol has no value for is an I/O error; 0 is one, too, since
    /// whoever has an error to report means one.
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            1 | 13 | 30 => Self::EPERM,    // EPERM, EACCES, EROFS
            12 => Self::ENOMEM,            // ENOMEM
            22 | 33 | 34 => Self::EINVAL,  // EINVAL, EDOM, ERANGE
            27 | 28 | 122 => Self::ENOSPC, // EFBIG, ENOSPC, EDQUOT
            75 => Self::EOVERFLOW,         // EOVERFLOW
            95 => Self::ENOTSUP,           // EOPNOTSUPP
            108 => Self::ESHUTDOWN,        // ESHUTDOWN
            _ => Self::EIO,
        }
    }

    /// The `errno` of Linux for this value; one that the protocol does not name counts as `EINVAL`.
    pub const fn errno(self) -> i32 {
        match self {
            Self::OK => 0,
            Self::EPERM => 1,
            Self::EIO => 5,
            Self::ENOMEM => 12,
            Self::ENOSPC => 28,
            Self::EOVERFLOW => 75,
            Self::ENOTSUP => 95,
            Self::ESHUTDOWN => 108,
            _ => 22,
        }
    }

    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }
}
