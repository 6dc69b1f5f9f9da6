//! Snapshots between nodes: serving ours to those that our pins name, and reading theirs.
//!
//! ```text
//!   the agent of the clone (B)                                the agent of the snapshot (A)
//!   names the snapshot in its Lvstore   (publish)             sees the Lvol, pins the snapshot        (pins)
//!   asks until it is served, clones it  (clone)   ──NBD/TLS─▶ serves it to B, as the pin says         (serve)
//!   says what is left                   (hydration)           looks now and then whether B's Lvstore
//!   takes it out of its Lvstore when it is cut                names it still, and unpins it if not    (pins)
//! ```
//!
//! The rule that all this keeps: *as long as a lvol in B's store reads the snapshot, B's Lvstore object names it, and A keeps
//! the pin until nothing names it any more and B's store itself says that nothing reads it.* B names it before the lvol can
//! exist, and takes it out after it is cut off; A asks the API server and B's agent (unread), never what it remembers. Where
//! nothing can be asked, everything stays as it is.

mod clone;
mod hydration;
mod identity;
mod pins;
mod publish;
mod serve;
mod unread;
mod whereabouts;

pub use hydration::describe;
pub use identity::placeholder;
pub use serve::Gate;
pub use whereabouts::{Known, whereabouts};

use coppice_engine::Stores;
use coppice_nbd::server::Server;
use coppice_nbd::tls::Certificates;
use hydration::Seen;
use publish::{Intents, Published};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use unread::Readers;
use uuid::Uuid;

/// How snapshots are served to other nodes.
#[derive(Clone, Debug)]
pub struct Export {
    /// Where this node listens, which is where others reach it. Port 0: any.
    pub address: SocketAddr,
    /// Where Coppice is installed, and the certificates of its authority are.
    pub namespace: String,
    /// How long nothing may name a pinned snapshot, by what the API server says, until the reader itself is asked whether its
    /// pin can go.
    pub unpin_after: Duration,
    /// How long a read waits for a node that is away, until it fails.
    pub patience: Duration,
    /// Most bytes per second that are copied into one lvstore; `None`: as much as there is.
    pub hydration_bytes_per_second: Option<u64>,
}

/// What the parts share.
pub struct Outside {
    export: Option<Export>,
    certificates: Option<Certificates>,
    /// True once others believe our certificate.
    certified: watch::Sender<bool>,
    gate: Gate,
    server: OnceLock<Arc<Server>>,
    endpoint: OnceLock<SocketAddr>,
    /// Held while something is pinned or unpinned.
    pinning: tokio::sync::Mutex<pins::Memory>,
    /// Wakes who looks which pins go.
    look: Notify,
    /// Wakes who pins.
    store_came: Notify,
    /// Held while it is written what a store of ours depends on.
    publishing: tokio::sync::Mutex<Published>,
    intents: Arc<Mutex<Intents>>,
    seen: Mutex<HashMap<Uuid, Seen>>,
}

impl Outside {
    pub fn new(export: Option<Export>, certificates: Option<Certificates>) -> Outside {
        Outside {
            export,
            certificates,
            certified: watch::Sender::new(false),
            gate: Gate::default(),
            server: OnceLock::new(),
            endpoint: OnceLock::new(),
            pinning: tokio::sync::Mutex::default(),
            look: Notify::new(),
            store_came: Notify::new(),
            publishing: tokio::sync::Mutex::default(),
            intents: Arc::default(),
            seen: Mutex::default(),
        }
    }

    /// Where others read our snapshots, once they can.
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint.get().map(SocketAddr::to_string)
    }

    /// A store came: what is pinned in it, or to be, is looked at.
    pub fn store_came(&self) {
        self.store_came.notify_one();
    }

    fn readers(&self, stores: &Stores) -> Readers {
        Readers { stores: stores.clone(), intents: self.intents.clone() }
    }
}

/// Works until it is dropped.
pub async fn run(agent: Arc<super::Agent>) {
    if agent.outside.export.is_none() {
        return std::future::pending().await;
    }
    tokio::join!(identity::run(&agent), serve::run(&agent), pins::run(&agent));
}
