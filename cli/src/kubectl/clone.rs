//! `clone`: an ordinary PVC with a data source.
//!
//! ```text
//!   the source's class binds ── at once ──────────────▶ use it: the driver places the clone with its source
//!                            └─ when a pod needs it ──▶ one that is like it and binds at once, else
//!                                                       the source's own, on the source's node as if a pod had chosen that
//! ```
//!
//! A class that waits for a pod would let the scheduler choose any node, and today a clone can only be where its source is.

use super::args::{Clone, Output};
use super::cluster::{Cluster, list, list_if_allowed, refused};
use super::follow::Follower;
use super::objects::{class_of_claim, lvol_of_volume, name_of, size_of_claim, text};
use super::print::{documents, objects, say};
use super::target::{May, Target, find};
use super::world::World;
use crate::output;
use anyhow::{Context, Result, bail};
use coppice_kube_api::{ByteSize, Kind, Lvol};
use coppice_proto::capability::DRIVER_NAME;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DynamicObject, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// What the scheduler writes when it has chosen a node for the first pod of a claim.
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
const FS_TYPE: &str = "csi.storage.k8s.io/fstype";
const AT_ONCE: &str = "Immediate";

/// What the new claim takes over.
struct Origin {
    /// `VolumeSnapshot default/monday`
    name: String,
    data_source: Value,
    size: Option<String>,
    class: Option<String>,
    access: Vec<String>,
    mode: Option<String>,
    lvol: Option<Lvol>,
}

pub async fn run(cluster: &Cluster, args: &Clone, format: Output) -> Result<()> {
    let origin = match find(cluster, &args.source, May::BeSource).await? {
        Target::Claim(claim) => of_claim(cluster, &claim).await?,
        Target::Snapshot(snapshot) => of_snapshot(cluster, &snapshot).await?,
        Target::Lvol(_) => bail!("{} is no VolumeSnapshot or PVC", args.source),
    };
    let Some(size) = args.size.clone().or(origin.size.clone()) else {
        bail!("the size of {} is not known yet: say it with --size", origin.name);
    };
    large_enough(&size, &origin)?;
    let source_node = origin.lvol.as_ref().map(|lvol| lvol.spec.node.clone());
    let place = match &args.class {
        Some(class) => {
            let waits = waits(cluster, class).await?;
            let node = args.node.clone().or_else(|| source_node.filter(|_| waits));
            Place { class: Some(class.clone()), waits: waits && node.is_none(), node }
        }
        None => {
            let api: Api<StorageClass> = Api::all(cluster.client.clone());
            let classes = list_if_allowed(&api, "StorageClasses").await?;
            place(&classes, origin.class.as_deref(), args.node.clone(), source_node)
        }
    };
    let object = object(&cluster.namespace, &args.new, &origin, &size, &place);
    if args.dry_run {
        return match objects(format, std::slice::from_ref(&object), false)? {
            true => Ok(()),
            false => output::print(&documents(&[object])?),
        };
    }
    make(cluster, args, &origin, &size, &place, object).await
}

/// What can be told of two quantities without the API server.
fn large_enough(size: &str, origin: &Origin) -> Result<()> {
    let bytes = |text: &str| text.parse::<ByteSize>().ok();
    let least = origin.size.as_deref().unwrap_or_default();
    match (bytes(size), bytes(least)) {
        (Some(asked), Some(has)) if asked < has => bail!("--size {size}: the {} needs at least {least}", origin.name),
        _ => Ok(()),
    }
}

async fn make(
    cluster: &Cluster,
    args: &Clone,
    origin: &Origin,
    size: &str,
    place: &Place,
    object: Value,
) -> Result<()> {
    let claim: PersistentVolumeClaim = serde_json::from_value(object).context("a PVC: is --size a quantity?")?;
    let made = cluster.claims(&cluster.namespace).create(&PostParams::default(), &claim).await;
    let claim = made.map_err(|e| refused(e, &format!("make the PVC {}", args.new)))?;
    let name = name_of(&claim);
    let class = place.class.as_deref().unwrap_or("the cluster's default");
    let node = place.node.as_ref().map_or_else(String::new, |node| format!(", on {node}"));
    say(&format!("{name} is made from the {}: {size}, class {class}{node}", origin.name))?;
    if place.waits {
        say(&format!("its class {class} waits for the first pod; only a pod on the node of the source can have it"))?;
        return Ok(());
    }
    if !args.follow.wait {
        return Ok(());
    }
    let mut follower = Follower::new(cluster, args.follow.timeout);
    let bound = follower.bound(&name.namespace, &name.name).await?;
    // Who may not see PersistentVolumes and lvols is content with that.
    let volume = bound.spec.and_then(|spec| spec.volume_name).unwrap_or_default();
    let Ok(volume) = cluster.volumes().get(&volume).await else { return Ok(()) };
    let Ok(lvols) = list(&cluster.lvols()).await else { return Ok(()) };
    let uuid = lvol_of_volume(&volume);
    if let Some(lvol) = lvols.iter().find(|lvol| Some(lvol.spec.lvol_uuid) == uuid) {
        say(&format!("{name} is on {}, and can be used", lvol.spec.node))?;
        follower.hydrated(&name.to_string(), &lvol.name_any()).await?;
    }
    Ok(())
}

async fn of_claim(cluster: &Cluster, claim: &PersistentVolumeClaim) -> Result<Origin> {
    let name = name_of(claim);
    if super::objects::phase_of_claim(claim) != "Bound" {
        bail!("the PVC {name} has no volume yet: there is nothing to clone");
    }
    let spec = claim.spec.clone().unwrap_or_default();
    Ok(Origin {
        name: format!("PVC {name}"),
        data_source: json!({ "kind": "PersistentVolumeClaim", "name": name.name }),
        size: size_of_claim(claim),
        class: class_of_claim(claim).map(String::from),
        access: spec.access_modes.unwrap_or_default(),
        mode: spec.volume_mode,
        lvol: lvol(cluster, Kind::Volume, &name).await,
    })
}

async fn of_snapshot(cluster: &Cluster, snapshot: &DynamicObject) -> Result<Origin> {
    let name = name_of(snapshot);
    // The claim that it was taken of knows the most, if it is still there.
    let claim = text(snapshot, "/spec/source/persistentVolumeClaimName");
    let claim = match claim {
        "" => None,
        claim => {
            let found = cluster.claims(&name.namespace).get_opt(claim).await;
            found.map_err(|e| refused(e, &format!("read the PVC {claim}")))?
        }
    };
    let spec = claim.as_ref().and_then(|claim| claim.spec.clone()).unwrap_or_default();
    let content = match text(snapshot, "/status/boundVolumeSnapshotContentName") {
        "" => None,
        content => cluster.of_snapshots("VolumeSnapshotContent").get_opt(content).await.ok().flatten(),
    };
    let mode = content.map(|content| text(&content, "/spec/sourceVolumeMode").to_string());
    let size = text(snapshot, "/status/restoreSize").to_string();
    Ok(Origin {
        name: format!("VolumeSnapshot {name}"),
        data_source: json!({ "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": name.name }),
        size: Some(size).filter(|size| !size.is_empty()).or_else(|| claim.as_ref().and_then(size_of_claim)),
        class: claim.as_ref().and_then(class_of_claim).map(String::from),
        access: spec.access_modes.unwrap_or_default(),
        mode: spec.volume_mode.or(mode.filter(|mode| !mode.is_empty())),
        lvol: lvol(cluster, Kind::Snapshot, &name).await,
    })
}

/// The lvol of the source; who may not see that does without.
async fn lvol(cluster: &Cluster, kind: Kind, name: &super::objects::Name) -> Option<Lvol> {
    let lvols = list(&cluster.lvols()).await.ok()?;
    let volumes = list(&cluster.volumes()).await.unwrap_or_default();
    let contents = list(&cluster.of_snapshots("VolumeSnapshotContent")).await.unwrap_or_default();
    World::of(lvols, Vec::new(), volumes, contents).owned(kind, name).cloned()
}

/// Where the new claim is to be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Place {
    /// `None`: the cluster's default class.
    class: Option<String>,
    /// Chosen as the scheduler would for a pod.
    node: Option<String>,
    /// Nothing happens until a pod uses it.
    waits: bool,
}

fn place(classes: &[StorageClass], own: Option<&str>, node: Option<String>, source_node: Option<String>) -> Place {
    let binds_at_once = |class: &&StorageClass| class.volume_binding_mode.as_deref().unwrap_or(AT_ONCE) == AT_ONCE;
    let ours = || classes.iter().filter(|class| class.provisioner == DRIVER_NAME);
    let named = own.and_then(|own| classes.iter().find(|class| class.name_any() == own));
    if node.is_some() {
        let class = own.map(String::from).or_else(|| ours().find(binds_at_once).map(ResourceExt::name_any));
        return Place { class, node, waits: false };
    }
    if let Some(class) = named.filter(binds_at_once) {
        return Place { class: Some(class.name_any()), ..Place::default() };
    }
    // What a clone is like follows from its class. A file system it has already: its source's, and no class may ask for another.
    let own_parameters = named.map(parameters);
    let like = |class: &&StorageClass| {
        let what = |class: &StorageClass| {
            let mut parameters = parameters(class);
            parameters.remove(FS_TYPE);
            (parameters, class.reclaim_policy.clone(), class.mount_options.clone())
        };
        let asked = parameters(class).remove(FS_TYPE);
        let had = own_parameters.as_ref().and_then(|own| own.get(FS_TYPE));
        (asked.is_none() || asked.as_ref() == had) && named.is_none_or(|named| what(named) == what(class))
    };
    let rank = |class: &StorageClass| {
        let same = own_parameters.as_ref().is_none_or(|own| *own == parameters(class));
        (!same, class.name_any() != "coppice-clone", class.name_any())
    };
    let fitting = ours().filter(binds_at_once).filter(like).min_by_key(|class| rank(class));
    match fitting {
        Some(class) => Place { class: Some(class.name_any()), ..Place::default() },
        None => Place { class: own.map(String::from), waits: source_node.is_none(), node: source_node },
    }
}

fn parameters(class: &StorageClass) -> BTreeMap<String, String> {
    class.parameters.clone().unwrap_or_default()
}

/// Whether a class waits for a pod. One that cannot be read is the API server's to judge.
async fn waits(cluster: &Cluster, class: &str) -> Result<bool> {
    let api: Api<StorageClass> = Api::all(cluster.client.clone());
    match api.get_opt(class).await {
        Ok(Some(class)) if class.provisioner != DRIVER_NAME => {
            bail!("the StorageClass {} is of another driver, {}", class.name_any(), class.provisioner)
        }
        Ok(Some(class)) => Ok(class.volume_binding_mode.is_some_and(|mode| mode != AT_ONCE)),
        Ok(None) => {
            let names = list(&api).await.unwrap_or_default();
            let names: Vec<String> =
                names.iter().filter(|c| c.provisioner == DRIVER_NAME).map(ResourceExt::name_any).collect();
            bail!("there is no StorageClass {class}; Coppice's are: {}", names.join(", "))
        }
        Err(_) => Ok(false),
    }
}

fn object(namespace: &str, name: &str, origin: &Origin, size: &str, place: &Place) -> Value {
    let access = match origin.access.is_empty() {
        true => vec!["ReadWriteOnce".to_string()],
        false => origin.access.clone(),
    };
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": { "name": name, "namespace": namespace },
        "spec": {
            "accessModes": access,
            "resources": { "requests": { "storage": size } },
            "dataSource": origin.data_source,
        },
    });
    if let Some(class) = &place.class {
        object["spec"]["storageClassName"] = json!(class);
    }
    if let Some(mode) = &origin.mode {
        object["spec"]["volumeMode"] = json!(mode);
    }
    if let Some(node) = &place.node {
        object["metadata"]["annotations"] = json!({ SELECTED_NODE: node });
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, mode: &str, driver: &str, parameters: &[(&str, &str)]) -> StorageClass {
        StorageClass {
            metadata: kube::api::ObjectMeta { name: Some(name.into()), ..Default::default() },
            provisioner: driver.into(),
            volume_binding_mode: Some(mode.into()),
            parameters: Some(parameters.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()),
            ..StorageClass::default()
        }
    }

    fn in_class(class: &str) -> Place {
        Place { class: Some(class.into()), ..Place::default() }
    }

    #[test]
    fn a_clone_lands_with_its_source_and_is_like_it() {
        let waits = "WaitForFirstConsumer";
        let classes = [
            class("coppice", waits, DRIVER_NAME, &[]),
            class("a-copy", AT_ONCE, DRIVER_NAME, &[(FS_TYPE, "xfs")]),
            class("coppice-clone", AT_ONCE, DRIVER_NAME, &[]),
            class("thick", waits, DRIVER_NAME, &[("provisioning", "thick")]),
            class("thick-now", AT_ONCE, DRIVER_NAME, &[("provisioning", "thick")]),
            class("odd", waits, DRIVER_NAME, &[("lvstore", "slow")]),
            class("xfs", waits, DRIVER_NAME, &[(FS_TYPE, "xfs")]),
            class("btrfs-now", AT_ONCE, DRIVER_NAME, &[(FS_TYPE, "btrfs")]),
            class("ext4", waits, DRIVER_NAME, &[(FS_TYPE, "ext4")]),
            class("other", AT_ONCE, "ebs.csi.aws.com", &[]),
        ];
        let node = || Some("node1".to_string());
        assert_eq!(place(&classes, Some("coppice"), None, node()), in_class("coppice-clone"));
        assert_eq!(place(&classes, Some("thick"), None, node()), in_class("thick-now"));
        assert_eq!(place(&classes, Some("thick-now"), None, node()), in_class("thick-now"));
        assert_eq!(place(&classes, Some("xfs"), None, node()), in_class("a-copy"), "the very same but for the binding");
        assert_eq!(place(&classes, Some("ext4"), None, node()), in_class("coppice-clone"), "asks for no file system");
        assert_eq!(place(&classes, None, None, node()), in_class("coppice-clone"), "its claim is gone");
        let own = Place { node: node(), ..in_class("odd") };
        assert_eq!(place(&classes, Some("odd"), None, node()), own, "none is like it");
        assert!(place(&classes, Some("odd"), None, None).waits, "nobody knows where the source is");
        let chosen = Place { node: Some("node2".into()), ..in_class("coppice") };
        assert_eq!(place(&classes, Some("coppice"), Some("node2".into()), node()), chosen);
        assert_eq!(
            place(&[], Some("coppice"), None, node()),
            Place { node: node(), ..in_class("coppice") },
            "not to be seen"
        );
    }
}
