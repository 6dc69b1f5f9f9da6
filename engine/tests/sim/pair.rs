//! Two lvstores, each the real engine on a disk of its own, in one seeded run: B has clones of A's snapshots, and reads
//! through to the real reader of A. Either one's power is cut, or both's, and A may be away for long.
//!
//! ```text
//!   A: program ─▶ lvols, snapshots, deletes, merges        B: program ─▶ clones of A's snapshots, hydration
//!            ▲ pin, unpin                                            ▲ clone, "what do you still name?"
//!            └────────────────────── caretaker ──────────────────────┘
//! ```
//!
//! At every moment both are open, A has and keeps what B names. Whatever B reads is right, or refused while A is away: no
//! schedule frees what the other still reads. In the end one is lost for good, or all is hydrated or deleted; then nothing
//! is left over.

use super::{SHARDS, SIZE_MAX, SharedModel, caught_panic, compare_all, compare_blocks, decide, program::Job, sound};
use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::external::{Access, External, LocalParent, Resolver};
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::{Shard, ShardHandle};
use coppice_engine::sim::model::{BLOCK, Fate};
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::{World, run_together};
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateExternalClone, CreateStore, Error, ErrorKind, LvolState, OpenStore, Pin, Store, Stores};

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const PHASES: usize = 8;
/// Snapshots of A that B has clones of at the same time.
const PINNED_MAX: usize = 4;
/// A read that began when A was away may say so a little later.
const JUST_BACK_NS: u64 = 100_000;
/// Clusters of a lvol that are looked at without A.
const SAMPLE: u64 = 48;
/// Lvols of B, beyond which no more clones are made.
const LVOLS_MAX: usize = 40;
/// How often what is busy is tried again.
const TRIES: usize = 200;

const A: usize = 0;
const B: usize = 1;

/// What a run did, to see that it shows something.
#[derive(Default, Debug, Clone, Copy)]
pub struct Tally {
    pub clones: u64,
    /// Pins that B was said not to need any more, and those taken away.
    pub needless: u64,
    pub unpinned: u64,
    /// How often the caretaker saw a snapshot that was deleted and stays because it is pinned.
    pub outlived: u64,
    pub cuts: [u64; 2],
    /// Clusters of B that could not be read when it was opened without A, and those that could.
    pub unread: u64,
    pub read: u64,
}

/// What the caretaker, the programs and the run know together.
#[derive(Default)]
struct Common {
    /// Where B looks for parents.
    stores: Stores,
    /// Open and compared: the caretaker may use them.
    ready: RefCell<[Option<Store>; 2]>,
    models: [SharedModel; 2],
    tags: Rc<Cell<u64>>,
    away: Cell<bool>,
    back_ns: Cell<u64>,
    /// No new clones are made.
    winding_up: Cell<bool>,
    tally: Cell<Tally>,
    failure: RefCell<Option<String>>,
}

impl Common {
    fn may_be_away(&self, shard: &Shard) -> bool {
        self.away.get() || shard.now_ns() <= self.back_ns.get() + JUST_BACK_NS
    }

    fn both(&self) -> Option<(Store, Store)> {
        match &*self.ready.borrow() {
            [Some(a), Some(b)] => Some((a.clone(), b.clone())),
            _ => None,
        }
    }

    fn is_open(&self, side: usize, store: &Store) -> bool {
        self.ready.borrow()[side].as_ref().is_some_and(|now| Arc::ptr_eq(now.lvstore(), store.lvstore()))
    }

    fn count(&self, what: impl FnOnce(&mut Tally)) {
        let mut tally = self.tally.get();
        what(&mut tally);
        self.tally.set(tally);
    }

    fn wrong(&self, why: String) {
        self.failure.borrow_mut().get_or_insert(why);
    }

    /// What B names is there, and kept for it.
    fn kept(&self) -> Result<(), String> {
        let Some((a, b)) = self.both() else { return Ok(()) };
        for parent in b.external_parents() {
            let found = a.lvstore().lvol(parent).map_err(|e| format!("B names {parent}, and A has lost it: {e}"))?;
            if !found.pins.iter().any(|pin| pin.lvstore == b.uuid()) {
                return Err(format!("B names {parent}, and it is not pinned: {found:?}"));
            }
        }
        Ok(())
    }
}

// ---- the caretaker ----

/// Whoever makes clones of A's snapshots on B, and takes away pins that B needs no more, as an agent does. It outlives both.
struct Caretaker {
    shard: Shard,
    common: Rc<Common>,
    rng: Rng,
}

impl Caretaker {
    async fn live(mut self) {
        loop {
            if let Err(why) = self.turn().await {
                self.common.wrong(why);
            }
            // Mostly at once: what is said between a change and its commit matters most.
            match self.rng.below(40) {
                0 => self.shard.sleep(Duration::from_micros(1 << self.rng.below(18))).await,
                1..6 => self.shard.sleep(Duration::from_micros(self.rng.below(60))).await,
                _ => self.shard.yield_now().await,
            }
        }
    }

    async fn turn(&mut self) -> Result<(), String> {
        let Some((a, b)) = self.common.both() else {
            // Time may pass.
            self.shard.sleep(Duration::from_millis(5)).await;
            return Ok(());
        };
        self.common.kept()?;
        let pinned = a.lvstore().lvols().iter().filter(|lvol| !lvol.pins.is_empty()).count();
        let room = pinned < PINNED_MAX && self.common.models[B].borrow().len() < LVOLS_MAX;
        if room && !self.common.winding_up.get() && self.rng.one_in(12) {
            return self.make(&a, &b).await;
        }
        for lvol in a.lvstore().lvols() {
            if lvol.pins.is_empty() {
                continue;
            }
            if lvol.state == LvolState::Hidden {
                self.common.count(|tally| tally.outlived += 1);
            }
            self.release(&a, &b, lvol.uuid).await?;
        }
        Ok(())
    }

    /// Of a store that was cut off meanwhile any answer will do.
    fn refused(&self, side: usize, store: &Store, e: Error, allowed: &[ErrorKind]) -> Result<(), String> {
        let cut_off = e.kind() == ErrorKind::Cancelled && !self.common.is_open(side, store);
        match cut_off || allowed.contains(&e.kind()) {
            true => Ok(()),
            false => Err(format!("the caretaker was refused: {e:?}")),
        }
    }

    async fn make(&mut self, a: &Store, b: &Store) -> Result<(), String> {
        let found = {
            let model = self.common.models[A].borrow();
            let snapshots: Vec<_> = model.iter().filter(|(_, v)| v.snapshot && v.fate == Fate::Stays).collect();
            self.rng.pick(&snapshots).map(|(uuid, volume)| (**uuid, (*volume).clone()))
        };
        let Some((parent, source)) = found else { return Ok(()) };
        let pin = Pin { lvstore: b.uuid(), reader: "b".into() };
        if let Err(e) = a.pin(parent, pin).await {
            use ErrorKind::{Busy, NoMetadataSpace, NoSpace, NotFound};
            return self.refused(A, a, e, &[NotFound, Busy, NoSpace, NoMetadataSpace]);
        }
        if !self.common.is_open(B, b) {
            return Ok(());
        }
        let uuid = self.shard.random_uuid();
        let name = format!("of-{}", uuid.simple());
        let mut clone = source.as_clone(&name);
        let cluster = b.lvstore().cluster_size();
        let size = clone.size() + if self.rng.one_in(4) { self.rng.below(4) * cluster } else { 0 };
        clone.resize(size.next_multiple_of(cluster));
        let how = CreateExternalClone {
            parent,
            name,
            uuid: Some(uuid),
            size: Some(clone.size()),
            thick: self.rng.one_in(6),
            hydrate: self.rng.one_in(2),
            ..Default::default()
        };
        self.common.models[B].borrow_mut().insert(uuid, clone);
        let made = b.clone_external(how).await;
        if self.common.is_open(B, b) {
            // Otherwise its next start decides, or has decided.
            let mut model = self.common.models[B].borrow_mut();
            match (&made, model.get_mut(&uuid)) {
                (Ok(_), Some(volume)) => volume.fate = Fate::Stays,
                _ => {
                    model.remove(&uuid);
                }
            }
        }
        match made {
            Ok(_) => self.common.count(|tally| tally.clones += 1),
            Err(e) => {
                let mut allowed = vec![ErrorKind::NoSpace, ErrorKind::NoMetadataSpace];
                if self.common.may_be_away(&self.shard) {
                    allowed.push(ErrorKind::Away);
                }
                self.refused(B, b, e, &allowed)?;
                self.release(a, b, parent).await?;
            }
        }
        Ok(())
    }

    /// Only a store that is open can say that it does not need a snapshot.
    async fn release(&self, a: &Store, b: &Store, snapshot: Uuid) -> Result<(), String> {
        let needed = !b.knows_external_parents() || b.external_parents().contains(&snapshot);
        if needed || !self.common.is_open(B, b) {
            return Ok(());
        }
        self.common.count(|tally| tally.needless += 1);
        match a.unpin(snapshot, b.uuid()).await {
            Ok(()) => self.common.count(|tally| tally.unpinned += 1),
            Err(e) => self.refused(A, a, e, &[ErrorKind::NoSpace, ErrorKind::NoMetadataSpace])?,
        }
        Ok(())
    }
}

// ---- the two machines ----

struct Ways {
    stores: Stores,
    shard: ShardHandle,
}

impl Resolver for Ways {
    fn resolve(&self, parent: Uuid) -> Option<Arc<dyn External>> {
        Some(Arc::new(LocalParent::new(self.stores.clone(), parent, self.shard.clone())))
    }
}

struct Machine {
    device: Device,
    /// What is on its disk while it is off.
    image: Vec<u8>,
    up: Option<(World, Store)>,
    job: Option<Job>,
}

struct Run {
    machines: [Machine; 2],
    /// The caretaker's.
    third: World,
    common: Rc<Common>,
    patience: Duration,
    rng: Rng,
}

impl Run {
    fn new(seed: u64) -> Result<Run, String> {
        let mut rng = Rng::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let common = Rc::new(Common { away: Cell::new(true), ..Common::default() });
        let machines = [Machine::new("a", 8 << 20, &mut rng)?, {
            // Now and then B is full all the time.
            let size = [3 << 20, 8 << 20, 16 << 20][rng.below(3) as usize];
            Machine::new("b", size, &mut rng)?
        }];
        let third = World::new(Vec::new(), rng.draw(), 1);
        let shard = third.shards[0].clone();
        let caretaker = Caretaker { shard, common: common.clone(), rng: Rng::new(rng.draw()) };
        third.shards[0].spawn(caretaker.live());
        let patience = Duration::from_millis([0, 1, 2][rng.below(3) as usize]);
        Ok(Run { machines, third, common, patience, rng })
    }

    /// Runs everything that is up, until `done`, something is wrong, or the disk of a machine has completed as many writes as
    /// said: that one.
    fn go(&mut self, crash_at: [Option<u64>; 2], mut done: impl FnMut() -> bool) -> Result<Option<usize>, String> {
        let mut worlds = vec![(&mut self.third, None)];
        let mut sides = Vec::new();
        for (side, machine) in self.machines.iter_mut().enumerate() {
            if let Some((world, _)) = &mut machine.up {
                worlds.push((world, crash_at[side]));
                sides.push(side);
            }
        }
        let common = self.common.clone();
        let crashed = run_together(&mut worlds, move || done() || common.failure.borrow().is_some());
        for job in self.machines.iter().filter_map(|machine| machine.job.as_ref()) {
            job.verdict()?;
        }
        match self.common.failure.borrow_mut().take() {
            Some(why) => Err(why),
            None => Ok(crashed.map(|n| sides[n - 1])),
        }
    }

    /// Runs `work` to its end on a machine that is up, beside everything else.
    fn on<T: 'static, F: Future<Output = Result<T, String>> + 'static>(
        &mut self,
        side: usize,
        work: impl FnOnce(Shard) -> F,
    ) -> Result<T, String> {
        let Some((world, _)) = &self.machines[side].up else { return Err("it is off".into()) };
        let (slot, shard) = (Rc::new(RefCell::new(None)), world.shards[0].clone());
        let (result, work) = (slot.clone(), work(shard.clone()));
        shard.spawn(async move {
            let done = work.await;
            *result.borrow_mut() = Some(done);
        });
        let seen = slot.clone();
        self.go([None; 2], move || seen.borrow().is_some())?;
        slot.borrow_mut().take().ok_or("no result")?
    }

    fn is_up(&self, side: usize) -> bool {
        self.machines[side].up.is_some()
    }

    /// Opens what the last power cut left, while the other one goes on.
    fn start(&mut self, side: usize) -> Result<(), String> {
        let image = std::mem::take(&mut self.machines[side].image);
        let mut world = World::new(image, self.rng.draw(), SHARDS);
        world.set_clock(self.third.now_ns());
        let (shard, handles) = (world.shards[0].clone(), world.shards.iter().map(Shard::handle).collect());
        let resolver = Ways { stores: self.common.stores.clone(), shard: shard.handle() };
        let external = Access { resolver: Some(Arc::new(resolver)), patience: self.patience, ..Access::default() };
        let (device, model) = (self.machines[side].device.clone(), self.common.models[side].clone());
        let opened = world.block_on(0, async move {
            let how = OpenStore { external, ..OpenStore::default() };
            let store =
                Lvstore::open(&shard, handles, device, how, 64 << 10).await.map_err(|e| format!("open: {e:?}"))?;
            decide(&store, &model)?;
            Ok::<_, String>(Store::simulated(store))
        });
        let store = opened?;
        self.common.stores.add(store.clone());
        if side == A {
            self.common.back_ns.set(world.now_ns().max(self.third.now_ns()));
            self.common.away.set(false);
        }
        self.machines[side].up = Some((world, store.clone()));
        let (common, lv) = (self.common.clone(), store.lvstore().clone());
        self.on(side, move |shard| async move { compared(&shard, &lv, side, &common, true).await })?;
        self.common.ready.borrow_mut()[side] = Some(store);
        self.common.kept()
    }

    fn cut(&mut self, side: usize) {
        let machine = &mut self.machines[side];
        machine.job = None;
        let Some((world, store)) = machine.up.take() else { return };
        self.common.ready.borrow_mut()[side] = None;
        self.common.stores.remove(store.uuid());
        if side == A {
            self.common.away.set(true);
        }
        drop(store);
        machine.image = world.power_cut();
        self.common.count(|tally| tally.cuts[side] += 1);
    }

    fn cut_some(&mut self, first: usize) {
        self.cut(first);
        if self.rng.one_in(4) {
            self.cut(1 - first);
        }
    }

    fn phase(&mut self) -> Result<(), String> {
        for side in if self.rng.one_in(2) { [A, B] } else { [B, A] } {
            // A that stays away for long is worth more than B, of which nobody hears.
            let stays_off = self.is_up(1 - side) && self.rng.one_in(if side == A { 2 } else { 4 });
            if !self.is_up(side) && !stays_off {
                self.start(side)?;
            }
        }
        let mut crash_at = [None; 2];
        for side in [A, B] {
            let machine = &mut self.machines[side];
            let Some((world, store)) = &machine.up else { continue };
            if machine.job.as_ref().is_none_or(Job::finished) {
                let (model, common) = (&self.common.models[side], self.common.clone());
                let seed = self.rng.draw();
                let job = Job::new(store.lvstore(), &machine.device, model, &self.common.tags, seed, false, false)
                    .with_parents(move |shard| common.may_be_away(shard));
                job.start(world);
                machine.job = Some(job);
            }
            let written = world.disk.borrow().writes;
            let early = self.rng.one_in(4);
            let later = 1 + self.rng.below(if early { 12 } else { 700 });
            crash_at[side] = self.rng.one_in(2).then_some(written + later);
        }
        let jobs: Vec<Job> = self.machines.iter().filter_map(|machine| machine.job.clone()).collect();
        // Rather right after B said that it does not need a pin: what that relied on must be durable.
        let tempting = self.rng.one_in(2).then(|| self.common.tally.get().needless + 1 + self.rng.below(3));
        // Or some time later: a hydration that failed begins again.
        let linger = Duration::from_millis([0, 0, 3_000][self.rng.below(3) as usize]);
        let lingered = Rc::new(Cell::new(None));
        let (shard, common, over) = (self.third.shards[0].clone(), self.common.clone(), lingered.clone());
        let ended = self.go(crash_at, move || {
            if tempting.is_some_and(|needless| common.tally.get().needless >= needless) {
                return true;
            }
            if !jobs.iter().all(Job::finished) {
                return false;
            }
            match over.get() {
                Some(over) => over,
                None => {
                    over.set(Some(linger.is_zero()));
                    let (over, on) = (over.clone(), shard.clone());
                    shard.spawn(async move {
                        on.sleep(linger).await;
                        over.set(Some(true));
                    });
                    false
                }
            }
        })?;
        self.common.kept()?;
        match ended {
            Some(side) => self.cut_some(side),
            None if lingered.get() != Some(true) => self.cut_some(B),
            None if self.rng.one_in(3) => {
                // Nobody's power fails: all at rest, everything is compared.
                self.compare()?;
            }
            None => {
                let side = self.rng.below(2) as usize;
                self.cut_some(if self.is_up(side) { side } else { 1 - side });
            }
        }
        Ok(())
    }

    /// With everything else at rest.
    fn compare(&mut self) -> Result<(), String> {
        for side in [A, B] {
            let Some(store) = self.store(side) else { continue };
            let common = self.common.clone();
            // What the caretaker makes meanwhile is not finished.
            let making = self.common.winding_up.replace(true);
            self.settle()?;
            self.on(side, move |shard| async move { compared(&shard, store.lvstore(), side, &common, false).await })?;
            self.common.winding_up.set(making);
        }
        Ok(())
    }

    /// Until the caretaker makes nothing any more.
    fn settle(&mut self) -> Result<(), String> {
        let up = [A, B].into_iter().filter(|side| self.is_up(*side));
        let models: Vec<SharedModel> = up.map(|side| self.common.models[side].clone()).collect();
        self.go([None; 2], move || models.iter().all(|model| model.borrow().values().all(|v| v.fate == Fate::Stays)))?;
        Ok(())
    }

    fn store(&self, side: usize) -> Option<Store> {
        self.machines[side].up.as_ref().map(|(_, store)| store.clone())
    }

    // ---- the end ----

    fn end(&mut self) -> Result<(), String> {
        let jobs: Vec<Job> = self.machines.iter().filter_map(|machine| machine.job.clone()).collect();
        self.common.winding_up.set(true);
        self.go([None; 2], move || jobs.iter().all(Job::finished))?;
        self.machines.iter_mut().for_each(|machine| machine.job = None);
        match self.rng.below(4) {
            0 => self.without_a(),
            1 => self.without_b(),
            _ => self.together(),
        }
    }

    /// A is lost: what B has of its own stays, the rest is refused, and it can be cleared.
    fn without_a(&mut self) -> Result<(), String> {
        self.cut(A);
        self.cut(B);
        self.start(B)?;
        self.delete_all(B)?;
        self.nothing_is_left(B)
    }

    /// B is lost, and somebody says so.
    fn without_b(&mut self) -> Result<(), String> {
        if !self.is_up(A) {
            self.start(A)?;
        }
        self.cut(B);
        self.delete_all(A)?;
        let Some(a) = self.store(A) else { return Err("A is off".into()) };
        self.on(A, move |shard| async move {
            let pins = |a: &Store| a.lvstore().lvols().into_iter().find(|lvol| !lvol.pins.is_empty());
            while let Some(lvol) = pins(&a) {
                let pin = lvol.pins[0].lvstore;
                a.lvstore().unpin(&shard, lvol.uuid, pin).await.map_err(|e| format!("unpin: {e:?}"))?;
            }
            Ok(())
        })?;
        self.nothing_is_left(A)
    }

    /// What is to be hydrated is, A deletes everything, and then B does.
    fn together(&mut self) -> Result<(), String> {
        for side in [A, B] {
            if !self.is_up(side) {
                self.start(side)?;
            }
        }
        let Some(b) = self.store(B) else { return Err("B is off".into()) };
        self.delete_all(A)?;
        self.compare()?;
        self.on(B, move |shard| async move { hydrated(&shard, b.lvstore()).await })?;
        self.compare()?;
        // Once more without A: what was hydrated needs nobody.
        self.cut(A);
        self.cut(B);
        self.start(B)?;
        self.start(A)?;
        self.compare()?;
        self.delete_all(B)?;
        self.nothing_is_left(B)?;
        let Some(a) = self.store(A) else { return Err("A is off".into()) };
        self.on(A, move |shard| async move {
            for _ in 0..TRIES {
                if a.lvstore().lvols().is_empty() {
                    break;
                }
                shard.sleep(Duration::from_millis(100)).await;
            }
            Ok(())
        })?;
        self.nothing_is_left(A)
    }

    fn delete_all(&mut self, side: usize) -> Result<(), String> {
        let Some(store) = self.store(side) else { return Err("it is off".into()) };
        let (store, model) = (store.lvstore().clone(), self.common.models[side].clone());
        self.on(side, move |shard| async move {
            for _ in 0..TRIES {
                let listed: Vec<Uuid> = model.borrow().keys().copied().collect();
                if listed.is_empty() {
                    return Ok(());
                }
                for uuid in listed {
                    match store.delete(&shard, uuid, true).await {
                        Ok(()) => {
                            model.borrow_mut().remove(&uuid);
                        }
                        Err(e) if e.kind() == ErrorKind::Busy => {}
                        Err(e) => return Err(format!("delete: {e:?}")),
                    }
                }
                shard.sleep(Duration::from_millis(1)).await;
            }
            Err(format!("they stay busy: {:?}", store.lvols()))
        })
    }

    fn nothing_is_left(&mut self, side: usize) -> Result<(), String> {
        let Some(store) = self.store(side) else { return Err("it is off".into()) };
        let store = store.lvstore().clone();
        self.on(side, move |shard| async move {
            store.background_done().await;
            let fails = |e: Error| format!("at the end: {e:?}");
            store.commit().await.map_err(fails)?;
            store.reclaimed().await.map_err(fails)?;
            store.commit().await.map_err(fails)?;
            let findings = store.check(&shard).await.map_err(fails)?;
            let (lvols, info) = (store.lvols(), store.info());
            let held = info.allocated_clusters + info.reserved_clusters + info.quarantined_clusters;
            if !findings.is_empty() || !lvols.is_empty() || held > 0 || !info.external_parents.is_empty() {
                return Err(format!("something is left: {findings:?} {lvols:?} {info:?}"));
            }
            store.close(&shard).await.map_err(fails)?;
            let info = store.info();
            match info.bstype == "LVOLSTORE" && info.clean {
                true => Ok(()),
                false => Err(format!("closed, and not a plain store: {info:?}")),
            }
        })
    }
}

impl Machine {
    fn new(name: &str, size: u64, rng: &mut Rng) -> Result<Machine, String> {
        let cluster_size = [4 << 10, 16 << 10, 64 << 10][rng.below(3) as usize];
        // Every sector begins as a stranger's.
        let image = (0..SIZE_MAX).map(|n| if n / 512 % 2 == 0 { 0xee } else { 0xdd }).collect();
        let device = Device::simulated(0, size, 512);
        let mut world = World::new(image, rng.draw(), SHARDS);
        let how = CreateStore {
            file_size: None,
            name: name.into(),
            cluster_size: Some(cluster_size),
            max_size: Some(SIZE_MAX),
            block_size: Some(4096),
            force: false,
            owner: None,
        };
        let (shard, on) = (world.shards[0].clone(), device.clone());
        let made = world.block_on(0, async move { Lvstore::create(&shard, &on, &how).await.map(|_| ()) });
        made.map_err(|e| format!("create: {e:?}"))?;
        Ok(Machine { device, image: world.power_cut(), up: None, job: None })
    }
}

/// All that a store has, which nobody changes. B without A: what it has of its own; the rest is refused. `pin`: what is found
/// is durable.
async fn compared(shard: &Shard, store: &Arc<Lvstore>, side: usize, common: &Common, pin: bool) -> Result<(), String> {
    let model = &common.models[side];
    sound(shard, store).await?;
    if side == A || !common.away.get() {
        return compare_all(shard, store, model, pin).await;
    }
    let ids: Vec<Uuid> = model.borrow().keys().copied().collect();
    let blocks = (store.cluster_size() / BLOCK).max(1);
    for id in ids {
        let io = LvolIo::open(shard, store, id).map_err(|e| format!("open: {e:?}"))?;
        let clusters = io.size() / BLOCK / blocks;
        for cluster in (0..clusters).step_by(clusters.div_ceil(SAMPLE).max(1) as usize) {
            let first = cluster * blocks;
            match compare_blocks(shard, &io, model, id, first, blocks, pin).await {
                Ok(()) => common.count(|tally| tally.read += 1),
                Err(Err(e)) if e.kind() == ErrorKind::Away => common.count(|tally| tally.unread += 1),
                Err(why) => return Err(why.unwrap_or_else(|e| format!("read: {e:?}"))),
            }
        }
    }
    Ok(())
}

/// Every lvol that names a parent elsewhere is filled, as far as there is room.
async fn hydrated(shard: &Shard, store: &Arc<Lvstore>) -> Result<(), String> {
    use ErrorKind::{Away, Busy, Invalid, NoMetadataSpace, NoSpace, NotFound};
    let elsewhere = store.external_parents();
    let carriers = store.lvols().into_iter().filter(|lvol| lvol.parent.is_some_and(|p| elsewhere.contains(&p)));
    for lvol in carriers.filter(|lvol| lvol.state != LvolState::Hidden) {
        for attempt in 0.. {
            match store.hydrate(shard, lvol.uuid, Box::new(|_| true)).await {
                Ok(done) if done.hydration.is_none() => break,
                // It was merged into its child meanwhile, or is independent by now.
                Err(e) if matches!(e.kind(), NoSpace | NoMetadataSpace | NotFound | Invalid) => break,
                // What stood still goes on by itself.
                Err(e) if matches!(e.kind(), Away | Busy) && attempt < TRIES => {
                    shard.sleep(Duration::from_millis(100)).await;
                }
                other => return Err(format!("hydration does not end: {other:?}")),
            }
        }
    }
    Ok(())
}

pub fn run(seed: u64) -> Result<Tally, String> {
    let mut run = Run::new(seed)?;
    for phase in 0..PHASES {
        run.phase().map_err(|why| format!("phase {phase}: {why}"))?;
    }
    run.end().map_err(|why| format!("at the end: {why}"))?;
    Ok(run.common.tally.get())
}

/// One run; a panic of the engine is a failure like any other.
pub fn attempt(seed: u64) -> Result<Tally, String> {
    caught_panic(|| run(seed))
}
