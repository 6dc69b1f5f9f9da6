//! `snapshot`: an ordinary VolumeSnapshot of a PVC.

use super::args::{Output, Snapshot};
use super::cluster::{Cluster, list_if_allowed, refused};
use super::follow::Follower;
use super::objects::{lvol_of_volume, phase_of_claim, text};
use super::print::{documents, objects, say};
use super::target::{May, Target, find};
use crate::output;
use anyhow::{Context, Result, bail};
use coppice_proto::capability::DRIVER_NAME;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};

const DEFAULT_CLASS: &str = "snapshot.storage.kubernetes.io/is-default-class";
/// Longest name of an object.
const NAME_MAX: usize = 253;

pub async fn run(cluster: &Cluster, args: &Snapshot, format: Output) -> Result<()> {
    let Target::Claim(claim) = find(cluster, &as_claim(&args.pvc), May::BeSource).await? else {
        bail!("{} is no PVC", args.pvc);
    };
    of_ours(cluster, &claim).await?;
    let class = match &args.class {
        Some(class) => Some(class.clone()),
        None => class(cluster).await?,
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None => {
            let stamp = super::dump::stamp(jiff::Timestamp::now());
            let room = NAME_MAX - stamp.len() - 1;
            format!("{}-{stamp}", claim.name_any().chars().take(room).collect::<String>())
        }
    };
    let object = object(&cluster.namespace, &name, &claim.name_any(), class.as_deref());
    if args.dry_run {
        return match objects(format, std::slice::from_ref(&object), false)? {
            true => Ok(()),
            false => output::print(&documents(&[object])?),
        };
    }
    let snapshot: DynamicObject = serde_json::from_value(object).context("a VolumeSnapshot")?;
    let made = cluster.snapshots(&cluster.namespace).create(&PostParams::default(), &snapshot).await;
    match made {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => bail!(
            "this cluster has no kind VolumeSnapshot: it needs the snapshot CRDs and the snapshot controller (deploy/README.md)"
        ),
        Err(e) => return Err(refused(e, &format!("make the VolumeSnapshot {name}"))),
    }
    say(&format!("{}/{name} is being taken of the PVC {}", cluster.namespace, claim.name_any()))?;
    if args.follow.wait {
        Follower::new(cluster, args.follow.timeout).ready(&cluster.namespace, &name).await?;
    }
    Ok(())
}

/// Only a PVC can be meant.
fn as_claim(name: &str) -> String {
    if name.contains('/') { name.to_string() } else { format!("pvc/{name}") }
}

fn object(namespace: &str, name: &str, claim: &str, class: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": { "name": name, "namespace": namespace },
        "spec": { "source": { "persistentVolumeClaimName": claim } },
    });
    if let Some(class) = class {
        object["spec"]["volumeSnapshotClassName"] = json!(class);
    }
    object
}

/// Refuses what can never work: a claim without a volume, or with another driver's. Whoever may not see PersistentVolumes
/// finds out from the snapshotter.
async fn of_ours(cluster: &Cluster, claim: &PersistentVolumeClaim) -> Result<()> {
    let name = claim.name_any();
    if phase_of_claim(claim) != "Bound" {
        bail!("the PVC {name} is {}: there is nothing to take a snapshot of yet", phase_of_claim(claim));
    }
    let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
    if let Ok(Some(volume)) = cluster.volumes().get_opt(&volume).await
        && lvol_of_volume(&volume).is_none()
    {
        bail!("the PVC {name} is not of Coppice: its PersistentVolume {} is of another driver", volume.name_any());
    }
    Ok(())
}

/// `None`: the cluster has a default class, or we may not look.
async fn class(cluster: &Cluster) -> Result<Option<String>> {
    let all = list_if_allowed(&cluster.of_snapshots("VolumeSnapshotClass"), "VolumeSnapshotClasses").await?;
    let ours: Vec<&DynamicObject> = all.iter().filter(|class| text(class, "/driver") == DRIVER_NAME).collect();
    if ours.iter().any(|class| class.annotations().get(DEFAULT_CLASS).is_some_and(|value| value == "true")) {
        return Ok(None);
    }
    match ours.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only.name_any())),
        several => {
            let names: Vec<String> = several.iter().map(|class| class.name_any()).collect();
            bail!(
                "there are several VolumeSnapshotClasses and none is the default: name one with --class ({})",
                names.join(", ")
            )
        }
    }
}
