//! Arbitrary bytes as a store: what the fuzzer opens.

use super::world::World;
use crate::api::{CreateLvol, CreateSnapshot, CreateStore, OpenStore};
use crate::device::Device;
use crate::error::Result;
use crate::export::Volume;
use crate::format::{PAGE_SIZE, seal_page};
use crate::lvol::LvolIo;
use crate::shard::{Shard, ShardHandle};
use crate::sim::rng::Rng;
use crate::store::Lvstore;
use std::sync::Arc;

/// Bytes of the device; what the input does not fill is zero, what is longer is cut off.
pub const DEVICE_BYTES: usize = 2 << 20;
/// Bytes that are read of each lvol.
const READ: usize = 64 << 10;

async fn open(shard: &Shard, shards: Vec<ShardHandle>, device: Device) -> Result<Arc<Lvstore>> {
    Lvstore::open(shard, shards, device, OpenStore::default(), 1 << 20).await
}

/// Opens `bytes` as a store, lists, reads and checks it, then tries to change it and closes it. Any error is fine; a panic, a
/// hang or memory without bound is not.
pub fn fuzz_image(bytes: &[u8]) {
    let mut image = bytes.get(..DEVICE_BYTES).unwrap_or(bytes).to_vec();
    image.resize(DEVICE_BYTES, 0);
    let device = Device::simulated(0, DEVICE_BYTES as u64, 512);
    let mut world = World::new(image, 1, 1);
    let (shard, shards) = (world.shards[0].clone(), vec![world.shards[0].handle()]);
    world.block_on(0, async move {
        let Ok(store) = open(&shard, shards, device).await else { return };
        let lvols = store.lvols();
        for lvol in &lvols {
            let Ok(io) = LvolIo::open(&shard, &store, lvol.uuid) else { continue };
            for off in [0, io.size().saturating_sub(READ as u64)] {
                let len = READ.min((io.size() - off) as usize);
                let buf = shard.buf(len).slice(0, len);
                let _ = io.read(off / u64::from(io.block_size()) * u64::from(io.block_size()), buf).await;
            }
            let buf = shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
            buf.fill_zero();
            let _ = io.write(0, buf, true).await;
        }
        let _ = store.check(&shard).await;
        let new = CreateLvol { name: "fuzz".into(), size: 64 << 10, ..Default::default() };
        let _ = store.create_lvol(&shard, new).await;
        for lvol in &lvols {
            let _ = store.delete(&shard, lvol.uuid, true).await;
        }
        let _ = store.close(&shard).await;
    });
}

/// A small store with a thin lvol, a snapshot of it and something written to both: a seed for the fuzzer.
pub fn seed_image(closed: bool) -> Vec<u8> {
    let device = Device::simulated(0, DEVICE_BYTES as u64, 512);
    let mut world = World::new(vec![0; DEVICE_BYTES], 1, 1);
    let (shard, shards) = (world.shards[0].clone(), vec![world.shards[0].handle()]);
    let made = world.block_on(0, async move {
        let how = CreateStore {
            file_size: None,
            name: "seed".into(),
            cluster_size: Some(4096),
            max_size: None,
            block_size: Some(4096),
            force: true,
            owner: None,
        };
        Lvstore::create(&shard, &device, &how).await?;
        let store = open(&shard, shards, device).await?;
        let new = CreateLvol { name: "a".into(), size: 4 << 20, ..Default::default() };
        let lvol = store.create_lvol(&shard, new).await?.uuid;
        let io = LvolIo::open(&shard, &store, lvol)?;
        let buf = shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        buf.fill_zero();
        buf.copy_in(0, b"data");
        io.write(0, buf.clone(), true).await?;
        io.write(3 << 20, buf.clone(), true).await?;
        let snapshot =
            CreateSnapshot { lvol, name: "s".into(), uuid: None, attributes: Default::default(), hidden: false };
        store.snapshot(&shard, vec![snapshot]).await?;
        io.write(0, buf, true).await?;
        io.discard(3 << 20, PAGE_SIZE as u64).await?;
        io.flush().await?;
        drop(io);
        if closed {
            store.close(&shard).await?;
        }
        Ok::<(), crate::Error>(())
    });
    made.expect("a store on a perfect disk");
    world.power_cut()
}

/// Changes a few bytes of a store; half of the time the page's CRC is made good again, so that deeper checks are reached.
pub fn mutate(image: &mut [u8], rng: &mut Rng) {
    let interesting = 96.min(image.len() / PAGE_SIZE) as u64;
    for _ in 0..1 + rng.below(4) {
        let page = rng.below(interesting) as usize * PAGE_SIZE;
        let at = match rng.below(3) {
            0 => rng.below(128),
            1 => 4000 + rng.below(96),
            _ => rng.below(PAGE_SIZE as u64),
        } as usize;
        if let Some(byte) = image.get_mut(page + at) {
            *byte = match rng.below(4) {
                0 => 0,
                1 => 0xff,
                2 => *byte ^ (1 << rng.below(8)),
                _ => rng.draw() as u8,
            };
        }
        if rng.one_in(2)
            && let Some(page) = image.get_mut(page..page + PAGE_SIZE).and_then(|p| p.first_chunk_mut::<PAGE_SIZE>())
        {
            seal_page(page);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_stores_are_refused_or_isolated() {
        let seeds = [seed_image(true), seed_image(false)];
        fuzz_image(&[]);
        seeds.iter().for_each(|s| fuzz_image(s));
        for seed in 0..1_500 {
            let mut rng = Rng::new(seed);
            let mut image = seeds[seed as usize % 2].clone();
            mutate(&mut image, &mut rng);
            fuzz_image(&image);
        }
    }
}
