//! A snapshot of another lvstore of the same process as an external parent.

use super::{Answer, External, Stretch};
use crate::error::{Error, ErrorKind, Result, err};
use crate::handle::Reader;
use crate::shard::ShardHandle;
use crate::shard::sync::lock;
use crate::stores::Stores;
use bytes::Bytes;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// How often a store that is not open is looked for.
const LOOK: Duration = Duration::from_millis(200);

/// Looks for the snapshot with every call, so that its store may come and go.
#[derive(Clone)]
pub struct LocalParent(Arc<Inner>);

struct Inner {
    stores: Stores,
    snapshot: Uuid,
    /// Where to wait.
    shard: ShardHandle,
    away: Mutex<Option<String>>,
    near: AtomicBool,
}

impl LocalParent {
    pub fn new(stores: Stores, snapshot: Uuid, shard: ShardHandle) -> LocalParent {
        let away = Mutex::new(None);
        LocalParent(Arc::new(Inner { stores, snapshot, shard, away, near: AtomicBool::new(false) }))
    }

    /// The snapshot, if its store is open.
    pub async fn find(&self) -> Option<Reader> {
        for store in self.0.stores.all().iter() {
            // Without a way to another thread, where it is not.
            if store.lvol(self.0.snapshot).await.is_ok()
                && let Ok(reader) = store.reader(self.0.snapshot).await
            {
                self.0.near.store(true, Ordering::Relaxed);
                return Some(reader);
            }
        }
        self.0.near.store(false, Ordering::Relaxed);
        None
    }

    /// Whether it was found when it was last looked for.
    pub fn is_near(&self) -> bool {
        self.0.near.load(Ordering::Relaxed)
    }

    /// The snapshot; as long as its store is not open, it is waited for.
    pub async fn wait_for_it(self, patience: Duration) -> Result<Reader> {
        let mut left = patience;
        loop {
            if let Some(reader) = self.find().await {
                *lock(&self.0.away) = None;
                return Ok(reader);
            }
            let why = format!("no open lvstore here has its external parent {}", self.0.snapshot);
            *lock(&self.0.away) = Some(why.clone());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Away, why));
            }
            let pause = LOOK.min(left);
            left -= pause;
            let rest = self.0.shard.call(move |shard| async move {
                shard.sleep(pause).await;
                Ok(())
            });
            rest.await?;
        }
    }

    async fn reads<T>(self, patience: Duration, answer: impl Fn(Reader) -> Answer<T>) -> Result<T> {
        loop {
            match answer(self.clone().wait_for_it(patience).await?).await {
                // Its store was closed under the call.
                Err(e) if e.kind() == ErrorKind::NotFound || e.kind() == ErrorKind::Cancelled => {
                    if self.find().await.is_some() {
                        return Err(err!(Io, "external parent {}: {e}", self.0.snapshot));
                    }
                }
                done => return done,
            }
        }
    }
}

impl External for LocalParent {
    fn size(&self, patience: Duration) -> Answer<u64> {
        let parent = self.clone();
        Box::pin(async move { Ok(parent.wait_for_it(patience).await?.size()) })
    }

    fn read(&self, off: u64, len: usize, patience: Duration) -> Answer<Bytes> {
        Box::pin(self.clone().reads(patience, move |reader| Box::pin(async move { reader.read(off, len).await })))
    }

    fn status(&self, off: u64, len: u64, patience: Duration) -> Answer<Vec<Stretch>> {
        Box::pin(self.clone().reads(patience, move |reader| Box::pin(async move { reader.status(off, len).await })))
    }

    fn away(&self) -> Option<String> {
        lock(&self.0.away).clone()
    }
}
