//! Carries out what `plan` says for each Lvstore object of this node, and reports how its store is.
//!
//! One after the other: a node has few. The API server is asked afresh before a device is formatted or a store taken over.

use super::device::{self, Refusal};
use super::plan::{Plan, plan};
use super::{Agent, MANAGER, lock, status};
use coppice_controller::local::LocalBackend;
use coppice_controller::volume::Backend;
use coppice_engine::{CreateStore, Engine, ErrorKind, LvolState, OpenStore, Store, StoreInfo, Stores};
use coppice_kube_api::{
    ByteSize, Lvstore, LvstoreCondition, LvstoreReason, LvstoreStatus, Place, SELECT_NODE, Space, condition,
    set_condition,
};
use futures_util::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};
use uuid::Uuid;

/// How often stores are looked at, and space is written at most.
const LOOK_SECONDS: u64 = 10;
/// Bytes of a metadata page.
const PAGE_BYTES: u64 = 4096;

/// A store that we opened for an object.
struct Opened {
    /// Of the object.
    uid: String,
    store: Store,
    space_written: Option<Instant>,
}

struct Keeper {
    agent: Arc<Agent>,
    api: Api<Lvstore>,
    opened: BTreeMap<String, Opened>,
}

type Failure = super::lvols::Failure;

pub async fn run(agent: Arc<Agent>, mut stop: watch::Receiver<bool>) {
    let api: Api<Lvstore> = Api::all(agent.config.client.clone());
    let own = watcher::Config::default().fields(&format!("{SELECT_NODE}={}", agent.config.node));
    let (reader, writer) = reflector::store();
    let mut events = Box::pin(reflector(writer, watcher(api.clone(), own)).default_backoff());
    let _ = agent.lvstores.set(reader.clone());
    let mut keeper = Keeper { agent: agent.clone(), api, opened: BTreeMap::new() };
    let mut every = tokio::time::interval(Duration::from_secs(LOOK_SECONDS));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut listed = false;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            event = events.next() => match event {
                Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                Some(Ok(Event::InitDone)) => listed = true,
                Some(Ok(_)) => {}
                Some(Err(e)) => {
                    warn!("the watch of lvstores: {e}");
                    continue;
                }
                None => return,
            },
            _ = every.tick() => {}
        }
        if listed {
            keeper.round(reader.state()).await;
            agent.tried.send_replace(true);
        }
    }
}

impl Keeper {
    async fn round(&mut self, mut objects: Vec<Arc<Lvstore>>) {
        objects
            .sort_by_key(|object| (object.metadata.creation_timestamp.clone().map(|time| time.0), object.name_any()));
        self.close_unwanted(&objects).await;
        for (at, object) in objects.iter().enumerate() {
            let earlier = objects.get(..at).unwrap_or_default();
            if let Err(e) = self.one(object, earlier).await {
                warn!(lvstore = object.name_any(), "tried again soon: {e}");
            }
        }
    }

    /// Stores whose object is gone are closed, when nothing uses them any more. Every byte stays.
    async fn close_unwanted(&mut self, objects: &[Arc<Lvstore>]) {
        let wanted = |name: &String, opened: &Opened| {
            objects.iter().any(|o| o.name_any() == *name && o.uid().unwrap_or_default() == opened.uid)
        };
        let gone: Vec<String> = self.opened.iter().filter(|(n, o)| !wanted(n, o)).map(|(n, _)| n.clone()).collect();
        let known: Vec<Uuid> = objects.iter().filter_map(|o| o.status.as_ref()?.uuid).collect();
        lock(&self.agent.lost).retain(|uuid, _| known.contains(uuid));
        for name in gone {
            let Some(opened) = self.opened.get(&name) else { continue };
            let store = opened.store.clone();
            if !store.exports().is_empty() {
                continue;
            }
            self.agent.config.stores.remove(store.uuid());
            match store.close().await {
                Ok(()) => {
                    info!(lvstore = store.name(), "closed: its object is gone; nothing was removed");
                    self.opened.remove(&name);
                    self.agent.changed.notify_one();
                }
                Err(e) => {
                    self.agent.config.stores.add(store);
                    warn!(lvstore = name, "not closed yet: {e}");
                }
            }
        }
    }

    async fn one(&mut self, object: &Lvstore, earlier: &[Arc<Lvstore>]) -> Result<(), Failure> {
        let name = object.name_any();
        if self.opened.contains_key(&name) {
            return self.report(object).await;
        }
        let engine = match &self.agent.config.engine {
            Ok(engine) => engine.clone(),
            Err(why) => return self.refused(object, Refusal(LvstoreReason::HostUnfit, why.clone())).await,
        };
        let twin =
            |other: &&Arc<Lvstore>| other.spec.name == object.spec.name || other.spec.device == object.spec.device;
        if let Some(twin) = earlier.iter().find(twin) {
            let message = format!("the Lvstore {} of this node has the same name or device", twin.name_any());
            return self.refused(object, Refusal(LvstoreReason::Duplicate, message)).await;
        }
        match self.open(&engine, object).await? {
            Ok(Some(opened)) => {
                let store = opened.store.clone();
                info!(lvstore = store.name(), path = %store.path().display(), "open");
                lock(&self.agent.lost).remove(&store.uuid());
                self.opened.insert(name, opened);
                self.agent.config.stores.add(store);
                self.agent.changed.notify_one();
                // The object has changed since; the watch brings it back at once.
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(refusal) => self.refused(object, refusal).await,
        }
    }

    /// The store, open and with nothing half done in it, or why not. `None`: the status says why.
    async fn open(&self, engine: &Engine, object: &Lvstore) -> Result<Result<Option<Opened>, Refusal>, Failure> {
        let Some(object) = self.api.get_opt(&object.name_any()).await?.filter(|now| now.uid() == object.uid()) else {
            return Ok(Ok(None));
        };
        let spec = &object.spec;
        let (path, exists) = match device::resolve(spec, &self.agent.config.file_dir) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let there = match exists {
            true => device::look(engine, &path).await,
            false => Ok(super::plan::OnDevice::NoFile),
        };
        let there = match there {
            Ok(there) => there,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let known = object.status.as_ref().and_then(|status| status.uuid);
        match plan(spec, known, &there) {
            Plan::Open => {}
            Plan::Take(uuid) => self.know(&object, uuid).await?,
            Plan::Format(file_size) => match format(engine, &object, &path, file_size).await {
                Ok(made) => {
                    info!(lvstore = made.name, path = %path.display(), "formatted");
                    self.know(&object, made.uuid).await?;
                }
                Err(refusal) => return Ok(Err(refusal)),
            },
            Plan::Refuse(reason, message) => return Ok(Err(Refusal(reason, message))),
            Plan::Lost(reason, message) => {
                if let Some(uuid) = known {
                    lock(&self.agent.lost).insert(uuid, object.name_any());
                    self.agent.changed.notify_one();
                }
                self.bad(&object, LvstoreCondition::Lost, reason, message).await?;
                return Ok(Ok(None));
            }
            Plan::Foreign(reason, message) => {
                self.bad(&object, LvstoreCondition::Foreign, reason, message).await?;
                return Ok(Ok(None));
            }
        }
        let store = match engine.open_store(&path, OpenStore::default()).await {
            Ok(store) => store,
            Err(e) => return Ok(Err(device::failed(e))),
        };
        self.finish_clones(&store).await;
        Ok(Ok(Some(Opened { uid: object.uid().unwrap_or_default(), store, space_written: None })))
    }

    /// Before anything else can use the store.
    async fn finish_clones(&self, store: &Store) {
        let alone = Stores::from(vec![store.clone()]);
        let config = &self.agent.config;
        let backend = LocalBackend::new(alone, config.node.clone(), config.quiesce.clone());
        if let Err(e) = backend.recover().await {
            warn!(lvstore = store.name(), "what an unfinished clone left stays: {e}");
        }
    }

    /// Writes the UUID down, before anything uses the store.
    async fn know(&self, object: &Lvstore, uuid: Uuid) -> Result<(), Failure> {
        let mut new = object.status.clone().unwrap_or_default();
        new.uuid = Some(uuid);
        self.write(object, &new).await
    }

    async fn refused(&self, object: &Lvstore, Refusal(reason, message): Refusal) -> Result<(), Failure> {
        let mut new = object.status.clone().unwrap_or_default();
        set(object, &mut new, LvstoreCondition::Ready, false, reason, &message);
        if object.status.as_ref() != Some(&new) {
            warn!(lvstore = object.name_any(), %reason, "not open: {message}");
        }
        self.write(object, &new).await
    }

    async fn bad(
        &self,
        object: &Lvstore,
        what: LvstoreCondition,
        reason: LvstoreReason,
        message: String,
    ) -> Result<(), Failure> {
        let mut new = object.status.clone().unwrap_or_default();
        set(object, &mut new, LvstoreCondition::Ready, false, reason, &message);
        if set(object, &mut new, what, true, reason, &message) {
            warn!(lvstore = object.name_any(), "{what}: {message}");
        }
        self.write(object, &new).await
    }

    /// Grows the store if asked, does what tombstones say, and writes what is new.
    async fn report(&mut self, object: &Lvstore) -> Result<(), Failure> {
        let Some(opened) = self.opened.get_mut(&object.name_any()) else { return Ok(()) };
        let store = opened.store.clone();
        let grown = grow(object, &store).await;
        let mut new = object.status.clone().unwrap_or_default();
        if new.uuid != Some(store.uuid()) {
            // The cache is behind: the watch will bring what we wrote.
            return Ok(());
        }
        bury(&store, &mut new).await;
        let info = store.info().await?;
        new.cluster_size = Some(u64::from(info.cluster_size).into());
        let rested = opened.space_written.is_none_or(|at| at.elapsed() >= Duration::from_secs(LOOK_SECONDS));
        let space = space(&store, &info);
        if rested && new.space != Some(space) {
            new.space = Some(space);
            opened.space_written = Some(Instant::now());
        }
        match (&info.failed, info.read_only, grown) {
            (Some(why), ..) => {
                set(object, &mut new, LvstoreCondition::Ready, false, LvstoreReason::DeviceFailed, why);
                set(object, &mut new, LvstoreCondition::Failing, true, LvstoreReason::DeviceFailed, why);
            }
            (None, read_only, grown) => {
                let reason = if read_only { LvstoreReason::ReadOnly } else { LvstoreReason::Open };
                let message = grown.err().map_or(String::new(), |e| format!("the store does not grow: {e}"));
                set(object, &mut new, LvstoreCondition::Ready, true, reason, &message);
                for bad in [LvstoreCondition::Failing, LvstoreCondition::Lost, LvstoreCondition::Foreign] {
                    if new.conditions.iter().any(|c: &Condition| c.type_ == bad.as_str()) {
                        set(object, &mut new, bad, false, LvstoreReason::AsExpected, "");
                    }
                }
            }
        }
        self.write(object, &new).await
    }

    async fn write(&self, object: &Lvstore, new: &LvstoreStatus) -> Result<(), Failure> {
        let version = object.metadata.resource_version.as_deref();
        if let Some(patch) = status::patch(&object.status, new, version)? {
            let manager = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
            self.api.patch_status(&object.name_any(), &manager, &Patch::Merge(patch)).await?;
        }
        Ok(())
    }
}

/// True if the condition is new.
fn set(
    object: &Lvstore,
    status: &mut LvstoreStatus,
    what: LvstoreCondition,
    holds: bool,
    reason: LvstoreReason,
    message: &str,
) -> bool {
    let new = condition(what, holds, reason, message, object.metadata.generation, jiff::Timestamp::now());
    set_condition(&mut status.conditions, new)
}

async fn format(engine: &Engine, object: &Lvstore, path: &Path, file_size: Option<u64>) -> Result<StoreInfo, Refusal> {
    let cluster_size = object.spec.cluster_size.map(ByteSize::bytes).and_then(|size| u32::try_from(size).ok());
    // A file of no size is one that was made and not grown before we were killed.
    let empty = std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == 0);
    let file_size = file_size.or(object.spec.file_size.map(ByteSize::bytes).filter(|_| empty));
    let how = CreateStore {
        file_size,
        name: object.spec.name.clone(),
        cluster_size,
        max_size: None,
        block_size: None,
        force: false,
    };
    engine.create_store(path, how).await.map_err(device::failed)
}

/// The file follows `spec.fileSize`, and the store its file or drive.
async fn grow(object: &Lvstore, store: &Store) -> Result<(), String> {
    let (Place::File(_), Some(size)) = (object.spec.place(), object.spec.file_size) else { return Ok(()) };
    let path = store.path();
    let file = std::fs::OpenOptions::new().write(true).open(&path).map_err(|e| e.to_string())?;
    let now = file.metadata().map_err(|e| e.to_string())?.len();
    if now >= size.bytes() {
        return Ok(());
    }
    file.set_len(size.bytes()).map_err(|e| e.to_string())?;
    let info = store.grow().await.map_err(|e| e.to_string())?;
    info!(lvstore = info.name, from = now, to = size.bytes(), "grown");
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

pub(crate) fn space(store: &Store, info: &StoreInfo) -> Space {
    let cluster = u64::from(info.cluster_size);
    let bytes = |clusters: u64| ByteSize::from(clusters.saturating_mul(cluster));
    let lvols = store.lvstore().lvols();
    let shown = lvols.iter().filter(|lvol| lvol.state != LvolState::Hidden);
    Space {
        total: bytes(info.total_clusters),
        free: bytes(info.free_clusters),
        committed: shown.map(|lvol| lvol.size).fold(0, u64::saturating_add).into(),
        metadata: bytes(info.metadata_clusters),
        metadata_free: info.free_metadata_pages.saturating_mul(PAGE_BYTES).into(),
    }
}
