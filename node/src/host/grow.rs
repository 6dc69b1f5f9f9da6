//! Growing a file system to the size of its device.
//!
//! ext4 grows while mounted only for a process with CAP_SYS_RESOURCE; before a mount it grows for anyone. xfs and btrfs
//! grow only while mounted.

use super::command::run;
use super::{device, freeze};
use crate::error::Doing;
use crate::{Error, Result};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;
use tracing::{info, warn};

const GROW_SECONDS_MAX: u64 = 600;
/// A full check of a large file system before it grows unmounted.
const CHECK_SECONDS_MAX: u64 = 3600;
/// Less than this is rounding, not growth: bytes.
const SLACK_BYTES: u64 = 1 << 20;
/// btrfs does not resize below this: bytes.
const BTRFS_BYTES_MIN: u64 = 256 << 20;

/// Before the mount: an ext4 that cannot be grown afterwards.
pub async fn before_mount(device: &Path, fs_type: &str) -> Result<()> {
    if fs_type != "ext4" || device::has_sys_resource() || !ext4_is_smaller(device).await? {
        return Ok(());
    }
    let checked =
        run("e2fsck", &[OsStr::new("-f"), OsStr::new("-p"), device.as_os_str()], seconds(CHECK_SECONDS_MAX)).await?;
    if !matches!(checked.code, Some(0 | 1)) {
        return Err(checked.error());
    }
    run("resize2fs", &[device.as_os_str()], seconds(GROW_SECONDS_MAX)).await?.ok()?;
    info!(device = %device.display(), fs_type, "file system grown before the mount");
    Ok(())
}

/// False for a file system that stays as it is on a device of this size. It is mounted all the same.
pub fn can_grow(device: &Path, fs_type: &str) -> Result<bool> {
    Ok(fs_type != "btrfs" || device::size(device)? >= BTRFS_BYTES_MIN)
}

/// Grows the mounted file system, if its device is larger.
pub async fn mounted(device: &Path, fs_type: &str, at: &Path) -> Result<()> {
    match fs_type {
        "ext4" => {
            if !ext4_is_smaller(device).await? {
                return Ok(());
            }
            let out = run("resize2fs", &[device.as_os_str()], seconds(GROW_SECONDS_MAX)).await?;
            if out.code != Some(0) && !device::has_sys_resource() {
                let message = format!(
                    "{}; growing a mounted ext4 needs CAP_SYS_RESOURCE, which this process lacks: give it the \
                     capability, or stop what uses the volume, and it grows when it is mounted again",
                    out.error()
                );
                return Err(Error::Precondition(message));
            }
            out.ok()?;
        }
        "xfs" => {
            let before = blocks(at)?;
            run("xfs_growfs", &[OsStr::new("-d"), at.as_os_str()], seconds(GROW_SECONDS_MAX)).await?.ok()?;
            if blocks(at)? != before {
                write_home(at).await;
            }
        }
        "btrfs" => {
            let stat = rustix::fs::statvfs(at).doing(|| format!("statvfs {}", at.display()))?;
            let (has, wants) = (stat.f_blocks.saturating_mul(stat.f_frsize), device::size(device)?);
            if has.saturating_add(SLACK_BYTES) > wants {
                return Ok(());
            }
            if wants < BTRFS_BYTES_MIN {
                let message = format!("btrfs does not grow to less than {BTRFS_BYTES_MIN} bytes ({wants} asked)");
                return Err(Error::Precondition(message));
            }
            let args = [OsStr::new("filesystem"), OsStr::new("resize"), OsStr::new("max"), at.as_os_str()];
            run("btrfs", &args, seconds(GROW_SECONDS_MAX)).await?.ok()?;
        }
        other => return Err(Error::Invalid(format!("the file system {other:?} is not grown here"))),
    }
    info!(device = %device.display(), fs_type, "file system is as large as its device");
    Ok(())
}

/// The kernel does not recover the log of an XFS that was used beyond its old end while the new end is in the log only
/// (Linux 6.18: "daddr out of range", EUCLEAN). A freeze writes the log home.
async fn write_home(at: &Path) {
    let done = match freeze::freeze(at).await {
        Ok(frozen) => frozen.thaw().await,
        Err(e) => Err(e),
    };
    if let Err(e) = done {
        warn!(at = %at.display(), "a crash before the next sync may need xfs_repair: {e}");
    }
}

fn blocks(at: &Path) -> Result<u64> {
    Ok(rustix::fs::statvfs(at).doing(|| format!("statvfs {}", at.display()))?.f_blocks)
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// True if the ext4 ends well before its device.
async fn ext4_is_smaller(device: &Path) -> Result<bool> {
    let out = run("dumpe2fs", &[OsStr::new("-h"), device.as_os_str()], seconds(60)).await?.ok()?;
    let number = |key: &str| {
        let line = out.stdout.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    let (Some(blocks), Some(block)) = (number("Block count:"), number("Block size:")) else {
        return Err(Error::Host(format!("dumpe2fs does not say how large the file system on {} is", device.display())));
    };
    Ok(blocks.saturating_mul(block).saturating_add(SLACK_BYTES) <= device::size(device)?)
}
