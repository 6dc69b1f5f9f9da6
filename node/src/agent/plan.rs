//! What to do with a Lvstore object that is not open, from the object and from what is on its device. Pure.
//!
//! A device is formatted only if it is blank and the object never had a store. A store that has lvols is taken only if the
//! object knows its UUID, or is told to adopt it. A store of another cluster is never taken unless told, not even if the
//! object knows its UUID: the object may have been restored into a second cluster, and the first may still use the drive.

use coppice_kube_api::{LvstoreReason, LvstoreSpec, Place};
use uuid::Uuid;

/// What was found where the store is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDevice {
    /// The file does not exist.
    NoFile,
    Blank,
    /// Something else than a store; what, for a person.
    Other(String),
    Store {
        uuid: Uuid,
        name: String,
        /// The cluster that it belongs to.
        owner: Option<Uuid>,
        /// How many it has, if they were counted.
        lvols: Option<usize>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Format it, making a file of that many bytes if given.
    Format(Option<u64>),
    /// Count the lvols of the store, and ask again.
    Count,
    /// Write the UUID down, then open it and make it this cluster's.
    Take(Uuid),
    /// Open it, and make it this cluster's if it is nobody's.
    Open,
    Refuse(LvstoreReason, String),
    Lost(LvstoreReason, String),
    Foreign(LvstoreReason, String),
}

/// `known`: the UUID of the object's store, once it had one. `cluster`: this cluster.
pub fn plan(spec: &LvstoreSpec, known: Option<Uuid>, cluster: Uuid, there: &OnDevice) -> Plan {
    let device = &spec.device;
    match (known, there) {
        (Some(known), OnDevice::Store { uuid, .. }) if *uuid != known => {
            Plan::Lost(LvstoreReason::OtherStore, format!("{device} holds the lvstore {uuid}, not {known}"))
        }
        (_, OnDevice::Store { uuid, name, owner, lvols }) => match owner.filter(|owner| *owner != cluster) {
            other if spec.adopt == Some(*uuid) && (known.is_none() || other.is_some()) => Plan::Take(*uuid),
            Some(other) => {
                let message = format!(
                    "{device} holds the lvstore {name} ({uuid}) of another cluster ({other}; this is {cluster}); \
                     spec.adopt takes it over, if the other one does not use it any more"
                );
                Plan::Foreign(LvstoreReason::OtherCluster, message)
            }
            None if known.is_some() => Plan::Open,
            None => unknown(spec, *uuid, name, *lvols),
        },
        (Some(known), OnDevice::Blank) => {
            let message = format!("{device} is blank; the lvstore {known} was there, and nothing is formatted again");
            Plan::Lost(LvstoreReason::DeviceBlank, message)
        }
        (Some(known), OnDevice::Other(what)) => {
            Plan::Lost(LvstoreReason::OtherStore, format!("{device} does not hold the lvstore {known}: {what}"))
        }
        (Some(_), OnDevice::NoFile) => Plan::Refuse(LvstoreReason::DeviceMissing, format!("there is no file {device}")),
        (None, OnDevice::NoFile) => match (spec.place(), spec.file_size) {
            (Place::File(_), Some(size)) => Plan::Format(Some(size.bytes())),
            _ => {
                let message = format!("there is no file {device}; spec.fileSize says how large to make it");
                Plan::Refuse(LvstoreReason::FileSizeMissing, message)
            }
        },
        (None, OnDevice::Blank) => Plan::Format(None),
        // Perhaps a creation that was cut off: the engine can tell, and refuses all else that is not blank.
        (None, OnDevice::Other(_)) => Plan::Format(None),
    }
}

/// A store that the object does not know, of this cluster or of none.
fn unknown(spec: &LvstoreSpec, uuid: Uuid, name: &str, lvols: Option<usize>) -> Plan {
    let made_elsewhere = |what: &str| {
        let device = &spec.device;
        let message = format!("{device} holds the lvstore {name} ({uuid}){what}; spec.adopt takes it over");
        Plan::Foreign(LvstoreReason::MadeElsewhere, message)
    };
    match lvols {
        _ if name != spec.name => made_elsewhere(", which has another name"),
        // What we formatted before we were killed: nothing is in it yet.
        Some(0) => Plan::Take(uuid),
        Some(lvols) => made_elsewhere(&format!(" with {lvols} lvols, and this object never had it")),
        None => Plan::Count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> LvstoreSpec {
        serde_json::from_value(json).expect("a spec")
    }

    const HERE: Uuid = Uuid::from_u128(100);
    const ELSEWHERE: Uuid = Uuid::from_u128(200);

    fn store(uuid: Uuid, name: &str, owner: Option<Uuid>, lvols: Option<usize>) -> OnDevice {
        OnDevice::Store { uuid, name: name.into(), owner, lvols }
    }

    #[test]
    fn nothing_is_formatted_twice_and_no_store_is_formatted() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let file = spec(serde_json::json!({ "node": "n", "name": "s", "device": "f", "fileSize": "1Gi" }));
        let bare = spec(serde_json::json!({ "node": "n", "name": "s", "device": "f" }));
        let adopting = LvstoreSpec { adopt: Some(other), ..bare.clone() };
        let found = [OnDevice::NoFile, OnDevice::Blank, OnDevice::Other("ext4".into())];
        for spec in [&file, &bare, &adopting] {
            for there in &found {
                let again = plan(spec, Some(ours), HERE, there);
                assert!(matches!(again, Plan::Refuse(..) | Plan::Lost(..)), "{there:?}");
                assert!(matches!(plan(spec, None, HERE, there), Plan::Format(_) | Plan::Refuse(..)), "{there:?}");
            }
        }
        assert_eq!(plan(&file, None, HERE, &OnDevice::NoFile), Plan::Format(Some(1 << 30)));
        let sizeless = plan(&bare, None, HERE, &OnDevice::NoFile);
        assert!(matches!(sizeless, Plan::Refuse(LvstoreReason::FileSizeMissing, _)));
        let blank = plan(&file, Some(ours), HERE, &OnDevice::Blank);
        assert!(matches!(blank, Plan::Lost(LvstoreReason::DeviceBlank, _)));
    }

    /// Every store that can be found, for every object.
    #[test]
    fn a_store_is_taken_only_where_nothing_else_can_be_meant() {
        let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let bare = spec(serde_json::json!({ "node": "n", "name": "s", "device": "f", "fileSize": "1Gi" }));
        let mut seen = std::collections::BTreeMap::new();
        for adopt in [None, Some(one), Some(two)] {
            let spec = LvstoreSpec { adopt, ..bare.clone() };
            for known in [None, Some(one), Some(two)] {
                for owner in [None, Some(HERE), Some(ELSEWHERE)] {
                    for name in ["s", "t"] {
                        for lvols in [None, Some(0), Some(3)] {
                            let there = store(one, name, owner, lvols);
                            let plan = plan(&spec, known, HERE, &there);
                            let case = format!("adopt {adopt:?} known {known:?}: {there:?}");
                            let (kind, right) = judge(&plan, adopt, known, one, owner, name, lvols);
                            assert!(right, "{case}: {plan:?}");
                            *seen.entry(kind).or_insert(0) += 1;
                        }
                    }
                }
            }
        }
        let kinds: Vec<&str> = seen.into_keys().collect();
        assert_eq!(kinds, ["count", "lost", "made elsewhere", "open", "other cluster", "take"]);
    }

    /// What the plan is called, and whether it may be made: the rules said once more, from the plan's side.
    fn judge(
        plan: &Plan,
        adopt: Option<Uuid>,
        known: Option<Uuid>,
        uuid: Uuid,
        owner: Option<Uuid>,
        name: &str,
        lvols: Option<usize>,
    ) -> (&'static str, bool) {
        let (adopted, foreign) = (adopt == Some(uuid), owner == Some(ELSEWHERE));
        let (mine, new) = (known == Some(uuid), known.is_none());
        match plan {
            Plan::Open => ("open", mine && !foreign),
            Plan::Take(taken) => {
                let empty = new && !foreign && name == "s" && lvols == Some(0);
                ("take", *taken == uuid && (empty || (adopted && (new || (mine && foreign)))))
            }
            Plan::Count => ("count", new && !adopted && !foreign && name == "s" && lvols.is_none()),
            Plan::Lost(reason, _) => ("lost", *reason == LvstoreReason::OtherStore && !mine && !new),
            Plan::Foreign(LvstoreReason::OtherCluster, _) => ("other cluster", foreign && !adopted && (mine || new)),
            Plan::Foreign(LvstoreReason::MadeElsewhere, _) => {
                ("made elsewhere", new && !adopted && !foreign && (name != "s" || lvols == Some(3)))
            }
            Plan::Format(_) | Plan::Refuse(..) | Plan::Foreign(..) => ("never", false),
        }
    }
}
