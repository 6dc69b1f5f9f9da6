//! `adopt`: what this cluster lost sight of becomes its own again.
//!
//! * A store that another cluster used, or that was made outside Kubernetes: `spec.adopt` names it, its agent opens it.
//! * A lvol whose object is gone: its agent reports it in the Lvstore's status, with what the drive knows. The object that is made
//!   of that has the name and the handle that it had, so that PersistentVolumes, VolumeSnapshotContents and retries of the
//!   request find it. It is `adopted`: its lvol is never created, whatever happens.

use super::args::{AdoptLvol, AdoptLvstore};
use super::cluster::{Cluster, list, refused, refused_ours};
use super::follow::Follower;
use super::near::hint;
use super::objects::Name;
use super::print::{documents, object, say};
use super::static_pv::{self, Wanted};
use super::target::noun;
use super::world::{World, state, store_conditions};
use crate::output;
use anyhow::{Context, Result, anyhow, bail};
use coppice_kube_api::{ANNOTATION_PVC, Lvol, LvolCondition, Lvstore, LvstoreCondition, ORPHANS_MAX, Orphan, is_true};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use uuid::Uuid;

/// Characters.
const UUID_LEN: usize = 36;

pub async fn lvstore(cluster: &Cluster, args: &AdoptLvstore) -> Result<()> {
    let api = cluster.lvstores();
    let found =
        api.get_opt(&args.name).await.map_err(|e| refused_ours(e, &format!("read the lvstore {}", args.name)))?;
    let Some(store) = found else {
        let names = list(&api).await.unwrap_or_default();
        let names: Vec<String> = names.iter().map(ResourceExt::name_any).collect();
        bail!("there is no Lvstore object {}{}", args.name, hint(&args.name, names.iter().map(String::as_str)));
    };
    let uuid = match args.uuid {
        Some(uuid) => uuid,
        None => foreign(&store)?,
    };
    if store.spec.adopt == Some(uuid) {
        return say(&format!("lvstore {} is to adopt {uuid} already; kubectl get lvstores shows how it is", args.name));
    }
    let patch = json!({ "spec": { "adopt": uuid } });
    let patched = api.patch(&args.name, &PatchParams::default(), &Patch::Merge(patch)).await;
    patched.map_err(|e| refused_ours(e, &format!("change the lvstore {}", args.name)))?;
    say(&format!(
        "lvstore {} adopts {uuid}. Its lvols have no objects yet: when it is open, kubectl coppice adopt lvol --all",
        args.name
    ))
}

/// The store that the condition Foreign names.
fn foreign(store: &Lvstore) -> Result<Uuid> {
    let name = store.name_any();
    let condition = store_conditions(store)
        .iter()
        .find(|c| c.type_ == LvstoreCondition::Foreign.as_str() && c.status == "True")
        .ok_or_else(|| {
            anyhow!(
                "the lvstore {name} is not Foreign: there is nothing to adopt ({})",
                super::world::store_state(store)
            )
        })?;
    // As the agent writes it: `… holds the lvstore NAME (UUID) …`; UUIDs of clusters come later.
    let named = condition.message.split('(').skip(1).find_map(|rest| Uuid::parse_str(rest.get(..UUID_LEN)?).ok());
    named.ok_or_else(|| anyhow!("say with --uuid which store the lvstore {name} is to adopt: {}", condition.message))
}

/// A lvol without an object, and where it is.
struct Found<'a> {
    store: &'a Lvstore,
    orphan: &'a Orphan,
}

pub async fn lvols(cluster: &Cluster, args: &AdoptLvol) -> Result<()> {
    let claim = match &args.claim {
        Some(text) => Some(Name::parse(text).ok_or_else(|| anyhow!("--claim {text}: say NAMESPACE/NAME"))?),
        None => None,
    };
    if claim.is_some() && (args.all || args.lvols.len() > 1) {
        bail!("--claim goes with one lvol: a claim has one volume");
    }
    let world = World::read(cluster).await?;
    let on_node = |store: &&Lvstore| args.node.as_ref().is_none_or(|node| store.spec.node == *node);
    let stores: Vec<&Lvstore> = world.lvstores.iter().filter(on_node).collect();
    let all: Vec<Found> = stores
        .iter()
        .flat_map(|store| store.status.iter().flat_map(|status| &status.orphans).map(|orphan| Found { store, orphan }))
        .collect();
    warn_of_closed(&stores);
    let (orphans, known) = choose(args, &world, &all)?;
    let mut objects = Vec::new();
    for Found { store, orphan } in &orphans {
        match orphan.object(store) {
            Some(object) => objects.push((object, *orphan)),
            None => {
                eprintln!("note: {} is left alone: its node is of a later version than this command", orphan.lvol_uuid)
            }
        }
    }
    let mut volumes = Vec::new();
    if args.pv {
        let of_orphans = objects.iter().map(|(lvol, orphan)| (lvol, orphan.file_system.as_deref(), Some(*orphan)));
        for (lvol, file_system, orphan) in of_orphans.chain(known.iter().map(|lvol| (*lvol, None, None))) {
            if static_pv::can_have_one(lvol) && world.volume(lvol.spec.lvol_uuid).is_none() {
                volumes.push(volume(cluster, args, claim.clone(), lvol, file_system, orphan.is_some()).await?);
            }
        }
    }
    if args.dry_run {
        let mut whole: Vec<Value> = objects.iter().map(|(lvol, _)| object(lvol)).collect::<Result<_>>()?;
        whole.extend(volumes);
        return output::print(&documents(&whole)?);
    }
    make(cluster, args, &objects).await?;
    for volume in volumes {
        make_volume(cluster, volume).await?;
    }
    if all.len() >= ORPHANS_MAX {
        say(&format!("A node tells of {ORPHANS_MAX} such lvols at a time: run this again in a few seconds."))?;
    }
    Ok(())
}

/// Orphans to adopt, and lvols that have an object but may lack a PersistentVolume.
fn choose<'a>(args: &AdoptLvol, world: &'a World, all: &'a [Found<'a>]) -> Result<(Vec<&'a Found<'a>>, Vec<&'a Lvol>)> {
    if args.all {
        if all.is_empty() && !args.pv {
            eprintln!(
                "no lvol without an object is reported. Nodes look every 10 seconds, so after a deletion by hand wait a moment"
            );
        }
        let on_node = |lvol: &&Lvol| args.node.as_ref().is_none_or(|node| lvol.spec.node == *node);
        let known = world.lvols.iter().filter(|_| args.pv).filter(on_node);
        // Without a PersistentVolume and without anybody who waits for one: made by the driver a moment ago, or nobody's.
        return Ok((all.iter().collect(), known.filter(|lvol| lvol.spec.adopted).collect()));
    }
    let (mut orphans, mut known) = (Vec::new(), Vec::new());
    for wanted in &args.lvols {
        let uuid = Uuid::parse_str(wanted).ok();
        let is = |id: Uuid, names: [&str; 2]| uuid == Some(id) || names.contains(&wanted.as_str());
        let found = all.iter().filter(|one| {
            let request = one.orphan.request_name.as_deref().unwrap_or_default();
            is(one.orphan.lvol_uuid, [&one.orphan.name, request])
        });
        let found: Vec<&Found> = found.collect();
        match found.as_slice() {
            [only] => orphans.push(*only),
            [] => match world.lvols.iter().find(|lvol| is(lvol.spec.lvol_uuid, [&lvol.name_any(), ""])) {
                Some(lvol) if args.pv => known.push(lvol),
                Some(lvol) => eprintln!("note: {wanted} has an object, {}: nothing to adopt", lvol.name_any()),
                None => {
                    let names: Vec<String> = all.iter().map(|one| one.orphan.name.clone()).collect();
                    bail!(
                        "no lvstore reports {wanted} as a lvol without an object{}; nodes look every 10 seconds",
                        hint(wanted, names.iter().map(String::as_str))
                    );
                }
            },
            several => {
                let ids: Vec<String> = several.iter().map(|one| one.orphan.lvol_uuid.to_string()).collect();
                bail!("{wanted} is the name of several lvols: name it by UUID ({})", ids.join(", "));
            }
        }
    }
    Ok((orphans, known))
}

/// Stores that cannot tell what is in them.
fn warn_of_closed(stores: &[&Lvstore]) {
    for store in stores.iter().filter(|store| !is_true(store_conditions(store), LvstoreCondition::Ready)) {
        let state = super::world::store_state(store);
        eprintln!("note: the lvstore {} is not open ({state}); what it reports is from before", store.name_any());
    }
}

/// Makes the objects, and waits until the nodes have seen them.
async fn make(cluster: &Cluster, args: &AdoptLvol, objects: &[(Lvol, &Orphan)]) -> Result<()> {
    let api = cluster.lvols();
    let mut waiting = Vec::new();
    for (lvol, orphan) in objects {
        let name = lvol.name_any();
        match api.create(&PostParams::default(), lvol).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let there = api.get(&name).await.map_err(|e| refused_ours(e, &format!("read the lvol {name}")))?;
                if there.spec.lvol_uuid != lvol.spec.lvol_uuid {
                    eprintln!(
                        "note: {} cannot be adopted: the name {name} belongs to the lvol {} now, which was made since",
                        orphan.lvol_uuid, there.spec.lvol_uuid
                    );
                    continue;
                }
            }
            Err(e) => return Err(refused_ours(e, &format!("make the lvol object {name}"))),
        }
        waiting.push(name);
    }
    let mut bad = Vec::new();
    let what = "the nodes to see what was adopted";
    let look = async || {
        let all = list(&api).await.map_err(|e| refused_ours(e, "list lvols"))?;
        let mut left = Vec::new();
        for name in std::mem::take(&mut waiting) {
            let Some(lvol) = all.iter().find(|lvol| lvol.name_any() == name) else {
                bad.push(format!("{name} was deleted again"));
                continue;
            };
            let holds = |kind: LvolCondition| is_true(super::world::conditions(lvol), kind);
            match (holds(LvolCondition::Ready), holds(LvolCondition::Lost)) {
                (true, _) => {
                    let owner = super::world::World::default().owner(lvol);
                    let of = owner.map_or_else(String::new, |owner| format!(", of {owner}"));
                    say(&format!("{} {name} on {} is adopted{of}", noun(lvol.spec.kind), lvol.spec.node))?;
                }
                (_, true) => bad.push(format!("{name} is not on its drive: {}", state(lvol))),
                _ => left.push(name),
            }
        }
        waiting = left;
        Ok(waiting.len())
    };
    Follower::new(cluster, args.timeout).until_none(what, look).await?;
    match bad.is_empty() {
        true => Ok(()),
        false => bail!("{}", bad.join("; ")),
    }
}

async fn volume(
    cluster: &Cluster,
    args: &AdoptLvol,
    claim: Option<Name>,
    lvol: &Lvol,
    file_system: Option<&str>,
    drive_says: bool,
) -> Result<Value> {
    let claim = claim.or_else(|| Name::parse(lvol.annotations().get(ANNOTATION_PVC)?));
    let there: Option<PersistentVolumeClaim> = match &claim {
        Some(Name { namespace, name }) => {
            let found = cluster.claims(namespace).get_opt(name).await;
            found.map_err(|e| refused(e, &format!("read the PVC {namespace}/{name}")))?
        }
        None => None,
    };
    // A claim that has another volume by now is not given this one.
    let bound_elsewhere = there.as_ref().is_some_and(|claim| super::objects::phase_of_claim(claim) == "Bound");
    if bound_elsewhere && args.claim.is_some() {
        bail!("the PVC {} is bound to another volume", args.claim.as_deref().unwrap_or_default());
    }
    let wanted = Wanted {
        claim: claim.filter(|_| !bound_elsewhere),
        there: there.as_ref().filter(|_| !bound_elsewhere),
        class: args.class.as_deref(),
        block: args.block || (drive_says && file_system.is_none()),
        file_system,
    };
    Ok(static_pv::volume(lvol, &wanted))
}

async fn make_volume(cluster: &Cluster, volume: Value) -> Result<()> {
    let volume: PersistentVolume = serde_json::from_value(volume).context("a PersistentVolume")?;
    let name = volume.name_any();
    let made = cluster.volumes().create(&PostParams::default(), &volume).await;
    made.map_err(|e| refused(e, &format!("make the PersistentVolume {name}")))?;
    let spec = volume.spec.unwrap_or_default();
    let claim = spec.claim_ref.and_then(|claim| Some(format!("{}/{}", claim.namespace?, claim.name?)));
    let claim = claim.unwrap_or_else(|| "any claim".to_string());
    let class = spec.storage_class_name.filter(|class| !class.is_empty()).unwrap_or_else(|| "\"\"".to_string());
    say(&format!("PersistentVolume {name} is for {claim}, with storageClassName {class}; its policy is Retain"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(conditions: Value, uuid: Option<u128>) -> Lvstore {
        serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "a" },
            "spec": { "node": "a", "name": "fast", "device": "f" },
            "status": { "uuid": uuid.map(Uuid::from_u128), "conditions": conditions }
        }))
        .expect("a lvstore")
    }

    fn condition(kind: &str, message: &str) -> Value {
        json!({ "type": kind, "status": "True", "reason": "R", "message": message, "lastTransitionTime": "2026-01-01T00:00:00Z" })
    }

    #[test]
    fn the_foreign_store_is_the_one_that_is_named() {
        let id = Uuid::from_u128(0xabc);
        let message = format!("f holds the lvstore old ({id}) with 3 lvols; spec.adopt takes it over");
        let found = foreign(&store(json!([condition("Foreign", &message)]), None));
        assert_eq!(found.expect("found"), id);
        let (other, this) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let message = format!(
            "f holds the lvstore old ({id}) of another cluster ({other}; this is {this}); spec.adopt takes it over"
        );
        for known in [None, Some(0xabc)] {
            assert_eq!(foreign(&store(json!([condition("Foreign", &message)]), known)).expect("found"), id);
        }
        assert!(foreign(&store(json!([condition("Foreign", "no name")]), None)).is_err());
        assert!(foreign(&store(json!([condition("Ready", &message)]), None)).is_err(), "not foreign");
    }
}
