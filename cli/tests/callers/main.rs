//! Random callers of CSI against the real `coppice standalone`, which is killed now and then.
//!
//! Several callers at once create, clone, snapshot, grow, mount, use and delete volumes of their own and shared ones, in
//! right and wrong orders, twice, several times at once, with nonsense in between. Whatever is cut off by a kill is asked
//! again. Each caller knows what every answer must be and what users flushed; nothing may be lost, doubled or changed, no
//! call may hang or end with a code that says nothing, and at the end nothing may be left. Needs root.
//!
//! The seed decides what callers do and when the driver dies, though not how the kernel interleaves them:
//!
//! ```text
//!   COPPICE_CALLERS_SEED=7 cargo test --release -p coppice --test callers -- --ignored --nocapture
//! ```
//!
//! COPPICE_CALLERS_SECONDS goes on with fresh seeds for that long.

mod caller;
#[path = "../common/mod.rs"]
mod common;
mod content;
mod model;
mod random;
mod refusals;
mod shared;
mod world;

use anyhow::{Context, Result, bail, ensure};
use caller::Caller;
use common::Driver;
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::*;
use random::Random;
use std::sync::Arc;
use std::time::{Duration, Instant};
use world::{Ended, World};

/// The seeds of every run of the tests.
const SEEDS: std::ops::Range<u64> = 1..25;
const CALLERS: usize = 3;
const ROUNDS: usize = 2;
const STEPS: usize = 30;
/// Calls between two kills, on average.
const CALLS_BETWEEN: u64 = 120;
const STORE_BYTES: u64 = 16 << 30;
/// Freed space is not free before the free is durable.
const FREE_SECONDS_MAX: u64 = 30;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "takes minutes; scripts/test.sh runs it"]
async fn random_callers_of_a_driver_that_is_killed() -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        std::env::var(name).ok().map(|text| text.parse().with_context(|| format!("{name} is no number"))).transpose()
    };
    if let Some(seed) = number("COPPICE_CALLERS_SEED")? {
        return run(seed).await;
    }
    let Some(seconds) = number("COPPICE_CALLERS_SECONDS")? else {
        for seed in SEEDS {
            run(seed).await?;
        }
        return Ok(());
    };
    let began = Instant::now();
    let mut fresh = Random::new(coppice_proto::attributes::now_nanos());
    while began.elapsed() < Duration::from_secs(seconds) {
        run(fresh.below(1 << 32)).await?;
    }
    Ok(())
}

async fn run(seed: u64) -> Result<()> {
    let began = Instant::now();
    let driver = Driver::start(STORE_BYTES).await?;
    let world = World::new(driver);
    let done = program(seed, &world).await;
    let (slowest, call) = world.slowest();
    let kills = world.deaths();
    let calls = *world.calls.borrow();
    if let Err(e) = done {
        let mut driver = world.driver.lock().await;
        // A driver that nobody told to end takes a moment to be gone.
        tokio::time::sleep(Duration::from_secs(2)).await;
        if let Some(status) = driver.ended() {
            eprintln!("the driver ended by itself: {status}");
        }
        let log = driver.log();
        let tail: Vec<&str> = log.lines().rev().take(80).collect();
        for line in tail.iter().rev() {
            eprintln!("{line}");
        }
        bail!(
            "seed {seed}, after {calls} calls and {kills} kills: {e:#}\nagain: COPPICE_CALLERS_SEED={seed} cargo test \
             --release -p coppice --test callers -- --ignored --nocapture"
        );
    }
    println!(
        "seed {seed}: {calls} calls, {kills} kills, slowest answer {:.1} s ({call}), {:.1} s",
        slowest.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn program(seed: u64, world: &Arc<World>) -> Result<()> {
    let mut random = Random::new(seed);
    let mut observer = Caller::new("observer".into(), world.clone(), random.fork());
    let room = capacity(&mut observer).await?;
    let mut callers: Vec<Caller> =
        (0..CALLERS).map(|n| Caller::new(format!("caller-{n}"), world.clone(), random.fork())).collect();
    for round in 0..ROUNDS {
        callers = together(world, &mut random, callers).await.with_context(|| format!("round {round}"))?;
        quiet(&mut observer, &mut callers).await.with_context(|| format!("after round {round}"))?;
    }
    for caller in &mut callers {
        while !caller.volumes.is_empty() {
            caller.delete(0).await?;
        }
        while !caller.snapshots.is_empty() {
            caller.delete_snapshot(0).await?;
        }
    }
    nothing_left(world, &mut observer, room).await
}

/// All callers at once, and the killer.
async fn together(world: &Arc<World>, random: &mut Random, callers: Vec<Caller>) -> Result<Vec<Caller>> {
    let mut running = tokio::task::JoinSet::new();
    for mut caller in callers {
        running.spawn(async move {
            for step in 0..STEPS {
                let done = caller.step().await;
                if let Err(e) = done {
                    let before: Vec<&String> = caller.done.iter().rev().take(25).collect();
                    let before: Vec<_> = before.into_iter().rev().cloned().collect();
                    return Err(e.context(format!("step {step}; before:\n  {}", before.join("\n  "))));
                }
            }
            Ok(caller)
        });
    }
    let mut finished = Vec::new();
    let all = async {
        while let Some(caller) = running.join_next().await {
            finished.push(caller??);
        }
        anyhow::Ok(())
    };
    let (end, ended) = tokio::sync::oneshot::channel();
    let mut killer = tokio::spawn({
        let (world, random) = (world.clone(), random.fork());
        async move { world.kill_now_and_then(random, CALLS_BETWEEN, ended).await }
    });
    tokio::select! {
        done = all => done?,
        killed = &mut killer => return killed?.and(Err(anyhow::anyhow!("the killer has stopped"))),
    }
    // A driver that is being started is started.
    drop(end);
    killer.await??;
    finished.sort_by(|a: &Caller, b| a.name().cmp(b.name()));
    Ok(finished)
}

/// Nobody calls: what is there must be exactly what the callers know of.
async fn quiet(observer: &mut Caller, callers: &mut [Caller]) -> Result<()> {
    shared::clear(observer).await?;
    exactly(observer, callers).await?;
    for caller in callers.iter_mut() {
        caller.look().await?;
        let done = caller.check_content().await;
        done.with_context(|| format!("{}; before:\n  {}", caller.name(), caller.done.join("\n  ")))?;
    }
    exactly(observer, callers).await
}

async fn exactly(observer: &mut Caller, callers: &[Caller]) -> Result<()> {
    let mut volumes = observer.all_volumes().await?;
    let mut want: Vec<Volume> = callers.iter().flat_map(|c| c.volumes.iter().map(|v| v.volume.clone())).collect();
    volumes.sort_by(|a, b| a.volume_id.cmp(&b.volume_id));
    want.sort_by(|a, b| a.volume_id.cmp(&b.volume_id));
    ensure!(volumes == want, "volumes: {volumes:#?}, should be {want:#?}");
    let mut snapshots = observer.all_snapshots("").await?;
    let mut want: Vec<Snapshot> = callers.iter().flat_map(|c| c.snapshots.iter().map(|s| s.snapshot.clone())).collect();
    snapshots.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
    want.sort_by(|a, b| a.snapshot_id.cmp(&b.snapshot_id));
    ensure!(snapshots == want, "snapshots: {snapshots:#?}, should be {want:#?}");
    Ok(())
}

/// Asked once each time: space that comes back between two copies of the question makes two right answers.
async fn capacity(caller: &mut Caller) -> Result<i64> {
    loop {
        let ask =
            |channel| async move { ControllerClient::new(channel).get_capacity(GetCapacityRequest::default()).await };
        match caller.line.call("get_capacity", ask).await? {
            Ended::Ok(answer) => return Ok(answer.available_capacity),
            Ended::Refused(status) => bail!("get_capacity: {status:?}"),
            Ended::Cut => {}
        }
    }
}

async fn nothing_left(world: &Arc<World>, observer: &mut Caller, room: i64) -> Result<()> {
    let began = Instant::now();
    loop {
        let now = capacity(observer).await?;
        if now == room {
            break;
        }
        ensure!(began.elapsed() < Duration::from_secs(FREE_SECONDS_MAX), "{now} bytes are free, {room} were at first");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut driver = world.driver.lock().await;
    let exports = driver.path("run/exports");
    ensure!(driver.mounts()?.is_empty(), "mounts: {:?}", driver.mounts()?);
    let loops = coppice_node::host::device::loops()?;
    let loops: Vec<_> = loops.into_iter().filter(|(_, file)| file.starts_with(&exports)).collect();
    ensure!(loops.is_empty(), "loop devices: {loops:?}");
    for dir in ["run/exports", "run/attached", "use", "shared"] {
        let left: Vec<_> =
            std::fs::read_dir(driver.path(dir)).into_iter().flatten().flatten().map(|e| e.path()).collect();
        ensure!(left.is_empty(), "left in {dir}: {left:?}");
    }
    driver.terminate().await?;
    let (lvols, findings) = driver.inspect().await?;
    ensure!(lvols.is_empty() && findings.is_empty(), "left in the store: {lvols:?} {findings:?}");
    Ok(())
}
