//! From an image to the blobs that SPDK would show: clean stores by their masks, dirty ones by the recovery of
//! section 8, interrupted snapshot operations resolved as in section 8.4. All in memory.

use super::blob::{Blob, Harm, Pages, Parent};
use super::bytes::{
    Area, BLOB_ID_HIGH, BLOB_ID_NONE, Geometry, MASK_BLOB_IDS, MASK_CLUSTERS, MASK_PAGES, Mask, PAGE_BYTES, Page,
    Super, is_uuid_text,
};
use super::image::Image;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};

/// Metadata pages are read in pieces of this many bytes.
const PIECE_BYTES: u64 = 1 << 20;

pub struct Masks {
    pub pages: Mask,
    pub clusters: Mask,
    /// None in stores older than version 3.
    pub blob_ids: Option<Mask>,
}

/// The whole metadata of a store.
pub struct Store {
    pub sb: Super,
    pub geometry: Geometry,
    /// As they lie on disk, meaningful only when `recovered` is false.
    pub masks: Masks,
    /// Metadata pages with a right CRC.
    pub pages: BTreeMap<u32, Page>,
    /// Pages with bytes in them and a wrong CRC.
    pub broken_pages: BTreeSet<u32>,
    /// Every blob with a valid root or a bit in the blob id mask, whether SPDK can see it or not.
    pub blobs: BTreeMap<u64, Blob>,
    /// The masks were not used: section 8.
    pub recovered: bool,
    /// Blobs that exist after loading and repair: id to why it does not open, if it does not.
    pub listed: BTreeMap<u64, Option<String>>,
    /// Kept snapshots that the repair makes read-only.
    pub made_read_only: BTreeSet<u64>,
    /// What section 8.4 did, in words.
    pub repairs: Vec<String>,
    /// Why SPDK would refuse the whole store.
    pub load_failures: Vec<String>,
}

impl Store {
    pub fn read(image: &Image) -> Result<Store> {
        let mut page = vec![0; PAGE_BYTES];
        image.read(0, &mut page).context("super block")?;
        let sb = Super::parse(&page)?;
        let geometry = sb.geometry(image.len)?;
        let masks = Masks {
            pages: read_mask(image, &geometry, sb.page_mask)?,
            clusters: read_mask(image, &geometry, sb.cluster_mask)?,
            blob_ids: (sb.blob_id_mask.len > 0).then(|| read_mask(image, &geometry, sb.blob_id_mask)).transpose()?,
        };
        let (pages, broken_pages) = read_pages(image, &sb, &geometry)?;
        let mut store = Store {
            recovered: sb.clean == 0 || masks.blob_ids.is_none(),
            sb,
            geometry,
            masks,
            pages,
            broken_pages,
            blobs: BTreeMap::new(),
            listed: BTreeMap::new(),
            made_read_only: BTreeSet::new(),
            repairs: Vec::new(),
            load_failures: Vec::new(),
        };
        store.find_blobs();
        store.open_all();
        store.repair();
        store.open_all();
        store.lvol_layer();
        Ok(store)
    }

    pub fn roots(&self) -> impl Iterator<Item = u32> {
        self.pages.iter().filter(|(index, page)| page.is_root_at(**index)).map(|(index, _)| *index)
    }

    fn find_blobs(&mut self) {
        let mut roots: BTreeSet<u32> = self.roots().collect();
        let mut ids = roots.clone();
        if let (false, Some(mask)) = (self.recovered, &self.masks.blob_ids) {
            ids = mask.set.clone();
            roots.extend(&mask.set);
            for (mask, name, kind) in [
                (&self.masks.pages, "mask.pages", MASK_PAGES),
                (&self.masks.clusters, "mask.clusters", MASK_CLUSTERS),
                (mask, "mask.blobids", MASK_BLOB_IDS),
            ] {
                if mask.kind != kind {
                    self.load_failures.push(format!("{name}: is of type {}", mask.kind));
                }
            }
            if self.masks.clusters.bits < self.geometry.total_clusters {
                self.load_failures.push(format!("mask.clusters: has only {} bits", self.masks.clusters.bits));
            }
        }
        let pages = Pages {
            valid: &self.pages,
            md_len: self.sb.md.len,
            total_clusters: self.geometry.total_clusters,
            md_clusters: self.geometry.md_clusters,
        };
        self.blobs = roots.iter().map(|&root| (BLOB_ID_HIGH | u64::from(root), Blob::read(root, &pages))).collect();
        self.listed = ids.iter().map(|&root| (BLOB_ID_HIGH | u64::from(root), None)).collect();
        if !self.recovered {
            return;
        }
        for blob in self.blobs.values() {
            for fault in blob.faults.iter().filter(|f| matches!(f.harm, Harm::Recovery | Harm::Both)) {
                self.load_failures.push(format!("{}: blob {:#x}: {}", fault.rule, blob.id, fault.text));
            }
        }
        let entries: u64 = self.blobs.values().map(|b| b.entries).sum();
        if entries > u64::from(self.geometry.total_clusters) {
            let text = format!("map.sum: {entries} entries, {} clusters", self.geometry.total_clusters);
            self.load_failures.push(text);
        }
    }

    fn open_all(&mut self) {
        let ids: Vec<u64> = self.listed.keys().copied().collect();
        let found: Vec<_> = ids.into_iter().map(|id| (id, self.why_unopenable(id, &mut Vec::new()))).collect();
        self.listed = found.into_iter().collect();
    }

    /// Opening a clone opens its ancestors, so their trouble is the clone's.
    fn why_unopenable(&self, id: u64, children: &mut Vec<u64>) -> Option<String> {
        let blob = match self.blobs.get(&id) {
            Some(blob) if self.listed.contains_key(&id) => blob,
            _ => return Some("does not exist".into()),
        };
        if children.contains(&id) {
            return Some("parent.cycle: is its own ancestor".into());
        }
        if let Some(fault) = blob.open_fault() {
            return Some(format!("{}: {}", fault.rule, fault.text));
        }
        if blob.xattr(true, "SNAP").is_some() && matches!(blob.parent(), Parent::None) && blob.thin() {
            return Some("parent.snap: value is not 8 bytes".into());
        }
        if matches!(blob.parent(), Parent::External(_)) && blob.xattr(true, "EXTSNAP").is_none() {
            return Some("parent.esnap: no EXTSNAP".into());
        }
        let free = |c: &&u32| !self.masks.clusters.set.contains(*c);
        if let (false, Some(cluster)) = (self.recovered, blob.map.values().find(free)) {
            return Some(format!("mask.clusters: mapped cluster {cluster} is not marked used"));
        }
        let Parent::Snapshot(parent) = blob.parent() else { return None };
        children.push(id);
        let why = self.why_unopenable(parent, children);
        children.pop();
        why.map(|why| format!("parent {parent:#x}: {why}"))
    }

    /// Section 8.4, in ascending order of ids.
    fn repair(&mut self) {
        let ids: Vec<u64> = self.listed.iter().filter(|(_, why)| why.is_none()).map(|(id, _)| *id).collect();
        for id in ids {
            let Some(blob) = self.blobs.get(&id) else { continue };
            let found = ["SNAPRM", "SNAPTMP"].into_iter().find_map(|name| blob.id_xattr(name).map(|v| (name, v)));
            let Some((name, other)) = found else { continue };
            if let Some(why) = self.why_unopenable(other, &mut Vec::new()) {
                self.repairs.push(format!("blob {id:#x}: {name} names {other:#x}, left as it is: {why}"));
            } else if self.blobs.get(&other).is_some_and(|o| o.parent() == Parent::Snapshot(id)) {
                self.repairs.push(format!("blob {id:#x}: {name} removed, kept as parent of {other:#x}"));
                self.made_read_only.insert(id);
            } else {
                self.repairs.push(format!("blob {id:#x}: {name} names {other:#x}, which is no child: deleted"));
                self.listed.remove(&id);
            }
        }
    }

    /// What the lvol layer asks of the blobs (sections 6.3 and 9.3).
    fn lvol_layer(&mut self) {
        let mut failures = Vec::new();
        let super_id = self.sb.super_blob;
        match (self.listed.get(&super_id), self.blobs.get(&super_id)) {
            _ if super_id == BLOB_ID_NONE => failures.push("super-blob: none".into()),
            (Some(None), Some(blob)) => {
                if !blob.xattr(false, "uuid").is_some_and(valid_uuid) {
                    failures.push("super-blob: no valid uuid".into());
                }
                if blob.xattr(false, "name").is_none_or(|name| name.len() > 64) {
                    failures.push("super-blob: no valid name".into());
                }
            }
            (why, _) => {
                failures.push(format!("super-blob: {super_id:#x} does not open: {:?}", why.cloned().flatten()));
            }
        }
        for (id, blob) in self.open_blobs().filter(|(id, _)| *id != super_id) {
            match blob.xattr(false, "name") {
                None => failures.push(format!("name.missing: blob {id:#x} has no name")),
                Some(name) if name.len() > 64 => failures.push(format!("name.length: blob {id:#x}: {}", name.len())),
                Some(_) => (),
            }
        }
        self.load_failures.extend(failures);
    }

    pub fn open_blobs(&self) -> impl Iterator<Item = (u64, &Blob)> {
        let open = self.listed.iter().filter(|(_, why)| why.is_none());
        open.filter_map(|(id, _)| self.blobs.get(id).map(|blob| (*id, blob)))
    }
}

/// 37 bytes: UUID text and NUL.
pub fn valid_uuid(value: &[u8]) -> bool {
    value.split_last().is_some_and(|(nul, text)| *nul == 0 && is_uuid_text(text))
}

fn read_mask(image: &Image, geometry: &Geometry, area: Area) -> Result<Mask> {
    let mut bytes = vec![0; usize::try_from(u64::from(area.len) * geometry.page_size)?];
    image.read(u64::from(area.start) * geometry.page_size, &mut bytes).context("mask")?;
    Mask::parse(&bytes)
}

fn read_pages(image: &Image, sb: &Super, geometry: &Geometry) -> Result<(BTreeMap<u32, Page>, BTreeSet<u32>)> {
    let (mut valid, mut broken) = (BTreeMap::new(), BTreeSet::new());
    let step = PIECE_BYTES / geometry.page_size;
    let mut first = 0;
    while first < sb.md.len {
        let count = step.min(u64::from(sb.md.len - first));
        let offset = (u64::from(sb.md.start) + u64::from(first)) * geometry.page_size;
        let len = count * geometry.page_size;
        if !image.is_hole(offset, len) {
            let mut piece = vec![0; usize::try_from(len)?];
            image.read(offset, &mut piece).context("metadata pages")?;
            for (index, bytes) in (first..).zip(piece.chunks_exact(usize::try_from(geometry.page_size)?)) {
                match Page::parse(bytes) {
                    Some(page) => _ = valid.insert(index, page),
                    None if bytes.get(..PAGE_BYTES) == Some(&[0; PAGE_BYTES]) => (),
                    None => _ = broken.insert(index),
                }
            }
        }
        first += u32::try_from(count)?;
    }
    Ok((valid, broken))
}
