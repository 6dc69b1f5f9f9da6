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
/// External parents one behind another in the lvstores of this process; nobody makes so many.
const DEPTH_MAX: usize = 64;

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

    /// The snapshot, if its store is open. An error if it has itself as a parent somewhere: reading it would never end.
    pub async fn find(&self) -> Result<Option<Reader>> {
        for store in self.0.stores.all().iter() {
            // Without a way to another thread, where it is not.
            if store.lvol(self.0.snapshot).await.is_ok()
                && let Ok(reader) = store.reader(self.0.snapshot).await
            {
                self.check_depth()?;
                self.0.near.store(true, Ordering::Relaxed);
                return Ok(Some(reader));
            }
        }
        self.0.near.store(false, Ordering::Relaxed);
        Ok(None)
    }

    fn check_depth(&self) -> Result<()> {
        let (stores, mut at) = (self.0.stores.all(), self.0.snapshot);
        for _ in 0..DEPTH_MAX {
            match stores.iter().find_map(|store| store.lvstore().external_parent_of(at)) {
                Some(next) if next == self.0.snapshot => break,
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
        let why = "the external parents of this one lead back to it, or are too many: it is not what it was made as";
        *lock(&self.0.away) = Some(format!("external parent {}: {why}", self.0.snapshot));
        Err(err!(Corrupt, "external parent {}: {why}", self.0.snapshot))
    }

    /// Whether it was found when it was last looked for.
    pub fn is_near(&self) -> bool {
        self.0.near.load(Ordering::Relaxed)
    }

    /// The snapshot; as long as its store is not open, it is waited for.
    async fn wait_for_it(&self, left: &mut Duration) -> Result<Reader> {
        loop {
            if let Some(reader) = self.find().await? {
                *lock(&self.0.away) = None;
                return Ok(reader);
            }
            let why = format!("no open lvstore here has its external parent {}", self.0.snapshot);
            *lock(&self.0.away) = Some(why.clone());
            if left.is_zero() {
                return Err(Error::new(ErrorKind::Away, why));
            }
            self.pause(left).await?;
        }
    }

    /// Waits until it is time to look again; takes that from what is left.
    pub async fn pause(&self, left: &mut Duration) -> Result<()> {
        let pause = LOOK.min(*left);
        *left -= pause;
        let rest = self.0.shard.call(move |shard| async move {
            shard.sleep(pause).await;
            Ok(())
        });
        rest.await
    }

    async fn reads<T>(self, patience: Duration, answer: impl Fn(Reader) -> Answer<T>) -> Result<T> {
        let mut left = patience;
        loop {
            match answer(self.wait_for_it(&mut left).await?).await {
                Err(e) if has_left(&e) && left.is_zero() => {
                    return Err(err!(Away, "external parent {}: {e}", self.0.snapshot));
                }
                Err(e) if has_left(&e) => self.pause(&mut left).await?,
                done => return done,
            }
        }
    }
}

/// What a [`Reader`] answers whose store was closed, or whose snapshot is not there any more: both may be again, somewhere.
pub fn has_left(e: &Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Cancelled)
}

impl External for LocalParent {
    fn size(&self, patience: Duration) -> Answer<u64> {
        let parent = self.clone();
        let mut left = patience;
        Box::pin(async move { Ok(parent.wait_for_it(&mut left).await?.size()) })
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
