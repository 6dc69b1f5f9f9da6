//! Connections come and go; how the server as a whole is.

use super::{DEATHS_MAX, Ended, Heard, Link, Order, Peer, Table, YOUNG};
use crate::client::config::Address;
use crate::client::pieces::request_max;
use crate::client::state::{State, Trouble, count};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};
use tokio::sync::mpsc;

impl Table {
    /// A connection was made: its name, and where to note that it has heard something.
    pub fn link_up(&mut self, peer: Peer, orders: mpsc::UnboundedSender<Order>, now: Instant) -> (u64, Heard) {
        let id = self.new_id();
        let heard = Heard { start: self.start, ms: Arc::new(AtomicU64::new(0)) };
        heard.ms.store(u64::try_from((now - self.start).as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        count(&self.tallies.connects);
        self.size.get_or_insert(peer.size);
        let next_cookie = self.new_id();
        self.next_id += 1 << 32;
        let link = Link {
            orders,
            peer,
            heard: heard.clone(),
            owes: BTreeMap::new(),
            bytes: 0,
            next_cookie,
            turned: now,
            made: now,
            suspect: false,
            proven: false,
        };
        self.links.insert(id, link);
        let max = |peer: &Peer| request_max(self.config.request_bytes, peer.payload_max, peer.block);
        self.request_max = self.links.values().map(|link| max(&link.peer)).min().unwrap_or(self.request_max);
        self.trouble = None;
        self.wants_more = false;
        self.resting = false;
        self.dispatch(now);
        (id, heard)
    }

    /// A connection has ended; what it owes is sent again.
    pub fn link_down(&mut self, id: u64, why: Ended, now: Instant) {
        let Some(link) = self.links.remove(&id) else { return };
        let oldest = link.owes.values().next().map(|sent| sent.fetch);
        for sent in link.owes.values().rev() {
            if let Some(fetch) = self.fetches.get_mut(&sent.fetch) {
                fetch.at.retain(|at| *at != id);
                fetch.deaths += u32::from(oldest == Some(sent.fetch));
                // If it is what kills the server, the others have been answered by then.
                let first = fetch.deaths < DEATHS_MAX;
                count(&self.tallies.retries);
                self.queue(sent.fetch, first);
            }
        }
        let reason = match &why {
            Ended::Wanted => None,
            Ended::Lost(why) => Some(why.clone()),
            Ended::Broke(why) => Some(format!("it breaks the protocol: {why}")),
            Ended::ShutDown => Some("it is shutting down".to_string()),
        };
        if let Some(reason) = reason {
            count(&self.tallies.disconnects);
            if matches!(why, Ended::Broke(_)) {
                count(&self.tallies.violations);
            }
            if !matches!(why, Ended::Lost(_)) || !link.proven || now - link.made < YOUNG {
                self.schedule.failed(now, false);
            }
            if self.trusted().next().is_none() {
                self.in_trouble(now, Some(link.peer.address), reason, false);
            }
        }
        self.dispatch(now);
        self.look_by(now);
    }

    /// An attempt to connect has failed.
    pub fn dial_failed(&mut self, address: Option<Address>, reason: String, refused: bool, now: Instant) {
        count(&self.tallies.connect_failures);
        if self.trusted().next().is_some() {
            self.wants_more = false;
            self.schedule.extra_failed(now);
            return;
        }
        self.schedule.failed(now, refused);
        self.in_trouble(now, address, reason, refused);
    }

    /// The server as a whole does not serve us: since when stays, why is the newest.
    pub(super) fn in_trouble(&mut self, now: Instant, address: Option<Address>, reason: String, refused: bool) {
        let (at, since) = match &self.trouble {
            Some((at, trouble)) if trouble.refused == refused => (*at, trouble.since),
            _ => (now, SystemTime::now()),
        };
        self.resting = false;
        self.trouble = Some((at, Trouble { since, address, reason, refused }));
    }

    /// Something has changed: try to connect now, whatever the pause.
    pub fn nudge(&mut self, now: Instant) {
        self.schedule.forget();
        self.look_by(now);
    }

    pub fn state(&self) -> State {
        match (self.trusted().count(), &self.trouble) {
            (0, None) if self.resting => State::Resting,
            (0, None) => State::Connecting,
            (0, Some((_, trouble))) => trouble.state(),
            (connections, _) => State::Connected { connections },
        }
    }
}
