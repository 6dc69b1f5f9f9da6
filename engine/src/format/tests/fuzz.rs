//! The fuzzers' entry points over seeded mutations of valid structures. Half of the time the CRC is repaired, so that
//! the checks behind it are reached.

use super::{Rng, random_blob, random_private};
use crate::format::blob::BlobMeta;
use crate::format::fuzzing::{fuzz_chain, fuzz_extent_page, fuzz_journal, fuzz_mask, fuzz_page, fuzz_super};
use crate::format::geometry::plan_layout;
use crate::format::journal::{JournalHead, RecordHeader, RecordPage, SuperCopy};
use crate::format::layout::{encode_chain, layout};
use crate::format::mask::{self, Bits, MaskKind};
use crate::format::page::{Page, blob_id, seal_page};
use crate::format::super_block::{BSTYPE_LVOLSTORE, SuperBlock};
use crate::format::{extent_page, parse_chain};
use uuid::Uuid;

const INPUTS: u64 = 20_000;

/// Damages `pages` in a few places, half of the time near the start, where the fields are.
fn mutate(rng: &mut Rng, pages: &mut [u8]) {
    for _ in 0..rng.below(4) {
        let span = if rng.one_in(2) { pages.len() } else { pages.len().min(128) } as u64;
        let at = rng.below(span) as usize;
        match rng.below(4) {
            0 => pages[at] ^= 1 << rng.below(8),
            1 => pages[at] = rng.next() as u8,
            2 => pages[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
            _ => {
                let from = rng.below(span) as usize;
                let len = rng.below(32) as usize;
                let len = len.min(pages.len() - at.max(from));
                pages.copy_within(from..from + len, at);
            }
        }
    }
    if rng.one_in(2) {
        for page in pages.as_chunks_mut::<4096>().0 {
            seal_page(page);
        }
    }
}

/// Runs `fuzz` over mutations of what `valid` makes (a hundred of them), and over shortened inputs.
fn run(valid: impl Fn(&mut Rng) -> Vec<u8>, fuzz: impl Fn(&[u8])) {
    let seeds: Vec<Vec<u8>> = (0..100).map(|seed| valid(&mut Rng(seed))).collect();
    for seed in 0..INPUTS {
        let mut rng = Rng(seed);
        let mut bytes = seeds[rng.below(100) as usize].clone();
        mutate(&mut rng, &mut bytes);
        if rng.one_in(50) {
            bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
        }
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| fuzz(&bytes))) {
            println!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

fn chain(meta: &BlobMeta) -> Vec<u8> {
    let l = layout(meta).unwrap();
    let indices: Vec<u32> = (0..l.pages as u32).map(|n| if n == 0 { meta.id as u32 } else { 6000 + n }).collect();
    encode_chain(meta, &l, &indices).unwrap().concat()
}

#[test]
fn super_blocks() {
    let plan = plan_layout(128 << 20, 1 << 20, 512, 1 << 30).unwrap();
    run(
        |rng| {
            let mut sb = SuperBlock::new(&plan, BSTYPE_LVOLSTORE);
            let private = rng.one_in(2).then(|| random_private(rng));
            sb.set_private(private.as_ref()).unwrap();
            sb.set_owner(rng.one_in(2).then(|| Uuid::from_u128(1 + u128::from(rng.next())))).unwrap();
            sb.encode().to_vec()
        },
        fuzz_super,
    );
}

#[test]
fn pages() {
    run(|rng| chain(&random_blob(rng, 20)), fuzz_page);
}

#[test]
fn chains() {
    run(|rng| chain(&random_blob(rng, 600)), fuzz_chain);
}

#[test]
fn extent_pages() {
    run(
        |rng| {
            let entries: Vec<u32> = (0..1 + rng.below(512)).map(|_| rng.below(3) as u32).collect();
            extent_page::encode(blob_id(5), rng.below(100) as u32, &entries).unwrap().to_vec()
        },
        fuzz_extent_page,
    );
}

fn journal_page(rng: &mut Rng) -> Page {
    match rng.below(3) {
        0 => SuperCopy::of(&[1; 4096], rng.next(), rng.next(), [2; 16]).encode(),
        1 => JournalHead {
            generation: rng.next(),
            nonce: rng.next(),
            tail_seq: rng.next(),
            tail_page: rng.next() as u32,
            md_limit: rng.next() as u32,
            store_uuid: [7; 16],
        }
        .encode(),
        _ => {
            let count = rng.below(501);
            let pages = (0..count).map(|n| RecordPage { index: n as u32, image_crc: rng.next() as u32 });
            RecordHeader { nonce: 1, seq: count, md_limit: 9, pages: pages.collect() }.encode().unwrap()
        }
    }
}

#[test]
fn journal() {
    run(|rng| journal_page(rng).to_vec(), fuzz_journal);
}

#[test]
fn masks() {
    run(
        |rng| {
            let mut bits = Bits::new(rng.below(1000) as u32);
            for _ in 0..50 {
                bits.set(rng.below(1000) as u32);
            }
            let kind = [MaskKind::Pages, MaskKind::Clusters, MaskKind::BlobIds][rng.below(3) as usize];
            mask::encode(kind, &bits, 200).unwrap()
        },
        fuzz_mask,
    );
}

/// The inputs are worth something: many of the mutated structures still parse, and many with a good CRC do not.
#[test]
fn mutations_reach_both_sides() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let meta = random_blob(&mut rng, 20);
        let mut bytes = chain(&meta);
        mutate(&mut rng, &mut bytes);
        let pages: Vec<&Page> = bytes.as_chunks::<4096>().0.iter().collect();
        let crc_good = pages.iter().all(|page| crate::format::parse_page(page.as_slice()).is_ok());
        match parse_chain(meta.id, &pages, 4096) {
            Ok(_) => accepted += 1,
            Err(_) if crc_good => refused += 1,
            Err(_) => {}
        }
    }
    assert!(accepted > 300 && refused > 200, "{accepted} accepted, {refused} refused behind the CRC");
}
