//! Devices that hang, and that fail and come back.

use super::rig::{MIB, POOL, Rig, eventually};
use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use serde_json::json;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// A file whose file system never answers, until this is dropped.
struct Hung {
    path: PathBuf,
    server: Option<OwnedFd>,
}

impl Hung {
    fn new(path: &Path) -> Result<Hung> {
        std::fs::File::create(path)?;
        let server = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let options = format!("fd={},rootmode=100644,user_id=0,group_id=0", server.as_raw_fd());
        let options = CString::new(options)?;
        rustix::mount::mount("hung", path, "fuse", MountFlags::NOSUID, options.as_c_str())?;
        Ok(Hung { path: path.to_path_buf(), server: Some(server) })
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.server = None;
        let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_hangs_delays_no_other() -> Result<()> {
    let rig = Rig::new()?;
    let hung = Hung::new(&rig.file("hung.img"))?;
    rig.lvstore("hung", json!({}));
    tokio::time::sleep(Duration::from_millis(20)).await;
    rig.pool();
    let start = Instant::now();
    let running = rig.start()?;
    running.agent.tried().await;
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.lvstore_is("node-a-hung", "Ready", "False/DeviceStalled").await?;
    let absent = running.absent.list().context("one is absent")?;
    assert!(absent.contains("node-a-hung: DeviceStalled") && !absent.contains("pool"), "{absent}");
    // Its lvols go on.
    rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;

    // The mount is gone: the empty file below it is no store.
    drop(hung);
    rig.lvstore_is("node-a-hung", "Ready", "False/OpenFailed").await?;
    running.stop().await
}

/// A loop device as the drive, and the link by which it is known.
struct Drive(PathBuf);

fn losetup(args: &[&str]) -> Result<String> {
    let done = Command::new("losetup").args(args).output().context("losetup")?;
    ensure!(done.status.success(), "losetup {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?.trim().to_string())
}

impl Drive {
    fn new(file: &Path, link: &Path) -> Result<Drive> {
        let drive = losetup(&["--find", "--show", &file.display().to_string()])?;
        std::os::unix::fs::symlink(&drive, link)?;
        Ok(Drive(drive.into()))
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        let _ = losetup(&["--detach", &self.0.display().to_string()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drive_that_became_larger_is_noticed_and_one_that_is_not_plugged_is_waited_for() -> Result<()> {
    let rig = Rig::new()?;
    let (file, link) = (rig.file("backing"), rig.file("by-id"));
    std::fs::File::create(&file)?.set_len(64 * MIB)?;
    rig.lvstore("pool", json!({ "device": link }));
    let running = rig.start()?;
    running.agent.tried().await;
    rig.lvstore_is(POOL, "Ready", "False/DeviceMissing").await?;
    let drive = Drive::new(&file, &link)?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let store = running.store()?;
    assert_eq!(store.lvstore().info().size, 64 * MIB);
    std::fs::File::options().write(true).open(&file)?.set_len(96 * MIB)?;
    losetup(&["--set-capacity", &drive.0.display().to_string()])?;
    eventually("grown", || store.lvstore().info().size == 96 * MIB).await?;
    let total = || rig.api.get("lvstores", POOL).unwrap_or_default()["status"]["space"]["total"].clone();
    eventually("its status", || total() == "96Mi").await?;
    drop(store);
    running.stop().await
}

/// A small tmpfs: what is written beyond its size fails.
struct Small(PathBuf);

impl Small {
    fn resize(&self, size: u64) -> Result<()> {
        let options = CString::new(format!("size={size}"))?;
        rustix::mount::mount_remount(&self.0, MountFlags::empty(), options.as_c_str())?;
        Ok(())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_failed_is_opened_again_when_nobody_uses_it() -> Result<()> {
    let rig = Rig::new()?;
    let options = CString::new("size=16m")?;
    rustix::mount::mount("small", rig.dir.path(), "tmpfs", MountFlags::empty(), options.as_c_str())?;
    let small = Small(rig.dir.path().to_path_buf());
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let a = rig.volume("a", json!({ "size": "48Mi" }))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    let store = running.store()?;
    store.write(a, 0, b"kept".to_vec()).await?;
    store.flush(a).await?;
    let exports = rig.file("exports");
    std::fs::create_dir(&exports)?;
    let export = store.export_fuse(a, &exports, false).await?;

    // The device takes no more: nor does the journal's next page.
    small.resize(4 * MIB)?;
    for n in 0..700 {
        if store.write(a, MIB + n * 65536, vec![1; 65536]).await.is_err() {
            break;
        }
    }
    let _ = store.set_attributes(a, vec![("n".into(), Some("x".repeat(3000)))]).await;
    assert!(store.lvstore().has_failed());
    rig.lvstore_is(POOL, "Failing", "True/DeviceFailed").await?;
    eventually("who holds it back", || rig.message(POOL, "Failing").contains("not in use any more: a (/dev/loop"))
        .await?;
    rig.lvstore_is(POOL, "Ready", "False/DeviceFailed").await?;
    drop(store);

    // Closed, and not there when it is opened again: it is not asked for all the time.
    std::fs::rename(rig.file("pool.img"), rig.file("away"))?;
    export.stop().await?;
    drop(export);
    rig.lvstore_is(POOL, "Ready", "False/DeviceMissing").await?;
    assert_eq!(rig.condition("lvstores", POOL, "Failing"), "True/DeviceFailed");
    let asked = || rig.api.state().requests.len();
    let before = asked();
    tokio::time::sleep(Duration::from_millis(750)).await;
    assert!(asked() - before < 20, "{} requests in 750 ms", asked() - before);
    small.resize(128 * MIB)?;
    std::fs::rename(rig.file("away"), rig.file("pool.img"))?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.lvstore_is(POOL, "Failing", "False/AsExpected").await?;
    let store = running.store()?;
    assert_eq!(store.read(a, 0, 4).await?, b"kept");
    store.write(a, 0, b"more".to_vec()).await?;
    store.flush(a).await?;
    assert!(store.check().await?.iter().all(|finding| finding.heals));
    assert_eq!(running.absent.list(), None);
    running.stop().await
}
