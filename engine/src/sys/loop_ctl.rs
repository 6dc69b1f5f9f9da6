//! The ioctls of the loop driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const SET_STATUS64: libc::c_ulong = 0x4c04;
const GET_STATUS64: libc::c_ulong = 0x4c05;
const CLR_FD: libc::c_ulong = 0x4c01;
const SET_CAPACITY: libc::c_ulong = 0x4c07;
const CONFIGURE: libc::c_ulong = 0x4c0a;
const CTL_GET_FREE: libc::c_ulong = 0x4c82;

/// Bytes of a name.
pub const NAME_MAX: usize = 63;

pub const FLAG_READ_ONLY: u32 = 1;
pub const FLAG_AUTOCLEAR: u32 = 4;
pub const FLAG_DIRECT_IO: u32 = 16;

/// `struct loop_info64`
#[repr(C)]
#[derive(Clone)]
pub struct Status {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    pub number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    pub flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl Status {
    /// As given to [`configure`].
    pub fn name(&self) -> &[u8] {
        let end = self.file_name.iter().position(|byte| *byte == 0).unwrap_or(self.file_name.len());
        self.file_name.get(..end).unwrap_or_default()
    }

    fn zeroed() -> Status {
        Status {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Status,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Status>() == 232);
const _: () = assert!(size_of::<Config>() == 304);

fn checked(rc: libc::c_int) -> io::Result<libc::c_int> {
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

/// Number of a loop device that is free now; another process may take it first.
pub fn get_free(control: impl AsFd) -> io::Result<u32> {
    // SAFETY: the request takes no argument.
    Ok(checked(unsafe { libc::ioctl(control.as_fd().as_raw_fd(), CTL_GET_FREE) })? as u32)
}

/// Binds `backing` to the free loop device `device`, in one step. `name` is for people and for [`Status::name`], cut at
/// [`NAME_MAX`] bytes.
pub fn configure(device: impl AsFd, backing: impl AsFd, block_size: u32, flags: u32, name: &[u8]) -> io::Result<()> {
    let mut info = Status::zeroed();
    info.flags = flags;
    for (to, from) in info.file_name.iter_mut().take(NAME_MAX).zip(name) {
        *to = *from;
    }
    let config = Config { fd: backing.as_fd().as_raw_fd() as u32, block_size, info, reserved: [0; 8] };
    // SAFETY: the request reads one `loop_config` through the pointer, which outlives the call.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), CONFIGURE, &config as *const Config) })?;
    Ok(())
}

/// Takes the backing file's size anew.
pub fn set_capacity(device: impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), SET_CAPACITY, 0) })?;
    Ok(())
}

/// Frees the device with its last close; who else has it open keeps it until then.
pub fn clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), CLR_FD, 0) })?;
    Ok(())
}

/// ENXIO when no file is bound to the device, or its teardown has begun.
pub fn status(device: impl AsFd) -> io::Result<Status> {
    let mut status = Status::zeroed();
    // SAFETY: the request writes one `loop_info64` through the pointer, which outlives the call.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), GET_STATUS64, &mut status as *mut Status) })?;
    Ok(status)
}

pub fn set_status(device: impl AsFd, status: &Status) -> io::Result<()> {
    // SAFETY: the request reads one `loop_info64` through the pointer, which outlives the call.
    checked(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), SET_STATUS64, status as *const Status) })?;
    Ok(())
}
