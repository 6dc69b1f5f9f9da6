//! The admin API over the lvstores of this process.

mod resolve;
mod service;

pub use service::{AdminService, client, serve_in_memory};
