//! Snapshots across lvstores: serving ours to others, and reading theirs.
//!
//! ```text
//!   esnap clone ─▶ Parents ─▶ an open lvstore here │ a file │ another node over NBD
//!   another node's esnap clone ─▶ NBD server ─▶ Exports: is it pinned for this peer? ─▶ snapshot
//! ```

mod exports;
mod parents;
mod release;
#[cfg(test)]
mod tests;

pub use exports::Exports;
pub use parents::{Parents, Whereabouts};
pub use release::Near;

/// The socket in the run directory on which every lvol is served to this machine, read only.
pub const SOCKET: &str = "nbd.sock";

/// The name of the context that says in what a snapshot differs from another one of its store; that one's UUID follows.
pub const DELTA_CONTEXT: &str = "coppice:delta:";
