//! What nobody asks for, by one replica at a time: letting go of objects whose node is gone, and finding what has no owner.

use super::authority::Authority;
use super::lease::{Leadership, RENEW_SECONDS};
use super::{KubeBackend, judge, metrics, orphans};
use coppice_kube_api::Lvol;
use coppice_proto::exposition::Exposition;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// How often owners are looked for: it reads all PersistentVolumes and VolumeSnapshotContents.
const COLLECT_SECONDS: u64 = 600;
/// The most time a removal by the collector may take.
const REMOVE_SECONDS_MAX: u64 = 10;

#[derive(Clone)]
pub struct Background {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    backend: Arc<KubeBackend>,
    namespace: String,
    me: String,
    leads: AtomicBool,
    /// How many there were when they were last looked for.
    orphans: Mutex<Option<u64>>,
}

impl Background {
    pub fn new(client: Client, backend: Arc<KubeBackend>, namespace: String, me: String) -> Background {
        let (leads, orphans) = (AtomicBool::new(false), Mutex::default());
        Background { inner: Arc::new(Inner { client, backend, namespace, me, leads, orphans }) }
    }

    pub fn metrics(&self, out: &mut Exposition) {
        let inner = &self.inner;
        let leads = inner.leads.load(Ordering::Relaxed);
        let orphans = inner.orphans().filter(|_| leads);
        metrics::expose(out, leads, orphans, &inner.backend.lvstores.all());
    }

    /// Works until it is told to stop, and then lets another replica go on.
    pub async fn run(self, mut stopped: watch::Receiver<bool>) {
        let inner = &self.inner;
        let mut leadership = Leadership::new(inner.client.clone(), &inner.namespace, inner.me.clone());
        let work = async {
            inner.backend.synced().await;
            let mut collected: Option<Instant> = None;
            loop {
                let leads = leadership.hold().await.unwrap_or_else(|e| {
                    warn!("the lease cannot be held: {e}");
                    false
                });
                if leads != inner.leads.swap(leads, Ordering::Relaxed) {
                    info!(leads, "background work");
                    collected = None;
                    *inner.orphans() = None;
                }
                // Cut short, so that the lease is renewed in time; the next round goes on.
                let round = async {
                    inner.bury_all().await;
                    inner.tidy().await;
                    if collected.is_none_or(|at| at.elapsed() >= Duration::from_secs(COLLECT_SECONDS)) {
                        match inner.collect().await {
                            Ok(()) => collected = Some(Instant::now()),
                            Err(e) => warn!("owners cannot be looked for: {e}"),
                        }
                    }
                };
                if leads {
                    let _ = tokio::time::timeout(Duration::from_secs(REMOVE_SECONDS_MAX), round).await;
                }
                tokio::time::sleep(Duration::from_secs(RENEW_SECONDS)).await;
            }
        };
        let authority = Authority::new(inner.client.clone(), &inner.namespace);
        tokio::select! {
            () = work => {}
            () = authority.run(&inner.leads) => {}
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        if inner.leads.swap(false, Ordering::Relaxed)
            && let Err(e) = leadership.give_up().await
        {
            debug!("the lease runs out by itself: {e}");
        }
    }
}

impl Inner {
    fn orphans(&self) -> MutexGuard<'_, Option<u64>> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects that are being deleted and whose node is gone.
    async fn bury_all(&self) {
        for lvol in self.backend.lvols.all().iter().filter(|lvol| judge::is_leaving(lvol)) {
            let buried = async {
                if self.backend.node_is_gone(&lvol.spec.node).await? {
                    self.backend.bury(&lvol.name_any(), lvol.uid().as_deref()).await?;
                }
                Ok::<_, crate::volume::Error>(())
            };
            if let Err(e) = buried.await {
                warn!(lvol = %lvol.spec.lvol_uuid, "stays for now: {e}");
            }
        }
    }

    /// Snapshots that stood between a volume and its clone on another node, and are of no more use.
    async fn tidy(&self) {
        for between in self.backend.useless_between(jiff::Timestamp::now()) {
            let deadline = Instant::now() + Duration::from_secs(REMOVE_SECONDS_MAX);
            if let Err(e) = self.backend.remove(&between, deadline).await {
                warn!(snapshot = %between.spec.lvol_uuid, "not removed yet: {e}");
            }
        }
    }

    /// Looks for objects without an owner. Volumes first, then the lists: who is made meanwhile is not missed by both.
    async fn collect(&self) -> Result<(), kube::Error> {
        let lvols = self.backend.lvols.all();
        let owners = self.owners().await?;
        let now = jiff::Timestamp::now();
        let found = lvols.iter().filter_map(|lvol| Some((lvol, orphans::verdict(lvol, &owners, now)?)));
        let found: Vec<_> = found.collect();
        *self.orphans() = u64::try_from(found.len()).ok();
        for (lvol, verdict) in found {
            self.report(lvol, verdict).await;
            if verdict == orphans::Verdict::NeverUsed {
                info!(lvol = %lvol.spec.lvol_uuid, object = lvol.name_any(), "never used by anybody: removed");
                let deadline = Instant::now() + Duration::from_secs(REMOVE_SECONDS_MAX);
                if let Err(e) = self.backend.remove(lvol, deadline).await {
                    warn!(lvol = %lvol.spec.lvol_uuid, "not removed yet: {e}");
                }
            }
        }
        Ok(())
    }

    async fn report(&self, lvol: &Lvol, verdict: orphans::Verdict) {
        let reporter = Reporter { controller: "coppice-controller".into(), instance: Some(self.me.clone()) };
        let event = Event {
            type_: EventType::Warning,
            reason: "Orphaned".into(),
            note: Some(verdict.note().into()),
            action: "Collect".into(),
            secondary: None,
        };
        let published = Recorder::new(self.client.clone(), reporter).publish(&event, &lvol.object_ref(&())).await;
        if let Err(e) = published {
            warn!(lvol = %lvol.spec.lvol_uuid, "no event written: {e}");
        }
    }

    /// Handles and names that something in the cluster knows.
    async fn owners(&self) -> Result<orphans::Owners, kube::Error> {
        let mut owners = orphans::Owners::default();
        let volumes: Api<PersistentVolume> = Api::all(self.client.clone());
        for volume in pages(&volumes).await? {
            owners.names.insert(volume.name_any());
            if let Some(csi) = volume.spec.and_then(|spec| spec.csi) {
                owners.handles.insert(csi.volume_handle);
            }
        }
        // A claim that waits for its volume: the provisioner names the volume by the claim's UID.
        let claims: Api<PersistentVolumeClaim> = Api::all(self.client.clone());
        let claims = claims.list_metadata(&ListParams::default()).await?;
        owners.names.extend(claims.items.iter().filter_map(ResourceExt::uid).map(|uid| format!("pvc-{uid}")));
        let kind = GroupVersionKind::gvk("snapshot.storage.k8s.io", "v1", "VolumeSnapshotContent");
        let contents: Api<DynamicObject> = Api::all_with(self.client.clone(), &ApiResource::from_gvk(&kind));
        match pages(&contents).await {
            Ok(contents) => {
                for content in contents {
                    let text = |path: &str| content.data.pointer(path).and_then(|value| value.as_str());
                    let handles = [text("/status/snapshotHandle"), text("/spec/source/snapshotHandle")];
                    owners.handles.extend(handles.into_iter().flatten().map(String::from));
                    // The snapshotter names the snapshot by the VolumeSnapshot's UID.
                    let uid = text("/spec/volumeSnapshotRef/uid").map(|uid| format!("snapshot-{uid}"));
                    owners.names.extend(uid);
                }
            }
            // A cluster without snapshots.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(e) => return Err(e),
        }
        Ok(owners)
    }
}

async fn pages<K>(api: &Api<K>) -> Result<Vec<K>, kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut page = ListParams::default().limit(super::PAGE);
    let mut out = Vec::new();
    let mut tokens = BTreeSet::new();
    loop {
        let list = api.list(&page).await?;
        out.extend(list.items);
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) if tokens.insert(token.clone()) => page.continue_token = Some(token),
            _ => return Ok(out),
        }
    }
}
