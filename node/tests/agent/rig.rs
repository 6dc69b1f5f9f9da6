//! An agent with the real engine over stores in files, and an API server in this process.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use coppice_controller::local::Quiesce;
use coppice_controller::volume::{Consistency, Result as VolumeResult};
use coppice_engine::{Engine, EngineConfig, LvolInfo, LvolState, OpenStore, Store, Stores};
use coppice_fake_api::{Api, text};
use coppice_node::Absent;
use coppice_node::agent::{Agent, Config, Export, Timing};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

pub const NODE: &str = "node-a";
pub const MIB: u64 = 1 << 20;
/// Of the one lvstore that most tests need.
pub const POOL: &str = "node-a-pool";

/// Nothing is mounted here.
struct Unmounted;

#[async_trait]
impl Quiesce for Unmounted {
    async fn before_snapshot(&self, _: Uuid, _: Consistency) -> VolumeResult<()> {
        Ok(())
    }
    async fn after_snapshot(&self, _: Uuid, _: Consistency) -> VolumeResult<()> {
        Ok(())
    }
}

/// A cluster, and the files of one of its nodes.
pub struct Rig {
    pub api: Api,
    pub dir: Arc<TempDir>,
    pub node: &'static str,
    /// Serves its snapshots to other nodes, and reads theirs.
    pub export: Option<Export>,
}

impl Rig {
    pub fn new() -> Result<Rig> {
        Rig::with_drives(Arc::new(tempfile::tempdir()?))
    }

    /// Another cluster, on the same drives.
    pub fn with_drives(dir: Arc<TempDir>) -> Result<Rig> {
        let api = Api::new();
        let system = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-system" } });
        api.put("namespaces", system);
        Ok(Rig { api, dir, node: NODE, export: None })
    }

    /// A node of a cluster whose nodes read each other's snapshots.
    pub fn beside(api: &Api, node: &'static str) -> Result<Rig> {
        let export = Export {
            address: ([127, 0, 0, 1], 0).into(),
            namespace: "coppice".into(),
            unpin_after: Duration::from_millis(300),
            patience: Duration::from_secs(20),
            hydration_bytes_per_second: None,
        };
        Ok(Rig { api: api.clone(), dir: Arc::new(tempfile::tempdir()?), node, export: Some(export) })
    }

    /// Of agents that start from now on.
    pub fn hydrate_at(&mut self, bytes_per_second: Option<u64>) {
        if let Some(export) = &mut self.export {
            export.hydration_bytes_per_second = bytes_per_second;
        }
    }

    pub fn pool_name(&self) -> String {
        format!("{}-pool", self.node)
    }

    pub fn cluster(&self) -> Uuid {
        let namespace = self.api.get("namespaces", "kube-system").unwrap_or_default();
        Uuid::parse_str(&text(&namespace, "/metadata/uid")).unwrap_or_default()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a Lvstore object on a file of that name; `spec` is added to what it needs.
    pub fn lvstore(&self, store: &str, spec: Value) {
        let mut object = json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": format!("{}-{store}", self.node) },
            "spec": { "node": self.node, "name": store, "device": format!("{store}.img"), "clusterSize": "64Ki" }
        });
        merge(&mut object["spec"], spec);
        self.api.put("lvstores", object);
    }

    /// The lvstore of most tests: a file of 64 MiB.
    pub fn pool(&self) {
        self.lvstore("pool", json!({ "fileSize": "64Mi" }));
    }

    /// Changes the spec of a Lvstore.
    pub fn change(&self, name: &str, spec: Value) -> Result<()> {
        let patched = self.api.patch("lvstores", name, &json!({ "spec": spec }), false);
        patched.map(|_| ()).map_err(|code| anyhow::anyhow!("{name}: {code}"))
    }

    /// Writes a Lvol object of a volume in the pool.
    pub fn volume(&self, name: &str, spec: Value) -> Result<Uuid> {
        let uuid = Uuid::new_v4();
        let pool = self.uuid_of(&self.pool_name()).context("the pool has a UUID")?;
        let mut object = json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": name },
            "spec": {
                "requestName": name, "kind": "Volume", "size": "4Mi", "provisioning": "Thin", "node": self.node,
                "lvstoreUUID": pool, "lvolUUID": uuid, "adopted": false
            }
        });
        merge(&mut object["spec"], spec);
        self.api.put("lvols", object);
        Ok(uuid)
    }

    pub fn uuid_of(&self, lvstore: &str) -> Option<Uuid> {
        Uuid::parse_str(&text(&self.api.get("lvstores", lvstore)?, "/status/uuid")).ok()
    }

    /// `True/Reason`, or what else a condition of an object is; empty without it.
    pub fn condition(&self, plural: &str, name: &str, kind: &str) -> String {
        let object = self.api.get(plural, name).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        found.map(|found| format!("{}/{}", text(found, "/status"), text(found, "/reason"))).unwrap_or_default()
    }

    pub fn message(&self, name: &str, kind: &str) -> String {
        let object = self.api.get("lvstores", name).unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        found.map(|found| text(found, "/message")).unwrap_or_default()
    }

    pub async fn lvstore_is(&self, name: &str, kind: &str, wanted: &str) -> Result<()> {
        eventually(&format!("{name} {kind} {wanted}"), || self.condition("lvstores", name, kind) == wanted)
            .await
            .with_context(|| format!("it is {}", self.api.get("lvstores", name).unwrap_or_default()))
    }

    pub async fn lvol_is(&self, name: &str, kind: &str, wanted: &str) -> Result<()> {
        eventually(&format!("{name} {kind} {wanted}"), || self.condition("lvols", name, kind) == wanted)
            .await
            .with_context(|| format!("it is {}", self.api.get("lvols", name).unwrap_or_default()))
    }

    pub fn start(&self) -> Result<Running> {
        self.start_with(Timing {
            look: Duration::from_millis(150),
            stalled: Duration::from_millis(400),
            api: Duration::from_millis(500),
            tried: Duration::from_secs(3),
            authority: Duration::from_millis(150),
        })
    }

    /// With a token of another node.
    pub fn start_as(&self, node: &str) -> Result<Running> {
        self.start_of(node, Timing { look: Duration::from_millis(150), ..Timing::default() })
    }

    pub fn start_with(&self, timing: Timing) -> Result<Running> {
        self.start_of(self.node, timing)
    }

    fn start_of(&self, token: &str, timing: Timing) -> Result<Running> {
        let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
        let (stores, absent) = (Stores::default(), Absent::default());
        let agent = Agent::new(Config {
            client: self.api.client_as("system:serviceaccount:coppice:coppice-node", token),
            node: self.node.into(),
            engine: Ok(engine.clone()),
            stores: stores.clone(),
            absent: absent.clone(),
            quiesce: Arc::new(Unmounted),
            file_dir: self.dir.path().to_path_buf(),
            export: self.export.clone(),
            timing,
        });
        let stop = watch::Sender::new(false);
        let task = tokio::spawn(agent.clone().run(stop.subscribe()));
        Ok(Running { agent, engine, stores, absent, stop, task })
    }
}

/// An agent at work.
pub struct Running {
    pub agent: Arc<Agent>,
    pub engine: Engine,
    pub stores: Stores,
    pub absent: Absent,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Nothing is closed, nothing more is written.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
        self.engine.shutdown().await;
        // What a process takes with it: a store that is in the list holds who looks for parents in that list.
        for store in self.stores.all().iter() {
            self.stores.remove(store.uuid());
        }
    }

    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        tokio::time::timeout(Duration::from_secs(20), self.task).await.context("the agent ends")??;
        self.agent.stop_serving().await;
        for store in self.stores.all().iter() {
            store.close().await?;
        }
        self.engine.shutdown().await;
        Ok(())
    }

    pub fn store(&self) -> Result<Store> {
        self.stores.all().first().cloned().context("a store is open")
    }

    /// Those that were not deleted.
    pub async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        let lvols = self.store()?.lvols().await?;
        Ok(lvols.into_iter().filter(|lvol| lvol.state != LvolState::Hidden).collect())
    }
}

/// Works on a store that nobody has open.
pub async fn with_store<T>(path: &Path, work: impl AsyncFnOnce(&Store) -> Result<T>) -> Result<T> {
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let store = engine.open_store(path, OpenStore::default()).await?;
    let done = work(&store).await;
    store.close().await?;
    engine.shutdown().await;
    done
}

pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) -> Result<()> {
    for _ in 0..3000 {
        if holds() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bail!("never: {what}")
}

fn merge(into: &mut Value, from: Value) {
    for (key, value) in from.as_object().cloned().unwrap_or_default() {
        into[key] = value;
    }
}
