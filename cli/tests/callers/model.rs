//! What a caller remembers of its own volumes and snapshots.

use crate::content::Content;
use coppice_proto::csi::v1::*;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Block,
    FileSystem(&'static str),
}

#[derive(Clone, Debug)]
pub struct OwnVolume {
    pub request: CreateVolumeRequest,
    /// As the driver must report it.
    pub volume: Volume,
    pub how: Use,
    pub content: Content,
    /// The life of the driver in which it was staged.
    pub staged: Option<u64>,
    /// Where it may be published, and whether read-only; in what life.
    pub published: Vec<(PathBuf, bool, u64)>,
    pub dir: PathBuf,
}

#[derive(Clone, Debug)]
pub struct OwnSnapshot {
    pub request: CreateSnapshotRequest,
    pub snapshot: Snapshot,
    pub how: Use,
    pub content: Content,
}

impl OwnVolume {
    pub fn id(&self) -> String {
        self.volume.volume_id.clone()
    }

    pub fn size(&self) -> u64 {
        self.volume.capacity_bytes as u64
    }

    pub fn staging(&self) -> PathBuf {
        self.dir.join("staging")
    }

    pub fn target(&self, number: u64) -> PathBuf {
        self.dir.join(format!("pods/{number}/volume"))
    }

    pub fn is_staged(&self, life: u64) -> bool {
        self.staged == Some(life)
    }

    /// A path where the volume can be written in this life of the driver.
    pub fn writable(&self, life: u64) -> Option<&Path> {
        let here =
            |(path, read_only, of): &'_ (PathBuf, bool, u64)| (*of == life && !read_only).then_some(path.clone());
        self.published.iter().find(|at| here(at).is_some()).map(|(path, ..)| path.as_path())
    }

    pub fn capability(&self) -> VolumeCapability {
        self.request.volume_capabilities[0].clone()
    }
}
