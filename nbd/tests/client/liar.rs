//! A server that negotiates well, and then says what its script has it say.

use super::rig::pattern;
use anyhow::{Context, Result, bail};
use coppice_nbd::proto::{
    BlockSizes, CLIENT_HELLO_BYTES, Chunk, ClientOption, Command, ErrorCode, Extent, HandshakeFlags, Info,
    OPTION_HEADER_BYTES, OptionHeader, OptionReply, OptionReplyKind, ReplyTo, Request, ServerHello, Style,
    TransmissionFlags, encode_simple_reply,
};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

pub const SIZE: u64 = 1 << 20;
/// The number of its context.
pub const CONTEXT: u32 = 11;

/// A request, and when it came.
#[derive(Clone, Copy)]
pub struct Ask {
    pub request: Request,
    pub style: Style,
    /// From 0 on: of the server; of this connection.
    pub connection: usize,
    pub nth: usize,
}

pub enum Say {
    Truth,
    Bytes(Vec<u8>),
    /// One byte at a time, with pauses.
    Slowly(Vec<u8>, Duration),
    Nothing,
}

pub struct Script {
    /// The best that it offers.
    pub style: Style,
    /// By connection.
    pub size: fn(usize) -> u64,
    pub flags: TransmissionFlags,
    pub context: bool,
    pub blocks: Option<BlockSizes>,
    pub say: Box<dyn Fn(&Ask) -> Say + Send + Sync>,
    /// Instead of the greeting and all that follows.
    pub greeting: Option<Vec<u8>>,
    /// Instead of the answer to an option.
    pub option: fn(&ClientOption) -> Option<Vec<u8>>,
}

impl Script {
    pub fn new(style: Style, say: impl Fn(&Ask) -> Say + Send + Sync + 'static) -> Script {
        Script {
            style,
            size: |_| SIZE,
            flags: TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN,
            context: true,
            blocks: None,
            say: Box::new(say),
            greeting: None,
            option: |_| None,
        }
    }
}

pub struct Liar {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    script: Script,
    connections: AtomicUsize,
    open: Mutex<Vec<TcpStream>>,
    stopped: AtomicBool,
}

impl Liar {
    pub fn start(script: Script) -> Result<Liar> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let open = Mutex::default();
        let shared =
            Arc::new(Shared { script, connections: AtomicUsize::new(0), open, stopped: AtomicBool::new(false) });
        let accepting = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                if accepting.stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let (Ok(mut open), Ok(stream)) = (accepting.open.lock(), stream.try_clone()) {
                    open.push(stream);
                }
                let (shared, n) = (accepting.clone(), accepting.connections.fetch_add(1, Ordering::SeqCst));
                thread::spawn(move || drop(shared.serve(stream, n)));
            }
        });
        Ok(Liar { address, shared })
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        if let Ok(open) = self.shared.open.lock() {
            for stream in open.iter() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, connection: usize) -> Result<()> {
        stream.set_nodelay(true)?;
        if let Some(greeting) = &self.script.greeting {
            stream.write_all(greeting)?;
            // Whatever is said then, it does not listen.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            return Ok(());
        }
        let style = self.negotiate(&mut stream, connection)?;
        for nth in 0.. {
            let mut header = vec![0; style.request_header_bytes()];
            stream.read_exact(&mut header)?;
            let request = Request::parse(style, &header)?;
            if request.command == Command::DISC {
                return Ok(());
            }
            let ask = Ask { request, style, connection, nth };
            match (self.script.say)(&ask) {
                Say::Truth => stream.write_all(&truth(&ask))?,
                Say::Bytes(bytes) => stream.write_all(&bytes)?,
                Say::Nothing => {}
                Say::Slowly(bytes, pause) => {
                    for byte in bytes {
                        stream.write_all(&[byte])?;
                        thread::sleep(pause);
                    }
                }
            }
        }
        Ok(())
    }

    fn negotiate(&self, stream: &mut TcpStream, connection: usize) -> Result<Style> {
        let mut out = Vec::new();
        ServerHello { flags: HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES }.encode(&mut out);
        stream.write_all(&out)?;
        stream.read_exact(&mut [0; CLIENT_HELLO_BYTES])?;
        let mut style = Style::Simple;
        loop {
            let mut header = [0; OPTION_HEADER_BYTES];
            stream.read_exact(&mut header)?;
            let header = OptionHeader::parse(&header)?;
            let mut data = vec![0; header.data_len()?];
            stream.read_exact(&mut data)?;
            let option = ClientOption::parse(header.code, &data)?;
            if let Some(instead) = (self.script.option)(&option) {
                stream.write_all(&instead)?;
                continue;
            }
            let no = OptionReply::Error { kind: OptionReplyKind::ERR_UNSUP, message: String::new() };
            let mut go = false;
            let replies = match option {
                ClientOption::ExtendedHeaders if self.script.style == Style::Extended => {
                    style = Style::Extended;
                    vec![OptionReply::Ack]
                }
                ClientOption::StructuredReply if self.script.style != Style::Simple => {
                    style = Style::Structured;
                    vec![OptionReply::Ack]
                }
                ClientOption::SetMetaContext(_) if self.script.context => {
                    let context = OptionReply::MetaContext { id: CONTEXT, name: "base:allocation".into() };
                    vec![context, OptionReply::Ack]
                }
                ClientOption::Go(_) => {
                    go = true;
                    let size_bytes = (self.script.size)(connection);
                    let mut replies = vec![OptionReply::Info(Info::Export { size_bytes, flags: self.script.flags })];
                    replies.extend(self.script.blocks.map(|blocks| OptionReply::Info(Info::BlockSize(blocks))));
                    replies.push(OptionReply::Ack);
                    replies
                }
                ClientOption::Abort => bail!("aborted"),
                _ => vec![no],
            };
            let mut out = Vec::new();
            for reply in &replies {
                reply.encode(header.code, &mut out).context("a reply")?;
            }
            stream.write_all(&out)?;
            if go {
                return Ok(style);
            }
        }
    }
}

/// A chunk, on the wire.
pub fn chunk(ask: &Ask, chunk: Chunk, done: bool) -> Vec<u8> {
    let to = ReplyTo { style: ask.style, cookie: ask.request.cookie, offset: ask.request.offset };
    let mut out = Vec::new();
    chunk.encode(to, done, &mut out).expect("a chunk that can be written");
    if let Chunk::Data { data, .. } = chunk {
        out.extend_from_slice(&data);
    }
    out
}

/// The data from `off` on.
pub fn data(ask: &Ask, off: u64, len: u64, done: bool) -> Vec<u8> {
    chunk(ask, Chunk::Data { offset: off, data: pattern(off, len as u32).into() }, done)
}

/// Block status: everything is data.
pub fn status(ask: &Ask, extents: Vec<Extent>, done: bool) -> Vec<u8> {
    chunk(ask, Chunk::Status { context: CONTEXT, extents }, done)
}

/// What an honest server would say.
pub fn truth(ask: &Ask) -> Vec<u8> {
    let Request { offset, length, cookie, .. } = ask.request;
    match (ask.request.command, ask.style) {
        (Command::READ, Style::Simple) => {
            let mut out = Vec::new();
            encode_simple_reply(ErrorCode::OK, cookie, &mut out);
            out.extend(pattern(offset, length as u32));
            out
        }
        (Command::READ, _) => data(ask, offset, length, true),
        _ => status(ask, vec![Extent { length, flags: 0 }], true),
    }
}
