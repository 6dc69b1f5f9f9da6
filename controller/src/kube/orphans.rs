//! Which objects have no owner. Pure.

use super::judge;
use coppice_kube_api::Lvol;
use kube::ResourceExt;
use std::collections::BTreeSet;

/// A creation that is retried has an owner soon after it succeeded; seconds.
const YOUNG_SECONDS: i64 = 3600;

/// What the cluster's objects refer to.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    /// Handles of PersistentVolumes and VolumeSnapshotContents.
    pub handles: BTreeSet<String>,
    /// Names of requests that they were made by.
    pub names: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Somebody may have written to it: people decide.
    MayBeUsed,
    /// It was never made, and nobody waits for it any more.
    NeverUsed,
}

impl Verdict {
    pub fn note(self) -> &'static str {
        match self {
            Verdict::MayBeUsed => {
                "No PersistentVolume or VolumeSnapshotContent names this lvol. It stays, with its data; if nobody needs it, \
                 make a PersistentVolume or VolumeSnapshotContent for its UUID with the policy Delete, and delete that."
            }
            Verdict::NeverUsed => "This lvol was never made and nothing in the cluster waits for it: it is removed.",
        }
    }
}

/// What is to be said of an object, if anything.
pub fn verdict(lvol: &Lvol, owners: &Owners, now: jiff::Timestamp) -> Option<Verdict> {
    let age = now.as_second() - lvol.creation_timestamp()?.0.as_second();
    let owned =
        owners.handles.contains(&lvol.spec.lvol_uuid.to_string()) || owners.names.contains(&lvol.spec.request_name);
    // What stands between a volume and its clone is cared for elsewhere.
    if owned || age < YOUNG_SECONDS || judge::is_leaving(lvol) || lvol.spec.clone_for.is_some() {
        return None;
    }
    let status = lvol.status.as_ref();
    let touched = lvol.spec.adopted || status.is_some_and(|status| status.created.is_some() || status.size.is_some());
    Some(if touched { Verdict::MayBeUsed } else { Verdict::NeverUsed })
}
