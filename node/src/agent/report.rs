//! What is done with a store that is open, and what its status says.

use super::condition::{self, set, set_ready, space};
use super::failure::Failure;
use super::keeper::Keeper;
use super::memory::Note;
use super::orphans;
use coppice_engine::device::on_thread;
use coppice_engine::{ErrorKind, Store};
use coppice_kube_api::{Lvstore, LvstoreCondition, LvstoreReason, LvstoreStatus, Place};
use kube::ResourceExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Space is written so often at most.
const SPACE_PAUSE: Duration = Duration::from_secs(10);
/// A store that was well for so long has not failed again, but anew.
const WELL: Duration = Duration::from_secs(120);

impl Keeper {
    /// Grows the store if there is room, does what tombstones say, and writes what is new.
    pub(super) async fn report(&mut self, object: &Lvstore) -> Result<(), Failure> {
        let Some(opened) = &self.open else { return Ok(()) };
        let store = opened.store.clone();
        let mut new = condition::of(object);
        if new.uuid != Some(store.uuid()) {
            // The cache is behind: the watch will bring what we wrote.
            return Ok(());
        }
        let note = Note {
            node: self.agent.config.node.clone(),
            uid: object.uid().unwrap_or_default(),
            device: object.spec.device.clone(),
            store: store.uuid(),
            cluster: self.agent.cluster().await?,
        };
        self.agent.memory.keep(&self.name, note).await;
        if let Some((reason, why)) = trouble(&store, opened.device) {
            return self.failing(object, &store, reason, why).await;
        }
        if opened.since.elapsed() > WELL {
            self.failures = 0;
        }
        let growth = self.patiently(Some(object), LvstoreReason::DeviceStalled, grow(object, &store)).await.err();
        let buried: Vec<_> = new.tombstones.iter().map(|tombstone| tombstone.lvol_uuid).collect();
        if self.agent.secure(&buried).await.is_ok() {
            self.patiently(Some(object), LvstoreReason::DeviceStalled, bury(&store, &mut new)).await;
        }
        new.kept = orphans::kept(&store);
        // Before the objects have been listed nobody can tell.
        if let Some(objects) = self.agent.objects.get() {
            new.orphans = orphans::of(&store, objects, &new.tombstones);
        }
        let info = store.info().await?;
        let Some(opened) = &mut self.open else { return Ok(()) };
        opened.early = false;
        if opened.growth != growth {
            if let Some(why) = &growth {
                warn!(lvstore = info.name, "the store does not grow: {why}");
            }
            opened.growth = growth;
        }
        let message = opened.growth.as_ref().map_or(String::new(), |why| format!("the store does not grow: {why}"));
        new.cluster_size = Some(u64::from(info.cluster_size).into());
        let rested = opened.space_written.is_none_or(|at| at.elapsed() >= SPACE_PAUSE);
        let space = space(&store, &info);
        if rested && new.space != Some(space) {
            new.space = Some(space);
            opened.space_written = Some(Instant::now());
        }
        set_ready(object, &mut new, info.read_only, &message);
        self.agent.config.absent.clear(&self.name);
        new.export_endpoint = self.agent.outside.endpoint().or(new.export_endpoint);
        let mut published = self.agent.publishing().await;
        let parents = self.agent.parents_of(&store, new.external_parents.as_ref());
        new.external_parents = Some(parents.clone());
        // Until it is written nobody knows what it says.
        published.remove(&store.uuid());
        self.write(object, &new).await?;
        published.insert(store.uuid(), parents);
        Ok(())
    }

    /// The store has failed. It is opened again when nobody uses it: what was written and not acknowledged as durable is
    /// gone, and nobody may go on as if it were there.
    async fn failing(
        &mut self,
        object: &Lvstore,
        store: &Store,
        reason: LvstoreReason,
        why: String,
    ) -> Result<(), Failure> {
        let users = users(store);
        let message = match users.is_empty() && self.close_unwanted("its device failed").await {
            true => {
                self.reopen_later();
                self.agent.config.absent.set(&self.name, format!("{reason}: {why}"));
                format!("{why}; it is opened again")
            }
            false if users.is_empty() => format!("{why}; it is opened again when it can be closed"),
            false => format!("{why}; it is opened again when these are not in use any more: {}", users.join(", ")),
        };
        let mut new = condition::of(object);
        set(object, &mut new, LvstoreCondition::Ready, false, reason, &message);
        if set(object, &mut new, LvstoreCondition::Failing, true, reason, &message) {
            warn!(lvstore = self.name, "{message}");
        }
        self.write(object, &new).await?;
        Ok(())
    }
}

/// Why the store cannot be used any more.
fn trouble(store: &Store, device: Option<(u32, u32)>) -> Option<(LvstoreReason, String)> {
    if let Some(why) = store.lvstore().info().failed {
        return Some((LvstoreReason::DeviceFailed, why));
    }
    let (major, minor) = device?;
    let gone = !Path::new("/sys/dev/block").join(format!("{major}:{minor}")).exists();
    gone.then(|| (LvstoreReason::DeviceMissing, format!("{} is gone", store.path().display())))
}

/// The lvols that are attached, for a person.
fn users(store: &Store) -> Vec<String> {
    let name = |id| store.lvstore().lvol(id).map_or_else(|_| id.to_string(), |lvol| lvol.name);
    let exports = store.exports();
    exports.iter().map(|export| format!("{} ({})", name(export.lvol()), export.device().display())).collect()
}

/// The file follows `spec.fileSize`, and the store its file or drive.
async fn grow(object: &Lvstore, store: &Store) -> Result<(), String> {
    if store.lvstore().read_only {
        return Ok(());
    }
    if let Place::File(_) = object.spec.place() {
        let Some(size) = object.spec.file_size else { return Ok(()) };
        let path = store.path();
        on_thread(move || grow_file(&path, size.bytes())).await.map_err(|e| e.to_string())??;
    }
    let before = store.lvstore().info().size;
    match store.grow().await {
        Ok(info) if info.size > before => info!(lvstore = info.name, from = before, to = info.size, "grown"),
        Ok(_) => {}
        Err(e) => return Err(e.to_string()),
    }
    Ok(())
}

fn grow_file(path: &Path, size: u64) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    let file = std::fs::OpenOptions::new().write(true).open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.len() < size {
        file.set_len(size).map_err(failed)?;
    }
    Ok(())
}

/// Removes the lvols that tombstones name, and then the tombstones.
async fn bury(store: &Store, status: &mut LvstoreStatus) {
    let mut left = Vec::new();
    for tombstone in std::mem::take(&mut status.tombstones) {
        let ours = tombstone.lvstore_uuid == store.uuid();
        match if ours { store.delete(tombstone.lvol_uuid, true).await } else { Ok(()) } {
            Ok(()) if ours => info!(lvol = %tombstone.lvol_uuid, "removed: it was deleted while its node was away"),
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => {
                warn!(lvol = %tombstone.lvol_uuid, "to be removed, but: {e}");
                left.push(tombstone);
            }
            Ok(()) => left.push(tombstone),
        }
    }
    status.tombstones = left;
}
