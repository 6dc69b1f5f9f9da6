//! The metadata page: header, descriptor area, CRC.
//!
//! | off | width | field |
//! |---:|---:|---|
//! | 0 | 8 | blob id: the owner (chain pages), who wrote last (extent pages) |
//! | 8 | 4 | sequence number: position in the chain; 0 for roots and extent pages |
//! | 12 | 4 | reserved |
//! | 16 | 4072 | descriptors, back to back |
//! | 4088 | 4 | index of the next chain page, or [`PAGE_NONE`] |
//! | 4092 | 4 | CRC-32C of bytes 0..4092 |
//!
//! A descriptor is `type u8, length u32, body`. It never spans pages. (0, 0) ends the page.

use super::bytes::{put, put_u32, put_u64, u32_at, u64_at};
use super::error::FormatError;

/// Bytes of a structured page. Metadata pages may be larger; the rest of them means nothing.
pub const PAGE_SIZE: usize = 4096;
/// Where the CRC of a page, of the super block and of our own structures sits.
pub(super) const CRC_AT: usize = PAGE_SIZE - 4;
/// Where the descriptors begin.
pub(super) const DESC_AT: usize = 16;
/// Bytes available for descriptors.
pub const DESC_AREA: usize = 4072;
const NEXT_AT: usize = 4088;
/// Type and length in front of a descriptor's body.
pub(super) const DESC_HEADER: usize = 5;

/// `next` of the last page of a chain.
pub const PAGE_NONE: u32 = u32::MAX;
/// "No blob": the super block of a store without super blob.
pub const BLOBID_NONE: u64 = u64::MAX;
/// Set in every blob id; the low 32 bits are the index of the root page.
pub const BLOBID_HIGH: u64 = 1 << 32;
/// Clusters that one extent page describes.
pub const EXTENTS_PER_PAGE: u32 = 512;

/// One page as it lies on disk.
pub type Page = [u8; PAGE_SIZE];

const _: () = assert!(DESC_AT + DESC_AREA == NEXT_AT && NEXT_AT + 4 == CRC_AT && size_of::<Page>() == 4096);

pub(super) mod desc {
    pub const PADDING: u8 = 0;
    pub const EXTENT_RLE: u8 = 1;
    pub const XATTR: u8 = 2;
    pub const FLAGS: u8 = 3;
    pub const XATTR_INTERNAL: u8 = 4;
    pub const EXTENT_TABLE: u8 = 5;
    pub const EXTENT_PAGE: u8 = 6;
}

/// The id of the blob whose root is metadata page `root`.
pub fn blob_id(root: u32) -> u64 {
    BLOBID_HIGH | u64::from(root)
}

/// The root page of blob `id`, if `id` can be a blob id.
pub fn root_of(id: u64) -> Option<u32> {
    if id >> 32 == 1 && id as u32 != PAGE_NONE { Some(id as u32) } else { None }
}

/// What a page says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageHeader {
    pub id: u64,
    pub sequence: u32,
    /// Index of the next chain page, or [`PAGE_NONE`].
    pub next: u32,
}

impl PageHeader {
    pub fn next_page(&self) -> Option<u32> {
        if self.next == PAGE_NONE { None } else { Some(self.next) }
    }
}

/// The first 4096 bytes of `bytes`.
pub(super) fn as_page<'a>(bytes: &'a [u8], what: &'static str) -> Result<&'a Page, FormatError> {
    bytes.first_chunk().ok_or(FormatError::Truncated { what, need: PAGE_SIZE, have: bytes.len() })
}

/// CRC-32C over everything in front of the CRC field.
pub fn page_crc(page: &Page) -> u32 {
    crc32c::crc32c(&page[..CRC_AT])
}

pub(super) fn check_crc(page: &Page, what: &'static str) -> Result<(), FormatError> {
    let (stored, computed) = (u32_at(page, CRC_AT)?, page_crc(page));
    if stored != computed {
        return Err(FormatError::BadCrc { what, stored, computed });
    }
    Ok(())
}

/// Checks the CRC of the first 4096 bytes of `bytes`; answers the header and the descriptor area ([`DESC_AREA`] bytes).
pub fn parse_page(bytes: &[u8]) -> Result<(PageHeader, &[u8]), FormatError> {
    let page = as_page(bytes, "metadata page")?;
    check_crc(page, "metadata page")?;
    let header = PageHeader { id: u64_at(page, 0)?, sequence: u32_at(page, 8)?, next: u32_at(page, NEXT_AT)? };
    Ok((header, &page[DESC_AT..NEXT_AT]))
}

/// Writes the CRC; the last thing that happens to a page.
pub fn seal_page(page: &mut Page) {
    let crc = page_crc(page);
    put_u32(page, CRC_AT, crc);
}

/// One descriptor. `offset` counts from the start of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor<'a> {
    pub kind: u8,
    pub offset: usize,
    pub body: &'a [u8],
}

impl Descriptor<'_> {
    pub(super) fn bad(&self, why: &'static str) -> FormatError {
        FormatError::BadDescriptor { kind: self.kind, offset: self.offset, why }
    }
}

/// The descriptors of an area; padding is skipped. Ends after the first error.
#[derive(Clone, Debug)]
pub struct Descriptors<'a> {
    area: &'a [u8],
    at: usize,
}

/// Walks the descriptors of `area`, as [`parse_page`] answered it.
pub fn descriptors(area: &[u8]) -> Descriptors<'_> {
    Descriptors { area, at: 0 }
}

impl<'a> Iterator for Descriptors<'a> {
    type Item = Result<Descriptor<'a>, FormatError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let rest = self.area.get(self.at..)?;
            let (&header, rest) = rest.split_first_chunk::<DESC_HEADER>()?;
            let [kind, a, b, c, d] = header;
            let length = u32::from_le_bytes([a, b, c, d]);
            if kind == desc::PADDING && length == 0 {
                return None;
            }
            let offset = DESC_AT + self.at;
            let Some(body) = rest.get(..length as usize) else {
                self.at = self.area.len();
                return Some(Err(FormatError::BadDescriptor { kind, offset, why: "it does not end inside the page" }));
            };
            self.at += DESC_HEADER + body.len();
            if kind != desc::PADDING {
                return Some(Ok(Descriptor { kind, offset, body }));
            }
        }
    }
}

/// Builds a page descriptor by descriptor.
pub(super) struct PageBuilder {
    page: Page,
    at: usize,
}

impl PageBuilder {
    pub fn new(header: PageHeader) -> Self {
        let mut page = [0; PAGE_SIZE];
        put_u64(&mut page, 0, header.id);
        put_u32(&mut page, 8, header.sequence);
        put_u32(&mut page, NEXT_AT, header.next);
        PageBuilder { page, at: DESC_AT }
    }

    /// Appends a descriptor whose body is `parts`, one after the other.
    pub fn push(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(), FormatError> {
        let length: usize = parts.iter().map(|p| p.len()).sum();
        if DESC_HEADER + length > NEXT_AT - self.at {
            let need = DESC_HEADER + length;
            return Err(FormatError::Truncated { what: "room in a metadata page", need, have: NEXT_AT - self.at });
        }
        self.page[self.at] = kind;
        put_u32(&mut self.page, self.at + 1, length as u32);
        self.at += DESC_HEADER;
        for part in parts {
            put(&mut self.page, self.at, part);
            self.at += part.len();
        }
        Ok(())
    }

    pub fn seal(mut self) -> Page {
        seal_page(&mut self.page);
        self.page
    }
}
