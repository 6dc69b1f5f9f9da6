//! Random operations on stores of many shapes, compared with a plain model after each, judged by the independent reader at
//! every close.
//!
//! `COPPICE_SEEDS=N` runs N more seeds of each shape.

mod reader;
mod workbench;

use anyhow::{Context, Result};
use workbench::random::{self, Limits};
use workbench::{Bench, Rng, store_of};

const OPERATIONS: usize = 60;

struct Shape {
    name: &'static str,
    cluster_size: u32,
    block_size: u32,
    size: u64,
    limits: Limits,
}

fn shape(name: &'static str, cluster_size: u32, block_size: u32, size: u64, clusters_max: u64) -> Shape {
    let bytes_max = u64::from(cluster_size) * 3;
    Shape { name, cluster_size, block_size, size, limits: Limits { lvols_max: 12, clusters_max, bytes_max } }
}

fn seeds(shape: &Shape, seeds: std::ops::Range<u64>) -> Result<()> {
    let more: u64 = std::env::var("COPPICE_SEEDS").map_or(Ok(0), |n| n.parse())?;
    for seed in seeds.clone().chain((1000..1000 + more).map(|n| n + seeds.start * 1000)) {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        // Not blank inside: a cluster that is not filled shows.
        std::fs::write(&path, Rng::new(seed).bytes(shape.size as usize))?;
        let mut how = store_of("lvs", shape.size, shape.cluster_size, shape.block_size);
        (how.file_size, how.force) = (None, true);
        let run = || -> Result<()> {
            let mut bench = Bench::create(&path, how)?;
            random::run(&mut bench, seed, OPERATIONS, shape.limits)?;
            bench.compare_all()?;
            bench.reopen()?;
            bench.compare_all()
        };
        run().with_context(|| format!("{}, seed {seed}", shape.name))?;
    }
    Ok(())
}

#[test]
fn clusters_of_4k() -> Result<()> {
    // Several extent pages per lvol.
    seeds(&shape("4 KiB clusters", 4096, 4096, 16 << 20, 1300), 0..6)
}

#[test]
fn clusters_of_4k_in_a_small_store() -> Result<()> {
    seeds(&shape("4 KiB clusters, small store", 4096, 512, 3 << 20, 200), 10..16)
}

#[test]
fn clusters_of_16k() -> Result<()> {
    seeds(&shape("16 KiB clusters", 16 << 10, 512, 16 << 20, 100), 20..28)
}

#[test]
fn clusters_of_64k() -> Result<()> {
    seeds(&shape("64 KiB clusters", 64 << 10, 4096, 24 << 20, 60), 30..38)
}

#[test]
fn clusters_of_128k_in_a_full_store() -> Result<()> {
    seeds(&shape("128 KiB clusters, full store", 128 << 10, 4096, 6 << 20, 30), 40..48)
}

#[test]
fn clusters_of_1m() -> Result<()> {
    seeds(&shape("1 MiB clusters", 1 << 20, 512, 64 << 20, 10), 50..54)
}

#[test]
fn clusters_of_4m() -> Result<()> {
    seeds(&shape("4 MiB clusters", 4 << 20, 4096, 128 << 20, 4), 60..62)
}
