//! What a volume or snapshot must hold, sector by sector.
//!
//! Every write stamps its sectors with a value that no other write has, so what is read says which write it came from.

use crate::disk::{SECTOR, mix};
use anyhow::{Result, bail};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

pub const BLOCK: usize = 4096;
const SECTORS: usize = BLOCK / SECTOR;

static VALUES: AtomicU64 = AtomicU64::new(1);

/// A value for a write; 0 is for zeroes.
pub fn new_value() -> u64 {
    VALUES.fetch_add(1, Ordering::SeqCst)
}

/// Stamps the sectors of `bytes`, which lie from sector `first` on.
pub fn stamp(bytes: &mut [u8], first: usize, value: u64) {
    for (n, sector) in bytes.chunks_mut(SECTOR).enumerate() {
        if value == 0 {
            sector.fill(0);
            continue;
        }
        let place = (first + n) as u64;
        for (i, word) in sector.chunks_mut(8).enumerate() {
            let content = match i {
                0 => value,
                1 => place,
                _ => mix(value ^ place.rotate_left(32) ^ ((i as u64) << 56)),
            };
            word.copy_from_slice(&content.to_le_bytes());
        }
    }
}

/// The value of the write that a sector came from, if it is whole.
fn value_of(sector: &[u8], place: usize) -> Option<u64> {
    if sector.iter().all(|b| *b == 0) {
        return Some(0);
    }
    let value = u64::from_le_bytes(sector.get(..8)?.try_into().ok()?);
    let mut expected = [0u8; SECTOR];
    stamp(&mut expected, place, value);
    (value != 0 && expected == sector).then_some(value)
}

/// Values by sector: what is surely there, and by block the writes since that may or may not be.
#[derive(Clone, Default)]
pub struct Content {
    sure: Vec<u64>,
    maybe: HashMap<usize, Vec<(u64, bool)>>,
    /// Writes issued since a snapshot was asked for, while one is.
    watch: Option<Vec<(usize, u64)>>,
}

impl Content {
    pub fn zeroes(size: u64) -> Content {
        Content { sure: vec![0; size as usize / SECTOR], ..Content::default() }
    }

    pub fn size(&self) -> u64 {
        (self.sure.len() * SECTOR) as u64
    }

    pub fn resize(&mut self, size: u64) {
        self.sure.resize(size as usize / SECTOR, 0);
    }

    pub fn issue(&mut self, first: usize, blocks: usize, value: u64) {
        for block in first..first + blocks {
            self.maybe.entry(block).or_default().push((value, false));
            if let Some(watch) = &mut self.watch {
                watch.push((block, value));
            }
        }
    }

    pub fn complete(&mut self, first: usize, blocks: usize) {
        for block in first..first + blocks {
            if let Some(last) = self.maybe.get_mut(&block).and_then(|writes| writes.last_mut()) {
                last.1 = true;
            }
        }
    }

    /// What completed is durable, and what came before it is gone.
    pub fn flushed(&mut self) {
        for (block, writes) in &mut self.maybe {
            if let Some(last) = writes.iter().rposition(|(_, completed)| *completed) {
                self.sure[block * SECTORS..(block + 1) * SECTORS].fill(writes[last].0);
                writes.drain(..=last);
            }
        }
        self.maybe.retain(|_, writes| !writes.is_empty());
    }

    /// A snapshot is asked for: what it must hold if nothing more is issued.
    pub fn begin_snapshot(&mut self) -> Content {
        self.watch = Some(Vec::new());
        let mut taken = Content { sure: self.sure.clone(), maybe: self.maybe.clone(), watch: None };
        taken.flushed();
        taken
    }

    /// The snapshot's call is over: it may hold what was issued meanwhile.
    pub fn end_snapshot(&mut self, taken: &mut Content) {
        for (block, value) in self.watch.take().into_iter().flatten() {
            taken.maybe.entry(block).or_default().push((value, false));
        }
    }

    /// Compares with what was read after a start. From then on this is what must be there.
    pub fn observe(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() < self.sure.len() * SECTOR {
            bail!("{} bytes instead of {}", bytes.len(), self.sure.len() * SECTOR);
        }
        self.watch = None;
        for (place, sector) in bytes.chunks(SECTOR).enumerate() {
            let found = value_of(sector, place);
            let sure = self.sure.get(place).copied().unwrap_or(0);
            let maybe = self.maybe.get(&(place / SECTORS)).map(Vec::as_slice).unwrap_or_default();
            match found {
                Some(value) if value == sure || maybe.iter().any(|(v, _)| *v == value) => {
                    if let Some(known) = self.sure.get_mut(place) {
                        *known = value;
                    }
                }
                _ => {
                    let shown = found.map_or(format!("{:02x?}", &sector[..16]), |value| format!("write {value}"));
                    bail!("sector {place}: {shown}; it must be {sure} or one of {maybe:?}");
                }
            }
        }
        self.maybe.clear();
        Ok(())
    }
}
