//! Objects grow. What cannot be had is taken back, so that a smaller size can be asked for next.

use super::judge::{self, Growth};
use super::standing::{NodeState, What};
use super::translate::{byte_size, lvol_info, pool_key};
use super::{KubeBackend, deadline, doubt, failed};
use crate::volume::{Error, Result};
use coppice_engine::{ErrorKind, LvolInfo};
use coppice_kube_api::{Lvol, Provisioning};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;
use uuid::Uuid;

/// Tries to write an object that others write at the same time.
const CONFLICTS_MAX: u32 = 20;

impl KubeBackend {
    pub(super) async fn grow(&self, id: Uuid, size: u64) -> Result<LvolInfo> {
        let deadline = deadline();
        let lvol = self.ask_for(id, size).await?;
        let (name, uid) = (lvol.name_any(), lvol.uid());
        let generation = lvol.metadata.generation.unwrap_or(0);
        loop {
            let look = |all: &super::cache::Objects<Lvol>| {
                let found = all.get(&name).filter(|found| found.uid() == uid)?;
                // One from before our write says nothing.
                if found.metadata.generation.unwrap_or(0) < generation {
                    return None;
                }
                match judge::growth(found, size, generation) {
                    Growth::Pending => None,
                    other => Some((found.clone(), other)),
                }
            };
            match self.lvols.wait(doubt(deadline), look).await {
                Some((found, Growth::Failed { message, full })) => return self.taken_back(&found, message, full).await,
                Some((found, _)) => return Ok(lvol_info(&found)),
                None => {}
            }
            if self.node(&lvol.spec.node) != NodeState::Ready {
                let node = &lvol.spec.node;
                return Err(Error::MayExist(format!("the volume cannot grow now: its node {node} does not answer")));
            }
            if Instant::now() >= deadline {
                return Err(Error::Deadline(format!("the node has not grown {name} to {size} bytes yet")));
            }
        }
    }

    /// Writes the size, if the object does not ask for as much already.
    async fn ask_for(&self, id: Uuid, size: u64) -> Result<Lvol> {
        let mut lvol = (*self.existing(id).await?).clone();
        for _ in 0..CONFLICTS_MAX {
            let asked = lvol.spec.size.bytes();
            if asked >= size {
                return Ok(lvol);
            }
            let standing = self.standing(&pool_key(lvol.spec.lvstore_uuid))?;
            let thick = lvol.spec.provisioning == Provisioning::Thick;
            standing.admit(What::Growth, size - asked, if thick { size - asked } else { 0 })?;
            match self.write_size(&lvol, size).await? {
                Some(written) => return Ok(written),
                None => {
                    let gone = || coppice_engine::Error::new(ErrorKind::NotFound, format!("there is no lvol {id}"));
                    let there = self.lvol_api().get_opt(&lvol.name_any()).await;
                    lvol = there.map_err(|e| failed("read the object", &e))?.ok_or_else(gone)?;
                }
            }
        }
        Err(Error::MayExist("the object is written by others all the time: try again".into()))
    }

    /// `None` if somebody else wrote the object meanwhile.
    async fn write_size(&self, lvol: &Lvol, size: u64) -> Result<Option<Lvol>> {
        let name = lvol.name_any();
        let patch = json!({
            "metadata": { "uid": lvol.uid(), "resourceVersion": lvol.resource_version() },
            "spec": { "size": byte_size(size) },
        });
        match self.lvol_api().patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => Ok(Some(written)),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(None),
            Err(e) => Err(failed(&format!("write the size of {name}"), &e)),
        }
    }

    async fn taken_back(&self, lvol: &Lvol, message: String, full: bool) -> Result<LvolInfo> {
        let has = lvol.status.as_ref().and_then(|status| status.size).map_or(0, |size| size.bytes());
        warn!(lvol = %lvol.spec.lvol_uuid, asked = lvol.spec.size.bytes(), has, "cannot grow: {message}");
        // One that somebody else writes now asks for something new, which is for them to take back.
        if has > 0 && has < lvol.spec.size.bytes() {
            self.write_size(lvol, has).await?;
        }
        Err(match full {
            true => coppice_engine::Error::new(ErrorKind::NoSpace, message).into(),
            // Kubernetes' recovery from a failed expansion takes this code as: never try that size again.
            false => Error::OutOfRange(message),
        })
    }
}
