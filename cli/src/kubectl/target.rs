//! Which object a name means.

use super::cluster::{Cluster, list, refused, refused_ours};
use super::near::hint;
use super::objects::{lvol_of_content, lvol_of_volume};
use anyhow::{Result, bail};
use coppice_kube_api::{Kind, Lvol};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::DynamicObject;
use uuid::Uuid;

/// What a name turned out to mean.
pub enum Target {
    Claim(Box<PersistentVolumeClaim>),
    Snapshot(Box<DynamicObject>),
    Lvol(Box<Lvol>),
}

/// What a name may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// A claim or a VolumeSnapshot.
    BeSource,
    /// Or a lvol, by UUID or name of its object.
    BeAnything,
}

/// The prefix says what it is.
fn prefix(word: &str) -> Option<fn(&mut Looking)> {
    Some(match word {
        "pvc" | "pvcs" | "persistentvolumeclaim" | "claim" => |on| (on.snapshot, on.lvol) = (false, false),
        "snapshot" | "vs" | "volumesnapshot" | "snapshots" => |on| (on.claim, on.lvol) = (false, false),
        "lvol" | "lvols" => |on| (on.claim, on.snapshot) = (false, false),
        _ => return None,
    })
}

struct Looking {
    claim: bool,
    snapshot: bool,
    lvol: bool,
}

/// Finds what `text` names in the namespace of the cluster.
pub async fn find(cluster: &Cluster, text: &str, may: May) -> Result<Target> {
    let mut on = Looking { claim: true, snapshot: true, lvol: may == May::BeAnything };
    let name = match text.split_once('/') {
        Some((word, name)) => {
            if may == May::BeSource && matches!(word, "lvol" | "lvols") {
                bail!(
                    "{text}: only a PVC or a VolumeSnapshot can be used here; a lvol without one is adopted first, with --pv"
                );
            }
            let Some(narrow) = prefix(word) else {
                bail!("{text}: what is {word:?}? Say pvc/NAME, snapshot/NAME or lvol/NAME, and the namespace with -n");
            };
            narrow(&mut on);
            name
        }
        None => text,
    };
    let namespace = &cluster.namespace;
    let claim = match on.claim {
        true => {
            cluster.claims(namespace).get_opt(name).await.map_err(|e| refused(e, &format!("read the PVC {name}")))?
        }
        false => None,
    };
    let snapshot = match on.snapshot {
        true => snapshot(cluster, name).await?,
        false => None,
    };
    let lvol = match on.lvol {
        true => lvol(cluster, name).await?,
        false => None,
    };
    match (claim, snapshot, lvol) {
        (Some(claim), None, None) => Ok(Target::Claim(Box::new(claim))),
        (None, Some(snapshot), None) => Ok(Target::Snapshot(Box::new(snapshot))),
        (None, None, Some(lvol)) => Ok(Target::Lvol(Box::new(lvol))),
        (None, None, None) => bail!(missing(cluster, name, &on).await),
        _ => bail!("{name} is more than one thing in {namespace}: say pvc/{name}, snapshot/{name} or lvol/{name}"),
    }
}

/// The VolumeSnapshot; `None` also where the cluster has no such kind.
async fn snapshot(cluster: &Cluster, name: &str) -> Result<Option<DynamicObject>> {
    let found = cluster.snapshots(&cluster.namespace).get_opt(name).await;
    found.map_err(|e| refused(e, &format!("read the VolumeSnapshot {name}")))
}

/// By name of the object, by UUID, or by name of the PersistentVolume or VolumeSnapshotContent.
async fn lvol(cluster: &Cluster, name: &str) -> Result<Option<Lvol>> {
    let by_name = cluster.lvols().get_opt(name).await.map_err(|e| refused_ours(e, &format!("read the lvol {name}")))?;
    if by_name.is_some() {
        return Ok(by_name);
    }
    let uuid = match Uuid::parse_str(name) {
        Ok(uuid) => Some(uuid),
        Err(_) => {
            let volume = cluster.volumes().get_opt(name).await.ok().flatten();
            let content = cluster.of_snapshots("VolumeSnapshotContent").get_opt(name).await.ok().flatten();
            volume.as_ref().and_then(lvol_of_volume).or_else(|| content.as_ref().and_then(lvol_of_content))
        }
    };
    let Some(uuid) = uuid else { return Ok(None) };
    let all = list(&cluster.lvols()).await.map_err(|e| refused_ours(e, "list lvols"))?;
    Ok(all.into_iter().find(|lvol| lvol.spec.lvol_uuid == uuid))
}

async fn missing(cluster: &Cluster, name: &str, on: &Looking) -> String {
    let namespace = &cluster.namespace;
    let mut kinds = Vec::new();
    let mut names = Vec::new();
    if on.claim {
        kinds.push("PVC");
        let all = list(&cluster.claims(namespace)).await.unwrap_or_default();
        names.extend(all.iter().map(ResourceExt::name_any));
    }
    if on.snapshot {
        kinds.push("VolumeSnapshot");
        let all = list(&cluster.snapshots(namespace)).await.unwrap_or_default();
        names.extend(all.iter().map(ResourceExt::name_any));
    }
    let mut place = format!(" in the namespace {namespace}");
    if on.lvol {
        kinds.push("lvol");
        let all = list(&cluster.lvols()).await.unwrap_or_default();
        names.extend(all.iter().map(ResourceExt::name_any));
        if kinds.len() == 1 {
            place.clear();
        }
    }
    format!("there is no {} {name}{place}{}", kinds.join(" or "), hint(name, names.iter().map(String::as_str)))
}

/// What a lvol is called.
pub fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Volume => "volume",
        Kind::Snapshot => "snapshot",
    }
}
