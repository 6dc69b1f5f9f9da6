//! A disk with a volatile write cache, as a block device of this machine: `FuseExport` over memory.
//!
//! ```text
//!   write ─▶ `now`, which reads see, and `cache`        flush: what completed before it goes from `cache` to `kept`
//!   cut:  from here on every request fails              restore: `kept` and some sectors of `cache` are what is left
//! ```

use coppice_engine::error::{Error, Result};
use coppice_engine::export::{FuseExport, Volume, VolumeFactory, remove_dead_exports};
use coppice_engine::shard::sync::lock;
use coppice_engine::shard::{Shard, ShardThreads, block_on};
use coppice_engine::sys::buf::BufSlice;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const SECTOR: usize = 512;
const NAME: &str = "5f5c9a3e-0f65-4f6e-8a39-0d7a2f0c4d11";

/// A small generator of random numbers (splitmix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn percent(&mut self, p: u64) -> bool {
        self.below(100) < p
    }
}

pub fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A write that no flush has covered. `data` is `None` for zeroes.
struct Cached {
    id: u64,
    off: usize,
    len: usize,
    data: Option<Vec<u8>>,
    completed: bool,
}

impl Cached {
    fn apply(&self, to: &mut [u8], range: std::ops::Range<usize>) {
        let target = &mut to[self.off + range.start..self.off + range.end];
        match &self.data {
            Some(data) => target.copy_from_slice(&data[range]),
            None => target.fill(0),
        }
    }
}

struct State {
    kept: Vec<u8>,
    now: Vec<u8>,
    cache: Vec<Cached>,
    /// Writes and flushes so far.
    requests: u64,
    cut_at: Option<u64>,
    off: bool,
    random: Random,
}

impl State {
    /// Counts a request; false once the power is off. The request at which it goes off is in flight.
    fn tick(&mut self) -> bool {
        self.requests += 1;
        let was_on = !self.off;
        self.off |= self.cut_at.is_some_and(|at| self.requests >= at);
        was_on
    }
}

fn no_power() -> Error {
    Error::from_errno(5, "the power is off")
}

#[derive(Clone)]
struct Served {
    shard: Shard,
    state: Arc<Mutex<State>>,
    size: Arc<AtomicU64>,
    block_size: u32,
}

impl Served {
    async fn put(&self, off: u64, len: usize, data: Option<Vec<u8>>) -> Result<()> {
        let (id, slow) = {
            let mut state = lock(&self.state);
            if !state.tick() {
                return Err(no_power());
            }
            let write = Cached { id: state.requests, off: off as usize, len, data, completed: false };
            write.apply(&mut state.now, 0..len);
            let id = write.id;
            state.cache.push(write);
            (id, state.random.percent(5))
        };
        if slow {
            self.shard.sleep(Duration::from_micros(300)).await;
        }
        let mut state = lock(&self.state);
        if state.off {
            return Err(no_power());
        }
        if let Some(write) = state.cache.iter_mut().rev().find(|w| w.id == id) {
            write.completed = true;
        }
        Ok(())
    }
}

impl Volume for Served {
    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, off: u64, buf: BufSlice) -> Result<()> {
        let state = lock(&self.state);
        if state.off {
            return Err(no_power());
        }
        buf.copy_in(0, &state.now[off as usize..off as usize + buf.len()]);
        Ok(())
    }

    async fn write(&self, off: u64, buf: BufSlice, fua: bool) -> Result<()> {
        self.put(off, buf.len(), Some(buf.to_vec())).await?;
        if fua { self.flush().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, off: u64, len: u64) -> Result<()> {
        self.put(off, len as usize, None).await
    }

    async fn discard(&self, off: u64, len: u64) -> Result<()> {
        self.put(off, len as usize, None).await
    }

    async fn flush(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if !state.tick() || state.off {
            return Err(no_power());
        }
        let State { kept, cache, .. } = &mut *state;
        cache.retain(|write| {
            if write.completed {
                write.apply(kept, 0..write.len);
            }
            !write.completed
        });
        Ok(())
    }
}

pub struct Disk {
    state: Arc<Mutex<State>>,
    size: Arc<AtomicU64>,
    export: Option<FuseExport>,
    threads: Option<ShardThreads>,
    dir: PathBuf,
}

impl Disk {
    /// `size` bytes that can become `size_max`. All but the first and the last MiB holds what a stranger left.
    pub fn new(dir: &Path, size: u64, size_max: u64, block_size: u32, seed: u64) -> Result<Disk> {
        let mut now = vec![0u8; size_max as usize];
        let mib = 1 << 20;
        now[mib..size as usize - mib].fill(0xe5);
        let random = Random(seed);
        let state = State { kept: now.clone(), now, cache: Vec::new(), requests: 0, cut_at: None, off: false, random };
        let (state, size) = (Arc::new(Mutex::new(state)), Arc::new(AtomicU64::new(size)));
        let threads = ShardThreads::start(1)?;
        let shards = threads.handles().iter().cloned().map(|handle| {
            let (state, size) = (state.clone(), size.clone());
            let make: VolumeFactory<Served> =
                Box::new(move |shard: &Shard| Ok(Served { shard: shard.clone(), state, size, block_size }));
            (handle, make)
        });
        let export = block_on(FuseExport::start(shards.collect(), dir, NAME, false))?;
        Ok(Disk { state, size, export: Some(export), threads: Some(threads), dir: dir.into() })
    }

    /// The block device.
    pub fn device(&self) -> PathBuf {
        self.export.as_ref().map(FuseExport::device).unwrap_or_default()
    }

    pub fn is_on(&self) -> bool {
        !lock(&self.state).off
    }

    pub fn requests(&self) -> u64 {
        lock(&self.state).requests
    }

    /// The power goes off at the `n`th request from now.
    pub fn cut_in(&self, n: u64) {
        let mut state = lock(&self.state);
        state.cut_at = Some(state.requests + n);
    }

    pub fn cut_now(&self) {
        lock(&self.state).off = true;
    }

    pub fn never_cut(&self) {
        lock(&self.state).cut_at = None;
    }

    /// Power again, and what the cut left: of a torn write, some of its pieces, which end at multiples of `piece`. Says how
    /// much of the cache that is.
    pub fn restore(&self, piece: usize) -> String {
        let mut state = lock(&self.state);
        let State { kept, now, cache, random, .. } = &mut *state;
        let (chance, torn) = ([0, 10, 50, 90, 100][random.below(5) as usize], random.percent(50));
        for write in &*cache {
            let mut at = 0;
            while at < write.len {
                let to = if torn { (write.off + at) / piece * piece + piece - write.off } else { write.len };
                let to = to.min(write.len);
                if random.percent(chance) {
                    write.apply(kept, at..to);
                }
                at = to;
            }
        }
        for write in &*cache {
            let range = write.off..write.off + write.len;
            now[range.clone()].copy_from_slice(&kept[range]);
        }
        let text = format!("{chance} % of {} cached writes{}", cache.len(), if torn { ", torn" } else { "" });
        cache.clear();
        (state.off, state.cut_at) = (false, None);
        text
    }

    pub fn grow(&self, size: u64) -> Result<()> {
        self.size.store(size, Ordering::SeqCst);
        self.export.as_ref().map_or(Ok(()), |export| block_on(export.refresh_size()))
    }

    /// As `cp` would copy it while it is written to: piece after piece.
    pub fn copy_slowly(&self, to: &Path, pause: Duration) -> std::io::Result<()> {
        let mut out = File::create(to)?;
        let size = self.size.load(Ordering::SeqCst) as usize;
        for at in (0..size).step_by(1 << 20) {
            let piece = lock(&self.state).now[at..(at + (1 << 20)).min(size)].to_vec();
            out.write_all(&piece)?;
            std::thread::sleep(pause);
        }
        Ok(())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Some(export) = self.export.take()
            && let Err(e) = block_on(export.stop())
        {
            eprintln!("left behind: {e}");
        }
        if let Some(threads) = self.threads.take() {
            threads.stop();
        }
        let _ = remove_dead_exports(&self.dir, &[], &[]);
    }
}
