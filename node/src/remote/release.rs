//! Pins between lvstores of one process: made along the way when a clone is, and taken away when it is independent.

use coppice_engine::{CreateExternalClone, Error, ErrorKind, LvolInfo, Pin, Result, Store, Stores};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tracing::{info, warn};
use uuid::Uuid;

/// The reader of such a pin; no certificate has such a name.
const HERE: &str = "(here)";
/// How often it is looked whether a pin is still needed.
const EVERY: Duration = Duration::from_secs(2);

/// Makes clones across the lvstores of this process, and releases their pins. Clones are the same.
#[derive(Clone, Default)]
pub struct Near {
    /// Held while a clone is made: between its pin and its record nobody may think that the pin is of no use.
    making: Arc<Mutex<()>>,
}

impl Near {
    /// The snapshot is pinned first, if it is in a lvstore that is open here; of another process its owner does that.
    pub async fn clone_external(&self, stores: &Stores, store: &Store, how: CreateExternalClone) -> Result<LvolInfo> {
        let (near, stores, store) = (self.clone(), stores.clone(), store.clone());
        // Also if nobody waits for it any more: the engine goes on, and its clone must have its pin.
        let made = tokio::spawn(async move { near.make(&stores, &store, how).await });
        made.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Cancelled, e.to_string())))
    }

    async fn make(&self, stores: &Stores, store: &Store, how: CreateExternalClone) -> Result<LvolInfo> {
        let _one = self.making.lock().await;
        let parent = how.parent;
        for other in stores.all().iter().filter(|other| other.uuid() != store.uuid()) {
            if other.lvol(parent).await.is_ok() {
                other.pin(parent, Pin { lvstore: store.uuid(), reader: HERE.into() }).await?;
            }
        }
        let made = store.clone_external(how).await;
        if made.is_err() {
            self.release_of(stores, parent).await;
        }
        made
    }

    /// Takes away pins that nothing needs any more, for ever.
    pub async fn release(self, stores: Stores) {
        loop {
            {
                let _one = self.making.lock().await;
                for store in stores.all().iter() {
                    let lvols = store.lvols().await.unwrap_or_default();
                    for lvol in lvols.iter().filter(|lvol| !lvol.pins.is_empty()) {
                        self.release_of(&stores, lvol.uuid).await;
                    }
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Only a store that is open can say that it does not need a snapshot.
    async fn release_of(&self, stores: &Stores, snapshot: Uuid) {
        let all = stores.all();
        for store in all.iter() {
            let Ok(lvol) = store.lvol(snapshot).await else { continue };
            for pin in lvol.pins.iter().filter(|pin| pin.reader == HERE) {
                let dependant = all.iter().find(|other| other.uuid() == pin.lvstore);
                let needs =
                    |other: &Store| !other.knows_external_parents() || other.external_parents().contains(&snapshot);
                if dependant.is_none_or(needs) {
                    continue;
                }
                match store.unpin(snapshot, pin.lvstore).await {
                    Ok(()) => info!(%snapshot, lvstore = %pin.lvstore, "not read from there any more: unpinned"),
                    Err(e) => warn!(%snapshot, "its pin stays for now: {e}"),
                }
            }
        }
    }
}
