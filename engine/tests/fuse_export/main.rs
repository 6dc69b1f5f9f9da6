//! Export `fuse` against the real kernel: a file-backed volume behind FUSE and a loop device. Needs root, `/dev/fuse` and
//! loop devices.

mod dead;
mod rig;

use anyhow::{Context, Result, ensure};
use coppice_engine::ErrorKind;
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::error::Error;
use coppice_engine::export::{FuseExport, RawVolume, VolumeFactory};
use coppice_engine::shard::Shard;
use rig::*;
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, pread, pwrite};
use std::fs;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::task::{Context as TaskContext, Waker};
use std::time::{Duration, Instant};

/// Random reads, writes, zeroes and discards through the device against a model, then the backing file against it.
fn random_io(plan: Plan, seed: u64) -> Result<()> {
    let rig = plan.build()?;
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    let mut random = Random(seed);
    let mut model = vec![0u8; plan.size as usize];
    let block = u64::from(plan.block_size);
    for step in 0..400 {
        let longest = [4096, 64 << 10, 3 * MIB][random.next(3) as usize];
        let len = (1 + random.next(longest / block)) * block;
        let off = random.next((plan.size - len) / block + 1) * block;
        let range = off as usize..(off + len) as usize;
        let mut memory = Aligned::new(len as usize);
        match random.next(20) {
            0..10 => {
                random.fill(memory.get_mut());
                ensure!(pwrite(&fd, memory.get(), off)? as u64 == len);
                model[range].copy_from_slice(memory.get());
            }
            10..18 => {
                ensure!(pread(&fd, memory.get_mut(), off)? as u64 == len);
                ensure!(memory.get() == &model[range], "seed {seed:#x} step {step}: {off} + {len} differs");
            }
            how => {
                let (off, len) = (off.to_string(), len.to_string());
                let zero: &[&str] = if how == 18 { &["-z"] } else { &[] };
                run("blkdiscard", &[zero, &["-o", &off, "-l", &len, text(&rig.device())]].concat())?;
                model[range].fill(0);
            }
        }
    }
    drop(fd);
    ensure!(fs::read(rig.backing())? == model, "seed {seed:#x}: the backing file differs");
    rig.finish()
}

#[test]
fn random_sizes_come_back_as_written() -> Result<()> {
    random_io(PLAN, 0x5eed_0001)
}

#[test]
fn random_sizes_come_back_as_written_in_small_blocks() -> Result<()> {
    random_io(Plan { block_size: 512, ..PLAN }, 0x5eed_0002)
}

#[test]
fn several_shards_serve_one_device() -> Result<()> {
    random_io(Plan { shards: 2, ..PLAN }, 0x5eed_0003)
}

#[test]
fn many_requests_at_once_verify() -> Result<()> {
    let rig = PLAN.build()?;
    let file = format!("--filename={}", text(&rig.device()));
    for sizes in ["--bs=4k", "--bsrange=4k-2m"] {
        let load = ["--name=verify", "--ioengine=libaio", "--direct=1", "--iodepth=96", "--rw=randwrite", "--size=64m"];
        let check = ["--verify=crc32c", "--verify_fatal=1", "--blockalign=4k", sizes, &file];
        run("fio", &[&load[..], &check[..]].concat())?;
    }
    rig.finish()
}

#[test]
fn file_systems_survive_a_remount() -> Result<()> {
    for mkfs in ["mkfs.ext4", "mkfs.xfs"] {
        let mut rig = Plan { size: 512 * MIB, ..PLAN }.build()?;
        let device = rig.device();
        run(mkfs, &["-q", text(&device)])?;
        let at = rig.mount("discard")?;
        let mut content = vec![0u8; 20 << 20];
        Random(77).fill(&mut content);
        fs::write(at.join("kept"), &content)?;
        fs::write(at.join("gone"), &content)?;
        fs::File::open(at.join("gone"))?.sync_all()?;
        fs::File::open(at.join("kept"))?.sync_all()?;
        ensure!(rig.probe.flushes.load(SeqCst) > 0, "fsync reaches the volume");
        fs::remove_file(at.join("gone"))?;
        run("sync", &["-f", text(&at)])?;
        run("fstrim", &[text(&at)])?;
        ensure!(rig.probe.discarded.load(SeqCst) > 20 * MIB, "fstrim reaches the volume");
        let busy = wait(rig.export().stop()).expect_err("mounted");
        ensure!(busy.kind() == ErrorKind::Busy, "{busy:?}");
        ensure!(fs::read(at.join("kept"))? == content, "still there after a refused stop");
        rig.umount()?;
        match mkfs {
            "mkfs.ext4" => run("fsck.ext4", &["-fn", text(&device)])?,
            _ => run("xfs_repair", &["-n", text(&device)])?,
        };
        let at = rig.mount("ro")?;
        ensure!(fs::read(at.join("kept"))? == content);
        rig.finish()?;
    }
    Ok(())
}

#[test]
fn discard_zeroes_and_flush_arrive_as_such() -> Result<()> {
    let rig = PLAN.build()?;
    let (probe, device) = (rig.probe.clone(), rig.device());
    let mut memory = Aligned::new(MIB as usize);
    memory.get_mut().fill(7);
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    for at in 0..8 {
        pwrite(&fd, memory.get(), at * MIB)?;
    }
    run("blkdiscard", &["-o", "1048576", "-l", "2097152", text(&device)])?;
    ensure!(probe.discarded.load(SeqCst) == 2 * MIB && probe.zeroed.load(SeqCst) == 0);
    run("blkdiscard", &["-z", "-o", "5242880", "-l", "1048576", text(&device)])?;
    ensure!(probe.discarded.load(SeqCst) == 2 * MIB && probe.zeroed.load(SeqCst) == MIB);
    for (at, mib) in fs::read(rig.backing())?.chunks(MIB as usize).enumerate() {
        let expected = if matches!(at, 0 | 3 | 4 | 6 | 7) { 7 } else { 0 };
        ensure!(mib.iter().all(|b| *b == expected), "MiB {at}");
    }
    let before = probe.flushes.load(SeqCst);
    pwrite(&fd, memory.get(), 0)?;
    rustix::fs::fsync(&fd)?;
    ensure!(probe.flushes.load(SeqCst) == before + 1, "one fsync, one flush");
    drop(fd);
    rig.finish()
}

#[test]
fn a_resize_is_seen_while_in_use() -> Result<()> {
    let rig = PLAN.build()?;
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    fs::OpenOptions::new().write(true).open(rig.backing())?.set_len(96 * MIB)?;
    for size in [96 * MIB, 32 * MIB, 80 * MIB] {
        rig.size.store(size, SeqCst);
        ensure!(fs::metadata(rig.file())?.len() == size, "the file has it at once");
        wait(rig.export().refresh_size())?;
        ensure!(run("blockdev", &["--getsize64", text(&rig.device())])?.trim() == size.to_string());
        let memory = Aligned::new(4096);
        pwrite(&fd, memory.get(), size - 4096)?;
        ensure!(pwrite(&fd, memory.get(), size).is_err(), "beyond the end");
    }
    drop(fd);
    rig.finish()
}

/// The kernel drops a size that it asked for while a write was under way, and the new end would then read as an I/O error.
#[test]
fn a_grown_device_reads_at_once_while_it_is_written_to() -> Result<()> {
    let rig = PLAN.build()?;
    fs::OpenOptions::new().write(true).open(rig.backing())?.set_len(PLAN.size + 300 * 4096)?;
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|n| {
                let (rig, done) = (&rig, &done);
                scope.spawn(move || -> Result<()> {
                    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
                    let memory = Aligned::new(4096);
                    while !done.load(SeqCst) {
                        pwrite(&fd, memory.get(), n * 4096)?;
                    }
                    Ok(())
                })
            })
            .collect();
        let grow = || -> Result<()> {
            let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
            let mut memory = Aligned::new(4096);
            for n in 1..=300 {
                let size = PLAN.size + n * 4096;
                rig.size.store(size, SeqCst);
                wait(rig.export().refresh_size())?;
                pread(&fd, memory.get_mut(), size - 4096).with_context(|| format!("the last block of {size}"))?;
            }
            Ok(())
        };
        let grown = grow();
        done.store(true, SeqCst);
        for writer in writers {
            writer.join().expect("no panic")?;
        }
        grown
    })?;
    rig.finish()
}

#[test]
fn the_device_has_the_volumes_block_size_and_direct_io() -> Result<()> {
    for block_size in [512, 4096] {
        let rig = Plan { block_size, ..PLAN }.build()?;
        let answer = run("blockdev", &["--getss", "--getpbsz", "--getro", text(&rig.device())])?;
        let expected = [block_size.to_string(), block_size.to_string(), "0".into()];
        ensure!(answer.split_whitespace().eq(expected), "{answer}");
        ensure!(rig.loop_attribute("dio")? == "1");
        rig.finish()?;
    }
    Ok(())
}

#[test]
fn read_only_refuses_writes() -> Result<()> {
    let rig = Plan { read_only: true, ..PLAN }.build()?;
    ensure!(run("blockdev", &["--getro", text(&rig.device())])?.trim() == "1");
    ensure!(run("blkdiscard", &["-f", text(&rig.device())]).is_err());
    ensure!(fs::OpenOptions::new().write(true).open(rig.file()).is_err());
    let fd = rig.open(OFlags::RDONLY | OFlags::DIRECT)?;
    ensure!(pread(&fd, Aligned::new(4096).get_mut(), 0)? == 4096);
    drop(fd);
    rig.finish()
}

#[test]
fn errors_reach_the_caller_with_their_number() -> Result<()> {
    let rig = PLAN.build()?;
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    let mut memory = Aligned::new(8192);
    for errno in [libc::EIO, libc::ENOSPC] {
        rig.probe.fail_write.store(errno, SeqCst);
        ensure!(pwrite(&fd, memory.get(), 0) == Err(Errno::from_raw_os_error(errno)));
        rig.probe.fail_write.store(0, SeqCst);
        ensure!(pwrite(&fd, memory.get(), 0) == Ok(8192), "and heals");
    }
    rig.probe.fail_read.store(libc::EIO, SeqCst);
    ensure!(pread(&fd, memory.get_mut(), 0) == Err(Errno::IO));
    rig.probe.fail_read.store(0, SeqCst);
    rig.probe.fail_flush.store(libc::EIO, SeqCst);
    ensure!(rustix::fs::fsync(&fd) == Err(Errno::IO));
    rig.probe.fail_flush.store(0, SeqCst);
    ensure!(rustix::fs::fsync(&fd) == Ok(()), "the next flush is asked again");
    rig.probe.fail_discard.store(libc::EIO, SeqCst);
    let refused = run("blkdiscard", &["-f", text(&rig.device())]).expect_err("discard fails").to_string();
    ensure!(refused.contains("Input/output error"), "{refused}");
    // A failing flush must not keep an export alive.
    rig.probe.fail_flush.store(libc::EIO, SeqCst);
    drop(fd);
    rig.finish()
}

#[test]
fn nothing_is_cached_between_the_file_and_the_volume() -> Result<()> {
    let rig = PLAN.build()?;
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    let mut memory = Aligned::new(4096);
    let buffered = rustix::fs::open(rig.file(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    for round in 1..4u8 {
        memory.get_mut().fill(round);
        pwrite(&fd, memory.get(), 4096)?;
        let before = rig.probe.reads.load(SeqCst);
        let mut seen = [0u8; 4096];
        for _ in 0..2 {
            pread(&buffered, &mut seen, 4096)?;
            ensure!(seen == [round; 4096]);
        }
        ensure!(rig.probe.reads.load(SeqCst) == before + 2, "every read asks the volume");
    }
    drop(buffered);
    drop(fd);
    rig.finish()
}

#[test]
fn the_file_system_holds_one_file_and_refuses_the_rest() -> Result<()> {
    let rig = PLAN.build()?;
    let root = rig.exports().join(NAME);
    let names: Vec<_> = fs::read_dir(&root)?.map(|e| e.map(|e| e.file_name())).collect::<std::io::Result<_>>()?;
    ensure!(names == ["volume"], "{names:?}");
    ensure!(fs::File::create(root.join("other")).is_err());
    ensure!(fs::remove_file(rig.file()).is_err());
    ensure!(fs::metadata(root.join("other")).is_err());
    let file = fs::OpenOptions::new().read(true).write(true).open(rig.file())?;
    ensure!(file.set_len(4096).is_err(), "a size is not set through the file");
    ensure!(pwrite(&file, &[1; 100], 0) == Err(Errno::INVAL), "less than a block");
    ensure!(pwrite(&file, &[1; 4096], PLAN.size).is_err(), "beyond the end");
    ensure!(pread(&file, &mut [0; 4096], PLAN.size) == Ok(0), "the end");
    ensure!(rustix::fs::statvfs(&root)?.f_blocks == PLAN.size / 4096);
    drop(file);
    rig.finish()
}

#[test]
fn stop_is_refused_while_open_and_changes_nothing() -> Result<()> {
    let rig = PLAN.build()?;
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    let busy = wait(rig.export().stop()).expect_err("open");
    ensure!(busy.kind() == ErrorKind::Busy, "{busy:?}");
    let memory = Aligned::new(4096);
    ensure!(pwrite(&fd, memory.get(), 0)? == 4096);
    drop(fd);
    // The refused stop left no order behind: the last close does not take the device away.
    std::thread::sleep(Duration::from_millis(50));
    let fd = rig.open(OFlags::RDWR | OFlags::DIRECT)?;
    ensure!(pwrite(&fd, memory.get(), 0)? == 4096);
    ensure!(rig.loop_attribute("dio")? == "1", "direct I/O as before");
    ensure!(rig.loop_attribute("autoclear")? == "0");
    drop(fd);
    rig.finish()
}

#[test]
fn what_was_written_through_the_page_cache_is_there_after_stop() -> Result<()> {
    let rig = PLAN.build()?;
    let file = fs::OpenOptions::new().write(true).open(rig.device())?;
    file.write_all_at(&[9; 1 << 20], MIB)?;
    // Closed while `stop` is at work on it already.
    let export = rig.export().clone();
    let stopping = std::thread::spawn(move || wait(export.stop()));
    std::thread::sleep(Duration::from_millis(100));
    drop(file);
    stopping.join().expect("no panic")?;
    let content = fs::read(rig.backing())?;
    ensure!(content[MIB as usize..2 * MIB as usize].iter().all(|b| *b == 9));
    rig.finish()
}

type Factory = fn(&Shard) -> coppice_engine::Result<Probed>;

/// Opens a device that nobody holds. A thread apart, of another test, holds every file for the moment in which it gets a table
/// of its own.
fn open_soon(path: &Path) -> coppice_engine::Result<Device> {
    let began = std::time::Instant::now();
    loop {
        match Device::open(path, OpenMode::ReadWrite) {
            Err(e) if e.kind() == ErrorKind::Locked && began.elapsed() < Duration::from_secs(2) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

#[test]
fn a_start_that_fails_leaves_nothing() -> Result<()> {
    let mut rig = PLAN.build()?;
    wait(rig.export.take().context("exported")?.stop())?;
    let exports = rig.exports();
    let no_volume: Factory = |_| Err(Error::new(ErrorKind::Corrupt, "no volume"));
    let refused = |name: &str| {
        let shards = vec![(rig.handles()[0].clone(), Box::new(no_volume) as VolumeFactory<Probed>)];
        wait(FuseExport::start(shards, &exports, name, false)).err().map(|e| e.kind())
    };
    ensure!(refused(NAME) == Some(ErrorKind::Corrupt));
    for name in ["", "..", "a/b", ".hidden"] {
        ensure!(refused(name) == Some(ErrorKind::Invalid), "{name:?}");
    }
    fs::create_dir(exports.join("full"))?;
    fs::write(exports.join("full/file"), "somebody's")?;
    ensure!(refused("full") == Some(ErrorKind::AlreadyExists));
    fs::remove_dir_all(exports.join("full"))?;
    // A block size that no loop device takes: everything else is set up when that comes out.
    let kind = rig.start(Plan { block_size: 3000, ..PLAN }).err().map(|e| e.kind());
    ensure!(kind == Some(ErrorKind::Invalid), "{kind:?}");
    nothing_left(&exports, Path::new("/dev/none"))?;
    open_soon(&rig.backing()).context("no task holds the volume")?;
    Ok(())
}

#[test]
fn a_start_that_nobody_waits_for_is_taken_back() -> Result<()> {
    let mut rig = PLAN.build()?;
    wait(rig.export.take().context("exported")?.stop())?;
    let device = open_soon(&rig.backing())?;
    let probe = rig.probe.clone();
    let factory: VolumeFactory<Probed> = Box::new(move |shard| {
        std::thread::sleep(Duration::from_millis(100));
        Ok(Probed { raw: RawVolume::new(device.port(shard), PLAN.size, 4096), probe })
    });
    let exports = rig.exports();
    {
        let shards = vec![(rig.handles()[0].clone(), factory)];
        let mut asked = Box::pin(FuseExport::start(shards, &exports, NAME, false));
        ensure!(asked.as_mut().poll(&mut TaskContext::from_waker(Waker::noop())).is_pending());
    }
    let give_up = Instant::now() + Duration::from_secs(10);
    loop {
        let left = Device::open(&rig.backing(), OpenMode::ReadWrite)
            .map_err(anyhow::Error::from)
            .and_then(|_| nothing_left(&exports, Path::new("/dev/none")));
        match left {
            Ok(()) => return Ok(()),
            Err(e) if Instant::now() > give_up => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}
