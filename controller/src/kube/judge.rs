//! What an object says of how far its lvol is. Pure.

use coppice_kube_api::{FINALIZER, Lvol, LvolCondition, LvolReason, Restore, is_true};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;

/// How far the creation of a lvol is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Ready,
    /// Not yet; the reason and what the node says of it, for a person.
    Pending(String),
    /// It cannot be made, there is no room; nothing exists.
    NoSpace(String),
    /// It cannot be made, there is no source; nothing exists.
    SourceMissing(String),
    /// It was made, and is not there any more.
    Lost(String),
}

fn conditions(lvol: &Lvol) -> &[Condition] {
    lvol.status.as_ref().map_or(&[], |status| &status.conditions)
}

fn find(lvol: &Lvol, kind: LvolCondition) -> Option<&Condition> {
    conditions(lvol).iter().find(|condition| condition.type_ == kind.as_str())
}

fn words(condition: &Condition) -> String {
    match condition.message.is_empty() {
        true => condition.reason.clone(),
        false => format!("{}: {}", condition.reason, condition.message),
    }
}

pub fn progress(lvol: &Lvol) -> Progress {
    if let Some(lost) = find(lvol, LvolCondition::Lost).filter(|condition| condition.status == "True") {
        return Progress::Lost(words(lost));
    }
    let Some(ready) = find(lvol, LvolCondition::Ready) else {
        return Progress::Pending("its node has not seen it yet".into());
    };
    let created = lvol.status.as_ref().is_some_and(|status| status.created.is_some());
    match ready.reason.as_str() {
        _ if ready.status == "True" && lvol.spec.restore == Some(Restore::Eager) && is_dependent(lvol) => {
            let left = lvol.status.as_ref().and_then(|status| status.hydration.as_ref()).map(|all| all.remaining);
            let left = left.map_or_else(|| "some".into(), |left| left.to_string());
            Progress::Pending(format!("its data is being copied from another node, {left} left"))
        }
        _ if ready.status == "True" => Progress::Ready,
        // What was created cannot fail to be created; such a reason would be of another kind.
        reason if !created && reason == LvolReason::NoSpace.as_str() => Progress::NoSpace(words(ready)),
        reason if !created && reason == LvolReason::SourceMissing.as_str() => Progress::SourceMissing(words(ready)),
        _ => Progress::Pending(words(ready)),
    }
}

/// How far an expansion to `size` bytes is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Growth {
    Done,
    Pending,
    Failed { message: String, full: bool },
}

/// `generation` is the object's after `spec.size` was changed: what is said of an earlier one does not count.
pub fn growth(lvol: &Lvol, size: u64, generation: i64) -> Growth {
    let has = lvol.status.as_ref().and_then(|status| status.size).map_or(0, |size| size.bytes());
    if has >= size {
        return Growth::Done;
    }
    match find(lvol, LvolCondition::ResizeFailed) {
        Some(failed)
            if failed.status == "True" && failed.observed_generation.is_some_and(|seen| seen >= generation) =>
        {
            Growth::Failed { message: words(failed), full: failed.reason == LvolReason::NoSpace.as_str() }
        }
        _ => Growth::Pending,
    }
}

pub fn is_lost(lvol: &Lvol) -> Option<String> {
    match progress(lvol) {
        Progress::Lost(why) => Some(why),
        _ => None,
    }
}

/// It reads from another lvstore, itself or by way of what it was made from.
pub fn is_dependent(lvol: &Lvol) -> bool {
    is_true(conditions(lvol), LvolCondition::Dependent)
}

pub fn is_degraded(lvol: &Lvol) -> bool {
    is_true(conditions(lvol), LvolCondition::Degraded)
}

/// On its way out: the API server removes it when its last finalizer is gone.
pub fn is_leaving(lvol: &Lvol) -> bool {
    lvol.metadata.deletion_timestamp.is_some()
}

/// What the node reports as its devices.
pub fn exports(lvol: &Lvol) -> Vec<String> {
    lvol.status.iter().flat_map(|status| &status.exports).map(|export| export.device.clone()).collect()
}

/// The finalizers that are left when the agent's is taken away; `None` if it is not there.
pub fn without_finalizer(lvol: &Lvol) -> Option<Vec<String>> {
    let all = lvol.finalizers();
    let others: Vec<String> = all.iter().filter(|name| *name != FINALIZER).cloned().collect();
    (others.len() < all.len()).then_some(others)
}
