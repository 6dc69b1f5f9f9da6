//! Opening a store: which super block, which journal, what the metadata says.
//!
//! Nothing is written here. What a load decides (half-done SPDK operations, records of the journal that are not home) is
//! kept in memory and becomes durable with the first change (`activate`).

use super::Lvstore;
use super::activate::Start;
use super::alloc::{Clusters, Pages};
use super::core::{ATTR_HIDDEN, ATTR_THICK, Core, Lid, Record, tables_max};
use super::scan::{self, ChainPages, Overlay};
use super::system::{FoundCopy, SystemArea, find_super_copies};
use crate::api::{Finding, StoreLabel};
use crate::device::{Device, recognise};
use crate::error::{ErrorKind, Result, err};
use crate::external::Access;
use crate::format::blob::{Parent, parse_xattrs_of_root};
use crate::format::page::{blob_id, root_of};
use crate::format::{
    BLOBID_NONE, BSTYPE_COPPICE, BSTYPE_LVOLSTORE, Bits, EXTENTS_PER_PAGE, Extents, Flags, Geometry, MaskKind,
    PAGE_SIZE, PrivateState, SuperBlock, ZERO_MARK, mask, parse_page, xattr,
};
use crate::lvol::Lvol;
use crate::shard::{Port, Shard};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

pub struct Loaded {
    pub core: Core,
    pub start: Start,
    /// Metadata pages and clusters that readable metadata owns; more may be in use when some of it is not readable.
    pub owned: (Bits, Bits),
    /// Some metadata is not readable.
    pub extents_hidden: bool,
}

/// The super block in force.
pub struct Super {
    pub block: SuperBlock,
    /// Page 0 was unreadable; this is its copy.
    pub from_copy: bool,
}

pub async fn read_super(port: &Port, device: &Device) -> Result<Super> {
    if device.size() < PAGE_SIZE as u64 {
        return Err(err!(NotAStore, "{}: {} bytes are no lvstore", device.path().display(), device.size()));
    }
    if device.block_size() > PAGE_SIZE as u32 {
        return Err(err!(
            Unsupported,
            "{}: the device has blocks of {} bytes; at most {PAGE_SIZE} are possible",
            device.path().display(),
            device.block_size()
        ));
    }
    let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
    let read = port.read(0, buf.clone()).done("cannot read the super block").await;
    let parsed = read.and_then(|()| buf.with(SuperBlock::parse).map_err(Into::into));
    let problem = match parsed {
        Ok(block) => return Ok(Super { block, from_copy: false }),
        Err(e) => e,
    };
    // The copy is for a page that is torn, scribbled on or unreadable. An intact one of another version means what it says,
    // and so does the signature of something else (looking for the copy reads the whole device).
    let (intact, other) = buf.with(|page| {
        let ours = page.starts_with(b"SPDKBLOB");
        (ours && parse_page(page).is_ok(), if ours { None } else { recognise(page) })
    });
    if problem.kind() == ErrorKind::NotAStore {
        if let Some(what) = other {
            return Err(err!(NotAStore, "{}: it holds {what}, not a lvstore", device.path().display()));
        }
        if intact {
            return Err(problem.context(device.path().display()));
        }
    }
    // A device that was used before may have copies of older stores as well.
    let copies = find_super_copies(port, device.size()).await?;
    for copy in &copies {
        if is_of_this_store(port, device, copy).await {
            return Ok(Super { block: copy.image.clone(), from_copy: true });
        }
    }
    let creating = |copy: &&FoundCopy| matches!(copy.image.private(), Ok(Some(p)) if p.state == PrivateState::Creating);
    match copies.iter().find(creating) {
        Some(copy) => Ok(Super { block: copy.image.clone(), from_copy: true }),
        None => Err(problem.context(device.path().display())),
    }
}

/// The super blob that the copy leads to is that of the copy's own store.
async fn is_of_this_store(port: &Port, device: &Device, copy: &FoundCopy) -> bool {
    let Ok(geo) = Geometry::new(&copy.image, device.size()) else { return false };
    let Some(root) = root_of(copy.image.super_blob).filter(|r| *r < geo.md_len) else { return false };
    let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
    let read = port.read(geo.page_offset(root), buf.clone()).done("cannot read the super blob").await;
    let uuid = read.is_ok().then(|| buf.with(parse_xattrs_of_root)).flatten().and_then(|meta| meta.uuid());
    uuid == Some(copy.store_uuid)
}

pub fn is_ours(block: &SuperBlock) -> bool {
    block.bstype == BSTYPE_COPPICE
}

struct Loader<'a> {
    port: &'a Port,
    geo: Geometry,
    overlay: Overlay,
    pages: ChainPages,
    findings: Vec<Finding>,
    used_pages: Bits,
    used_clusters: Bits,
    /// Metadata page of an extent → (lvol, position).
    eps: BTreeMap<u32, (u32, u32)>,
    records: BTreeMap<Lid, Record>,
    by_root: BTreeMap<u32, Lid>,
    start: Start,
    /// Some extents could not be read: what they own is unknown.
    extents_hidden: bool,
    /// Not even an extent page that is left names those clusters.
    clusters_unknown: bool,
    /// Entries that the extent tables still to be read may have together.
    tables_left: u64,
}

/// The super block in force of a device that holds a lvstore, and its geometry.
async fn super_of_lvstore(port: &Port, device: &Device) -> Result<(Super, Geometry)> {
    let shown = device.path().display();
    let found = read_super(port, device).await?;
    let block = &found.block;
    if !is_ours(block) && block.bstype != BSTYPE_LVOLSTORE {
        let kind = String::from_utf8_lossy(&block.bstype).trim_end_matches('\0').to_string();
        return Err(err!(NotAStore, "{shown}: a blobstore of type \"{kind}\", not a lvstore"));
    }
    if block.private()?.is_some_and(|p| p.state == PrivateState::Creating) {
        return Err(err!(NotAStore, "{shown}: its creation was interrupted; run `coppice lvstore create` again"));
    }
    let geo = Geometry::new(block, device.size()).map_err(|e| crate::Error::from(e).context(shown))?;
    Ok((found, geo))
}

impl Lvstore {
    /// What store it is: reads the super block and the store's own blob.
    pub async fn label(shard: &Shard, device: &Device) -> Result<StoreLabel> {
        let port = device.port(shard);
        let (Super { block, .. }, geo) = super_of_lvstore(&port, device).await?;
        let shown = device.path().display();
        let root = root_of(block.super_blob).filter(|root| *root < geo.md_len);
        let root = root.ok_or_else(|| err!(NotAStore, "{shown}: a blobstore without a lvstore in it"))?;
        let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        port.read(geo.page_offset(root), buf.clone()).done("cannot read the super blob").await?;
        let meta = buf.with(parse_xattrs_of_root);
        let named = meta.and_then(|meta| Some((meta.uuid()?, String::from_utf8_lossy(meta.name()?).into_owned())));
        let (uuid, name) = named.ok_or_else(|| err!(Corrupt, "{shown}: the super blob names no store"))?;
        Ok(StoreLabel { uuid, name, owner: block.owner()? })
    }
}

pub async fn load(port: &Port, device: &Device, read_only: bool, access: Access) -> Result<Loaded> {
    let shown = device.path().display().to_string();
    let (Super { block, from_copy }, geo) = super_of_lvstore(port, device).await?;
    let ours = is_ours(&block);
    let private = block.private()?;
    if !geo.io_unit.is_multiple_of(device.block_size()) {
        return Err(err!(
            Unsupported,
            "{shown}: the store has blocks of {} bytes, the device of {}; attach it with smaller blocks",
            geo.io_unit,
            device.block_size()
        ));
    }
    let mut overlay = Overlay::new();
    let mut area = None;
    let mut roots = None;
    let mut limit = geo.md_len;
    let mut masks_found = None;
    let mut findings = Vec::new();
    match private.as_ref().filter(|p| ours && p.state == PrivateState::InUse) {
        Some(p) => {
            let runs: Vec<_> = p.extents.iter().map(|e| (e.start_cluster, e.clusters)).collect();
            if runs
                .iter()
                .any(|(s, n)| *s < geo.md_clusters || u64::from(*s) + u64::from(*n) > geo.total_clusters.into())
            {
                return Err(err!(Corrupt, "{shown}: the system area lies outside the data clusters"));
            }
            let mut journal = SystemArea::new(&runs, geo.cluster_size, Uuid::from_bytes(p.store_uuid), 0);
            let replayed = journal.replay(port, |n, image| {
                overlay.insert(n, Arc::new(image));
            });
            limit = replayed.await.map_err(|e| e.context(&shown))?;
            if let Some(n) = overlay.keys().find(|n| **n >= geo.md_len) {
                return Err(err!(Corrupt, "{shown}: the journal names metadata page {n} of {}", geo.md_len));
            }
            area = Some(journal);
        }
        None if ours => return Err(err!(Corrupt, "{shown}: marked as Coppice's, but the system area is missing")),
        // Whoever damaged page 0 may have changed the rest since its copy was made.
        None if block.is_clean() && block.used_blobid_mask_len > 0 && !from_copy => {
            let masks = read_masks(port, &geo).await;
            match masks {
                Ok((pages, clusters, ids)) => {
                    limit = pages.iter().last().map_or(0, |n| n + 1).max(ids.iter().last().map_or(0, |n| n + 1));
                    roots = Some(ids.iter().collect::<BTreeSet<u32>>());
                    masks_found = Some((pages, clusters));
                }
                Err(e) => findings.push(finding("mask", None, format!("{e}; the metadata was read in full instead"))),
            }
        }
        None => {}
    }
    limit = limit.min(geo.md_len);
    let mut pages = scan::chain_pages(port, &geo, &overlay, limit).await?;
    let mut start = Start { area, from_copy, ..Start::default() };
    if let (Some(listed), Some((used, _))) = (roots, &masks_found) {
        // The masks have no CRC. A root that one of them knows is somebody's lvol.
        let unlisted: Vec<u32> = pages.roots.difference(&listed).copied().collect();
        for root in unlisted {
            if used.get(root) {
                let message = format!("metadata page {root} holds a lvol that the mask of blob ids does not list");
                findings.push(finding("mask", None, message));
            } else {
                start.stale_roots.insert(root);
                pages.roots.remove(&root);
                pages.pages.remove(&root);
            }
        }
        // Those that cannot be read become damaged lvols.
        pages.roots.extend(listed);
    }
    let mut loader = Loader {
        port,
        overlay,
        pages,
        findings,
        used_pages: Bits::new(geo.md_len),
        used_clusters: Bits::new(geo.total_clusters),
        eps: BTreeMap::new(),
        records: BTreeMap::new(),
        by_root: BTreeMap::new(),
        start,
        extents_hidden: false,
        clusters_unknown: false,
        tables_left: tables_max(&geo),
        geo,
    };
    (0..loader.geo.md_clusters).for_each(|c| {
        loader.used_clusters.set(c);
    });
    loader.build(block, masks_found, read_only, access, &shown).await
}

async fn read_masks(port: &Port, geo: &Geometry) -> Result<(Bits, Bits, Bits)> {
    let mut masks = Vec::new();
    for (kind, region) in
        [(MaskKind::Pages, geo.page_mask), (MaskKind::Clusters, geo.cluster_mask), (MaskKind::BlobIds, geo.blobid_mask)]
    {
        let mut bytes = vec![0u8; region.len as usize];
        for (n, piece) in bytes.chunks_mut(1 << 20).enumerate() {
            let buf = port.shard.buf(piece.len()).slice(0, piece.len());
            port.read(region.offset + ((n as u64) << 20), buf.clone()).done("cannot read a mask").await?;
            buf.copy_out(0, piece);
        }
        masks.push(mask::parse(kind, &bytes)?);
    }
    let [pages, clusters, ids] = masks.try_into().map_err(|_| err!(Corrupt, "masks"))?;
    Ok((pages, clusters, ids))
}

pub fn finding(kind: &str, lvol: Option<&str>, message: impl Into<String>) -> Finding {
    Finding { kind: kind.into(), lvol: lvol.map(Into::into), message: message.into(), heals: false }
}

/// What is used and a mask calls free: SPDK would give it away.
fn not_in_mask(what: &str, used: &Bits, mask: &Bits) -> Option<Finding> {
    let lost: Vec<u32> = used.iter().filter(|n| !mask.get(*n)).collect();
    let first = lost.first()?;
    Some(finding("mask", None, format!("{} {what}s are used and free in their mask, the first is {first}", lost.len())))
}

impl Loader<'_> {
    async fn build(
        mut self,
        super_block: SuperBlock,
        masks: Option<(Bits, Bits)>,
        read_only: bool,
        access: Access,
        shown: &str,
    ) -> Result<Loaded> {
        let (name, uuid, super_chain) = self.super_blob(&super_block, shown)?;
        self.system_extents(&super_block);
        let roots: Vec<u32> = self.pages.roots.iter().copied().collect();
        for root in roots {
            if !super_chain.contains(&root) {
                self.blob(root, uuid);
            }
        }
        self.half_done_snapshots();
        self.table_pages();
        self.unreadable_pages(masks.as_ref());
        self.read_extents().await?;
        if let Some((pages, clusters)) = &masks {
            self.findings.extend(not_in_mask("metadata page", &self.used_pages, pages));
            self.findings.extend(not_in_mask("cluster", &self.used_clusters, clusters));
        }
        let owned = (self.used_pages.clone(), self.used_clusters.clone());
        if self.extents_hidden {
            self.claim_hidden(masks).await?;
        }
        let set_aside = u64::from(self.used_clusters.count_ones() - owned.1.count_ones());
        self.parents();
        let mut core = Core {
            clusters: Clusters::new(self.used_clusters),
            pages: Pages::new(self.used_pages),
            name,
            uuid,
            super_chain,
            super_block,
            by_uuid: BTreeMap::new(),
            by_name: BTreeMap::new(),
            next_lid: self.records.keys().last().map_or(1, |l| l + 1),
            // Loaded lvols have the tokens 1..=md_len, after their roots.
            next_token: u64::from(self.geo.md_len) + 1,
            records: self.records,
            overlay: self.overlay,
            open_batch: 1,
            durable_batch: 0,
            batch: Default::default(),
            record_pages: 1,
            commit_wanted: false,
            writer_wait: Default::default(),
            durable_wait: Default::default(),
            allocating: BTreeSet::new(),
            alloc_wait: Default::default(),
            reading: BTreeSet::new(),
            read_wait: Default::default(),
            space_wait: Default::default(),
            gate_wait: Default::default(),
            grace: Default::default(),
            reclaim: Default::default(),
            system_pages: self.start.system_chain.iter().chain(&self.start.system_eps).copied().collect(),
            merges: 0,
            failed: None,
            pages_reserved: 0,
            leaving: false,
            closing: false,
            read_only: read_only || self.geo.blobid_mask.len == 0,
            load_findings: self.findings,
            set_aside,
            resident_leaves: 0,
            access,
            links: BTreeMap::new(),
            hydration: Default::default(),
            given_up: BTreeMap::new(),
            parents_unknown: self.extents_hidden || !self.pages.unreadable.is_empty(),
            geo: self.geo,
        };
        core.index_names();
        let roots: Vec<Lid> = core.records.iter().filter(|(_, r)| r.parent.is_none()).map(|(lid, _)| *lid).collect();
        roots.into_iter().for_each(|lid| core.refresh_external(lid));
        Ok(Loaded { core, start: self.start, owned, extents_hidden: self.extents_hidden })
    }

    fn max_eps(&self) -> u64 {
        (1 << 32) / u64::from(EXTENTS_PER_PAGE)
    }

    fn use_page(&mut self, page: u32) -> bool {
        self.used_pages.set(page)
    }

    fn super_blob(&mut self, block: &SuperBlock, shown: &str) -> Result<(String, Uuid, Vec<u32>)> {
        let none = || err!(NotAStore, "{shown}: a blobstore without a lvstore in it (its super blob is missing)");
        if block.super_blob == BLOBID_NONE {
            return Err(none());
        }
        let root = root_of(block.super_blob).filter(|r| *r < self.geo.md_len).ok_or_else(none)?;
        if let Some(why) = self.pages.unreadable.get(&root) {
            return Err(err!(Io, "{shown}: the super blob, metadata page {root}: {why}"));
        }
        if !self.pages.roots.contains(&root) {
            return Err(none());
        }
        let chain = self.pages.chain(root, &self.geo, self.max_eps());
        let meta = chain.meta.map_err(|why| err!(Corrupt, "{shown}: super blob: {why}"))?;
        let uuid = meta.uuid().ok_or_else(|| err!(Corrupt, "{shown}: the lvstore has no valid UUID"))?;
        let name = meta.name().ok_or_else(|| err!(Corrupt, "{shown}: the lvstore has no valid name"))?;
        let name = String::from_utf8_lossy(name).into_owned();
        chain.pages.iter().for_each(|p| {
            self.use_page(*p);
        });
        Ok((name, uuid, chain.pages))
    }

    fn system_extents(&mut self, block: &SuperBlock) {
        if let Ok(Some(private)) = block.private()
            && private.state == PrivateState::InUse
        {
            for e in &private.extents {
                (e.start_cluster..e.start_cluster + e.clusters).for_each(|c| {
                    self.used_clusters.set(c);
                });
            }
        }
    }

    /// Takes in the blob with this root.
    fn blob(&mut self, root: u32, store: Uuid) {
        let chain = self.pages.chain(root, &self.geo, self.max_eps().min(self.tables_left));
        let lid = root;
        let mut damaged = None;
        let meta = match chain.meta {
            Ok(meta) => meta,
            Err(why) => {
                damaged = Some(why);
                self.extents_hidden = true;
                self.pages.root_alone(root).unwrap_or_else(|| crate::format::BlobMeta::new(blob_id(root), 0, true))
            }
        };
        for page in &chain.pages {
            if !self.use_page(*page) {
                damaged.get_or_insert(format!("metadata page {page} belongs to two chains"));
                self.extents_hidden = true;
            }
        }
        if meta.flags.is_system() {
            self.start.system_chain = chain.pages;
            self.start.system_eps = match &meta.extents {
                Extents::Table { pages, .. } => pages.iter().copied().filter(|p| *p != 0).collect(),
                Extents::Rle(_) => Vec::new(),
            };
            for page in self.start.system_eps.clone() {
                self.use_page(page);
            }
            return;
        }
        self.tables_left = self.tables_left.saturating_sub(self.geo.extent_pages_for(meta.extents.num_clusters()));
        let unknown = meta.flags.unknown_invalid();
        if unknown != 0 {
            damaged.get_or_insert(format!("it has flags that this version does not know ({unknown:#x})"));
        }
        // A missing UUID is derived from the store's: it stays the same and can collide with nothing random.
        let uuid = meta.uuid().unwrap_or_else(|| Uuid::from_u128(store.as_u128() ^ (u128::from(blob_id(root)) << 1)));
        let hot = Lvol::new(lid, uuid, meta.extents.num_clusters(), u64::from(lid) + 1);
        let read_only = meta.flags.is_read_only() || meta.flags.unknown_data_ro() != 0;
        hot.read_only.store(read_only, Ordering::Relaxed);
        let mut record = Record::new(hot, meta, chain.pages);
        let attr = |name: &str| record.meta.xattr(false, name.as_bytes()).is_some();
        record.hidden = attr(ATTR_HIDDEN);
        record.promised = record.promise();
        record.thick = attr(ATTR_THICK) || (!record.meta.flags.is_thin() && !record.is_snapshot());
        record.damaged = damaged;
        self.records.insert(lid, record);
        self.by_root.insert(root, lid);
    }

    fn damage(&mut self, lid: Lid, kind: &str, why: String) {
        if let Some(r) = self.records.get_mut(&lid) {
            self.findings.push(finding(kind, Some(&r.name()), why.clone()));
            r.damaged.get_or_insert(why);
        }
    }

    /// What SPDK left half done (format section 8.4).
    fn half_done_snapshots(&mut self) {
        let marked: Vec<(Lid, u64, bool)> = self
            .records
            .iter()
            .filter(|(_, r)| r.damaged.is_none())
            .filter_map(|(lid, r)| {
                let removed = r.meta.snapshot_being_removed().ok().flatten().map(|id| (*lid, id, true));
                removed.or_else(|| r.meta.snapshot_being_created().ok().flatten().map(|id| (*lid, id, false)))
            })
            .collect();
        for (lid, other, removing) in marked {
            let other_lid = root_of(other).and_then(|r| self.by_root.get(&r)).copied();
            // One that does not open decides nothing: both stay as they are.
            let other = other_lid.and_then(|l| self.records.get(&l));
            let Some(o) = other.filter(|o| o.damaged.is_none()) else { continue };
            let me = self.records.get(&lid).map_or(0, |r| blob_id(r.root()));
            if matches!(o.meta.parent(), Ok(Parent::Snapshot(p)) if p == me) {
                if removing {
                    self.start.removing.insert(lid, other_lid.unwrap_or(0));
                }
                self.start.finish_snapshots.insert(lid);
                if let Some(r) = self.records.get_mut(&lid) {
                    r.meta.remove_xattr(true, xattr::SNAPTMP);
                    r.meta.remove_xattr(true, xattr::SNAPRM);
                    r.meta.flags.data_ro |= Flags::READ_ONLY;
                    r.hot.read_only.store(true, Ordering::Relaxed);
                    r.thick = false;
                }
            } else if let Some(r) = self.records.remove(&lid) {
                // Emptied: everything it maps belongs to the other one, or to nobody.
                self.by_root.remove(&r.root());
                self.start.stale_roots.insert(r.root());
                for page in r.chain {
                    self.used_pages.clear(page);
                }
            }
        }
    }

    /// Takes in the pages of all extent tables.
    fn table_pages(&mut self) {
        let tables: Vec<(Lid, Vec<(u32, u32)>)> = self
            .records
            .iter()
            .map(|(lid, r)| {
                let assigned = r.eps().iter().enumerate().filter(|(_, p)| **p != 0);
                (*lid, assigned.map(|(n, p)| (n as u32, *p)).collect())
            })
            .collect();
        for (lid, table) in tables {
            for (ep, page) in table {
                if page >= self.geo.md_len {
                    self.damage(lid, "page-range", format!("its extent table names page {page}, which does not exist"));
                    self.extents_hidden = true;
                } else if !self.use_page(page) {
                    self.damage(lid, "page-used-twice", format!("extent page {page} is also used by something else"));
                    self.extents_hidden = true;
                    if let Some(&(other, _)) = self.eps.get(&page) {
                        self.damage(
                            other,
                            "page-used-twice",
                            format!("extent page {page} is also used by another lvol"),
                        );
                    }
                } else {
                    self.eps.insert(page, (lid, ep));
                }
            }
        }
    }

    /// Pages that the device does not read and that nobody is known to own: each may be the root of a lvol, which is then
    /// missing from the list, but loses nothing.
    fn unreadable_pages(&mut self, masks: Option<&(Bits, Bits)>) {
        let unknown: Vec<u32> = self.pages.unreadable.keys().copied().filter(|p| !self.used_pages.get(*p)).collect();
        for page in unknown {
            if masks.is_some_and(|(used, _)| !used.get(page)) {
                continue;
            }
            self.used_pages.set(page);
            let why = self.pages.unreadable.get(&page).cloned().unwrap_or_default();
            let message =
                format!("metadata page {page}: {why}; a lvol that begins there is not listed until it can be read");
            self.findings.push(finding("unreadable-page", None, message));
            // One is a lvol's root whose extent pages can be read, or the other way round; two may be both.
            self.clusters_unknown |= self.extents_hidden;
            self.extents_hidden = true;
        }
    }

    async fn read_extents(&mut self) -> Result<()> {
        let mut problems: Vec<(Lid, &'static str, String)> = Vec::new();
        let (records, fix) = (&mut self.records, &mut self.start.rewrite_eps);
        let (used, geo) = (&mut self.used_clusters, &self.geo);
        let mut twice: BTreeSet<u32> = BTreeSet::new();
        scan::extent_pages(self.port, geo, &self.overlay, &self.eps, |lid, ep, entries| {
            let Some(r) = records.get_mut(&lid) else { return };
            let entries = match entries {
                Ok(entries) => entries,
                Err(why) => {
                    problems.push((lid, "extent-page", why));
                    return;
                }
            };
            let inside = r.ep_len(ep);
            if entries.len() != inside {
                fix.insert((lid, ep));
            }
            for (n, value) in entries.iter().take(inside).enumerate() {
                match *value {
                    0 => {
                        if !r.meta.flags.is_thin() {
                            problems.push((
                                lid,
                                "thick-hole",
                                format!("cluster {n} of extent {ep} is not allocated, and the lvol is not thin"),
                            ));
                        }
                    }
                    ZERO_MARK if r.meta.flags.has_zero_marks() => r.zero_marks += 1,
                    cluster if geo.is_data_cluster(cluster) => {
                        r.own += 1;
                        if !used.set(cluster) {
                            twice.insert(cluster);
                        }
                    }
                    cluster => problems.push((
                        lid,
                        "cluster-range",
                        format!("extent {ep} names cluster {cluster}, which cannot be"),
                    )),
                }
            }
        })
        .await?;
        // Old stores: extents as runs in the chain itself.
        for (lid, r) in records.iter_mut() {
            let Extents::Rle(runs) = &r.meta.extents else { continue };
            let mut own = 0;
            for (start, len) in runs.iter().filter(|(start, _)| *start != 0) {
                for cluster in *start..start.saturating_add(*len) {
                    if !geo.is_data_cluster(cluster) {
                        problems.push((
                            *lid,
                            "cluster-range",
                            format!("a run names cluster {cluster}, which cannot be"),
                        ));
                        break;
                    }
                    own += 1;
                    if !used.set(cluster) {
                        twice.insert(cluster);
                    }
                }
            }
            r.own = own;
        }
        if !twice.is_empty() {
            self.owned_twice(&twice, &mut problems).await?;
        }
        for (lid, kind, why) in problems {
            if kind == "thick-hole" {
                let name = self.records.get(&lid).map(Record::name).unwrap_or_default();
                self.findings.push(finding(kind, Some(&name), why));
            } else {
                // Whatever stood there before is lost.
                self.extents_hidden = true;
                self.clusters_unknown = true;
                self.damage(lid, kind, why);
            }
        }
        Ok(())
    }

    /// Names every owner of clusters that have several. A half-done SPDK merge shares clusters with its clone: it is
    /// finished instead.
    async fn owned_twice(
        &mut self,
        twice: &BTreeSet<u32>,
        problems: &mut Vec<(Lid, &'static str, String)>,
    ) -> Result<()> {
        let mut owners: BTreeMap<u32, BTreeSet<Lid>> = BTreeMap::new();
        scan::extent_pages(self.port, &self.geo, &self.overlay, &self.eps, |lid, _, entries| {
            for cluster in entries.unwrap_or_default().iter().filter(|c| twice.contains(c)) {
                owners.entry(*cluster).or_default().insert(lid);
            }
        })
        .await?;
        for (lid, r) in &self.records {
            if let Extents::Rle(runs) = &r.meta.extents {
                for cluster in twice.iter().filter(|c| runs.iter().any(|(s, n)| *s != 0 && (*s..s + n).contains(c))) {
                    owners.entry(*cluster).or_default().insert(*lid);
                }
            }
        }
        for (cluster, lids) in owners {
            let merging =
                self.start.removing.iter().find(|(s, c)| lids.contains(s) && lids.contains(c) && lids.len() == 2);
            if let Some(snapshot) = merging.map(|(s, _)| *s) {
                self.start.roll_forward.insert(snapshot);
                // It counts as the clone's.
                if let Some(r) = self.records.get_mut(&snapshot) {
                    r.own = r.own.saturating_sub(1);
                }
                continue;
            }
            for lid in &lids {
                problems.push((*lid, "cluster-owned-twice", format!("cluster {cluster} is owned twice")));
            }
        }
        Ok(())
    }

    /// Some lvol's extents are unreadable: nothing that might be theirs may be given away. The masks of a clean store say
    /// what is in use. Without them it is every page that holds something, and the clusters that were in use at the last
    /// clean close or that an extent page names to which nobody refers, or whose owner is damaged; all clusters if it is
    /// an extent page that is lost, since nothing else says which ones it named.
    async fn claim_hidden(&mut self, masks: Option<(Bits, Bits)>) -> Result<()> {
        let clean = masks.is_some();
        let masks = match masks {
            None => read_masks(self.port, &self.geo).await.ok().map(|(pages, clusters, _)| (pages, clusters)),
            masks => masks,
        };
        if let Some((pages, clusters)) = masks {
            pages.iter().for_each(|p| {
                self.used_pages.set(p);
            });
            clusters.iter().for_each(|c| {
                self.used_clusters.set(c);
            });
        }
        if clean {
            return Ok(());
        }
        // Old stores may have had the clusters of what is damaged in its chain.
        let runs = self.records.values().any(|r| matches!(r.meta.extents, Extents::Rle(_)));
        if self.clusters_unknown || runs {
            (0..self.geo.total_clusters).for_each(|c| {
                self.used_clusters.set(c);
            });
        }
        let damaged = |lid: &Lid| self.records.get(lid).is_none_or(|r| r.damaged.is_some());
        let mut used_by_intact = self.used_pages.clone();
        self.eps.iter().filter(|(_, (lid, _))| damaged(lid)).for_each(|(page, _)| {
            used_by_intact.clear(*page);
        });
        let wanted: Vec<u32> = (0..self.geo.md_len).filter(|p| !used_by_intact.get(*p)).collect();
        let (used, used_pages, geo) = (&mut self.used_clusters, &mut self.used_pages, &self.geo);
        scan::read_pages(self.port, geo, &self.overlay, &wanted, |page, bytes| {
            let Ok(bytes) = bytes else {
                used_pages.set(page);
                return;
            };
            if bytes.iter().any(|byte| *byte != 0) {
                used_pages.set(page);
            }
            for cluster in crate::format::extent_page::clusters_named(bytes).filter(|c| geo.is_data_cluster(*c)) {
                used.set(cluster);
            }
        })
        .await
    }

    fn parents(&mut self) {
        let lids: Vec<Lid> = self.records.keys().copied().collect();
        for lid in &lids {
            let Some(r) = self.records.get(lid) else { continue };
            let parent = match r.meta.parent() {
                Ok(Parent::Snapshot(id)) => match root_of(id).and_then(|root| self.by_root.get(&root)) {
                    Some(p) if p != lid => Some(*p),
                    _ => {
                        self.damage(*lid, "parent-missing", format!("its parent (blob {id:#x}) does not exist"));
                        continue;
                    }
                },
                Ok(_) => None,
                Err(e) => {
                    self.damage(*lid, "parent-unreadable", e.to_string());
                    continue;
                }
            };
            let Some(p) = parent else { continue };
            if let Some(snapshot) = self.records.get_mut(&p) {
                snapshot.children.insert(*lid);
                if !snapshot.is_snapshot() {
                    let why = format!("its parent {} is writable", snapshot.name());
                    self.damage(*lid, "parent-writable", why);
                }
            }
            if let Some(r) = self.records.get_mut(lid) {
                r.parent = parent;
            }
        }
        for lid in &lids {
            let (mut at, mut steps) = (*lid, 0);
            let mut bad: Option<(&str, String)> = None;
            while let Some(r) = self.records.get(&at) {
                if at != *lid && r.damaged.is_some() {
                    bad = Some(("parent-damaged", format!("its ancestor {} is damaged", r.name())));
                    break;
                }
                steps += 1;
                if steps > lids.len() {
                    bad = Some(("parent-cycle", "it is its own ancestor".into()));
                    break;
                }
                match r.parent {
                    Some(p) => at = p,
                    None => break,
                }
            }
            if let Some((kind, why)) = bad {
                self.damage(*lid, kind, why);
            }
        }
    }
}

impl Core {
    /// Fills the indexes of names and UUIDs; makes doubles and missing names distinct.
    fn index_names(&mut self) {
        for (lid, r) in &mut self.records {
            let mut name = r.name();
            if name.is_empty() || self.by_name.contains_key(&name) {
                let made_up = format!("{}blob-{:x}", if name.is_empty() { "" } else { "duplicate-" }, r.root());
                if r.damaged.is_none() {
                    let message = format!("the name \"{name}\" is missing or taken; shown as {made_up}");
                    self.load_findings.push(finding("name", Some(&made_up), message));
                }
                name = made_up;
                // Kept in memory; written with the next change of the lvol.
                let _ = r.meta.set_name(name.as_bytes());
            }
            self.by_name.insert(name, *lid);
            if r.meta.uuid().is_none() {
                let uuid = r.hot.uuid;
                r.meta.set_uuid(&uuid);
            }
            if let Some(other) = self.by_uuid.get(&r.hot.uuid) {
                let message = format!("UUID {} is also that of another lvol ({other})", r.hot.uuid);
                self.load_findings.push(finding("uuid", Some(&r.name()), message.clone()));
                r.damaged.get_or_insert(message);
                continue;
            }
            self.by_uuid.insert(r.hot.uuid, *lid);
        }
        let reserved = self.records.values().map(Record::reservation).sum();
        self.clusters.reserved = reserved;
        self.recount_reserved_pages();
    }
}
