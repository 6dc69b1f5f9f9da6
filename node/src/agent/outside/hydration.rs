//! What the status of a Lvol says of the node that it still reads from.

use super::super::{Agent, lock};
use coppice_engine::{LvolInfo, LvolKind, LvolState, Store};
use coppice_kube_api::{Hydration, Lvol, LvolCondition, LvolReason, LvolStatus, condition, is_true, set_condition};
use std::time::{Duration, Instant};

/// A copy that has not advanced for so long stands still.
const STALLED: Duration = Duration::from_secs(60);
/// How often it is written how much is left.
const WRITTEN: Duration = Duration::from_secs(10);
/// Lvols of a chain; more than any has.
const CHAIN_MAX: usize = 4096;
/// Weight of the newest measurement of the rate, of 8.
const NEWEST: u64 = 2;

/// How a copy was when it was last looked at.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    remaining: u64,
    at: Instant,
    /// When something was copied last.
    advanced: Instant,
    bytes_per_second: u64,
    written: Option<Instant>,
}

/// On what a lvol depends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depends {
    /// For a person: the node, if it is known.
    pub from: String,
    pub total: u64,
    pub remaining: u64,
    pub eta_seconds: Option<i64>,
    /// Why nothing is copied, if so.
    pub stalled: Option<String>,
    /// Why what is not here cannot be read now, if so.
    pub away: Option<String>,
    /// It is time to write how much is left.
    pub due: bool,
}

/// The lvol that reads from elsewhere, among `lvol` and those that it was made from.
fn carrier(store: &Store, lvol: &LvolInfo) -> Option<LvolInfo> {
    let mut at = lvol.clone();
    for _ in 0..CHAIN_MAX {
        if at.hydration.is_some() || at.kind == LvolKind::EsnapClone {
            return Some(at);
        }
        match store.lvstore().lvol(at.parent?) {
            Ok(parent) => at = parent,
            Err(_) => return Some(at),
        }
    }
    None
}

impl Agent {
    pub fn depends(&self, store: &Store, lvol: &LvolInfo) -> Option<Depends> {
        let Some(carrier) = carrier(store, lvol) else {
            lock(&self.outside.seen).remove(&lvol.uuid);
            return None;
        };
        let origin = carrier.parent.and_then(|snapshot| self.origin_of(snapshot));
        let from = match origin.and_then(|origin| origin.node) {
            Some(node) if node == self.config.node => "another lvstore of its node".to_string(),
            Some(node) => format!("the node {node}"),
            None => "another lvstore".to_string(),
        };
        let (total, remaining) = carrier.hydration.map_or((0, 0), |h| (h.total_bytes, h.remaining_bytes));
        let now = Instant::now();
        let mut all = lock(&self.outside.seen);
        let seen = all.entry(lvol.uuid).or_insert(Seen {
            remaining,
            at: now,
            advanced: now,
            bytes_per_second: 0,
            written: None,
        });
        advance(seen, remaining, now);
        let due = seen.written.is_none_or(|at| now.duration_since(at) >= WRITTEN);
        if due {
            seen.written = Some(now);
        }
        let still = carrier.hydration.is_some() && now.duration_since(seen.advanced) >= STALLED;
        let reason = carrier.reason.clone();
        Some(Depends {
            from,
            total,
            remaining,
            eta_seconds: eta(seen, still),
            stalled: still.then(|| reason.clone().unwrap_or_else(|| "nothing was copied for a minute".into())),
            away: (carrier.state == LvolState::Degraded).then(|| reason.unwrap_or_else(|| "it does not answer".into())),
            due,
        })
    }
}

fn advance(seen: &mut Seen, remaining: u64, now: Instant) {
    let passed = now.duration_since(seen.at);
    if remaining != seen.remaining {
        seen.advanced = now;
    }
    if passed < Duration::from_secs(1) {
        return;
    }
    let copied = seen.remaining.saturating_sub(remaining);
    let millis = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = copied.saturating_mul(1000) / millis;
    seen.bytes_per_second = match seen.bytes_per_second {
        0 => rate,
        old => (old / 8).saturating_mul(8 - NEWEST).saturating_add((rate / 8).saturating_mul(NEWEST)),
    };
    (seen.remaining, seen.at) = (remaining, now);
}

fn eta(seen: &Seen, still: bool) -> Option<i64> {
    let seconds = seen.remaining.checked_div(seen.bytes_per_second.max(1))?;
    i64::try_from(seconds).ok().filter(|_| !still && seen.bytes_per_second > 0)
}

/// Puts it into the status. What has changed for a person, as an Event: reason and note.
pub fn describe(
    object: &Lvol,
    status: &mut LvolStatus,
    depends: Option<&Depends>,
    now: jiff::Timestamp,
) -> Vec<(LvolReason, String)> {
    let mut events = Vec::new();
    let was = is_true(&status.conditions, LvolCondition::Dependent);
    // One that was copied before anybody could look has depended, too.
    let said = status.conditions.iter().any(|c| c.type_ == LvolCondition::Dependent.as_str());
    let unsaid = !said && object.spec.outside().is_some();
    let was_away = is_true(&status.conditions, LvolCondition::Degraded);
    let generation = object.metadata.generation;
    let mut set = |kind: LvolCondition, holds: bool, reason: LvolReason, message: &str| {
        set_condition(&mut status.conditions, condition(kind, holds, reason, message, generation, now))
    };
    let Some(depends) = depends else {
        if was || unsaid {
            let note = "all its data is here: it needs no other node any more";
            set(LvolCondition::Dependent, false, LvolReason::Hydrated, note);
            events.push((LvolReason::Hydrated, note.to_string()));
        }
        if was_away {
            set(LvolCondition::Degraded, false, LvolReason::AsExpected, "");
        }
        status.hydration = None;
        return events;
    };
    let Depends { from, .. } = depends;
    let changed = match &depends.stalled {
        None => {
            let message = format!("it reads from {from} what it has not copied yet; that is needed until all is here");
            set(LvolCondition::Dependent, true, LvolReason::Hydrating, &message)
        }
        Some(why) => set(
            LvolCondition::Dependent,
            true,
            LvolReason::HydrationStalled,
            &format!("it depends on {from}, and nothing is copied: {why}"),
        ),
    };
    if !was {
        events.push((LvolReason::Hydrating, format!("it depends on {from} until all its data is here")));
    }
    match &depends.away {
        Some(why) => {
            let message = format!("what is not here yet cannot be read now from {from}: {why}");
            set(LvolCondition::Degraded, true, LvolReason::SourceUnavailable, &message);
            if !was_away {
                events.push((LvolReason::SourceUnavailable, message));
            }
        }
        None if was_away => {
            set(LvolCondition::Degraded, false, LvolReason::AsExpected, "");
        }
        None => {}
    }
    if depends.due || changed || status.hydration.is_none() {
        status.hydration = Some(Hydration {
            total: depends.total.into(),
            remaining: depends.remaining.into(),
            eta_seconds: depends.eta_seconds,
        });
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object() -> Lvol {
        serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "x" },
            "spec": { "requestName": "x", "kind": "Volume", "size": "1Gi", "node": "b",
                "lvstoreUUID": uuid::Uuid::nil(), "lvolUUID": uuid::Uuid::from_u128(1) }
        }))
        .expect("an object")
    }

    #[test]
    fn a_dependence_begins_stands_still_goes_on_and_ends() {
        let (object, now) = (object(), jiff::Timestamp::UNIX_EPOCH);
        let mut status = LvolStatus::default();
        let with = |remaining, due| Depends {
            from: "the node a".into(),
            total: 100,
            remaining,
            eta_seconds: Some(9),
            stalled: None,
            away: None,
            due,
        };
        let reasons = |events: Vec<(LvolReason, String)>| events.into_iter().map(|(r, _)| r).collect::<Vec<_>>();
        let said = describe(&object, &mut status, Some(&with(100, true)), now);
        assert_eq!(reasons(said), [LvolReason::Hydrating]);
        assert!(status.conditions[0].message.contains("the node a"), "{:?}", status.conditions);
        let left = |status: &LvolStatus| status.hydration.as_ref().map(|h| h.remaining.bytes());
        let before = status.clone();
        assert_eq!(reasons(describe(&object, &mut status, Some(&with(90, false)), now)), []);
        assert_eq!(status, before, "not so often");
        describe(&object, &mut status, Some(&with(90, true)), now);
        assert_eq!((left(&status), &status.conditions), (Some(90), &before.conditions), "what is left, and no more");

        let still = Depends { stalled: Some("why".into()), away: Some("gone".into()), ..with(90, false) };
        assert_eq!(reasons(describe(&object, &mut status, Some(&still), now)), [LvolReason::SourceUnavailable]);
        assert!(is_true(&status.conditions, LvolCondition::Degraded));
        assert_eq!(status.conditions[0].reason, "HydrationStalled");
        assert_eq!(reasons(describe(&object, &mut status, Some(&still), now)), [], "said once");
        describe(&object, &mut status, Some(&with(80, false)), now);
        assert!(!is_true(&status.conditions, LvolCondition::Degraded));
        assert_eq!(left(&status), Some(80));
        assert_eq!(reasons(describe(&object, &mut status, None, now)), [LvolReason::Hydrated]);
        assert_eq!((left(&status), status.conditions[0].reason.as_str()), (None, "Hydrated"));
        assert_eq!(reasons(describe(&object, &mut status, None, now)), []);
        let mut plain = LvolStatus::default();
        assert_eq!(reasons(describe(&object, &mut plain, None, now)), []);
        assert_eq!(plain, LvolStatus::default(), "who never depended has nothing to say");
    }

    #[test]
    fn the_time_that_is_left_follows_the_rate() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Seen { remaining: 1000, at: start, advanced: start, bytes_per_second: 0, written: None };
        assert_eq!(eta(&seen, false), None);
        advance(&mut seen, 900, after(10));
        assert_eq!((seen.bytes_per_second, eta(&seen, false)), (10, Some(90)));
        advance(&mut seen, 900, after(20));
        assert!(seen.bytes_per_second < 10 && seen.advanced == after(10));
        assert_eq!(eta(&seen, true), None);
    }
}
