//! How full a volume is.

use super::Node;
use crate::error::Doing;
use crate::host::command::blocking;
use crate::host::mount::resolve;
use crate::host::{device, mountinfo};
use crate::{Error, Result};
use std::path::Path;
use std::time::Duration;

const STAT_SECONDS_MAX: u64 = 30;

/// What a volume holds. Block volumes only have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Block { total: u64 },
    Mount { bytes: Amount, inodes: Option<Amount> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount {
    pub total: u64,
    pub used: u64,
    pub available: u64,
}

impl Node {
    pub async fn stats(&self, id: &str, path: &str) -> Result<Usage> {
        let (store, lvol) = self.find(id).await?;
        let path = &resolve(Path::new(path));
        let not_there = || Error::NotFound(format!("the volume {id} is not at {}", path.display()));
        let export = store.export_of(lvol.uuid).ok_or_else(not_there)?;
        let device = export.device();
        let number = device::number(&device).ok();
        let there = mountinfo::at(path)?.filter(|there| there.is_of(&device, number)).ok_or_else(not_there)?;
        if there.is_node_of(&device) {
            return Ok(Usage::Block { total: device::size(&device)? });
        }
        let path = path.to_path_buf();
        let what = format!("statvfs {}", path.display());
        let stat = blocking(&what.clone(), Duration::from_secs(STAT_SECONDS_MAX), move || {
            rustix::fs::statvfs(&path).doing(|| what)
        })
        .await?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        let inodes =
            Amount { total: stat.f_files, used: stat.f_files.saturating_sub(stat.f_ffree), available: stat.f_favail };
        Ok(Usage::Mount {
            bytes: Amount {
                total: bytes(stat.f_blocks),
                used: bytes(stat.f_blocks.saturating_sub(stat.f_bfree)),
                available: bytes(stat.f_bavail),
            },
            // btrfs makes inodes as it needs them and counts none.
            inodes: (stat.f_files != 0).then_some(inodes),
        })
    }
}
