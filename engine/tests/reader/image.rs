//! The image file, read only. Holes of a sparse file are known, so that terabytes of nothing cost nothing to read.

use anyhow::{Context, Result, ensure};
use rustix::fs::SeekFrom;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub struct Image {
    file: File,
    pub len: u64,
    /// Ranges `start..end` that may hold data, ascending; one range over everything when the file cannot tell.
    data: Vec<(u64, u64)>,
}

impl Image {
    pub fn open(path: &Path) -> Result<Image> {
        let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
        let len = rustix::fs::seek(&file, SeekFrom::End(0))?;
        let data = data_ranges(&file, len).unwrap_or_else(|| vec![(0, len)]);
        Ok(Image { file, len, data })
    }

    pub fn is_hole(&self, offset: u64, len: u64) -> bool {
        let after = self.data.partition_point(|(_, end)| *end <= offset);
        self.data.get(after).is_none_or(|(start, _)| *start >= offset.saturating_add(len))
    }

    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let end = offset.checked_add(len).context("offset overflows")?;
        ensure!(end <= self.len, "read of {len} bytes at {offset} beyond the image's {} bytes", self.len);
        if self.is_hole(offset, len) {
            buf.fill(0);
            return Ok(());
        }
        self.file.read_exact_at(buf, offset).with_context(|| format!("read {len} bytes at {offset}"))
    }
}

fn data_ranges(file: &File, len: u64) -> Option<Vec<(u64, u64)>> {
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        at = rustix::fs::seek(file, SeekFrom::Hole(start)).ok().filter(|end| *end > start)?;
        ranges.push((start, at));
    }
    Some(ranges)
}
