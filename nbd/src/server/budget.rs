//! How much payload may be in memory, per connection and in all. Who finds none left waits, and whoever waits reads no more
//! requests: that is the back-pressure.
//!
//! No deadlock: a share is taken in one go, first the connection's, then the total; nobody who holds one asks for another;
//! and what is held ends with the source's answer and the writer, both of which have deadlines.

use std::sync::Arc;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// What one connection draws from.
#[derive(Clone)]
pub(super) struct Budget {
    connection: Arc<Semaphore>,
    total: Arc<Semaphore>,
    max: u32,
}

/// Bytes that may be in memory until this is dropped.
pub(super) struct Share {
    _connection: OwnedSemaphorePermit,
    _total: OwnedSemaphorePermit,
}

/// The total of all connections.
pub(super) fn total(bytes_max: u32) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(usize::try_from(bytes_max).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS)))
}

impl Budget {
    /// `connection_bytes_max` is at most the total.
    pub(super) fn new(connection_bytes_max: u32, all: &Arc<Semaphore>) -> Self {
        Self { connection: total(connection_bytes_max), total: Arc::clone(all), max: connection_bytes_max }
    }

    /// A share of `bytes`, or of all that the connection may have if that is less.
    pub(super) async fn take(&self, bytes: u64) -> Result<Share, AcquireError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.max);
        let connection = Arc::clone(&self.connection).acquire_many_owned(bytes).await?;
        let total = Arc::clone(&self.total).acquire_many_owned(bytes).await?;
        Ok(Share { _connection: connection, _total: total })
    }
}
