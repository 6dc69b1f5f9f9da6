//! Structures of the system blob. SPDK never sees them. All are 4096-byte pages with CRC-32C of bytes 0..4092 at 4092;
//! bytes that no table names are zero.
//!
//! *Copy of the super block*: an envelope, and on the next page the image.
//!
//! | off | width | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `COPPSUPR` |
//! | 8 | 4 | version, 1 |
//! | 12 | 8 | byte offset of this envelope on the device: data that merely looks like one is not taken for one |
//! | 20 | 8 | generation; the newest wins |
//! | 28 | 16 | UUID of the lvstore |
//! | 44 | 4 | CRC-32C of the 4096-byte image |
//!
//! *Journal head*, two copies written in turn:
//!
//! | off | width | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `COPPHEAD` |
//! | 8 | 4 | version, 1 |
//! | 12 | 8 | generation; the newer copy wins |
//! | 20 | 8 | nonce of this opening; records of another one are not replayed |
//! | 28 | 8 | sequence number of the oldest record to replay |
//! | 36 | 4 | page in the ring where that record begins |
//! | 40 | 4 | no metadata page from this index on is in use |
//! | 44 | 16 | UUID of the lvstore |
//!
//! *Record*: a header page, then `page_count` images in order.
//!
//! | off | width | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `COPPJRNL` |
//! | 8 | 8 | nonce |
//! | 16 | 8 | sequence number |
//! | 24 | 4 | no metadata page from this index on is in use, once the record is applied |
//! | 28 | 4 | page_count, at most 500 |
//! | 64 | 8 × page_count | metadata page index u32, CRC-32C of the image u32; no index twice |

use std::collections::BTreeSet;

use super::bytes::{all_zero, array_at, put, put_u32, put_u64, u32_at, u64_at};
use super::error::FormatError;
use super::page::{CRC_AT, PAGE_SIZE, Page, as_page, check_crc, seal_page};

const VERSION: u32 = 1;
const SUPER_MAGIC: &[u8; 8] = b"COPPSUPR";
const HEAD_MAGIC: &[u8; 8] = b"COPPHEAD";
const RECORD_MAGIC: &[u8; 8] = b"COPPJRNL";
const SUPER_END: usize = 48;
const HEAD_END: usize = 60;
const ENTRIES_AT: usize = 64;
/// Most pages in one record.
pub const RECORD_PAGES_MAX: usize = 500;

const _: () = assert!(ENTRIES_AT + 8 * RECORD_PAGES_MAX <= CRC_AT);

/// Magic and CRC: what every structure here is checked for first.
fn open<'a>(bytes: &'a [u8], magic: &[u8; 8], what: &'static str) -> Result<&'a Page, FormatError> {
    let page = as_page(bytes, what)?;
    if &array_at::<8>(page, 0)? != magic {
        return Err(FormatError::BadMagic { what });
    }
    check_crc(page, what)?;
    Ok(page)
}

fn check_version(page: &Page, field: &'static str) -> Result<(), FormatError> {
    match u32_at(page, 8)? {
        VERSION => Ok(()),
        other => Err(FormatError::field(field, other, "written by a newer version of Coppice")),
    }
}

fn check_rest(page: &Page, from: usize, to: usize, field: &'static str) -> Result<(), FormatError> {
    match page.get(from..to) {
        Some(rest) if all_zero(rest) => Ok(()),
        _ => Err(FormatError::field(field, from as u64, "bytes that have no meaning are not zero")),
    }
}

/// Checksum of a page as a record or an envelope promises it. The page's own CRC goes first: a CRC over a text and its CRC
/// behind it is the same number for every text, and would match any intact page.
fn image_crc(image: &Page) -> u32 {
    let (body, own_crc) = image.split_at(CRC_AT);
    crc32c::crc32c_append(crc32c::crc32c(own_crc), body)
}

/// Envelope of the second copy of the super block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuperCopy {
    /// Byte offset of the envelope on the device.
    pub own_offset: u64,
    pub generation: u64,
    pub store_uuid: [u8; 16],
    pub image_crc: u32,
}

impl SuperCopy {
    /// The envelope for `image`.
    pub fn of(image: &Page, own_offset: u64, generation: u64, store_uuid: [u8; 16]) -> SuperCopy {
        SuperCopy { own_offset, generation, store_uuid, image_crc: image_crc(image) }
    }

    pub fn parse(bytes: &[u8]) -> Result<SuperCopy, FormatError> {
        let page = open(bytes, SUPER_MAGIC, "copy of the super block")?;
        check_version(page, "version of the copy of the super block")?;
        check_rest(page, SUPER_END, CRC_AT, "copy of the super block, from byte")?;
        Ok(SuperCopy {
            own_offset: u64_at(page, 12)?,
            generation: u64_at(page, 20)?,
            store_uuid: array_at(page, 28)?,
            image_crc: u32_at(page, 44)?,
        })
    }

    pub fn encode(&self) -> Page {
        let mut page = [0; PAGE_SIZE];
        put(&mut page, 0, SUPER_MAGIC);
        put_u32(&mut page, 8, VERSION);
        put_u64(&mut page, 12, self.own_offset);
        put_u64(&mut page, 20, self.generation);
        put(&mut page, 28, &self.store_uuid);
        put_u32(&mut page, 44, self.image_crc);
        seal_page(&mut page);
        page
    }

    /// Whether the page behind the envelope is the image that belongs to it.
    pub fn matches(&self, image: &[u8]) -> bool {
        as_page(image, "image").is_ok_and(|image| image_crc(image) == self.image_crc)
    }
}

/// Where replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalHead {
    pub generation: u64,
    pub nonce: u64,
    pub tail_seq: u64,
    /// In pages from the start of the ring.
    pub tail_page: u32,
    pub md_limit: u32,
    pub store_uuid: [u8; 16],
}

impl JournalHead {
    pub fn parse(bytes: &[u8]) -> Result<JournalHead, FormatError> {
        let page = open(bytes, HEAD_MAGIC, "journal head")?;
        check_version(page, "version of the journal head")?;
        check_rest(page, HEAD_END, CRC_AT, "journal head, from byte")?;
        Ok(JournalHead {
            generation: u64_at(page, 12)?,
            nonce: u64_at(page, 20)?,
            tail_seq: u64_at(page, 28)?,
            tail_page: u32_at(page, 36)?,
            md_limit: u32_at(page, 40)?,
            store_uuid: array_at(page, 44)?,
        })
    }

    pub fn encode(&self) -> Page {
        let mut page = [0; PAGE_SIZE];
        put(&mut page, 0, HEAD_MAGIC);
        put_u32(&mut page, 8, VERSION);
        put_u64(&mut page, 12, self.generation);
        put_u64(&mut page, 20, self.nonce);
        put_u64(&mut page, 28, self.tail_seq);
        put_u32(&mut page, 36, self.tail_page);
        put_u32(&mut page, 40, self.md_limit);
        put(&mut page, 44, &self.store_uuid);
        seal_page(&mut page);
        page
    }
}

/// One page of a record: where it goes and the CRC of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPage {
    pub index: u32,
    pub image_crc: u32,
}

impl RecordPage {
    pub fn of(index: u32, image: &Page) -> RecordPage {
        RecordPage { index, image_crc: image_crc(image) }
    }

    /// Whether `image` is what the header promised; a torn record fails here.
    pub fn matches(&self, image: &[u8]) -> bool {
        as_page(image, "image").is_ok_and(|image| image_crc(image) == self.image_crc)
    }
}

/// Header page of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub nonce: u64,
    pub seq: u64,
    pub md_limit: u32,
    /// At most [`RECORD_PAGES_MAX`], no index twice.
    pub pages: Vec<RecordPage>,
}

impl RecordHeader {
    pub fn parse(bytes: &[u8]) -> Result<RecordHeader, FormatError> {
        let page = open(bytes, RECORD_MAGIC, "journal record")?;
        let count = u32_at(page, 28)? as usize;
        if count > RECORD_PAGES_MAX {
            return Err(FormatError::field("pages of a journal record", count as u64, "at most 500 are possible"));
        }
        check_rest(page, 32, ENTRIES_AT, "journal record, from byte")?;
        check_rest(page, ENTRIES_AT + 8 * count, CRC_AT, "journal record, from byte")?;
        let mut pages = Vec::with_capacity(count);
        for n in 0..count {
            let at = ENTRIES_AT + 8 * n;
            pages.push(RecordPage { index: u32_at(page, at)?, image_crc: u32_at(page, at + 4)? });
        }
        let record =
            RecordHeader { nonce: u64_at(page, 8)?, seq: u64_at(page, 16)?, md_limit: u32_at(page, 24)?, pages };
        record.check()?;
        Ok(record)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.pages.len() > RECORD_PAGES_MAX {
            let n = self.pages.len() as u64;
            return Err(FormatError::field("pages of a journal record", n, "at most 500 are possible"));
        }
        let mut seen = BTreeSet::new();
        match self.pages.iter().find(|page| !seen.insert(page.index)) {
            Some(twice) => Err(FormatError::field("page of a journal record", twice.index, "it is named twice")),
            None => Ok(()),
        }
    }

    pub fn encode(&self) -> Result<Page, FormatError> {
        self.check()?;
        let mut page = [0; PAGE_SIZE];
        put(&mut page, 0, RECORD_MAGIC);
        put_u64(&mut page, 8, self.nonce);
        put_u64(&mut page, 16, self.seq);
        put_u32(&mut page, 24, self.md_limit);
        put_u32(&mut page, 28, self.pages.len() as u32);
        for (n, entry) in self.pages.iter().enumerate() {
            put_u32(&mut page, ENTRIES_AT + 8 * n, entry.index);
            put_u32(&mut page, ENTRIES_AT + 8 * n + 4, entry.image_crc);
        }
        seal_page(&mut page);
        Ok(page)
    }

    /// Pages that the record takes in the ring, its header included.
    pub fn ring_pages(&self) -> u32 {
        1 + self.pages.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Once the checksum of a record covered its pages in order, own CRC last: every intact page matched, and a record
    /// whose images had not reached the disk was replayed with what an older record had left there.
    #[test]
    fn another_intact_page_does_not_match() {
        let sealed = |byte| {
            let mut page = [byte; PAGE_SIZE];
            seal_page(&mut page);
            page
        };
        let (a, b, zero) = (sealed(1), sealed(2), [0; PAGE_SIZE]);
        assert_eq!(crc32c::crc32c(&a), crc32c::crc32c(&b), "the trap");
        let entry = RecordPage::of(7, &a);
        assert!(entry.matches(&a) && !entry.matches(&b) && !entry.matches(&zero));
        assert!(!SuperCopy::of(&a, 0, 1, [0; 16]).matches(&b));
    }
}
