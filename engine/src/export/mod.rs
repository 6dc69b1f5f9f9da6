//! How a lvol reaches a consumer.
//!
//! An export runs on a shard and asks a [`Volume`]; it knows nothing of maps and stores. `fuse` serves one file through a
//! FUSE file system and puts a loop device on it, for kernels that have neither ublk nor nbd.

mod fuse;
mod loopdev;
mod raw;

use crate::error::Result;
use crate::sys::buf::BufSlice;
use std::future::Future;

pub use fuse::{FuseExport, Left, VolumeFactory, detach_dead, lost_its_mount, remove_dead_exports};
pub use raw::RawVolume;

/// A block device as one shard serves it. Offsets and lengths are bytes, multiples of `block_size`, inside `size`.
pub trait Volume: Clone + 'static {
    /// Bytes, now.
    fn size(&self) -> u64;
    fn block_size(&self) -> u32;
    fn read_only(&self) -> bool;
    /// Fills `buf` from `off`.
    fn read(&self, off: u64, buf: BufSlice) -> impl Future<Output = Result<()>>;
    /// Writes `buf` at `off`; with `fua` it is durable, mapping included, when it completes.
    fn write(&self, off: u64, buf: BufSlice, fua: bool) -> impl Future<Output = Result<()>>;
    /// The range reads zero afterwards.
    fn write_zeroes(&self, off: u64, len: u64) -> impl Future<Output = Result<()>>;
    /// The range reads zero afterwards, and whole clusters return to the pool.
    fn discard(&self, off: u64, len: u64) -> impl Future<Output = Result<()>>;
    /// Every write that completed before the call survives power loss afterwards.
    fn flush(&self) -> impl Future<Output = Result<()>>;
}
