//! Bytes on disk: super block, metadata pages, descriptors, masks, journal records, CRC. Pure: byte slices in, values
//! out. No I/O, no panic on any input, and memory only in proportion to the input (or to a bound the caller gives).
//!
//! The structures at rest are those of SPDK's blobstore, version 3. Everything is little-endian and packed. `P` is the
//! metadata page size, nearly always 4096; only the first 4096 bytes of a page carry structure and CRC.
//!
//! ```text
//!  byte 0                                                                     cluster_size × md_clusters
//!  ├────────┬───────────┬──────────────────────┬─────────────┬─────────────────────────┬──────┼──────────────┬───┐
//!  │ super  │ used page │ used cluster mask    │ used blobid │ metadata pages 0..md_len│ tail │ data cluster │ … │
//!  │ block  │ mask      │ (+ room for growth)  │ mask        │                         │      │              │   │
//!  └────────┴───────────┴──────────────────────┴─────────────┴─────────────────────────┴──────┴──────────────┴───┘
//!  page 0     page 1      1 + mask length        …             md_start
//!
//!  metadata pages, as seen from one blob (id = 2^32 | index of its root):
//!
//!  root ──next──▶ chain page ──next──▶ chain page          flags, xattrs, extent table
//!                                        │ table entry
//!                                        ▼
//!                                      extent page         512 entries: cluster numbers, 0 = not allocated
//! ```
//!
//! What is ours and not SPDK's: the owner and the private area at the end of the super block ([`super_block`]), the
//! structures of the system blob ([`journal`]), two incompatible flags ([`Flags`]) and one value in extent pages ([`ZERO_MARK`]).

pub mod blob;
mod bytes;
pub mod error;
pub mod extent_page;
#[doc(hidden)]
pub mod fuzzing;
pub mod geometry;
pub mod journal;
pub mod layout;
pub mod mask;
mod owner;
pub mod page;
pub mod private;
pub mod super_block;
pub mod xattr;

#[cfg(test)]
mod tests;

pub use blob::{BlobMeta, Extents, Flags, MAX_CLUSTERS_PER_BLOB, parse_chain, parse_root_links};
pub use error::FormatError;
pub use extent_page::{ExtentPage, ZERO_MARK};
pub use geometry::{Geometry, Layout, MAX_CLUSTERS, Region, plan_layout};
pub use journal::{JournalHead, RECORD_PAGES_MAX, RecordHeader, RecordPage, SuperCopy};
pub use layout::{ChainLayout, encode_page, page_of_ep};
pub use mask::{Bits, MaskKind};
pub use page::{
    BLOBID_HIGH, BLOBID_NONE, EXTENTS_PER_PAGE, PAGE_NONE, PAGE_SIZE, Page, PageHeader, parse_page, seal_page,
};
pub use private::{EXTENTS_MAX, Private, PrivateExtent, PrivateState};
pub use super_block::{BSTYPE_COPPICE, BSTYPE_LVOLSTORE, SuperBlock};
pub use xattr::Xattr;
