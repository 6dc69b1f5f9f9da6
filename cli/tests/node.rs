//! Volumes in use on this machine, through the CSI of a running `coppice standalone`. Needs root.

mod common;

use anyhow::{Context, Result};
use common::{Clients, Driver, MIB, block, mount, mount_as};
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source};
use coppice_proto::csi::v1::*;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use tonic::Code;

const GIB: i64 = 1 << 30;
/// Blocks for one XFS log and more.
const FS_BYTES: i64 = 400 * MIB;

fn code(done: Result<(), tonic::Status>) -> Code {
    done.map_or_else(|status| status.code(), |()| Code::Ok)
}

fn write_durably(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    Ok(file.sync_all()?)
}

/// A file system from creation to deletion, every call twice; a snapshot restored beside it into a larger volume.
async fn life(fs_type: &str) -> Result<()> {
    let mut driver = Driver::start(8 << 30).await?;
    let mut c = driver.clients().await?;
    let volume = c.create("v", FS_BYTES, mount(fs_type)).await?;
    let (staging, target, second) = (driver.path("staging"), driver.path("pods/one"), driver.path("pods/two"));
    for _ in 0..2 {
        c.stage(&volume, &staging, mount(fs_type)).await?;
        c.publish(&volume, &staging, &target, mount(fs_type), false).await?;
        c.publish(&volume, &staging, &second, mount(fs_type), true).await?;
    }
    write_durably(&target.join("kept"), b"content")?;
    assert_eq!(fs::read(second.join("kept"))?, b"content");
    let refused = fs::write(second.join("kept"), b"other").map_err(|e| e.kind());
    assert_eq!(refused, Err(std::io::ErrorKind::ReadOnlyFilesystem));
    // Published otherwise, staged otherwise, still in use: refused, and nothing changes.
    assert_eq!(code(c.publish(&volume, &staging, &target, mount(fs_type), true).await), Code::AlreadyExists);
    let other_fs = if fs_type == "ext4" { "xfs" } else { "ext4" };
    assert_eq!(code(c.stage(&volume, &staging, mount(other_fs)).await), Code::AlreadyExists);
    assert_eq!(code(c.stage(&volume, &driver.path("elsewhere"), mount(fs_type)).await), Code::AlreadyExists);
    assert_eq!(code(c.unstage(&volume, &staging).await), Code::FailedPrecondition);
    assert_eq!(code(c.delete(&volume).await), Code::FailedPrecondition);
    let usage = stats(&mut c, &volume, &target).await?;
    assert!(usage.total > FS_BYTES / 2 && usage.total <= FS_BYTES && usage.used > 0, "{usage:?}");

    // Not yet written out: the snapshot sees to it.
    fs::write(target.join("late"), b"late")?;
    let snapshot = c.snapshot(&volume, "s", "freeze").await?;
    fs::write(target.join("kept"), b"changed")?;
    let source = Source::Snapshot(SnapshotSource { snapshot_id: snapshot.clone() });
    let clone = c.create_from("clone", 2 * GIB, mount(fs_type), Some(source)).await?;
    let (clone_staging, clone_target) = (driver.path("clone-staging"), driver.path("pods/clone"));
    c.stage(&clone, &clone_staging, mount(fs_type)).await?;
    c.publish(&clone, &clone_staging, &clone_target, mount(fs_type), false).await?;
    assert_eq!(fs::read(clone_target.join("kept"))?, b"content");
    assert_eq!(fs::read(clone_target.join("late"))?, b"late");
    let usage = stats(&mut c, &clone, &clone_target).await?;
    assert!(usage.total > GIB + GIB / 2, "a larger clone grows its file system: {usage:?}");

    for _ in 0..2 {
        for (id, at, pods) in
            [(&volume, &staging, vec![&target, &second]), (&clone, &clone_staging, vec![&clone_target])]
        {
            for pod in pods {
                c.unpublish(id, pod).await?;
                assert!(!pod.exists());
            }
            c.unstage(id, at).await?;
        }
    }
    // What was there is there again.
    c.publish(&volume, &staging, &target, mount(fs_type), false).await?;
    assert_eq!(fs::read(target.join("kept"))?, b"changed", "publish stages when nobody has");
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    for id in [&volume, &clone] {
        c.delete(id).await?;
    }
    c.controller.delete_snapshot(DeleteSnapshotRequest { snapshot_id: snapshot, ..Default::default() }).await?;
    assert_eq!(driver.mounts()?, Vec::<std::path::PathBuf>::new());
    driver.terminate().await?;
    let (lvols, findings) = driver.inspect().await?;
    assert!(lvols.is_empty() && findings.is_empty(), "{lvols:?} {findings:?}");
    Ok(())
}

async fn stats(c: &mut Clients, volume: &str, path: &Path) -> Result<VolumeUsage> {
    let request =
        NodeGetVolumeStatsRequest { volume_id: volume.into(), volume_path: common::text(path), ..Default::default() };
    let usage = c.node.node_get_volume_stats(request).await?.into_inner().usage;
    usage.into_iter().next().context("usage")
}

#[tokio::test]
async fn life_of_an_ext4() -> Result<()> {
    life("ext4").await
}

#[tokio::test]
async fn life_of_an_xfs() -> Result<()> {
    life("xfs").await
}

#[tokio::test]
async fn life_of_a_btrfs() -> Result<()> {
    life("btrfs").await
}

#[tokio::test]
async fn a_block_volume_is_its_device_and_grows_in_use() -> Result<()> {
    let mut driver = Driver::start(2 << 30).await?;
    let mut c = driver.clients().await?;
    let writer = || block(Mode::SingleNodeWriter);
    let volume = c.create("v", 64 * MIB, writer()).await?;
    let (staging, target) = (driver.path("staging"), driver.path("pods/block"));
    for _ in 0..2 {
        c.stage(&volume, &staging, writer()).await?;
        c.publish(&volume, &staging, &target, writer(), false).await?;
    }
    let mut device = fs::File::options().read(true).write(true).open(&target)?;
    device.write_all(&[7; 4096])?;
    device.sync_all()?;
    assert_eq!(stats(&mut c, &volume, &target).await?.total, 64 * MIB);
    assert_eq!(code(c.publish(&volume, &staging, &driver.path("pods/ro"), writer(), true).await), Code::AlreadyExists);

    let range = Some(CapacityRange { required_bytes: 128 * MIB, limit_bytes: 0 });
    let request = ControllerExpandVolumeRequest {
        volume_id: volume.clone(),
        capacity_range: range,
        volume_capability: Some(writer()),
        ..Default::default()
    };
    let expanded = c.controller.controller_expand_volume(request).await?.into_inner();
    assert!(expanded.node_expansion_required);
    let request = NodeExpandVolumeRequest {
        volume_id: volume.clone(),
        volume_path: common::text(&target),
        capacity_range: range,
        ..Default::default()
    };
    assert_eq!(c.node.node_expand_volume(request).await?.into_inner().capacity_bytes, 128 * MIB);
    assert_eq!(device.seek(SeekFrom::End(0))?, 128 << 20, "the open device has the new size");
    drop(device);
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;

    // For readers only, the device itself refuses.
    let reader = || block(Mode::SingleNodeReaderOnly);
    c.stage(&volume, &staging, reader()).await?;
    c.publish(&volume, &staging, &target, reader(), false).await?;
    let refused = fs::File::options().write(true).open(&target).and_then(|mut device| device.write_all(&[9; 4096]));
    assert_eq!(refused.map_err(|e| e.kind()), Err(std::io::ErrorKind::PermissionDenied));
    let mut first = [0; 4096];
    fs::File::open(&target)?.read_exact(&mut first)?;
    assert_eq!(first, [7; 4096]);
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;

    // As a pod asks for it that mounts a claim of a writable volume read-only. One device serves all: either, or.
    let (writer, other) = (|| block(Mode::SingleNodeWriter), driver.path("other"));
    let write =
        |at: &Path| fs::File::options().write(true).open(at).and_then(|mut device| device.write_all(&[7; 4096]));
    c.stage(&volume, &staging, writer()).await?;
    c.publish(&volume, &staging, &target, writer(), true).await?;
    c.publish(&volume, &staging, &target, writer(), true).await?;
    c.publish(&volume, &staging, &other, writer(), true).await?;
    for at in [&target, &other] {
        assert_eq!(write(at).map_err(|e| e.kind()), Err(std::io::ErrorKind::PermissionDenied));
    }
    c.unpublish(&volume, &other).await?;
    assert_eq!(code(c.publish(&volume, &staging, &other, writer(), false).await), Code::AlreadyExists);
    assert_eq!(code(c.publish(&volume, &staging, &target, writer(), false).await), Code::AlreadyExists);
    c.unpublish(&volume, &target).await?;
    c.publish(&volume, &staging, &target, writer(), false).await?;
    write(&target)?;
    assert_eq!(code(c.publish(&volume, &staging, &other, writer(), true).await), Code::AlreadyExists);
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    c.delete(&volume).await?;
    driver.terminate().await
}

#[tokio::test]
async fn a_volume_for_one_user_has_one() -> Result<()> {
    let mut driver = Driver::start(2 << 30).await?;
    let mut c = driver.clients().await?;
    let one = || mount_as("ext4", Mode::SingleNodeSingleWriter);
    let volume = c.create("v", 64 * MIB, one()).await?;
    let (staging, a, b) = (driver.path("staging"), driver.path("a"), driver.path("b"));
    c.stage(&volume, &staging, one()).await?;
    c.publish(&volume, &staging, &a, one(), false).await?;
    c.publish(&volume, &staging, &a, one(), false).await?;
    assert_eq!(code(c.publish(&volume, &staging, &b, one(), false).await), Code::FailedPrecondition);
    c.unpublish(&volume, &a).await?;
    c.publish(&volume, &staging, &b, one(), false).await?;
    c.unpublish(&volume, &b).await?;
    c.unstage(&volume, &staging).await?;
    driver.terminate().await
}

/// P7, P9: nothing is formatted that is not blank, and a volume that lost its file system is not given a fresh one.
#[tokio::test]
async fn nothing_is_formatted_that_may_hold_data() -> Result<()> {
    let mut driver = Driver::start(2 << 30).await?;
    let mut c = driver.clients().await?;
    let raw = block(Mode::SingleNodeWriter);
    let volume = c.create("v", 64 * MIB, mount("ext4")).await?;
    let (staging, target) = (driver.path("staging"), driver.path("target"));
    let scribble = |at: u64, content: Vec<u8>| -> Result<()> {
        let mut device = fs::File::options().write(true).open(&target)?;
        device.seek(SeekFrom::Start(at))?;
        device.write_all(&content)?;
        Ok(device.sync_all()?)
    };
    // A partition table.
    c.stage(&volume, &staging, raw.clone()).await?;
    c.publish(&volume, &staging, &target, raw.clone(), false).await?;
    let mut table = vec![0; 512];
    table[446 + 4] = 0x83;
    table[446 + 8] = 8;
    table[446 + 13] = 1;
    (table[510], table[511]) = (0x55, 0xaa);
    scribble(0, table.clone())?;
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    let refused = c.stage(&volume, &staging, mount("ext4")).await;
    assert_eq!(code(refused), Code::FailedPrecondition);

    // Blank again: now it is formatted, and remembered.
    c.stage(&volume, &staging, raw.clone()).await?;
    c.publish(&volume, &staging, &target, raw.clone(), false).await?;
    let mut first = vec![0; 512];
    fs::File::open(&target)?.read_exact(&mut first)?;
    assert_eq!(first, table, "a refused stage changes nothing");
    scribble(0, vec![0; 4096])?;
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    c.stage(&volume, &staging, mount("ext4")).await?;
    c.unstage(&volume, &staging).await?;
    assert_eq!(code(c.stage(&volume, &staging, mount("xfs")).await), Code::FailedPrecondition);

    // Its super block is lost: it probes as blank, and is refused.
    c.stage(&volume, &staging, raw.clone()).await?;
    c.publish(&volume, &staging, &target, raw.clone(), false).await?;
    scribble(0, vec![0; 1 << 20])?;
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    let lost = c.stage(&volume, &staging, mount("ext4")).await;
    let message = lost.as_ref().map_err(|s| s.message().to_string()).err().unwrap_or_default();
    assert!(message.contains("probes as blank"), "{message}");
    assert_eq!(code(lost), Code::FailedPrecondition);
    // Also in its clones.
    let snapshot = c.snapshot(&volume, "s", "crash").await?;
    let source = Source::Snapshot(SnapshotSource { snapshot_id: snapshot });
    let clone = c.create_from("clone", 0, mount("ext4"), Some(source)).await?;
    assert_eq!(code(c.stage(&clone, &driver.path("clone"), mount("ext4")).await), Code::FailedPrecondition);
    c.unstage(&volume, &staging).await?;
    c.unstage(&clone, &driver.path("clone")).await?;
    driver.terminate().await
}

#[tokio::test]
async fn what_is_killed_is_found_and_cleaned_up() -> Result<()> {
    let mut driver = Driver::start(4 << 30).await?;
    let mut c = driver.clients().await?;
    let raw = || block(Mode::SingleNodeWriter);
    let (volume, disk) = (c.create("v", 256 * MIB, mount("ext4")).await?, c.create("d", 64 * MIB, raw()).await?);
    let (staging, target) = (driver.path("staging"), driver.path("target"));
    let (disk_staging, disk_target) = (driver.path("disk-staging"), driver.path("disk-target"));
    c.publish(&volume, &staging, &target, mount("ext4"), false).await?;
    c.publish(&disk, &disk_staging, &disk_target, raw(), false).await?;
    write_durably(&target.join("kept"), b"content")?;
    let open = fs::File::open(target.join("kept"))?;
    let loops = |driver: &Driver| -> Result<usize> {
        let exports = driver.path("run/exports");
        Ok(coppice_node::host::device::loops()?.iter().filter(|(_, file)| file.starts_with(&exports)).count())
    };
    assert_eq!(loops(&driver)?, 2);
    let bare = watch_for_bareness(&target);
    driver.kill()?;
    drop(open);

    // Each call in turn is the first after the restart.
    driver.run().await?;
    let mut c = driver.clients().await?;
    c.publish(&volume, &staging, &target, mount("ext4"), false).await?;
    assert_eq!(fs::read(target.join("kept"))?, b"content", "what was flushed is there");
    assert_eq!(loops(&driver)?, 1, "dead devices are gone");
    c.unpublish(&disk, &disk_target).await?;
    c.unstage(&disk, &disk_staging).await?;
    c.delete(&disk).await?;

    driver.kill()?;
    driver.run().await?;
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while write_durably(&target.join("more"), b"more").is_err() {
        assert!(std::time::Instant::now() < give_up, "whoever uses it is not helped: {}", driver.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(fs::read(target.join("kept"))?, b"content", "without any call");
    driver.kill()?;
    driver.run().await?;
    bare.end()?;
    let mut c = driver.clients().await?;
    assert_eq!(code(c.delete(&volume).await), Code::FailedPrecondition, "somebody uses it");
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    assert_eq!(driver.mounts()?, Vec::<std::path::PathBuf>::new(), "dead mounts go, too");
    c.stage(&volume, &staging, mount("ext4")).await?;
    c.publish(&volume, &staging, &target, mount("ext4"), false).await?;
    assert_eq!(fs::read(target.join("kept"))?, b"content");
    assert_eq!(fs::read(target.join("more"))?, b"more");

    driver.kill()?;
    driver.run().await?;
    let mut c = driver.clients().await?;
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    c.delete(&volume).await?;
    driver.terminate().await?;
    let (lvols, findings) = driver.inspect().await?;
    assert!(lvols.is_empty() && findings.is_empty(), "{lvols:?} {findings:?}");
    Ok(())
}

/// What users of the other file systems see after a restart: XFS is mounted anew, btrfs only where the kernel mounts two of one
/// origin; elsewhere its path goes on to answer errors until it is unpublished. The path is never bare.
async fn users_after_a_kill(fs_type: &str) -> Result<bool> {
    let mut driver = Driver::start(4 << 30).await?;
    let mut c = driver.clients().await?;
    let volume = c.create("v", FS_BYTES, mount(fs_type)).await?;
    let (staging, target) = (driver.path("staging"), driver.path("target"));
    c.publish(&volume, &staging, &target, mount(fs_type), false).await?;
    write_durably(&target.join("kept"), b"content")?;
    driver.kill()?;
    driver.run().await?;
    let give_up = std::time::Instant::now() + std::time::Duration::from_secs(8);
    let mut healed = false;
    while !healed && std::time::Instant::now() < give_up {
        healed = write_durably(&target.join("more"), b"more").is_ok();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    if healed {
        assert_eq!(fs::read(target.join("kept"))?, b"content");
    } else {
        let kept = fs::metadata(target.join("kept")).map_err(|e| e.kind());
        assert_ne!(kept.err(), Some(std::io::ErrorKind::NotFound), "bare: {}", driver.log());
    }
    let mut c = driver.clients().await?;
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    c.publish(&volume, &staging, &target, mount(fs_type), false).await?;
    assert_eq!(fs::read(target.join("kept"))?, b"content");
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    c.delete(&volume).await?;
    driver.terminate().await?;
    Ok(healed)
}

#[tokio::test]
async fn users_of_an_xfs_are_mounted_anew() -> Result<()> {
    assert!(users_after_a_kill("xfs").await?);
    Ok(())
}

#[tokio::test]
async fn users_of_a_btrfs_see_no_bare_directory() -> Result<()> {
    users_after_a_kill("btrfs").await?;
    Ok(())
}

/// Looks at a published ext4 all the time: an error is what a user of a dead device may see, an empty directory is not.
struct Watch(std::sync::Arc<std::sync::atomic::AtomicBool>, std::thread::JoinHandle<bool>);

fn watch_for_bareness(target: &Path) -> Watch {
    use std::sync::atomic::Ordering;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (stopped, inside) = (stop.clone(), target.join("lost+found"));
    let looking = std::thread::spawn(move || {
        let mut bare = false;
        while !stopped.load(Ordering::Relaxed) {
            bare |= fs::symlink_metadata(&inside).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
        }
        bare
    });
    Watch(stop, looking)
}

impl Watch {
    fn end(self) -> Result<()> {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        let bare = self.1.join().map_err(|_| anyhow::anyhow!("the watch ended"))?;
        anyhow::ensure!(!bare, "there was a moment when the directory below the mount could be seen");
        Ok(())
    }
}

#[tokio::test]
async fn a_run_directory_and_a_store_have_one_owner() -> Result<()> {
    let mut driver = Driver::start(1 << 30).await?;
    let second = |run_dir: &str| -> Result<(Option<i32>, String)> {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_coppice"))
            .arg("standalone")
            .arg("--lvstore")
            .arg(driver.path("store"))
            .arg("--endpoint")
            .arg(format!("unix://{}", driver.path("second.sock").display()))
            .arg("--run-dir")
            .arg(driver.path(run_dir))
            .output()?;
        Ok((out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned()))
    };
    let (status, message) = second("run")?;
    assert_eq!(status, Some(1), "{message}");
    assert!(message.contains("another coppice runs"), "{message}");
    let (status, message) = second("run-2")?;
    assert_eq!(status, Some(1), "{message}");
    driver.terminate().await
}
