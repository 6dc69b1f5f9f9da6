//! Stores that a real SPDK wrote, closed or killed, under our work and power cuts: the first mark, the recovery and all
//! that follows leave every lvol that SPDK made as it was.
#![cfg(feature = "sim")]

mod sim;
mod unpack;

use anyhow::{Context, Result, anyhow, ensure};
use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::Shard;
use coppice_engine::sim::model::settle;
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::{Outcome, World};
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateSnapshot, Error, ErrorKind, LvolState, OpenStore};
use sha2::{Digest, Sha256};
use sim::{SHARDS, SharedModel, compare_all, program::Job, sound};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

/// What SPDK's lvols hold, as hashes; those with an external parent cannot be read.
type Contents = BTreeMap<Uuid, Option<String>>;

const CUTS: usize = 12;

#[test]
fn i_clean() -> Result<()> {
    power_cuts("i_clean")
}

#[test]
fn ii_dirty() -> Result<()> {
    power_cuts("ii_dirty")
}

#[test]
fn ii_dirty_after_clean() -> Result<()> {
    power_cuts("ii_dirty_after_clean")
}

#[test]
fn iii_esnap() -> Result<()> {
    power_cuts("iii_esnap")
}

#[test]
fn vi_b512() -> Result<()> {
    power_cuts("vi_b512")
}

async fn contents(shard: &Shard, store: &Arc<Lvstore>, of: Option<&Contents>) -> Result<Contents, Error> {
    let mut found = Contents::new();
    for lvol in store.lvols().into_iter().filter(|l| of.is_none_or(|of| of.contains_key(&l.uuid))) {
        let io = LvolIo::open(shard, store, lvol.uuid)?;
        let (mut hash, mut external) = (Sha256::new(), false);
        for at in (0..io.size()).step_by(1 << 20) {
            let bytes = (io.size() - at).min(1 << 20) as usize;
            let buf = shard.buf(bytes).slice(0, bytes);
            match io.read(at, buf.clone()).await {
                Err(e) if e.kind() == ErrorKind::Away => external = true,
                result => result?,
            }
            buf.with(|b| hash.update(b));
        }
        found.insert(lvol.uuid, (!external).then(|| format!("{:x}", hash.finalize())));
    }
    Ok(found)
}

/// Opens what a cut left and compares everything.
fn reopen(
    world: &mut World,
    device: &Device,
    model: &SharedModel,
    expected: Option<Contents>,
) -> Result<(Arc<Lvstore>, Contents)> {
    let handles = world.shards.iter().map(Shard::handle).collect();
    let (shard, device, model) = (world.shards[0].clone(), device.clone(), model.clone());
    let work = async move {
        let store = Lvstore::open(&shard, handles, device, OpenStore::default(), 1 << 20).await?;
        let lvols = store.lvols();
        ensure!(lvols.iter().all(|l| l.state != LvolState::Damaged), "damaged: {lvols:?}");
        let ours = lvols.iter().filter(|l| model.borrow().contains_key(&l.uuid) && l.state != LvolState::Hidden);
        let listed = ours.map(|l| (l.uuid, l.size)).collect();
        settle(&mut model.borrow_mut(), &listed).map_err(|e| anyhow!(e))?;
        sound(&shard, &store).await.map_err(|e| anyhow!(e))?;
        compare_all(&shard, &store, &model, true).await.map_err(|e| anyhow!(e))?;
        let found = contents(&shard, &store, expected.as_ref()).await?;
        ensure!(expected.is_none_or(|e| e == found), "SPDK's lvols hold something else");
        Ok((store, found))
    };
    world.block_on(0, work)
}

/// Snapshots of SPDK's lvols come and go beside the job.
async fn snapshots(shard: Shard, store: Arc<Lvstore>, origins: Vec<Uuid>, mut rng: Rng) {
    loop {
        let lvol = *rng.pick(&origins).expect("SPDK made some");
        let how = CreateSnapshot {
            lvol,
            name: format!("s{}", rng.draw()),
            uuid: None,
            attributes: Default::default(),
            hidden: false,
        };
        // No place, a snapshot already, being copied: whatever happens, the content is compared.
        if let Ok(made) = store.snapshot(&shard, vec![how]).await
            && rng.one_in(2)
        {
            let _ = store.delete(&shard, made[0].uuid, rng.one_in(2)).await;
        }
        shard.sleep(std::time::Duration::from_micros(rng.below(40))).await;
    }
}

fn power_cuts(name: &str) -> Result<()> {
    let Some(fixture) = unpack::Fixture::unpack(name)? else { return Ok(()) };
    let original = std::fs::read(fixture.image())?;
    let block = fixture.facts["base_block_size"].as_u64().context("block size")?;
    let mut rng = Rng::new(name.len() as u64);
    let device = Device::simulated(0, original.len() as u64, block as u32);
    let (mut image, mut expected) = (original.clone(), None);
    let mut model = SharedModel::default();
    for cut in 0..CUTS {
        // From SPDK's own store again, or from what the last cut left.
        if rng.one_in(3) {
            image.clone_from(&original);
            model = SharedModel::default();
        }
        let seed = rng.draw();
        let mut world = World::new(image, seed, SHARDS);
        let opened = reopen(&mut world, &device, &model, expected.take());
        let (store, found) = opened.with_context(|| format!("{name}, cut {cut}"))?;
        let job = Job::new(&store, &device, &model, &Rc::new(Cell::new((cut as u64) << 32)), seed, false, false);
        job.start(&world);
        let origins: Vec<Uuid> = found.keys().copied().collect();
        let shard = world.shards[0].clone();
        world.shards[0].spawn(snapshots(shard, store.clone(), origins, Rng::new(seed)));
        expected = Some(found);
        let running = job.clone();
        let at = if rng.one_in(3) { 1 + rng.below(12) } else { 1 + rng.below(600) };
        let outcome = world.run(move || running.finished(), Some(at));
        job.verdict().map_err(|why| anyhow!("{name}, cut {cut}: {why}"))?;
        ensure!(outcome == Outcome::Crashed || store.info().failed.is_none(), "{:?}", store.info());
        drop(store);
        image = world.power_cut();
    }
    Ok(())
}
