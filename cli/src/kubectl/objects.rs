//! Reading what has no Rust type of ours: snapshots' objects, and corners of Kubernetes' own.

use coppice_proto::capability::DRIVER_NAME;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use kube::api::DynamicObject;
use std::fmt;
use uuid::Uuid;

/// An object of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub namespace: String,
    pub name: String,
}

impl Name {
    pub fn new(namespace: &str, name: &str) -> Name {
        Name { namespace: namespace.to_string(), name: name.to_string() }
    }

    /// `namespace/name`
    pub fn parse(text: &str) -> Option<Name> {
        let (namespace, name) = text.split_once('/')?;
        (!namespace.is_empty() && !name.is_empty() && !name.contains('/')).then(|| Name::new(namespace, name))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The text at a JSON pointer; empty if there is none.
pub fn text<'a>(object: &'a DynamicObject, pointer: &str) -> &'a str {
    object.data.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default()
}

/// The lvol of a volume of ours.
pub fn lvol_of_volume(volume: &PersistentVolume) -> Option<Uuid> {
    let csi = volume.spec.as_ref()?.csi.as_ref().filter(|csi| csi.driver == DRIVER_NAME)?;
    Uuid::parse_str(&csi.volume_handle).ok()
}

/// The claim that a volume is bound to, or kept for.
pub fn claim_of_volume(volume: &PersistentVolume) -> Option<Name> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Name::new(claim.namespace.as_deref()?, claim.name.as_deref()?))
}

/// The lvol of a `VolumeSnapshotContent` of ours.
pub fn lvol_of_content(content: &DynamicObject) -> Option<Uuid> {
    let handles = ["/status/snapshotHandle", "/spec/source/snapshotHandle"];
    let ours = text(content, "/spec/driver") == DRIVER_NAME;
    handles.iter().filter(|_| ours).find_map(|pointer| Uuid::parse_str(text(content, pointer)).ok())
}

/// The `VolumeSnapshot` of a `VolumeSnapshotContent`.
pub fn snapshot_of_content(content: &DynamicObject) -> Option<Name> {
    let (namespace, name) = ("/spec/volumeSnapshotRef/namespace", "/spec/volumeSnapshotRef/name");
    Some(Name::new(text(content, namespace), text(content, name))).filter(|name| !name.name.is_empty())
}

/// `default/data`, of an object that has a namespace.
pub fn name_of(object: &impl ResourceExt) -> Name {
    Name::new(&object.namespace().unwrap_or_default(), &object.name_any())
}

/// The size of a claim: what it has, or else what it asks for.
pub fn size_of_claim(claim: &PersistentVolumeClaim) -> Option<String> {
    let has = claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage"));
    let asked = || claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?.get("storage");
    has.or_else(asked).map(|size| size.0.clone())
}

pub fn class_of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.storage_class_name.as_deref().filter(|class| !class.is_empty())
}

pub fn phase_of_claim(claim: &PersistentVolumeClaim) -> &str {
    claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}
