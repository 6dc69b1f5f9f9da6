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
    /// Until [`Node::after_snapshot`] nothing else is done with the volume: a file system that is unmounted while it is frozen
    /// cannot be thawed any more, and a snapshot of a file system that is just being made is no use.
    pub async fn before_snapshot(&self, lvol: Uuid, how: Consistency) -> Result<()> {
        let turn = self.turns.take(&lvol.to_string()).await?;
        let frozen = self.hold_still(lvol, how).await?;
        self.being_snapshot.lock().unwrap_or_else(PoisonError::into_inner).insert(lvol, (frozen, turn));
        Ok(())
    }

    async fn hold_still(&self, lvol: Uuid, how: Consistency) -> Result<Option<freeze::Frozen>> {
        // Nothing to do for volumes that are not in use here.
        let Some(export) = self.stores.all().iter().find_map(|store| store.export_of(lvol)) else { return Ok(None) };
        if how == Consistency::Crash {
            return Ok(None);
        }
        let limit = Duration::from_secs(SYNC_SECONDS_MAX);
        let device = export.device();
        let number = device::number(&device).ok();
        let mounts = mountinfo::read()?;
        let fs = mounts.iter().find(|there| there.is_of(&device, number) && !there.is_node_of(&device));
        match (fs, how) {
            (Some(fs), Consistency::Freeze) => return freeze::freeze(&fs.target).await.map(Some),
            (Some(fs), _) => mount::sync_file_system(&fs.target, limit).await?,
            (None, _) if !export.read_only() => mount::sync_device(&device, limit).await?,
            (None, _) => {}
        }
        Ok(None)
    }

    /// An error says that the file system did not stay frozen until now.
    pub async fn after_snapshot(&self, lvol: Uuid) -> Result<()> {
        let held = self.being_snapshot.lock().unwrap_or_else(PoisonError::into_inner).remove(&lvol);
        match held {
            Some((Some(frozen), _turn)) => frozen.thaw().await.map_err(|e| Error::Deadline(e.to_string())),
            _ => Ok(()),
        }
    }
}
