//! One blob: its chain of pages, flags, xattrs and cluster map, read leniently. Whatever is wrong is kept as a
//! [`Fault`] that says what it harms, so that loading and judging can use the same walk.

use super::bytes::{BLOB_ID_HIGH, DESC_START, Desc, EXTENTS_PER_PAGE, PAGE_NONE, Page, u16_at, u32_at, u64_at};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};

pub const THIN: u64 = 1;
pub const INTERNAL_XATTR: u64 = 2;
pub const EXTENT_TABLE: u64 = 4;
pub const EXTERNAL_SNAPSHOT: u64 = 8;
/// Incompatible flags that SPDK knows; a blob with any other does not open.
pub const KNOWN_INVALID: u64 = 0xf;
pub const READ_ONLY: u64 = 1;
pub const KNOWN_DATA_RO: u64 = 1;
pub const KNOWN_MD_RO: u64 = 3;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    pub invalid: u64,
    pub data_ro: u64,
    pub md_ro: u64,
}

#[derive(Debug, Clone)]
pub struct Xattr {
    pub internal: bool,
    pub name: Vec<u8>,
    pub value: Vec<u8>,
}

/// Where a blob's unallocated ranges are read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parent {
    None,
    Snapshot(u64),
    External(String),
}

/// What a fault does beyond breaking a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harm {
    /// SPDK does not mind.
    Rule,
    /// SPDK does not open the blob.
    Open,
    /// SPDK cannot recover the store when it is dirty (section 8.3).
    Recovery,
    Both,
}

#[derive(Debug, Clone)]
pub struct Fault {
    pub rule: &'static str,
    pub text: String,
    pub harm: Harm,
}

#[derive(Debug, Clone, Copy)]
pub struct ExtentPage {
    /// Place in the extent table.
    pub slot: u64,
    pub page: u32,
}

#[derive(Debug, Clone, Default)]
pub struct Blob {
    pub id: u64,
    /// Pages of the chain, the root first.
    pub chain: Vec<u32>,
    pub flags: Flags,
    pub xattrs: Vec<Xattr>,
    /// num_clusters as the extent table says it.
    pub table_clusters: Option<u64>,
    pub table_slots: u64,
    pub extent_pages: Vec<ExtentPage>,
    pub has_runs: bool,
    /// num_clusters as SPDK sees it after opening.
    pub num_clusters: u64,
    /// Own clusters: place in the blob to place on the device.
    pub map: BTreeMap<u64, u32>,
    /// Non-zero map entries, counted as recovery counts them.
    pub entries: u64,
    pub faults: Vec<Fault>,
}

/// Valid pages by index, and the two limits that entries must respect.
pub struct Pages<'a> {
    pub valid: &'a BTreeMap<u32, Page>,
    pub md_len: u32,
    pub total_clusters: u32,
    pub md_clusters: u32,
}

impl Blob {
    /// Walks the chain that starts at `root` and the extent pages it names.
    pub fn read(root: u32, pages: &Pages) -> Blob {
        let mut blob = Blob { id: BLOB_ID_HIGH | u64::from(root), ..Blob::default() };
        let mut table = Vec::new();
        let mut seen = BTreeSet::new();
        let mut index = root;
        while index != PAGE_NONE {
            if index >= pages.md_len {
                blob.fault("page.chain", Harm::Open, format!("next {index} is beyond the last metadata page"));
                break;
            }
            if !seen.insert(index) {
                blob.fault("page.chain", Harm::Open, format!("comes back to page {index}"));
                break;
            }
            let Some(page) = pages.valid.get(&index) else {
                blob.fault("page.crc", Harm::Open, format!("chain page {index} is not valid"));
                break;
            };
            if page.id != blob.id || page.sequence as usize != blob.chain.len() {
                let text = format!("page {index} carries id {:#x} sequence {}", page.id, page.sequence);
                blob.fault("page.chain", Harm::Open, text);
                break;
            }
            blob.chain.push(index);
            blob.chain_page(index, page, &mut table);
            index = page.next;
        }
        if blob.table_clusters.is_some() && blob.has_runs {
            blob.fault("desc.layout", Harm::Open, "has both an extent table and runs".into());
        }
        blob.extent_table(&table, pages);
        blob.map_limits(pages);
        blob
    }

    pub fn fault(&mut self, rule: &'static str, harm: Harm, text: String) {
        self.faults.push(Fault { rule, text, harm });
    }

    pub fn open_fault(&self) -> Option<&Fault> {
        self.faults.iter().find(|f| matches!(f.harm, Harm::Open | Harm::Both))
    }

    pub fn thin(&self) -> bool {
        self.flags.invalid & THIN != 0
    }

    pub fn read_only(&self) -> bool {
        self.flags.data_ro != 0
    }

    pub fn xattr(&self, internal: bool, name: &str) -> Option<&[u8]> {
        self.xattrs.iter().find(|x| x.internal == internal && x.name == name.as_bytes()).map(|x| x.value.as_slice())
    }

    /// Value of an internal xattr that holds a blob id.
    pub fn id_xattr(&self, name: &str) -> Option<u64> {
        self.xattr(true, name).and_then(|v| u64_at(v, 0).ok().filter(|_| v.len() == 8))
    }

    /// Section 6.1: the flag wins over a stale `SNAP`, and `SNAP` counts on thin blobs only.
    pub fn parent(&self) -> Parent {
        if self.flags.invalid & EXTERNAL_SNAPSHOT != 0 {
            return Parent::External(text_of(self.xattr(true, "EXTSNAP").unwrap_or_default()));
        }
        match self.id_xattr("SNAP") {
            Some(id) if self.thin() => Parent::Snapshot(id),
            _ => Parent::None,
        }
    }

    fn chain_page(&mut self, index: u32, page: &Page, table: &mut Vec<(u32, u32)>) {
        let descs = page.descriptors();
        for (place, desc) in descs.list.iter().enumerate() {
            let first = self.chain.len() == 1 && place == 0;
            if first != (desc.kind == 3) {
                let text = format!("page {index}: descriptor {place} is of type {}", desc.kind);
                self.fault("desc.flags-first", Harm::Rule, text);
            }
            let result = match desc.kind {
                0 => Ok(()),
                1 => self.runs(desc.body),
                2 | 4 => self.read_xattr(desc),
                3 => self.read_flags(desc.body),
                5 => self.table_part(desc.body, table),
                6 => {
                    self.fault("desc.place", Harm::Rule, format!("page {index}: extent page descriptor in a chain"));
                    Ok(())
                }
                other => {
                    self.fault("desc.unknown", Harm::Recovery, format!("page {index}: descriptor type {other}"));
                    Ok(())
                }
            };
            if let Err(error) = result {
                // Recovery reads extents only; a broken xattr or flags descriptor hurts just this blob.
                let harm = if matches!(desc.kind, 1 | 5) { Harm::Both } else { Harm::Open };
                self.fault("desc.length", harm, format!("page {index}: type {}: {error}", desc.kind));
            }
        }
        if descs.list.is_empty() && self.chain.len() == 1 {
            self.fault("desc.flags-first", Harm::Rule, format!("page {index}: root without flags"));
        }
        if let Some(text) = descs.overrun {
            self.fault("desc.overrun", Harm::Both, format!("page {index}: {text}"));
        } else if !descs.tail_zero {
            self.fault("desc.tail", Harm::Rule, format!("page {index}: bytes after the last descriptor"));
        }
    }

    fn read_flags(&mut self, body: &[u8]) -> Result<()> {
        anyhow::ensure!(body.len() == 24, "length {} instead of 24", body.len());
        self.flags = Flags { invalid: u64_at(body, 0)?, data_ro: u64_at(body, 8)?, md_ro: u64_at(body, 16)? };
        if self.flags.invalid & !KNOWN_INVALID != 0 {
            self.fault("flags.private", Harm::Open, format!("incompatible flags {:#x}", self.flags.invalid));
        }
        Ok(())
    }

    fn read_xattr(&mut self, desc: &Desc) -> Result<()> {
        let name_len = usize::from(u16_at(desc.body, 0)?);
        let value_len = usize::from(u16_at(desc.body, 2)?);
        anyhow::ensure!(desc.body.len() == 4 + name_len + value_len, "{} != 4+{name_len}+{value_len}", desc.body.len());
        let (name, value) = desc.body.get(4..).and_then(|b| b.split_at_checked(name_len)).unwrap_or_default();
        self.xattrs.push(Xattr { internal: desc.kind == 4, name: name.into(), value: value.into() });
        Ok(())
    }

    fn runs(&mut self, body: &[u8]) -> Result<()> {
        self.has_runs = true;
        anyhow::ensure!(!body.is_empty() && body.len().is_multiple_of(8), "length {} is not 8n", body.len());
        let mut clusters = 0;
        for run in body.chunks_exact(8) {
            let (first, count) = (u32_at(run, 0)?, u32_at(run, 4)?);
            clusters += u64::from(count);
            if first == 0 {
                self.hole(u64::from(count));
            } else if first.checked_add(count).is_none() || count > 1 << 26 {
                self.fault("map.range", Harm::Open, format!("run of {count} clusters at {first}"));
            } else {
                (first..first + count).for_each(|cluster| self.place(cluster));
            }
        }
        anyhow::ensure!(clusters > 0, "describes no cluster");
        Ok(())
    }

    fn table_part(&mut self, body: &[u8], table: &mut Vec<(u32, u32)>) -> Result<()> {
        anyhow::ensure!(body.len() >= 8 && body.len().is_multiple_of(8), "length {} is not 8+8n", body.len());
        let clusters = u64_at(body, 0)?;
        if self.table_clusters.is_some_and(|before| before != clusters) {
            self.fault("table.num-clusters", Harm::Open, format!("parts disagree, one says {clusters}"));
        }
        self.table_clusters = Some(clusters);
        for entry in body.get(8..).unwrap_or_default().chunks_exact(8) {
            table.push((u32_at(entry, 0)?, u32_at(entry, 4)?));
        }
        Ok(())
    }

    fn extent_table(&mut self, table: &[(u32, u32)], pages: &Pages) {
        let Some(clusters) = self.table_clusters else { return };
        for &(page, count) in table {
            let slot = self.table_slots;
            self.table_slots += u64::from(count);
            if page == 0 {
                let missing = clusters.saturating_sub(self.num_clusters);
                self.hole((u64::from(count) * EXTENTS_PER_PAGE).min(missing));
                continue;
            }
            if count != 1 {
                self.fault("table.num-pages", Harm::Recovery, format!("slot {slot}: page {page} stands for {count}"));
            }
            self.extent_pages.push(ExtentPage { slot, page });
            if let Err(text) = self.extent_page(slot, page, clusters, pages) {
                self.fault("ep.invalid", Harm::Both, format!("slot {slot}, page {page}: {text}"));
            }
        }
        if self.table_slots != clusters.div_ceil(EXTENTS_PER_PAGE) {
            let text = format!("{} extent pages for {clusters} clusters", self.table_slots);
            self.fault("ep.count", Harm::Rule, text);
        }
        if self.num_clusters != clusters {
            let text = format!("extent pages describe {} clusters of {clusters}", self.num_clusters);
            self.fault("ep.length", Harm::Rule, text);
        }
    }

    /// The validity test of section 5.1 gives an error; what only an open or a strict reader minds becomes a fault.
    fn extent_page(&mut self, slot: u64, index: u32, clusters: u64, pages: &Pages) -> Result<(), String> {
        let page = match pages.valid.get(&index) {
            Some(page) if index < pages.md_len => page,
            _ => return Err("is not a valid page".into()),
        };
        if page.sequence != 0 {
            return Err(format!("has sequence {}", page.sequence));
        }
        let descs = page.descriptors();
        let desc = match descs.list.first() {
            Some(desc) if desc.kind == 6 => desc,
            _ => return Err("does not begin with an extent descriptor".into()),
        };
        if !page.zero_at(desc.end + 1, 4) {
            return Err("is followed by a descriptor length".into());
        }
        if desc.body.len() <= 4 || !desc.body.len().is_multiple_of(4) {
            return Err(format!("has descriptor length {}", desc.body.len()));
        }
        let at = |text: &str| format!("slot {slot}, page {index}: {text}");
        if !page.zero_at(desc.end, 5) || !descs.tail_zero || descs.list.len() != 1 || descs.overrun.is_some() {
            self.fault("ep.tail", Harm::Rule, at("bytes after its descriptor"));
        }
        if page.next != PAGE_NONE {
            self.fault("ep.next", Harm::Open, at("has a next page"));
        }
        if page.is_root_at(index) {
            self.fault("ep.like-root", Harm::Rule, at("sits where its own id has its root"));
        }
        let start = u32_at(desc.body, 0).map_err(|e| e.to_string())?;
        if u64::from(start) != self.num_clusters {
            self.fault("ep.start", Harm::Open, at(&format!("starts at {start} instead of {}", self.num_clusters)));
        }
        let entries = desc.body.get(4..).unwrap_or_default().chunks_exact(4);
        let want = clusters.saturating_sub(slot.saturating_mul(EXTENTS_PER_PAGE)).min(EXTENTS_PER_PAGE);
        if entries.len() as u64 != want {
            self.fault("ep.length", Harm::Rule, at(&format!("{} entries instead of {want}", entries.len())));
        }
        for entry in entries {
            match u32_at(entry, 0).map_err(|e| e.to_string())? {
                0 => self.hole(1),
                cluster => self.place(cluster),
            }
        }
        Ok(())
    }

    fn hole(&mut self, count: u64) {
        if count > 0 && !self.thin() && !self.faults.iter().any(|f| f.rule == "map.thick-hole") {
            let text = format!("thick, but {count} clusters from {} are unallocated", self.num_clusters);
            self.fault("map.thick-hole", Harm::Open, text);
        }
        self.num_clusters += count;
    }

    fn place(&mut self, cluster: u32) {
        self.map.insert(self.num_clusters, cluster);
        self.num_clusters += 1;
        self.entries += 1;
    }

    fn map_limits(&mut self, pages: &Pages) {
        let bad: Vec<_> = self
            .map
            .iter()
            .filter(|(_, cluster)| !(pages.md_clusters..pages.total_clusters).contains(*cluster))
            .map(|(at, cluster)| (*at, *cluster))
            .collect();
        for (at, cluster) in bad {
            // A bit beyond the mask cannot be found set, so the blob does not open; a metadata cluster's bit is set.
            let metadata = cluster < pages.md_clusters;
            let (rule, harm) = if metadata { ("map.metadata", Harm::Rule) } else { ("map.range", Harm::Open) };
            self.fault(rule, harm, format!("cluster {at} is mapped to {cluster}"));
        }
    }
}

/// Bytes up to the first NUL as text.
pub fn text_of(value: &[u8]) -> String {
    let visible = value.split(|&b| b == 0).next().unwrap_or_default();
    String::from_utf8_lossy(visible).into_owned()
}

/// An extent page written over a root is how a known SPDK accident looks (section 7.6): seen by its descriptor.
pub fn looks_like_extent_page(page: &Page) -> bool {
    page.descriptors().list.first().is_some_and(|d| d.kind == 6 && d.end > DESC_START)
}
