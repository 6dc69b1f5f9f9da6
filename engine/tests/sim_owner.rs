//! Saying whose store it is, cut off at every write: the store opens, has the old owner or the new one, and all that was in it.
#![cfg(feature = "sim")]

use coppice_engine::device::Device;
use coppice_engine::shard::Shard;
use coppice_engine::sim::world::{Outcome, World};
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateLvol, CreateStore, Error, OpenStore};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

const SIZE: u64 = 8 << 20;
const OLD: Uuid = Uuid::from_u128(0xa);
const NEW: Uuid = Uuid::from_u128(0xb);
/// More than setting an owner needs, on whatever store.
const WRITES_MAX: u64 = 60;

fn device() -> Device {
    Device::simulated(0, SIZE, 512)
}

async fn open(shard: &Shard) -> Result<Arc<Lvstore>, Error> {
    Lvstore::open(shard, vec![shard.handle()], device(), OpenStore::default(), 64 << 10).await
}

/// A store of the owner OLD with one lvol, closed or as a crash leaves it.
fn build(close: bool) -> Vec<u8> {
    let mut world = World::new(vec![0; SIZE as usize], 1, 1);
    let shard = world.shards[0].clone();
    let how = CreateStore {
        file_size: None,
        name: "sim".into(),
        cluster_size: Some(16 << 10),
        max_size: Some(SIZE),
        block_size: Some(4096),
        force: false,
        owner: Some(OLD),
    };
    let made: Result<(), Error> = world.block_on(0, async move {
        Lvstore::create(&shard, &device(), &how).await?;
        let store = open(&shard).await?;
        store.create_lvol(&shard, CreateLvol { name: "v".into(), size: 1 << 20, ..Default::default() }).await?;
        store.commit().await?;
        if close { store.close(&shard).await } else { Ok(()) }
    });
    made.expect("a store");
    world.power_cut()
}

#[test]
fn it_is_the_old_or_the_new_owner_after_every_crash() {
    for closed in [false, true] {
        let image = build(closed);
        for owner in [Some(NEW), None] {
            let (mut crashes, mut seen_new) = (0, false);
            for at in 1..WRITES_MAX {
                for seed in 0..4 {
                    let mut world = World::new(image.clone(), seed, 1);
                    let done = Rc::new(RefCell::new(None));
                    let (shard, slot) = (world.shards[0].clone(), done.clone());
                    world.shards[0].spawn(async move {
                        let result = async { open(&shard).await?.set_owner(&shard, owner).await }.await;
                        *slot.borrow_mut() = Some(result.map(|info| info.owner));
                    });
                    let waits = done.clone();
                    let outcome = world.run(move || waits.borrow().is_some(), Some(at));
                    crashes += u64::from(outcome == Outcome::Crashed);
                    if outcome == Outcome::Done {
                        assert_eq!(done.take().expect("an end"), Ok(owner));
                    }
                    let mut world = World::new(world.power_cut(), seed, 1);
                    let shard = world.shards[0].clone();
                    let (label, names, findings) = world
                        .block_on(0, async move {
                            let label = Lvstore::label(&shard, &device()).await?;
                            let store = open(&shard).await?;
                            let names: Vec<String> = store.lvols().into_iter().map(|lvol| lvol.name).collect();
                            assert_eq!(store.info().owner, label.owner, "the label says what the store does");
                            Ok::<_, Error>((label, names, store.check(&shard).await?))
                        })
                        .unwrap_or_else(|e| panic!("closed {closed}, write {at}, seed {seed}: {e:?}"));
                    assert!(findings.iter().all(|finding| finding.heals), "{findings:?}");
                    assert_eq!((label.name.as_str(), names), ("sim", vec!["v".to_string()]));
                    let allowed = if outcome == Outcome::Done { vec![owner] } else { vec![Some(OLD), owner] };
                    assert!(allowed.contains(&label.owner), "closed {closed}, write {at}: {:?}", label.owner);
                    seen_new |= outcome == Outcome::Crashed && label.owner == owner;
                }
            }
            assert!(crashes >= 12 && seen_new, "cut off {crashes} times; too few to mean something");
        }
    }
}
