//! Damaged metadata (P4, P5): the lvol that it belongs to is named and not used, everything else goes on, nothing is given
//! away that might be the damaged lvol's, and when the damage is undone everything is there again.

mod reader;
mod workbench;

use anyhow::{Context, Result, bail, ensure};
use coppice_engine::shard::block_on;
use coppice_engine::{CreateLvol, ErrorKind, LvolState, OpenStore};
use reader::{Options, Reader};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use workbench::{Bench, Rng, clone_of, is_full, snapshot_of, store_of};

const CLUSTER: u32 = 64 << 10;
const PAGE: usize = 4096;

/// The bytes of a store and where things are in it.
struct Image {
    bytes: Vec<u8>,
    reader: Reader,
}

impl Image {
    fn chain(&self, lvol: &str, n: usize) -> Result<u64> {
        let blob = self.reader.blob(self.reader.lvol(lvol)?.blob_id).context("no blob")?;
        Ok(self.reader.page_offset(*blob.chain.get(n).context("no such page")?))
    }

    fn extent_page(&self, lvol: &str) -> Result<u64> {
        let blob = self.reader.blob(self.reader.lvol(lvol)?.blob_id).context("no blob")?;
        Ok(self.reader.page_offset(blob.extent_pages.first().context("no extent page")?.page))
    }

    fn cluster(&self, lvol: &str) -> Result<u32> {
        Ok(self.reader.lvol(lvol)?.own_clusters.first().context("no cluster")?.1)
    }

    fn flip(&mut self, at: u64) -> Result<()> {
        *self.bytes.get_mut(at as usize).context("beyond the end")? ^= 0x40;
        Ok(())
    }

    /// Changes a page and repairs its CRC.
    fn edit(&mut self, page: u64, edit: impl FnOnce(&mut [u8])) {
        let page = &mut self.bytes[page as usize..page as usize + PAGE];
        edit(page);
        seal(page);
    }

    /// Replaces bytes of a page by others of the same length.
    fn replace(&mut self, page: u64, old: &[u8], new: &[u8]) -> Result<()> {
        let bytes = &self.bytes[page as usize..page as usize + PAGE];
        let at = bytes.windows(old.len()).position(|w| w == old).context("not found")?;
        self.edit(page, |p| p[at..at + new.len()].copy_from_slice(new));
        Ok(())
    }

    /// Gives an lvol another parent.
    fn set_parent(&mut self, lvol: &str, parent: u64) -> Result<()> {
        let old = self.reader.lvol(lvol)?.parent.context("no parent")?.blob_id;
        let page = self.chain(lvol, 0)?;
        let xattr = |id: u64| [&b"\x04\0\x08\0SNAP"[..], &id.to_le_bytes()].concat();
        self.replace(page, &xattr(old), &xattr(parent))
    }

    fn id(&self, lvol: &str) -> Result<u64> {
        Ok(self.reader.lvol(lvol)?.blob_id)
    }

    /// Where the descriptors of a page end.
    fn descriptor_end(&self, page: u64) -> usize {
        let page = &self.bytes[page as usize..page as usize + PAGE];
        let mut at = 16;
        while page[at..at + 5] != [0; 5] {
            at += 5 + u32::from_le_bytes([page[at + 1], page[at + 2], page[at + 3], page[at + 4]]) as usize;
        }
        at
    }

    /// Offset of the body of the extent table in the root.
    fn table(&self, root: u64) -> Result<usize> {
        let page = &self.bytes[root as usize..root as usize + PAGE];
        let mut at = 16;
        while page[at] != 5 {
            ensure!(page[at] != 0 && at < 4000, "no table");
            at += 5 + u32::from_le_bytes([page[at + 1], page[at + 2], page[at + 3], page[at + 4]]) as usize;
        }
        Ok(at + 5)
    }
}

fn put(page: &mut [u8], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn seal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE - 4]);
    put(page, PAGE - 4, crc);
}

/// A store of every kind of lvol; `victim`, `parent` and its clone `child`, and `wide`, whose chain is long, get damaged.
fn healthy(path: &Path) -> Result<Bench> {
    let how = store_of("lvs", 16 << 20, CLUSTER, 4096);
    let mut b = Bench::create(path, how)?;
    let mut rng = Rng::new(11);
    for name in ["victim", "bystander", "wide", "parent-to-be"] {
        let lvol = b.create_lvol(name, 10 << 16, false)?;
        b.write(lvol, 70_000, rng.bytes(100_000))?;
    }
    let wide = b.model.named("wide")?;
    for n in 0..3 {
        block_on(b.store.set_attributes(wide, vec![(format!("a{n}"), Some("v".repeat(3000)))]))?;
    }
    let origin = b.model.named("parent-to-be")?;
    b.snapshot(&[(origin, "parent")])?;
    b.rename(origin, "child")?;
    b.write(origin, 0, rng.bytes(10))?;
    let thick = b.create_lvol("thick", 3 << 16, true)?;
    b.write(thick, 5, rng.bytes(1000))?;
    let by = b.model.named("bystander")?;
    b.snapshot(&[(by, "bystander-snapshot")])?;
    b.write(by, 300_000, rng.bytes(5000))?;
    ensure!(b.close_and_judge()?);
    Ok(b)
}

/// The store as it lies there after a clean close, or as a kill leaves it.
fn image_of(path: &Path, b: &Bench, killed: bool) -> Result<Image> {
    let reader = Reader::open(path)?;
    let bytes = if killed {
        let store = block_on(b.engine.open_store(path, OpenStore::default()))?;
        let thick = block_on(store.lvols())?.into_iter().find(|l| l.name == "thick").context("thick")?.uuid;
        block_on(store.set_attributes(thick, vec![("k".into(), Some("v".into()))]))?;
        let bytes = std::fs::read(path)?;
        block_on(store.close())?;
        bytes
    } else {
        std::fs::read(path)?
    };
    Ok(Image { bytes, reader })
}

type Damage = fn(&mut Image) -> Result<()>;

/// What was done, how, which lvols suffer, and the kind of a finding.
struct Case(&'static str, Damage, &'static [&'static str], &'static str);

/// Stands for the lvol whose name is gone with its root.
const NAMELESS: &str = "blob-";

const CASES: &[Case] = &[
    Case("root", |i| i.flip(i.chain("victim", 0)? + 100), &[NAMELESS], "damaged"),
    Case("CRC of a root", |i| i.flip(i.chain("victim", 0)? + 4092), &[NAMELESS], "damaged"),
    Case("root of a snapshot", |i| i.flip(i.chain("parent", 0)? + 200), &[NAMELESS, "child"], "parent-damaged"),
    Case("second page of a chain", |i| i.flip(i.chain("wide", 1)? + 100), &["wide"], "damaged"),
    Case("last page of a chain", |i| i.flip(i.chain("wide", 2)? + 3000), &["wide"], "damaged"),
    Case("extent page", |i| i.flip(i.extent_page("victim")? + 30), &["victim"], "extent-page"),
    Case("extent page of a snapshot", |i| i.flip(i.extent_page("parent")? + 30), &["parent", "child"], "extent-page"),
    // CRCs repaired from here on.
    Case("new descriptor", |i| i.edit_at("victim", 16, 99), &[NAMELESS], "damaged"),
    Case("next page beyond the end", |i| i.edit_at("wide", 4088, 1 << 20), &["wide"], "damaged"),
    Case("chain in a circle", |i| i.next_is_root("wide"), &["wide"], "damaged"),
    Case("chain into another", |i| i.next_is("wide", "victim"), &["wide"], "damaged"),
    Case("unknown incompatible flag", |i| i.edit_at("victim", 25, 1), &["victim"], "damaged"),
    Case("cluster beyond the end", |i| i.map("victim", 1 << 20), &["victim"], "cluster-range"),
    Case("cluster of the metadata", |i| i.map("victim", 1), &["victim"], "cluster-range"),
    Case("zero mark without flag", |i| i.map("victim", u32::MAX), &["victim"], "cluster-range"),
    Case(
        "cluster of somebody else",
        |i| i.map_other("victim", "bystander-snapshot"),
        &["victim", "bystander-snapshot", "bystander"],
        "cluster-owned-twice",
    ),
    Case("one cluster twice", |i| i.map_other("victim", "victim"), &["victim"], "cluster-owned-twice"),
    Case(
        "extent page of another range",
        |i| {
            let p = i.extent_page("victim")?;
            i.edit(p, |p| put(p, 21, 512));
            Ok(())
        },
        &["victim"],
        "extent-page",
    ),
    Case("table beyond the end", |i| i.table_entry("victim", 1 << 20), &["victim"], "page-range"),
    Case("table with somebody's page", |i| i.table_shared("victim", "child"), &["victim", "child"], "page-used-twice"),
    Case("a huge table", |i| i.huge_table("victim"), &["victim"], "damaged"),
    Case("parent that is not there", |i| i.set_parent("child", (1 << 32) | 250), &["child"], "parent-missing"),
    Case(
        "its own parent",
        |i| {
            let id = i.id("child")?;
            i.set_parent("child", id)
        },
        &["child"],
        "parent-missing",
    ),
    Case(
        "a writable parent",
        |i| {
            let id = i.id("victim")?;
            i.set_parent("child", id)
        },
        &["child"],
        "parent-writable",
    ),
    Case(
        "a circle of parents",
        |i| {
            let id = i.id("bystander")?;
            i.snap("bystander-snapshot", id)
        },
        &["bystander", "bystander-snapshot"],
        "parent-cycle",
    ),
    Case("UUID twice", |i| i.same_uuid("victim", "wide"), &["wide"], "uuid"),
];

impl Image {
    fn edit_at(&mut self, lvol: &str, at: usize, value: u32) -> Result<()> {
        let page = self.chain(lvol, 0)?;
        self.edit(page, |p| put(p, at, value));
        Ok(())
    }

    fn index(&self, lvol: &str) -> Result<u32> {
        Ok(self.reader.blob(self.id(lvol)?).context("no blob")?.chain[0])
    }

    fn next_is_root(&mut self, lvol: &str) -> Result<()> {
        let (page, root) = (self.chain(lvol, 1)?, self.index(lvol)?);
        self.edit(page, |p| put(p, 4088, root));
        Ok(())
    }

    fn next_is(&mut self, lvol: &str, other: &str) -> Result<()> {
        let root = self.index(other)?;
        self.edit_at(lvol, 4088, root)
    }

    fn map(&mut self, lvol: &str, cluster: u32) -> Result<()> {
        let page = self.extent_page(lvol)?;
        self.edit(page, |p| put(p, 25 + 9 * 4, cluster));
        Ok(())
    }

    fn map_other(&mut self, lvol: &str, other: &str) -> Result<()> {
        let cluster = self.cluster(other)?;
        self.map(lvol, cluster)
    }

    fn table_entry(&mut self, lvol: &str, value: u32) -> Result<()> {
        let page = self.chain(lvol, 0)?;
        let at = self.table(page)? + 8;
        self.edit(page, |p| put(p, at, value));
        Ok(())
    }

    fn table_shared(&mut self, lvol: &str, other: &str) -> Result<()> {
        let blob = self.reader.blob(self.id(other)?).context("no blob")?;
        let page = blob.extent_pages.first().context("no extent page")?.page;
        self.table_entry(lvol, page)
    }

    fn huge_table(&mut self, lvol: &str) -> Result<()> {
        let page = self.chain(lvol, 0)?;
        let at = self.table(page)?;
        self.edit(page, |p| {
            p[at..at + 8].copy_from_slice(&(1u64 << 32).to_le_bytes());
            put(p, at + 8, 0);
            put(p, at + 12, 1 << 23);
        });
        Ok(())
    }

    /// Adds a parent to a snapshot that has none.
    fn snap(&mut self, lvol: &str, parent: u64) -> Result<()> {
        let page = self.chain(lvol, 0)?;
        let end = self.descriptor_end(page);
        let body = [&b"\x04\x10\0\0\0\x04\0\x08\0SNAP"[..], &parent.to_le_bytes()].concat();
        self.edit(page, |p| {
            p[end..end + body.len()].copy_from_slice(&body);
            p[21] |= 2;
        });
        Ok(())
    }

    fn same_uuid(&mut self, from: &str, to: &str) -> Result<()> {
        let uuid = |name: &str| -> Result<String> { self.reader.lvol(name)?.uuid.context("no UUID") };
        let (new, old) = (uuid(from)?, uuid(to)?);
        let page = self.chain(to, 0)?;
        self.replace(page, old.as_bytes(), new.as_bytes())
    }
}

#[test]
fn damage_stays_where_it_is_after_a_clean_close() -> Result<()> {
    each_case(false)
}

#[test]
fn damage_stays_where_it_is_after_a_kill() -> Result<()> {
    each_case(true)
}

fn each_case(killed: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let mut b = healthy(&path)?;
    let good = image_of(&path, &b, killed)?.bytes;
    for case in CASES {
        let mut image = Image {
            bytes: good.clone(),
            reader: Reader::open_with(&path, Options { lenient: true, ..Options::default() })?,
        };
        let damaged_path = folder.path().join("damaged.img");
        (case.1)(&mut image).with_context(|| case.0.to_string())?;
        ensure!(image.bytes != good, "{}: nothing was damaged", case.0);
        std::fs::write(&damaged_path, &image.bytes)?;
        examine(&mut b, &damaged_path, case, killed, &image.bytes, &good)
            .with_context(|| format!("{} (killed: {killed})", case.0))?;
    }
    Ok(())
}

fn examine(b: &mut Bench, path: &Path, case: &Case, killed: bool, bad: &[u8], good: &[u8]) -> Result<()> {
    let Case(_, _, expected, kind) = case;
    let store = block_on(b.engine.open_store(path, OpenStore::default()))?;
    let findings = block_on(store.check())?;
    ensure!(findings.iter().any(|f| f.kind == *kind), "no finding of kind {kind}: {findings:#?}");
    let lvols = block_on(store.lvols())?;
    let damaged: BTreeSet<&str> = lvols
        .iter()
        .filter(|l| l.state == LvolState::Damaged)
        .map(|l| if l.name.starts_with(NAMELESS) { NAMELESS } else { l.name.as_str() })
        .collect();
    ensure!(damaged == expected.iter().copied().collect(), "damaged are {damaged:?}: {findings:#?}");
    for name in expected.iter().filter(|n| **n != NAMELESS) {
        ensure!(findings.iter().any(|f| f.lvol.as_deref() == Some(name)), "{name} is not in {findings:#?}");
    }
    ensure!(lvols.len() == b.model.vols().count(), "{} lvols are listed", lvols.len());
    for info in &lvols {
        let id = info.uuid;
        if info.state == LvolState::Damaged {
            // Of two lvols with one UUID one is used.
            if *kind == "uuid" {
                continue;
            }
            ensure!(info.reason.is_some(), "{info:?}");
            for (what, result) in [
                ("read", block_on(store.read(id, 0, 1)).map(|_| ())),
                ("write", block_on(store.write(id, 0, vec![1]))),
                ("discard", block_on(store.discard(id, 0, 65536))),
                ("snapshot", block_on(store.snapshot(vec![snapshot_of(id, "n")])).map(|_| ())),
                ("clone", block_on(store.clone_snapshot(clone_of(id, "n"))).map(|_| ())),
                ("resize", block_on(store.resize(id, 1 << 20)).map(|_| ())),
                ("rename", block_on(store.rename(id, "n")).map(|_| ())),
                ("attributes", block_on(store.set_attributes(id, vec![("k".into(), Some("v".into()))])).map(|_| ())),
                ("inflate", block_on(store.inflate(id, Box::new(|_| true))).map(|_| ())),
            ] {
                let Err(e) = result else { bail!("{what} of damaged {}", info.name) };
                ensure!(e.kind() == ErrorKind::Corrupt && e.message().contains(&info.name), "{what}: {e:?}");
            }
            continue;
        }
        let vol = b.model.get(id).with_context(|| format!("nobody made {info:?}"))?;
        vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(id, at, len as usize))?))
            .with_context(|| info.name.clone())?;
    }
    // Everybody else goes on, until the store is full.
    let flood = block_on(store.create_lvol(CreateLvol { name: "flood".into(), size: 64 << 20, ..Default::default() }))?;
    let mut at = 0;
    loop {
        let result = block_on(store.write(flood.uuid, at, Rng::new(at).bytes(1 << 20)));
        if is_full(&result) {
            break;
        }
        result?;
        at += 1 << 20;
    }
    // After a kill nothing says which clusters a lost entry named: no new ones are given out.
    let frozen = killed && matches!(*kind, "extent-page" | "cluster-range" | "cluster-owned-twice");
    ensure!(frozen == (at == 0), "{at} bytes were written before the store was full");
    for info in lvols.iter().filter(|l| l.state == LvolState::Ok && l.name == "thick" && !frozen) {
        block_on(store.write(info.uuid, 0, vec![0; 3 << 16])).context("thick")?;
        let vol = b.model.get(info.uuid).context("thick")?;
        block_on(store.write(info.uuid, 0, vol.content.read(0, 3 << 16)))?;
    }
    block_on(store.delete(flood.uuid, false))?;
    block_on(store.close())?;
    // The damage is undone: every byte that was overwritten by it comes back, wherever the store did not write itself.
    let mut now = std::fs::read(path)?;
    for (n, page) in bad.chunks(PAGE).enumerate() {
        let range = n * PAGE..n * PAGE + PAGE;
        if page != &good[range.clone()] {
            ensure!(&now[range.clone()] == page, "damaged page {n} was written");
            now[range.clone()].copy_from_slice(&good[range]);
        }
    }
    std::fs::write(path, &now)?;
    let store = block_on(b.engine.open_store(path, OpenStore::default()))?;
    let findings = block_on(store.check())?;
    ensure!(findings.is_empty(), "after the repair: {findings:#?}");
    for vol in b.model.vols() {
        vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(vol.uuid, at, len as usize))?))
            .with_context(|| format!("after the repair: {}", vol.name))?;
    }
    block_on(store.close())?;
    // And again: damaged lvols can be deleted, the rest stays, and their space comes back.
    std::fs::write(path, bad)?;
    let store = block_on(b.engine.open_store(path, OpenStore::default()))?;
    let mut left: Vec<_> = block_on(store.lvols())?.into_iter().filter(|l| l.state == LvolState::Damaged).collect();
    // A lvol that shares its UUID cannot be named, and in a circle everybody is somebody's parent.
    if matches!(*kind, "uuid" | "parent-cycle") {
        return Ok(block_on(store.close())?);
    }
    while !left.is_empty() {
        let before = left.len();
        left.retain(|l| block_on(store.delete(l.uuid, false)).is_err());
        ensure!(left.len() < before, "cannot be deleted: {left:#?}");
    }
    block_on(store.close())?;
    let store = block_on(b.engine.open_store(path, OpenStore::default()))?;
    for info in block_on(store.lvols())? {
        ensure!(info.state == LvolState::Ok, "{info:?}");
        let vol = b.model.get(info.uuid).context("nobody made it")?;
        vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(info.uuid, at, len as usize))?))?;
    }
    let findings = block_on(store.check())?;
    ensure!(findings.is_empty(), "after the deletes: {findings:#?}");
    block_on(store.close())?;
    Ok(())
}

fn folder_with_store() -> Result<(TempDir, PathBuf, Bench)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let b = healthy(&path)?;
    Ok((folder, path, b))
}

/// Masks have no CRC. Every bit of every mask, flipped: no lvol is lost, and what SPDK would do wrong with it is reported.
#[test]
fn flipped_mask_bits_lose_nothing() -> Result<()> {
    let (folder, path, b) = folder_with_store()?;
    let good = image_of(&path, &b, false)?;
    let sb = good.reader.super_block();
    let masks =
        [("pages", sb.page_mask.start), ("clusters", sb.cluster_mask.start), ("blob ids", sb.blob_id_mask.start)];
    let damaged = folder.path().join("damaged.img");
    for (what, start) in masks {
        for byte in 0..12 {
            let mut bytes = good.bytes.clone();
            let at = start as usize * PAGE + 5 + byte;
            let used = bytes[at];
            // All that are set in this byte at once.
            bytes[at] = 0;
            if used == 0 {
                continue;
            }
            std::fs::write(&damaged, &bytes)?;
            let store = block_on(b.engine.open_store(&damaged, OpenStore::default()))?;
            let findings = block_on(store.check())?;
            ensure!(findings.iter().any(|f| f.kind == "mask"), "{what}, byte {byte}: {findings:#?}");
            block_on(store.create_lvol(CreateLvol { name: "n".into(), size: 1, ..Default::default() }))?;
            block_on(store.close())?;
            let store = block_on(b.engine.open_store(&damaged, OpenStore { read_only: true, ..Default::default() }))?;
            for vol in b.model.vols() {
                vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(vol.uuid, at, len as usize))?))
                    .with_context(|| format!("{what}, byte {byte}: {}", vol.name))?;
            }
            ensure!(block_on(store.check())?.is_empty(), "the close wrote the masks anew");
            block_on(store.close())?;
        }
        // A mask that is none.
        let mut bytes = good.bytes.clone();
        bytes[start as usize * PAGE] ^= 7;
        std::fs::write(&damaged, &bytes)?;
        let store = block_on(b.engine.open_store(&damaged, OpenStore::default()))?;
        let findings = block_on(store.check())?;
        ensure!(findings.iter().any(|f| f.kind == "mask"), "{what}: {findings:#?}");
        ensure!(block_on(store.lvols())?.iter().all(|l| l.state == LvolState::Ok));
        block_on(store.close())?;
    }
    Ok(())
}

/// The super block and its copy, the journal's heads: one of two is enough.
#[test]
fn one_of_two_is_enough() -> Result<()> {
    let (folder, path, b) = folder_with_store()?;
    let killed = image_of(&path, &b, true)?.bytes;
    let damaged = folder.path().join("damaged.img");
    let find = |magic: &[u8]| -> Vec<usize> {
        (0..killed.len() / PAGE).map(|n| n * PAGE).filter(|at| killed[*at..].starts_with(magic)).collect()
    };
    let private = coppice_engine::format::SuperBlock::parse(&killed[..PAGE])?.private()?.context("in use")?;
    let area = private.extents[0].start_cluster as usize * CLUSTER as usize;
    ensure!(find(b"SPDKBLOB").contains(&(area + PAGE)), "the copy of the super block");
    for (what, place, opens) in [
        ("super block", 200, true),
        ("copy of the super block", area + PAGE + 200, true),
        ("envelope of the copy", area + 20, true),
        ("first head", area + 2 * PAGE + 20, true),
        ("second head", area + 3 * PAGE + 20, true),
    ] {
        let mut bytes = killed.clone();
        bytes[place] ^= 4;
        std::fs::write(&damaged, &bytes)?;
        let store = block_on(b.engine.open_store(&damaged, OpenStore::default()));
        ensure!(store.is_ok() == opens, "{what}: {:?}", store.err());
        let store = store?;
        for vol in b.model.vols() {
            vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(vol.uuid, at, len as usize))?))
                .with_context(|| format!("{what}: {}", vol.name))?;
        }
        // What was acknowledged before the kill is there.
        let thick = b.model.named("thick")?;
        ensure!(block_on(store.lvol(thick))?.attributes.contains_key("k"), "{what}: an acknowledged change is gone");
        if what.contains("super") || what.contains("copy") {
            let findings = block_on(store.check())?;
            ensure!(findings.iter().any(|f| f.kind == "super-block"), "{what}: {findings:#?}");
        }
        block_on(store.create_lvol(CreateLvol { name: "n".into(), size: 1, ..Default::default() }))?;
        ensure!(block_on(store.check())?.is_empty(), "{what}: the next change repairs it");
        block_on(store.close())?;
    }
    let mut bytes = killed.clone();
    (bytes[area + 2 * PAGE + 20], bytes[area + 3 * PAGE + 20]) = (1, 1);
    std::fs::write(&damaged, &bytes)?;
    let e = block_on(b.engine.open_store(&damaged, OpenStore::default())).map(|_| ()).unwrap_err();
    ensure!(e.kind() == ErrorKind::Corrupt && e.message().contains("journal"), "{e:?}");
    Ok(())
}

/// The newest head of the journal is gone; the other one is older than the log. What was acknowledged under the newest one
/// is there all the same.
#[test]
fn a_lost_journal_head_loses_nothing() -> Result<()> {
    let (folder, path, b) = folder_with_store()?;
    let damaged = folder.path().join("damaged.img");
    std::fs::write(&damaged, image_of(&path, &b, true)?.bytes)?;
    // Opened after a kill the journal begins anew, under a new head.
    let store = block_on(b.engine.open_store(&damaged, OpenStore::default()))?;
    let thick = b.model.named("thick")?;
    block_on(store.set_attributes(thick, vec![("second".into(), Some("v".into()))]))?;
    let killed = std::fs::read(&damaged)?;
    block_on(store.close())?;
    let private = coppice_engine::format::SuperBlock::parse(&killed[..PAGE])?.private()?.context("in use")?;
    let area = private.extents[0].start_cluster as usize * CLUSTER as usize;
    for head in [2, 3] {
        let mut bytes = killed.clone();
        bytes[area + head * PAGE + 20] ^= 4;
        std::fs::write(&damaged, &bytes)?;
        let store = block_on(b.engine.open_store(&damaged, OpenStore::default()))?;
        let attributes = block_on(store.lvol(thick))?.attributes;
        ensure!(attributes.contains_key("k") && attributes.contains_key("second"), "head {head}: {attributes:?}");
        block_on(store.create_lvol(CreateLvol { name: "n".into(), size: 1, ..Default::default() }))?;
        ensure!(block_on(store.check())?.is_empty());
        block_on(store.close())?;
    }
    Ok(())
}

/// A snapshot that SPDK was about to merge into a clone that does not open any more stays (format section 8.4): its
/// content is perhaps all that is left of both.
#[test]
fn a_half_done_merge_into_a_damaged_clone_loses_nothing() -> Result<()> {
    let (_dir, path, b) = folder_with_store()?;
    let mut image = image_of(&path, &b, false)?;
    let (snapshot, child) = (image.chain("parent", 0)?, image.chain("child", 0)?);
    let id = image.id("child")?;
    let end = image.descriptor_end(snapshot);
    image.edit(snapshot, |page| {
        let marker = [&b"\x04\x12\0\0\0\x06\0\x08\0SNAPRM"[..], &id.to_le_bytes()].concat();
        page[end..end + marker.len()].copy_from_slice(&marker);
        // There are internal xattrs now.
        page[21] |= 2;
    });
    image.flip(child + 4000)?;
    std::fs::write(&path, &image.bytes)?;
    let kept = b.model.named("parent")?;
    for _ in 0..2 {
        let store = block_on(b.engine.open_store(&path, OpenStore::default()))?;
        let bystander = b.model.named("bystander")?;
        block_on(store.set_attributes(bystander, vec![("k".into(), Some("v".into()))]))?;
        let vol = b.model.get(kept).context("not in the model")?;
        vol.compare(1 << 30, 1 << 20, |at, len| Ok(block_on(store.read(kept, at, len as usize))?))?;
        block_on(store.close())?;
    }
    Ok(())
}
