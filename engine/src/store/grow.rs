//! Taking up the room that a device gained. The cluster mask's place on disk bounds it; the metadata pages stay as they are.

use super::Lvstore;
use crate::api::StoreInfo;
use crate::error::{Result, err};
use crate::format::Geometry;
use crate::shard::Shard;
use crate::shard::sync::lock;
use std::sync::Arc;

impl Lvstore {
    /// Uses the whole device from now on. Does nothing if it has not grown.
    pub async fn grow(self: &Arc<Self>, shard: &Shard) -> Result<StoreInfo> {
        let device_size = self.device.refresh_size()?;
        lock(&self.core).may_change()?;
        let (mut image, now, limit) = {
            let core = lock(&self.core);
            (core.super_block.clone(), core.geo.clone(), core.geo.mask_capacity_clusters())
        };
        let size = device_size - device_size % u64::from(now.io_unit);
        let total = size / u64::from(now.cluster_size);
        if size < now.size {
            return Err(err!(
                Invalid,
                "the device has {size} bytes, fewer than the store ({}); restore it first",
                now.size
            ));
        }
        if total <= u64::from(now.total_clusters) {
            return Ok(self.info());
        }
        if total > limit {
            return Err(err!(
                NoSpace,
                "the store was laid out for {} bytes at most (--max-size of `lvstore create`) and the device has {size}",
                limit * u64::from(now.cluster_size)
            ));
        }
        self.activate(shard).await?;
        let local = self.local(shard)?;
        let mut journal = self.journal.acquire().await;
        let area = journal.as_mut().ok_or_else(|| err!(Failed, "the store is not active"))?;
        // Activation changed the super block.
        image.clone_from(&lock(&self.core).super_block);
        image.size = size;
        image.used_cluster_mask_len = now.cluster_mask_pages(total as u32);
        let mut private = image.private()?.ok_or_else(|| err!(Corrupt, "no private area"))?;
        private.generation += 1;
        let generation = private.generation;
        image.set_private(Some(&private))?;
        let geo = Geometry::new(&image, device_size)?;
        let result = self.replace_super(&local, area, image, generation).await;
        drop(journal);
        if let Err(e) = result {
            self.fail(&e.to_string());
            return Err(e);
        }
        {
            let mut core = lock(&self.core);
            core.clusters.grow(geo.total_clusters);
            core.geo = geo;
            core.space_wait.wake_all();
        }
        Ok(self.info())
    }
}
