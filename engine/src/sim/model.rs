//! The plain model: what every sector of every lvol may read.
//!
//! A sector has a list of values that it may hold: the last one that is known to be durable, and everything written since.
//! A completed flush cuts the list down to what was current when it was issued. After a crash any value of the list is
//! right, and what is found then is the only one. Values are tags; 0 is a sector of zeroes, and no tag is ever used twice,
//! so a stranger's bytes are recognised.

use super::disk::SECTOR;
use std::collections::BTreeMap;
use uuid::Uuid;

/// Bytes of a block of the model.
pub const BLOCK: u64 = 4096;
const SECTORS: usize = BLOCK as usize / SECTOR;
/// The upper byte of every tag.
const TAG_MARK: u64 = 0x55 << 56;

pub fn tag(number: u64) -> u64 {
    TAG_MARK | number
}

/// The bytes of a sector that holds `tag`.
pub fn sector(tag: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if tag != 0 {
        bytes.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = tag.to_le_bytes());
    }
    bytes
}

/// The tag of a sector, if the bytes are one's; `None`: a stranger's.
pub fn read_tag(bytes: &[u8]) -> Option<u64> {
    let tag = u64::from_le_bytes(*bytes.first_chunk()?);
    (bytes == sector(tag) && (tag == 0 || tag & (0xff << 56) == TAG_MARK)).then_some(tag)
}

/// When a write was issued and when it completed, in ticks of the model.
#[derive(Clone, Copy)]
struct Span {
    issued: u64,
    completed: u64,
}

thread_local! {
    static TICKS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

fn tick() -> u64 {
    TICKS.with(|t| {
        t.set(t.get() + 1);
        t.get()
    })
}

#[derive(Clone)]
struct Block {
    values: [Vec<u64>; SECTORS],
    /// One per value.
    spans: Vec<Span>,
    /// Every value that this block of the lvol, or of an ancestor, was ever given.
    ever: Vec<u64>,
    /// Values cut off so far: places in the list stay comparable.
    cut: u64,
    /// A write is on its way, or failed half-way: the last two values are both current.
    unsettled: bool,
    /// Values before the last that may be the current one as well: a crash, or a snapshot's origin, left that open, and
    /// nobody could read it since.
    open: u64,
}

impl Block {
    fn new() -> Block {
        Block {
            values: std::array::from_fn(|_| vec![0]),
            spans: vec![Span { issued: 0, completed: 0 }],
            ever: vec![0],
            cut: 0,
            unsettled: false,
            open: 0,
        }
    }

    /// Place of the oldest value that is current now.
    fn current(&self) -> u64 {
        let back = 1 + u64::from(self.unsettled) + self.open;
        self.cut + (self.values[0].len() as u64).saturating_sub(back)
    }

    /// Any of the values may be the current one; none has to be.
    fn leave_open(&mut self) {
        self.unsettled = false;
        self.open = self.values[0].len() as u64 - 1;
        if self.open > 0 {
            self.spans.fill(Span { issued: 0, completed: u64::MAX });
        }
    }

    fn push(&mut self, tag: u64) {
        self.spans.push(Span { issued: tick(), completed: u64::MAX });
        self.ever.push(tag);
        self.values.iter_mut().for_each(|v| v.push(tag));
    }

    fn join(&mut self, other: &Block) {
        self.spans.extend(&other.spans);
        self.ever.extend(&other.ever);
        self.ever.sort_unstable();
        self.ever.dedup();
        self.values.iter_mut().zip(&other.values).for_each(|(mine, theirs)| mine.extend(theirs));
    }

    /// Forgets what is older than place `keep`.
    fn forget(&mut self, keep: u64) {
        let n = keep.saturating_sub(self.cut).min(self.values[0].len() as u64 - 1);
        self.cut += n;
        self.spans.drain(..n as usize);
        self.values.iter_mut().for_each(|v| {
            v.drain(..n as usize);
        });
    }
}

/// What a crash may have made of a lvol on which an operation was under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    Stays,
    /// Being created: there or not.
    MayBeNew,
    /// Being deleted: there or not.
    MayBeGone,
    /// Being resized: the old or this size in bytes.
    MayHaveSize(u64),
}

#[derive(Clone)]
pub struct Volume {
    pub name: String,
    pub snapshot: bool,
    pub fate: Fate,
    /// Of a snapshot that is being taken: what is written to its origin meanwhile may be in it.
    origin: Option<Uuid>,
    blocks: Vec<Block>,
}

impl Volume {
    pub fn new(name: &str, size: u64) -> Volume {
        Volume {
            name: name.into(),
            snapshot: false,
            fate: Fate::Stays,
            origin: None,
            blocks: vec![Block::new(); (size / BLOCK) as usize],
        }
    }

    /// One that holds these values from the start, a tag for each block.
    pub fn holding(name: &str, tags: &[u64]) -> Volume {
        let mut volume = Volume::new(name, tags.len() as u64 * BLOCK);
        for (block, tag) in volume.blocks.iter_mut().zip(tags) {
            block.values = std::array::from_fn(|_| vec![*tag]);
            block.ever = vec![*tag];
        }
        volume
    }

    pub fn len(&self) -> u64 {
        self.blocks.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn size(&self) -> u64 {
        self.len() * BLOCK
    }

    pub fn resize(&mut self, size: u64) {
        self.blocks.resize((size / BLOCK) as usize, Block::new());
    }

    fn range(&mut self, first: u64, count: u64) -> &mut [Block] {
        let end = (first + count).min(self.len());
        &mut self.blocks[first.min(end) as usize..end as usize]
    }

    /// Announces a write; false if another one is under way there (the program does not overlap its writes).
    pub fn write_begins(&mut self, first: u64, count: u64, tag: u64) -> bool {
        let blocks = self.range(first, count);
        if blocks.len() as u64 != count || blocks.iter().any(|b| b.unsettled) {
            return false;
        }
        blocks.iter_mut().for_each(|b| {
            b.unsettled = true;
            b.push(tag);
        });
        true
    }

    /// A write that failed stays unsettled for good: any part of it may be there.
    pub fn write_completes(&mut self, first: u64, count: u64, durable: bool) {
        for block in self.range(first, count) {
            (block.unsettled, block.open) = (false, 0);
            if let Some(span) = block.spans.last_mut() {
                span.completed = tick();
            }
            if durable {
                block.forget(block.current());
            }
        }
    }

    /// A crash: what is not read (and pinned) before it is used again stays open.
    pub fn crashed(&mut self) {
        self.blocks.iter_mut().for_each(Block::leave_open);
    }

    /// What a flush issued now makes durable, as one place per block.
    pub fn flush_begins(&self) -> Vec<u64> {
        self.blocks.iter().map(Block::current).collect()
    }

    pub fn flush_completes(&mut self, places: &[u64]) {
        self.blocks.iter_mut().zip(places).for_each(|(block, place)| block.forget(*place));
    }

    /// The volume as a snapshot that is being taken may hold it.
    pub fn as_snapshot(&self, name: &str, origin: Uuid) -> Volume {
        let blocks = self.blocks.clone();
        Volume { name: name.into(), snapshot: true, fate: Fate::MayBeNew, origin: Some(origin), blocks }
    }

    /// The snapshot of `origin` was taken: it holds nothing that was overwritten before the call (`places`), and may hold
    /// what was written during it.
    pub fn snapshot_completes(&mut self, places: &[u64], origin: &Volume) {
        self.fate = Fate::Stays;
        self.origin = None;
        for ((mine, theirs), place) in self.blocks.iter_mut().zip(&origin.blocks).zip(places) {
            mine.forget(*place);
            mine.join(theirs);
            mine.unsettled = false;
        }
    }

    /// A clone of this snapshot.
    pub fn as_clone(&self, name: &str) -> Volume {
        let mut blocks = self.blocks.clone();
        blocks.iter_mut().for_each(Block::leave_open);
        Volume { name: name.into(), snapshot: false, fate: Fate::MayBeNew, origin: None, blocks }
    }

    /// A volume that holds either this content or the other's.
    pub fn or(&self, other: &Volume) -> Volume {
        let mut both = self.clone();
        for (mine, theirs) in both.blocks.iter_mut().zip(&other.blocks) {
            mine.join(theirs);
        }
        both
    }

    /// Bytes that were read at block `first` while others may write: old or new, but never what somebody else, or another
    /// block, was given.
    pub fn check_live(&self, first: u64, bytes: &[u8]) -> Result<(), String> {
        let read = bytes.as_chunks::<{ BLOCK as usize }>().0;
        for (n, (block, bytes)) in self.blocks.iter().skip(first as usize).zip(read).enumerate() {
            for sector in bytes.as_chunks::<SECTOR>().0 {
                if !read_tag(sector).is_some_and(|tag| block.ever.contains(&tag)) {
                    let at = first + n as u64;
                    return Err(format!("lvol {}, block {at}: a stranger's bytes: {:x?}…", self.name, &sector[..16]));
                }
            }
        }
        Ok(())
    }

    /// Compares bytes that were read at block `first`. With `pin`, what was read is the only right answer from now on.
    pub fn check(&mut self, first: u64, bytes: &[u8], pin: bool) -> Result<(), String> {
        let name = &self.name;
        for (n, (block, bytes)) in
            self.blocks.iter_mut().skip(first as usize).zip(bytes.as_chunks::<{ BLOCK as usize }>().0).enumerate()
        {
            for (s, (values, bytes)) in block.values.iter_mut().zip(bytes.as_chunks::<SECTOR>().0).enumerate() {
                let place = || format!("lvol {name}, block {}, sector {s}", first + n as u64);
                let Some(tag) = read_tag(bytes) else {
                    return Err(format!("{}: a stranger's bytes: {:x?}…", place(), &bytes[..16]));
                };
                if !values.contains(&tag) {
                    return Err(format!("{}: reads {tag:#x}, allowed are {values:x?}", place()));
                }
                if pin {
                    *values = vec![tag];
                }
            }
            if pin {
                (block.unsettled, block.open) = (false, 0);
                block.spans = block.spans.last().copied().into_iter().collect();
            }
        }
        Ok(())
    }
}

/// A write to `origin` was announced: a snapshot that is being taken of it may hold it, whatever is flushed or overwritten
/// before the snapshot is compared.
pub fn tell_snapshots(model: &mut Model, origin: Uuid, first: u64, count: u64, tag: u64) {
    for volume in model.values_mut().filter(|v| v.origin == Some(origin)) {
        volume.range(first, count).iter_mut().for_each(|b| b.push(tag));
    }
}

/// P2 across lvols: if a group of snapshots holds a write, it holds every write to any of their origins that completed
/// before that one was issued. `group`: each snapshot, read and pinned, with its origin as it is now.
pub fn prefix_holds(group: &[(&Volume, &Volume)]) -> Result<(), String> {
    let blocks = || group.iter().flat_map(|(s, o)| s.blocks.iter().zip(&o.blocks).map(move |pair| (*s, pair)));
    // Places in the origin's list of the value that the snapshot holds (zeroes may come several times): the first and the
    // last; `None`: older than the list, or torn.
    let held = |snapshot: &Block, origin: &Block| {
        let tag = snapshot.values[0].first()?;
        let whole = snapshot.values.iter().all(|v| v.first() == Some(tag));
        let mut places = origin.values[0].iter().enumerate().filter(|(_, v)| whole && *v == tag).map(|(n, _)| n);
        let first = places.next()?;
        Some((first, places.next_back().unwrap_or(first)))
    };
    // A zero may be an older one than those in the list: it says nothing about when it was written.
    let tagged = blocks().filter(|(_, (s, _))| s.values[0].first() != Some(&0));
    let newest = tagged.filter_map(|(_, (s, o))| held(s, o).and_then(|(n, _)| o.spans.get(n))).map(|s| s.issued).max();
    let Some(newest) = newest else { return Ok(()) };
    for (n, (volume, (snapshot, origin))) in blocks().enumerate() {
        let torn = snapshot.values.iter().any(|v| v.first() != snapshot.values[0].first());
        let must = origin.spans.iter().rposition(|s| s.completed < newest);
        if !torn && must.is_some() && held(snapshot, origin).map(|(_, last)| last) < must {
            return Err(format!(
                "snapshot {} lacks a write (block {n} of the group) that completed before another one was issued that it holds",
                volume.name
            ));
        }
    }
    Ok(())
}

/// Every lvol that should be there, or may be.
pub type Model = BTreeMap<Uuid, Volume>;

/// After a crash: decides what was under way by what is there (`listed`: UUID → size), and reports what cannot be.
pub fn settle(model: &mut Model, listed: &BTreeMap<Uuid, u64>) -> Result<(), String> {
    if let Some(unknown) = listed.keys().find(|id| !model.contains_key(id)) {
        return Err(format!("lvol {unknown} was never created, or was deleted for good"));
    }
    let ids: Vec<Uuid> = model.keys().copied().collect();
    for id in &ids {
        let Some(volume) = model.get(id) else { continue };
        let Some(origin) = volume.origin.and_then(|o| model.get(&o)) else { continue };
        let mut either = volume.or(origin);
        either.origin = None;
        model.insert(*id, either);
    }
    for id in ids {
        let Some(volume) = model.get_mut(&id) else { continue };
        let Some(size) = listed.get(&id) else {
            if !matches!(volume.fate, Fate::MayBeNew | Fate::MayBeGone) {
                return Err(format!("lvol {} is lost", volume.name));
            }
            model.remove(&id);
            continue;
        };
        if let Fate::MayHaveSize(new) = volume.fate
            && *size == new
        {
            volume.resize(new);
        }
        if *size != volume.size() {
            return Err(format!("lvol {} has {size} bytes instead of {}", volume.name, volume.size()));
        }
        volume.fate = Fate::Stays;
    }
    Ok(())
}
