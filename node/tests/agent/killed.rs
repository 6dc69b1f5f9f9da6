//! The agent is killed before and after each of its writes to the API server. Its successor makes no lvol twice, formats
//! nothing twice, and loses nothing.

use super::rig::{MIB, POOL, Rig, Running, eventually, with_store};
use anyhow::{Context, Result, ensure};
use coppice_engine::LvolKind;
use coppice_fake_api::{Cut, Health, text};
use futures_util::future::try_join_all;
use serde_json::json;
use std::collections::BTreeMap;
use uuid::Uuid;

const MARK: &[u8] = b"what the database wrote";

/// Marks every writable lvol, as its user would.
async fn mark(rig: &Rig) -> Result<BTreeMap<Uuid, String>> {
    with_store(&rig.file("pool.img"), async |store| {
        let mut marked = BTreeMap::new();
        for lvol in store.lvols().await? {
            if lvol.kind != LvolKind::Snapshot {
                store.write(lvol.uuid, MIB, MARK.to_vec()).await?;
                store.flush(lvol.uuid).await?;
                marked.insert(lvol.uuid, lvol.name);
            }
        }
        Ok(marked)
    })
    .await
}

async fn are_ready(rig: &Rig, running: &Running, names: &[&str]) -> Result<()> {
    // What the status says may be what the predecessor wrote.
    eventually("a store is open", || running.store().is_ok()).await?;
    rig.lvstore_is(POOL, "Ready", "True/Open").await?;
    for name in names {
        rig.lvol_is(name, "Ready", "True/Available").await?;
    }
    Ok(())
}

/// What there is, is what the objects say, and what was marked still is.
async fn is_whole(rig: &Rig, running: &Running, names: &[&str], marked: &BTreeMap<Uuid, String>) -> Result<()> {
    let lvols = running.lvols().await?;
    let mut found: Vec<Uuid> = lvols.iter().map(|lvol| lvol.uuid).collect();
    let wanted = names.iter().filter_map(|name| rig.api.get("lvols", name));
    let mut wanted: Vec<Uuid> = wanted.filter_map(|o| Uuid::parse_str(&text(&o, "/spec/lvolUUID")).ok()).collect();
    found.sort();
    wanted.sort();
    ensure!(found == wanted, "there are {lvols:?}");
    let store = running.store()?;
    ensure!(Some(store.uuid()) == rig.uuid_of(POOL) && store.info().await?.owner == Some(rig.cluster()));
    for (uuid, name) in marked {
        ensure!(store.read(*uuid, MIB, MARK.len()).await? == MARK, "{name} was made again");
    }
    Ok(())
}

/// True if the agent was cut off at its `nth` write.
async fn formatting(nth: usize, how: Cut) -> Result<bool> {
    let rig = Rig::new()?;
    rig.pool();
    rig.api.cut_off(nth, how);
    let running = rig.start()?;
    let ready = || rig.condition("lvstores", POOL, "Ready") == "True/Open";
    eventually("ready or cut off", || rig.api.is_cut_off() || ready()).await?;
    let cut = rig.api.is_cut_off();
    running.kill().await;
    rig.api.set_health(Health::Up);
    let before = with_store(&rig.file("pool.img"), async |store| Ok(store.uuid())).await.ok();
    let running = rig.start()?;
    are_ready(&rig, &running, &[]).await?;
    let uuid = rig.uuid_of(POOL).context("a UUID")?;
    ensure!(before.is_none_or(|before| before == uuid), "formatted twice");
    is_whole(&rig, &running, &[], &BTreeMap::new()).await?;
    running.stop().await?;
    Ok(cut)
}

async fn volumes(nth: usize, how: Cut) -> Result<bool> {
    let names = ["volume", "snapshot", "clone"];
    let rig = Rig::new()?;
    rig.pool();
    let running = rig.start()?;
    are_ready(&rig, &running, &[]).await?;
    rig.api.cut_off(nth, how);
    let volume = rig.volume("volume", json!({}))?;
    let of = json!({ "kind": "Snapshot", "sourceUUID": volume, "sourceKind": "Volume", "sourceNode": "node-a" });
    let snapshot = rig.volume("snapshot", of)?;
    rig.volume("clone", json!({ "sourceUUID": snapshot, "sourceKind": "Snapshot", "sourceNode": "node-a" }))?;
    let ready = || names.iter().all(|name| rig.condition("lvols", name, "Ready") == "True/Available");
    eventually("ready or cut off", || rig.api.is_cut_off() || ready()).await?;
    let cut = rig.api.is_cut_off();
    running.kill().await;
    let marked = mark(&rig).await?;
    rig.api.set_health(Health::Up);
    let running = rig.start()?;
    are_ready(&rig, &running, &names).await?;
    is_whole(&rig, &running, &names, &marked).await?;

    // And away with them, cut off again.
    rig.api.cut_off(nth, how);
    for name in names {
        rig.api.patch("lvols", name, &json!({ "spec": { "reclaim": "Delete" } }), false).ok();
        rig.api.remove("lvols", name);
    }
    eventually("gone or cut off", || rig.api.is_cut_off() || rig.api.all("lvols").is_empty())
        .await
        .with_context(|| format!("there are {:?}", rig.api.all("lvols")))?;
    running.kill().await;
    rig.api.set_health(Health::Up);
    let running = rig.start()?;
    eventually("gone", || rig.api.all("lvols").is_empty() && running.store().is_ok()).await?;
    ensure!(running.lvols().await?.is_empty(), "what was deleted is there");
    running.stop().await?;
    Ok(cut)
}

/// Cuts off at the first write, the second and so on, until the agent needs no more writes than that. Some at a time: most
/// of it is waiting.
async fn at_every_write(least: usize, run: impl AsyncFn(usize, Cut) -> Result<bool>) -> Result<()> {
    const AT_A_TIME: usize = 6;
    for how in [Cut::Before, Cut::After] {
        let mut next = 1;
        loop {
            let some = next..next + AT_A_TIME;
            let runs =
                some.clone().map(async |nth| run(nth, how).await.with_context(|| format!("write {nth}, {how:?}")));
            let cut = try_join_all(runs).await?;
            if let Some(enough) = cut.iter().position(|cut| !cut) {
                ensure!(next + enough > least, "{} writes are too few to mean something", next + enough);
                break;
            }
            next = some.end;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_formats() -> Result<()> {
    at_every_write(2, formatting).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_makes_and_removes_lvols() -> Result<()> {
    at_every_write(6, volumes).await
}
