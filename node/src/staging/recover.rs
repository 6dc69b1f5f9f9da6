//! After a killed process: its FUSE servers are gone, so every device that it exported answers only errors. Their mounts
//! are taken away before the devices, and the devices before anything new is exported. What a user of a volume sees stays,
//! and with it the device: were its number free while a path still shows it, one volume's user would get another
//! volume's data. File systems are for [`Node::heal`]; devices go when they are unpublished (kubelet, which has a loop
//! device of its own on each, would not find that again).

use super::Node;
use super::heal::Wounded;
use crate::Result;
use crate::host::mount::{self, IfBusy};
use crate::host::{device, freeze, mountinfo};
use std::path::{Path, PathBuf};
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
        let records: Vec<_> = self.records.all()?.into_iter().filter(|record| record.boot_id == boot).collect();
        let recorded: Vec<_> = records.iter().map(|record| record.device.clone()).collect();
        let left = coppice_engine::Left::below(self.exports_dir(), &recorded)?;
        let (mut used, mut keep) = (Vec::new(), Vec::new());
        let mut mounts = mountinfo::read()?;
        mounts.reverse();
        for path in &left.iter().flat_map(coppice_engine::Left::dead_devices).collect::<Vec<_>>() {
            warn!(device = %path.display(), "a predecessor's device is dead");
            let number = device::number(path).ok();
            grow_tired(path);
            let record = records.iter().find(|record| record.device == *path);
            let mut users = Vec::new();
            for there in mounts.iter().filter(|mount| mount.is_of(path, number)) {
                if !there.is_node_of(path) {
                    freeze::thaw_dead(&there.target).await;
                }
                if record.is_some_and(|record| record.is_user(there)) {
                    users.push(there.clone());
                    continue;
                }
                mount::unmount(&there.target, IfBusy::Detach).await?;
                removed.push(format!("dead mount {} of {}", there.target.display(), path.display()));
            }
            let Some(record) = record.filter(|_| !users.is_empty()) else { continue };
            used.push(record.uuid);
            match record.fs_type {
                // A path that shows a device does not hold it.
                None => keep.push(path.clone()),
                Some(_) => self.wounded().push(Wounded { record: record.clone(), users, failure: String::new() }),
            }
        }
        // The volume may have been staged again, and these be what its users still have below: then they stay.
        if let Some(left) = left {
            let in_use = |path: &PathBuf| {
                let number = device::number(path).ok();
                mounts.iter().any(|mount| mount.is_of(path, number))
            };
            keep.extend(left.leaked_devices().into_iter().filter(in_use));
            removed.extend(left.remove(&keep)?);
        }
        for record in self.records.all()? {
            // The next process will have to know, should this one be killed, too.
            if !used.contains(&record.uuid) {
                self.records.remove(record.uuid)?;
            }
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
