//! The judge: every rule that a store at rest must keep so that SPDK opens it, clean and by recovery. Strict: it counts
//! from the metadata pages and compares the masks with that, whatever the loading believed.

use super::Reader;
use super::blob::{
    Blob, EXTENT_TABLE, EXTERNAL_SNAPSHOT, INTERNAL_XATTR, KNOWN_DATA_RO, KNOWN_MD_RO, Parent, READ_ONLY,
    looks_like_extent_page, text_of,
};
use super::bytes::{MASK_BLOB_IDS, MASK_CLUSTERS, MASK_PAGES, Mask};
use super::dump::runs;
use super::load::valid_uuid;
use std::collections::{BTreeMap, BTreeSet};

/// The names of all rules that a check can find broken. What keeps a store from being opened at all (`super.signature`,
/// `super.crc`, …) is not among them. The negative tests break every one.
pub const RULES: &[&str] = &[
    "super.version",
    "super.length",
    "super.clean",
    "super.bstype",
    "super.size",
    "super.md-page-size",
    "super.io-unit",
    "super.geometry",
    "super-blob",
    "mask.pages",
    "mask.clusters",
    "mask.blobids",
    "page.chain",
    "page.crc",
    "page.shared",
    "desc.flags-first",
    "desc.place",
    "desc.unknown",
    "desc.length",
    "desc.overrun",
    "desc.tail",
    "desc.layout",
    "flags.private",
    "flags.unknown",
    "flags.internal-xattr",
    "flags.extent-table",
    "xattr.duplicate",
    "marker.left",
    "table.num-clusters",
    "table.num-pages",
    "ep.invalid",
    "ep.tail",
    "ep.next",
    "ep.like-root",
    "ep.start",
    "ep.length",
    "ep.count",
    "ep.page0",
    "map.range",
    "map.metadata",
    "map.thick-hole",
    "map.shared",
    "map.sum",
    "parent.snap",
    "parent.esnap",
    "parent.thin",
    "parent.missing",
    "parent.not-read-only",
    "parent.cycle",
    "blob.unopenable",
    "name.missing",
    "name.invalid",
    "name.duplicate",
    "uuid.invalid",
    "uuid.duplicate",
];

/// Longest name with its NUL.
const NAME_BYTES_MAX: usize = 64;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Broken rules, each as `rule: what`.
    pub errors: Vec<String>,
    /// Things that SPDK tolerates and a reader should know.
    pub notes: Vec<String>,
}

impl Verdict {
    fn error(&mut self, rule: &str, text: impl AsRef<str>) {
        debug_assert!(RULES.contains(&rule), "{rule} is not among the rules");
        self.errors.push(format!("{rule}: {}", text.as_ref()));
    }

    fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    fn require(&mut self, holds: bool, rule: &str, text: impl FnOnce() -> String) {
        if !holds {
            self.error(rule, text());
        }
    }
}

impl Reader {
    /// Broken rules only; empty means SPDK-safe.
    pub fn check_spdk_safe(&self) -> Vec<String> {
        self.check().errors
    }

    pub fn check(&self) -> Verdict {
        let mut verdict = Verdict::default();
        self.check_super(&mut verdict);
        self.check_super_blob(&mut verdict);
        for blob in self.store.blobs.values() {
            self.check_blob(blob, &mut verdict);
        }
        self.check_names(&mut verdict);
        let pages = self.check_pages(&mut verdict);
        let clusters = self.check_clusters(&mut verdict);
        self.check_masks(&pages, &clusters, &mut verdict);
        verdict
    }

    fn check_super(&self, verdict: &mut Verdict) {
        let sb = &self.store.sb;
        verdict.require(sb.version == 3, "super.version", || format!("is {}", sb.version));
        verdict.require(sb.length == 4096, "super.length", || format!("is {}", sb.length));
        verdict.require(sb.clean == 1, "super.clean", || format!("is {}", sb.clean));
        verdict.require(sb.bstype == *b"LVOLSTORE\0\0\0\0\0\0\0", "super.bstype", || sb.bstype_text());
        verdict.require(sb.size != 0, "super.size", || "is not set".into());
        verdict.require(sb.md_page_size != 0, "super.md-page-size", || "is not set".into());
        verdict.require(sb.blob_id_mask.len != 0, "super.geometry", || "no blob id mask".into());
        match self.options.base_block_size {
            Some(size) => verdict.require(sb.io_unit_size == size, "super.io-unit", || {
                format!("is {}, the device's block is {size}", sb.io_unit_size)
            }),
            None => verdict.require(sb.io_unit_size != 0, "super.io-unit", || "is not set".into()),
        }
        if !sb.reserved_zero {
            verdict.note("super: the reserved area is not zero");
        }
        if self.image.len > self.store.geometry.size {
            verdict.note(format!("super: the device has {} bytes more", self.image.len - self.store.geometry.size));
        }
    }

    fn check_super_blob(&self, verdict: &mut Verdict) {
        let id = self.store.sb.super_blob;
        let Some(blob) = self.store.blobs.get(&id) else {
            verdict.error("super-blob", format!("{id:#x} does not exist"));
            return;
        };
        let uuid = blob.xattr(false, "uuid");
        verdict.require(uuid.is_some_and(valid_uuid), "super-blob", || format!("uuid is {uuid:?}"));
        let name = blob.xattr(false, "name");
        verdict.require(name.is_some_and(good_name), "super-blob", || format!("name is {name:?}"));
        verdict.require(blob.num_clusters == 0, "super-blob", || format!("has {} clusters", blob.num_clusters));
    }

    fn check_blob(&self, blob: &Blob, verdict: &mut Verdict) {
        let at = |text: &str| format!("blob {:#x}: {text}", blob.id);
        for fault in &blob.faults {
            verdict.error(fault.rule, at(&fault.text));
        }
        match self.store.listed.get(&blob.id) {
            // Its own fault is said above; what it inherits from an ancestor is not.
            Some(Some(why)) if blob.open_fault().is_none() => verdict.error("blob.unopenable", at(why)),
            _ => (),
        }
        if blob.chain.is_empty() {
            return;
        }
        self.check_parent(blob, verdict);
        let flags = blob.flags;
        verdict.require(
            flags.data_ro & !KNOWN_DATA_RO == 0 && flags.md_ro & !KNOWN_MD_RO == 0,
            "flags.unknown",
            || at(&format!("{:#x}/{:#x} make it read-only in SPDK", flags.data_ro, flags.md_ro)),
        );
        let internal = blob.xattrs.iter().any(|x| x.internal);
        verdict.require(internal == (flags.invalid & INTERNAL_XATTR != 0), "flags.internal-xattr", || {
            at(&format!("flag {:#x}, internal xattrs: {internal}", flags.invalid))
        });
        let table = blob.table_clusters.is_some();
        verdict.require(table == (flags.invalid & EXTENT_TABLE != 0), "flags.extent-table", || {
            at(&format!("flag {:#x}, extent table: {table}", flags.invalid))
        });
        let mut names = BTreeSet::new();
        for xattr in &blob.xattrs {
            let name = xattr.name.escape_ascii();
            verdict.require(names.insert((xattr.internal, &xattr.name)), "xattr.duplicate", || at(&format!("{name}")));
            if xattr.internal && matches!(xattr.name.as_slice(), b"SNAPTMP" | b"SNAPRM") {
                verdict.error("marker.left", at(&format!("{name}")));
            }
        }
        if blob.chain.iter().filter_map(|index| self.store.pages.get(index)).any(|page| page.reserved != 0) {
            verdict.note(at("a page's reserved word is not zero"));
        }
    }

    fn check_parent(&self, blob: &Blob, verdict: &mut Verdict) {
        let at = |text: &str| format!("blob {:#x}: {text}", blob.id);
        let (snap, external) = (blob.xattr(true, "SNAP"), blob.xattr(true, "EXTSNAP"));
        verdict.require(snap.is_none_or(|v| v.len() == 8), "parent.snap", || at(&format!("SNAP is {snap:?}")));
        let flag = blob.flags.invalid & EXTERNAL_SNAPSHOT != 0;
        verdict.require(flag == external.is_some(), "parent.esnap", || {
            at(&format!("flag {flag}, EXTSNAP {}", external.is_some()))
        });
        verdict.require(external.is_none_or(valid_uuid), "parent.esnap", || at("EXTSNAP is no UUID of 37 bytes"));
        verdict.require(blob.thin() || (snap.is_none() && !flag), "parent.thin", || at("a clone that is not thin"));
        if snap.is_some() && flag {
            verdict.note(at("a stale SNAP beside EXTSNAP"));
        }
        let Parent::Snapshot(parent_id) = blob.parent() else { return };
        match self.store.blobs.get(&parent_id) {
            None => verdict.error("parent.missing", at(&format!("{parent_id:#x}"))),
            Some(_) if parent_id == self.store.sb.super_blob => {
                verdict.error("parent.missing", at("is the super blob"))
            }
            Some(parent) => verdict.require(parent.flags.data_ro & READ_ONLY != 0, "parent.not-read-only", || {
                at(&format!("{parent_id:#x} is writable"))
            }),
        }
        let mut ancestor = parent_id;
        for _ in 0..self.store.blobs.len() {
            match self.store.blobs.get(&ancestor).map(Blob::parent) {
                Some(Parent::Snapshot(next)) => ancestor = next,
                _ => return,
            }
        }
        verdict.error("parent.cycle", at("its ancestors go in a circle"));
    }

    fn check_names(&self, verdict: &mut Verdict) {
        let (mut names, mut uuids) = (BTreeMap::new(), BTreeMap::new());
        let lvols = self.store.blobs.values().filter(|b| b.id != self.store.sb.super_blob && !b.chain.is_empty());
        for blob in lvols {
            let at = |text: String| format!("blob {:#x}: {text}", blob.id);
            match blob.xattr(false, "name") {
                None => verdict.error("name.missing", at("no name".into())),
                Some(name) if !good_name(name) => verdict.error("name.invalid", at(name.escape_ascii().to_string())),
                Some(name) => {
                    if let Some(other) = names.insert(text_of(name), blob.id) {
                        verdict.error("name.duplicate", at(format!("{:?} is also {other:#x}", text_of(name))));
                    }
                }
            }
            match blob.xattr(false, "uuid") {
                Some(uuid) if valid_uuid(uuid) => {
                    if let Some(other) = uuids.insert(uuid.to_vec(), blob.id) {
                        verdict.error("uuid.duplicate", at(format!("{} is also {other:#x}", text_of(uuid))));
                    }
                }
                uuid => verdict.error("uuid.invalid", at(format!("{uuid:?}"))),
            }
        }
    }

    /// Pages that roots reach. No page may serve twice.
    fn check_pages(&self, verdict: &mut Verdict) -> BTreeSet<u32> {
        let mut used: BTreeMap<u32, String> = BTreeMap::new();
        for blob in self.store.blobs.values() {
            let chain = blob.chain.iter().map(|index| (*index, "chain"));
            let extent_pages = blob.extent_pages.iter().map(|ep| (ep.page, "extent page"));
            for (index, role) in chain.chain(extent_pages) {
                let role = format!("{role} of {:#x}", blob.id);
                if let Some(other) = used.insert(index, role.clone()) {
                    verdict.error("page.shared", format!("page {index} is {other} and {role}"));
                }
            }
        }
        if self.store.pages.get(&0).is_some_and(looks_like_extent_page) {
            verdict.error("ep.page0", "page 0 is an extent page");
        }
        let stale = self.store.pages.keys().filter(|index| !used.contains_key(*index)).copied();
        let (stale, broken) = (runs(stale), runs(self.store.broken_pages.iter().copied()));
        verdict.note(format!("pages valid but unreachable: {stale}; with a wrong CRC: {broken}"));
        used.into_keys().collect()
    }

    /// Clusters that the metadata takes or a blob maps. No cluster may serve twice.
    fn check_clusters(&self, verdict: &mut Verdict) -> BTreeSet<u32> {
        let geometry = &self.store.geometry;
        let mut owners: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
        for blob in self.store.blobs.values() {
            for (at, cluster) in &blob.map {
                owners.entry(*cluster).or_default().push((blob.id, *at));
            }
        }
        for (cluster, places) in owners.iter().filter(|(_, places)| places.len() > 1) {
            let places: Vec<_> = places.iter().take(8).map(|(id, at)| format!("{id:#x}'s {at}")).collect();
            verdict.error("map.shared", format!("{cluster} is {}", places.join(", ")));
        }
        let entries: u64 = self.store.blobs.values().map(|blob| blob.entries).sum();
        let room = geometry.total_clusters - geometry.md_clusters;
        verdict.require(entries <= u64::from(room), "map.sum", || format!("{entries} entries for {room} clusters"));
        owners.into_keys().filter(|cluster| *cluster < geometry.total_clusters).chain(0..geometry.md_clusters).collect()
    }

    /// A dirty store's masks mean nothing, and that it is dirty is said elsewhere.
    fn check_masks(&self, pages: &BTreeSet<u32>, clusters: &BTreeSet<u32>, verdict: &mut Verdict) {
        if self.store.recovered {
            return;
        }
        let masks = &self.store.masks;
        let (md_len, total) = (self.store.sb.md.len, self.store.geometry.total_clusters);
        let roots: BTreeSet<u32> = self.store.roots().collect();
        let leaks = self.options.allow_leaks;
        check_mask("mask.pages", &masks.pages, MASK_PAGES, md_len, pages, leaks, verdict);
        check_mask("mask.clusters", &masks.clusters, MASK_CLUSTERS, total, clusters, leaks, verdict);
        if let Some(mask) = &masks.blob_ids {
            check_mask("mask.blobids", mask, MASK_BLOB_IDS, md_len, &roots, false, verdict);
        }
        for blob in self.store.blobs.keys().filter(|id| !self.store.listed.contains_key(id)) {
            verdict.note(format!("blob {blob:#x} has a valid root and is not in the blob id mask"));
        }
    }
}

fn check_mask(
    rule: &str,
    mask: &Mask,
    kind: u8,
    bits: u32,
    implied: &BTreeSet<u32>,
    allow_leaks: bool,
    verdict: &mut Verdict,
) {
    verdict.require(mask.kind == kind, rule, || format!("type {} instead of {kind}", mask.kind));
    verdict.require(mask.bits == bits, rule, || format!("{} bits instead of {bits}", mask.bits));
    verdict.require(mask.tail_zero, rule, || "bits set behind its end".into());
    let missing = runs(implied.difference(&mask.set).copied());
    verdict.require(missing == "none", rule, || format!("used but not marked: {missing}"));
    let leaked = runs(mask.set.difference(implied).copied());
    match (leaked == "none", allow_leaks) {
        (true, _) => (),
        (false, true) => verdict.note(format!("{rule}: marked but unused: {leaked}")),
        (false, false) => verdict.error(rule, format!("marked but unused: {leaked}")),
    }
}

/// 1..=63 visible bytes and a NUL within the first 64.
fn good_name(value: &[u8]) -> bool {
    let visible = value.iter().take_while(|b| **b != 0).count();
    value.len() <= NAME_BYTES_MAX && visible >= 1 && visible < value.len()
}
