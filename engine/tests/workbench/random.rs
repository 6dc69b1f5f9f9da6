//! Random operations, each done and compared. Everything follows from the seed.

use super::{Bench, Rng, is_full};
use anyhow::{Context, Result, ensure};
use coppice_engine::ErrorKind;
use uuid::Uuid;

/// How wild it gets.
#[derive(Clone, Copy)]
pub struct Limits {
    pub lvols_max: usize,
    /// Clusters of a lvol.
    pub clusters_max: u64,
    /// Bytes of one write or discard.
    pub bytes_max: u64,
}

/// Does `count` operations and compares what they touched after each, and everything now and then.
pub fn run(bench: &mut Bench, seed: u64, count: usize, limits: Limits) -> Result<()> {
    let mut rng = Rng::new(seed);
    for n in 0..count {
        let mut done = String::new();
        let step = loop {
            // Not every operation is possible at every moment.
            let step = step(bench, &mut rng, n, limits, &mut done);
            if step.is_err() || !done.is_empty() {
                break step;
            }
        };
        let step = step.and_then(|touched| {
            bench.compare_tree()?;
            touched
                .into_iter()
                .filter(|l| bench.model.get(*l).is_some())
                .collect::<Vec<_>>()
                .into_iter()
                .try_for_each(|lvol| bench.compare(lvol))?;
            bench.accounts()
        });
        step.with_context(|| format!("seed {seed}, operation {n}: {done}"))?;
        if n % 20 == 19 {
            bench.compare_all().with_context(|| format!("seed {seed}, after operation {n}: {done}"))?;
        }
    }
    Ok(())
}

fn step(bench: &mut Bench, rng: &mut Rng, n: usize, limits: Limits, done: &mut String) -> Result<Vec<Uuid>> {
    let listed: Vec<Uuid> = bench.model.vols().filter(|v| !v.hidden).map(|v| v.uuid).collect();
    let pick = |rng: &mut Rng, wanted: &dyn Fn(&super::Vol) -> bool| -> Option<Uuid> {
        let fit: Vec<Uuid> = bench.model.vols().filter(|v| !v.hidden && wanted(v)).map(|v| v.uuid).collect();
        rng.pick(&fit).copied()
    };
    let writable = pick(rng, &|v| !v.snapshot && v.content.size > 0);
    let snapshot = pick(rng, &|v| v.snapshot);
    let any = rng.pick(&listed).copied();
    let crowded = listed.len() >= limits.lvols_max;
    let (cluster, block) = (bench.cluster, bench.block);
    let size = |rng: &mut Rng| (1 + rng.below(limits.clusters_max)) * cluster - rng.below(cluster);
    let name = format!("v{n}");
    let choice = rng.below(100);
    match (choice, writable, snapshot, any) {
        (0..8, ..) if !crowded => {
            let (size, thick) = (size(rng), rng.one_in(3));
            *done = format!("create {name}, {size} bytes, thick {thick}");
            let made = bench.create_lvol(&name, size, thick);
            allow_full(&made)?;
            Ok(made.into_iter().collect())
        }
        (0..40, Some(lvol), ..) => {
            let (offset, len) = range(bench, rng, lvol, limits.bytes_max);
            let data = if rng.one_in(12) { vec![0; len as usize] } else { rng.bytes(len as usize) };
            let thick = bench.model.vol(lvol).thick;
            *done = format!("write {len} bytes at {offset} of {} ({lvol})", bench.model.name(lvol));
            let result = bench.write(lvol, offset, data);
            ensure!(!thick || result.is_ok(), "a thick lvol: {result:?}");
            allow_full(&result)?;
            Ok(around(bench, lvol))
        }
        (40..50, Some(lvol), ..) => {
            let (offset, len) = range(bench, rng, lvol, limits.bytes_max * 2);
            let align = if rng.one_in(2) { cluster } else { block };
            let (offset, end) = (offset / align * align, (offset + len).next_multiple_of(align));
            let len = end.min(bench.model.vol(lvol).content.size) - offset;
            *done = format!("discard {len} bytes at {offset} of {} ({lvol})", bench.model.name(lvol));
            // Whole clusters never need space; the part of a shared cluster does.
            let result = bench.discard(lvol, offset, len);
            if align == cluster && bench.info()?.free_metadata_pages > 0 {
                ensure!(result.is_ok(), "{result:?}");
            }
            allow_full(&result)?;
            Ok(around(bench, lvol))
        }
        (50..60, Some(lvol), ..) if !crowded => {
            let mut group = vec![(lvol, format!("s{n}"))];
            if let Some(other) =
                pick(rng, &|v| !v.snapshot && v.uuid != lvol && v.content.size > 0).filter(|_| rng.one_in(3))
            {
                group.push((other, format!("s{n}b")));
            }
            *done = format!("snapshot of {:?}", group.iter().map(|(l, _)| bench.model.name(*l)).collect::<Vec<_>>());
            let group: Vec<(Uuid, &str)> = group.iter().map(|(l, name)| (*l, name.as_str())).collect();
            let made = bench.snapshot(&group);
            allow_full(&made)?;
            Ok(made.into_iter().flatten().chain(around(bench, lvol)).collect())
        }
        (60..68, _, Some(snapshot), _) if !crowded => {
            let least = bench.model.vol(snapshot).content.size;
            let size = rng.one_in(2).then(|| least + rng.below(4) * cluster);
            let thick = rng.one_in(4);
            *done = format!("clone {name} of {}, size {size:?}, thick {thick}", bench.model.name(snapshot));
            let made = bench.clone_snapshot(snapshot, &name, size, thick);
            allow_full(&made)?;
            Ok(made.into_iter().collect())
        }
        (68..76, _, _, Some(lvol)) => {
            let deferred = rng.one_in(2);
            let children = bench.model.children(lvol, true);
            *done = format!("delete {} ({lvol}), deferred {deferred}", bench.model.name(lvol));
            let touched = bench.model.uuids().into_iter().filter(|l| *l != lvol).collect();
            let result = bench.delete(lvol, deferred);
            if children.len() > 1 && !deferred {
                ensure!(result.as_ref().is_err_and(|e| e.kind() == ErrorKind::HasClones), "{result:?}");
            } else {
                ensure!(result.is_ok(), "{result:?}");
            }
            Ok(touched)
        }
        (76..83, Some(lvol), ..) => {
            let size = size(rng);
            let old = bench.model.vol(lvol).content.size;
            *done = format!("resize {} ({lvol}) from {old} to {size}", bench.model.name(lvol));
            let result = bench.resize(lvol, size);
            allow_full(&result)?;
            Ok(around(bench, lvol))
        }
        (83..85, _, _, Some(lvol)) => {
            *done = format!("rename {} to r{n}", bench.model.name(lvol));
            let result = bench.rename(lvol, &format!("r{n}"));
            allow_full(&result)?;
            Ok(vec![lvol])
        }
        (85..91, Some(lvol), ..) => {
            let has_parent = bench.model.vol(lvol).parent.is_some();
            let inflate = rng.one_in(2);
            *done = format!("{} {}", if inflate { "inflate" } else { "decouple" }, bench.model.name(lvol));
            let result = if inflate { bench.inflate(lvol) } else { bench.decouple(lvol) };
            if !has_parent && !inflate {
                ensure!(result.as_ref().is_err_and(|e| e.kind() == ErrorKind::Invalid), "{result:?}");
            } else {
                allow_full(&result)?;
            }
            Ok(around(bench, lvol))
        }
        (91..94, Some(lvol), ..) => {
            let ancestors = bench.model.ancestors(lvol);
            let Some(target) = rng.pick(&ancestors).copied() else { return Ok(Vec::new()) };
            *done = format!("revert {} to {}", bench.model.name(lvol), bench.model.name(target));
            let result = bench.revert(lvol, target);
            allow_full(&result)?;
            Ok(bench.model.uuids())
        }
        (94..97, ..) => {
            *done = "reopen".into();
            bench.reopen()?;
            Ok(listed)
        }
        (97, ..) => {
            *done = "check".into();
            bench.reclaimed()?;
            bench.check()?;
            Ok(Vec::new())
        }
        (98, Some(lvol), ..) => {
            *done = "flush".into();
            coppice_engine::shard::block_on(bench.store.flush(lvol))?;
            Ok(Vec::new())
        }
        _ => Ok(Vec::new()),
    }
}

/// The lvol and its relatives, whose content must not have changed.
fn around(bench: &Bench, lvol: Uuid) -> Vec<Uuid> {
    let parent = bench.model.get(lvol).and_then(|v| v.parent);
    let siblings = parent.map(|p| bench.model.children(p, false)).unwrap_or_default();
    [lvol].into_iter().chain(parent).chain(siblings).collect()
}

/// Any offset and length, often at the borders of clusters.
fn range(bench: &mut Bench, rng: &mut Rng, lvol: Uuid, max: u64) -> (u64, u64) {
    let size = bench.model.vol(lvol).content.size;
    let mut offset = rng.below(size);
    if rng.one_in(3) {
        offset = offset / bench.cluster * bench.cluster;
    } else if rng.one_in(3) {
        offset = offset / bench.block * bench.block;
    }
    let mut len = 1 + rng.below(max.min(size - offset));
    if rng.one_in(3) {
        len = len.next_multiple_of(bench.block).min(size - offset);
    }
    (offset, len)
}

fn allow_full<T: std::fmt::Debug>(result: &coppice_engine::Result<T>) -> Result<()> {
    ensure!(result.is_ok() || is_full(result), "{:?}", result.as_ref().err());
    Ok(())
}
