//! What Coppice keeps in the Kubernetes API: the two kinds of group `coppice.io`, and every name that others rely on.
//!
//! * `lvstore`, `lvol`: the kinds. Their doc comments are what `kubectl explain` shows, so they are written for users.
//! * `orphan`: lvols that have no object, and the object that takes one back.
//! * `size`: amounts of bytes as Kubernetes writes them.
//! * `conditions`: condition types and reasons, and how a condition is set.
//! * `names`: finalizer, keys, and the name of the object for a CSI request.
//! * `crd`: the definitions, as `coppice crds` prints them.
//!
//! Controller and agent may be one version apart, and one object that does not parse stops a whole watch. So the kinds only
//! gain optional fields; the schema admits nothing that these types refuse; and what an agent writes (`status`) has no
//! enums, because a value from tomorrow must not stop the controller of today.

mod conditions;
mod crd;
mod lvol;
mod lvstore;
mod names;
mod orphan;
mod size;
mod text;

pub use conditions::{LvolCondition, LvolReason, LvstoreCondition, LvstoreReason, condition, is_true, set_condition};
pub use crd::crds;
pub use lvol::{
    Consistency, Hydration, Kind, Lvol, LvolExport, LvolSpec, LvolStatus, Outside, Provisioning, Reclaim, Restore,
};
pub use lvstore::{EXTERNAL_PARENTS_MAX, ExternalParent, Lvstore, LvstoreSpec, LvstoreStatus, Place, Space, Tombstone};
pub use names::{
    ANNOTATION_PVC, ANNOTATION_VOLUME_SNAPSHOT, EXPORT_AUTHORITY, EXPORT_BUNDLE, EXPORT_SIGNER, FINALIZER, GROUP,
    LABEL_LVSTORE, NODE_NAME_MAX, OBJECT_NAME_MAX, REQUEST_NAME_MAX, SELECT_LVSTORE, SELECT_NODE, SELECT_SOURCE_NODE,
    TOPOLOGY_NODE, VERSION, between_request, object_name,
};
pub(crate) use names::{ORPHAN_PREFIX, SNAPSHOT_PREFIX};
pub use orphan::{ANNOTATION_MAX, ANNOTATIONS_MAX, KeptSnapshot, ORPHANS_MAX, Orphan, OrphanAnnotation};
pub use size::{ByteSize, SizeError};
