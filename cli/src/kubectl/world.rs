//! Our objects and what they belong to, read once and joined. Joining is pure.

use super::cluster::{Cluster, list, list_if_allowed, refused_ours};
use super::objects::{Name, claim_of_volume, lvol_of_content, lvol_of_volume, snapshot_of_content};
use crate::tree;
use anyhow::Result;
use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_kube_api::{
    ANNOTATION_PVC, ANNOTATION_VOLUME_SNAPSHOT, ByteSize, KeptSnapshot, Kind, LABEL_LVSTORE, Lvol, LvolCondition,
    Lvstore, LvstoreCondition, Provisioning, is_true,
};
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::DynamicObject;
use std::collections::{BTreeSet, HashMap};
use uuid::Uuid;

/// What the cluster has.
#[derive(Default)]
pub struct World {
    /// In order of creation.
    pub lvols: Vec<Lvol>,
    /// By node and name.
    pub lvstores: Vec<Lvstore>,
    pub volumes: Vec<PersistentVolume>,
    pub contents: Vec<DynamicObject>,
}

impl World {
    pub async fn read(cluster: &Cluster) -> Result<World> {
        let lvols = list(&cluster.lvols()).await.map_err(|e| refused_ours(e, "list lvols"))?;
        let lvstores = list(&cluster.lvstores()).await.map_err(|e| refused_ours(e, "list lvstores"))?;
        let volumes = list_if_allowed(&cluster.volumes(), "PersistentVolumes").await?;
        let contents =
            list_if_allowed(&cluster.of_snapshots("VolumeSnapshotContent"), "VolumeSnapshotContents").await?;
        Ok(World::of(lvols, lvstores, volumes, contents))
    }

    pub fn of(
        mut lvols: Vec<Lvol>,
        mut lvstores: Vec<Lvstore>,
        mut volumes: Vec<PersistentVolume>,
        mut contents: Vec<DynamicObject>,
    ) -> World {
        lvols.sort_by_key(|lvol| (created(lvol), lvol.name_any()));
        lvstores.sort_by_key(|store| (store.spec.node.clone(), store.spec.name.clone(), store.name_any()));
        volumes.retain(|volume| lvol_of_volume(volume).is_some());
        contents.retain(|content| lvol_of_content(content).is_some());
        World { lvols, lvstores, volumes, contents }
    }

    pub fn lvol(&self, uuid: Uuid) -> Option<&Lvol> {
        self.lvols.iter().find(|lvol| lvol.spec.lvol_uuid == uuid)
    }

    pub fn volume(&self, lvol: Uuid) -> Option<&PersistentVolume> {
        self.volumes.iter().find(|volume| lvol_of_volume(volume) == Some(lvol))
    }

    pub fn content(&self, lvol: Uuid) -> Option<&DynamicObject> {
        self.contents.iter().find(|content| lvol_of_content(content) == Some(lvol))
    }

    /// The claim of a volume, or the VolumeSnapshot of a snapshot. What is bound now counts; else what it was made for.
    pub fn owner(&self, lvol: &Lvol) -> Option<Name> {
        let uuid = lvol.spec.lvol_uuid;
        let made_for = |annotation: &str| Name::parse(lvol.annotations().get(annotation)?);
        match lvol.spec.kind {
            Kind::Volume => match self.volume(uuid) {
                Some(volume) => claim_of_volume(volume),
                None => made_for(ANNOTATION_PVC),
            },
            Kind::Snapshot => match self.content(uuid) {
                Some(content) => snapshot_of_content(content),
                None => made_for(ANNOTATION_VOLUME_SNAPSHOT),
            },
        }
    }

    /// The lvol of a claim or a VolumeSnapshot.
    pub fn owned(&self, kind: Kind, name: &Name) -> Option<&Lvol> {
        let of_kind = |lvol: &&Lvol| lvol.spec.kind == kind;
        self.lvols.iter().filter(of_kind).find(|lvol| self.owner(lvol).as_ref() == Some(name))
    }

    pub fn lvstore(&self, uuid: Uuid) -> Option<&Lvstore> {
        self.lvstores.iter().find(|store| store.status.as_ref().and_then(|status| status.uuid) == Some(uuid))
    }

    /// `spec.name` of the lvstore of a lvol.
    pub fn store_name(&self, lvol: &Lvol) -> String {
        let known = self.lvstore(lvol.spec.lvstore_uuid).map(|store| store.spec.name.clone());
        known
            .or_else(|| lvol.labels().get(LABEL_LVSTORE).cloned())
            .unwrap_or_else(|| lvol.spec.lvstore_uuid.to_string())
    }

    /// Everything that a lvol came from or that came from it, however far.
    pub fn family(&self, of: Uuid) -> BTreeSet<Uuid> {
        let ways = self.lvols.iter().flat_map(|lvol| {
            let parent = lvol.status.as_ref().and_then(|status| status.parent);
            [parent, lvol.spec.source_uuid, lvol.spec.source_snapshot_uuid].map(|other| (lvol.spec.lvol_uuid, other))
        });
        let kept = self.lvstores.iter().flat_map(|store| store.status.iter().flat_map(|status| &status.kept));
        let mut next_to: HashMap<Uuid, Vec<Uuid>> = HashMap::new();
        for (one, other) in ways.chain(kept.map(|kept| (kept.lvol_uuid, kept.parent))) {
            let Some(other) = other else { continue };
            next_to.entry(one).or_default().push(other);
            next_to.entry(other).or_default().push(one);
        }
        let mut found = BTreeSet::from([of]);
        let mut ways = vec![of];
        while let Some(uuid) = ways.pop() {
            for other in next_to.get(&uuid).into_iter().flatten() {
                if found.insert(*other) {
                    ways.push(*other);
                }
            }
        }
        found
    }

    /// The snapshots of a store that no object stands for and others read, as its node reports them. What it does not report
    /// but somebody names as a parent has a size of 0.
    pub fn kept(&self, store: Uuid) -> Vec<KeptSnapshot> {
        let status = self.lvstore(store).and_then(|store| store.status.as_ref());
        let mut kept = status.map(|status| status.kept.clone()).unwrap_or_default();
        for lvol in self.lvols.iter().filter(|lvol| lvol.spec.lvstore_uuid == store && !comes_from_elsewhere(lvol)) {
            let Some(parent) = lvol.status.as_ref().and_then(|status| status.parent) else { continue };
            if self.lvol(parent).is_none() && !kept.iter().any(|one| one.lvol_uuid == parent) {
                kept.push(KeptSnapshot { lvol_uuid: parent, parent: None, size: 0.into(), allocated: 0.into() });
            }
        }
        kept
    }
}

/// When it was made; what is not made yet is the youngest.
fn created(lvol: &Lvol) -> jiff::Timestamp {
    let status = lvol.status.as_ref().and_then(|status| status.created.as_ref());
    status.or(lvol.metadata.creation_timestamp.as_ref()).map_or(jiff::Timestamp::MAX, |time| time.0)
}

/// Bytes that a lvol has, or is to have.
pub fn size_of(lvol: &Lvol) -> u64 {
    lvol.status.as_ref().and_then(|status| status.size).unwrap_or(lvol.spec.size).bytes()
}

pub fn allocated(lvol: &Lvol) -> Option<u64> {
    lvol.status.as_ref().and_then(|status| status.allocated).map(ByteSize::bytes)
}

pub fn conditions(lvol: &Lvol) -> &[Condition] {
    lvol.status.as_ref().map_or(&[], |status| &status.conditions)
}

pub fn store_conditions(store: &Lvstore) -> &[Condition] {
    store.status.as_ref().map_or(&[], |status| &status.conditions)
}

/// Its data still comes from another node.
pub fn comes_from_elsewhere(lvol: &Lvol) -> bool {
    let other = lvol.spec.source_node.as_ref().is_some_and(|node| *node != lvol.spec.node);
    other && lvol.status.as_ref().is_some_and(|status| status.hydration.is_some())
}

/// `Available`, `Hydrating 45%`, `Missing`: what is most worth knowing, in a word.
pub fn state(lvol: &Lvol) -> String {
    if lvol.metadata.deletion_timestamp.is_some() {
        return "Removing".to_string();
    }
    let true_one =
        |kind: LvolCondition| conditions(lvol).iter().find(|c| c.type_ == kind.as_str() && c.status == "True");
    if let Some(bad) = true_one(LvolCondition::Lost) {
        return format!("Lost ({})", bad.reason);
    }
    let ready = conditions(lvol).iter().find(|c| c.type_ == LvolCondition::Ready.as_str());
    let Some(ready) = ready else { return "Unseen".to_string() };
    if ready.status == "True" {
        for bad in [LvolCondition::Degraded, LvolCondition::ResizeFailed] {
            if true_one(bad).is_some() {
                return bad.as_str().to_string();
            }
        }
        if let Some(hydration) = lvol.status.as_ref().and_then(|status| status.hydration.as_ref()) {
            return format!("Hydrating {}", hydrated(hydration));
        }
    }
    ready.reason.clone()
}

/// How much of the data is here, in per cent.
pub fn hydrated(hydration: &coppice_kube_api::Hydration) -> String {
    let (total, left) = (hydration.total.bytes(), hydration.remaining.bytes());
    tree::percent(total.saturating_sub(left), total)
}

/// `Open`, `Foreign`, `Open, cordoned`.
pub fn store_state(store: &Lvstore) -> String {
    let all = store_conditions(store);
    let bad = [LvstoreCondition::Lost, LvstoreCondition::Foreign, LvstoreCondition::Failing];
    let reason = match bad.into_iter().find(|bad| is_true(all, *bad)) {
        Some(bad) => bad.as_str().to_string(),
        None => {
            let ready = all.iter().find(|c| c.type_ == LvstoreCondition::Ready.as_str());
            ready.map_or_else(|| "Unseen".to_string(), |c| c.reason.clone())
        }
    };
    if store.spec.unschedulable { format!("{reason}, cordoned") } else { reason }
}

/// The lvol as trees are drawn from it. `cluster_size`: bytes of the unit of its store.
pub fn drawn(lvol: &Lvol, cluster_size: u64) -> LvolInfo {
    let unit = cluster_size.max(1);
    let kind = match (lvol.spec.kind, lvol.spec.source_uuid) {
        (Kind::Snapshot, _) => LvolKind::Snapshot,
        (Kind::Volume, Some(_)) if comes_from_elsewhere(lvol) => LvolKind::EsnapClone,
        (Kind::Volume, Some(_)) => LvolKind::Clone,
        (Kind::Volume, None) => LvolKind::Lvol,
    };
    let bad = [LvolCondition::Lost, LvolCondition::Degraded].into_iter().any(|bad| is_true(conditions(lvol), bad));
    LvolInfo {
        state: if bad { LvolState::Damaged } else { LvolState::Ok },
        parent: lvol.status.as_ref().and_then(|status| status.parent),
        allocated_clusters: allocated(lvol).unwrap_or(0).div_ceil(unit),
        thin: lvol.spec.provisioning == Provisioning::Thin,
        ..nameless(lvol.spec.lvol_uuid, kind, size_of(lvol), unit)
    }
}

/// A lvol of which nothing else is known.
pub fn nameless(uuid: Uuid, kind: LvolKind, size: u64, cluster_size: u64) -> LvolInfo {
    LvolInfo {
        uuid,
        size,
        cluster_size: u32::try_from(cluster_size).unwrap_or(u32::MAX),
        thin: true,
        kind,
        ..LvolInfo::default()
    }
}
