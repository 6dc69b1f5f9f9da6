//! The io_uring of one shard.
//!
//! `start` pushes an entry; the operation itself stays with the shard until `wait` has reported its key, which is what
//! makes the pointers in the entry good.

use crate::error::{Error, Result};
use crate::shard::op::IoOp;
use crate::shard::{Backend, Notifier};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Submission entries; the completion queue holds four times as many.
const ENTRIES: u32 = 1024;
/// `enter` also reaps.
const IORING_ENTER_GETEVENTS: u32 = 1;
/// `user_data` of the read that watches the eventfd.
const WAKE_KEY: u64 = u64::MAX;

/// One thread's ring, with an eventfd by which other threads end its sleep.
pub struct Ring {
    ring: RefCell<IoUring>,
    wake: Arc<EventFd>,
    wake_armed: Cell<bool>,
    /// What the armed read fills. Boxed: its address must not move while the kernel holds it.
    wake_count: Box<Cell<u64>>,
    born: Instant,
}

/// Ends a ring's sleep from any thread.
pub struct EventFd(OwnedFd);

impl Notifier for EventFd {
    fn notify(&self) {
        // A full counter means that a wake is pending already; nothing else can fail.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }
}

impl Ring {
    /// Must be called on the thread that will use the ring.
    pub fn new() -> Result<Ring> {
        let fast = IoUring::builder()
            .setup_cqsize(ENTRIES * 4)
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .build(ENTRIES);
        let ring = fast.or_else(|_| IoUring::builder().setup_cqsize(ENTRIES * 4).build(ENTRIES)).map_err(|e| {
            let hint = "io_uring is needed: kernel.io_uring_disabled must be 0, and a seccomp profile must allow it";
            Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), format_args!("cannot set up io_uring ({hint})"))
        })?;
        let fd = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|e| Error::from_errno(e.raw_os_error(), "cannot create an eventfd"))?;
        Ok(Ring {
            ring: RefCell::new(ring),
            wake: Arc::new(EventFd(fd)),
            wake_armed: Cell::new(false),
            wake_count: Box::new(Cell::new(0)),
            born: Instant::now(),
        })
    }

    pub fn notifier(&self) -> Arc<dyn Notifier> {
        self.wake.clone()
    }

    fn push(&self, entry: squeue::Entry) {
        let mut ring = self.ring.borrow_mut();
        loop {
            // SAFETY: the caller's operation owns buffer and file until the completion of this entry has been seen.
            if unsafe { ring.submission().push(&entry) }.is_ok() {
                return;
            }
            // The queue is full: hand it to the kernel. EBUSY/EAGAIN/EINTR resolve by asking again.
            let _ = ring.submit();
        }
    }
}

impl Backend for Ring {
    fn start(&self, key: u32, op: &IoOp) {
        let entry = match op {
            IoOp::Read { target, off, buf } => {
                opcode::Read::new(types::Fd(target.raw_fd()), buf.ptr(), buf.len() as u32).offset(*off).build()
            }
            IoOp::Write { target, off, buf, durable } => {
                opcode::Write::new(types::Fd(target.raw_fd()), buf.ptr(), buf.len() as u32)
                    .offset(*off)
                    .rw_flags(if *durable { libc::RWF_DSYNC } else { 0 })
                    .build()
            }
            IoOp::Flush { target } => {
                opcode::Fsync::new(types::Fd(target.raw_fd())).flags(types::FsyncFlags::DATASYNC).build()
            }
            IoOp::ZeroRange { target, off, len } => opcode::Fallocate::new(types::Fd(target.raw_fd()), *len)
                .offset(*off)
                .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            IoOp::Punch { target, off, len } => opcode::Fallocate::new(types::Fd(target.raw_fd()), *len)
                .offset(*off)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            IoOp::ReadStream { target, buf } => {
                opcode::Read::new(types::Fd(target.raw_fd()), buf.ptr(), buf.len() as u32).offset(u64::MAX).build()
            }
            IoOp::WriteStream { target, buf } => {
                opcode::Write::new(types::Fd(target.raw_fd()), buf.ptr(), buf.len() as u32).offset(u64::MAX).build()
            }
        };
        self.push(entry.user_data(u64::from(key)));
    }

    fn wait(&self, timeout: Option<Duration>, done: &mut Vec<(u32, i32)>) {
        let blocking = timeout.is_none_or(|t| !t.is_zero());
        if blocking && !self.wake_armed.get() {
            let count = self.wake_count.as_ptr().cast::<u8>();
            self.push(opcode::Read::new(types::Fd(self.wake.0.as_raw_fd()), count, 8).build().user_data(WAKE_KEY));
            self.wake_armed.set(true);
        }
        let mut ring = self.ring.borrow_mut();
        // Errors here (EINTR, ETIME, EBUSY) all mean: look at what has completed, and come again.
        let _ = if !blocking {
            let waiting = ring.submission().len() as u32;
            // SAFETY: no argument is passed. Asking for events makes the kernel run the completions that it has put off
            // for this thread (DEFER_TASKRUN); a plain submit would leave them until the next sleep.
            unsafe { ring.submitter().enter::<libc::sigset_t>(waiting, 0, IORING_ENTER_GETEVENTS, None) }
        } else if let Some(limit) = timeout {
            let span = types::Timespec::new().sec(limit.as_secs()).nsec(limit.subsec_nanos());
            ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&span))
        } else {
            ring.submit_and_wait(1)
        };
        for entry in ring.completion() {
            if entry.user_data() == WAKE_KEY {
                self.wake_armed.set(false);
            } else {
                done.push((entry.user_data() as u32, entry.result()));
            }
        }
    }

    fn now_ns(&self) -> u64 {
        self.born.elapsed().as_nanos() as u64
    }

    fn random(&self) -> u64 {
        let mut bytes = [0u8; 8];
        // The call cannot fail for eight bytes on a booted system; if it does, a UUID must not be predictable.
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        assert_eq!(got, Ok(8), "the kernel gives random bytes");
        u64::from_ne_bytes(bytes)
    }
}
