//! Writing a blob's chain, in a layout that stays still.
//!
//! ```text
//!  root                  xattr pages           table pages ("segments"), unless the table is inline
//!  ┌───────┬──────────┐  ┌────────────────┐    ┌────────────────┐ ┌────────────────┐
//!  │ flags │ xattrs   │─▶│ xattrs … table │ or │ table 0..500   │▶│ table 500..1000│▶ …
//!  └───────┴──────────┘  └────────────────┘    └────────────────┘ └────────────────┘
//! ```
//!
//! Where an entry of the table lies depends only on the xattrs and on the number of entries, never on how many of them
//! are assigned. So assigning one extent page changes exactly one page of the chain, and neither sequence numbers nor
//! the number of pages move. SPDK packs tighter; it reads this as well.

use super::blob::{BlobMeta, Extents, Flags, MAX_CLUSTERS_PER_BLOB, check_unique};
use super::error::FormatError;
use super::page::{DESC_AREA, DESC_HEADER, EXTENTS_PER_PAGE, PAGE_NONE, Page, PageBuilder, PageHeader, desc, root_of};
use super::xattr::Xattr;

/// Entries of the extent table in one table page. 507 would fit; a round number is easier to find again.
pub const TABLE_ENTRIES_PER_PAGE: usize = 500;
const FLAGS_LEN: usize = DESC_HEADER + 24;
/// A table descriptor without entries.
const TABLE_LEN: usize = DESC_HEADER + 8;
const ENTRY_LEN: usize = 8;

const _: () = assert!(TABLE_LEN + ENTRY_LEN * TABLE_ENTRIES_PER_PAGE <= DESC_AREA);

/// How a blob's chain is divided into pages. Stays valid until an xattr changes or the number of extent pages does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainLayout {
    /// Pages of the chain, the root included.
    pub pages: usize,
    /// Pages with xattrs, the root included: at least 1.
    pub xattr_pages: usize,
    /// The table is in the last xattr page.
    pub inline: bool,
    /// For each xattr page, how many xattrs are on the pages before it.
    first_xattr: Vec<usize>,
    eps: usize,
}

/// The table of a blob that can be written.
fn table_of(meta: &BlobMeta) -> Result<(u64, &[u32]), FormatError> {
    let Extents::Table { num_clusters, pages } = &meta.extents else {
        return Err(FormatError::Unbuildable(
            "the blob has extent runs instead of an extent table; such blobs of old stores can only be read".into(),
        ));
    };
    if *num_clusters > MAX_CLUSTERS_PER_BLOB || pages.len() as u64 != num_clusters.div_ceil(EXTENTS_PER_PAGE.into()) {
        return Err(FormatError::Unbuildable(format!(
            "{num_clusters} clusters do not go with {} extent pages",
            pages.len()
        )));
    }
    Ok((*num_clusters, pages))
}

/// User xattrs, then internal ones: the order in which they are written.
fn in_order(meta: &BlobMeta) -> impl Iterator<Item = &Xattr> {
    let user = meta.xattrs.iter().filter(|x| !x.internal);
    user.chain(meta.xattrs.iter().filter(|x| x.internal))
}

/// Divides a blob's chain into pages.
pub fn layout(meta: &BlobMeta) -> Result<ChainLayout, FormatError> {
    let (_, table) = table_of(meta)?;
    check_unique(&meta.xattrs)?;
    let mut first_xattr = vec![0];
    let mut used = FLAGS_LEN;
    for (n, xattr) in in_order(meta).enumerate() {
        let len = xattr.descriptor_len();
        if len > DESC_AREA {
            return Err(FormatError::xattr(&xattr.name, "too long for a metadata page"));
        }
        if used + len > DESC_AREA {
            first_xattr.push(n);
            used = 0;
        }
        used += len;
    }
    let xattr_pages = first_xattr.len();
    let inline = TABLE_LEN + ENTRY_LEN * table.len() <= DESC_AREA - used;
    let table_pages = if inline { 0 } else { table.len().div_ceil(TABLE_ENTRIES_PER_PAGE).max(1) };
    Ok(ChainLayout { pages: xattr_pages + table_pages, xattr_pages, inline, first_xattr, eps: table.len() })
}

/// Position in the chain of the page that holds entry `ep` of the extent table.
pub fn page_of_ep(layout: &ChainLayout, ep: usize) -> usize {
    if layout.inline { layout.xattr_pages - 1 } else { layout.xattr_pages + ep / TABLE_ENTRIES_PER_PAGE }
}

/// Page `n` of the chain of `meta`. `chain` holds the metadata page index of every page of the chain, root first.
///
/// `EXTENT_TABLE` is set and `INTERNAL_XATTR` made to agree with the xattrs, whatever `meta.flags` says.
pub fn encode_page(meta: &BlobMeta, layout: &ChainLayout, chain: &[u32], n: usize) -> Result<Page, FormatError> {
    let (num_clusters, table) = table_of(meta)?;
    let fits = table.len() == layout.eps && chain.len() == layout.pages && n < layout.pages;
    // An index that means "none" would cut the chain off.
    let ends_early = chain.get(n + 1) == Some(&PAGE_NONE);
    if !fits || ends_early || root_of(meta.id) != chain.first().copied() {
        return Err(FormatError::Unbuildable(format!(
            "page {n} of blob {:#x}: {} pages and {} extent pages do not go with its layout ({} and {})",
            meta.id,
            chain.len(),
            table.len(),
            layout.pages,
            layout.eps
        )));
    }
    let next = chain.get(n + 1).copied().unwrap_or(PAGE_NONE);
    let mut page = PageBuilder::new(PageHeader { id: meta.id, sequence: n as u32, next });
    if n == 0 {
        push_flags(&mut page, meta)?;
    }
    if n < layout.xattr_pages {
        let first = layout.first_xattr.get(n).copied().unwrap_or(0);
        let end = layout.first_xattr.get(n + 1).copied().unwrap_or(meta.xattrs.len());
        for xattr in in_order(meta).skip(first).take(end.saturating_sub(first)) {
            push_xattr(&mut page, xattr)?;
        }
    }
    let entries = if layout.inline {
        (n + 1 == layout.xattr_pages).then_some(table)
    } else {
        n.checked_sub(layout.xattr_pages).map(|segment| {
            let rest = table.get(segment * TABLE_ENTRIES_PER_PAGE..).unwrap_or(&[]);
            rest.get(..TABLE_ENTRIES_PER_PAGE).unwrap_or(rest)
        })
    };
    if let Some(entries) = entries {
        push_table(&mut page, meta.flags, num_clusters, entries)?;
    }
    Ok(page.seal())
}

/// All pages of the chain.
pub fn encode_chain(meta: &BlobMeta, layout: &ChainLayout, chain: &[u32]) -> Result<Vec<Page>, FormatError> {
    (0..layout.pages).map(|n| encode_page(meta, layout, chain, n)).collect()
}

fn push_flags(page: &mut PageBuilder, meta: &BlobMeta) -> Result<(), FormatError> {
    let mut flags = meta.flags;
    flags.set_invalid(Flags::EXTENT_TABLE, true);
    flags.set_invalid(Flags::INTERNAL_XATTR, meta.xattrs.iter().any(|x| x.internal));
    let words = [flags.invalid, flags.data_ro, flags.md_ro].map(u64::to_le_bytes);
    page.push(desc::FLAGS, &[words.as_flattened()])
}

fn push_xattr(page: &mut PageBuilder, xattr: &Xattr) -> Result<(), FormatError> {
    let kind = if xattr.internal { desc::XATTR_INTERNAL } else { desc::XATTR };
    // The layout has refused what is longer than a page, so both lengths fit 16 bits.
    let lengths = [xattr.name.len() as u16, xattr.value.len() as u16].map(u16::to_le_bytes);
    page.push(kind, &[lengths.as_flattened(), &xattr.name, &xattr.value])
}

fn push_table(page: &mut PageBuilder, flags: Flags, num_clusters: u64, entries: &[u32]) -> Result<(), FormatError> {
    let mut body = Vec::with_capacity(8 + ENTRY_LEN * entries.len());
    body.extend_from_slice(&num_clusters.to_le_bytes());
    // Pages one by one; pages that are not assigned as runs.
    for run in entries.chunk_by(|a, b| *a == 0 && *b == 0) {
        let page_index = run.first().copied().unwrap_or(0);
        if page_index == 0 && !flags.is_thin() {
            return Err(FormatError::Unbuildable("a blob that is not thin must have all its extent pages".into()));
        }
        body.extend_from_slice(&page_index.to_le_bytes());
        body.extend_from_slice(&(run.len() as u32).to_le_bytes());
    }
    page.push(desc::EXTENT_TABLE, &[&body])
}
