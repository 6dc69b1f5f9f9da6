//! Which connections there are, how many there may be, and how to end them.
//!
//! ```text
//! admit ──▶ negotiating (anybody's; counted by address) ──▶ enter: transmission (counted by identity) ──▶ guard dropped
//! ```

use super::exports::Identity;
use super::limits::Limits;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A connection in transmission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub identity: Identity,
    pub address: Option<SocketAddr>,
    pub export: String,
}

struct Entry {
    address: Option<SocketAddr>,
    /// None while it negotiates.
    in_transmission: Option<Connection>,
    stop: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    next_id: u64,
    stopping: bool,
    entries: HashMap<u64, Entry>,
}

pub(super) struct Registry {
    limits: Arc<Limits>,
    state: Mutex<State>,
}

/// Why there is no room for a connection.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Full {
    #[error("the server is stopping")]
    Stopping,
    #[error("{0} connections are open, the most allowed")]
    Connections(usize),
    #[error("{0} connections negotiate, the most allowed")]
    Negotiating(usize),
    #[error("{0} connections from one address negotiate, the most allowed")]
    Address(usize),
    #[error("this peer has {0} connections, the most allowed: close some, or try again later")]
    Peer(usize),
}

/// A place among the connections; dropped, it is free again.
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
    stop: watch::Receiver<bool>,
}

impl Registry {
    pub(super) fn new(limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self { limits, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and a map is a map.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection that has just been accepted.
    pub(super) fn admit(self: &Arc<Self>, address: Option<SocketAddr>) -> Result<Place, Full> {
        let limits = &self.limits;
        let mut state = self.state();
        if state.stopping {
            return Err(Full::Stopping);
        }
        if state.entries.len() >= limits.connections_max {
            return Err(Full::Connections(limits.connections_max));
        }
        let negotiating = || state.entries.values().filter(|entry| entry.in_transmission.is_none());
        if negotiating().count() >= limits.negotiating_max {
            return Err(Full::Negotiating(limits.negotiating_max));
        }
        let ip = address.map(|address| address.ip());
        let same = |entry: &&Entry| ip.is_some() && entry.address.map(|a| a.ip()) == ip;
        if negotiating().filter(same).count() >= limits.negotiating_per_address_max {
            return Err(Full::Address(limits.negotiating_per_address_max));
        }
        let id = state.next_id;
        state.next_id += 1;
        let (sender, stop) = watch::channel(false);
        state.entries.insert(id, Entry { address, in_transmission: None, stop: sender });
        Ok(Place { registry: Arc::clone(self), id, stop })
    }

    pub(super) fn list(&self) -> Vec<Connection> {
        self.state().entries.values().filter_map(|entry| entry.in_transmission.clone()).collect()
    }

    /// Ends connections in transmission; returns how many.
    pub(super) fn close(&self, which: impl Fn(&Connection) -> bool) -> usize {
        let state = self.state();
        let mut closed = 0;
        for entry in state.entries.values() {
            if entry.in_transmission.as_ref().is_some_and(&which) {
                entry.stop.send_replace(true);
                closed += 1;
            }
        }
        closed
    }

    /// Ends all connections and admits no more.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.stopping = true;
        for entry in state.entries.values() {
            entry.stop.send_replace(true);
        }
    }
}

impl Place {
    /// The connection comes to transmission, if its peer may have one more.
    pub(super) fn enter(&self, connection: Connection) -> Result<(), Full> {
        let max = self.registry.limits.connections_per_peer_max;
        let mut state = self.registry.state();
        if state.stopping {
            return Err(Full::Stopping);
        }
        let same = |entry: &&Entry| entry.in_transmission.as_ref().is_some_and(|c| c.identity == connection.identity);
        if state.entries.values().filter(same).count() >= max {
            return Err(Full::Peer(max));
        }
        if let Some(entry) = state.entries.get_mut(&self.id) {
            entry.in_transmission = Some(connection);
        }
        Ok(())
    }

    /// Resolves when the connection has to end.
    pub(super) fn stop(&self) -> impl Future<Output = ()> + use<> {
        let mut stop = self.stop.clone();
        async move {
            // An error means that the entry is gone, and that is an end as well.
            let _ = stop.wait_for(|stop| *stop).await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.state().entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Arc<Registry> {
        let limits = Limits {
            connections_max: 5,
            connections_per_peer_max: 2,
            negotiating_max: 3,
            negotiating_per_address_max: 2,
            ..Limits::default()
        };
        Registry::new(Arc::new(limits))
    }

    fn address(last: u8) -> Option<SocketAddr> {
        Some(([192, 0, 2, last], 1000).into())
    }

    fn connection(name: &str) -> Connection {
        Connection { identity: Identity::Certified(name.into()), address: None, export: "e".into() }
    }

    #[test]
    fn strangers_cannot_take_all_places() {
        let registry = registry();
        let mut places = vec![registry.admit(address(1)).unwrap(), registry.admit(address(1)).unwrap()];
        assert_eq!(registry.admit(address(1)).err(), Some(Full::Address(2)));
        places.push(registry.admit(address(2)).unwrap());
        assert_eq!(registry.admit(address(3)).err(), Some(Full::Negotiating(3)));
        places.pop();
        places.push(registry.admit(address(3)).unwrap());
    }

    #[test]
    fn a_peer_has_its_share() {
        let registry = registry();
        let mut places = Vec::new();
        for (name, fits) in [("a", true), ("a", true), ("a", false), ("b", true), ("c", true), ("c", true)] {
            let place = registry.admit(None).unwrap();
            let entered = place.enter(connection(name));
            assert_eq!(entered.is_ok(), fits, "{name}: {entered:?}");
            if fits {
                places.push(place);
            }
        }
        assert_eq!(registry.list().len(), 5);
        assert_eq!(registry.admit(None).err(), Some(Full::Connections(5)));
        places.remove(0);
        registry.admit(None).unwrap().enter(connection("a")).unwrap();
    }

    #[tokio::test]
    async fn some_or_all_are_ended() {
        let registry = registry();
        let (a, b) = (registry.admit(None).unwrap(), registry.admit(None).unwrap());
        a.enter(connection("a")).unwrap();
        b.enter(connection("b")).unwrap();
        assert_eq!(registry.close(|c| c.identity == Identity::Certified("a".into())), 1);
        a.stop().await;
        assert!(!*b.stop.borrow());
        registry.stop();
        b.stop().await;
        assert_eq!(registry.admit(None).err(), Some(Full::Stopping));
    }
}
