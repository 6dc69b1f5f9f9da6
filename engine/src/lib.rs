//! The block engine of Coppice: lvstores on files and block devices, thick and thin lvols, snapshots, clones.
//!
//! It knows nothing of gRPC and Kubernetes. The folders, from the bytes up:
//!
//! * `format`: bytes on disk, pure.
//! * `sys`: the only `unsafe`: ring, buffers, ioctls.
//! * `shard`: data threads: executor, completions, and the one seam for clock, randomness, hand-off and device.
//! * `device`: what a store lies on.
//! * `store`: lvstore: map, allocator, journal, load and recovery, check.
//! * `lvol`: volume semantics: I/O, copy on write, the tree.
//! * `export`: how a lvol becomes a block device.
//! * `external`: parents outside of a store.
//! * `counters`: what lvols did and how long it took.
//! * `sim`: seeded disk and scheduler, on which the real engine runs under test.

pub mod api;
pub mod counters;
pub mod device;
pub mod error;
pub mod export;
pub mod external;
pub mod format;
mod handle;
pub mod lvol;
pub mod shard;
pub mod sim;
pub mod store;
mod stores;
pub mod sys;

pub use api::*;
pub use error::{Error, ErrorKind, Result};
pub use export::{Left, detach_dead, lost_its_mount, remove_dead_exports};
pub use handle::{Engine, Export, Reader, Store};
#[cfg(feature = "sim")]
#[doc(hidden)]
pub use sim::image::fuzz_image;
pub use stores::Stores;
