//! When the next attempt to connect is due.
//!
//! The pause doubles with every failure, from `retry_min` on; somebody who waits shortens its upper limit. Half of it is
//! random, so that the many clones of a server that comes back do not come all at once. A connection that answered a
//! request proves that all is well; one that was merely made does not.

use super::config::Config;
use std::time::{Duration, Instant};

pub(super) struct Schedule {
    min: Duration,
    max: Duration,
    idle_max: Duration,
    refused: Duration,
    failures: u32,
    was_refused: bool,
    /// When the last attempt or connection ended, and what part of its pause is kept: 0.5 to 1.
    ended: Option<(Instant, f64)>,
    /// When a connection beyond the first failed.
    extra_ended: Option<Instant>,
    random: u64,
}

impl Schedule {
    pub fn new(config: &Config, seed: u64) -> Schedule {
        Schedule {
            min: config.retry_min,
            max: config.retry_max,
            idle_max: config.retry_idle_max,
            refused: config.retry_refused,
            failures: 0,
            was_refused: false,
            ended: None,
            extra_ended: None,
            random: seed | 1,
        }
    }

    /// An attempt failed, or a connection that had proved nothing ended.
    pub fn failed(&mut self, now: Instant, refused: bool) {
        self.failures = self.failures.saturating_add(1);
        self.was_refused = refused;
        self.ended = Some((now, self.part()));
    }

    /// An attempt to have one more connection failed.
    pub fn extra_failed(&mut self, now: Instant) {
        self.extra_ended = Some(now);
    }

    /// A request was answered.
    pub fn proved(&mut self) {
        self.failures = 0;
        self.was_refused = false;
    }

    /// Something has changed: the next attempt is due at once.
    pub fn forget(&mut self) {
        self.proved();
        self.extra_ended = None;
    }

    /// When the first connection is to be tried; `None` is now.
    pub fn due(&self, somebody_waits: bool) -> Option<Instant> {
        let (ended, part) = self.ended?;
        if self.failures == 0 {
            return None;
        }
        let pause = if self.was_refused {
            self.refused
        } else {
            let max = if somebody_waits { self.max.min(self.idle_max) } else { self.idle_max };
            self.min.saturating_mul(1 << (self.failures - 1).min(20)).min(max)
        };
        Some(ended + pause.mul_f64(part))
    }

    /// When one more connection is to be tried; `None` is now.
    pub fn extra_due(&self) -> Option<Instant> {
        Some(self.extra_ended? + self.idle_max)
    }

    fn part(&mut self) -> f64 {
        // xorshift64; good enough to be different.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        0.5 + (self.random % 1024) as f64 / 2048.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::config::{Address, Endpoint, fixed};

    fn schedule() -> Schedule {
        let endpoint = Endpoint { address: Address::Unix("/nowhere".into()), identity: None };
        Schedule::new(&Config::new("x", fixed(endpoint)), 7)
    }

    #[test]
    fn pauses_grow_up_to_the_limit_and_end_with_a_proof() {
        let (mut schedule, now) = (schedule(), Instant::now());
        assert_eq!(schedule.due(true), None);
        let mut last = Duration::ZERO;
        for n in 0..40 {
            schedule.failed(now, false);
            let [waited, idle] = [true, false].map(|waits| schedule.due(waits).unwrap() - now);
            let whole = Duration::from_millis(100 << n.min(10));
            assert!(waited >= whole.min(Duration::from_secs(2)) / 2 && waited <= Duration::from_secs(2), "{waited:?}");
            assert!(idle >= whole.min(Duration::from_secs(15)) / 2 && idle <= Duration::from_secs(15), "{idle:?}");
            assert_ne!(idle, last, "the same pause twice");
            last = idle;
        }
        schedule.proved();
        assert_eq!(schedule.due(false), None);
    }

    #[test]
    fn a_refused_server_is_tried_slowly_whoever_waits() {
        let (mut schedule, now) = (schedule(), Instant::now());
        schedule.failed(now, true);
        assert!(schedule.due(true).unwrap() - now >= Duration::from_secs(15));
        schedule.failed(now, false);
        assert!(schedule.due(true).unwrap() - now <= Duration::from_secs(2));
        schedule.failed(now, true);
        schedule.forget();
        assert_eq!(schedule.due(true), None);
    }
}
