//! One shard's part in serving a FUSE file system: tasks that read a request, ask the volume, and answer.
//!
//! ```text
//!   buffer of a request:  │ … │ header 40 │ WRITE arguments 40 │ data, from byte 4096 on: aligned for direct I/O │
//!   buffer of a reply:    │ …                    │ header 16   │ the same data                                   │
//! ```
//!
//! Data is never moved inside the process: the kernel's copy lands where the device takes it from, and the device puts
//! what it read where the kernel's copy starts. Serving a READ or WRITE allocates nothing.
//!
//! *Memory.* Each read of `/dev/fuse` must offer room for the largest write, so buffers are 1 MiB and a page, but sparse:
//! small requests touch two pages. Idle buffers are taken last in, first out, those that large requests have touched on
//! top. No more than [`LARGE_MAX`] large requests are at work at once, and no more than that many touched buffers are
//! kept: an export holds at most about 17 MiB per shard, and a few hundred KiB if it never sees a large request.
//!
//! *Order.* Requests in flight are independent tasks. A FLUSH covers what was answered before it, which is the kernel's
//! rule too.

use super::proto::{self, Attr, Header, InitReply, Malformed, Request};
use crate::error::{Error, Result, err};
use crate::export::Volume;
use crate::shard::Shard;
use crate::shard::op::{IoOp, Target};
use crate::sys::buf::{Buf, BufSlice};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// Requests that one shard serves at once. The kernel keeps the rest: a loop device sends up to 128.
const TASKS: usize = 64;
/// Reads of `/dev/fuse` that wait at once. Each request wakes every waiting read, which costs at low depth; with a single
/// one, a turn of the loop takes only one request. Measured: 2 takes a tenth less CPU per request than 1 at depth 32 and
/// little more at depth 1; 4 and more gain nothing.
const READERS: usize = 2;
/// From this many bytes of data on a request counts as large.
const LARGE_FROM: usize = 64 << 10;
/// Large requests at work at once.
const LARGE_MAX: usize = 16;
/// Where data begins in a buffer.
const DATA: usize = 4096;

/// What all tasks of a shard that serve one file system share.
struct Server<V> {
    shard: Shard,
    dev: Target,
    volume: V,
    read_only: bool,
    /// No request will come any more.
    closed: Cell<bool>,
    readers: Cell<usize>,
    large: Cell<usize>,
    waiting: RefCell<Vec<(usize, Waker)>>,
    idle: RefCell<VecDeque<Frame>>,
    /// Last, so that whoever sees the other end close knows that volume and descriptor are gone.
    _ended: mpsc::Sender<()>,
}

/// A buffer, and whether a large request has touched it.
struct Frame {
    buf: Buf,
    touched: bool,
}

/// A request that was read, with the buffer that holds it.
struct Arrived {
    frame: Frame,
    header: Header,
    request: Request,
    large: bool,
}

/// Starts serving on this shard, until the file system is unmounted or its connection aborted. When everything here has
/// ended, `ended` is dropped.
pub fn serve<V: Volume>(shard: &Shard, dev: Target, volume: V, read_only: bool, ended: mpsc::Sender<()>) {
    let server = Rc::new(Server {
        shard: shard.clone(),
        dev,
        volume,
        read_only,
        closed: Cell::new(false),
        readers: Cell::new(0),
        large: Cell::new(0),
        waiting: RefCell::new(Vec::with_capacity(TASKS)),
        idle: RefCell::new(VecDeque::with_capacity(TASKS)),
        _ended: ended,
    });
    for me in 0..TASKS {
        let server = server.clone();
        shard.spawn(async move {
            while let Some(arrived) = server.next(me).await {
                let Arrived { frame, header, request, large } = arrived;
                server.answer(&frame.buf, header, request).await;
                server.put_back(frame, large);
            }
        });
    }
}

impl<V: Volume> Server<V> {
    /// Waits for this task's turn to read, and reads one request. `None` when there will be no more.
    async fn next(&self, me: usize) -> Option<Arrived> {
        self.turn(me).await?;
        let mut frame = self.take();
        loop {
            let buf = frame.buf.slice(DATA - proto::WRITE_HEADER, proto::WRITE_HEADER + proto::MAX_IO as usize);
            let got = self.shard.io(IoOp::ReadStream { target: self.dev.clone(), buf: buf.clone() }).await;
            let bytes = match got {
                1.. => got as usize,
                // The connection is gone (unmounted, aborted).
                _ if matches!(-got, libc::ENODEV | libc::ECONNABORTED | libc::EBADF) => {
                    self.close();
                    return None;
                }
                // Another shard was faster, or the asker gave up while its request was being read.
                _ if matches!(-got, libc::EAGAIN | libc::EINTR | libc::ENOENT) => continue,
                _ => {
                    tracing::error!(errno = -got, "cannot read requests from /dev/fuse");
                    self.shard.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            match buf.slice(0, bytes).with(proto::parse) {
                Ok((header, request)) => {
                    let data = match request {
                        Request::Read { len, .. } | Request::Write { len, .. } => len as usize,
                        _ => 0,
                    };
                    let large = data >= LARGE_FROM;
                    frame.touched |= large;
                    self.large.set(self.large.get() + usize::from(large));
                    self.end_turn();
                    return Some(Arrived { frame, header, request, large });
                }
                Err(Malformed::Body(header)) => {
                    tracing::warn!(?header, bytes, "malformed FUSE request");
                    frame = self.reply_error(frame, header, libc::EIO).await;
                }
                Err(Malformed::NoHeader) => tracing::warn!(bytes, "a FUSE message without a header"),
            }
        }
    }

    async fn turn(&self, me: usize) -> Option<()> {
        std::future::poll_fn(|cx| {
            if self.closed.get() {
                return Poll::Ready(None);
            }
            let mut waiting = self.waiting.borrow_mut();
            waiting.retain(|(who, _)| *who != me);
            if self.readers.get() < READERS && self.large.get() < LARGE_MAX {
                self.readers.set(self.readers.get() + 1);
                return Poll::Ready(Some(()));
            }
            waiting.push((me, cx.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn end_turn(&self) {
        self.readers.set(self.readers.get() - 1);
        self.wake_next();
    }

    fn wake_next(&self) {
        if let Some((_, waker)) = self.waiting.borrow_mut().pop() {
            waker.wake();
        }
    }

    fn close(&self) {
        self.closed.set(true);
        for (_, waker) in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
        self.idle.borrow_mut().clear();
    }

    fn take(&self) -> Frame {
        let idle = self.idle.borrow_mut().pop_back();
        idle.unwrap_or_else(|| Frame { buf: Buf::sparse(DATA + proto::MAX_IO as usize), touched: false })
    }

    fn put_back(&self, frame: Frame, was_large: bool) {
        if !self.closed.get() {
            let mut idle = self.idle.borrow_mut();
            // The touched ones are at the back, so the count ends where they end.
            let touched = idle.iter().rev().take_while(|f| f.touched).count();
            match frame.touched {
                false => idle.push_front(frame),
                true if touched < LARGE_MAX => idle.push_back(frame),
                true => drop(frame),
            }
        }
        if was_large {
            self.large.set(self.large.get() - 1);
            self.wake_next();
        }
    }

    /// Does what a request asks and replies.
    async fn answer(&self, buf: &Buf, header: Header, request: Request) {
        let result: Result<usize> = match request {
            Request::Read { off, len } => self.read(header, buf, off, len).await,
            Request::Write { off, len } => {
                self.write(header, buf, off, len).await.map(|()| put(buf, &proto::write_reply(len)))
            }
            Request::Fsync => self.fsync(header).await.map(|()| 0),
            Request::Fallocate { off, len, mode } => self.fallocate(header, off, len, mode).await.map(|()| 0),
            Request::Forget => return,
            Request::Init { major, minor, max_readahead, flags } => {
                match proto::init_reply(major, minor, max_readahead, flags) {
                    InitReply::Accept(body) | InitReply::AskAgain(body) => Ok(put(buf, &body)),
                    InitReply::TooOld => Err(err!(Io, "the kernel's FUSE {major}.{minor} is too old")),
                }
            }
            Request::Lookup { known: true } => Ok(put(buf, &proto::entry_reply(self.attr(proto::FILE)))),
            Request::Lookup { known: false } => Err(err!(NotFound, "no such file")),
            // Only the size that it has can be set: see `FuseExport::refresh_size`.
            Request::SetAttr { refused, size } if refused || size.is_some_and(|size| size != self.volume.size()) => {
                return self.reply_errno(buf, header, libc::EPERM).await;
            }
            Request::GetAttr | Request::SetAttr { .. } => {
                self.known(header).map(|()| put(buf, &proto::attr_reply(self.attr(header.node))))
            }
            Request::Open => self.known(header).map(|()| put(buf, &proto::open_reply(header.node))),
            Request::StatFs => {
                Ok(put(buf, &proto::statfs_reply(self.volume.size(), self.volume.block_size().max(4096))))
            }
            Request::ReadDir { from, room } => {
                let (body, len) = proto::readdir_reply(from, room);
                Ok(put(buf, &body[..len]))
            }
            Request::Nothing => Ok(0),
            Request::Unknown => return self.reply_errno(buf, header, libc::ENOSYS).await,
        };
        match result {
            Ok(body) => self.send(buf, header, 0, body).await,
            Err(e) => {
                tracing::debug!(?header, ?request, error = %e, "a FUSE request failed");
                self.reply_errno(buf, header, e.errno()).await;
            }
        }
    }

    /// Reads what lies before the end; the reply's data is in its place then.
    async fn read(&self, header: Header, buf: &Buf, off: u64, len: u32) -> Result<usize> {
        self.file(header)?;
        let len = u64::from(len).min(self.volume.size().saturating_sub(off));
        if len > 0 {
            self.data(buf, off, len)?;
            self.volume.read(off, buf.slice(DATA, len as usize)).await?;
        }
        Ok(len as usize)
    }

    async fn write(&self, header: Header, buf: &Buf, off: u64, len: u32) -> Result<()> {
        self.writable(header)?;
        self.inside(off, u64::from(len))?;
        let data = self.data(buf, off, u64::from(len))?;
        self.volume.write(off, data, false).await
    }

    async fn fsync(&self, header: Header) -> Result<()> {
        self.file(header)?;
        self.volume.flush().await
    }

    async fn fallocate(&self, header: Header, off: u64, len: u64, mode: u32) -> Result<()> {
        self.writable(header)?;
        self.inside(off, len)?;
        self.aligned(off, len)?;
        match mode & !proto::FALLOC_KEEP_SIZE {
            proto::FALLOC_PUNCH_HOLE => self.volume.discard(off, len).await,
            proto::FALLOC_ZERO_RANGE => self.volume.write_zeroes(off, len).await,
            _ => Err(err!(Unsupported, "fallocate mode {mode:#x}")),
        }
    }

    fn attr(&self, node: u64) -> Attr {
        let read_only = self.read_only || self.volume.read_only();
        Attr { node, size: if node == proto::FILE { self.volume.size() } else { 0 }, read_only }
    }

    fn known(&self, header: Header) -> Result<()> {
        match header.node {
            proto::ROOT | proto::FILE => Ok(()),
            node => Err(err!(NotFound, "no node {node}")),
        }
    }

    fn file(&self, header: Header) -> Result<()> {
        if header.node == proto::FILE { Ok(()) } else { Err(err!(Invalid, "node {} is not the file", header.node)) }
    }

    fn writable(&self, header: Header) -> Result<()> {
        self.file(header)?;
        if self.read_only || self.volume.read_only() { Err(err!(ReadOnly, "the export is read-only")) } else { Ok(()) }
    }

    fn inside(&self, off: u64, len: u64) -> Result<()> {
        match off.checked_add(len) {
            Some(end) if end <= self.volume.size() => Ok(()),
            _ => Err(err!(OutOfRange, "bytes {off} + {len} are beyond the end at {}", self.volume.size())),
        }
    }

    /// The loop device has the volume's block size, so only somebody who opens the file itself can ask for less.
    fn aligned(&self, off: u64, len: u64) -> Result<()> {
        let block = u64::from(self.volume.block_size().max(1));
        if len == 0 || !off.is_multiple_of(block) || !len.is_multiple_of(block) {
            return Err(err!(Invalid, "bytes {off} + {len} are not whole blocks of {block}"));
        }
        Ok(())
    }

    fn data(&self, buf: &Buf, off: u64, len: u64) -> Result<BufSlice> {
        self.aligned(off, len)?;
        if len > u64::from(proto::MAX_IO) {
            return Err(err!(Invalid, "{len} bytes in one request"));
        }
        Ok(buf.slice(DATA, len as usize))
    }

    async fn reply_error(&self, frame: Frame, header: Header, errno: i32) -> Frame {
        self.reply_errno(&frame.buf, header, errno).await;
        frame
    }

    async fn reply_errno(&self, buf: &Buf, header: Header, errno: i32) {
        self.send(buf, header, errno, 0).await;
    }

    /// Sends a reply whose body, if any, is in its place.
    async fn send(&self, buf: &Buf, header: Header, errno: i32, body: usize) {
        let reply = buf.slice(DATA - proto::OUT_HEADER, proto::OUT_HEADER + body);
        reply.copy_in(0, &proto::out_header(header.unique, errno, body));
        let sent = self.shard.io(IoOp::WriteStream { target: self.dev.clone(), buf: reply }).await;
        // ENOENT: the asker was killed or the connection aborted; nobody waits for this reply.
        if sent < 0 && !matches!(-sent, libc::ENOENT | libc::ENODEV | libc::ECONNABORTED) {
            let e = Error::from_errno(-sent, "cannot answer a FUSE request");
            tracing::error!(?header, errno, body, error = %e, "the asker will wait for good");
        }
    }
}

/// Puts a reply's body in its place.
fn put(buf: &Buf, body: &[u8]) -> usize {
    buf.slice(DATA, body.len()).copy_in(0, body);
    body.len()
}
