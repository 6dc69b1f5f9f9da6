//! Objects as the operations know lvols, and back. Pure.

use super::judge;
use crate::volume::Source;
use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_kube_api::{
    ANNOTATION_PVC, ANNOTATION_VOLUME_SNAPSHOT, ByteSize, Kind, LABEL_LVSTORE, Lvol, LvolSpec, Provisioning, Restore,
    object_name,
};
use coppice_proto::attributes::{self, Attributes};
use kube::ResourceExt;
use std::collections::BTreeMap;
use uuid::Uuid;

/// What the class asked for and the spec has no field for: attribute and annotation.
const KEPT_AS_ANNOTATIONS: [(&str, &str); 5] = [
    (attributes::CSI_PVC, ANNOTATION_PVC),
    (attributes::CSI_VOLUME_SNAPSHOT, ANNOTATION_VOLUME_SNAPSHOT),
    (attributes::CSI_FSTYPE, "coppice.io/fstype"),
    (attributes::CSI_EXPORT, "coppice.io/export"),
    (attributes::CSI_RESTORE, "coppice.io/restore"),
];

/// The key of the pool that the lvstore `uuid` is.
pub fn pool_key(lvstore: Uuid) -> String {
    lvstore.to_string()
}

/// What an object is made from.
pub struct Wanted {
    pub kind: Kind,
    pub size: u64,
    pub thick: bool,
    pub uuid: Uuid,
    pub lvstore: Uuid,
    /// `spec.name` of the lvstore.
    pub lvstore_name: String,
    pub node: String,
    /// The source and what it is; it is in the same lvstore, unless `outside` says otherwise.
    pub source: Option<(Uuid, Kind)>,
    pub outside: Option<Elsewhere>,
    /// Name of the object of the volume that this snapshot is taken for.
    pub clone_for: Option<String>,
    pub consistency: Option<coppice_kube_api::Consistency>,
    /// Name of the request, size, claim, … as the operations put them.
    pub attributes: Attributes,
}

/// Where a source is that is in another lvstore.
#[derive(Clone, Debug)]
pub struct Elsewhere {
    pub node: String,
    pub lvstore: Uuid,
    /// What is read: the source, or a snapshot that was taken of it.
    pub snapshot: Uuid,
}

impl Wanted {
    pub fn object(&self) -> Lvol {
        let request = self.attributes.get(attributes::CSI_NAME).cloned().unwrap_or_default();
        let spec = LvolSpec {
            kind: self.kind,
            // The lvol gets whole clusters; the object says what was asked for.
            size: attributes::reported_size(&self.attributes, self.size).into(),
            provisioning: if self.thick { Provisioning::Thick } else { Provisioning::Thin },
            source_uuid: self.source.map(|(uuid, _)| uuid),
            source_kind: self.source.map(|(_, kind)| kind),
            source_node: self.source.map(|_| self.outside.as_ref().map_or(&self.node, |outside| &outside.node).clone()),
            source_lvstore_uuid: self.outside.as_ref().map(|outside| outside.lvstore),
            source_snapshot_uuid: self.outside.as_ref().map(|outside| outside.snapshot),
            source_file_system: self.outside.as_ref().and_then(|_| self.attributes.get(attributes::FS).cloned()),
            restore: self.outside.as_ref().map(|_| {
                match self.attributes.get(attributes::CSI_RESTORE).map(String::as_str) {
                    Some("eager") => Restore::Eager,
                    _ => Restore::Lazy,
                }
            }),
            clone_for: self.clone_for.clone(),
            consistency: self.consistency,
            node: self.node.clone(),
            lvstore_uuid: self.lvstore,
            lvol_uuid: self.uuid,
            adopted: false,
            reclaim: None,
            request_name: request.clone(),
        };
        let mut object = Lvol::new(&object_name(self.kind, &request), spec);
        object.labels_mut().insert(LABEL_LVSTORE.into(), self.lvstore_name.clone());
        object.annotations_mut().extend(annotations(&self.attributes));
        object
    }
}

/// The lvol that the object describes. What objects do not say (clusters, blocks, children) is 0 or empty.
pub fn lvol_info(object: &Lvol) -> LvolInfo {
    let (spec, status) = (&object.spec, object.status.as_ref());
    let name = object.name_any();
    let size = status.and_then(|status| status.size).unwrap_or(spec.size).bytes();
    let hydrating = status.is_some_and(|status| status.hydration.is_some());
    let lost = judge::is_lost(object);
    let state = match lost {
        Some(_) => LvolState::Damaged,
        None if judge::is_degraded(object) => LvolState::Degraded,
        None if hydrating => LvolState::Hydrating,
        None => LvolState::Ok,
    };
    let store = object.labels().get(LABEL_LVSTORE).cloned().unwrap_or_else(|| spec.lvstore_uuid.to_string());
    LvolInfo {
        uuid: spec.lvol_uuid,
        alias: format!("{store}/{name}"),
        name,
        lvstore: pool_key(spec.lvstore_uuid),
        size,
        thin: spec.provisioning == Provisioning::Thin,
        kind: match (spec.kind, spec.source_uuid) {
            (Kind::Snapshot, _) => LvolKind::Snapshot,
            (Kind::Volume, Some(_)) => LvolKind::Clone,
            (Kind::Volume, None) => LvolKind::Lvol,
        },
        parent: status.and_then(|status| status.parent),
        state,
        reason: lost,
        exports: judge::exports(object),
        attributes: attributes_of(object),
        ..LvolInfo::default()
    }
}

fn attributes_of(object: &Lvol) -> Attributes {
    let spec = &object.spec;
    let mut out = Attributes::new();
    out.insert(attributes::CSI_NAME.into(), spec.request_name.clone());
    out.insert(attributes::CSI_SIZE.into(), spec.size.bytes().to_string());
    if let Some(source) = spec.source_uuid {
        let text = match (spec.kind, spec.source_kind) {
            (Kind::Snapshot, _) => source.to_string(),
            (Kind::Volume, Some(Kind::Volume)) => Source::Volume(source).to_attribute(),
            (Kind::Volume, _) => Source::Snapshot(source).to_attribute(),
        };
        out.insert(attributes::CSI_SOURCE.into(), text);
    }
    let created = object.status.as_ref().and_then(|status| status.created.as_ref());
    if let Some(nanos) = created.and_then(|time| u64::try_from(time.0.as_nanosecond()).ok()) {
        out.insert(attributes::CSI_CREATED.into(), nanos.to_string());
    }
    if let Some(held) = object.status.as_ref().and_then(|status| status.file_system.clone()) {
        out.insert(attributes::FS.into(), held);
    }
    if let Some(volume) = &spec.clone_for {
        out.insert(attributes::CSI_CLONE_FOR.into(), volume.clone());
    }
    out.extend(kept(object));
    out
}

/// The annotations in which an object keeps what a lvol has as attributes.
pub fn annotations(attributes: &Attributes) -> BTreeMap<String, String> {
    let all = KEPT_AS_ANNOTATIONS.into_iter();
    all.filter_map(|(attribute, annotation)| Some((annotation.to_string(), attributes.get(attribute)?.clone())))
        .collect()
}

/// The attributes that the object keeps as annotations. The agent gives them to the lvol.
pub fn kept(object: &Lvol) -> Attributes {
    let value = |annotation: &str| object.annotations().get(annotation).cloned();
    let all = KEPT_AS_ANNOTATIONS.into_iter();
    all.filter_map(|(attribute, annotation)| Some((attribute.to_string(), value(annotation)?))).collect()
}

/// Bytes that the object still takes from what its lvstore reports as free: it is not made yet, or has not grown yet.
pub fn still_to_take(object: &Lvol, cluster_size: u64) -> u64 {
    let spec = &object.spec;
    let has = object.status.as_ref().and_then(|status| status.size.filter(|_| status.created.is_some()));
    let thick = spec.kind == Kind::Volume && spec.provisioning == Provisioning::Thick;
    match has {
        Some(has) if thick => spec.size.bytes().saturating_sub(has.bytes()),
        Some(_) => 0,
        None => take_at_creation(spec.size.bytes(), thick, cluster_size),
    }
}

/// A thick lvol reserves all of it; a thin one takes little, but never nothing once it is written to.
pub fn take_at_creation(size: u64, thick: bool, cluster_size: u64) -> u64 {
    if thick { size.next_multiple_of(cluster_size.max(1)) } else { cluster_size }
}

/// A size as objects have it.
pub fn byte_size(bytes: u64) -> ByteSize {
    bytes.into()
}
