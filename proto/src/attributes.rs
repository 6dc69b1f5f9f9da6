//! The attributes that the control plane keeps in a lvol's metadata, and what a snapshot or clone inherits.
//!
//! They are the only record of a CSI request: whoever holds the drive can tell which volume is which.

use std::collections::BTreeMap;

/// Name of the CSI request that made the volume or snapshot; always there, whatever the lvol is called.
pub const CSI_NAME: &str = "coppice.csi.name";
/// Bytes that were asked for, in decimal; the lvol may be larger, by less than a cluster.
pub const CSI_SIZE: &str = "coppice.csi.size";
/// Of a snapshot: UUID of its volume. Of a volume: `snapshot:UUID` or `volume:UUID`.
pub const CSI_SOURCE: &str = "coppice.csi.source";
/// Nanoseconds since 1970 at which it was made, in decimal.
pub const CSI_CREATED: &str = "coppice.csi.created";
/// Of a snapshot that CSI does not show: name of the CreateVolume request for whose clone it was taken.
pub const CSI_CLONE_FOR: &str = "coppice.csi.clone-for";
/// File system that the volume's class asks for.
pub const CSI_FSTYPE: &str = "coppice.csi.fstype";
/// How the volume's class wants it exported, when it says.
pub const CSI_EXPORT: &str = "coppice.csi.export";
/// `namespace/name` of the claim that a volume was made for, when the orchestrator says.
pub const CSI_PVC: &str = "coppice.csi.pvc";
/// `namespace/name` of the VolumeSnapshot that a snapshot was made for, when the orchestrator says.
pub const CSI_VOLUME_SNAPSHOT: &str = "coppice.csi.volumesnapshot";
/// How the volume's class wants a restore done, when it says.
pub const CSI_RESTORE: &str = "coppice.csi.restore";

/// Of a lvol that was made from a snapshot of another lvstore: `SNAPSHOT,LVSTORE,NODE`, where it was read first. What is made
/// from the lvol has it, too, for it reads the same.
pub const OUTSIDE: &str = "coppice.outside";

/// The file system that was made on the lvol. Set after mkfs, inherited by snapshots and clones, never removed: from
/// then on a lvol that probes as blank has lost data.
pub const FS: &str = "coppice.fs";
/// The file system that mkfs is making on a lvol that probed as blank. Gone when `FS` is set.
pub const FS_MAKING: &str = "coppice.fs.making";

pub type Attributes = BTreeMap<String, String>;

fn is_of_fs(key: &str) -> bool {
    key == FS || key.starts_with("coppice.fs.") || key == CSI_FSTYPE
}

/// What a snapshot or clone takes over from its source: everything known about the file system on it, and from where it reads.
pub fn inherited(source: &Attributes) -> Attributes {
    let is_inherited = |key: &str| is_of_fs(key) || key == OUTSIDE;
    source.iter().filter(|(key, _)| is_inherited(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Takes over anew what `inherited` answers, from what the source is now.
pub fn inherit_again(attributes: &mut Attributes, source: &Attributes) {
    attributes.retain(|key, _| !is_of_fs(key));
    attributes.extend(inherited(source));
}

/// The attributes of a new snapshot of a lvol that has `source` and `size` bytes.
pub fn of_snapshot(lvol: uuid::Uuid, source: &Attributes, size: u64) -> Attributes {
    let mut attributes = inherited(source);
    let size = reported_size(source, size);
    attributes.insert(CSI_SIZE.into(), size.to_string());
    attributes.insert(CSI_SOURCE.into(), lvol.to_string());
    attributes.insert(CSI_CREATED.into(), now_nanos().to_string());
    attributes
}

/// The attributes of a new volume of `size` bytes for the request `name`. `source` as [`CSI_SOURCE`] has it, with its attributes.
pub fn of_volume(name: &str, size: u64, source: Option<String>, parent: &Attributes) -> Attributes {
    let mut attributes = inherited(parent);
    attributes.insert(CSI_NAME.into(), name.to_string());
    attributes.insert(CSI_SIZE.into(), size.to_string());
    attributes.insert(CSI_CREATED.into(), now_nanos().to_string());
    attributes.extend(source.map(|source| (CSI_SOURCE.to_string(), source)));
    attributes
}

/// The size that CSI reports for a lvol of `size` bytes: what was asked for, if that is known and possible.
pub fn reported_size(attributes: &Attributes, size: u64) -> u64 {
    match attributes.get(CSI_SIZE).and_then(|text| text.parse::<u64>().ok()) {
        Some(asked) if asked > 0 && asked <= size => asked,
        _ => size,
    }
}

/// Nanoseconds since 1970.
pub fn now_nanos() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_knows_the_file_system_and_the_asked_size() {
        let pairs = [(CSI_NAME, "pvc-1"), (CSI_SIZE, "1000"), (FS, "ext4"), (FS_MAKING, "xfs"), (CSI_FSTYPE, "ext4")];
        let source: Attributes = pairs.into_iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let id = uuid::Uuid::new_v4();
        let got = of_snapshot(id, &source, 4096);
        assert_eq!(got.get(CSI_SIZE).map(String::as_str), Some("1000"));
        assert_eq!(got.get(FS).map(String::as_str), Some("ext4"));
        assert_eq!(got.get(FS_MAKING).map(String::as_str), Some("xfs"));
        assert_eq!(got.get(CSI_SOURCE), Some(&id.to_string()));
        let (mut later, mut again) = (source.clone(), got.clone());
        later.remove(FS_MAKING);
        inherit_again(&mut again, &later);
        assert!(!again.contains_key(FS_MAKING) && again.contains_key(FS) && again.contains_key(CSI_SOURCE));
        assert!(!got.contains_key(CSI_NAME));
    }

    #[test]
    fn an_impossible_size_is_not_reported() {
        for (text, want) in [("1000", 1000), ("4096", 4096), ("4097", 4096), ("0", 4096), ("x", 4096)] {
            let attributes = Attributes::from([(CSI_SIZE.to_string(), text.to_string())]);
            assert_eq!(reported_size(&attributes, 4096), want, "{text}");
        }
    }
}
