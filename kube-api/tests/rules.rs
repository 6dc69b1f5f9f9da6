//! The rules of the schema, run as the API server runs them: what may be created, what may change.

use coppice_kube_api::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::CustomResourceExt;
use kube::core::cel::Validator;
use serde_json::{Value, json};

const A: &str = "11111111-1111-4111-8111-111111111111";
const B: &str = "22222222-2222-4222-8222-222222222222";

fn lvstore() -> Value {
    json!({
        "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "node-a-fast" },
        "spec": { "node": "node-a", "name": "fast", "device": "fast.img", "fileSize": "10Gi", "clusterSize": "64Ki", "unschedulable": false },
        "status": { "uuid": A }
    })
}

fn sourceless(object: Value) -> Value {
    ["sourceUUID", "sourceKind", "sourceNode"]
        .iter()
        .fold(object, |object, key| with(object, &format!("/spec/{key}"), Value::Null))
}

fn volume() -> Value {
    json!({
        "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol", "metadata": { "name": "pvc-1" },
        "spec": {
            "requestName": "pvc-1", "kind": "Volume", "size": "10Gi", "provisioning": "Thin", "node": "node-a",
            "lvstoreUUID": A, "lvolUUID": B, "adopted": false, "sourceUUID": A, "sourceKind": "Volume", "sourceNode": "node-a"
        },
        "status": { "created": "2026-11-24T00:00:00Z", "size": "10Gi" }
    })
}

fn snapshot() -> Value {
    with(with(volume(), "/spec/kind", json!("Snapshot")), "/spec/consistency", json!("Sync"))
}

/// `object` with `value` at `path`; null takes the field away.
fn with(mut object: Value, path: &str, value: Value) -> Value {
    let (parent, field) = path.rsplit_once('/').expect("a path");
    let fields = object.pointer_mut(parent).and_then(Value::as_object_mut).expect("its parent");
    if value.is_null() {
        fields.remove(field);
    } else {
        fields.insert(field.to_string(), value);
    }
    object
}

/// The messages of the rules that `new` breaks.
fn broken<T: CustomResourceExt>(new: &Value, old: Option<&Value>) -> Vec<String> {
    let name = T::crd().metadata.name;
    let crd = crds().into_iter().find(|crd| crd.metadata.name == name).expect("its definition");
    let mut schema =
        serde_json::to_value(&crd).expect("json")["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    // The evaluator knows no rules for both creation and change: it skips them, or hands them `oldSelf` as it is.
    let rules = schema.pointer_mut("/properties/spec/x-kubernetes-validations").and_then(Value::as_array_mut);
    rules.expect("rules").retain(|rule| rule["optionalOldSelf"].is_null());
    match Validator::new().validate(&schema, new, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.to_string().lines().map(String::from).collect(),
    }
}

fn is_refused<T: CustomResourceExt>(old: Value, path: &str, value: Value, why: &str) {
    let new = with(old.clone(), path, value.clone());
    let broken = broken::<T>(&new, Some(&old));
    assert!(broken.iter().any(|message| message.contains(why)), "{path} = {value}: {broken:?}");
}

fn is_allowed<T: CustomResourceExt>(old: Value, path: &str, value: Value) {
    let new = with(old.clone(), path, value.clone());
    assert_eq!(broken::<T>(&new, Some(&old)), Vec::<String>::new(), "{path} = {value}");
}

#[test]
fn what_names_a_lvol_never_changes() {
    for (field, other) in [
        ("requestName", json!("pvc-2")),
        ("kind", json!("Snapshot")),
        ("provisioning", json!("Thick")),
        ("node", json!("node-b")),
        ("lvstoreUUID", json!(B)),
        ("lvolUUID", json!(A)),
        ("sourceUUID", json!(B)),
        ("sourceUUID", Value::Null),
        ("sourceKind", json!("Snapshot")),
        ("sourceKind", Value::Null),
        ("sourceNode", json!("node-b")),
        ("sourceNode", Value::Null),
        ("sourceLvstoreUUID", json!(B)),
        ("sourceSnapshotUUID", json!(B)),
        ("sourceFileSystem", json!("xfs")),
        ("restore", json!("Eager")),
        ("adopted", json!(true)),
    ] {
        is_refused::<Lvol>(volume(), &format!("/spec/{field}"), other, &format!("{field} never changes"));
    }
    is_refused::<Lvol>(snapshot(), "/spec/consistency", json!("Crash"), "consistency never changes");
    is_refused::<Lvol>(snapshot(), "/spec/consistency", Value::Null, "consistency never changes");
    let without = sourceless(volume());
    is_refused::<Lvol>(without, "/spec/sourceUUID", json!(A), "sourceUUID never changes");
}

#[test]
fn a_lvol_only_grows() {
    is_allowed::<Lvol>(volume(), "/spec/size", json!("20Gi"));
    is_allowed::<Lvol>(volume(), "/spec/size", json!("10240Mi"));
    for smaller in ["9Gi", "10239Mi", "1"] {
        is_refused::<Lvol>(volume(), "/spec/size", json!(smaller), "only grows");
    }
    // An expansion that cannot be done, then a smaller one.
    let wanted = with(volume(), "/spec/size", json!("100Gi"));
    is_allowed::<Lvol>(wanted.clone(), "/spec/size", json!("10Gi"));
    is_refused::<Lvol>(wanted.clone(), "/spec/size", json!("9Gi"), "only grows");
    // Not created yet: nothing says that it has not grown meanwhile.
    let unborn = with(wanted, "/status", Value::Null);
    is_refused::<Lvol>(unborn, "/spec/size", json!("99Gi"), "only grows");
    is_refused::<Lvol>(snapshot(), "/spec/size", json!("20Gi"), "size of a snapshot never changes");
}

#[test]
fn reclaim_is_set_once_and_later() {
    is_allowed::<Lvol>(volume(), "/spec/reclaim", json!("Delete"));
    let going = with(volume(), "/spec/reclaim", json!("Delete"));
    is_refused::<Lvol>(going.clone(), "/spec/reclaim", Value::Null, "reclaim cannot be taken back");
    is_allowed::<Lvol>(going.clone(), "/status/allocated", json!("1Gi"));
    // That a new object cannot have it is a rule that only a real API server runs.
    assert!(broken::<Lvol>(&volume(), None).is_empty());
}

#[test]
fn a_lvol_is_created_once() {
    is_refused::<Lvol>(volume(), "/status/created", Value::Null, "created is set once");
    is_refused::<Lvol>(volume(), "/status/created", json!("2026-11-25T00:00:00Z"), "created is set once");
    is_refused::<Lvol>(volume(), "/status", Value::Null, "created is set once");
    let unborn = with(volume(), "/status/created", Value::Null);
    is_allowed::<Lvol>(unborn, "/status/created", json!("2026-11-24T00:00:00Z"));
}

#[test]
fn a_new_lvol_makes_sense() {
    let created = |object: Value| broken::<Lvol>(&object, None).join("; ");
    assert_eq!(created(snapshot()), "");
    assert!(created(with(volume(), "/spec/sourceNode", Value::Null)).contains("go together"));
    assert!(created(with(volume(), "/spec/consistency", json!("Sync"))).contains("for snapshots"));
    let elsewhere = with(volume(), "/spec/sourceLvstoreUUID", json!(B));
    assert!(created(elsewhere.clone()).contains("go together"));
    let elsewhere = with(with(elsewhere, "/spec/sourceSnapshotUUID", json!(A)), "/spec/restore", json!("Lazy"));
    assert_eq!(created(elsewhere.clone()), "");
    assert!(created(sourceless(elsewhere.clone())).contains("go together"));
    assert!(created(with(elsewhere, "/spec/kind", json!("Snapshot"))).contains("where its source is"));
    assert!(created(with(volume(), "/spec/cloneFor", json!("pvc-2"))).contains("for snapshots"));
    assert_eq!(created(with(snapshot(), "/spec/cloneFor", json!("pvc-2"))), "");
    let rootless = sourceless(snapshot());
    assert!(created(rootless.clone()).contains("a snapshot has a source"));
    // Its origin may be long gone.
    assert_eq!(created(with(rootless, "/spec/adopted", json!(true))), "");
}

#[test]
fn what_makes_a_lvstore_never_changes() {
    let spec = |field: &str| format!("/spec/{field}");
    is_refused::<Lvstore>(lvstore(), &spec("node"), json!("node-b"), "node never changes");
    is_refused::<Lvstore>(lvstore(), &spec("name"), json!("slow"), "name never changes");
    is_refused::<Lvstore>(lvstore(), &spec("clusterSize"), json!("4Mi"), "clusterSize never changes");
    is_refused::<Lvstore>(lvstore(), &spec("clusterSize"), Value::Null, "clusterSize never changes");
    is_refused::<Lvstore>(lvstore(), &spec("fileSize"), json!("9Gi"), "fileSize only grows");
    is_refused::<Lvstore>(lvstore(), &spec("fileSize"), Value::Null, "fileSize only grows");
    is_refused::<Lvstore>(lvstore(), &spec("device"), json!("/dev/disk/by-id/nvme-1"), "for a file");
    is_refused::<Lvstore>(lvstore(), "/status/uuid", json!(B), "UUID of a lvstore never changes");
    is_refused::<Lvstore>(lvstore(), "/status", Value::Null, "UUID of a lvstore never changes");
    is_allowed::<Lvstore>(lvstore(), &spec("fileSize"), json!("20Gi"));
    is_allowed::<Lvstore>(lvstore(), &spec("device"), json!("moved.img"));
    is_allowed::<Lvstore>(lvstore(), &spec("unschedulable"), json!(true));
    is_allowed::<Lvstore>(lvstore(), &spec("overprovisionPercent"), json!(150));
    is_allowed::<Lvstore>(with(lvstore(), "/status", Value::Null), "/status", json!({ "uuid": A }));
}

#[test]
fn objects_are_read_as_they_were_written() {
    for object in [volume(), snapshot(), with(volume(), "/spec/reclaim", json!("Delete"))] {
        let read: Lvol = serde_json::from_value(object.clone()).expect("a lvol");
        assert_eq!(serde_json::to_value(&read).expect("json"), object);
        assert_eq!(object_name(Kind::Volume, &read.spec.request_name), "pvc-1");
    }
    let read: Lvstore = serde_json::from_value(lvstore()).expect("a lvstore");
    assert_eq!(serde_json::to_value(&read).expect("json"), lvstore());
    assert_eq!(read.spec.place(), Place::File("fast.img"));
}

#[test]
fn a_full_status_is_read_as_it_was_written() {
    let now = jiff::Timestamp::from_second(1_764_000_000).expect("a time");
    let lvol = LvolStatus {
        created: Some(Time(now)),
        size: Some(ByteSize::from(1 << 30)),
        allocated: Some(ByteSize::from(3 << 16)),
        parent: A.parse().ok(),
        file_system: Some("ext4".into()),
        hydration: Some(Hydration { total: ByteSize::from(10), remaining: ByteSize::from(5), eta_seconds: Some(7) }),
        exports: vec![LvolExport { kind: "ublk".into(), device: "/dev/ublkb0".into() }],
        conditions: vec![condition(LvolCondition::Ready, true, LvolReason::Available, "", Some(1), now)],
    };
    let text = serde_json::to_value(&lvol).expect("json");
    assert_eq!(text["hydration"]["etaSeconds"], 7);
    assert_eq!(serde_json::from_value::<LvolStatus>(text).expect("a status"), lvol);

    let tombstone =
        Tombstone { lvstore_uuid: A.parse().expect("id"), lvol_uuid: B.parse().expect("id"), deleted: Time(now) };
    let space = Space { total: ByteSize::from(1 << 40), ..Space::default() };
    let store = LvstoreStatus {
        uuid: A.parse().ok(),
        cluster_size: Some(ByteSize::from(1 << 16)),
        space: Some(space),
        export_endpoint: Some("10.0.0.1:4420".into()),
        external_parents: Some(vec![ExternalParent {
            snapshot_uuid: A.parse().expect("id"),
            lvstore_uuid: B.parse().ok(),
            node: Some("node-a".into()),
        }]),
        conditions: vec![condition(LvstoreCondition::Ready, true, LvstoreReason::Open, "", None, now)],
        tombstones: vec![tombstone],
        orphans: vec![Orphan {
            lvol_uuid: B.parse().expect("id"),
            name: "pvc-1".into(),
            kind: "Volume".into(),
            size: ByteSize::from(10),
            provisioning: "Thin".into(),
            source_uuid: A.parse().ok(),
            source_kind: Some("Snapshot".into()),
            request_name: Some("pvc-1".into()),
            file_system: Some("ext4".into()),
            created: Some(Time(now)),
            annotations: vec![OrphanAnnotation { key: "coppice.io/pvc".into(), value: "a/b".into() }],
        }],
        kept: vec![KeptSnapshot {
            lvol_uuid: A.parse().expect("id"),
            parent: B.parse().ok(),
            size: ByteSize::from(10),
            allocated: ByteSize::from(5),
        }],
    };
    let text = serde_json::to_value(&store).expect("json");
    assert_eq!((&text["tombstones"][0]["lvolUUID"], &text["space"]["metadataFree"]), (&json!(B), &json!("0")));
    let orphan = &text["orphans"][0];
    assert_eq!(
        (&orphan["lvolUUID"], &orphan["sourceUUID"], &orphan["fileSystem"]),
        (&json!(B), &json!(A), &json!("ext4"))
    );
    assert_eq!(serde_json::from_value::<LvstoreStatus>(text).expect("a status"), store);
}

/// The controller of today reads what the agent of tomorrow writes.
#[test]
fn fields_and_reasons_from_tomorrow_do_not_stop_a_watch() {
    let mut object = with(volume(), "/spec/colour", json!("green"));
    object["status"]["exports"] = json!([{ "kind": "new", "device": "/dev/new0", "speed": 1 }]);
    object["status"]["conditions"] = json!([{ "type": "New", "status": "Unknown", "reason": "New", "message": "", "lastTransitionTime": "2026-11-24T00:00:00Z" }]);
    let read: Lvol = serde_json::from_value(object).expect("a lvol");
    assert_eq!(read.status.expect("a status").conditions[0].reason, "New");
}
