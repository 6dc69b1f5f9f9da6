//! Whose turn it is to try to read a snapshot of another lvstore: who waits for a node that is away keeps nobody else waiting.
//!
//! ```text
//!   try ──▶ is it this lvol's turn? (0.5 s after the first failure, then twice as long each time, 30 s at most)
//!       ──▶ was its source silent? ──no──▶ look at it briefly ──▶ served: all that wait for that source have their turn
//!                    └ yes ─▶ somebody looks already: later      └ not ─▶ one for each source, and few in all, go on looking
//! ```

use super::lock;
use std::collections::{BTreeSet, HashMap};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Between two tries of one lvol.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Tries that take long, at a time.
const LOOKING_MAX: usize = 4;
/// Most lvols and sources that are remembered; more are forgotten, and then tried sooner.
const REMEMBERED_MAX: usize = 4096;

struct Wait {
    source: Uuid,
    pause: Duration,
    until: Instant,
}

#[derive(Default)]
struct State {
    /// By lvol.
    waits: HashMap<Uuid, Wait>,
    /// Lvstores that did not answer when they were last asked, and what was found out.
    silent: HashMap<Uuid, String>,
    /// Lvstores that somebody is looking at, and takes time to.
    looking: BTreeSet<Uuid>,
}

#[derive(Default)]
pub struct Turns(Mutex<State>);

/// Somebody takes time to look at a source, until this is dropped.
pub struct Looking<'a> {
    turns: &'a Turns,
    source: Uuid,
}

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        lock(&self.turns.0).looking.remove(&self.source);
    }
}

impl Turns {
    /// How long the lvol still has to wait; `None` if it is its turn.
    pub fn left(&self, lvol: Uuid, now: Instant) -> Option<Duration> {
        let left = lock(&self.0).waits.get(&lvol)?.until.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// The lvol was not made because its source is away. When it has its turn again.
    pub fn failed(&self, lvol: Uuid, source: Uuid, now: Instant) -> Duration {
        let mut state = lock(&self.0);
        if state.waits.len() >= REMEMBERED_MAX {
            state.waits.clear();
        }
        let pause = state.waits.get(&lvol).map_or(PAUSE_MIN, |wait| (wait.pause * 2).min(PAUSE_MAX));
        state.waits.insert(lvol, Wait { source, pause, until: now + pause });
        pause
    }

    /// It is made, or not wanted any more.
    pub fn over(&self, lvol: Uuid) {
        lock(&self.0).waits.remove(&lvol);
    }

    /// What was found out about a source that is silent.
    pub fn silence(&self, source: Uuid) -> Option<String> {
        lock(&self.0).silent.get(&source).cloned()
    }

    pub fn is_silent(&self, source: Uuid, why: String) {
        let mut state = lock(&self.0);
        if state.silent.len() >= REMEMBERED_MAX {
            state.silent.clear();
        }
        state.silent.insert(source, why);
    }

    /// The source answers. True if it was silent: who waits for it has its turn now.
    pub fn answers(&self, source: Uuid) -> bool {
        let mut state = lock(&self.0);
        if state.silent.remove(&source).is_none() {
            return false;
        }
        state.waits.retain(|_, wait| wait.source != source);
        true
    }

    /// Takes time to look at a source; `None` if somebody does already, or too many look at theirs.
    pub fn look(&self, source: Uuid) -> Option<Looking<'_>> {
        let mut state = lock(&self.0);
        if state.looking.len() >= LOOKING_MAX || state.looking.contains(&source) {
            return None;
        }
        state.looking.insert(source);
        Some(Looking { turns: self, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[test]
    fn who_waits_is_tried_less_and_less_until_its_source_answers() {
        let (turns, lvol, now) = (Turns::default(), Uuid::from_u128(9), Instant::now());
        assert_eq!(turns.left(lvol, now), None);
        let pauses: Vec<u128> = (0..9).map(|_| turns.failed(lvol, A, now).as_millis()).collect();
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000]);
        assert_eq!(turns.left(lvol, now + Duration::from_secs(10)), Some(Duration::from_secs(20)));
        turns.is_silent(A, "it is off".into());
        assert_eq!(turns.silence(A).as_deref(), Some("it is off"));
        assert!(!turns.answers(B) && turns.left(lvol, now).is_some(), "another one");
        assert!(turns.answers(A) && turns.left(lvol, now).is_none() && turns.silence(A).is_none());
        assert_eq!(turns.failed(lvol, A, now), PAUSE_MIN);
        turns.over(lvol);
        assert_eq!(turns.left(lvol, now), None);
    }

    #[test]
    fn one_looks_at_each_source_and_few_in_all() {
        let turns = Turns::default();
        let first = turns.look(A);
        assert!(first.is_some() && turns.look(A).is_none() && turns.look(B).is_some());
        drop(first);
        let all: Vec<_> = (0..10).filter_map(|n| turns.look(Uuid::from_u128(n))).collect();
        assert_eq!(all.len(), LOOKING_MAX);
    }
}
