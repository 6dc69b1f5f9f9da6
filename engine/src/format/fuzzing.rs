//! Entry points for fuzzers: any bytes in, no panic, and what parses survives being written and read again.
//!
//! They assert instead of answering; that is what a fuzzer looks for.

use super::blob::{BlobMeta, Extents, Flags, parse_chain};
use super::extent_page;
use super::geometry::{Geometry, MAX_CLUSTERS, plan_layout};
use super::journal::{JournalHead, RecordHeader, SuperCopy};
use super::layout::{encode_chain, layout, page_of_ep};
use super::mask::{self, MaskKind};
use super::page::{DESC_AREA, PAGE_SIZE, Page, descriptors, parse_page, root_of, seal_page};
use super::super_block::SuperBlock;

/// Extent pages that a fuzzed blob may have; small, so that a forged table would be noticed by its memory.
const MAX_EPS: u64 = 1 << 12;

fn first_page(bytes: &[u8]) -> Option<Page> {
    bytes.first_chunk().copied()
}

/// A super block: what is read is written back byte for byte, and its geometry stays inside the device.
pub fn fuzz_super(bytes: &[u8]) {
    let Ok(mut sb) = SuperBlock::parse(bytes) else { return };
    let page = first_page(bytes);
    assert_eq!(Some(sb.encode()), page, "a super block that nobody changed changed");
    if let Ok(private) = sb.private()
        && sb.set_private(private.as_ref()).is_ok()
    {
        assert_eq!(Some(sb.encode()), page, "the private area changed");
    }
    if let Ok(owner) = sb.owner() {
        assert!(sb.set_owner(owner).is_ok());
        assert_eq!(Some(sb.encode()), page, "the owner changed");
    }
    for device_size in [1 << 27, 1 << 40, u64::MAX] {
        let Ok(geometry) = Geometry::new(&sb, device_size) else { continue };
        assert!(u64::from(geometry.total_clusters) < MAX_CLUSTERS);
        assert!(geometry.md_clusters <= geometry.total_clusters);
        assert!(geometry.cluster_offset(geometry.total_clusters) <= device_size);
        let last = geometry.page_offset(geometry.md_len - 1) + u64::from(geometry.md_page_size);
        assert!(last <= geometry.cluster_offset(geometry.md_clusters));
        assert!(geometry.mask_capacity_clusters() >= geometry.total_clusters.into());
    }
}

/// A metadata page: descriptors lie inside it, and its CRC is the one that would be written.
pub fn fuzz_page(bytes: &[u8]) {
    let Ok((_, area)) = parse_page(bytes) else { return };
    assert_eq!(area.len(), DESC_AREA);
    let taken: usize = descriptors(area).flatten().map(|d| 5 + d.body.len()).sum();
    assert!(taken <= DESC_AREA);
    let mut again = first_page(bytes);
    if let Some(page) = &mut again {
        seal_page(page);
    }
    assert_eq!(again, first_page(bytes));
}

/// A chain, one page per 4096 bytes: what is read can be written, and then reads the same.
pub fn fuzz_chain(bytes: &[u8]) {
    let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE_SIZE).collect();
    let Some(Ok((header, _))) = pages.first().map(|page| parse_page(page)) else { return };
    let Ok(meta) = parse_chain(header.id, &pages, MAX_EPS) else { return };
    assert!(meta.extents.num_clusters() <= MAX_EPS * 512);
    let _ = (meta.name(), meta.uuid(), meta.snapshot_being_created(), meta.snapshot_being_removed());
    match &meta.extents {
        Extents::Rle(_) => assert!(layout(&meta).is_err(), "extent runs are never written"),
        Extents::Table { pages, .. } => {
            assert!(pages.len() as u64 <= MAX_EPS);
            check_rewrite(&meta);
        }
    }
}

/// Writes a blob with a table and reads it again.
pub(super) fn check_rewrite(meta: &BlobMeta) {
    let layout = layout(meta).expect("a blob that was read has a layout");
    let root = root_of(meta.id).expect("a blob that was read has a root");
    let chain: Vec<u32> = (0..layout.pages as u32).map(|n| if n == 0 { root } else { 1000 + n }).collect();
    let pages = encode_chain(meta, &layout, &chain).expect("a blob that was read can be written");
    let read = parse_chain(meta.id, &pages, MAX_EPS).expect("what was written can be read");
    assert_eq!(read, as_written(meta));
    let Extents::Table { pages, .. } = &meta.extents else { return };
    assert!(pages.is_empty() || page_of_ep(&layout, pages.len() - 1) < layout.pages);
}

/// `meta` as it reads after being written: user xattrs first, and two flags that follow from the rest.
pub(super) fn as_written(meta: &BlobMeta) -> BlobMeta {
    let mut meta = meta.clone();
    meta.xattrs.sort_by_key(|x| x.internal);
    meta.flags.set_invalid(Flags::EXTENT_TABLE, true);
    meta.flags.set_invalid(Flags::INTERNAL_XATTR, meta.xattrs.iter().any(|x| x.internal));
    meta
}

/// An extent page: what is read is written back with the same meaning.
pub fn fuzz_extent_page(bytes: &[u8]) {
    let Ok(ep) = extent_page::parse(bytes) else { return };
    let page = extent_page::encode(ep.id, ep.ep_index(), &ep.entries).expect("what was read can be written");
    assert_eq!(extent_page::parse(&page), Ok(ep));
}

/// The structures of the system blob: what is read is written back byte for byte.
pub fn fuzz_journal(bytes: &[u8]) {
    let page = first_page(bytes);
    if let Ok(copy) = SuperCopy::parse(bytes) {
        assert_eq!(Some(copy.encode()), page);
    }
    if let Ok(head) = JournalHead::parse(bytes) {
        assert_eq!(Some(head.encode()), page);
    }
    if let Ok(record) = RecordHeader::parse(bytes) {
        assert_eq!(record.encode().ok(), page);
    }
}

/// A mask: bits behind its end do not count, everything else comes back.
pub fn fuzz_mask(bytes: &[u8]) {
    for kind in [MaskKind::Pages, MaskKind::Clusters, MaskKind::BlobIds] {
        let Ok(bits) = mask::parse(kind, bytes) else { continue };
        assert_eq!(bits.iter().count(), bits.count_ones() as usize);
        assert!(bits.iter().all(|n| n < bits.len() && bits.get(n)));
        let area = mask::encode(kind, &bits, bytes.len()).expect("it came from an area of this size");
        assert_eq!(mask::parse(kind, &area), Ok(bits));
    }
}

/// The plan of a new store from arbitrary wishes: it is refused, or it is valid.
pub fn fuzz_plan(device_size: u64, cluster_size: u64, io_unit: u32, max_size: u64) {
    let Ok(plan) = plan_layout(device_size, cluster_size, io_unit, max_size) else { return };
    let sb = SuperBlock::new(&plan, super::BSTYPE_COPPICE);
    let geometry = Geometry::new(&sb, device_size).expect("a planned store is valid");
    assert!(geometry.data_clusters() >= 4);
    assert!(geometry.mask_capacity_clusters() >= max_size / cluster_size);
    assert!(u64::from(geometry.md_len) >= geometry.extent_pages_for(max_size / cluster_size));
    assert_eq!(SuperBlock::parse(&sb.encode()), Ok(sb));
}
