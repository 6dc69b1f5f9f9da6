//! A store's part on one shard: the pause for snapshots, and the record of I/O in flight.
//!
//! Every I/O is *planned* (the map is asked) and counted in one step, inside [`StoreShard::enter`]. Two counters, used in
//! turn, tell when everything that was planned before some moment has completed on this shard: that is the grace period
//! after which a freed cluster may be reused, a snapshot answers, and a copy may trust its source.

use crate::counters::StoreLatency;
use crate::shard::{Port, Shard};
use crate::sys::buf::{Buf, BufSlice};
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

/// Per shard and store.
pub struct StoreShard {
    pub shard: Shard,
    pub port: Port,
    pub latency: Arc<StoreLatency>,
    /// Snapshots that hold it paused.
    pauses: Cell<u32>,
    resume_waiters: RefCell<Vec<Waker>>,
    epoch: Cell<usize>,
    in_flight: [Cell<u32>; 2],
    drain_waiters: RefCell<Vec<Waker>>,
    /// A buffer of zeroes for fills.
    pub zeroes: Buf,
    /// Buffers that are all zero and may be written, of one length.
    clean: RefCell<Vec<BufSlice>>,
}

/// Bytes of the buffer of zeroes.
pub const ZEROES: usize = 1 << 20;
/// Bytes of clean buffers that are kept.
const CLEAN_KEEP_BYTES: usize = 8 << 20;

impl StoreShard {
    pub fn new(shard: Shard, port: Port, latency: Arc<StoreLatency>) -> Rc<StoreShard> {
        let zeroes = shard.buf(ZEROES);
        zeroes.slice(0, ZEROES).fill_zero();
        Rc::new(StoreShard {
            shard,
            port,
            latency,
            pauses: Cell::new(0),
            resume_waiters: RefCell::default(),
            epoch: Cell::new(0),
            in_flight: [Cell::new(0), Cell::new(0)],
            drain_waiters: RefCell::default(),
            zeroes,
            clean: RefCell::default(),
        })
    }

    /// A buffer of `len` zeroes to write into.
    pub fn take_clean(&self, len: usize) -> BufSlice {
        match self.clean.borrow_mut().pop() {
            Some(buf) if buf.len() == len => buf,
            _ => {
                let buf = self.shard.buf(len).slice(0, len);
                buf.fill_zero();
                buf
            }
        }
    }

    /// Takes it back; the caller has zeroed what it wrote and nothing reads or writes it any more. Zeroing a few blocks is
    /// cheaper than a whole cluster for each first touch.
    pub fn give_clean(&self, buf: BufSlice) {
        let mut clean = self.clean.borrow_mut();
        if (clean.len() + 1) * buf.len() <= CLEAN_KEEP_BYTES {
            clean.push(buf);
        }
    }

    /// True while a snapshot swaps maps: nothing may be planned.
    pub fn is_paused(&self) -> bool {
        self.pauses.get() > 0
    }

    /// Waits for the end of a pause. The caller plans in the same step in which this is ready.
    pub async fn unpaused(&self) {
        if !self.is_paused() {
            return;
        }
        poll_fn(|cx| {
            if !self.is_paused() {
                return Poll::Ready(());
            }
            self.resume_waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    pub fn pause(&self) {
        self.pauses.set(self.pauses.get() + 1);
    }

    pub fn resume(&self) {
        self.pauses.set(self.pauses.get().saturating_sub(1));
        if self.is_paused() {
            return;
        }
        for waker in self.resume_waiters.take() {
            waker.wake();
        }
    }

    /// Counts an I/O as planned now. It is over when the guard is dropped.
    pub fn enter(self: &Rc<Self>) -> IoGuard {
        let epoch = self.epoch.get();
        let count = &self.in_flight[epoch];
        count.set(count.get() + 1);
        IoGuard { local: self.clone(), epoch }
    }

    /// Waits until everything planned so far has completed. One caller at a time (the store's grace period).
    pub async fn drain(&self) {
        let old = self.epoch.get();
        debug_assert_eq!(self.in_flight[1 - old].get(), 0, "grace periods follow one another");
        self.epoch.set(1 - old);
        poll_fn(|cx| {
            if self.in_flight[old].get() == 0 {
                return Poll::Ready(());
            }
            self.drain_waiters.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// An I/O that has been planned and has not completed.
pub struct IoGuard {
    local: Rc<StoreShard>,
    epoch: usize,
}

impl Drop for IoGuard {
    fn drop(&mut self) {
        let count = &self.local.in_flight[self.epoch];
        count.set(count.get() - 1);
        if count.get() == 0 {
            for waker in self.local.drain_waiters.take() {
                waker.wake();
            }
        }
    }
}
