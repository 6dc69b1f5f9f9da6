//! What the engine refuses (P7): the kind of error, a part of the message, and nothing changed.

mod reader;
mod workbench;

use anyhow::{Context, Result, ensure};
use coppice_engine::ErrorKind::{self, *};
use coppice_engine::format::{PAGE_SIZE, Private, PrivateState, SuperBlock};
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::block_on;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, CreateStore, LvolKind, OpenStore};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use uuid::Uuid;
use workbench::{Bench, Rng, clone_of, engine, is_full, snapshot_of, store_of};

/// The error of that kind, with that in its message.
fn refused<T: std::fmt::Debug>(
    what: &str,
    result: coppice_engine::Result<T>,
    kind: ErrorKind,
    fragment: &str,
) -> Result<()> {
    let Err(e) = result else { anyhow::bail!("{what}: not refused: {result:?}") };
    ensure!(e.kind() == kind && e.message().contains(fragment), "{what}: {e:?}, not {kind:?} with \"{fragment}\"");
    Ok(())
}

fn image(size: u64) -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("store.img");
    File::create(&path)?.set_len(size)?;
    Ok((folder, path))
}

fn bench(size: u64, cluster: u32) -> Result<(TempDir, Bench)> {
    let (folder, path) = image(size)?;
    let bench = Bench::create(&path, CreateStore { file_size: None, ..store_of("lvs", size, cluster, 4096) })?;
    Ok((folder, bench))
}

#[test]
fn arguments() -> Result<()> {
    let (_folder, mut b) = bench(32 << 20, 64 << 10)?;
    let lvol = b.create_lvol("a", 1 << 20, false)?;
    b.write(lvol, 0, Rng::new(1).bytes(100_000))?;
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    let (store, nobody) = (b.store.clone(), Uuid::from_u128(77));
    let long = "x".repeat(64);

    for (size, fragment) in
        [(0, "must not be 0"), (u64::MAX, "too large"), (1 << 63, "too large"), (i64::MAX as u64, "too large")]
    {
        let how = CreateLvol { name: "n".into(), size, ..Default::default() };
        refused(&format!("create of {size}"), block_on(store.create_lvol(how.clone())), Invalid, fragment)?;
        refused("thick", block_on(store.create_lvol(CreateLvol { thick: true, ..how })), Invalid, fragment)?;
        refused(&format!("resize to {size}"), block_on(store.resize(lvol, size)), Invalid, fragment)?;
    }
    // Possible for a lvol, impossible for this store.
    let how = CreateLvol { name: "n".into(), size: 1 << 47, ..Default::default() };
    refused("a table that does not fit", block_on(store.create_lvol(how)), NoMetadataSpace, "bytes together")?;
    refused("resize to that", block_on(store.resize(lvol, 1 << 47)), NoMetadataSpace, "bytes together")?;
    let how = CreateClone { size: Some(1 << 47), ..clone_of(snapshot, "n") };
    refused("clone of that size", block_on(store.clone_snapshot(how)), NoMetadataSpace, "bytes together")?;
    for size in [0, 1, (1 << 20) - (64 << 10)] {
        let how = CreateClone { size: Some(size), ..clone_of(snapshot, "n") };
        refused(
            "a clone smaller than its snapshot",
            block_on(store.clone_snapshot(how)),
            Invalid,
            "fewer than snapshot s",
        )?;
    }

    let names = [
        ("", Invalid, "1 to 63"),
        (&*long, Invalid, "1 to 63"),
        ("a\0b", Invalid, "NUL"),
        ("s", AlreadyExists, "has a lvol s already"),
    ];
    for (name, kind, fragment) in names {
        let how = CreateLvol { name: name.into(), size: 1, ..Default::default() };
        refused(&format!("create {name:?}"), block_on(store.create_lvol(how)), kind, fragment)?;
        refused(
            &format!("snapshot {name:?}"),
            block_on(store.snapshot(vec![snapshot_of(lvol, name)])),
            kind,
            fragment,
        )?;
        refused(&format!("clone {name:?}"), block_on(store.clone_snapshot(clone_of(snapshot, name))), kind, fragment)?;
        refused(&format!("rename {name:?}"), block_on(store.rename(lvol, name)), kind, fragment)?;
    }
    let taken = CreateLvol { name: "n".into(), uuid: Some(lvol), size: 1, ..Default::default() };
    refused("create with a taken UUID", block_on(store.create_lvol(taken)), AlreadyExists, &lvol.to_string())?;
    let taken = CreateSnapshot { uuid: Some(snapshot), ..snapshot_of(lvol, "n") };
    refused("snapshot with a taken UUID", block_on(store.snapshot(vec![taken])), AlreadyExists, &snapshot.to_string())?;
    let taken = CreateClone { uuid: Some(lvol), ..clone_of(snapshot, "n") };
    refused("clone with a taken UUID", block_on(store.clone_snapshot(taken)), AlreadyExists, &lvol.to_string())?;

    refused("snapshot of nothing", block_on(store.snapshot(vec![])), Invalid, "no lvol")?;
    let twice = vec![snapshot_of(lvol, "n1"), snapshot_of(lvol, "n2")];
    refused("snapshot of one lvol twice", block_on(store.snapshot(twice)), Invalid, "twice")?;
    let half = vec![snapshot_of(lvol, "n1"), snapshot_of(nobody, "n2")];
    refused("all or none", block_on(store.snapshot(half)), NotFound, "no lvol")?;

    for (name, value, fragment) in [
        ("", "v", "engine's own"),
        ("name", "v", "engine's own"),
        ("uuid", "v", "engine's own"),
        ("k", "", "1 to"),
        ("k", &*"v".repeat(4000), "1 to"),
    ] {
        let set = vec![(name.to_string(), Some(value.to_string()))];
        refused(&format!("attribute {name:?}"), block_on(store.set_attributes(lvol, set)), Invalid, fragment)?;
    }

    refused("read", block_on(store.read(nobody, 0, 1)), NotFound, "no lvol")?;
    refused("write", block_on(store.write(nobody, 0, vec![1])), NotFound, "no lvol")?;
    refused("discard", block_on(store.discard(nobody, 0, 4096)), NotFound, "no lvol")?;
    refused("flush", block_on(store.flush(nobody)), NotFound, "no lvol")?;
    refused("lvol", block_on(store.lvol(nobody)), NotFound, "no lvol")?;
    refused("delete", block_on(store.delete(nobody, true)), NotFound, "no lvol")?;
    refused("resize", block_on(store.resize(nobody, 1)), NotFound, "no lvol")?;
    refused("rename", block_on(store.rename(nobody, "n")), NotFound, "no lvol")?;
    refused("snapshot", block_on(store.snapshot(vec![snapshot_of(nobody, "n")])), NotFound, "no lvol")?;
    refused("clone", block_on(store.clone_snapshot(clone_of(nobody, "n"))), NotFound, "no lvol")?;
    refused("inflate", block_on(store.inflate(nobody, Box::new(|_| true))), NotFound, "no lvol")?;
    refused("decouple", block_on(store.decouple(nobody, Box::new(|_| true))), NotFound, "no lvol")?;
    refused("revert", block_on(store.revert(nobody, snapshot)), NotFound, "no lvol")?;
    refused("revert to nobody", block_on(store.revert(lvol, nobody)), NotFound, "no lvol")?;
    refused("set_attributes", block_on(store.set_attributes(nobody, vec![])), NotFound, "no lvol")?;

    let end = 1u64 << 20;
    for (offset, length) in
        [(end, 1), (end - 1, 2), (0, end as usize + 1), (u64::MAX, 1), (u64::MAX - 5, 10), (0, usize::MAX)]
    {
        refused(
            &format!("read {offset}+{length}"),
            block_on(store.read(lvol, offset, length)),
            OutOfRange,
            "beyond the end",
        )?;
    }
    for (offset, length) in [(end, 1), (end - 1, 2), (u64::MAX, 1)] {
        refused("write", block_on(store.write(lvol, offset, vec![1; length])), OutOfRange, "beyond the end")?;
    }
    for (offset, length) in [(end, 4096), (end - 4096, 8192), (u64::MAX - 4095, 4096), (4096, u64::MAX - 8191)] {
        refused(
            &format!("discard {offset}+{length}"),
            block_on(store.discard(lvol, offset, length)),
            OutOfRange,
            "beyond the end",
        )?;
    }
    for (offset, length) in [(1, 4096), (0, 1), (512, 512), (0, 4097)] {
        refused("discard", block_on(store.discard(lvol, offset, length)), Invalid, "multiples of 4096")?;
    }
    ensure!(block_on(store.read(lvol, end, 0))?.is_empty());
    block_on(store.write(lvol, end, vec![]))?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

#[test]
fn wrong_kinds() -> Result<()> {
    let (_folder, mut b) = bench(32 << 20, 64 << 10)?;
    let lvol = b.create_lvol("a", 1 << 20, false)?;
    b.write(lvol, 0, Rng::new(1).bytes(300_000))?;
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    let other = b.create_lvol("b", 1 << 20, false)?;
    let clone = b.clone_snapshot(snapshot, "c", None, false)?;
    let store = b.store.clone();
    refused(
        "clone of a writable lvol",
        block_on(store.clone_snapshot(clone_of(lvol, "n"))),
        WrongKind,
        "take a snapshot",
    )?;
    refused(
        "snapshot of a snapshot",
        block_on(store.snapshot(vec![snapshot_of(snapshot, "n")])),
        WrongKind,
        "clone it",
    )?;
    refused("resize of a snapshot", block_on(store.resize(snapshot, 4 << 20)), ReadOnly, "is a snapshot")?;
    refused("write to a snapshot", block_on(store.write(snapshot, 0, vec![1])), ReadOnly, "read-only")?;
    refused("discard in a snapshot", block_on(store.discard(snapshot, 0, 4096)), ReadOnly, "read-only")?;
    refused("inflate of a snapshot", block_on(store.inflate(snapshot, Box::new(|_| true))), ReadOnly, "is a snapshot")?;
    refused(
        "decouple of a snapshot",
        block_on(store.decouple(snapshot, Box::new(|_| true))),
        ReadOnly,
        "is a snapshot",
    )?;
    refused("decouple without parent", block_on(store.decouple(other, Box::new(|_| true))), Invalid, "no parent")?;
    refused("revert of a snapshot", block_on(store.revert(snapshot, snapshot)), WrongKind, "is a snapshot")?;
    refused(
        "revert to somebody else's snapshot",
        block_on(store.revert(other, snapshot)),
        Invalid,
        "not a snapshot that",
    )?;
    refused("revert to a lvol", block_on(store.revert(lvol, other)), Invalid, "not a snapshot that")?;
    refused("revert to itself", block_on(store.revert(lvol, lvol)), Invalid, "not a snapshot that")?;
    refused("delete with two clones", block_on(store.delete(snapshot, false)), HasClones, "delete clones first")?;
    b.compare_all()?;
    // Deferred: hidden, and then nothing works on it.
    b.delete(snapshot, true)?;
    let gone = [
        ("clone", block_on(store.clone_snapshot(clone_of(snapshot, "n"))).map(|_| ())),
        ("rename", block_on(store.rename(snapshot, "n")).map(|_| ())),
        ("read", block_on(store.read(snapshot, 0, 1)).map(|_| ())),
        ("revert", block_on(store.revert(lvol, snapshot)).map(|_| ())),
    ];
    for (what, result) in gone {
        ensure!(result.is_err(), "{what} of a deleted snapshot: {result:?}");
    }
    block_on(store.delete(snapshot, false)).context("again")?;
    b.create_lvol("s", 1, false).context("its name is free")?;
    b.compare_all()?;
    b.delete(clone, false)?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

/// While somebody has the lvol open.
#[test]
fn busy() -> Result<()> {
    let (_folder, mut b) = bench(32 << 20, 64 << 10)?;
    let lvol = b.create_lvol("a", 1 << 20, false)?;
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    b.write(lvol, 0, Rng::new(1).bytes(300_000))?;
    let store = b.store.clone();
    let shard = b.engine.shards()[1].clone();
    let (opened, is_open) = std::sync::mpsc::channel();
    let (let_go, wait) = futures_channel::oneshot::channel::<()>();
    let lv = b.lvstore().clone();
    let holder = std::thread::spawn(move || {
        block_on(shard.call(move |shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            let _ = opened.send(());
            let _ = wait.await;
            drop(io);
            Ok(())
        }))
    });
    is_open.recv()?;
    refused("delete", block_on(store.delete(lvol, true)), Busy, "in use")?;
    refused("shrink", block_on(store.resize(lvol, 512 << 10)), Busy, "can only grow")?;
    refused("revert", block_on(store.revert(lvol, snapshot)), Busy, "in use")?;
    refused("close", block_on(store.close()), Busy, "in use")?;
    // What may be done under it.
    b.resize(lvol, 2 << 20)?;
    b.write(lvol, 2 << 20 >> 1, Rng::new(2).bytes(100_000))?;
    b.rename(lvol, "other")?;
    b.snapshot(&[(lvol, "s2")])?;
    b.inflate(lvol)?;
    b.compare_all()?;
    let _ = let_go.send(());
    holder.join().map_err(|_| anyhow::anyhow!("the holder died"))??;
    b.resize(lvol, 512 << 10)?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    let e = block_on(store.create_lvol(CreateLvol { name: "late".into(), size: 1, ..Default::default() }));
    ensure!(e.as_ref().is_err_and(|e| e.message().contains("closed")), "{e:?}");
    block_on(store.close()).context("close is repeatable")?;
    Ok(())
}

#[test]
fn a_full_store_keeps_what_it_has() -> Result<()> {
    let (_folder, mut b) = bench(8 << 20, 128 << 10)?;
    let mut rng = Rng::new(3);
    let c = b.cluster;
    let thick = b.create_lvol("thick", 4 * c, true)?;
    let lvol = b.create_lvol("thin", 200 * c, false)?;
    refused(
        "thick, too large",
        block_on(b.store.create_lvol(CreateLvol {
            name: "n".into(),
            size: 100 * c,
            thick: true,
            ..Default::default()
        })),
        NoSpace,
        "make it thin",
    )?;
    let mut at = 0;
    let full = loop {
        let result = b.write(lvol, at, rng.bytes(3 * c as usize + 5000));
        if result.is_err() {
            break result;
        }
        at += 3 * c + 5000;
    };
    refused("a write", full, NoSpace, "4 reserved for other data")?;
    b.compare_all()?;
    // Overwrites go on, reads too, and what was promised is there.
    b.write(lvol, 100, rng.bytes(1000))?;
    b.write(thick, 0, rng.bytes(2 * c as usize))?;
    refused(
        "snapshot of a thick lvol",
        block_on(b.store.snapshot(vec![snapshot_of(thick, "n")])),
        NoSpace,
        "reserved",
    )?;
    let small = CreateLvol { name: "n".into(), size: c, thick: true, ..Default::default() };
    refused("a thick lvol", block_on(b.store.create_lvol(small)), NoSpace, "thick lvol n")?;
    refused("a larger thick lvol", block_on(b.store.resize(thick, 5 * c)), NoSpace, "growing thick lvol")?;
    b.compare_all()?;
    b.write(thick, 2 * c, rng.bytes(2 * c as usize)).context("the rest of the promise")?;
    // A snapshot of a thin lvol needs no space; copies on write do.
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    refused("copy on write", b.write(lvol, 0, rng.bytes(10)), NoSpace, "no free cluster")?;
    b.compare_all()?;
    b.discard(lvol, 0, 8 * c).context("discard never fails")?;
    b.compare_all()?;
    b.delete(snapshot, false)?;
    b.reclaimed()?;
    ensure!(b.info()?.free_clusters >= 7, "the discarded clusters came back: {:?}", b.info()?);
    b.write(lvol, 0, rng.bytes(5 * c as usize))?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

/// An inflate that finds no space leaves everything as it was, and nothing waits for it for ever.
#[test]
fn an_inflate_without_space() -> Result<()> {
    let (_folder, mut b) = bench(8 << 20, 128 << 10)?;
    let mut rng = Rng::new(4);
    let c = b.cluster;
    let lvol = b.create_lvol("a", 30 * c, false)?;
    b.write(lvol, 0, rng.bytes(30 * c as usize))?;
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    let clone = b.clone_snapshot(snapshot, "c", None, false)?;
    let (before, free) = (b.info()?.allocated_clusters, b.info()?.free_clusters);
    ensure!(free < 30, "{free}");
    refused("inflate", b.inflate(clone), NoSpace, "no free cluster")?;
    ensure!(b.info()?.allocated_clusters == before + free, "{:?}", b.info()?);
    b.compare_all()?;
    b.check()?;
    // Any place can be written once there is space again.
    b.delete(lvol, false)?;
    b.discard(clone, 0, 8 * c)?;
    b.reclaimed()?;
    for n in 0..30 {
        let result = b.write(clone, n * c + 1, rng.bytes(100));
        ensure!(result.is_ok() || is_full(&result), "{result:?}");
    }
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

#[test]
fn metadata_pages_run_out() -> Result<()> {
    let (_folder, path) = image(4 << 20)?;
    let how = CreateStore { file_size: None, max_size: Some(4 << 20), ..store_of("lvs", 0, 4096, 4096) };
    let mut b = Bench::create(&path, how)?;
    let mut rng = Rng::new(5);
    let first = b.create_lvol("first", 100 << 12, false)?;
    b.write(first, 0, rng.bytes(50 << 12))?;
    let snapshot = b.snapshot(&[(first, "snapshot")])?[0];
    b.write(first, 0, rng.bytes(10))?;
    let mut n = 0;
    let full = loop {
        let result = b.create_lvol(&format!("filler {n}"), 4096, false);
        if result.is_err() {
            break result;
        }
        n += 1;
        ensure!(n < 1000, "it never ends: {:?}", b.info()?);
    };
    refused("create", full, NoMetadataSpace, "metadata pages")?;
    let untouched = b.model.named("filler 0")?;
    for (what, result) in [
        ("snapshot", block_on(b.store.snapshot(vec![snapshot_of(first, "n")])).map(|_| ())),
        ("clone", block_on(b.store.clone_snapshot(clone_of(snapshot, "n"))).map(|_| ())),
        ("write that needs an extent page", block_on(b.store.write(untouched, 0, vec![1]))),
        ("revert", block_on(b.store.revert(first, snapshot)).map(|_| ())),
    ] {
        refused(what, result, NoMetadataSpace, "metadata page")?;
    }
    b.compare_all()?;
    // What frees goes on.
    b.discard(first, 5 << 12, 5 << 12).context("discard in a clone")?;
    block_on(b.store.flush(first)).context("flush")?;
    b.write(first, 20 << 12, rng.bytes(30)).context("a write that needs no page")?;
    b.compare_all()?;
    b.reopen().context("close, with zero marks to be filled")?;
    b.delete(snapshot, false).context("a merge")?;
    b.compare_all()?;
    for n in 0..4 {
        let filler = b.model.named(&format!("filler {n}"))?;
        b.delete(filler, false)?;
    }
    b.create_lvol("again", 4096, false).context("after a delete there is room")?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    Ok(())
}

#[test]
fn one_opener() -> Result<()> {
    let (_folder, mut b) = bench(8 << 20, 64 << 10)?;
    b.create_lvol("a", 1, false)?;
    let second = engine()?;
    for read_only in [true, false] {
        let open = block_on(second.open_store(&b.path, OpenStore { read_only, ..Default::default() })).map(|_| ());
        refused("a second opener", open, Locked, "open in another process")?;
    }
    let how = CreateStore { force: true, file_size: None, ..store_of("x", 0, 64 << 10, 4096) };
    refused("formatting it", block_on(second.create_store(&b.path, how)), Locked, "open in another process")?;
    b.compare_all()?;
    ensure!(b.close_and_judge()?);
    block_on(block_on(second.open_store(&b.path, OpenStore::default()))?.close())?;
    block_on(second.shutdown());
    Ok(())
}

#[test]
fn only_blank_devices_are_formatted() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let cases: &[(&str, u64, &[u8], &str)] = &[
        ("ext4", 0x438, b"\x53\xef", "ext2/3/4"),
        ("xfs", 0, b"XFSB", "XFS"),
        ("btrfs", 0x10040, b"_BHRfS_M", "btrfs"),
        ("luks", 0, b"LUKS\xba\xbe", "LUKS"),
        ("lvm", 512, b"LABELONE", "LVM"),
        ("gpt", 512, b"EFI PART", "GPT"),
        ("mbr", 510, b"\x55\xaa", "partition table"),
        ("swap", 4086, b"SWAPSPACE2", "swap"),
        ("raid", 4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        ("lvstore", 0, b"SPDKBLOB", "lvstore"),
        ("first byte", 0, b"\x01", "first MiB"),
        ("somewhere", 777_777, b"\x80", "first MiB"),
        ("last byte", SIZE - 1, b"\x01", "last MiB"),
        ("backup table", SIZE - 512, b"EFI PART", "last MiB"),
    ];
    let engine = engine()?;
    for (what, at, bytes, fragment) in cases {
        let (_folder, path) = image(SIZE)?;
        let file = OpenOptions::new().write(true).open(&path)?;
        file.write_all_at(bytes, *at)?;
        let before = std::fs::read(&path)?;
        let how = CreateStore { file_size: None, ..store_of("lvs", SIZE, 64 << 10, 4096) };
        let made = block_on(engine.create_store(&path, how.clone()));
        refused(what, made, NotBlank, fragment)?;
        let sized = block_on(engine.create_store(&path, CreateStore { file_size: Some(SIZE), ..how.clone() }));
        refused(what, sized, NotBlank, fragment)?;
        ensure!(std::fs::read(&path)? == before, "{what}: the refused device was changed");
        let forced = block_on(engine.create_store(&path, CreateStore { force: true, ..how }))?;
        ensure!(forced.lvols == 0 && forced.spdk_readable, "{what}: {forced:?}");
        ensure!(reader::Reader::open(&path)?.check_spdk_safe().is_empty());
    }
    block_on(engine.shutdown());
    Ok(())
}

#[test]
fn impossible_stores() -> Result<()> {
    let engine = engine()?;
    let (folder, path) = image(16 << 20)?;
    let good = CreateStore { file_size: None, ..store_of("lvs", 0, 64 << 10, 4096) };
    let long = "x".repeat(64);
    let cases: Vec<(&str, CreateStore, &str)> = vec![
        ("no name", CreateStore { name: String::new(), ..good.clone() }, "1 to 63"),
        ("long name", CreateStore { name: long, ..good.clone() }, "1 to 63"),
        ("NUL", CreateStore { name: "a\0".into(), ..good.clone() }, "NUL"),
        ("cluster 0", CreateStore { cluster_size: Some(0), ..good.clone() }, "power of two"),
        ("cluster 2048", CreateStore { cluster_size: Some(2048), ..good.clone() }, "power of two"),
        ("cluster 100000", CreateStore { cluster_size: Some(100_000), ..good.clone() }, "power of two"),
        ("cluster 2 GiB", CreateStore { cluster_size: Some(1 << 31), ..good.clone() }, "power of two"),
        ("block 0", CreateStore { block_size: Some(0), ..good.clone() }, "512 or 4096"),
        ("block 1024", CreateStore { block_size: Some(1024), ..good.clone() }, "512 or 4096"),
        ("too few clusters", CreateStore { cluster_size: Some(4 << 20), ..good.clone() }, "use a larger"),
        ("no cluster at all", CreateStore { cluster_size: Some(1 << 30), ..good.clone() }, "use a larger"),
        ("endless growth", CreateStore { max_size: Some(u64::MAX), ..good.clone() }, "choose larger clusters"),
    ];
    for (what, how, fragment) in cases {
        refused(what, block_on(engine.create_store(&path, how)), Invalid, fragment)?;
        ensure!(std::fs::read(&path)?.iter().all(|b| *b == 0), "{what}: the device was changed");
    }
    let (_small, small) = image(100_000)?;
    refused("a small device", block_on(engine.create_store(&small, good.clone())), Invalid, "at least")?;
    let dir = folder.path();
    refused("a folder", block_on(engine.create_store(dir, good.clone())), Invalid, "not a file or block device")?;
    refused("/dev/null", block_on(engine.create_store(Path::new("/dev/null"), good.clone())), Invalid, "not a file")?;
    let missing = dir.join("no/such/file");
    refused("nowhere", block_on(engine.create_store(&missing, good.clone())), NotFound, "no/such/file")?;
    let sized = CreateStore { file_size: Some(16 << 20), ..good.clone() };
    refused("nowhere, sized", block_on(engine.create_store(&missing, sized)), NotFound, "no/such/file")?;
    // A file that is made for nothing goes again.
    let new = dir.join("new.img");
    let bad = CreateStore { file_size: Some(16 << 20), block_size: Some(3), ..good };
    refused("a new file", block_on(engine.create_store(&new, bad)), Invalid, "512 or 4096")?;
    ensure!(!new.exists(), "the file stayed");
    block_on(engine.shutdown());
    Ok(())
}

fn edit_super(path: &Path, edit: impl FnOnce(&mut SuperBlock)) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut page = vec![0; PAGE_SIZE];
    file.read_exact_at(&mut page, 0)?;
    let mut block = SuperBlock::parse(&page)?;
    edit(&mut block);
    file.write_all_at(&block.encode(), 0)?;
    Ok(())
}

#[test]
fn what_is_no_store_is_not_opened() -> Result<()> {
    let engine = engine()?;
    let (folder, mut b) = bench(16 << 20, 64 << 10)?;
    let lvol = b.create_lvol("a", 1 << 20, false)?;
    b.write(lvol, 0, vec![7; 100_000])?;
    ensure!(b.close_and_judge()?);
    let good = std::fs::read(&b.path)?;
    let path = folder.path().join("damaged.img");
    type Edit = fn(&Path) -> Result<()>;
    let set = |path: &Path, at: u64, bytes: &[u8]| -> Result<()> {
        Ok(OpenOptions::new().write(true).open(path)?.write_all_at(bytes, at)?)
    };
    let cases: &[(&str, Edit, ErrorKind, &str)] = &[
        ("zeroes", |p| Ok(std::fs::write(p, vec![0; 8 << 20])?), NotAStore, "damaged.img"),
        ("empty", |p| Ok(std::fs::write(p, [])?), NotAStore, "damaged.img"),
        ("short", |p| Ok(std::fs::write(p, [7; 100])?), NotAStore, "100 bytes"),
        ("noise", |p| Ok(std::fs::write(p, Rng::new(8).bytes(3 << 20))?), NotAStore, "damaged.img"),
        ("truncated", |p| Ok(OpenOptions::new().write(true).open(p)?.set_len(8 << 20)?), Corrupt, "truncated"),
        (
            "another blobstore",
            |p| edit_super(p, |s| s.bstype = *b"BLOBFS\0\0\0\0\0\0\0\0\0\0"),
            NotAStore,
            "\"BLOBFS\"",
        ),
        ("no type", |p| edit_super(p, |s| s.bstype = [0; 16]), NotAStore, "not a lvstore"),
        (
            "ours without journal",
            |p| edit_super(p, |s| s.bstype = *b"COPPICE\0\0\0\0\0\0\0\0\0"),
            Corrupt,
            "system area",
        ),
        ("version 9", |p| edit_super(p, |s| s.version = 9), NotAStore, "version"),
        ("no clusters", |p| edit_super(p, |s| s.cluster_size = 0), Corrupt, "cluster size"),
        ("odd clusters", |p| edit_super(p, |s| s.cluster_size = 4097), Corrupt, "cluster size"),
        ("no metadata", |p| edit_super(p, |s| s.md_len = 0), Corrupt, "metadata pages"),
        ("too much metadata", |p| edit_super(p, |s| s.md_len = u32::MAX), Corrupt, "mask"),
        ("masks in the data", |p| edit_super(p, |s| s.used_cluster_mask_start = 3000), Corrupt, "mask"),
        ("super blob nowhere", |p| edit_super(p, |s| s.super_blob = (1 << 32) | 200), NotAStore, "super blob"),
        ("super blob is none", |p| edit_super(p, |s| s.super_blob = u64::MAX), NotAStore, "super blob"),
        ("I/O unit", |p| edit_super(p, |s| s.io_unit_size = 7), Corrupt, "I/O unit"),
    ];
    for (what, edit, kind, fragment) in cases {
        std::fs::write(&path, &good)?;
        edit(&path)?;
        let before = std::fs::read(&path)?;
        ensure!(before != good, "{what}: nothing was damaged");
        for read_only in [true, false] {
            refused(
                what,
                block_on(engine.open_store(&path, OpenStore { read_only, ..Default::default() })).map(|_| ()),
                *kind,
                fragment,
            )?;
        }
        ensure!(std::fs::read(&path)? == before, "{what}: it was changed");
    }
    std::fs::write(&path, &good)?;
    set(&path, 100, &[1])?;
    let opened = block_on(engine.open_store(&path, OpenStore { read_only: true, ..Default::default() }))?;
    let findings = block_on(opened.check())?;
    ensure!(findings.iter().any(|f| f.kind == "super-block"), "the copy of the super block is used: {findings:?}");
    block_on(opened.close())?;

    let nowhere = folder.path().join("nothing");
    refused("nowhere", block_on(engine.open_store(&nowhere, OpenStore::default())).map(|_| ()), NotFound, "nothing")?;
    refused(
        "a folder",
        block_on(engine.open_store(folder.path(), OpenStore::default())).map(|_| ()),
        Invalid,
        "not a file",
    )?;
    block_on(engine.shutdown());
    Ok(())
}

#[test]
fn an_interrupted_creation() -> Result<()> {
    let (_folder, b) = bench(16 << 20, 64 << 10)?;
    ensure!({
        let mut b = b;
        b.path.exists() && b.close_and_judge()?
    });
    let path = _folder.path().join("store.img");
    edit_super(&path, |s| {
        s.bstype = *b"COPPICE\0\0\0\0\0\0\0\0\0";
        let private = Private { state: PrivateState::Creating, generation: 1, store_uuid: [3; 16], extents: vec![] };
        s.set_private(Some(&private)).expect("it fits");
    })?;
    let engine = engine()?;
    let open = block_on(engine.open_store(&path, OpenStore::default())).map(|_| ());
    refused("open", open, NotAStore, "interrupted")?;
    let how = CreateStore { file_size: None, ..store_of("second", 0, 64 << 10, 4096) };
    let info = block_on(engine.create_store(&path, how))?;
    ensure!(info.name == "second", "{info:?}");
    block_on(engine.shutdown());
    Ok(())
}

#[test]
fn read_only_means_nothing_is_written() -> Result<()> {
    let (_folder, mut b) = bench(16 << 20, 64 << 10)?;
    let lvol = b.create_lvol("a", 1 << 20, false)?;
    b.write(lvol, 0, vec![7; 100_000])?;
    let snapshot = b.snapshot(&[(lvol, "s")])?[0];
    ensure!(b.close_and_judge()?);
    let before = std::fs::read(&b.path)?;
    let store = block_on(b.engine.open_store(&b.path, OpenStore { read_only: true, ..Default::default() }))?;
    let said = "opened read-only";
    refused(
        "create",
        block_on(store.create_lvol(CreateLvol { name: "n".into(), size: 1, ..Default::default() })),
        ReadOnly,
        said,
    )?;
    refused("snapshot", block_on(store.snapshot(vec![snapshot_of(lvol, "n")])), ReadOnly, said)?;
    refused("clone", block_on(store.clone_snapshot(clone_of(snapshot, "n"))), ReadOnly, said)?;
    refused("delete", block_on(store.delete(lvol, true)), ReadOnly, said)?;
    refused("resize", block_on(store.resize(lvol, 2 << 20)), ReadOnly, said)?;
    refused("rename", block_on(store.rename(lvol, "n")), ReadOnly, said)?;
    refused("attributes", block_on(store.set_attributes(lvol, vec![])), ReadOnly, said)?;
    refused("revert", block_on(store.revert(lvol, snapshot)), ReadOnly, said)?;
    refused("inflate", block_on(store.inflate(lvol, Box::new(|_| true))), ReadOnly, said)?;
    refused("decouple", block_on(store.decouple(lvol, Box::new(|_| true))), ReadOnly, said)?;
    refused("write", block_on(store.write(lvol, 0, vec![1])), ReadOnly, said)?;
    refused("discard", block_on(store.discard(lvol, 0, 4096)), ReadOnly, said)?;
    refused("seal", block_on(store.seal()), ReadOnly, said)?;
    refused("grow", block_on(store.grow()), ReadOnly, said)?;
    block_on(store.flush(lvol)).context("a flush has nothing to do")?;
    ensure!(block_on(store.read(lvol, 0, 100_000))? == vec![7; 100_000]);
    ensure!(block_on(store.lvols())?.iter().any(|l| l.kind == LvolKind::Snapshot));
    ensure!(block_on(store.check())?.is_empty());
    block_on(store.close())?;
    ensure!(std::fs::read(&b.path)? == before, "the image changed");
    Ok(())
}
