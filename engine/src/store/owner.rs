//! Whose store it is: a field of the super block, replaced like growth replaces it: the copy is durable before page 0 changes.

use super::Lvstore;
use crate::api::StoreInfo;
use crate::error::{Result, err};
use crate::shard::Shard;
use crate::shard::sync::lock;
use std::sync::Arc;
use uuid::Uuid;

impl Lvstore {
    /// Durable when it returns; after a crash on the way it is the old or the new one. Does nothing if it is the owner
    /// already. Survives closing and sealing.
    pub async fn set_owner(self: &Arc<Self>, shard: &Shard, owner: Option<Uuid>) -> Result<StoreInfo> {
        lock(&self.core).may_change()?;
        if lock(&self.core).super_block.owner()? == owner {
            return Ok(self.info());
        }
        self.activate(shard).await?;
        let local = self.local(shard)?;
        let mut journal = self.journal.acquire().await;
        let area = journal.as_mut().ok_or_else(|| err!(Failed, "the store is not active"))?;
        // A close may have come first.
        lock(&self.core).may_change()?;
        let mut image = lock(&self.core).super_block.clone();
        image.set_owner(owner)?;
        let generation = image.next_generation()?;
        if let Err(e) = self.replace_super(&local, area, image, generation).await {
            self.fail(&e.to_string());
            return Err(e);
        }
        drop(journal);
        Ok(self.info())
    }
}
