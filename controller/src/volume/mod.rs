//! Operations on volumes and snapshots, by the rules of CSI but without its wire types.
//!
//! Every operation may be repeated and may be cut off at any point: the request's name, kept in the metadata, leads the
//! retry to what the first try left. Operations on one name or one id wait for each other, up to a deadline.

mod backend;
mod capacity;
mod create;
mod error;
mod expand;
mod list;
mod names;
mod params;
mod snapshot;

pub use backend::{Backend, Consistency, Pool};
pub use capacity::Capacity;
pub use create::{CreateVolume, SourceId};
pub use error::{Error, Result};
pub use expand::Expanded;
pub use list::Page;
pub use names::lvol_name;
pub use params::{Parameters, Range, Source, check_snapshot_parameters, owner};
pub use snapshot::{CreateSnapshot, Snapshot};

use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_proto::attributes;
use coppice_proto::turns::Turns;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// How long a call waits for another call on the same name or id.
const QUEUE_SECONDS_MAX: u64 = 30;

/// The operations, over a backend.
pub struct Volumes {
    backend: Arc<dyn Backend>,
    turns: Turns,
}

/// A volume as CSI reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub id: Uuid,
    /// What was asked for, bytes.
    pub capacity: u64,
    pub source: Option<Source>,
    pub lvstore: String,
    /// Where the volume is.
    pub node: String,
}

impl Volumes {
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Volumes { backend, turns: Turns::new(Duration::from_secs(QUEUE_SECONDS_MAX)) }
    }

    /// Finishes or undoes what a killed predecessor left.
    pub async fn recover(&self) -> Result<usize> {
        self.backend.recover().await
    }

    /// The volume of that id.
    pub async fn get(&self, id: &str) -> Result<Volume> {
        let lvol = self.find_volume(id).await?.ok_or_else(|| no_volume(id))?;
        self.volume_of(&lvol).await
    }

    /// Deletes a volume. One that is not there, never was, or is no volume at all is deleted already.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let Ok(uuid) = Uuid::parse_str(id) else { return Ok(()) };
        let _turn = self.turns.take(&uuid.to_string()).await?;
        let Some(lvol) = self.find_volume(id).await? else { return Ok(()) };
        match self.backend.delete(lvol.uuid, false).await {
            Ok(()) => Ok(()),
            Err(Error::Engine(e)) if e.kind() == coppice_engine::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The lvol behind a volume id. Ids that are no UUID, snapshots and what was deleted are no volumes.
    async fn find_volume(&self, id: &str) -> Result<Option<LvolInfo>> {
        Ok(self.find(id).await?.filter(|lvol| lvol.kind != LvolKind::Snapshot))
    }

    async fn find_snapshot(&self, id: &str) -> Result<Option<LvolInfo>> {
        Ok(self.find(id).await?.filter(|lvol| lvol.kind == LvolKind::Snapshot))
    }

    async fn find(&self, id: &str) -> Result<Option<LvolInfo>> {
        let Ok(uuid) = Uuid::parse_str(id) else { return Ok(None) };
        Ok(self.backend.lvol(uuid).await?.filter(is_seen))
    }

    async fn volume_of(&self, lvol: &LvolInfo) -> Result<Volume> {
        let nodes = self.nodes().await?;
        Ok(volume_from(lvol, &nodes))
    }

    /// The node of each lvstore.
    async fn nodes(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.backend.pools().await?.into_iter().map(|pool| (pool.key, pool.node)).collect())
    }
}

/// Hidden snapshots and those between a volume and its clone do not exist for CSI. Damaged lvols do: a volume does not
/// cease to exist because it cannot be opened.
fn is_seen(lvol: &LvolInfo) -> bool {
    lvol.state != LvolState::Hidden && !is_between(lvol)
}

/// True for a snapshot that exists only between a volume and its clone.
pub(crate) fn is_between(lvol: &LvolInfo) -> bool {
    lvol.kind == LvolKind::Snapshot && lvol.attributes.contains_key(attributes::CSI_CLONE_FOR)
}

fn volume_from(lvol: &LvolInfo, nodes: &BTreeMap<String, String>) -> Volume {
    Volume {
        id: lvol.uuid,
        capacity: attributes::reported_size(&lvol.attributes, lvol.size),
        source: lvol.attributes.get(attributes::CSI_SOURCE).and_then(|text| Source::from_attribute(text)),
        lvstore: lvol.lvstore.clone(),
        node: nodes.get(&lvol.lvstore).cloned().unwrap_or_default(),
    }
}

fn no_volume(id: &str) -> Error {
    Error::NotFound(format!("there is no volume {id:?}"))
}
