//! One Lvstore of this node: has it opened, reports how it is, and opens it again when its device had failed.
//!
//! ```text
//!   closed ──opening──▶ open ──its object is gone, and nobody uses it──▶ closed, the end
//!      ▲                  │
//!      └──after a pause───┘ it failed, and nobody uses it
//! ```
//!
//! Whatever may wait for the device is watched: if it takes long the status says so meanwhile.

use super::condition::{self, set};
use super::failure::{Failure, Refusal, ask};
use super::memory::Note;
use super::{Agent, MANAGER, lock, status};
use coppice_engine::{ErrorKind, Store};
use coppice_kube_api::{Lvstore, LvstoreCondition, LvstoreReason, LvstoreStatus};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tracing::{info, warn};

/// When it is tried again after a failure that is not the device's.
const AGAIN: Duration = Duration::from_secs(2);
/// First and longest pause before a store that failed is opened again.
const REOPEN_MIN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(64);
/// So many times as long may the opening of a store take before it is said that the device does not answer.
const OPENING_FACTOR: u32 = 6;
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// What a keeper knows of its object.
#[derive(Clone, Default, PartialEq)]
pub enum View {
    /// Nothing: the API server has not been asked yet.
    #[default]
    Unknown,
    /// As `Unknown`, but a store was open for it before.
    Remembered(Note),
    Gone,
    Is {
        object: Arc<Lvstore>,
        /// The name of an earlier object with the same name or device.
        twin: Option<String>,
    },
}

/// A store that we opened for an object.
pub struct Opened {
    /// Of the object.
    pub uid: String,
    pub store: Store,
    /// It was opened without having seen the object.
    pub early: bool,
    /// Number of the drive, if it is one.
    pub device: Option<(u32, u32)>,
    pub since: Instant,
    pub space_written: Option<Instant>,
    /// Why it does not grow.
    pub growth: Option<String>,
}

impl Opened {
    pub fn new(uid: String, store: Store, early: bool) -> Opened {
        let device = super::device::number(&store.path());
        Opened { uid, store, early, device, since: Instant::now(), space_written: None, growth: None }
    }
}

pub struct Keeper {
    pub(super) agent: Arc<Agent>,
    pub(super) api: Api<Lvstore>,
    /// Of the object.
    pub(super) name: String,
    pub(super) open: Option<Opened>,
    /// How often it failed, and when it is opened again.
    pub(super) failures: u32,
    reopen_at: Option<Instant>,
    tried: watch::Sender<bool>,
}

impl Keeper {
    /// `tried` becomes true when it was tried to open the store, or that takes too long to wait for.
    pub fn new(agent: Arc<Agent>, name: String, tried: watch::Sender<bool>) -> Keeper {
        agent.config.absent.set(&name, "it was not tried yet");
        let api = Api::all(agent.config.client.clone());
        Keeper { agent, api, name, open: None, failures: 0, reopen_at: None, tried }
    }

    /// Until the object is gone and its store closed, or `stop`.
    pub async fn run(mut self, mut view: watch::Receiver<View>, mut stop: watch::Receiver<bool>) {
        let agent = self.agent.clone();
        loop {
            let now = view.borrow_and_update().clone();
            let done = self.step(&now).await;
            self.tried.send_replace(true);
            let mut pause = self.agent.config.timing.look;
            if let Err(e) = done {
                pause = pause.min(AGAIN);
                warn!(lvstore = self.name, "tried again soon: {e}");
            }
            if self.open.is_none() && now == View::Gone {
                self.agent.config.absent.clear(&self.name);
                self.agent.memory.forget(&self.name).await;
                return;
            }
            if let Some(at) = self.reopen_at {
                pause = pause.min(at.saturating_duration_since(Instant::now()));
            }
            tokio::select! {
                _ = stop.wait_for(|stop| *stop) => return,
                changed = view.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
                () = agent.served.notified() => {}
            }
        }
    }

    async fn step(&mut self, view: &View) -> Result<(), Failure> {
        match view {
            View::Unknown => Ok(()),
            View::Remembered(note) => {
                if self.open.is_none()
                    && let Err(e) = self.remembered(note).await
                    && self.agent.config.absent.set(&self.name, e.to_string())
                {
                    warn!(lvstore = self.name, "not open: {e}");
                }
                Ok(())
            }
            View::Gone => {
                self.close_unwanted("its object is gone").await;
                Ok(())
            }
            View::Is { object, twin } => match self.one(object, twin.as_deref()).await {
                Err(Failure::Refused(refusal)) => self.refused(object, refusal).await,
                done => done,
            },
        }
    }

    async fn one(&mut self, object: &Lvstore, twin: Option<&str>) -> Result<(), Failure> {
        if let Some(opened) = &self.open {
            if self.is_for(opened, object).await? {
                return self.report(object).await;
            }
            if !self.close_unwanted("it is not what its object means").await {
                return Ok(());
            }
        }
        if self.reopen_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        self.reopen_at = None;
        let engine = match &self.agent.config.engine {
            Ok(engine) => engine.clone(),
            Err(why) => return Err(Refusal(LvstoreReason::HostUnfit, why.clone()).into()),
        };
        if let Some(twin) = twin {
            let message = format!("the Lvstore {twin} of this node has the same name or device");
            return Err(Refusal(LvstoreReason::Duplicate, message).into());
        }
        if let Some(opened) = self.open_for(&engine, object).await? {
            // The object has changed since; the watch brings it back at once.
            self.take(opened);
        }
        Ok(())
    }

    /// Whether the store is the object's. One that was opened early is judged as if it were opened now.
    async fn is_for(&self, opened: &Opened, object: &Lvstore) -> Result<bool, Failure> {
        let known = object.status.as_ref().and_then(|status| status.uuid);
        if opened.uid != object.uid().unwrap_or_default() {
            return Ok(false);
        }
        Ok(!opened.early
            || (known == Some(opened.store.uuid())
                && opened.store.info().await?.owner == Some(self.agent.cluster().await?)))
    }

    /// Opens what is noted, if it is there and what it was.
    async fn remembered(&mut self, note: &Note) -> Result<(), Refusal> {
        let engine = self.agent.config.engine.clone().map_err(|why| Refusal(LvstoreReason::HostUnfit, why))?;
        let store = self.open_noted(&engine, note).await?;
        info!(lvstore = store.name(), "open without the API server, as it was before");
        self.take(Opened::new(note.uid.clone(), store, true));
        Ok(())
    }

    /// The store has failed, and is closed: when it is opened again.
    pub(super) fn reopen_later(&mut self) {
        let pause = REOPEN_MIN.saturating_mul(1 << self.failures.min(16)).min(REOPEN_MAX);
        self.failures += 1;
        self.reopen_at = Some(Instant::now() + pause);
    }

    /// From now on the store can be used.
    fn take(&mut self, opened: Opened) {
        let store = opened.store.clone();
        info!(lvstore = store.name(), path = %store.path().display(), "open");
        lock(&self.agent.lost).remove(&store.uuid());
        self.open = Some(opened);
        self.agent.config.absent.clear(&self.name);
        self.agent.config.stores.add(store);
        self.agent.changed.notify_one();
        self.agent.outside.store_came();
    }

    /// Closes the store when nothing uses it any more; every byte stays. True if it is closed.
    pub(super) async fn close_unwanted(&mut self, why: &str) -> bool {
        let Some(opened) = &self.open else { return true };
        let store = opened.store.clone();
        if !store.exports().is_empty() {
            return false;
        }
        self.agent.config.stores.remove(store.uuid());
        self.agent.let_go_of(&store);
        match self.patiently(None, LvstoreReason::DeviceStalled, store.close()).await {
            Err(e) if !store.lvstore().has_failed() || e.kind() == ErrorKind::Busy => {
                self.agent.config.stores.add(store);
                warn!(lvstore = self.name, "not closed yet: {e}");
                return false;
            }
            Err(e) => warn!(lvstore = store.name(), "{why}: closed as a crash would leave it: {e}"),
            Ok(()) => info!(lvstore = store.name(), "{why}: closed; nothing was removed"),
        }
        self.open = None;
        self.agent.changed.notify_one();
        true
    }

    /// Waits for work on the device. If it takes long the status says so, as `doing`, and nobody waits for this store.
    pub(super) async fn patiently<T>(
        &self,
        object: Option<&Lvstore>,
        doing: LvstoreReason,
        work: impl Future<Output = T>,
    ) -> T {
        let mut work = pin!(work);
        let stalled = self.agent.config.timing.stalled;
        let (mut reason, mut wait, mut waited) = (doing, stalled, Duration::ZERO);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(wait) => waited += wait,
            }
            let message = match reason {
                LvstoreReason::DeviceStalled => format!("the device has not answered for {} s", waited.as_secs()),
                _ => format!("this has taken {} s so far", waited.as_secs()),
            };
            warn!(lvstore = self.name, %reason, "{message}");
            self.agent.config.absent.set(&self.name, format!("{reason}: {message}"));
            self.tried.send_replace(true);
            if let Some(object) = object {
                let said = pin!(self.refused(object, Refusal(reason, message)));
                tokio::select! {
                    biased;
                    done = &mut work => return done,
                    said = said => if let Err(e) = said {
                        warn!(lvstore = self.name, "not reported: {e}");
                    }
                }
            }
            (reason, wait) = match reason {
                LvstoreReason::Opening => (LvstoreReason::DeviceStalled, stalled * (OPENING_FACTOR - 1)),
                _ => (reason, FOREVER),
            };
        }
    }

    pub(super) async fn refused(&self, object: &Lvstore, Refusal(reason, message): Refusal) -> Result<(), Failure> {
        self.agent.config.absent.set(&self.name, format!("{reason}: {message}"));
        let mut new = condition::of(object);
        if set(object, &mut new, LvstoreCondition::Ready, false, reason, &message) {
            warn!(lvstore = self.name, %reason, "not open: {message}");
        }
        self.write(object, &new).await?;
        Ok(())
    }

    /// Writes what is new. Answers with the object as it is then.
    pub(super) async fn write(&self, object: &Lvstore, new: &LvstoreStatus) -> Result<Lvstore, Failure> {
        let version = object.metadata.resource_version.as_deref();
        let Some(patch) = status::patch(&object.status, new, version)? else { return Ok(object.clone()) };
        let manager = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        ask(self.api.patch_status(&self.name, &manager, &Patch::Merge(patch))).await
    }
}
