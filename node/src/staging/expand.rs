//! Growing a volume that is in use: the device takes the size that the lvol has, then the file system that of the device.

use super::Node;
use super::stage::key;
use crate::host::mount::resolve;
use crate::host::{device, grow, mountinfo};
use crate::{Error, Result};
use coppice_proto::attributes::reported_size;
use std::path::Path;
use tracing::info;

impl Node {
    /// `required` and `limit` in bytes, 0 for none. Answers with the size to report.
    pub async fn expand(&self, id: &str, path: &str, required: u64, limit: u64) -> Result<u64> {
        let _turn = self.turns.take(&key(id)).await?;
        let (store, lvol) = self.find(id).await?;
        let size = reported_size(&lvol.attributes, lvol.size);
        if required > size {
            let message =
                format!("the volume {id} has {size} bytes: the controller has to expand it to {required} first");
            return Err(Error::Precondition(message));
        }
        if limit != 0 && size > limit {
            return Err(Error::OutOfRange(format!("the volume {id} has {size} bytes, more than the limit of {limit}")));
        }
        let path = &resolve(Path::new(path));
        let not_there = || Error::NotFound(format!("the volume {id} is not at {}", path.display()));
        let export = store.export_of(lvol.uuid).ok_or_else(not_there)?;
        let device = export.device();
        let number = device::number(&device).ok();
        let record = self.records.get(lvol.uuid)?;
        let there = match mountinfo::at(path)? {
            Some(there) if there.is_of(&device, number) => Some(there),
            // A block volume's staging path holds nothing.
            None if record.as_ref().is_some_and(|r| r.fs_type.is_none() && r.staging == *path) => None,
            _ => return Err(not_there()),
        };
        export.refresh_size().await?;
        if let Some(there) = there.filter(|there| !there.is_node_of(&device)) {
            // A read-only bind cannot be grown through; the staging mount is writable.
            let at = record.map_or(there.target, |record| record.staging);
            grow::mounted(&device, &there.fs_type, &at).await?;
        }
        info!(volume = id, size, "expanded on the node");
        Ok(size)
    }
}
