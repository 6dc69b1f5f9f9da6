//! The agent: makes this node's drive what the objects of the Kubernetes API say, and says there how it is.
//!
//! ```text
//!   Lvstore objects ──▶ lvstores: find, format, open, close ──▶ Stores ◀── Node service
//!   Lvol objects ─────▶ lvols: create once, grow, remove ────────┘
//! ```
//!
//! It may be killed at any point: what is done next follows from the object and from the drive (`decide`, `plan`), and a lvol
//! has the UUID that its object names, so nothing is made twice. Watches of its own node's objects only; it writes their
//! status and finalizer, each change against the version that it was decided on.

mod decide;
#[cfg(test)]
mod decide_tests;
mod device;
mod lvols;
pub(crate) mod lvstores;
mod plan;
mod status;

use crate::metrics::Wanted;
use coppice_controller::local::{LocalBackend, Quiesce};
use coppice_engine::{Engine, Stores};
use coppice_kube_api::{Lvstore, LvstoreCondition, is_true};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;
use tokio::sync::{Notify, watch};
use tracing::warn;
use uuid::Uuid;

/// Who writes, for the API server's record of fields.
const MANAGER: &str = "coppice-node";

/// What an agent needs.
pub struct Config {
    pub client: Client,
    pub node: String,
    /// Or why this machine cannot run one, with advice.
    pub engine: Result<Engine, String>,
    pub stores: Stores,
    pub quiesce: Arc<dyn Quiesce>,
    /// Where lvstores lie that are files.
    pub file_dir: PathBuf,
}

pub struct Agent {
    config: Config,
    backend: LocalBackend,
    recorder: Recorder,
    /// The Lvstore objects of this node, as the watch has them.
    lvstores: OnceLock<reflector::Store<Lvstore>>,
    /// Lvstores that are lost, with the names of their objects.
    lost: Mutex<BTreeMap<Uuid, String>>,
    /// When the allocated bytes of a lvol were last written.
    allocated: Mutex<HashMap<Uuid, Instant>>,
    /// Wakes the lvols: a store came or went, or a device did.
    changed: Arc<Notify>,
    /// True once every store was tried.
    tried: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn conditions(object: &Lvstore) -> Vec<LvstoreCondition> {
    let said = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    LvstoreCondition::ALL.iter().copied().filter(|condition| is_true(said, *condition)).collect()
}

impl Agent {
    pub fn new(config: Config) -> Arc<Agent> {
        let backend = LocalBackend::new(config.stores.clone(), config.node.clone(), config.quiesce.clone());
        let reporter = Reporter { controller: "coppice.io/node".into(), instance: Some(config.node.clone()) };
        let recorder = Recorder::new(config.client.clone(), reporter);
        Arc::new(Agent {
            config,
            backend,
            recorder,
            lvstores: OnceLock::new(),
            lost: Mutex::default(),
            allocated: Mutex::default(),
            changed: Arc::default(),
            tried: watch::Sender::new(false),
        })
    }

    /// Waits until every lvstore of this node was tried, open or not.
    pub async fn tried(&self) {
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    /// The lvstores that this node should have.
    pub fn wanted(&self) -> Vec<Wanted> {
        let objects = self.lvstores.get().map(reflector::Store::state).unwrap_or_default();
        let wanted =
            objects.iter().map(|object| Wanted { name: object.spec.name.clone(), conditions: conditions(object) });
        wanted.collect()
    }

    /// Works until `stop` is true and what was begun is done.
    pub async fn run(self: Arc<Agent>, stop: watch::Receiver<bool>) {
        tokio::join!(lvstores::run(self.clone(), stop.clone()), lvols::run(self, stop));
    }

    /// An Event, which people see with `kubectl describe`. One that cannot be written is logged.
    async fn event(&self, about: &ObjectReference, reason: &str, action: &str, note: String) {
        let event = Event {
            type_: EventType::Warning,
            reason: reason.into(),
            note: Some(note.clone()),
            action: action.into(),
            secondary: None,
        };
        let name = about.name.as_deref().unwrap_or_default();
        warn!(object = name, reason, "{note}");
        if let Err(e) = self.recorder.publish(&event, about).await {
            warn!(object = name, reason, "the Event was not written: {e}");
        }
    }
}
