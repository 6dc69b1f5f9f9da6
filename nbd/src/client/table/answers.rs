//! What becomes of answers: those who wait for them get their part, or are told why not.

use super::{Ended, Lost, Table, VIOLATIONS_MAX, Waiter};
use crate::client::reply::{Asked, Failure, Outcome};
use crate::client::state::{Error, count};
use crate::proto::ErrorCode;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Instant;

impl Table {
    /// An answer comes: what was asked under this cookie, if it still has to be answered.
    pub fn asked(&mut self, link: u64, cookie: u64) -> Option<Asked> {
        let sent = self.links.get_mut(&link)?.owes.get_mut(&cookie)?;
        sent.begun = true;
        Some(sent.asked.clone())
    }

    /// A reply is complete. If the link has to end, why.
    pub fn answered(&mut self, link_id: u64, cookie: u64, outcome: Outcome, now: Instant) -> Option<Ended> {
        if matches!(&outcome, Outcome::Failed(failure) if failure.code == ErrorCode::ESHUTDOWN) {
            return Some(Ended::ShutDown);
        }
        let link = self.links.get_mut(&link_id)?;
        let sent = link.owes.remove(&cookie)?;
        link.bytes -= sent.asked.data_bytes();
        for (_, earlier) in link.owes.range_mut(..cookie) {
            earlier.passed_over.get_or_insert(now);
        }
        (link.proven, link.suspect) = (true, false);
        if link.owes.is_empty() {
            link.turned = now;
        }
        self.trouble = None;
        self.schedule.proved();
        count(&self.tallies.requests);
        if let Some(fetch) = self.fetches.get(&sent.fetch) {
            let (range, enlarged) = (fetch.range.clone(), fetch.enlarged);
            let part = outcome.part(sent.asked.range(), &range);
            match part {
                Outcome::Failed(_) if enlarged => self.take_apart(sent.fetch),
                Outcome::Failed(failure) => self.refuse(sent.fetch, &failure),
                part => {
                    if let Outcome::Data(data) = &part {
                        self.tallies.bytes_read.fetch_add(data.len() as u64, Ordering::Relaxed);
                        if enlarged {
                            self.cache.put(range.start, data.clone());
                        }
                    }
                    self.deliver(sent.fetch, &range, &part);
                }
            }
        }
        self.dispatch(now);
        None
    }

    /// A reply breaks the protocol. The link ends next; this is for the one whose reply it was.
    pub fn violated(&mut self, link: u64, cookie: u64, why: &str) {
        let Some(id) = self.links.get(&link).and_then(|link| Some(link.owes.get(&cookie)?.fetch)) else { return };
        let Some(fetch) = self.fetches.get_mut(&id) else { return };
        fetch.violations += 1;
        if fetch.violations >= VIOLATIONS_MAX {
            let export = self.config.export.clone();
            self.fail(id, |waiter| Error::Protocol {
                export: export.clone(),
                off: waiter.wanted.start,
                reason: why.to_string(),
            });
        }
    }

    /// Removes a fetch; those who wait for it.
    pub(super) fn forget(&mut self, id: u64) -> Vec<Waiter> {
        let Some(fetch) = self.fetches.remove(&id) else { return Vec::new() };
        let unit = (fetch.range.start, fetch.range.end);
        if self.units.get(&unit) == Some(&id) {
            self.units.remove(&unit);
        }
        for waiter in &fetch.waiters {
            self.deadlines.remove(&(waiter.deadline, waiter.id, id));
        }
        fetch.waiters
    }

    pub(super) fn deliver(&mut self, id: u64, range: &Range<u64>, outcome: &Outcome) {
        for waiter in self.forget(id) {
            let _ = waiter.reply.send(Ok(outcome.clone().part(range, &waiter.wanted)));
        }
    }

    pub(super) fn fail(&mut self, id: u64, error: impl Fn(&Waiter) -> Error) {
        for waiter in self.forget(id) {
            let error = error(&waiter);
            let _ = waiter.reply.send(Err(Lost::Error(error)));
        }
    }

    fn refuse(&mut self, id: u64, failure: &Failure) {
        let export = self.config.export.clone();
        self.fail(id, |waiter| Error::Server {
            export: export.clone(),
            off: failure.offset.max(waiter.wanted.start),
            code: failure.code,
            message: failure.message.clone(),
        });
    }

    /// Something that was read ahead cannot be read: each waiter gets a request for what it wants and no more.
    fn take_apart(&mut self, id: u64) {
        for waiter in self.forget(id).into_iter().rev() {
            self.add(waiter.wanted.clone(), false, false, vec![waiter], true);
        }
    }
}
