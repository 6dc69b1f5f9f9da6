//! The super block: 4096 bytes at byte 0 of the device, whatever the metadata page size.
//!
//! | off | width | field |
//! |---:|---:|---|
//! | 0 | 8 | signature `SPDKBLOB` |
//! | 8 | 4 | version, 3 |
//! | 12 | 4 | length, 4096 |
//! | 16 | 4 | clean: 1 = the masks can be trusted |
//! | 20 | 8 | id of the super blob |
//! | 28 | 4 | cluster size, bytes |
//! | 32, 36 | 4, 4 | used page mask: start, length (pages) |
//! | 40, 44 | 4, 4 | used cluster mask: start, length in use (pages) |
//! | 48, 52 | 4, 4 | metadata pages: start, number |
//! | 56 | 16 | blobstore type |
//! | 72, 76 | 4, 4 | used blob id mask: start, length (pages); length 0 in versions 1 and 2 |
//! | 80 | 8 | bytes of the device that are covered; 0 = all (old stores) |
//! | 88 | 4 | I/O unit, bytes; 0 = 4096 (old stores) |
//! | 92 | 4 | metadata page size, bytes; 0 = 4096 (old stores) |
//! | 96 | 3716 | reserved, kept as found |
//! | 3812 | 24 | owner, see [`owner`](super::owner) |
//! | 3836 | 256 | private area, see [`private`](super::private) |
//! | 4092 | 4 | CRC-32C of bytes 0..4092 |

use super::bytes::{array_at, put, put_u32, put_u64, u32_at, u64_at};
use super::error::FormatError;
use super::geometry::{Geometry, Layout};
use super::owner::{self, OWNER_AT, OWNER_LEN};
use super::page::{BLOBID_NONE, PAGE_SIZE, Page, as_page, check_crc, seal_page};
use super::private::{AREA_AT, AREA_LEN, Private};
use uuid::Uuid;

const SIGNATURE: &[u8; 8] = b"SPDKBLOB";
/// The version that is written; 1 and 2 can be read.
pub const VERSION: u32 = 3;
/// Type of a store that SPDK's lvol layer opens.
pub const BSTYPE_LVOLSTORE: [u8; 16] = *b"LVOLSTORE\0\0\0\0\0\0\0";
/// Type of a store that is ours at the moment; SPDK's lvol layer leaves it alone.
pub const BSTYPE_COPPICE: [u8; 16] = *b"COPPICE\0\0\0\0\0\0\0\0\0";
/// What a zero in the fields `io_unit_size` and `md_page_size` means.
const OLD_UNIT: u32 = 4096;

/// The page as it was read, so that encoding keeps every byte that we do not know.
#[derive(Clone)]
struct Raw(Box<Page>);

impl std::fmt::Debug for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("…")
    }
}

/// A super block. Fields are as on disk, except that `io_unit_size` and `md_page_size` are never 0.
#[derive(Clone, Debug)]
pub struct SuperBlock {
    pub version: u32,
    pub length: u32,
    pub clean: u32,
    /// [`BLOBID_NONE`] if there is none.
    pub super_blob: u64,
    pub cluster_size: u32,
    pub used_page_mask_start: u32,
    pub used_page_mask_len: u32,
    pub used_cluster_mask_start: u32,
    pub used_cluster_mask_len: u32,
    pub md_start: u32,
    pub md_len: u32,
    pub bstype: [u8; 16],
    pub used_blobid_mask_start: u32,
    pub used_blobid_mask_len: u32,
    /// 0 = the whole device; see [`SuperBlock::covered`].
    pub size: u64,
    pub io_unit_size: u32,
    pub md_page_size: u32,
    raw: Raw,
}

/// A zero of an old store stays zero as long as the value is what the zero stands for.
fn keep_zero(raw: u32, value: u32) -> u32 {
    if raw == 0 && value == OLD_UNIT { 0 } else { value }
}

impl SuperBlock {
    /// Checks signature, version and CRC and reads the fields. Their ranges are a matter of
    /// [`SuperBlock::validate_geometry`], which needs the device's size.
    ///
    /// The signature is looked at first (SPDK: the version), so that a blank device is not called a strange version.
    pub fn parse(bytes: &[u8]) -> Result<SuperBlock, FormatError> {
        let page = as_page(bytes, "super block")?;
        if &array_at::<8>(page, 0)? != SIGNATURE {
            return Err(FormatError::BadSignature);
        }
        let version = u32_at(page, 8)?;
        if !(1..=VERSION).contains(&version) {
            return Err(FormatError::BadVersion(version));
        }
        check_crc(page, "super block")?;
        let or_old = |value| if value == 0 { OLD_UNIT } else { value };
        Ok(SuperBlock {
            version,
            length: u32_at(page, 12)?,
            clean: u32_at(page, 16)?,
            super_blob: u64_at(page, 20)?,
            cluster_size: u32_at(page, 28)?,
            used_page_mask_start: u32_at(page, 32)?,
            used_page_mask_len: u32_at(page, 36)?,
            used_cluster_mask_start: u32_at(page, 40)?,
            used_cluster_mask_len: u32_at(page, 44)?,
            md_start: u32_at(page, 48)?,
            md_len: u32_at(page, 52)?,
            bstype: array_at(page, 56)?,
            used_blobid_mask_start: u32_at(page, 72)?,
            used_blobid_mask_len: u32_at(page, 76)?,
            size: u64_at(page, 80)?,
            io_unit_size: or_old(u32_at(page, 88)?),
            md_page_size: or_old(u32_at(page, 92)?),
            raw: Raw(Box::new(*page)),
        })
    }

    /// The super block of a new store: not clean, no super blob, no owner, no private area.
    pub fn new(layout: &Layout, bstype: [u8; 16]) -> SuperBlock {
        SuperBlock {
            version: VERSION,
            length: PAGE_SIZE as u32,
            clean: 0,
            super_blob: BLOBID_NONE,
            cluster_size: layout.cluster_size,
            used_page_mask_start: layout.used_page_mask_start,
            used_page_mask_len: layout.used_page_mask_len,
            used_cluster_mask_start: layout.used_cluster_mask_start,
            used_cluster_mask_len: layout.used_cluster_mask_len,
            md_start: layout.md_start,
            md_len: layout.md_len,
            bstype,
            used_blobid_mask_start: layout.used_blobid_mask_start,
            used_blobid_mask_len: layout.used_blobid_mask_len,
            size: layout.size,
            io_unit_size: layout.io_unit_size,
            md_page_size: layout.md_page_size,
            raw: Raw(Box::new(fresh_raw())),
        }
    }

    /// The 4096 bytes for the device, CRC included.
    pub fn encode(&self) -> Page {
        let mut page = *self.raw.0;
        let raw_unit = |at| u32_at(&page, at).unwrap_or(OLD_UNIT);
        let (io_unit, md_page) =
            (keep_zero(raw_unit(88), self.io_unit_size), keep_zero(raw_unit(92), self.md_page_size));
        put(&mut page, 0, SIGNATURE);
        put_u32(&mut page, 8, self.version);
        put_u32(&mut page, 12, self.length);
        put_u32(&mut page, 16, self.clean);
        put_u64(&mut page, 20, self.super_blob);
        put_u32(&mut page, 28, self.cluster_size);
        put_u32(&mut page, 32, self.used_page_mask_start);
        put_u32(&mut page, 36, self.used_page_mask_len);
        put_u32(&mut page, 40, self.used_cluster_mask_start);
        put_u32(&mut page, 44, self.used_cluster_mask_len);
        put_u32(&mut page, 48, self.md_start);
        put_u32(&mut page, 52, self.md_len);
        put(&mut page, 56, &self.bstype);
        put_u32(&mut page, 72, self.used_blobid_mask_start);
        put_u32(&mut page, 76, self.used_blobid_mask_len);
        put_u64(&mut page, 80, self.size);
        put_u32(&mut page, 88, io_unit);
        put_u32(&mut page, 92, md_page);
        seal_page(&mut page);
        page
    }

    /// True if the masks can be trusted. Values besides 0 and 1 do not occur; they count as "not clean", which is safe.
    pub fn is_clean(&self) -> bool {
        self.clean == 1
    }

    /// Bytes of the device that the store covers.
    pub fn covered(&self, device_size: u64) -> u64 {
        if self.size == 0 { device_size } else { self.size }
    }

    /// Checks that every field makes sense and every area lies inside a device of `device_size` bytes, on its own.
    pub fn validate_geometry(&self, device_size: u64) -> Result<(), FormatError> {
        Geometry::new(self, device_size).map(|_| ())
    }

    /// The private area; `None` if it was never used.
    pub fn private(&self) -> Result<Option<Private>, FormatError> {
        Private::parse(&array_at::<AREA_LEN>(self.raw.0.as_slice(), AREA_AT)?)
    }

    /// Sets the private area; `None` makes it zero again.
    pub fn set_private(&mut self, private: Option<&Private>) -> Result<(), FormatError> {
        let area = match private {
            Some(private) => private.encode()?,
            None => [0; AREA_LEN],
        };
        put(self.raw.0.as_mut_slice(), AREA_AT, &area);
        Ok(())
    }

    /// Counts the generation up, and answers with the new one. For a store in use: without a private area it is an error.
    pub fn next_generation(&mut self) -> Result<u64, FormatError> {
        let missing = FormatError::BadMagic { what: "private area of the super block" };
        let mut private = self.private()?.ok_or(missing)?;
        private.generation += 1;
        self.set_private(Some(&private))?;
        Ok(private.generation)
    }

    /// Whose store it is; `None` if nobody's.
    pub fn owner(&self) -> Result<Option<Uuid>, FormatError> {
        owner::parse(&array_at::<OWNER_LEN>(self.raw.0.as_slice(), OWNER_AT)?)
    }

    /// Sets the owner; `None` makes the place zero again. An error if something else is there.
    pub fn set_owner(&mut self, owner: Option<Uuid>) -> Result<(), FormatError> {
        self.owner()?;
        put(self.raw.0.as_mut_slice(), OWNER_AT, &owner::encode(owner)?);
        Ok(())
    }
}

/// Two super blocks are equal if the same bytes would be written.
impl PartialEq for SuperBlock {
    fn eq(&self, other: &SuperBlock) -> bool {
        self.encode() == other.encode()
    }
}

impl Eq for SuperBlock {}

/// A page in which no field is an old store's zero.
fn fresh_raw() -> Page {
    let mut page = [0; PAGE_SIZE];
    put_u32(&mut page, 88, OLD_UNIT);
    put_u32(&mut page, 92, OLD_UNIT);
    page
}
