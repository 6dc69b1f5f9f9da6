//! What a round does: four tasks that read, write, discard and flush, and one that changes the tree.

use super::{SHARDS, SIZE_MAX, SharedModel, adds_up, compare, sound};
use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::Shard;
use coppice_engine::sim::disk::SECTOR;
use coppice_engine::sim::model::{BLOCK, Fate, Volume, prefix_holds, read_tag, sector, tag, tell_snapshots};
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::World;
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, Error, ErrorKind};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const WRITERS: usize = 4;
const WRITES: usize = 60;
const CHANGES: usize = 25;
/// Sizes are multiples of this, or of a cluster where that is larger.
const STEP: u64 = 64 << 10;

#[derive(Clone)]
pub struct Job {
    store: Arc<Lvstore>,
    device: Device,
    model: SharedModel,
    tags: Rc<Cell<u64>>,
    seed: u64,
    /// Device errors are to be expected.
    faulty: bool,
    /// All writes go to few blocks, so that they meet in one cluster.
    hot: bool,
    narrow: bool,
    /// Whether an external parent may be away at the moment.
    away: Rc<dyn Fn(&Shard) -> bool>,
    running: Rc<Cell<usize>>,
    failure: Rc<RefCell<Option<String>>>,
}

/// An operation that did not happen, and may not.
enum Stop {
    /// The device is broken: nothing more can be asked of this round.
    Broken,
    Wrong(String),
}

impl Job {
    pub fn new(
        store: &Arc<Lvstore>,
        device: &Device,
        model: &SharedModel,
        tags: &Rc<Cell<u64>>,
        seed: u64,
        faulty: bool,
        narrow: bool,
    ) -> Job {
        Job {
            store: store.clone(),
            device: device.clone(),
            model: model.clone(),
            tags: tags.clone(),
            seed,
            faulty,
            hot: narrow || seed.is_multiple_of(3),
            narrow,
            away: Rc::new(|_| false),
            running: Rc::default(),
            failure: Rc::default(),
        }
    }

    /// External parents are away whenever `away` says so, and at no other time.
    pub fn with_parents(mut self, away: impl Fn(&Shard) -> bool + 'static) -> Job {
        self.away = Rc::new(away);
        self
    }

    pub fn start(&self, world: &World) {
        for n in 0..WRITERS {
            let (job, shard) = (self.clone(), world.shards[n % SHARDS].clone());
            self.spawn(&world.shards[n % SHARDS], async move { job.writes(&shard, n as u64).await });
        }
        let (job, shard) = (self.clone(), world.shards[0].clone());
        self.spawn(&world.shards[0], async move { job.changes(&shard).await });
    }

    fn spawn(&self, shard: &Shard, work: impl Future<Output = Result<(), Stop>> + 'static) {
        self.running.set(self.running.get() + 1);
        let job = self.clone();
        shard.spawn(async move {
            if let Err(Stop::Wrong(why)) = work.await {
                job.failure.borrow_mut().get_or_insert(why);
            }
            job.running.set(job.running.get() - 1);
        });
    }

    pub fn finished(&self) -> bool {
        self.running.get() == 0 || self.failure.borrow().is_some()
    }

    pub fn verdict(&self) -> Result<(), String> {
        match &*self.failure.borrow() {
            Some(why) => Err(why.clone()),
            None => Ok(()),
        }
    }

    fn next_tag(&self) -> u64 {
        self.tags.set(self.tags.get() + 1);
        self.tags.get()
    }

    /// An error that the program provokes is fine; any other is not.
    fn allowed(&self, shard: &Shard, e: Error, also: &[ErrorKind]) -> Result<(), Stop> {
        match e.kind() {
            ErrorKind::NoSpace | ErrorKind::NoMetadataSpace => Ok(()),
            // An external parent that fails is not the store's fault.
            ErrorKind::Away if (self.away)(shard) => Ok(()),
            ErrorKind::Io | ErrorKind::Failed if self.faulty => Err(Stop::Broken),
            kind if also.contains(&kind) => Ok(()),
            _ => Err(Stop::Wrong(format!("refused: {e:?}"))),
        }
    }

    /// Where the data goes: in a hot run to few lvols.
    fn busy_lvols(&self) -> Vec<Uuid> {
        let mut all = self.lvols(|v| !v.snapshot);
        if self.hot {
            all.truncate(if self.narrow { 1 } else { 3 });
        }
        all
    }

    fn lvols(&self, wanted: impl Fn(&Volume) -> bool) -> Vec<Uuid> {
        let model = self.model.borrow();
        model.iter().filter(|(_, v)| v.fate == Fate::Stays && wanted(v)).map(|(id, _)| *id).collect()
    }

    // ---- data ----

    async fn writes(&self, shard: &Shard, number: u64) -> Result<(), Stop> {
        let mut rng = Rng::new(self.seed ^ (number + 1) << 40);
        for _ in 0..WRITES {
            let all = self.busy_lvols();
            let io = rng.pick(&all).and_then(|id| LvolIo::open(shard, &self.store, *id).ok().map(|io| (*id, io)));
            let Some((id, io)) = io else {
                shard.sleep(Duration::from_micros(5)).await;
                continue;
            };
            match rng.below(20) {
                0..12 => self.write(shard, &io, id, &mut rng).await?,
                12..16 => self.discard(shard, &io, id, &mut rng).await?,
                16 | 17 => self.flush(shard, &io, id).await?,
                _ => self.read(shard, &io, id, &mut rng).await?,
            }
        }
        Ok(())
    }

    /// A range without another write in it, announced to the model.
    fn announce(&self, id: Uuid, rng: &mut Rng, tag: u64) -> Option<(u64, u64)> {
        let mut model = self.model.borrow_mut();
        let volume = model.get_mut(&id)?;
        let longest = if rng.one_in(4) && !self.hot { 40 } else { 6 };
        let first =
            rng.below(if self.hot { volume.len().min(if self.narrow { 16 } else { 24 }) } else { volume.len() });
        let count = (1 + rng.below(longest)).min(volume.len() - first);
        if !volume.write_begins(first, count, tag) {
            return None;
        }
        tell_snapshots(&mut model, id, first, count, tag);
        Some((first, count))
    }

    fn settle(&self, id: Uuid, first: u64, count: u64, durable: bool) {
        if let Some(volume) = self.model.borrow_mut().get_mut(&id) {
            volume.write_completes(first, count, durable);
        }
    }

    async fn write(&self, shard: &Shard, io: &LvolIo, id: Uuid, rng: &mut Rng) -> Result<(), Stop> {
        let tag = tag(self.next_tag());
        let Some((first, count)) = self.announce(id, rng, tag) else { return Ok(()) };
        let bytes = (count * BLOCK) as usize;
        let buf = shard.buf(bytes).slice(0, bytes);
        (0..bytes).step_by(SECTOR).for_each(|at| buf.copy_in(at, &sector(tag)));
        let fua = rng.one_in(10);
        match io.write(first * BLOCK, buf, fua).await {
            Ok(()) => {
                self.see(shard, io, first, count, tag, rng).await?;
                self.settle(id, first, count, fua);
            }
            Err(e) => self.allowed(shard, e, &[])?,
        }
        Ok(())
    }

    /// What was just written reads back, also when everything that ran meanwhile has ended: nobody else writes there until
    /// the model hears of the end.
    async fn see(
        &self,
        shard: &Shard,
        io: &LvolIo,
        first: u64,
        count: u64,
        tag: u64,
        rng: &mut Rng,
    ) -> Result<(), Stop> {
        match rng.below(4) {
            0 => shard.sleep(Duration::from_micros(1)).await,
            1 => {}
            _ => return Ok(()),
        }
        let bytes = (count * BLOCK) as usize;
        let buf = shard.buf(bytes).slice(0, bytes);
        match io.read(first * BLOCK, buf.clone()).await {
            Ok(()) if buf.with(|b| b.chunks_exact(SECTOR).any(|s| read_tag(s) != Some(tag))) => {
                Err(Stop::Wrong(format!("block {first} and the {count} from there do not read as they were written")))
            }
            Ok(()) => Ok(()),
            Err(e) if e.kind() == ErrorKind::Io && self.faulty => Ok(()),
            Err(e) => self.allowed(shard, e, &[]),
        }
    }

    async fn discard(&self, shard: &Shard, io: &LvolIo, id: Uuid, rng: &mut Rng) -> Result<(), Stop> {
        let Some((first, count)) = self.announce(id, rng, 0) else { return Ok(()) };
        match io.discard(first * BLOCK, count * BLOCK).await {
            Ok(()) => {
                self.see(shard, io, first, count, 0, rng).await?;
                self.settle(id, first, count, false);
            }
            Err(e) => self.allowed(shard, e, &[])?,
        }
        Ok(())
    }

    async fn flush(&self, shard: &Shard, io: &LvolIo, id: Uuid) -> Result<(), Stop> {
        let Some(places) = self.model.borrow().get(&id).map(Volume::flush_begins) else { return Ok(()) };
        match io.flush().await {
            Ok(()) => {
                if let Some(volume) = self.model.borrow_mut().get_mut(&id) {
                    volume.flush_completes(&places);
                }
                Ok(())
            }
            Err(e) => self.allowed(shard, e, &[]),
        }
    }

    async fn read(&self, shard: &Shard, io: &LvolIo, id: Uuid, rng: &mut Rng) -> Result<(), Stop> {
        let blocks = io.size() / BLOCK;
        let first = rng.below(blocks);
        let bytes = ((1 + rng.below(30)).min(blocks - first) * BLOCK) as usize;
        let buf = shard.buf(bytes).slice(0, bytes);
        match io.read(first * BLOCK, buf.clone()).await {
            Ok(()) => match self.model.borrow().get(&id) {
                Some(volume) => buf.with(|b| volume.check_live(first, b)).map_err(Stop::Wrong),
                None => Ok(()),
            },
            Err(e) if e.kind() == ErrorKind::Io && self.faulty => Ok(()),
            Err(e) => self.allowed(shard, e, &[]),
        }
    }

    // ---- the tree ----

    async fn changes(&self, shard: &Shard) -> Result<(), Stop> {
        let mut rng = Rng::new(self.seed);
        for _ in 0..CHANGES {
            shard.sleep(Duration::from_micros(rng.below(20))).await;
            let choice = match rng.below(18) {
                n if !self.narrow => n,
                0 => 0,
                1..11 => 3,
                _ => 8,
            };
            match choice {
                0..3 => self.create(shard, &mut rng).await?,
                3..6 => self.snapshot(shard, &mut rng).await?,
                6..8 => self.clone_one(shard, &mut rng).await?,
                8..11 => self.delete(shard, &mut rng).await?,
                11 => self.resize(shard, &mut rng).await?,
                12 => self.revert(shard, &mut rng).await?,
                13 => self.detach(shard, &mut rng).await?,
                14 => self.rename(shard, &mut rng).await?,
                15 => self.grow(shard, &mut rng).await?,
                16 => match self.store.seal(shard).await {
                    Ok(()) => {}
                    Err(e) => self.allowed(shard, e, &[ErrorKind::Busy])?,
                },
                _ => match sound(shard, &self.store).await {
                    Err(_) if self.faulty => return Err(Stop::Broken),
                    result => result.map_err(Stop::Wrong)?,
                },
            }
            adds_up(&self.store).map_err(Stop::Wrong)?;
        }
        Ok(())
    }

    fn fresh(&self, rng: &mut Rng) -> (Uuid, String) {
        let n = self.next_tag();
        (Uuid::from_u128(u128::from(rng.draw()) << 64 | u128::from(n)), format!("v{n}"))
    }

    fn step(&self) -> u64 {
        STEP.max(self.store.info().cluster_size.into())
    }

    fn set_fate(&self, id: Uuid, fate: Fate) {
        if let Some(volume) = self.model.borrow_mut().get_mut(&id) {
            volume.fate = fate;
        }
    }

    async fn create(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let (id, name) = self.fresh(rng);
        let step = self.step();
        let size = (1 + rng.below((20 * STEP / step).max(2))) * step;
        let mut volume = Volume::new(&name, size);
        volume.fate = Fate::MayBeNew;
        self.model.borrow_mut().insert(id, volume);
        let thick = rng.one_in(3);
        let how = CreateLvol { name, uuid: Some(id), size, thick, attributes: Default::default() };
        self.born(shard, id, self.store.create_lvol(shard, how).await.map(|_| ()))
    }

    /// The end of an operation that makes a lvol.
    fn born(&self, shard: &Shard, id: Uuid, result: Result<(), Error>) -> Result<(), Stop> {
        match result {
            Ok(()) => self.set_fate(id, Fate::Stays),
            Err(e) => {
                self.allowed(shard, e, &[])?;
                self.model.borrow_mut().remove(&id);
            }
        }
        Ok(())
    }

    /// One lvol, or a group at one instant.
    async fn snapshot(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let mut origins = self.busy_lvols();
        let wanted = if rng.one_in(3) { 3 } else { 1 };
        while origins.len() > wanted {
            origins.remove(rng.below(origins.len() as u64) as usize);
        }
        let mut how = Vec::new();
        let mut taken = Vec::new();
        for origin in origins {
            let (id, name) = self.fresh(rng);
            let mut model = self.model.borrow_mut();
            let Some(volume) = model.get(&origin) else { continue };
            taken.push((id, origin, volume.flush_begins()));
            let snapshot = volume.as_snapshot(&name, origin);
            model.insert(id, snapshot);
            how.push(CreateSnapshot {
                lvol: origin,
                name,
                uuid: Some(id),
                attributes: Default::default(),
                hidden: false,
            });
        }
        if how.is_empty() {
            return Ok(());
        }
        let result = self.store.snapshot(shard, how).await;
        if let Err(e) = result {
            self.allowed(shard, e, &[])?;
            taken.iter().for_each(|(id, ..)| {
                self.model.borrow_mut().remove(id);
            });
            return Ok(());
        }
        for (id, origin, places) in &taken {
            let mut model = self.model.borrow_mut();
            let (Some(mut snapshot), Some(origin)) = (model.remove(id), model.get(origin)) else { continue };
            snapshot.snapshot_completes(places, origin);
            model.insert(*id, snapshot);
        }
        let mut read = true;
        for (id, ..) in &taken {
            // From now on it never changes.
            read &= self.same(shard, compare(shard, &self.store, &self.model, *id, true).await)?;
        }
        if !read {
            return Ok(());
        }
        let model = self.model.borrow();
        let group: Vec<_> =
            taken.iter().filter_map(|(id, origin, _)| Some((model.get(id)?, model.get(origin)?))).collect();
        prefix_holds(&group).map_err(Stop::Wrong)
    }

    /// False: it could not be read.
    fn same(&self, shard: &Shard, result: Result<(), Result<String, Error>>) -> Result<bool, Stop> {
        match result {
            Ok(()) => Ok(true),
            Err(Ok(why)) => Err(Stop::Wrong(why)),
            Err(Err(e)) if e.kind() == ErrorKind::Io => Err(Stop::Broken),
            Err(Err(e)) => self.allowed(shard, e, &[]).map(|()| false),
        }
    }

    async fn clone_one(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let snapshots = self.lvols(|v| v.snapshot);
        let Some(snapshot) = rng.pick(&snapshots).copied() else { return Ok(()) };
        let (id, name) = self.fresh(rng);
        let size = {
            let mut model = self.model.borrow_mut();
            let Some(volume) = model.get(&snapshot) else { return Ok(()) };
            let mut clone = volume.as_clone(&name);
            let size = clone.size() + if rng.one_in(3) { (1 + rng.below(4)) * self.step() } else { 0 };
            clone.resize(size);
            model.insert(id, clone);
            size
        };
        let thick = rng.one_in(6);
        let how =
            CreateClone { snapshot, name, uuid: Some(id), size: Some(size), thick, attributes: Default::default() };
        self.born(shard, id, self.store.clone_snapshot(shard, how).await.map(|_| ()))
    }

    async fn delete(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let all = self.lvols(|_| true);
        let Some(id) = rng.pick(&all).copied().filter(|_| all.len() > 1) else { return Ok(()) };
        self.set_fate(id, Fate::MayBeGone);
        match self.store.delete(shard, id, rng.one_in(2)).await {
            Ok(()) => {
                self.model.borrow_mut().remove(&id);
            }
            Err(e) => {
                self.allowed(shard, e, &[ErrorKind::Busy, ErrorKind::HasClones])?;
                self.set_fate(id, Fate::Stays);
            }
        }
        Ok(())
    }

    async fn resize(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let all = self.lvols(|v| !v.snapshot);
        let Some(id) = rng.pick(&all).copied() else { return Ok(()) };
        let now = self.model.borrow().get(&id).map_or(0, Volume::size);
        let step = self.step();
        let size = match rng.below(2) {
            0 => now + (1 + rng.below((8 * STEP / step).max(1))) * step,
            _ => (now / 2).max(step) / step * step,
        };
        self.set_fate(id, Fate::MayHaveSize(size));
        let result = self.store.resize(shard, id, size).await;
        if let Err(e) = result {
            self.allowed(shard, e, &[ErrorKind::Busy])?;
        } else if let Some(volume) = self.model.borrow_mut().get_mut(&id) {
            volume.resize(size);
        }
        self.set_fate(id, Fate::Stays);
        Ok(())
    }

    async fn revert(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let (lvols, snapshots) = (self.lvols(|v| !v.snapshot), self.lvols(|v| v.snapshot));
        let (Some(id), Some(to)) = (rng.pick(&lvols).copied(), rng.pick(&snapshots).copied()) else { return Ok(()) };
        // A crash leaves one or the other, which the model cannot say: only when nobody can cut it off is it compared.
        let Some(before) = self.model.borrow().get(&id).cloned() else { return Ok(()) };
        let after = self.model.borrow().get(&to).map(|s| s.as_clone(&before.name));
        let Some(mut after) = after.filter(|a| a.size() == before.size()) else { return Ok(()) };
        after.fate = Fate::Stays;
        let mut either = before.or(&after);
        either.fate = Fate::MayHaveSize(before.size());
        self.model.borrow_mut().insert(id, either);
        match self.store.revert(shard, id, to).await {
            Ok(_) => {
                self.model.borrow_mut().insert(id, after);
            }
            Err(e) => {
                self.allowed(shard, e, &[ErrorKind::Busy, ErrorKind::Invalid, ErrorKind::NotFound])?;
                self.model.borrow_mut().insert(id, before);
            }
        }
        Ok(())
    }

    async fn detach(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let all = self.lvols(|v| !v.snapshot);
        let Some(id) = rng.pick(&all).copied() else { return Ok(()) };
        let result = if rng.one_in(2) {
            self.store.inflate(shard, id, Box::new(|_| true)).await
        } else {
            self.store.decouple(shard, id, Box::new(|_| true)).await
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => self.allowed(shard, e, &[ErrorKind::Busy, ErrorKind::Invalid]),
        }
    }

    async fn rename(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let all = self.lvols(|_| true);
        let Some(id) = rng.pick(&all).copied() else { return Ok(()) };
        let (_, name) = self.fresh(rng);
        let result = match rng.below(2) {
            0 => self.store.rename(shard, id, &name).await,
            _ => self.store.set_attributes(shard, id, vec![("note".into(), Some("x".repeat(3000)))]).await,
        };
        match result {
            Ok(_) => Ok(()),
            Err(e) => self.allowed(shard, e, &[ErrorKind::Busy, ErrorKind::NotFound]),
        }
    }

    /// The device becomes larger, and the store with it.
    async fn grow(&self, shard: &Shard, rng: &mut Rng) -> Result<(), Stop> {
        let size = self.device.size() + (rng.below(16) << 17);
        self.device.set_simulated_size(size.min(SIZE_MAX).max(self.device.size()));
        match self.store.grow(shard).await {
            Ok(_) => Ok(()),
            Err(e) => self.allowed(shard, e, &[]),
        }
    }
}
