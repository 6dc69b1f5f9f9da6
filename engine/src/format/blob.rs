//! A blob as its chain of metadata pages describes it: flags, xattrs, and where its extents are.
//!
//! Descriptors in a chain (each after `type u8, length u32`):
//!
//! | type | name | body |
//! |---:|---|---|
//! | 1 | extent RLE | n × { cluster u32, clusters u32 }; cluster 0 = not allocated |
//! | 2, 4 | xattr, internal xattr | name length u16, value length u16, name, value |
//! | 3 | flags | invalid u64, data_ro u64, md_ro u64 |
//! | 5 | extent table | num_clusters u64, n × { page u32, pages u32 }; page 0 = so many extent pages not assigned |
//!
//! Read here, written in [`layout`](super::layout).

use std::collections::BTreeSet;

use super::bytes::{u16_at, u64_at};
use super::error::FormatError;
use super::page::{Descriptor, EXTENTS_PER_PAGE, PageHeader, desc, descriptors, parse_page, root_of};
use super::xattr::{self, Xattr};

/// A blob has no more clusters than this: the start of an extent page is a 32-bit cluster number.
pub const MAX_CLUSTERS_PER_BLOB: u64 = 1 << 32;

/// The three flag words of a blob. Unknown bits are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// An unknown bit here: the blob must not be opened.
    pub invalid: u64,
    /// An unknown bit here: open read-only.
    pub data_ro: u64,
    /// An unknown bit here: metadata must not be changed.
    pub md_ro: u64,
}

impl Flags {
    /// `invalid`: clusters may be missing; they read from the parent or as zero.
    pub const THIN_PROV: u64 = 1 << 0;
    /// `invalid`: there are internal xattrs.
    pub const INTERNAL_XATTR: u64 = 1 << 1;
    /// `invalid`: the blob has an extent table.
    pub const EXTENT_TABLE: u64 = 1 << 2;
    /// `invalid`: the parent is outside of the store, named by the xattr `EXTSNAP`.
    pub const EXTERNAL_SNAPSHOT: u64 = 1 << 3;
    /// `invalid`, ours: the system blob.
    pub const PRIVATE_SYSTEM: u64 = 1 << 6;
    /// `invalid`, ours: extent pages may hold [`ZERO_MARK`](super::ZERO_MARK).
    pub const PRIVATE_ZERO_MARKS: u64 = 1 << 7;
    /// `data_ro`: data and metadata are read-only.
    pub const READ_ONLY: u64 = 1 << 0;
    /// `md_ro`: 0 default, 1 none, 2 unmap, 3 write zeroes.
    pub const CLEAR_METHOD: u64 = 0x3;

    const SPDK_INVALID: u64 = Self::THIN_PROV | Self::INTERNAL_XATTR | Self::EXTENT_TABLE | Self::EXTERNAL_SNAPSHOT;
    const OUR_INVALID: u64 = Self::PRIVATE_SYSTEM | Self::PRIVATE_ZERO_MARKS;

    pub fn is_thin(&self) -> bool {
        self.invalid & Self::THIN_PROV != 0
    }

    pub fn is_read_only(&self) -> bool {
        self.data_ro & Self::READ_ONLY != 0
    }

    pub fn is_system(&self) -> bool {
        self.invalid & Self::PRIVATE_SYSTEM != 0
    }

    pub fn has_zero_marks(&self) -> bool {
        self.invalid & Self::PRIVATE_ZERO_MARKS != 0
    }

    /// Incompatible bits that neither SPDK nor we know.
    pub fn unknown_invalid(&self) -> u64 {
        self.invalid & !(Self::SPDK_INVALID | Self::OUR_INVALID)
    }

    /// Bits that make the blob read-only because nobody knows them.
    pub fn unknown_data_ro(&self) -> u64 {
        self.data_ro & !Self::READ_ONLY
    }

    /// Bits that forbid changes of the metadata because nobody knows them.
    pub fn unknown_md_ro(&self) -> u64 {
        self.md_ro & !Self::CLEAR_METHOD
    }

    /// True if SPDK opens a blob with these flags.
    pub fn is_spdk_readable(&self) -> bool {
        self.invalid & !Self::SPDK_INVALID == 0
    }

    pub fn set_invalid(&mut self, bits: u64, on: bool) {
        if on { self.invalid |= bits } else { self.invalid &= !bits }
    }
}

/// Where the clusters of a blob are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Extents {
    /// Metadata page of each extent page, 0 = not assigned. As many as `num_clusters` needs.
    Table { num_clusters: u64, pages: Vec<u32> },
    /// Runs (cluster, clusters) in order; cluster 0 = not allocated. Read only, from old stores.
    Rle(Vec<(u32, u32)>),
}

impl Extents {
    /// A table without any extent page assigned.
    pub fn table(num_clusters: u64) -> Extents {
        Extents::Table { num_clusters, pages: vec![0; num_clusters.div_ceil(EXTENTS_PER_PAGE.into()) as usize] }
    }

    pub fn num_clusters(&self) -> u64 {
        match self {
            Extents::Table { num_clusters, .. } => *num_clusters,
            Extents::Rle(runs) => runs.iter().map(|&(_, len)| u64::from(len)).sum(),
        }
    }
}

/// What a blob's unallocated clusters read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent<'a> {
    None,
    /// Id of a snapshot in this store.
    Snapshot(u64),
    /// Identity of a snapshot elsewhere.
    External(&'a [u8]),
}

/// A blob's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobMeta {
    pub id: u64,
    pub flags: Flags,
    /// In the order of the chain. No name twice within user and within internal ones.
    pub xattrs: Vec<Xattr>,
    pub extents: Extents,
}

impl BlobMeta {
    /// An empty thin or thick blob with an extent table.
    pub fn new(id: u64, num_clusters: u64, thin: bool) -> BlobMeta {
        let mut flags = Flags { invalid: Flags::EXTENT_TABLE, ..Flags::default() };
        flags.set_invalid(Flags::THIN_PROV, thin);
        BlobMeta { id, flags, xattrs: Vec::new(), extents: Extents::table(num_clusters) }
    }

    pub fn xattr(&self, internal: bool, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.iter().find(|x| x.internal == internal && x.name == name).map(|x| x.value.as_slice())
    }

    /// Sets an xattr: replaces it at its place, or appends it.
    pub fn set_xattr(&mut self, internal: bool, name: &[u8], value: &[u8]) {
        match self.xattrs.iter_mut().find(|x| x.internal == internal && x.name == name) {
            Some(x) => x.value = value.to_vec(),
            None => self.xattrs.push(Xattr { internal, name: name.to_vec(), value: value.to_vec() }),
        }
        self.sync_flags();
    }

    /// Removes an xattr; false if there was none.
    pub fn remove_xattr(&mut self, internal: bool, name: &[u8]) -> bool {
        let before = self.xattrs.len();
        self.xattrs.retain(|x| x.internal != internal || x.name != name);
        self.sync_flags();
        self.xattrs.len() != before
    }

    fn sync_flags(&mut self) {
        let internal = self.xattrs.iter().any(|x| x.internal);
        self.flags.set_invalid(Flags::INTERNAL_XATTR, internal);
    }

    /// The name, without its NUL; `None` if there is none or it is longer than a name can be.
    pub fn name(&self) -> Option<&[u8]> {
        let value = self.xattr(false, xattr::NAME)?;
        let name = value.split(|&b| b == 0).next()?;
        (value.len() <= xattr::NAME_FIELD && !name.is_empty()).then_some(name)
    }

    /// Names a lvol. The value has the full length, as SPDK writes it, so that a rename does not move anything.
    pub fn set_name(&mut self, name: &[u8]) -> Result<(), FormatError> {
        let mut value = check_name(name)?.to_vec();
        value.resize(xattr::NAME_FIELD, 0);
        self.set_xattr(false, xattr::NAME, &value);
        Ok(())
    }

    /// Names the lvstore, in its super blob: the name and one NUL.
    pub fn set_store_name(&mut self, name: &[u8]) -> Result<(), FormatError> {
        let mut value = check_name(name)?.to_vec();
        value.push(0);
        self.set_xattr(false, xattr::NAME, &value);
        Ok(())
    }

    /// The UUID; `None` if it is missing, malformed or null.
    pub fn uuid(&self) -> Option<uuid::Uuid> {
        let (text, nul) = self.xattr(false, xattr::UUID)?.split_at_checked(xattr::UUID_FIELD - 1)?;
        if nul != [0] {
            return None;
        }
        uuid::Uuid::try_parse_ascii(text).ok().filter(|uuid| !uuid.is_nil())
    }

    pub fn set_uuid(&mut self, uuid: &uuid::Uuid) {
        let mut value = uuid.hyphenated().to_string().into_bytes();
        value.push(0);
        self.set_xattr(false, xattr::UUID, &value);
    }

    /// What unallocated clusters read from. A `SNAP` beside an external parent, or in a blob that is not thin, is a
    /// left-over and means nothing.
    pub fn parent(&self) -> Result<Parent<'_>, FormatError> {
        if self.flags.invalid & Flags::EXTERNAL_SNAPSHOT != 0 {
            return match self.xattr(true, xattr::EXTSNAP) {
                Some(identity) => Ok(Parent::External(identity)),
                None => Err(FormatError::xattr(xattr::EXTSNAP, "missing, and the flags say that there is one")),
            };
        }
        if !self.flags.is_thin() {
            return Ok(Parent::None);
        }
        Ok(self.id_xattr(xattr::SNAP)?.map_or(Parent::None, Parent::Snapshot))
    }

    /// Makes the blob a thin child of a snapshot in this store, or nobody's child. External parent and left-overs go.
    pub fn set_snapshot_parent(&mut self, parent: Option<u64>) {
        for name in [xattr::EXTSNAP, xattr::VISIBLE, xattr::HYDRATE] {
            self.remove_xattr(true, name);
        }
        self.flags.set_invalid(Flags::EXTERNAL_SNAPSHOT, false);
        match parent {
            Some(id) => {
                self.flags.set_invalid(Flags::THIN_PROV, true);
                self.set_xattr(true, xattr::SNAP, &id.to_le_bytes());
            }
            None => {
                self.remove_xattr(true, xattr::SNAP);
            }
        }
    }

    /// Makes the blob a thin child of something outside of the store, of which `visible` bytes show.
    /// `size`: bytes that the parent has, if that is known.
    pub fn set_external_parent(&mut self, identity: &[u8], visible: u64, size: Option<u64>) {
        self.set_snapshot_parent(None);
        self.flags.set_invalid(Flags::THIN_PROV, true);
        self.flags.set_invalid(Flags::EXTERNAL_SNAPSHOT, true);
        self.set_xattr(true, xattr::EXTSNAP, identity);
        self.set_visible(visible, size);
    }

    /// Bytes of the external parent that show.
    pub fn visible(&self) -> Option<u64> {
        self.number_xattrs(xattr::VISIBLE).next()
    }

    /// Bytes that the external parent has, if that was written down.
    pub fn parent_size(&self) -> Option<u64> {
        self.number_xattrs(xattr::VISIBLE).nth(1)
    }

    pub fn set_visible(&mut self, bytes: u64, size: Option<u64>) {
        let text = size.map_or_else(|| bytes.to_string(), |size| format!("{bytes} {size}"));
        self.set_xattr(true, xattr::VISIBLE, text.as_bytes());
    }

    /// Clusters set aside for hydration, now and in the beginning; `None`: the lvol is not to be hydrated.
    pub fn hydration(&self) -> Option<(u64, u64)> {
        let mut numbers = self.number_xattrs(xattr::HYDRATE);
        let left = numbers.next()?;
        Some((left, numbers.next().unwrap_or(left)))
    }

    pub fn set_hydration(&mut self, left: u64, total: u64) {
        self.set_xattr(true, xattr::HYDRATE, format!("{left} {total}").as_bytes());
    }

    /// UUIDs of the lvstores that depend on this snapshot, each with the name under which it may be read.
    pub fn pins(&self) -> impl Iterator<Item = (uuid::Uuid, &[u8])> + '_ {
        self.xattrs.iter().filter(|x| x.internal).filter_map(|x| {
            let lvstore = uuid::Uuid::try_parse_ascii(x.name.strip_prefix(xattr::PIN_PREFIX)?).ok()?;
            Some((lvstore, x.value.as_slice()))
        })
    }

    /// `reader`: `None` takes the pin away.
    pub fn set_pin(&mut self, lvstore: uuid::Uuid, reader: Option<&str>) {
        let name = [xattr::PIN_PREFIX, lvstore.hyphenated().to_string().as_bytes()].concat();
        match reader {
            Some(reader) => self.set_xattr(true, &name, reader.as_bytes()),
            None => {
                self.remove_xattr(true, &name);
            }
        }
    }

    /// Decimal numbers, as far as they can be read.
    fn number_xattrs(&self, name: &[u8]) -> impl Iterator<Item = u64> + '_ {
        let text = self.xattr(true, name).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default();
        text.split(' ').map_while(|number| number.parse().ok())
    }

    /// SPDK's mark on a snapshot that is being created: the id of its origin.
    pub fn snapshot_being_created(&self) -> Result<Option<u64>, FormatError> {
        self.id_xattr(xattr::SNAPTMP)
    }

    /// SPDK's mark on a snapshot that is being merged into its clone: the clone's id.
    pub fn snapshot_being_removed(&self) -> Result<Option<u64>, FormatError> {
        self.id_xattr(xattr::SNAPRM)
    }

    fn id_xattr(&self, name: &[u8]) -> Result<Option<u64>, FormatError> {
        let Some(value) = self.xattr(true, name) else { return Ok(None) };
        match <[u8; 8]>::try_from(value) {
            Ok(id) => Ok(Some(u64::from_le_bytes(id))),
            Err(_) => Err(FormatError::xattr(name, "not 8 bytes long")),
        }
    }
}

/// A name of a lvol or lvstore: 1 to 63 bytes, none of them NUL.
pub fn check_name(name: &[u8]) -> Result<&[u8], FormatError> {
    if name.is_empty() || name.len() >= xattr::NAME_FIELD || name.contains(&0) {
        return Err(FormatError::Unbuildable(format!(
            "name \"{}\": a name has 1 to {} bytes, none of them NUL",
            name.escape_ascii(),
            xattr::NAME_FIELD - 1
        )));
    }
    Ok(name)
}

/// Index of the page that follows `page` in its chain, for collecting the pages of a chain. The caller checks that it
/// is below the number of metadata pages and that no page is visited twice.
pub fn parse_root_links(page: &[u8]) -> Result<Option<u32>, FormatError> {
    parse_page(page).map(|(header, _)| header.next_page())
}

/// Reads a blob from the pages of its chain, root first.
///
/// `max_eps` bounds what is allocated for the extent table: no blob of the store can have more extent pages. That page
/// and cluster numbers lie inside the store is for the caller to check, who knows its size; so are unknown flags.
pub fn parse_chain<T: AsRef<[u8]>>(id: u64, pages: &[T], max_eps: u64) -> Result<BlobMeta, FormatError> {
    if root_of(id).is_none() {
        return Err(FormatError::field("blob id", id, "not 2^32 + the index of a page"));
    }
    if pages.is_empty() {
        return Err(FormatError::Truncated { what: "chain of a blob", need: 1, have: 0 });
    }
    let mut chain = Chain { max_eps, ..Chain::default() };
    for (n, page) in pages.iter().enumerate() {
        let (header, area) = parse_page(page.as_ref())?;
        check_link(id, n, n + 1 == pages.len(), header)?;
        for descriptor in descriptors(area) {
            let descriptor = descriptor?;
            match descriptor.kind {
                desc::FLAGS => chain.flags(&descriptor)?,
                desc::XATTR | desc::XATTR_INTERNAL => chain.xattr(&descriptor)?,
                desc::EXTENT_TABLE => chain.table(&descriptor)?,
                desc::EXTENT_RLE => chain.rle(&descriptor)?,
                desc::EXTENT_PAGE => return Err(descriptor.bad("an extent page's, in the chain of a blob")),
                _ => return Err(descriptor.bad("not a known type")),
            }
        }
    }
    chain.finish(id)
}

/// What the root of a blob whose chain is broken still says: flags and xattrs as far as they can be read.
pub fn parse_xattrs_of_root(page: &[u8]) -> Option<BlobMeta> {
    let (header, area) = parse_page(page).ok()?;
    let mut chain = Chain::default();
    for descriptor in descriptors(area) {
        let Ok(descriptor) = descriptor else { break };
        let taken = match descriptor.kind {
            desc::FLAGS => chain.flags(&descriptor),
            desc::XATTR | desc::XATTR_INTERNAL => chain.xattr(&descriptor),
            _ => Ok(()),
        };
        if taken.is_err() {
            break;
        }
    }
    Some(BlobMeta { id: header.id, flags: chain.flags?, xattrs: chain.xattrs, extents: Extents::table(0) })
}

fn check_link(id: u64, n: usize, last: bool, header: PageHeader) -> Result<(), FormatError> {
    if header.id != id {
        return Err(FormatError::field("owner of a chain page", header.id, "it belongs to another blob"));
    }
    if header.sequence as usize != n {
        return Err(FormatError::field("sequence number of a chain page", header.sequence, "not its position"));
    }
    match (last, header.next_page()) {
        (true, Some(next)) => Err(FormatError::field("next page", next, "the chain goes on, but its pages end here")),
        (false, None) => {
            Err(FormatError::field("sequence number of a chain page", header.sequence, "the chain ends here"))
        }
        _ => Ok(()),
    }
}

/// What the descriptors of a chain add up to.
#[derive(Default)]
struct Chain {
    max_eps: u64,
    flags: Option<Flags>,
    xattrs: Vec<Xattr>,
    table: Option<(u64, Vec<u32>)>,
    rle: Vec<(u32, u32)>,
    unassigned: bool,
}

impl Chain {
    fn flags(&mut self, d: &Descriptor<'_>) -> Result<(), FormatError> {
        if d.body.len() != 24 {
            return Err(d.bad("flags are 24 bytes long"));
        }
        if self.flags.is_some() {
            return Err(d.bad("flags for the second time"));
        }
        self.flags =
            Some(Flags { invalid: u64_at(d.body, 0)?, data_ro: u64_at(d.body, 8)?, md_ro: u64_at(d.body, 16)? });
        Ok(())
    }

    fn xattr(&mut self, d: &Descriptor<'_>) -> Result<(), FormatError> {
        let (name_len, value_len) = (usize::from(u16_at(d.body, 0)?), usize::from(u16_at(d.body, 2)?));
        if d.body.len() != 4 + name_len + value_len {
            return Err(d.bad("its length is not that of its name and value"));
        }
        let (name, value) = d.body.get(4..).and_then(|b| b.split_at_checked(name_len)).unwrap_or_default();
        let internal = d.kind == desc::XATTR_INTERNAL;
        self.xattrs.push(Xattr { internal, name: name.to_vec(), value: value.to_vec() });
        Ok(())
    }

    fn table(&mut self, d: &Descriptor<'_>) -> Result<(), FormatError> {
        let Some((num, entries)) = d.body.split_first_chunk::<8>() else {
            return Err(d.bad("too short for an extent table"));
        };
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(d.bad("its length is not 8 + 8 × entries"));
        }
        let num = u64::from_le_bytes(*num);
        if num > MAX_CLUSTERS_PER_BLOB {
            return Err(FormatError::field("number of clusters of a blob", num, "more than 2^32"));
        }
        let eps = num.div_ceil(EXTENTS_PER_PAGE.into());
        if eps > self.max_eps {
            return Err(FormatError::TooManyExtentPages { value: eps, max: self.max_eps });
        }
        let (known, pages) = self.table.get_or_insert_with(|| (num, Vec::new()));
        if *known != num {
            return Err(d.bad("another number of clusters than in the first part of the table"));
        }
        for entry in entries {
            let [a, b, c, d0, e, f, g, h] = *entry;
            let (page, count) = (u32::from_le_bytes([a, b, c, d0]), u32::from_le_bytes([e, f, g, h]));
            if page != 0 && count != 1 {
                return Err(d.bad("an entry with a page stands for more than one"));
            }
            if pages.len() as u64 + u64::from(count) > eps {
                return Err(d.bad("more extent pages than the clusters need"));
            }
            self.unassigned |= page == 0 && count != 0;
            pages.resize(pages.len() + count as usize, page);
        }
        Ok(())
    }

    fn rle(&mut self, d: &Descriptor<'_>) -> Result<(), FormatError> {
        let (runs, rest) = d.body.as_chunks::<8>();
        if runs.is_empty() || !rest.is_empty() {
            return Err(d.bad("its length is not 8 × runs"));
        }
        for run in runs {
            let [a, b, c, d0, e, f, g, h] = *run;
            let (cluster, len) = (u32::from_le_bytes([a, b, c, d0]), u32::from_le_bytes([e, f, g, h]));
            if len == 0 || (cluster != 0 && cluster.checked_add(len).is_none()) {
                return Err(d.bad("a run that is empty or wraps around"));
            }
            self.unassigned |= cluster == 0;
            self.rle.push((cluster, len));
        }
        Ok(())
    }

    fn finish(self, id: u64) -> Result<BlobMeta, FormatError> {
        let flags = self.flags.unwrap_or_default();
        let extents = match self.table {
            Some(_) if !self.rle.is_empty() => {
                return Err(FormatError::field("blob id", id, "the blob has an extent table and extent runs"));
            }
            Some((num_clusters, pages)) => {
                if pages.len() as u64 != num_clusters.div_ceil(EXTENTS_PER_PAGE.into()) {
                    let n = pages.len() as u64;
                    return Err(FormatError::field("length of the extent table", n, "fewer than the clusters need"));
                }
                Extents::Table { num_clusters, pages }
            }
            None => Extents::Rle(self.rle),
        };
        let clusters = extents.num_clusters();
        if clusters.div_ceil(EXTENTS_PER_PAGE.into()) > self.max_eps {
            return Err(FormatError::TooManyExtentPages {
                value: clusters.div_ceil(EXTENTS_PER_PAGE.into()),
                max: self.max_eps,
            });
        }
        if self.unassigned && !flags.is_thin() {
            return Err(FormatError::field("flags of the blob", flags.invalid, "not thin, but clusters are missing"));
        }
        check_unique(&self.xattrs)?;
        let meta = BlobMeta { id, flags, xattrs: self.xattrs, extents };
        meta.parent()?;
        Ok(meta)
    }
}

/// No name twice within user and within internal xattrs.
pub(super) fn check_unique(xattrs: &[Xattr]) -> Result<(), FormatError> {
    let mut seen = BTreeSet::new();
    match xattrs.iter().find(|x| !seen.insert((x.internal, x.name.as_slice()))) {
        Some(twice) => Err(FormatError::xattr(&twice.name, "there twice")),
        None => Ok(()),
    }
}
