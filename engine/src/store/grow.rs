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
        if self.growth(device_size)?.is_none() {
            return Ok(self.info());
        }
        self.activate(shard).await?;
        let local = self.local(shard)?;
        let mut journal = self.journal.acquire().await;
        let area = journal.as_mut().ok_or_else(|| err!(Failed, "the store is not active"))?;
        // A close or another growth may have come first.
        lock(&self.core).may_change()?;
        let device_size = self.device.refresh_size()?;
        let Some((size, total)) = self.growth(device_size)? else { return Ok(self.info()) };
        let (mut image, now) = {
            let core = lock(&self.core);
            (core.super_block.clone(), core.geo.clone())
        };
        image.size = size;
        image.used_cluster_mask_len = now.cluster_mask_pages(total as u32);
        let generation = image.next_generation()?;
        let geo = Geometry::new(&image, device_size)?;
        let result = self.replace_super(&local, area, image, generation).await;
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

    /// The size that the store would have on a device of `device_size` bytes, in bytes and clusters, if that is more than now.
    fn growth(&self, device_size: u64) -> Result<Option<(u64, u64)>> {
        let core = lock(&self.core);
        let (now, limit) = (&core.geo, core.geo.mask_capacity_clusters());
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
            return Ok(None);
        }
        if total > limit {
            return Err(err!(
                NoSpace,
                "the store was laid out for {} bytes at most (--max-size of `lvstore create`) and the device has {size}",
                limit * u64::from(now.cluster_size)
            ));
        }
        Ok(Some((size, total)))
    }
}
