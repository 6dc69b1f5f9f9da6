//! What happens on the machine that has the drive.
//!
//! * `host`: the machine's own tools: mounts, probing, mkfs, fsck, growing, freezing.
//! * `staging`: attaching, mounting, publishing and growing volumes, in steps that can be repeated.
//! * `csi`: the Node service, which only translates.
//! * `admin`: the admin API over the lvstores of this process.
//! * `absent`: which lvstores are not open, and why.
//! * `agent`: makes the drive what the objects of the Kubernetes API say.
//! * `metrics`: what Prometheus is told of the lvstores.
//! * `remote`: snapshots across lvstores and nodes.
//! * `registration`: how kubelet learns of the driver.

mod absent;
pub mod admin;
pub mod agent;
pub mod csi;
mod error;
pub mod host;
pub mod metrics;
pub mod registration;
pub mod remote;
pub mod staging;

pub use absent::Absent;
pub use error::{Error, Result};
