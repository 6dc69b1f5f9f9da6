//! Which loop devices a process was about to bind: an empty file for each, beside the mounts.
//!
//! Of a killed process's device the kernel tells little once its mount is gone with a mount namespace. The mark is made
//! before the device is bound, so there is no moment in which a device is left that nobody knows. A mark alone says nothing:
//! the device may be free again, or somebody else's. One that goes with its last user needs no mark.

use crate::error::{Error, Result};
use crate::export::loopdev::{LoopDevice, bound_devices};
use crate::shard::sync::lock;
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

const PREFIX: &str = ".loop";

/// See [`changing`].
static CHANGING: Mutex<()> = Mutex::new(());

/// Held from marking a device to binding it, and from letting it go to clearing its mark: a number that is free is another
/// export's at once, and so is its mark.
pub fn changing() -> MutexGuard<'static, ()> {
    lock(&CHANGING)
}

fn mark_of(dir: &Path, number: u32) -> PathBuf {
    dir.join(format!("{PREFIX}{number}"))
}

pub fn set(dir: &Path, number: u32) -> Result<()> {
    let path = mark_of(dir, number);
    let made = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path);
    made.map(drop).map_err(|e| {
        Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), format_args!("cannot make {}", path.display()))
    })
}

/// What cannot be removed says nothing wrong.
pub fn clear(dir: &Path, number: u32) {
    let path = mark_of(dir, number);
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("cannot remove {}: {e}", path.display()),
        _ => {}
    }
}

/// Numbers of the devices that are marked.
pub fn all(dir: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok());
    numbers.collect()
}

/// Clears the marks of devices that are bound to nothing.
pub fn tidy(dir: &Path) {
    let _changing = changing();
    let bound = bound_devices();
    all(dir).into_iter().filter(|n| bound.iter().all(|device| device.number != *n)).for_each(|n| clear(dir, n));
}

/// Clears the mark of a device that was let go, unless it is bound again.
pub fn clear_free(dir: &Path, device: &LoopDevice) {
    let _changing = changing();
    if device.is_free() {
        clear(dir, device.number);
    }
}
