//! The engine on stores that a real SPDK wrote: it lists and reads them exactly, changes no byte of them by looking, and
//! what it makes of them is again a store for SPDK, in the eyes of the independent reader.

mod reader;
mod unpack;
mod workbench;

use anyhow::{Context, Result, ensure};
use coppice_engine::shard::block_on;
use coppice_engine::{Engine, ErrorKind, LvolInfo, LvolKind, LvolState, OpenStore, Store};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use unpack::Fixture;
use workbench::model::is_zero;
use workbench::random::{self, Limits};
use workbench::{Bench, Rng, engine};

const ALL: &[&str] = &["i_clean", "ii_dirty", "ii_dirty_after_clean", "iii_esnap", "v_big", "vi_b512"];
const PIECE: usize = 4 << 20;

/// Every archive is among those that are tested here.
#[test]
fn all_archives_are_opened() -> Result<()> {
    if let Some(mut names) = unpack::names()? {
        names.retain(|name| !ALL.contains(&name.as_str()));
        ensure!(names.is_empty(), "archives without a test: {names:?}");
    }
    Ok(())
}

#[test]
fn i_clean_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("i_clean")
}

#[test]
fn ii_dirty_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("ii_dirty")
}

#[test]
fn ii_dirty_after_clean_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("ii_dirty_after_clean")
}

#[test]
fn iii_esnap_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("iii_esnap")
}

#[test]
fn v_big_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("v_big")
}

#[test]
fn vi_b512_is_read_and_left_as_it_is() -> Result<()> {
    looked_at("vi_b512")
}

/// Opens read-only and then for writing, compares everything with what SPDK reported, and the image with itself.
fn looked_at(name: &str) -> Result<()> {
    let Some(fixture) = Fixture::unpack(name)? else { return Ok(()) };
    let engine = engine()?;
    let before = fingerprint(&fixture.image())?;
    for read_only in [true, false] {
        let store = block_on(engine.open_store(&fixture.image(), OpenStore { read_only, ..Default::default() }))?;
        verify_store(&store, &fixture.facts)?;
        // The content once; it takes its time.
        verify_lvols(&engine, &store, &fixture.facts, read_only)?;
        let findings = block_on(store.check())?;
        ensure!(findings.is_empty(), "{findings:#?}");
        block_on(store.close())?;
        ensure!(fingerprint(&fixture.image())? == before, "{name}: the image changed (read-only: {read_only})");
    }
    block_on(engine.shutdown());
    Ok(())
}

/// Over all data of a sparse file, and where it lies.
fn fingerprint(path: &Path) -> Result<String> {
    let file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buf = vec![0; PIECE];
    let mut at = 0;
    hash.update(file.metadata()?.len().to_le_bytes());
    while let Ok(start) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let end = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(start))?;
        at = start;
        while at < end {
            let n = (end - at).min(PIECE as u64) as usize;
            let piece = buf.get_mut(..n).context("piece")?;
            file.read_exact_at(piece, at)?;
            // A page of zeroes may be a hole or not: only content counts.
            if !is_zero(piece) {
                hash.update(at.to_le_bytes());
                hash.update(&piece);
            }
            at += n as u64;
        }
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn verify_store(store: &Store, facts: &Value) -> Result<()> {
    let info = block_on(store.info())?;
    let expected = &facts["state"]["lvstore"];
    assert_eq!(Some(info.name.as_str()), expected["name"].as_str());
    assert_eq!(Some(info.uuid.to_string().as_str()), expected["uuid"].as_str());
    assert_eq!(Some(u64::from(info.cluster_size)), expected["cluster_size"].as_u64());
    assert_eq!(Some(u64::from(info.block_size)), expected["block_size"].as_u64());
    let lvols = block_on(store.lvols())?;
    let own: u64 = lvols.iter().map(|l| l.allocated_clusters).sum();
    let number = |key: &str| expected[key].as_u64().context("a number");
    assert_eq!(info.allocated_clusters, own);
    assert_eq!(own, number("total_data_clusters")? - number("free_clusters")?);
    assert_eq!(info.bstype, "LVOLSTORE");
    assert_eq!(info.clean, facts["shutdown"].as_str() == Some("clean"));
    assert!(info.spdk_readable && info.seal_work.is_empty(), "{info:?}");
    Ok(())
}

fn verify_lvols(engine: &Engine, store: &Store, facts: &Value, content: bool) -> Result<()> {
    let lvols = block_on(store.lvols())?;
    let expected = facts["state"]["lvols"].as_array().context("no lvols")?;
    assert_eq!(lvols.len(), expected.len());
    assert!(!engine.shards().is_empty());
    for facts in expected {
        let name = facts["name"].as_str().context("no name")?;
        let info = lvols.iter().find(|l| l.name == name).with_context(|| format!("no {name}"))?;
        verify_lvol(info, &lvols, facts)?;
        if content {
            verify_content(store, info, facts).with_context(|| name.to_string())?;
        }
    }
    Ok(())
}

fn verify_lvol(info: &LvolInfo, all: &[LvolInfo], facts: &Value) -> Result<()> {
    let name = &info.name;
    assert_eq!(Some(info.uuid.to_string().as_str()), facts["uuid"].as_str(), "{name}");
    assert_eq!(Some(info.alias.as_str()), facts["alias"].as_str(), "{name}");
    assert_eq!(Some(info.size), facts["size_bytes"].as_u64(), "{name}");
    assert_eq!(Some(info.allocated_clusters), facts["num_allocated_clusters"].as_u64(), "{name}");
    assert_eq!(Some(info.thin), facts["thin"].as_bool(), "{name}");
    let parent = all.iter().find(|l| Some(l.uuid) == info.parent).map(|p| p.name.as_str());
    assert_eq!(parent, facts["base_snapshot"].as_str(), "{name}");
    let children: Vec<&str> =
        info.children.iter().filter_map(|c| all.iter().find(|l| l.uuid == *c)).map(|l| l.name.as_str()).collect();
    let mut clones: Vec<&str> = facts["clones"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut found = children.clone();
    clones.sort();
    found.sort();
    assert_eq!(found, clones, "{name}");
    if facts["snapshot"].as_bool() == Some(true) {
        assert_eq!(info.kind, LvolKind::Snapshot, "{name}");
    } else if facts["esnap_clone"].as_bool() == Some(true) {
        assert_eq!(info.kind, LvolKind::EsnapClone, "{name}");
    }
    if facts["esnap_clone"].as_bool() == Some(true) {
        assert_eq!(info.parent.map(|p| p.to_string()).as_deref(), facts["external_snapshot_name"].as_str(), "{name}");
    }
    Ok(())
}

fn verify_content(store: &Store, info: &LvolInfo, facts: &Value) -> Result<()> {
    let cluster = u64::from(info.cluster_size);
    let runs: Vec<(u64, u64)> = match facts.get("own_cluster_runs") {
        Some(runs) => serde_json::from_value(runs.clone())?,
        None => Vec::new(),
    };
    let own: Vec<u64> = runs.iter().flat_map(|(first, n)| *first..first + n).collect();
    if info.state == LvolState::Degraded {
        return verify_degraded(store, info, &own);
    }
    assert_eq!(info.state, LvolState::Ok);
    let mut hash = Sha256::new();
    match facts.get("own_clusters_sha256").and_then(Value::as_str) {
        Some(expected) => {
            for n in &own {
                hash.update(n.to_le_bytes());
                hash.update(block_on(store.read(info.uuid, n * cluster, cluster as usize))?);
            }
            assert_eq!(format!("{:x}", hash.finalize()), expected);
            // Places that nobody owns read zero.
            if info.parent.is_none() {
                let total = info.size / cluster;
                for n in (0..199).map(|n| total / 199 * n).filter(|n| own.binary_search(n).is_err()) {
                    let bytes = block_on(store.read(info.uuid, n * cluster, 4096))?;
                    ensure!(is_zero(&bytes), "cluster {n} is not zero");
                }
            }
        }
        None => {
            let mut at = 0;
            while at < info.size {
                let n = (info.size - at).min(PIECE as u64);
                hash.update(block_on(store.read(info.uuid, at, n as usize))?);
                at += n;
            }
            assert_eq!(Some(format!("{:x}", hash.finalize()).as_str()), facts["sha256"].as_str());
        }
    }
    Ok(())
}

/// The external parent is away: own clusters can be read, nothing else is answered, least of all with zeroes.
fn verify_degraded(store: &Store, info: &LvolInfo, own: &[u64]) -> Result<()> {
    let cluster = u64::from(info.cluster_size);
    ensure!(info.reason.as_deref().is_some_and(|r| r.contains("external")), "{info:?}");
    let mut refused = 0;
    for n in 0..info.size / cluster {
        match block_on(store.read(info.uuid, n * cluster, cluster as usize)) {
            Ok(bytes) => ensure!(own.contains(&n) || !is_zero(&bytes), "cluster {n} reads zero"),
            Err(e) => {
                ensure!(!own.contains(&n), "own cluster {n}: {e}");
                ensure!(e.kind() == ErrorKind::Away && e.message().contains("external"), "{e:?}");
                refused += 1;
            }
        }
    }
    ensure!(refused > 0, "{}: everything could be read without its parent", info.name);
    Ok(())
}

#[test]
fn what_spdk_calls_degraded_is_degraded() -> Result<()> {
    let Some(fixture) = Fixture::unpack("iii_esnap")? else { return Ok(()) };
    let bench = Bench::adopt_lenient(&fixture.image())?;
    for facts in fixture.facts["degraded_when_external_absent"].as_array().context("no list")? {
        let name = facts["name"].as_str().context("no name")?;
        let info = bench.lvols()?.into_iter().find(|l| l.name == name).context("no lvol")?;
        assert_eq!(Some(info.state == LvolState::Degraded), facts["degraded"].as_bool(), "{name}");
    }
    Ok(())
}

/// What can be done with an esnap clone whose parent is away; the image is compared through the reader, which has it.
#[test]
fn esnap_clones_without_their_parent() -> Result<()> {
    let Some(fixture) = Fixture::unpack("iii_esnap")? else { return Ok(()) };
    let external = std::fs::read(fixture.file("iii_external.img"))?;
    let bench = Bench::adopt_lenient(&fixture.image())?;
    let (store, cluster) = (bench.store.clone(), bench.cluster);
    let id = |name: &str| -> Result<uuid::Uuid> {
        bench.lvols()?.iter().find(|l| l.name == name).map(|l| l.uuid).context("no lvol")
    };
    let (untouched, ec, ecc, ecs) = (id("ec_untouched")?, id("ec")?, id("ecc")?, id("ecs")?);
    // A write of whole clusters needs nobody; a smaller one needs the parent, and says so.
    let mine = Rng::new(1).bytes(cluster as usize);
    block_on(store.write(untouched, 3 * cluster, mine.clone()))?;
    assert_eq!(block_on(store.read(untouched, 3 * cluster, cluster as usize))?, mine);
    let e = block_on(store.write(untouched, 5 * cluster, vec![1; 4096])).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Away, "{e}");
    // A discarded cluster reads zero, although the parent is away.
    block_on(store.discard(untouched, 6 * cluster, cluster))?;
    assert!(is_zero(&block_on(store.read(untouched, 6 * cluster, cluster as usize))?));
    let e = block_on(store.inflate(untouched, Box::new(|_| true))).unwrap_err();
    assert!(e.kind() == ErrorKind::Away && e.message().contains("external"), "{e:?}");
    // To own what its direct parent owns it needs nobody else; the rest it reads from outside by itself.
    let decoupled = block_on(store.decouple(ec, Box::new(|_| true)))?;
    assert_eq!(decoupled.kind, LvolKind::EsnapClone);
    // Snapshot and clone of it, a snapshot merged into an esnap clone.
    let snap = block_on(store.snapshot(vec![workbench::snapshot_of(untouched, "us")]))?.remove(0);
    let clone = block_on(store.clone_snapshot(workbench::clone_of(snap.uuid, "uc")))?;
    assert_eq!(clone.state, LvolState::Degraded);
    assert_eq!(block_on(store.read(clone.uuid, 3 * cluster, cluster as usize))?, mine);
    block_on(store.delete(untouched, false))?;
    block_on(store.delete(snap.uuid, false))?;
    block_on(bench.lvstore().background_done());
    let merged = block_on(store.lvol(clone.uuid))?;
    assert_eq!(merged.kind, LvolKind::EsnapClone);
    assert_eq!(merged.parent.map(|p| p.to_string()).as_deref(), fixture.facts["external"]["uuid"].as_str());
    block_on(store.delete(ecc, false))?;
    block_on(store.delete(ecs, false))?;
    block_on(bench.lvstore().background_done());
    assert_eq!(block_on(store.lvol(ec))?.kind, LvolKind::EsnapClone);
    bench.reclaimed()?;
    bench.check()?;
    block_on(store.close())?;
    let options = reader::Options {
        esnap: Some(Box::new(move |_, offset, buf| {
            let from = external.get(offset as usize..).unwrap_or_default();
            let n = from.len().min(buf.len());
            buf[..n].copy_from_slice(&from[..n]);
            buf[n..].fill(0);
            Ok(())
        })),
        ..Default::default()
    };
    let judge = reader::Reader::open_with(fixture.image(), options)?;
    ensure!(judge.check_spdk_safe().is_empty(), "{:#?}\n{}", judge.check_spdk_safe(), judge.dump());
    let expected = std::fs::read(fixture.file("iii_external.img"))?;
    let c = cluster as usize;
    let uc = judge.lvol("uc")?;
    let found = judge.read(&uc, 0, 16 * c)?;
    for n in 0..16 {
        let want = match n {
            3 => mine.clone(),
            6 => vec![0; c],
            n => expected.get(n * c..(n + 1) * c).unwrap_or(&vec![0; c]).to_vec(),
        };
        ensure!(found[n * c..(n + 1) * c] == want, "cluster {n} of the clone");
    }
    let facts = fixture.facts["state"]["lvols"].as_array().context("lvols")?;
    for name in ["ec", "plain", "reparented"] {
        let facts = facts.iter().find(|l| l["name"] == name).context("no facts")?;
        assert_eq!(Some(judge.sha256(&judge.lvol(name)?)?.as_str()), facts["sha256"].as_str(), "{name}");
    }
    Ok(())
}

/// Every operation on the lvols that SPDK made, one after the other.
fn worked_on(name: &str) -> Result<()> {
    let Some(fixture) = Fixture::unpack(name)? else { return Ok(()) };
    let mut b = Bench::adopt(&fixture.image())?;
    let mut rng = Rng::new(7);
    b.compare_all().context("as it was")?;
    let (c, mut n) = (b.cluster, 0);
    let mut said = String::new();
    let mut step = |b: &mut Bench, what: String| -> Result<()> {
        n += 1;
        said = what;
        b.compare_all().with_context(|| format!("step {n}: {said}"))
    };
    let of_spdk: Vec<LvolInfo> = b.lvols()?;
    let writable = |i: &&LvolInfo| i.kind != LvolKind::Snapshot && i.size > 0;
    let thin = b.create_lvol("new thin", 5 * c - 1, false)?;
    b.write(thin, c / 2, rng.bytes(2 * c as usize))?;
    let thick = b.create_lvol("new thick", 3 * c, true)?;
    b.write(thick, c - 3, rng.bytes(9))?;
    step(&mut b, "new lvols".into())?;
    for info in of_spdk.iter().filter(writable) {
        let at = rng.below(info.size - info.size.min(c) + 1);
        b.write(info.uuid, at, rng.bytes((c / 2).min(info.size - at) as usize))?;
        b.resize(info.uuid, info.size + 2 * c)?;
        b.write(info.uuid, info.size + c, rng.bytes(100))?;
        step(&mut b, format!("write to {} and growth", info.name))?;
        if info.size > 2 * c {
            b.resize(info.uuid, info.size - c)?;
            b.resize(info.uuid, info.size)?;
        }
        step(&mut b, format!("{} shrunk", info.name))?;
        let snapshot = b.snapshot(&[(info.uuid, &format!("s-{}", &info.uuid.to_string()[..8]))])?[0];
        b.write(info.uuid, 0, rng.bytes(5000))?;
        let size = b.model.vol(snapshot).content.size + c;
        let clone = b.clone_snapshot(snapshot, &format!("c-{}", &info.uuid.to_string()[..8]), Some(size), false)?;
        b.write(clone, info.size - 100, rng.bytes(200))?;
        step(&mut b, format!("snapshot and clone of {}", info.name))?;
        b.discard(clone, 0, c)?;
        step(&mut b, format!("discard in a clone of {}", info.name))?;
        if info.allocated_clusters % 2 == 0 {
            b.delete(clone, false)?;
            b.delete(snapshot, false)?;
        } else {
            b.delete(info.uuid, false)?;
            b.delete(snapshot, false)?;
        }
        step(&mut b, format!("{}: a snapshot merged", info.name))?;
    }
    // The snapshots of SPDK itself.
    for info in of_spdk.iter().filter(|i| i.kind == LvolKind::Snapshot) {
        let clone = b.clone_snapshot(info.uuid, &format!("d-{}", &info.uuid.to_string()[..8]), None, false)?;
        b.write(clone, 0, rng.bytes(100))?;
        let size = b.model.vol(clone).content.size;
        b.resize(clone, size + 2 * c)?;
        b.write(clone, size + c, rng.bytes(c as usize))?;
        b.resize(clone, size.max(2 * c) - c)?;
        b.resize(clone, size)?;
        step(&mut b, format!("a clone of {} grown and shrunk", info.name))?;
        if b.info()?.free_clusters > size / c + 4 {
            b.inflate(clone)?;
        } else {
            b.revert(clone, info.uuid)?;
        }
        step(&mut b, format!("a clone of {} inflated or reverted", info.name))?;
        b.rename(clone, &format!("é{}", b.model.name(clone)))?;
    }
    b.reopen()?;
    step(&mut b, "reopened".into())?;
    for info in of_spdk.iter().filter(|i| i.kind == LvolKind::Snapshot) {
        b.delete(info.uuid, true)?;
        step(&mut b, format!("{} deleted", info.name))?;
    }
    ensure!(b.close_and_judge()?, "not plain after the close");
    Ok(())
}

#[test]
fn i_clean_is_worked_on() -> Result<()> {
    worked_on("i_clean")
}

#[test]
fn ii_dirty_is_worked_on() -> Result<()> {
    worked_on("ii_dirty")
}

#[test]
fn ii_dirty_after_clean_is_worked_on() -> Result<()> {
    worked_on("ii_dirty_after_clean")
}

#[test]
fn vi_b512_is_worked_on() -> Result<()> {
    worked_on("vi_b512")
}

#[test]
fn v_big_is_worked_on() -> Result<()> {
    let Some(fixture) = Fixture::unpack("v_big")? else { return Ok(()) };
    let mut b = Bench::adopt(&fixture.image())?;
    let mut rng = Rng::new(9);
    let (thin, snap) = (b.model.named("thin1t")?, b.model.named("snap1t")?);
    let size = b.model.vol(thin).content.size;
    b.write(thin, size - 5000, rng.bytes(5000))?;
    b.write(thin, 700 << 30, rng.bytes(3 << 20))?;
    let second = b.snapshot(&[(thin, "second")])?[0];
    b.write(thin, 0, rng.bytes(10))?;
    b.compare_all()?;
    let grown = b.clone_snapshot(second, "grown", Some(size + (5 << 30)), false)?;
    b.write(grown, size + (3 << 30), rng.bytes(4096))?;
    b.discard(grown, 0, 512 << 30)?;
    b.compare_all()?;
    b.delete(snap, false)?;
    b.delete(thin, false)?;
    b.delete(second, false)?;
    b.compare_all()?;
    b.resize(grown, 100 << 30)?;
    b.resize(grown, 200 << 30)?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?, "not plain after the close");
    Ok(())
}

/// Random operations on what SPDK left.
#[test]
fn random_operations_on_stores_of_spdk() -> Result<()> {
    for (name, seeds) in [("vi_b512", 0..4), ("i_clean", 4..6), ("ii_dirty_after_clean", 6..8)] {
        for seed in seeds {
            let Some(fixture) = Fixture::unpack(name)? else { return Ok(()) };
            let mut bench = Bench::adopt(&fixture.image())?;
            let limits = Limits { lvols_max: 20, clusters_max: 8, bytes_max: 2 * bench.cluster };
            let run = random::run(&mut bench, seed, 40, limits);
            run.and_then(|()| bench.close_and_judge()).with_context(|| format!("{name}, seed {seed}"))?;
        }
    }
    Ok(())
}
