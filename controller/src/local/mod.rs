//! The backend over lvstores that are open in this process.

mod clone;

use crate::volume::{Backend, Consistency, Error, Pool, Result, Source};
use async_trait::async_trait;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, ErrorKind, LvolInfo, Store, StoreInfo, Stores};
use coppice_proto::attributes::inherit_again;
use std::sync::Arc;
use tracing::warn;
use uuid::Uuid;

/// Makes the file system on a mounted lvol hold still, or at least write itself out, around a snapshot.
#[async_trait]
pub trait Quiesce: Send + Sync + 'static {
    /// Nothing to do for lvols that are not mounted here.
    async fn before_snapshot(&self, lvol: Uuid, how: Consistency) -> Result<()>;
    /// Always called after a `before_snapshot` that succeeded.
    async fn after_snapshot(&self, lvol: Uuid, how: Consistency) -> Result<()>;
}

/// Lvstores of this process, all on one node.
pub struct LocalBackend {
    stores: Stores,
    node: String,
    quiesce: Arc<dyn Quiesce>,
}

impl LocalBackend {
    pub fn new(stores: Stores, node: String, quiesce: Arc<dyn Quiesce>) -> Self {
        LocalBackend { stores, node, quiesce }
    }

    async fn find(&self, id: Uuid) -> Result<Option<(Store, LvolInfo)>> {
        for store in self.stores.all().iter() {
            match store.lvol(id).await {
                Ok(lvol) => return Ok(Some((store.clone(), lvol))),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    async fn clone_snapshot(&self, how: CreateClone) -> Result<LvolInfo> {
        Ok(self.home(how.snapshot).await?.clone_snapshot(how).await?)
    }

    async fn home(&self, id: Uuid) -> Result<Store> {
        match self.find(id).await? {
            Some((store, _)) => Ok(store),
            None => Err(Error::NotFound(format!("there is no lvol {id}"))),
        }
    }
}

fn pool(info: StoreInfo, node: String) -> Pool {
    let cluster_size = u64::from(info.cluster_size);
    let clusters = info.total_clusters.saturating_sub(info.metadata_clusters);
    Pool {
        key: info.name.clone(),
        name: info.name,
        node,
        cluster_size,
        largest: clusters.saturating_mul(cluster_size),
        free: info.free_clusters.saturating_mul(cluster_size),
        committed: 0,
        open: !info.read_only && info.failed.is_none(),
    }
}

#[async_trait]
impl Backend for LocalBackend {
    async fn pools(&self) -> Result<Vec<Pool>> {
        let stores = self.stores.all();
        let mut pools = Vec::with_capacity(stores.len());
        for store in stores.iter() {
            pools.push(pool(store.info().await?, self.node.clone()));
        }
        Ok(pools)
    }

    async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        let mut lvols = Vec::new();
        for store in self.stores.all().iter() {
            lvols.extend(store.lvols().await?);
        }
        Ok(lvols)
    }

    async fn lvol(&self, id: Uuid) -> Result<Option<LvolInfo>> {
        Ok(self.find(id).await?.map(|(_, lvol)| lvol))
    }

    async fn create(&self, lvstore: &str, how: CreateLvol) -> Result<LvolInfo> {
        let stores = self.stores.all();
        let store = stores.iter().find(|store| store.name() == lvstore);
        let store = store.ok_or_else(|| Error::NotFound(format!("there is no lvstore {lvstore}")))?;
        Ok(store.create_lvol(how).await?)
    }

    async fn snapshot(&self, how: CreateSnapshot, consistency: Consistency) -> Result<LvolInfo> {
        let store = self.home(how.lvol).await?;
        // By itself, so that nothing stays held still when the caller goes away.
        let work = tokio::spawn(snapshot(store, self.quiesce.clone(), how, consistency));
        work.await.map_err(|e| Error::MayExist(format!("the snapshot was cut off: {e}")))?
    }

    async fn clone_lvol(&self, source: Source, how: CreateClone) -> Result<LvolInfo> {
        match source {
            Source::Snapshot(_) => self.clone_snapshot(how).await,
            Source::Volume(_) => clone::clone_volume(self, how).await,
        }
    }

    async fn recover(&self) -> Result<usize> {
        clone::sweep(self).await
    }

    async fn delete(&self, id: Uuid, deferred: bool) -> Result<()> {
        Ok(self.home(id).await?.delete(id, deferred).await?)
    }

    async fn resize(&self, id: Uuid, size: u64) -> Result<LvolInfo> {
        Ok(self.home(id).await?.resize(id, size).await?)
    }

    async fn set_attributes(&self, id: Uuid, set: Vec<(String, Option<String>)>) -> Result<LvolInfo> {
        Ok(self.home(id).await?.set_attributes(id, set).await?)
    }
}

async fn snapshot(
    store: Store,
    quiesce: Arc<dyn Quiesce>,
    mut how: CreateSnapshot,
    consistency: Consistency,
) -> Result<LvolInfo> {
    let (lvol, id) = (how.lvol, how.uuid);
    quiesce.before_snapshot(lvol, consistency).await?;
    let taken = async {
        // The node may have made a file system since the caller looked.
        inherit_again(&mut how.attributes, &store.lvol(lvol).await?.attributes);
        store.snapshot(vec![how]).await
    };
    let taken = taken.await;
    let thawed = quiesce.after_snapshot(lvol, consistency).await;
    let missing = || Error::MayExist(format!("the snapshot {id:?} of {lvol} was taken but not described"));
    let snapshot = taken?.into_iter().next().ok_or_else(missing)?;
    if let Err(e) = thawed {
        // The file system may have moved on before the snapshot was taken: it is not what was asked for.
        warn!(volume = %lvol, snapshot = %snapshot.uuid, "the snapshot is given up: {e}");
        store.delete(snapshot.uuid, true).await?;
        return Err(e);
    }
    Ok(snapshot)
}
