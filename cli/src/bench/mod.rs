//! `coppice bench`: what the lvol layer costs, measured against the device below it in one run.
//!
//! Every ratio comes from pairs of short runs in turns (A B B A …) of the same load on the same ring, once through the lvol
//! and once straight to the same part of the same device. Devices: a file in a directory of the caller's choice; a file in
//! memory, which answers at once and so shows the software's cost; and a null device that moves nothing and makes no system
//! call, which shows the cost of the engine's own code.

mod clusters;
mod elsewhere;
mod flush;
mod load;
mod place;
mod rows;
mod snapshot;
mod stats;
mod steady;
mod swallow;
mod touch;

use crate::{output, size};
use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use place::{Effort, Place};
use rows::{Row, Show, header, text};
use std::path::{Path, PathBuf};

/// A file system in memory.
const MEMORY_DIR: &str = "/dev/shm";

/// The engine's own I/O benchmark: raw device against lvol, in one run.
#[derive(Args, Debug, Clone)]
pub struct BenchArgs {
    /// Where the backing file of the "file" rows is made (nameless; nothing stays behind).
    #[arg(long, default_value = ".")]
    dir: PathBuf,
    /// About 20 seconds: shows that everything runs, says little.
    #[arg(long)]
    quick: bool,
    /// Only these parts (several, separated by commas).
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these devices.
    #[arg(long, value_enum, value_delimiter = ',')]
    on: Vec<On>,
    /// Cluster size of the stores, e.g. 64K.
    #[arg(long, value_parser = size::parse_u32)]
    cluster_size: Option<u32>,
    /// Instead of the rows above, compare these cluster sizes, e.g. 64K,128K,256K,4M.
    #[arg(long, value_parser = size::parse_u32, value_delimiter = ',')]
    compare_clusters: Vec<u32>,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// 4 KiB random and 128 KiB sequential on allocated clusters.
    Steady,
    /// First touch and copy on write.
    Touch,
    /// Chains of snapshots.
    Depth,
    Flush,
    /// The engine's own code on a device that does nothing.
    Null,
    /// Latency while snapshots are taken.
    Load,
    /// Snapshot and delete by size.
    Size,
    /// A snapshot of another store: the first read, the copy, the others' latency meanwhile.
    Elsewhere,
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    File,
    Memory,
}

pub async fn run(args: BenchArgs, json: bool) -> Result<()> {
    // The load runs on data threads of its own; this one waits for them.
    tokio::task::spawn_blocking(move || measure(&args, json)).await?
}

fn measure(args: &BenchArgs, json: bool) -> Result<()> {
    let effort = if args.quick { Effort::QUICK } else { Effort::FULL };
    let mut rows: Vec<Row> = Vec::new();
    let tell = |line: String| if json { Ok(()) } else { output::print(&(line + "\n")) };
    tell(header())?;
    let mut show = |row: Row| {
        tell(text(&row))?;
        rows.push(row);
        Ok(())
    };
    if args.compare_clusters.is_empty() {
        parts(args, &effort, &mut show)?;
    } else {
        clusters::compare(&places(args)?, &args.compare_clusters, &effort, &mut show)?;
    }
    if json { output::print_json(&serde_json::json!({ "rows": rows })) } else { Ok(()) }
}

fn parts(args: &BenchArgs, effort: &Effort, show: &mut Show<'_>) -> Result<()> {
    let wanted = |part| args.only.is_empty() || args.only.contains(&part);
    let cluster = args.cluster_size;
    if [Part::Steady, Part::Touch, Part::Depth, Part::Flush, Part::Load].into_iter().any(wanted) {
        for (name, dir) in places(args)? {
            let place = Place::new(name, &dir, effort.file_bytes)?;
            if wanted(Part::Steady) {
                steady::rows(&place, effort, cluster, show).context("steady I/O")?;
            }
            if wanted(Part::Touch) {
                touch::rows(&place, effort, cluster, show).context("first touch")?;
            }
            if wanted(Part::Depth) {
                steady::depth_rows(&place, effort, cluster, show).context("depth of the chain")?;
            }
            if wanted(Part::Flush) {
                flush::rows(&place, effort, cluster, show).context("flush")?;
            }
            if wanted(Part::Load) {
                snapshot::under_load(&place, effort, cluster, show).context("snapshots under load")?;
            }
        }
    }
    if wanted(Part::Elsewhere) {
        for (name, dir) in places(args)? {
            elsewhere::rows(name, &dir, effort, cluster, show).context("a snapshot of another store")?;
        }
    }
    if wanted(Part::Null) {
        steady::null_rows(&args.dir, effort, cluster, show).context("null device")?;
    }
    if wanted(Part::Size) {
        snapshot::by_size(&args.dir, effort, cluster, show).context("snapshots by size")?;
    }
    Ok(())
}

/// The devices that are asked for.
fn places(args: &BenchArgs) -> Result<Vec<(&'static str, PathBuf)>> {
    let wanted = |on| args.on.is_empty() || args.on.contains(&on);
    let mut places = Vec::new();
    if wanted(On::File) {
        places.push(("file", args.dir.clone()));
    }
    if wanted(On::Memory) {
        if !Path::new(MEMORY_DIR).is_dir() {
            bail!("{MEMORY_DIR} is missing; mount a tmpfs there, or leave it out with --on file");
        }
        places.push(("memory", PathBuf::from(MEMORY_DIR)));
    }
    Ok(places)
}
