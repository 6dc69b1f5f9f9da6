//! What a killed process leaves behind, and taking it away.

use crate::rig::*;
use anyhow::{Result, bail, ensure};
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::export::{FuseExport, Left, RawVolume, VolumeFactory, detach_dead, remove_dead_exports};
use coppice_engine::shard::ShardThreads;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const CHILD_DIR: &str = "COPPICE_TEST_CHILD_DIR";

/// Not a test of its own: the process that the tests here kill.
#[test]
#[ignore = "started as a child process by the tests of dead exports"]
fn child_serves_until_killed() -> Result<()> {
    let Some(dir) = std::env::var_os(CHILD_DIR).map(PathBuf::from) else { return Ok(()) };
    let threads = ShardThreads::start(1)?;
    let device = Device::open(&dir.join("backing"), OpenMode::ReadWrite)?;
    let factory: VolumeFactory<RawVolume> =
        Box::new(move |shard| Ok(RawVolume::new(device.port(shard), PLAN.size, 4096)));
    let shards = vec![(threads.handles()[0].clone(), factory)];
    let export = wait(FuseExport::start(shards, &dir.join("exports"), NAME, false))?;
    fs::write(dir.join("device.new"), text(&export.device()))?;
    fs::rename(dir.join("device.new"), dir.join("device"))?;
    std::thread::sleep(Duration::from_secs(60));
    wait(export.stop())?;
    bail!("was not killed");
}

fn dead_devices(exports: &Path, recorded: &[PathBuf]) -> Result<Vec<PathBuf>> {
    Ok(Left::below(exports, recorded)?.map(|left| left.dead_devices()).unwrap_or_default())
}

/// Kills the child and cleans up after it, whatever happens.
struct Child {
    process: std::process::Child,
    dir: tempfile::TempDir,
}

impl Child {
    fn start() -> Result<(Child, PathBuf)> {
        Self::start_by(Command::new(std::env::current_exe()?))
    }

    /// As in a container: its mounts are seen nowhere else, and go with it.
    fn start_apart() -> Result<(Child, PathBuf)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe()?);
        Self::start_by(command)
    }

    fn start_by(mut command: Command) -> Result<(Child, PathBuf)> {
        let dir = tempfile::tempdir_in("/dev/shm")?;
        fs::File::create(dir.path().join("backing"))?.set_len(PLAN.size)?;
        let process = command
            .args(["--exact", "dead::child_serves_until_killed", "--ignored", "--nocapture"])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()?;
        let child = Child { process, dir };
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(device) = fs::read_to_string(child.dir.path().join("device")) {
                return Ok((child, PathBuf::from(device)));
            }
            ensure!(Instant::now() < give_up, "the child does not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn kill(&mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.kill();
        let _ = Command::new("umount").arg("-l").arg(self.dir.path().join("mnt")).stderr(Stdio::null()).status();
        let _ = remove_dead_exports(&self.dir.path().join("exports"), &[], &[]);
    }
}

#[test]
fn dead_exports_are_removed_and_live_ones_stay() -> Result<()> {
    let (mut child, device) = Child::start()?;
    let exports = child.dir.path().join("exports");
    ensure!(remove_dead_exports(&exports, &[], &[])?.is_empty(), "what is alive stays");
    ensure!(fs::metadata(loop_attribute(&device, "backing_file")?).is_ok());
    ensure!(remove_dead_exports(&child.dir.path().join("nowhere"), &[], &[])?.is_empty());
    fs::create_dir(exports.join("00000000-0000-4000-8000-000000000000"))?;
    fs::create_dir(exports.join("somebody-elses"))?;
    child.kill()?;
    let done = remove_dead_exports(&exports, &[], &[])?;
    ensure!(done.len() == 3, "{done:?}");
    ensure!(done[0].starts_with("detached /dev/loop") && done[1].starts_with("unmounted "), "{done:?}");
    fs::remove_dir(exports.join("somebody-elses"))?;
    nothing_left(&exports, &device)?;
    ensure!(remove_dead_exports(&exports, &[], &[])?.is_empty(), "nothing left to do");
    Ok(())
}

#[test]
fn a_dead_container_is_known_from_a_living_one_and_a_device_can_be_kept() -> Result<()> {
    let (mut child, device) = Child::start_apart()?;
    let exports = child.dir.path().join("exports");
    let recorded = [device.clone()];
    ensure!(dead_devices(&exports, &recorded)?.is_empty(), "it is alive");
    let backing = loop_attribute(&device, "backing_file")?;
    ensure!(fs::read_to_string(&backing)?.starts_with(text(&exports)));
    child.kill()?;
    ensure!(fs::read_to_string(&backing)? == "/volume\n", "this is how a file without a mount shows");
    ensure!(dead_devices(&exports, &recorded)? == recorded);
    remove_dead_exports(&exports, &recorded, &recorded)?;
    ensure!(dead_devices(&exports, &recorded)? == recorded, "it is kept");
    detach_dead(&exports, &PathBuf::from("/dev/loop-none"))?;
    ensure!(dead_devices(&exports, &recorded)? == recorded, "another device");
    detach_dead(&exports, &device)?;
    ensure!(dead_devices(&exports, &recorded)?.is_empty());
    nothing_left(&exports, &device)
}

#[test]
fn what_a_dead_container_left_is_removed_at_once() -> Result<()> {
    let (mut child, device) = Child::start_apart()?;
    let exports = child.dir.path().join("exports");
    child.kill()?;
    // Nobody else wrote down that it was ours: a driver that is killed right after binding it did not come to that.
    let done = remove_dead_exports(&exports, &[], &[])?;
    ensure!(done.iter().any(|done| done.starts_with("detached /dev/loop")), "{done:?}");
    nothing_left(&exports, &device)
}

#[test]
fn a_dead_export_that_is_mounted_goes_with_the_mount() -> Result<()> {
    let (mut child, device) = Child::start()?;
    let (exports, at) = (child.dir.path().join("exports"), child.dir.path().join("mnt"));
    run("mkfs.ext4", &["-q", text(&device)])?;
    fs::create_dir(&at)?;
    run("mount", &[text(&device), text(&at)])?;
    fs::write(at.join("file"), "content")?;
    child.kill()?;
    let began = Instant::now();
    let done = remove_dead_exports(&exports, &[], &[])?;
    ensure!(done.iter().any(|d| d.contains("with its last user")), "{done:?}");
    ensure!(
        began.elapsed() < Duration::from_secs(1),
        "a node with many volumes in use waits for each: {:?}",
        began.elapsed()
    );
    let backing = loop_attribute(&device, "backing_file")?;
    ensure!(fs::metadata(&backing).is_ok(), "still bound");
    run("umount", &[text(&at)])?;
    let give_up = Instant::now() + Duration::from_secs(5);
    while fs::metadata(&backing).is_ok() {
        ensure!(Instant::now() < give_up, "gone with its last user");
        std::thread::sleep(Duration::from_millis(10));
    }
    remove_dead_exports(&exports, &[], &[])?;
    nothing_left(&exports, &device)
}
