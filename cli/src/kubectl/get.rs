//! `get`: one table.

use super::args::{Get, Output, What};
use super::cluster::Cluster;
use super::print::{age, object, objects, or_dash};
use super::world::{World, allocated, size_of, state, store_state};
use crate::output::{self, Column, left, right, table};
use crate::size::human;
use anyhow::Result;
use coppice_kube_api::{ByteSize, Kind, Lvol, Lvstore};
use kube::ResourceExt;
use serde_json::Value;

pub async fn run(cluster: &Cluster, args: &Get, format: Output) -> Result<()> {
    let world = World::read(cluster).await?;
    let namespace = Some(cluster.namespace.as_str()).filter(|_| !args.all_namespaces);
    let found: Vec<Value> = match args.what {
        What::Volumes => of_namespace(&world, Kind::Volume, namespace).map(object).collect::<Result<_>>()?,
        What::Snapshots => of_namespace(&world, Kind::Snapshot, namespace).map(object).collect::<Result<_>>()?,
        What::Lvstores => world.lvstores.iter().map(object).collect::<Result<_>>()?,
    };
    if objects(format, &found, true)? {
        return Ok(());
    }
    let lines = lines(&world, args.what, namespace, format == Output::Wide, jiff::Timestamp::now());
    if lines.len() == 1 {
        let place = namespace.map_or_else(String::new, |name| format!(" in the namespace {name}; -A shows all"));
        let what = match args.what {
            What::Volumes => "volumes of Coppice",
            What::Snapshots => "snapshots of Coppice",
            What::Lvstores => "lvstores: make an object for each drive, see deploy/README.md",
        };
        eprintln!("there are no {what}{place}");
        return Ok(());
    }
    output::print(&(lines.join("\n") + "\n"))
}

/// Those whose claim or VolumeSnapshot is in the namespace; all, also those that belong to nobody, if there is none.
fn of_namespace<'a>(world: &'a World, kind: Kind, namespace: Option<&'a str>) -> impl Iterator<Item = &'a Lvol> {
    world.lvols.iter().filter(move |lvol| lvol.spec.kind == kind).filter(move |lvol| match namespace {
        Some(namespace) => world.owner(lvol).is_some_and(|owner| owner.namespace == namespace),
        None => true,
    })
}

pub fn lines(world: &World, what: What, namespace: Option<&str>, wide: bool, now: jiff::Timestamp) -> Vec<String> {
    let more = |columns: &[Column], wider: &[Column]| match wide {
        true => [columns, wider].concat(),
        false => columns.to_vec(),
    };
    match what {
        What::Volumes | What::Snapshots => {
            let kind = if what == What::Volumes { Kind::Volume } else { Kind::Snapshot };
            let first = if kind == Kind::Volume { "CLAIM" } else { "SNAPSHOT" };
            let columns = [
                left(first),
                right("SIZE"),
                right("ALLOCATED"),
                left("NODE"),
                left("LVSTORE"),
                left("STATE"),
                left("AGE"),
            ];
            let columns = more(&columns, &[left("LVOL"), left("UUID"), left("SOURCE")]);
            let lvols = of_namespace(world, kind, namespace);
            table(&columns, lvols.map(|lvol| lvol_row(world, lvol, namespace.is_some(), wide, now)))
        }
        What::Lvstores => {
            let columns = [
                left("LVSTORE"),
                left("NODE"),
                left("STORE"),
                right("TOTAL"),
                right("FREE"),
                right("COMMITTED"),
                right("ORPHANS"),
                left("STATE"),
                left("AGE"),
            ];
            let columns = more(&columns, &[left("DEVICE"), left("UUID")]);
            table(&columns, world.lvstores.iter().map(|store| store_row(store, wide, now)))
        }
    }
}

fn lvol_row(world: &World, lvol: &Lvol, short: bool, wide: bool, now: jiff::Timestamp) -> Vec<String> {
    let owner = world.owner(lvol);
    let name = owner.map(|owner| if short { owner.name } else { owner.to_string() }).unwrap_or_default();
    let mut row = vec![
        or_dash(name),
        human(size_of(lvol)),
        allocated(lvol).map_or_else(|| "–".to_string(), human),
        lvol.spec.node.clone(),
        world.store_name(lvol),
        state(lvol),
        age(lvol.metadata.creation_timestamp.as_ref(), now),
    ];
    if wide {
        let source = lvol.spec.source_uuid.map_or_else(String::new, |uuid| uuid.to_string());
        row.extend([lvol.name_any(), lvol.spec.lvol_uuid.to_string(), or_dash(source)]);
    }
    row
}

fn store_row(store: &Lvstore, wide: bool, now: jiff::Timestamp) -> Vec<String> {
    let status = store.status.as_ref();
    let space = status.and_then(|status| status.space);
    let bytes = |of: Option<ByteSize>| of.map_or_else(|| "–".to_string(), |size| human(size.bytes()));
    let mut row = vec![
        store.name_any(),
        store.spec.node.clone(),
        store.spec.name.clone(),
        bytes(space.map(|space| space.total)),
        bytes(space.map(|space| space.free)),
        bytes(space.map(|space| space.committed)),
        status.map_or(0, |status| status.orphans.len()).to_string(),
        store_state(store),
        age(store.metadata.creation_timestamp.as_ref(), now),
    ];
    if wide {
        let uuid = status.and_then(|status| status.uuid).map_or_else(String::new, |uuid| uuid.to_string());
        row.extend([store.spec.device.clone(), or_dash(uuid)]);
    }
    row
}
