//! Making a lvstore on a blank device.
//!
//! ```text
//!   copy, page 0 = "creating" ▶ metadata pages and masks ▶ copy, page 0 = LVOLSTORE, clean
//! ```
//!
//! Each arrow and comma is a flush. Cut off at any point, the device is still blank, says that its creation was
//! interrupted, so that a second `create` does it again, or is the new store: where page 0 is torn, its copy says it. The
//! copy lies in the middle, where nobody looks for a sign of something else.

use super::Lvstore;
use super::activate::{area_clusters, write_page0};
use super::load::read_super;
use super::local::ZEROES;
use super::system::{SystemArea, find_super_copies};
use crate::api::{CreateStore, StoreInfo};
use crate::device::Device;
use crate::error::{ErrorKind, Result, err};
use crate::format::blob::check_name;
use crate::format::page::blob_id;
use crate::format::{
    BSTYPE_COPPICE, BSTYPE_LVOLSTORE, Bits, BlobMeta, Geometry, MaskKind, PAGE_SIZE, Private, PrivateState, SuperBlock,
    encode_page, layout, mask, plan_layout,
};
use crate::shard::{Port, Shard, all};

/// Bytes of a cluster unless told otherwise; chosen by measurement, see `docs/cluster-size.md`.
pub const CLUSTER_SIZE_DEFAULT: u32 = 128 << 10;
/// Bytes of a logical block of a lvol on a file.
const BLOCK_SIZE_FILE: u32 = 4096;
/// The device may grow to that many times its size, unless told otherwise.
const GROWTH_DEFAULT: u64 = 4;

impl Lvstore {
    /// Formats the device. The caller has checked that it is blank, or was told to force it.
    pub async fn create(shard: &Shard, device: &Device, how: &CreateStore) -> Result<StoreInfo> {
        let port = device.port(shard);
        check_name(how.name.as_bytes())?;
        let cluster_size = how.cluster_size.unwrap_or(CLUSTER_SIZE_DEFAULT);
        if !cluster_size.is_power_of_two() || !(4096..=1 << 30).contains(&cluster_size) {
            return Err(err!(Invalid, "cluster size {cluster_size}: it must be a power of two from 4 KiB to 1 GiB"));
        }
        let fallback = if device.is_block_device() { device.block_size() } else { BLOCK_SIZE_FILE };
        let block_size = how.block_size.unwrap_or(fallback);
        if ![512, 4096].contains(&block_size) {
            return Err(err!(Invalid, "block size {block_size}: it must be 512 or 4096"));
        }
        if !block_size.is_multiple_of(device.block_size()) {
            return Err(err!(
                Invalid,
                "block size {block_size}: the device has blocks of {} bytes",
                device.block_size()
            ));
        }
        let max_size = how.max_size.unwrap_or(device.size().saturating_mul(GROWTH_DEFAULT)).max(device.size());
        let plan = plan_layout(device.size(), u64::from(cluster_size), block_size, max_size)?;
        let uuid = shard.random_uuid();
        // Copies of an earlier store's super block may lie around: ours must count as newer.
        let generation = match how.force {
            true => find_super_copies(&port, device.size()).await?.first().map_or(1, |old| old.generation + 2),
            false => 1,
        };
        let mut image = SuperBlock::new(&plan, BSTYPE_COPPICE);
        image.set_owner(how.owner)?;
        let geo = Geometry::new(&image, device.size())?;
        let (_, least) = area_clusters(geo.size, geo.cluster_size);
        if geo.data_clusters() < least + 4 {
            return Err(err!(
                Invalid,
                "{}: {} clusters of {cluster_size} bytes are left for data and the journal needs {least}: use a larger \
                 device or smaller clusters",
                device.path().display(),
                geo.data_clusters()
            ));
        }
        image.set_private(Some(&Private {
            state: PrivateState::Creating,
            generation,
            store_uuid: *uuid.as_bytes(),
            extents: Vec::new(),
        }))?;
        let middle = geo.md_clusters + geo.data_clusters() / 2;
        let place = SystemArea::new(&[(middle, 2)], geo.cluster_size, uuid, 0);
        replace_super(&port, &place, &image, generation - 1).await?;
        // Pages that an earlier store left here would be taken for blobs by a recovery.
        zero(&port, PAGE_SIZE as u64, geo.page_offset(geo.md_len) - PAGE_SIZE as u64).await?;
        let root = 0;
        let mut meta = BlobMeta::new(blob_id(root), 0, false);
        meta.set_uuid(&uuid);
        meta.set_store_name(how.name.as_bytes())?;
        let page = encode_page(&meta, &layout::layout(&meta)?, &[root], 0)?;
        let buf = shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        buf.copy_in(0, &page);
        all(vec![port.write(geo.page_offset(root), buf, false)], "cannot write the super blob").await?;
        let mut pages = Bits::new(geo.md_len);
        pages.set(root);
        let mut clusters = Bits::new(geo.total_clusters);
        (0..geo.md_clusters).for_each(|c| {
            clusters.set(c);
        });
        write_masks(&port, &geo, &pages, &clusters, &pages).await?;
        port.flush().done("cannot flush the device").await?;
        image.bstype = BSTYPE_LVOLSTORE;
        image.clean = 1;
        image.super_blob = blob_id(root);
        image.set_private((generation > 1).then_some(&Private {
            state: PrivateState::None,
            generation,
            store_uuid: *uuid.as_bytes(),
            extents: Vec::new(),
        }))?;
        replace_super(&port, &place, &image, generation - 1).await?;
        let loaded = super::load::load(&port, device, true, Default::default()).await?;
        Ok(super::info::info_of(&loaded.core, device, true))
    }

    /// True for a device on which an earlier `create` was cut off, and nothing else is.
    pub async fn creation_was_interrupted(shard: &Shard, device: &Device) -> Result<bool> {
        match read_super(&device.port(shard), device).await {
            Ok(found) => Ok(matches!(found.block.private(), Ok(Some(p)) if p.state == PrivateState::Creating)),
            Err(e) if e.kind() == ErrorKind::Io => Err(e),
            Err(_) => Ok(false),
        }
    }
}

/// The copy of the super block ▶ flush ▶ page 0 ▶ flush.
async fn replace_super(port: &Port, place: &SystemArea, image: &SuperBlock, generation: u64) -> Result<()> {
    place.write_super_copy(port, image, generation).await?;
    port.flush().done("cannot flush the device").await?;
    write_page0(port, image).await?;
    port.flush().done("cannot flush the device").await
}

/// Writes all three masks in full. Not flushed.
pub async fn write_masks(port: &Port, geo: &Geometry, pages: &Bits, clusters: &Bits, ids: &Bits) -> Result<()> {
    let areas = [
        (MaskKind::Pages, pages, geo.page_mask),
        (MaskKind::Clusters, clusters, geo.cluster_mask),
        (MaskKind::BlobIds, ids, geo.blobid_mask),
    ];
    for (kind, bits, region) in areas {
        if region.len == 0 {
            continue;
        }
        let bytes = mask::encode(kind, bits, region.len as usize)?;
        for (n, piece) in bytes.chunks(1 << 20).enumerate() {
            let buf = port.shard.buf(piece.len()).slice(0, piece.len());
            buf.copy_in(0, piece);
            all(vec![port.write(region.offset + ((n as u64) << 20), buf, false)], "cannot write a mask").await?;
        }
    }
    Ok(())
}

/// Makes a range read zero: by the device if it can, else by writing.
pub async fn zero(port: &Port, off: u64, len: u64) -> Result<()> {
    if port.zero_range(off, len).await == 0 {
        return Ok(());
    }
    let zeroes = port.shard.buf(ZEROES);
    zeroes.slice(0, ZEROES).fill_zero();
    let mut at = off;
    while at < off + len {
        let mut ios = Vec::new();
        for _ in 0..8 {
            let piece = (ZEROES as u64).min(off + len - at);
            if piece > 0 {
                ios.push(port.write(at, zeroes.slice(0, piece as usize), false));
                at += piece;
            }
        }
        all(ios, "cannot zero a range").await?;
    }
    Ok(())
}
