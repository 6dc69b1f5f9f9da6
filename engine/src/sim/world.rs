//! Several real shards in one thread, on a simulated disk, under a seeded scheduler.
//!
//! Each step picks at random: poll a ready task of some shard, complete an operation in flight, deliver the messages of a
//! shard. Time moves only when nothing else can. A run that can make no step although somebody waits is a deadlock.
//! Several worlds, each with its own disk and its own power cuts, may run side by side.

use super::disk::{Disk, Work};
use super::rng::Rng;
use crate::shard::op::IoOp;
use crate::shard::{Backend, Notifier, Shard};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

type SharedDisk = Rc<RefCell<Disk>>;

struct SimBackend {
    shard: usize,
    disk: SharedDisk,
}

impl Backend for SimBackend {
    fn start(&self, key: u32, op: &IoOp) {
        let mut disk = self.disk.borrow_mut();
        let work = match op {
            IoOp::Read { off, buf, .. } => Work::Read { off: *off as usize, buf: buf.clone() },
            IoOp::Write { off, buf, durable, .. } => {
                let mut data = vec![0; buf.len()];
                buf.copy_out(0, &mut data);
                Work::Write { off: *off as usize, data, fua: *durable }
            }
            IoOp::Flush { .. } => Work::Flush { covers: disk.completed_writes() },
            IoOp::ZeroRange { off, len, .. } => {
                Work::Write { off: *off as usize, data: vec![0; *len as usize], fua: false }
            }
            IoOp::Punch { off, len, .. } => Work::Punch { off: *off as usize, len: *len as usize },
            IoOp::ReadStream { .. } | IoOp::WriteStream { .. } => panic!("a simulated disk has offsets"),
        };
        disk.start(self.shard, key, work);
    }

    fn wait(&self, _: Option<Duration>, _: &mut Vec<(u32, i32)>) {
        panic!("the scheduler hands completions over itself");
    }

    fn now_ns(&self) -> u64 {
        self.disk.borrow().now_ns
    }

    fn random(&self) -> u64 {
        self.disk.borrow_mut().rng.draw()
    }
}

struct Silent;

impl Notifier for Silent {
    fn notify(&self) {}
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// The planned number of device writes was reached first.
    Crashed,
}

/// Steps of one run, after which it is taken for endless.
const STEPS_MAX: u64 = 5_000_000;
/// Virtual time of one run, after which it is taken for a deadlock: a disk's operation takes none, and stores commit what
/// nobody flushed after 5 s.
const TIME_MAX_NS: u64 = 600_000_000_000;

pub struct World {
    pub shards: Vec<Shard>,
    pub disk: SharedDisk,
    rng: Rng,
    /// Changes with every step: equal for equal runs.
    pub trace: u64,
}

impl World {
    pub fn new(image: Vec<u8>, seed: u64, shards: usize) -> World {
        let disk = Rc::new(RefCell::new(Disk::new(image, Rng::new(seed ^ 0x5eed_d15c))));
        let shards = (0..shards)
            .map(|shard| Shard::new(shard, Box::new(SimBackend { shard, disk: disk.clone() }), Arc::new(Silent)))
            .collect();
        World { shards, disk, rng: Rng::new(seed), trace: 0 }
    }

    /// Runs until `done`, or until the disk has completed `crash_at` writes.
    pub fn run(&mut self, done: impl FnMut() -> bool, crash_at: Option<u64>) -> Outcome {
        match run_together(&mut [(self, crash_at)], done) {
            None => Outcome::Done,
            Some(_) => Outcome::Crashed,
        }
    }

    /// Virtual nanoseconds.
    pub fn now_ns(&self) -> u64 {
        self.disk.borrow().now_ns
    }

    /// The clock goes on from here, if it is behind.
    pub fn set_clock(&self, now_ns: u64) {
        let mut disk = self.disk.borrow_mut();
        disk.now_ns = disk.now_ns.max(now_ns);
    }

    /// One step of whatever can be done; false if nothing can.
    fn step(&mut self) -> bool {
        let ready: Vec<&Shard> = self.shards.iter().filter(|s| s.ready_len() > 0).collect();
        let remote: Vec<&Shard> = self.shards.iter().filter(|s| s.has_remote()).collect();
        let in_flight = self.disk.borrow().in_flight();
        // Tasks first, more often than not; completions trickle.
        let weights = [ready.len() as u64 * 4, remote.len() as u64 * 2, in_flight.min(3) as u64];
        let total: u64 = weights.iter().sum();
        if total == 0 {
            return false;
        }
        let mut choice = self.rng.below(total);
        self.trace = self.trace.rotate_left(5) ^ choice ^ (in_flight as u64) << 32;
        if choice < weights[0] {
            let shard = ready[(choice / 4) as usize].clone();
            let nth = self.rng.below(shard.ready_len() as u64) as usize;
            shard.enter(|| shard.run_ready(nth));
            return true;
        }
        choice -= weights[0];
        if choice < weights[1] {
            let shard = remote[(choice / 2) as usize].clone();
            shard.enter(|| shard.deliver_remote());
            return true;
        }
        let nth = self.disk.borrow().next(&mut self.rng);
        let (shard, key, result) = self.disk.borrow_mut().complete(nth);
        let shard = self.shards[shard].clone();
        shard.enter(|| shard.complete(key, result));
        true
    }

    /// Runs a future on a shard to its end.
    pub fn block_on<T: 'static>(&mut self, shard: usize, work: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let slot = result.clone();
        self.shards[shard].spawn(async move {
            let value = work.await;
            *slot.borrow_mut() = Some(value);
        });
        let seen = result.clone();
        self.run(move || seen.borrow().is_some(), None);
        result.borrow_mut().take().expect("the run ended with the result")
    }

    /// The power goes: tasks vanish where they are. Answers with what is on the disk.
    pub fn power_cut(self) -> Vec<u8> {
        self.abandon();
        let disk = self.disk.replace(Disk::new(Vec::new(), Rng::new(0)));
        disk.crash()
    }

    fn abandon(&self) {
        for shard in &self.shards {
            shard.enter(|| shard.abandon());
        }
    }
}

/// Runs worlds side by side under one clock, each on its disk and with the number of completed writes at which its power is
/// cut, until `done`, or until such a number is reached: answers with that world's place.
///
/// They reach each other through shard handles only, as machines do over a network that loses nothing.
pub fn run_together(worlds: &mut [(&mut World, Option<u64>)], mut done: impl FnMut() -> bool) -> Option<usize> {
    let now_ns = worlds.iter().map(|(world, _)| world.now_ns()).max().unwrap_or(0);
    worlds.iter().for_each(|(world, _)| world.set_clock(now_ns));
    let limit_ns = now_ns + TIME_MAX_NS;
    for _ in 0..STEPS_MAX {
        if done() {
            return None;
        }
        let due = |(world, crash_at): &(&mut World, Option<u64>)| {
            crash_at.is_some_and(|writes| world.disk.borrow().writes >= writes)
        };
        if let Some(crashed) = worlds.iter().position(due) {
            return Some(crashed);
        }
        let count = worlds.len();
        let first = match worlds.first_mut() {
            Some((world, _)) if count > 1 => world.rng.below(count as u64) as usize,
            _ => 0,
        };
        if (0..count).any(|n| worlds[(first + n) % count].0.step()) {
            continue;
        }
        let deadlines = worlds.iter().flat_map(|(world, _)| world.shards.iter().filter_map(Shard::next_deadline));
        let Some(at) = deadlines.min().filter(|at| *at < limit_ns) else { panic!("deadlock: nothing can make a step") };
        for (world, _) in worlds.iter() {
            world.set_clock(at);
            world.shards.iter().for_each(|shard| shard.enter(|| shard.fire_timers()));
        }
    }
    panic!("endless: {STEPS_MAX} steps were not enough");
}

/// Tasks hold their shards, which hold the tasks.
impl Drop for World {
    fn drop(&mut self) {
        self.abandon();
    }
}
