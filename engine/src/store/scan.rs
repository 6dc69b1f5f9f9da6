//! Reading all metadata of a store: the pages that chains are made of, then the extent pages.
//!
//! Large reads, several at a time; images that the journal holds replace what is on the device. Nothing is trusted that
//! does not check out.

use crate::error::Result;
use crate::format::page::{blob_id, descriptors};
use crate::format::{BlobMeta, Geometry, PAGE_NONE, PAGE_SIZE, Page, extent_page, parse_chain, parse_page};
use crate::shard::{Port, all};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bytes of one read.
const SPAN: u64 = 1 << 20;
/// Reads in flight.
const DEPTH: usize = 8;

pub type Overlay = BTreeMap<u32, Arc<Page>>;

/// Pages of chains: roots and continuation pages, by index.
#[derive(Default)]
pub struct ChainPages {
    pub pages: BTreeMap<u32, Box<Page>>,
    /// Pages that look like the root of a blob, those that do not check out included: they are not in `pages`.
    pub roots: BTreeSet<u32>,
    /// Pages that the device does not read, and why: anything may be in them.
    pub unreadable: BTreeMap<u32, String>,
}

/// A blob's chain as it was found.
pub struct Chain {
    pub pages: Vec<u32>,
    pub meta: std::result::Result<BlobMeta, String>,
}

/// Reads the metadata pages `wanted` (ascending) and hands each one that can be read to `each`.
pub async fn read_pages(
    port: &Port,
    geo: &Geometry,
    overlay: &Overlay,
    wanted: &[u32],
    mut each: impl FnMut(u32, std::result::Result<&[u8], String>),
) -> Result<()> {
    let page_size = u64::from(geo.md_page_size);
    let per_read = (SPAN / page_size).max(1);
    // Runs of pages that one read covers; small gaps are read along.
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for page in wanted {
        match runs.last_mut() {
            Some((first, len)) if page - *first < per_read as u32 && page - (*first + *len - 1) <= 8 => {
                *len = page - *first + 1;
            }
            _ => runs.push((*page, 1)),
        }
    }
    let mut wanted = wanted.iter().copied().peekable();
    for batch in runs.chunks(DEPTH) {
        let bufs: Vec<_> = batch
            .iter()
            .map(|(_, len)| {
                let bytes = *len as usize * page_size as usize;
                port.shard.buf(bytes).slice(0, bytes)
            })
            .collect();
        let ios = batch.iter().zip(&bufs).map(|((first, _), buf)| port.read(geo.page_offset(*first), buf.clone()));
        let whole = all(ios.collect(), "cannot read metadata").await;
        for ((first, len), buf) in batch.iter().zip(&bufs) {
            while let Some(page) = wanted.next_if(|p| *p < first + len) {
                if let Some(image) = overlay.get(&page) {
                    each(page, Ok(&image[..]));
                    continue;
                }
                if whole.is_ok() {
                    let at = (page - first) as usize * page_size as usize;
                    buf.slice(at, PAGE_SIZE).with(|bytes| each(page, Ok(bytes)));
                    continue;
                }
                // Some read of the batch failed: page by page, so that one bad page costs one page.
                let one = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
                match port.read(geo.page_offset(page), one.clone()).done("cannot read a metadata page").await {
                    Ok(()) => one.with(|bytes| each(page, Ok(bytes))),
                    Err(e) => each(page, Err(e.to_string())),
                }
            }
        }
    }
    Ok(())
}

/// Reads pages `0..limit` and keeps those of chains.
pub async fn chain_pages(port: &Port, geo: &Geometry, overlay: &Overlay, limit: u32) -> Result<ChainPages> {
    let mut found = ChainPages::default();
    let all_pages: Vec<u32> = (0..limit).collect();
    read_pages(port, geo, overlay, &all_pages, |index, bytes| {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(why) => {
                found.unreadable.insert(index, why);
                return;
            }
        };
        let Ok((header, area)) = parse_page(bytes) else {
            // Roots only ever change through the journal, so ours are never torn: somebody's lvol is damaged here.
            if claims_to_be_root(bytes, index) {
                found.roots.insert(index);
            }
            return;
        };
        let root = header.sequence == 0 && header.id == blob_id(index);
        let extents = descriptors(area).next().is_some_and(|d| d.is_ok_and(|d| d.kind == 6));
        if (header.sequence == 0 && !root) || extents {
            return;
        }
        if let Some(page) = bytes.first_chunk::<PAGE_SIZE>() {
            found.pages.insert(index, Box::new(*page));
        }
        if root {
            found.roots.insert(index);
        }
    })
    .await?;
    Ok(found)
}

/// A page that begins as the root of the blob with this index does.
fn claims_to_be_root(bytes: &[u8], index: u32) -> bool {
    let [id, sequence] = [&blob_id(index).to_le_bytes()[..], &[0; 4]];
    bytes.get(..8) == Some(id) && bytes.get(8..12) == Some(sequence)
}

impl ChainPages {
    /// Follows the chain of a root. A broken chain answers with the pages up to the break and why.
    pub fn chain(&self, root: u32, geo: &Geometry, max_eps: u64) -> Chain {
        let mut pages = vec![root];
        let mut images: Vec<&[u8]> = Vec::new();
        let mut at = root;
        let broken = loop {
            let Some(image) = self.pages.get(&at) else {
                let why = self.unreadable.get(&at).map_or("does not check out", |e| e);
                break Some(format!("metadata page {at} of its chain: {why}"));
            };
            images.push(&image[..]);
            let next = match parse_page(&image[..]) {
                // Each page knows its owner and its position, so that a chain neither takes another's pages nor runs in
                // a circle.
                Ok((header, _)) if header.id != blob_id(root) || header.sequence as usize + 1 != pages.len() => {
                    let number = pages.len();
                    pages.pop();
                    break Some(format!("metadata page {at} is not the one with number {number} of the chain"));
                }
                Ok((header, _)) => header.next,
                Err(e) => break Some(format!("metadata page {at}: {e}")),
            };
            if next == PAGE_NONE {
                break None;
            }
            if next >= geo.md_len {
                break Some(format!("metadata page {at} leads to page {next}, which cannot be"));
            }
            pages.push(next);
            at = next;
        };
        let meta = match broken {
            Some(why) => Err(why),
            None => parse_chain(blob_id(root), &images, max_eps).map_err(|e| e.to_string()),
        };
        Chain { pages, meta }
    }

    /// What can be read of a damaged blob: its first page alone.
    pub fn root_alone(&self, root: u32) -> Option<BlobMeta> {
        let image = self.pages.get(&root)?;
        crate::format::blob::parse_xattrs_of_root(&image[..])
    }
}

/// Reads extent pages; hands each to `each` with the blob and the position for which it was asked.
pub async fn extent_pages(
    port: &Port,
    geo: &Geometry,
    overlay: &Overlay,
    wanted: &BTreeMap<u32, (u32, u32)>,
    mut each: impl FnMut(u32, u32, std::result::Result<Vec<u32>, String>),
) -> Result<()> {
    let pages: Vec<u32> = wanted.keys().copied().collect();
    read_pages(port, geo, overlay, &pages, |page, bytes| {
        let Some(&(owner, ep)) = wanted.get(&page) else { return };
        let entries = bytes.and_then(|b| extent_page::parse(b).map_err(|e| e.to_string())).and_then(|parsed| {
            if parsed.ep_index() == ep {
                Ok(parsed.entries)
            } else {
                Err(format!("it describes extent {} instead of {ep}", parsed.ep_index()))
            }
        });
        each(owner, ep, entries.map_err(|why| format!("extent page {page}: {why}")));
    })
    .await
}
