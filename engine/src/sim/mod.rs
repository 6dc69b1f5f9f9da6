//! The simulator: a seeded disk with a volatile cache, a seeded scheduler that runs several real shards in one thread, and
//! deliberate bugs that prove that the tests see.

pub mod mutation;
