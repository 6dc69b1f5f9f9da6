//! Extent pages: which cluster of the device holds which cluster of a blob, 512 at a time.
//!
//! A metadata page with sequence number 0, no next page, and one descriptor of type 6 at byte 16:
//!
//! | off in page | width | field |
//! |---:|---:|---|
//! | 16 | 1 | 6 |
//! | 17 | 4 | length = 4 + 4 × m, 1 ≤ m ≤ 512 |
//! | 21 | 4 | first cluster of the blob described here: 512 × index in the extent table |
//! | 25 | 4 × m | cluster of the device, 0 = not allocated, [`ZERO_MARK`] = reads as zero |
//!
//! The blob id in the header is whoever wrote the page last and decides nothing: pages change hands in snapshots and
//! merges without being rewritten. The extent table that names a page is the only authority.

use super::bytes::array_at;
use super::error::FormatError;
use super::page::{
    DESC_AT, DESC_HEADER, EXTENTS_PER_PAGE, PAGE_NONE, PAGE_SIZE, Page, PageBuilder, PageHeader, desc, descriptors,
    parse_page,
};

/// Private entry value: this cluster reads as zero, do not look at the parent. Only in blobs with the flag
/// `PRIVATE_ZERO_MARKS`, so that SPDK never follows it.
pub const ZERO_MARK: u32 = u32::MAX;

/// A parsed extent page. Whether zero entries and zero marks are legal depends on the blob's flags, and whether an
/// entry is a data cluster depends on the store: the caller checks both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentPage {
    /// The blob that wrote the page last; not necessarily the owner.
    pub id: u64,
    /// First cluster of the blob described here, a multiple of 512.
    pub start_cluster: u32,
    /// 1 to 512 entries.
    pub entries: Vec<u32>,
}

impl ExtentPage {
    /// Position in the extent table.
    pub fn ep_index(&self) -> u32 {
        self.start_cluster / EXTENTS_PER_PAGE
    }
}

/// Checks and reads an extent page.
pub fn parse(bytes: &[u8]) -> Result<ExtentPage, FormatError> {
    let (header, area) = parse_page(bytes)?;
    if header.sequence != 0 {
        return Err(FormatError::field("sequence number", header.sequence, "an extent page has 0"));
    }
    if let Some(next) = header.next_page() {
        return Err(FormatError::field("next page", next, "an extent page has none"));
    }
    // A leading padding descriptor is not skipped here: SPDK looks at the first descriptor only.
    if area.first() != Some(&desc::EXTENT_PAGE) {
        let kind = area.first().copied().unwrap_or(0);
        return Err(FormatError::BadDescriptor { kind, offset: 16, why: "an extent page begins with type 6" });
    }
    let first = descriptors(area).next().ok_or(FormatError::BadMagic { what: "extent page" })??;
    let Some((start, entries)) = first.body.split_first_chunk::<4>() else {
        return Err(first.bad("too short for an extent page"));
    };
    let (entries, rest) = entries.as_chunks::<4>();
    if entries.is_empty() || !rest.is_empty() {
        return Err(first.bad("its length is not 4 + 4 × entries"));
    }
    if entries.len() > EXTENTS_PER_PAGE as usize {
        return Err(first.bad("more than 512 entries"));
    }
    // Where a second descriptor would have its length, SPDK wants zero; the byte of its type it ignores.
    let after: [u8; 4] = array_at(area, DESC_HEADER + first.body.len() + 1)?;
    if after != [0; 4] {
        return Err(first.bad("something follows it"));
    }
    let start_cluster = u32::from_le_bytes(*start);
    if !start_cluster.is_multiple_of(EXTENTS_PER_PAGE) {
        return Err(FormatError::field("first cluster of an extent page", start_cluster, "not a multiple of 512"));
    }
    let entries = entries.iter().map(|e| u32::from_le_bytes(*e)).collect();
    Ok(ExtentPage { id: header.id, start_cluster, entries })
}

/// What a page that does not check out seems to name, if it seems to be an extent page: not to be used, only to be spared.
pub fn clusters_named(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    let looks_like_one = bytes.get(DESC_AT) == Some(&desc::EXTENT_PAGE);
    let entries = bytes.get(DESC_AT + DESC_HEADER + 4..PAGE_SIZE).filter(|_| looks_like_one).unwrap_or_default();
    entries.as_chunks::<4>().0.iter().take(EXTENTS_PER_PAGE as usize).map(|e| u32::from_le_bytes(*e))
}

/// The page that holds `entries` (1 to 512) as extent page number `ep_index` of a blob, written by blob `id`.
pub fn encode(id: u64, ep_index: u32, entries: &[u32]) -> Result<Page, FormatError> {
    if entries.is_empty() || entries.len() > EXTENTS_PER_PAGE as usize {
        return Err(FormatError::field("entries of an extent page", entries.len() as u64, "1 to 512 are possible"));
    }
    let start = ep_index.checked_mul(EXTENTS_PER_PAGE).ok_or(FormatError::field(
        "index of an extent page",
        ep_index,
        "its first cluster does not fit 32 bits",
    ))?;
    let mut body = [0; 4 * EXTENTS_PER_PAGE as usize];
    for (slot, entry) in body.as_chunks_mut::<4>().0.iter_mut().zip(entries) {
        *slot = entry.to_le_bytes();
    }
    let mut page = PageBuilder::new(PageHeader { id, sequence: 0, next: PAGE_NONE });
    page.push(desc::EXTENT_PAGE, &[&start.to_le_bytes(), body.get(..4 * entries.len()).unwrap_or(&[])])?;
    Ok(page.seal())
}
