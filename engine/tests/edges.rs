//! Places where a store is at one of its limits: long chains, no metadata page left, damage in what has to be written back.

mod reader;
mod workbench;

use anyhow::{Context, Result, bail, ensure};
use coppice_engine::shard::block_on;
use coppice_engine::{CreateStore, ErrorKind, LvolState, OpenStore, Store};
use reader::Reader;
use std::path::Path;
use workbench::{Bench, Rng, is_full, store_of};

const PAGE: usize = 4096;
const K4: u32 = 4096;

/// The chain of a large lvol has more pages than a record of this store's journal. Once an operation that wrote all of them
/// made a batch that did not fit, and the store took no changes any more.
#[test]
fn chains_longer_than_a_journal_record() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 64 << 20, K4, K4))?;
    let (mut rng, size) = (Rng::new(1), 100u64 << 30);
    let big = b.create_lvol("big", size, false)?;
    b.write(big, 0, rng.bytes(5000))?;
    b.resize(big, size + 4096)?;
    b.write(big, size, rng.bytes(4096))?;
    b.check()?;
    b.reopen()?;
    // Now the chain lies as it was found, and is laid out anew.
    b.write(big, size / 2, rng.bytes(5000))?;
    let snapshot = b.snapshot(&[(big, "snapshot")])?[0];
    b.write(big, size / 2, rng.bytes(100))?;
    b.resize(big, size / 2)?;
    block_on(b.store.flush(big))?;
    b.compare_all()?;
    b.check()?;
    // What a kill leaves.
    let copy = folder.path().join("copy.img");
    std::fs::copy(&b.path, &copy)?;
    let other = block_on(b.engine.open_store(&copy, OpenStore::default()))?;
    ensure!(block_on(other.check())?.is_empty(), "{:#?}", block_on(other.check())?);
    ensure!(block_on(other.lvol(big))?.size == size / 2);
    block_on(other.close())?;
    b.reopen()?;
    b.delete(big, false)?;
    b.delete(snapshot, false)?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

/// A discarded cluster of a snapshot hides what its parent has. Sealing gives it a cluster of zeroes, which the child's leaf,
/// loaded before, does not show. Once a decouple after that took over neither, and what had been discarded came back.
#[test]
fn what_was_discarded_stays_so_after_a_seal_and_a_decouple() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 64 << 20, K4, K4))?;
    let lvol = b.create_lvol("lvol", 1 << 20, false)?;
    b.write(lvol, 0, Rng::new(1).bytes(64 << 10))?;
    b.snapshot(&[(lvol, "full")])?;
    b.discard(lvol, 16 << 10, 16 << 10)?;
    b.snapshot(&[(lvol, "with a hole")])?;
    // Its own leaf from now on, not the snapshot's.
    b.write(lvol, 60 << 10, Rng::new(2).bytes(4096))?;
    b.compare(lvol)?;
    block_on(b.store.seal())?;
    b.decouple(lvol)?;
    b.compare_all()?;
    b.reopen()?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

/// Several long chains at one instant, right after a start.
#[test]
fn long_chains_in_one_group_snapshot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 64 << 20, K4, K4))?;
    let mut lvols = Vec::new();
    for n in 0..4 {
        lvols.push(b.create_lvol(&format!("l{n}"), 20 << 30, false)?);
    }
    b.reopen()?;
    let names = ["s0", "s1", "s2", "s3"];
    let all: Vec<_> = lvols.iter().copied().zip(names).collect();
    b.snapshot(&all)?;
    b.compare_tree()?;
    b.accounts()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

/// Fills the metadata pages to the last one, those for discards included. After a close and a start the store must still
/// take deletes: the first change of a start needs pages of its own.
#[test]
fn a_store_without_metadata_pages_can_be_emptied() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 8 << 20, K4, K4))?;
    let (mut rng, range) = (Rng::new(2), 512 * u64::from(K4));
    let origin = b.create_lvol("origin", 60 * range, false)?;
    for n in 0..60 {
        b.write(origin, n * range, rng.bytes(4096))?;
    }
    let snapshot = b.snapshot(&[(origin, "snapshot")])?[0];
    let clone = b.clone_snapshot(snapshot, "clone", None, false)?;
    let mut small = Vec::new();
    loop {
        match b.create_lvol(&format!("small-{}", small.len()), 4096, false) {
            Ok(lvol) => small.push(lvol),
            Err(e) if e.kind() == ErrorKind::NoMetadataSpace => break,
            Err(e) => bail!("{e:?}"),
        }
    }
    let full = (0..60).map(|n| b.discard(clone, n * range, 4096)).find(is_full);
    ensure!(full.is_some(), "the discards found room: {:?}", b.info()?);
    b.compare_all()?;
    block_on(b.store.close())?;
    b.store = block_on(b.engine.open_store(&b.path, OpenStore::default()))?;
    for lvol in small {
        b.delete(lvol, false)?;
    }
    b.create_lvol("again", 4096, false)?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

fn put(page: &mut [u8], at: usize, value: u32) {
    page[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn edit(image: &mut [u8], page: u64, edit: impl FnOnce(&mut [u8])) {
    let page = &mut image[page as usize..page as usize + PAGE];
    edit(page);
    let crc = crc32c::crc32c(&page[..PAGE - 4]);
    put(page, PAGE - 4, crc);
}

fn extent_page(reader: &Reader, lvol: &str) -> Result<u64> {
    let blob = reader.blob(reader.lvol(lvol)?.blob_id).context("no blob")?;
    Ok(reader.page_offset(blob.extent_pages.first().context("no extent page")?.page))
}

/// A damaged lvol has what the masks say that it has; nothing more is kept for it.
#[test]
fn a_damaged_thick_lvol_reserves_nothing() -> Result<()> {
    const CLUSTER: u32 = 64 << 10;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let mut b = Bench::create(&path, store_of("lvs", 16 << 20, CLUSTER, K4))?;
    let free = b.info()?.free_clusters;
    let size = free * 3 / 5 * u64::from(CLUSTER);
    let thick = b.create_lvol("thick", size, true)?;
    let thin = b.create_lvol("thin", size, false)?;
    b.write(thick, 0, Rng::new(3).bytes(size as usize))?;
    ensure!(b.close_and_judge()?);
    let at = extent_page(&Reader::open(&path)?, "thick")?;
    let mut image = std::fs::read(&path)?;
    image[at as usize + 30] ^= 1;
    std::fs::write(&path, &image)?;
    b.store = block_on(b.engine.open_store(&path, OpenStore::default()))?;
    ensure!(block_on(b.store.lvol(thick))?.state == LvolState::Damaged);
    block_on(b.store.write(thin, 0, vec![1; CLUSTER as usize]))?;
    let info = b.info()?;
    ensure!(info.reserved_clusters == 0 && info.free_clusters > 0, "{info:?}");
    Ok(block_on(b.store.close())?)
}

/// A clone with a zero mark whose snapshot is damaged: the mark cannot be filled, and the store is closed all the same.
#[test]
fn a_store_with_a_damaged_clone_can_be_closed() -> Result<()> {
    const CLUSTER: u32 = 64 << 10;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let mut b = Bench::create(&path, store_of("lvs", 16 << 20, CLUSTER, K4))?;
    let origin = b.create_lvol("origin", 10 << 16, false)?;
    b.write(origin, 0, Rng::new(4).bytes(5 << 16))?;
    b.snapshot(&[(origin, "snapshot")])?;
    let bystander = b.create_lvol("bystander", 10 << 16, false)?;
    b.write(bystander, 0, vec![7; 4096])?;
    ensure!(b.close_and_judge()?);
    let at = extent_page(&Reader::open(&path)?, "snapshot")?;
    b.store = block_on(b.engine.open_store(&path, OpenStore::default()))?;
    b.discard(origin, 0, 1 << 16)?;
    block_on(b.store.flush(origin))?;
    // As a kill would leave it, and damaged.
    let mut image = std::fs::read(&path)?;
    block_on(b.store.close())?;
    image[at as usize + 30] ^= 1;
    std::fs::write(&path, &image)?;
    b.store = block_on(b.engine.open_store(&path, OpenStore::default()))?;
    ensure!(block_on(b.store.lvol(origin))?.state == LvolState::Damaged);
    // What has its place can be written.
    block_on(b.store.write(bystander, 0, vec![1; 4096]))?;
    block_on(b.store.close())?;
    let again = block_on(b.engine.open_store(&path, OpenStore { read_only: true, ..Default::default() }))?;
    ensure!(block_on(again.read(bystander, 0, 4096))? == vec![1; 4096]);
    ensure!(!block_on(again.info())?.seal_work.is_empty());
    Ok(block_on(again.close())?)
}

/// `--force` with another size must not touch a file that somebody has open as a store.
#[test]
fn a_file_in_use_keeps_its_size() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let b = Bench::create(&path, store_of("lvs", 16 << 20, K4, K4))?;
    for size in [8 << 20, 32 << 20] {
        let how = CreateStore { force: true, ..store_of("other", size, K4, K4) };
        let refused = block_on(b.engine.create_store(&path, how)).err().context("not refused")?;
        ensure!(refused.kind() == ErrorKind::Locked, "{refused:?}");
        ensure!(std::fs::metadata(&path)?.len() == 16 << 20, "its size changed");
    }
    Ok(block_on(b.store.close())?)
}

/// Flags that a newer version made: what they protect is not changed.
#[test]
fn lvols_with_unknown_flags_are_not_changed() -> Result<()> {
    // Offsets in the root: `data_ro` and `md_ro`.
    for at in [29, 37] {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        let mut b = Bench::create(&path, store_of("lvs", 16 << 20, 64 << 10, K4))?;
        let lvol = b.create_lvol("l", 10 << 16, false)?;
        let parent = b.create_lvol("p", 10 << 16, false)?;
        b.write(lvol, 0, Rng::new(6).bytes(1 << 16))?;
        let snapshot = b.snapshot(&[(parent, "s")])?[0];
        ensure!(b.close_and_judge()?);
        let reader = Reader::open(&path)?;
        let mut image = std::fs::read(&path)?;
        for name in ["l", "s"] {
            let blob = reader.blob(reader.lvol(name)?.blob_id).context("no blob")?;
            edit(&mut image, reader.page_offset(blob.chain[0]), |p| p[at] |= 0x40);
        }
        std::fs::write(&path, &image)?;
        b.store = block_on(b.engine.open_store(&path, OpenStore::default()))?;
        let s = &b.store;
        for (what, result) in [
            ("snapshot", block_on(s.snapshot(vec![workbench::snapshot_of(lvol, "n")])).map(|_| ())),
            ("resize", block_on(s.resize(lvol, 20 << 16)).map(|_| ())),
            ("rename", block_on(s.rename(lvol, "n")).map(|_| ())),
            ("attributes", block_on(s.set_attributes(lvol, vec![("k".into(), Some("v".into()))])).map(|_| ())),
            ("clone", block_on(s.clone_snapshot(workbench::clone_of(snapshot, "n"))).map(|_| ())),
            ("merge", block_on(s.delete(snapshot, true))),
        ] {
            let Err(e) = result else { bail!("{what} was done") };
            ensure!(e.kind() == ErrorKind::Unsupported && e.message().contains("flags"), "{what}: {e:?}");
        }
        b.compare(lvol)?;
        block_on(b.store.delete(lvol, false))?;
        block_on(b.store.close())?;
    }
    Ok(())
}

/// Who opens a store and does not wait for it leaves it closed.
#[test]
fn a_store_that_nobody_waits_for_is_closed() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    let mut b = Bench::create(&path, store_of("lvs", 16 << 20, K4, K4))?;
    block_on(b.store.close())?;
    let asked = futures_util::FutureExt::now_or_never(b.engine.open_store(&path, OpenStore::default()));
    ensure!(asked.is_none(), "it takes longer than that");
    for _ in 0..200 {
        match block_on(b.engine.open_store(&path, OpenStore::default())) {
            Ok(store) => {
                b.store = store;
                return Ok(block_on(b.store.close())?);
            }
            Err(e) => ensure!(e.kind() == ErrorKind::Locked, "{e:?}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(25));
    }
    bail!("it stays locked")
}

/// Adds one of SPDK's marks to a lvol that has no internal xattr yet: it is being made from, or merged into, another.
fn mark(image: &mut [u8], reader: &Reader, lvol: &str, mark: &str, other: &str) -> Result<()> {
    let blob = reader.blob(reader.lvol(lvol)?.blob_id).context("no blob")?;
    let id = reader.lvol(other)?.blob_id;
    edit(image, reader.page_offset(blob.chain[0]), |p| {
        let mut end = 16;
        while p[end] != 0 {
            end += 5 + u32::from_le_bytes([p[end + 1], p[end + 2], p[end + 3], p[end + 4]]) as usize;
        }
        let lengths = [4 + mark.len() as u32 + 8, mark.len() as u32 | 8 << 16].map(u32::to_le_bytes);
        let body = [b"\x04", lengths.as_flattened(), mark.as_bytes(), &id.to_le_bytes()].concat();
        p[end..end + body.len()].copy_from_slice(&body);
        p[21] |= 2;
    });
    Ok(())
}

/// As SPDK leaves a store that was killed while it deleted snapshot `s`: marked, and the clone `c` lists a cluster of the
/// snapshot already.
fn half_merged(path: &Path) -> Result<Bench> {
    const CLUSTER: u32 = 64 << 10;
    let mut b = Bench::create(path, store_of("lvs", 16 << 20, CLUSTER, K4))?;
    let mut rng = Rng::new(5);
    let c = b.create_lvol("c", 10 << 16, false)?;
    b.write(c, 0, rng.bytes(6 << 16))?;
    b.snapshot(&[(c, "s")])?;
    b.write(c, 0, rng.bytes(1 << 16))?;
    ensure!(b.close_and_judge()?);
    let reader = Reader::open(path)?;
    let mut image = std::fs::read(path)?;
    let (from, to) = (extent_page(&reader, "s")? as usize, extent_page(&reader, "c")?);
    let shared = image[from + 25 + 4..from + 25 + 12].to_vec();
    edit(&mut image, to, |p| p[25 + 4..25 + 12].copy_from_slice(&shared));
    mark(&mut image, &reader, "s", "SNAPRM", "c")?;
    std::fs::write(path, &image)?;
    b.store = block_on(b.engine.open_store(path, OpenStore::default()))?;
    Ok(b)
}

/// Whatever the first operation is, no cluster is given up twice and none that is still somebody's.
#[test]
fn the_first_operation_on_a_half_merged_clone() -> Result<()> {
    type First = fn(&Store, uuid::Uuid) -> coppice_engine::Result<()>;
    let firsts: [(&str, First, bool); 6] = [
        ("delete", |s, c| block_on(s.delete(c, false)), true),
        ("decouple", |s, c| block_on(s.decouple(c, Box::new(|_| true))).map(|_| ()), false),
        ("inflate", |s, c| block_on(s.inflate(c, Box::new(|_| true))).map(|_| ()), false),
        ("discard", |s, c| block_on(s.discard(c, 1 << 16, 2 << 16)), true),
        ("shrink", |s, c| block_on(s.resize(c, 2 << 16)).map(|_| ()), true),
        ("snapshot", |s, c| block_on(s.snapshot(vec![workbench::snapshot_of(c, "n")])).map(|_| ()), false),
    ];
    for (what, first, changes) in firsts {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        let b = half_merged(&path)?;
        let c = b.model.named("c")?;
        let before = block_on(b.store.read(c, 0, 10 << 16))?;
        ensure!(b.findings()?.is_empty(), "before anything is done: {:#?}", b.findings()?);
        if let Err(e) = first(&b.store, c) {
            // Decoupled already: its snapshot is gone.
            ensure!(what == "decouple" && e.kind() == ErrorKind::Invalid, "{what}: {e:?}");
        }
        b.reclaimed()?;
        // Whatever was freed is taken by another.
        let free = b.info()?.free_clusters << 16;
        let other = block_on(b.store.create_lvol(coppice_engine::CreateLvol {
            name: "other".into(),
            size: free,
            ..Default::default()
        }))?;
        block_on(b.store.write(other.uuid, 0, vec![0xaa; free as usize]))?;
        if !changes {
            ensure!(block_on(b.store.read(c, 0, 10 << 16))? == before, "{what}: the clone reads something else");
        }
        let findings = b.findings()?;
        ensure!(findings.is_empty(), "{what}: {findings:#?}");
        b.accounts().context(what)?;
        block_on(b.store.close())?;
        let reader = Reader::open(&path)?;
        ensure!(reader.check_spdk_safe().is_empty(), "{what}: {:#?}", reader.check_spdk_safe());
    }
    Ok(())
}

/// The same on a disk whose power is cut, or that fails.
#[cfg(feature = "sim")]
mod simulated {
    use super::*;
    use coppice_engine::device::Device;
    use coppice_engine::export::Volume as _;
    use coppice_engine::lvol::LvolIo;
    use coppice_engine::shard::Shard;
    use coppice_engine::sim::disk::Faults;
    use coppice_engine::sim::world::{Outcome, World};
    use coppice_engine::store::Lvstore;
    use coppice_engine::{CreateLvol, Error};
    use std::cell::RefCell;
    use std::rc::Rc;
    use std::sync::Arc;

    async fn open(shard: &Shard, device: &Device, world: Vec<Shard>) -> Arc<Lvstore> {
        let handles = world.iter().map(Shard::handle).collect();
        Lvstore::open(shard, handles, device.clone(), OpenStore::default(), 1 << 20).await.expect("open")
    }

    fn device(image: &[u8]) -> Device {
        Device::simulated(0, image.len() as u64, 512)
    }

    /// A power cut at each write of the first activation and the merge that it finishes.
    #[test]
    fn a_half_done_merge_survives_power_cuts() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        let b = half_merged(&path)?;
        let c = b.model.named("c")?;
        let before = block_on(b.store.read(c, 0, 10 << 16))?;
        block_on(b.store.close())?;
        drop(b);
        // `half_merged` opens the store without writing to it.
        let image = std::fs::read(&path)?;
        for crash_at in 1..40 {
            let mut world = World::new(image.clone(), crash_at, 2);
            let (on, shards, done) = (device(&image), world.shards.clone(), Rc::new(RefCell::new(false)));
            let (shard, slot) = (world.shards[0].clone(), done.clone());
            world.shards[0].spawn(async move {
                let store = open(&shard, &on, shards).await;
                store.activate(&shard).await.expect("activated");
                *slot.borrow_mut() = true;
            });
            world.run(move || *done.borrow(), Some(crash_at));
            let left = world.power_cut();
            let mut world = World::new(left, crash_at, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let found = world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                let io = LvolIo::open(&shard, &store, c)?;
                let buf = shard.buf(10 << 16).slice(0, 10 << 16);
                io.read(0, buf.clone()).await?;
                drop(io);
                store.activate(&shard).await?;
                store.close(&shard).await?;
                Ok::<_, Error>(buf.to_vec())
            });
            ensure!(found.with_context(|| format!("cut at write {crash_at}"))? == before, "cut at write {crash_at}");
            std::fs::write(&path, world.power_cut())?;
            let reader = Reader::open(&path)?;
            ensure!(reader.check_spdk_safe().is_empty(), "cut at {crash_at}: {:#?}", reader.check_spdk_safe());
        }
        Ok(())
    }

    /// A snapshot that SPDK was killed while making it is dropped with our first write; a power cut in that write leaves it
    /// or drops it, and never a damaged lvol.
    #[test]
    fn a_dropped_snapshot_survives_power_cuts() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        let mut b = Bench::create(&path, store_of("lvs", 8 << 20, K4, K4))?;
        let c = b.create_lvol("c", 1 << 20, false)?;
        b.create_lvol("s", 1 << 20, false)?;
        ensure!(b.close_and_judge()?);
        let reader = Reader::open(&path)?;
        let mut image = std::fs::read(&path)?;
        mark(&mut image, &reader, "s", "SNAPTMP", "c")?;
        edit(&mut image, 0, |p| put(p, 16, 0));
        for seed in 0..200 {
            let mut world = World::new(image.clone(), seed, 2);
            let (on, shards) = (device(&image), world.shards.clone());
            let shard = world.shards[0].clone();
            world.shards[0].spawn(async move {
                let store = open(&shard, &on, shards).await;
                store.activate(&shard).await.expect("activated");
            });
            world.run(|| false, Some(1 + seed % 6));
            let mut world = World::new(world.power_cut(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let lvols = world.block_on(0, async move { open(&shard, &on, shards).await.lvols() });
            ensure!(lvols.iter().all(|l| l.state == LvolState::Ok), "seed {seed}: {lvols:#?}");
            ensure!(lvols.len() == 1 && lvols[0].uuid == c, "seed {seed}: {lvols:#?}");
        }
        Ok(())
    }

    fn small_store() -> Result<Vec<u8>> {
        let folder = tempfile::tempdir()?;
        let b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 8 << 20, K4, K4))?;
        block_on(b.store.close())?;
        Ok(std::fs::read(&b.path)?)
    }

    /// Commits that are asked for while one fails: nobody serves them, and a close does not wait for them.
    #[test]
    fn a_store_that_failed_can_be_closed() -> Result<()> {
        let image = small_store()?;
        let mut failed = 0;
        for seed in 0..150 {
            let mut world = World::new(image.clone(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let (store, lvol) = world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                let how = CreateLvol { name: "l".into(), size: 1 << 20, ..Default::default() };
                let lvol = store.create_lvol(&shard, how).await.expect("lvol").uuid;
                (store, lvol)
            });
            world.disk.borrow_mut().faults = Faults { flushes: 6, writes: 40, reads: 0 };
            let running = Rc::new(RefCell::new(6u64));
            for n in 0..6 {
                let shard = world.shards[n as usize % 2].clone();
                let (store, running) = (store.clone(), running.clone());
                world.shards[n as usize % 2].spawn(async move {
                    let io = LvolIo::open(&shard, &store, lvol).expect("opened");
                    for at in 0..20 {
                        let buf = shard.buf(PAGE).slice(0, PAGE);
                        buf.fill_zero();
                        let off = (n * 20 + at) * 4096;
                        if io.write(off, buf, false).await.is_err() || io.flush().await.is_err() {
                            break;
                        }
                    }
                    drop(io);
                    *running.borrow_mut() -= 1;
                });
            }
            ensure!(world.run(move || *running.borrow() == 0, None) == Outcome::Done);
            failed += u64::from(store.info().failed.is_some());
            let shard = world.shards[0].clone();
            // A deadlock panics.
            world.block_on(0, async move {
                let _ = store.close(&shard).await;
            });
        }
        ensure!(failed > 100, "only {failed} runs failed");
        Ok(())
    }

    /// A power cut at each write while a long chain goes on in new pages.
    #[test]
    fn a_long_chain_survives_power_cuts() -> Result<()> {
        let size = 20u64 << 30;
        let folder = tempfile::tempdir()?;
        let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 8 << 20, K4, K4))?;
        let lvol = b.create_lvol("long", size, false)?;
        b.write(lvol, 0, vec![7; 4096])?;
        block_on(b.store.close())?;
        let image = std::fs::read(&b.path)?;
        for crash_at in 1..70 {
            let mut world = World::new(image.clone(), crash_at, 2);
            let (on, shards, done) = (device(&image), world.shards.clone(), Rc::new(RefCell::new(false)));
            let (shard, slot) = (world.shards[0].clone(), done.clone());
            world.shards[0].spawn(async move {
                let store = open(&shard, &on, shards).await;
                for step in [size + 4096, size + 8192, size / 2] {
                    store.resize(&shard, lvol, step).await.expect("resized");
                    let many = (0..8).map(|n| (format!("{step}-{n}"), Some("v".repeat(3000)))).collect();
                    store.set_attributes(&shard, lvol, many).await.expect("set");
                }
                let how = vec![workbench::snapshot_of(lvol, "s")];
                store.snapshot(&shard, how).await.expect("snapshot");
                *slot.borrow_mut() = true;
            });
            world.run(move || *done.borrow(), Some(crash_at));
            let left = world.power_cut();
            let mut world = World::new(left, crash_at, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let found = world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                let mut findings = store.check(&shard).await?;
                findings.retain(|f| !f.heals);
                let io = LvolIo::open(&shard, &store, lvol)?;
                let buf = shard.buf(PAGE).slice(0, PAGE);
                io.read(0, buf.clone()).await?;
                drop(io);
                let found = (findings, store.lvol(lvol)?.size, buf.to_vec());
                store.close(&shard).await?;
                Ok::<_, Error>(found)
            });
            let (findings, now, block) = found.with_context(|| format!("cut at write {crash_at}"))?;
            ensure!(findings.is_empty(), "cut at write {crash_at}: {findings:#?}");
            ensure!([size, size + 4096, size + 8192, size / 2].contains(&now) && block == vec![7; PAGE]);
        }
        Ok(())
    }

    /// After a failed flush a FUA write is not acknowledged either, wherever it goes.
    #[test]
    fn nothing_is_durable_after_a_failed_flush() -> Result<()> {
        let image = small_store()?;
        let mut world = World::new(image.clone(), 1, 2);
        let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
        let disk = world.disk.clone();
        world.block_on(0, async move {
            let store = open(&shard, &on, shards).await;
            let how = CreateLvol { name: "l".into(), size: 1 << 20, ..Default::default() };
            let lvol = store.create_lvol(&shard, how).await.expect("lvol").uuid;
            let io = LvolIo::open(&shard, &store, lvol).expect("opened");
            let buf = shard.buf(PAGE).slice(0, PAGE);
            buf.fill_zero();
            io.write(0, buf.clone(), true).await.expect("written");
            disk.borrow_mut().faults = Faults { flushes: 1, writes: 0, reads: 0 };
            io.flush().await.expect_err("the flush fails");
            disk.borrow_mut().faults = Faults::default();
            let fua = io.write(0, buf.clone(), true).await.expect_err("not durable");
            assert_eq!(fua.kind(), ErrorKind::Failed);
            io.read(0, buf).await.expect("reads go on");
        });
        Ok(())
    }

    /// Two readers of one extent page: the second waits for the first. A read that takes its time could else bring an older
    /// page than the one that was read, changed and written meanwhile.
    #[test]
    fn an_extent_page_has_one_reader() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let mut b = Bench::create(&folder.path().join("store.img"), store_of("lvs", 8 << 20, K4, K4))?;
        let lvol = b.create_lvol("l", 1 << 20, false)?;
        b.write(lvol, 0, vec![1; 4096])?;
        block_on(b.store.close())?;
        let image = std::fs::read(&b.path)?;
        for seed in 0..50 {
            let mut world = World::new(image.clone(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let store = world.block_on(0, async move { open(&shard, &on, shards).await });
            let left = Rc::new(RefCell::new(2));
            for shard in &world.shards {
                let (on, store, left) = (shard.clone(), store.clone(), left.clone());
                shard.spawn(async move {
                    let io = LvolIo::open(&on, &store, lvol).expect("opened");
                    let buf = on.buf(PAGE).slice(0, PAGE);
                    // A hole: only the map is read.
                    io.read(8192, buf).await.expect("read");
                    *left.borrow_mut() -= 1;
                });
            }
            let (disk, most) = (world.disk.clone(), Rc::new(RefCell::new(0)));
            let seen = most.clone();
            world.run(
                move || {
                    let mut most = seen.borrow_mut();
                    *most = disk.borrow().in_flight().max(*most);
                    *left.borrow() == 0
                },
                None,
            );
            ensure!(*most.borrow() == 1, "seed {seed}: {} reads at once", most.borrow());
        }
        Ok(())
    }

    /// Metadata is read and written in pages of 4 KiB: said before the device refuses to.
    #[test]
    fn a_device_with_larger_blocks_is_refused() -> Result<()> {
        let image = vec![0; 8 << 20];
        let mut world = World::new(image.clone(), 1, 1);
        let (shard, handles) = (world.shards[0].clone(), vec![world.shards[0].handle()]);
        let device = Device::simulated(0, image.len() as u64, 16384);
        let refused = world.block_on(0, async move {
            Lvstore::open(&shard, handles, device, OpenStore::default(), 1 << 20).await.err()
        });
        ensure!(refused.is_some_and(|e| e.kind() == ErrorKind::Unsupported && e.message().contains("16384")));
        Ok(())
    }

    /// A power cut at each write of a close.
    #[test]
    fn a_close_survives_power_cuts() -> Result<()> {
        let image = small_store()?;
        for seed in 0..400 {
            let mut world = World::new(image.clone(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let store = world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                for n in 0..3 {
                    let how = CreateLvol { name: format!("l{n}"), size: 1 << 20, ..Default::default() };
                    store.create_lvol(&shard, how).await.expect("lvol");
                }
                store
            });
            let (shard, done) = (world.shards[0].clone(), Rc::new(RefCell::new(false)));
            let slot = done.clone();
            world.shards[0].spawn(async move {
                store.close(&shard).await.expect("closed");
                *slot.borrow_mut() = true;
            });
            let crash_at = world.disk.borrow().writes + 1 + seed % 16;
            world.run(move || *done.borrow(), Some(crash_at));
            let mut world = World::new(world.power_cut(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            let (lvols, mut findings) = world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                (store.lvols(), store.check(&shard).await.expect("checked"))
            });
            findings.retain(|f| !f.heals);
            ensure!(lvols.len() == 3 && findings.is_empty(), "seed {seed}: {findings:#?} {lvols:#?}");
        }
        Ok(())
    }

    /// Two closes at once: the second has nothing to do.
    #[test]
    fn a_store_is_closed_once() -> Result<()> {
        let image = small_store()?;
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("store.img");
        for seed in 0..60 {
            let mut world = World::new(image.clone(), seed, 2);
            let (shard, on, shards) = (world.shards[0].clone(), device(&image), world.shards.clone());
            world.block_on(0, async move {
                let store = open(&shard, &on, shards).await;
                let how = CreateLvol { name: "l".into(), size: 1 << 20, ..Default::default() };
                store.create_lvol(&shard, how).await.expect("lvol");
                let (a, b) = futures_util::future::join(store.close(&shard), store.close(&shard)).await;
                assert_eq!((a, b), (Ok(()), Ok(())));
            });
            std::fs::write(&path, world.power_cut())?;
            let reader = Reader::open(&path)?;
            ensure!(reader.check_spdk_safe().is_empty(), "seed {seed}: {:#?}", reader.check_spdk_safe());
        }
        Ok(())
    }
}
