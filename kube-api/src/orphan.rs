//! Lvols that have no object: those that lost theirs, with the object that takes them back, and those that need none.
//!
//! The agent says in the status of the Lvstore what it knows of such lvols from the drive. Like all of a status it has no
//! enums; who adopts understands them or leaves them alone.

use crate::size::ByteSize;
use crate::text::UuidText;
use crate::{
    Kind, LABEL_LVSTORE, Lvol, LvolSpec, Lvstore, ORPHAN_PREFIX, Provisioning, REQUEST_NAME_MAX, SNAPSHOT_PREFIX,
    object_name,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The most that a Lvstore object tells of, so that with everything else it has room in etcd.
pub const ORPHANS_MAX: usize = 512;
/// Characters of the text fields.
const TEXT_MAX: usize = 253;
/// Annotations of one object.
pub const ANNOTATIONS_MAX: usize = 16;
/// Bytes of the value of an annotation that is kept: a namespace, a slash, and a name.
pub const ANNOTATION_MAX: usize = 320;

/// A lvol that has no Lvol object.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Orphan {
    /// UUID of the lvol.
    #[serde(rename = "lvolUUID")]
    #[schemars(with = "UuidText")]
    pub lvol_uuid: Uuid,
    /// Name of the lvol in its store.
    #[schemars(length(max = TEXT_MAX))]
    pub name: String,
    /// Volume or Snapshot.
    #[schemars(length(max = TEXT_MAX))]
    pub kind: String,
    /// Size that was asked for.
    pub size: ByteSize,
    /// Thin or Thick.
    #[schemars(length(max = TEXT_MAX))]
    pub provisioning: String,
    /// UUID of the lvol whose content it started with, which may be gone.
    #[serde(rename = "sourceUUID", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub source_uuid: Option<Uuid>,
    /// What the source was: Volume or Snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = TEXT_MAX))]
    pub source_kind: Option<String>,
    /// Name of the CSI request that it was made for. Absent where Kubernetes did not make it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = REQUEST_NAME_MAX))]
    pub request_name: Option<String>,
    /// File system that was made on it. Absent where there is none, as on a raw block volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = TEXT_MAX))]
    pub file_system: Option<String>,
    /// When it was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<Time>,
    /// Annotations that its object had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = ANNOTATIONS_MAX), extend("x-kubernetes-list-type" = "atomic"))]
    pub annotations: Vec<OrphanAnnotation>,
}

/// A snapshot that was deleted, or was only taken for a clone, and that others still read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeptSnapshot {
    /// UUID of the lvol.
    #[serde(rename = "lvolUUID")]
    #[schemars(with = "UuidText")]
    pub lvol_uuid: Uuid,
    /// UUID of the snapshot that it reads from where it has no data of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<UuidText>")]
    pub parent: Option<Uuid>,
    /// Size of the lvol.
    pub size: ByteSize,
    /// Space that it takes itself.
    pub allocated: ByteSize,
}

/// An annotation that the object had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OrphanAnnotation {
    /// Name of the annotation.
    #[schemars(length(max = TEXT_MAX))]
    pub key: String,
    /// Value of the annotation.
    #[schemars(length(max = ANNOTATION_MAX))]
    pub value: String,
}

impl Orphan {
    /// The object that takes the lvol back: as the controller made it, but adopted. With the name that it had, so that its
    /// request finds it again. `None`: a word of the orphan is from a later version than this one, or the store has no UUID.
    pub fn object(&self, lvstore: &Lvstore) -> Option<Lvol> {
        let kind: Kind = word(&self.kind)?;
        let source_kind = match &self.source_kind {
            Some(text) => Some(word::<Kind>(text)?),
            None => None,
        };
        let source = self.source_uuid.zip(source_kind);
        let request_name = self.request_name();
        let spec = LvolSpec {
            request_name: request_name.clone(),
            kind,
            size: self.size,
            provisioning: word::<Provisioning>(&self.provisioning)?,
            source_uuid: source.map(|(uuid, _)| uuid),
            source_kind: source.map(|(_, kind)| kind),
            source_node: source.map(|_| lvstore.spec.node.clone()),
            // It is there: nothing is read to make it. What it still reads elsewhere, its store says.
            source_lvstore_uuid: None,
            source_snapshot_uuid: None,
            source_file_system: None,
            restore: None,
            clone_for: None,
            consistency: None,
            node: lvstore.spec.node.clone(),
            lvstore_uuid: lvstore.status.as_ref()?.uuid?,
            lvol_uuid: self.lvol_uuid,
            adopted: true,
            reclaim: None,
        };
        let mut object = Lvol::new(&object_name(kind, &request_name), spec);
        object.labels_mut().insert(LABEL_LVSTORE.into(), lvstore.spec.name.clone());
        let annotations = self.annotations.iter().map(|one| (one.key.clone(), one.value.clone()));
        object.annotations_mut().extend(annotations);
        Some(object)
    }

    /// The name of its request; one that Kubernetes did not make gets a name of the sidecars' kind, from its UUID.
    pub fn request_name(&self) -> String {
        self.request_name.clone().unwrap_or_else(|| {
            let prefix = if self.kind == "Snapshot" { SNAPSHOT_PREFIX } else { ORPHAN_PREFIX };
            format!("{prefix}{}", self.lvol_uuid)
        })
    }

    /// The value of an annotation that its object had.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.iter().find(|one| one.key == key).map(|one| one.value.as_str())
    }
}

/// A variant by its name.
fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(text.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lvstore() -> Lvstore {
        serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "node-a-fast" },
            "spec": { "node": "node-a", "name": "fast", "device": "f" },
            "status": { "uuid": Uuid::from_u128(9) }
        }))
        .expect("a lvstore")
    }

    fn orphan(change: serde_json::Value) -> Orphan {
        let mut orphan = json!({
            "lvolUUID": Uuid::from_u128(1), "name": "pvc-1", "kind": "Volume", "size": "1Gi", "provisioning": "Thick",
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            orphan[key] = value.clone();
        }
        serde_json::from_value(orphan).expect("an orphan")
    }

    #[test]
    fn the_object_has_the_name_of_its_request() {
        let named =
            orphan(json!({ "requestName": "My Volume", "annotations": [{ "key": "coppice.io/pvc", "value": "a/b" }] }));
        let object = named.object(&lvstore()).expect("an object");
        assert_eq!(object.name_any(), object_name(Kind::Volume, "My Volume"));
        assert_eq!((object.spec.adopted, object.spec.lvstore_uuid), (true, Uuid::from_u128(9)));
        assert_eq!(object.annotations()[crate::ANNOTATION_PVC], "a/b");
        assert_eq!(object.labels()[LABEL_LVSTORE], "fast");
        assert_eq!((object.spec.source_uuid, object.spec.source_node), (None, None));
        let from =
            orphan(json!({ "requestName": "pvc-2", "sourceUUID": Uuid::from_u128(3), "sourceKind": "Snapshot" }));
        let from = from.object(&lvstore()).expect("an object").spec;
        assert_eq!((from.source_kind, from.source_node.as_deref()), (Some(Kind::Snapshot), Some("node-a")));
    }

    #[test]
    fn what_kubernetes_did_not_make_gets_a_name_of_its_own() {
        let id = Uuid::from_u128(1);
        let volume = orphan(json!({})).object(&lvstore()).expect("an object");
        assert_eq!(volume.name_any(), format!("lvol-{id}"));
        let snapshot = orphan(json!({ "kind": "Snapshot" })).object(&lvstore()).expect("an object");
        assert_eq!(snapshot.name_any(), format!("snapshot-{id}"));
    }

    #[test]
    fn words_of_tomorrow_are_left_alone() {
        for change in [json!({ "kind": "Journal" }), json!({ "provisioning": "Elastic" }), json!({ "sourceKind": "X" })]
        {
            assert_eq!(orphan(change).object(&lvstore()), None);
        }
        let mut closed = lvstore();
        closed.status = None;
        assert_eq!(orphan(json!({})).object(&closed), None);
    }
}
