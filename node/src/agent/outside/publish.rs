//! Which snapshots of other lvstores a store of ours depends on, in its Lvstore object: the word by which their owners keep
//! them. A snapshot is named before a lvol that reads it can exist, and until none does any more.

use super::super::failure::{Failure, ask};
use super::super::{Agent, MANAGER, lock};
use coppice_engine::Store;
use coppice_kube_api::{EXTERNAL_PARENTS_MAX, ExternalParent, Lvstore};
use coppice_proto::attributes;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector;
use kube::{Api, ResourceExt};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use tracing::{info, warn};
use uuid::Uuid;

/// Tries to write an object that others write at the same time.
const CONFLICTS_MAX: u32 = 20;

/// Where a snapshot was when it was first read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub lvstore: Uuid,
    pub node: Option<String>,
}

impl Origin {
    /// The attribute `OUTSIDE` of a lvol that reads the snapshot.
    pub fn to_attribute(&self, snapshot: Uuid) -> String {
        format!("{snapshot},{},{}", self.lvstore, self.node.as_deref().unwrap_or_default())
    }

    /// From that, if it is about this snapshot.
    fn of_attribute(text: &str, snapshot: Uuid) -> Option<Origin> {
        let mut parts = text.splitn(3, ',');
        let of = Uuid::parse_str(parts.next()?).ok()?;
        let lvstore = Uuid::parse_str(parts.next()?).ok()?;
        let node = parts.next().filter(|node| !node.is_empty()).map(str::to_string);
        (of == snapshot).then_some(Origin { lvstore, node })
    }
}

/// Clones that are being made: (our store, snapshot), how many, and where from.
pub type Intents = BTreeMap<(Uuid, Uuid), (usize, Origin)>;
/// What each store's object was last made to say.
pub type Published = HashMap<Uuid, Vec<ExternalParent>>;

/// As long as it lives the store's object goes on naming the snapshot.
pub struct Intent {
    all: Arc<Mutex<Intents>>,
    key: (Uuid, Uuid),
}

impl Drop for Intent {
    fn drop(&mut self) {
        let mut all = lock(&self.all);
        if let Some((count, _)) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

impl Agent {
    pub(super) fn intend(&self, store: Uuid, snapshot: Uuid, origin: Origin) -> Intent {
        let all = self.outside.intents.clone();
        lock(&all).entry((store, snapshot)).or_insert((0, origin)).0 += 1;
        Intent { all, key: (store, snapshot) }
    }

    /// Where a snapshot is that a lvol of ours reads, as far as our own objects say.
    pub(super) fn origin_of(&self, snapshot: Uuid) -> Option<Origin> {
        let intended =
            lock(&self.outside.intents).iter().find(|((_, id), _)| *id == snapshot).map(|(_, (_, o))| o.clone());
        intended.or_else(|| {
            let objects = self.objects.get().map(reflector::Store::state).unwrap_or_default();
            let of = objects.iter().filter_map(|object| object.spec.outside()).find(|of| of.snapshot == snapshot);
            let of = of.map(|of| Origin { lvstore: of.lvstore, node: Some(of.node.to_string()) });
            of.or_else(|| {
                let stores = self.lvstores.get().map(reflector::Store::state).unwrap_or_default();
                let named = stores.iter().flat_map(|object| object.status.iter());
                let named = named.flat_map(|status| status.external_parents.iter().flatten());
                let found = named.into_iter().find(|parent| parent.snapshot_uuid == snapshot)?;
                Some(Origin { lvstore: found.lvstore_uuid?, node: found.node.clone() })
            })
            .or_else(|| self.origin_at_rest(snapshot))
        })
    }

    /// As `origin_of`, by what our lvols themselves say: objects may have been made anew.
    fn origin_at_rest(&self, snapshot: Uuid) -> Option<Origin> {
        let stores = self.config.stores.all();
        let mut lvols = stores.iter().flat_map(|store| store.lvstore().lvols());
        lvols.find_map(|lvol| Origin::of_attribute(lvol.attributes.get(attributes::OUTSIDE)?, snapshot))
    }

    /// What the object of the store has to say now. `old`: what it says.
    pub fn parents_of(&self, store: &Store, old: Option<&Vec<ExternalParent>>) -> Vec<ExternalParent> {
        // In this order: who has made its lvol has no intent any more, but a parent.
        let intended: Vec<Uuid> =
            lock(&self.outside.intents).keys().filter(|(of, _)| *of == store.uuid()).map(|(_, id)| *id).collect();
        let all: BTreeSet<Uuid> = store.external_parents().into_iter().chain(intended).collect();
        let said = |id: Uuid| old.into_iter().flatten().find(|parent| parent.snapshot_uuid == id).cloned();
        // What metadata names that cannot be read, nobody knows: then everything stays that was said.
        let kept = old.into_iter().flatten().map(|parent| parent.snapshot_uuid);
        let all: BTreeSet<Uuid> = match store.knows_external_parents() {
            true => all,
            false => all.into_iter().chain(kept).collect(),
        };
        let mut parents: Vec<ExternalParent> = all
            .into_iter()
            .map(|id| match (said(id).filter(|parent| parent.lvstore_uuid.is_some()), self.origin_of(id)) {
                (Some(parent), _) => parent,
                (None, origin) => ExternalParent {
                    snapshot_uuid: id,
                    lvstore_uuid: origin.as_ref().map(|origin| origin.lvstore),
                    node: origin.and_then(|origin| origin.node),
                },
            })
            .collect();
        if parents.len() > EXTERNAL_PARENTS_MAX {
            // Only a store that came from elsewhere can have so many; nobody has pinned for it what has no origin.
            warn!(lvstore = store.name(), "it reads {} snapshots of others: not all are named", parents.len());
            parents.sort_by_key(|parent| (parent.lvstore_uuid.is_none(), parent.snapshot_uuid));
            parents.truncate(EXTERNAL_PARENTS_MAX);
        }
        parents
    }

    /// Whether a list has what is about to be read.
    fn all_named(&self, store: &Store, parents: &[ExternalParent]) -> bool {
        let named = |id: Uuid| parents.iter().any(|parent| parent.snapshot_uuid == id);
        lock(&self.outside.intents).keys().filter(|(of, _)| *of == store.uuid()).all(|(_, id)| named(*id))
    }

    /// Held from finding out what a store depends on until that is written.
    pub async fn publishing(&self) -> tokio::sync::MutexGuard<'_, Published> {
        self.outside.publishing.lock().await
    }

    /// A store was opened: what its object says is not known.
    pub async fn forget_published(&self, store: Uuid) {
        self.outside.publishing.lock().await.remove(&store);
    }

    /// Whether the object of the store has to say something else than it was last made to say.
    pub async fn is_unpublished(&self, store: &Store) -> bool {
        let published = self.outside.publishing.lock().await;
        match published.get(&store.uuid()) {
            Some(old) => *old != self.parents_of(store, Some(old)),
            // Its keeper will, when it first reports.
            None => false,
        }
    }

    /// Has the object of the store say what it depends on. When this answers it does.
    pub async fn publish(&self, store: &Store) -> Result<(), Failure> {
        let mut published = self.outside.publishing.lock().await;
        if let Some(old) = published.get(&store.uuid())
            && *old == self.parents_of(store, Some(old))
            && self.all_named(store, old)
        {
            return Ok(());
        }
        let api: Api<Lvstore> = Api::all(self.config.client.clone());
        let objects = self.lvstores.get().map(reflector::Store::state).unwrap_or_default();
        let of_it = |object: &&Arc<Lvstore>| {
            object.status.as_ref().and_then(|status| status.uuid) == Some(store.uuid())
                && object.metadata.deletion_timestamp.is_none()
        };
        let Some(name) = objects.iter().find(of_it).map(|object| object.name_any()) else {
            return Err(Failure::Unsaid(format!("there is no Lvstore object for the lvstore {}", store.name())));
        };
        for _ in 0..CONFLICTS_MAX {
            let object = ask(api.get(&name)).await?;
            let status = object.status.unwrap_or_default();
            if status.uuid != Some(store.uuid()) {
                return Err(Failure::Unsaid(format!("the Lvstore object {name} is another one now")));
            }
            let wanted = self.parents_of(store, status.external_parents.as_ref());
            if !self.all_named(store, &wanted) {
                return Err(Failure::Unsaid(format!(
                    "it cannot name more than {EXTERNAL_PARENTS_MAX} snapshots of others"
                )));
            }
            if status.external_parents.as_ref() != Some(&wanted) {
                let patch = json!({
                    "metadata": { "resourceVersion": object.metadata.resource_version },
                    "status": { "externalParents": wanted },
                });
                let manager = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                match ask(api.patch_status(&name, &manager, &Patch::Merge(patch))).await {
                    Ok(_) => info!(lvstore = store.name(), parents = wanted.len(), "said what it reads of others"),
                    Err(e) if e.is_conflict() => continue,
                    Err(e) => {
                        // Nobody knows what it says now.
                        published.remove(&store.uuid());
                        return Err(e);
                    }
                }
            }
            published.insert(store.uuid(), wanted);
            return Ok(());
        }
        Err(Failure::Unsaid(format!("the Lvstore object {name} is written by others all the time")))
    }
}
