//! How each lvstore stands: what it can still take, from what the API server has. Pure.

use super::translate::{pool_key, still_to_take};
use crate::volume::{Error, Pool, Result};
use coppice_engine::ErrorKind;
use coppice_kube_api::{LABEL_LVSTORE, Lvol, Lvstore, LvstoreCondition, is_true};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// Why a lvstore takes no new volumes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shut {
    /// Until somebody allows it again.
    Cordoned,
    /// For now; why.
    NotReady(String),
    /// Until somebody acts: what is new goes elsewhere. Why.
    Unusable(String),
}

/// A lvstore and its accounts. Bytes.
#[derive(Clone, Debug)]
pub struct Standing {
    pub pool: Pool,
    pub uuid: Option<Uuid>,
    /// Free, less what objects that are not made yet will take.
    pub physical: u64,
    /// What may still be promised; `u64::MAX` where there is no limit.
    pub allowed: u64,
    pub shut: Option<Shut>,
}

/// What is about to be written as an object and may not be in the cache yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underway {
    pub lvol: Uuid,
    pub lvstore: Uuid,
    /// What it will be, and what it takes at once.
    pub size: u64,
    pub takes: u64,
}

/// Whether a node can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Ready,
    /// It does not report to the API server.
    Silent,
    /// It is no longer part of the cluster, as far as is known here.
    Gone,
}

pub fn node_state(node: Option<&Node>) -> NodeState {
    let Some(node) = node else { return NodeState::Gone };
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    match conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
        true => NodeState::Ready,
        false => NodeState::Silent,
    }
}

fn shut(lvstore: &Lvstore, node: NodeState) -> Option<Shut> {
    let (spec, status) = (&lvstore.spec, lvstore.status.as_ref());
    let conditions = status.map_or(&[][..], |status| &status.conditions);
    let not_ready = |why: String| Some(Shut::NotReady(why));
    match node {
        NodeState::Gone => return not_ready(format!("the node {} is not part of the cluster", spec.node)),
        NodeState::Silent => return not_ready(format!("the node {} does not answer", spec.node)),
        NodeState::Ready => {}
    }
    for bad in [LvstoreCondition::Lost, LvstoreCondition::Foreign, LvstoreCondition::Failing] {
        let why = || format!("the lvstore {} of the node {} is {bad}", spec.name, spec.node);
        match is_true(conditions, bad) {
            true if bad == LvstoreCondition::Failing => return not_ready(why()),
            true => return Some(Shut::Unusable(why())),
            false => {}
        }
    }
    if !is_true(conditions, LvstoreCondition::Ready) {
        let ready = conditions.iter().find(|condition| condition.type_ == LvstoreCondition::Ready.as_str());
        let why = ready.map_or("its node has not seen it yet", |ready| &ready.reason);
        return not_ready(format!("the lvstore {} of the node {} is not ready: {why}", spec.name, spec.node));
    }
    spec.unschedulable.then_some(Shut::Cordoned)
}

/// Every lvstore, and those that only lvols know any more: their volumes do not cease to exist.
pub fn standings(
    lvstores: &[Arc<Lvstore>],
    lvols: &[Arc<Lvol>],
    node: impl Fn(&str) -> NodeState,
    underway: &[Underway],
) -> Vec<Standing> {
    let mut by_store: BTreeMap<Uuid, Vec<&Lvol>> = BTreeMap::new();
    for lvol in lvols {
        by_store.entry(lvol.spec.lvstore_uuid).or_default().push(lvol);
    }
    let mut out: BTreeMap<String, Standing> = BTreeMap::new();
    for lvstore in lvstores {
        let uuid = lvstore.status.as_ref().and_then(|status| status.uuid);
        let here = uuid.and_then(|uuid| by_store.get(&uuid)).map_or(&[][..], Vec::as_slice);
        let standing = standing(lvstore, uuid, here, node(&lvstore.spec.node), underway);
        // Two objects for one store: the one that works is meant.
        match out.get(&standing.pool.key) {
            Some(other) if other.pool.open || !standing.pool.open => {}
            _ => {
                out.insert(standing.pool.key.clone(), standing);
            }
        }
    }
    for (uuid, lvols) in &by_store {
        let Some(lvol) = lvols.first().filter(|_| !out.contains_key(&pool_key(*uuid))) else { continue };
        out.insert(pool_key(*uuid), forgotten(*uuid, lvol));
    }
    out.into_values().collect()
}

fn standing(
    lvstore: &Lvstore,
    uuid: Option<Uuid>,
    lvols: &[&Lvol],
    node: NodeState,
    underway: &[Underway],
) -> Standing {
    let (spec, status) = (&lvstore.spec, lvstore.status.as_ref());
    let space = status.and_then(|status| status.space).unwrap_or_default();
    let cluster_size = status.and_then(|status| status.cluster_size).map_or(0, |size| size.bytes());
    let known: BTreeSet<Uuid> = lvols.iter().map(|lvol| lvol.spec.lvol_uuid).collect();
    let unseen: Vec<&Underway> =
        underway.iter().filter(|u| Some(u.lvstore) == uuid && !known.contains(&u.lvol)).collect();
    let sum = |amounts: &mut dyn Iterator<Item = u64>| amounts.fold(0_u64, u64::saturating_add);
    let pending = sum(&mut lvols.iter().map(|lvol| still_to_take(lvol, cluster_size)))
        .saturating_add(sum(&mut unseen.iter().map(|u| u.takes)));
    // What the node counts includes lvols without an object, what objects say is newer.
    let promised = sum(&mut lvols.iter().map(|lvol| lvol.spec.size.bytes())).max(space.committed.bytes());
    let committed = promised.saturating_add(sum(&mut unseen.iter().map(|u| u.size)));
    let total = space.total.bytes();
    let allowed = match spec.overprovision_percent {
        None => u64::MAX,
        Some(percent) => {
            let limit = u128::from(total) * u128::from(percent.max(0).unsigned_abs()) / 100;
            u64::try_from(limit).unwrap_or(u64::MAX).saturating_sub(committed)
        }
    };
    let physical = space.free.bytes().saturating_sub(pending);
    let shut = match uuid {
        Some(_) => shut(lvstore, node),
        None => shut(lvstore, node).or(Some(Shut::NotReady(format!("the lvstore {} is not made yet", spec.name)))),
    };
    let pool = Pool {
        key: uuid.map_or_else(|| format!("object/{}", lvstore.name_any()), pool_key),
        name: spec.name.clone(),
        node: spec.node.clone(),
        cluster_size,
        largest: total.saturating_sub(space.metadata.bytes()),
        free: physical.min(allowed),
        committed,
        open: shut.is_none(),
    };
    Standing { pool, uuid, physical, allowed, shut }
}

/// A lvstore whose object was deleted: it holds what its lvols say.
fn forgotten(uuid: Uuid, lvol: &Lvol) -> Standing {
    let name = lvol.labels().get(LABEL_LVSTORE).cloned().unwrap_or_default();
    let why = format!("there is no Lvstore object for the lvstore {name} of the node {}", lvol.spec.node);
    let pool = Pool {
        key: pool_key(uuid),
        name,
        node: lvol.spec.node.clone(),
        cluster_size: 0,
        largest: 0,
        free: 0,
        committed: 0,
        open: false,
    };
    Standing { pool, uuid: Some(uuid), physical: 0, allowed: 0, shut: Some(Shut::NotReady(why)) }
}

impl Standing {
    /// Whether a lvol of `size` bytes, of which it takes `takes` at once, may be made here.
    pub fn admit(&self, what: What, size: u64, takes: u64) -> Result<()> {
        let Pool { name, node, .. } = &self.pool;
        let full = |message: String| Err(coppice_engine::Error::new(ErrorKind::NoSpace, message).into());
        match &self.shut {
            Some(Shut::Unusable(why)) if what == What::Volume => return full(why.clone()),
            Some(Shut::NotReady(why) | Shut::Unusable(why)) => {
                return Err(Error::MayExist(format!("{why}: try again")));
            }
            Some(Shut::Cordoned) if what == What::Volume => {
                return full(format!("the lvstore {name} of the node {node} takes no new volumes (unschedulable)"));
            }
            _ => {}
        }
        if size > self.allowed {
            let allowed = self.allowed;
            return full(format!(
                "the lvstore {name} of the node {node} may promise {allowed} bytes more (overprovisionPercent), not {size}"
            ));
        }
        if takes > self.physical {
            let free = self.physical;
            return full(format!("the lvstore {name} of the node {node} has {free} bytes free, {takes} are needed"));
        }
        Ok(())
    }
}

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Volume,
    /// Of something that is there: it belongs with it, also where nothing new is wanted.
    Snapshot,
    Growth,
}
