//! The only `unsafe` of the engine: aligned memory, the io_uring, a few system calls that have no safe wrapper.
//!
//! Everything here has a safe face. What the kernel works on (buffer, file) is owned by the operation until its
//! completion has been seen, so a dropped future can never leave the kernel with freed memory.
#![allow(unsafe_code)]

pub mod apart;
pub mod block;
pub mod buf;
pub mod fuse_dev;
pub mod loop_ctl;
pub mod ring;
