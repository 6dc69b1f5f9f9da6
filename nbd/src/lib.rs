//! The Network Block Device protocol: its messages, and what serves them.
//!
//! Knows nothing of lvstores, Kubernetes or gRPC: an export is whatever implements the traits here.
//!
//! * [`client`]: a remote export as a read-only device.
//! * [`proto`]: the messages, without I/O; bytes in, values out, and back.
//! * [`server`]: serves exports to those who may have them.
//! * `testing`, a feature: a proxy that makes a bad network of a good one.
//! * [`tls`]: mutual TLS, and who the peer is.

pub mod client;
pub mod proto;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tls;
