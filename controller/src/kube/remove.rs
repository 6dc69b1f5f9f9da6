//! Objects go, and their lvols with them.

use super::standing::NodeState;
use super::{KubeBackend, deadline, doubt, failed, judge};
use crate::volume::{Error, Result};
use coppice_engine::ErrorKind;
use coppice_kube_api::{Lvol, Lvstore, Reclaim, Tombstone};
use k8s_openapi::api::core::v1::{Node, PersistentVolume};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

/// How long a device that the node still reports may take to disappear: the last pod has just gone.
const EXPORT_SECONDS: u64 = 5;
/// Tries to write an object that others write at the same time.
const CONFLICTS_MAX: u32 = 20;

/// True if the answer says that the object is not there, or is another of the same name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict())
}

impl KubeBackend {
    /// For DeleteVolume and DeleteSnapshot: the bytes go. A volume in use stays.
    pub(super) async fn remove_for_good(&self, id: Uuid) -> Result<()> {
        let lvol = self.existing(id).await?;
        let deadline = deadline();
        if lvol.spec.reclaim.is_none() && self.node(&lvol.spec.node) != NodeState::Gone {
            self.until_unused(&lvol, deadline).await?;
        }
        self.remove(&lvol, deadline).await
    }

    async fn until_unused(&self, lvol: &Lvol, deadline: Instant) -> Result<()> {
        let (name, uid) = (lvol.name_any(), lvol.uid());
        if judge::exports(lvol).is_empty() {
            return Ok(());
        }
        let limit = deadline.min(Instant::now() + Duration::from_secs(EXPORT_SECONDS));
        let unused = self.lvols.wait(limit, |all| match all.get(&name).filter(|found| found.uid() == uid) {
            Some(found) => judge::exports(found).is_empty().then_some(()),
            None => Some(()),
        });
        if unused.await.is_some() {
            return Ok(());
        }
        let (node, devices) = (&lvol.spec.node, judge::exports(lvol).join(", "));
        let message = format!("the volume is in use on the node {node}, as {devices}");
        Err(coppice_engine::Error::new(ErrorKind::Busy, message).into())
    }

    /// For a volume that is not where its request wants it now: removes it, if it was never handed out.
    pub(super) async fn remove_unused(&self, id: Uuid) -> Result<bool> {
        let lvol = self.existing(id).await?;
        // The provisioner names the PV as it names the volume. Where there is one the volume belongs to somebody.
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        let claimed = volumes.get_metadata_opt(&lvol.spec.request_name).await;
        let claimed = claimed.map_err(|e| failed("look for the PersistentVolume", &e))?.is_some();
        if claimed || !judge::exports(&lvol).is_empty() {
            return Ok(false);
        }
        info!(lvol = %id, node = lvol.spec.node, "not where it is wanted now: removed, to be made elsewhere");
        self.remove(&lvol, deadline()).await?;
        Ok(true)
    }

    /// Asks for the removal of the lvol and its object, and waits until both are gone.
    pub(super) async fn remove(&self, lvol: &Lvol, deadline: Instant) -> Result<()> {
        let name = lvol.name_any();
        if lvol.spec.reclaim.is_none() {
            // Only with this may the agent remove bytes.
            let patch = json!({ "metadata": { "uid": lvol.uid() }, "spec": { "reclaim": Reclaim::Delete } });
            match self.lvol_api().patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {}
                Err(e) if is_gone(&e) => return self.until_gone(lvol, deadline).await,
                Err(e) => return Err(failed(&format!("mark {name} for removal"), &e)),
            }
        }
        let same = Preconditions { uid: lvol.uid(), resource_version: None };
        match self.lvol_api().delete(&name, &DeleteParams::default().preconditions(same)).await {
            Ok(_) => {}
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(failed(&format!("delete the object {name}"), &e)),
        }
        self.until_gone(lvol, deadline).await
    }

    /// Waits until the object is gone. One whose node is gone has nobody to take its finalizer: that is done here.
    pub(super) async fn until_gone(&self, lvol: &Lvol, deadline: Instant) -> Result<()> {
        let (name, uid, node) = (lvol.name_any(), lvol.uid(), &lvol.spec.node);
        loop {
            if self.node_is_gone(node).await? {
                self.bury(&name, uid.as_deref()).await?;
            }
            let look = |all: &super::cache::Objects<Lvol>| match all.get(&name) {
                Some(found) if found.uid() == uid => None,
                _ => Some(()),
            };
            if self.lvols.wait(doubt(deadline), look).await.is_some() {
                // The cache may not have seen it yet.
                let there = self.lvol_api().get_metadata_opt(&name).await;
                if there.map_err(|e| failed("read the object", &e))?.is_none_or(|found| found.uid() != uid) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            if Instant::now() >= deadline {
                return Err(match self.node(node) {
                    NodeState::Ready => {
                        let known = self.lvols.get(&name);
                        let why = known.map(|lvol| format!(": {:?}", judge::progress(&lvol))).unwrap_or_default();
                        Error::Deadline(format!("the node {node} has not removed {name} yet{why}"))
                    }
                    _ => Error::MayExist(format!("{name} cannot be removed now: its node {node} does not answer")),
                });
            }
        }
    }

    /// True if the API server says that there is no such node.
    pub(super) async fn node_is_gone(&self, node: &str) -> Result<bool> {
        if self.node(node) != NodeState::Gone {
            return Ok(false);
        }
        let nodes: Api<Node> = Api::all(self.client.clone());
        Ok(nodes.get_metadata_opt(node).await.map_err(|e| failed("look for the node", &e))?.is_none())
    }

    /// Lets go of an object that is being deleted and whose node is gone: a tombstone tells the drive, should it come back,
    /// that the lvol was deleted. Without `reclaim` nobody asked for that, and the lvol stays.
    pub(super) async fn bury(&self, name: &str, uid: Option<&str>) -> Result<()> {
        for _ in 0..CONFLICTS_MAX {
            let lvol = self.lvol_api().get_opt(name).await.map_err(|e| failed("read the object", &e))?;
            let Some(lvol) = lvol.filter(|lvol| lvol.uid().as_deref() == uid) else { return Ok(()) };
            let Some(others) = judge::without_finalizer(&lvol).filter(|_| judge::is_leaving(&lvol)) else {
                return Ok(());
            };
            if lvol.spec.reclaim == Some(Reclaim::Delete) {
                self.entomb(&lvol).await?;
            }
            let patch = json!({ "metadata": {
                "uid": lvol.uid(), "resourceVersion": lvol.resource_version(), "finalizers": others,
            } });
            match self.lvol_api().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    info!(lvol = %lvol.spec.lvol_uuid, object = name, node = lvol.spec.node, "let go: its node is gone");
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
                Err(kube::Error::Api(status)) if status.is_conflict() => {}
                Err(e) => return Err(failed(&format!("let go of {name}"), &e)),
            }
        }
        Err(Error::MayExist(format!("{name} is written by others all the time: try again")))
    }

    /// Writes the tombstone, before the object goes.
    async fn entomb(&self, lvol: &Lvol) -> Result<()> {
        let spec = &lvol.spec;
        let api: Api<Lvstore> = Api::all(self.client.clone());
        for _ in 0..CONFLICTS_MAX {
            let known = self.lvstores.look(|all| {
                let of_it = |lvstore: &&std::sync::Arc<Lvstore>| {
                    lvstore.status.as_ref().and_then(|status| status.uuid) == Some(spec.lvstore_uuid)
                };
                all.values().find(of_it).map(|lvstore| lvstore.name_any())
            });
            let Some(name) = known else {
                warn!(lvol = %spec.lvol_uuid, lvstore = %spec.lvstore_uuid, "no tombstone: there is no Lvstore object");
                return Ok(());
            };
            let lvstore = api.get_opt(&name).await.map_err(|e| failed("read the lvstore", &e))?;
            let Some(lvstore) = lvstore else { continue };
            let mut tombstones = lvstore.status.as_ref().map(|status| status.tombstones.clone()).unwrap_or_default();
            if tombstones.iter().any(|old| old.lvol_uuid == spec.lvol_uuid) {
                return Ok(());
            }
            tombstones.push(Tombstone {
                lvstore_uuid: spec.lvstore_uuid,
                lvol_uuid: spec.lvol_uuid,
                deleted: Time(jiff::Timestamp::now()),
            });
            let patch = json!({
                "metadata": { "uid": lvstore.uid(), "resourceVersion": lvstore.resource_version() },
                "status": { "tombstones": tombstones },
            });
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => {
                    info!(lvol = %spec.lvol_uuid, lvstore = name, "tombstone written");
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.is_conflict() || status.is_not_found() => {}
                Err(e) => return Err(failed(&format!("write a tombstone to {name}"), &e)),
            }
        }
        Err(Error::MayExist("the lvstore is written by others all the time: try again".into()))
    }
}
