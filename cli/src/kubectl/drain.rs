//! `drain`: tells what would be lost with a node. It changes nothing: local data cannot be moved by wishing.

use super::cluster::{Cluster, list_if_allowed};
use super::describe::users;
use super::near::hint;
use super::print::or_dash;
use super::world::{World, allocated, comes_from_elsewhere, size_of};
use crate::Outcome;
use crate::output::{self, left, right, table};
use crate::size::human;
use anyhow::{Result, bail};
use coppice_kube_api::{Kind, Lvol};
use k8s_openapi::api::core::v1::Pod;

pub async fn run(cluster: &Cluster, node: &str) -> Result<Outcome> {
    let world = World::read(cluster).await?;
    let pods = list_if_allowed(&cluster.pods(), "pods").await?;
    let known = world.lvstores.iter().map(|store| store.spec.node.as_str());
    let known: Vec<&str> = known.chain(world.lvols.iter().map(|lvol| lvol.spec.node.as_str())).collect();
    if !known.contains(&node) {
        bail!("no node with lvstores or lvols is called {node}{}", hint(node, known.iter().copied()));
    }
    let (text, found) = report(&world, &pods, node);
    output::print(&text)?;
    Ok(if found { Outcome::Found } else { Outcome::Done })
}

/// What to print, and whether anything would be lost.
fn report(world: &World, pods: &[Pod], node: &str) -> (String, bool) {
    let of = |kind: Kind| world.lvols.iter().filter(move |lvol| lvol.spec.node == node && lvol.spec.kind == kind);
    let (volumes, snapshots): (Vec<&Lvol>, Vec<&Lvol>) = (of(Kind::Volume).collect(), of(Kind::Snapshot).collect());
    let dependent: Vec<&Lvol> = world
        .lvols
        .iter()
        .filter(|lvol| lvol.spec.source_node.as_deref() == Some(node) && comes_from_elsewhere(lvol))
        .collect();
    if volumes.is_empty() && snapshots.is_empty() && dependent.is_empty() {
        return (format!("Nothing of Coppice is on {node}: it can go.\n"), false);
    }
    let owner = |lvol: &Lvol| or_dash(world.owner(lvol).map(|owner| owner.to_string()).unwrap_or_default());
    let taken = |lvol: &Lvol| allocated(lvol).map_or_else(|| "–".to_string(), human);
    let mut text = String::new();
    if !volumes.is_empty() {
        let columns = [left("VOLUME"), right("SIZE"), right("ALLOCATED"), left("LVSTORE"), left("PODS")];
        let rows = volumes.iter().map(|lvol| {
            let pods = world.owner(lvol).map(|claim| users(pods, &claim).join(", ")).unwrap_or_default();
            vec![owner(lvol), human(size_of(lvol)), taken(lvol), world.store_name(lvol), or_dash(pods)]
        });
        text.push_str(&(table(&columns, rows).join("\n") + "\n\n"));
    }
    if !snapshots.is_empty() {
        let columns = [left("SNAPSHOT"), right("SIZE"), right("ALLOCATED"), left("LVSTORE"), left("OF")];
        let rows = snapshots.iter().map(|lvol| {
            let source = lvol.spec.source_uuid.and_then(|uuid| world.lvol(uuid)).map(owner).unwrap_or_default();
            vec![owner(lvol), human(size_of(lvol)), taken(lvol), world.store_name(lvol), or_dash(source)]
        });
        text.push_str(&(table(&columns, rows).join("\n") + "\n\n"));
    }
    if !dependent.is_empty() {
        let columns = [left("STILL READS FROM HERE"), left("NODE"), left("STATE")];
        let rows = dependent.iter().map(|lvol| vec![owner(lvol), lvol.spec.node.clone(), super::world::state(lvol)]);
        text.push_str(&(table(&columns, rows).join("\n") + "\n\n"));
    }
    let copies = match dependent.len() {
        0 => "No other node has a copy of any of it.".to_string(),
        n => format!("{n} volume(s) of other nodes are still receiving their data from here: wait until they have it."),
    };
    text.push_str(&format!(
        "{} volume(s) and {} snapshot(s) are on {node}, and are lost with it or its drive. {copies}\n\
         \n\
         What to do\n\
         \x20 1. kubectl coppice cordon {node}          no new volumes here\n\
         \x20 2. For maintenance: stop the pods (kubectl drain {node} --ignore-daemonsets), and let them come back afterwards.\n\
         \x20    They wait for this node: their data is nowhere else.\n\
         \x20 3. To give the node up: copy what is needed with the applications' own means or through a pod, then delete these\n\
         \x20    claims and snapshots. kubectl coppice drain {node} says when nothing is left.\n",
        volumes.len(),
        snapshots.len(),
    ));
    (text, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use uuid::Uuid;

    fn lvol(name: &str, id: u128, node: &str, source: Option<&str>) -> Lvol {
        let mut object = json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol",
            "metadata": { "name": name, "annotations": { "coppice.io/pvc": format!("default/{name}") } },
            "spec": { "requestName": name, "kind": "Volume", "size": "1Gi", "node": node,
                "lvstoreUUID": Uuid::from_u128(1), "lvolUUID": Uuid::from_u128(id) } });
        if let Some(source) = source {
            object["spec"]["sourceUUID"] = json!(Uuid::from_u128(77));
            object["spec"]["sourceKind"] = json!("Snapshot");
            object["spec"]["sourceNode"] = json!(source);
            object["status"] = json!({ "hydration": { "total": "1Gi", "remaining": "512Mi" } });
        }
        serde_json::from_value(object).expect("a lvol")
    }

    #[test]
    fn what_is_there_and_who_still_reads_it() {
        let lvols = vec![lvol("data", 1, "a", None), lvol("copy", 2, "b", Some("a"))];
        let world = World::of(lvols, vec![], vec![], vec![]);
        let (text, found) = report(&world, &[], "a");
        assert!(
            found && text.contains("default/data") && text.contains("1 volume(s) and 0 snapshot(s) are on a"),
            "{text}"
        );
        assert!(text.contains("default/copy") && text.contains("Unseen") && text.contains("wait until"), "{text}");
        let (text, found) = report(&World::default(), &[], "a");
        assert!(!found && text.contains("it can go"), "{text}");
    }
}
