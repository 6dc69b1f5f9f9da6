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

use super::LocalBackend;
use crate::volume::{Backend, Consistency, Error, Result, is_between};
use coppice_engine::{CreateClone, CreateSnapshot, LvolInfo, LvolState};
use coppice_proto::attributes;
use tracing::{info, warn};
use uuid::Uuid;

/// Clones the volume that `how.snapshot` names.
pub async fn clone_volume(backend: &LocalBackend, mut how: CreateClone) -> Result<LvolInfo> {
    let no_volume = || Error::NotFound(format!("there is no volume {}", how.snapshot));
    let source = backend.lvol(how.snapshot).await?.ok_or_else(no_volume)?;
    let request = how.attributes.get(attributes::CSI_NAME).cloned().unwrap_or_default();
    let lvols = backend.lvols().await?;
    let snapshot = match marked(&lvols, &request, source.uuid) {
        Some(left) => {
            info!(snapshot = %left.uuid, name = request, "going on from an earlier try");
            left.clone()
        }
        None => take(backend, &request, &source).await?,
    };
    let id = how.uuid;
    how.snapshot = snapshot.uuid;
    how.size = Some(how.size.unwrap_or(0).max(snapshot.size));
    // The node may have made a file system since the caller looked; what the request asks for stays.
    let asked = how.attributes.remove(attributes::CSI_FSTYPE);
    attributes::inherit_again(&mut how.attributes, &snapshot.attributes);
    how.attributes.extend(asked.map(|asked| (attributes::CSI_FSTYPE.to_string(), asked)));
    match backend.clone_snapshot(how).await {
        Ok(lvol) => {
            if let Err(e) = backend.delete(snapshot.uuid, true).await {
                warn!(volume = %lvol.uuid, snapshot = %snapshot.uuid, "hidden at the next start: {e}");
            }
            Ok(lvol)
        }
        Err(error) => {
            undo(backend, id, snapshot.uuid).await?;
            Err(error)
        }
    }
}

async fn take(backend: &LocalBackend, request: &str, source: &LvolInfo) -> Result<LvolInfo> {
    let uuid = Uuid::new_v4();
    let mut attributes = attributes::of_snapshot(source.uuid, &source.attributes, source.size);
    attributes.insert(attributes::CSI_CLONE_FOR.into(), request.to_string());
    let how = CreateSnapshot {
        lvol: source.uuid,
        name: format!(".clone-{uuid}"),
        uuid: Some(uuid),
        attributes,
        hidden: false,
    };
    backend.snapshot(how, Consistency::Sync).await
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
async fn undo(backend: &LocalBackend, clone: Option<Uuid>, snapshot: Uuid) -> Result<()> {
    if let Some(clone) = clone
        && backend.lvol(clone).await?.is_some()
    {
        return Ok(());
    }
    backend.delete(snapshot, true).await.map_err(|e| {
        Error::MayExist(format!("the volume could not be made, and its snapshot {snapshot} could not be removed: {e}"))
    })
}

/// Puts away the snapshots that a killed predecessor left between a volume and its clone: one without a clone goes at
/// once, one with a clone is hidden. Answers with how many there were.
pub async fn sweep(backend: &LocalBackend) -> Result<usize> {
    let mut put_away = 0;
    let lvols = backend.lvols().await?;
    for snapshot in lvols.iter().filter(|lvol| is_between(lvol) && lvol.state != LvolState::Hidden) {
        match backend.delete(snapshot.uuid, true).await {
            Ok(()) => {
                info!(snapshot = %snapshot.uuid, "put away what an unfinished clone left");
                put_away += 1;
            }
            Err(e) => warn!(snapshot = %snapshot.uuid, "an unfinished clone's snapshot stays: {e}"),
        }
    }
    Ok(put_away)
}
