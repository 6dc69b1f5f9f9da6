//! Which lvols of a store no object names, and what their attributes say of the objects that they had.
//!
//! An object is written before its lvol is made, and goes after it. So a lvol without an object lost it: the object was deleted
//! without the controller's say, or the API's data is older than the drive's.

use coppice_controller::kube::annotations;
use coppice_controller::volume::Source;
use coppice_engine::{LvolInfo, LvolKind, LvolState, Store};
use coppice_kube_api::{
    ANNOTATION_MAX, KeptSnapshot, Lvol, ORPHANS_MAX, Orphan, OrphanAnnotation, REQUEST_NAME_MAX, Tombstone,
};
use coppice_proto::attributes::{self, reported_size};
use kube::runtime::reflector;
use std::collections::HashSet;
use std::sync::Arc;
use uuid::Uuid;

/// The orphans of `store`. `objects` knows all objects of this node.
pub fn of(store: &Store, objects: &reflector::Store<Lvol>, tombstones: &[Tombstone]) -> Vec<Orphan> {
    // In this order: an object is there before its lvol.
    let lvols = store.lvstore().lvols();
    let mut found = orphans(&lvols, &objects.state(), tombstones);
    // And goes after it: one that was removed meanwhile has lost nothing.
    found.retain(|orphan| store.lvstore().lvol(orphan.lvol_uuid).is_ok_and(|lvol| lvol.state != LvolState::Hidden));
    found
}

/// The orphans among `lvols`, which are in order of creation. `objects` are all objects of this node.
fn orphans(lvols: &[LvolInfo], objects: &[Arc<Lvol>], tombstones: &[Tombstone]) -> Vec<Orphan> {
    let named = objects.iter().map(|object| object.spec.lvol_uuid);
    // Those are removed as soon as they can be.
    let buried = tombstones.iter().map(|tombstone| tombstone.lvol_uuid);
    let known: HashSet<Uuid> = named.chain(buried).collect();
    let mut found: Vec<Orphan> =
        lvols.iter().filter(|lvol| !known.contains(&lvol.uuid) && is_for_people(lvol)).map(orphan).collect();
    found.truncate(ORPHANS_MAX);
    found
}

/// Those that have no object and need none: deleted, or between a volume and its clone, and still read by others.
pub fn kept(store: &Store) -> Vec<KeptSnapshot> {
    let lvols = store.lvstore().lvols();
    let kept = lvols.iter().filter(|lvol| !is_for_people(lvol)).map(|lvol| KeptSnapshot {
        lvol_uuid: lvol.uuid,
        parent: lvol.parent,
        size: lvol.size.into(),
        allocated: lvol.allocated_clusters.saturating_mul(u64::from(lvol.cluster_size)).into(),
    });
    kept.take(ORPHANS_MAX).collect()
}

/// Not one that was deleted and is only read by others, nor one between a volume and its clone.
fn is_for_people(lvol: &LvolInfo) -> bool {
    let between = lvol.kind == LvolKind::Snapshot && lvol.attributes.contains_key(attributes::CSI_CLONE_FOR);
    lvol.state != LvolState::Hidden && !between
}

fn orphan(lvol: &LvolInfo) -> Orphan {
    let snapshot = lvol.kind == LvolKind::Snapshot;
    let (volume, kind) = ("Volume", if snapshot { "Snapshot" } else { "Volume" });
    let attribute = |key: &str| lvol.attributes.get(key).map(String::as_str);
    let source = attribute(attributes::CSI_SOURCE).and_then(|text| match snapshot {
        true => Some((Uuid::parse_str(text).ok()?, volume)),
        false => Some(match Source::from_attribute(text)? {
            Source::Volume(uuid) => (uuid, volume),
            Source::Snapshot(uuid) => (uuid, "Snapshot"),
        }),
    });
    // What another program wrote there may be anything; the API server takes no name like that.
    let is_name = |text: &&str| (1..=REQUEST_NAME_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
    let kept = annotations(&lvol.attributes).into_iter().filter(|(_, value)| value.len() <= ANNOTATION_MAX);
    Orphan {
        lvol_uuid: lvol.uuid,
        name: lvol.name.clone(),
        kind: kind.to_string(),
        size: reported_size(&lvol.attributes, lvol.size).into(),
        provisioning: if lvol.thin || snapshot { "Thin" } else { "Thick" }.to_string(),
        source_uuid: source.map(|(uuid, _)| uuid),
        source_kind: source.map(|(_, kind)| kind.to_string()),
        request_name: attribute(attributes::CSI_NAME).filter(is_name).map(String::from),
        file_system: attribute(attributes::FS).map(|text| text.chars().take(63).collect()),
        created: super::status::created(lvol),
        annotations: kept.map(|(key, value)| OrphanAnnotation { key, value }).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coppice_kube_api::{Kind, Lvstore};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::ResourceExt;
    use serde_json::json;

    fn lvol(id: u128, kind: LvolKind, pairs: &[(&str, &str)]) -> LvolInfo {
        LvolInfo {
            uuid: Uuid::from_u128(id),
            name: format!("lvol-{id}"),
            kind,
            attributes: pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..super::super::decide_tests::lvol(1 << 30)
        }
    }

    fn object(id: u128) -> Arc<Lvol> {
        let object = json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "x" },
            "spec": { "requestName": "x", "kind": "Volume", "size": "1Gi", "node": "a",
                "lvstoreUUID": Uuid::nil(), "lvolUUID": Uuid::from_u128(id) }
        });
        Arc::new(serde_json::from_value(object).expect("an object"))
    }

    fn ids(found: &[Orphan]) -> Vec<u128> {
        found.iter().map(|orphan| orphan.lvol_uuid.as_u128()).collect()
    }

    #[test]
    fn who_has_an_object_or_a_tombstone_or_was_deleted_is_no_orphan() {
        let mut hidden = lvol(4, LvolKind::Snapshot, &[]);
        hidden.state = LvolState::Hidden;
        let between = lvol(5, LvolKind::Snapshot, &[(attributes::CSI_CLONE_FOR, "pvc-9")]);
        let plain = |id| lvol(id, LvolKind::Lvol, &[]);
        let lvols = [plain(1), plain(2), plain(3), hidden, between, plain(6)];
        let tombstone = Tombstone {
            lvstore_uuid: Uuid::nil(),
            lvol_uuid: Uuid::from_u128(3),
            deleted: Time(jiff::Timestamp::UNIX_EPOCH),
        };
        assert_eq!(ids(&orphans(&lvols, &[object(2)], &[tombstone])), [1, 6]);
    }

    #[test]
    fn no_more_than_an_object_can_hold_and_the_oldest_first() {
        let lvols: Vec<LvolInfo> = (1..=2000).map(|id| lvol(id, LvolKind::Lvol, &[])).collect();
        let found = orphans(&lvols, &[object(1)], &[]);
        assert_eq!((found.len(), found[0].lvol_uuid), (ORPHANS_MAX, Uuid::from_u128(2)));
        // The longest that there can be, beside full lists of the others, fit what etcd takes: 1.5 MiB.
        let long = "x".repeat(4000);
        let pairs = [
            (attributes::CSI_NAME, "x".repeat(128)),
            (attributes::CSI_PVC, "x".repeat(ANNOTATION_MAX)),
            (attributes::CSI_FSTYPE, "ext4".to_string()),
            (attributes::FS, long.clone()),
            (attributes::CSI_EXPORT, long),
        ];
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let one = serde_json::to_string(&orphan(&lvol(1, LvolKind::Lvol, &pairs))).expect("json");
        const TOMBSTONES: usize = 4096 * 170;
        const KEPT: usize = ORPHANS_MAX * 170;
        assert!(one.len() * ORPHANS_MAX + TOMBSTONES + KEPT < 3 << 19, "{} bytes", one.len());
    }

    /// The object that is made from an orphan is the one that the controller made, but for `adopted` and what a snapshot did
    /// to its source in its time.
    #[test]
    fn the_drive_knows_all_that_the_object_said() {
        let store: Lvstore = serde_json::from_value(json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "a-fast" },
            "spec": { "node": "a", "name": "fast", "device": "f" }, "status": { "uuid": Uuid::from_u128(99) }
        }))
        .expect("a lvstore");
        let source = Uuid::from_u128(7);
        let of_snapshot = format!("snapshot:{source}");
        let volume = [
            (attributes::CSI_NAME, "pvc-1"),
            (attributes::CSI_SIZE, "1000000000"),
            (attributes::CSI_SOURCE, of_snapshot.as_str()),
            (attributes::CSI_CREATED, "1767225600000000001"),
            (attributes::CSI_PVC, "default/data"),
            (attributes::CSI_FSTYPE, "xfs"),
            (attributes::CSI_EXPORT, "fuse"),
            (attributes::CSI_RESTORE, "lazy"),
            (attributes::FS, "xfs"),
        ];
        let found = orphan(&LvolInfo { thin: false, ..lvol(1, LvolKind::Clone, &volume) });
        assert_eq!(found.created, Some(Time("2026-01-01T00:00:00Z".parse().expect("a time"))));
        assert_eq!(found.file_system.as_deref(), Some("xfs"));
        let object = found.object(&store).expect("an object");
        let wanted = json!({
            "requestName": "pvc-1", "kind": "Volume", "size": "1000000000", "provisioning": "Thick", "node": "a",
            "sourceUUID": source, "sourceKind": "Snapshot", "sourceNode": "a",
            "lvstoreUUID": Uuid::from_u128(99), "lvolUUID": Uuid::from_u128(1), "adopted": true,
        });
        assert_eq!(serde_json::to_value(&object.spec).expect("json"), wanted);
        assert_eq!(object.name_any(), "pvc-1");
        // The agent reads the annotations back as the very attributes.
        let kept = coppice_controller::kube::kept(&object);
        for key in [attributes::CSI_PVC, attributes::CSI_FSTYPE, attributes::CSI_EXPORT, attributes::CSI_RESTORE] {
            assert_eq!(kept.get(key).map(String::as_str), volume.iter().find(|(k, _)| *k == key).map(|(_, v)| *v));
        }

        let plain = source.to_string();
        let snapshot = [
            (attributes::CSI_NAME, "snapshot-1"),
            (attributes::CSI_SOURCE, plain.as_str()),
            (attributes::CSI_VOLUME_SNAPSHOT, "default/monday"),
        ];
        let object = orphan(&lvol(2, LvolKind::Snapshot, &snapshot)).object(&store).expect("an object");
        assert_eq!((object.spec.kind, object.spec.source_kind), (Kind::Snapshot, Some(Kind::Volume)));
        assert_eq!(object.annotations()[coppice_kube_api::ANNOTATION_VOLUME_SNAPSHOT], "default/monday");
    }

    #[test]
    fn what_another_program_wrote_is_no_name_and_no_source() {
        let odd =
            [(attributes::CSI_NAME, "a\nb"), (attributes::CSI_SOURCE, "disk:1"), (attributes::CSI_CREATED, "soon")];
        let found = orphan(&lvol(1, LvolKind::Lvol, &odd));
        assert_eq!((found.request_name, found.source_uuid, found.created), (None, None, None));
    }
}
