//! Each page of metadata, masks and journal in turn cannot be read (P5): the store is refused with a reason, or opens
//! without what lies there and says so. Whatever is done then, everything is there again when the page can be read.
#![cfg(feature = "sim")]

use coppice_engine::device::Device;
use coppice_engine::export::Volume as _;
use coppice_engine::lvol::LvolIo;
use coppice_engine::shard::{Shard, ShardHandle};
use coppice_engine::sim::rng::Rng;
use coppice_engine::sim::world::World;
use coppice_engine::store::Lvstore;
use coppice_engine::{CreateLvol, CreateSnapshot, CreateStore, Error, ErrorKind, LvolState, OpenStore};
use std::collections::BTreeMap;
use std::sync::Arc;
use uuid::Uuid;

const SIZE: u64 = 8 << 20;
const CLUSTER: u64 = 16 << 10;
const PAGE: usize = 4096;
const LVOL: usize = 40 * CLUSTER as usize;

type Contents = BTreeMap<Uuid, Vec<u8>>;

fn device() -> Device {
    Device::simulated(0, SIZE, 512)
}

async fn open(world: &[ShardHandle], shard: &Shard) -> Result<Arc<Lvstore>, Error> {
    Lvstore::open(shard, world.to_vec(), device(), OpenStore::default(), 64 << 10).await
}

async fn write(shard: &Shard, store: &Arc<Lvstore>, id: Uuid, off: u64, bytes: Vec<u8>) -> Result<(), Error> {
    let io = LvolIo::open(shard, store, id)?;
    let buf = shard.buf(bytes.len()).slice(0, bytes.len());
    buf.copy_in(0, &bytes);
    io.write(off, buf, false).await
}

async fn read(shard: &Shard, store: &Arc<Lvstore>, id: Uuid) -> Result<Vec<u8>, Error> {
    let io = LvolIo::open(shard, store, id)?;
    let buf = shard.buf(LVOL).slice(0, LVOL);
    io.read(0, buf.clone()).await?;
    Ok(buf.to_vec())
}

/// A store with lvols, snapshots, a long chain, and records in its journal unless it is closed.
async fn build(shard: Shard, shards: Vec<ShardHandle>, close: bool) -> Result<Contents, Error> {
    let how = CreateStore {
        file_size: None,
        name: "sim".into(),
        cluster_size: Some(CLUSTER as u32),
        max_size: Some(SIZE),
        block_size: Some(4096),
        force: true,
        owner: None,
    };
    Lvstore::create(&shard, &device(), &how).await?;
    let store = open(&shards, &shard).await?;
    let mut all = Vec::new();
    for n in 0..4u8 {
        let how = CreateLvol { name: format!("v{n}"), size: LVOL as u64, thick: n == 3, ..Default::default() };
        let id = store.create_lvol(&shard, how).await?.uuid;
        write(&shard, &store, id, u64::from(n) * 4096, vec![0x11 + n; 90_112]).await?;
        all.push(id);
    }
    let how = |lvol| CreateSnapshot {
        lvol,
        name: format!("s{lvol}"),
        uuid: None,
        attributes: Default::default(),
        hidden: false,
    };
    for id in [all[0], all[1]] {
        all.push(store.snapshot(&shard, vec![how(id)]).await?[0].uuid);
        write(&shard, &store, id, 8192, vec![0x77; 4096]).await?;
    }
    for n in 0..3 {
        store.set_attributes(&shard, all[2], vec![(format!("a{n}"), Some("v".repeat(3000)))]).await?;
    }
    store.commit().await?;
    let mut contents = Contents::new();
    for id in all {
        contents.insert(id, read(&shard, &store, id).await?);
    }
    if close {
        store.close(&shard).await?;
    }
    Ok(contents)
}

/// Opens the store with its bad page and works on it until it is full. Answers with what it refused, if it did.
async fn work(shard: Shard, shards: Vec<ShardHandle>, contents: Contents) -> Result<Option<Error>, String> {
    let store = match open(&shards, &shard).await {
        Ok(store) => store,
        Err(e) => return Ok(Some(e)),
    };
    let findings = store.check(&shard).await.map_err(|e| format!("check: {e:?}"))?;
    let listed: BTreeMap<Uuid, LvolState> = store.lvols().into_iter().map(|l| (l.uuid, l.state)).collect();
    for (id, bytes) in &contents {
        match listed.get(id) {
            Some(LvolState::Damaged) | None if !findings.is_empty() => {}
            Some(LvolState::Damaged) | None => return Err(format!("{id} is gone without a word")),
            Some(_) => {
                let now = read(&shard, &store, *id).await.map_err(|e| format!("{id}: {e:?}"))?;
                if now != *bytes {
                    return Err(format!("{id} reads something else"));
                }
            }
        }
    }
    // Whatever is free is used: nothing of it may be anybody's.
    let mut broken = None;
    'flood: for n in 0..100 {
        let how = CreateLvol { name: format!("flood{n}"), size: LVOL as u64, ..Default::default() };
        let id = match store.create_lvol(&shard, how).await {
            Ok(info) => info.uuid,
            Err(e) => {
                broken = Some(e);
                break;
            }
        };
        for off in (0..LVOL as u64).step_by(CLUSTER as usize) {
            if let Err(e) = write(&shard, &store, id, off, vec![0xff; CLUSTER as usize]).await {
                broken = Some(e);
                break 'flood;
            }
        }
    }
    // Full, or the bad page was needed.
    let expected =
        [ErrorKind::NoSpace, ErrorKind::NoMetadataSpace, ErrorKind::Io, ErrorKind::Failed, ErrorKind::Corrupt];
    match broken {
        Some(e) if expected.contains(&e.kind()) => {}
        other => return Err(format!("the flood ended with {other:?}")),
    }
    if let Err(e) = store.close(&shard).await
        && !matches!(e.kind(), ErrorKind::Io | ErrorKind::Failed)
    {
        return Err(format!("close: {e:?}"));
    }
    Ok(None)
}

async fn verify(shard: Shard, shards: Vec<ShardHandle>, contents: Contents) -> Result<(), String> {
    let store = open(&shards, &shard).await.map_err(|e| format!("open: {e:?}"))?;
    let damaged: Vec<_> = store.lvols().into_iter().filter(|l| l.state == LvolState::Damaged).collect();
    if !damaged.is_empty() {
        return Err(format!("damaged: {damaged:?}"));
    }
    for (id, bytes) in &contents {
        let now = read(&shard, &store, *id).await.map_err(|e| format!("{id}: {e:?}"))?;
        if now != *bytes {
            return Err(format!("{id} reads something else"));
        }
    }
    store.close(&shard).await.map_err(|e| format!("close: {e:?}"))
}

fn world_of(image: Vec<u8>, seed: u64) -> (World, Shard, Vec<ShardHandle>) {
    let world = World::new(image, seed, 1);
    let (shard, shards) = (world.shards[0].clone(), world.shards.iter().map(Shard::handle).collect());
    (world, shard, shards)
}

fn built(close: bool) -> (Vec<u8>, Contents) {
    let (mut world, shard, shards) = world_of(vec![0; SIZE as usize], 5);
    let contents = world.block_on(0, build(shard, shards, close)).expect("the store");
    (world.power_cut(), contents)
}

/// Pages that hold neither zeroes nor what the lvols were filled with.
fn own_pages(image: &[u8]) -> Vec<usize> {
    let plain = |page: &usize| image[page * PAGE..(page + 1) * PAGE].windows(2).all(|b| b[0] == b[1]);
    (0..image.len() / PAGE).filter(|page| !plain(page)).collect()
}

fn each_page(close: bool) {
    let (image, contents) = built(close);
    let pages = own_pages(&image);
    assert!(pages.len() > 20, "{} pages", pages.len());
    let (mut refused, mut rng) = (Vec::new(), Rng::new(3));
    for page in pages {
        let (mut world, shard, shards) = world_of(image.clone(), rng.draw());
        world.disk.borrow_mut().bad = page * PAGE..(page + 1) * PAGE;
        if let Some(e) = world
            .block_on(0, work(shard, shards, contents.clone()))
            .unwrap_or_else(|why| panic!("page {page} (closed: {close}): {why}"))
        {
            assert!(matches!(e.kind(), ErrorKind::Io | ErrorKind::Corrupt), "page {page}: {e:?}");
            refused.push(page);
        }
        let (mut world, shard, shards) = world_of(world.power_cut(), rng.draw());
        world
            .block_on(0, verify(shard, shards, contents.clone()))
            .unwrap_or_else(|why| panic!("page {page} (closed: {close}): {why}"));
    }
    println!("refused with page {refused:?}");
    // The root of the super blob, and after a power cut what the journal has not brought home.
    assert!(refused.len() <= if close { 1 } else { 30 }, "one bad page makes too much unusable: {refused:?}");
}

/// Records of the journal are acknowledged one after the other: a damaged one with later ones behind it is not an end.
#[test]
fn a_damaged_record_is_not_the_end() {
    let (image, contents) = built(false);
    let magic = |page: &usize| image[page * PAGE..].starts_with(b"COPPJRNL");
    let first = (0..image.len() / PAGE).find(magic).expect("a record");
    let (mut refused, mut opened) = (0, 0);
    for page in own_pages(&image).into_iter().filter(|page| *page >= first) {
        let mut damaged = image.clone();
        damaged[page * PAGE + 70] ^= 1;
        let (mut world, shard, shards) = world_of(damaged, page as u64);
        match world.block_on(0, async move { open(&shards, &shard).await.map(drop) }) {
            Ok(()) => opened += 1,
            Err(e) => {
                assert!(e.kind() == ErrorKind::Corrupt && e.message().contains("journal is damaged"), "{e:?}");
                refused += 1;
            }
        }
    }
    // Of the last record nobody can say whether it was acknowledged.
    let last = (0..image.len() / PAGE).rfind(magic).expect("a record");
    assert_eq!(opened, own_pages(&image).into_iter().filter(|page| *page >= last).count());
    assert!(refused > 10 && !contents.is_empty(), "{refused} refused");
}

#[test]
fn after_a_clean_close() {
    each_page(true);
}

#[test]
fn after_a_power_cut() {
    each_page(false);
}
