//! The contracts of Coppice and how they are carried: CSI, the admin API, unix sockets, error codes, the text of Prometheus,
//! and the attributes by which the control plane finds its way in the engine's metadata. No behaviour.

pub mod attributes;
pub mod calls;
pub mod capability;
pub mod convert;
pub mod exposition;
pub mod status;
pub mod timings;
pub mod turns;
pub mod unix;

/// The Container Storage Interface.
pub mod csi {
    pub mod v1 {
        #![allow(clippy::all, clippy::unwrap_used)]
        tonic::include_proto!("csi.v1");
    }
}

/// The admin API.
pub mod admin {
    pub mod v1 {
        #![allow(clippy::all, clippy::unwrap_used)]
        tonic::include_proto!("coppice.admin.v1");
    }
}

/// Kubelet's plugin registration.
pub mod registration {
    #![allow(clippy::all, clippy::unwrap_used)]
    tonic::include_proto!("pluginregistration");
}

/// The compiled descriptors of all contracts (a serialised `FileDescriptorSet`).
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
