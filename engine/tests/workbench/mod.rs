//! The engine with one store open, and a plain model of what must be in it. Every operation goes to both; what they say
//! about each other is compared, and at the end the independent reader judges what lies on the device.

// Each test binary that includes this module uses a part of it.
#![allow(dead_code)]

pub mod model;
pub mod random;

use crate::reader::{Options, Reader};
use anyhow::{Context, Result, bail, ensure};
use coppice_engine::shard::block_on;
use coppice_engine::{
    CreateClone, CreateLvol, CreateSnapshot, CreateStore, Engine, EngineConfig, ErrorKind, Finding, LvolInfo, LvolKind,
    LvolState, OpenStore, Store, StoreInfo,
};
use model::{CHUNK, Model, Vol};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Whole content is compared up to this size; of larger lvols what the model knows of, and holes here and there.
const WHOLE_MAX: u64 = 96 << 20;
const PIECE: u64 = 4 << 20;

/// A random generator that a seed determines.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len() as u64) as usize)
    }

    /// Bytes that occur nowhere else: a counter in every word.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let tag = self.next() | 1;
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&tag.wrapping_add((bytes.len() as u64 / 8).wrapping_mul(0x0101)).to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
}

pub fn store_of(name: &str, size: u64, cluster_size: u32, block_size: u32) -> CreateStore {
    CreateStore {
        file_size: Some(size),
        name: name.into(),
        cluster_size: Some(cluster_size),
        max_size: None,
        block_size: Some(block_size),
        force: false,
        owner: None,
    }
}

/// An engine with two shards.
pub fn engine() -> Result<Engine> {
    Ok(Engine::start(EngineConfig { shards: 2, ..EngineConfig::default() })?)
}

pub fn snapshot_of(lvol: Uuid, name: &str) -> CreateSnapshot {
    CreateSnapshot { lvol, name: name.into(), uuid: None, attributes: Default::default(), hidden: false }
}

pub fn clone_of(snapshot: Uuid, name: &str) -> CreateClone {
    CreateClone { snapshot, name: name.into(), uuid: None, size: None, thick: false, attributes: Default::default() }
}

pub struct Bench {
    pub engine: Engine,
    pub path: PathBuf,
    pub store: Store,
    pub model: Model,
    pub cluster: u64,
    pub block: u64,
}

impl Drop for Bench {
    fn drop(&mut self) {
        block_on(self.engine.shutdown());
    }
}

impl Bench {
    pub fn create(path: &Path, how: CreateStore) -> Result<Bench> {
        let engine = engine()?;
        block_on(engine.create_store(path, how))?;
        Self::opened(engine, path, Model::default())
    }

    /// Opens an existing store; the model is filled by the independent reader.
    pub fn adopt(path: &Path) -> Result<Bench> {
        let model = Model::of(&Reader::open(path)?)?;
        Self::opened(engine()?, path, model)
    }

    /// As `adopt`, with an empty model: for stores of which not everything can be read.
    pub fn adopt_lenient(path: &Path) -> Result<Bench> {
        Self::opened(engine()?, path, Model::default())
    }

    fn opened(engine: Engine, path: &Path, model: Model) -> Result<Bench> {
        let store = block_on(engine.open_store(path, OpenStore::default()))?;
        let info = block_on(store.info())?;
        let (cluster, block) = (u64::from(info.cluster_size), u64::from(info.block_size));
        Ok(Bench { engine, path: path.into(), store, model, cluster, block })
    }

    pub fn lvstore(&self) -> &std::sync::Arc<coppice_engine::store::Lvstore> {
        self.store.lvstore()
    }

    pub fn info(&self) -> Result<StoreInfo> {
        Ok(block_on(self.store.info())?)
    }

    pub fn lvols(&self) -> Result<Vec<LvolInfo>> {
        Ok(block_on(self.store.lvols())?)
    }

    // ---- operations on both ----

    pub fn create_lvol(&mut self, name: &str, size: u64, thick: bool) -> coppice_engine::Result<Uuid> {
        let how = CreateLvol { name: name.into(), size, thick, ..Default::default() };
        let info = block_on(self.store.create_lvol(how))?;
        self.model.add(Vol::new(&info.name, info.uuid, size.next_multiple_of(self.cluster), thick));
        Ok(info.uuid)
    }

    /// A write that fails may have been done in part: each block has its old content or its new one.
    pub fn write(&mut self, lvol: Uuid, offset: u64, data: Vec<u8>) -> coppice_engine::Result<()> {
        let result = block_on(self.store.write(lvol, offset, data.clone()));
        match &result {
            Ok(()) => self.model.vol(lvol).content.write(offset, &data),
            Err(_) => self.model.vol(lvol).uncertain = Some((offset, data)),
        }
        result
    }

    pub fn discard(&mut self, lvol: Uuid, offset: u64, len: u64) -> coppice_engine::Result<()> {
        let result = block_on(self.store.discard(lvol, offset, len));
        match &result {
            Ok(()) => self.model.vol(lvol).content.zero(offset, len),
            Err(_) => self.model.vol(lvol).uncertain = Some((offset, vec![0; len as usize])),
        }
        result
    }

    pub fn snapshot(&mut self, lvols: &[(Uuid, &str)]) -> coppice_engine::Result<Vec<Uuid>> {
        let how = lvols.iter().map(|(lvol, name)| snapshot_of(*lvol, name)).collect();
        let infos = block_on(self.store.snapshot(how))?;
        for (info, (lvol, name)) in infos.iter().zip(lvols) {
            self.model.snapshot(*lvol, info.uuid, name);
        }
        Ok(infos.iter().map(|i| i.uuid).collect())
    }

    pub fn clone_snapshot(
        &mut self,
        snapshot: Uuid,
        name: &str,
        size: Option<u64>,
        thick: bool,
    ) -> coppice_engine::Result<Uuid> {
        let how = CreateClone { size, thick, ..clone_of(snapshot, name) };
        let info = block_on(self.store.clone_snapshot(how))?;
        self.model.add_clone(snapshot, info.uuid, name, size.map(|s| s.next_multiple_of(self.cluster)), thick);
        Ok(info.uuid)
    }

    pub fn delete(&mut self, lvol: Uuid, deferred: bool) -> coppice_engine::Result<()> {
        block_on(self.store.delete(lvol, deferred))?;
        self.model.delete(lvol);
        self.settle();
        Ok(())
    }

    pub fn resize(&mut self, lvol: Uuid, size: u64) -> coppice_engine::Result<()> {
        block_on(self.store.resize(lvol, size))?;
        self.model.vol(lvol).content.resize(size.next_multiple_of(self.cluster));
        Ok(())
    }

    pub fn rename(&mut self, lvol: Uuid, name: &str) -> coppice_engine::Result<()> {
        block_on(self.store.rename(lvol, name))?;
        self.model.vol(lvol).name = name.into();
        Ok(())
    }

    pub fn inflate(&mut self, lvol: Uuid) -> coppice_engine::Result<()> {
        block_on(self.store.inflate(lvol, Box::new(|_| true)))?;
        self.model.set_parent(lvol, None);
        self.settle();
        Ok(())
    }

    pub fn decouple(&mut self, lvol: Uuid) -> coppice_engine::Result<()> {
        block_on(self.store.decouple(lvol, Box::new(|_| true)))?;
        self.model.decouple(lvol);
        self.settle();
        Ok(())
    }

    pub fn revert(&mut self, lvol: Uuid, snapshot: Uuid) -> coppice_engine::Result<()> {
        block_on(self.store.revert(lvol, snapshot))?;
        self.model.revert(lvol, snapshot);
        self.settle();
        Ok(())
    }

    /// Deleted snapshots are merged in the background.
    fn settle(&mut self) {
        self.model.settle();
        block_on(self.lvstore().background_done());
    }

    /// Everything that was freed is free again.
    pub fn reclaimed(&self) -> Result<()> {
        let lv = self.lvstore();
        block_on(lv.background_done());
        block_on(lv.commit())?;
        Ok(block_on(lv.reclaimed())?)
    }

    // ---- comparisons ----

    /// Names, sizes, kinds, parents, children, thickness.
    pub fn compare_tree(&self) -> Result<()> {
        let lvols = self.lvols()?;
        for info in &lvols {
            let Some(vol) = self.model.get(info.uuid) else { bail!("the model has no {} ({})", info.name, info.uuid) };
            let shown = format!("{} ({})", vol.name, info.uuid);
            if vol.hidden {
                ensure!(info.state == LvolState::Hidden, "{shown} was deleted and is shown as {:?}", info.state);
            } else {
                ensure!(info.state == LvolState::Ok, "{shown} is {:?}: {:?}", info.state, info.reason);
                ensure!(info.name == vol.name, "{shown} is called {}", info.name);
            }
            ensure!(info.size == vol.content.size, "{shown} has {} bytes, not {}", info.size, vol.content.size);
            ensure!(info.parent == vol.parent, "{shown} has the parent {:?}, not {:?}", info.parent, vol.parent);
            ensure!((info.kind == LvolKind::Snapshot) == vol.snapshot, "{shown} is a {:?}", info.kind);
            ensure!(vol.snapshot || info.thin != vol.thick, "{shown}: thin is {}", info.thin);
            let mut children = info.children.clone();
            children.sort();
            let expected = self.model.children(info.uuid, false);
            ensure!(children == expected, "{shown} has the children {children:?}, not {expected:?}");
        }
        let missing: Vec<&str> =
            self.model.vols().filter(|v| lvols.iter().all(|i| i.uuid != v.uuid)).map(|v| v.name.as_str()).collect();
        ensure!(missing.is_empty(), "the store has no {missing:?}");
        Ok(())
    }

    /// The content of one lvol.
    pub fn compare(&mut self, lvol: Uuid) -> Result<()> {
        let vol = self.model.get(lvol).context("not in the model")?;
        if vol.hidden {
            return Ok(());
        }
        let store = self.store.clone();
        if let Some((offset, data)) = self.model.vol(lvol).uncertain.take() {
            let found = block_on(store.read(lvol, offset, data.len()))?;
            let block = self.block as usize;
            let before = self.model.vol(lvol).content.read(offset, data.len() as u64);
            let head = offset as usize % block;
            let mut at = 0;
            while at < found.len() {
                let end = ((at + head) / block + 1) * block - head;
                let range = at..end.min(found.len());
                ensure!(
                    found[range.clone()] == before[range.clone()] || found[range.clone()] == data[range.clone()],
                    "{lvol}: a failed write left something else in bytes {range:?} behind {offset}"
                );
                at = end;
            }
            self.model.vol(lvol).content.write(offset, &found);
        }
        let vol = self.model.get(lvol).context("not in the model")?;
        let name = vol.name.clone();
        vol.compare(WHOLE_MAX, PIECE, |at, len| Ok(block_on(store.read(lvol, at, len as usize))?))
            .with_context(|| format!("the engine reads {name} ({lvol})"))
    }

    pub fn compare_all(&mut self) -> Result<()> {
        self.compare_tree()?;
        for lvol in self.model.uuids() {
            self.compare(lvol)?;
        }
        self.accounts()
    }

    /// Total = metadata + allocated + reserved + quarantined + free, and the parts are plausible.
    pub fn accounts(&self) -> Result<()> {
        let i = self.info()?;
        let sum =
            i.metadata_clusters + i.allocated_clusters + i.reserved_clusters + i.quarantined_clusters + i.free_clusters;
        ensure!(sum == i.total_clusters, "the accounts do not add up: {i:?}");
        ensure!(i.failed.is_none(), "the store failed: {:?}", i.failed);
        let own: u64 = self.lvols()?.iter().map(|l| l.allocated_clusters).sum();
        ensure!(own == i.allocated_clusters, "lvols own {own} clusters, {} are allocated", i.allocated_clusters);
        let owed: u64 = self
            .lvols()?
            .iter()
            .filter(|l| !l.thin && l.kind != LvolKind::Snapshot)
            .map(|l| (l.size / self.cluster).saturating_sub(l.allocated_clusters))
            .sum();
        ensure!(
            i.reserved_clusters == owed || i.quarantined_clusters > 0 && i.reserved_clusters < owed,
            "thick lvols are owed {owed} clusters: {i:?}"
        );
        Ok(())
    }

    pub fn findings(&self) -> Result<Vec<Finding>> {
        Ok(block_on(self.store.check())?)
    }

    pub fn check(&self) -> Result<()> {
        let findings = self.findings()?;
        ensure!(findings.is_empty(), "the engine's check finds {findings:#?}");
        Ok(())
    }

    // ---- the ends of a life ----

    /// Closes cleanly, lets the independent reader judge and compare, and opens again.
    pub fn reopen(&mut self) -> Result<()> {
        self.close_and_judge()?;
        self.store = block_on(self.engine.open_store(&self.path, OpenStore::default()))?;
        self.compare_tree()
    }

    /// As `reopen`, without opening again. True if the store was left as a plain one.
    pub fn close_and_judge(&mut self) -> Result<bool> {
        self.reclaimed()?;
        self.check()?;
        let engine_says: Vec<LvolInfo> = self.lvols()?;
        block_on(self.store.close())?;
        let again = block_on(self.engine.open_store(&self.path, OpenStore { read_only: true, ..Default::default() }))?;
        let info = block_on(again.info())?;
        block_on(again.close())?;
        if !info.spdk_readable {
            ensure!(!info.seal_work.is_empty(), "closed, nothing is left to do, and not plain: {info:?}");
            return Ok(false);
        }
        ensure!(info.bstype == "LVOLSTORE" && info.clean, "{info:?}");
        self.judge(&engine_says)?;
        Ok(true)
    }

    fn judge(&self, engine_says: &[LvolInfo]) -> Result<()> {
        let options = Options { base_block_size: Some(self.block as u32), ..Options::default() };
        let reader = Reader::open_with(&self.path, options)?;
        let errors = reader.check_spdk_safe();
        ensure!(errors.is_empty(), "not safe for SPDK: {errors:#?}\n{}", reader.dump());
        ensure!(reader.unopenable().is_empty() && reader.repairs().is_empty(), "{}", reader.dump());
        let views = reader.lvols();
        ensure!(views.len() == engine_says.len(), "the reader sees other lvols:\n{}", reader.dump());
        for info in engine_says {
            let view = views.iter().find(|v| v.uuid.as_deref() == Some(&info.uuid.to_string()));
            let view = view.with_context(|| format!("the reader does not see {}\n{}", info.name, reader.dump()))?;
            ensure!(view.name == info.name && view.size_bytes == info.size, "{info:?}\n{}", reader.dump());
            ensure!(view.read_only == (info.kind == LvolKind::Snapshot), "{info:?}\n{}", reader.dump());
            let vol = self.model.get(info.uuid).context("not in the model")?;
            if vol.hidden {
                continue;
            }
            let parent = view.parent.as_ref().and_then(|p| p.uuid.clone());
            ensure!(parent == info.parent.map(|p| p.to_string()), "{info:?}\n{}", reader.dump());
            vol.compare(WHOLE_MAX, PIECE, |at, len| reader.read(view, at, len as usize))
                .with_context(|| format!("the reader reads {}\n{}", info.name, reader.dump()))?;
        }
        Ok(())
    }
}

/// True for the refusals of a full store.
pub fn is_full<T>(result: &coppice_engine::Result<T>) -> bool {
    matches!(result, Err(e) if matches!(e.kind(), ErrorKind::NoSpace | ErrorKind::NoMetadataSpace))
}

/// The first byte in which two pieces differ.
pub fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    if a == b { None } else { Some(a.iter().zip(b).position(|(x, y)| x != y).unwrap_or(a.len().min(b.len()))) }
}

const _: () = assert!(PIECE.is_multiple_of(CHUNK));
