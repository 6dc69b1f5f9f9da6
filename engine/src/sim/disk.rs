//! A disk with a volatile cache.
//!
//! A write is in flight, then completed (every read sees it), then durable: with the flush that was *started* after its
//! completion, not earlier. A crash keeps what is durable and any subset of the rest, torn at 512 bytes, writes in flight
//! included. A punched range reads old content or garbage: "devices whose discard leaves content".

use super::rng::Rng;
use crate::sys::buf::BufSlice;

/// Unit in which a write may be torn, bytes.
pub const SECTOR: usize = 512;

pub enum Work {
    Read {
        off: usize,
        buf: BufSlice,
    },
    Write {
        off: usize,
        data: Vec<u8>,
        fua: bool,
    },
    /// Covers that many of the completed writes.
    Flush {
        covers: usize,
    },
    Punch {
        off: usize,
        len: usize,
    },
}

struct InFlight {
    shard: usize,
    key: u32,
    work: Work,
    /// One of those that a real device now and then takes a hundred times as long for.
    slow: bool,
}

/// One operation of so many is slow.
const SLOW_ONE_IN: u64 = 12;
/// Where slow and other operations are in flight, so many of the others complete for each slow one.
const SLOWNESS: u64 = 40;

struct Completed {
    off: usize,
    data: Vec<u8>,
    fua: bool,
}

/// Which operations fail, and how often: one in so many; 0 = never.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
}

impl Faults {
    pub fn any(&self) -> bool {
        self.reads + self.writes + self.flushes > 0
    }
}

pub struct Disk {
    /// What survives for certain.
    durable: Vec<u8>,
    /// What reads see.
    view: Vec<u8>,
    completed: Vec<Completed>,
    in_flight: Vec<InFlight>,
    pub rng: Rng,
    pub faults: Faults,
    /// Bytes that cannot be read.
    pub bad: std::ops::Range<usize>,
    /// Device writes completed so far: where a crash is planned.
    pub writes: u64,
    /// Virtual nanoseconds.
    pub now_ns: u64,
}

impl Disk {
    pub fn new(image: Vec<u8>, rng: Rng) -> Disk {
        Disk {
            view: image.clone(),
            durable: image,
            completed: Vec::new(),
            in_flight: Vec::new(),
            rng,
            faults: Faults::default(),
            bad: 0..0,
            writes: 0,
            now_ns: 0,
        }
    }

    pub fn completed_writes(&self) -> usize {
        self.completed.len()
    }

    pub fn start(&mut self, shard: usize, key: u32, work: Work) {
        let slow = self.rng.one_in(SLOW_ONE_IN);
        self.in_flight.push(InFlight { shard, key, work, slow });
    }

    /// Which of the operations in flight completes next.
    pub fn next(&self, rng: &mut Rng) -> usize {
        let quick: Vec<usize> = (0..self.in_flight.len()).filter(|n| !self.in_flight[*n].slow).collect();
        match rng.one_in(SLOWNESS) {
            false if !quick.is_empty() => quick[rng.below(quick.len() as u64) as usize],
            _ => rng.below(self.in_flight.len() as u64) as usize,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn fails(&mut self, one_in: u64) -> bool {
        one_in > 0 && self.rng.one_in(one_in)
    }

    /// Completes the `nth` operation in flight: (shard, key, result).
    pub fn complete(&mut self, nth: usize) -> (usize, u32, i32) {
        let InFlight { shard, key, work, .. } = self.in_flight.remove(nth);
        let result = match work {
            Work::Read { off, buf } => self.read(off, &buf),
            Work::Write { off, data, fua } => self.write(off, data, fua),
            Work::Flush { covers } => self.flush(covers),
            Work::Punch { off, len } => {
                if self.rng.one_in(2) {
                    let garbage = vec![0xa5; len];
                    self.apply(off, garbage, false);
                }
                0
            }
        };
        (shard, key, result)
    }

    fn read(&mut self, off: usize, buf: &BufSlice) -> i32 {
        if self.fails(self.faults.reads) || (off < self.bad.end && self.bad.start < off + buf.len()) {
            return -libc::EIO;
        }
        match self.view.get(off..off + buf.len()) {
            Some(bytes) => {
                buf.copy_in(0, bytes);
                buf.len() as i32
            }
            None => 0,
        }
    }

    fn write(&mut self, off: usize, data: Vec<u8>, fua: bool) -> i32 {
        self.writes += 1;
        let len = data.len();
        if self.fails(self.faults.writes) {
            // Nothing, or a part of it, reached the disk.
            let part = self.rng.below((len / SECTOR) as u64 + 1) as usize * SECTOR;
            let mut data = data;
            data.truncate(part);
            self.apply(off, data, false);
            return -libc::EIO;
        }
        self.apply(off, data, fua);
        len as i32
    }

    fn apply(&mut self, off: usize, data: Vec<u8>, fua: bool) {
        put(&mut self.view, off, &data);
        if fua {
            put(&mut self.durable, off, &data);
        }
        self.completed.push(Completed { off, data, fua });
    }

    fn flush(&mut self, covers: usize) -> i32 {
        let covers = covers.min(self.completed.len());
        let failed = self.fails(self.faults.flushes);
        let lost = failed && self.rng.one_in(2);
        for write in self.completed.drain(..covers) {
            // A failed flush may drop what it should have written; nobody learns which.
            if !lost {
                put(&mut self.durable, write.off, &write.data);
            }
        }
        for write in self.completed.iter().filter(|w| w.fua) {
            put(&mut self.durable, write.off, &write.data);
        }
        for other in &mut self.in_flight {
            if let Work::Flush { covers: c } = &mut other.work {
                *c = c.saturating_sub(covers);
            }
        }
        if failed { -libc::EIO } else { 0 }
    }

    /// What is on the disk after a power cut.
    pub fn crash(mut self) -> Vec<u8> {
        // Nothing, everything, any half, nearly everything, or only the newest.
        let mode = self.rng.below(5);
        let mut image = self.durable;
        let mut rest = self.completed;
        for op in self.in_flight {
            if let Work::Write { off, data, .. } = op.work {
                rest.push(Completed { off, data, fua: false });
            }
        }
        let count = rest.len();
        for (n, write) in rest.into_iter().enumerate() {
            for (s, sector) in write.data.chunks(SECTOR).enumerate() {
                let kept = match mode {
                    0 => false,
                    1 => true,
                    2 => self.rng.one_in(2),
                    3 => !self.rng.one_in(8),
                    _ => n + 4 > count && !self.rng.one_in(4),
                };
                if kept || write.fua {
                    put(&mut image, write.off + s * SECTOR, sector);
                }
            }
        }
        image
    }
}

fn put(to: &mut [u8], off: usize, data: &[u8]) {
    if let Some(place) = to.get_mut(off..off + data.len()) {
        place.copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(disk: &mut Disk, byte: u8) {
        disk.start(0, 0, Work::Write { off: 0, data: vec![byte; 1024], fua: false });
    }

    #[test]
    fn a_flush_covers_what_had_completed_when_it_began() {
        for seed in 0..200 {
            let mut disk = Disk::new(vec![0; 4096], Rng::new(seed));
            write(&mut disk, 1);
            disk.complete(0);
            let covers = disk.completed_writes();
            disk.start(0, 1, Work::Flush { covers });
            write(&mut disk, 2);
            disk.complete(1);
            disk.complete(0);
            let image = disk.crash();
            assert!(image[0] == 1 || image[0] == 2, "the first write survives");
        }
    }

    #[test]
    fn crashes_tear_and_lose() {
        let images: Vec<Vec<u8>> = (0..200)
            .map(|seed| {
                let mut disk = Disk::new(vec![0; 4096], Rng::new(seed));
                write(&mut disk, 1);
                disk.crash()
            })
            .collect();
        assert!(images.iter().any(|i| i[0] == 1 && i[512] == 0), "torn");
        assert!(images.iter().any(|i| i[0] == 0 && i[512] == 0), "lost");
        assert!(images.iter().any(|i| i[0] == 1 && i[512] == 1), "kept");
    }
}
