//! The plainest volume: a file or device handed through as it is. What lvols are measured against.

use super::Volume;
use crate::error::{Result, err};
use crate::shard::Port;
use crate::sys::buf::BufSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The first `size` bytes of what `port` reaches, block for block. The shards that serve it share `size`.
#[derive(Clone)]
pub struct RawVolume {
    pub port: Port,
    /// Bytes. A store to it is a live resize; the export's `refresh_size` makes it seen.
    pub size: Arc<AtomicU64>,
    pub block_size: u32,
    pub read_only: bool,
}

impl RawVolume {
    pub fn new(port: Port, size: u64, block_size: u32) -> RawVolume {
        RawVolume { port, size: Arc::new(AtomicU64::new(size)), block_size, read_only: false }
    }

    fn writable(&self) -> Result<()> {
        if self.read_only { Err(err!(ReadOnly, "the volume is read-only")) } else { Ok(()) }
    }
}

impl Volume for RawVolume {
    fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    async fn read(&self, off: u64, buf: BufSlice) -> Result<()> {
        self.port.read(off, buf).done("read").await
    }

    async fn write(&self, off: u64, buf: BufSlice, fua: bool) -> Result<()> {
        self.writable()?;
        self.port.write(off, buf, fua).done("write").await
    }

    async fn write_zeroes(&self, off: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.port.zero_range(off, len).done("write zeroes").await
    }

    /// Punches a hole: on a file that reads zero; on a block device it does wherever the kernel lets it succeed.
    async fn discard(&self, off: u64, len: u64) -> Result<()> {
        self.writable()?;
        self.port.punch(off, len).done("discard").await
    }

    async fn flush(&self) -> Result<()> {
        self.port.flush().done("flush").await
    }
}
