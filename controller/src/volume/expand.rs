//! Growing a volume. The lvol first, then the size that is reported: cut off in between, the retry reports it.

use super::{Error, Range, Result, Volumes, no_volume};
use coppice_proto::attributes;
use coppice_proto::capability::{Access, Capability};
use tracing::info;

/// What became of an expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expanded {
    pub capacity: u64,
    /// The node has to grow the device (it is exported) or the file system.
    pub node_expansion_required: bool,
}

impl Volumes {
    pub async fn expand(&self, id: &str, range: Range, capability: Option<Capability>) -> Result<Expanded> {
        if range.required == 0 && range.limit == 0 {
            return Err(Error::Invalid("the request has no capacity range".into()));
        }
        let volume = self.find_volume(id).await?.ok_or_else(|| no_volume(id))?;
        let _turn = self.turns.take(&volume.uuid.to_string()).await?;
        let volume = self.find_volume(id).await?.ok_or_else(|| no_volume(id))?;
        let current = attributes::reported_size(&volume.attributes, volume.size);
        if range.limit != 0 && current > range.limit {
            let limit = range.limit;
            let message =
                format!("the volume has {current} bytes already, the limit is {limit}: volumes do not shrink");
            return Err(Error::OutOfRange(message));
        }
        let is_block = capability.is_some_and(|capability| capability.access == Access::Block);
        let answer =
            |capacity: u64| Expanded { capacity, node_expansion_required: !is_block || !volume.exports.is_empty() };
        if range.required <= current {
            return Ok(answer(current));
        }
        let pools = self.backend.pools().await?;
        let home = pools.iter().find(|pool| pool.key == volume.lvstore);
        // One that is not open now may not say how large it is.
        let largest = home.filter(|pool| pool.open || pool.largest > 0).map_or(u64::MAX, |pool| pool.largest);
        if range.required > largest {
            let (size, name) = (range.required, home.map_or("", |pool| &pool.name));
            let message = format!("{size} bytes are more than the lvstore {name} can hold ({largest} bytes)");
            return Err(Error::OutOfRange(message));
        }
        if range.required > volume.size {
            self.backend.resize(volume.uuid, range.required).await?;
        }
        let size = (attributes::CSI_SIZE.to_string(), Some(range.required.to_string()));
        self.backend.set_attributes(volume.uuid, vec![size]).await?;
        info!(volume = %volume.uuid, from = current, to = range.required, "expanded");
        Ok(answer(range.required))
    }
}
