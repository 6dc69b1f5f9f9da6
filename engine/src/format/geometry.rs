//! Where things are on a device: all offset arithmetic of a store, and the plan of a new one.
//!
//! Clusters are counted from the start of the device, so cluster 0 always holds metadata and 0 can stand for "not
//! allocated". Clusters `0..md_clusters` hold the super block, the masks and the metadata pages.

use super::error::FormatError;
use super::page::{BLOBID_NONE, EXTENTS_PER_PAGE, PAGE_SIZE, root_of};
use super::super_block::SuperBlock;

/// A store has fewer clusters than this.
pub const MAX_CLUSTERS: u64 = (1 << 30) - 1;
/// Type and length in front of a mask's bits.
const MASK_HEADER: u64 = 5;
/// SPDK does not load from a smaller device.
const DEVICE_SIZE_MIN: u64 = 1 << 20;
/// Data clusters that a new store must offer at least.
const DATA_CLUSTERS_MIN: u64 = 4;
const P: u64 = PAGE_SIZE as u64;

/// Bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub offset: u64,
    pub len: u64,
}

/// The checked geometry of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of the device that the store covers.
    pub size: u64,
    pub cluster_size: u32,
    pub io_unit: u32,
    pub md_page_size: u32,
    pub total_clusters: u32,
    /// Clusters `0..md_clusters` hold metadata.
    pub md_clusters: u32,
    /// First metadata page, in pages from the start of the device.
    pub md_start: u32,
    /// Number of metadata pages.
    pub md_len: u32,
    pub page_mask: Region,
    /// As long as the super block says; the space up to the blob id mask is kept for growth.
    pub cluster_mask: Region,
    /// Length 0 in stores of version 1 and 2.
    pub blobid_mask: Region,
    mask_capacity: u64,
}

fn bad<T>(field: &'static str, value: impl Into<u64>, why: &'static str) -> Result<T, FormatError> {
    Err(FormatError::field(field, value, why))
}

/// Bits that a mask area of `bytes` bytes can hold.
fn mask_bits(bytes: u64) -> u64 {
    bytes.saturating_sub(MASK_HEADER).saturating_mul(8)
}

/// Pages that a mask of `bits` bits takes.
fn mask_pages(bits: u64) -> u64 {
    (MASK_HEADER + bits.div_ceil(8)).div_ceil(P)
}

impl Geometry {
    /// Checks every field of `sb` for a device of `device_size` bytes.
    pub fn new(sb: &SuperBlock, device_size: u64) -> Result<Geometry, FormatError> {
        let (cluster_size, md_page) = (sb.cluster_size, sb.md_page_size);
        if !md_page.is_power_of_two() || !(4096..=65536).contains(&md_page) {
            return bad("metadata page size", md_page, "not a power of two from 4096 to 65536");
        }
        if cluster_size == 0 || !cluster_size.is_multiple_of(4096) || !cluster_size.is_multiple_of(md_page) {
            return bad("cluster size", cluster_size, "not a multiple of 4096 and of the metadata page size");
        }
        if !sb.io_unit_size.is_power_of_two() || sb.io_unit_size < 512 || sb.io_unit_size > cluster_size {
            return bad("I/O unit", sb.io_unit_size, "not a power of two from 512 to the cluster size");
        }
        if !cluster_size.is_multiple_of(sb.io_unit_size) {
            return bad("cluster size", cluster_size, "not a multiple of the I/O unit");
        }
        if sb.size > device_size {
            return bad(
                "size of the store",
                sb.size,
                "the device is smaller: it was truncated, or it is not the whole one",
            );
        }
        let size = sb.covered(device_size);
        let total = size / u64::from(cluster_size);
        if total == 0 || total >= MAX_CLUSTERS {
            return bad("number of clusters", total, "a store has from 1 to 2^30 - 1");
        }
        let areas = areas(sb)?;
        let region = |area: &Area| Region {
            offset: area.start * u64::from(md_page),
            len: (area.end - area.start) * u64::from(md_page),
        };
        let [_, page_mask, cluster_mask, blobid_mask, md] = &areas;
        if mask_bits(region(page_mask).len) < sb.md_len.into() {
            return bad("used page mask length", sb.used_page_mask_len, "too short for the metadata pages");
        }
        if mask_bits(region(cluster_mask).len) < total {
            return bad("used cluster mask length", sb.used_cluster_mask_len, "too short for the clusters");
        }
        if sb.used_blobid_mask_len != 0 && mask_bits(region(blobid_mask).len) < sb.md_len.into() {
            return bad("used blob id mask length", sb.used_blobid_mask_len, "too short for the metadata pages");
        }
        let md_clusters = (md.end * u64::from(md_page)).div_ceil(cluster_size.into());
        if md_clusters > total {
            return bad("number of metadata pages", sb.md_len, "they do not fit the device");
        }
        if sb.super_blob != BLOBID_NONE && root_of(sb.super_blob).is_none_or(|root| root >= sb.md_len) {
            return bad("id of the super blob", sb.super_blob, "not the id of a metadata page");
        }
        // What lies behind the cluster mask ends its room for growth.
        let room_end =
            areas.iter().map(|a| a.start).filter(|&s| s >= cluster_mask.end).min().unwrap_or(cluster_mask.end);
        let room = room_end.saturating_sub(cluster_mask.start) * u64::from(md_page);
        Ok(Geometry {
            size,
            cluster_size,
            io_unit: sb.io_unit_size,
            md_page_size: md_page,
            total_clusters: total as u32,
            md_clusters: md_clusters as u32,
            md_start: sb.md_start,
            md_len: sb.md_len,
            page_mask: region(page_mask),
            cluster_mask: region(cluster_mask),
            blobid_mask: region(blobid_mask),
            mask_capacity: mask_bits(room),
        })
    }

    /// Byte offset of a cluster on the device.
    pub fn cluster_offset(&self, cluster: u32) -> u64 {
        u64::from(cluster) * u64::from(self.cluster_size)
    }

    /// Byte offset of a metadata page on the device.
    pub fn page_offset(&self, index: u32) -> u64 {
        (u64::from(self.md_start) + u64::from(index)) * u64::from(self.md_page_size)
    }

    /// Extent pages of a blob of `num_clusters` clusters.
    pub fn extent_pages_for(&self, num_clusters: u64) -> u64 {
        num_clusters.div_ceil(EXTENTS_PER_PAGE.into())
    }

    /// True for a cluster that a blob may own.
    pub fn is_data_cluster(&self, cluster: u32) -> bool {
        (self.md_clusters..self.total_clusters).contains(&cluster)
    }

    pub fn data_clusters(&self) -> u32 {
        self.total_clusters - self.md_clusters
    }

    /// Clusters to which the store can grow: what the space of the cluster mask can describe.
    pub fn mask_capacity_clusters(&self) -> u64 {
        self.mask_capacity.min(MAX_CLUSTERS - 1)
    }

    /// Bytes of one of the masks' areas for a store of `clusters` clusters, in pages: `used_cluster_mask_len` after growth.
    pub fn cluster_mask_pages(&self, clusters: u32) -> u32 {
        let bytes = MASK_HEADER + u64::from(clusters).div_ceil(8);
        bytes.div_ceil(self.md_page_size.into()) as u32
    }
}

/// Metadata pages `start..end`, from the start of the device.
struct Area {
    name: &'static str,
    start: u64,
    end: u64,
}

/// Super block, three masks and metadata pages, none of which touches another. The sums cannot overflow: u32 + u32.
fn areas(sb: &SuperBlock) -> Result<[Area; 5], FormatError> {
    let area = |name, start: u32, len: u32| Area { name, start: start.into(), end: u64::from(start) + u64::from(len) };
    let areas = [
        area("super block", 0, 1),
        area("used page mask", sb.used_page_mask_start, sb.used_page_mask_len),
        area("used cluster mask", sb.used_cluster_mask_start, sb.used_cluster_mask_len),
        area("used blob id mask", sb.used_blobid_mask_start, sb.used_blobid_mask_len),
        area("metadata pages", sb.md_start, sb.md_len),
    ];
    let [_, page_mask, cluster_mask, blobid_mask, md] = &areas;
    for area in [page_mask, cluster_mask, md] {
        if area.start == area.end {
            return bad(area.name, 0u32, "an area of the device must not be empty");
        }
    }
    for (n, a) in areas.iter().enumerate() {
        for b in areas.iter().skip(n + 1) {
            if a.start < b.end && b.start < a.end {
                return Err(FormatError::Overlap { first: a.name, second: b.name });
            }
        }
    }
    // Only the clusters up to the end of the metadata pages are kept from data.
    for mask in [page_mask, cluster_mask, blobid_mask] {
        if mask.start != mask.end && mask.end > md.end {
            return bad(mask.name, mask.start, "it lies behind the metadata pages, among the data");
        }
    }
    Ok(areas)
}

/// The areas of a new store; the fields of its super block. Starts and lengths in pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub size: u64,
    pub cluster_size: u32,
    pub io_unit_size: u32,
    pub md_page_size: u32,
    pub used_page_mask_start: u32,
    pub used_page_mask_len: u32,
    pub used_cluster_mask_start: u32,
    pub used_cluster_mask_len: u32,
    pub used_blobid_mask_start: u32,
    pub used_blobid_mask_len: u32,
    pub md_start: u32,
    pub md_len: u32,
}

/// Lays out a new store on `device_size` bytes that can grow to `max_size` bytes.
///
/// The order of the areas is SPDK's. `md_len` does not grow later, so it is made for `max_size`: eight times the extent
/// pages that a full store needs, and 256. The cluster mask is as long as the device needs; the space behind it is kept.
pub fn plan_layout(device_size: u64, cluster_size: u64, io_unit: u32, max_size: u64) -> Result<Layout, FormatError> {
    let no = |message: String| Err(FormatError::Unbuildable(message));
    if device_size < DEVICE_SIZE_MIN {
        return no(format!("the device has {device_size} bytes; a lvstore needs at least {DEVICE_SIZE_MIN}"));
    }
    let cluster = match u32::try_from(cluster_size) {
        Ok(c) if c >= 4096 && c.is_multiple_of(4096) => c,
        _ => return no(format!("cluster size {cluster_size}: it must be a multiple of 4096 below 4 GiB")),
    };
    if !io_unit.is_power_of_two() || !(512..=cluster).contains(&io_unit) || !cluster.is_multiple_of(io_unit) {
        return no(format!("I/O unit {io_unit}: it must be a power of two from 512 up that divides the cluster size"));
    }
    let size = device_size - device_size % u64::from(io_unit);
    let total = size / cluster_size;
    let max_clusters = (max_size / cluster_size).max(total);
    for (clusters, what) in [(total, "the device"), (max_clusters, "the maximum size")] {
        if clusters >= MAX_CLUSTERS {
            return no(format!(
                "{what} has {clusters} clusters of {cluster_size} bytes; at most {} are possible: choose larger clusters",
                MAX_CLUSTERS - 1
            ));
        }
    }
    // max_clusters < 2^30, so everything below fits u32.
    let md_len = max_clusters / 64 + 256;
    let mask_md = mask_pages(md_len);
    let cluster_mask_start = 1 + mask_md;
    let blobid_start = cluster_mask_start + mask_pages(max_clusters).max(mask_md);
    let md_start = blobid_start + mask_md;
    let md_clusters = ((md_start + md_len) * P).div_ceil(cluster_size);
    if total < md_clusters + DATA_CLUSTERS_MIN {
        return no(format!(
            "{total} clusters of {cluster_size} bytes fit the device and {md_clusters} of them are needed for metadata; \
             fewer than {DATA_CLUSTERS_MIN} would be left: use a larger device, smaller clusters or a smaller maximum size"
        ));
    }
    Ok(Layout {
        size,
        cluster_size: cluster,
        io_unit_size: io_unit,
        md_page_size: PAGE_SIZE as u32,
        used_page_mask_start: 1,
        used_page_mask_len: mask_md as u32,
        used_cluster_mask_start: cluster_mask_start as u32,
        used_cluster_mask_len: mask_pages(total) as u32,
        used_blobid_mask_start: blobid_start as u32,
        used_blobid_mask_len: mask_md as u32,
        md_start: md_start as u32,
        md_len: md_len as u32,
    })
}
