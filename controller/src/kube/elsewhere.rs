//! A volume in another lvstore than its source's.
//!
//! ```text
//!   snapshot ─────────────────────────────────┐
//!   volume ──▶ a snapshot of it, for this only ┴▶ Lvol that names it ──▶ its node has opened the export ──▶ Ready
//!                   └ goes when the volume is made: the pin keeps its bytes, not the object
//! ```
//!
//! The snapshot between a volume and its clone is an object with a name that follows from the volume's, so a retry finds it.
//! CSI does not show it. Cut off at any point, it is removed by the background work of whoever leads.

use super::judge::{self, Progress};
use super::standing::{NodeState, What};
use super::translate::{Elsewhere, Wanted, lvol_info, pool_key, take_at_creation};
use super::{KubeBackend, deadline};
use crate::volume::{Error, Result, Source};
use coppice_engine::{CreateClone, LvolInfo};
use coppice_kube_api::{Kind, Lvol, between_request, object_name};
use coppice_proto::attributes;
use kube::ResourceExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

/// The most time that the removal of a snapshot between may take of a call that has succeeded; the rest is done later.
const TIDY_SECONDS: u64 = 2;
/// How long a snapshot between waits for a retry of its request, seconds.
const BETWEEN_SECONDS: i64 = 600;

impl KubeBackend {
    pub(super) async fn make_elsewhere(&self, key: &str, source: Source, how: CreateClone) -> Result<LvolInfo> {
        let origin = self.source(how.snapshot).await?;
        self.can_be_read(&origin)?;
        let standing = self.standing(key)?;
        let size = how.size.unwrap_or(0).max(origin.spec.size.bytes());
        let takes = take_at_creation(size, how.thick, standing.pool.cluster_size);
        standing.admit(What::Volume, size, takes)?;
        let lvstore = standing.uuid.ok_or_else(|| Error::MayExist("the lvstore is not made yet: try again".into()))?;
        let (kind, between) = match source {
            Source::Snapshot(_) => (Kind::Snapshot, None),
            Source::Volume(_) => (Kind::Volume, Some(self.make_between(&origin, &how).await?)),
        };
        let read = between.as_ref().unwrap_or(&origin);
        let mut attributes = how.attributes;
        // What the snapshot itself is known to hold: the volume may have got its file system since the caller looked.
        if let Some(held) = read.status.as_ref().and_then(|status| status.file_system.clone()) {
            attributes.insert(attributes::FS.into(), held);
        }
        let wanted = Wanted {
            kind: Kind::Volume,
            size,
            thick: how.thick,
            uuid: how.uuid.unwrap_or_else(Uuid::new_v4),
            lvstore,
            lvstore_name: standing.pool.name,
            node: standing.pool.node,
            source: Some((origin.spec.lvol_uuid, kind)),
            outside: Some(Elsewhere {
                node: read.spec.node.clone(),
                lvstore: read.spec.lvstore_uuid,
                snapshot: read.spec.lvol_uuid,
            }),
            clone_for: None,
            consistency: None,
            attributes,
        };
        let made = self.make(wanted, takes).await;
        // Whatever is not final comes again, and wants it again.
        let open = matches!(made, Err(Error::MayExist(_) | Error::Deadline(_) | Error::Queue(_) | Error::NotYet(_)));
        if let Some(between) = between.filter(|_| !open) {
            let deadline = deadline().min(Instant::now() + Duration::from_secs(TIDY_SECONDS));
            if let Err(e) = self.remove(&between, deadline).await {
                warn!(snapshot = %between.spec.lvol_uuid, "it goes later: {e}");
            }
        }
        made
    }

    /// Whether another node can read the lvol, or a snapshot of it.
    fn can_be_read(&self, lvol: &Lvol) -> Result<()> {
        let (id, node) = (lvol.spec.lvol_uuid, &lvol.spec.node);
        if let Some(why) = judge::is_lost(lvol) {
            return Err(Error::NotFound(format!("the source {id} is lost: {why}")));
        }
        match self.node(node) {
            NodeState::Gone => {
                let message =
                    format!("the node {node}, which has the source {id}, is not part of the cluster any more");
                return Err(Error::NotFound(message));
            }
            NodeState::Silent => {
                return Err(Error::MayExist(format!("the node {node}, which has the source {id}, does not answer")));
            }
            NodeState::Ready => {}
        }
        if judge::is_dependent(lvol) {
            let message = format!(
                "the source {id} has itself not received all its data yet: on the node {node} a copy can be made now, \
                 elsewhere when it has"
            );
            return Err(Error::NotYet(message));
        }
        let home = self.standing(&pool_key(lvol.spec.lvstore_uuid))?;
        // For a snapshot of it, or only to read it: as long as the store works.
        home.admit(What::Snapshot, 0, 0)
    }

    /// The snapshot that is read in place of the volume `origin`; made, or found from an earlier try.
    async fn make_between(&self, origin: &Lvol, how: &CreateClone) -> Result<Arc<Lvol>> {
        let request = how.attributes.get(attributes::CSI_NAME).cloned().unwrap_or_default();
        let volume = object_name(Kind::Volume, &request);
        let mut attributes = attributes::of_snapshot(origin.spec.lvol_uuid, &lvol_info(origin).attributes, 0);
        attributes.insert(attributes::CSI_NAME.into(), between_request(&volume));
        attributes.insert(attributes::CSI_SIZE.into(), origin.spec.size.bytes().to_string());
        let wanted = Wanted {
            kind: Kind::Snapshot,
            size: origin.spec.size.bytes(),
            thick: false,
            uuid: Uuid::new_v4(),
            lvstore: origin.spec.lvstore_uuid,
            lvstore_name: String::new(),
            node: origin.spec.node.clone(),
            source: Some((origin.spec.lvol_uuid, Kind::Volume)),
            outside: None,
            clone_for: Some(volume),
            consistency: Some(coppice_kube_api::Consistency::Sync),
            attributes,
        };
        let found = self.make_from(wanted, What::Snapshot).await?;
        let lvol = self.source(found.uuid).await?;
        // One of an earlier try may be of another volume: then that has the name.
        if lvol.spec.source_uuid != Some(origin.spec.lvol_uuid) {
            let message = format!("the volume {request:?} is being made from another source: try again");
            return Err(Error::NotYet(message));
        }
        self.until_made(&lvol, deadline()).await?;
        Ok(lvol)
    }

    /// Why an object that is not made yet never will be: what it was to read is gone.
    pub(super) async fn lost_source(&self, lvol: &Lvol) -> Result<Option<String>> {
        let Some(outside) = lvol.spec.outside() else { return Ok(None) };
        let known = self.lvols.get(&lvol.name_any());
        let unmade = |lvol: &Arc<Lvol>| {
            matches!(judge::progress(lvol), Progress::Pending(_))
                && lvol.status.as_ref().is_none_or(|status| status.created.is_none())
        };
        if !known.as_ref().is_some_and(unmade) {
            return Ok(None);
        }
        let (id, node) = (outside.snapshot, outside.node);
        Ok(match self.find(id).await? {
            None => Some(format!("the source {id} was deleted")),
            Some(source) if judge::is_leaving(&source) => Some(format!("the source {id} is being deleted")),
            Some(source) => match judge::is_lost(&source) {
                Some(why) => Some(format!("the source {id} is lost: {why}")),
                None if self.node_is_gone(node).await? => {
                    Some(format!("the node {node}, which had the source {id}, is not part of the cluster any more"))
                }
                None => None,
            },
        })
    }

    /// Snapshots between a volume and its clone that nobody needs any more: the clone is made, or nobody asks for it again.
    pub(super) fn useless_between(&self, now: jiff::Timestamp) -> Vec<Arc<Lvol>> {
        self.lvols.look(|all| {
            let useless = |lvol: &&Arc<Lvol>| {
                let Some(volume) = &lvol.spec.clone_for else { return false };
                let age = lvol.creation_timestamp().map_or(0, |at| now.as_second() - at.0.as_second());
                let clone = all.get(volume).filter(|clone| {
                    clone.spec.outside().is_some_and(|outside| outside.snapshot == lvol.spec.lvol_uuid)
                });
                let made = |clone: &Arc<Lvol>| clone.status.as_ref().is_some_and(|status| status.created.is_some());
                match clone {
                    Some(clone) => made(clone),
                    None => age >= BETWEEN_SECONDS,
                }
            };
            all.values().filter(useless).cloned().collect()
        })
    }
}
