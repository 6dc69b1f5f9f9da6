//! What happens on the machine that has the drive.
//!
//! * `host`: the machine's own tools: mounts, probing, mkfs, fsck, growing, freezing.
//! * `staging`: attaching, mounting, publishing and growing volumes, in steps that can be repeated.
//! * `csi`: the Node service, which only translates.
//! * `admin`: the admin API over the lvstores of this process.

pub mod admin;
pub mod csi;
mod error;
pub mod host;
pub mod staging;

pub use error::{Error, Result};
