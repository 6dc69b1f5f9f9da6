//! What a snapshot of a volume in use holds: the file system is written out, or held still, while it is taken.

use super::Node;
use crate::host::{device, freeze, mount, mountinfo};
use crate::{Error, Result};
use std::sync::PoisonError;
use std::time::Duration;
use uuid::Uuid;

/// A snapshot does not wait longer than this for the writing out.
const SYNC_SECONDS_MAX: u64 = 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    Crash,
    Sync,
    Freeze,
}

impl Node {
    /// Nothing to do for volumes that are not in use here. Until [`Node::after_snapshot`] the volume is neither unmounted nor
    /// mounted: a file system that is unmounted while it is frozen cannot be thawed any more.
    pub async fn before_snapshot(&self, lvol: Uuid, how: Consistency) -> Result<()> {
        let turn = self.turns.take(&lvol.to_string()).await?;
        let Some(export) = self.stores.iter().find_map(|store| store.export_of(lvol)) else { return Ok(()) };
        if how == Consistency::Crash {
            return Ok(());
        }
        let limit = Duration::from_secs(SYNC_SECONDS_MAX);
        let device = export.device();
        let number = device::number(&device).ok();
        let mounts = mountinfo::read()?;
        let fs = mounts.iter().find(|there| there.is_of(&device, number) && !there.is_node_of(&device));
        match (fs, how) {
            (Some(fs), Consistency::Freeze) => {
                let frozen = freeze::freeze(&fs.target).await?;
                let mut all = self.frozen.lock().unwrap_or_else(PoisonError::into_inner);
                all.insert(lvol, (frozen, turn));
                Ok(())
            }
            (Some(fs), _) => mount::sync_file_system(&fs.target, limit).await,
            (None, _) if !export.read_only() => mount::sync_device(&device, limit).await,
            (None, _) => Ok(()),
        }
    }

    /// An error says that the file system did not stay frozen until now.
    pub async fn after_snapshot(&self, lvol: Uuid) -> Result<()> {
        let frozen = self.frozen.lock().unwrap_or_else(PoisonError::into_inner).remove(&lvol);
        match frozen {
            Some((frozen, _turn)) => frozen.thaw().await.map_err(|e| Error::Deadline(e.to_string())),
            None => Ok(()),
        }
    }
}
