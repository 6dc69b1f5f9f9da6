//! For tests only: an API server in this process, and a node's agent without an engine.
//!
//! The API server can be down, can be cut off at any of its writes (as if its client were killed there), and counts what it
//! is asked; programs of their own reach it through a port of this machine. It knows nothing of schemas and admission.

pub mod agent;
mod api;
mod serve;

pub use api::{Api, Cut, Health, State, text};
pub use serve::serve;
