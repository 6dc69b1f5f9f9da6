//! What the cluster size costs and brings: the table from which the default was chosen.

use super::load::{Job, Kind};
use super::place::{Effort, OnStore, Place, in_turns};
use super::rows::{Row, Show};
use super::stats::Random;
use super::touch::{self, Before};
use anyhow::Result;
use coppice_engine::shard::block_on;
use coppice_engine::store::map::{LEAF_BYTES, LEAF_CLUSTERS};
use std::path::PathBuf;
use uuid::Uuid;

const TIB: u64 = 1 << 40;
const PAGE: u64 = 4096;

pub fn compare(places: &[(&'static str, PathBuf)], sizes: &[u32], effort: &Effort, show: &mut Show<'_>) -> Result<()> {
    for (name, dir) in places {
        let place = Place::new(name, dir, effort.file_bytes)?;
        for before in [Before::Nothing, Before::SharedWithSnapshot] {
            for depth in [1, 32] {
                for size in sizes {
                    let what = if before == Before::Nothing { "4k first touch" } else { "4k first touch, COW" };
                    let name = named(&place, *size, &format!("{what} qd{depth}"));
                    show(touch::row(&place, effort, Some(*size), before, depth, name)?)?;
                }
            }
        }
        for size in sizes {
            aged(&place, *size, effort, show)?;
        }
    }
    for size in sizes {
        let kib = size / 1024;
        let clusters = TIB / u64::from(*size);
        let leaves = clusters / LEAF_CLUSTERS;
        let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
        show(Row::alone(format!("{kib} KiB: space per 4k overwritten after a snapshot"), "KiB", f64::from(kib)))?;
        show(Row::alone(format!("{kib} KiB: map in memory, 1 TiB mapped"), "MiB", mib(leaves * LEAF_BYTES)))?;
        show(Row::alone(format!("{kib} KiB: extent pages, 1 TiB mapped"), "MiB", mib(leaves * PAGE)))?;
    }
    Ok(())
}

fn named(place: &Place, size: u32, what: &str) -> String {
    format!("{}: {} KiB: {what}", place.name, size / 1024)
}

/// A lvol after 30 snapshots with random overwrites between them, two in three of them deleted again, against a fresh
/// one: large sequential reads.
fn aged(place: &Place, size: u32, effort: &Effort, show: &mut Show<'_>) -> Result<()> {
    const ROUNDS: usize = 30;
    let store = place.store(Some(size))?;
    let span = effort.lvol_bytes / 4;
    let fresh = store.create("fresh", span)?;
    store.fill(fresh)?;
    let old = store.create("old", span)?;
    store.fill(old)?;
    let mut random = Random::new(11);
    let mut kept: Vec<Uuid> = Vec::new();
    for round in 0..ROUNDS {
        kept.push(store.snapshot(old, &format!("s{round}"))?);
        // The same 4 KiB writes for every cluster size: 2 % of the lvol's 64 KiB ranges.
        let ranges = span / (64 << 10);
        let places: Vec<u64> = (0..ranges / 50).map(|_| random.below(span / PAGE) * PAGE).collect();
        store.on_lvol(old, &Job::each(Kind::Write, PAGE as usize, 8, places))?;
        while kept.len() > 10 || (kept.len() > 1 && needs_room(&store, span)?) {
            let victim = kept.swap_remove(random.below(kept.len() as u64) as usize);
            block_on(store.store.delete(victim, false))?;
        }
    }
    let job = Job::sequential(Kind::Read, 128 << 10, 4, 0, span, effort.slice);
    store.on_lvol(fresh, &job)?;
    store.on_lvol(old, &job)?;
    let pairs = in_turns(effort.reps, |_| store.on_lvol(fresh, &job), |_| store.on_lvol(old, &job))?;
    show(Row::of_pairs(named(place, size, "128k read, aged against fresh"), "MB/s", 131072.0 / 1e6, &pairs))?;
    Ok(())
}

/// True when the next round could fill the store.
fn needs_room(store: &OnStore<'_>, span: u64) -> Result<bool> {
    Ok(store.free_bytes()? < span)
}
