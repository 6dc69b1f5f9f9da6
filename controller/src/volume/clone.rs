//! A volume from a volume: a snapshot of the source that CSI never shows, then a clone of it.
//!
//! ```text
//!   nothing ──snapshot──▶ snapshot, marked with the request's name ──clone──▶ the volume ──deferred delete──▶ hidden
//!                              │ killed here: a retry finds the mark and goes on;      │ killed here:
//!                              └ no retry comes: `sweep`, at the next start, removes it └ `sweep` hides it
//! ```
//!
//! The mark, not the hiding, is what takes the snapshot out of CSI's sight: while it has a single reader a deletion still
//! undoes it at once. Hidden, the engine reclaims it when its last clone goes.

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
        Ok(lvol) => {
            if let Err(e) = volumes.backend.delete(snapshot.uuid, true).await {
                warn!(volume = %lvol.uuid, snapshot = %snapshot.uuid, "hidden at the next start: {e}");
            }
            Ok(lvol)
        }
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
        hidden: false,
    };
    volumes.backend.snapshot(how, Consistency::Sync).await
}

/// True for a snapshot that exists only between a volume and its clone.
pub(super) fn is_between(lvol: &LvolInfo) -> bool {
    lvol.kind == LvolKind::Snapshot && lvol.attributes.contains_key(attributes::CSI_CLONE_FOR)
}

/// The snapshot that an earlier try of the request left.
fn marked<'a>(lvols: &'a [LvolInfo], request: &str, source: Uuid) -> Option<&'a LvolInfo> {
    let source = source.to_string();
    lvols.iter().find(|lvol| {
        is_between(lvol)
            && lvol.state != LvolState::Hidden
            && lvol.attributes.get(attributes::CSI_CLONE_FOR).is_some_and(|name| name == request)
            && lvol.attributes.get(attributes::CSI_SOURCE) == Some(&source)
    })
}

/// Removes the snapshot of a failed creation, unless the clone is there after all.
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

/// Puts away the snapshots that a killed predecessor left between a volume and its clone: one without a clone goes at
/// once, one with a clone is hidden. Answers with how many there were.
pub async fn sweep(volumes: &Volumes) -> Result<usize> {
    let mut put_away = 0;
    let lvols = volumes.backend.lvols().await?;
    for snapshot in lvols.iter().filter(|lvol| is_between(lvol) && lvol.state != LvolState::Hidden) {
        match volumes.backend.delete(snapshot.uuid, true).await {
            Ok(()) => {
                info!(snapshot = %snapshot.uuid, "put away what an unfinished clone left");
                put_away += 1;
            }
            Err(e) => warn!(snapshot = %snapshot.uuid, "an unfinished clone's snapshot stays: {e}"),
        }
    }
    Ok(put_away)
}
