//! Carries out what `decide` says for each Lvol object of this node.

use super::decide::{Facts, Home, Origin, Said, Step, decide};
use super::failure::Failure;
use super::{Agent, MANAGER, lock, outside, status};
use coppice_controller::kube::kept;
use coppice_controller::volume::{Backend, Consistency, Error as VolumeError, Source, lvol_name};
use coppice_engine::{
    CreateClone, CreateExternalClone, CreateLvol, CreateSnapshot, ErrorKind, LvolInfo, LvolState, Store,
};
use coppice_kube_api::{
    Consistency as Asked, FINALIZER, Kind, Lvol, LvolReason, LvolSpec, LvolStatus, Lvstore, Provisioning, SELECT_NODE,
    Tombstone,
};
use coppice_proto::attributes;
use futures_util::{FutureExt, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::runtime::Controller;
use kube::runtime::controller::{Action, Config};
use kube::runtime::events::EventType;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// Objects worked on at a time.
const CONCURRENCY: u16 = 16;
/// Steps of one go; more than any object needs.
const STEPS_MAX: usize = 8;
/// How often every object is compared with the drive.
const LOOK_SECONDS: u64 = 10;
/// How long what was begun may take to end.
const END_SECONDS_MAX: u64 = 15;
/// How often it is asked whether devices came or went.
const EXPORTS_SECONDS: u64 = 1;
/// When it is tried again: in use, or the object was changed meanwhile; no room, or the like; the API server fails.
const SOON: Duration = Duration::from_millis(500);
const LATER: Duration = Duration::from_secs(5);
const AFTER_FAILURE: Duration = Duration::from_secs(2);

pub async fn run(agent: Arc<Agent>, mut stop: watch::Receiver<bool>) {
    let api: Api<Lvol> = Api::all(agent.config.client.clone());
    let own = watcher::Config::default().fields(&format!("{SELECT_NODE}={}", agent.config.node));
    // No object is judged before its store was tried: a store that is only slow is not reported as closed.
    tokio::select! {
        () = agent.listed() => {}
        _ = stop.wait_for(|stop| *stop) => return,
    }
    let controller = Controller::new(api, own).with_config(Config::default().concurrency(CONCURRENCY));
    let objects = controller.store();
    let known = agent.clone();
    let listed = async {
        if objects.wait_until_ready().await.is_ok() {
            let _ = known.objects.set(objects.clone());
        }
        std::future::pending().await
    };
    let mut stopped = stop.clone();
    let until = async move {
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let work = controller
        .reconcile_all_on(wakes(agent.clone()))
        .graceful_shutdown_on(until)
        .run(reconcile, later, agent)
        .for_each(|done| async move {
            if let Err(e) = done {
                tracing::debug!("{e}");
            }
        });
    // One that is stopped before it has seen its objects waits for them for ever; nothing was begun then.
    let cut_off = async {
        let _ = stop.wait_for(|stop| *stop).await;
        if objects.wait_until_ready().now_or_never().is_some() {
            tokio::time::sleep(Duration::from_secs(END_SECONDS_MAX)).await;
            warn!("work on lvols is cut off: it takes too long");
        }
    };
    tokio::select! {
        () = work => {}
        () = cut_off => {}
        () = listed => {}
    }
}

/// When all objects are looked at: now and then, and when stores or devices came or went.
fn wakes(agent: Arc<Agent>) -> impl futures_util::Stream<Item = ()> + Send {
    let every = tokio::time::interval(Duration::from_secs(EXPORTS_SECONDS));
    futures_util::stream::unfold(
        (agent, every, None, Instant::now()),
        |(agent, mut every, mut seen, mut last)| async move {
            loop {
                let woken = tokio::select! {
                    () = agent.changed.notified() => true,
                    _ = every.tick() => false,
                };
                let stores = agent.config.stores.all();
                let exports: Vec<_> =
                    stores.iter().flat_map(|store| store.exports()).map(|export| export.lvol()).collect();
                let parents: Vec<_> = stores.iter().flat_map(|store| store.external_parents()).collect();
                let exports = Some((exports, parents));
                if woken || exports != seen || last.elapsed() >= Duration::from_secs(LOOK_SECONDS) {
                    seen = exports;
                    last = Instant::now();
                    return Some(((), (agent, every, seen, last)));
                }
            }
        },
    )
}

fn later(object: Arc<Lvol>, failure: &Failure, _: Arc<Agent>) -> Action {
    if failure.is_conflict() {
        return Action::requeue(SOON);
    }
    warn!(lvol = object.name_any(), "tried again soon: {failure}");
    Action::requeue(AFTER_FAILURE)
}

async fn reconcile(object: Arc<Lvol>, agent: Arc<Agent>) -> Result<Action, Failure> {
    Work { api: Api::all(agent.config.client.clone()), agent, object: (*object).clone(), fresh: false }.run().await
}

/// One go at one object.
struct Work {
    agent: Arc<Agent>,
    api: Api<Lvol>,
    object: Lvol,
    /// The object is as the API server had it a moment ago, not as a cache remembers it.
    fresh: bool,
}

impl Work {
    async fn run(mut self) -> Result<Action, Failure> {
        for _ in 0..STEPS_MAX {
            let facts = self.facts()?;
            let step = decide(&self.object, &facts, &self.agent.config.node);
            if let (Step::Create, Some(left)) = (&step, self.waits()) {
                // However often it is woken meanwhile.
                return Ok(Action::requeue(left));
            }
            match step {
                Step::Nothing => return Ok(Action::await_change()),
                Step::Claim => self.claim().await?,
                Step::Create if !self.fresh => {
                    // Whether it was created before is the one thing that a stale copy must not decide.
                    let uid = self.object.metadata.uid.clone();
                    match self.api.get_opt(&self.object.name_any()).await? {
                        Some(now) if now.metadata.uid == uid => self.object = now,
                        _ => return Ok(Action::await_change()),
                    }
                    self.fresh = true;
                }
                Step::Create => {
                    if let Err(error) = self.create().await {
                        return self.not_created(error).await;
                    }
                }
                Step::Grow(size) => {
                    if let Err(error) = self.grow(size).await {
                        return self.not_grown(&facts, error).await;
                    }
                }
                Step::Remove => {
                    if let Err(error) = self.remove().await {
                        return self.not_removed(&facts, error).await;
                    }
                }
                Step::Bury => {
                    self.bury().await?;
                    return self.release(false).await;
                }
                Step::Release { orphan } => return self.release(orphan).await,
                Step::Say(said) => return self.say(&facts, said).await,
            }
        }
        Ok(Action::requeue(SOON))
    }

    /// How long it is to wait for a snapshot of another lvstore that was away.
    fn waits(&self) -> Option<Duration> {
        self.agent.turns.left(self.object.spec.lvol_uuid, Instant::now())
    }

    fn store(&self) -> Option<Store> {
        self.agent.config.stores.get(self.object.spec.lvstore_uuid)
    }

    fn facts(&self) -> Result<Facts, Failure> {
        let spec = &self.object.spec;
        let Some(store) = self.store() else {
            let lost = lock(&self.agent.lost).contains_key(&spec.lvstore_uuid);
            let home = if lost { Home::Lost } else { Home::Closed };
            return Ok(Facts { home, lvol: None, origin: Origin::Missing });
        };
        let lvol = seen(&store, spec.lvol_uuid)?;
        let origin = match spec.source_uuid {
            Some(_) if is_outside(spec) => Origin::Outside,
            Some(source) if seen(&store, source)?.is_none() => {
                let stores = self.agent.config.stores.all();
                let elsewhere = stores.iter().any(|other| other.lvstore().lvol(source).is_ok());
                // A hidden one in the same store was deleted.
                let elsewhere = elsewhere && store.lvstore().lvol(source).is_err();
                if elsewhere { Origin::Elsewhere } else { Origin::Missing }
            }
            _ => Origin::Here,
        };
        Ok(Facts { home: Home::Open, lvol, origin })
    }

    async fn claim(&mut self) -> Result<(), Failure> {
        let mut finalizers = self.object.finalizers().to_vec();
        finalizers.push(FINALIZER.into());
        self.patch_finalizers(&finalizers).await?;
        self.fresh = true;
        Ok(())
    }

    /// Against the version that was read: nobody else's finalizer is lost.
    async fn patch_finalizers(&mut self, finalizers: &[String]) -> Result<(), Failure> {
        let version = self.object.metadata.resource_version.as_deref();
        let patch = json!({ "metadata": { "resourceVersion": version, "finalizers": finalizers } });
        self.object = self.api.patch(&self.object.name_any(), &manager(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn create(&self) -> Result<(), VolumeError> {
        let spec = &self.object.spec;
        let store = self.store().ok_or_else(|| VolumeError::MayExist("its lvstore was closed".into()))?;
        let lvstore = store.name();
        let name = lvol_name(&spec.request_name, spec.lvol_uuid, &lvstore, &store.lvols().await?);
        let uuid = Some(spec.lvol_uuid);
        let thick = spec.provisioning == Provisioning::Thick;
        let size = spec.size.bytes();
        let backend = &self.agent.backend;
        let made = match (spec.kind, spec.source_uuid) {
            (Kind::Volume, None) => {
                let mut attributes = attributes::of_volume(&spec.request_name, size, None, &Default::default());
                attributes.extend(kept(&self.object));
                store.create_lvol(CreateLvol { name, uuid, size, thick, attributes }).await?
            }
            (Kind::Volume, Some(id)) if is_outside(spec) => {
                let source = match spec.source_kind {
                    Some(Kind::Volume) => Source::Volume(id),
                    _ => Source::Snapshot(id),
                };
                let mut attributes =
                    attributes::of_volume(&spec.request_name, size, Some(source.to_attribute()), &Default::default());
                // No file system is ever made over one that is only not here yet.
                attributes.extend(spec.source_file_system.iter().map(|fs| (attributes::FS.to_string(), fs.clone())));
                attributes.extend(kept(&self.object));
                let of = spec.outside().ok_or_else(|| VolumeError::Invalid("it does not say from where".into()))?;
                let how = CreateExternalClone {
                    parent: of.snapshot,
                    name,
                    uuid,
                    size: None,
                    thick,
                    attributes,
                    hydrate: true,
                };
                self.agent.clone_outside(&store, of, how, size).await?
            }
            (Kind::Volume, Some(id)) => {
                let origin = store.lvol(id).await?;
                let source = match origin.kind {
                    coppice_engine::LvolKind::Snapshot => Source::Snapshot(id),
                    _ => Source::Volume(id),
                };
                let of = Some(source.to_attribute());
                let mut attributes = attributes::of_volume(&spec.request_name, size, of, &origin.attributes);
                attributes.extend(kept(&self.object));
                let size = Some(size.max(origin.size));
                backend.clone_lvol(source, CreateClone { snapshot: id, name, uuid, size, thick, attributes }).await?
            }
            (Kind::Snapshot, Some(lvol)) => {
                let origin = store.lvol(lvol).await?;
                let mut attributes = attributes::of_snapshot(lvol, &origin.attributes, origin.size);
                attributes.insert(attributes::CSI_NAME.into(), spec.request_name.clone());
                attributes.extend(kept(&self.object));
                let consistency = match spec.consistency {
                    Some(Asked::Crash) => Consistency::Crash,
                    Some(Asked::Freeze) => Consistency::Freeze,
                    Some(Asked::Sync) | None => Consistency::Sync,
                };
                backend.snapshot(CreateSnapshot { lvol, name, uuid, attributes, hidden: false }, consistency).await?
            }
            (Kind::Snapshot, None) => return Err(VolumeError::Invalid("a snapshot needs a source".into())),
        };
        self.agent.turns.over(spec.lvol_uuid);
        info!(lvol = %made.uuid, name = self.object.name_any(), alias = made.alias, size = made.size, "created");
        Ok(())
    }

    async fn not_created(self, error: VolumeError) -> Result<Action, Failure> {
        let facts = self.facts()?;
        if facts.lvol.is_some() {
            // It is there after all: the next go says so.
            return Ok(Action::requeue(Duration::ZERO));
        }
        let (reason, again) = match &error {
            VolumeError::Engine(e) if is_full(e.kind()) => (LvolReason::NoSpace, LATER),
            VolumeError::Engine(e) if e.kind() == ErrorKind::NotFound => (LvolReason::SourceMissing, LATER),
            VolumeError::NotFound(_) => (LvolReason::SourceMissing, LATER),
            VolumeError::Engine(e) if e.kind() == ErrorKind::Away => {
                let spec = &self.object.spec;
                let source = spec.outside().map_or(spec.lvstore_uuid, |of| of.lvstore);
                let again = self.agent.turns.failed(spec.lvol_uuid, source, Instant::now());
                (LvolReason::SourceUnavailable, again)
            }
            _ => (LvolReason::CreateFailed, AFTER_FAILURE),
        };
        warn!(name = self.object.name_any(), %reason, "not created: {error}");
        self.say(&facts, Said::NotReady(reason, error.to_string())).await?;
        Ok(Action::requeue(again))
    }

    async fn grow(&self, size: u64) -> Result<(), VolumeError> {
        let id = self.object.spec.lvol_uuid;
        let lvol = self.agent.backend.made(id).await?;
        if size > lvol.size {
            self.agent.backend.resize(id, size).await?;
        }
        // Cut off in between, the next go does the rest.
        let size = (attributes::CSI_SIZE.to_string(), Some(size.to_string()));
        self.agent.backend.set_attributes(id, vec![size]).await?;
        Ok(())
    }

    async fn not_grown(mut self, facts: &Facts, error: VolumeError) -> Result<Action, Failure> {
        let reason = match &error {
            VolumeError::Engine(e) if is_full(e.kind()) => LvolReason::NoSpace,
            _ => LvolReason::CreateFailed,
        };
        let Some(lvol) = &facts.lvol else { return Ok(Action::requeue(SOON)) };
        warn!(name = self.object.name_any(), %reason, "not grown: {error}");
        let new = status::lvol_not_grown(&self.object, lvol, reason, &error.to_string(), jiff::Timestamp::now());
        self.write(&new).await?;
        Ok(Action::requeue(LATER))
    }

    async fn remove(&self) -> Result<(), VolumeError> {
        let spec = &self.object.spec;
        // A snapshot that clones read is hidden, and goes with the last of them.
        let deferred = spec.kind == Kind::Snapshot;
        if deferred {
            self.agent.secure(&[self.object.spec.lvol_uuid]).await?;
        }
        match self.agent.backend.delete(spec.lvol_uuid, deferred).await {
            Err(VolumeError::Engine(e)) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(VolumeError::NotFound(_)) => Ok(()),
            Ok(()) => {
                info!(lvol = %spec.lvol_uuid, name = self.object.name_any(), "removed");
                Ok(())
            }
            Err(e) => Err(e),
        }
    }

    async fn not_removed(self, facts: &Facts, error: VolumeError) -> Result<Action, Failure> {
        let busy = matches!(&error, VolumeError::Engine(e) if e.kind() == ErrorKind::Busy);
        let message = match busy {
            true => format!("it is in use, and removed when it is not: {error}"),
            false => error.to_string(),
        };
        self.say(facts, Said::NotReady(LvolReason::Removing, message)).await?;
        Ok(Action::requeue(if busy { SOON } else { AFTER_FAILURE }))
    }

    /// Notes in the Lvstore object that the lvol is to go.
    async fn bury(&self) -> Result<(), Failure> {
        let spec = &self.object.spec;
        let name = lock(&self.agent.lost).get(&spec.lvstore_uuid).cloned();
        let Some(name) = name else { return Ok(()) };
        let api: Api<Lvstore> = Api::all(self.agent.config.client.clone());
        let lvstore = api.get(&name).await?;
        let mut new = lvstore.status.clone().unwrap_or_default();
        if new.tombstones.iter().any(|tombstone| tombstone.lvol_uuid == spec.lvol_uuid) {
            return Ok(());
        }
        let deleted = Time(jiff::Timestamp::now());
        new.tombstones.push(Tombstone { lvstore_uuid: spec.lvstore_uuid, lvol_uuid: spec.lvol_uuid, deleted });
        let version = lvstore.metadata.resource_version.as_deref();
        if let Some(patch) = status::patch(&lvstore.status, &new, version)? {
            api.patch_status(&name, &manager(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    }

    async fn release(mut self, orphan: bool) -> Result<Action, Failure> {
        if orphan {
            let id = self.object.spec.lvol_uuid;
            let note = format!("the object was deleted, and not by the controller: the lvol {id} stays on its drive");
            let about = self.object.object_ref(&());
            self.agent.event(&about, LvolReason::Orphaned.as_str(), "Release", note).await;
        }
        let others: Vec<String> = self.object.finalizers().iter().filter(|name| *name != FINALIZER).cloned().collect();
        match self.patch_finalizers(&others).await {
            Err(Failure::Api(kube::Error::Api(status))) if status.code == 404 => {}
            done => done?,
        }
        lock(&self.agent.allocated).remove(&self.object.spec.lvol_uuid);
        self.agent.turns.over(self.object.spec.lvol_uuid);
        Ok(Action::await_change())
    }

    async fn say(mut self, facts: &Facts, said: Said) -> Result<Action, Failure> {
        let id = self.object.spec.lvol_uuid;
        let since = lock(&self.agent.allocated).get(&id).map(Instant::elapsed);
        let now = jiff::Timestamp::now();
        let mut new = status::lvol_status(&self.object, facts.lvol.as_ref(), &said, since, now);
        let mut events = Vec::new();
        if let (Some(store), Some(lvol)) = (self.store(), &facts.lvol) {
            // In this order: whoever keeps a snapshot for us looks at the store's object when this one changes.
            let depends = self.agent.depends(&store, lvol);
            if self.agent.is_unpublished(&store).await {
                self.agent.publish(&store).await?;
            }
            events = outside::describe(&self.object, &mut new, depends.as_ref(), now);
        }
        let old = self.object.status.as_ref().and_then(|status| status.allocated);
        if new.allocated != old {
            lock(&self.agent.allocated).insert(id, Instant::now());
        }
        self.write(&new).await?;
        let about = self.object.object_ref(&());
        for (reason, note) in events {
            let kind = match reason {
                LvolReason::Hydrating | LvolReason::Hydrated => EventType::Normal,
                _ => EventType::Warning,
            };
            self.agent.event_of(kind, &about, reason.as_str(), "Hydrate", note).await;
        }
        Ok(match said {
            Said::Available | Said::Lost(..) => Action::await_change(),
            Said::NotReady(..) => Action::requeue(LATER),
        })
    }

    async fn write(&mut self, new: &LvolStatus) -> Result<(), Failure> {
        let version = self.object.metadata.resource_version.clone();
        if let Some(patch) = status::patch(&self.object.status, new, version.as_deref())? {
            self.object = self.api.patch_status(&self.object.name_any(), &manager(), &Patch::Merge(patch)).await?;
        }
        Ok(())
    }
}

fn manager() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }
}

/// It is to read a snapshot of another lvstore.
fn is_outside(spec: &LvolSpec) -> bool {
    spec.outside().is_some_and(|of| of.lvstore != spec.lvstore_uuid)
}

fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NoSpace | ErrorKind::NoMetadataSpace)
}

/// The lvol, unless it was deleted and is only read by others.
fn seen(store: &Store, id: uuid::Uuid) -> Result<Option<LvolInfo>, Failure> {
    match store.lvstore().lvol(id) {
        Ok(lvol) if lvol.state == LvolState::Hidden => Ok(None),
        Ok(lvol) => Ok(Some(lvol)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.into()),
    }
}
