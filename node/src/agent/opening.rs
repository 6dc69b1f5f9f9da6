//! From a Lvstore object to an open store, as `plan` says. The API server is asked afresh before a device is formatted or a
//! store taken over.

use super::condition::{self, not_bad, set};
use super::device;
use super::failure::{Failure, Refusal, ask};
use super::keeper::{Keeper, Opened};
use super::lock;
use super::memory::Note;
use super::plan::{OnDevice, Plan, plan};
use coppice_controller::local::LocalBackend;
use coppice_controller::volume::Backend;
use coppice_engine::device::on_thread;
use coppice_engine::{CreateStore, Engine, ErrorKind, OpenStore, Store, StoreInfo, Stores};
use coppice_kube_api::{ByteSize, Lvstore, LvstoreCondition, LvstoreReason, Place};
use kube::ResourceExt;
use std::path::Path;
use tracing::{info, warn};
use uuid::Uuid;

use LvstoreReason::{DeviceStalled, Formatting, Opening};

impl Keeper {
    /// The store, open and with nothing half done in it. `None`: there is none to open, and the status says why.
    pub(super) async fn open_for(&self, engine: &Engine, object: &Lvstore) -> Result<Option<Opened>, Failure> {
        let fresh = ask(self.api.get_opt(&self.name)).await?.filter(|now| now.uid() == object.uid());
        let Some(object) = fresh else { return Ok(None) };
        let cluster = self.agent.cluster().await?;
        let spec = &object.spec;
        let resolved = device::resolve(spec.place(), &self.agent.config.file_dir);
        let (path, exists) = self.patiently(Some(&object), DeviceStalled, resolved).await?;
        let mut there = match exists {
            true => self.patiently(Some(&object), DeviceStalled, device::look(engine, &path)).await?,
            false => OnDevice::NoFile,
        };
        let known = object.status.as_ref().and_then(|status| status.uuid);
        let mut planned = plan(spec, known, cluster, &there);
        if planned == Plan::Count
            && let OnDevice::Store { lvols, .. } = &mut there
        {
            *lvols = Some(self.patiently(Some(&object), Opening, device::count(engine, &path)).await?);
            planned = plan(spec, known, cluster, &there);
        }
        let object = match planned {
            Plan::Open | Plan::Count => object,
            Plan::Take(uuid) => self.know(&object, uuid).await?,
            Plan::Format(file_size) => {
                let how = how_to_format(&object, &path, file_size, cluster).await?;
                let made = self.patiently(Some(&object), Formatting, format(engine, &path, how)).await?;
                info!(lvstore = made.name, path = %path.display(), "formatted");
                self.know(&object, made.uuid).await?
            }
            Plan::Refuse(reason, message) => return Err(Refusal(reason, message).into()),
            Plan::Lost(reason, message) => {
                if let Some(uuid) = known {
                    lock(&self.agent.lost).insert(uuid, object.name_any());
                    self.agent.changed.notify_one();
                }
                self.bad(&object, LvstoreCondition::Lost, reason, message).await?;
                return Ok(None);
            }
            Plan::Foreign(reason, message) => {
                if let Some(uuid) = known {
                    lock(&self.agent.lost).remove(&uuid);
                    self.agent.changed.notify_one();
                }
                self.bad(&object, LvstoreCondition::Foreign, reason, message).await?;
                return Ok(None);
            }
        };
        let opened = self.patiently(Some(&object), Opening, self.open_store(engine, &path, cluster)).await?;
        Ok(Some(Opened::new(object.uid().unwrap_or_default(), opened, false)))
    }

    /// Opens the store of a note, and only that: nothing is formatted, taken over or made this cluster's.
    pub(super) async fn open_noted(&self, engine: &Engine, note: &Note) -> Result<Store, Refusal> {
        let resolved = device::resolve(Place::of(&note.device), &self.agent.config.file_dir);
        let (path, exists) = self.patiently(None, DeviceStalled, resolved).await?;
        let there = match exists {
            true => self.patiently(None, DeviceStalled, device::look(engine, &path)).await?,
            false => OnDevice::NoFile,
        };
        match there {
            OnDevice::Store { uuid, owner, .. } if uuid == note.store && owner == Some(note.cluster) => {
                self.patiently(None, Opening, self.open_store(engine, &path, note.cluster)).await
            }
            _ => {
                let message = format!("{} does not hold the lvstore {} as it did", note.device, note.store);
                Err(Refusal(LvstoreReason::OpenFailed, message))
            }
        }
    }

    /// Opens a store that is or becomes this cluster's, and ends what was left half done, before anything else can use it.
    async fn open_store(&self, engine: &Engine, path: &Path, cluster: Uuid) -> Result<Store, Refusal> {
        let how = OpenStore { external: self.agent.access.clone(), ..OpenStore::default() };
        let store = engine.open_store(path, how).await.map_err(device::failed)?;
        if let Err(e) = belong(&store, cluster).await {
            if let Err(e) = store.close().await {
                warn!(lvstore = store.name(), "not closed: {e}");
            }
            return Err(device::failed(e));
        }
        let config = &self.agent.config;
        self.agent.forget_published(store.uuid()).await;
        let alone = Stores::from(vec![store.clone()]);
        let backend = LocalBackend::new(alone, config.node.clone(), config.quiesce.clone());
        if let Err(e) = backend.recover().await {
            warn!(lvstore = store.name(), "what an unfinished clone left stays: {e}");
        }
        Ok(store)
    }

    /// Writes the UUID down, before anything uses the store.
    async fn know(&self, object: &Lvstore, uuid: Uuid) -> Result<Lvstore, Failure> {
        let mut new = condition::of(object);
        new.uuid = Some(uuid);
        self.write(object, &new).await
    }

    async fn bad(
        &self,
        object: &Lvstore,
        what: LvstoreCondition,
        reason: LvstoreReason,
        message: String,
    ) -> Result<(), Failure> {
        self.agent.config.absent.set(&self.name, format!("{reason}: {message}"));
        let mut new = condition::of(object);
        not_bad(object, &mut new, Some(what));
        set(object, &mut new, LvstoreCondition::Ready, false, reason, &message);
        if set(object, &mut new, what, true, reason, &message) {
            warn!(lvstore = self.name, "{what}: {message}");
        }
        self.write(object, &new).await?;
        Ok(())
    }
}

/// Makes the store this cluster's. One that cannot be written stays whose it is.
async fn belong(store: &Store, cluster: Uuid) -> coppice_engine::Result<()> {
    let was = store.info().await?.owner;
    if was == Some(cluster) {
        return Ok(());
    }
    match store.set_owner(Some(cluster)).await {
        Ok(_) => info!(lvstore = store.name(), ?was, "this cluster's now"),
        Err(e) if matches!(e.kind(), ErrorKind::ReadOnly | ErrorKind::NoSpace | ErrorKind::NoMetadataSpace) => {
            warn!(lvstore = store.name(), "it does not carry this cluster's identity: {e}");
        }
        Err(e) => return Err(e),
    }
    Ok(())
}

async fn how_to_format(
    object: &Lvstore,
    path: &Path,
    file_size: Option<u64>,
    cluster: Uuid,
) -> Result<CreateStore, Failure> {
    let cluster_size = object.spec.cluster_size.map(ByteSize::bytes).and_then(|size| u32::try_from(size).ok());
    // A file of no size is one that was made and not grown before we were killed.
    let path = path.to_path_buf();
    let empty = on_thread(move || std::fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == 0)).await?;
    let file_size = file_size.or(object.spec.file_size.map(ByteSize::bytes).filter(|_| empty));
    Ok(CreateStore {
        file_size,
        name: object.spec.name.clone(),
        cluster_size,
        max_size: None,
        block_size: None,
        force: false,
        owner: Some(cluster),
    })
}

async fn format(engine: &Engine, path: &Path, how: CreateStore) -> Result<StoreInfo, Refusal> {
    engine.create_store(path, how).await.map_err(device::failed)
}
