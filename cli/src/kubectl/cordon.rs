//! `cordon`, `uncordon`: whether lvstores take new volumes.

use super::cluster::{Cluster, list, refused_ours};
use super::near::hint;
use super::print::say;
use anyhow::{Result, bail};
use coppice_kube_api::Lvstore;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use serde_json::json;

pub async fn run(cluster: &Cluster, what: &str, cordon: bool) -> Result<()> {
    let all = list(&cluster.lvstores()).await.map_err(|e| refused_ours(e, "list lvstores"))?;
    let done = if cordon { "cordoned" } else { "uncordoned" };
    for store in named(&all, what)? {
        let name = store.name_any();
        if store.spec.unschedulable == cordon {
            say(&format!("lvstore {name} is {done} already"))?;
            continue;
        }
        let patch = json!({ "spec": { "unschedulable": cordon } });
        let patched = cluster.lvstores().patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
        patched.map_err(|e| refused_ours(e, &format!("change the lvstore {name}")))?;
        say(&format!("lvstore {name} of {} is {done}", store.spec.node))?;
    }
    if cordon {
        say("Volumes that exist go on, and can be snapshotted, cloned and expanded.")?;
    }
    Ok(())
}

/// The lvstores that `what` means: one by the name of its object, or those of a node.
fn named<'a>(all: &'a [Lvstore], what: &str) -> Result<Vec<&'a Lvstore>> {
    let (only, name) = match what.split_once('/') {
        Some((kind @ ("node" | "nodes" | "lvstore" | "lvstores"), name)) => (Some(kind.starts_with("node")), name),
        Some(_) => bail!("{what}: say node/NAME or lvstore/NAME"),
        None => (None, what),
    };
    let by_name = all.iter().filter(|store| store.name_any() == name && only != Some(true));
    let by_name: Vec<&Lvstore> = by_name.collect();
    if !by_name.is_empty() {
        return Ok(by_name);
    }
    let of_node: Vec<&Lvstore> = all.iter().filter(|store| store.spec.node == name && only != Some(false)).collect();
    if of_node.is_empty() {
        let names: Vec<String> = all.iter().flat_map(|store| [store.name_any(), store.spec.node.clone()]).collect();
        bail!("no lvstore, and no node with one, is called {name}{}", hint(name, names.iter().map(String::as_str)));
    }
    Ok(of_node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_or_a_store() {
        let store = |name: &str, node: &str| -> Lvstore {
            serde_json::from_value(
                json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": name },
                "spec": { "node": node, "name": "fast", "device": "f" } }),
            )
            .expect("a lvstore")
        };
        let all = [store("a-fast", "a"), store("a-slow", "a"), store("b", "b"), store("a", "c")];
        let names = |what: &str| named(&all, what).map(|all| all.iter().map(|s| s.name_any()).collect::<Vec<_>>());
        assert_eq!(names("a-slow").expect("found"), ["a-slow"]);
        assert_eq!(names("a").expect("found"), ["a"], "the object goes first");
        assert_eq!(names("node/a").expect("found"), ["a-fast", "a-slow"]);
        assert_eq!(names("c").expect("found"), ["a"]);
        assert_eq!(names("lvstore/b").expect("found"), ["b"]);
        assert!(names("lvstore/c").is_err() && names("pod/a").is_err());
        let near = names("a-fst").map_err(|e| e.to_string()).expect_err("not there");
        assert!(near.ends_with("near: a-fast"), "{near}");
    }
}
