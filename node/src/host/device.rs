//! What sysfs says of block devices.

use crate::error::Doing;
use crate::{Error, Result};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Bytes of a block device.
pub fn size(device: &Path) -> Result<u64> {
    let path = Path::new("/sys/class/block").join(name(device)?).join("size");
    let text = std::fs::read_to_string(&path).doing(|| format!("read {}", path.display()))?;
    let sectors = text.trim().parse::<u64>().map_err(|e| Error::Host(format!("{}: {e}", path.display())))?;
    // Sysfs counts in units of 512 bytes, whatever the device's block size.
    Ok(sectors.saturating_mul(512))
}

/// `loop3` of `/dev/loop3`.
pub fn name(device: &Path) -> Result<&str> {
    let name = device.file_name().and_then(|name| name.to_str());
    name.ok_or_else(|| Error::Host(format!("{} is not the path of a device", device.display())))
}

/// Major and minor number.
pub fn number(device: &Path) -> Result<(u32, u32)> {
    let meta = std::fs::metadata(device).doing(|| format!("look at {}", device.display()))?;
    if !meta.file_type().is_block_device() {
        return Err(Error::Host(format!("{} is not a block device", device.display())));
    }
    let rdev = meta.rdev();
    Ok((rustix::fs::major(rdev), rustix::fs::minor(rdev)))
}

/// Loop devices with the files behind them.
pub fn loops() -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir("/sys/block").doing(|| "list /sys/block".into())? {
        let entry = entry.doing(|| "list /sys/block".into())?;
        let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
        if !name.starts_with("loop") {
            continue;
        }
        // Absent for a loop device without a file.
        if let Ok(text) = std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            let file = text.trim_end_matches('\n');
            let file = file.strip_suffix(" (deleted)").unwrap_or(file);
            out.push((Path::new("/dev").join(name), PathBuf::from(file)));
        }
    }
    Ok(out)
}

/// The identity of this boot of the machine.
pub fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(std::fs::read_to_string(path).doing(|| format!("read {path}"))?.trim().to_string())
}

/// True if this process may do what needs CAP_SYS_RESOURCE, such as growing a mounted ext4.
pub fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << CAP_SYS_RESOURCE) != 0
}
