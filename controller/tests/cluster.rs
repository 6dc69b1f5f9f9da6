//! The operations over the objects of an API server, with agents that only say that lvols are there.

use anyhow::{Context, Result, bail};
use coppice_controller::kube::KubeBackend;
use coppice_controller::volume::{CreateSnapshot, CreateVolume, Error, Parameters, Range, SourceId, Volume, Volumes};
use coppice_engine::ErrorKind;
use coppice_fake_api::agent::{self, Drive};
use coppice_fake_api::{Api, text};
use coppice_kube_api::{Lvol, Lvstore, Orphan};
use coppice_proto::capability::{Access, Capability, Mode, TOPOLOGY_NODE};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const MIB: u64 = 1 << 20;
const CAPACITY: u64 = 100 * MIB;

fn store_of(node: &str) -> Uuid {
    Uuid::from_u128(u128::from_be_bytes(*b"store---of------") + u128::from(node.as_bytes()[0]))
}

fn add_node(api: &Api, node: &str) {
    let ready = json!([{ "type": "Ready", "status": "True" }]);
    api.put(
        "nodes",
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node },
        "spec": {}, "status": { "conditions": ready } }),
    );
    let ready = json!([{ "type": "Ready", "status": "True", "reason": "Open", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
    api.put("lvstores", json!({ "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore",
        "metadata": { "name": format!("{node}-fast") },
        "spec": { "node": node, "name": "fast", "device": "fast.img", "fileSize": "1Gi", "unschedulable": false },
        "status": { "uuid": store_of(node), "clusterSize": "64Ki", "conditions": ready,
            "space": { "total": "1Gi", "free": "1Gi", "committed": "0", "metadata": "1Mi", "metadataFree": "512Ki" } } }));
}

async fn controller(api: &Api) -> Arc<Volumes> {
    let backend = Arc::new(KubeBackend::start(api.client()));
    backend.synced().await;
    Arc::new(Volumes::new(backend))
}

fn volume(name: &str, mib: u64) -> CreateVolume {
    CreateVolume {
        name: name.into(),
        range: Range { required: mib * MIB, limit: 0 },
        capabilities: vec![Capability { access: Access::Block, mode: Mode::Writer }],
        ..CreateVolume::default()
    }
}

fn on(node: &str) -> Vec<BTreeMap<String, String>> {
    vec![[(TOPOLOGY_NODE.to_string(), node.to_string())].into()]
}

async fn eventually(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    for _ in 0..2000 {
        if holds() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bail!("never: {what}")
}

#[tokio::test]
async fn the_life_of_a_volume() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let drive = Drive::default();
    let _agent = agent::start(api.clone(), "a", drive.clone(), CAPACITY);
    let volumes = controller(&api).await;

    let request = CreateVolume {
        parameters: Parameters { export: Some("fuse".into()), ..Parameters::default() },
        claim: Some("default/data".into()),
        range: Range { required: MIB + 1, limit: 0 },
        ..volume("pvc-1", 0)
    };
    let made = volumes.create(request.clone()).await?;
    assert_eq!((made.capacity, made.node.as_str()), (MIB + 1, "a"), "what was asked, not what clusters make of it");
    let object = api.get("lvols", "pvc-1").context("the object")?;
    assert_eq!(text(&object, "/metadata/annotations/coppice.io~1pvc"), "default/data");
    assert_eq!(text(&object, "/metadata/labels/coppice.io~1lvstore"), "fast");
    assert_eq!(volumes.create(request).await?, made, "asked again");
    assert!(matches!(volumes.create(volume("pvc-1", 9)).await, Err(Error::Exists(_))));

    let take =
        CreateSnapshot { name: "snapshot-1".into(), volume_id: made.id.to_string(), ..CreateSnapshot::default() };
    let snapshot = volumes.create_snapshot(take.clone()).await?;
    assert_eq!((snapshot.size, snapshot.created_nanos), (MIB + 1, 1_767_225_600_000_000_000));
    assert_eq!(volumes.create_snapshot(take).await?, snapshot);
    let clone = CreateVolume { source: Some(SourceId::Snapshot(snapshot.id.to_string())), ..volume("pvc-2", 2) };
    let clone = volumes.create(clone).await?;
    assert_eq!((clone.capacity, clone.node.as_str()), (2 * MIB, "a"));
    let away =
        CreateVolume { source: Some(SourceId::Volume(made.id.to_string())), requisite: on("b"), ..volume("pvc-3", 2) };
    assert!(matches!(volumes.create(away).await, Err(Error::NoSpace(_))), "elsewhere than its source");

    let grown = volumes.expand(&clone.id.to_string(), Range { required: 5 * MIB, limit: 0 }, None).await?;
    assert_eq!(grown.capacity, 5 * MIB);
    let full = volumes.expand(&clone.id.to_string(), Range { required: 500 * MIB, limit: 0 }, None).await;
    assert!(matches!(&full, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace), "{full:?}");
    assert_eq!(text(&api.get("lvols", "pvc-2").context("the clone")?, "/spec/size"), "5Mi", "taken back");
    let never = volumes.expand(&clone.id.to_string(), Range { required: 5000 * MIB, limit: 0 }, None).await;
    assert!(matches!(never, Err(Error::OutOfRange(_))), "{never:?}");
    assert_eq!(
        volumes.expand(&clone.id.to_string(), Range { required: 6 * MIB, limit: 0 }, None).await?.capacity,
        6 * MIB
    );

    volumes.delete(&made.id.to_string()).await?;
    assert!(api.get("lvols", "pvc-1").is_none() && !drive.has(&made.id.to_string()));
    volumes.delete_snapshot(&snapshot.id.to_string()).await?;
    volumes.delete(&clone.id.to_string()).await?;
    volumes.delete(&clone.id.to_string()).await?;
    assert!(api.all("lvols").is_empty() && drive.lvols.lock().is_ok_and(|lvols| lvols.is_empty()));
    Ok(())
}

#[tokio::test]
async fn replicas_that_create_at_once_make_one_lvol() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    add_node(&api, "b");
    let (a, b) = (Drive::default(), Drive::default());
    let _agents =
        [agent::start(api.clone(), "a", a.clone(), CAPACITY), agent::start(api.clone(), "b", b.clone(), CAPACITY)];
    let (one, two) = (controller(&api).await, controller(&api).await);
    for round in 0..20 {
        let request = volume(&format!("pvc-{round}"), 1);
        let (first, second) = tokio::join!(one.create(request.clone()), two.create(request));
        assert_eq!(first?, second?, "round {round}");
    }
    let both: usize = [a, b].iter().map(|drive| drive.lvols.lock().map_or(0, |lvols| lvols.len())).sum();
    assert_eq!((both, api.all("lvols").len()), (20, 20));
    Ok(())
}

#[tokio::test]
async fn thin_volumes_are_spread_and_thick_ones_never_promise_too_much() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    add_node(&api, "b");
    let _agents = ["a", "b"].map(|node| agent::start(api.clone(), node, Drive::default(), 2000 * MIB));
    let volumes = controller(&api).await;
    let mut made: Vec<Volume> = Vec::new();
    for i in 0..10 {
        made.push(volumes.create(volume(&format!("thin-{i}"), 10)).await?);
    }
    assert_eq!(made.iter().filter(|volume| volume.node == "a").count(), 5);
    // Nobody has made them yet: the store's own accounts do not know of them.
    let thick = |name: String| CreateVolume {
        parameters: Parameters { thick: true, ..Parameters::default() },
        requisite: on("a"),
        ..volume(&name, 300)
    };
    let calls = (0..6).map(|i| {
        let (volumes, request) = (volumes.clone(), thick(format!("thick-{i}")));
        tokio::spawn(async move { volumes.create(request).await })
    });
    let mut room = 0;
    for call in calls.collect::<Vec<_>>() {
        room += usize::from(call.await?.is_ok());
    }
    assert!(room >= 1, "some fit");
    Ok(())
}

#[tokio::test]
async fn a_killed_controller_is_succeeded_by_any_other() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let first = controller(&api).await;
    let cut = tokio::spawn(async move { first.create(volume("pvc-1", 1)).await });
    eventually("the object is written", || api.get("lvols", "pvc-1").is_some()).await?;
    cut.abort();
    let uuid = text(&api.get("lvols", "pvc-1").context("the object")?, "/spec/lvolUUID");
    let second = controller(&api).await;
    let _agent = agent::start(api.clone(), "a", Drive::default(), CAPACITY);
    let made = second.create(volume("pvc-1", 1)).await?;
    assert_eq!(made.id.to_string(), uuid, "the lvol that the first one chose");
    Ok(())
}

#[tokio::test]
async fn where_there_is_no_room_nothing_is_left_and_another_node_is_tried() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let drive = Drive::default();
    let _agent = agent::start(api.clone(), "a", drive.clone(), MIB);
    let volumes = controller(&api).await;
    let full = volumes.create(volume("pvc-1", 2)).await;
    assert!(matches!(&full, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace), "{full:?}");
    assert!(api.all("lvols").is_empty());
    add_node(&api, "b");
    let _other = agent::start(api.clone(), "b", Drive::default(), CAPACITY);
    let mut made = volumes.create(volume("pvc-1", 2)).await;
    for _ in 0..100 {
        if made.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        made = volumes.create(volume("pvc-1", 2)).await;
    }
    assert_eq!(made?.node, "b");
    assert_eq!(api.all("lvols").len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_volume_that_is_wanted_elsewhere_is_made_there_unless_somebody_has_it() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    add_node(&api, "b");
    let _agents = ["a", "b"].map(|node| agent::start(api.clone(), node, Drive::default(), CAPACITY));
    let volumes = controller(&api).await;
    let first = volumes.create(CreateVolume { requisite: on("a"), ..volume("pvc-1", 1) }).await?;
    let second = volumes.create(CreateVolume { requisite: on("b"), ..volume("pvc-1", 1) }).await?;
    assert_eq!((first.node.as_str(), second.node.as_str()), ("a", "b"));
    assert_ne!(first.id, second.id);
    api.put(
        "persistentvolumes",
        json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": "pvc-1" } }),
    );
    let third = volumes.create(CreateVolume { requisite: on("a"), ..volume("pvc-1", 1) }).await?;
    assert_eq!(third, second, "the volume's own node is answered");
    Ok(())
}

#[tokio::test]
async fn a_volume_of_a_node_that_is_gone_leaves_a_tombstone() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let drive = Drive::default();
    let agent = agent::start(api.clone(), "a", drive.clone(), CAPACITY);
    let volumes = controller(&api).await;
    let made = volumes.create(volume("pvc-1", 1)).await?;
    agent.abort();
    api.remove("nodes", "a");
    volumes.delete(&made.id.to_string()).await?;
    assert!(api.all("lvols").is_empty() && drive.has(&made.id.to_string()), "the drive keeps it for now");
    let lvstore = api.get("lvstores", "a-fast").context("the lvstore")?;
    assert_eq!(text(&lvstore, "/status/tombstones/0/lvolUUID"), made.id.to_string());
    assert_eq!(text(&lvstore, "/status/tombstones/0/lvstoreUUID"), store_of("a").to_string());
    let refused = volumes.create(volume("pvc-2", 1)).await;
    assert!(matches!(refused, Err(Error::MayExist(_))), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_volume_in_use_stays() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let _agent = agent::start(api.clone(), "a", Drive::default(), CAPACITY);
    let volumes = controller(&api).await;
    let made = volumes.create(volume("pvc-1", 1)).await?;
    let used = json!({ "status": { "exports": [{ "kind": "fuse", "device": "/dev/loop7" }] } });
    assert!(api.patch("lvols", "pvc-1", &used, true).is_ok());
    tokio::time::sleep(Duration::from_millis(50)).await;
    let refused = volumes.delete(&made.id.to_string()).await;
    assert!(matches!(&refused, Err(Error::Engine(e)) if e.kind() == ErrorKind::Busy), "{refused:?}");
    assert!(api.get("lvols", "pvc-1").is_some_and(|object| object["spec"]["reclaim"].is_null()));
    assert!(api.patch("lvols", "pvc-1", &json!({ "status": { "exports": [] } }), true).is_ok());
    volumes.delete(&made.id.to_string()).await?;
    Ok(())
}

/// All Lvol objects were deleted by hand, and made again from what the drive knows: what refers to the lvols finds them, retries
/// of the requests make nothing new, and a deletion removes the bytes.
#[tokio::test]
async fn adopted_objects_are_as_good_as_the_first() -> Result<()> {
    let api = Api::new();
    add_node(&api, "a");
    let drive = Drive::default();
    let _agent = agent::start(api.clone(), "a", drive.clone(), CAPACITY);
    let volumes = controller(&api).await;
    let request = CreateVolume { claim: Some("default/data".into()), ..volume("pvc-1", 4) };
    let made = volumes.create(request.clone()).await?;
    let take =
        CreateSnapshot { name: "snapshot-1".into(), volume_id: made.id.to_string(), ..CreateSnapshot::default() };
    let snapshot = volumes.create_snapshot(take.clone()).await?;
    let copied = CreateVolume { source: Some(SourceId::Snapshot(snapshot.id.to_string())), ..volume("pvc-2", 4) };
    let clone = volumes.create(copied.clone()).await?;

    let before = api.all("lvols");
    for object in &before {
        api.remove("lvols", &text(object, "/metadata/name"));
    }
    eventually("the objects are gone", || api.all("lvols").is_empty()).await?;
    for id in [made.id, snapshot.id, clone.id] {
        assert!(drive.has(&id.to_string()), "the drive keeps what nobody asked to remove");
    }
    let gone = volumes.expand(&made.id.to_string(), Range { required: 8 * MIB, limit: 0 }, None).await;
    assert!(matches!(gone, Err(Error::NotFound(_))), "{gone:?}");

    let store: Lvstore = serde_json::from_value(api.get("lvstores", "a-fast").context("the lvstore")?)?;
    for object in &before {
        let lvol: Lvol = serde_json::from_value(object.clone())?;
        let orphan: Orphan = serde_json::from_value(json!({
            "lvolUUID": lvol.spec.lvol_uuid, "name": lvol.metadata.name, "kind": lvol.spec.kind, "size": lvol.spec.size,
            "provisioning": lvol.spec.provisioning, "requestName": lvol.spec.request_name, "sourceUUID": lvol.spec.source_uuid,
            "sourceKind": lvol.spec.source_kind, "annotations": lvol.metadata.annotations.iter().flatten()
                .map(|(key, value)| json!({ "key": key, "value": value })).collect::<Vec<_>>(),
        }))?;
        let adopted = orphan.object(&store).context("an object")?;
        assert_eq!(adopted.metadata.name, lvol.metadata.name);
        api.put("lvols", serde_json::to_value(adopted)?);
    }
    eventually("the agent has seen them", || {
        api.all("lvols").iter().all(|object| !text(object, "/status/created").is_empty())
    })
    .await?;
    // The controller's own cache is not behind for long.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(volumes.create(request).await?, made, "a retry finds it");
    assert_eq!(volumes.create_snapshot(take).await?.id, snapshot.id);
    assert_eq!(volumes.create(copied).await?.id, clone.id);
    let grown = volumes.expand(&made.id.to_string(), Range { required: 8 * MIB, limit: 0 }, None).await?;
    assert_eq!(grown.capacity, 8 * MIB);
    let of_clone =
        CreateSnapshot { name: "snapshot-2".into(), volume_id: clone.id.to_string(), ..CreateSnapshot::default() };
    let second = volumes.create_snapshot(of_clone).await?;
    for volume in [made.id, clone.id] {
        volumes.delete(&volume.to_string()).await?;
    }
    for snapshot in [snapshot.id, second.id] {
        volumes.delete_snapshot(&snapshot.to_string()).await?;
    }
    assert!(
        api.all("lvols").is_empty() && drive.lvols.lock().is_ok_and(|lvols| lvols.is_empty()),
        "every byte is gone"
    );
    Ok(())
}

/// What the agent of the node would say of a lvol that still reads from another.
fn depend(api: &Api, name: &str, depends: bool) {
    let condition = |kind: &str, holds: bool, reason: &str| {
        json!({ "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z" })
    };
    let hydration = if depends { json!({ "total": "4Mi", "remaining": "1Mi" }) } else { json!(null) };
    let dependent = condition("Dependent", depends, if depends { "Hydrating" } else { "Hydrated" });
    let conditions = json!([condition("Ready", true, "Available"), dependent]);
    let status = json!({ "status": { "conditions": conditions, "hydration": hydration } });
    assert!(api.patch("lvols", name, &status, true).is_ok(), "{name}");
}

/// A volume and a snapshot of it on a, and a node b.
async fn two_nodes(api: &Api) -> Result<(Arc<Volumes>, Volume, Uuid)> {
    add_node(api, "a");
    add_node(api, "b");
    let volumes = controller(api).await;
    let made = volumes.create(CreateVolume { requisite: on("a"), ..volume("pvc-1", 4) }).await?;
    let take =
        CreateSnapshot { name: "snapshot-1".into(), volume_id: made.id.to_string(), ..CreateSnapshot::default() };
    let snapshot = volumes.create_snapshot(take).await?.id;
    Ok((volumes, made, snapshot))
}

#[tokio::test]
async fn a_copy_is_where_it_is_wanted_and_with_its_source_if_nobody_says() -> Result<()> {
    let api = Api::new();
    let _agents = ["a", "b"].map(|node| agent::start(api.clone(), node, Drive::default(), CAPACITY));
    let (volumes, made, snapshot) = two_nodes(&api).await?;
    let from_snapshot =
        |name: &str| CreateVolume { source: Some(SourceId::Snapshot(snapshot.to_string())), ..volume(name, 4) };
    let from_volume =
        |name: &str| CreateVolume { source: Some(SourceId::Volume(made.id.to_string())), ..volume(name, 4) };
    let home = volumes.create(from_snapshot("pvc-2")).await?;
    assert_eq!(home.node, "a", "an instant clone");
    let object = api.get("lvols", "pvc-2").context("the object")?;
    assert!(object["spec"]["sourceLvstoreUUID"].is_null() && object["spec"]["restore"].is_null(), "{object}");

    let there = CreateVolume { requisite: on("b"), ..from_snapshot("pvc-3") };
    let away = volumes.create(there.clone()).await?;
    assert_eq!((away.node.as_str(), away.capacity), ("b", 4 * MIB));
    let spec = api.get("lvols", "pvc-3").context("the object")?["spec"].clone();
    assert_eq!((text(&spec, "/sourceUUID"), text(&spec, "/sourceKind")), (snapshot.to_string(), "Snapshot".into()));
    assert_eq!((text(&spec, "/sourceNode"), text(&spec, "/node")), ("a".into(), "b".into()));
    assert_eq!(text(&spec, "/sourceLvstoreUUID"), store_of("a").to_string());
    assert_eq!((text(&spec, "/sourceSnapshotUUID"), text(&spec, "/restore")), (snapshot.to_string(), "Lazy".into()));
    assert_eq!(volumes.create(there).await?, away, "asked again");

    // Of a volume: a snapshot that nobody sees, and that goes.
    let there = CreateVolume { requisite: on("b"), ..from_volume("pvc-4") };
    let copy = volumes.create(there.clone()).await?;
    assert_eq!(copy.node, "b");
    let spec = api.get("lvols", "pvc-4").context("the object")?["spec"].clone();
    assert_eq!((text(&spec, "/sourceUUID"), text(&spec, "/sourceKind")), (made.id.to_string(), "Volume".into()));
    assert_ne!(text(&spec, "/sourceSnapshotUUID"), made.id.to_string());
    assert_eq!(volumes.create(there).await?, copy, "asked again");
    assert_eq!(api.all("lvols").len(), 5, "the snapshot between is gone");
    assert_eq!(volumes.list_snapshots(0, "", "", "").await?.entries.len(), 1);
    let other = CreateVolume { requisite: on("b"), ..from_snapshot("pvc-4") };
    assert!(matches!(volumes.create(other).await, Err(Error::Exists(_))), "another source");
    Ok(())
}

/// Killed between the snapshot and the volume: the retry goes on from it; without a retry it goes.
#[tokio::test]
async fn a_copy_of_a_volume_goes_on_from_its_snapshot() -> Result<()> {
    let api = Api::new();
    let _a = agent::start(api.clone(), "a", Drive::default(), CAPACITY);
    let (volumes, made, _) = two_nodes(&api).await?;
    let there =
        CreateVolume { source: Some(SourceId::Volume(made.id.to_string())), requisite: on("b"), ..volume("pvc-2", 4) };
    let (first, request) = (volumes.clone(), there.clone());
    let cut = tokio::spawn(async move { first.create(request).await });
    eventually("the volume's object is written", || api.get("lvols", "pvc-2").is_some()).await?;
    cut.abort();
    let between = || api.all("lvols").into_iter().find(|object| !text(object, "/spec/cloneFor").is_empty());
    let snapshot = text(&between().context("the snapshot")?, "/spec/lvolUUID");
    assert_eq!(text(&between().context("the snapshot")?, "/spec/cloneFor"), "pvc-2");
    assert!(matches!(volumes.get_snapshot(&snapshot).await, Err(Error::NotFound(_))), "CSI does not see it");
    let _b = agent::start(api.clone(), "b", Drive::default(), CAPACITY);
    let copy = controller(&api).await.create(there).await?;
    assert_eq!(copy.node, "b");
    assert_eq!(text(&api.get("lvols", "pvc-2").context("it")?, "/spec/sourceSnapshotUUID"), snapshot);
    Ok(())
}

#[tokio::test]
async fn a_source_that_cannot_be_read_elsewhere_is_refused_with_the_right_word() -> Result<()> {
    let api = Api::new();
    let _agents = ["a", "b"].map(|node| agent::start(api.clone(), node, Drive::default(), CAPACITY));
    let (volumes, _, snapshot) = two_nodes(&api).await?;
    let there = |name: &str| CreateVolume {
        source: Some(SourceId::Snapshot(snapshot.to_string())),
        requisite: on("b"),
        ..volume(name, 4)
    };
    let ask = async |name: &str| {
        // The controller's cache sees what was just changed a moment later.
        tokio::time::sleep(Duration::from_millis(50)).await;
        volumes.create(there(name)).await
    };
    depend(&api, "snapshot-1", true);
    let refused = ask("pvc-2").await;
    assert!(matches!(refused, Err(Error::NotYet(_))), "no chains of three nodes: {refused:?}");
    depend(&api, "snapshot-1", false);
    let node = |status: &str| {
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "a" }, "spec": {},
            "status": { "conditions": [{ "type": "Ready", "status": status }] } })
    };
    api.put("nodes", node("Unknown"));
    let refused = ask("pvc-2").await;
    assert!(matches!(&refused, Err(Error::MayExist(why)) if why.contains("node a")), "{refused:?}");
    api.put("nodes", node("True"));
    let lost = json!([{ "type": "Lost", "status": "True", "reason": "LvstoreLost", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
    assert!(api.patch("lvols", "snapshot-1", &json!({ "status": { "conditions": lost } }), true).is_ok());
    let refused = ask("pvc-2").await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    api.remove("nodes", "a");
    let refused = ask("pvc-2").await;
    assert!(matches!(refused, Err(Error::NotFound(_))), "{refused:?}");
    assert!(api.get("lvols", "pvc-2").is_none(), "nothing was left");
    Ok(())
}

#[tokio::test]
async fn eager_waits_for_all_the_data() -> Result<()> {
    let api = Api::new();
    let _agents = ["a", "b"].map(|node| agent::start(api.clone(), node, Drive::default(), CAPACITY));
    let (volumes, _, snapshot) = two_nodes(&api).await?;
    let request = CreateVolume {
        source: Some(SourceId::Snapshot(snapshot.to_string())),
        parameters: Parameters { restore: Some("eager".into()), ..Parameters::default() },
        requisite: on("b"),
        ..volume("pvc-2", 4)
    };
    // The agent's first word may be that it is there, so it has to say in the same breath that it depends.
    let first = volumes.create(request.clone()).await?;
    assert_eq!(text(&api.get("lvols", "pvc-2").context("it")?, "/spec/restore"), "Eager");
    depend(&api, "pvc-2", true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let (waiting, again) = (volumes.clone(), request.clone());
    let waits = tokio::spawn(async move { waiting.create(again).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waits.is_finished(), "it was answered before all data was there");
    depend(&api, "pvc-2", false);
    assert_eq!(waits.await??, first);
    Ok(())
}

/// B has no room: nothing is left on either node, and the word is the one that lets the scheduler try another.
#[tokio::test]
async fn no_room_elsewhere_leaves_nothing() -> Result<()> {
    let api = Api::new();
    let _a = agent::start(api.clone(), "a", Drive::default(), CAPACITY);
    let _b = agent::start(api.clone(), "b", Drive::default(), MIB);
    let (volumes, made, _) = two_nodes(&api).await?;
    let there =
        CreateVolume { source: Some(SourceId::Volume(made.id.to_string())), requisite: on("b"), ..volume("pvc-2", 4) };
    let full = volumes.create(there).await;
    assert!(matches!(&full, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace), "{full:?}");
    assert_eq!(api.all("lvols").len(), 2, "the volume and its snapshot");
    Ok(())
}
