//! What a state means, and what to do about it.

use super::world::{conditions, store_conditions};
use coppice_kube_api::{Lvol, LvolCondition, LvolReason, Lvstore, LvstoreCondition, LvstoreReason, is_true};

/// Sentences for a person about a lvol that is not as it should be. `names`: an object of its lvstore, if there is one.
pub fn of_lvol(lvol: &Lvol) -> Vec<&'static str> {
    let bad = conditions(lvol).iter().filter(|c| match c.type_.as_str() {
        kind if kind == LvolCondition::Ready.as_str() => c.status != "True",
        _ => c.status == "True",
    });
    let mut all: Vec<&str> = bad
        .filter_map(|c| LvolReason::ALL.iter().find(|r| r.as_str() == c.reason))
        .filter_map(|r| lvol_reason(*r))
        .collect();
    all.dedup();
    all
}

fn lvol_reason(reason: LvolReason) -> Option<&'static str> {
    Some(match reason {
        LvolReason::Available | LvolReason::Hydrated | LvolReason::AsExpected | LvolReason::Adopted => return None,
        LvolReason::Creating => "The agent of the node is making it: wait.",
        LvolReason::Removing => {
            "It goes when nothing uses it any more. Find the pods that still do (below), or the snapshot that is being taken."
        }
        LvolReason::NodeUnavailable => {
            "The agent of its node does not answer. See kubectl get nodes, and the node's pod in the namespace of Coppice."
        }
        LvolReason::LvstoreNotReady => {
            "Its lvstore is not open. kubectl describe lvstores says why; the volume comes back with the store."
        }
        LvolReason::NoSpace => {
            "Its lvstore has no room. Delete what is not needed (snapshots keep what was overwritten), grow the store, or ask for less."
        }
        LvolReason::SourceMissing => {
            "What it should be made from is gone. Delete the claim and make it from something else."
        }
        LvolReason::SourceUnavailable => {
            "What it should be made from is on another node or in another lvstore. Use a class that binds at once \
             (kubectl coppice clone chooses one), so that it lands where its source is."
        }
        LvolReason::SourceNotHydrated => "Its source still receives its data from another node: wait until it has it.",
        LvolReason::CreateFailed => "Making or growing it failed; it is tried again. The agent's log has the rest.",
        LvolReason::Damaged => {
            "Its metadata does not check out. Do not write to it; run coppice lvstore check on the node, and restore a snapshot."
        }
        LvolReason::Missing => {
            "It was there once, and its lvstore does not have it any more: a swapped drive, or an older copy of it. It is never made \
             again on its own, because it would be blank. Bring the drive back, or delete the claim and restore it from elsewhere."
        }
        LvolReason::LvstoreLost => {
            "Its drive is gone, swapped or blank. Bring it back and the volume is there; if it never comes, delete the claim."
        }
        LvolReason::NodeGone => {
            "Its node is no longer part of the cluster. Bring node or drive back, or delete the claim: the lvol goes should the drive return."
        }
        LvolReason::Hydrating => {
            "Until all its data is here it depends on the node of its source: do not take that one away."
        }
        LvolReason::HydrationStalled => {
            "Copying its data does not advance: look at the node of its source, and the network between."
        }
        LvolReason::Orphaned => "Its object was deleted by hand. kubectl coppice adopt lvol takes it back.",
    })
}

/// Sentences for a person about a lvstore that is not as it should be.
pub fn of_lvstore(store: &Lvstore) -> Vec<String> {
    let all = store_conditions(store);
    let name = store.metadata.name.as_deref().unwrap_or_default();
    if is_true(all, LvstoreCondition::Foreign) {
        return vec![format!(
            "The store on the drive is not this cluster's. If nobody else uses it: kubectl coppice adopt lvstore {name}"
        )];
    }
    let bad = all.iter().filter(|c| match c.type_.as_str() {
        kind if kind == LvstoreCondition::Ready.as_str() => c.status != "True",
        _ => c.status == "True",
    });
    let reasons = bad.filter_map(|c| LvstoreReason::ALL.iter().find(|r| r.as_str() == c.reason));
    let mut advice: Vec<String> = reasons.filter_map(|r| lvstore_reason(*r)).map(String::from).collect();
    advice.dedup();
    advice
}

fn lvstore_reason(reason: LvstoreReason) -> Option<&'static str> {
    Some(match reason {
        LvstoreReason::Open | LvstoreReason::AsExpected => return None,
        LvstoreReason::Opening | LvstoreReason::Formatting => "Its node is at it: wait.",
        LvstoreReason::DeviceMissing => {
            "The node has no such device or file: compare spec.device with /dev/disk/by-id there."
        }
        LvstoreReason::DevicePartitioned | LvstoreReason::DeviceMounted | LvstoreReason::DeviceHeld => {
            "The device is in use for something else, so it is left alone. Free it, or name another."
        }
        LvstoreReason::DeviceNotBlank => {
            "The device holds something, and nothing is formatted that is not blank. If it may go: wipefs --all on the node."
        }
        LvstoreReason::FileSizeMissing => "Say in spec.fileSize how large the file is to be.",
        LvstoreReason::Duplicate => "Another Lvstore of this node has its name or device: delete one of the two.",
        LvstoreReason::HostUnfit => "The node lacks what every export needs; the message says what.",
        LvstoreReason::OpenFailed => {
            "The store does not open. Look at it on its node: coppice lvstore check --image DEVICE."
        }
        LvstoreReason::DeviceFailed => {
            "The drive failed a request: nothing is acknowledged as durable any more. Look at the node's kernel log; replace the drive, \
             or restart the node's pod to open it again."
        }
        LvstoreReason::DeviceStalled => {
            "The drive does not answer: look at the node's kernel log. What waits for it goes on if it comes back."
        }
        LvstoreReason::ReadOnly => "Nothing in it can change; the agent's log says why.",
        LvstoreReason::DeviceBlank | LvstoreReason::OtherStore => {
            "This is not the drive that was here. Bring the old one back; for a new one, make a new Lvstore object."
        }
        LvstoreReason::NodeGone => "Its node is no longer part of the cluster.",
        LvstoreReason::OtherCluster | LvstoreReason::MadeElsewhere => "kubectl coppice adopt lvstore takes it over.",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state that is bad and about which nobody says a word is worse than none.
    #[test]
    fn every_reason_that_is_bad_has_advice() {
        let silent: Vec<&str> =
            LvolReason::ALL.iter().filter(|r| lvol_reason(**r).is_none()).map(|r| r.as_str()).collect();
        assert_eq!(silent, ["Available", "Hydrated", "Adopted", "AsExpected"]);
        let silent: Vec<&str> =
            LvstoreReason::ALL.iter().filter(|r| lvstore_reason(**r).is_none()).map(|r| r.as_str()).collect();
        assert_eq!(silent, ["Open", "AsExpected"]);
    }
}
