//! Reads and overwrites of clusters that are there: the path that must cost nothing, at any depth of the clone chain.

use super::load::{Job, Kind, Slice};
use super::place::{Effort, OnStore, Place, in_turns};
use super::rows::{Row, Show};
use super::stats::Random;
use super::swallow::BigStore;
use anyhow::Result;
use std::path::Path;
use uuid::Uuid;

const BLOCK: usize = 4096;
const LARGE: usize = 128 << 10;
/// 128 KiB requests in flight.
const LARGE_DEPTH: usize = 4;

/// Random and sequential I/O on one lvol against the device.
pub fn rows(place: &Place, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    let store = place.store(cluster)?;
    let span = effort.lvol_bytes;
    let lvol = store.create("steady", span)?;
    store.fill(lvol)?;
    for (name, kind, depth) in [
        ("4k random read qd1", Kind::Read, 1),
        ("4k random read qd32", Kind::Read, 32),
        ("4k random overwrite qd1", Kind::Write, 1),
        ("4k random overwrite qd32", Kind::Write, 32),
    ] {
        let job = |base| Job::random(kind, BLOCK, depth, base, span, effort.slice);
        show(Row::of_pairs(full(place, name), "kIOPS", 1e-3, &against_raw(&store, lvol, effort, job)?))?;
    }
    for (name, kind) in [("128k sequential read qd4", Kind::Read), ("128k sequential overwrite qd4", Kind::Write)] {
        let job = |base| Job::sequential(kind, LARGE, LARGE_DEPTH, base, span, effort.slice);
        let pairs = against_raw(&store, lvol, effort, job)?;
        show(Row::of_pairs(full(place, name), "MB/s", LARGE as f64 / 1e6, &pairs))?;
    }
    Ok(())
}

pub fn full(place: &Place, name: &str) -> String {
    format!("{}: {name}", place.name)
}

/// The same job on the device and on a lvol; `job` makes it for the place where it begins.
pub fn against_raw(
    store: &OnStore<'_>,
    lvol: Uuid,
    effort: &Effort,
    job: impl Fn(u64) -> Job,
) -> Result<Vec<(Slice, Slice)>> {
    let seeded = |job: Job, n: usize| Job { seed: n as u64 + 1, ..job };
    let (on_raw, on_lvol) = (job(store.raw_base()), job(0));
    // The first of each warms caches, loads the map and is thrown away.
    store.on_raw(&on_raw)?;
    store.on_lvol(lvol, &on_lvol)?;
    in_turns(
        effort.reps,
        |n| store.on_raw(&seeded(on_raw.clone(), n)),
        |n| store.on_lvol(lvol, &seeded(on_lvol.clone(), n)),
    )
}

/// A lvol at the end of a chain of snapshots against one without ancestors: reads of clusters whose owners lie anywhere in
/// the chain, and overwrites of clusters that it owns.
pub fn depth_rows(place: &Place, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    const DEPTH: usize = 32;
    let store = place.store(cluster)?;
    let span = effort.lvol_bytes / 4;
    let flat = store.create("depth-0", span)?;
    store.fill(flat)?;
    let deep = store.create("depth-32", span)?;
    store.fill(deep)?;
    let mut shallow = None;
    let mut clusters: Vec<u64> = (0..span / store.cluster_size()).collect();
    Random::new(3).shuffle(&mut clusters);
    let share = clusters.len().div_ceil(DEPTH);
    for n in 0..DEPTH {
        let snapshot = store.snapshot(deep, &format!("s{n}"))?;
        if n + 1 == 8 {
            shallow = Some(store.clone_of(snapshot, "depth-8")?);
        }
        let part: Vec<u64> = clusters.iter().skip(n * share).take(share).map(|c| c * store.cluster_size()).collect();
        store.on_lvol(deep, &Job::each(Kind::Write, BLOCK, 8, part))?;
    }
    let lvols = [(8, shallow.unwrap_or(deep)), (32, deep)];
    for (kind, what) in [(Kind::Read, "read"), (Kind::Write, "overwrite")] {
        for (depth, lvol) in lvols {
            if kind == Kind::Write {
                store.fill(lvol)?;
            }
            for queue in [1, 32] {
                let job = Job::random(kind, BLOCK, queue, 0, span, effort.slice);
                store.on_lvol(flat, &job)?;
                store.on_lvol(lvol, &job)?;
                let pairs = in_turns(effort.reps, |_| store.on_lvol(flat, &job), |_| store.on_lvol(lvol, &job))?;
                let name = format!("4k random {what} qd{queue}, depth {depth} against 0");
                show(Row::of_pairs(full(place, &name), "kIOPS", 1e-3, &pairs))?;
            }
        }
    }
    Ok(())
}

/// The engine's own code and nothing else: a device that answers without a system call.
pub fn null_rows(dir: &Path, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    let span = effort.lvol_bytes;
    let store = BigStore::new(dir, 4 * span, cluster)?;
    let lvol = store.mapped("null", span)?;
    for (name, kind) in [("4k random read qd32", Kind::Read), ("4k random overwrite qd32", Kind::Write)] {
        let job = |base| Job::random(kind, BLOCK, 32, base, span, effort.slice);
        let (on_raw, on_lvol) = (job(store.raw_base()), job(0));
        store.on_raw(&on_raw)?;
        store.on_lvol(lvol, &on_lvol)?;
        let pairs = in_turns(effort.reps, |_| store.on_raw(&on_raw), |_| store.on_lvol(lvol, &on_lvol))?;
        show(Row::of_pairs(format!("null: {name}"), "kIOPS", 1e-3, &pairs))?;
    }
    Ok(())
}
