//! Making and checking file systems.
//!
//! The features are named here and not left to the distribution: a volume made on the newest node must mount on the oldest
//! supported kernel (5.15).

use super::command::{run, run_with};
use crate::{Error, Result};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;
use tracing::info;

const MKFS_SECONDS_MAX: u64 = 600;
const FSCK_SECONDS_MAX: u64 = 3600;
/// Everything that an ext4 is made with; `none` drops what the distribution would add.
const EXT4_FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,\
large_file,huge_file,dir_nlink,extra_isize,metadata_csum";
/// Everything of an XFS that kernel 5.15 knows.
const XFS_FEATURES: [&str; 4] = ["-m", "crc=1,finobt=1,inobtcount=1,bigtime=1,reflink=1,rmapbt=0", "-i", "sparse=1"];
/// What newer tools would add: the option, and the word in their usage that shows that they know it.
const XFS_LATER: [(&str, &str); 4] = [("-i", "nrext64"), ("-i", "exchange"), ("-n", "parent"), ("-m", "metadir")];
/// The smallest XFS that mkfs.xfs still makes, bytes.
const XFS_BYTES_MIN: u64 = 300 << 20;
/// The smallest btrfs, bytes.
const BTRFS_BYTES_MIN: u64 = 110 << 20;

/// Makes a file system on a device that was found blank. `again`: what an interrupted mkfs left may be overwritten.
///
/// Discarding first would be wasted: an lvol that was never written reads as zero.
pub async fn make(device: &Path, fs_type: &str, bytes: u64, again: bool) -> Result<()> {
    check_size(fs_type, bytes)?;
    let later = if fs_type == "xfs" { xfs_later().await? } else { Vec::new() };
    let (program, mut args): (&str, Vec<&OsStr>) = match fs_type {
        "ext4" => ("mkfs.ext4", words(&["-q", "-m0", "-E", "nodiscard", "-O", EXT4_FEATURES])),
        "xfs" => {
            let mut args = words(&["-q", "-K"]);
            args.extend(words(&XFS_FEATURES));
            args.extend(later.iter().map(OsStr::new));
            ("mkfs.xfs", args)
        }
        "btrfs" => ("mkfs.btrfs", words(&["-q", "-K"])),
        other => return Err(Error::Invalid(format!("the file system {other:?} is not made here"))),
    };
    if again {
        args.push(OsStr::new(if fs_type == "ext4" { "-F" } else { "-f" }));
    }
    args.push(device.as_os_str());
    run(program, &args, Duration::from_secs(MKFS_SECONDS_MAX)).await?.ok()?;
    info!(device = %device.display(), fs_type, "file system made");
    Ok(())
}

/// Switches off what the installed mkfs.xfs knows and kernel 5.15 does not. Its usage names what it knows; profiles that
/// come with it do not always parse.
async fn xfs_later() -> Result<Vec<String>> {
    let usage = run::<&str>("mkfs.xfs", &[], Duration::from_secs(10)).await?;
    let usage = format!("{}{}", usage.stdout, usage.stderr);
    let known = XFS_LATER.iter().filter(|(_, word)| usage.contains(&format!("{word}=")));
    Ok(known.flat_map(|(option, word)| [option.to_string(), format!("{word}=0")]).collect())
}

fn words<'a>(words: &[&'a str]) -> Vec<&'a OsStr> {
    words.iter().map(|word| OsStr::new(*word)).collect()
}

fn check_size(fs_type: &str, bytes: u64) -> Result<()> {
    let least = match fs_type {
        "xfs" => XFS_BYTES_MIN,
        "btrfs" => BTRFS_BYTES_MIN,
        _ => return Ok(()),
    };
    if bytes < least {
        let message = format!("a volume of {bytes} bytes is too small for {fs_type}: at least {least} are needed");
        return Err(Error::Precondition(message));
    }
    Ok(())
}

/// Repairs what can be repaired without asking, as kubelet does before a mount. xfs and btrfs replay their logs at mount.
pub async fn check(device: &Path, fs_type: &str) -> Result<()> {
    if fs_type != "ext4" {
        return Ok(());
    }
    // No progress bar, no mtab: the environment of fsck decides on both.
    let args = [OsStr::new("-a"), device.as_os_str()];
    let out = run_with("fsck", &args, &[], Duration::from_secs(FSCK_SECONDS_MAX)).await?;
    match out.code {
        Some(0) => Ok(()),
        Some(1) => {
            info!(device = %device.display(), "fsck corrected the file system: {}", out.stdout.trim());
            Ok(())
        }
        _ => Err(Error::Precondition(format!("{}; repair it by hand before it is mounted", out.error()))),
    }
}

/// Two btrfs of one fsid, as a volume and its clone have, are told apart only by newer kernels. Without that, mounting
/// the second would show the first.
pub fn check_btrfs_twin(device: &Path, uuid: &str) -> Result<()> {
    let of_fsid = Path::new("/sys/fs/btrfs").join(uuid);
    if uuid.is_empty() || !of_fsid.exists() || Path::new("/sys/fs/btrfs/features/temp_fsid").exists() {
        return Ok(());
    }
    let own = device.file_name().is_some_and(|name| of_fsid.join("devices").join(name).exists());
    if own {
        return Ok(());
    }
    let message = format!(
        "a btrfs with the fsid {uuid} is mounted already, and this kernel cannot mount a second one (it lacks \
         temp_fsid, Linux 6.7): unmount the volume that this one was cloned from, or use ext4 or xfs"
    );
    Err(Error::Precondition(message))
}
