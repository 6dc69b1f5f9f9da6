//! Snapshots of volumes.

use super::create::reachable;
use super::names::{check_request_name, lvol_name, name_key};
use super::{Consistency, Error, Result, Volumes, no_volume};
use coppice_engine::{CreateSnapshot as Take, ErrorKind, LvolInfo, LvolKind, LvolState};
use coppice_proto::attributes;
use std::collections::BTreeMap;
use tracing::info;
use uuid::Uuid;

/// A request for a snapshot.
#[derive(Clone, Debug, Default)]
pub struct CreateSnapshot {
    pub name: String,
    pub volume_id: String,
    pub consistency: Consistency,
    /// `namespace/name` of the VolumeSnapshot, if the orchestrator says.
    pub owner: Option<String>,
    /// Where the snapshot must be usable: any of these; empty means anywhere.
    pub requisite: Vec<BTreeMap<String, String>>,
}

/// A snapshot as CSI reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    pub id: Uuid,
    /// UUID of the volume that it is of, which may be gone.
    pub volume_id: String,
    /// The least size of a volume made from it: its volume's reported size at the time.
    pub size: u64,
    pub created_nanos: u64,
    pub node: String,
}

impl Volumes {
    pub async fn create_snapshot(&self, request: CreateSnapshot) -> Result<Snapshot> {
        check_request_name(&request.name, "snapshot").map_err(Error::Invalid)?;
        if request.volume_id.is_empty() {
            return Err(Error::Invalid("the request names no source volume".into()));
        }
        let _name_turn = self.turns.take(&name_key(&request.name)).await?;
        let lvols = self.backend.lvols().await?;
        if let Some(found) = named(&lvols, &request.name) {
            return self.existing_snapshot(&request, found, &lvols).await;
        }
        let volume = self.find_volume(&request.volume_id).await?.ok_or_else(|| no_volume(&request.volume_id))?;
        let _turn = self.turns.take(&volume.uuid.to_string()).await?;
        let volume = self.find_volume(&request.volume_id).await?.ok_or_else(|| no_volume(&request.volume_id))?;
        let node = self.nodes().await?.remove(&volume.lvstore).unwrap_or_default();
        if !reachable(&request.requisite, &node) {
            let message = format!("a snapshot is where its volume is: on the node {node}");
            return Err(Error::NoSpace(message));
        }
        let uuid = Uuid::new_v4();
        let mut attributes = attributes::of_snapshot(volume.uuid, &volume.attributes, volume.size);
        attributes.insert(attributes::CSI_NAME.into(), request.name.clone());
        if let Some(owner) = &request.owner {
            attributes.insert(attributes::CSI_VOLUME_SNAPSHOT.into(), owner.clone());
        }
        let how = Take {
            lvol: volume.uuid,
            name: lvol_name(&request.name, uuid, &volume.lvstore, &lvols),
            uuid: Some(uuid),
            attributes,
            hidden: false,
        };
        match self.backend.snapshot(how, request.consistency).await {
            // Somebody else was quicker.
            Ok(lvol) if lvol.uuid != uuid => self.existing_snapshot(&request, &lvol, &lvols).await,
            Ok(lvol) => {
                info!(snapshot = %lvol.uuid, volume = %volume.uuid, name = request.name, "snapshot taken");
                self.snapshot_of(&lvol, &lvols).await
            }
            Err(error) => Err(self.settled_snapshot(&request.name, error).await),
        }
    }

    async fn existing_snapshot(
        &self,
        request: &CreateSnapshot,
        found: &LvolInfo,
        lvols: &[LvolInfo],
    ) -> Result<Snapshot> {
        let snapshot = self.snapshot_of(found, lvols).await?;
        let same = Uuid::parse_str(&request.volume_id).is_ok_and(|id| id.to_string() == snapshot.volume_id);
        if !same {
            let (name, of) = (&request.name, &snapshot.volume_id);
            return Err(Error::Exists(format!("the snapshot {name:?} exists, of the volume {of}")));
        }
        match self.backend.made(found.uuid).await {
            Ok(lvol) => self.snapshot_of(&lvol, lvols).await,
            Err(error) => Err(self.settled_snapshot(&request.name, error).await),
        }
    }

    async fn settled_snapshot(&self, name: &str, error: Error) -> Error {
        if matches!(error, Error::MayExist(_) | Error::Deadline(_) | Error::Queue(_) | Error::NotYet(_)) {
            return error;
        }
        match self.backend.lvols().await {
            Ok(lvols) if named(&lvols, name).is_none() => error,
            Ok(_) => Error::MayExist(format!("{error}; the snapshot may exist all the same: try again")),
            Err(second) => Error::MayExist(format!("{error}; nothing more can be found out: {second}")),
        }
    }

    /// Deletes a snapshot; one that clones read is hidden now and reclaimed later. Absent is deleted.
    pub async fn delete_snapshot(&self, id: &str) -> Result<()> {
        let Ok(uuid) = Uuid::parse_str(id) else { return Ok(()) };
        let _turn = self.turns.take(&uuid.to_string()).await?;
        let Some(lvol) = self.find_snapshot(id).await? else { return Ok(()) };
        match self.backend.delete(lvol.uuid, true).await {
            Err(Error::Engine(e)) if e.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub async fn get_snapshot(&self, id: &str) -> Result<Snapshot> {
        let found = self.find_snapshot(id).await?;
        let lvol = found.ok_or_else(|| Error::NotFound(format!("there is no snapshot {id:?}")))?;
        let lvols = self.backend.lvols().await?;
        self.snapshot_of(&lvol, &lvols).await
    }

    pub(super) async fn snapshot_of(&self, lvol: &LvolInfo, lvols: &[LvolInfo]) -> Result<Snapshot> {
        let nodes = self.nodes().await?;
        Ok(snapshot_from(lvol, lvols, &nodes))
    }
}

pub(super) fn snapshot_from(lvol: &LvolInfo, lvols: &[LvolInfo], nodes: &BTreeMap<String, String>) -> Snapshot {
    let number = |key: &str| lvol.attributes.get(key).and_then(|text| text.parse::<u64>().ok());
    // A snapshot that another program took has no record of its volume: what goes on from it stands for it.
    let volume_id = lvol.attributes.get(attributes::CSI_SOURCE).cloned().unwrap_or_else(|| {
        let child = lvols.iter().find(|l| l.parent == Some(lvol.uuid) && l.kind != LvolKind::Snapshot);
        child.map_or(lvol.uuid, |l| l.uuid).to_string()
    });
    Snapshot {
        id: lvol.uuid,
        volume_id,
        size: attributes::reported_size(&lvol.attributes, lvol.size),
        created_nanos: number(attributes::CSI_CREATED).unwrap_or(0),
        node: nodes.get(&lvol.lvstore).cloned().unwrap_or_default(),
    }
}

fn named<'a>(lvols: &'a [LvolInfo], name: &str) -> Option<&'a LvolInfo> {
    lvols.iter().find(|lvol| {
        lvol.kind == LvolKind::Snapshot
            && lvol.state != LvolState::Hidden
            && lvol.attributes.get(attributes::CSI_NAME).is_some_and(|found| found == name)
    })
}
