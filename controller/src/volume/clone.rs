//! A volume from a volume: a hidden snapshot of the source, then a clone of it.
//!
//! ```text
//!   nothing ──snapshot──▶ hidden snapshot, marked with the request's name ──clone──▶ the volume
//!                              │ killed here: a retry finds the mark and goes on;
//!                              └ no retry comes: `sweep`, at the next start, removes it
//! ```
//!
//! The engine reclaims the hidden snapshot when its last clone goes.

use super::create::{CreateVolume, check_clone, named, source_volume};
use super::{Consistency, Error, Pool, Result, Source, Volumes};
use coppice_engine::{CreateSnapshot, LvolInfo, LvolKind, LvolState};
use coppice_proto::attributes;
use tracing::{info, warn};
use uuid::Uuid;

pub async fn create_from_volume(
    volumes: &Volumes,
    request: &CreateVolume,
    id: &str,
    pools: &[Pool],
    lvols: &[LvolInfo],
) -> Result<LvolInfo> {
    let found = source_volume(volumes, id).await?;
    let _turn = volumes.turns.take(&found.uuid.to_string()).await?;
    let source = source_volume(volumes, id).await?;
    check_clone(request, &source, pools)?;
    let snapshot = match marked(lvols, &request.name, source.uuid) {
        Some(left) => {
            info!(snapshot = %left.uuid, name = request.name, "going on from an earlier try");
            left.clone()
        }
        None => take(volumes, request, &source).await?,
    };
    let source_id = Source::Volume(source.uuid);
    match volumes.clone_of(request, source_id, &source, &snapshot, pools, lvols).await {
        Ok(lvol) => Ok(lvol),
        Err(error) => {
            undo(volumes, &request.name, &snapshot).await?;
            Err(error)
        }
    }
}

async fn take(volumes: &Volumes, request: &CreateVolume, source: &LvolInfo) -> Result<LvolInfo> {
    let uuid = Uuid::new_v4();
    let mut attributes = attributes::of_snapshot(source.uuid, &source.attributes, source.size);
    attributes.insert(attributes::CSI_CLONE_FOR.into(), request.name.clone());
    let how = CreateSnapshot {
        lvol: source.uuid,
        name: format!(".clone-{uuid}"),
        uuid: Some(uuid),
        attributes,
        hidden: true,
    };
    volumes.backend.snapshot(how, Consistency::Sync).await
}

/// The hidden snapshot that an earlier try of the request left.
fn marked<'a>(lvols: &'a [LvolInfo], request: &str, source: Uuid) -> Option<&'a LvolInfo> {
    let source = source.to_string();
    lvols.iter().find(|lvol| {
        lvol.kind == LvolKind::Snapshot
            && lvol.attributes.get(attributes::CSI_CLONE_FOR).is_some_and(|name| name == request)
            && lvol.attributes.get(attributes::CSI_SOURCE) == Some(&source)
    })
}

/// Removes the hidden snapshot of a failed creation, unless the clone is there after all.
async fn undo(volumes: &Volumes, request: &str, snapshot: &LvolInfo) -> Result<()> {
    let lvols = volumes.backend.lvols().await?;
    if named(&lvols, request).is_some() {
        return Ok(());
    }
    let id = snapshot.uuid;
    volumes.backend.delete(id, true).await.map_err(|e| {
        Error::MayExist(format!("the volume could not be made, and its snapshot {id} could not be removed: {e}"))
    })
}

/// Removes hidden snapshots that were taken for a clone which is not there. Answers with how many.
///
/// Such a snapshot has at most one child: the source, which went on from it.
pub async fn sweep(volumes: &Volumes) -> Result<usize> {
    let lvols = volumes.backend.lvols().await?;
    let mut removed = 0;
    for snapshot in &lvols {
        let Some(request) = snapshot.attributes.get(attributes::CSI_CLONE_FOR) else { continue };
        if snapshot.kind != LvolKind::Snapshot || snapshot.state != LvolState::Hidden {
            continue;
        }
        let source = snapshot.attributes.get(attributes::CSI_SOURCE);
        let is_source = |id: &Uuid| source == Some(&id.to_string());
        let read_by_others = lvols.iter().any(|l| l.parent == Some(snapshot.uuid) && !is_source(&l.uuid));
        if read_by_others {
            continue;
        }
        match volumes.backend.delete(snapshot.uuid, true).await {
            Ok(()) => {
                info!(snapshot = %snapshot.uuid, name = request, "removed what an unfinished clone left");
                removed += 1;
            }
            Err(e) => warn!(snapshot = %snapshot.uuid, "an unfinished clone's snapshot stays: {e}"),
        }
    }
    Ok(removed)
}
