//! `describe`: everything that the cluster knows of one volume or snapshot, in one place.

use super::args::Describe;
use super::cluster::{Cluster, list_if_allowed, refused};
use super::objects::{self, Name, class_of_claim, name_of, phase_of_claim, size_of_claim, text};
use super::print::{age, or_dash};
use super::target::{May, Target, find, noun};
use super::world::{World, allocated, conditions, size_of, store_state};
use super::{advice, events};
use crate::output::{self, left, table};
use crate::size::human;
use anyhow::Result;
use coppice_kube_api::{Kind, Lvol};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::ResourceExt;
use kube::api::DynamicObject;

/// What is known of one lvol, and of what stands before it.
#[derive(Default)]
struct Known {
    claim: Option<PersistentVolumeClaim>,
    snapshot: Option<DynamicObject>,
    volume: Option<PersistentVolume>,
    content: Option<DynamicObject>,
    lvol: Option<Lvol>,
}

pub async fn run(cluster: &Cluster, args: &Describe) -> Result<()> {
    let target = find(cluster, &args.name, May::BeAnything).await?;
    let world = World::read(cluster).await?;
    let known = gather(cluster, &world, target).await?;
    let pods = list_if_allowed(&cluster.pods(), "pods").await?;
    let said = said(cluster, &known).await;
    let now = jiff::Timestamp::now();
    let mut text = facts(&world, &known, &pods, now);
    if !said.is_empty() {
        text.push_str("\n\nEvents\n");
        text.push_str(&indented(&events::lines(&said, now)));
    }
    output::print(&format!("{text}\n"))
}

async fn gather(cluster: &Cluster, world: &World, target: Target) -> Result<Known> {
    let mut known = Known::default();
    match target {
        Target::Claim(claim) => {
            known.lvol = world.owned(Kind::Volume, &name_of(claim.as_ref())).cloned();
            known.claim = Some(*claim);
        }
        Target::Snapshot(snapshot) => {
            known.lvol = world.owned(Kind::Snapshot, &name_of(snapshot.as_ref())).cloned();
            known.snapshot = Some(*snapshot);
        }
        Target::Lvol(lvol) => {
            let owner = world.owner(&lvol);
            match (lvol.spec.kind, owner) {
                (_, None) => {}
                (Kind::Volume, Some(Name { namespace, name })) => {
                    let claim = cluster.claims(&namespace).get_opt(&name).await;
                    known.claim = claim.map_err(|e| refused(e, &format!("read the PVC {namespace}/{name}")))?;
                }
                (Kind::Snapshot, Some(Name { namespace, name })) => {
                    let snapshot = cluster.snapshots(&namespace).get_opt(&name).await;
                    known.snapshot =
                        snapshot.map_err(|e| refused(e, &format!("read the VolumeSnapshot {namespace}/{name}")))?;
                }
            }
            known.lvol = Some(*lvol);
        }
    }
    if let Some(uuid) = known.lvol.as_ref().map(|lvol| lvol.spec.lvol_uuid) {
        known.volume = world.volume(uuid).cloned();
        known.content = world.content(uuid).cloned();
    }
    Ok(known)
}

async fn said(cluster: &Cluster, known: &Known) -> Vec<events::Said> {
    let (claim, snapshot) = (known.claim.as_ref(), known.snapshot.as_ref());
    let about = [
        claim.map(|o| (o.namespace(), o.uid())),
        snapshot.map(|o| (o.namespace(), o.uid())),
        known.volume.as_ref().map(|o| (None, o.uid())),
        known.content.as_ref().map(|o| (None, o.uid())),
        known.lvol.as_ref().map(|o| (None, o.uid())),
    ];
    let mut all = Vec::new();
    for (namespace, uid) in about.into_iter().flatten() {
        if let Some(uid) = uid {
            all.extend(events::of(cluster, namespace.as_deref(), &uid).await);
        }
    }
    all.sort_by(|a, b| a.last.cmp(&b.last));
    all
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

fn facts(world: &World, known: &Known, pods: &[Pod], now: jiff::Timestamp) -> String {
    let mut facts = Vec::new();
    if let Some(claim) = &known.claim {
        let size = size_of_claim(claim).unwrap_or_default();
        let class = class_of_claim(claim).unwrap_or("no class");
        let access = claim.spec.as_ref().and_then(|spec| spec.access_modes.clone()).unwrap_or_default().join(", ");
        let phase = phase_of_claim(claim);
        facts.push(("Claim", format!("{} ({phase}, {size}, {access}, {class})", name_of(claim))));
        facts.push(("Pods", or_dash(users(pods, &name_of(claim)).join(", "))));
    }
    if let Some(snapshot) = &known.snapshot {
        let ready = snapshot.data.pointer("/status/readyToUse").and_then(serde_json::Value::as_bool) == Some(true);
        let state = if ready { "ready to use" } else { "not ready" };
        let class = or_dash(text(snapshot, "/spec/volumeSnapshotClassName"));
        let of = text(snapshot, "/spec/source/persistentVolumeClaimName");
        let of = if of.is_empty() { String::new() } else { format!(", of the PVC {of}") };
        facts.push(("VolumeSnapshot", format!("{} ({state}, {class}{of})", name_of(snapshot))));
        let error = text(snapshot, "/status/error/message");
        if !error.is_empty() {
            facts.push(("Error", error.to_string()));
        }
    }
    if let Some(volume) = &known.volume {
        let spec = volume.spec.clone().unwrap_or_default();
        let policy = spec.persistent_volume_reclaim_policy.unwrap_or_default();
        let phase = volume.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        facts.push(("PersistentVolume", format!("{} ({phase}, {policy})", volume.name_any())));
    }
    if let Some(content) = &known.content {
        let policy = text(content, "/spec/deletionPolicy");
        facts.push(("VolumeSnapshotContent", format!("{} ({policy})", content.name_any())));
    }
    let Some(lvol) = &known.lvol else {
        let mut text = output::facts(facts);
        text.push_str("\n\nThere is no lvol for it yet, or it is not of Coppice.");
        return text;
    };
    facts.extend(of_lvol(world, lvol, now));
    let mut text = output::facts(facts);
    let rows = conditions(lvol).iter().map(|c| {
        let since = age(Some(&c.last_transition_time), now);
        vec![c.type_.clone(), c.status.clone(), c.reason.clone(), since, c.message.clone()]
    });
    let columns = [left("CONDITION"), left("STATUS"), left("REASON"), left("SINCE"), left("MESSAGE")];
    text.push_str("\n\nConditions\n");
    text.push_str(&indented(&table(&columns, rows)));
    let mut advice: Vec<String> = advice::of_lvol(lvol).into_iter().map(String::from).collect();
    advice.extend(world.lvstore(lvol.spec.lvstore_uuid).map(advice::of_lvstore).unwrap_or_default());
    if known.claim.is_none() && known.snapshot.is_none() && known.volume.is_none() && known.content.is_none() {
        advice.push(nobodys(lvol));
    }
    if !advice.is_empty() {
        text.push_str("\n\nWhat to do\n");
        text.push_str(&indented(&advice));
    }
    text
}

fn nobodys(lvol: &Lvol) -> String {
    let (name, what) = (lvol.spec.lvol_uuid, noun(lvol.spec.kind));
    match lvol.spec.kind {
        Kind::Volume => {
            format!("No PersistentVolume names this {what}: kubectl coppice adopt lvol {name} --pv makes one.")
        }
        Kind::Snapshot => {
            format!("No VolumeSnapshotContent names this {what}: make one by hand with the snapshotHandle {name}.")
        }
    }
}

fn of_lvol(world: &World, lvol: &Lvol, now: jiff::Timestamp) -> Vec<(&'static str, String)> {
    let (spec, status) = (&lvol.spec, lvol.status.clone().unwrap_or_default());
    let adopted = if spec.adopted { ", adopted" } else { "" };
    let mut facts = vec![
        ("Lvol", format!("{} ({}{adopted})", lvol.name_any(), noun(spec.kind))),
        ("UUID", spec.lvol_uuid.to_string()),
        ("Size", human(size_of(lvol))),
        ("Allocated", allocated(lvol).map_or_else(|| "–".to_string(), human)),
        ("Provisioning", format!("{:?}", spec.provisioning).to_lowercase()),
        ("Node", spec.node.clone()),
        (
            "Lvstore",
            match world.lvstore(spec.lvstore_uuid) {
                Some(store) => format!("{} ({}, {})", store.name_any(), store.spec.name, store_state(store)),
                None => format!("{}, which has no object", spec.lvstore_uuid),
            },
        ),
        (
            "Made",
            status
                .created
                .as_ref()
                .map_or_else(|| "–".to_string(), |time| format!("{} ({} ago)", time.0, age(Some(time), now))),
        ),
    ];
    let named = |uuid| match world.lvol(uuid) {
        Some(other) => match world.owner(other) {
            Some(owner) => format!("{} {owner} ({uuid})", noun(other.spec.kind)),
            None => format!("{} {} ({uuid})", noun(other.spec.kind), other.name_any()),
        },
        None => format!("{uuid}, a snapshot that was deleted, or taken for a clone"),
    };
    facts.extend(spec.source_uuid.map(|uuid| ("Made from", named(uuid))));
    facts.extend(status.parent.map(|uuid| ("Reads from", named(uuid))));
    if let Some(hydration) = &status.hydration {
        let left = human(hydration.remaining.bytes());
        facts.push(("Hydrated", format!("{}, {left} left", super::world::hydrated(hydration))));
    }
    let devices: Vec<String> = status.exports.iter().map(|one| format!("{} ({})", one.device, one.kind)).collect();
    facts.push(("Devices", or_dash(devices.join(", "))));
    facts
}

/// The pods that use a claim: `web on node1 (Running)`.
pub fn users(pods: &[Pod], claim: &objects::Name) -> Vec<String> {
    let uses = |pod: &&Pod| {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let mut names = volumes.filter_map(|volume| Some(&volume.persistent_volume_claim.as_ref()?.claim_name));
        pod.namespace().as_deref() == Some(claim.namespace.as_str()) && names.any(|name| *name == claim.name)
    };
    let said = |pod: &Pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending");
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("no node");
        format!("{} on {node} ({phase})", pod.name_any())
    };
    pods.iter().filter(uses).map(said).collect()
}
