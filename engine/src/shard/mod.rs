//! Data threads. A shard owns an io_uring, buffers, and a small single-threaded executor, so that a multi-step operation
//! reads as straight code.
//!
//! Clock, randomness, hand-off between threads, device operations and the order of their completions all pass through
//! here and [`Backend`]: that is the one seam. Under test, several shards run in one thread on a simulated disk, and a
//! seeded scheduler decides which task runs, which completion arrives and which message is delivered next.
//!
//! ```text
//!   other threads ──ShardHandle::run──▶ remote queue ─┐
//!                                                     ▼
//!   Backend::wait ──completions──▶ operation slots ─▶ ready queue ─▶ poll a task ─▶ Backend::start
//!                                   timers ───────────▲
//! ```

pub mod op;
pub mod sync;
mod threads;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::buf::{Buf, Pool};
use op::{IoOp, Target};
use slab::Slab;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

pub use threads::ShardThreads;

/// What a shard runs on: the kernel, or the simulator.
pub trait Backend {
    /// Starts an operation. The shard keeps `op` (buffer and file) alive until `wait` has reported `key`.
    fn start(&self, key: u32, op: &IoOp);
    /// Submits what was started and collects completions as (key, result); sleeps until there is one, a notification
    /// arrives, or the time is over. `None`: no limit; zero: no sleep.
    fn wait(&self, timeout: Option<Duration>, done: &mut Vec<(u32, i32)>);
    /// Monotonic nanoseconds.
    fn now_ns(&self) -> u64;
    fn random(&self) -> u64;
}

/// Ends the sleep of a shard from another thread.
pub trait Notifier: Send + Sync {
    fn notify(&self);
}

type Message = Box<dyn FnOnce(&Shard) + Send>;

/// The part of a shard that other threads see.
struct Shared {
    id: usize,
    remote: Mutex<Remote>,
    /// Set with the first entry of `remote`, cleared when it is emptied: the shard looks at this before it sleeps.
    has_remote: AtomicBool,
    notifier: Arc<dyn Notifier>,
}

#[derive(Default)]
struct Remote {
    wakes: Vec<Arc<TaskWake>>,
    messages: VecDeque<Message>,
    closed: bool,
}

impl Shared {
    fn remote(&self) -> MutexGuard<'_, Remote> {
        self.remote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        if !self.has_remote.swap(true, Ordering::AcqRel) {
            self.notifier.notify();
        }
    }
}

/// A shard as seen from any thread.
#[derive(Clone)]
pub struct ShardHandle(Arc<Shared>);

impl ShardHandle {
    pub fn id(&self) -> usize {
        self.0.id
    }

    /// Runs `f` on the shard, after everything that was sent before. Dropped unrun if the shard has stopped.
    pub fn run(&self, f: impl FnOnce(&Shard) + Send + 'static) {
        {
            let mut remote = self.0.remote();
            if remote.closed {
                return;
            }
            remote.messages.push_back(Box::new(f));
        }
        self.0.announce();
    }

    /// Runs the future that `f` makes on the shard and answers with its result, on whatever executor this is awaited.
    pub async fn call<R, F>(&self, f: impl FnOnce(Shard) -> F + Send + 'static) -> Result<R>
    where
        R: Send + 'static,
        F: Future<Output = Result<R>> + 'static,
    {
        let (tx, rx) = futures_channel::oneshot::channel();
        self.run(move |shard| {
            let work = f(shard.clone());
            shard.spawn(async move {
                // The asker may be gone; the work is done all the same.
                let _ = tx.send(work.await);
            });
        });
        match rx.await {
            Ok(result) => result,
            Err(_) => Err(Error::new(ErrorKind::Cancelled, "the engine is stopping")),
        }
    }
}

struct TaskWake {
    task: usize,
    queued: AtomicBool,
    shared: Arc<Shared>,
}

impl Wake for TaskWake {
    fn wake(self: Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        CURRENT.with(|current| match &*current.borrow() {
            Some(inner) if Arc::ptr_eq(&inner.shared, &self.shared) => inner.ready.borrow_mut().push_back(self),
            _ => {
                let shared = self.shared.clone();
                shared.remote().wakes.push(self);
                shared.announce();
            }
        });
    }
}

thread_local! {
    /// The shard that is running on this thread now.
    static CURRENT: RefCell<Option<Rc<Inner>>> = const { RefCell::new(None) };
}

struct Task {
    wake: Arc<TaskWake>,
    /// Taken out while it is polled.
    future: Option<Pin<Box<dyn Future<Output = ()>>>>,
}

struct OpSlot {
    op: IoOp,
    /// `None`: the future was dropped; the slot only keeps the buffer alive.
    waker: Option<Waker>,
    result: Option<i32>,
    /// `round_ns` of its start.
    started_ns: u64,
}

struct Inner {
    shared: Arc<Shared>,
    backend: Box<dyn Backend>,
    pool: Rc<Pool>,
    tasks: RefCell<Slab<Task>>,
    ready: RefCell<VecDeque<Arc<TaskWake>>>,
    ops: RefCell<Slab<OpSlot>>,
    timers: RefCell<BinaryHeap<Reverse<(u64, u64)>>>,
    timer_wakers: RefCell<BTreeMap<u64, Waker>>,
    timer_seq: Cell<u64>,
    round_ns: Cell<u64>,
    stopping: Cell<bool>,
    /// What the layers above keep per shard (a store's part of it), by their own key.
    locals: RefCell<BTreeMap<u64, Rc<dyn Any>>>,
}

/// A data thread, seen from itself. Cheap to clone, never leaves its thread.
#[derive(Clone)]
pub struct Shard(Rc<Inner>);

impl Shard {
    pub fn new(id: usize, backend: Box<dyn Backend>, notifier: Arc<dyn Notifier>) -> Shard {
        let shared = Arc::new(Shared { id, remote: Mutex::default(), has_remote: AtomicBool::new(false), notifier });
        Shard(Rc::new(Inner {
            shared,
            backend,
            pool: Pool::new(),
            tasks: RefCell::default(),
            ready: RefCell::default(),
            ops: RefCell::default(),
            timers: RefCell::default(),
            timer_wakers: RefCell::default(),
            timer_seq: Cell::new(0),
            round_ns: Cell::new(0),
            stopping: Cell::new(false),
            locals: RefCell::default(),
        }))
    }

    pub fn id(&self) -> usize {
        self.0.shared.id
    }

    pub fn handle(&self) -> ShardHandle {
        ShardHandle(self.0.shared.clone())
    }

    /// Runs `future` as a task of this shard.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let mut tasks = self.0.tasks.borrow_mut();
        let entry = tasks.vacant_entry();
        let wake =
            Arc::new(TaskWake { task: entry.key(), queued: AtomicBool::new(true), shared: self.0.shared.clone() });
        entry.insert(Task { wake: wake.clone(), future: Some(Box::pin(future)) });
        self.0.ready.borrow_mut().push_back(wake);
    }

    /// A page-aligned buffer of at least `len` bytes; its content is arbitrary.
    pub fn buf(&self, len: usize) -> Buf {
        self.0.pool.take(len)
    }

    /// Starts an operation when first polled.
    pub fn io(&self, op: IoOp) -> Io {
        Io { shard: self.clone(), state: IoState::New(op) }
    }

    pub fn now_ns(&self) -> u64 {
        self.0.backend.now_ns()
    }

    /// What the clock said when this round of the loop began: costs nothing, and is late by less than a round.
    pub fn round_ns(&self) -> u64 {
        self.0.round_ns.get()
    }

    pub fn random(&self) -> u64 {
        self.0.backend.random()
    }

    pub fn random_uuid(&self) -> uuid::Uuid {
        let bits = (u128::from(self.random()) << 64) | u128::from(self.random());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }

    pub fn sleep(&self, time: Duration) -> Sleep {
        Sleep { shard: self.clone(), deadline: self.now_ns().saturating_add(time.as_nanos() as u64), key: None }
    }

    /// Lets every other ready task run first.
    pub fn yield_now(&self) -> impl Future<Output = ()> + use<> {
        let mut yielded = false;
        std::future::poll_fn(move |cx| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
    }

    pub fn local_set(&self, key: u64, value: Rc<dyn Any>) {
        self.0.locals.borrow_mut().insert(key, value);
    }

    pub fn local_get<T: 'static>(&self, key: u64) -> Option<Rc<T>> {
        self.0.locals.borrow().get(&key).cloned().and_then(|v| v.downcast().ok())
    }

    pub fn local_remove(&self, key: u64) {
        let gone = self.0.locals.borrow_mut().remove(&key);
        drop(gone);
    }

    /// The loop ends when it next comes round; tasks that are not finished are dropped.
    pub fn stop(&self) {
        self.0.stopping.set(true);
    }

    // The steps of the loop. The thread's loop runs them in order, the simulator in any order.

    /// Makes this the thread's current shard while `f` runs.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let before = CURRENT.with(|c| c.replace(Some(self.0.clone())));
        let result = f();
        CURRENT.with(|c| c.replace(before));
        result
    }

    pub fn ready_len(&self) -> usize {
        self.0.ready.borrow().len()
    }

    /// Polls the `nth` ready task. Call inside `enter`.
    pub fn run_ready(&self, nth: usize) {
        let Some(wake) = self.0.ready.borrow_mut().remove(nth) else { return };
        wake.queued.store(false, Ordering::Release);
        let mut future = {
            let mut tasks = self.0.tasks.borrow_mut();
            match tasks.get_mut(wake.task) {
                Some(task) if Arc::ptr_eq(&task.wake, &wake) => match task.future.take() {
                    Some(future) => future,
                    None => return,
                },
                // Finished meanwhile; its place may belong to another task.
                _ => return,
            }
        };
        let waker = Waker::from(wake.clone());
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(()) => {
                let task = self.0.tasks.borrow_mut().try_remove(wake.task);
                drop(task);
            }
            Poll::Pending => {
                if let Some(task) = self.0.tasks.borrow_mut().get_mut(wake.task) {
                    task.future = Some(future);
                }
            }
        }
    }

    pub fn has_remote(&self) -> bool {
        self.0.shared.has_remote.load(Ordering::Acquire)
    }

    /// Takes in wakes and messages of other threads. Call inside `enter`.
    pub fn deliver_remote(&self) {
        if !self.has_remote() {
            return;
        }
        self.0.shared.has_remote.store(false, Ordering::Release);
        let (wakes, messages) = {
            let mut remote = self.0.shared.remote();
            (std::mem::take(&mut remote.wakes), std::mem::take(&mut remote.messages))
        };
        self.0.ready.borrow_mut().extend(wakes);
        for message in messages {
            message(self);
        }
    }

    pub fn next_deadline(&self) -> Option<u64> {
        self.0.timers.borrow().peek().map(|Reverse((at, _))| *at)
    }

    /// Reads the clock for the round, and wakes what waited for a time that has come. Call inside `enter`.
    pub fn fire_timers(&self) {
        let now = self.now_ns();
        self.0.round_ns.set(now);
        loop {
            let key = match self.0.timers.borrow().peek() {
                Some(Reverse((at, key))) if *at <= now => *key,
                _ => return,
            };
            self.0.timers.borrow_mut().pop();
            let waker = self.0.timer_wakers.borrow_mut().remove(&key);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Takes in a completion of the backend. Call inside `enter`.
    pub fn complete(&self, key: u32, result: i32) {
        let mut ops = self.0.ops.borrow_mut();
        let Some(slot) = ops.get_mut(key as usize) else { return };
        if let Some(buf) = slot.op.fills() {
            buf.device_write_ends();
        }
        match slot.waker.take() {
            Some(waker) => {
                slot.result = Some(result);
                drop(ops);
                waker.wake();
            }
            None => {
                let slot = ops.try_remove(key as usize);
                drop(ops);
                drop(slot);
            }
        }
    }

    /// Drops every task: what a stopping thread does last, and what a simulated crash does.
    pub fn abandon(&self) {
        self.0.shared.remote().closed = true;
        loop {
            // Dropping a task may spawn or wake others.
            let tasks = std::mem::take(&mut *self.0.tasks.borrow_mut());
            let messages = std::mem::take(&mut self.0.shared.remote().messages);
            if tasks.is_empty() && messages.is_empty() {
                break;
            }
            drop(tasks);
            drop(messages);
        }
        self.0.ready.borrow_mut().clear();
        let locals = std::mem::take(&mut *self.0.locals.borrow_mut());
        drop(locals);
        self.0.timer_wakers.borrow_mut().clear();
    }

    /// Operations that the backend has not completed yet.
    pub fn ops_in_flight(&self) -> usize {
        self.0.ops.borrow().iter().filter(|(_, slot)| slot.result.is_none()).count()
    }

    /// How long the operation on `target` that was started first has been without an answer; zero if none is in flight.
    pub fn longest_wait(&self, target: &Target) -> Duration {
        let ops = self.0.ops.borrow();
        let waiting = ops.iter().filter(|(_, slot)| slot.result.is_none() && slot.op.target().is(target));
        let first = waiting.map(|(_, slot)| slot.started_ns).min();
        first.map_or(Duration::ZERO, |started| Duration::from_nanos(self.now_ns().saturating_sub(started)))
    }
}

/// A device operation in progress. Dropping it lets the operation finish unobserved; its buffer lives until then.
pub struct Io {
    shard: Shard,
    state: IoState,
}

enum IoState {
    New(IoOp),
    Started(u32),
    Finished,
}

impl Io {
    /// The result as the error it stands for: short transfers count as I/O errors.
    pub async fn done(self, doing: &str) -> Result<()> {
        let expected = match &self.state {
            IoState::New(op) => op.expected(),
            _ => None,
        };
        check_result(self.await, expected, doing)
    }
}

/// Turns a raw result into an error where it is one. What a device says is an I/O error, whatever the number: it knows of no
/// lvols that could be missing or busy. Only "no space" (a sparse file, a thin pool below) is told as that.
pub fn check_result(result: i32, expected: Option<usize>, doing: &str) -> Result<()> {
    if result < 0 {
        let e = Error::from_errno(-result, doing);
        return Err(if e.kind() == ErrorKind::NoSpace { e } else { Error::new(ErrorKind::Io, e.message()) });
    }
    match expected {
        Some(bytes) if bytes != result as usize => {
            Err(Error::new(ErrorKind::Io, format!("{doing}: the device moved {result} of {bytes} bytes")))
        }
        _ => Ok(()),
    }
}

impl Future for Io {
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        match std::mem::replace(&mut self.state, IoState::Finished) {
            IoState::New(op) => {
                let inner = &self.shard.0;
                if let Some(buf) = op.fills() {
                    buf.device_write_begins();
                }
                let mut ops = inner.ops.borrow_mut();
                let entry = ops.vacant_entry();
                let key = entry.key() as u32;
                inner.backend.start(key, &op);
                let started_ns = inner.round_ns.get();
                entry.insert(OpSlot { op, waker: Some(cx.waker().clone()), result: None, started_ns });
                drop(ops);
                self.state = IoState::Started(key);
                Poll::Pending
            }
            IoState::Started(key) => {
                let mut ops = self.shard.0.ops.borrow_mut();
                let Some(slot) = ops.get_mut(key as usize) else { return Poll::Pending };
                match slot.result {
                    Some(result) => {
                        let slot = ops.remove(key as usize);
                        drop(ops);
                        drop(slot);
                        Poll::Ready(result)
                    }
                    None => {
                        if !slot.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                            slot.waker = Some(cx.waker().clone());
                        }
                        drop(ops);
                        self.state = IoState::Started(key);
                        Poll::Pending
                    }
                }
            }
            IoState::Finished => Poll::Pending,
        }
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if let IoState::Started(key) = self.state {
            let mut ops = self.shard.0.ops.borrow_mut();
            let Some(slot) = ops.get_mut(key as usize) else { return };
            slot.waker = None;
            if slot.result.is_some() {
                let slot = ops.remove(key as usize);
                drop(ops);
                drop(slot);
            }
        }
    }
}

/// Ends when its time has come.
pub struct Sleep {
    shard: Shard,
    deadline: u64,
    key: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.shard.now_ns() >= self.deadline {
            return Poll::Ready(());
        }
        let inner = self.shard.0.clone();
        let key = match self.key {
            Some(key) => key,
            None => {
                let key = inner.timer_seq.get();
                inner.timer_seq.set(key + 1);
                inner.timers.borrow_mut().push(Reverse((self.deadline, key)));
                self.key = Some(key);
                key
            }
        };
        inner.timer_wakers.borrow_mut().insert(key, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.shard.0.timer_wakers.borrow_mut().remove(&key);
        }
    }
}

/// Runs operations side by side and answers with the first error.
pub async fn all(ios: Vec<Io>, doing: &str) -> Result<()> {
    let expected: Vec<_> = ios
        .iter()
        .map(|io| match &io.state {
            IoState::New(op) => op.expected(),
            _ => None,
        })
        .collect();
    let mut ios: Vec<Option<Io>> = ios.into_iter().map(Some).collect();
    let mut failure = None;
    std::future::poll_fn(|cx| {
        let mut pending = false;
        for (slot, expected) in ios.iter_mut().zip(&expected) {
            let Some(io) = slot else { continue };
            match Pin::new(io).poll(cx) {
                Poll::Pending => pending = true,
                Poll::Ready(result) => {
                    *slot = None;
                    if let Err(e) = check_result(result, *expected, doing) {
                        failure.get_or_insert(e);
                    }
                }
            }
        }
        // Waits for all, the failed ones too: nothing may still be at work on a range when the caller goes on.
        if pending { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
    match failure {
        None => Ok(()),
        Some(e) => Err(e),
    }
}

/// A device of a store as one shard uses it: shorthand for the operations.
#[derive(Clone)]
pub struct Port {
    pub shard: Shard,
    pub target: Target,
}

impl Port {
    pub fn read(&self, off: u64, buf: crate::sys::buf::BufSlice) -> Io {
        self.shard.io(IoOp::Read { target: self.target.clone(), off, buf })
    }
    pub fn write(&self, off: u64, buf: crate::sys::buf::BufSlice, durable: bool) -> Io {
        self.shard.io(IoOp::Write { target: self.target.clone(), off, buf, durable })
    }
    pub fn flush(&self) -> Io {
        self.shard.io(IoOp::Flush { target: self.target.clone() })
    }
    pub fn zero_range(&self, off: u64, len: u64) -> Io {
        self.shard.io(IoOp::ZeroRange { target: self.target.clone(), off, len })
    }
    pub fn punch(&self, off: u64, len: u64) -> Io {
        self.shard.io(IoOp::Punch { target: self.target.clone(), off, len })
    }
}

/// Waits for a future on a thread that is not a shard.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let mut future = std::pin::pin!(future);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return value;
        }
        std::thread::park();
    }
}
