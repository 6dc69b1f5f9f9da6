//! Lvols that are made, removed, kept, and for which there is no room.

use super::rig::{POOL, Rig, eventually};
use anyhow::{Context, Result};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_while_the_drive_was_away_is_removed_when_it_is_back() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let uuid = rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    running.stop().await?;

    std::fs::rename(rig.file("pool.img"), rig.file("away"))?;
    std::fs::File::create(rig.file("pool.img"))?.set_len(64 << 20)?;
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Lost", "True/DeviceBlank").await?;
    assert!(rig.api.patch("lvols", "a", &json!({ "spec": { "reclaim": "Delete" } }), false).is_ok());
    rig.api.remove("lvols", "a");
    eventually("released", || rig.api.get("lvols", "a").is_none()).await?;
    let tombstones = || rig.api.get("lvstores", POOL).unwrap_or_default()["status"]["tombstones"].clone();
    assert_eq!(tombstones()[0]["lvolUUID"], json!(uuid));

    std::fs::rename(rig.file("away"), rig.file("pool.img"))?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    eventually("buried", || tombstones().is_null()).await?;
    assert!(running.lvols().await?.is_empty());
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_somebody_deleted_leaves_its_lvol() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let uuid = rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    rig.api.remove("lvols", "a");
    eventually("released", || rig.api.get("lvols", "a").is_none()).await?;
    assert_eq!(running.lvols().await?.first().map(|lvol| lvol.uuid), Some(uuid));
    let events = rig.api.all("events");
    assert!(events.iter().any(|event| event["reason"] == "Orphaned"), "{events:?}");
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_room_it_is_said_and_tried_again() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.volume("large", json!({ "size": "40Mi", "provisioning": "Thick" }))?;
    rig.lvol_is("large", "Ready", "True/Available").await?;
    rig.volume("second", json!({ "size": "40Mi", "provisioning": "Thick" }))?;
    rig.lvol_is("second", "Ready", "False/NoSpace").await?;
    assert_eq!(running.lvols().await?.len(), 1);
    assert!(rig.api.patch("lvols", "large", &json!({ "spec": { "reclaim": "Delete" } }), false).is_ok());
    rig.api.remove("lvols", "large");
    rig.lvol_is("second", "Ready", "True/Available").await?;
    let created = rig.api.get("lvols", "second").context("the object")?["status"]["created"].clone();
    assert!(!created.is_null());
    running.stop().await
}

/// The lvol of an object that was created once is never made again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lvol_that_is_missing_is_lost() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let uuid = rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    running.store()?.delete(uuid, false).await?;
    rig.api.patch("lvols", "a", &json!({ "metadata": { "labels": { "look": "again" } } }), false).ok();
    rig.lvol_is("a", "Lost", "True/Missing").await?;
    assert!(running.lvols().await?.is_empty());
    running.stop().await
}
