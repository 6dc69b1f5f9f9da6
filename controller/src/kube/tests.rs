//! What objects mean, without an API server.

use super::judge::{Growth, Progress, growth, progress, without_finalizer};
use super::orphans::{Owners, Verdict, verdict};
use super::standing::{NodeState, Shut, Standing, Underway, What, node_state, standings};
use super::translate::{Wanted, lvol_info};
use crate::volume::{Error, Source};
use coppice_engine::{ErrorKind, LvolKind, LvolState};
use coppice_kube_api::{ByteSize, Kind, Lvol, LvolStatus, Lvstore, Provisioning, Reclaim};
use coppice_proto::attributes::{self, Attributes};
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

const GIB: u64 = 1 << 30;
const STORE: Uuid = Uuid::from_u128(0xa);

fn lvol(id: u128, size: u64) -> Wanted {
    Wanted {
        kind: Kind::Volume,
        size,
        thick: false,
        uuid: Uuid::from_u128(id),
        lvstore: STORE,
        lvstore_name: "fast".into(),
        node: "a".into(),
        source: None,
        outside: None,
        clone_for: None,
        consistency: None,
        attributes: Attributes::from([(attributes::CSI_NAME.to_string(), format!("pvc-{id}"))]),
    }
}

fn with_status(mut lvol: Lvol, status: serde_json::Value) -> Lvol {
    lvol.status = Some(serde_json::from_value::<LvolStatus>(status).expect("a status"));
    lvol
}

fn condition(kind: &str, holds: bool, reason: &str, generation: i64) -> serde_json::Value {
    json!({ "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": "m",
        "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z" })
}

fn made(lvol: Lvol, size: &str) -> Lvol {
    let ready = condition("Ready", true, "Available", 1);
    with_status(lvol, json!({ "created": "2026-01-01T00:00:00Z", "size": size, "conditions": [ready] }))
}

fn lvstore(status: serde_json::Value) -> Lvstore {
    let mut store: Lvstore = serde_json::from_value(json!({
        "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "a-fast" },
        "spec": { "node": "a", "name": "fast", "device": "x", "unschedulable": false }, "status": status,
    }))
    .expect("a lvstore");
    store.metadata.uid = Some("u".into());
    store
}

fn open_store(free: &str, committed: &str) -> Lvstore {
    lvstore(json!({ "uuid": STORE, "clusterSize": "1Mi", "conditions": [condition("Ready", true, "Open", 1)],
        "space": { "total": "10Gi", "free": free, "committed": committed, "metadata": "1Gi", "metadataFree": "1Mi" } }))
}

fn stand(stores: Vec<Lvstore>, lvols: Vec<Lvol>, underway: &[Underway]) -> Vec<Standing> {
    let (stores, lvols): (Vec<_>, Vec<_>) =
        (stores.into_iter().map(Arc::new).collect(), lvols.into_iter().map(Arc::new).collect());
    standings(&stores, &lvols, |_| NodeState::Ready, underway)
}

fn first(all: Vec<Standing>) -> Standing {
    all.into_iter().next().expect("a lvstore")
}

#[test]
fn an_object_says_what_the_request_said() {
    let mut wanted = lvol(1, GIB);
    let source = Uuid::from_u128(7);
    wanted.source = Some((source, Kind::Volume));
    wanted.thick = true;
    wanted.size = GIB + 12345;
    for (key, value) in [
        (attributes::CSI_SIZE, "1073741824"),
        (attributes::CSI_PVC, "ns/claim"),
        (attributes::CSI_FSTYPE, "xfs"),
        (attributes::CSI_EXPORT, "fuse"),
    ] {
        wanted.attributes.insert(key.into(), value.into());
    }
    let object = wanted.object();
    assert_eq!(object.spec.size, ByteSize::from(GIB), "what was asked for, not what the source has");
    assert_eq!(object.spec.provisioning, Provisioning::Thick);
    assert_eq!((object.spec.source_uuid, object.spec.source_node.as_deref()), (Some(source), Some("a")));
    let info = lvol_info(&made(object, "1025Mi"));
    assert_eq!(
        (info.uuid, info.name.as_str(), info.lvstore.as_str()),
        (Uuid::from_u128(1), "pvc-1", &*STORE.to_string())
    );
    assert_eq!((info.size, info.thin, info.kind, info.state), (GIB + (1 << 20), false, LvolKind::Clone, LvolState::Ok));
    assert_eq!(info.attributes[attributes::CSI_SOURCE], Source::Volume(source).to_attribute());
    assert_eq!(info.attributes[attributes::CSI_CREATED], "1767225600000000000");
    for key in [
        attributes::CSI_NAME,
        attributes::CSI_SIZE,
        attributes::CSI_PVC,
        attributes::CSI_FSTYPE,
        attributes::CSI_EXPORT,
    ] {
        assert_eq!(info.attributes.get(key), wanted.attributes.get(key), "{key}");
    }
    let mut snapshot = lvol(2, GIB);
    (snapshot.kind, snapshot.source) = (Kind::Snapshot, Some((source, Kind::Volume)));
    let info = lvol_info(&snapshot.object());
    assert_eq!((info.kind, &info.attributes[attributes::CSI_SOURCE]), (LvolKind::Snapshot, &source.to_string()));
}

#[test]
fn how_far_a_creation_is() {
    let of = |status| progress(&with_status(lvol(1, GIB).object(), status));
    let reason = |reason: &str| json!({ "conditions": [condition("Ready", false, reason, 1)] });
    assert!(matches!(progress(&lvol(1, GIB).object()), Progress::Pending(_)));
    assert!(matches!(of(reason("Creating")), Progress::Pending(_)));
    assert!(matches!(of(reason("SourceUnavailable")), Progress::Pending(_)));
    assert_eq!(of(reason("NoSpace")), Progress::NoSpace("NoSpace: m".into()));
    assert_eq!(of(reason("SourceMissing")), Progress::SourceMissing("SourceMissing: m".into()));
    // One that was created is never taken back because of what its agent says later.
    let created = json!({ "created": "2026-01-01T00:00:00Z", "conditions": [condition("Ready", false, "NoSpace", 1)] });
    assert!(matches!(of(created), Progress::Pending(_)));
    assert_eq!(progress(&made(lvol(1, GIB).object(), "1Gi")), Progress::Ready);
    let lost =
        json!({ "conditions": [condition("Ready", false, "Missing", 1), condition("Lost", true, "Missing", 1)] });
    assert!(matches!(of(lost), Progress::Lost(_)));
}

#[test]
fn how_far_an_expansion_is() {
    let failed = |reason| json!({ "size": "1Gi", "conditions": [condition("ResizeFailed", true, reason, 3)] });
    let of = |reason| with_status(lvol(1, GIB).object(), failed(reason));
    assert_eq!(growth(&of("NoSpace"), GIB, 4), Growth::Done);
    assert_eq!(growth(&of("NoSpace"), 2 * GIB, 4), Growth::Pending, "it failed before we asked");
    let message = || String::from("NoSpace: m");
    assert_eq!(growth(&of("NoSpace"), 2 * GIB, 3), Growth::Failed { message: message(), full: true });
    assert!(matches!(growth(&of("CreateFailed"), 2 * GIB, 3), Growth::Failed { full: false, .. }));
}

#[test]
fn free_is_less_what_is_not_made_yet() {
    let thick = |id, size| Wanted { thick: true, ..lvol(id, size) }.object();
    let pool = |lvols, underway: &[Underway]| first(stand(vec![open_store("8Gi", "0")], lvols, underway));
    let empty = pool(vec![], &[]);
    assert_eq!((empty.pool.free, empty.pool.largest, empty.pool.open), (8 * GIB, 9 * GIB, true));
    assert_eq!(pool(vec![made(thick(1, GIB), "1Gi")], &[]).pool.free, 8 * GIB, "the store knows of it");
    assert_eq!(pool(vec![thick(1, GIB)], &[]).pool.free, 7 * GIB);
    assert_eq!(pool(vec![made(thick(1, 3 * GIB), "1Gi")], &[]).pool.free, 6 * GIB, "it has still to grow");
    assert_eq!(pool(vec![lvol(1, GIB).object()], &[]).pool.free, 8 * GIB - (1 << 20), "thin: one cluster");
    let underway = |id| Underway { lvol: Uuid::from_u128(id), lvstore: STORE, size: GIB, takes: GIB };
    assert_eq!(pool(vec![thick(1, GIB)], &[underway(1), underway(2)]).pool.free, 6 * GIB, "1 is counted once");
    let elsewhere = Underway { lvstore: Uuid::from_u128(0xb), ..underway(3) };
    assert_eq!(pool(vec![], &[elsewhere]).pool.free, 8 * GIB);
    assert_eq!(pool(vec![thick(1, 20 * GIB)], &[]).pool.free, 0);
}

#[test]
fn no_more_is_promised_than_allowed() {
    let limited = |committed: &str| {
        let mut store = open_store("8Gi", committed);
        store.spec.overprovision_percent = Some(200);
        store
    };
    let lvols = || vec![made(lvol(1, 12 * GIB).object(), "12Gi")];
    let standing = first(stand(vec![limited("0")], lvols(), &[]));
    assert_eq!((standing.allowed, standing.pool.free, standing.pool.committed), (8 * GIB, 8 * GIB, 12 * GIB));
    let more = first(stand(vec![limited("15Gi")], lvols(), &[]));
    assert_eq!((more.allowed, more.pool.free), (5 * GIB, 5 * GIB), "the node knows of lvols without an object");
    let full = more.admit(What::Volume, 6 * GIB, 0);
    assert!(matches!(full, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace));
    assert!(more.admit(What::Volume, 5 * GIB, 0).is_ok());
    let unlimited = first(stand(vec![open_store("8Gi", "90Gi")], vec![], &[]));
    assert!(unlimited.admit(What::Volume, 9 * GIB, 1 << 20).is_ok());
    assert!(unlimited.admit(What::Volume, 9 * GIB, 9 * GIB).is_err(), "thick");
}

#[test]
fn which_lvstores_take_volumes() {
    let open = |store: Lvstore| first(stand(vec![store], vec![], &[]));
    let mut cordoned = open_store("8Gi", "0");
    cordoned.spec.unschedulable = true;
    let cordoned = open(cordoned);
    assert_eq!((cordoned.shut.as_ref(), cordoned.pool.open), (Some(&Shut::Cordoned), false));
    assert!(matches!(cordoned.admit(What::Volume, 1, 1), Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace));
    assert!(cordoned.admit(What::Snapshot, 1, 0).is_ok() && cordoned.admit(What::Growth, 1, 0).is_ok());
    for bad in ["Failing", "Lost", "Foreign"] {
        let conditions = [condition("Ready", true, "Open", 1), condition(bad, true, "DeviceFailed", 1)];
        let store = open(lvstore(json!({ "uuid": STORE, "conditions": conditions })));
        assert!(matches!(store.admit(What::Snapshot, 1, 0), Err(Error::MayExist(_))), "{bad}");
        // The scheduler is to try another node, unless it may be over in a moment.
        let elsewhere =
            matches!(store.admit(What::Volume, 1, 0), Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace);
        assert_eq!(elsewhere, bad != "Failing", "{bad}");
    }
    assert!(!open(lvstore(json!({ "uuid": STORE }))).pool.open, "not seen yet");
    let unmade = open(lvstore(json!({ "conditions": [condition("Ready", true, "Open", 1)] })));
    assert!(!unmade.pool.open && unmade.uuid.is_none());
    for silent in [NodeState::Silent, NodeState::Gone] {
        let all = standings(&[Arc::new(open_store("8Gi", "0"))], &[], |_| silent, &[]);
        assert!(!first(all).pool.open);
    }
    // Its object was deleted, the volume is still where it is.
    let forgotten = first(stand(vec![], vec![lvol(1, GIB).object()], &[]));
    assert_eq!((forgotten.pool.node.as_str(), forgotten.pool.name.as_str(), forgotten.pool.open), ("a", "fast", false));
}

#[test]
fn nodes() {
    let of = |status: &str| -> Node {
        serde_json::from_value(json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } }))
            .expect("a node")
    };
    assert_eq!(node_state(None), NodeState::Gone);
    assert_eq!(node_state(Some(&of("True"))), NodeState::Ready);
    assert_eq!(node_state(Some(&of("Unknown"))), NodeState::Silent);
    assert_eq!(node_state(Some(&Node::default())), NodeState::Silent);
}

#[test]
fn only_our_finalizer_is_taken() {
    let mut object = lvol(1, GIB).object();
    assert_eq!(without_finalizer(&object), None);
    object.metadata.finalizers = Some(vec!["other".into(), coppice_kube_api::FINALIZER.into()]);
    assert_eq!(without_finalizer(&object), Some(vec!["other".into()]));
}

#[test]
fn who_has_no_owner() {
    let now = jiff::Timestamp::from_second(1_767_225_600 + 7200).expect("a time");
    let of = |mut object: Lvol, second| {
        let time = jiff::Timestamp::from_second(second).expect("a time");
        object.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(time));
        object
    };
    let old = 1_767_225_600;
    let nobody = Owners::default();
    assert_eq!(verdict(&of(lvol(1, GIB).object(), old), &nobody, now), Some(Verdict::NeverUsed));
    assert_eq!(verdict(&of(lvol(1, GIB).object(), old + 7000), &nobody, now), None, "it is young");
    assert_eq!(verdict(&of(made(lvol(1, GIB).object(), "1Gi"), old), &nobody, now), Some(Verdict::MayBeUsed));
    let mut adopted = lvol(1, GIB).object();
    adopted.spec.adopted = true;
    assert_eq!(verdict(&of(adopted, old), &nobody, now), Some(Verdict::MayBeUsed));
    let named = Owners { names: ["pvc-1".to_string()].into(), ..Owners::default() };
    let handled = Owners { handles: [Uuid::from_u128(1).to_string()].into(), ..Owners::default() };
    for owners in [named, handled] {
        assert_eq!(verdict(&of(lvol(1, GIB).object(), old), &owners, now), None);
    }
    let mut leaving = of(lvol(1, GIB).object(), old);
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    leaving.spec.reclaim = Some(Reclaim::Delete);
    assert_eq!(verdict(&leaving, &nobody, now), None);
}
