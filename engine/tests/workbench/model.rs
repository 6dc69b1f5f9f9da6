//! What must be in a store: plain maps, no sharing, nothing clever.

use super::first_difference;
use crate::reader::{LvolView, Reader};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Content is kept in pieces of this size; those that were never written are zero.
pub const CHUNK: u64 = 64 << 10;

/// Compares whole words, also where nothing is optimised.
pub fn is_zero(bytes: &[u8]) -> bool {
    static ZEROES: [u8; CHUNK as usize] = [0; CHUNK as usize];
    bytes.chunks(ZEROES.len()).all(|piece| piece == &ZEROES[..piece.len()])
}

#[derive(Clone, Default)]
pub struct Content {
    pub size: u64,
    chunks: BTreeMap<u64, Arc<Vec<u8>>>,
}

impl Content {
    pub fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut out = vec![0; len as usize];
        self.each(offset, len, |chunk, inside, range| {
            if let Some(bytes) = self.chunks.get(&chunk) {
                out[range.clone()].copy_from_slice(&bytes[inside..inside + range.len()]);
            }
        });
        out
    }

    /// Where something was written: (offset, bytes), at most `max` bytes each.
    fn runs(&self, max: u64) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for at in self.chunks.keys().map(|n| n * CHUNK) {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == at && *len < max => *len += CHUNK,
                _ => runs.push((at, CHUNK)),
            }
        }
        runs
    }

    fn each(&self, offset: u64, len: u64, mut piece: impl FnMut(u64, usize, std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let n = (CHUNK - at % CHUNK).min(len - done);
            piece(at / CHUNK, (at % CHUNK) as usize, done as usize..(done + n) as usize);
            done += n;
        }
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) {
        let mut pieces = Vec::new();
        self.each(offset, data.len() as u64, |chunk, inside, range| pieces.push((chunk, inside, range)));
        for (chunk, inside, range) in pieces {
            if !self.chunks.contains_key(&chunk) && is_zero(&data[range.clone()]) {
                continue;
            }
            let bytes = self.chunks.entry(chunk).or_insert_with(|| Arc::new(vec![0; CHUNK as usize]));
            Arc::make_mut(bytes)[inside..inside + range.len()].copy_from_slice(&data[range]);
        }
    }

    pub fn zero(&mut self, offset: u64, len: u64) {
        let mut pieces = Vec::new();
        self.each(offset, len, |chunk, inside, range| pieces.push((chunk, inside, range.len())));
        for (chunk, inside, n) in pieces {
            if n as u64 == CHUNK {
                self.chunks.remove(&chunk);
            } else if let Some(bytes) = self.chunks.get_mut(&chunk) {
                Arc::make_mut(bytes)[inside..inside + n].fill(0);
            }
        }
    }

    pub fn resize(&mut self, size: u64) {
        if size < self.size {
            let chunk_end = size.next_multiple_of(CHUNK);
            self.zero(size, chunk_end - size);
            self.chunks.retain(|chunk, _| chunk * CHUNK < size);
        }
        self.size = size;
    }
}

#[derive(Clone)]
pub struct Vol {
    pub name: String,
    pub uuid: Uuid,
    pub content: Content,
    pub snapshot: bool,
    pub thick: bool,
    pub hidden: bool,
    pub parent: Option<Uuid>,
    /// A write that failed: nobody knows how far it came.
    pub uncertain: Option<(u64, Vec<u8>)>,
}

impl Vol {
    pub fn new(name: &str, uuid: Uuid, size: u64, thick: bool) -> Vol {
        Vol {
            name: name.into(),
            uuid,
            content: Content { size, chunks: BTreeMap::new() },
            snapshot: false,
            thick,
            hidden: false,
            parent: None,
            uncertain: None,
        }
    }

    /// Compares with what somebody else reads.
    pub fn compare(&self, whole_max: u64, piece: u64, read: impl Fn(u64, u64) -> Result<Vec<u8>>) -> Result<()> {
        let size = self.content.size;
        let mut places: BTreeSet<(u64, u64)> = BTreeSet::new();
        if size <= whole_max {
            places.extend((0..size.div_ceil(piece)).map(|n| (n * piece, piece)));
        } else {
            places.extend(self.content.runs(piece));
            // Holes, and the very end.
            places.extend((0..97).map(|n| ((size / 97 * n) / CHUNK * CHUNK, CHUNK)));
            places.insert((size - CHUNK, CHUNK));
        }
        for (at, len) in places {
            let len = len.min(size - at);
            let (found, expected) = (read(at, len)?, self.content.read(at, len));
            if let Some(n) = first_difference(&found, &expected) {
                ensure!(found.len() == expected.len(), "{} bytes instead of {}", found.len(), expected.len());
                anyhow::bail!("byte {} of {size} is {:#x}, not {:#x}", at + n as u64, found[n], expected[n]);
            }
        }
        Ok(())
    }
}

#[derive(Default)]
pub struct Model {
    vols: BTreeMap<Uuid, Vol>,
}

impl Model {
    /// What the independent reader sees.
    pub fn of(reader: &Reader) -> Result<Model> {
        let views = reader.lvols();
        let mut model = Model::default();
        for view in &views {
            let uuid = |text: Option<&String>| text.map(|t| Uuid::parse_str(t)).transpose();
            let id = uuid(view.uuid.as_ref())?.context("a lvol without UUID")?;
            let mut vol = Vol::new(&view.name, id, view.size_bytes, !view.thin && !view.read_only);
            vol.snapshot = view.read_only;
            vol.parent = uuid(view.parent.as_ref().and_then(|p| p.uuid.as_ref()))?;
            let cluster = reader.store().cluster_size;
            for n in visible(&views, view) {
                vol.content.write(n * cluster, &reader.read(view, n * cluster, cluster as usize)?);
            }
            model.add(vol);
        }
        Ok(model)
    }

    pub fn add(&mut self, vol: Vol) {
        self.vols.insert(vol.uuid, vol);
    }

    /// A lvol that must be there.
    pub fn vol(&mut self, uuid: Uuid) -> &mut Vol {
        self.vols.get_mut(&uuid).expect("the model has it")
    }

    pub fn name(&self, uuid: Uuid) -> String {
        self.get(uuid).map(|v| v.name.clone()).unwrap_or_default()
    }

    pub fn get(&self, uuid: Uuid) -> Option<&Vol> {
        self.vols.get(&uuid)
    }

    pub fn named(&self, name: &str) -> Result<Uuid> {
        self.vols.values().find(|v| v.name == name && !v.hidden).map(|v| v.uuid).with_context(|| format!("no {name}"))
    }

    pub fn vols(&self) -> impl Iterator<Item = &Vol> {
        self.vols.values()
    }

    pub fn uuids(&self) -> Vec<Uuid> {
        self.vols.keys().copied().collect()
    }

    pub fn children(&self, uuid: Uuid, hidden_too: bool) -> Vec<Uuid> {
        let of = |v: &&Vol| v.parent == Some(uuid) && (hidden_too || !v.hidden);
        self.vols.values().filter(of).map(|v| v.uuid).collect()
    }

    /// Ancestors that are listed, the nearest first.
    pub fn ancestors(&self, uuid: Uuid) -> Vec<Uuid> {
        let mut found = Vec::new();
        let mut at = self.get(uuid).and_then(|v| v.parent);
        while let Some(vol) = at.and_then(|p| self.get(p)) {
            found.extend((!vol.hidden).then_some(vol.uuid));
            at = vol.parent;
        }
        found
    }

    pub fn snapshot(&mut self, lvol: Uuid, uuid: Uuid, name: &str) {
        let origin = self.vol(lvol);
        let mut snapshot = origin.clone();
        origin.parent = Some(uuid);
        (snapshot.name, snapshot.uuid, snapshot.snapshot, snapshot.thick) = (name.into(), uuid, true, false);
        self.add(snapshot);
    }

    pub fn add_clone(&mut self, snapshot: Uuid, uuid: Uuid, name: &str, size: Option<u64>, thick: bool) {
        let mut clone = self.vol(snapshot).clone();
        (clone.name, clone.uuid, clone.snapshot, clone.thick) = (name.into(), uuid, false, thick);
        clone.parent = Some(snapshot);
        clone.content.size = size.unwrap_or(clone.content.size);
        self.add(clone);
    }

    pub fn delete(&mut self, lvol: Uuid) {
        if self.children(lvol, true).is_empty() {
            self.vols.remove(&lvol);
        } else {
            self.vol(lvol).hidden = true;
        }
    }

    pub fn set_parent(&mut self, lvol: Uuid, parent: Option<Uuid>) {
        self.vol(lvol).parent = parent;
    }

    pub fn decouple(&mut self, lvol: Uuid) {
        let grandparent = self.get(lvol).and_then(|v| v.parent).and_then(|p| self.get(p)).and_then(|p| p.parent);
        self.set_parent(lvol, grandparent);
    }

    pub fn revert(&mut self, lvol: Uuid, snapshot: Uuid) {
        let content = self.vol(snapshot).content.clone();
        let vol = self.vol(lvol);
        vol.content = content;
        vol.parent = Some(snapshot);
    }

    /// Deleted snapshots go when at most one child is left.
    pub fn settle(&mut self) {
        while let Some((uuid, parent)) =
            self.vols.values().find(|v| v.hidden && self.children(v.uuid, true).len() < 2).map(|v| (v.uuid, v.parent))
        {
            for child in self.children(uuid, true) {
                self.set_parent(child, parent);
            }
            self.vols.remove(&uuid);
        }
    }
}

/// Clusters of a lvol that it or an ancestor owns.
fn visible(views: &[LvolView], view: &LvolView) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut limit = view.num_clusters;
    let mut at = Some(view);
    while let Some(v) = at {
        limit = limit.min(v.num_clusters);
        found.extend(v.own_clusters.iter().map(|(n, _)| *n).filter(|n| *n < limit));
        at = v.parent.as_ref().and_then(|p| views.iter().find(|v| v.blob_id == p.blob_id));
    }
    found
}
