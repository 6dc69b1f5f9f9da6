//! What the NBD server serves: to another node, snapshots that are pinned for it; on the local socket, every lvol, read only.

use super::DELTA_CONTEXT;
use async_trait::async_trait;
use bytes::Bytes;
use coppice_engine::external::{Stretch, has_left};
use coppice_engine::{Error, LvolInfo, LvolKind, LvolState, Reader, Store, Stores};
use coppice_nbd::proto::Extent;
use coppice_nbd::server::{self, BASE_ALLOCATION, Identity, Listed, Peer, Refusal, Source, SourceError};
use std::sync::Arc;
use tracing::warn;
use uuid::Uuid;

/// Bits of `base:allocation`.
const HOLE: u64 = 1;
const ZERO: u64 = 2;
/// The bit of a delta: this may differ.
const CHANGED: u64 = 1;
/// Linux' number, which the protocol has, too: the server is shutting down.
const ESHUTDOWN: i32 = 108;

/// The snapshots of the open lvstores. An export's name is the UUID of its lvol.
#[derive(Clone)]
pub struct Exports {
    stores: Stores,
}

impl Exports {
    pub fn new(stores: Stores) -> Exports {
        Exports { stores }
    }

    fn may_read(peer: &Peer, lvol: &LvolInfo) -> bool {
        match &peer.identity {
            Identity::Local => lvol.state != LvolState::Damaged,
            Identity::Certified(name) => lvol.pins.iter().any(|pin| pin.reader == *name),
        }
    }
}

#[async_trait]
impl server::Exports for Exports {
    async fn list(&self, peer: &Peer) -> Vec<Listed> {
        let mut all = Vec::new();
        for store in self.stores.all().iter() {
            let Ok(lvols) = store.lvols().await else { continue };
            let theirs = lvols.into_iter().filter(|lvol| Exports::may_read(peer, lvol));
            all.extend(theirs.map(|lvol| Listed { name: lvol.uuid.to_string(), description: lvol.alias }));
        }
        all
    }

    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refusal> {
        let uuid = Uuid::parse_str(name).map_err(|_| Refusal::Unknown)?;
        for store in self.stores.all().iter() {
            let Ok(lvol) = store.lvol(uuid).await else { continue };
            if !Exports::may_read(peer, &lvol) {
                continue;
            }
            if lvol.kind != LvolKind::Snapshot {
                return match peer.identity {
                    Identity::Local => Ok(Arc::new(Live { store: store.clone(), lvol })),
                    Identity::Certified(_) => Err(Refusal::Unknown),
                };
            }
            let reader = store.reader(uuid).await.map_err(|e| Refusal::Unavailable(e.to_string()))?;
            // Others of the same store, against which it can be compared.
            let lvols = store.lvols().await.unwrap_or_default();
            let others = lvols.iter().filter(|other| other.kind == LvolKind::Snapshot && other.uuid != uuid);
            let others = others.filter(|other| Exports::may_read(peer, other)).map(|other| other.uuid).collect();
            return Ok(Arc::new(Snapshot { reader, alias: lvol.alias, others }));
        }
        Err(Refusal::Unknown)
    }
}

/// An immutable lvol.
struct Snapshot {
    reader: Reader,
    alias: String,
    others: Vec<Uuid>,
}

/// What an error of the engine is to a client. Whose store is not open any more is away, and no answer: the client connects
/// anew, and asks whoever has the snapshot then. Anything else it takes for the last word.
fn failed(e: &Error) -> SourceError {
    SourceError::new(if has_left(e) { ESHUTDOWN } else { e.errno() }, e.message())
}

#[async_trait]
impl Source for Snapshot {
    fn size_bytes(&self) -> u64 {
        self.reader.size()
    }

    fn description(&self) -> String {
        self.alias.clone()
    }

    fn contexts(&self) -> Vec<String> {
        let deltas = self.others.iter().map(|other| format!("{DELTA_CONTEXT}{other}"));
        std::iter::once(BASE_ALLOCATION.to_string()).chain(deltas).collect()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, SourceError> {
        let length = usize::try_from(length).map_err(|_| SourceError::new(22, "too long"))?;
        self.reader.read(offset, length).await.map_err(|e| {
            warn!(snapshot = self.alias, "a read at {offset} for another node: {e}");
            failed(&e).at(offset)
        })
    }

    async fn status(&self, context: &str, offset: u64, length: u64, most: usize) -> Result<Vec<Extent>, SourceError> {
        let (stretches, hole, data) = match context.strip_prefix(DELTA_CONTEXT) {
            Some(other) => {
                let other = Uuid::parse_str(other).map_err(|e| SourceError::new(22, e.to_string()))?;
                (self.reader.delta(other, offset, length).await, 0, CHANGED)
            }
            None => (self.reader.status(offset, length).await, HOLE | ZERO, 0),
        };
        let stretches = stretches.map_err(|e| failed(&e).at(offset))?;
        let extent = |s: Stretch| Extent { length: s.len, flags: if s.hole { hole } else { data } };
        Ok(stretches.into_iter().take(most).map(extent).collect())
    }
}

/// A lvol that may change while it is read: for a look at it, not for clones.
struct Live {
    store: Store,
    lvol: LvolInfo,
}

#[async_trait]
impl Source for Live {
    fn size_bytes(&self) -> u64 {
        self.lvol.size
    }

    fn description(&self) -> String {
        self.lvol.alias.clone()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, SourceError> {
        let length = usize::try_from(length).map_err(|_| SourceError::new(22, "too long"))?;
        let read = self.store.read(self.lvol.uuid, offset, length).await;
        read.map(Bytes::from).map_err(|e| failed(&e).at(offset))
    }
}
