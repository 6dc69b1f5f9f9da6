//! What a store lies on: a file or a block device with direct I/O, or a disk of the simulator.
//!
//! A device has one opener (P9): the lock is on the very open file description through which all I/O goes, so the kernel
//! frees it only when the last operation of a dead process has ended.

mod file;

use crate::error::{Error, ErrorKind, Result};
use crate::shard::op::Target;
use crate::shard::{Port, Shard};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use file::{OpenMode, PREDECESSOR_PATIENCE, blank_problem};
pub(crate) use file::{lock_file, recognise};

/// Does work that may wait in the kernel for as long as a device does not answer, on a thread of its own. If nobody waits for
/// it any more, what it answers is dropped when it comes.
pub async fn on_thread<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
    let (tx, rx) = futures_channel::oneshot::channel();
    let started = std::thread::Builder::new().name("device".into()).spawn(move || {
        let _ = tx.send(work());
    });
    started.map_err(|e| Error::new(ErrorKind::Io, format!("cannot start a thread: {e}")))?;
    rx.await.map_err(|_| Error::new(ErrorKind::Cancelled, "the thread panicked"))
}

/// An opened device. Cheap to clone; closed, and its lock released, with the last clone.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    path: PathBuf,
    size: AtomicU64,
    /// Smallest unit and alignment of an I/O, bytes.
    block_size: u32,
    is_block_device: bool,
    source: Source,
}

enum Source {
    File(Arc<OwnedFd>),
    Simulated(u32),
}

impl Device {
    /// Disk number `disk` of the simulator that runs the shards.
    pub fn simulated(disk: u32, size: u64, block_size: u32) -> Device {
        Device(Arc::new(Inner {
            path: PathBuf::from(format!("sim:{disk}")),
            size: AtomicU64::new(size),
            block_size,
            is_block_device: false,
            source: Source::Simulated(disk),
        }))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Bytes, as of opening or the last `refresh_size`.
    pub fn size(&self) -> u64 {
        self.0.size.load(Ordering::Relaxed)
    }

    pub fn block_size(&self) -> u32 {
        self.0.block_size
    }

    pub fn is_block_device(&self) -> bool {
        self.0.is_block_device
    }

    /// Looks at how large the device is now.
    pub fn refresh_size(&self) -> Result<u64> {
        if let Source::File(fd) = &self.0.source {
            self.0.size.store(file::size_of(fd)?, Ordering::Relaxed);
        }
        Ok(self.size())
    }

    /// Ends the lock before the last clone is gone. All I/O must have completed.
    pub fn unlock(&self) {
        if let Source::File(fd) = &self.0.source {
            let _ = rustix::fs::flock(fd.as_ref(), rustix::fs::FlockOperation::Unlock);
        }
    }

    /// For the simulator: the disk was made larger.
    pub fn set_simulated_size(&self, size: u64) {
        self.0.size.store(size, Ordering::Relaxed);
    }

    /// The device as `shard` uses it.
    pub fn port(&self, shard: &Shard) -> Port {
        let target = match &self.0.source {
            Source::File(fd) => Target::file(fd.clone()),
            Source::Simulated(disk) => Target::simulated(*disk),
        };
        Port { shard: shard.clone(), target }
    }
}
