//! `tree`: what came from what, on every node, and whose it is.
//!
//! A snapshot that was deleted and is still read, or that was taken for a clone of a volume, has no object; its node tells of it. It
//! is drawn too, so that its readers stand together.

use super::args::{Output, Tree};
use super::cluster::Cluster;
use super::print::{object, objects, or_dash};
use super::target::{May, Target, find};
use super::world::{World, comes_from_elsewhere, drawn, nameless, state, store_state};
use crate::output::{self, left};
use crate::tree::{self as drawing, Leaf, Space};
use anyhow::{Result, bail};
use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_kube_api::{Kind, Lvol, Lvstore};
use kube::ResourceExt;
use serde_json::Value;
use std::collections::BTreeSet;
use uuid::Uuid;

pub async fn run(cluster: &Cluster, args: &Tree, format: Output) -> Result<()> {
    let world = World::read(cluster).await?;
    let shown = match &args.name {
        Some(name) => {
            let lvol = of_target(&world, find(cluster, name, May::BeAnything).await?)?;
            world.family(lvol)
        }
        None => chosen(&world, Some(cluster.namespace.as_str()).filter(|_| !args.all_namespaces)),
    };
    let lvols = world.lvols.iter().filter(|lvol| shown.contains(&lvol.spec.lvol_uuid));
    let found: Vec<Value> = lvols.map(object).collect::<Result<_>>()?;
    if objects(format, &found, true)? {
        return Ok(());
    }
    if found.is_empty() {
        eprintln!("there are no volumes of Coppice in the namespace {}; -A shows all", cluster.namespace);
        return Ok(());
    }
    output::print(&draw(&world, &shown, output::colour()))
}

/// The lvol of what was named.
pub fn of_target(world: &World, target: Target) -> Result<Uuid> {
    let (kind, name) = match &target {
        Target::Lvol(lvol) => return Ok(lvol.spec.lvol_uuid),
        Target::Claim(claim) => (Kind::Volume, super::objects::name_of(claim.as_ref())),
        Target::Snapshot(snapshot) => (Kind::Snapshot, super::objects::name_of(snapshot.as_ref())),
    };
    match world.owned(kind, &name) {
        Some(lvol) => Ok(lvol.spec.lvol_uuid),
        None => bail!("{name} has no lvol: it is not made yet, or not of Coppice; kubectl coppice describe says more"),
    }
}

/// Whole families that have somebody in the namespace; all, without one.
fn chosen(world: &World, namespace: Option<&str>) -> BTreeSet<Uuid> {
    let of_it = |lvol: &&Lvol| match namespace {
        Some(namespace) => world.owner(lvol).is_some_and(|owner| owner.namespace == namespace),
        None => true,
    };
    let mut shown = BTreeSet::new();
    for lvol in world.lvols.iter().filter(of_it) {
        if !shown.contains(&lvol.spec.lvol_uuid) {
            shown.extend(world.family(lvol.spec.lvol_uuid));
        }
    }
    shown
}

/// One picture for each store that has something to show.
pub fn draw(world: &World, shown: &BTreeSet<Uuid>, colour: bool) -> String {
    let mut stores: Vec<(Uuid, &str)> = world
        .lvols
        .iter()
        .filter(|lvol| shown.contains(&lvol.spec.lvol_uuid))
        .map(|lvol| (lvol.spec.lvstore_uuid, lvol.spec.node.as_str()))
        .collect();
    stores.sort_by_key(|(uuid, node)| (*node, world.lvstore(*uuid).map(|store| store.spec.name.as_str()), *uuid));
    stores.dedup();
    let pictures: Vec<String> =
        stores.into_iter().map(|(uuid, node)| picture(world, uuid, node, shown, colour)).collect();
    pictures.join("\n")
}

fn picture(world: &World, uuid: Uuid, node: &str, shown: &BTreeSet<Uuid>, colour: bool) -> String {
    let store = world.lvstore(uuid);
    let unit = store.and_then(|store| store.status.as_ref()?.cluster_size).map_or(1, |size| size.bytes());
    let here = |lvol: &&Lvol| lvol.spec.lvstore_uuid == uuid && shown.contains(&lvol.spec.lvol_uuid);
    let known: Vec<(&Lvol, LvolInfo)> = world.lvols.iter().filter(here).map(|lvol| (lvol, drawn(lvol, unit))).collect();
    let kept = world.kept(uuid);
    let kept = kept.iter().filter(|kept| shown.contains(&kept.lvol_uuid)).map(|kept| LvolInfo {
        state: LvolState::Hidden,
        parent: kept.parent,
        allocated_clusters: kept.allocated.bytes().div_ceil(unit.max(1)),
        ..nameless(kept.lvol_uuid, LvolKind::Snapshot, kept.size.bytes(), unit)
    });
    let kept: Vec<LvolInfo> = kept.collect();
    let mut leaves: Vec<Leaf> = kept.iter().map(nobodys).collect();
    leaves.extend(known.iter().map(|(lvol, info)| leaf(world, lvol, info)));
    let mut lines = drawing::rows(&leaves, &[left("LVOL")], colour);
    lines.extend([String::new(), footer(store, uuid, node), String::new()]);
    lines.join("\n")
}

fn leaf<'a>(world: &World, lvol: &Lvol, info: &'a LvolInfo) -> Leaf<'a> {
    let from = lvol.spec.source_node.as_ref().filter(|_| comes_from_elsewhere(lvol));
    Leaf {
        lvol: info,
        name: or_dash(world.owner(lvol).map(|owner| owner.to_string()).unwrap_or_default()),
        state: state(lvol),
        inherits: from.map(|node| format!("from {node}")),
        unknown: false,
        more: vec![lvol.name_any()],
    }
}

fn nobodys(info: &LvolInfo) -> Leaf<'_> {
    Leaf {
        lvol: info,
        name: "(kept)".to_string(),
        state: "Hidden".to_string(),
        inherits: None,
        unknown: info.size == 0,
        more: vec!["–".to_string()],
    }
}

fn footer(store: Option<&Lvstore>, uuid: Uuid, node: &str) -> String {
    let Some(store) = store else { return format!("{node}, lvstore {uuid}: it has no object") };
    let name = format!("{node}, {} ({})", store.spec.name, store_state(store));
    match store.status.as_ref().and_then(|status| status.space) {
        Some(space) => drawing::space(&Space {
            name: &name,
            used: space.total.bytes().saturating_sub(space.free.bytes()),
            hidden: 0,
            reserved: None,
            free: space.free.bytes(),
            total: space.total.bytes(),
        }),
        None => name,
    }
}
