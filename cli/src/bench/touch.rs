//! First touch: a 4 KiB write into a cluster that nobody has yet, or that a snapshot has, against an overwrite on the device.
//!
//! Nothing is ever deleted here: a freed cluster would be given back to the device, and its next first touch would measure
//! the backing file's own allocation.

use super::load::{Job, Kind};
use super::place::{Effort, OnStore, Place, in_turns};
use super::rows::{Row, Show};
use super::stats::Random;
use super::steady::full;
use anyhow::Result;
use uuid::Uuid;

const BLOCK: usize = 4096;

/// What the touched clusters were before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Before {
    Nothing,
    SharedWithSnapshot,
}

pub fn rows(place: &Place, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    for (before, what) in [(Before::Nothing, "4k first touch"), (Before::SharedWithSnapshot, "4k first touch, COW")] {
        for depth in [1, 32] {
            show(row(place, effort, cluster, before, depth, full(place, &format!("{what} qd{depth}")))?)?;
        }
    }
    Ok(())
}

pub fn row(
    place: &Place,
    effort: &Effort,
    cluster: Option<u32>,
    before: Before,
    depth: usize,
    name: String,
) -> Result<Row> {
    let store = place.store(cluster)?;
    let size = store.cluster_size();
    let reps = effort.reps.min(7);
    // One share for the common ancestor, one for each run, and some room.
    let count = effort.touches.min(store.free_bytes()? / size / (reps as u64 + 2)).max(8);
    let lvols = fresh_lvols(&store, before, reps + 1, count * size)?;
    let raw = Job::random(Kind::Write, BLOCK, depth, store.raw_base(), count * size, effort.slice);
    let touch = |n: usize| {
        let places = each_cluster_once(count, size, n as u64 + 1);
        let lvol = lvols.get(n).copied().unwrap_or_default();
        store.on_lvol(lvol, &Job::each(Kind::Write, BLOCK, depth, places))
    };
    store.on_raw(&raw)?;
    touch(reps)?;
    let pairs = in_turns(reps, |_| store.on_raw(&raw), touch)?;
    Ok(Row::of_pairs(name, "kIOPS", 1e-3, &pairs))
}

/// `count` lvols of `bytes` none of whose clusters is its own.
pub fn fresh_lvols(store: &OnStore<'_>, before: Before, count: usize, bytes: u64) -> Result<Vec<Uuid>> {
    match before {
        Before::Nothing => (0..count).map(|n| store.create(&format!("thin{n}"), bytes)).collect(),
        Before::SharedWithSnapshot => {
            let origin = store.create("origin", bytes)?;
            store.fill(origin)?;
            let snapshot = store.snapshot(origin, "snapshot")?;
            (0..count).map(|n| store.clone_of(snapshot, &format!("clone{n}"))).collect()
        }
    }
}

/// A random block of each of `count` clusters, in random order.
pub fn each_cluster_once(count: u64, size: u64, seed: u64) -> Vec<u64> {
    let mut random = Random::new(seed);
    let mut places: Vec<u64> =
        (0..count).map(|c| c * size + random.below(size / BLOCK as u64) * BLOCK as u64).collect();
    random.shuffle(&mut places);
    places
}
