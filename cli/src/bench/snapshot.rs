//! Snapshots: what they cost by size, and what they do to the I/O of others.

use super::load::{Job, Kind, Slice};
use super::place::{Effort, Place};
use super::rows::{Row, Show};
use super::stats::quantile;
use super::steady::full;
use super::swallow::BigStore;
use anyhow::{Context, Result};
use coppice_engine::CreateSnapshot;
use coppice_engine::shard::block_on;
use std::path::Path;
use std::time::{Duration, Instant};
use uuid::Uuid;

const GIB: u64 = 1 << 30;

/// Time between two snapshots under load.
const INTERVAL: Duration = Duration::from_millis(100);

/// Latency of I/O while its lvol is snapshotted again and again, against the same without.
pub fn under_load(place: &Place, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    for (kind, what) in [(Kind::Read, "read"), (Kind::Write, "write")] {
        let store = place.store(cluster)?;
        // Small, so that the copies after each snapshot fit into the file.
        let room = store.free_bytes()? / (effort.snapshots as u64 + 3);
        let span = room.min(64 << 20) / store.cluster_size() * store.cluster_size();
        let lvol = store.create("loaded", span)?;
        store.fill(lvol)?;
        let time = INTERVAL * effort.snapshots as u32;
        let job = Job { latencies: true, ..Job::random(kind, 4096, 4, 0, span, time) };
        let calm = store.on_lvol(lvol, &job)?;
        let mut took = Vec::new();
        let loaded = std::thread::scope(|threads| -> Result<Slice> {
            let load = threads.spawn(|| store.on_lvol(lvol, &job));
            for n in 0..effort.snapshots {
                std::thread::sleep(INTERVAL.mul_f64(0.9));
                let began = Instant::now();
                store.snapshot(lvol, &format!("s{n}"))?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
            load.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the load ended early")))
        })?;
        for (q, name) in [(0.5, "p50"), (0.999, "p99.9"), (1.0, "max")] {
            let us = |s: &Slice| quantile(&s.latencies.iter().map(|n| f64::from(*n) / 1e3).collect::<Vec<_>>(), q);
            let (before, during) = (us(&calm), us(&loaded));
            let row = Row::alone(full(place, &format!("4k {what} qd4 {name}, calm / snapshotted")), "µs", during);
            show(Row { raw: Some(before), ratio: Some(before / during.max(1e-9)), ..row })?;
        }
        show(Row::alone(full(place, &format!("snapshot under {what}s")), "ms", quantile(&took, 0.5)))?;
    }
    Ok(())
}

/// Snapshot and delete of fully mapped lvols of several sizes.
pub fn by_size(dir: &Path, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    const REPS: usize = 9;
    let total: u64 = effort.mapped_gib.iter().sum::<u64>() * GIB;
    let big = BigStore::new(dir, total + total / 16 + GIB, cluster)?;
    for gib in effort.mapped_gib {
        let lvol = big.mapped(&format!("mapped-{gib}"), gib * GIB)?;
        let (mut snaps, mut deletes) = (Vec::new(), Vec::new());
        for n in 0..REPS {
            let began = Instant::now();
            let snapshot = snapshot(&big, lvol, format!("s{gib}-{n}"))?;
            snaps.push(began.elapsed().as_secs_f64() * 1e3);
            let began = Instant::now();
            delete(&big, snapshot)?;
            deletes.push(began.elapsed().as_secs_f64() * 1e3);
        }
        for (what, times) in [("snapshot", &snaps), ("delete of the snapshot", &deletes)] {
            let note = format!("{:.2}–{:.2}", quantile(times, 0.0), quantile(times, 1.0));
            let row = Row::alone(format!("{what}, {gib} GiB mapped"), "ms", quantile(times, 0.5));
            show(row.note(format!("(min–max {note})")))?;
        }
    }
    Ok(())
}

fn snapshot(big: &BigStore, lvol: Uuid, name: String) -> Result<Uuid> {
    let lv = big.lv.clone();
    let how = CreateSnapshot { lvol, name, uuid: None, attributes: Default::default(), hidden: false };
    let made = block_on(big.shard.call(move |shard| async move { lv.snapshot(&shard, vec![how]).await }))?;
    Ok(made.first().context("a snapshot")?.uuid)
}

fn delete(big: &BigStore, snapshot: Uuid) -> Result<()> {
    let lv = big.lv.clone();
    Ok(block_on(big.shard.call(move |shard| async move { lv.delete(&shard, snapshot, false).await }))?)
}
