//! The structures on disk, decoded: super block, masks, metadata pages, descriptors. Pure: bytes in, values out, no I/O.
//! Every accessor is bounds-checked; nothing here trusts a length that it read.

use anyhow::{Result, bail, ensure};
use std::collections::BTreeSet;

/// Bytes of the super block and of the structured part of a metadata page, whatever md_page_size is.
pub const PAGE_BYTES: usize = 4096;
/// Descriptors live in `DESC_START..DESC_END` of a page.
pub const DESC_START: usize = 16;
pub const DESC_END: usize = 4088;
pub const EXTENTS_PER_PAGE: u64 = 512;
pub const PAGE_NONE: u32 = u32::MAX;
pub const BLOB_ID_NONE: u64 = u64::MAX;
pub const BLOB_ID_HIGH: u64 = 0x1_0000_0000;

pub const MASK_PAGES: u8 = 0;
pub const MASK_CLUSTERS: u8 = 1;
pub const MASK_BLOB_IDS: u8 = 2;
/// Type byte and bit count in front of each mask.
pub const MASK_HEADER_BYTES: u64 = 5;

fn take<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    match at.checked_add(N).and_then(|end| bytes.get(at..end)).and_then(|s| s.try_into().ok()) {
        Some(array) => Ok(array),
        None => bail!("{N} bytes wanted at {at}, only {} there", bytes.len()),
    }
}

pub fn u8_at(bytes: &[u8], at: usize) -> Result<u8> {
    take::<1>(bytes, at).map(|[b]| b)
}
pub fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    take(bytes, at).map(u16::from_le_bytes)
}
pub fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    take(bytes, at).map(u32::from_le_bytes)
}
pub fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    take(bytes, at).map(u64::from_le_bytes)
}

/// Whether the last four bytes are the CRC-32C of all before them (section 1.3).
pub fn crc_ok(page: &[u8]) -> bool {
    let Some((body, stored)) = page.get(..PAGE_BYTES).and_then(|p| p.split_last_chunk::<4>()) else { return false };
    crc32c::crc32c(body) == u32::from_le_bytes(*stored)
}

/// A contiguous area of metadata pages counted from the device's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    pub start: u32,
    pub len: u32,
}

impl Area {
    pub fn end(&self) -> u64 {
        u64::from(self.start) + u64::from(self.len)
    }
}

/// The super block as it lies on disk, zeroes of old stores included; see [`Super::geometry`] for the effective values.
#[derive(Debug, Clone)]
pub struct Super {
    pub version: u32,
    pub length: u32,
    pub clean: u32,
    pub super_blob: u64,
    pub cluster_size: u32,
    pub page_mask: Area,
    pub cluster_mask: Area,
    pub md: Area,
    pub bstype: [u8; 16],
    pub blob_id_mask: Area,
    pub size: u64,
    pub io_unit_size: u32,
    pub md_page_size: u32,
    pub reserved_zero: bool,
}

/// What follows from the super block and the device's size (sections 1.5 and 2.1).
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    pub size: u64,
    pub io_unit_size: u32,
    pub page_size: u64,
    pub cluster_size: u64,
    pub total_clusters: u32,
    /// Clusters 0..md_clusters hold super block, masks and metadata pages.
    pub md_clusters: u32,
}

impl Super {
    /// Signature, version, CRC: the first three tests of section 1.5, in SPDK's order.
    pub fn parse(page: &[u8]) -> Result<Super> {
        let version = u32_at(page, 8)?;
        ensure!((1..=3).contains(&version), "super.version: {version} is not 1..=3");
        ensure!(page.get(..8) == Some(b"SPDKBLOB"), "super.signature: no SPDKBLOB");
        ensure!(crc_ok(page), "super.crc: does not match");
        let area = |start, len| Ok::<_, anyhow::Error>(Area { start: u32_at(page, start)?, len: u32_at(page, len)? });
        Ok(Super {
            version,
            length: u32_at(page, 12)?,
            clean: u32_at(page, 16)?,
            super_blob: u64_at(page, 20)?,
            cluster_size: u32_at(page, 28)?,
            page_mask: area(32, 36)?,
            cluster_mask: area(40, 44)?,
            md: area(48, 52)?,
            bstype: take(page, 56)?,
            blob_id_mask: area(72, 76)?,
            size: u64_at(page, 80)?,
            io_unit_size: u32_at(page, 88)?,
            md_page_size: u32_at(page, 92)?,
            reserved_zero: page.get(96..4092).is_some_and(|r| r.iter().all(|&b| b == 0)),
        })
    }

    pub fn bstype_text(&self) -> String {
        self.bstype.iter().take_while(|&&b| b != 0).flat_map(|&b| b.escape_ascii()).map(char::from).collect()
    }

    /// Applies the defaults of old stores and checks that every area lies where it can.
    pub fn geometry(&self, device_size: u64) -> Result<Geometry> {
        let or = |value: u32, default: u32| if value == 0 { default } else { value };
        let size = if self.size == 0 { device_size } else { self.size };
        let io_unit_size = or(self.io_unit_size, 4096);
        let page_size = or(self.md_page_size, 4096);
        ensure!(size <= device_size, "super.size: {size} is more than the device's {device_size}");
        ensure!(
            page_size.is_power_of_two() && (4096..=65536).contains(&page_size),
            "super.md-page-size: {page_size} is no power of two in 4096..=65536"
        );
        ensure!(
            io_unit_size.is_power_of_two() && io_unit_size >= 512,
            "super.io-unit: {io_unit_size} is no possible block size"
        );
        ensure!(
            self.cluster_size >= page_size
                && self.cluster_size.is_multiple_of(4096)
                && self.cluster_size.is_multiple_of(io_unit_size),
            "super.cluster-size: {} does not suit pages of {page_size} and io units of {io_unit_size}",
            self.cluster_size
        );
        ensure!(self.md.len > 0, "super.geometry: no metadata pages");
        let total = size / u64::from(self.cluster_size);
        let total_clusters = u32::try_from(total)?;
        let page_size = u64::from(page_size);
        let md_clusters = self.md.end().div_ceil(u64::from(self.cluster_size) / page_size);
        ensure!(
            md_clusters <= total,
            "super.geometry: metadata takes {md_clusters} clusters of {total}, md pages end at {}",
            self.md.end()
        );
        let mut areas = vec![("used page mask", self.page_mask, self.md.len)];
        areas.push(("used cluster mask", self.cluster_mask, total_clusters));
        if self.blob_id_mask.len != 0 {
            areas.push(("used blob id mask", self.blob_id_mask, self.md.len));
        }
        for (name, area, bits) in &areas {
            let room = u64::from(area.len) * page_size;
            let need = MASK_HEADER_BYTES + u64::from(*bits).div_ceil(8);
            ensure!(room >= need, "super.geometry: {name} has {room} bytes and needs {need}");
        }
        areas.push(("super block", Area { start: 0, len: 1 }, 0));
        areas.push(("metadata pages", self.md, 0));
        areas.sort_by_key(|(_, area, _)| area.start);
        for pair in areas.windows(2) {
            if let [(a, first, _), (b, second, _)] = pair {
                ensure!(first.end() <= u64::from(second.start), "super.geometry: {a} reaches into {b}");
            }
        }
        ensure!(
            areas.last().is_some_and(|(_, a, _)| *a == self.md),
            "super.geometry: metadata pages do not come after the masks"
        );
        Ok(Geometry {
            size,
            io_unit_size,
            page_size,
            cluster_size: u64::from(self.cluster_size),
            total_clusters,
            md_clusters: u32::try_from(md_clusters)?,
        })
    }
}

/// One of the three bitmaps (section 2.2).
#[derive(Debug, Clone)]
pub struct Mask {
    pub kind: u8,
    pub bits: u32,
    /// Bits below `bits`.
    pub set: BTreeSet<u32>,
    /// Nothing is set between the last counted bit and the end of the area.
    pub tail_zero: bool,
}

impl Mask {
    pub fn parse(area: &[u8]) -> Result<Mask> {
        let kind = u8_at(area, 0)?;
        let bits = u32_at(area, 1)?;
        let mut set = BTreeSet::new();
        let mut tail_zero = true;
        for (at, byte) in area.iter().skip(5).enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                match u32::try_from(at * 8 + bit) {
                    Ok(index) if index < bits => _ = set.insert(index),
                    _ => tail_zero = false,
                }
            }
        }
        Ok(Mask { kind, bits, set, tail_zero })
    }
}

/// A metadata page whose CRC is right (section 3.1).
#[derive(Debug, Clone)]
pub struct Page {
    pub id: u64,
    pub sequence: u32,
    pub reserved: u32,
    pub next: u32,
    bytes: Box<[u8]>,
}

/// A descriptor inside a page: its type and the bytes after the five-byte header.
#[derive(Debug, Clone, Copy)]
pub struct Desc<'a> {
    pub kind: u8,
    pub body: &'a [u8],
    /// Offset in the page of the byte after it.
    pub end: usize,
}

/// All descriptors of a page, and how the list ended.
pub struct Descs<'a> {
    pub list: Vec<Desc<'a>>,
    /// A descriptor that reaches out of the page stops the parsing.
    pub overrun: Option<String>,
    /// Everything after the last descriptor is zero.
    pub tail_zero: bool,
}

impl Page {
    /// None when the CRC does not match.
    pub fn parse(bytes: &[u8]) -> Option<Page> {
        let bytes = bytes.get(..PAGE_BYTES)?;
        if !crc_ok(bytes) {
            return None;
        }
        Some(Page {
            id: u64_at(bytes, 0).ok()?,
            sequence: u32_at(bytes, 8).ok()?,
            reserved: u32_at(bytes, 12).ok()?,
            next: u32_at(bytes, DESC_END).ok()?,
            bytes: bytes.into(),
        })
    }

    /// Rule 2 of section 8.1: sequence 0 and the id that belongs to this index.
    pub fn is_root_at(&self, index: u32) -> bool {
        self.sequence == 0 && self.id == BLOB_ID_HIGH | u64::from(index)
    }

    pub fn descriptors(&self) -> Descs<'_> {
        let area = self.bytes.get(..DESC_END).unwrap_or_default();
        let mut at = DESC_START;
        let mut list = Vec::new();
        let mut overrun = None;
        while let (Ok(kind), Ok(length)) = (u8_at(area, at), u32_at(area, at + 1)) {
            if kind == 0 && length == 0 {
                break;
            }
            let start = at + 5;
            let Some(body) = (length as usize).checked_add(start).and_then(|end| area.get(start..end)) else {
                overrun = Some(format!("descriptor of type {kind} at {at} with length {length} leaves the page"));
                break;
            };
            at = start + body.len();
            list.push(Desc { kind, body, end: at });
        }
        let tail_zero = area.get(at..).is_none_or(|tail| tail.iter().all(|&b| b == 0));
        Descs { list, overrun, tail_zero }
    }

    /// The `count` bytes at `at`, as far as the descriptor area has them, are all zero.
    pub fn zero_at(&self, at: usize, count: usize) -> bool {
        let end = (at + count).min(DESC_END);
        self.bytes.get(at..end).is_none_or(|bytes| bytes.iter().all(|&b| b == 0))
    }
}

/// Lower-case 8-4-4-4-12 text (section 9.2).
pub fn is_uuid_text(text: &[u8]) -> bool {
    text.len() == 36
        && text.iter().enumerate().all(|(at, &c)| match at {
            8 | 13 | 18 | 23 => c == b'-',
            _ => c.is_ascii_digit() || (b'a'..=b'f').contains(&c),
        })
}
