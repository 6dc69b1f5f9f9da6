//! A store to be damaged on purpose: the metadata of a healthy one in memory, edits that keep CRCs right, and a copy on
//! disk for the reader. Data clusters are left out; no check looks at them.

use super::reader::blob::Blob;
use super::reader::{Options, Reader};
use super::unpack::Fixture;
use anyhow::{Context, Result, ensure};
use std::fs::File;
use std::os::unix::fs::FileExt;

const PAGE_BYTES: usize = 4096;
const DESC_END: usize = 4088;

pub struct Patient {
    fixture: Fixture,
    /// From the device's start to the end of the last metadata page.
    bytes: Vec<u8>,
    image_len: u64,
    base_block_size: u32,
    /// The store before any damage.
    pub healthy: Reader,
}

impl Patient {
    pub fn new(fixture: &str) -> Result<Option<Patient>> {
        let Some(fixture) = Fixture::unpack(fixture)? else { return Ok(None) };
        let healthy = Reader::open(fixture.image())?;
        let file = File::open(fixture.image())?;
        let mut bytes = vec![0; healthy.page_offset(healthy.super_block().md.len) as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let base_block_size = fixture.facts["base_block_size"].as_u64().context("no base_block_size")? as u32;
        let image_len = file.metadata()?.len();
        Ok(Some(Patient { fixture, bytes, image_len, base_block_size, healthy }))
    }

    /// Applies the damage to a copy and lets the reader look at it. The patient stays as it was.
    pub fn examine(
        &mut self,
        damage: impl FnOnce(&mut Patient) -> Result<()>,
        options: impl FnOnce(&mut Options),
    ) -> Result<Result<Reader>> {
        let before = self.bytes.clone();
        let result = damage(self);
        let bytes = std::mem::replace(&mut self.bytes, before);
        result?;
        ensure!(bytes != self.bytes, "nothing was damaged");
        let path = self.fixture.file("damaged.img");
        let file = File::create(&path)?;
        file.set_len(self.image_len)?;
        let pages = bytes.chunks(PAGE_BYTES).enumerate().filter(|(_, page)| **page != [0; PAGE_BYTES]);
        for (index, page) in pages {
            file.write_all_at(page, (index * PAGE_BYTES) as u64)?;
        }
        let mut given = Options { base_block_size: Some(self.base_block_size), lenient: true, ..Options::default() };
        options(&mut given);
        Ok(Reader::open_with(&path, given))
    }

    pub fn id(&self, lvol: &str) -> Result<u64> {
        Ok(self.healthy.lvol(lvol)?.blob_id)
    }

    pub fn blob(&self, lvol: &str) -> Result<&Blob> {
        self.healthy.blob(self.id(lvol)?).context("no blob")
    }

    pub fn root(&self, lvol: &str) -> Result<u32> {
        Ok(self.blob(lvol)?.chain[0])
    }

    pub fn extent_page(&self, lvol: &str) -> Result<u32> {
        self.blob(lvol)?.extent_pages.first().map(|ep| ep.page).context("no extent page")
    }

    /// Some lvol's first own cluster.
    pub fn cluster(&self, lvol: &str) -> Result<u32> {
        self.blob(lvol)?.map.values().next().copied().context("no own cluster")
    }

    pub fn edit_super(&mut self, edit: impl FnOnce(&mut [u8])) -> Result<()> {
        let page = &mut self.bytes[..PAGE_BYTES];
        edit(page);
        seal(page);
        Ok(())
    }

    pub fn super_u32(&mut self, at: usize, value: u32) -> Result<()> {
        self.edit_super(|page| put_u32(page, at, value))
    }

    /// Raw bytes, no CRC: masks, and pages to be left with a wrong one.
    pub fn raw(&mut self, offset: u64) -> &mut u8 {
        &mut self.bytes[offset as usize]
    }

    pub fn raw_page(&mut self, index: u32) -> &mut [u8] {
        let at = self.healthy.page_offset(index) as usize;
        &mut self.bytes[at..at + PAGE_BYTES]
    }

    pub fn edit_page(&mut self, index: u32, edit: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let page = self.raw_page(index);
        edit(page)?;
        seal(page);
        Ok(())
    }

    pub fn edit_root(&mut self, lvol: &str, edit: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        self.edit_page(self.root(lvol)?, edit)
    }

    pub fn edit_extent_page(&mut self, lvol: &str, edit: impl FnOnce(&mut [u8])) -> Result<()> {
        self.edit_page(self.extent_page(lvol)?, |page| {
            edit(page);
            Ok(())
        })
    }

    /// Puts a cluster into the first entry of the lvol's first extent page.
    pub fn map_first(&mut self, lvol: &str, cluster: u32) -> Result<()> {
        self.edit_extent_page(lvol, |page| put_u32(page, 25, cluster))
    }

    /// Flags sit at fixed places of every root: invalid at 21, data_ro at 29, md_ro at 37.
    pub fn flip_flags(&mut self, lvol: &str, at: usize, bits: u8) -> Result<()> {
        self.edit_root(lvol, |page| {
            page[at] ^= bits;
            Ok(())
        })
    }

    /// Adds a descriptor behind the last one of the root.
    pub fn append(&mut self, lvol: &str, kind: u8, body: &[u8]) -> Result<()> {
        self.edit_root(lvol, |page| {
            let at = descriptor_end(page);
            ensure!(at + 5 + body.len() <= DESC_END, "no room");
            page[at] = kind;
            put_u32(page, at + 1, body.len() as u32);
            page[at + 5..at + 5 + body.len()].copy_from_slice(body);
            Ok(())
        })
    }

    /// Replaces the only occurrence of some bytes in the root by others of the same length.
    pub fn replace(&mut self, lvol: &str, old: &[u8], new: &[u8]) -> Result<()> {
        ensure!(old.len() == new.len(), "lengths differ");
        self.edit_root(lvol, |page| {
            let found: Vec<usize> = (0..DESC_END - old.len()).filter(|at| page[*at..].starts_with(old)).collect();
            ensure!(found.len() == 1, "{} is found at {found:?}", old.escape_ascii());
            page[found[0]..found[0] + old.len()].copy_from_slice(new);
            Ok(())
        })
    }

    /// The value of the lvol's `SNAP`.
    pub fn set_snap(&mut self, lvol: &str, id: u64) -> Result<()> {
        let xattr = |id: u64| [b"\x04\0\x08\0SNAP".as_slice(), &id.to_le_bytes()].concat();
        let old = self.blob(lvol)?.id_xattr("SNAP").context("no SNAP")?;
        self.replace(lvol, &xattr(old), &xattr(id))
    }

    /// The first descriptor of a type in the root: offset of its header.
    pub fn find(page: &[u8], kind: u8) -> Result<usize> {
        let mut at = 16;
        while page[at] != kind {
            ensure!(page[at] != 0 && at < DESC_END, "no descriptor of type {kind}");
            at += 5 + get_u32(page, at + 1) as usize;
        }
        Ok(at)
    }
}

/// The body of an xattr descriptor.
pub fn xattr(name: &str, value: &[u8]) -> Vec<u8> {
    let lengths = [(name.len() as u16).to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    [lengths.as_slice(), name.as_bytes(), value].concat()
}

pub fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

pub fn get_u32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

pub fn descriptor_end(page: &[u8]) -> usize {
    let mut at = 16;
    while at + 5 <= DESC_END && (page[at] != 0 || get_u32(page, at + 1) != 0) {
        at += 5 + get_u32(page, at + 1) as usize;
    }
    at
}

pub fn seal(page: &mut [u8]) {
    let crc = crc32c::crc32c(&page[..PAGE_BYTES - 4]);
    put_u32(page, PAGE_BYTES - 4, crc);
}
