//! The load: a number of tasks on one shard, each with one I/O in flight, on anything that is a [`Volume`].
//!
//! Raw device and lvol are driven by the same code on the same ring, so what differs is the lvol layer alone.

use super::stats::Random;
use coppice_engine::Result;
use coppice_engine::export::Volume;
use coppice_engine::shard::Shard;
use coppice_engine::shard::sync::Once;
use rustix::time::{ClockId, clock_gettime};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What one I/O is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Read,
    Write,
    /// A flush alone.
    Flush,
    /// A write and then a flush; both count as one.
    WriteFlush,
    /// A write and then a flush, of which only the flush is on the clock.
    FlushAfterWrite,
}

/// Where the I/Os go.
#[derive(Clone)]
pub enum Where {
    /// Anywhere in `span` bytes from `base`.
    Random { base: u64, span: u64 },
    /// One after the other, again from the start at the end.
    Sequential { base: u64, span: u64 },
    /// These places once each, in this order; the job ends with the last.
    Each(Arc<[u64]>),
}

#[derive(Clone)]
pub struct Job {
    pub kind: Kind,
    pub block: usize,
    /// I/Os in flight.
    pub depth: usize,
    pub places: Where,
    /// Ends then at the latest.
    pub time: Duration,
    /// Keep how long each I/O took.
    pub latencies: bool,
    pub seed: u64,
}

impl Job {
    pub fn random(kind: Kind, block: usize, depth: usize, base: u64, span: u64, time: Duration) -> Job {
        Job { kind, block, depth, places: Where::Random { base, span }, time, latencies: false, seed: 1 }
    }

    pub fn sequential(kind: Kind, block: usize, depth: usize, base: u64, span: u64, time: Duration) -> Job {
        Job { kind, block, depth, places: Where::Sequential { base, span }, time, latencies: false, seed: 1 }
    }

    pub fn each(kind: Kind, block: usize, depth: usize, places: Vec<u64>) -> Job {
        let time = Duration::from_secs(60);
        Job { kind, block, depth, places: Where::Each(places.into()), time, latencies: false, seed: 1 }
    }
}

/// What a job did.
#[derive(Clone, Debug, Default)]
pub struct Slice {
    pub ops: u64,
    pub wall_ns: u64,
    /// CPU time of the shard's thread.
    pub cpu_ns: u64,
    /// Nanoseconds of each I/O, if they were kept.
    pub latencies: Vec<u32>,
}

impl Slice {
    pub fn per_second(&self) -> f64 {
        self.ops as f64 * 1e9 / self.wall_ns.max(1) as f64
    }

    pub fn cpu_us(&self) -> f64 {
        self.cpu_ns as f64 / 1e3 / self.ops.max(1) as f64
    }
}

/// CPU time of the calling thread, kernel included.
fn thread_cpu_ns() -> u64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

struct State {
    job: Job,
    random: RefCell<Random>,
    cursor: Cell<u64>,
    over: Cell<bool>,
    ops: Cell<u64>,
    /// Time on the clock, where that is not simply the whole.
    timed_ns: Cell<u64>,
    latencies: RefCell<Vec<u32>>,
    running: Cell<usize>,
    ended: Once<Result<()>>,
}

impl State {
    fn next(&self) -> Option<u64> {
        if self.over.get() {
            return None;
        }
        let block = self.job.block as u64;
        match &self.job.places {
            Where::Random { base, span } => Some(base + self.random.borrow_mut().below(span / block) * block),
            Where::Sequential { base, span } => {
                let at = self.cursor.get();
                let next = at + block;
                self.cursor.set(if next + block > *span { 0 } else { next });
                Some(base + at)
            }
            Where::Each(places) => {
                let n = self.cursor.get();
                self.cursor.set(n + 1);
                places.get(n as usize).copied()
            }
        }
    }
}

/// Runs a job on this shard.
pub async fn run<V: Volume>(shard: &Shard, volume: V, job: Job) -> Result<Slice> {
    let (depth, time) = (job.depth, job.time);
    let timed = job.kind == Kind::FlushAfterWrite;
    let state = Rc::new(State {
        random: RefCell::new(Random::new(job.seed)),
        cursor: Cell::new(0),
        over: Cell::new(false),
        ops: Cell::new(0),
        timed_ns: Cell::new(0),
        latencies: RefCell::new(Vec::with_capacity(if job.latencies { 1 << 20 } else { 0 })),
        running: Cell::new(depth),
        ended: Once::default(),
        job,
    });
    let (began, cpu) = (shard.now_ns(), thread_cpu_ns());
    for _ in 0..depth {
        let (shard2, state, volume) = (shard.clone(), state.clone(), volume.clone());
        shard.spawn(async move {
            let result = work(&shard2, &volume, &state).await;
            state.running.set(state.running.get() - 1);
            if result.is_err() {
                state.over.set(true);
            }
            if result.is_err() || state.running.get() == 0 {
                state.ended.set(result);
            }
        });
    }
    let (shard2, clock) = (shard.clone(), state.clone());
    let alarm = async move {
        shard2.sleep(time).await;
        clock.over.set(true);
        std::future::pending::<()>().await
    };
    let ended = state.ended.wait();
    let mut alarm = std::pin::pin!(alarm);
    let mut ended = std::pin::pin!(ended);
    std::future::poll_fn(|cx| {
        let _ = alarm.as_mut().poll(cx);
        ended.as_mut().poll(cx)
    })
    .await?;
    let (wall_ns, cpu_ns) = (shard.now_ns() - began, thread_cpu_ns() - cpu);
    let wall_ns = if timed { state.timed_ns.get() } else { wall_ns };
    Ok(Slice { ops: state.ops.get(), wall_ns, cpu_ns, latencies: state.latencies.take() })
}

async fn work<V: Volume>(shard: &Shard, volume: &V, state: &State) -> Result<()> {
    let job = &state.job;
    let buf = shard.buf(job.block).slice(0, job.block);
    buf.copy_in(0, &vec![0xa5; job.block]);
    while let Some(off) = state.next() {
        let began = if job.latencies { shard.now_ns() } else { 0 };
        match job.kind {
            Kind::Read => volume.read(off, buf.clone()).await?,
            Kind::Write => volume.write(off, buf.clone(), false).await?,
            Kind::Flush => volume.flush().await?,
            Kind::WriteFlush => {
                volume.write(off, buf.clone(), false).await?;
                volume.flush().await?;
            }
            Kind::FlushAfterWrite => {
                volume.write(off, buf.clone(), false).await?;
                let began = shard.now_ns();
                volume.flush().await?;
                state.timed_ns.set(state.timed_ns.get() + shard.now_ns() - began);
            }
        }
        state.ops.set(state.ops.get() + 1);
        if job.latencies {
            state.latencies.borrow_mut().push((shard.now_ns() - began).min(u64::from(u32::MAX)) as u32);
        }
    }
    Ok(())
}
