//! The independent reader against stores that a real SPDK wrote: it must see what SPDK itself reported, lvol by lvol and
//! byte by byte. This is what gives its word weight when it judges the engine's stores.

mod reader;
mod unpack;

use anyhow::{Context, Result, ensure};
use reader::{Esnap, LvolView, Options, Reader};
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use unpack::Fixture;

/// Every archive has a test below; a new one must get its own.
#[test]
fn all_archives_are_read() -> Result<()> {
    let tested = ["i_clean", "ii_dirty", "ii_dirty_after_clean", "iii_esnap", "v_big", "vi_b512"];
    if let Some(mut names) = unpack::names()? {
        names.retain(|name| !tested.contains(&name.as_str()));
        ensure!(names.is_empty(), "archives without a test: {names:?}");
    }
    Ok(())
}

#[test]
fn i_clean() -> Result<()> {
    let Some(fixture) = Fixture::unpack("i_clean")? else { return Ok(()) };
    let reader = verify(&fixture)?;
    for (name, read_only) in [("ro", true), ("snap1", true), ("thicksnap", true), ("clone1", false), ("thin1", false)] {
        assert_eq!(reader.lvol(name)?.read_only, read_only, "{name}");
    }
    let grown = reader.lvol("grown_clone")?;
    let parent_end = reader.lvol("snap1")?.size_bytes;
    assert!(grown.size_bytes > parent_end);
    let beyond = reader.read(&grown, parent_end, 1 << 20)?;
    assert!(beyond.iter().all(|&b| b == 0), "beyond its parent's end a clone reads zeroes");
    assert!(reader.read(&grown, grown.size_bytes - 1, 2).is_err(), "a read beyond the end");
    Ok(())
}

#[test]
fn ii_dirty() -> Result<()> {
    let Some(fixture) = Fixture::unpack("ii_dirty")? else { return Ok(()) };
    verify(&fixture).map(|_| ())
}

#[test]
fn ii_dirty_after_clean() -> Result<()> {
    let Some(fixture) = Fixture::unpack("ii_dirty_after_clean")? else { return Ok(()) };
    verify(&fixture).map(|_| ())
}

#[test]
fn iii_esnap() -> Result<()> {
    let Some(fixture) = Fixture::unpack("iii_esnap")? else { return Ok(()) };
    let reader = verify(&fixture)?;
    let without = Reader::open(fixture.image())?;
    let clone = without.lvol("ec_untouched")?;
    assert!(without.read(&clone, 0, 1).is_err(), "an external parent that is not given cannot be read");
    assert_eq!(reader.read(&clone, 0, 4096)?, std::fs::read(fixture.file("iii_external.img"))?[..4096]);
    Ok(())
}

#[test]
fn v_big() -> Result<()> {
    let Some(fixture) = Fixture::unpack("v_big")? else { return Ok(()) };
    let reader = verify(&fixture)?;
    let big = reader.lvol("snap1t")?;
    let blob = reader.blob(big.blob_id).context("no blob")?;
    assert!(blob.chain.len() > 1, "chained metadata pages");
    assert!(blob.extent_pages.len() > 500, "hundreds of extent pages");
    Ok(())
}

#[test]
fn vi_b512() -> Result<()> {
    let Some(fixture) = Fixture::unpack("vi_b512")? else { return Ok(()) };
    verify(&fixture).map(|_| ())
}

/// Compares the store with what SPDK reported about it, content included.
fn verify(fixture: &Fixture) -> Result<Reader> {
    let facts = &fixture.facts;
    let clean = text(facts, "shutdown")? == "clean";
    let base_block_size = Some(u32::try_from(number(facts, "base_block_size")?)?);
    let esnap = facts.get("external").map(|external| external_parent(fixture, external)).transpose()?;
    let reader = Reader::open_with(fixture.image(), Options { base_block_size, esnap, ..Options::default() })?;
    let state = facts.get("state").context("no state")?;
    verify_store(&reader, state.get("lvstore").context("no lvstore")?, clean)?;

    let mut errors = reader.check_spdk_safe();
    if !clean {
        errors.retain(|error| error != "super.clean: is 0");
    }
    ensure!(errors.is_empty(), "{} breaks rules: {errors:#?}\n{}", fixture.name, reader.dump());
    ensure!(reader.unopenable().is_empty() && reader.repairs().is_empty(), "{}", reader.dump());

    let lvols = reader.lvols();
    let expected = state.get("lvols").and_then(Value::as_array).context("no lvols")?;
    let mut names: Vec<&str> = expected.iter().map(|lvol| text(lvol, "name")).collect::<Result<_>>()?;
    let mut found: Vec<&str> = lvols.iter().map(|lvol| lvol.name.as_str()).collect();
    names.sort();
    found.sort();
    assert_eq!(found, names, "{}", reader.dump());
    std::thread::scope(|scope| {
        let reader = &reader;
        let verify = |facts| scope.spawn(move || verify_lvol(reader, facts));
        let threads: Vec<_> = expected.iter().map(verify).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(reader)
}

fn external_parent(fixture: &Fixture, external: &Value) -> Result<Esnap> {
    let file = File::open(fixture.file(text(external, "file")?))?;
    let uuid = text(external, "uuid")?.to_string();
    Ok(Box::new(move |id, offset, buf| {
        ensure!(id == uuid, "unknown external snapshot {id}");
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset + filled as u64)? {
                0 => {
                    rest.fill(0);
                    break;
                }
                count => filled += count,
            }
        }
        Ok(())
    }))
}

fn verify_store(reader: &Reader, facts: &Value, clean: bool) -> Result<()> {
    let store = reader.store();
    assert_eq!(store.name, text(facts, "name")?);
    assert_eq!(store.uuid, text(facts, "uuid")?);
    assert_eq!(store.bstype, "LVOLSTORE");
    assert_eq!((store.clean, store.recovered), (clean, !clean));
    assert_eq!(u64::from(store.block_size), number(facts, "block_size")?);
    assert_eq!(store.cluster_size, number(facts, "cluster_size")?);
    assert_eq!(store.total_data_clusters, number(facts, "total_data_clusters")?);
    assert_eq!(store.free_clusters, number(facts, "free_clusters")?);
    assert_eq!(store.max_growable_bytes, number(facts, "max_growable_size")?);
    Ok(())
}

fn verify_lvol(reader: &Reader, facts: &Value) -> Result<()> {
    let name = text(facts, "name")?;
    let lvol = reader.lvol(name)?;
    assert_eq!(lvol.uuid.as_deref(), Some(text(facts, "uuid")?), "{name}");
    assert_eq!(lvol.size_bytes, number(facts, "size_bytes")?, "{name}");
    assert_eq!(lvol.num_clusters, number(facts, "num_clusters")?, "{name}");
    assert_eq!(lvol.own_clusters.len() as u64, number(facts, "num_allocated_clusters")?, "{name}");
    assert_eq!(lvol.thin, flag(facts, "thin")?, "{name}");
    assert_eq!(lvol.parent.is_some(), flag(facts, "clone")?, "{name}");
    assert_eq!(lvol.esnap.is_some(), flag(facts, "esnap_clone")?, "{name}");
    assert_eq!(lvol.esnap.as_deref(), facts.get("external_snapshot_name").and_then(Value::as_str), "{name}");
    let parent = lvol.parent.as_ref().map(|parent| parent.name.as_str());
    assert_eq!(parent, facts.get("base_snapshot").and_then(Value::as_str), "{name}");
    verify_clones(reader, &lvol, facts)?;
    let runs = match facts.get("own_cluster_runs") {
        Some(runs) => serde_json::from_value(runs.clone())?,
        None => Vec::new(),
    };
    assert_eq!(lvol.own_cluster_runs(), runs, "{name}");
    match facts.get("own_clusters_sha256") {
        Some(hash) => assert_eq!(Some(reader.own_clusters_sha256(&lvol)?.as_str()), hash.as_str(), "{name}"),
        None => assert_eq!(reader.sha256(&lvol)?, text(facts, "sha256")?, "{name}"),
    }
    Ok(())
}

fn verify_clones(reader: &Reader, lvol: &LvolView, facts: &Value) -> Result<()> {
    let mut expected: Vec<String> = match facts.get("clones") {
        Some(clones) => serde_json::from_value(clones.clone())?,
        None => Vec::new(),
    };
    let is_clone = |other: &LvolView| other.parent.as_ref().is_some_and(|parent| parent.blob_id == lvol.blob_id);
    let mut found: Vec<String> = reader.lvols().into_iter().filter(is_clone).map(|clone| clone.name).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected, "clones of {}", lvol.name);
    Ok(())
}

fn text<'a>(facts: &'a Value, key: &str) -> Result<&'a str> {
    facts.get(key).and_then(Value::as_str).with_context(|| format!("no text {key:?} in {facts}"))
}

fn number(facts: &Value, key: &str) -> Result<u64> {
    facts.get(key).and_then(Value::as_u64).with_context(|| format!("no number {key:?} in {facts}"))
}

fn flag(facts: &Value, key: &str) -> Result<bool> {
    facts.get(key).and_then(Value::as_bool).with_context(|| format!("no flag {key:?} in {facts}"))
}
