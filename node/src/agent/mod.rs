//! The agent: makes this node's drive what the objects of the Kubernetes API say, and says there how it is.
//!
//! ```text
//!   Lvstore objects ──▶ lvstores: find, format, open, close ──▶ Stores ◀── Node service
//!   Lvol objects ─────▶ lvols: create once, grow, remove ────────┘
//!   other nodes ◀─────▶ outside: their snapshots for our lvols, ours for theirs
//! ```
//!
//! At a start without the API server the stores that were open before are opened all the same (`memory`), so that pods which
//! kubelet knows get their volumes.
//!
//! It may be killed at any point: what is done next follows from the object and from the drive (`decide`, `plan`), and a lvol
//! has the UUID that its object names, so nothing is made twice. Watches of its own node's objects only; it writes their
//! status and finalizer, each change against the version that it was decided on.

pub(crate) mod condition;
mod decide;
#[cfg(test)]
mod decide_tests;
mod device;
mod failure;
mod keeper;
mod lvols;
mod lvstores;
mod memory;
mod opening;
mod orphans;
mod outside;
mod plan;
mod report;
mod status;
mod turns;

pub use outside::Export;

use crate::Absent;
use crate::metrics::Wanted;
use crate::remote::{Parents, Whereabouts};
use coppice_controller::local::{LocalBackend, Quiesce};
use coppice_engine::external::Access;
use coppice_engine::{Engine, Stores};
use coppice_kube_api::{Lvol, Lvstore, LvstoreCondition, is_true};
use coppice_nbd::tls::Certificates;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector;
use kube::{Api, Client};
use memory::Memory;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OnceCell, watch};
use tracing::{info, warn};
use uuid::Uuid;

/// Who writes, for the API server's record of fields.
const MANAGER: &str = "coppice-node";
/// The namespace whose UID is the cluster's identity.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// What an agent needs.
pub struct Config {
    pub client: Client,
    pub node: String,
    /// Or why this machine cannot run one, with advice.
    pub engine: Result<Engine, String>,
    pub stores: Stores,
    /// What is not in `stores`, for who looks for a volume.
    pub absent: Absent,
    pub quiesce: Arc<dyn Quiesce>,
    /// Where lvstores lie that are files, and a note of those that are open.
    pub file_dir: PathBuf,
    /// How other nodes read our snapshots, and we theirs; `None`: not at all.
    pub export: Option<Export>,
    pub timing: Timing,
}

/// How long the agent waits for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between two looks at a store.
    pub look: Duration,
    /// For a device, until its store is reported as stalled.
    pub stalled: Duration,
    /// For the API server at the start, until the stores that were open before are opened without it.
    pub api: Duration,
    /// For all stores, until the volumes of those that are open can be used.
    pub tried: Duration,
    /// Between two looks at the certificates of the authority.
    pub authority: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        let seconds = Duration::from_secs;
        let authority = seconds(60);
        Timing { look: seconds(10), stalled: seconds(10), api: seconds(3), tried: seconds(20), authority }
    }
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
    /// All Lvol objects of this node, once they have been listed.
    objects: OnceLock<reflector::Store<Lvol>>,
    /// Wakes the lvols: a store came or went, or a device did.
    changed: Arc<Notify>,
    /// Snapshots between nodes.
    outside: outside::Outside,
    whereabouts: Whereabouts,
    /// Where lvstores of other nodes are served, as far as that was found out.
    known: outside::Known,
    /// Lvols that wait for snapshots of others.
    turns: turns::Turns,
    /// How stores are opened: with what finds the parents of their lvols.
    access: Access,
    /// Wakes the keepers: there is something new to report.
    served: Notify,
    cluster: OnceCell<Uuid>,
    memory: Memory,
    /// True once volumes can be used: every store was tried, or waiting for one makes no sense.
    tried: watch::Sender<bool>,
    /// True once that is so, and the API server has said which stores there are.
    listed: watch::Sender<bool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn access(config: &Config, whereabouts: Whereabouts, certificates: Option<Certificates>) -> Access {
    let shard = config.engine.as_ref().ok().and_then(|engine| engine.shards().first().cloned());
    let remote = certificates.map(|certificates| (whereabouts, certificates));
    let parents = shard.map(|shard| {
        let runtime = tokio::runtime::Handle::current();
        Arc::new(Parents::new(config.stores.clone(), shard, BTreeMap::new(), remote, runtime))
    });
    let access = Access { resolver: parents.map(|parents| parents as _), ..Access::default() };
    match &config.export {
        Some(export) => Access {
            patience: export.patience,
            hydration_bytes_per_second: export.hydration_bytes_per_second,
            ..access
        },
        None => access,
    }
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
        let memory = Memory::new(&config.file_dir);
        let certificates = config.export.as_ref().and_then(|_| {
            outside::placeholder(&config.node).map_err(|e| warn!("other nodes are not reached: {e}")).ok()
        });
        Arc::new_cyclic(|this| Agent {
            whereabouts: outside::whereabouts(this.clone()),
            access: access(&config, outside::whereabouts(this.clone()), certificates.clone()),
            outside: outside::Outside::new(config.export.clone(), certificates),
            known: outside::Known::default(),
            turns: turns::Turns::default(),
            served: Notify::new(),
            memory,
            config,
            backend,
            recorder,
            lvstores: OnceLock::new(),
            lost: Mutex::default(),
            allocated: Mutex::default(),
            objects: OnceLock::new(),
            changed: Arc::default(),
            cluster: OnceCell::new(),
            tried: watch::Sender::new(false),
            listed: watch::Sender::new(false),
        })
    }

    /// This cluster's identity: the UID of the namespace kube-system, which lives as long as the cluster.
    async fn cluster(&self) -> Result<Uuid, failure::Failure> {
        let ask = async || {
            let namespaces: Api<Namespace> = Api::all(self.config.client.clone());
            let uid = failure::ask(namespaces.get(SYSTEM_NAMESPACE)).await?.metadata.uid.unwrap_or_default();
            Uuid::parse_str(&uid).map_err(|_| failure::Failure::Identity(uid))
        };
        self.cluster.get_or_try_init(ask).await.copied()
    }

    /// Waits until every lvstore of this node was tried, open or not; not for ever for one that hangs.
    pub async fn tried(&self) {
        let _ = self.tried.subscribe().wait_for(|tried| *tried).await;
    }

    async fn listed(&self) {
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
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
        let others = outside::run(self.clone());
        let own = async { tokio::join!(lvstores::run(self.clone(), stop.clone()), lvols::run(self.clone(), stop)) };
        tokio::select! {
            _ = own => {}
            () = others => {}
        }
    }

    /// An Event, which people see with `kubectl describe`. One that cannot be written is logged.
    async fn event(&self, about: &ObjectReference, reason: &str, action: &str, note: String) {
        self.event_of(EventType::Warning, about, reason, action, note).await;
    }

    async fn event_of(&self, type_: EventType, about: &ObjectReference, reason: &str, action: &str, note: String) {
        let event =
            Event { type_, reason: reason.into(), note: Some(note.clone()), action: action.into(), secondary: None };
        let name = about.name.as_deref().unwrap_or_default();
        match event.type_ {
            EventType::Warning => warn!(object = name, reason, "{note}"),
            EventType::Normal => info!(object = name, reason, "{note}"),
        }
        if let Err(e) = self.recorder.publish(&event, about).await {
            warn!(object = name, reason, "the Event was not written: {e}");
        }
    }
}
