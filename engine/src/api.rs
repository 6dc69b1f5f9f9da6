//! The words in which the engine is asked and answers: plain data, no behaviour.
//!
//! Sizes are bytes unless the name ends in `_clusters`. A lvol's id is its UUID; its alias is `lvstore/name`.

use crate::device::PREDECESSOR_PATIENCE;
use crate::external::Access;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use uuid::Uuid;

/// Longest name of a lvstore or lvol, in bytes (format section 9.1).
pub const NAME_MAX: usize = 63;

/// How an engine is started.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Data threads. Each owns an io_uring.
    pub shards: usize,
    /// Upper bound of resident map leaves, in bytes, over all stores.
    pub map_limit_bytes: u64,
    /// How long a device that somebody else has is waited for: a killed predecessor's last requests.
    pub patience: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig { shards: 2, map_limit_bytes: 128 << 20, patience: PREDECESSOR_PATIENCE }
    }
}

/// `lvstore create`.
#[derive(Clone, Debug)]
pub struct CreateStore {
    /// Make a sparse file of that many bytes first (a file that exists already is refused unless `force`).
    pub file_size: Option<u64>,
    pub name: String,
    /// Bytes; a power of two from 4 KiB to 1 GiB. `None`: the measured default.
    pub cluster_size: Option<u32>,
    /// Room for growth is sized for a device of that many bytes. `None`: four times the device.
    pub max_size: Option<u64>,
    /// Bytes of a logical block of the lvols (512 or 4096). `None`: the device's, 4096 for a file.
    pub block_size: Option<u32>,
    /// Format even if the device is not blank.
    pub force: bool,
    /// Whose the store is; see [`StoreInfo::owner`].
    pub owner: Option<Uuid>,
}

/// What a store is, from its super block and without reading what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreLabel {
    pub uuid: Uuid,
    pub name: String,
    pub owner: Option<Uuid>,
}

/// What a device holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Its first and last MiB are zero.
    Blank,
    /// Something else than a store, perhaps a creation that was cut off; what, for a person.
    Other(String),
    Store(StoreLabel),
}

/// How a store is opened.
#[derive(Clone, Debug, Default)]
pub struct OpenStore {
    /// Nothing is written, whatever is asked later.
    pub read_only: bool,
    /// How parents outside of the store are reached.
    pub external: Access,
}

/// What a lvol is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LvolKind {
    /// Writable, without a parent.
    #[default]
    Lvol,
    /// Read-only.
    Snapshot,
    /// Writable child of a snapshot of the same store.
    Clone,
    /// Child of a snapshot outside the store.
    EsnapClone,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LvolState {
    #[default]
    Ok,
    /// Its external parent cannot be reached.
    Degraded,
    Hydrating,
    /// A deleted snapshot that something still reads.
    Hidden,
    /// Its metadata does not check out; see `check`. Not opened.
    Damaged,
}

/// A lvol, as `lvol ls -o json` prints it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LvolInfo {
    pub uuid: Uuid,
    pub name: String,
    /// `lvstore/name`
    pub alias: String,
    pub lvstore: String,
    pub size: u64,
    pub block_size: u32,
    pub num_blocks: u64,
    pub cluster_size: u32,
    pub thin: bool,
    pub kind: LvolKind,
    /// UUID of the parent: a snapshot of the store, or the external snapshot.
    pub parent: Option<Uuid>,
    /// UUIDs of the children, hidden ones not included.
    pub children: Vec<Uuid>,
    /// Clusters that belong to this lvol alone.
    pub allocated_clusters: u64,
    /// Lvstores that depend on this snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// Set as long as the lvol is to be hydrated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hydration: Option<Hydration>,
    pub state: LvolState,
    /// Why `state` is not `ok`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub exports: Vec<String>,
    /// Extra attributes kept in the metadata (`name` and `uuid` not included). Values are UTF-8 text.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Lvols of another lvstore read a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pin {
    /// UUID of that lvstore.
    pub lvstore: Uuid,
    /// Who may read the snapshot for it: the identity of its node, as certificates name it.
    pub reader: String,
}

/// How far the hydration of a lvol is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Hydration {
    /// Bytes that are still to be copied from the external parent, in whole clusters.
    pub remaining_bytes: u64,
    /// What they were in the beginning.
    pub total_bytes: u64,
    /// Bytes copied since the store was opened.
    pub copied_bytes: u64,
}

/// A lvstore, as `lvstore show -o json` prints it. `total_clusters` = metadata + allocated + reserved + quarantined + free.
#[derive(Clone, Debug, Serialize)]
pub struct StoreInfo {
    pub uuid: Uuid,
    pub name: String,
    pub path: String,
    /// UUID of the cluster of machines that uses the store; `None`: it was made outside of any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Uuid>,
    /// Bytes of the device that the store covers.
    pub size: u64,
    pub cluster_size: u32,
    pub block_size: u32,
    pub total_clusters: u64,
    /// Clusters of the metadata region and of the private system area.
    pub metadata_clusters: u64,
    pub allocated_clusters: u64,
    /// Set aside for thick lvols.
    pub reserved_clusters: u64,
    /// Freed, not reusable yet.
    pub quarantined_clusters: u64,
    /// Free for thin lvols.
    pub free_clusters: u64,
    pub metadata_pages: u64,
    pub free_metadata_pages: u64,
    /// Largest size that `grow` can reach, bytes.
    pub max_size: u64,
    pub lvols: u64,
    pub snapshots: u64,
    /// Bytes held by hidden snapshots.
    pub hidden_bytes: u64,
    /// UUIDs of snapshots outside of the store that its lvols read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub external_parents: Vec<Uuid>,
    /// `LVOLSTORE` or `COPPICE`: as it is on the device now.
    pub bstype: String,
    pub clean: bool,
    pub read_only: bool,
    /// SPDK would open the store as it is now.
    pub spdk_readable: bool,
    /// What has to be finished first, if not.
    pub seal_work: Vec<String>,
    /// Set when the device failed a flush or a journal write: reopen the store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// `lvol create`.
#[derive(Clone, Debug, Default)]
pub struct CreateLvol {
    pub name: String,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
    /// Rounded up to whole clusters.
    pub size: u64,
    pub thick: bool,
    pub attributes: BTreeMap<String, String>,
}

/// `lvol snapshot`: one lvol, or several lvols of one store at one instant.
#[derive(Clone, Debug)]
pub struct CreateSnapshot {
    pub lvol: Uuid,
    pub name: String,
    pub uuid: Option<Uuid>,
    pub attributes: BTreeMap<String, String>,
    /// Born hidden: not listed, reclaimed when its last clone goes (for volume-to-volume clones).
    pub hidden: bool,
}

/// `lvol clone`.
#[derive(Clone, Debug)]
pub struct CreateClone {
    pub snapshot: Uuid,
    pub name: String,
    pub uuid: Option<Uuid>,
    /// At least the snapshot's size; `None`: the same. Rounded up to whole clusters.
    pub size: Option<u64>,
    pub thick: bool,
    pub attributes: BTreeMap<String, String>,
}

/// `lvol clone-external`.
#[derive(Clone, Debug, Default)]
pub struct CreateExternalClone {
    /// UUID of a snapshot outside of the store. It is pinned by the caller before this.
    pub parent: Uuid,
    pub name: String,
    /// `None`: a random one.
    pub uuid: Option<Uuid>,
    /// At least the parent's size; `None`: the same. Rounded up to whole clusters.
    pub size: Option<u64>,
    pub thick: bool,
    pub attributes: BTreeMap<String, String>,
    /// Copy everything over in the background, then let go of the parent.
    pub hydrate: bool,
}

/// What `check` found; an empty list means that every invariant holds.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Finding {
    /// Stable identifier, e.g. `page-crc`, `cluster-owned-twice`, `parent-missing`.
    pub kind: String,
    /// The lvol concerned, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lvol: Option<String>,
    /// A sentence that says what is wrong and where.
    pub message: String,
    /// What a crash may leave: nothing is lost, and the next change repairs it. The store counts as sound.
    pub heals: bool,
}

/// Progress of long work: `done` of `total` units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}
