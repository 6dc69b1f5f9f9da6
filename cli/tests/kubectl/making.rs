//! Snapshots and clones: the objects that are made, and how their making is followed.

use super::world::{self, World, classes, event};
use super::{documented, timeless};
use anyhow::{Context, Result};
use coppice_fake_api::Api;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;

/// Does what the provisioner and the agent do for a claim, once it is there: a lvol, a volume, a bond.
fn provisioner(api: &Api, claim: &'static str, hydrates: bool) -> JoinHandle<()> {
    let api = api.clone();
    tokio::spawn(async move {
        let asked = loop {
            match api.get("persistentvolumeclaims", claim) {
                Some(asked) => break asked,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        let size = asked["spec"]["resources"]["requests"]["storage"].as_str().unwrap_or("1Gi").to_string();
        world::Lvol {
            n: 50,
            node: "node1",
            owner: "default/x",
            kind: "Volume",
            size: &size,
            allocated: "0",
            parent: Some(1),
            source: Some((1, "Snapshot")),
            days: 0,
        }
        .put(&api);
        let volume = format!("pvc-{}", uuid::Uuid::from_u128((0x6f0c_fb0a << 96) + 50));
        let hydration =
            |left: &str| json!({ "status": { "hydration": { "total": "20Gi", "remaining": left, "etaSeconds": 3 } } });
        if hydrates {
            let _ = api.patch("lvols", &volume, &hydration("15Gi"), true);
        }
        let bound = json!({ "spec": { "volumeName": volume } });
        let _ = api.patch("persistentvolumeclaims", claim, &bound, false);
        let _ = api.patch("persistentvolumeclaims", claim, &json!({ "status": { "phase": "Bound" } }), true);
        if hydrates {
            tokio::time::sleep(Duration::from_millis(600)).await;
            let _ = api.patch("lvols", &volume, &hydration("5Gi"), true);
            tokio::time::sleep(Duration::from_millis(600)).await;
            let _ = api.patch("lvols", &volume, &json!({ "status": { "hydration": null } }), true);
        }
    })
}

#[tokio::test]
async fn a_clone_is_followed_until_it_can_be_used() -> Result<()> {
    let world = World::full().await?;
    let bound = provisioner(&world.api, "monday-copy", false);
    let said = world.ok(&["clone", "monday", "monday-copy", "--wait"]).await?;
    documented("clone monday monday-copy --wait", &timeless(&said));
    bound.await?;
    let claim = world.api.get("persistentvolumeclaims", "monday-copy").context("the claim")?;
    assert_eq!(
        claim["spec"]["dataSource"],
        json!({ "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "monday" })
    );
    assert_eq!(claim["spec"]["resources"]["requests"]["storage"], "20Gi", "as large as its source");
    assert_eq!(
        (&claim["spec"]["storageClassName"], &claim["metadata"]["annotations"]),
        (&json!("coppice-clone"), &Value::Null)
    );
    assert_eq!(
        (&claim["spec"]["volumeMode"], &claim["spec"]["accessModes"]),
        (&json!("Filesystem"), &json!(["ReadWriteOnce"]))
    );
    Ok(())
}

#[tokio::test]
async fn a_clone_that_comes_from_elsewhere_is_followed_until_its_data_is_here() -> Result<()> {
    let world = World::full().await?;
    let bound = provisioner(&world.api, "far", true);
    let said = world.ok(&["clone", "pvc/data", "far", "--wait"]).await?;
    bound.await?;
    for part in
        ["25% of its data is here, 15.0 GiB left", "75% of its data is here", "default/far has all its data, after"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn what_goes_wrong_is_shown_while_waiting() -> Result<()> {
    let world = World::full().await?;
    let api = world.api.clone();
    let complaint = tokio::spawn(async move {
        while api.get("persistentvolumeclaims", "never").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        event(&api, "persistentvolumeclaims", "never", "ProvisioningFailed", "no space left in the lvstore pool");
    });
    let said = world.run(&["clone", "data", "never", "--wait", "--timeout", "2s"]).await?;
    complaint.await?;
    assert_eq!(said.code, Some(1), "{said:?}");
    let line = "ProvisioningFailed: no space left in the lvstore pool";
    assert_eq!(said.out.matches(line).count(), 1, "once, not at every look: {said:?}");
    assert!(
        said.err.contains("waited 2 s in vain for default/never to be bound")
            && said.err.contains(line)
            && said.err.contains("describe pvc/never"),
        "{said:?}"
    );
    Ok(())
}

#[tokio::test]
async fn where_a_clone_is_made() -> Result<()> {
    let world = World::full().await?;
    let made = async |args: &[&str]| -> Result<Value> {
        let dry = [args, &["--dry-run"]].concat();
        Ok(serde_saphyr::from_multiple::<Value>(&world.ok(&dry).await?)?.into_iter().next().unwrap_or_default())
    };
    let on = "volume.kubernetes.io/selected-node";
    let node = made(&["clone", "data", "new", "--node", "node1", "--size", "40Gi"]).await?;
    assert_eq!(
        (&node["spec"]["storageClassName"], &node["metadata"]["annotations"][on]),
        (&json!("coppice"), &json!("node1"))
    );
    assert_eq!(node["spec"]["resources"]["requests"]["storage"], "40Gi");
    assert_eq!(node["spec"]["dataSource"], json!({ "kind": "PersistentVolumeClaim", "name": "data" }));
    let waits = made(&["clone", "data", "new", "--class", "coppice"]).await?;
    assert_eq!(waits["metadata"]["annotations"][on], "node1", "as if a pod had chosen the node of the source");
    let json: Value = serde_json::from_str(&world.ok(&["clone", "data", "new", "--dry-run", "-o", "json"]).await?)?;
    assert_eq!((&json["kind"], &json["metadata"]["namespace"]), (&json!("PersistentVolumeClaim"), &json!("default")));
    assert!(world.api.get("persistentvolumeclaims", "new").is_none(), "nothing was made");
    assert!(world.refused(&["clone", "data", "new", "--class", "other"]).await?.contains("another driver"));
    assert!(world.refused(&["clone", "data", "new", "--class", "x"]).await?.contains("coppice, coppice-clone"));
    assert!(world.refused(&["clone", "lvol/x", "new"]).await?.contains("only a PVC or a VolumeSnapshot"));
    let small = world.refused(&["clone", "data", "new", "--size", "10Gi"]).await?;
    assert!(small.contains("at least 20Gi"), "{small}");
    assert!(world.refused(&["clone", "data", "copy"]).await?.contains("AlreadyExists"));
    Ok(())
}

#[tokio::test]
async fn a_snapshot_is_an_ordinary_one() -> Result<()> {
    let world = World::full().await?;
    let api = world.api.clone();
    let snapshotter = tokio::spawn(async move {
        while api.get("volumesnapshots", "tuesday").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let error = json!({ "status": { "error": { "message": "busy" } } });
        let _ = api.patch("volumesnapshots", "tuesday", &error, true);
        tokio::time::sleep(Duration::from_millis(600)).await;
        let ready = json!({ "status": { "readyToUse": true, "restoreSize": "20Gi", "error": null } });
        let _ = api.patch("volumesnapshots", "tuesday", &ready, true);
    });
    let said = world.ok(&["snapshot", "data", "tuesday", "--wait"]).await?;
    snapshotter.await?;
    assert!(said.contains("busy") && said.contains("default/tuesday can be used (20Gi)"), "{said}");
    let made = world.api.get("volumesnapshots", "tuesday").context("made")?;
    assert_eq!(
        made["spec"],
        json!({ "source": { "persistentVolumeClaimName": "data" }, "volumeSnapshotClassName": "coppice" })
    );

    let dry = world.ok(&["snapshot", "data", "--dry-run", "--class", "x"]).await?;
    assert!(dry.contains("name: data-20") && dry.contains("volumeSnapshotClassName: x"), "{dry}");
    assert!(world.refused(&["snapshot", "monday"]).await?.contains("there is no PVC monday"));
    let pending = json!({ "status": { "phase": "Pending" } });
    assert!(world.api.patch("persistentvolumeclaims", "data", &pending, true).is_ok());
    assert!(world.refused(&["snapshot", "data"]).await?.contains("is Pending"));
    world.api.state().unknown.insert("volumesnapshots".into());
    let bound = json!({ "status": { "phase": "Bound" } });
    assert!(world.api.patch("persistentvolumeclaims", "data", &bound, true).is_ok());
    assert!(world.refused(&["snapshot", "data"]).await?.contains("snapshot CRDs"));
    Ok(())
}

#[tokio::test]
async fn a_class_has_to_be_named_where_several_could_be_meant() -> Result<()> {
    let world = World::full().await?;
    let second = json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": { "name": "kept" },
        "driver": "csi.coppice.io", "deletionPolicy": "Retain" });
    world.api.put("volumesnapshotclasses", second.clone());
    let which = world.refused(&["snapshot", "data"]).await?;
    assert!(which.contains("--class") && which.contains("coppice, kept"), "{which}");
    let mut default = second;
    default["metadata"]["annotations"] = json!({ "snapshot.storage.kubernetes.io/is-default-class": "true" });
    world.api.put("volumesnapshotclasses", default);
    world.ok(&["snapshot", "data", "a"]).await?;
    assert!(world.api.get("volumesnapshots", "a").context("made")?["spec"]["volumeSnapshotClassName"].is_null());
    classes(&world.api);
    Ok(())
}
