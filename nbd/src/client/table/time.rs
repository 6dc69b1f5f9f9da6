//! What is due: deadlines, silences, attempts to connect, giving back what is not in use.

use super::{CACHE_KEEP, Ended, Lost, Order, Plan, SILENCES_MAX, Table};
use crate::client::state::{Error, count};
use std::ops::Range;
use std::time::Instant;

impl Table {
    /// The keeper has to look by then.
    pub(super) fn look_by(&mut self, at: Instant) {
        self.planned = Some(self.planned.map_or(at, |planned| planned.min(at)));
    }

    /// When the keeper has to look; it is told when this becomes earlier.
    pub fn planned(&self) -> Option<Instant> {
        self.planned
    }

    pub(super) fn may_grow(&self, now: Instant) -> bool {
        let trusted = self.trusted().count();
        let allowed = self.trusted().all(|(_, link)| link.peer.multi);
        allowed && trusted < self.config.connections && self.schedule.extra_due().is_none_or(|due| due <= now)
    }

    /// Does what is due, and says what comes next.
    pub fn tick(&mut self, now: Instant) -> Plan {
        self.expire(now);
        let mut next = self.deadlines.first().map(|(deadline, ..)| *deadline);
        let mut at = |when: Instant| next = Some(next.map_or(when, |next: Instant| next.min(when)));
        self.listen(now, &mut at);
        self.rest(now, &mut at);
        self.dispatch(now);
        let mut dial = false;
        if self.links.len() < 2 * self.config.connections.max(1) {
            let due = if self.resting && self.fetches.is_empty() {
                None
            } else if self.trusted().next().is_none() {
                Some(self.schedule.due(!self.fetches.is_empty()))
            } else if self.wants_more && self.may_grow(now) {
                Some(None)
            } else {
                None
            };
            match due {
                Some(Some(due)) if due > now => at(due),
                Some(_) => dial = true,
                None => {}
            }
        }
        self.planned = next;
        Plan { dial, next }
    }

    /// Answers those whose time is over.
    fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, waiter, id)) = self.deadlines.first()
            && deadline <= now
        {
            self.deadlines.pop_first();
            let Some(fetch) = self.fetches.get_mut(&id) else { continue };
            let Some(at) = fetch.waiters.iter().position(|w| w.id == waiter) else { continue };
            let waiter = fetch.waiters.swap_remove(at);
            let reason = self.why_not(id, now);
            count(&self.tallies.timeouts);
            let Range { start: off, end } = waiter.wanted;
            let export = self.config.export.clone();
            let waited = now - waiter.since;
            let error = Error::TimedOut { export, off, len: end - off, waited, reason };
            let _ = waiter.reply.send(Err(Lost::Error(error)));
            if self.fetches.get(&id).is_some_and(|fetch| fetch.waiters.is_empty()) {
                self.forget(id);
            }
        }
    }

    /// Why a fetch has no answer yet.
    fn why_not(&self, id: u64, now: Instant) -> String {
        let link = self.fetches.get(&id).and_then(|fetch| self.links.get(fetch.at.first()?));
        match (&self.trouble, link) {
            (Some((at, trouble)), _) => {
                let how = if trouble.refused { "refused" } else { "away" };
                format!("{how} for {:.1} s now: {}", (now - *at).as_secs_f64(), trouble.text())
            }
            (None, Some(link)) => format!("{} is connected, but does not answer", link.peer.address),
            (None, None) if self.links.is_empty() => "not connected yet".to_string(),
            (None, None) => format!("{} requests are before it", self.fetches.len().saturating_sub(1)),
        }
    }

    /// Finds links that are silent, or speak again.
    fn listen(&mut self, now: Instant, at: &mut impl FnMut(Instant)) {
        let silence = self.config.silence;
        let (mut dead, mut again, mut silent) = (Vec::new(), Vec::new(), None);
        for (&id, link) in &mut self.links {
            if link.owes.is_empty() {
                link.suspect = false;
                continue;
            }
            let heard = link.heard.last().max(link.turned);
            let (suspect_at, dead_at) = (heard + silence, heard + silence * SILENCES_MAX);
            if now >= dead_at {
                dead.push(id);
                continue;
            }
            let was_suspect = std::mem::replace(&mut link.suspect, now >= suspect_at);
            if link.suspect {
                at(dead_at.min(now + silence / 8));
                if !was_suspect {
                    again.extend(link.owes.values().map(|sent| (sent.fetch, false)));
                    silent = Some((heard, link.peer.address.clone()));
                }
                continue;
            }
            at(suspect_at);
            // It speaks, but not of these: others, sent later, were answered long ago.
            for sent in link.owes.values().filter(|sent| !sent.begun) {
                match sent.passed_over.map(|since| since + silence) {
                    Some(due) if due <= now => again.push((sent.fetch, true)),
                    Some(due) => at(due),
                    None => {}
                }
            }
        }
        for (id, passed_over) in again.into_iter().rev() {
            if let Some(fetch) = self.fetches.get_mut(&id)
                && fetch.at.len() == 1
                && !fetch.queued
            {
                fetch.again = passed_over;
                count(&self.tallies.retries);
                self.queue(id, true);
            }
        }
        if let Some((heard, address)) = silent
            && self.trusted().next().is_none()
        {
            let reason = format!("it owes answers and has said nothing for {:.1} s", (now - heard).as_secs_f64());
            self.in_trouble(heard, Some(address), reason, false);
        }
        if self.trusted().next().is_some() {
            self.trouble = None;
        }
        for id in dead {
            let reason =
                format!("it owed answers and said nothing for {:.1} s", (silence * SILENCES_MAX).as_secs_f64());
            self.link_down(id, Ended::Lost(reason), now);
        }
    }

    /// Gives back what is not in use: connections, those beyond the first earlier, and what was read ahead.
    fn rest(&mut self, now: Instant, at: &mut impl FnMut(Instant)) {
        if !self.cache.is_empty() {
            match self.last_read + CACHE_KEEP {
                over if over <= now => self.cache.clear(),
                over => at(over),
            }
        }
        let mut spare = self.trusted().count().saturating_sub(1);
        let mut over = Vec::new();
        // Nothing waits, and there are no others that may yet come to their senses.
        if self.fetches.is_empty()
            && self.links.len() == 1
            && let Some((id, link)) = self.links.first_key_value().filter(|(_, link)| link.owes.is_empty())
        {
            match link.turned + self.config.rest_timeout {
                due if due <= now => {
                    over.push(*id);
                    self.resting = true;
                }
                due => at(due),
            }
        }
        for (id, link) in self.links.iter().rev().filter(|(_, link)| !link.suspect && link.owes.is_empty()) {
            if spare == 0 {
                break;
            }
            spare -= 1;
            match link.turned + self.config.idle_timeout {
                due if due <= now => over.push(*id),
                due => at(due),
            }
        }
        for id in over {
            if let Some(link) = self.links.remove(&id) {
                let _ = link.orders.send(Order::Close);
            }
        }
    }
}
