//! Lvols that lost their objects, and the objects that are made again.

use super::rig::{NODE, POOL, Rig, Running, eventually};
use anyhow::{Context, Result};
use coppice_kube_api::{Lvstore, Orphan};
use serde_json::{Value, json};
use std::time::Duration;

fn reported(rig: &Rig, list: &str) -> Vec<Value> {
    let store = rig.api.get("lvstores", POOL).unwrap_or_default();
    store["status"][list].as_array().cloned().unwrap_or_default()
}

/// A volume, a snapshot of it, and a clone of that.
async fn three(rig: &Rig) -> Result<Running> {
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    // One after the other: one whose source is not there yet is tried again much later.
    let volume = rig.volume("pvc-1", json!({ "provisioning": "Thick" }))?;
    rig.lvol_is("pvc-1", "Ready", "True/Available").await?;
    let of = json!({ "kind": "Snapshot", "sourceUUID": volume, "sourceKind": "Volume", "sourceNode": NODE });
    let snapshot = rig.volume("snapshot-1", of)?;
    rig.lvol_is("snapshot-1", "Ready", "True/Available").await?;
    rig.volume("pvc-2", json!({ "sourceUUID": snapshot, "sourceKind": "Snapshot", "sourceNode": NODE }))?;
    rig.lvol_is("pvc-2", "Ready", "True/Available").await?;
    Ok(running)
}

fn remove(rig: &Rig, name: &str) {
    let _ = rig.api.patch("lvols", name, &json!({ "spec": { "reclaim": "Delete" } }), false);
    rig.api.remove("lvols", name);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lost_its_object_is_reported_and_adopted_and_lives_on() -> Result<()> {
    let rig = Rig::new()?;
    let running = three(&rig).await?;
    let before = rig.api.all("lvols");
    let lvols = running.lvols().await?;
    for object in &before {
        rig.api.remove("lvols", object["metadata"]["name"].as_str().context("a name")?);
    }
    eventually("all three are reported", || reported(&rig, "orphans").len() == 3).await?;
    assert_eq!(running.lvols().await?.len(), 3, "no byte is gone");

    let store: Lvstore = serde_json::from_value(rig.api.get("lvstores", POOL).context("the pool")?)?;
    for orphan in reported(&rig, "orphans") {
        let orphan: Orphan = serde_json::from_value(orphan)?;
        let object = orphan.object(&store).context("an object")?;
        let name = object.metadata.name.clone();
        let old = before.iter().find(|old| old["metadata"]["name"].as_str() == name.as_deref()).context("its name")?;
        let mut new = serde_json::to_value(&object)?;
        assert_eq!(new["spec"]["adopted"], json!(true));
        new["spec"]["adopted"] = json!(false);
        assert_eq!(new["spec"], old["spec"], "it says what the first one said");
        rig.api.put("lvols", serde_json::to_value(object)?);
    }
    for object in &before {
        let name = object["metadata"]["name"].as_str().context("a name")?;
        rig.lvol_is(name, "Ready", "True/Available").await?;
        let now = rig.api.get("lvols", name).context("the object")?;
        assert_eq!(now["status"]["created"], object["status"]["created"], "{name} was created once");
        assert_eq!(now["metadata"]["finalizers"], object["metadata"]["finalizers"]);
    }
    eventually("none is reported any more", || reported(&rig, "orphans").is_empty()).await?;
    let same = running.lvols().await?;
    assert_eq!(
        same.iter().map(|lvol| lvol.uuid).collect::<Vec<_>>(),
        lvols.iter().map(|lvol| lvol.uuid).collect::<Vec<_>>()
    );

    // It grows, and goes, as any other; a snapshot that is still read is kept, and said to be.
    assert!(rig.api.patch("lvols", "pvc-1", &json!({ "spec": { "size": "8Mi" } }), false).is_ok());
    let size = || rig.api.get("lvols", "pvc-1").unwrap_or_default()["status"]["size"].clone();
    eventually("it has grown", || size() == json!("8Mi")).await?;
    remove(&rig, "snapshot-1");
    eventually("the snapshot is kept for its readers", || reported(&rig, "kept").len() == 1).await?;
    assert!(reported(&rig, "orphans").is_empty(), "who was deleted is no orphan");
    for name in ["pvc-1", "pvc-2"] {
        remove(&rig, name);
    }
    eventually("every object is gone", || rig.api.all("lvols").is_empty()).await?;
    assert!(running.lvols().await?.is_empty(), "and every lvol");
    eventually("nothing is kept", || reported(&rig, "kept").is_empty()).await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_an_orphan_because_an_agent_has_just_started() -> Result<()> {
    let rig = Rig::new()?;
    three(&rig).await?.stop().await?;
    // It finds its store long before it learns of the objects.
    rig.api.state().forbidden.insert("lvols".into());
    let running = rig.start()?;
    eventually("the store is open", || running.store().is_ok()).await?;
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_millis(800) {
        assert!(reported(&rig, "orphans").is_empty());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.api.state().forbidden.clear();
    // Whereas one that lost its object while no agent was there is found.
    running.stop().await?;
    let mut held = rig.api.get("lvols", "pvc-2").context("the clone")?;
    held["metadata"]["finalizers"] = json!([]);
    rig.api.put("lvols", held);
    rig.api.remove("lvols", "pvc-2");
    let running = rig.start()?;
    eventually("it is reported", || reported(&rig, "orphans").len() == 1).await?;
    assert_eq!(reported(&rig, "orphans")[0]["requestName"], "pvc-2");
    running.stop().await
}
