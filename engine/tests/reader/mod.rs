//! An independent reader of lvstores: a second implementation of the format that shares no code with the engine and
//! judges what the engine (or SPDK) wrote. It never writes and trusts nothing that it reads.
//!
//! [`Reader::open`] takes what SPDK would load and refuses what SPDK would refuse; [`Reader::open_with`] can be lenient,
//! to look at a store that is beyond SPDK. [`Reader::check`] applies the strict rules for a store at rest. Messages
//! begin with the rule's short name and a colon.
//!
//! `bytes` decodes structures, `blob` walks one blob, `load` builds the store, `data` reads content, `check` judges.

// Each test binary that includes this module uses a part of it.
#![allow(dead_code, unused_imports)]

pub mod blob;
pub mod bytes;
mod check;
mod data;
mod dump;
mod image;
mod load;

pub use check::{RULES, Verdict};

use anyhow::{Result, ensure};
use blob::{Flags, Parent, text_of};
use image::Image;
use load::{Store, valid_uuid};
use std::path::Path;

/// Fills the buffer with the bytes of the external snapshot with this id from this offset on; zeroes beyond its end.
pub type Esnap = Box<dyn Fn(&str, u64, &mut [u8]) -> Result<()> + Send + Sync>;

#[derive(Default)]
pub struct Options {
    /// Logical block size of the device that the store is meant for; not checked when None.
    pub base_block_size: Option<u32>,
    /// Accept mask bits of pages and clusters that nothing uses, as SPDK leaves them after a crash.
    pub allow_leaks: bool,
    /// Open what SPDK would refuse as a whole, as long as the super block makes sense.
    pub lenient: bool,
    pub esnap: Option<Esnap>,
}

pub struct Reader {
    image: Image,
    store: Store,
    options: Options,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreView {
    pub name: String,
    pub uuid: String,
    pub bstype: String,
    pub clean: bool,
    /// Read by recovery instead of by the masks.
    pub recovered: bool,
    pub block_size: u32,
    pub cluster_size: u64,
    pub total_data_clusters: u64,
    /// Clusters that no blob maps and the metadata does not take.
    pub free_clusters: u64,
    pub max_growable_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentView {
    pub blob_id: u64,
    pub name: String,
    pub uuid: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LvolView {
    pub blob_id: u64,
    pub name: String,
    /// None when the xattr is missing or no UUID.
    pub uuid: Option<String>,
    pub size_bytes: u64,
    pub num_clusters: u64,
    pub thin: bool,
    pub read_only: bool,
    pub parent: Option<ParentView>,
    /// Id of the external snapshot, when that is the parent.
    pub esnap: Option<String>,
    /// (place in the lvol, place on the device), ascending.
    pub own_clusters: Vec<(u64, u32)>,
    pub flags: Flags,
}

impl LvolView {
    /// Own clusters as (first, count).
    pub fn own_cluster_runs(&self) -> Vec<(u64, u64)> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (at, _) in &self.own_clusters {
            match runs.last_mut() {
                Some((first, count)) if *first + *count == *at => *count += 1,
                _ => runs.push((*at, 1)),
            }
        }
        runs
    }
}

impl Reader {
    pub fn open(path: impl AsRef<Path>) -> Result<Reader> {
        Reader::open_with(path, Options::default())
    }

    pub fn open_with(path: impl AsRef<Path>, options: Options) -> Result<Reader> {
        let image = Image::open(path.as_ref())?;
        let store = Store::read(&image)?;
        let failures = &store.load_failures;
        ensure!(options.lenient || failures.is_empty(), "SPDK would not load this store: {}", failures.join("; "));
        Ok(Reader { image, store, options })
    }

    pub fn store(&self) -> StoreView {
        let (sb, geometry) = (&self.store.sb, &self.store.geometry);
        let blob = self.store.blobs.get(&sb.super_blob);
        let text = |name| blob.and_then(|b| b.xattr(false, name)).map(text_of).unwrap_or_default();
        let mapped: std::collections::BTreeSet<u32> = self
            .store
            .listed
            .keys()
            .filter_map(|id| self.store.blobs.get(id))
            .flat_map(|b| b.map.values().copied())
            .collect();
        let data_clusters = u64::from(geometry.total_clusters - geometry.md_clusters);
        StoreView {
            name: text("name"),
            uuid: text("uuid"),
            bstype: sb.bstype_text(),
            clean: sb.clean == 1,
            recovered: self.store.recovered,
            block_size: geometry.io_unit_size,
            cluster_size: geometry.cluster_size,
            total_data_clusters: data_clusters,
            free_clusters: data_clusters.saturating_sub(mapped.len() as u64),
            max_growable_bytes: (u64::from(sb.page_mask.len) * geometry.page_size - bytes::MASK_HEADER_BYTES)
                * 8
                * geometry.cluster_size,
        }
    }

    /// Every lvol that SPDK would show, in ascending order of blob ids.
    pub fn lvols(&self) -> Vec<LvolView> {
        let super_blob = self.store.sb.super_blob;
        self.store.open_blobs().filter(|(id, _)| *id != super_blob).map(|(id, blob)| self.view(id, blob)).collect()
    }

    pub fn lvol(&self, name: &str) -> Result<LvolView> {
        let found = self.lvols().into_iter().find(|lvol| lvol.name == name);
        found.ok_or_else(|| anyhow::anyhow!("no lvol {name:?} in\n{}", self.dump()))
    }

    /// Blobs that exist and do not open, with the reason.
    pub fn unopenable(&self) -> Vec<(u64, String)> {
        self.store.listed.iter().filter_map(|(id, why)| why.clone().map(|why| (*id, why))).collect()
    }

    /// What the load resolved about interrupted snapshot operations (in memory only).
    pub fn repairs(&self) -> &[String] {
        &self.store.repairs
    }

    /// Why SPDK would refuse the store; empty unless opened leniently.
    pub fn load_failures(&self) -> &[String] {
        &self.store.load_failures
    }

    /// The walked blob with its chain, extent pages, xattrs and faults, for tests about the metadata itself.
    pub fn blob(&self, id: u64) -> Option<&blob::Blob> {
        self.store.blobs.get(&id)
    }

    pub fn super_block(&self) -> &bytes::Super {
        &self.store.sb
    }

    pub fn geometry(&self) -> &bytes::Geometry {
        &self.store.geometry
    }

    /// Byte offset of a metadata page.
    pub fn page_offset(&self, index: u32) -> u64 {
        (u64::from(self.store.sb.md.start) + u64::from(index)) * self.store.geometry.page_size
    }

    fn view(&self, id: u64, blob: &blob::Blob) -> LvolView {
        let (parent, esnap) = match blob.parent() {
            Parent::None => (None, None),
            Parent::External(id) => (None, Some(id)),
            Parent::Snapshot(id) => (Some(self.parent_view(id)), None),
        };
        LvolView {
            blob_id: id,
            name: blob.xattr(false, "name").map(text_of).unwrap_or_default(),
            uuid: blob.xattr(false, "uuid").filter(|v| valid_uuid(v)).map(text_of),
            size_bytes: blob.num_clusters.saturating_mul(self.store.geometry.cluster_size),
            num_clusters: blob.num_clusters,
            thin: blob.thin(),
            read_only: blob.read_only() || self.store.made_read_only.contains(&id),
            parent,
            esnap,
            own_clusters: blob.map.iter().map(|(at, cluster)| (*at, *cluster)).collect(),
            flags: blob.flags,
        }
    }

    fn parent_view(&self, id: u64) -> ParentView {
        let xattr = |name| self.store.blobs.get(&id).and_then(|b| b.xattr(false, name));
        ParentView {
            blob_id: id,
            name: xattr("name").map(text_of).unwrap_or_default(),
            uuid: xattr("uuid").filter(|v| valid_uuid(v)).map(text_of),
        }
    }
}
