//! The CSI controller of Coppice.
//!
//! * `volume`: what can be done with volumes and snapshots, by the rules of CSI, over any [`volume::Backend`].
//! * `local`: the backend over lvstores open in this process.
//! * `kube`: the backend over the objects of the Kubernetes API.
//! * `csi`: the gRPC services, which only translate.
//!
//! It knows nothing of bytes on disk. All that it must remember is in the attributes of the lvols
//! ([`coppice_proto::attributes`]), so it can be killed at any point and needs no state of its own.

pub mod csi;
pub mod kube;
pub mod local;
pub mod volume;
