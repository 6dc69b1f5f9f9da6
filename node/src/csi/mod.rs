//! The Node service over [`Node`](crate::staging::Node). It translates, and nothing else.

mod service;
mod status;

pub use service::NodeService;
