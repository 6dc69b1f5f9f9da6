//! The NBD server for other nodes. It begins when this node's stores were tried and its certificate is there: a peer that asks
//! earlier finds nobody, and not a server that knows nothing.

use super::super::{Agent, lock};
use super::unread::{Readers, Unread, Yes};
use crate::remote::Exports;
use async_trait::async_trait;
use coppice_engine::Store;
use coppice_nbd::server::{self, Identity, Limits, Listed, Listener, Peer, Refusal, Server, Source};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tracing::{info, warn};
use uuid::Uuid;

/// When it is tried again to listen.
const AGAIN: Duration = Duration::from_secs(5);

/// Snapshots that are shut for a reader while it is found out whether the reader still needs them. Clones are the same.
#[derive(Clone, Default)]
pub struct Gate(Arc<Mutex<BTreeSet<(Uuid, String)>>>);

impl Gate {
    pub fn shut(&self, snapshot: Uuid, reader: &str) -> Shut {
        let key = (snapshot, reader.to_string());
        lock(&self.0).insert(key.clone());
        Shut { gate: self.clone(), key }
    }

    fn is_shut(&self, export: &str, peer: &Peer) -> bool {
        // However the name is written.
        match (&peer.identity, Uuid::parse_str(export)) {
            (Identity::Certified(name), Ok(snapshot)) => lock(&self.0).contains(&(snapshot, name.clone())),
            _ => false,
        }
    }
}

/// Open again when it is dropped.
pub struct Shut {
    gate: Gate,
    key: (Uuid, String),
}

impl Drop for Shut {
    fn drop(&mut self) {
        lock(&self.gate.0).remove(&self.key);
    }
}

struct Gated {
    exports: Exports,
    gate: Gate,
    readers: Readers,
}

#[async_trait]
impl server::Exports for Gated {
    async fn list(&self, peer: &Peer) -> Vec<Listed> {
        self.exports.list(peer).await
    }

    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refusal> {
        if self.gate.is_shut(name, peer) {
            return Err(Refusal::Unavailable("it is being looked whether you need it: try again".into()));
        }
        if let Some(what) = Unread::parse(name) {
            let yes = self.readers.answer(what).map(|()| Arc::new(Yes) as Arc<dyn Source>);
            return yes.map_err(Refusal::Unavailable);
        }
        self.exports.open(peer, name).await
    }
}

/// Serves, until this is dropped.
pub async fn run(agent: &Agent) {
    let outside = &agent.outside;
    let (Some(export), Some(certificates)) = (&outside.export, &outside.certificates) else { return };
    agent.tried().await;
    let _ = outside.certified.subscribe().wait_for(|certified| *certified).await;
    let listener = loop {
        match TcpListener::bind(export.address).await {
            Ok(listener) => break listener,
            Err(e) => {
                warn!(address = %export.address, "snapshots are not served to other nodes: {e}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    };
    let at = listener.local_addr().unwrap_or(export.address);
    let stores = agent.config.stores.clone();
    let readers = outside.readers(&stores);
    let exports = Gated { exports: Exports::new(stores), gate: outside.gate.clone(), readers };
    match start(exports, listener, certificates.clone()) {
        Ok(server) => {
            let _ = outside.server.set(Arc::new(server));
            let _ = outside.endpoint.set(at);
            info!(%at, identity = certificates.identity(), "snapshots are served to the nodes that their pins name");
        }
        Err(e) => warn!("snapshots are not served to other nodes: {e}"),
    }
    agent.served.notify_waiters();
}

impl Agent {
    /// Other nodes read nothing here any more. Call it before stores are closed: those who still read wait for this node.
    pub async fn stop_serving(&self) {
        if let Some(server) = self.outside.server.get() {
            server.stop().await;
        }
    }

    /// Ends what other nodes read of a store that is about to be closed, and is not served any more: they ask again.
    pub(in super::super) fn let_go_of(&self, store: &Store) {
        let Some(server) = self.outside.server.get() else { return };
        let is_in_it = |export: &String| Uuid::parse_str(export).is_ok_and(|uuid| store.lvstore().lvol(uuid).is_ok());
        let theirs: BTreeSet<String> = server.connections().into_iter().map(|c| c.export).filter(is_in_it).collect();
        server.close(|connection| theirs.contains(&connection.export));
    }
}

fn start(
    exports: Gated,
    listener: TcpListener,
    certificates: coppice_nbd::tls::Certificates,
) -> Result<Server, server::LimitsError> {
    Server::start(Listener::Tcp { listener, certificates }, Arc::new(exports), Limits::default())
}
