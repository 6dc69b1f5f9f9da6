//! How a volume is to be used, as plain data: the same reading of `VolumeCapability` for the controller and the node.

use crate::csi::v1;
use v1::volume_capability::AccessType;
use v1::volume_capability::access_mode::Mode as WireMode;

/// The topology key whose value is the name of the node that holds the volume.
pub const TOPOLOGY_NODE: &str = "topology.coppice.io/node";
/// The name of the driver.
pub const DRIVER_NAME: &str = "csi.coppice.io";
/// The file systems that are made and grown. The first is the default.
pub const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];
pub const DEFAULT_FILE_SYSTEM: &str = "ext4";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Block,
    /// `fs_type` is empty if the caller leaves it to the volume.
    Mount {
        fs_type: String,
        flags: Vec<String>,
    },
}

/// Who may use the volume at a time. A local volume is on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// One node; nothing is said about how many users there.
    Writer,
    ReaderOnly,
    /// One user on one node.
    SingleWriter,
    /// Any number of users on one node.
    MultiWriter,
    /// More than one node: cannot be served.
    ManyNodes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    pub access: Access,
    pub mode: Mode,
}

impl Capability {
    /// Reads a capability; the error says what is missing or unknown in it.
    pub fn read(wire: &v1::VolumeCapability) -> Result<Capability, String> {
        let mode = wire.access_mode.as_ref().map(|mode| mode.mode).unwrap_or_default();
        let mode = match WireMode::try_from(mode) {
            Ok(WireMode::SingleNodeWriter) => Mode::Writer,
            Ok(WireMode::SingleNodeReaderOnly) => Mode::ReaderOnly,
            Ok(WireMode::SingleNodeSingleWriter) => Mode::SingleWriter,
            Ok(WireMode::SingleNodeMultiWriter) => Mode::MultiWriter,
            Ok(WireMode::MultiNodeReaderOnly | WireMode::MultiNodeSingleWriter | WireMode::MultiNodeMultiWriter) => {
                Mode::ManyNodes
            }
            Ok(WireMode::Unknown) => return Err("the volume capability names no access mode".into()),
            Err(_) => return Err(format!("the access mode {mode} is not known")),
        };
        let access = match &wire.access_type {
            Some(AccessType::Block(_)) => Access::Block,
            Some(AccessType::Mount(mount)) => {
                if !mount.volume_mount_group.is_empty() {
                    return Err(
                        "volume_mount_group is not supported; leave the group to kubelet (fsGroupPolicy: File)".into(),
                    );
                }
                Access::Mount { fs_type: mount.fs_type.clone(), flags: mount.mount_flags.clone() }
            }
            None => return Err("the volume capability names neither block nor mount".into()),
        };
        Ok(Capability { access, mode })
    }

    /// Why a volume on one node's drive cannot be used like that, if it cannot.
    pub fn refusal(&self) -> Option<String> {
        if self.mode == Mode::ManyNodes {
            return Some("a volume lives on one node: only the access modes SINGLE_NODE_* are possible".into());
        }
        match &self.access {
            Access::Mount { fs_type, .. } if !fs_type.is_empty() => check_file_system(fs_type).err(),
            _ => None,
        }
    }
}

/// Refuses a file system that is not made here.
pub fn check_file_system(fs_type: &str) -> Result<(), String> {
    match FILE_SYSTEMS.contains(&fs_type) {
        true => Ok(()),
        false => Err(format!("the file system {fs_type:?} is not supported: use ext4, xfs or btrfs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    fn wire(mode: WireMode, access: Option<AccessType>) -> v1::VolumeCapability {
        v1::VolumeCapability { access_mode: Some(AccessMode { mode: mode.into() }), access_type: access }
    }

    #[test]
    fn only_one_node_and_known_file_systems() {
        let block = || Some(AccessType::Block(BlockVolume {}));
        let mount = |fs: &str, group: &str| {
            let volume_mount_group = group.to_string();
            Some(AccessType::Mount(MountVolume { fs_type: fs.into(), mount_flags: vec![], volume_mount_group }))
        };
        let refused = |w: &v1::VolumeCapability| Capability::read(w).map(|c| c.refusal().is_some());
        for mode in [
            WireMode::SingleNodeWriter,
            WireMode::SingleNodeReaderOnly,
            WireMode::SingleNodeSingleWriter,
            WireMode::SingleNodeMultiWriter,
        ] {
            assert_eq!(refused(&wire(mode, block())), Ok(false));
        }
        for mode in [WireMode::MultiNodeReaderOnly, WireMode::MultiNodeSingleWriter, WireMode::MultiNodeMultiWriter] {
            assert_eq!(refused(&wire(mode, block())), Ok(true));
        }
        for (fs, want) in [("", false), ("ext4", false), ("xfs", false), ("btrfs", false), ("ntfs", true)] {
            assert_eq!(refused(&wire(WireMode::SingleNodeWriter, mount(fs, ""))), Ok(want), "{fs}");
        }
        assert!(Capability::read(&wire(WireMode::SingleNodeWriter, mount("", "1000"))).is_err());
        assert!(Capability::read(&wire(WireMode::Unknown, block())).is_err());
        assert!(Capability::read(&wire(WireMode::SingleNodeWriter, None)).is_err());
        let odd = AccessMode { mode: 77 };
        assert!(Capability::read(&v1::VolumeCapability { access_mode: Some(odd), access_type: block() }).is_err());
    }
}
