//! `kubectl coppice` against an API server in the test's own process: what is printed, what is made, what is refused.
//!
//! What docs/kubectl.md shows is what is printed here. COPPICE_WRITE_DOCS=1 prints it for pasting.

mod adopting;
mod making;
mod world;

use anyhow::{Context, Result};
use coppice_fake_api::Api;
use serde_json::{Value, json};
use world::{World, condition, event, lvstore};

const DOCS: &str = include_str!("../../../docs/kubectl.md");

/// `text` with times that do not change from run to run.
pub fn timeless(text: &str) -> String {
    let word = |word: &str| match word.trim_end_matches(',').parse::<jiff::Timestamp>() {
        Ok(_) => "2026-11-24T08:15:00Z".to_string(),
        Err(_) => word.to_string(),
    };
    let mut lines = Vec::new();
    for line in text.lines() {
        let words: Vec<String> = line.split(' ').map(word).collect();
        let line = words.join(" ");
        lines.push(match line.split_once(", after ") {
            Some((before, _)) => format!("{before}, after 0.4 s"),
            None => line,
        });
    }
    lines.join("\n") + "\n"
}

/// The documents show `text` under the command that prints it.
pub fn documented(command: &str, text: &str) {
    let block = format!("$ kubectl coppice {command}\n{text}");
    if std::env::var_os("COPPICE_WRITE_DOCS").is_some() {
        println!("{block}");
        return;
    }
    assert!(DOCS.contains(&block), "docs/kubectl.md must hold:\n{block}");
}

#[tokio::test]
async fn what_is_there() -> Result<()> {
    let world = World::full().await?;
    for command in ["get -A", "get snapshots -A", "get lvstores", "tree -A"] {
        let args: Vec<&str> = command.split(' ').collect();
        documented(command, &timeless(&world.ok(&args).await?));
    }
    event(&world.api, "persistentvolumeclaims", "data", "FailedMount", "it was in use");
    documented("describe data", &timeless(&world.ok(&["describe", "data"]).await?));
    assert_eq!(world.ok(&["describe", "pvc/data"]).await?, world.ok(&["describe", "data"]).await?);
    let drained = world.run(&["drain", "node2"]).await?;
    assert_eq!(drained.code, Some(1), "there is something to lose");
    documented("drain node2", &drained.out);
    Ok(())
}

#[tokio::test]
async fn a_namespace_sees_its_own() -> Result<()> {
    let world = World::full().await?;
    let reports = world.ok(&["get", "-n", "reports"]).await?;
    assert!(reports.contains("quarter") && !reports.contains("data"), "{reports}");
    let tree = world.ok(&["tree", "-n", "reports"]).await?;
    assert!(tree.contains("default/monday") && !tree.contains("queue"), "a family stays together: {tree}");
    let nobody = world.run(&["get", "-n", "none"]).await?;
    assert!(nobody.code == Some(0) && nobody.out.is_empty() && nobody.err.contains("-A shows all"), "{nobody:?}");
    let json: Value = serde_json::from_str(&world.ok(&["get", "-n", "reports", "-o", "json"]).await?)?;
    assert_eq!((&json["kind"], &json["items"][0]["spec"]["size"]), (&json!("List"), &json!("30Gi")));
    let yaml: Value = serde_saphyr::from_str(&world.ok(&["get", "lvstores", "-o", "yaml"]).await?)?;
    assert_eq!(yaml["items"][1]["metadata"]["name"], "node2-pool");
    let wide = world.ok(&["get", "-o", "wide"]).await?;
    assert!(wide.contains(&world::id(2)), "{wide}");
    Ok(())
}

#[tokio::test]
async fn hydration_and_trouble_are_seen() -> Result<()> {
    let world = World::full().await?;
    let copy = world.api.all("lvols").into_iter().find(|lvol| lvol["spec"]["lvolUUID"] == world::id(4));
    let mut copy = copy.context("the clone")?;
    copy["spec"]["sourceNode"] = json!("node2");
    copy["status"]["hydration"] = json!({ "total": "20Gi", "remaining": "11Gi", "etaSeconds": 90 });
    world.api.put("lvols", copy);
    let tree = world.ok(&["tree", "-A"]).await?;
    let line = tree.lines().find(|line| line.contains("reports/quarter")).context("drawn")?;
    assert!(line.contains("esnap clone") && line.contains("from node2") && line.contains("Hydrating 45%"), "{line}");
    let told = world.run(&["drain", "node2"]).await?.out;
    assert!(told.contains("STILL READS FROM HERE") && told.contains("reports/quarter"), "{told}");

    let lost = json!({ "status": { "conditions": [condition("Ready", false, "Missing", "gone"), condition("Lost", true, "Missing", "gone")] } });
    let name = world
        .api
        .all("lvols")
        .iter()
        .find(|lvol| lvol["spec"]["lvolUUID"] == world::id(5))
        .map(|l| l["metadata"]["name"].clone());
    let name = name.as_ref().and_then(Value::as_str).context("the queue")?.to_string();
    assert!(world.api.patch("lvols", &name, &lost, true).is_ok());
    let said = world.ok(&["describe", &format!("lvol/{name}")]).await?;
    assert!(said.contains("What to do") && said.contains("Bring the drive back"), "{said}");
    assert!(world.ok(&["get"]).await?.contains("Lost (Missing)"));
    Ok(())
}

#[tokio::test]
async fn a_store_is_cordoned() -> Result<()> {
    let world = World::full().await?;
    let said = world.ok(&["cordon", "node2"]).await?;
    assert!(said.starts_with("lvstore node2-pool of node2 is cordoned"), "{said}");
    let shut = |api: &Api| api.get("lvstores", "node2-pool").map(|store| store["spec"]["unschedulable"].clone());
    assert_eq!(shut(&world.api), Some(json!(true)));
    assert!(world.ok(&["get", "lvstores"]).await?.contains("Open, cordoned"));
    assert!(world.ok(&["cordon", "node2"]).await?.contains("already"));
    world.ok(&["uncordon", "lvstore/node2-pool"]).await?;
    assert_eq!(shut(&world.api), Some(json!(false)));
    assert!(world.refused(&["cordon", "nod2"]).await?.contains("near: node2"));
    Ok(())
}

#[tokio::test]
async fn what_is_wrong_is_said_with_what_to_do() -> Result<()> {
    let world = World::full().await?;
    let near = world.refused(&["describe", "dat"]).await?;
    assert!(near.contains("no PVC or VolumeSnapshot or lvol dat in the namespace default; near: data"), "{near}");
    let odd = world.refused(&["describe", "pod/x"]).await?;
    assert!(odd.contains("say pvc/NAME") || odd.contains("Say pvc/NAME"), "{odd}");

    world.api.state().forbidden.insert("persistentvolumes".into());
    let part = world.run(&["get"]).await?;
    assert_eq!(part.code, Some(0));
    assert!(part.err.contains("you may not list PersistentVolumes") && part.out.contains("data"), "{part:?}");
    world.api.state().forbidden.insert("lvols".into());
    let no = world.refused(&["get"]).await?;
    assert!(no.contains("list lvols: you may not") && no.contains("ask who runs the cluster"), "{no}");

    world.api.state().forbidden.clear();
    world.api.state().unknown.extend(["lvols".to_string(), "lvstores".to_string()]);
    let none = world.refused(&["tree"]).await?;
    assert!(none.contains("Coppice is not installed"), "{none}");

    let nowhere = world.refused(&["--kubeconfig", "nowhere", "get"]).await?;
    assert!(nowhere.contains("nowhere"), "{nowhere}");
    let context = world.refused(&["--context", "other", "get"]).await?;
    assert!(context.contains("other") && context.contains("--context"), "{context}");
    world.api.set_health(coppice_fake_api::Health::Refusing);
    let down = world.refused(&["get"]).await?;
    assert!(down.contains("does not answer"), "{down}");
    let usage = world.run(&["clone", "a"]).await?;
    assert_eq!(usage.code, Some(2), "{usage:?}");
    assert!(usage.err.contains("coppice kubectl clone"), "the usage can be typed: {usage:?}");
    Ok(())
}

#[tokio::test]
async fn the_plugin_has_its_own_name_and_completes() -> Result<()> {
    let world = World::full().await?;
    let help = world.run_as("kubectl-coppice", &["get", "--help"]).await?;
    assert!(help.code == Some(0) && help.out.contains("kubectl coppice get"), "{help:?}");
    assert!(!help.out.contains("--image"), "options of another command: {help:?}");
    let version = world.run_as("kubectl-coppice", &["--version"]).await?;
    assert!(version.out.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
    let complete = world.run_as("kubectl_complete-coppice", &["describe", "da"]).await?;
    assert_eq!(complete.out, "data\n:4\n");
    let complete = world.run_as("kubectl_complete-coppice", &["cordon", ""]).await?;
    assert_eq!(complete.out, "node1\nnode1-pool\nnode2\nnode2-pool\n:4\n");
    world.api.set_health(coppice_fake_api::Health::Silent);
    let silent = world.run_as("kubectl_complete-coppice", &["describe", "da"]).await?;
    assert_eq!(silent.out, ":4\n", "a cluster that hangs does not hang the shell");
    for shell in ["bash", "zsh", "fish"] {
        let script = world.run_as("kubectl-coppice", &["completion", shell]).await?;
        assert!(script.code == Some(0) && script.out.contains("uncordon"), "{shell}: {script:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_dump_has_what_is_needed_and_no_secret() -> Result<()> {
    let world = World::full().await?;
    event(&world.api, "persistentvolumeclaims", "data", "FailedMount", "it was in use");
    let said = world.ok(&["dump", "d/"]).await?;
    assert!(said.contains("files in d/"), "{said}");
    let read =
        |name: &str| std::fs::read_to_string(world.dir.path().join("d").join(name)).with_context(|| name.to_string());
    assert!(read("objects/lvols.yaml")?.contains("default/data"));
    assert!(
        read("objects/storageclasses.yaml")?.contains("coppice-clone")
            && !read("objects/storageclasses.yaml")?.contains("aws")
    );
    assert!(read("objects/events.yaml")?.contains("it was in use"));
    assert!(read("objects/pods.yaml")?.contains("coppice-node-x"));
    assert_eq!(read("logs/coppice-node-x.coppice.log")?, "the log of coppice-node-x\n");
    assert!(read("logs/coppice-node-x.coppice.previous").is_ok());
    for entry in ["objects", "logs"] {
        for file in std::fs::read_dir(world.dir.path().join("d").join(entry))? {
            let text = std::fs::read_to_string(file?.path())?;
            assert!(!text.contains("hunter2"), "another pod's environment");
        }
    }
    assert!(
        world
            .api
            .state()
            .requests
            .iter()
            .all(|request| !request.contains("secrets") && !request.contains("configmaps"))
    );
    world.ok(&["dump", "d.tar.gz"]).await?;
    let archive = std::fs::read(world.dir.path().join("d.tar.gz"))?;
    assert_eq!(archive.get(..2), Some(&[0x1f, 0x8b][..]));
    assert!(world.refused(&["dump", "d.tar.gz"]).await?.contains("d.tar.gz"), "nothing is overwritten");
    Ok(())
}

/// What krew asks of a manifest, as far as it can be seen without a release.
#[test]
fn the_krew_manifest_is_of_this_version() -> Result<()> {
    let manifest: Value = serde_saphyr::from_str(include_str!("../../../deploy/krew/coppice.yaml"))?;
    let version = format!("v{}", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&manifest["apiVersion"], &manifest["kind"]),
        (&json!("krew.googlecontainertools.github.com/v1alpha2"), &json!("Plugin"))
    );
    assert_eq!((&manifest["metadata"]["name"], &manifest["spec"]["version"]), (&json!("coppice"), &json!(version)));
    let platforms = manifest["spec"]["platforms"].as_array().context("platforms")?;
    assert_eq!(platforms.len(), 2);
    for platform in platforms {
        let arch = platform["selector"]["matchLabels"]["arch"].as_str().context("arch")?;
        let uri = platform["uri"].as_str().context("uri")?;
        assert!(uri.contains(&format!("/{version}/")) && uri.contains(arch), "{uri}");
        assert_eq!(
            (&platform["bin"], &platform["selector"]["matchLabels"]["os"]),
            (&json!("kubectl-coppice"), &json!("linux"))
        );
        assert_eq!(platform["sha256"].as_str().map(str::len), Some(64));
        assert!(
            platform["files"].as_array().is_some_and(|files| files.iter().any(|file| file["to"] == "kubectl-coppice"))
        );
    }
    let short = manifest["spec"]["shortDescription"].as_str().context("a description")?;
    assert!(short.len() <= 50, "krew shows no more: {short}");
    Ok(())
}

#[tokio::test]
async fn a_foreign_store_is_adopted() -> Result<()> {
    let world = World::empty().await?;
    lvstore(&world.api, "node1");
    let id = world::id(77);
    let message = format!("f holds the lvstore old ({id}) with 3 lvols; spec.adopt takes it over");
    let foreign =
        json!({ "status": { "uuid": null, "conditions": [condition("Foreign", true, "MadeElsewhere", &message)] } });
    assert!(world.api.patch("lvstores", "node1-pool", &foreign, true).is_ok());
    assert!(world.ok(&["get", "lvstores"]).await?.contains("Foreign"));
    let said = world.ok(&["adopt", "lvstore", "node1-pool"]).await?;
    assert!(said.contains(&id), "{said}");
    assert_eq!(world.api.get("lvstores", "node1-pool").context("it")?["spec"]["adopt"], id);
    assert!(world.ok(&["adopt", "lvstore", "node1-pool"]).await?.contains("already"));
    assert!(world.refused(&["adopt", "lvstore", "node1-poll"]).await?.contains("near: node1-pool"));
    Ok(())
}
