//! The kind `Lvol`. The doc comments are the texts of `kubectl explain`.

use crate::size::ByteSize;
use crate::text::{Label, NodeName, ObjectName, PositiveSize, RequestName, UuidText};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The lvol to have. The Coppice controller writes it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "coppice.io",
    version = "v1alpha1",
    kind = "Lvol",
    plural = "lvols",
    singular = "lvol",
    category = "coppice",
    status = "LvolStatus",
    derive = "PartialEq",
    doc = "A lvol: a volume or a snapshot in a lvstore, made for a PersistentVolumeClaim or a VolumeSnapshot. The Coppice controller creates and deletes these objects; delete the claim or the snapshot instead. An object that is deleted by hand leaves its lvol on the drive, and `kubectl coppice adopt lvol` brings it back.",
    selectable = ".spec.node",
    selectable = ".spec.sourceNode",
    selectable = ".spec.lvstoreUUID",
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind", description = "Volume or Snapshot"),
    printcolumn(name = "Size", type_ = "string", json_path = ".spec.size", description = "Size that was asked for"),
    printcolumn(name = "Allocated", type_ = "string", json_path = ".status.allocated", description = "Space that it takes itself"),
    printcolumn(name = "Parent", type_ = "string", json_path = ".status.parent", description = "UUID of the snapshot that it reads from"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.node", description = "Node that has it"),
    printcolumn(name = "State", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].reason"#, description = "Reason of the condition Ready"),
    printcolumn(name = "Left", type_ = "string", json_path = ".status.hydration.remaining", description = "What is still to be copied from another node"),
    printcolumn(name = "PVC", type_ = "string", json_path = r".metadata.annotations.coppice\.io/pvc", description = "Claim that it was made for"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "UUID", type_ = "string", json_path = ".spec.lvolUUID", priority = 1, description = "UUID of the lvol"),
    printcolumn(name = "Lvstore", type_ = "string", json_path = ".spec.lvstoreUUID", priority = 1, description = "UUID of the lvstore"),
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.sourceNode", priority = 1, description = "Node that had what it was made from"),
    validation = ("quantity(self.spec.size).compareTo(quantity(oldSelf.spec.size)) >= 0 || (has(self.status) && has(self.status.size) && quantity(self.spec.size).compareTo(quantity(self.status.size)) >= 0)", "a lvol only grows: size may be taken back no further than what the lvol has"),
    validation = ("!has(oldSelf.status) || !has(oldSelf.status.created) || (has(self.status) && has(self.status.created) && self.status.created == oldSelf.status.created)", "created is set once: a lvol is never created again")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("has(self.sourceUUID) == has(oldSelf.sourceUUID) && (!has(self.sourceUUID) || self.sourceUUID == oldSelf.sourceUUID)", "sourceUUID never changes"),
    validation = ("has(self.sourceKind) == has(oldSelf.sourceKind) && (!has(self.sourceKind) || self.sourceKind == oldSelf.sourceKind)", "sourceKind never changes"),
    validation = ("has(self.sourceNode) == has(oldSelf.sourceNode) && (!has(self.sourceNode) || self.sourceNode == oldSelf.sourceNode)", "sourceNode never changes"),
    validation = ("has(self.sourceLvstoreUUID) == has(oldSelf.sourceLvstoreUUID) && (!has(self.sourceLvstoreUUID) || self.sourceLvstoreUUID == oldSelf.sourceLvstoreUUID)", "sourceLvstoreUUID never changes"),
    validation = ("has(self.sourceSnapshotUUID) == has(oldSelf.sourceSnapshotUUID) && (!has(self.sourceSnapshotUUID) || self.sourceSnapshotUUID == oldSelf.sourceSnapshotUUID)", "sourceSnapshotUUID never changes"),
    validation = ("has(self.sourceFileSystem) == has(oldSelf.sourceFileSystem) && (!has(self.sourceFileSystem) || self.sourceFileSystem == oldSelf.sourceFileSystem)", "sourceFileSystem never changes"),
    validation = ("has(self.restore) == has(oldSelf.restore) && (!has(self.restore) || self.restore == oldSelf.restore)", "restore never changes"),
    validation = ("has(self.cloneFor) == has(oldSelf.cloneFor) && (!has(self.cloneFor) || self.cloneFor == oldSelf.cloneFor)", "cloneFor never changes"),
    validation = ("has(self.sourceLvstoreUUID) == has(self.sourceSnapshotUUID) && (!has(self.sourceLvstoreUUID) || has(self.sourceUUID))", "sourceLvstoreUUID and sourceSnapshotUUID go together, with a source"),
    validation = ("self.kind == 'Volume' || (!has(self.sourceLvstoreUUID) && !has(self.restore))", "a snapshot is where its source is"),
    validation = ("self.kind == 'Snapshot' || !has(self.cloneFor)", "cloneFor is for snapshots"),
    validation = ("has(self.consistency) == has(oldSelf.consistency) && (!has(self.consistency) || self.consistency == oldSelf.consistency)", "consistency never changes"),
    validation = ("has(self.sourceUUID) == has(self.sourceNode) && has(self.sourceUUID) == has(self.sourceKind)", "sourceUUID, sourceKind and sourceNode go together"),
    validation = ("self.kind != 'Snapshot' || self.adopted || has(self.sourceUUID)", "a snapshot has a source"),
    validation = ("self.kind == 'Snapshot' || !has(self.consistency)", "consistency is for snapshots"),
    validation = ("self.kind != 'Snapshot' || self.size == oldSelf.size", "the size of a snapshot never changes"),
    validation = ("!has(oldSelf.reclaim) || has(self.reclaim)", "reclaim cannot be taken back"),
    validation = Rule::new("oldSelf.hasValue() || !has(self.reclaim)").message("a new object does not ask for its own removal").optional_old_self(true)
)]
pub struct LvolSpec {
    /// Name of the CSI request that it was made for. The name of the object follows from it. Never changes.
    #[schemars(with = "RequestName")]
    #[x_kube(validation = ("self == oldSelf", "requestName never changes"))]
    pub request_name: String,
    /// Volume: can be written. Snapshot: cannot. A clone is a volume with a source. Never changes.
    #[x_kube(validation = ("self == oldSelf", "kind never changes"))]
    pub kind: Kind,
    /// Size in bytes (`10Gi`). May grow. It may be taken back as long as the lvol has not grown.
    #[schemars(with = "PositiveSize")]
    pub size: ByteSize,
    /// Thin: space is taken when it is written. Thick: it is reserved when the lvol is created. Never changes.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "provisioning never changes"))]
    pub provisioning: Provisioning,
    /// UUID of the lvol whose content it starts with: a snapshot, or a volume. Never changes.
    #[serde(rename = "sourceUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub source_uuid: Option<Uuid>,
    /// What the source is. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_kind: Option<Kind>,
    /// Node that has the source, which may be another one. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<NodeName>")]
    pub source_node: Option<String>,
    /// UUID of the lvstore that has the source, where that is another one than its own: then it reads from there until all its
    /// data is here. Never changes.
    #[serde(rename = "sourceLvstoreUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub source_lvstore_uuid: Option<Uuid>,
    /// UUID of the snapshot in that lvstore: the source, or one that was taken of it. Never changes.
    #[serde(rename = "sourceSnapshotUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub source_snapshot_uuid: Option<Uuid>,
    /// File system that the source in the other lvstore holds, if any: none is ever made over it. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Label>")]
    pub source_file_system: Option<String>,
    /// When a volume from another lvstore is ready. Lazy: at once, and it copies its data while it is used. Eager: when all its
    /// data is here. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restore: Option<Restore>,
    /// Name of the Lvol object of the volume that this snapshot was taken for. CSI does not show it, and it goes when that volume
    /// is made. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ObjectName>")]
    pub clone_for: Option<String>,
    /// What a snapshot does to a mounted source first. Crash: nothing. Sync: writes out what the kernel holds. Freeze: stops
    /// the file system for that moment. Never changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Node that has it. Never changes.
    #[schemars(with = "NodeName")]
    #[x_kube(validation = ("self == oldSelf", "node never changes"))]
    pub node: String,
    /// UUID of the lvstore that has it. Never changes.
    #[serde(rename = "lvstoreUUID")]
    #[schemars(with = "UuidText")]
    #[x_kube(validation = ("self == oldSelf", "lvstoreUUID never changes"))]
    pub lvstore_uuid: Uuid,
    /// UUID of the lvol, random, chosen with this object. It is the handle of the volume or snapshot. Never changes.
    #[serde(rename = "lvolUUID")]
    #[schemars(with = "UuidText")]
    #[x_kube(validation = ("self == oldSelf", "lvolUUID never changes"))]
    pub lvol_uuid: Uuid,
    /// True: the lvol was there before this object, and is not created should it be missing. Never changes.
    #[serde(default)]
    #[x_kube(validation = ("self == oldSelf", "adopted never changes"))]
    pub adopted: bool,
    /// Delete: the lvol goes with this object. Only the controller sets it, when the claim or the snapshot was deleted. Without
    /// it, an object that is deleted leaves its lvol on the drive. Cannot be taken back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reclaim: Option<Reclaim>,
}

/// What a lvol is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Kind {
    Volume,
    Snapshot,
}

/// When space is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Provisioning {
    #[default]
    Thin,
    Thick,
}

/// What precedes a snapshot of a mounted volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Consistency {
    Crash,
    Sync,
    Freeze,
}

/// When a volume that is made from one in another lvstore is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Restore {
    Lazy,
    Eager,
}

/// What becomes of the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Reclaim {
    Delete,
}

impl LvolSpec {
    /// Where it reads from until all its data is here, if that is another lvstore.
    pub fn outside(&self) -> Option<Outside<'_>> {
        Some(Outside {
            node: self.source_node.as_deref()?,
            lvstore: self.source_lvstore_uuid?,
            snapshot: self.source_snapshot_uuid?,
        })
    }
}

/// A snapshot in another lvstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside<'a> {
    /// That had it when the volume was asked for.
    pub node: &'a str,
    pub lvstore: Uuid,
    pub snapshot: Uuid,
}

/// What the node reports of the lvol.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LvolStatus {
    /// When the lvol was created. It is created once: if it is missing afterwards, it is Lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// Size that the lvol has; it follows `spec.size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<ByteSize>,
    /// Space that it takes itself, without what it shares. Written now and then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocated: Option<ByteSize>,
    /// UUID of the snapshot that it reads from where it has no data of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub parent: Option<Uuid>,
    /// File system that it holds, if one was made on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub file_system: Option<String>,
    /// How far its data has been copied from another node. Absent when all of it is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hydration: Option<Hydration>,
    /// The devices through which it is in use on its node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub exports: Vec<LvolExport>,
    /// Ready: it exists and can be used. Lost: it was created and is not there any more. Dependent: it reads from another node
    /// until all its data is here. Degraded: that node cannot be reached. ResizeFailed: the size asked for cannot be had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// How far its data has been copied from another node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hydration {
    /// Bytes to copy in all.
    pub total: ByteSize,
    /// Bytes still to copy.
    pub remaining: ByteSize,
    /// Seconds until it is done at the present rate. Absent while it does not advance.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub eta_seconds: Option<i64>,
}

/// A device through which the lvol is in use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LvolExport {
    /// How it is exported: ublk, nbd or fuse.
    #[schemars(length(max = 63))]
    pub kind: String,
    /// Path of the device on the node.
    #[schemars(length(max = 255))]
    pub device: String,
}
