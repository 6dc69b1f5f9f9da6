//! Lvols whose objects were deleted by hand get them back.

use super::documented;
use super::world::{World, condition, id, lvstore, store_id};
use anyhow::{Context, Result};
use coppice_fake_api::agent::{self, Drive};
use serde_json::{Value, json};

const CAPACITY: u64 = 1 << 40;

fn orphan(n: u128, kind: &str, request: Option<&str>, of: &str) -> Value {
    let key = if kind == "Snapshot" { "coppice.io/volumesnapshot" } else { "coppice.io/pvc" };
    let mut orphan = json!({ "lvolUUID": id(n), "name": request.unwrap_or("by-hand"), "kind": kind, "size": "1Gi", "provisioning": "Thin",
        "fileSystem": "ext4", "annotations": [{ "key": key, "value": of }] });
    if let Some(request) = request {
        orphan["requestName"] = json!(request);
    }
    orphan
}

/// A node whose drive has what its Lvstore object reports as orphans.
async fn forgotten(orphans: &[Value]) -> Result<(World, Drive)> {
    let world = World::empty().await?;
    lvstore(&world.api, "node1");
    let drive = Drive::default();
    for orphan in orphans {
        let uuid = orphan["lvolUUID"].as_str().context("a UUID")?.to_string();
        drive.lvols.lock().map_err(|e| anyhow::anyhow!("{e}"))?.insert(uuid, 1 << 30);
    }
    let reported = json!({ "status": { "orphans": orphans } });
    assert!(world.api.patch("lvstores", "node1-pool", &reported, true).is_ok());
    agent::start(world.api.clone(), "node1", drive.clone(), CAPACITY);
    Ok((world, drive))
}

#[tokio::test]
async fn all_lvols_get_their_objects_back() -> Result<()> {
    let mut snapshot = orphan(2, "Snapshot", Some("snapshot-1"), "default/monday");
    snapshot["sourceUUID"] = json!(id(1));
    snapshot["sourceKind"] = json!("Volume");
    let (world, _drive) = forgotten(&[orphan(1, "Volume", Some("pvc-1"), "default/data"), snapshot]).await?;
    assert!(
        world.ok(&["get", "lvstores"]).await?.lines().nth(1).is_some_and(|line| line.contains(" 2  Open")),
        "orphans are counted"
    );
    let dry = world.ok(&["adopt", "lvol", "--all", "--dry-run"]).await?;
    assert!(dry.matches("kind: Lvol").count() == 2 && world.api.all("lvols").is_empty(), "{dry}");
    documented("adopt lvol --all", &world.ok(&["adopt", "lvol", "--all"]).await?);
    let volume = world.api.get("lvols", "pvc-1").context("the name that it had")?;
    assert_eq!((&volume["spec"]["adopted"], &volume["spec"]["lvolUUID"]), (&json!(true), &json!(id(1))));
    assert_eq!(volume["spec"]["lvstoreUUID"], store_id("node1"));
    assert_eq!(volume["metadata"]["annotations"]["coppice.io/pvc"], "default/data");
    let snapshot = world.api.get("lvols", "snapshot-1").context("the snapshot")?;
    assert_eq!((&snapshot["spec"]["sourceUUID"], &snapshot["spec"]["sourceNode"]), (&json!(id(1)), &json!("node1")));
    // Asked again, before the node has looked again.
    world.ok(&["adopt", "lvol", "--all"]).await?;
    assert_eq!(world.api.all("lvols").len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_lvol_that_is_not_there_is_never_made() -> Result<()> {
    let (world, drive) = forgotten(&[orphan(1, "Volume", Some("pvc-1"), "default/data")]).await?;
    drive.lvols.lock().map_err(|e| anyhow::anyhow!("{e}"))?.clear();
    let said = world.refused(&["adopt", "lvol", "pvc-1"]).await?;
    assert!(said.contains("is not on its drive"), "{said}");
    assert!(!drive.has(&id(1)));
    Ok(())
}

#[tokio::test]
async fn a_name_that_belongs_to_another_by_now_is_left_alone() -> Result<()> {
    let (world, _drive) = forgotten(&[orphan(1, "Volume", Some("pvc-1"), "default/data")]).await?;
    let other = json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "pvc-1" },
        "spec": { "requestName": "pvc-1", "kind": "Volume", "size": "1Gi", "provisioning": "Thin", "node": "node1",
            "lvstoreUUID": store_id("node1"), "lvolUUID": id(9), "adopted": false } });
    world.api.put("lvols", other);
    let said = world.run(&["adopt", "lvol", &id(1)]).await?;
    assert!(said.err.contains("cannot be adopted") && said.err.contains(&id(9)), "{said:?}");
    assert_eq!(world.api.get("lvols", "pvc-1").context("it")?["spec"]["lvolUUID"], id(9));
    Ok(())
}

#[tokio::test]
async fn a_volume_without_a_volume_object_gets_one() -> Result<()> {
    let (world, _drive) = forgotten(&[
        orphan(1, "Volume", Some("pvc-1"), "default/data"),
        orphan(2, "Snapshot", Some("snapshot-1"), "default/monday"),
        orphan(3, "Volume", None, "default/raw"),
    ])
    .await?;
    let said = world.ok(&["adopt", "lvol", &id(1), "--pv", "--claim", "prod/db", "--class", "coppice"]).await?;
    assert!(said.contains("PersistentVolume pvc-1 is for prod/db, with storageClassName coppice"), "{said}");
    let volume = world.api.get("persistentvolumes", "pvc-1").context("made")?;
    assert_eq!(
        (&volume["spec"]["csi"]["volumeHandle"], &volume["spec"]["csi"]["fsType"]),
        (&json!(id(1)), &json!("ext4"))
    );
    assert_eq!(volume["spec"]["claimRef"]["namespace"], "prod");
    let terms = &volume["spec"]["nodeAffinity"]["required"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    assert_eq!((&terms["key"], &terms["values"]), (&json!("topology.coppice.io/node"), &json!(["node1"])));
    // All the rest; a snapshot gets none, and who has one gets no second.
    world.ok(&["adopt", "lvol", "--all", "--pv"]).await?;
    assert_eq!((world.api.all("lvols").len(), world.api.all("persistentvolumes").len()), (3, 2));
    let by_hand = format!("lvol-{}", id(3));
    let volume = world.api.get("persistentvolumes", &by_hand).context("made")?;
    assert_eq!(
        (&volume["spec"]["claimRef"]["name"], &volume["spec"]["persistentVolumeReclaimPolicy"]),
        (&json!("raw"), &json!("Retain"))
    );
    Ok(())
}

#[tokio::test]
async fn nobody_adopts_what_nobody_reports() -> Result<()> {
    let (world, _drive) = forgotten(&[orphan(1, "Volume", Some("pvc-1"), "default/data")]).await?;
    assert!(world.refused(&["adopt", "lvol", "pvc-2"]).await?.contains("near: pvc-1"));
    assert!(world.refused(&["adopt", "lvol", "--all", "--pv", "--claim", "a/b"]).await?.contains("one lvol"));
    assert_eq!(world.run(&["adopt", "lvol"]).await?.code, Some(2));
    let closed = json!({ "status": { "conditions": [condition("Ready", false, "DeviceMissing", "")] } });
    assert!(world.api.patch("lvstores", "node1-pool", &closed, true).is_ok());
    let said = world.run(&["adopt", "lvol", "--all", "--node", "node2"]).await?;
    assert!(said.code == Some(0) && said.err.contains("no lvol without an object"), "{said:?}");
    let said = world.run(&["adopt", "lvol", "--all"]).await?;
    assert!(said.err.contains("is not open (DeviceMissing)"), "{said:?}");
    Ok(())
}
