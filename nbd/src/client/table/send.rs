//! Which request goes over which connection, and when.

use super::{GROW_FROM, Link, Lost, Order, Sent, Table};
use crate::client::pieces::whole_blocks;
use crate::client::reply::{Asked, Outcome, status_range};
use crate::client::state::{Extent, ExtentKind};
use crate::proto::{Command, CommandFlags, Request, Style};
use std::ops::Range;
use std::time::Instant;

impl Table {
    pub(super) fn trusted(&self) -> impl Iterator<Item = (&u64, &Link)> {
        self.links.iter().filter(|(_, link)| !link.suspect)
    }

    /// Sends what can be sent.
    pub(super) fn dispatch(&mut self, now: Instant) {
        let mut held = Vec::new();
        while let Some(id) = self.waiting.pop_front() {
            if !self.place(id, now) {
                held.push(id);
                // Only a request that a link already has can be held back while a later one finds its place.
                if self.fetches.get(&id).is_some_and(|fetch| fetch.at.is_empty()) {
                    break;
                }
            }
        }
        for id in held.into_iter().rev() {
            self.waiting.push_front(id);
        }
    }

    /// Sends a fetch, or sees that it needs none any more. False if there is no room or nobody to send it to.
    fn place(&mut self, id: u64, now: Instant) -> bool {
        if self.needs_nothing(id) {
            return true;
        }
        let Some(link) = self.choose(id) else { return false };
        let Some(asked) = self.question(id, link) else { return true };
        let (requests, bytes) = self.in_flight();
        let room = bytes == 0 || bytes + asked.data_bytes() <= self.config.bytes;
        if requests >= self.config.requests.max(1) || !room {
            return false;
        }
        self.send(id, link, asked, now);
        true
    }

    /// Nobody waits for it any more, or a link has it after all.
    fn needs_nothing(&mut self, id: u64) -> bool {
        let Some(fetch) = self.fetches.get_mut(&id) else { return true };
        for gone in fetch.waiters.extract_if(.., |waiter| waiter.reply.is_closed()) {
            self.deadlines.remove(&(gone.deadline, gone.id, id));
        }
        if fetch.waiters.is_empty() {
            self.forget(id);
            return true;
        }
        let carried = fetch.at.iter().any(|at| self.links.get(at).is_some_and(|link| !link.suspect));
        fetch.queued = !carried || fetch.again;
        !fetch.queued
    }

    /// The link with the least to do, of those that do not have it.
    fn choose(&mut self, id: u64) -> Option<u64> {
        let fetch = self.fetches.get(&id)?;
        let candidates = self.trusted().filter(|(link, _)| !fetch.at.contains(link));
        let chosen = candidates.min_by_key(|(_, link)| link.owes.len()).map(|(id, _)| *id);
        // One that was passed over needs another connection.
        if chosen.is_none() && fetch.again {
            self.wants_more = true;
        }
        chosen
    }

    /// What to ask this link for. `None` if that is not to be asked; then it has been answered.
    fn question(&mut self, id: u64, link: u64) -> Option<Asked> {
        let (fetch, peer) = (self.fetches.get(&id)?, &self.links.get(&link)?.peer);
        let range = fetch.range.clone();
        if range.end > peer.size {
            let error = self.out_of_range(&range, peer.size);
            self.fail(id, |_| error.clone());
            return None;
        }
        let asked = match (fetch.is_status, peer.context) {
            (true, None) => {
                let all = vec![Extent { len: range.end - range.start, kind: ExtentKind::Data }];
                self.deliver(id, &range, &Outcome::Extents(all));
                return None;
            }
            (true, Some(context)) => {
                Asked::Status { range: status_range(range, peer.block, peer.style != Style::Extended), context }
            }
            (false, _) => Asked::Data(whole_blocks(range, peer.block.into())),
        };
        if asked.data_bytes() > peer.payload_max.into() {
            for waiter in self.forget(id) {
                let _ = waiter.reply.send(Err(Lost::CutAnew));
            }
            return None;
        }
        Some(asked)
    }

    fn send(&mut self, id: u64, link_id: u64, asked: Asked, now: Instant) {
        let (Some(link), Some(fetch)) = (self.links.get_mut(&link_id), self.fetches.get_mut(&id)) else { return };
        let command = if fetch.is_status { Command::BLOCK_STATUS } else { Command::READ };
        let Range { start: offset, end } = *asked.range();
        let cookie = link.next_cookie;
        let request = Request { cookie, command, flags: CommandFlags::NONE, offset, length: end - offset };
        link.next_cookie += 1;
        if link.owes.is_empty() {
            link.turned = now;
        }
        self.wants_more |= link.owes.len() >= GROW_FROM;
        link.bytes += asked.data_bytes();
        link.owes.insert(cookie, Sent { fetch: id, asked, passed_over: None, begun: false });
        // If its task has ended we shall hear so, and the request is sent again.
        let _ = link.orders.send(Order::Ask(request));
        fetch.at.push(link_id);
        (fetch.queued, fetch.again) = (false, false);
        if self.wants_more && self.may_grow(now) {
            self.look_by(now);
        }
    }
}
