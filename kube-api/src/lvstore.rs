//! The kind `Lvstore`. The doc comments are the texts of `kubectl explain`.

use crate::orphan::{KeptSnapshot, ORPHANS_MAX, Orphan};
use crate::size::ByteSize;
use crate::text::{Device, Label, NodeName, PositiveSize, UuidText};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The lvstore to have on a node. Whoever sets up storage writes it; nothing else changes it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "coppice.io",
    version = "v1alpha1",
    kind = "Lvstore",
    plural = "lvstores",
    singular = "lvstore",
    category = "coppice",
    status = "LvstoreStatus",
    derive = "PartialEq",
    doc = "A lvstore: the pool of space on one drive (or in one file) of one node, from which lvols are made. Create one for each drive that Coppice may use. Deleting the object closes the store and leaves every byte on the drive.",
    selectable = ".spec.node",
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node", description = "Node that has the drive"),
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.name", description = "Name in StorageClasses"),
    printcolumn(name = "Total", type_ = "string", json_path = ".status.space.total", description = "Size of the store"),
    printcolumn(name = "Free", type_ = "string", json_path = ".status.space.free", description = "Space that nothing uses or has reserved"),
    printcolumn(name = "Committed", type_ = "string", json_path = ".status.space.committed", description = "Sizes of all lvols together"),
    printcolumn(name = "State", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Reason of the condition Ready"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Unschedulable", type_ = "boolean", json_path = ".spec.unschedulable", priority = 1, description = "Takes no new volumes"),
    printcolumn(name = "Device", type_ = "string", json_path = ".spec.device", priority = 1, description = "Drive or file"),
    printcolumn(name = "UUID", type_ = "string", json_path = ".status.uuid", priority = 1, description = "UUID of the store"),
    validation = ("!has(oldSelf.status) || !has(oldSelf.status.uuid) || (has(self.status) && has(self.status.uuid) && self.status.uuid == oldSelf.status.uuid)", "the UUID of a lvstore never changes; another store is another Lvstore object")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.clusterSize) == has(oldSelf.clusterSize) && (!has(self.clusterSize) || self.clusterSize == oldSelf.clusterSize)", "clusterSize never changes"),
    validation = ("!has(self.fileSize) || !self.device.startsWith('/')", "fileSize is for a file, not for a drive"),
    validation = ("!has(oldSelf.fileSize) || (has(self.fileSize) && quantity(self.fileSize).compareTo(quantity(oldSelf.fileSize)) >= 0)", "fileSize only grows")
)]
pub struct LvstoreSpec {
    /// Name of the node that has the drive. Never changes.
    #[schemars(with = "NodeName")]
    #[x_kube(validation = ("self == oldSelf", "node never changes"))]
    pub node: String,
    /// Name of the store, by which StorageClasses ask for it (parameter `lvstore`). Stores of different nodes may share a
    /// name, and then serve the same class; on one node each has its own. Never changes.
    #[schemars(with = "Label")]
    #[x_kube(validation = ("self == oldSelf", "name never changes"))]
    pub name: String,
    /// What the store lies on: a drive as `/dev/disk/by-id/NAME`, or the name of a file in the node's directory for lvstores.
    /// A blank one is formatted; one that is mounted, held, partitioned or holds anything else is refused. A store that was
    /// once here is known by its UUID: with a blank or another drive in its place it is Lost, and nothing is formatted.
    #[schemars(with = "Device")]
    pub device: String,
    /// Size of the file, which is made if it does not exist (`100Gi`; needed then). It takes its space as it is used. May grow,
    /// and the store with it. Not for a drive.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<PositiveSize>")]
    pub file_size: Option<ByteSize>,
    /// Unit of allocation of a new store. Without it, one is used that suits most. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["4Ki", "8Ki", "16Ki", "32Ki", "64Ki", "128Ki", "256Ki", "512Ki", "1Mi", "2Mi", "4Mi", "8Mi", "16Mi", "32Mi", "64Mi", "128Mi", "256Mi", "512Mi", "1Gi"]))]
    pub cluster_size: Option<ByteSize>,
    /// How large all lvols of the store may be together, in per cent of its size. 100 promises no more than there is;
    /// without it there is no limit for thin lvols. What exists is not affected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 100_000))]
    pub overprovision_percent: Option<i32>,
    /// True: no new volumes are placed here. Those that exist go on, and can be snapshotted and expanded.
    #[serde(default)]
    pub unschedulable: bool,
    /// UUID of an existing store to take over that is Foreign: one that belongs to another cluster, or was made outside
    /// Kubernetes. Be sure that no other cluster uses the drive. Take it out again when the store is open: it holds wherever
    /// this object is restored to. But of a drive that came from another node of this cluster it stays: other nodes believe
    /// only by this that the store moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub adopt: Option<Uuid>,
}

/// What `spec.device` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A path below `/dev/disk/by-id`.
    Drive(&'a str),
    /// The name of a file, to be resolved beneath the node's directory for lvstores.
    File(&'a str),
}

impl<'a> Place<'a> {
    /// From the text of `spec.device`.
    pub fn of(device: &'a str) -> Place<'a> {
        if device.starts_with('/') { Place::Drive(device) } else { Place::File(device) }
    }

    pub fn device(self) -> &'a str {
        match self {
            Place::Drive(device) | Place::File(device) => device,
        }
    }
}

impl LvstoreSpec {
    pub fn place(&self) -> Place<'_> {
        Place::of(&self.device)
    }
}

/// What the node reports of the lvstore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LvstoreStatus {
    /// UUID of the store. Once known it never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub uuid: Option<Uuid>,
    /// Unit of allocation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<ByteSize>,
    /// Where the space is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
    /// Address and port where other nodes read this store's snapshots.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub export_endpoint: Option<String>,
    /// Snapshots of other lvstores that lvols of this store read, or are about to. A snapshot that is named here is kept where
    /// it is, whatever becomes of its own object. Absent until the store was open once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = EXTERNAL_PARENTS_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["snapshotUUID"]))]
    pub external_parents: Option<Vec<ExternalParent>>,
    /// Ready: open and in use. Failing: the device fails requests. Lost: the store is not on its device. Foreign: it belongs
    /// to another cluster and waits for `spec.adopt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Lvols that were deleted while their node was not part of the cluster: they are removed should the drive come back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["lvolUUID"]))]
    pub tombstones: Vec<Tombstone>,
    /// Lvols of the store that have no Lvol object, at most 512, the oldest first. `kubectl coppice adopt lvol` takes them
    /// back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = ORPHANS_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["lvolUUID"]))]
    pub orphans: Vec<Orphan>,
    /// Snapshots without an object that others still read, at most 512: deleted ones, and those between a volume and its
    /// clone. They go with their last reader.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = ORPHANS_MAX), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["lvolUUID"]))]
    pub kept: Vec<KeptSnapshot>,
}

/// Where the space of the store is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Space {
    /// Size of the store.
    pub total: ByteSize,
    /// What nothing uses and no thick lvol has reserved.
    pub free: ByteSize,
    /// Sizes of all lvols together; more than the total where thin lvols promise more than there is.
    pub committed: ByteSize,
    /// What the store's own metadata takes.
    pub metadata: ByteSize,
    /// The part of the metadata that is not in use. Without it no lvol can be made, however much space is free.
    pub metadata_free: ByteSize,
}

/// The most snapshots of other lvstores that the lvols of one may read.
pub const EXTERNAL_PARENTS_MAX: usize = 512;

/// A snapshot of another lvstore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalParent {
    /// UUID of the snapshot.
    #[serde(rename = "snapshotUUID")]
    #[schemars(with = "UuidText")]
    pub snapshot_uuid: Uuid,
    /// UUID of the lvstore that has it. Absent where that is not known.
    #[serde(rename = "lvstoreUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub lvstore_uuid: Option<Uuid>,
    /// Node that had it when the first lvol was made from it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<NodeName>")]
    pub node: Option<String>,
}

/// A lvol to remove should the drive come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tombstone {
    /// UUID of the store that had it.
    #[serde(rename = "lvstoreUUID")]
    #[schemars(with = "UuidText")]
    pub lvstore_uuid: Uuid,
    /// UUID of the lvol.
    #[serde(rename = "lvolUUID")]
    #[schemars(with = "UuidText")]
    pub lvol_uuid: Uuid,
    /// When it was deleted.
    pub deleted: Time,
}
