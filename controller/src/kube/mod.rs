//! The backend over the objects of the Kubernetes API: what is wanted is written down, the agent of the node does it, and
//! the status comes back by watch.
//!
//! ```text
//!   create:  POST Lvol ──▶ agent makes the lvol ──▶ Ready ──▶ answer
//!              │ the name is taken: go on with what is there      └ NoSpace: reclaim, delete, gone, answer
//!   delete:  reclaim: Delete ──▶ DELETE ──▶ agent removes the lvol, drops the finalizer ──▶ gone ──▶ answer
//!                                  └ the node is gone: tombstone, and we drop the finalizer
//! ```
//!
//! The object is the lock, so any number of replicas may work at once, and each may be killed at any point: the retry finds
//! the object. Caches only save reads. Where being out of date would be wrong, a write or a fresh read decides.
//!
//! * `cache`: objects kept up to date by a watch.
//! * `translate`, `standing`, `judge`: what objects mean; pure.
//! * `make`, `elsewhere`, `remove`, `grow`: the ways in which objects change.
//! * `authority`: who may show snapshots to whom: certificates for the agents.
//! * `background`, `orphans`, `lease`: what nobody asks for, and who does it.
//! * `metrics`: what Prometheus is told.

pub mod authority;
mod background;
mod cache;
mod elsewhere;
mod grow;
mod judge;
mod lease;
mod make;
pub mod metrics;
mod orphans;
mod remove;
mod standing;
mod translate;

#[cfg(test)]
mod tests;

pub use background::Background;
pub use translate::{annotations, kept};

use crate::volume::{Backend, Consistency, Error, Pool, Result, Source};
use async_trait::async_trait;
use cache::Cache;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, ErrorKind, LvolInfo};
use coppice_kube_api::{Lvol, Lvstore};
use coppice_proto::{attributes, calls};
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};
use standing::{NodeState, Standing, Underway};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use translate::lvol_info;
use uuid::Uuid;

/// How long a call may take whose caller does not say.
const CALL_SECONDS: u64 = 50;
/// What is left of the caller's time for the answer, milliseconds.
const ANSWER_MS: u64 = 1500;
/// How often what a watch should have said is asked for.
const DOUBT_SECONDS: u64 = 5;
/// Objects read per request where all are read.
const PAGE: u32 = 500;

pub struct KubeBackend {
    client: Client,
    lvstores: Arc<Cache<Lvstore>>,
    lvols: Arc<Cache<Lvol>>,
    nodes: Arc<Cache<Node>>,
    underway: Mutex<Vec<Underway>>,
    // The watches end with us.
    _watches: JoinSet<()>,
}

/// A failed request, with what it was for. Nobody knows whether the API server carried it out.
fn failed(doing: &str, error: &kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => Error::MayExist(format!("{doing}: {}", status.message)),
        other => Error::MayExist(format!("{doing}: the API server does not answer: {other}")),
    }
}

/// When the running call has to answer.
fn deadline() -> Instant {
    let now = Instant::now();
    match calls::deadline() {
        Some(deadline) => deadline.checked_sub(Duration::from_millis(ANSWER_MS)).unwrap_or(now).max(now),
        None => now + Duration::from_secs(CALL_SECONDS),
    }
}

/// A time for a second look, not beyond the deadline.
fn doubt(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + Duration::from_secs(DOUBT_SECONDS))
}

impl KubeBackend {
    /// Begins to watch. Answers at once; [`KubeBackend::synced`] says when it can be used.
    pub fn start(client: Client) -> KubeBackend {
        let mut watches = JoinSet::new();
        KubeBackend {
            lvstores: Cache::start(Api::all(client.clone()), &mut watches, |lvstore| {
                lvstore.metadata.managed_fields = None;
            }),
            lvols: Cache::start(Api::all(client.clone()), &mut watches, |lvol| lvol.metadata.managed_fields = None),
            nodes: Cache::start(Api::all(client.clone()), &mut watches, |node: &mut Node| {
                node.metadata.managed_fields = None;
                node.metadata.annotations = None;
                if let Some(status) = node.status.as_mut() {
                    status.images = None;
                }
            }),
            client,
            underway: Mutex::default(),
            _watches: watches,
        }
    }

    pub fn is_synced(&self) -> bool {
        self.lvstores.is_synced() && self.lvols.is_synced() && self.nodes.is_synced()
    }

    pub async fn synced(&self) {
        self.lvstores.synced().await;
        self.lvols.synced().await;
        self.nodes.synced().await;
    }

    fn lvol_api(&self) -> Api<Lvol> {
        Api::all(self.client.clone())
    }

    fn node(&self, name: &str) -> NodeState {
        standing::node_state(self.nodes.get(name).as_deref())
    }

    /// Before the first lists are complete nothing can be told.
    fn standings(&self) -> Result<Vec<Standing>> {
        if !self.is_synced() {
            return Err(Error::MayExist("the controller has not read the cluster's objects yet: try again".into()));
        }
        let underway = self.underway.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(standing::standings(&self.lvstores.all(), &self.lvols.all(), |name| self.node(name), &underway))
    }

    fn standing(&self, key: &str) -> Result<Standing> {
        let found = self.standings()?.into_iter().find(|standing| standing.pool.key == key);
        found.ok_or_else(|| Error::MayExist(format!("the lvstore {key} is gone: try again")))
    }

    /// The object of a lvol. A cache that is behind must not make a volume disappear (it would be reported as deleted), so
    /// what it does not have is asked for. That reads all objects, and is rare: ids come from objects that exist.
    async fn find(&self, id: Uuid) -> Result<Option<Arc<Lvol>>> {
        let known = self.lvols.look(|all| all.values().find(|lvol| lvol.spec.lvol_uuid == id).cloned());
        if known.is_some() {
            return Ok(known);
        }
        let mut page = ListParams::default().limit(PAGE);
        loop {
            let list = self.lvol_api().list(&page).await.map_err(|e| failed("look for the volume", &e))?;
            if let Some(found) = list.items.into_iter().find(|lvol| lvol.spec.lvol_uuid == id) {
                return Ok(Some(Arc::new(found)));
            }
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page.continue_token = Some(token),
                None => return Ok(None),
            }
        }
    }

    async fn existing(&self, id: Uuid) -> Result<Arc<Lvol>> {
        let missing = || coppice_engine::Error::new(ErrorKind::NotFound, format!("there is no lvol {id}"));
        Ok(self.find(id).await?.ok_or_else(missing)?)
    }
}

#[async_trait]
impl Backend for KubeBackend {
    async fn pools(&self) -> Result<Vec<Pool>> {
        Ok(self.standings()?.into_iter().map(|standing| standing.pool).collect())
    }

    /// Without those on their way out: their names are free as soon as they are gone, and creation waits for that.
    async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        self.standings()?;
        let stay = |lvol: &&Arc<Lvol>| !judge::is_leaving(lvol);
        Ok(self.lvols.all().iter().filter(stay).map(|lvol| lvol_info(lvol)).collect())
    }

    async fn lvol(&self, id: Uuid) -> Result<Option<LvolInfo>> {
        Ok(self.find(id).await?.map(|lvol| lvol_info(&lvol)))
    }

    async fn create(&self, lvstore: &str, how: CreateLvol) -> Result<LvolInfo> {
        self.make_empty(lvstore, how).await
    }

    async fn snapshot(&self, how: CreateSnapshot, consistency: Consistency) -> Result<LvolInfo> {
        self.make_snapshot(how, consistency).await
    }

    async fn clone_lvol(&self, source: Source, how: CreateClone) -> Result<LvolInfo> {
        self.make_clone(source, how).await
    }

    fn clones_elsewhere(&self) -> bool {
        true
    }

    async fn clone_elsewhere(&self, lvstore: &str, source: Source, how: CreateClone) -> Result<LvolInfo> {
        self.make_elsewhere(lvstore, source, how).await
    }

    async fn made(&self, id: Uuid) -> Result<LvolInfo> {
        let lvol = self.find(id).await?;
        let lvol = lvol.ok_or_else(|| Error::MayExist(format!("the lvol {id} is gone again: try again")))?;
        self.until_made(&lvol, deadline()).await
    }

    async fn make_way(&self, id: Uuid) -> Result<bool> {
        self.remove_unused(id).await
    }

    async fn delete(&self, id: Uuid, _deferred: bool) -> Result<()> {
        self.remove_for_good(id).await
    }

    async fn resize(&self, id: Uuid, size: u64) -> Result<LvolInfo> {
        self.grow(id, size).await
    }

    /// Objects know one attribute that changes: the size that was asked for.
    async fn set_attributes(&self, id: Uuid, set: Vec<(String, Option<String>)>) -> Result<LvolInfo> {
        let mut lvol = lvol_info(&*self.existing(id).await?);
        for (key, value) in set {
            let size = value.filter(|_| key == attributes::CSI_SIZE).and_then(|text| text.parse().ok());
            let size = size.ok_or_else(|| Error::Invalid(format!("the attribute {key} cannot be set")))?;
            lvol = self.grow(id, size).await?;
        }
        Ok(lvol)
    }
}
