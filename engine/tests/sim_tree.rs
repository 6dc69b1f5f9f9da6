//! Operations on the tree of lvols that run at once, on the real engine in the simulator: whatever order they fall into,
//! each lvol reads what it must, in this life and after a power cut.
#![cfg(feature = "sim")]

use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::Shard;
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::World;
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, CreateStore, Error, ErrorKind, LvolState, OpenStore};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use uuid::Uuid;

const CLUSTER: u64 = 4 << 10;
/// A little more than one extent page describes, so that a scan and a merge take several steps.
const CLUSTERS: u64 = 1100;
const DEVICE: u64 = 24 << 20;
const SEEDS: u64 = 150;

/// What each lvol must read.
type Contents = Rc<RefCell<BTreeMap<Uuid, Vec<u8>>>>;

fn blank() -> (Vec<u8>, Device) {
    let image = vec![0xee; DEVICE as usize];
    let device = Device::simulated(0, DEVICE, 512);
    let mut world = World::new(image, 1, 2);
    let (shard, on) = (world.shards[0].clone(), device.clone());
    let how = CreateStore {
        file_size: None,
        name: "sim".into(),
        cluster_size: Some(CLUSTER as u32),
        max_size: Some(DEVICE),
        block_size: Some(4096),
        force: true,
        owner: None,
    };
    world.block_on(0, async move { Lvstore::create(&shard, &on, &how).await }).expect("created");
    (world.power_cut(), device)
}

fn open(world: &mut World, device: &Device) -> Arc<Lvstore> {
    let handles = world.shards.iter().map(Shard::handle).collect();
    let (shard, device) = (world.shards[0].clone(), device.clone());
    // A small limit for the map, so that leaves come and go.
    let opened = async move { Lvstore::open(&shard, handles, device, OpenStore::default(), 64 << 10).await };
    world.block_on(0, opened).expect("opens")
}

async fn content(shard: &Shard, store: &Arc<Lvstore>, id: Uuid) -> Result<Vec<u8>, Error> {
    const PIECE: u64 = 1 << 20;
    let io = LvolIo::open(shard, store, id)?;
    let mut all = Vec::new();
    while (all.len() as u64) < io.size() {
        let at = all.len() as u64;
        let len = PIECE.min(io.size() - at) as usize;
        let buf = shard.buf(len).slice(0, len);
        io.read(at, buf.clone()).await?;
        all.extend_from_slice(&buf.to_vec());
    }
    Ok(all)
}

struct Run {
    store: Arc<Lvstore>,
    contents: Contents,
    seed: u64,
    next: Cell<u64>,
    /// Lvols whose content or size an operation changes now: one at a time.
    turns: RefCell<BTreeSet<Uuid>>,
}

impl Run {
    fn of(store: &Arc<Lvstore>, seed: u64) -> Run {
        Run { store: store.clone(), contents: Contents::default(), seed, next: Cell::new(0), turns: RefCell::default() }
    }

    fn fresh(&self) -> (Uuid, String) {
        self.next.set(self.next.get() + 1);
        (Uuid::from_u128(u128::from(self.seed) << 64 | u128::from(self.next.get())), format!("v{}", self.next.get()))
    }

    async fn scatter(&self, shard: &Shard, id: Uuid, rng: &mut Rng) {
        let io = LvolIo::open(shard, &self.store, id).expect("opens");
        for _ in 0..6 {
            let at = rng.below(io.size() / CLUSTER) * CLUSTER;
            let len = ((1 + rng.below(3)) * CLUSTER).min(io.size() - at);
            if rng.one_in(5) {
                io.discard(at, len).await.expect("discarded");
                continue;
            }
            let buf = shard.buf(len as usize).slice(0, len as usize);
            buf.copy_in(0, &vec![1 + rng.below(255) as u8; len as usize]);
            io.write(at, buf, false).await.expect("written");
        }
    }

    /// A line of snapshots of several sizes, with clones here and there.
    async fn grow_tree(&self, shard: &Shard) {
        let mut rng = Rng::new(self.seed);
        let (first, name) = self.fresh();
        let how = CreateLvol { name, uuid: Some(first), size: CLUSTERS * CLUSTER, ..Default::default() };
        self.store.create_lvol(shard, how).await.expect("created");
        let mut writable = vec![first];
        for _ in 0..3 + rng.below(4) {
            let origin = writable[rng.below(writable.len() as u64) as usize];
            self.scatter(shard, origin, &mut rng).await;
            if rng.one_in(3) {
                let clusters = [300, 512, 700, CLUSTERS][rng.below(4) as usize];
                self.store.resize(shard, origin, clusters * CLUSTER).await.expect("resized");
            }
            let (snapshot, name) = self.fresh();
            let how = CreateSnapshot {
                lvol: origin,
                name,
                uuid: Some(snapshot),
                attributes: Default::default(),
                hidden: false,
            };
            self.store.snapshot(shard, vec![how]).await.expect("snapshot");
            if rng.one_in(2) {
                let (id, name) = self.fresh();
                let thick = rng.one_in(4);
                let how =
                    CreateClone { snapshot, name, uuid: Some(id), size: None, thick, attributes: Default::default() };
                self.store.clone_snapshot(shard, how).await.expect("clone");
                writable.push(id);
            }
            self.scatter(shard, origin, &mut rng).await;
        }
        for lvol in self.store.lvols() {
            let bytes = content(shard, &self.store, lvol.uuid).await.expect("reads");
            self.contents.borrow_mut().insert(lvol.uuid, bytes);
        }
    }

    /// Some operations, one after the other.
    async fn operate(&self, shard: &Shard, task: u64) -> Result<(), String> {
        use ErrorKind::{Busy, HasClones, Invalid, NoSpace, NotFound, ReadOnly, WrongKind};
        let mut rng = Rng::new(self.seed ^ (task + 1) << 32);
        for _ in 0..1 + rng.below(3) {
            let all: Vec<Uuid> = self.contents.borrow().keys().copied().collect();
            let Some(id) = rng.pick(&all).copied() else { return Ok(()) };
            let to = rng.pick(&all).copied().unwrap_or(id);
            let result = match rng.below(12) {
                0..3 => self.store.decouple(shard, id, Box::new(|_| true)).await.map(drop),
                3 => self.store.inflate(shard, id, Box::new(|_| true)).await.map(drop),
                4..8 => self.delete(shard, id, rng.one_in(2)).await,
                _ if !self.turns.borrow_mut().insert(id) => continue,
                choice => {
                    let result = match choice {
                        8 => self.snapshot(shard, id).await,
                        9 | 10 => self.resize(shard, id, 1 + rng.below(CLUSTERS + 100)).await,
                        _ => self.revert(shard, id, to).await,
                    };
                    self.turns.borrow_mut().remove(&id);
                    result
                }
            };
            match result {
                Ok(()) => {}
                Err(e) if [Busy, HasClones, Invalid, NoSpace, NotFound, ReadOnly, WrongKind].contains(&e.kind()) => {}
                Err(e) => return Err(format!("refused: {e:?}")),
            }
        }
        Ok(())
    }

    async fn delete(&self, shard: &Shard, id: Uuid, deferred: bool) -> Result<(), Error> {
        let before = self.contents.borrow_mut().remove(&id);
        let result = self.store.delete(shard, id, deferred).await;
        if let (Err(_), Some(before)) = (&result, before) {
            self.contents.borrow_mut().insert(id, before);
        }
        result
    }

    async fn snapshot(&self, shard: &Shard, id: Uuid) -> Result<(), Error> {
        let (snapshot, name) = self.fresh();
        let how =
            CreateSnapshot { lvol: id, name, uuid: Some(snapshot), attributes: Default::default(), hidden: false };
        let before = self.contents.borrow().get(&id).cloned();
        self.store.snapshot(shard, vec![how]).await?;
        self.contents.borrow_mut().extend(before.map(|bytes| (snapshot, bytes)));
        Ok(())
    }

    async fn resize(&self, shard: &Shard, id: Uuid, clusters: u64) -> Result<(), Error> {
        self.store.resize(shard, id, clusters * CLUSTER).await?;
        if let Some(bytes) = self.contents.borrow_mut().get_mut(&id) {
            bytes.resize((clusters * CLUSTER) as usize, 0);
        }
        Ok(())
    }

    async fn revert(&self, shard: &Shard, id: Uuid, to: Uuid) -> Result<(), Error> {
        let after = self.contents.borrow().get(&to).cloned();
        self.store.revert(shard, id, to).await?;
        self.contents.borrow_mut().extend(after.map(|bytes| (id, bytes)));
        Ok(())
    }

    async fn compare(&self, shard: &Shard) -> Result<(), String> {
        let listed: Vec<_> = self.store.lvols().into_iter().filter(|l| l.state != LvolState::Hidden).collect();
        let expected = self.contents.borrow().clone();
        if listed.len() != expected.len() {
            return Err(format!("{} lvols are there, not {}", listed.len(), expected.len()));
        }
        for lvol in listed {
            let Some(want) = expected.get(&lvol.uuid) else { return Err(format!("what is {}?", lvol.name)) };
            let found = content(shard, &self.store, lvol.uuid).await.map_err(|e| format!("{}: {e:?}", lvol.name))?;
            if found.len() != want.len() {
                return Err(format!("{} has {} bytes, not {}", lvol.name, found.len(), want.len()));
            }
            if let Some(at) = (0..want.len()).find(|n| found[*n] != want[*n]) {
                return Err(format!("{} reads {:#x} at {at}, not {:#x}", lvol.name, found[at], want[at]));
            }
        }
        let findings = self.store.check(shard).await.map_err(|e| format!("{e:?}"))?;
        if findings.is_empty() { Ok(()) } else { Err(format!("{findings:?}")) }
    }
}

fn run(seed: u64, image: &[u8], device: &Device) -> Result<(), String> {
    let mut world = World::new(image.to_vec(), seed, 2);
    let store = open(&mut world, device);
    let contents = Contents::default();
    let run = Rc::new(Run { store, contents: contents.clone(), seed, next: Cell::new(0), turns: RefCell::default() });
    let (r, shard) = (run.clone(), world.shards[0].clone());
    world.block_on(0, async move { r.grow_tree(&shard).await });
    let done: Rc<RefCell<Vec<Result<(), String>>>> = Rc::default();
    const TASKS: usize = 4;
    for task in 0..TASKS {
        let (r, shard, slot) = (run.clone(), world.shards[task % 2].clone(), done.clone());
        world.shards[task % 2].spawn(async move {
            let result = r.operate(&shard, task as u64).await;
            slot.borrow_mut().push(result);
        });
    }
    let seen = done.clone();
    world.run(move || seen.borrow().len() == TASKS, None);
    done.take().into_iter().collect::<Result<Vec<()>, String>>()?;
    let (r, shard) = (run.clone(), world.shards[0].clone());
    world.block_on(0, async move {
        r.store.background_done().await;
        r.compare(&shard).await.map_err(|e| format!("at once: {e}"))?;
        r.store.commit().await.map_err(|e| format!("{e:?}"))
    })?;
    drop(run);
    let image = world.power_cut();
    let mut world = World::new(image, seed ^ 7, 2);
    let store = open(&mut world, device);
    let run = Run { store, contents, seed, next: Cell::new(0), turns: RefCell::default() };
    let shard = world.shards[0].clone();
    world.block_on(0, async move {
        run.store.background_done().await;
        run.compare(&shard).await
    })
}

#[test]
fn operations_at_once_lose_nothing() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (from, count) = number("SIM_SEED").map_or((1, SEEDS), |seed| (seed, number("SIM_COUNT").unwrap_or(1)));
    let (image, device) = blank();
    for seed in from..from + count {
        if let Err(why) = run(seed, &image, &device) {
            panic!("SIM_SEED={seed}: {why}");
        }
    }
}

/// What the older snapshot has behind the end of the newer one must not come back when the newer one goes, whatever
/// becomes of the size of its child meanwhile.
#[test]
fn a_merge_hides_what_lay_behind_the_end() {
    const LONG: u64 = 8 * 512;
    let (image, device) = blank();
    for seed in 1..=100 {
        let mut world = World::new(image.clone(), seed, 2);
        let run = Rc::new(Run::of(&open(&mut world, &device), seed));
        let (lvol, newer) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (r, shard) = (run.clone(), world.shards[0].clone());
        world.block_on(0, async move {
            let how = CreateLvol { name: "v".into(), uuid: Some(lvol), size: LONG * CLUSTER, ..Default::default() };
            r.store.create_lvol(&shard, how).await.expect("created");
            let io = LvolIo::open(&shard, &r.store, lvol).expect("opens");
            for n in 0..LONG / 256 {
                let buf = shard.buf(CLUSTER as usize).slice(0, CLUSTER as usize);
                buf.copy_in(0, &[7; CLUSTER as usize]);
                io.write(n * 256 * CLUSTER, buf, false).await.expect("written");
            }
            drop(io);
            let bytes = content(&shard, &r.store, lvol).await.expect("reads");
            r.contents.borrow_mut().insert(lvol, bytes);
            r.snapshot(&shard, lvol).await.expect("older");
            r.resize(&shard, lvol, 300).await.expect("shrunk");
            let how = CreateSnapshot {
                lvol,
                name: "newer".into(),
                uuid: Some(newer),
                attributes: Default::default(),
                hidden: false,
            };
            r.store.snapshot(&shard, vec![how]).await.expect("newer");
            r.resize(&shard, lvol, LONG).await.expect("grown");
        });
        let (r, shard) = (run.clone(), world.shards[0].clone());
        world.shards[0].spawn(async move { r.delete(&shard, newer, false).await.expect("deleted") });
        let (r, shard) = (run.clone(), world.shards[1].clone());
        world.shards[1].spawn(async move {
            for _ in 0..seed % 16 {
                shard.yield_now().await;
            }
            r.store.resize(&shard, lvol, 200 * CLUSTER).await.expect("shrunk");
        });
        let (r, shard) = (run.clone(), world.shards[0].clone());
        world.block_on(0, async move {
            while r.store.lvol(lvol).expect("there").size != 200 * CLUSTER {
                shard.yield_now().await;
            }
            while r.store.resize(&shard, lvol, LONG * CLUSTER).await.is_err() {
                shard.yield_now().await;
            }
        });
        let (r, shard) = (run.clone(), world.shards[0].clone());
        if let Some(bytes) = run.contents.borrow_mut().get_mut(&lvol) {
            bytes.truncate((200 * CLUSTER) as usize);
            bytes.resize((LONG * CLUSTER) as usize, 0);
        }
        let same = world.block_on(0, async move {
            while r.store.lvols().len() > 2 {
                shard.yield_now().await;
            }
            r.store.background_done().await;
            r.compare(&shard).await
        });
        same.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// Whoever knows the UUID of a snapshot that is being taken gets in only when its content is final.
#[test]
fn a_snapshot_that_can_be_read_does_not_change() {
    let (image, device) = blank();
    for seed in 1..=300 {
        let mut world = World::new(image.clone(), seed, 2);
        let run = Rc::new(Run::of(&open(&mut world, &device), seed));
        let (lvol, snapshot) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (r, shard) = (run.clone(), world.shards[0].clone());
        world.block_on(0, async move {
            let how = CreateLvol { name: "v".into(), uuid: Some(lvol), size: 4 * CLUSTER, ..Default::default() };
            r.store.create_lvol(&shard, how).await.expect("created");
        });
        let (r, shard) = (run.clone(), world.shards[1].clone());
        world.shards[1].spawn(async move {
            let io = LvolIo::open(&shard, &r.store, lvol).expect("opens");
            for n in 1..=20 {
                let buf = shard.buf(4 * CLUSTER as usize).slice(0, 4 * CLUSTER as usize);
                buf.copy_in(0, &[n; 4 * CLUSTER as usize]);
                io.write(0, buf, false).await.expect("written");
            }
        });
        let (r, shard) = (run.clone(), world.shards[0].clone());
        let taken = Rc::new(Cell::new(false));
        let done = taken.clone();
        world.shards[0].spawn(async move {
            for _ in 0..seed % 64 {
                shard.yield_now().await;
            }
            let how = CreateSnapshot {
                lvol,
                name: "s".into(),
                uuid: Some(snapshot),
                attributes: Default::default(),
                hidden: false,
            };
            r.store.snapshot(&shard, vec![how]).await.expect("snapshot");
            done.set(true);
        });
        let (r, shard) = (run.clone(), world.shards[0].clone());
        let (first, last) = world.block_on(0, async move {
            let first = loop {
                match content(&shard, &r.store, snapshot).await {
                    Ok(bytes) => break bytes,
                    Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Busy) => {}
                    Err(e) => panic!("{e:?}"),
                }
                shard.yield_now().await;
            };
            while !taken.get() {
                shard.yield_now().await;
            }
            (first, content(&shard, &r.store, snapshot).await.expect("reads"))
        });
        assert!(first == last, "seed {seed}: the snapshot changed");
    }
}

/// A snapshot that was born hidden and got no clone goes when it is deleted; deleting again is fine.
#[test]
fn what_was_born_hidden_can_be_deleted() {
    let (image, device) = blank();
    let mut world = World::new(image, 1, 2);
    let run = Run::of(&open(&mut world, &device), 1);
    let (lvol, hidden, clone) = (Uuid::from_u128(1), Uuid::from_u128(2), Uuid::from_u128(3));
    let shard = world.shards[0].clone();
    world.block_on(0, async move {
        let how = CreateLvol { name: "v".into(), uuid: Some(lvol), size: CLUSTER, ..Default::default() };
        run.store.create_lvol(&shard, how).await.expect("created");
        let take = |name: &str| {
            let (name, attributes) = (name.into(), Default::default());
            vec![CreateSnapshot { lvol, name, uuid: Some(hidden), attributes, hidden: true }]
        };
        run.store.snapshot(&shard, take("a")).await.expect("snapshot");
        run.store.delete(&shard, hidden, false).await.expect("deleted");
        run.store.background_done().await;
        assert_eq!(run.store.lvols().len(), 1, "it was merged");

        run.store.snapshot(&shard, take("b")).await.expect("snapshot");
        let how = CreateClone {
            snapshot: hidden,
            name: "c".into(),
            uuid: Some(clone),
            size: None,
            thick: false,
            attributes: Default::default(),
        };
        run.store.clone_snapshot(&shard, how.clone()).await.expect("clone");
        for _ in 0..2 {
            run.store.delete(&shard, hidden, false).await.expect("it waits for its clone");
        }
        let again = CreateClone { name: "d".into(), uuid: None, ..how };
        let refused = run.store.clone_snapshot(&shard, again).await.expect_err("deleted");
        assert_eq!(refused.kind(), ErrorKind::NotFound);
        run.store.delete(&shard, clone, false).await.expect("deleted");
        run.store.background_done().await;
        assert_eq!(run.store.lvols().len(), 1, "the last reader took it along");
    });
}
