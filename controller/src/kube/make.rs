//! Objects come into being, and are waited for.

use super::judge::{self, Progress};
use super::standing::{NodeState, Underway, What};
use super::translate::{Wanted, lvol_info, take_at_creation};
use super::{KubeBackend, deadline, doubt, failed};
use crate::volume::{Consistency, Error, Result, Source};
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, ErrorKind, LvolInfo};
use coppice_kube_api::{Kind, Lvol};
use kube::ResourceExt;
use kube::api::PostParams;
use std::sync::{Arc, PoisonError};
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

/// What became of the object that was to be written.
enum Written {
    Ours(Box<Lvol>),
    /// The name has an object already.
    Theirs(Box<Lvol>),
}

/// Takes the amount out of the accounts until it is dropped.
struct Reservation<'a> {
    backend: &'a KubeBackend,
    lvol: Uuid,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut all = self.backend.underway.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|underway| underway.lvol != self.lvol);
    }
}

fn consistency(how: Consistency) -> coppice_kube_api::Consistency {
    match how {
        Consistency::Crash => coppice_kube_api::Consistency::Crash,
        Consistency::Sync => coppice_kube_api::Consistency::Sync,
        Consistency::Freeze => coppice_kube_api::Consistency::Freeze,
    }
}

impl KubeBackend {
    pub(super) async fn make_empty(&self, key: &str, how: CreateLvol) -> Result<LvolInfo> {
        let standing = self.standing(key)?;
        let takes = take_at_creation(how.size, how.thick, standing.pool.cluster_size);
        standing.admit(What::Volume, how.size, takes)?;
        let wanted = Wanted {
            kind: Kind::Volume,
            size: how.size,
            thick: how.thick,
            uuid: how.uuid.unwrap_or_else(Uuid::new_v4),
            lvstore: standing.uuid.ok_or_else(|| Error::MayExist("the lvstore is not made yet: try again".into()))?,
            lvstore_name: standing.pool.name,
            node: standing.pool.node,
            source: None,
            outside: None,
            clone_for: None,
            consistency: None,
            attributes: how.attributes,
        };
        self.make(wanted, takes).await
    }

    pub(super) async fn make_clone(&self, source: Source, how: CreateClone) -> Result<LvolInfo> {
        let origin = self.source(how.snapshot).await?;
        let size = how.size.unwrap_or(0).max(origin.spec.size.bytes());
        let kind = match source {
            Source::Snapshot(_) => Kind::Snapshot,
            Source::Volume(_) => Kind::Volume,
        };
        let wanted = Wanted {
            kind: Kind::Volume,
            size,
            thick: how.thick,
            uuid: how.uuid.unwrap_or_else(Uuid::new_v4),
            lvstore: origin.spec.lvstore_uuid,
            lvstore_name: String::new(),
            node: origin.spec.node.clone(),
            source: Some((origin.spec.lvol_uuid, kind)),
            outside: None,
            clone_for: None,
            consistency: None,
            attributes: how.attributes,
        };
        self.make_from(wanted, What::Volume).await
    }

    pub(super) async fn make_snapshot(&self, how: CreateSnapshot, held: Consistency) -> Result<LvolInfo> {
        let origin = self.source(how.lvol).await?;
        let wanted = Wanted {
            kind: Kind::Snapshot,
            size: origin.spec.size.bytes(),
            thick: false,
            uuid: how.uuid.unwrap_or_else(Uuid::new_v4),
            lvstore: origin.spec.lvstore_uuid,
            lvstore_name: String::new(),
            node: origin.spec.node.clone(),
            source: Some((origin.spec.lvol_uuid, Kind::Volume)),
            outside: None,
            clone_for: None,
            consistency: Some(consistency(held)),
            attributes: how.attributes,
        };
        self.make_from(wanted, What::Snapshot).await
    }

    /// What something is to be made from. One that is being deleted does not count: it may be gone when its turn comes.
    pub(super) async fn source(&self, id: Uuid) -> Result<Arc<Lvol>> {
        let found = self.find(id).await?.filter(|lvol| !judge::is_leaving(lvol));
        found.ok_or_else(|| Error::NotFound(format!("the source {id} does not exist")))
    }

    /// In the lvstore of the source.
    pub(super) async fn make_from(&self, mut wanted: Wanted, what: What) -> Result<LvolInfo> {
        let standing = self.standing(&super::translate::pool_key(wanted.lvstore))?;
        // A thin clone or a snapshot begins with what its source has.
        let takes = if wanted.thick { take_at_creation(wanted.size, true, standing.pool.cluster_size) } else { 0 };
        standing.admit(what, wanted.size, takes)?;
        wanted.lvstore_name = standing.pool.name;
        self.make(wanted, takes).await
    }

    pub(super) async fn make(&self, wanted: Wanted, takes: u64) -> Result<LvolInfo> {
        // From here to the cache's own knowledge of the object: others that are placed meanwhile see it.
        let underway = Underway { lvol: wanted.uuid, lvstore: wanted.lvstore, size: wanted.size, takes };
        self.underway.lock().unwrap_or_else(PoisonError::into_inner).push(underway);
        let _reservation = Reservation { backend: self, lvol: wanted.uuid };
        let deadline = deadline();
        match self.write(&wanted.object(), deadline).await? {
            Written::Ours(lvol) => {
                info!(lvol = %lvol.spec.lvol_uuid, object = lvol.name_any(), node = lvol.spec.node, "object written");
                self.until_made(&lvol, deadline).await
            }
            Written::Theirs(lvol) => Ok(lvol_info(&lvol)),
        }
    }

    /// Writes the object, or finds the one that has its name. One on its way out is waited for.
    async fn write(&self, wanted: &Lvol, deadline: Instant) -> Result<Written> {
        let name = wanted.name_any();
        loop {
            match self.lvol_api().create(&PostParams::default(), wanted).await {
                Ok(lvol) => return Ok(Written::Ours(Box::new(lvol))),
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(kube::Error::Api(status)) if status.code == 422 => return Err(Error::Invalid(status.message)),
                Err(e) => return Err(failed(&format!("write the object {name}"), &e)),
            }
            let there = self.lvol_api().get_opt(&name).await;
            match there.map_err(|e| failed(&format!("read the object {name}"), &e))? {
                Some(lvol) if judge::is_leaving(&lvol) => {
                    info!(object = name, "an object of that name is still being removed");
                    self.until_gone(&lvol, deadline).await?;
                }
                // The first answer was lost on its way.
                Some(lvol) if lvol.spec.lvol_uuid == wanted.spec.lvol_uuid => return Ok(Written::Ours(Box::new(lvol))),
                Some(lvol) => return Ok(Written::Theirs(Box::new(lvol))),
                None if Instant::now() < deadline => {}
                None => return Err(Error::Deadline(format!("the object {name} comes and goes: try again"))),
            }
        }
    }

    /// Waits until the lvol of the object is there, or never will be: then the object goes, and nothing is left.
    pub(super) async fn until_made(&self, lvol: &Lvol, deadline: Instant) -> Result<LvolInfo> {
        let (name, uid) = (lvol.name_any(), lvol.uid());
        let mut seen = false;
        let mut last = String::from("its node has not seen it yet");
        let began = Instant::now();
        loop {
            let look = |all: &super::cache::Objects<Lvol>| match all.get(&name).filter(|found| found.uid() == uid) {
                Some(found) => {
                    seen = true;
                    match judge::progress(found) {
                        Progress::Pending(why) if !judge::is_leaving(found) => {
                            last = why;
                            None
                        }
                        Progress::Pending(_) => Some(Err(None)),
                        progress => Some(Ok((found.clone(), progress))),
                    }
                }
                // The cache may not have it yet.
                None => seen.then_some(Err(Some(()))),
            };
            match self.lvols.wait(doubt(deadline), look).await {
                Some(Ok((found, progress))) => return self.end_of(&found, progress, deadline).await,
                Some(Err(_)) => return Err(Error::MayExist(format!("{name} was removed meanwhile: try again"))),
                None => {}
            }
            let patience = began + std::time::Duration::from_secs(super::DOUBT_SECONDS);
            let patient = Instant::now() < patience.min(deadline);
            let outside = lvol.spec.outside().map(|outside| outside.node);
            for node in [Some(lvol.spec.node.as_str()), outside].into_iter().flatten() {
                if !patient && self.node(node) != NodeState::Ready {
                    return Err(Error::MayExist(format!("the node {node} does not answer: {last}")));
                }
            }
            if !patient && let Some(why) = self.lost_source(lvol).await? {
                warn!(object = name, "taken back: {why}");
                self.remove(lvol, deadline).await?;
                return Err(Error::NotFound(why));
            }
            if Instant::now() >= deadline {
                return Err(Error::Deadline(format!("{name} is not ready yet: {last}")));
            }
            if !seen {
                let there = self.lvol_api().get_opt(&name).await.map_err(|e| failed("read the object", &e))?;
                seen = there.is_none_or(|found| found.uid() != uid);
            }
        }
    }

    async fn end_of(&self, lvol: &Lvol, progress: Progress, deadline: Instant) -> Result<LvolInfo> {
        let error = match progress {
            Progress::Ready => return Ok(lvol_info(lvol)),
            Progress::Pending(why) => return Err(Error::MayExist(why)),
            Progress::Lost(why) => {
                return Err(Error::MayExist(format!("the lvol was made, and is not there any more: {why}")));
            }
            Progress::NoSpace(why) => coppice_engine::Error::new(ErrorKind::NoSpace, why).into(),
            Progress::SourceMissing(why) => Error::NotFound(why),
        };
        warn!(object = lvol.name_any(), node = lvol.spec.node, "cannot be made, and is taken back: {error}");
        self.remove(lvol, deadline).await.map_err(|second| {
            Error::MayExist(format!("{error}; and its object could not be taken back yet: {second}"))
        })?;
        Err(error)
    }
}
