//! What is formatted, taken, refused.

use super::rig::{MIB, POOL, Rig, eventually, with_store};
use anyhow::{Context, Result};
use coppice_engine::{Contents, CreateLvol, CreateStore, Engine, EngineConfig};
use serde_json::json;
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_file_is_formatted_once_and_found_again() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    running.agent.tried().await;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let uuid = rig.uuid_of(POOL).context("a UUID")?;
    assert_eq!(running.store()?.info().await?.owner, Some(rig.cluster()));
    assert_eq!(running.absent.list(), None);
    running.stop().await?;

    let running = rig.start()?;
    running.agent.tried().await;
    assert_eq!(running.store()?.uuid(), uuid);
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blank_file_in_place_of_a_store_is_lost_and_stays_blank() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    running.stop().await?;

    let file = rig.file("pool.img");
    std::fs::rename(&file, rig.file("away"))?;
    std::fs::File::create(&file)?.set_len(64 * MIB)?;
    let running = rig.start()?;
    running.agent.tried().await;
    rig.lvstore_is(POOL, "Lost", "True/DeviceBlank").await?;
    rig.lvol_is("a", "Lost", "True/LvstoreLost").await?;
    assert_eq!(running.engine.look(&file).await?, Contents::Blank);
    is_quiet(&rig).await;
    assert!(running.absent.list().is_some_and(|why| why.contains("DeviceBlank")), "{:?}", running.absent.list());

    // Without a restart: the drive is back.
    std::fs::rename(rig.file("away"), &file)?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.lvstore_is(POOL, "Lost", "False/AsExpected").await?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_device_is_found_when_it_comes() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    running.stop().await?;
    std::fs::rename(rig.file("pool.img"), rig.file("away"))?;
    let running = rig.start()?;
    running.agent.tried().await;
    rig.lvstore_is(POOL, "Ready", "False/DeviceMissing").await?;
    std::fs::rename(rig.file("away"), rig.file("pool.img"))?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    running.stop().await
}

/// What was said is not said again and again.
async fn is_quiet(rig: &Rig) {
    let writes = || rig.api.state().requests.iter().filter(|request| request.starts_with("PATCH lvstores")).count();
    let before = writes();
    tokio::time::sleep(std::time::Duration::from_millis(800)).await;
    assert_eq!(writes(), before);
}

async fn make_elsewhere(rig: &Rig, owner: Option<Uuid>, lvols: usize) -> Result<Uuid> {
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let how = CreateStore {
        file_size: Some(64 * MIB),
        name: "pool".into(),
        cluster_size: Some(64 << 10),
        max_size: None,
        block_size: None,
        force: false,
        owner,
    };
    let uuid = engine.create_store(&rig.file("pool.img"), how).await?.uuid;
    engine.shutdown().await;
    with_store(&rig.file("pool.img"), async |store| {
        for n in 0..lvols {
            store.create_lvol(CreateLvol { name: format!("v{n}"), size: MIB, ..CreateLvol::default() }).await?;
        }
        Ok(uuid)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_made_elsewhere_waits_to_be_adopted() -> Result<()> {
    let rig = Rig::new()?;
    let uuid = make_elsewhere(&rig, None, 2).await?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Foreign", "True/MadeElsewhere").await?;
    assert_eq!((rig.uuid_of(POOL), running.stores.all().len()), (None, 0));
    rig.change(POOL, json!({ "adopt": uuid }))?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.lvstore_is(POOL, "Foreign", "False/AsExpected").await?;
    assert_eq!(running.store()?.info().await?.owner, Some(rig.cluster()));
    assert_eq!(running.lvols().await?.len(), 2);
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_another_cluster_is_foreign_even_if_it_is_empty() -> Result<()> {
    let rig = Rig::new()?;
    make_elsewhere(&rig, Some(Uuid::from_u128(77)), 0).await?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Foreign", "True/OtherCluster").await?;
    assert_eq!(rig.uuid_of(POOL), None);
    running.stop().await
}

/// etcd is restored into a second cluster, and the drive goes there: the objects know the store.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_not_used_by_two_clusters_with_the_same_objects() -> Result<()> {
    let first = Rig::new()?;
    first.pool();
    let running = first.start()?;
    first.lvstore_is(POOL, "Ready", "True/Open").await?;
    let uuid = first.uuid_of(POOL).context("a UUID")?;
    running.stop().await?;

    let second = Rig::with_drives(first.dir.clone())?;
    second.api.put("lvstores", first.api.get("lvstores", POOL).context("the object")?);
    let running = second.start()?;
    second.lvstore_is(POOL, "Foreign", "True/OtherCluster").await?;
    is_quiet(&second).await;
    assert_eq!((second.uuid_of(POOL), running.stores.all().len()), (Some(uuid), 0));
    second.change(POOL, json!({ "adopt": uuid }))?;
    second.lvstore_is(POOL, "Ready", "True/Open").await?;
    running.stop().await?;

    let running = first.start()?;
    first.lvstore_is(POOL, "Foreign", "True/OtherCluster").await?;
    running.stop().await
}

/// A version before this one formatted it: it belongs to nobody, and the object knows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_an_owner_becomes_the_cluster_s() -> Result<()> {
    let rig = Rig::new()?;
    let uuid = make_elsewhere(&rig, None, 1).await?;
    rig.pool();
    assert!(rig.api.patch("lvstores", POOL, &json!({ "status": { "uuid": uuid } }), true).is_ok());
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    assert_eq!(running.store()?.info().await?.owner, Some(rig.cluster()));
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_grows_as_asked_and_what_cannot_grow_says_so_once() -> Result<()> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    rig.change(POOL, json!({ "fileSize": "128Mi" }))?;
    let store = running.store()?;
    eventually("grown", || store.lvstore().info().size == 128 * MIB).await?;
    // It was laid out for four times its first size, and a little.
    rig.change(POOL, json!({ "fileSize": "1Ti" }))?;
    eventually("said", || rig.message(POOL, "Ready").contains("does not grow")).await?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    is_quiet(&rig).await;
    running.stop().await
}
