//! A random program on the real engine in the simulator, with power cuts, compared with the model after each.
//!
//! One *run* is one store: some *rounds*, each of which opens the store as the crash left it, checks it, works on it from
//! several tasks on two shards, and is cut off at a random device write (or ends, closed or not).

#![allow(dead_code)] // Each test file uses a part.

pub mod pair;
pub mod program;

use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::Shard;
use coppice_engine::sim::disk::Faults;
use coppice_engine::sim::model::{BLOCK, Model, Volume, settle};
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::{Outcome, World};
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateStore, Error, LvolState, OpenStore};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

pub const SHARDS: usize = 2;
/// Bytes to which the device may grow.
pub const SIZE_MAX: u64 = 24 << 20;

#[derive(Clone, Copy)]
pub struct Plan {
    pub rounds: usize,
    /// The device fails now and then.
    pub faults: bool,
    /// Everything happens in one cluster of one lvol, under one snapshot after the other.
    pub narrow: bool,
}

#[derive(Default, Debug, Clone, Copy)]
pub struct Tally {
    pub crashes: u64,
    pub closes: u64,
}

pub type SharedModel = Rc<RefCell<Model>>;

/// One run; an error says what is wrong.
pub fn run(seed: u64, plan: Plan) -> Result<Tally, String> {
    run_traced(seed, plan, &mut 0)
}

/// A number that is the same for the same run.
pub fn trace(seed: u64, plan: Plan) -> u64 {
    let mut trace = 0;
    run_traced(seed, plan, &mut trace).expect("the run succeeds");
    trace
}

fn run_traced(seed: u64, plan: Plan, trace: &mut u64) -> Result<Tally, String> {
    let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
    let any_size = [4 << 10, 16 << 10, 16 << 10, 64 << 10][rng.below(4) as usize];
    let cluster_size = if plan.narrow { 64 << 10 } else { any_size };
    let size = (8 << 20) << rng.below(2);
    // Every sector begins as a stranger's. There is room for the device to grow.
    let mut image: Vec<u8> = (0..SIZE_MAX).map(|n| if n / 512 % 2 == 0 { 0xee } else { 0xdd }).collect();
    let device = Device::simulated(0, size, 512);
    let how = CreateStore {
        file_size: None,
        name: "sim".into(),
        cluster_size: Some(cluster_size),
        max_size: Some(SIZE_MAX),
        block_size: Some(if rng.one_in(4) { 512 } else { 4096 }),
        force: false,
        owner: None,
    };
    // Creation is cut off now and then, and done again.
    loop {
        let mut world = World::new(image, rng.draw(), SHARDS);
        let (shard, on, how) = (world.shards[0].clone(), device.clone(), how.clone());
        let done = Rc::new(RefCell::new(None));
        let slot = done.clone();
        world.shards[0].spawn(async move {
            let result = Lvstore::create(&shard, &on, &how).await;
            *slot.borrow_mut() = Some(result.map(|_| ()));
        });
        let crash_at = rng.one_in(3).then(|| 1 + rng.below(10));
        let seen = done.clone();
        let outcome = world.run(move || seen.borrow().is_some(), crash_at);
        image = world.power_cut();
        if outcome == Outcome::Done {
            done.borrow_mut().take().ok_or("no result")?.map_err(|e| format!("create: {e:?}"))?;
            break;
        }
        // Still blank, interrupted and to be done again, or made.
        let mut world = World::new(image, rng.draw(), SHARDS);
        let (shard, on) = (world.shards[0].clone(), device.clone());
        let state = world.block_on(0, async move {
            if Lvstore::creation_was_interrupted(&shard, &on).await.is_ok_and(|i| i) {
                return Ok(false);
            }
            Lvstore::open(
                &shard,
                vec![shard.handle()],
                on,
                OpenStore { read_only: true, ..Default::default() },
                64 << 10,
            )
            .await
            .map(|_| true)
        });
        image = world.power_cut();
        match state {
            Ok(true) => break,
            Ok(false) => {}
            Err(_) if image[..4096].chunks(512).all(|sector| sector == [0xee; 512] || sector == [0xdd; 512]) => {}
            Err(e) => return Err(format!("after an interrupted creation: {e:?}")),
        }
    }
    let model: SharedModel = Rc::default();
    let tags = Rc::new(std::cell::Cell::new(0));
    let mut tally = Tally::default();
    for round in 0..plan.rounds {
        let at = |what: String| format!("round {round}: {what}");
        let mut world = World::new(image, rng.draw(), SHARDS);
        let store = reopen(&mut world, &device, &model).map_err(at)?;
        let faults = if plan.faults && rng.one_in(2) {
            Faults { reads: 400, writes: [0, 60][rng.below(2) as usize], flushes: [0, 12][rng.below(2) as usize] }
        } else {
            Faults::default()
        };
        world.disk.borrow_mut().faults = faults;
        let job = program::Job::new(&store, &device, &model, &tags, rng.draw(), faults.any(), plan.narrow);
        job.start(&world);
        let written = world.disk.borrow().writes;
        // Early ones fall into the first mark, the replay's checkpoint and the resumed merges.
        let crash_at = match rng.below(8) {
            0 => None,
            _ if plan.narrow && rng.one_in(2) => None,
            1 | 2 => Some(written + 1 + rng.below(12)),
            _ => Some(written + 1 + rng.below(400)),
        };
        let running = job.clone();
        let outcome = world.run(move || running.finished(), crash_at);
        job.verdict().map_err(at)?;
        world.disk.borrow_mut().faults = Faults::default();
        let failed = store.info().failed.is_some();
        if outcome == Outcome::Done && !failed && !faults.any() {
            let close = rng.one_in(2);
            // What is found now is what there will be, if the close is not cut off.
            let found: SharedModel = Rc::new(RefCell::new(model.borrow().clone()));
            let (shard, lv, m) = (world.shards[0].clone(), store.clone(), found.clone());
            world.block_on(0, async move { end_well(&shard, &lv, &m).await }).map_err(at)?;
            if close {
                let ended = Rc::new(RefCell::new(None));
                let (shard, lv, slot) = (world.shards[0].clone(), store.clone(), ended.clone());
                world.shards[0].spawn(async move {
                    let result = close_well(&shard, &lv).await;
                    *slot.borrow_mut() = Some(result);
                });
                // Cut off now and then, and rather at its end: that is where a store changes hands.
                let written = world.disk.borrow().writes;
                let crash_at = rng.one_in(2).then(|| written + 1 + rng.below(16));
                let seen = ended.clone();
                if world.run(move || seen.borrow().is_some(), crash_at) == Outcome::Done {
                    ended.borrow_mut().take().ok_or("no result")?.map_err(at)?;
                    model.replace(found.take());
                    tally.closes += 1;
                }
            }
        }
        drop(store);
        *trace = trace.rotate_left(7) ^ world.trace;
        image = world.power_cut();
        tally.crashes += 1;
    }
    // What the last crash left is looked at too.
    let mut world = World::new(image, rng.draw(), SHARDS);
    reopen(&mut world, &device, &model).map_err(|e| format!("at the end: {e}"))?;
    Ok(tally)
}

/// Opens what a crash left and compares everything.
fn reopen(world: &mut World, device: &Device, model: &SharedModel) -> Result<Arc<Lvstore>, String> {
    let handles = world.shards.iter().map(Shard::handle).collect();
    let (shard, device, m) = (world.shards[0].clone(), device.clone(), model.clone());
    world.block_on(0, async move {
        // A small limit for the map, so that leaves come and go.
        let store = Lvstore::open(&shard, handles, device, OpenStore::default(), 64 << 10)
            .await
            .map_err(|e| format!("open: {e:?}"))?;
        judge(&shard, &store, &m).await?;
        Ok(store)
    })
}

/// A store as a crash left it: what was under way is decided by what is there, and everything is compared.
pub async fn judge(shard: &Shard, store: &Arc<Lvstore>, model: &SharedModel) -> Result<(), String> {
    decide(store, model)?;
    sound(shard, store).await?;
    compare_all(shard, store, model, true).await
}

/// What was under way is decided by what is there.
pub fn decide(store: &Arc<Lvstore>, model: &SharedModel) -> Result<(), String> {
    let mut listed = BTreeMap::new();
    for lvol in store.lvols() {
        match lvol.state {
            LvolState::Hidden => {}
            LvolState::Damaged => return Err(format!("damaged: {lvol:?}")),
            _ => {
                listed.insert(lvol.uuid, lvol.size);
            }
        }
    }
    settle(&mut model.borrow_mut(), &listed)?;
    model.borrow_mut().values_mut().for_each(Volume::crashed);
    Ok(())
}

/// The store's own verification, and its accounting.
pub async fn sound(shard: &Shard, store: &Arc<Lvstore>) -> Result<(), String> {
    let findings = store.check(shard).await.map_err(|e| format!("check: {e:?}"))?;
    let findings: Vec<_> = findings.into_iter().filter(|f| !f.heals).collect();
    if !findings.is_empty() {
        return Err(format!("check: {findings:?}"));
    }
    adds_up(store)
}

pub fn adds_up(store: &Arc<Lvstore>) -> Result<(), String> {
    let i = store.info();
    let sum =
        i.metadata_clusters + i.allocated_clusters + i.reserved_clusters + i.quarantined_clusters + i.free_clusters;
    if sum == i.total_clusters { Ok(()) } else { Err(format!("the accounting does not add up: {i:?}")) }
}

pub async fn compare_all(shard: &Shard, store: &Arc<Lvstore>, model: &SharedModel, pin: bool) -> Result<(), String> {
    let ids: Vec<Uuid> = model.borrow().keys().copied().collect();
    for id in ids {
        compare(shard, store, model, id, pin).await.map_err(|e| e.unwrap_or_else(|e| format!("read: {e:?}")))?;
    }
    Ok(())
}

/// Compares one lvol; `Err(Err(…))` is the engine's refusal, `Err(Ok(…))` wrong content.
pub async fn compare(
    shard: &Shard,
    store: &Arc<Lvstore>,
    model: &SharedModel,
    id: Uuid,
    pin: bool,
) -> Result<(), Result<String, Error>> {
    const PIECE: u64 = 32;
    let io = LvolIo::open(shard, store, id).map_err(Err)?;
    for at in (0..io.size() / BLOCK).step_by(PIECE as usize) {
        compare_blocks(shard, &io, model, id, at, PIECE, pin).await?;
    }
    Ok(())
}

/// As `compare`, at most `count` blocks from `first` on.
pub async fn compare_blocks(
    shard: &Shard,
    io: &LvolIo,
    model: &SharedModel,
    id: Uuid,
    first: u64,
    count: u64,
    pin: bool,
) -> Result<(), Result<String, Error>> {
    let bytes = (count.min(io.size() / BLOCK - first) * BLOCK) as usize;
    let buf = shard.buf(bytes).slice(0, bytes);
    io.read(first * BLOCK, buf.clone()).await.map_err(Err)?;
    match model.borrow_mut().get_mut(&id) {
        Some(volume) => buf.with(|bytes| volume.check(first, bytes, pin)).map_err(Ok),
        None => Ok(()),
    }
}

async fn end_well(shard: &Shard, store: &Arc<Lvstore>, model: &SharedModel) -> Result<(), String> {
    compare_all(shard, store, model, true).await?;
    sound(shard, store).await
}

async fn close_well(shard: &Shard, store: &Arc<Lvstore>) -> Result<(), String> {
    store.close(shard).await.map_err(|e| format!("close: {e:?}"))?;
    let info = store.info();
    if info.seal_work.is_empty() && (info.bstype != "LVOLSTORE" || !info.clean) {
        return Err(format!("closed, and not a plain store: {info:?}"));
    }
    Ok(())
}

/// Runs the seeds `first..` until `crashes` power cuts have been survived; panics with the command that replays a failure.
pub fn campaign(name: &str, first: u64, crashes: u64, plan: Plan) {
    let mut tally = Tally::default();
    let mut seed = first;
    while tally.crashes < crashes {
        match attempt(seed, plan) {
            Ok(t) => {
                tally.crashes += t.crashes;
                tally.closes += t.closes;
            }
            Err(why) => panic!(
                "{why}\nreplay with: SIM_SEED={seed} SIM_FAULTS={} SIM_NARROW={} cargo test --profile simulate -p coppice-engine \
                 --features sim --test sim_crash -- replay --ignored --nocapture",
                u8::from(plan.faults),
                u8::from(plan.narrow)
            ),
        }
        seed += 1;
    }
    println!("{name}: {} runs, {} power cuts, {} clean closes", seed - first, tally.crashes, tally.closes);
}

/// One run; a panic of the engine is a failure like any other.
pub fn attempt(seed: u64, plan: Plan) -> Result<Tally, String> {
    caught_panic(|| run(seed, plan))
}

pub fn caught_panic<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        Err(text.or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_else(|| "a panic".into()))
    })
}
