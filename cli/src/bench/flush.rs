//! Flushes: without a map change one device flush, with one a commit; many writers share commits.

use super::load::{Job, Kind};
use super::place::{Effort, Place, in_turns};
use super::rows::{Row, Show};
use super::steady::{against_raw, full};
use super::touch::each_cluster_once;
use anyhow::Result;

const BLOCK: usize = 4096;
const WRITERS: usize = 16;

pub fn rows(place: &Place, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    let store = place.store(cluster)?;
    let span = effort.lvol_bytes / 4;
    let lvol = store.create("mapped", span)?;
    store.fill(lvol)?;
    for (name, kind, depth) in [
        ("flush, no map change", Kind::Flush, 1),
        ("flush after an overwrite", Kind::FlushAfterWrite, 1),
        ("16 writers: overwrite and flush", Kind::WriteFlush, WRITERS),
    ] {
        let job = |base| Job::random(kind, BLOCK, depth, base, span, effort.slice);
        show(Row::of_pairs(full(place, name), "k/s", 1e-3, &against_raw(&store, lvol, effort, job)?))?;
    }
    let size = store.cluster_size();
    let reps = effort.reps.min(7);
    let count = (effort.touches / 4).min(store.free_bytes()? / size / (2 * reps as u64 + 3)).max(4);
    for (name, kind, depth) in [
        ("flush with a map change", Kind::FlushAfterWrite, 1),
        ("16 writers: first touch and flush", Kind::WriteFlush, WRITERS),
    ] {
        let lvols: Vec<_> =
            (0..=reps).map(|n| store.create(&format!("thin-{depth}-{n}"), count * size)).collect::<Result<_>>()?;
        let raw = Job::random(kind, BLOCK, depth, store.raw_base(), span, effort.slice);
        let touch = |n: usize| {
            let lvol = lvols.get(n).copied().unwrap_or_default();
            store.on_lvol(lvol, &Job::each(kind, BLOCK, depth, each_cluster_once(count, size, n as u64 + 1)))
        };
        touch(reps)?;
        let pairs = in_turns(reps, |_| store.on_raw(&raw), touch)?;
        show(Row::of_pairs(full(place, name), "k/s", 1e-3, &pairs))?;
    }
    Ok(())
}
