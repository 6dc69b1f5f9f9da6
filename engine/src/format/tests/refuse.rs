//! What must not be accepted, one row each.

use crate::format::blob::{BlobMeta, Extents, Flags, check_name};
use crate::format::error::FormatError;
use crate::format::geometry::{Geometry, plan_layout};
use crate::format::journal::{JournalHead, RecordHeader, RecordPage, SuperCopy};
use crate::format::layout::{encode_chain, encode_page, layout};
use crate::format::mask::{self, Bits, MaskKind};
use crate::format::page::{
    BLOBID_NONE, PAGE_NONE, Page, PageBuilder, PageHeader, blob_id, desc, descriptors, parse_page, root_of, seal_page,
};
use crate::format::private::{EXTENTS_MAX, Private, PrivateExtent, PrivateState};
use crate::format::super_block::{BSTYPE_LVOLSTORE, SuperBlock};
use crate::format::{extent_page, parse_chain};
use uuid::Uuid;

const DEVICE: u64 = 1 << 30;

fn store() -> SuperBlock {
    SuperBlock::new(&plan_layout(DEVICE, 1 << 20, 512, DEVICE).unwrap(), BSTYPE_LVOLSTORE)
}

/// Asserts that `result` is an error whose sentence contains `words`.
#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, FormatError>, words: &str) {
    match result {
        Ok(value) => panic!("accepted, expected \"{words}\": {value:?}"),
        Err(e) => assert!(e.to_string().contains(words), "\"{e}\" does not contain \"{words}\""),
    }
}

#[test]
fn super_blocks() {
    refused(SuperBlock::parse(&[]), "4096 bytes needed, 0 there");
    refused(SuperBlock::parse(&[0; 4095]), "4096 bytes needed, 4095 there");
    refused(SuperBlock::parse(&[0; 4096]), "not a lvstore");
    let good = store().encode();
    for version in [0u32, 4, u32::MAX] {
        let mut page = good;
        page[8..12].copy_from_slice(&version.to_le_bytes());
        seal_page(&mut page);
        assert_eq!(SuperBlock::parse(&page), Err(FormatError::BadVersion(version)));
    }
    for at in [12, 20, 95, 96, 2000, 4091, 4092, 4095] {
        let mut page = good;
        page[at] ^= 0x10;
        refused(SuperBlock::parse(&page), "checksum does not match");
    }
}

#[test]
fn geometries() {
    store().validate_geometry(DEVICE).unwrap();
    type Change = fn(&mut SuperBlock);
    let table: &[(Change, &str)] = &[
        (|s| s.size = DEVICE + 1, "the device is smaller"),
        (|s| s.size = 4096, "number of clusters is 0"),
        (|s| s.cluster_size = 0, "cluster size is 0"),
        (|s| s.cluster_size = 4095, "cluster size"),
        (|s| s.size = 1 << 20, "do not fit the device"),
        (|s| (s.cluster_size, s.md_page_size) = (4096, 8192), "of the metadata page size"),
        (|s| s.md_page_size = 2048, "metadata page size"),
        (|s| s.md_page_size = 12288, "metadata page size"),
        (|s| s.md_page_size = 1 << 17, "metadata page size"),
        (|s| s.io_unit_size = 256, "I/O unit is 256"),
        (|s| s.io_unit_size = 1000, "I/O unit is 1000"),
        (|s| s.io_unit_size = 1 << 21, "I/O unit"),
        (|s| (s.cluster_size, s.io_unit_size) = (12288, 8192), "not a multiple of the I/O unit"),
        (|s| s.used_page_mask_start = 0, "super block and used page mask overlap"),
        (|s| s.used_cluster_mask_start = s.used_page_mask_start, "overlap"),
        (|s| s.used_blobid_mask_start = s.md_start, "used blob id mask and metadata pages overlap"),
        (|s| s.md_start = 0, "overlap"),
        (|s| s.used_page_mask_len = 0, "used page mask"),
        (|s| s.used_cluster_mask_len = 0, "used cluster mask"),
        (|s| s.md_len = 0, "metadata pages"),
        (|s| s.md_len = u32::MAX, "used page mask length"),
        (|s| (s.md_len, s.used_page_mask_start, s.used_page_mask_len) = (3, 1 << 20, 1), "among the data"),
        (|s| s.md_start = u32::MAX, "do not fit the device"),
        (|s| s.used_page_mask_len = u32::MAX, "overlap"),
        (|s| s.super_blob = 5, "id of the super blob"),
        (|s| s.super_blob = blob_id(s.md_len), "id of the super blob"),
        (|s| s.super_blob = BLOBID_NONE - 1, "id of the super blob"),
    ];
    for (n, (change, words)) in table.iter().enumerate() {
        let mut sb = store();
        change(&mut sb);
        println!("row {n}");
        refused(sb.validate_geometry(DEVICE), words);
    }
    // Masks that are too short for what they describe.
    let mut sb = store();
    sb.cluster_size = 4096;
    refused(sb.validate_geometry(DEVICE), "used cluster mask length");
    refused(store().validate_geometry(DEVICE - 512), "the device is smaller");
    let mut sb = store();
    (sb.size, sb.cluster_size) = (1 << 42, 4096);
    refused(Geometry::new(&sb, 1 << 42), "2^30 - 1");
}

#[test]
fn plans() {
    for (device, cluster, io_unit, max, words) in [
        (0, 1 << 20, 512, 0, "at least 1048576"),
        ((1 << 20) - 1, 4096, 512, 0, "at least 1048576"),
        (DEVICE, 0, 512, 0, "multiple of 4096"),
        (DEVICE, 1000, 512, 0, "multiple of 4096"),
        (DEVICE, 1 << 32, 512, 0, "below 4 GiB"),
        (DEVICE, 65536, 0, 0, "I/O unit 0"),
        (DEVICE, 65536, 520, 0, "I/O unit 520"),
        (DEVICE, 65536, 1 << 17, 0, "I/O unit 131072"),
        (DEVICE, 12288, 8192, 0, "I/O unit 8192"),
        (1 << 50, 65536, 512, 0, "choose larger clusters"),
        (DEVICE, 65536, 512, 1 << 50, "the maximum size has"),
        (16 << 20, 4 << 20, 512, 0, "fewer than 4 would be left"),
        (2 << 20, 65536, 512, 1 << 40, "smaller maximum size"),
    ] {
        refused(plan_layout(device, cluster, io_unit, max), words);
    }
}

#[test]
fn private_areas() {
    let good = Private {
        state: PrivateState::InUse,
        generation: 1,
        store_uuid: [1; 16],
        extents: vec![PrivateExtent { start_cluster: 10, clusters: 5 }],
    };
    let with = |extents: &[(u32, u32)]| {
        let extents = extents.iter().map(|&(start_cluster, clusters)| PrivateExtent { start_cluster, clusters });
        Private { extents: extents.collect(), ..good.clone() }
    };
    for (private, words) in [
        (with(&[]), "it is in use and must have some"),
        (with(&[(0, 1)]), "not a range"),
        (with(&[(1, 0)]), "not a range"),
        (with(&[(u32::MAX, 1)]), "not a range"),
        (with(&[(10, 5), (14, 1)]), "overlaps"),
        (with(&[(1, 1); EXTENTS_MAX + 1]), "at most 24"),
    ] {
        refused(store().set_private(Some(&private)), words);
    }
    let mut sb = store();
    sb.set_private(Some(&good)).unwrap();
    for (at, value, words) in [
        (3836, b'X', "not its magic"),
        (3844, 3, "state of the system blob"),
        (3872, 25, "at most 24"),
        (3884, 1, "bytes behind the last extent"),
        (4091, 1, "bytes behind the last extent"),
        (3880, 0, "not a range"),
    ] {
        let mut page = sb.encode();
        page[at] = value;
        seal_page(&mut page);
        refused(SuperBlock::parse(&page).unwrap().private(), words);
    }
}

#[test]
fn owners() {
    refused(store().set_owner(Some(Uuid::nil())), "must not be nil");
    let mut sb = store();
    sb.set_owner(Some(Uuid::from_u128(7))).unwrap();
    for (at, words) in [(3812, "not its magic"), (3835, "must not be nil")] {
        let mut page = sb.encode();
        page[at] = 0;
        seal_page(&mut page);
        let mut other = SuperBlock::parse(&page).unwrap();
        refused(other.owner(), words);
        refused(other.set_owner(None), words);
        assert_eq!(other.encode(), page, "what is somebody else's stays");
    }
}

fn thin(num_clusters: u64, pages: &[u32]) -> BlobMeta {
    let mut meta = BlobMeta::new(blob_id(7), num_clusters, true);
    meta.extents = Extents::Table { num_clusters, pages: pages.to_vec() };
    meta
}

/// Type and body of a descriptor.
type Body = (u8, Vec<u8>);

/// One root page with these descriptors, after flags with `invalid`.
fn root(invalid: u64, descriptors: &[Body]) -> Page {
    let mut page = PageBuilder::new(PageHeader { id: blob_id(7), sequence: 0, next: PAGE_NONE });
    let mut flags = [0; 24];
    flags[..8].copy_from_slice(&invalid.to_le_bytes());
    page.push(desc::FLAGS, &[&flags]).unwrap();
    for (kind, body) in descriptors {
        page.push(*kind, &[body]).unwrap();
    }
    page.seal()
}

fn table(num: u64, entries: &[(u32, u32)]) -> Body {
    let entries = entries.iter().flat_map(|(page, n)| [page.to_le_bytes(), n.to_le_bytes()].concat());
    (desc::EXTENT_TABLE, num.to_le_bytes().into_iter().chain(entries).collect())
}

fn rle(runs: &[(u32, u32)]) -> Body {
    (desc::EXTENT_RLE, runs.iter().flat_map(|(c, n)| [c.to_le_bytes(), n.to_le_bytes()].concat()).collect())
}

fn xattr(kind: u8, name: &[u8], value: &[u8]) -> Body {
    let lengths = [(name.len() as u16).to_le_bytes(), (value.len() as u16).to_le_bytes()].concat();
    (kind, [lengths.as_slice(), name, value].concat())
}

#[test]
fn descriptors_in_a_chain() {
    const THIN: u64 = Flags::THIN_PROV;
    let parse = |page: Page| parse_chain(blob_id(7), &[page], 100);
    let rows: Vec<(u64, Vec<Body>, &str)> = vec![
        (0, vec![(desc::FLAGS, vec![0; 24])], "flags for the second time"),
        (0, vec![(desc::EXTENT_PAGE, vec![0; 8])], "in the chain of a blob"),
        (0, vec![(7, vec![0; 8])], "not a known type"),
        (0, vec![(255, vec![])], "not a known type"),
        (0, vec![(desc::XATTR, vec![0; 3])], "bytes needed"),
        (0, vec![(desc::XATTR, vec![1, 0, 0, 0])], "name and value"),
        (0, vec![xattr(2, b"a", b"1"), xattr(2, b"a", b"2")], "there twice"),
        (0, vec![(desc::EXTENT_TABLE, vec![0; 7])], "too short"),
        (0, vec![(desc::EXTENT_TABLE, vec![0; 12])], "8 + 8 × entries"),
        (THIN, vec![table(1, &[])], "fewer than the clusters need"),
        (THIN, vec![table(513, &[(0, 1)])], "fewer than the clusters need"),
        (THIN, vec![table(512, &[(0, 2)])], "more extent pages than the clusters need"),
        (THIN, vec![table(512, &[(0, u32::MAX)])], "more extent pages than the clusters need"),
        (THIN, vec![table(1 << 32, &[(0, 1 << 23)])], "more than the 100"),
        (THIN, vec![table((1 << 32) + 1, &[])], "more than 2^32"),
        (THIN, vec![table(u64::MAX, &[])], "more than 2^32"),
        (THIN, vec![table(1024, &[(5, 2)])], "stands for more than one"),
        (THIN, vec![table(1024, &[(5, 0), (0, 2)])], "stands for more than one"),
        (THIN, vec![table(1024, &[(5, 1)]), table(1023, &[(6, 1)])], "another number of clusters"),
        (0, vec![table(512, &[(0, 1)])], "not thin"),
        (0, vec![rle(&[(0, 1)])], "not thin"),
        (0, vec![rle(&[])], "8 × runs"),
        (0, vec![(desc::EXTENT_RLE, vec![0; 9])], "8 × runs"),
        (0, vec![rle(&[(1, 0)])], "empty or wraps"),
        (0, vec![rle(&[(u32::MAX, 1)])], "empty or wraps"),
        (THIN, vec![rle(&[(0, u32::MAX)])], "more than the 100"),
        (0, vec![table(512, &[(5, 1)]), rle(&[(1, 1)])], "an extent table and extent runs"),
        (THIN, vec![xattr(4, b"SNAP", b"1234567")], "not 8 bytes"),
        (THIN | Flags::EXTERNAL_SNAPSHOT, vec![xattr(4, b"SNAP", b"12345678")], "EXTSNAP"),
    ];
    for (invalid, list, words) in rows {
        refused(parse(root(invalid, &list)), words);
    }
    let mut short = PageBuilder::new(PageHeader { id: blob_id(7), sequence: 0, next: PAGE_NONE });
    short.push(desc::FLAGS, &[&[0; 23]]).unwrap();
    refused(parse(short.seal()), "24 bytes");

    // And what must be accepted although SPDK would not write it like that.
    let odd =
        [table(1024, &[(5, 1)]), (desc::PADDING, vec![1; 9]), xattr(4, b"SNAP", b"1234567"), table(1024, &[(6, 1)])];
    let meta = parse(root(0x10, &odd)).unwrap();
    assert_eq!(meta.extents, Extents::Table { num_clusters: 1024, pages: vec![5, 6] });
    assert_eq!(meta.flags.unknown_invalid(), 0x10);
    assert_eq!(parse(root(0, &[rle(&[(9, 3), (20, 1)])])).unwrap().extents.num_clusters(), 4);
}

#[test]
fn descriptor_that_leaves_its_page() {
    for length in [4043u32, 4044, 1 << 16, u32::MAX] {
        let mut page = root(0, &[]);
        page[45] = desc::PADDING;
        page[46..50].copy_from_slice(&length.to_le_bytes());
        seal_page(&mut page);
        refused(parse_chain(blob_id(7), &[page], 1), "does not end inside the page");
        let (_, area) = parse_page(&page).unwrap();
        assert_eq!(descriptors(area).count(), 2, "flags, one error, and then it ends");
    }
    // The same place with the largest length that fits.
    let mut page = root(0, &[]);
    page[46..50].copy_from_slice(&4038u32.to_le_bytes());
    seal_page(&mut page);
    parse_chain(blob_id(7), &[page], 1).unwrap();
}

#[test]
fn chains() {
    let meta = thin(1200 * 512, &[9; 1200]);
    let l = layout(&meta).unwrap();
    let chain = [7, 50, 51, 52];
    let good = encode_chain(&meta, &l, &chain).unwrap();
    let parse = |pages: &[Page]| parse_chain(blob_id(7), pages, 5000);
    parse(&good).unwrap();
    refused(parse(&[]), "1 bytes needed");
    refused(parse(&good[..2]), "the chain goes on");
    refused(parse(&good[1..]), "not its position");
    refused(parse(&[good[0], good[2], good[1], good[3]]), "not its position");
    refused(parse(&[good[0], good[1], good[2], good[3], good[3]]), "the chain ends here");
    refused(parse_chain(blob_id(8), &good, 5000), "belongs to another blob");
    for id in [0, 7, BLOBID_NONE, BLOBID_NONE - 1, (2 << 32) | 7, (1 << 32) | u64::from(u32::MAX)] {
        assert_eq!(root_of(id), None);
        refused(parse_chain(id, &good, 5000), "blob id");
    }
    let mut torn = good.clone();
    torn[2][100] ^= 1;
    refused(parse(&torn), "checksum does not match");
    refused(parse_chain(blob_id(7), &[&good[0][..4000]], 5000), "4096 bytes needed");
}

#[test]
fn blobs_that_cannot_be_written() {
    let mut runs = thin(1, &[0]);
    runs.extents = Extents::Rle(vec![(1, 1)]);
    refused(layout(&runs), "can only be read");
    refused(layout(&thin(513, &[5])), "do not go with");
    refused(layout(&thin(512, &[5, 6])), "do not go with");
    let mut twice = thin(1, &[5]);
    twice.set_xattr(false, b"a", b"1");
    twice.xattrs.push(twice.xattrs[0].clone());
    refused(layout(&twice), "there twice");

    let meta = thin(1200 * 512, &[9; 1200]);
    let l = layout(&meta).unwrap();
    for (chain, n) in
        [(vec![7, 50, 51], 0), (vec![8, 50, 51, 52], 0), (vec![7, 50, 51, 52], 4), (vec![7, PAGE_NONE, 51, 52], 0)]
    {
        refused(encode_page(&meta, &l, &chain, n), "do not go with its layout");
    }
    refused(encode_page(&thin(512, &[9]), &l, &[7, 50, 51, 52], 0), "do not go with its layout");
    let mut thick = thin(512, &[0]);
    thick.flags.set_invalid(Flags::THIN_PROV, false);
    refused(encode_chain(&thick, &layout(&thick).unwrap(), &[7]), "must have all its extent pages");
}

#[test]
fn names() {
    for name in [b"".as_slice(), &[b'a'; 64], b"a\0b"] {
        refused(check_name(name).map(|_| ()), "1 to 63 bytes");
    }
    check_name(&[b'a'; 63]).unwrap();
    check_name("größe/1".as_bytes()).unwrap();
    let mut meta = thin(1, &[5]);
    let uuid = |text: &[u8]| {
        let mut meta = thin(1, &[5]);
        meta.set_xattr(false, b"uuid", text);
        meta.uuid()
    };
    assert_eq!(meta.uuid(), None);
    assert_eq!(uuid(b"aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee"), None, "no NUL");
    assert_eq!(uuid(b"aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee\0\0"), None, "too long");
    assert_eq!(uuid(b"00000000-0000-0000-0000-000000000000\0"), None, "null");
    assert_eq!(uuid(b"aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeee!\0"), None);
    assert!(uuid(b"aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee\0").is_some());
    meta.set_xattr(false, b"name", &[b'a'; 65]);
    assert_eq!(meta.name(), None);
    meta.set_xattr(false, b"name", b"\0abc");
    assert_eq!(meta.name(), None);
}

#[test]
fn extent_pages() {
    let good = extent_page::encode(blob_id(7), 3, &[1, 0, 5]).unwrap();
    let changed = |change: fn(&mut Page)| {
        let mut page = good;
        change(&mut page);
        seal_page(&mut page);
        extent_page::parse(&page)
    };
    changed(|_| {}).unwrap();
    refused(changed(|p| p[8] = 1), "sequence number");
    refused(changed(|p| p[4088] = 0), "next page");
    refused(changed(|p| p[16] = 5), "begins with type 6");
    refused(changed(|p| p[16..21].fill(0)), "begins with type 6");
    refused(changed(|p| p[17] = 0), "too short");
    refused(changed(|p| p[17] = 4), "4 + 4 × entries");
    refused(changed(|p| p[17] = 15), "4 + 4 × entries");
    refused(changed(|p| p[17..21].copy_from_slice(&(4u32 + 4 * 513).to_le_bytes())), "more than 512");
    refused(changed(|p| p[17..21].fill(0xff)), "does not end inside the page");
    refused(changed(|p| p[21] = 1), "multiple of 512");
    // 25 + 3 × 4 = 37: the type of a second descriptor, 38..42 its length.
    changed(|p| p[37] = 9).unwrap();
    for at in 38..42 {
        let mut page = good;
        page[at] = 1;
        seal_page(&mut page);
        refused(extent_page::parse(&page), "something follows it");
    }
    changed(|p| p[42] = 9).unwrap();
    let mut torn = good;
    torn[3000] = 1;
    refused(extent_page::parse(&torn), "checksum");
    refused(extent_page::encode(1, 0, &[]), "1 to 512");
    refused(extent_page::encode(1, 0, &[1; 513]), "1 to 512");
    refused(extent_page::encode(1, 1 << 23, &[1]), "32 bits");
}

#[test]
fn masks() {
    let area = mask::encode(MaskKind::Pages, &Bits::new(32), 4096).unwrap();
    refused(mask::parse(MaskKind::Clusters, &area), "kind of a mask");
    refused(mask::parse(MaskKind::Pages, &area[..4]), "bytes needed");
    refused(mask::parse(MaskKind::Pages, &area[..8]), "more bits than its area holds");
    refused(mask::parse(MaskKind::Pages, &[0, 0xff, 0xff, 0xff, 0xff, 0]), "more bits than its area holds");
    refused(mask::encode(MaskKind::Pages, &Bits::new((4096 - 5) * 8 + 1), 4096), "4097 bytes needed");
    mask::encode(MaskKind::Pages, &Bits::new((4096 - 5) * 8), 4096).unwrap();
    // Bits behind the end are not read.
    let bits = mask::parse(MaskKind::Pages, &[0, 3, 0, 0, 0, 0xff]).unwrap();
    assert_eq!((bits.len(), bits.count_ones()), (3, 3));
}

#[test]
fn journals() {
    let record = |indices: &[u32]| RecordHeader {
        nonce: 1,
        seq: 2,
        md_limit: 3,
        pages: indices.iter().map(|&index| RecordPage { index, image_crc: 0 }).collect(),
    };
    refused(record(&[4, 5, 4]).encode(), "named twice");
    refused(record(&(0..501).collect::<Vec<_>>()).encode(), "at most 500");
    let head = JournalHead { generation: 1, nonce: 2, tail_seq: 3, tail_page: 4, md_limit: 5, store_uuid: [6; 16] };
    let (record, head) = (record(&[4, 5]).encode().unwrap(), head.encode());
    let copy = SuperCopy::of(&[0; 4096], 1, 2, [3; 16]).encode();
    let changed = |page: &Page, at: usize, value: u8| {
        let mut page = *page;
        page[at] = value;
        seal_page(&mut page);
        page
    };
    refused(RecordHeader::parse(&changed(&record, 0, b'X')), "not its magic");
    refused(RecordHeader::parse(&changed(&record, 29, 2)), "at most 500");
    refused(RecordHeader::parse(&changed(&record, 28, 1)), "not zero");
    refused(RecordHeader::parse(&changed(&record, 40, 1)), "not zero");
    refused(RecordHeader::parse(&changed(&record, 72, 4)), "named twice");
    refused(JournalHead::parse(&changed(&head, 8, 2)), "newer version");
    refused(JournalHead::parse(&changed(&head, 60, 1)), "not zero");
    refused(JournalHead::parse(&record), "not its magic");
    refused(SuperCopy::parse(&changed(&copy, 8, 0)), "newer version");
    refused(SuperCopy::parse(&changed(&copy, 4091, 1)), "not zero");
    for page in [record, head, copy] {
        let mut torn = page;
        torn[1024] = 1;
        refused(
            RecordHeader::parse(&torn)
                .map(|_| ())
                .or_else(|e| match e {
                    FormatError::BadMagic { .. } => JournalHead::parse(&torn).map(|_| ()),
                    e => Err(e),
                })
                .or_else(|e| match e {
                    FormatError::BadMagic { .. } => SuperCopy::parse(&torn).map(|_| ()),
                    e => Err(e),
                }),
            "checksum",
        );
    }
}
