//! What the status of an object says, and how it is written: as a change against the version that was read, and only if
//! something is new.

use super::decide::Said;
use coppice_engine::LvolInfo;
use coppice_kube_api::{ByteSize, Lvol, LvolCondition, LvolExport, LvolReason, LvolStatus, condition, set_condition};
use coppice_proto::attributes::{self, reported_size};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Duration;

/// How often allocated bytes are written, seconds.
const ALLOCATED_SECONDS_MIN: u64 = 300;
/// As well if they have doubled: that happens a few times in the life of a volume, and people look at young ones.
const DOUBLED_SECONDS_MIN: u64 = 10;
/// Characters of the name of a file system.
const FS_MAX: usize = 63;

/// The status of a Lvol. `since_allocated`: time since allocated bytes were written, if they were.
pub fn lvol_status(
    object: &Lvol,
    lvol: Option<&LvolInfo>,
    said: &Said,
    since_allocated: Option<Duration>,
    now: jiff::Timestamp,
) -> LvolStatus {
    let mut status = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let set = |conditions: &mut Vec<_>, kind: LvolCondition, holds, reason: LvolReason, message: &str| {
        set_condition(conditions, condition(kind, holds, reason, message, generation, now));
    };
    let conditions = &mut status.conditions;
    match said {
        Said::Available => {
            set(conditions, LvolCondition::Ready, true, LvolReason::Available, "");
            conditions.retain(|c| c.type_ != LvolCondition::ResizeFailed.as_str());
            if conditions.iter().any(|c| c.type_ == LvolCondition::Lost.as_str()) {
                set(conditions, LvolCondition::Lost, false, LvolReason::AsExpected, "");
            }
        }
        Said::NotReady(reason, message) => set(conditions, LvolCondition::Ready, false, *reason, message),
        Said::Lost(reason, message) => {
            set(conditions, LvolCondition::Ready, false, *reason, message);
            set(conditions, LvolCondition::Lost, true, *reason, message);
            // What is not there is not in use: it can be deleted.
            status.exports.clear();
        }
    }
    if let Some(lvol) = lvol {
        describe(&mut status, lvol, since_allocated, now);
    }
    status
}

/// The status of a Lvol that could not grow. What it has can be used all the same.
pub fn lvol_not_grown(
    object: &Lvol,
    lvol: &LvolInfo,
    reason: LvolReason,
    message: &str,
    now: jiff::Timestamp,
) -> LvolStatus {
    let mut status = lvol_status(object, Some(lvol), &Said::Available, Some(Duration::ZERO), now);
    let old = object.status.iter().flat_map(|status| &status.conditions);
    status.conditions.extend(old.filter(|c| c.type_ == LvolCondition::ResizeFailed.as_str()).cloned());
    let failed = condition(LvolCondition::ResizeFailed, true, reason, message, object.metadata.generation, now);
    set_condition(&mut status.conditions, failed);
    status
}

/// When the lvol was made, if that was written down.
pub fn created(lvol: &LvolInfo) -> Option<Time> {
    let nanos = lvol.attributes.get(attributes::CSI_CREATED)?.parse::<i128>().ok()?;
    whole_seconds(jiff::Timestamp::from_nanosecond(nanos).ok()?)
}

/// The API server keeps no more, and compares.
fn whole_seconds(time: jiff::Timestamp) -> Option<Time> {
    jiff::Timestamp::from_second(time.as_second()).ok().map(Time)
}

fn describe(status: &mut LvolStatus, lvol: &LvolInfo, since_allocated: Option<Duration>, now: jiff::Timestamp) {
    if status.created.is_none() {
        status.created = created(lvol).or_else(|| whole_seconds(now));
    }
    status.size = Some(reported_size(&lvol.attributes, lvol.size).into());
    status.parent = lvol.parent;
    status.file_system = lvol.attributes.get(attributes::FS).map(|held| held.chars().take(FS_MAX).collect());
    let export = |device: &String| LvolExport { kind: "fuse".to_string(), device: device.clone() };
    status.exports = lvol.exports.iter().map(export).collect();
    let allocated = lvol.allocated_clusters.saturating_mul(u64::from(lvol.cluster_size));
    if allocated_is_news(status.allocated, allocated, since_allocated) {
        status.allocated = Some(allocated.into());
    }
}

fn allocated_is_news(old: Option<ByteSize>, new: u64, since: Option<Duration>) -> bool {
    let Some(old) = old.map(ByteSize::bytes) else { return true };
    let rested = |seconds| since.is_none_or(|since| since >= Duration::from_secs(seconds));
    let doubled = new > 0 && new >= old.saturating_mul(2);
    let changed = old.abs_diff(new).saturating_mul(10) >= old.max(1);
    rested(ALLOCATED_SECONDS_MIN) && changed || rested(DOUBLED_SECONDS_MIN) && doubled
}

/// The merge patch that makes `new` of `old`, if they differ. What `new` has no more is null in it; it applies to the version
/// `resource_version` only.
pub fn patch<S: Serialize>(
    old: &Option<S>,
    new: &S,
    resource_version: Option<&str>,
) -> Result<Option<Value>, serde_json::Error> {
    let old = serde_json::to_value(old)?;
    let mut new = serde_json::to_value(new)?;
    if old == new {
        return Ok(None);
    }
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object_mut()) {
        for key in old.keys() {
            new.entry(key.clone()).or_insert(Value::Null);
        }
    }
    Ok(Some(json!({ "metadata": { "resourceVersion": resource_version }, "status": new })))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the drive knows counts: a creation that is reported is never done again.
    #[test]
    fn an_adopted_lvol_was_created_when_its_drive_says() -> anyhow::Result<()> {
        let object: Lvol = serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "pvc-1" },
            "spec": { "requestName": "pvc-1", "kind": "Volume", "size": "1Gi", "node": "a", "adopted": true,
                "lvstoreUUID": uuid::Uuid::nil(), "lvolUUID": uuid::Uuid::from_u128(2) }
        }))?;
        let mut lvol = super::super::decide_tests::lvol(1 << 30);
        let now = jiff::Timestamp::from_second(1_800_000_000)?;
        let of = |lvol: &LvolInfo| lvol_status(&object, Some(lvol), &Said::Available, None, now).created;
        assert_eq!(of(&lvol), Some(Time(now)), "nobody wrote it down");
        lvol.attributes.insert(attributes::CSI_CREATED.into(), "1767225600000000001".into());
        assert_eq!(of(&lvol), Some(Time("2026-01-01T00:00:00Z".parse()?)));
        Ok(())
    }

    #[test]
    fn what_is_lost_is_not_in_use() -> anyhow::Result<()> {
        let object: Lvol = serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "pvc-1" },
            "spec": { "requestName": "pvc-1", "kind": "Volume", "size": "1Gi", "node": "a",
                "lvstoreUUID": uuid::Uuid::nil(), "lvolUUID": uuid::Uuid::from_u128(2) },
            "status": { "exports": [{ "kind": "fuse", "device": "/dev/loop0" }] }
        }))?;
        let exports = |said: Said| lvol_status(&object, None, &said, None, jiff::Timestamp::UNIX_EPOCH).exports.len();
        assert_eq!(exports(Said::Lost(LvolReason::LvstoreLost, String::new())), 0, "or it could never be deleted");
        assert_eq!(exports(Said::NotReady(LvolReason::LvstoreNotReady, String::new())), 1);
        Ok(())
    }

    #[test]
    fn allocated_bytes_are_written_now_and_then() {
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        assert!(allocated_is_news(None, 0, None));
        assert!(!allocated_is_news(Some(1000.into()), 1099, minutes(6)), "less than a tenth");
        assert!(allocated_is_news(Some(1000.into()), 1100, minutes(6)));
        assert!(!allocated_is_news(Some(1000.into()), 1999, minutes(4)), "too soon");
        assert!(allocated_is_news(Some(1000.into()), 2000, minutes(4)));
        assert!(!allocated_is_news(Some(0.into()), 2000, Some(Duration::from_secs(9))), "even that too soon");
        assert!(!allocated_is_news(Some(0.into()), 0, minutes(4)));
        assert!(allocated_is_news(Some(0.into()), 1, None));
        assert!(!allocated_is_news(Some(0.into()), 0, None));
    }

    #[test]
    fn a_patch_says_what_is_gone() -> anyhow::Result<()> {
        let old = LvolStatus { parent: Some(uuid::Uuid::nil()), size: Some(1.into()), ..LvolStatus::default() };
        let new = LvolStatus { size: Some(1.into()), ..LvolStatus::default() };
        assert_eq!(patch(&Some(new.clone()), &new, Some("7"))?, None);
        let made = patch(&Some(old), &new, Some("7"))?.unwrap_or_default();
        let wanted = json!({ "metadata": { "resourceVersion": "7" }, "status": { "parent": null, "size": "1" } });
        assert_eq!(made, wanted);
        assert!(patch(&None, &new, None)?.is_some());
        Ok(())
    }
}
