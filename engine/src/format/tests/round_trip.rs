//! What is written reads the same, and a chain's layout stays still.

use super::{Rng, random_blob, random_private};
use crate::format::blob::{BlobMeta, Extents};
use crate::format::fuzzing::{as_written, check_rewrite, fuzz_plan};
use crate::format::geometry::plan_layout;
use crate::format::journal::{JournalHead, RECORD_PAGES_MAX, RecordHeader, RecordPage, SuperCopy};
use crate::format::layout::{encode_chain, layout, page_of_ep};
use crate::format::mask::{self, Bits, MaskKind};
use crate::format::page::blob_id;
use crate::format::super_block::{BSTYPE_COPPICE, BSTYPE_LVOLSTORE, SuperBlock};
use crate::format::{ZERO_MARK, extent_page, parse_chain, parse_root_links};
use uuid::Uuid;

fn chain_of(meta: &BlobMeta, pages: usize) -> Vec<u32> {
    (0..pages as u32).map(|n| if n == 0 { meta.id as u32 } else { 6000 + n }).collect()
}

#[test]
fn blobs() {
    for seed in 0..400 {
        let mut rng = Rng(seed);
        let meta = random_blob(&mut rng, if seed % 10 == 0 { 4000 } else { 40 });
        check_rewrite(&meta);
        let layout = layout(&meta).unwrap();
        let chain = chain_of(&meta, layout.pages);
        let pages = encode_chain(&meta, &layout, &chain).unwrap();
        let links: Vec<_> = pages.iter().map(|page| parse_root_links(page).unwrap()).collect();
        let expected: Vec<_> = chain.iter().skip(1).copied().map(Some).chain([None]).collect();
        assert_eq!(links, expected, "seed {seed}");
    }
}

/// The reason for the layout: assigning or dropping one extent page rewrites one page of the chain, the one that
/// `page_of_ep` names.
#[test]
fn one_entry_changes_one_page() {
    for seed in 0..100 {
        let mut rng = Rng(seed);
        let mut meta = random_blob(&mut rng, 3000);
        meta.flags.invalid |= 1;
        let before = layout(&meta).unwrap();
        let chain = chain_of(&meta, before.pages);
        let mut old = encode_chain(&meta, &before, &chain).unwrap();
        for _ in 0..10 {
            let Extents::Table { pages, .. } = &mut meta.extents else { unreachable!() };
            if pages.is_empty() {
                break;
            }
            let ep = rng.below(pages.len() as u64) as usize;
            pages[ep] = if pages[ep] == 0 { 77 } else { 0 };
            assert_eq!(layout(&meta).unwrap(), before, "seed {seed}");
            let new = encode_chain(&meta, &before, &chain).unwrap();
            let changed: Vec<_> = (0..new.len()).filter(|&n| new[n] != old[n]).collect();
            assert_eq!(changed, [page_of_ep(&before, ep)], "seed {seed}, extent page {ep}");
            old = new;
        }
    }
}

/// At the edges of pages: the largest xattr, the last entry that fits inline, a table page exactly full.
#[test]
fn edges_of_the_layout() {
    let blob = |eps: u64, values: &[usize]| {
        let mut meta = BlobMeta::new(blob_id(1), eps * 512, true);
        for (n, &len) in values.iter().enumerate() {
            meta.set_xattr(false, &[b'a' + n as u8], &vec![7; len]);
        }
        check_rewrite(&meta);
        let l = layout(&meta).unwrap();
        (l.pages, l.xattr_pages, l.inline)
    };
    // 4072 bytes, 29 of them flags, 13 the head of the table, 8 per entry: 503 entries fit.
    assert_eq!(blob(503, &[]), (1, 1, true));
    assert_eq!(blob(504, &[]), (3, 1, false));
    assert_eq!(blob(1000, &[]), (3, 1, false));
    assert_eq!(blob(1001, &[]), (4, 1, false));
    // An xattr that fills a page of its own leaves no room for the table, not even for an empty one.
    assert_eq!(blob(0, &[4062]), (3, 2, false));
    assert_eq!(blob(0, &[4062 - 13]), (2, 2, true));
    assert_eq!(blob(0, &[4033]), (2, 1, false), "the xattr fills the root to its last byte");
    assert_eq!(blob(1, &[10, 4062, 10]), (3, 3, true));
    let mut meta = BlobMeta::new(blob_id(1), 0, true);
    meta.set_xattr(false, b"a", &[7; 4063]);
    assert!(layout(&meta).is_err(), "one byte more than a page");
}

#[test]
fn user_xattrs_come_first_and_keep_their_order() {
    let mut meta = BlobMeta::new(blob_id(9), 1, true);
    for (internal, name) in [(true, b"i1"), (false, b"u1"), (true, b"i2"), (false, b"u2")] {
        meta.set_xattr(internal, name, b"v");
    }
    meta.set_xattr(false, b"u1", b"changed in place");
    let l = layout(&meta).unwrap();
    let read = parse_chain(meta.id, &encode_chain(&meta, &l, &[9]).unwrap(), 1).unwrap();
    let names: Vec<_> = read.xattrs.iter().map(|x| x.name.as_slice()).collect();
    assert_eq!(names, [b"u1", b"u2", b"i1", b"i2"]);
    assert_eq!(read, as_written(&meta));
    assert!(meta.remove_xattr(true, b"i1") && !meta.remove_xattr(false, b"i2") && meta.remove_xattr(true, b"i2"));
    assert_eq!(meta.flags.invalid, 5, "no internal xattr, no flag for them");
}

#[test]
fn extent_pages() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let len = 1 + rng.below(512) as usize;
        let entries: Vec<u32> =
            (0..len).map(|_| if rng.one_in(5) { ZERO_MARK } else { rng.below(1 << 30) as u32 }).collect();
        let ep_index = rng.below(1 << 23) as u32;
        let page = extent_page::encode(blob_id(4), ep_index, &entries).unwrap();
        let read = extent_page::parse(&page).unwrap();
        assert_eq!((read.ep_index(), read.entries), (ep_index, entries), "seed {seed}");
    }
}

#[test]
fn masks() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let len = rng.below(100_000) as u32;
        let mut bits = Bits::new(len);
        let mut model = std::collections::BTreeSet::new();
        for _ in 0..rng.below(500) {
            let n = rng.below(u64::from(len) + 10) as u32;
            if rng.one_in(4) {
                assert_eq!(bits.clear(n), model.remove(&n));
            } else {
                assert_eq!(bits.set(n), n < len && model.insert(n));
            }
        }
        assert_eq!(bits.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>(), "seed {seed}");
        let from = rng.below(u64::from(len) + 10) as u32;
        assert_eq!(bits.first_clear(from), (from..len).find(|n| !model.contains(n)), "seed {seed}");
        let area = mask::encode(MaskKind::Clusters, &bits, 4096 * 5).unwrap();
        assert_eq!(mask::parse(MaskKind::Clusters, &area).as_ref(), Ok(&bits), "seed {seed}");
        // A change of one bit is a change of one piece, the one that `piece_of` names.
        if len > 0 {
            let n = rng.below(len.into()) as u32;
            if !bits.clear(n) {
                bits.set(n);
            }
            let after = mask::encode(MaskKind::Clusters, &bits, 4096 * 5).unwrap();
            let differ: Vec<_> = (0..5).filter(|&p| after[p * 4096..][..4096] != area[p * 4096..][..4096]).collect();
            assert_eq!(differ, [mask::piece_of(n) as usize], "seed {seed}");
        }
        let shorter = rng.below(u64::from(len) + 1) as u32;
        bits.resize(shorter);
        bits.resize(len);
        assert!(bits.iter().all(|n| n < shorter), "bits behind a shorter end must not come back");
    }
}

#[test]
fn first_clear_of_a_full_map() {
    let mut bits = Bits::new(130);
    (0..130).for_each(|n| assert!(bits.set(n)));
    assert_eq!(bits.first_clear(0), None);
    bits.clear(129);
    assert_eq!((bits.first_clear(0), bits.first_clear(129), bits.first_clear(130)), (Some(129), Some(129), None));
}

#[test]
fn private_area() {
    let plan = plan_layout(1 << 30, 1 << 20, 512, 0).unwrap();
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let mut sb = SuperBlock::new(&plan, BSTYPE_COPPICE);
        let untouched = sb.encode();
        assert_eq!(sb.private(), Ok(None));
        let private = random_private(&mut rng);
        sb.set_private(Some(&private)).unwrap();
        let page = sb.encode();
        assert_eq!(&page[3836..3844], b"COPPICE1");
        let mut read = SuperBlock::parse(&page).unwrap();
        assert_eq!(read.private(), Ok(Some(private)), "seed {seed}");
        read.set_private(None).unwrap();
        assert_eq!(read.encode(), untouched, "nothing of ours is left");
    }
}

#[test]
fn owner() {
    let plan = plan_layout(1 << 30, 1 << 20, 512, 0).unwrap();
    for seed in 0..50 {
        let mut rng = Rng(seed);
        let mut sb = SuperBlock::new(&plan, BSTYPE_LVOLSTORE);
        sb.set_private(Some(&random_private(&mut rng))).unwrap();
        let untouched = sb.encode();
        assert_eq!(sb.owner(), Ok(None));
        let owner = Some(Uuid::from_u128(1 + u128::from(rng.next())));
        sb.set_owner(owner).unwrap();
        let page = sb.encode();
        assert_eq!(&page[3812..3820], b"COPOWNER");
        assert_eq!((&page[96..3812], &page[3836..4092]), (&untouched[96..3812], &untouched[3836..4092]));
        let mut read = SuperBlock::parse(&page).unwrap();
        assert_eq!(read.owner(), Ok(owner), "seed {seed}");
        read.set_owner(None).unwrap();
        assert_eq!(read.encode(), untouched, "nothing of it is left");
    }
}

/// Bytes that we do not know survive a change of a field that we do.
#[test]
fn reserved_bytes_survive() {
    let plan = plan_layout(1 << 30, 1 << 20, 512, 0).unwrap();
    let mut page = SuperBlock::new(&plan, BSTYPE_COPPICE).encode();
    page[96] = 0x5a;
    page[3835] = 0xa5;
    crate::format::seal_page(&mut page);
    let mut sb = SuperBlock::parse(&page).unwrap();
    sb.clean = 1;
    let after = sb.encode();
    let differ: Vec<_> = (0..4092).filter(|&n| page[n] != after[n]).collect();
    assert_eq!(differ, [16]);
}

#[test]
fn journal() {
    for seed in 0..200 {
        let mut rng = Rng(seed);
        let image = [seed as u8; 4096];
        let copy = SuperCopy::of(&image, rng.next(), rng.next(), [3; 16]);
        assert_eq!(SuperCopy::parse(&copy.encode()), Ok(copy));
        assert!(copy.matches(&image) && !copy.matches(&[seed as u8 ^ 1; 4096]) && !copy.matches(&image[1..]));
        let head = JournalHead {
            generation: rng.next(),
            nonce: rng.next(),
            tail_seq: rng.next(),
            tail_page: rng.next() as u32,
            md_limit: rng.next() as u32,
            store_uuid: [9; 16],
        };
        assert_eq!(JournalHead::parse(&head.encode()), Ok(head));
        let count = if seed == 0 { RECORD_PAGES_MAX as u64 } else { rng.below(501) };
        let pages = (0..count).map(|n| RecordPage { index: n as u32 * 3, image_crc: rng.next() as u32 }).collect();
        let record = RecordHeader { nonce: rng.next(), seq: rng.next(), md_limit: 5, pages };
        assert_eq!(RecordHeader::parse(&record.encode().unwrap()).as_ref(), Ok(&record));
        assert_eq!(u64::from(record.ring_pages()), count + 1);
    }
    let page = RecordPage::of(4, &[1; 4096]);
    assert!(page.matches(&[1; 4096]) && !page.matches(&[2; 4096]));
}

/// Any wish for a new store is refused or gives a valid one.
#[test]
fn plans() {
    let mut planned = 0;
    for seed in 0..20_000 {
        let mut rng = Rng(seed);
        let device = rng.next() >> rng.below(50);
        let cluster = if rng.one_in(10) { rng.next() >> rng.below(60) } else { 4096 << rng.below(16) };
        let io_unit = if rng.one_in(10) { rng.next() as u32 } else { 512 << rng.below(5) };
        let max = if rng.one_in(3) { rng.next() >> rng.below(50) } else { device.saturating_mul(4) };
        fuzz_plan(device, cluster, io_unit, max);
        planned += usize::from(plan_layout(device, cluster, io_unit, max).is_ok());
    }
    assert!(planned > 4000, "only {planned} plans were possible: the generator tests nothing");
}
