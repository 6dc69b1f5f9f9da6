//! `/dev/fuse`: opening it, and further descriptors for the same file system.

use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// `_IOR(229, 0, uint32_t)`
const DEV_IOC_CLONE: libc::c_ulong = 0x8004_e500;

/// A descriptor that belongs to no file system yet. Non-blocking: with that flag io_uring waits for the file's poll
/// instead of parking a kernel thread in a read.
pub fn open() -> io::Result<OwnedFd> {
    Ok(rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())?)
}

/// A second descriptor for the mounted file system that `fd` serves. A request must be answered through the descriptor
/// from which it was read.
pub fn clone(fd: impl AsFd) -> io::Result<OwnedFd> {
    let new = open()?;
    let source = fd.as_fd().as_raw_fd() as u32;
    // SAFETY: the request reads one `u32` through the pointer, which outlives the call.
    let rc = unsafe { libc::ioctl(new.as_raw_fd(), DEV_IOC_CLONE, &source as *const u32) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(new) }
}
