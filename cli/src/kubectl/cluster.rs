//! The way to the API server, and what its refusals mean to a person.

use super::args::Global;
use anyhow::{Context, Result, anyhow};
use coppice_kube_api::{Lvol, Lvstore};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::time::Duration;

/// Objects read per request.
const PAGE: u32 = 500;
const CONNECT_SECONDS: u64 = 10;
/// How long an answer may take.
const READ_SECONDS: u64 = 60;

pub struct Cluster {
    pub client: Client,
    pub namespace: String,
}

/// As kubectl does: the kubeconfig that is named, or of the environment, or else the account of the pod that we are in.
pub async fn connect(global: &Global) -> Result<Cluster> {
    let options = KubeConfigOptions { context: global.context.clone(), ..KubeConfigOptions::default() };
    let config = match &global.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| format!("read {}", path.display()))?;
            Config::from_custom_kubeconfig(file, &options).await
        }
        None => Config::from_kubeconfig(&options).await,
    };
    let mut config = match (config, Config::incluster()) {
        (Ok(config), _) => config,
        (Err(_), Ok(inside)) if global.kubeconfig.is_none() && global.context.is_none() => inside,
        (Err(e), _) => {
            return Err(anyhow!(
                "no cluster to talk to: {e}; name a kubeconfig with --kubeconfig or KUBECONFIG, and one of its contexts with --context"
            ));
        }
    };
    config.connect_timeout = Some(Duration::from_secs(CONNECT_SECONDS));
    config.read_timeout = Some(Duration::from_secs(READ_SECONDS));
    let namespace = global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
    Ok(Cluster { client: Client::try_from(config).context("use the kubeconfig")?, namespace })
}

impl Cluster {
    pub fn lvols(&self) -> Api<Lvol> {
        Api::all(self.client.clone())
    }

    pub fn lvstores(&self) -> Api<Lvstore> {
        Api::all(self.client.clone())
    }

    pub fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    pub fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::all(self.client.clone())
    }

    /// `VolumeSnapshot`s of a namespace.
    pub fn snapshots(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &snapshot_kind("VolumeSnapshot"))
    }

    /// `VolumeSnapshotContent`s or `VolumeSnapshotClass`es.
    pub fn of_snapshots(&self, kind: &str) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &snapshot_kind(kind))
    }
}

fn snapshot_kind(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", kind))
}

/// All objects, in pages.
pub async fn list<K>(api: &Api<K>) -> kube::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    let mut page = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    loop {
        let list = api.list(&page).await?;
        all.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page.continue_token = Some(token),
            None => return Ok(all),
        }
    }
}

/// All objects of a kind that adds to an answer, and that not everybody may see or every cluster has. Whoever may not see it is
/// told once.
pub async fn list_if_allowed<K>(api: &Api<K>, what: &str) -> Result<Vec<K>>
where
    K: Clone + DeserializeOwned + Debug,
{
    match list(api).await {
        Ok(all) => Ok(all),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(kube::Error::Api(status)) if status.code == 403 => {
            eprintln!("note: you may not list {what}, so the answer is without them");
            Ok(Vec::new())
        }
        Err(e) => Err(refused(e, &format!("list {what}"))),
    }
}

/// A failed request as a sentence that says what to do. `doing`: what it was for.
pub fn refused(error: kube::Error, doing: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 403 => {
            anyhow!("{doing}: you may not ({}); ask who runs the cluster for the right to it", status.message)
        }
        kube::Error::Api(status) if status.code == 401 => {
            anyhow!("{doing}: the API server does not know you ({}): log in again", status.message)
        }
        kube::Error::Api(status) => anyhow!("{doing}: {}", status.message),
        kube::Error::Auth(e) => anyhow!("{doing}: log in again: {e}"),
        other => {
            let cause = chain(&other);
            anyhow!("{doing}: the API server does not answer ({cause}); is this the right cluster? See --context")
        }
    }
}

/// A failed request for our kinds: they may not be there at all.
pub fn refused_ours(error: kube::Error, doing: &str) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 404 => anyhow!(
            "this cluster has no kinds of coppice.io: Coppice is not installed in it (deploy/README.md says how), or this is \
             another cluster than you mean (--context)"
        ),
        other => refused(other, doing),
    }
}

/// An error with its causes; transports say nothing of use in the outermost.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
