//! Clones of snapshots outside of the store: read through, written to, copied over, and let go; the parent away, failing,
//! or back again. Everything that is read is compared with what it has to be.

mod reader;
mod unpack;
mod workbench;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coppice_engine::external::{Access, Answer, External, FileParent, LocalParent, Resolver, Stretch};
use coppice_engine::shard::block_on;
use coppice_engine::{
    CreateExternalClone, CreateLvol, CreateSnapshot, Engine, Error, ErrorKind, LvolInfo, LvolKind, LvolState,
    OpenStore, Pin, Store, Stores,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use unpack::Fixture;
use uuid::Uuid;
use workbench::{Rng, clone_of, snapshot_of, store_of};

const MIB: u64 = 1 << 20;
const C: u64 = 64 << 10;

/// What the tests do to the way to a parent.
#[derive(Default)]
struct Weather {
    away: AtomicBool,
    /// One call in so many fails.
    fails: AtomicU64,
    calls: AtomicU64,
    read_bytes: AtomicU64,
    /// Reads of this byte of the parent fail.
    bad: AtomicU64,
    slow: AtomicBool,
}

#[derive(Clone)]
struct Weathered {
    inner: Arc<dyn External>,
    weather: Arc<Weather>,
}

impl Weathered {
    fn fails(&self) -> Option<Error> {
        let n = self.weather.calls.fetch_add(1, Ordering::Relaxed);
        if self.weather.away.load(Ordering::Relaxed) {
            return Some(Error::new(ErrorKind::Away, "the parent is away"));
        }
        let fails = self.weather.fails.load(Ordering::Relaxed);
        (fails > 0 && n.wrapping_mul(0x9e37_79b9).is_multiple_of(fails)).then(|| Error::new(ErrorKind::Io, "a failure"))
    }
}

impl External for Weathered {
    fn size(&self, patience: Duration) -> Answer<u64> {
        match self.fails() {
            Some(e) => Box::pin(async move { Err(e) }),
            None => self.inner.size(patience),
        }
    }

    fn read(&self, off: u64, len: usize, patience: Duration) -> Answer<Bytes> {
        let bad = self.weather.bad.load(Ordering::Relaxed);
        if bad > 0 && (off..off + len as u64).contains(&bad) {
            return Box::pin(async move { Err(Error::new(ErrorKind::Io, format!("bad page at {bad}"))) });
        }
        match self.fails() {
            Some(e) => Box::pin(async move { Err(e) }),
            None => {
                self.weather.read_bytes.fetch_add(len as u64, Ordering::Relaxed);
                if self.weather.slow.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                self.inner.read(off, len, patience)
            }
        }
    }

    fn status(&self, off: u64, len: u64, patience: Duration) -> Answer<Vec<Stretch>> {
        match self.fails() {
            Some(e) => Box::pin(async move { Err(e) }),
            None => self.inner.status(off, len, patience),
        }
    }

    fn away(&self) -> Option<String> {
        match self.weather.away.load(Ordering::Relaxed) {
            true => Some("the parent is away".into()),
            false => self.inner.away(),
        }
    }
}

#[derive(Clone, Default)]
struct Known(Arc<Mutex<BTreeMap<Uuid, Arc<dyn External>>>>);

impl Resolver for Known {
    fn resolve(&self, parent: Uuid) -> Option<Arc<dyn External>> {
        self.0.lock().ok()?.get(&parent).cloned()
    }
}

impl Known {
    fn add(&self, uuid: Uuid, inner: impl External + 'static) -> Result<Arc<Weather>> {
        let weather = Arc::new(Weather::default());
        let weathered = Weathered { inner: Arc::new(inner), weather: weather.clone() };
        self.0.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(uuid, Arc::new(weathered));
        Ok(weather)
    }
}

/// Two lvstores in one process: `a` has the snapshot, `b` the clone.
struct Two {
    engine: Engine,
    stores: Stores,
    known: Known,
    dir: tempfile::TempDir,
    a: Store,
    b: Store,
}

fn access(known: &Known) -> Access {
    Access { resolver: Some(Arc::new(known.clone())), patience: Duration::from_millis(300), ..Access::default() }
}

fn open(engine: &Engine, path: &Path, known: &Known) -> Result<Store> {
    Ok(block_on(engine.open_store(path, OpenStore { external: access(known), ..OpenStore::default() }))?)
}

impl Two {
    fn new(cluster_b: u64) -> Result<Two> {
        let (engine, dir, known) = (workbench::engine()?, tempfile::tempdir()?, Known::default());
        block_on(engine.create_store(&dir.path().join("a"), store_of("a", 128 * MIB, C as u32, 4096)))?;
        block_on(engine.create_store(&dir.path().join("b"), store_of("b", 128 * MIB, cluster_b as u32, 4096)))?;
        let a = open(&engine, &dir.path().join("a"), &known)?;
        let b = open(&engine, &dir.path().join("b"), &known)?;
        let stores = Stores::from(vec![a.clone()]);
        Ok(Two { engine, stores, known, dir, a, b })
    }

    /// A sparse lvol of `a`, its snapshot, and the snapshot's content.
    fn source(&self, size: u64, seed: u64) -> Result<(Uuid, Uuid, Vec<u8>)> {
        let lvol = block_on(self.a.create_lvol(CreateLvol { name: format!("v{seed}"), size, ..Default::default() }))?;
        let mut content = vec![0; lvol.size as usize];
        let mut rng = Rng::new(seed);
        for _ in 0..24 {
            let len = 1 + rng.below(200 << 10);
            let at = rng.below(lvol.size - len);
            let data = rng.bytes(len as usize);
            content[at as usize..(at + len) as usize].copy_from_slice(&data);
            block_on(self.a.write(lvol.uuid, at, data))?;
        }
        let snapshot = block_on(self.a.snapshot(vec![snapshot_of(lvol.uuid, &format!("s{seed}"))]))?.remove(0).uuid;
        // What is written later must not show.
        block_on(self.a.write(lvol.uuid, 0, rng.bytes(100_000)))?;
        Ok((lvol.uuid, snapshot, content))
    }

    fn knows(&self, snapshot: Uuid) -> Result<Arc<Weather>> {
        let shard = self.engine.shards()[0].clone();
        self.known.add(snapshot, LocalParent::new(self.stores.clone(), snapshot, shard))
    }

    fn clone_of(&self, parent: Uuid, name: &str, hydrate: bool) -> Result<LvolInfo> {
        block_on(self.a.pin(parent, pin(self.b.uuid())))?;
        let how = CreateExternalClone { parent, name: name.into(), hydrate, ..Default::default() };
        Ok(block_on(self.b.clone_external(how))?)
    }

    fn reopen_b(&mut self) -> Result<()> {
        block_on(self.b.close())?;
        self.b = open(&self.engine, &self.dir.path().join("b"), &self.known)?;
        Ok(())
    }

    /// Nothing leaks, everything adds up, and the independent reader agrees.
    fn sound(&self) -> Result<()> {
        for store in [&self.a, &self.b] {
            let lv = store.lvstore();
            block_on(lv.background_done());
            block_on(lv.commit())?;
            block_on(lv.reclaimed())?;
            let findings = block_on(store.check())?;
            ensure!(findings.is_empty(), "{findings:#?}");
            let i = block_on(store.info())?;
            let parts = i.metadata_clusters + i.allocated_clusters + i.reserved_clusters + i.quarantined_clusters;
            ensure!(parts + i.free_clusters == i.total_clusters, "{i:?}");
            let own: u64 = block_on(store.lvols())?.iter().map(|l| l.allocated_clusters).sum();
            ensure!(own == i.allocated_clusters, "lvols own {own} clusters: {i:?}");
        }
        Ok(())
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        block_on(self.engine.shutdown());
    }
}

fn same(store: &Store, lvol: Uuid, want: &[u8]) -> Result<()> {
    let mut at = 0;
    while at < want.len() {
        let n = (want.len() - at).min(MIB as usize);
        let found = block_on(store.read(lvol, at as u64, n)).with_context(|| format!("read at {at}"))?;
        if let Some(bad) = workbench::first_difference(&found, &want[at..at + n]) {
            anyhow::bail!(
                "byte {} differs: {:x?}, not {:x?}",
                at + bad,
                &found[bad..(bad + 8).min(n)],
                &want[at + bad..(at + bad + 8).min(want.len())]
            );
        }
        at += n;
    }
    Ok(())
}

fn until(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let give_up = Instant::now() + Duration::from_secs(30);
    while !done()? {
        ensure!(Instant::now() < give_up, "waited too long for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn pin(lvstore: Uuid) -> Pin {
    Pin { lvstore, reader: "node-b".into() }
}

fn info(store: &Store, lvol: Uuid) -> Result<LvolInfo> {
    Ok(block_on(store.lvol(lvol))?)
}

fn hydrated(store: &Store, lvol: Uuid) -> Result<()> {
    until("hydration", || Ok(info(store, lvol)?.kind == LvolKind::Lvol))
}

#[test]
fn a_clone_reads_through_is_written_and_becomes_independent() -> Result<()> {
    for cluster_b in [C / 4, C, 16 * C] {
        let mut two = Two::new(cluster_b)?;
        let (origin, snapshot, mut content) = two.source(9 * MIB + 4096, 1)?;
        let weather = two.knows(snapshot)?;
        let clone = two.clone_of(snapshot, "c", false)?;
        assert_eq!((clone.kind, clone.parent, clone.state), (LvolKind::EsnapClone, Some(snapshot), LvolState::Ok));
        assert_eq!(clone.allocated_clusters, 0);
        same(&two.b, clone.uuid, &content)?;
        let mut rng = Rng::new(cluster_b);
        for _ in 0..20 {
            let len = 1 + rng.below(150_000);
            let at = rng.below(content.len() as u64 - len);
            let data = rng.bytes(len as usize);
            content[at as usize..(at + len) as usize].copy_from_slice(&data);
            block_on(two.b.write(clone.uuid, at, data))?;
        }
        let len = 2 * cluster_b;
        block_on(two.b.discard(clone.uuid, cluster_b, len))?;
        content[cluster_b as usize..(cluster_b + len) as usize].fill(0);
        same(&two.b, clone.uuid, &content)?;
        two.reopen_b()?;
        same(&two.b, clone.uuid, &content)?;
        // The origin and the snapshot go right away: the pin keeps what the clone reads.
        let e = block_on(two.a.delete(snapshot, false)).err().context("a pinned snapshot was deleted")?;
        assert_eq!(e.kind(), ErrorKind::HasClones, "{e}");
        block_on(two.a.delete(snapshot, true))?;
        block_on(two.a.delete(origin, false))?;
        assert_eq!(info(&two.a, snapshot)?.state, LvolState::Hidden);
        same(&two.b, clone.uuid, &content)?;
        block_on(two.b.hydrate(clone.uuid, Box::new(|_| true)))?;
        let free = info(&two.b, clone.uuid)?;
        assert_eq!((free.kind, free.parent, free.hydration), (LvolKind::Lvol, None, None));
        assert!(two.b.external_parents().is_empty());
        let read = weather.read_bytes.load(Ordering::Relaxed);
        block_on(two.a.unpin(snapshot, two.b.uuid()))?;
        block_on(two.a.lvstore().background_done());
        assert!(block_on(two.a.lvol(snapshot)).is_err(), "nobody reads it any more");
        block_on(two.a.close())?;
        same(&two.b, clone.uuid, &content)?;
        assert_eq!(weather.read_bytes.load(Ordering::Relaxed), read, "the parent was read after the link was cut");
        two.a = open(&two.engine, &two.dir.path().join("a"), &two.known)?;
        assert_eq!(block_on(two.a.lvols())?.len(), 0);
        two.sound()?;
    }
    Ok(())
}

#[test]
fn holes_of_the_parent_take_no_space() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, content) = two.source(64 * MIB, 2)?;
    two.knows(snapshot)?;
    let clone = two.clone_of(snapshot, "c", true)?;
    let promised = clone.hydration.context("to be hydrated")?;
    hydrated(&two.b, clone.uuid)?;
    let own = info(&two.a, snapshot)?.allocated_clusters;
    assert_eq!(info(&two.b, clone.uuid)?.allocated_clusters, own);
    assert_eq!(promised.total_bytes, own * C);
    assert_eq!(block_on(two.b.info())?.reserved_clusters, 0);
    same(&two.b, clone.uuid, &content)?;
    two.sound()
}

#[test]
fn a_parent_that_is_away_is_waited_for_and_heals() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, mut content) = two.source(4 * MIB, 3)?;
    let weather = two.knows(snapshot)?;
    let clone = two.clone_of(snapshot, "c", false)?;
    let mine = Rng::new(9).bytes(2 * C as usize);
    block_on(two.b.write(clone.uuid, 0, mine.clone()))?;
    content[..mine.len()].copy_from_slice(&mine);
    weather.away.store(true, Ordering::Relaxed);
    assert_eq!(info(&two.b, clone.uuid)?.state, LvolState::Degraded);
    // What is its own, and whole clusters, need nobody.
    assert_eq!(block_on(two.b.read(clone.uuid, 0, mine.len()))?, mine);
    block_on(two.b.write(clone.uuid, 4 * C, mine.clone()))?;
    content[4 * C as usize..6 * C as usize].copy_from_slice(&mine);
    block_on(two.b.discard(clone.uuid, 7 * C, C))?;
    content[7 * C as usize..8 * C as usize].fill(0);
    // Everything else is an error, never zeroes; and nobody else waits for it.
    for result in [
        block_on(two.b.read(clone.uuid, 2 * C, 4096)).map(|_| ()),
        block_on(two.b.write(clone.uuid, 2 * C, vec![1; 4096])),
    ] {
        let e = result.err().context("answered without the parent")?;
        assert_eq!(e.kind(), ErrorKind::Away, "{e}");
    }
    let snap = block_on(two.b.snapshot(vec![snapshot_of(clone.uuid, "s")]))?.remove(0);
    assert_eq!(snap.parent, Some(snapshot));
    assert!(block_on(two.b.hydrate(snap.uuid, Box::new(|_| true))).is_err());
    weather.away.store(false, Ordering::Relaxed);
    same(&two.b, clone.uuid, &content)?;
    same(&two.b, snap.uuid, &content)?;
    assert_eq!(info(&two.b, clone.uuid)?.state, LvolState::Ok);
    two.sound()
}

/// Clones whose parents are away for good take turns at asking for them; whoever's parent is there is hydrated meanwhile.
#[test]
fn parents_that_are_away_are_in_nobodys_way() -> Result<()> {
    let two = Two::new(C)?;
    let data = Rng::new(60).bytes(MIB as usize);
    let mut clones = Vec::new();
    for n in 0..20 {
        let how = CreateLvol { name: format!("v{n}"), size: MIB, ..Default::default() };
        let lvol = block_on(two.a.create_lvol(how))?.uuid;
        block_on(two.a.write(lvol, 0, data.clone()))?;
        let snapshot = block_on(two.a.snapshot(vec![snapshot_of(lvol, &format!("s{n}"))]))?.remove(0).uuid;
        let weather = two.knows(snapshot)?;
        // Nobody is done before it is away.
        weather.bad.store(1, Ordering::Relaxed);
        clones.push((two.clone_of(snapshot, &format!("c{n}"), true)?.uuid, weather));
    }
    two.stores.remove(two.a.uuid());
    clones.iter().for_each(|(_, weather)| weather.bad.store(0, Ordering::Relaxed));
    until("each of them to have failed", || {
        let mut failed = true;
        for (clone, _) in &clones {
            failed &= info(&two.b, *clone)?.state == LvolState::Degraded;
        }
        Ok(failed)
    })?;
    let path = two.dir.path().join("parent");
    std::fs::write(&path, &data)?;
    for n in 0..3 {
        let parent = Uuid::from_u128(80 + n);
        two.known.add(parent, FileParent::new(&path))?;
        let how = CreateExternalClone { parent, name: format!("f{n}"), hydrate: true, ..Default::default() };
        let present = block_on(two.b.clone_external(how))?;
        let began = Instant::now();
        hydrated(&two.b, present.uuid)?;
        ensure!(began.elapsed() < Duration::from_secs(5), "it took {:?}", began.elapsed());
        same(&two.b, present.uuid, &data)?;
    }
    for (clone, _) in &clones {
        assert_eq!(info(&two.b, *clone)?.kind, LvolKind::EsnapClone, "hydrated from nowhere");
    }
    two.stores.add(two.a.clone());
    let began = Instant::now();
    for (clone, _) in &clones {
        hydrated(&two.b, *clone)?;
        same(&two.b, *clone, &data)?;
    }
    ensure!(began.elapsed() < Duration::from_secs(15), "{:?} until all were hydrated", began.elapsed());
    two.sound()
}

/// One bad page of the source: its place cannot be read and is not copied; everything else is.
#[test]
fn a_bad_page_stays_an_error() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, content) = two.source(8 * MIB, 4)?;
    let weather = two.knows(snapshot)?;
    let bad = (0..content.len()).find(|n| *n > 3 * C as usize && content[*n] != 0).context("data")? as u64;
    weather.bad.store(bad, Ordering::Relaxed);
    let clone = two.clone_of(snapshot, "c", true)?;
    until("the failure to show", || Ok(info(&two.b, clone.uuid)?.reason.is_some_and(|r| r.contains("bad page"))))?;
    let e = block_on(two.b.read(clone.uuid, bad, 1)).err().context("a bad page was read")?;
    assert_eq!(e.kind(), ErrorKind::Io, "{e}");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(info(&two.b, clone.uuid)?.kind, LvolKind::EsnapClone, "the link was cut with a page missing");
    weather.bad.store(0, Ordering::Relaxed);
    hydrated(&two.b, clone.uuid)?;
    same(&two.b, clone.uuid, &content)?;
    two.sound()
}

#[test]
fn space_for_hydration_is_set_aside() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, content) = two.source(60 * MIB, 5)?;
    let weather = two.knows(snapshot)?;
    // Most of the store is taken: there is room for what the snapshot has, and hardly more.
    let need = info(&two.a, snapshot)?.allocated_clusters;
    let free = block_on(two.b.info())?.free_clusters;
    let thick = |clusters: u64, name: &str| {
        let how = CreateLvol { name: name.into(), size: clusters * C, thick: true, ..Default::default() };
        block_on(two.b.create_lvol(how))
    };
    let filler = thick(free - need + 1, "filler")?;
    weather.fails.store(0, Ordering::Relaxed);
    let e = two.clone_of(snapshot, "c", true).err().context("more was promised than there is")?;
    assert!(e.to_string().contains("reserved"), "{e}");
    block_on(two.b.delete(filler.uuid, false))?;
    thick(free - need, "filler")?;
    weather.away.store(false, Ordering::Relaxed);
    weather.bad.store(1, Ordering::Relaxed);
    let clone = two.clone_of(snapshot, "c", true)?;
    assert_eq!(block_on(two.b.info())?.free_clusters, 0);
    let e = thick(1, "another").err().context("promised space was given away")?;
    assert_eq!(e.kind(), ErrorKind::NoSpace);
    weather.bad.store(0, Ordering::Relaxed);
    hydrated(&two.b, clone.uuid)?;
    same(&two.b, clone.uuid, &content)?;
    two.sound()
}

#[test]
fn a_larger_clone_reads_zeroes_behind_its_parent() -> Result<()> {
    let mut two = Two::new(C)?;
    let (_, snapshot, mut content) = two.source(3 * MIB + 4096, 6)?;
    two.knows(snapshot)?;
    block_on(two.a.pin(snapshot, pin(two.b.uuid())))?;
    let how = CreateExternalClone {
        parent: snapshot,
        name: "c".into(),
        size: Some(5 * MIB),
        hydrate: false,
        ..Default::default()
    };
    let small = CreateExternalClone { size: Some(MIB), ..how.clone() };
    assert_eq!(block_on(two.b.clone_external(small)).err().map(|e| e.kind()), Some(ErrorKind::Invalid));
    let clone = block_on(two.b.clone_external(how))?;
    content.resize(clone.size as usize, 0);
    same(&two.b, clone.uuid, &content)?;
    // Smaller and larger again: what was cut off does not come back.
    block_on(two.b.resize(clone.uuid, 2 * MIB))?;
    block_on(two.b.resize(clone.uuid, 4 * MIB))?;
    content.truncate(2 * MIB as usize);
    content.resize(4 * MIB as usize, 0);
    same(&two.b, clone.uuid, &content)?;
    two.reopen_b()?;
    same(&two.b, clone.uuid, &content)?;
    let snap = block_on(two.b.snapshot(vec![snapshot_of(clone.uuid, "s")]))?.remove(0);
    let child = block_on(two.b.clone_snapshot(clone_of(snap.uuid, "cc")))?;
    block_on(two.b.resize(child.uuid, MIB))?;
    block_on(two.b.resize(child.uuid, 3 * MIB))?;
    let mut of_child = content[..MIB as usize].to_vec();
    of_child.resize(3 * MIB as usize, 0);
    same(&two.b, child.uuid, &of_child)?;
    // The snapshot goes: its clone, shorter than the snapshot was, carries the parent now.
    block_on(two.b.delete(clone.uuid, false))?;
    block_on(two.b.delete(snap.uuid, false))?;
    block_on(two.b.lvstore().background_done());
    assert_eq!(info(&two.b, child.uuid)?.kind, LvolKind::EsnapClone);
    same(&two.b, child.uuid, &of_child)?;
    two.reopen_b()?;
    same(&two.b, child.uuid, &of_child)?;
    block_on(two.b.decouple(child.uuid, Box::new(|_| true)))?;
    same(&two.b, child.uuid, &of_child)?;
    two.sound()
}

#[test]
fn decouple_and_inflate_of_descendants() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, content) = two.source(6 * MIB, 7)?;
    two.knows(snapshot)?;
    let clone = two.clone_of(snapshot, "c", false)?;
    let snap = block_on(two.b.snapshot(vec![snapshot_of(clone.uuid, "s")]))?.remove(0);
    let [one, other] = ["one", "other"].map(|name| block_on(two.b.clone_snapshot(clone_of(snap.uuid, name))));
    let (one, other) = (one?, other?);
    // It owns what its direct parent owned (nothing), and reads the rest from outside by itself.
    let decoupled = block_on(two.b.decouple(one.uuid, Box::new(|_| true)))?;
    assert_eq!((decoupled.kind, decoupled.parent), (LvolKind::EsnapClone, Some(snapshot)));
    let inflated = block_on(two.b.inflate(other.uuid, Box::new(|_| true)))?;
    assert_eq!((inflated.kind, inflated.parent), (LvolKind::Lvol, None));
    assert_eq!(inflated.allocated_clusters, info(&two.a, snapshot)?.allocated_clusters, "holes were copied");
    for lvol in [clone.uuid, snap.uuid, one.uuid, other.uuid] {
        same(&two.b, lvol, &content)?;
    }
    // What one of them does not show any more the others still do.
    block_on(two.b.resize(one.uuid, 2 * MIB))?;
    for lvol in [clone.uuid, snap.uuid, other.uuid] {
        same(&two.b, lvol, &content)?;
    }
    block_on(two.b.hydrate(snap.uuid, Box::new(|_| true)))?;
    for lvol in [clone.uuid, snap.uuid, other.uuid] {
        same(&two.b, lvol, &content)?;
    }
    same(&two.b, one.uuid, &content[..2 * MIB as usize])?;
    two.sound()
}

/// A parent that is not what it was, or not there as a whole, is none: what it lacks is never taken for zeroes.
#[test]
fn a_parent_that_lost_its_end() -> Result<()> {
    let mut two = Two::new(C)?;
    let path = two.dir.path().join("parent");
    let content = Rng::new(8).bytes(2 * MIB as usize);
    let parent = Uuid::from_u128(77);
    std::fs::write(&path, &content)?;
    two.known.add(parent, FileParent::new(&path))?;
    let how = CreateExternalClone { parent, name: "c".into(), hydrate: false, ..Default::default() };
    let clone = block_on(two.b.clone_external(how))?;
    for len in [0, MIB] {
        std::fs::OpenOptions::new().write(true).open(&path)?.set_len(len)?;
        // Also where nobody has asked for its size before.
        for _ in 0..2 {
            let e = block_on(two.b.read(clone.uuid, 2 * MIB - 4096, 4096)).err().context("read what is not there")?;
            ensure!(matches!(e.kind(), ErrorKind::Away | ErrorKind::Io), "{e:?}");
            ensure!(block_on(two.b.hydrate(clone.uuid, Box::new(|_| true))).is_err(), "hydrated from a part");
            assert_eq!(info(&two.b, clone.uuid)?.kind, LvolKind::EsnapClone);
            two.reopen_b()?;
        }
        std::fs::write(&path, &content)?;
    }
    two.reopen_b()?;
    same(&two.b, clone.uuid, &content)?;
    block_on(two.b.hydrate(clone.uuid, Box::new(|_| true)))?;
    same(&two.b, clone.uuid, &content)?;
    two.sound()
}

/// Every kind of operation on a family of lvols, while it hydrates and the way to the parent fails now and then.
#[test]
fn random_work_beside_hydration() -> Result<()> {
    let seeds: Vec<u64> = match std::env::var("COPPICE_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => (0..12).collect(),
    };
    for seed in seeds {
        random_work(seed).with_context(|| format!("COPPICE_SEED={seed}"))?;
    }
    Ok(())
}

fn random_work(seed: u64) -> Result<()> {
    let mut rng = Rng::new(seed);
    let mut two = Two::new([C / 4, C, 4 * C][(seed % 3) as usize])?;
    let cluster = u64::from(block_on(two.b.info())?.cluster_size);
    let (_, snapshot, content) = two.source(8 * MIB, 100 + seed)?;
    let weather = two.knows(snapshot)?;
    let first = two.clone_of(snapshot, "first", true)?;
    weather.slow.store(rng.one_in(2), Ordering::Relaxed);
    let mut model: BTreeMap<Uuid, (Vec<u8>, bool)> = BTreeMap::new();
    let mut whole = content;
    whole.resize(first.size as usize, 0);
    model.insert(first.uuid, (whole, false));
    for n in 0..60 {
        weather.fails.store(if rng.one_in(3) { 3 } else { 0 }, Ordering::Relaxed);
        weather.away.store(rng.one_in(8), Ordering::Relaxed);
        let all: Vec<Uuid> = model.keys().copied().collect();
        let Some(lvol) = rng.pick(&all).copied() else { break };
        let (mut bytes, snapshot_of_ours) = model.get(&lvol).cloned().context("in the model")?;
        let size = bytes.len() as u64;
        let what = rng.below(10);
        if std::env::var("COPPICE_SEED").is_ok() {
            println!("step {n}: {what} on {lvol} of {}, snapshot: {snapshot_of_ours}", model.len());
        }
        match what {
            0..4 if !snapshot_of_ours => {
                let len = (1 + rng.below(3 * cluster)).min(size);
                let at = rng.below(size - len + 1);
                let data = rng.bytes(len as usize);
                // A write that fails may be there in part: it is repeated until it is done.
                until("a write", || match block_on(two.b.write(lvol, at, data.clone())) {
                    Ok(()) => Ok(true),
                    Err(e) if matches!(e.kind(), ErrorKind::Away | ErrorKind::Io) => {
                        weather.away.store(false, Ordering::Relaxed);
                        weather.fails.store(0, Ordering::Relaxed);
                        Ok(false)
                    }
                    Err(e) => Err(e.into()),
                })?;
                bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
                model.insert(lvol, (bytes, false));
            }
            4 if !snapshot_of_ours => {
                let first = rng.below(size / cluster);
                let n = (1 + rng.below(4)).min(size / cluster - first);
                block_on(two.b.discard(lvol, first * cluster, n * cluster))?;
                bytes[(first * cluster) as usize..((first + n) * cluster) as usize].fill(0);
                model.insert(lvol, (bytes, false));
            }
            5 if !snapshot_of_ours && model.len() < 8 => {
                let snap = block_on(two.b.snapshot(vec![snapshot_of(lvol, &format!("s{n}"))]))?.remove(0);
                model.insert(snap.uuid, (bytes, true));
            }
            6 if snapshot_of_ours && model.len() < 8 => {
                let clone = block_on(two.b.clone_snapshot(clone_of(lvol, &format!("c{n}"))))?;
                model.insert(clone.uuid, (bytes, false));
            }
            7 if model.len() > 1 => {
                block_on(two.b.delete(lvol, true))?;
                model.remove(&lvol);
            }
            8 if !snapshot_of_ours => {
                let new = (1 + rng.below(9 * MIB / cluster)) * cluster;
                match block_on(two.b.resize(lvol, new)) {
                    Ok(_) => {
                        bytes.resize(new as usize, 0);
                        model.insert(lvol, (bytes, false));
                    }
                    Err(e) if matches!(e.kind(), ErrorKind::Away | ErrorKind::Io) => {}
                    Err(e) => return Err(e.into()),
                }
            }
            9 if rng.one_in(4) => two.reopen_b()?,
            _ => {
                let at = rng.below(size);
                let len = (1 + rng.below(2 * cluster)).min(size - at) as usize;
                match block_on(two.b.read(lvol, at, len)) {
                    Ok(found) => ensure!(found == bytes[at as usize..at as usize + len], "step {n}: read at {at}"),
                    Err(e) => ensure!(matches!(e.kind(), ErrorKind::Away | ErrorKind::Io), "{e:?}"),
                }
            }
        }
    }
    weather.away.store(false, Ordering::Relaxed);
    weather.fails.store(0, Ordering::Relaxed);
    for (lvol, (bytes, _)) in &model {
        same(&two.b, *lvol, bytes).with_context(|| format!("{lvol} beside hydration"))?;
    }
    until("hydration", || Ok(two.b.external_parents().is_empty()))?;
    block_on(two.a.close())?;
    for (lvol, (bytes, _)) in &model {
        same(&two.b, *lvol, bytes).with_context(|| format!("{lvol} afterwards"))?;
    }
    two.a = open(&two.engine, &two.dir.path().join("a"), &two.known)?;
    two.reopen_b()?;
    for (lvol, (bytes, _)) in &model {
        same(&two.b, *lvol, bytes).with_context(|| format!("{lvol} after a clean close"))?;
    }
    two.sound()
}

#[test]
fn a_hydrating_lvol_is_deleted() -> Result<()> {
    for seed in 0..8 {
        let two = Two::new(C)?;
        let (_, snapshot, _) = two.source(16 * MIB, 20 + seed)?;
        let weather = two.knows(snapshot)?;
        weather.slow.store(true, Ordering::Relaxed);
        let clone = two.clone_of(snapshot, "c", true)?;
        std::thread::sleep(Duration::from_millis(seed * 3));
        block_on(two.b.delete(clone.uuid, false))?;
        assert!(two.b.external_parents().is_empty());
        until("space to come back", || {
            let i = block_on(two.b.info())?;
            Ok(i.allocated_clusters == 0 && i.reserved_clusters == 0 && i.quarantined_clusters == 0)
        })?;
        two.sound()?;
    }
    Ok(())
}

#[test]
fn what_a_snapshot_says_of_itself() -> Result<()> {
    let two = Two::new(C)?;
    let (lvol, first, content) = two.source(8 * MIB, 30)?;
    let second = block_on(two.a.snapshot(vec![snapshot_of(lvol, "second")]))?.remove(0).uuid;
    let reader = block_on(two.a.reader(first))?;
    let mut at = 0;
    while at < reader.size() {
        for stretch in block_on(reader.status(at, reader.size() - at))? {
            let bytes = &content[at as usize..(at + stretch.len) as usize];
            ensure!(!stretch.hole || bytes.iter().all(|b| *b == 0), "a hole with data at {at}");
            at += stretch.len;
        }
    }
    let newer = block_on(two.a.reader(second))?;
    let (mut at, mut changed) = (0, 0);
    while at < newer.size() {
        for stretch in block_on(newer.delta(first, at, newer.size() - at))? {
            let (a, b) =
                (block_on(newer.read(at, stretch.len as usize))?, block_on(reader.read(at, stretch.len as usize))?);
            ensure!(!stretch.hole || a == b, "a change at {at} was not seen");
            changed += if stretch.hole { 0 } else { stretch.len };
            at += stretch.len;
        }
    }
    assert_eq!(changed, 2 * C, "100,000 bytes were written");
    assert_eq!(block_on(two.a.reader(lvol)).err().map(|e| e.kind()), Some(ErrorKind::WrongKind));
    assert!(block_on(reader.read(reader.size() - 1, 2)).is_err());
    Ok(())
}

#[test]
fn pins() -> Result<()> {
    let two = Two::new(C)?;
    let (lvol, snapshot, _) = two.source(2 * MIB, 40)?;
    let (x, y) = (Uuid::from_u128(1), Uuid::from_u128(2));
    assert_eq!(block_on(two.a.pin(lvol, pin(x))).err().map(|e| e.kind()), Some(ErrorKind::WrongKind));
    assert_eq!(block_on(two.a.pin(Uuid::from_u128(9), pin(x))).err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    block_on(two.a.pin(snapshot, pin(x)))?;
    block_on(two.a.pin(snapshot, pin(x)))?;
    assert_eq!(block_on(two.a.pin(snapshot, pin(y)))?.pins, [pin(x), pin(y)]);
    block_on(two.a.unpin(snapshot, Uuid::from_u128(3)))?;
    block_on(two.a.delete(snapshot, true))?;
    block_on(two.a.delete(snapshot, true))?;
    // Deleted: the old pins stay, new ones are refused.
    block_on(two.a.pin(snapshot, pin(x)))?;
    assert_eq!(
        block_on(two.a.pin(snapshot, pin(Uuid::from_u128(3)))).err().map(|e| e.kind()),
        Some(ErrorKind::NotFound)
    );
    block_on(two.a.unpin(snapshot, x))?;
    block_on(two.a.lvstore().background_done());
    assert_eq!(info(&two.a, snapshot)?.state, LvolState::Hidden);
    let mut two = two;
    block_on(two.a.close())?;
    two.a = open(&two.engine, &two.dir.path().join("a"), &two.known)?;
    block_on(two.a.lvstore().background_done());
    assert_eq!(info(&two.a, snapshot)?.pins, [pin(y)], "a pin survives, and keeps the snapshot");
    block_on(two.a.unpin(snapshot, y))?;
    block_on(two.a.lvstore().background_done());
    assert!(block_on(two.a.lvol(snapshot)).is_err());
    block_on(two.a.unpin(snapshot, y))?;
    two.sound()
}

/// Snapshots that have themselves as a parent, at once or over another store: what nobody has is an error, not read for ever.
#[test]
fn parents_in_a_circle() -> Result<()> {
    let mut two = Two::new(C)?;
    two.stores.add(two.b.clone());
    let path = two.dir.path().join("parent");
    std::fs::write(&path, Rng::new(70).bytes(MIB as usize))?;
    let clone = |store: &Store, parent: Uuid, name: &str| {
        let how = CreateExternalClone { parent, name: name.into(), hydrate: false, ..Default::default() };
        block_on(store.clone_external(how))
    };
    let snapshot = |store: &Store, lvol: Uuid, name: &str, uuid: Option<Uuid>| {
        block_on(store.snapshot(vec![CreateSnapshot { uuid, ..snapshot_of(lvol, name) }]))
    };
    // Each becomes what it was made of: `near` in the same store, `far` by way of `a`.
    let (near, far) = (Uuid::from_u128(90), Uuid::from_u128(91));
    for parent in [near, far] {
        two.known.add(parent, FileParent::new(&path))?;
    }
    let clones = [clone(&two.b, near, "near")?.uuid, clone(&two.b, far, "far")?.uuid];
    snapshot(&two.b, clones[0], "near-s", Some(near))?;
    let between = snapshot(&two.b, clones[1], "far-s", None)?.remove(0).uuid;
    two.knows(between)?;
    let back = clone(&two.a, between, "back")?.uuid;
    snapshot(&two.a, back, "back-s", Some(far))?;
    let shard = two.engine.shards()[0].clone();
    let stores = Stores::default();
    for parent in [near, far, between] {
        two.known.add(parent, LocalParent::new(stores.clone(), parent, shard.clone()))?;
    }
    block_on(two.a.close())?;
    two.a = open(&two.engine, &two.dir.path().join("a"), &two.known)?;
    two.reopen_b()?;
    stores.add(two.a.clone());
    stores.add(two.b.clone());
    for (store, lvol) in [(&two.b, clones[0]), (&two.b, clones[1]), (&two.a, back)] {
        let e = block_on(store.read(lvol, 0, 4096)).err().context("read out of nothing")?;
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
        assert!(block_on(store.hydrate(lvol, Box::new(|_| true))).is_err());
        assert_eq!(info(store, lvol)?.state, LvolState::Degraded);
    }
    // What they have themselves is there.
    block_on(two.b.write(clones[0], 0, vec![7; C as usize]))?;
    assert_eq!(block_on(two.b.read(clones[0], 0, C as usize))?, vec![7; C as usize]);
    two.sound()
}

#[test]
fn refusals() -> Result<()> {
    let two = Two::new(C)?;
    let (_, snapshot, _) = two.source(2 * MIB, 50)?;
    two.knows(snapshot)?;
    let how = |name: &str| CreateExternalClone { parent: snapshot, name: name.into(), ..Default::default() };
    let kind = |store: &Store, how| block_on(store.clone_external(how)).err().map(|e: Error| e.kind());
    assert_eq!(kind(&two.a, how("c")), Some(ErrorKind::Invalid), "its parent is in the same store");
    assert_eq!(kind(&two.b, CreateExternalClone { parent: Uuid::from_u128(7), ..how("c") }), Some(ErrorKind::Away));
    assert_eq!(kind(&two.b, how("")), Some(ErrorKind::Invalid));
    block_on(two.b.clone_external(how("c")))?;
    assert_eq!(kind(&two.b, how("c")), Some(ErrorKind::AlreadyExists));
    let plain = block_on(two.b.create_lvol(CreateLvol { name: "p".into(), size: MIB, ..Default::default() }))?;
    let e = block_on(two.b.hydrate(plain.uuid, Box::new(|_| true))).err().context("hydrated")?;
    assert_eq!(e.kind(), ErrorKind::Invalid);
    two.sound()
}

/// A store that SPDK wrote: with its parent everything reads what SPDK read, and can be made independent.
#[test]
fn the_esnap_store_of_spdk() -> Result<()> {
    let Some(fixture) = Fixture::unpack("iii_esnap")? else { return Ok(()) };
    let facts = fixture.facts["state"]["lvols"].as_array().context("lvols")?.clone();
    let parent: Uuid = fixture.facts["external"]["uuid"].as_str().context("uuid")?.parse()?;
    let known = Known::default();
    known.add(parent, FileParent::new(&fixture.file("iii_external.img")))?;
    let engine = workbench::engine()?;
    let hash = |store: &Store, lvol: &LvolInfo| -> Result<String> {
        use sha2::Digest;
        let mut hash = sha2::Sha256::new();
        for at in (0..lvol.size).step_by(MIB as usize) {
            hash.update(block_on(store.read(lvol.uuid, at, (lvol.size - at).min(MIB) as usize))?);
        }
        Ok(format!("{:x}", hash.finalize()))
    };
    let compare = |store: &Store| -> Result<()> {
        let lvols = block_on(store.lvols())?;
        for fact in &facts {
            let Some(lvol) = lvols.iter().find(|l| Some(l.name.as_str()) == fact["name"].as_str()) else { continue };
            assert_eq!(lvol.state, LvolState::Ok, "{lvol:?}");
            assert_eq!(Some(hash(store, lvol)?.as_str()), fact["sha256"].as_str(), "{}", lvol.name);
        }
        Ok(())
    };
    let store = open(&engine, &fixture.image(), &known)?;
    compare(&store)?;
    for lvol in block_on(store.lvols())?.iter().filter(|l| l.parent == Some(parent)) {
        block_on(store.hydrate(lvol.uuid, Box::new(|_| true))).with_context(|| lvol.name.clone())?;
    }
    assert!(store.external_parents().is_empty());
    compare(&store)?;
    assert_eq!(block_on(store.check())?, []);
    block_on(store.close())?;
    let judge = reader::Reader::open(fixture.image())?;
    ensure!(judge.check_spdk_safe().is_empty(), "{:#?}\n{}", judge.check_spdk_safe(), judge.dump());
    for fact in &facts {
        let name = fact["name"].as_str().context("name")?;
        if let Ok(lvol) = judge.lvol(name) {
            assert_eq!(Some(judge.sha256(&lvol)?.as_str()), fact["sha256"].as_str(), "{name}");
        }
    }
    block_on(engine.shutdown());
    Ok(())
}
