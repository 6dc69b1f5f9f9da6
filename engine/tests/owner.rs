//! Whose a store is: kept through closing and sealing, in bytes that SPDK and older versions leave alone.

use anyhow::Result;
use coppice_engine::shard::block_on;
use coppice_engine::{Contents, CreateLvol, CreateStore, Engine, EngineConfig, ErrorKind, OpenStore, StoreLabel};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use uuid::Uuid;

const ONE: Uuid = Uuid::from_u128(0x11);
const OTHER: Uuid = Uuid::from_u128(0x22);
/// The place of the owner in the super block, and of the private area.
const OWNER: std::ops::Range<usize> = 3812..3836;
const PRIVATE: std::ops::Range<usize> = 3836..4092;

fn how(owner: Option<Uuid>) -> CreateStore {
    CreateStore {
        file_size: Some(16 << 20),
        name: "fast".into(),
        cluster_size: Some(64 << 10),
        max_size: None,
        block_size: None,
        force: false,
        owner,
    }
}

fn super_block(path: &Path) -> Result<Vec<u8>> {
    let mut page = vec![0; 4096];
    fs::File::open(path)?.read_exact_at(&mut page, 0)?;
    Ok(page)
}

#[test]
fn an_owner_stays_until_it_is_changed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("store");
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let made = block_on(engine.create_store(&path, how(Some(ONE))))?;
    assert_eq!(made.owner, Some(ONE));
    let label = |owner| Contents::Store(StoreLabel { uuid: made.uuid, name: "fast".into(), owner });
    assert_eq!(block_on(engine.look(&path))?, label(Some(ONE)));

    let store = block_on(engine.open_store(&path, OpenStore::default()))?;
    let locked = block_on(engine.look(&path)).err().map(|e| e.kind());
    assert_eq!(locked, Some(ErrorKind::Locked), "an open store is nobody else's to look at");
    block_on(store.create_lvol(CreateLvol { name: "v".into(), size: 1 << 20, ..Default::default() }))?;
    assert_eq!(block_on(store.set_owner(Some(OTHER)))?.owner, Some(OTHER));
    let before = super_block(&path)?;
    block_on(store.set_owner(Some(OTHER)))?;
    assert_eq!(super_block(&path)?, before, "nothing is written for what is so already");
    block_on(store.seal())?;
    block_on(store.close())?;
    assert_eq!(block_on(engine.look(&path))?, label(Some(OTHER)));

    let store = block_on(engine.open_store(&path, OpenStore::default()))?;
    let info = block_on(store.info())?;
    assert!(info.spdk_readable && info.bstype == "LVOLSTORE" && info.owner == Some(OTHER), "{info:?}");
    assert!(block_on(store.set_owner(Some(Uuid::nil()))).is_err());
    block_on(store.set_owner(None))?;
    assert!(block_on(store.check())?.is_empty());
    block_on(store.close())?;
    assert_eq!(block_on(engine.look(&path))?, label(None));
    assert!(super_block(&path)?.get(OWNER).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0)));
    block_on(engine.shutdown());
    Ok(())
}

/// Versions before this one refuse a private area with anything behind its extents.
#[test]
fn an_older_version_reads_a_store_with_an_owner() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let mut private = Vec::new();
    for owner in [None, Some(ONE)] {
        let path = dir.path().join(format!("store-{}", owner.is_some()));
        block_on(engine.create_store(&path, how(owner)))?;
        let page = super_block(&path)?;
        private.push(page.get(PRIVATE).map(<[u8]>::to_vec));
        let written = page.get(OWNER).is_some_and(|bytes| bytes.starts_with(b"COPOWNER"));
        assert_eq!(written, owner.is_some());
    }
    assert_eq!(private.first(), private.get(1), "the owner is not in the private area");
    block_on(engine.shutdown());
    Ok(())
}

#[test]
fn a_look_tells_blank_from_other_and_from_a_store() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("file");
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    assert_eq!(block_on(engine.look(&path)).err().map(|e| e.kind()), Some(ErrorKind::NotFound));
    fs::write(&path, vec![0; 4 << 20])?;
    assert_eq!(block_on(engine.look(&path))?, Contents::Blank);
    fs::OpenOptions::new().write(true).open(&path)?.write_all_at(&[0x53, 0xef], 0x438)?;
    let there = block_on(engine.look(&path))?;
    assert!(matches!(&there, Contents::Other(what) if what.contains("ext2/3/4")), "{there:?}");
    block_on(engine.shutdown());
    Ok(())
}
