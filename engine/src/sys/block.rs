//! Facts about block devices that need an `ioctl`.

use crate::error::{Error, Result};
use std::os::fd::{AsFd, AsRawFd};

macro_rules! ioctl_read {
    ($name:ident, $request:expr, $type:ty) => {
        fn $name(fd: impl AsFd) -> Result<$type> {
            let mut value: $type = 0;
            // SAFETY: the request writes one value of that type to the pointer, which outlives the call.
            let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), $request, &mut value as *mut $type) };
            if rc < 0 {
                let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
                return Err(Error::from_errno(errno, concat!("ioctl ", stringify!($name))));
            }
            Ok(value)
        }
    };
}

ioctl_read!(blkgetsize64, 0x8008_1272, u64);
ioctl_read!(blksszget, 0x1268, libc::c_int);

/// Size of a block device in bytes.
pub fn device_size(fd: impl AsFd) -> Result<u64> {
    blkgetsize64(fd)
}

/// Logical block size of a block device in bytes.
pub fn logical_block_size(fd: impl AsFd) -> Result<u32> {
    Ok(blksszget(fd)? as u32)
}
