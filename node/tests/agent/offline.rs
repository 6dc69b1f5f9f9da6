//! A start while the API server is down: what was open before is opened, and nothing else is done.

use super::rig::{MIB, POOL, Rig, eventually, with_store};
use anyhow::{Context, Result};
use coppice_engine::Contents;
use coppice_fake_api::Health;
use serde_json::json;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A pool with a volume that holds something, and its agent ended.
async fn used() -> Result<(Rig, Uuid)> {
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    let volume = rig.volume("a", json!({}))?;
    rig.lvol_is("a", "Ready", "True/Available").await?;
    let store = running.store()?;
    store.write(volume, 0, b"kept".to_vec()).await?;
    store.flush(volume).await?;
    drop(store);
    running.kill().await;
    Ok((rig, volume))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_open_is_open_and_goes_on_when_the_server_is_back() -> Result<()> {
    for health in [Health::Refusing, Health::Silent] {
        let (rig, volume) = used().await?;
        rig.api.set_health(health);
        let start = Instant::now();
        let running = rig.start()?;
        running.agent.tried().await;
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        let store = running.store()?;
        assert_eq!(store.read(volume, 0, 4).await?, b"kept");
        // Another volume may be in a store that nobody has named yet.
        assert!(running.absent.list().is_some_and(|why| why.contains("API server")), "{:?}", running.absent.list());

        if health == Health::Silent {
            // Its requests are never answered; a new server would be asked by a new agent.
            running.kill().await;
            continue;
        }
        rig.api.set_health(Health::Up);
        rig.volume("b", json!({}))?;
        rig.lvol_is("b", "Ready", "True/Available").await?;
        assert!(Arc::ptr_eq(store.lvstore(), running.store()?.lvstore()), "it was not opened again");
        assert_eq!(running.absent.list(), None);
        drop(store);
        running.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_formatted_and_nothing_is_taken() -> Result<()> {
    // A blank file is where the store was.
    let (rig, _) = used().await?;
    std::fs::rename(rig.file("pool.img"), rig.file("away"))?;
    std::fs::File::create(rig.file("pool.img"))?.set_len(64 * MIB)?;
    rig.api.set_health(Health::Refusing);
    let running = rig.start()?;
    running.agent.tried().await;
    assert!(running.stores.all().is_empty());
    assert!(running.absent.list().is_some_and(|why| why.contains("does not hold the lvstore")));
    assert_eq!(running.engine.look(&rig.file("pool.img")).await?, Contents::Blank);
    running.stop().await?;

    // The store is another cluster's now.
    let (rig, _) = used().await?;
    with_store(&rig.file("pool.img"), async |store| Ok(store.set_owner(Some(Uuid::from_u128(9))).await?)).await?;
    rig.api.set_health(Health::Refusing);
    let running = rig.start()?;
    running.agent.tried().await;
    assert!(running.stores.all().is_empty());
    running.stop().await?;

    // Nothing was open here before.
    let rig = Rig::new()?;
    rig.pool();
    rig.api.set_health(Health::Refusing);
    let running = rig.start()?;
    running.agent.tried().await;
    assert!(running.stores.all().is_empty() && !rig.file("pool.img").exists());
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_whose_object_is_gone_is_closed_and_forgotten() -> Result<()> {
    let (rig, _) = used().await?;
    rig.api.set_health(Health::Refusing);
    let running = rig.start()?;
    running.agent.tried().await;
    assert_eq!(running.stores.all().len(), 1);
    rig.api.remove("lvstores", POOL);
    rig.api.set_health(Health::Up);
    eventually("closed", || running.stores.all().is_empty()).await?;
    running.stop().await?;
    rig.api.set_health(Health::Refusing);
    let running = rig.start()?;
    running.agent.tried().await;
    assert!(running.stores.all().is_empty(), "forgotten");
    running.stop().await
}

/// The node was taken into a second cluster that has the first one's objects, while its API server was down.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_opened_early_is_given_up_in_another_cluster() -> Result<()> {
    let (first, _) = used().await?;
    let second = Rig::with_drives(first.dir.clone())?;
    let object = first.api.get("lvstores", POOL).context("the object")?;
    second.api.state().objects.insert(("lvstores".into(), POOL.into()), object);
    second.api.set_health(Health::Refusing);
    let running = second.start()?;
    running.agent.tried().await;
    assert_eq!(running.stores.all().len(), 1);
    second.api.set_health(Health::Up);
    second.lvstore_is(POOL, "Foreign", "True/OtherCluster").await?;
    assert!(running.stores.all().is_empty());
    running.stop().await
}
