//! The machine: its mounts, its devices and its file system tools, by kubelet's conventions.
//!
//! Nothing here knows of volumes. Every external command has a deadline and its output is kept for the error message.

pub mod command;
pub mod device;
pub mod freeze;
pub mod grow;
pub mod mkfs;
pub mod mount;
pub mod mountinfo;
pub mod probe;
