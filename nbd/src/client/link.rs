//! A connection in transmission: a task that sends what it is ordered to, and takes replies apart.
//!
//! What comes in is not believed until it is complete and fits (see `reply.rs`); the first thing that does not fit ends the
//! connection, since nobody knows where in the stream the next message begins.

use super::dial::{Dialed, Reading, Writing, goodbye};
use super::reply::{Asked, Assembly, Room, Violation};
use super::table::{Ended, Heard, Order};
use super::{Shared, lost};
use crate::proto::{
    CHUNK_DATA_PREFIX_BYTES, Chunk, ChunkKind, REPLY_HEADER_BYTES_MAX, ReplyHeader, Style, reply_header_len,
};
use bytes::BytesMut;
use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Replies are read through a buffer of this size; data that is larger goes past it.
const BUFFER_BYTES: usize = 16 << 10;
/// For saying goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_millis(250);

/// Runs a connection until it ends, and tells the table.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: u64,
    heard: Heard,
    dialed: Dialed,
    orders: mpsc::UnboundedReceiver<Order>,
) {
    let Dialed { peer, reading, writing } = dialed;
    let mut stop = shared.stop.subscribe();
    let stopped = async {
        let _ = stop.wait_for(|stop| *stop).await;
        sleep(CLOSE_TIMEOUT * 2).await;
    };
    let replies = Replies {
        shared: &shared,
        link: id,
        style: peer.style,
        reader: BufReader::with_capacity(BUFFER_BYTES, Noting { inner: reading, heard }),
        open: HashMap::new(),
    };
    let ended = tokio::select! {
        ended = replies.run() => ended,
        ended = write(writing, peer.style, orders) => ended,
        () = stopped => Ended::Wanted,
    };
    if ended != Ended::Wanted {
        tracing::debug!(export = shared.config.export, address = %peer.address, ?ended, "a connection has ended");
    }
    shared.with(|table| table.link_down(id, ended, Instant::now()));
}

/// For fuzzers: takes all of `stream` for replies, until it ends or breaks the protocol.
pub(super) fn replies_end(shared: &Shared, link: u64, style: Style, heard: Heard, stream: Vec<u8>) {
    let inner: Reading = Box::new(io::Cursor::new(stream));
    let reader = BufReader::with_capacity(BUFFER_BYTES, Noting { inner, heard });
    let replies = Replies { shared, link, style, reader, open: HashMap::new() };
    let mut replies = Box::pin(replies.run());
    // Memory is always ready.
    match replies.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
        Poll::Ready(ended) => shared.with(|table| table.link_down(link, ended, Instant::now())),
        Poll::Pending => panic!("a reply from memory is waited for"),
    }
}

/// Sends orders, as many at once as there are.
async fn write(mut writing: Writing, style: Style, mut orders: mpsc::UnboundedReceiver<Order>) -> Ended {
    let mut bytes = BytesMut::new();
    // No sender: the table has given the connection up.
    while let Some(order) = orders.recv().await {
        bytes.clear();
        let (mut next, mut close) = (Some(order), false);
        while let Some(order) = next {
            match order {
                Order::Ask(request) => {
                    if let Err(e) = request.encode(style, &mut bytes) {
                        return Ended::Lost(e.to_string());
                    }
                }
                Order::Close => close = true,
            }
            next = orders.try_recv().ok();
        }
        let sent = async {
            writing.write_all(&bytes).await?;
            writing.flush().await
        };
        if let Err(e) = sent.await {
            return Ended::Lost(lost(&e));
        }
        if close {
            let _ = timeout(CLOSE_TIMEOUT, goodbye(&mut writing, style)).await;
            break;
        }
    }
    Ended::Wanted
}

/// Notes when something is heard.
struct Noting {
    inner: Reading,
    heard: Heard,
}

impl AsyncRead for Noting {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.heard.note();
        }
        polled
    }
}

/// Why the replies have come to an end.
enum Stop {
    Io(io::Error),
    /// The request whose reply it was, if that is known.
    Broke(Option<u64>, String),
    Ended(Ended),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Stop::Io(e)
    }
}

struct Replies<'a> {
    shared: &'a Shared,
    link: u64,
    style: Style,
    reader: BufReader<Noting>,
    /// Replies of which not all has come.
    open: HashMap<u64, Assembly>,
}

impl Replies<'_> {
    async fn run(mut self) -> Ended {
        loop {
            match self.next().await {
                Ok(()) => {}
                Err(Stop::Io(e)) => return Ended::Lost(lost(&e)),
                Err(Stop::Ended(ended)) => return ended,
                Err(Stop::Broke(cookie, why)) => {
                    if let Some(cookie) = cookie {
                        self.shared.with(|table| table.violated(self.link, cookie, &why));
                    }
                    return Ended::Broke(why);
                }
            }
        }
    }

    /// One message.
    async fn next(&mut self) -> Result<(), Stop> {
        let header = self.header().await?;
        let cookie = header.cookie();
        let (asked, mut assembly) = self.question(cookie)?;
        let broke = |violation: Violation| Stop::Broke(Some(cookie), violation.0);
        match header {
            ReplyHeader::Simple { error, .. } if !error.is_ok() => {
                assembly.failed(error, String::new(), None).map_err(broke)?;
            }
            ReplyHeader::Simple { .. } => match &asked {
                Asked::Data(range) if self.style == Style::Simple => {
                    let (offset, len) = (range.start, assembly.data_max());
                    self.data(&mut assembly, offset, len).await?.map_err(broke)?;
                }
                _ => return Err(broke(Violation("a simple reply where data was asked for".into()))),
            },
            ReplyHeader::Chunk { kind, offset, .. } => {
                if let Some(offset) = offset
                    && offset != asked.range().start
                {
                    let asked = asked.range().start;
                    return Err(broke(Violation(format!("an answer for offset {offset}, {asked} was asked for"))));
                }
                let len = header.payload_len(assembly.data_max()).map_err(|e| broke(e.into()))?;
                if kind == ChunkKind::OFFSET_DATA && len > CHUNK_DATA_PREFIX_BYTES {
                    let offset = self.reader.read_u64().await?;
                    self.data(&mut assembly, offset, len - CHUNK_DATA_PREFIX_BYTES).await?.map_err(broke)?;
                } else {
                    // As it comes: what a peer says about a length costs no memory.
                    let mut payload = Vec::new();
                    (&mut self.reader).take(len as u64).read_to_end(&mut payload).await?;
                    if payload.len() < len {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                    let chunk = Chunk::parse(self.style, kind, payload.into()).map_err(|e| broke(e.into()))?;
                    take(&mut assembly, chunk, header.is_done()).map_err(broke)?;
                }
            }
        }
        if !header.is_done() {
            self.open.insert(cookie, assembly);
            return Ok(());
        }
        let outcome = assembly.finish().map_err(broke)?;
        match self.shared.with(|table| table.answered(self.link, cookie, outcome, Instant::now())) {
            Some(ended) => Err(Stop::Ended(ended)),
            None => Ok(()),
        }
    }

    async fn header(&mut self) -> Result<ReplyHeader, Stop> {
        let mut bytes = [0; REPLY_HEADER_BYTES_MAX];
        let (magic, _) = bytes.split_at_mut(4);
        self.reader.read_exact(magic).await?;
        let broke = |e: crate::proto::ProtoError| Stop::Broke(None, e.to_string());
        let [a, b, c, d, ..] = bytes;
        let len = reply_header_len(self.style, [a, b, c, d]).map_err(broke)?;
        let header = &mut bytes[..len.min(REPLY_HEADER_BYTES_MAX)];
        self.reader.read_exact(&mut header[4..]).await?;
        ReplyHeader::parse(self.style, header).map_err(broke)
    }

    /// What this is the reply to, and what has come of it.
    fn question(&mut self, cookie: u64) -> Result<(Asked, Assembly), Stop> {
        let Some(asked) = self.shared.with(|table| table.asked(self.link, cookie)) else {
            return Err(Stop::Broke(None, "an answer to something that was not asked".into()));
        };
        let assembly = self.open.remove(&cookie).unwrap_or_else(|| Assembly::new(asked.clone()));
        Ok((asked, assembly))
    }

    /// Reads data to where it belongs.
    async fn data(&mut self, assembly: &mut Assembly, offset: u64, len: usize) -> Result<Result<(), Violation>, Stop> {
        match assembly.data(offset, len) {
            Err(violation) => return Ok(Err(violation)),
            Ok(Room::Within(place)) => {
                self.reader.read_exact(place).await?;
            }
            Ok(Room::Append(buf)) => {
                let mut rest = (&mut self.reader).take(len as u64);
                while rest.limit() > 0 {
                    if rest.read_buf(buf).await? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
        Ok(Ok(()))
    }
}

/// Adds a chunk to what has come.
fn take(assembly: &mut Assembly, chunk: Chunk, done: bool) -> Result<(), Violation> {
    match chunk {
        Chunk::None if done => Ok(()),
        Chunk::None => Err(Violation("an empty chunk that is not the last".into())),
        Chunk::Hole { offset, length } => assembly.hole(offset, length.into()),
        Chunk::Status { context, extents } => assembly.status(context, &extents),
        Chunk::Error { error, message } => assembly.failed(error, message, None),
        Chunk::ErrorAt { error, message, offset } => assembly.failed(error, message, Some(offset)),
        // Taken to its place where it was read.
        Chunk::Data { .. } => Err(Violation("a chunk of data without data".into())),
    }
}
