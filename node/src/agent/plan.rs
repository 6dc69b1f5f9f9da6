//! What to do with a Lvstore object that is not open, from the object and from what is on its device. Pure.
//!
//! A device is formatted only if it is blank and the object never had a store. A store that has lvols is taken only if the
//! object knows its UUID, or is told to adopt it.

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
        lvols: usize,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Format it, making a file of that many bytes if given.
    Format(Option<u64>),
    /// Write the UUID down, then open it.
    Take(Uuid),
    Open,
    Refuse(LvstoreReason, String),
    Lost(LvstoreReason, String),
    Foreign(LvstoreReason, String),
}

pub fn plan(spec: &LvstoreSpec, known: Option<Uuid>, there: &OnDevice) -> Plan {
    let device = &spec.device;
    match (known, there) {
        (Some(known), OnDevice::Store { uuid, .. }) if *uuid == known => Plan::Open,
        (Some(known), OnDevice::Store { uuid, .. }) => {
            Plan::Lost(LvstoreReason::OtherStore, format!("{device} holds the lvstore {uuid}, not {known}"))
        }
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
        (None, OnDevice::Store { uuid, .. }) if spec.adopt == Some(*uuid) => Plan::Take(*uuid),
        // What we formatted before we were killed: nothing is in it yet.
        (None, OnDevice::Store { uuid, name, lvols: 0 }) if *name == spec.name => Plan::Take(*uuid),
        (None, OnDevice::Store { uuid, name, lvols }) => {
            let message =
                format!("{device} holds the lvstore {name} ({uuid}) with {lvols} lvols; spec.adopt takes it over");
            Plan::Foreign(LvstoreReason::MadeElsewhere, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> LvstoreSpec {
        serde_json::from_value(json).expect("a spec")
    }

    #[test]
    fn nothing_is_formatted_twice_and_no_store_is_formatted() {
        let (ours, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let file = spec(serde_json::json!({ "node": "n", "name": "s", "device": "f", "fileSize": "1Gi" }));
        let bare = spec(serde_json::json!({ "node": "n", "name": "s", "device": "f" }));
        let adopting = LvstoreSpec { adopt: Some(other), ..bare.clone() };
        let store = |uuid, name: &str, lvols| OnDevice::Store { uuid, name: name.into(), lvols };
        let found = [
            OnDevice::NoFile,
            OnDevice::Blank,
            OnDevice::Other("ext4".into()),
            store(ours, "s", 3),
            store(other, "s", 0),
            store(other, "s", 1),
            store(other, "t", 0),
        ];
        for spec in [&file, &bare, &adopting] {
            for there in &found {
                let again = plan(spec, Some(ours), there);
                assert!(!matches!(again, Plan::Format(_) | Plan::Take(_)), "{there:?}");
                assert_eq!(again == Plan::Open, *there == store(ours, "s", 3), "{there:?}");
                let first = plan(spec, None, there);
                let store = matches!(there, OnDevice::Store { .. });
                assert!(!store || !matches!(first, Plan::Format(_)), "{there:?}");
                assert_ne!(first, Plan::Open);
            }
        }
        assert_eq!(plan(&file, None, &OnDevice::NoFile), Plan::Format(Some(1 << 30)));
        assert!(matches!(plan(&bare, None, &OnDevice::NoFile), Plan::Refuse(LvstoreReason::FileSizeMissing, _)));
        assert_eq!(plan(&bare, None, &store(other, "s", 0)), Plan::Take(other));
        assert!(matches!(plan(&bare, None, &store(other, "s", 1)), Plan::Foreign(..)));
        assert!(matches!(plan(&bare, None, &store(other, "t", 0)), Plan::Foreign(..)));
        assert_eq!(plan(&adopting, None, &store(other, "t", 5)), Plan::Take(other));
        assert!(matches!(plan(&file, Some(ours), &OnDevice::Blank), Plan::Lost(LvstoreReason::DeviceBlank, _)));
        assert!(matches!(plan(&file, Some(ours), &store(other, "s", 1)), Plan::Lost(LvstoreReason::OtherStore, _)));
    }
}
