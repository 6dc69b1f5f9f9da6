//! The part of the FUSE kernel protocol (7.36) that a file system with one file needs: requests out of bytes, replies
//! into bytes. Pure; integers are in the machine's byte order, as the kernel is on the same machine.
//!
//! ```text
//! request = header 40 [arguments] [data]      reply = header 16 [arguments or data]
//! ```

/// Bytes of a request's header.
pub const IN_HEADER: usize = 40;
/// Bytes of a WRITE request before its data.
pub const WRITE_HEADER: usize = IN_HEADER + 40;
/// Bytes of a reply's header.
pub const OUT_HEADER: usize = 16;
/// Bytes of data in one READ or WRITE at most.
pub const MAX_IO: u32 = 1 << 20;
/// The name of the one file.
pub const FILE_NAME: &str = "volume";
/// Node of the root directory, by protocol.
pub const ROOT: u64 = 1;
/// Node of the one file.
pub const FILE: u64 = 2;

const MAJOR: u32 = 7;
const MINOR: u32 = 36;
/// Below this the replies have other sizes; kernels have been above it since 2013.
const MINOR_MIN: u32 = 23;

const ASYNC_READ: u32 = 1 << 0;
const BIG_WRITES: u32 = 1 << 5;
const ASYNC_DIO: u32 = 1 << 15;
const MAX_PAGES: u32 = 1 << 22;
const WANTED: u32 = ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES;

/// Asynchronous requests that the kernel has in flight at most; a loop device has a queue of 128.
const MAX_BACKGROUND: u16 = 128;

/// No page cache for the file: what another descriptor, or another shard, wrote is seen at once and nothing lies in
/// memory twice.
const OPEN_DIRECT_IO: u32 = 1 << 0;
/// No FLUSH at close: there is nothing to flush.
const OPEN_NOFLUSH: u32 = 1 << 5;
/// Writes do not exclude one another.
const OPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// How long names may be believed, seconds: for good.
const ENTRY_VALID: u64 = 365 * 86_400;

const SETATTR_SIZE: u32 = 1 << 3;
/// Mode, owner, group.
const SETATTR_REFUSED: u32 = 0b111;

pub const FALLOC_KEEP_SIZE: u32 = 1;
pub const FALLOC_PUNCH_HOLE: u32 = 2;
pub const FALLOC_ZERO_RANGE: u32 = 16;

/// Identifies a request and says what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
}

/// A request, without the data of a WRITE (bytes 80 and up).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Init {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
    },
    /// A name in the root: is it the file's?
    Lookup {
        known: bool,
    },
    /// One of those that must not be answered.
    Forget,
    GetAttr,
    SetAttr {
        refused: bool,
        size: Option<u64>,
    },
    Open,
    Read {
        off: u64,
        len: u32,
    },
    Write {
        off: u64,
        len: u32,
    },
    Fsync,
    Fallocate {
        off: u64,
        len: u64,
        mode: u32,
    },
    StatFs,
    ReadDir {
        from: u64,
        room: u32,
    },
    /// FLUSH, RELEASE, ACCESS, FSYNCDIR, RELEASEDIR, DESTROY: success without a body.
    Nothing,
    /// Anything else, INTERRUPT included: after one ENOSYS the kernel sends no more of them.
    Unknown,
}

/// Why bytes are no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not even a header: nobody to answer.
    NoHeader,
    /// The body does not fit the header's opcode.
    Body(Header),
}

/// Reads fields from bytes; outside of them there is `None`.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn u32(&self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.0.get(at..at.checked_add(4)?)?.try_into().ok()?))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.0.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }
}

/// Takes a request apart: `bytes` is one whole message of the kernel.
pub fn parse(bytes: &[u8]) -> Result<(Header, Request), Malformed> {
    let all = Bytes(bytes);
    let header = || {
        let len = all.u32(0)? as usize;
        let header = Header { opcode: all.u32(4)?, unique: all.u64(8)?, node: all.u64(16)? };
        (bytes.len() >= IN_HEADER).then_some((len, header))
    };
    let (len, header) = header().ok_or(Malformed::NoHeader)?;
    let body = bytes.get(IN_HEADER..).filter(|_| len == bytes.len()).ok_or(Malformed::Body(header))?;
    let request = parse_body(header, &Bytes(body)).ok_or(Malformed::Body(header))?;
    Ok((header, request))
}

fn parse_body(header: Header, body: &Bytes) -> Option<Request> {
    let request = match header.opcode {
        1 => {
            let name = body.0.strip_suffix(&[0])?;
            Request::Lookup { known: header.node == ROOT && name == FILE_NAME.as_bytes() }
        }
        2 | 42 => Request::Forget,
        3 => Request::GetAttr,
        4 => {
            let valid = body.u32(0)?;
            let size = if valid & SETATTR_SIZE != 0 { Some(body.u64(16)?) } else { None };
            Request::SetAttr { refused: valid & SETATTR_REFUSED != 0, size }
        }
        14 | 27 => Request::Open,
        15 => Request::Read { off: body.u64(8)?, len: body.u32(16)? },
        16 => {
            let (off, len) = (body.u64(8)?, body.u32(16)?);
            (body.0.len() == WRITE_HEADER - IN_HEADER + len as usize).then_some(Request::Write { off, len })?
        }
        17 => Request::StatFs,
        // FSYNC: with or without FDATASYNC, both mean everything here.
        20 => Request::Fsync,
        18 | 25 | 29 | 30 | 34 | 38 => Request::Nothing,
        26 => Request::Init {
            major: body.u32(0)?,
            minor: body.u32(4)?,
            max_readahead: body.u32(8)?,
            flags: body.u32(12)?,
        },
        28 => Request::ReadDir { from: body.u64(8)?, room: body.u32(16)? },
        43 => Request::Fallocate { off: body.u64(8)?, len: body.u64(16)?, mode: body.u32(24)? },
        _ => Request::Unknown,
    };
    Some(request)
}

/// A reply's header for `body` bytes after it; `errno` is 0 or positive.
pub fn out_header(unique: u64, errno: i32, body: usize) -> [u8; OUT_HEADER] {
    let mut out = Out::<OUT_HEADER>::new();
    out.u32((OUT_HEADER + body) as u32).u32((-errno) as u32).u64(unique);
    out.bytes
}

/// Fills an array of known size from the front; what is not written stays zero.
struct Out<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Out<N> {
    fn new() -> Self {
        Out { bytes: [0; N], at: 0 }
    }

    fn raw(&mut self, data: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + data.len()].copy_from_slice(data);
        self.at += data.len();
        self
    }

    fn u16(&mut self, v: u16) -> &mut Self {
        self.raw(&v.to_ne_bytes())
    }

    fn u32(&mut self, v: u32) -> &mut Self {
        self.raw(&v.to_ne_bytes())
    }

    fn u64(&mut self, v: u64) -> &mut Self {
        self.raw(&v.to_ne_bytes())
    }
}

/// The answer to INIT.
pub enum InitReply {
    Accept([u8; 64]),
    /// The kernel speaks a newer major version: it asks again with ours.
    AskAgain([u8; 64]),
    /// The kernel is older than anything that this serves.
    TooOld,
}

pub fn init_reply(major: u32, minor: u32, max_readahead: u32, flags: u32) -> InitReply {
    if major < MAJOR || (major == MAJOR && minor < MINOR_MIN) {
        return InitReply::TooOld;
    }
    let mut out = Out::<64>::new();
    out.u32(MAJOR).u32(MINOR.min(if major > MAJOR { MINOR } else { minor }));
    if major > MAJOR {
        return InitReply::AskAgain(out.bytes);
    }
    out.u32(max_readahead).u32(flags & WANTED);
    out.u16(MAX_BACKGROUND).u16(MAX_BACKGROUND / 4 * 3).u32(MAX_IO).u32(1);
    // max_pages, in pages of 4096; map alignment, flags2, stack depth: none.
    out.u16((MAX_IO / 4096) as u16);
    InitReply::Accept(out.bytes)
}

/// What GETATTR, LOOKUP and the like tell about a node.
#[derive(Clone, Copy)]
pub struct Attr {
    pub node: u64,
    /// Bytes; 0 for the root.
    pub size: u64,
    pub read_only: bool,
}

impl Attr {
    fn put<const N: usize>(&self, out: &mut Out<N>) {
        let (mode, links) = match (self.node, self.read_only) {
            (ROOT, _) => (libc::S_IFDIR | 0o700, 2),
            (_, false) => (libc::S_IFREG | 0o600, 1),
            (_, true) => (libc::S_IFREG | 0o400, 1),
        };
        out.u64(self.node).u64(self.size).u64(self.size / 512);
        // Times: none of them means anything here.
        out.u64(0).u64(0).u64(0).u32(0).u32(0).u32(0);
        // Mode, links, owner, group, device, preferred I/O size, flags.
        out.u32(mode).u32(links).u32(0).u32(0).u32(0).u32(4096).u32(0);
    }
}

/// The answer to GETATTR and SETATTR: valid for no time at all, so that a resize is seen at once.
pub fn attr_reply(attr: Attr) -> [u8; 104] {
    let mut out = Out::<104>::new();
    out.u64(0).u32(0).u32(0);
    attr.put(&mut out);
    out.bytes
}

/// The answer to LOOKUP.
pub fn entry_reply(attr: Attr) -> [u8; 128] {
    let mut out = Out::<128>::new();
    out.u64(attr.node).u64(0).u64(ENTRY_VALID).u64(0).u32(0).u32(0);
    attr.put(&mut out);
    out.bytes
}

/// The answer to OPEN and OPENDIR.
pub fn open_reply(node: u64) -> [u8; 16] {
    let flags = if node == FILE { OPEN_DIRECT_IO | OPEN_NOFLUSH | OPEN_PARALLEL_DIRECT_WRITES } else { 0 };
    let mut out = Out::<16>::new();
    out.u64(0).u32(flags);
    out.bytes
}

/// The answer to WRITE: all of it.
pub fn write_reply(len: u32) -> [u8; 8] {
    let mut out = Out::<8>::new();
    out.u32(len);
    out.bytes
}

/// The answer to STATFS. The loop driver takes `block_size` as its discard granularity.
pub fn statfs_reply(size: u64, block_size: u32) -> [u8; 80] {
    let mut out = Out::<80>::new();
    out.u64(size / u64::from(block_size.max(1))).u64(0).u64(0).u64(1).u64(0);
    out.u32(block_size).u32(255).u32(block_size);
    out.bytes
}

/// The entries of the root from number `from` that fit `room`: bytes and how many of them count.
pub fn readdir_reply(from: u64, room: u32) -> ([u8; 96], usize) {
    const ENTRIES: [(u64, &str, u32); 3] = [(ROOT, ".", 4), (ROOT, "..", 4), (FILE, FILE_NAME, 8)];
    let mut out = Out::<96>::new();
    for (number, (node, name, kind)) in (1u64..).zip(ENTRIES).skip(from.min(3) as usize) {
        if out.at + 32 > room as usize {
            break;
        }
        // Every name here is at most 8 bytes long, and is padded to 8.
        let mut padded = [0u8; 8];
        padded[..name.len()].copy_from_slice(name.as_bytes());
        out.u64(node).u64(number).u32(name.len() as u32).u32(kind).raw(&padded);
    }
    (out.bytes, out.at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((IN_HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend(opcode.to_ne_bytes());
        bytes.extend(0x1122u64.to_ne_bytes());
        bytes.extend(node.to_ne_bytes());
        bytes.extend([0u8; 16]);
        bytes.extend(body);
        bytes
    }

    fn fields(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn request(bytes: &[u8]) -> Request {
        parse(bytes).expect("well formed").1
    }

    #[test]
    fn requests_are_read_from_their_places() {
        let header = parse(&message(3, FILE, &[0; 16])).expect("well formed").0;
        assert_eq!(header, Header { opcode: 3, unique: 0x1122, node: FILE });
        assert_eq!(request(&message(1, ROOT, b"volume\0")), Request::Lookup { known: true });
        assert_eq!(request(&message(1, ROOT, b"volumes\0")), Request::Lookup { known: false });
        assert_eq!(request(&message(1, FILE, b"volume\0")), Request::Lookup { known: false });
        let read = fields(&[7, 8192, 4096, 0, 0]);
        assert_eq!(request(&message(15, FILE, &read)), Request::Read { off: 8192, len: 4096 });
        let mut write = fields(&[7, 512, 3, 0, 0]);
        write.extend(b"abc");
        assert_eq!(request(&message(16, FILE, &write)), Request::Write { off: 512, len: 3 });
        let fallocate = fields(&[7, 4096, 65536, 3]);
        let expected = Request::Fallocate { off: 4096, len: 65536, mode: FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE };
        assert_eq!(request(&message(43, FILE, &fallocate)), expected);
        assert_eq!(request(&message(4, FILE, &fields(&[8; 11]))), Request::SetAttr { refused: false, size: Some(8) });
        assert_eq!(request(&message(4, FILE, &fields(&[32; 11]))), Request::SetAttr { refused: false, size: None });
        assert_eq!(request(&message(4, FILE, &fields(&[1; 11]))), Request::SetAttr { refused: true, size: None });
        assert_eq!(request(&message(36, 0, &fields(&[5]))), Request::Unknown);
    }

    #[test]
    fn what_is_malformed_is_said_to_be() {
        assert_eq!(parse(&[]), Err(Malformed::NoHeader));
        assert_eq!(parse(&[0; 39]), Err(Malformed::NoHeader));
        let mut longer = message(3, FILE, &[0; 16]);
        longer.push(0);
        assert!(matches!(parse(&longer), Err(Malformed::Body(h)) if h.unique == 0x1122));
        let write = fields(&[7, 512, 3, 0, 0]);
        assert!(matches!(parse(&message(16, FILE, &write)), Err(Malformed::Body(_))), "data missing");
        let huge = fields(&[7, 512, u64::from(u32::MAX), 0, 0]);
        assert!(matches!(parse(&message(16, FILE, &huge)), Err(Malformed::Body(_))));
        assert!(matches!(parse(&message(1, ROOT, b"volume")), Err(Malformed::Body(_))), "name without end");
        // Every opcode with every short body: an answer or a refusal, never a panic.
        for opcode in 0..64 {
            for len in 0..96 {
                let _ = parse(&message(opcode, FILE, &vec![0xff; len]));
            }
        }
    }

    #[test]
    fn replies_have_the_bytes_of_the_protocol() {
        let header = out_header(0x0102, libc::EIO, 0);
        assert_eq!(header[..8], [16u32.to_ne_bytes(), (-5i32).to_ne_bytes()].concat());
        assert_eq!(header[8..], 0x0102u64.to_ne_bytes());

        let attr = attr_reply(Attr { node: FILE, size: 1 << 30, read_only: false });
        assert_eq!(attr[..16], [0; 16], "valid for no time");
        assert_eq!(Bytes(&attr).u64(16 + 8), Some(1 << 30), "size");
        assert_eq!(Bytes(&attr).u64(16 + 16), Some(1 << 21), "blocks of 512");
        assert_eq!(Bytes(&attr).u32(16 + 60), Some(0o100_600), "mode");
        assert_eq!(Bytes(&attr).u32(16 + 80), Some(4096), "I/O size");

        let entry = entry_reply(Attr { node: FILE, size: 4096, read_only: true });
        assert_eq!(Bytes(&entry).u64(0), Some(FILE));
        assert_eq!(Bytes(&entry).u64(40 + 8), Some(4096));
        assert_eq!(Bytes(&entry).u32(40 + 60), Some(0o100_400));

        let statfs = statfs_reply(1 << 20, 4096);
        assert_eq!((Bytes(&statfs).u64(0), Bytes(&statfs).u32(40)), (Some(256), Some(4096)));
        assert_eq!(Bytes(&open_reply(FILE)).u32(8), Some(0x61));
        assert_eq!(Bytes(&open_reply(ROOT)).u32(8), Some(0));
    }

    #[test]
    fn init_takes_what_is_offered() {
        let InitReply::Accept(out) = init_reply(7, 45, 131_072, u32::MAX) else { panic!("accepted") };
        let out = Bytes(&out);
        assert_eq!((out.u32(0), out.u32(4), out.u32(8)), (Some(7), Some(36), Some(131_072)));
        assert_eq!(out.u32(12), Some(0x0040_8021), "no writeback cache, nothing else that was not asked for");
        assert_eq!(out.u32(20), Some(1 << 20), "largest write");
        assert_eq!(out.u32(28), Some(256), "pages");
        let InitReply::Accept(out) = init_reply(7, 31, 0, ASYNC_DIO) else { panic!("accepted") };
        assert_eq!((Bytes(&out).u32(4), Bytes(&out).u32(12)), (Some(31), Some(ASYNC_DIO)));
        assert!(matches!(init_reply(8, 1, 0, 0), InitReply::AskAgain(_)));
        assert!(matches!(init_reply(7, 8, 0, 0), InitReply::TooOld));
    }

    #[test]
    fn the_directory_lists_one_file() {
        let (bytes, len) = readdir_reply(0, 4096);
        assert_eq!(len, 96);
        assert_eq!(&bytes[64 + 24..64 + 30], FILE_NAME.as_bytes());
        assert_eq!(readdir_reply(2, 4096).1, 32);
        assert_eq!(readdir_reply(3, 4096).1, 0);
        assert_eq!(readdir_reply(u64::MAX, 4096).1, 0);
        assert_eq!(readdir_reply(0, 40).1, 32, "what fits");
    }
}
