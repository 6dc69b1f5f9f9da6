//! After a killed process: its FUSE servers are gone, so every device that it exported answers only errors. Their mounts
//! are taken away before the devices, and the devices before anything new is exported: a loop device that keeps its
//! number while a path still shows it would give one volume's user another volume's data.

use super::Node;
use crate::Result;
use crate::host::mount::{self, IfBusy};
use crate::host::{device, freeze, mountinfo};
use std::path::Path;
use tracing::{info, warn};

/// XFS tries to write its metadata for ever, and whoever freezes or unmounts it waits; on a dead device it may give up.
fn grow_tired(device: &Path) {
    let Ok(name) = device::name(device) else { return };
    let errors = Path::new("/sys/fs/xfs").join(name).join("error/metadata");
    for error in ["EIO", "ENODEV", "default"] {
        // Absent for a device without a mounted XFS.
        let _ = std::fs::write(errors.join(error).join("max_retries"), "0");
    }
}

impl Node {
    /// Call it once, before anything is exported. Answers with what was removed.
    pub async fn recover(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let boot = device::boot_id()?;
        let recorded: Vec<_> =
            self.records.all()?.into_iter().filter(|r| r.boot_id == boot).map(|r| r.device).collect();
        let dead = coppice_engine::dead_devices(self.exports_dir(), &recorded)?;
        let mut mounts = mountinfo::read()?;
        mounts.reverse();
        for path in &dead {
            warn!(device = %path.display(), "a predecessor's device is dead");
            let number = device::number(path).ok();
            grow_tired(path);
            for there in mounts.iter().filter(|mount| mount.is_of(path, number)) {
                if !there.is_node_of(path) {
                    freeze::thaw_dead(&there.target).await;
                }
                mount::unmount(&there.target, IfBusy::Detach).await?;
                removed.push(format!("dead mount {} of {}", there.target.display(), path.display()));
            }
        }
        removed.extend(coppice_engine::remove_dead_exports(self.exports_dir(), &recorded)?);
        for record in self.records.all()? {
            self.records.remove(record.uuid)?;
        }
        for what in &removed {
            info!("removed what a predecessor left: {what}");
        }
        Ok(removed)
    }

    /// For the end of the process: volumes that nobody uses are given back, the others are written out and named.
    pub async fn stop_unused(&self) -> Result<Vec<String>> {
        let mut in_use = Vec::new();
        for store in self.stores.all().iter() {
            for lvol in store.lvols().await? {
                let Some(export) = store.export_of(lvol.uuid) else { continue };
                let mounts = self.mounts_of(&export.device())?;
                if mounts.is_empty() && export.stop().await.is_ok() {
                    self.records.remove(lvol.uuid)?;
                    continue;
                }
                let limit = std::time::Duration::from_secs(30);
                if let Some(fs) = mounts.iter().find(|mount| !mount.is_node_of(&export.device()))
                    && let Err(e) = mount::sync_file_system(&fs.target, limit).await
                {
                    warn!(volume = %lvol.uuid, "not written out at the end: {e}");
                }
                in_use.push(lvol.alias);
            }
        }
        Ok(in_use)
    }
}
