//! Names that others rely on: keys, the finalizer, and the name of the `Lvol` object for a CSI request.

use crate::Kind;
use sha2::{Digest, Sha256};

pub const GROUP: &str = "coppice.io";
pub const VERSION: &str = "v1alpha1";

/// On every `Lvol`, put there and taken away by the agent of its node.
pub const FINALIZER: &str = "coppice.io/lvol";
/// The topology key of the CSI driver; its value is the name of the node.
pub const TOPOLOGY_NODE: &str = "topology.coppice.io/node";
/// Signer of the certificates of the snapshot export.
pub const EXPORT_SIGNER: &str = "coppice.io/export";

/// `spec.name` of the lvstore that a `Lvol` is in.
pub const LABEL_LVSTORE: &str = "coppice.io/lvstore";
/// `namespace/name` of the claim that a volume was made for.
pub const ANNOTATION_PVC: &str = "coppice.io/pvc";
/// `namespace/name` of the VolumeSnapshot that a snapshot was made for.
pub const ANNOTATION_VOLUME_SNAPSHOT: &str = "coppice.io/volumesnapshot";

/// Field selectors of the watches of an agent.
pub const SELECT_NODE: &str = "spec.node";
pub const SELECT_SOURCE_NODE: &str = "spec.sourceNode";
pub const SELECT_LVSTORE: &str = "spec.lvstoreUUID";

/// The Secret with the authority of the snapshot export and the ConfigMap with its certificates, in Coppice's namespace.
pub const EXPORT_AUTHORITY: &str = "coppice-export-ca";
/// The key of that ConfigMap: certificates as PEM. One that is signed by any of them is believed.
pub const EXPORT_BUNDLE: &str = "ca.crt";

/// Longest name of a node, bytes: it has to fit a topology value, which is a label value.
pub const NODE_NAME_MAX: usize = 63;
/// Longest name of a CSI request, bytes.
pub const REQUEST_NAME_MAX: usize = 128;
/// Longest name that [`object_name`] makes, so that it fits a label value, too.
pub const OBJECT_NAME_MAX: usize = 63;

/// Hexadecimal digits of the hash: 128 bits.
const HASH_DIGITS: usize = 32;
/// What the external snapshotter's names begin with, unless told otherwise.
pub(crate) const SNAPSHOT_PREFIX: &str = "snapshot-";
/// What the request names of volumes begin with that were adopted and had none.
pub(crate) const ORPHAN_PREFIX: &str = "lvol-";
/// What the request names of snapshots begin with that stand between a volume and its clone on another node.
const BETWEEN_PREFIX: &str = "for-";

/// The name of the `Lvol` for the CSI request `request`, always the same. Creating it is the lock of the request.
///
/// Volumes and snapshots have request names of their own, so one name may come twice. What the sidecars send (`pvc-…` and
/// `snapshot-…`) stays as it is; all else becomes `READABLE.HASH`. A dot is only in the latter, and the prefix tells the former
/// apart, so two requests share a name only where SHA-256 collides in 128 bits.
pub fn object_name(kind: Kind, request: &str) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let label = !request.starts_with('-') && !request.ends_with('-') && request.chars().all(plain);
    let of_its_kind = request.starts_with(SNAPSHOT_PREFIX) == (kind == Kind::Snapshot);
    if label && of_its_kind && (1..=OBJECT_NAME_MAX).contains(&request.len()) {
        return request.to_string();
    }
    let mut hash = Sha256::new();
    hash.update(match kind {
        Kind::Volume => b"volume\0".as_slice(),
        Kind::Snapshot => b"snapshot\0".as_slice(),
    });
    hash.update(request.as_bytes());
    let hash = format!("{:x}", hash.finalize());
    let readable: String = request
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if plain(c) { c } else { '-' })
        .take(OBJECT_NAME_MAX - HASH_DIGITS - 1)
        .collect();
    let readable = match readable.trim_matches('-') {
        "" => "lvol",
        some => some,
    };
    format!("{readable}.{}", hash.get(..HASH_DIGITS).unwrap_or(&hash))
}

/// The request name of the snapshot that is taken for the volume of the object `volume`.
pub fn between_request(volume: &str) -> String {
    format!("{BETWEEN_PREFIX}{volume}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn is_dns_subdomain(name: &str) -> bool {
        let label = |label: &str| {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            !label.is_empty()
                && label.len() <= 63
                && label.chars().all(plain)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        name.len() <= 253 && name.split('.').all(label)
    }

    #[test]
    fn the_sidecars_names_stay_as_they_are() {
        let id = "6f0cfb0a-3c0f-4b0e-9d53-0e5a4ad0a1d2";
        assert_eq!(object_name(Kind::Volume, &format!("pvc-{id}")), format!("pvc-{id}"));
        assert_eq!(object_name(Kind::Snapshot, &format!("snapshot-{id}")), format!("snapshot-{id}"));
    }

    #[test]
    fn a_name_never_changes_between_releases() {
        // Objects are found by these names: another result here loses every volume that was named so.
        assert_eq!(object_name(Kind::Volume, "My Volume"), "my-volume.d48069dca6a28d634866d5316febc499");
        assert_eq!(object_name(Kind::Snapshot, "pvc-1"), "pvc-1.e0b39b0976617605dbcc645443a8afdc");
        assert_eq!(object_name(Kind::Volume, "ü"), "lvol.219a8a9bf008922fb5e198feeb22024b");
    }

    #[test]
    fn every_request_has_a_valid_name_of_its_own() {
        let mut requests: Vec<String> = [
            "",
            "-",
            ".",
            "..",
            "a",
            "A",
            "a.b",
            "a-b",
            "a_b",
            "a b",
            "-a",
            "a-",
            "ü",
            "Ü",
            "snapshot-",
            "snapshot-a",
            "日本",
            "a\0",
        ]
        .map(String::from)
        .into();
        for len in [62, 63, 64, 65, 127, 128] {
            requests.extend(["x", "-", "X", "ü", "日"].map(|c| c.repeat(len)));
        }
        // A request that is another's made name.
        requests.extend(requests.clone().iter().map(|request| object_name(Kind::Volume, request)));
        requests.sort();
        requests.dedup();
        let mut seen = BTreeSet::new();
        for request in &requests {
            for kind in [Kind::Volume, Kind::Snapshot] {
                let name = object_name(kind, request);
                assert!(is_dns_subdomain(&name) && name.len() <= OBJECT_NAME_MAX, "{request:?}: {name}");
                assert_eq!(name, object_name(kind, request));
                assert!(seen.insert(name.clone()), "{kind:?} {request:?}: {name} twice");
            }
        }
    }
}
