//! Tests of the format: golden bytes, round trips, what is refused, and mutated structures.
#![allow(clippy::unwrap_used)]

mod fuzz;
mod golden;
mod refuse;
mod round_trip;

use super::blob::{BlobMeta, Extents, Flags};
use super::page::blob_id;
use super::private::{Private, PrivateExtent, PrivateState};

/// SplitMix64: a few lines, and every failure names its seed.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// A blob with up to `eps` extent pages, some xattrs (a few of them large), and any known flags.
fn random_blob(rng: &mut Rng, eps: u64) -> BlobMeta {
    let root = rng.below(5000) as u32;
    let eps = rng.below(eps + 1);
    let clusters = if eps == 0 { 0 } else { eps * 512 - rng.below(512) };
    let thin = rng.one_in(2);
    let mut meta = BlobMeta::new(blob_id(root), clusters, thin);
    meta.flags.data_ro = rng.below(2);
    meta.flags.md_ro = rng.below(4);
    meta.flags.set_invalid(Flags::PRIVATE_ZERO_MARKS, rng.one_in(4));
    let density = rng.below(4);
    if let Extents::Table { pages, .. } = &mut meta.extents {
        for page in pages.iter_mut() {
            if !thin || rng.below(4) < density {
                *page = 1 + rng.below(100_000) as u32;
            }
        }
    }
    if rng.one_in(2) {
        meta.set_name(b"vol").unwrap();
        meta.set_uuid(&uuid::Uuid::from_u128(u128::from(rng.next()) | 1));
    }
    if thin && rng.one_in(2) {
        meta.set_snapshot_parent(Some(blob_id(rng.below(5000) as u32)));
    }
    for n in 0..rng.below(6) {
        let len = if rng.one_in(4) { rng.below(4072 - 9 - 2) } else { rng.below(100) } as usize;
        let value = rng.bytes(len);
        meta.set_xattr(rng.one_in(3), &[b'x', n as u8], &value);
    }
    meta
}

fn random_private(rng: &mut Rng) -> Private {
    let mut at = 1;
    let mut extents = Vec::new();
    for _ in 0..1 + rng.below(24) {
        at += rng.below(100) as u32;
        let clusters = 1 + rng.below(100) as u32;
        extents.push(PrivateExtent { start_cluster: at, clusters });
        at += clusters;
    }
    let mut store_uuid = [0; 16];
    store_uuid.copy_from_slice(&rng.bytes(16));
    Private { state: PrivateState::InUse, generation: rng.next(), store_uuid, extents }
}
