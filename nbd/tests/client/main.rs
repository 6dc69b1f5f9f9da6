//! The client against servers: real ones, real ones behind a bad network, and one that lies.
//!
//! Every future is driven by an executor that knows nothing of tokio.

mod faults;
mod liar;
mod lies;
mod ours;
#[path = "../pki/mod.rs"]
mod pki;
mod real;
mod rig;
mod speed;
mod tls;
