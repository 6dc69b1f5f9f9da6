//! A store of 128 MiB, cluster 4 MiB, with one thick lvol of two clusters: its bytes, worked out by hand.

use uuid::Uuid;

use crate::format::blob::{BlobMeta, Extents, Flags, Parent, parse_chain};
use crate::format::geometry::{Geometry, Layout, plan_layout};
use crate::format::layout::{encode_chain, layout};
use crate::format::mask::{self, Bits, MaskKind};
use crate::format::page::{BLOBID_NONE, Page, blob_id, page_crc, parse_page, seal_page};
use crate::format::super_block::{BSTYPE_COPPICE, BSTYPE_LVOLSTORE, SuperBlock};
use crate::format::{ExtentPage, extent_page};

const DEVICE: u64 = 128 << 20;

/// A page from lines of a hex dump: `offset  bytes`. Only the offset within the page counts.
fn page(dump: &str) -> Page {
    let mut page = [0; 4096];
    for line in dump.lines().filter(|line| !line.trim().is_empty()) {
        let (offset, bytes) = line.trim().split_once("  ").unwrap();
        let at = usize::from_str_radix(offset, 16).unwrap() % 4096;
        for (to, byte) in page[at..].iter_mut().zip(bytes.split_whitespace()) {
            *to = u8::from_str_radix(byte, 16).unwrap();
        }
    }
    page
}

fn crc_of(page: &Page) -> u32 {
    u32::from_le_bytes([page[4092], page[4093], page[4094], page[4095]])
}

const SUPER_DIRTY: &str = "
00000000  53 50 44 4b 42 4c 4f 42 03 00 00 00 00 10 00 00
00000010  00 00 00 00 00 00 00 00 01 00 00 00 00 00 40 00
00000020  01 00 00 00 01 00 00 00 02 00 00 00 01 00 00 00
00000030  04 00 00 00 20 00 00 00 4c 56 4f 4c 53 54 4f 52
00000040  45 00 00 00 00 00 00 00 03 00 00 00 01 00 00 00
00000050  00 00 00 08 00 00 00 00 00 02 00 00 00 10 00 00
00000ff0  00 00 00 00 00 00 00 00 00 00 00 00 34 7d 28 54
";

const SUPER_BLOB: &str = "
00004000  00 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
00004010  03 18 00 00 00 04 00 00 00 00 00 00 00 00 00 00
00004020  00 00 00 00 00 00 00 00 00 00 00 00 00 02 2d 00
00004030  00 00 04 00 25 00 75 75 69 64 31 31 31 31 31 31
00004040  31 31 2d 32 32 32 32 2d 34 33 33 33 2d 38 34 34
00004050  34 2d 35 35 35 35 35 35 35 35 35 35 35 35 00 02
00004060  0d 00 00 00 04 00 05 00 6e 61 6d 65 6c 76 73 30
00004070  00 05 08 00 00 00 00 00 00 00 00 00 00 00 00 00
00004ff0  00 00 00 00 00 00 00 00 ff ff ff ff 97 08 99 cc
";

const LVOL: &str = "
00005000  01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
00005010  03 18 00 00 00 04 00 00 00 00 00 00 00 00 00 00
00005020  00 00 00 00 00 00 00 00 00 00 00 00 00 02 48 00
00005030  00 00 04 00 40 00 6e 61 6d 65 76 6f 6c 30 00 00
00005070  00 00 00 00 00 00 00 00 00 00 02 2d 00 00 00 04
00005080  00 25 00 75 75 69 64 61 61 61 61 61 61 61 61 2d
00005090  62 62 62 62 2d 34 63 63 63 2d 38 64 64 64 2d 65
000050a0  65 65 65 65 65 65 65 65 65 65 65 00 05 10 00 00
000050b0  00 02 00 00 00 00 00 00 00 02 00 00 00 01 00 00
00005ff0  00 00 00 00 00 00 00 00 ff ff ff ff f8 07 03 01
";

const EXTENTS: &str = "
00006000  01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
00006010  06 0c 00 00 00 00 00 00 00 01 00 00 00 02 00 00
00006ff0  00 00 00 00 00 00 00 00 ff ff ff ff 76 48 c3 f2
";

const LVOL_AFTER_SNAPSHOT: &str = "
00005000  01 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
00005010  03 18 00 00 00 07 00 00 00 00 00 00 00 00 00 00
00005020  00 00 00 00 00 00 00 00 00 00 00 00 00 02 48 00
00005030  00 00 04 00 40 00 6e 61 6d 65 76 6f 6c 30 00 00
00005070  00 00 00 00 00 00 00 00 00 00 02 2d 00 00 00 04
00005080  00 25 00 75 75 69 64 61 61 61 61 61 61 61 61 2d
00005090  62 62 62 62 2d 34 63 63 63 2d 38 64 64 64 2d 65
000050a0  65 65 65 65 65 65 65 65 65 65 65 00 04 10 00 00
000050b0  00 04 00 08 00 53 4e 41 50 03 00 00 00 01 00 00
000050c0  00 05 10 00 00 00 02 00 00 00 00 00 00 00 00 00
000050d0  00 00 01 00 00 00 00 00 00 00 00 00 00 00 00 00
00005ff0  00 00 00 00 00 00 00 00 ff ff ff ff 28 1b 07 d2
";

/// The layout of the example; SPDK's, with a metadata page per cluster.
fn example() -> Layout {
    Layout {
        size: DEVICE,
        cluster_size: 4 << 20,
        io_unit_size: 512,
        md_page_size: 4096,
        used_page_mask_start: 1,
        used_page_mask_len: 1,
        used_cluster_mask_start: 2,
        used_cluster_mask_len: 1,
        used_blobid_mask_start: 3,
        used_blobid_mask_len: 1,
        md_start: 4,
        md_len: 32,
    }
}

fn vol0() -> BlobMeta {
    let mut meta = BlobMeta::new(blob_id(1), 2, false);
    meta.set_name(b"vol0").unwrap();
    meta.set_uuid(&Uuid::parse_str("aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee").unwrap());
    meta.extents = Extents::Table { num_clusters: 2, pages: vec![2] };
    meta
}

#[test]
fn crc_is_castagnoli() {
    assert_eq!(crc32c::crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(page_crc(&[0; 4096]), 0xA732_586E, "an all-zero page must never be valid");
    assert!(parse_page(&[0; 4096]).is_err());
}

#[test]
fn super_block_of_a_store_in_use() {
    let mut sb = SuperBlock::new(&example(), BSTYPE_LVOLSTORE);
    assert_eq!(sb.super_blob, BLOBID_NONE);
    assert_eq!(crc_of(&sb.encode()), 0xb1a2_f030, "right after creation");
    sb.super_blob = blob_id(0);
    assert_eq!(sb.encode(), page(SUPER_DIRTY));
    assert_eq!(crc_of(&sb.encode()), 0x5428_7d34);
    assert!(!sb.is_clean());
    sb.clean = 1;
    assert!(sb.is_clean());
    assert_eq!(crc_of(&sb.encode()), 0x2c1e_e086, "after a clean close");
    assert_eq!(SuperBlock::parse(&sb.encode()), Ok(sb));
}

/// The last bytes of the super block: owner at 3812, private area at 3836.
const OWNED: &str = "
00000ee0  00 00 00 00 43 4f 50 4f 57 4e 45 52 12 34 56 78
00000ef0  9a bc 4d ef 80 01 02 03 04 05 06 07 00 00 00 00
";

#[test]
fn super_block_of_an_owner() {
    let mut sb = SuperBlock::new(&example(), BSTYPE_LVOLSTORE);
    sb.super_blob = blob_id(0);
    sb.set_owner(Some(Uuid::parse_str("12345678-9abc-4def-8001-020304050607").unwrap())).unwrap();
    let mut wanted = page(&format!("{SUPER_DIRTY}{OWNED}"));
    seal_page(&mut wanted);
    assert_eq!(sb.encode(), wanted);
}

#[test]
fn geometry_of_the_example() {
    let sb = SuperBlock::parse(&page(SUPER_DIRTY)).unwrap();
    let g = Geometry::new(&sb, DEVICE).unwrap();
    assert_eq!((g.total_clusters, g.md_clusters, g.data_clusters()), (32, 1, 31));
    assert_eq!((g.page_mask.offset, g.cluster_mask.offset, g.blobid_mask.offset), (0x1000, 0x2000, 0x3000));
    assert_eq!((g.page_offset(0), g.page_offset(2), g.cluster_offset(1)), (0x4000, 0x6000, 4 << 20));
    assert_eq!(g.mask_capacity_clusters(), (4096 - 5) * 8);
    assert!(!g.is_data_cluster(0) && g.is_data_cluster(1) && g.is_data_cluster(31) && !g.is_data_cluster(32));
}

#[test]
fn masks_after_a_clean_close() {
    for (kind, used, dump) in [
        (MaskKind::Pages, vec![0, 1, 2], "00001000  00 20 00 00 00 07"),
        (MaskKind::Clusters, vec![0, 1, 2], "00002000  01 20 00 00 00 07"),
        (MaskKind::BlobIds, vec![0, 1], "00003000  02 20 00 00 00 03"),
    ] {
        let mut bits = Bits::new(32);
        used.iter().for_each(|&n| assert!(bits.set(n)));
        assert_eq!(mask::encode(kind, &bits, 4096).unwrap(), page(dump));
        assert_eq!(mask::encode_piece(kind, &bits, 0), page(dump));
        assert_eq!(mask::parse(kind, &page(dump)).unwrap().iter().collect::<Vec<_>>(), used);
    }
}

#[test]
fn super_blob() {
    let mut meta = BlobMeta::new(blob_id(0), 0, false);
    let empty = encode_chain(&meta, &layout(&meta).unwrap(), &[0]).unwrap();
    assert_eq!(empty[0][0x2d..0x32], [5, 8, 0, 0, 0]);
    assert_eq!(crc_of(&empty[0]), 0x3c5b_3a12, "as first created");

    meta.set_uuid(&Uuid::parse_str("11111111-2222-4333-8444-555555555555").unwrap());
    meta.set_store_name(b"lvs0").unwrap();
    assert_eq!(encode_chain(&meta, &layout(&meta).unwrap(), &[0]).unwrap(), [page(SUPER_BLOB)]);
    assert_eq!(parse_chain(blob_id(0), &[page(SUPER_BLOB)], 1), Ok(meta.clone()));
    assert_eq!(meta.name(), Some(b"lvs0".as_slice()));
    assert_eq!(meta.uuid().unwrap().to_string(), "11111111-2222-4333-8444-555555555555");
}

#[test]
fn lvol_and_its_extent_page() {
    let meta = vol0();
    assert_eq!(encode_chain(&meta, &layout(&meta).unwrap(), &[1]).unwrap(), [page(LVOL)]);
    let read = parse_chain(blob_id(1), &[page(LVOL)], 1).unwrap();
    assert_eq!(read, meta);
    assert_eq!((read.name(), read.parent()), (Some(b"vol0".as_slice()), Ok(Parent::None)));

    assert_eq!(extent_page::encode(blob_id(1), 0, &[1, 2]).unwrap(), page(EXTENTS));
    let ep = ExtentPage { id: blob_id(1), start_cluster: 0, entries: vec![1, 2] };
    assert_eq!(extent_page::parse(&page(EXTENTS)), Ok(ep));
}

#[test]
fn lvol_after_a_snapshot() {
    let mut meta = vol0();
    meta.set_snapshot_parent(Some(blob_id(3)));
    meta.extents = Extents::table(2);
    assert_eq!(meta.flags.invalid, Flags::THIN_PROV | Flags::INTERNAL_XATTR | Flags::EXTENT_TABLE);
    assert_eq!(encode_chain(&meta, &layout(&meta).unwrap(), &[1]).unwrap(), [page(LVOL_AFTER_SNAPSHOT)]);
    let read = parse_chain(blob_id(1), &[page(LVOL_AFTER_SNAPSHOT)], 1).unwrap();
    assert_eq!(read.parent(), Ok(Parent::Snapshot(blob_id(3))));
    assert_eq!(read, meta);
}

/// Large metadata pages carry anything behind their first 4096 bytes.
#[test]
fn what_lies_behind_a_page_does_not_matter() {
    let mut large = page(LVOL).to_vec();
    large.extend([0xa5; 4096]);
    assert_eq!(parse_chain(blob_id(1), &[large], 1), Ok(vol0()));
    let mut large = page(EXTENTS).to_vec();
    large.extend([0xa5; 4096]);
    assert_eq!(extent_page::parse(&large).unwrap().entries, [1, 2]);
}

/// Old stores have zeroes where newer fields are. They stay, until the value becomes another one.
#[test]
fn zeroes_of_an_old_store_stay() {
    let mut old = page(SUPER_DIRTY);
    old[80..96].fill(0);
    seal_page(&mut old);
    let mut sb = SuperBlock::parse(&old).unwrap();
    assert_eq!((sb.size, sb.io_unit_size, sb.md_page_size), (0, 4096, 4096));
    assert_eq!(sb.covered(DEVICE), DEVICE);
    assert_eq!(Geometry::new(&sb, DEVICE).unwrap().total_clusters, 32);
    assert_eq!(sb.encode(), old);
    sb.io_unit_size = 512;
    assert_eq!(SuperBlock::parse(&sb.encode()).unwrap().io_unit_size, 512);
}

/// The plan keeps SPDK's order of areas and leaves the cluster mask room to grow.
#[test]
fn plan_of_a_new_store() {
    let plan = plan_layout(1 << 40, 64 << 10, 4096, 4 << 40).unwrap();
    let (total, max) = (1u32 << 24, 1u32 << 26);
    assert_eq!(plan.md_len, max / 64 + 256);
    let md_mask = (5 + plan.md_len.div_ceil(8)).div_ceil(4096);
    assert_eq!((plan.used_page_mask_start, plan.used_page_mask_len), (1, md_mask));
    assert_eq!(plan.used_cluster_mask_start, 1 + md_mask);
    assert_eq!(plan.used_cluster_mask_len, (5 + total / 8).div_ceil(4096));
    assert_eq!(plan.used_blobid_mask_start, 1 + md_mask + (5 + max / 8).div_ceil(4096));
    assert_eq!(plan.md_start, plan.used_blobid_mask_start + plan.used_blobid_mask_len);
    let sb = SuperBlock::new(&plan, BSTYPE_COPPICE);
    let g = Geometry::new(&sb, 1 << 40).unwrap();
    assert!(g.mask_capacity_clusters() >= max.into());
    assert_eq!(g.cluster_mask_pages(g.total_clusters), plan.used_cluster_mask_len);

    // The example of the smallest useful store: 4 MiB clusters on 32 MiB, no growth.
    let small = plan_layout(32 << 20, 4 << 20, 512, 0).unwrap();
    let g = Geometry::new(&SuperBlock::new(&small, BSTYPE_COPPICE), 32 << 20).unwrap();
    assert_eq!((g.total_clusters, g.md_clusters), (8, 1));
}
