//! The simulator: a disk with a volatile cache, a seeded scheduler that runs several real shards in one thread, a plain
//! model to compare with, and deliberate bugs that prove that the tests see.

pub mod mutation;

#[cfg(feature = "sim")]
pub mod disk;
#[cfg(feature = "sim")]
pub mod image;
#[cfg(feature = "sim")]
pub mod model;
#[cfg(feature = "sim")]
pub mod rng;
#[cfg(feature = "sim")]
pub mod world;
