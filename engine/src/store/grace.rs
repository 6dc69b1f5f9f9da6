//! The grace period: waits until every I/O that was planned before it began has completed on every shard.

use super::Lvstore;
use crate::error::Result;
use crate::shard::sync::{WaitList, lock, wait_until};
use futures_util::future::try_join_all;
use std::task::Poll;

/// One grace period at a time per store.
#[derive(Default)]
pub struct GraceState {
    running: bool,
    wait: WaitList,
}

impl Lvstore {
    /// Ends when all I/O planned before the call has completed.
    pub async fn grace(&self) -> Result<()> {
        wait_until(&self.core, |core, cx| {
            if core.grace.running {
                core.grace.wait.register(cx);
                return Poll::Pending;
            }
            core.grace.running = true;
            Poll::Ready(())
        })
        .await;
        let key = self.key;
        let drains = self.shards.iter().map(|shard| {
            shard.call(move |shard| async move {
                let local = Lvstore::local_of(&shard, key)?;
                local.drain().await;
                Ok(())
            })
        });
        let result = try_join_all(drains).await;
        let mut core = lock(&self.core);
        core.grace.running = false;
        core.grace.wait.wake_all();
        result.map(|_| ())
    }
}
