//! What a shard can ask of the kernel: one operation, with everything that it needs alive until it has completed.

use crate::sys::buf::BufSlice;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;

/// What an operation works on: an open file, or a disk of the simulator. Cheap to clone on its shard.
#[derive(Clone)]
pub struct Target(Rc<TargetKind>);

enum TargetKind {
    File(Arc<OwnedFd>),
    Simulated(u32),
}

impl Target {
    /// The same open file description, whichever shard uses it: its lock ends with the last operation in flight.
    pub fn file(fd: Arc<OwnedFd>) -> Target {
        Target(Rc::new(TargetKind::File(fd)))
    }

    pub fn simulated(disk: u32) -> Target {
        Target(Rc::new(TargetKind::Simulated(disk)))
    }

    pub fn raw_fd(&self) -> RawFd {
        match &*self.0 {
            TargetKind::File(fd) => fd.as_raw_fd(),
            TargetKind::Simulated(_) => -1,
        }
    }

    /// Whether both are the same open file or simulated disk.
    pub fn is(&self, other: &Target) -> bool {
        self.raw_fd() == other.raw_fd() && self.disk() == other.disk()
    }

    /// The number of the simulated disk, if it is one.
    pub fn disk(&self) -> Option<u32> {
        match &*self.0 {
            TargetKind::File(_) => None,
            TargetKind::Simulated(n) => Some(*n),
        }
    }
}

/// One operation. Results are as the system call's: bytes moved, or a negative errno.
#[derive(Clone)]
pub enum IoOp {
    /// Reads `buf.len()` bytes at `off`.
    Read { target: Target, off: u64, buf: BufSlice },
    /// Writes `buf.len()` bytes at `off`; with `durable` the data is on stable media when it completes (FUA).
    Write { target: Target, off: u64, buf: BufSlice, durable: bool },
    /// Everything that completed before this was started is on stable media when it completes.
    Flush { target: Target },
    /// The range reads zero afterwards (`FALLOC_FL_ZERO_RANGE`).
    ZeroRange { target: Target, off: u64, len: u64 },
    /// The range's content is no longer needed (`FALLOC_FL_PUNCH_HOLE`).
    Punch { target: Target, off: u64, len: u64 },
    /// `read(2)` on something without offsets (`/dev/fuse`).
    ReadStream { target: Target, buf: BufSlice },
    /// `write(2)` on something without offsets.
    WriteStream { target: Target, buf: BufSlice },
}

impl IoOp {
    pub fn target(&self) -> &Target {
        match self {
            IoOp::Read { target, .. }
            | IoOp::Write { target, .. }
            | IoOp::Flush { target }
            | IoOp::ZeroRange { target, .. }
            | IoOp::Punch { target, .. }
            | IoOp::ReadStream { target, .. }
            | IoOp::WriteStream { target, .. } => target,
        }
    }

    /// The buffer that the device writes, if it does.
    pub fn fills(&self) -> Option<&BufSlice> {
        match self {
            IoOp::Read { buf, .. } | IoOp::ReadStream { buf, .. } => Some(buf),
            _ => None,
        }
    }

    /// Bytes that a full completion reports; `None` where the result is 0.
    pub fn expected(&self) -> Option<usize> {
        match self {
            IoOp::Read { buf, .. } | IoOp::Write { buf, .. } => Some(buf.len()),
            _ => None,
        }
    }
}
