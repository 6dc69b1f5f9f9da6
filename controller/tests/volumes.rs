//! The operations over the real engine, on lvstores in temporary files.

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use coppice_controller::local::{LocalBackend, Quiesce};
use coppice_controller::volume::{
    Consistency, CreateSnapshot, CreateVolume, Error, Parameters, Range, SourceId, Volumes,
};
use coppice_engine::{CreateStore, Engine, EngineConfig, ErrorKind, LvolInfo, LvolState, OpenStore, Store};
use coppice_proto::attributes;
use coppice_proto::capability::{Access, Capability, Mode};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// Volumes that nothing has mounted need no quiescing.
struct Unmounted;

#[async_trait]
impl Quiesce for Unmounted {
    async fn before_snapshot(&self, _: uuid::Uuid, _: Consistency) -> coppice_controller::volume::Result<()> {
        Ok(())
    }
    async fn after_snapshot(&self, _: uuid::Uuid, _: Consistency) -> coppice_controller::volume::Result<()> {
        Ok(())
    }
}

struct Bench {
    volumes: Volumes,
    stores: Vec<Store>,
    _engine: Engine,
    _dir: TempDir,
}

async fn bench(sizes: &[(&str, u64)]) -> Result<Bench> {
    let dir = tempfile::tempdir()?;
    let engine = Engine::start(EngineConfig::default())?;
    let mut stores = Vec::new();
    for (name, size) in sizes {
        let path = dir.path().join(name);
        let how = CreateStore {
            file_size: Some(*size),
            name: name.to_string(),
            cluster_size: Some(64 << 10),
            max_size: None,
            block_size: None,
            force: false,
            owner: None,
        };
        engine.create_store(&path, how).await?;
        stores.push(engine.open_store(&path, OpenStore::default()).await?);
    }
    let backend = LocalBackend::new(stores.clone().into(), "node-1".into(), Arc::new(Unmounted));
    Ok(Bench { volumes: Volumes::new(Arc::new(backend)), stores, _engine: engine, _dir: dir })
}

impl Bench {
    fn store(&self) -> Result<&Store> {
        self.stores.first().context("a store")
    }

    async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        Ok(self.store()?.lvols().await?)
    }

    async fn hidden(&self) -> Result<Vec<LvolInfo>> {
        Ok(self.lvols().await?.into_iter().filter(|lvol| lvol.state == LvolState::Hidden).collect())
    }

    /// The store is sound, whatever was done to it.
    async fn checked(&self) -> Result<()> {
        for store in self.stores.iter() {
            let findings = store.check().await?;
            if !findings.is_empty() {
                bail!("{findings:?}");
            }
        }
        Ok(())
    }
}

/// Waits for what the engine reclaims in the background.
async fn gone(store: &Store, lvol: uuid::Uuid) -> Result<()> {
    let began = Instant::now();
    while store.lvol(lvol).await.is_ok() {
        if began.elapsed() > Duration::from_secs(10) {
            bail!("{lvol} is still there: {:?}", store.lvol(lvol).await);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn block() -> Vec<Capability> {
    vec![Capability { access: Access::Block, mode: Mode::Writer }]
}

fn mount(fs_type: &str) -> Vec<Capability> {
    vec![Capability { access: Access::Mount { fs_type: fs_type.into(), flags: vec![] }, mode: Mode::Writer }]
}

fn volume(name: &str, required: u64) -> CreateVolume {
    let range = Range { required, limit: 0 };
    CreateVolume { name: name.into(), range, capabilities: block(), ..CreateVolume::default() }
}

fn from_snapshot(name: &str, required: u64, id: impl ToString) -> CreateVolume {
    CreateVolume { source: Some(SourceId::Snapshot(id.to_string())), ..volume(name, required) }
}

fn from_volume(name: &str, required: u64, id: impl ToString) -> CreateVolume {
    CreateVolume { source: Some(SourceId::Volume(id.to_string())), ..volume(name, required) }
}

fn snapshot(name: &str, of: impl ToString) -> CreateSnapshot {
    CreateSnapshot { name: name.into(), volume_id: of.to_string(), ..CreateSnapshot::default() }
}

#[tokio::test]
async fn the_same_request_gives_the_same_volume_and_another_one_is_refused() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    // Not a multiple of the cluster: reported as asked, rounded up inside.
    let asked = 10 * MIB + 1;
    let first = b.volumes.create(volume("pvc-1", asked)).await?;
    assert_eq!(first.capacity, asked);
    assert_eq!(first.node, "node-1");
    assert_eq!(b.volumes.create(volume("pvc-1", asked)).await?, first);
    assert_eq!(b.volumes.create(volume("pvc-1", 1)).await?, first, "it is large enough");
    let lvol = b.store()?.lvol(first.id).await?;
    assert_eq!((lvol.name.as_str(), lvol.size % u64::from(lvol.cluster_size)), ("pvc-1", 0));
    assert!(lvol.size >= asked);

    let thick = Parameters { thick: true, ..Parameters::default() };
    let within = |limit| Range { required: 1, limit };
    let others = [
        volume("pvc-1", asked + 1),
        CreateVolume { range: within(asked - 1), ..volume("pvc-1", 0) },
        CreateVolume { parameters: thick, ..volume("pvc-1", asked) },
        from_snapshot("pvc-1", asked, uuid::Uuid::from_u128(1)),
        from_volume("pvc-1", asked, first.id),
    ];
    for other in others {
        let refused = b.volumes.create(other.clone()).await;
        assert!(matches!(refused, Err(Error::Exists(_))), "{other:?}: {refused:?}");
    }
    assert_eq!(b.lvols().await?.len(), 1);

    // Many at once: one volume.
    let same = tokio::join!(
        b.volumes.create(volume("pvc-2", asked)),
        b.volumes.create(volume("pvc-2", asked)),
        b.volumes.create(volume("pvc-2", asked)),
    );
    let ids = [same.0?.id, same.1?.id, same.2?.id];
    assert_eq!(ids, [ids[0]; 3]);
    b.checked().await
}

#[tokio::test]
async fn names_do_not_get_in_each_others_way() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    let long = "x".repeat(128);
    let first = b.volumes.create(volume(&long, MIB)).await?;
    assert_eq!(b.volumes.create(volume(&long, MIB)).await?.id, first.id);
    let almost = format!("{}y", "x".repeat(127));
    assert_ne!(b.volumes.create(volume(&almost, MIB)).await?.id, first.id);
    // A snapshot may be called as its volume is.
    let named = b.volumes.create(volume("same", MIB)).await?;
    let taken = b.volumes.create_snapshot(snapshot("same", named.id)).await?;
    assert_ne!(taken.id, named.id);
    assert_eq!(b.volumes.create_snapshot(snapshot("same", named.id)).await?.id, taken.id);
    // A lvol that a person made has the name already.
    let how = coppice_engine::CreateLvol { name: "hand".into(), size: MIB, ..Default::default() };
    let by_hand = b.store()?.create_lvol(how).await?;
    let by_csi = b.volumes.create(volume("hand", MIB)).await?;
    assert_ne!(by_csi.id, by_hand.uuid);
    b.checked().await
}

#[tokio::test]
async fn a_restore_has_the_content_and_at_least_the_size_of_its_source() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    let asked = 10 * MIB + 1;
    let source = b.volumes.create(volume("source", asked)).await?;
    let store = b.store()?;
    store.write(source.id, 4096, b"before".to_vec()).await?;
    let mark = (attributes::FS.to_string(), Some("ext4".to_string()));
    store.set_attributes(source.id, vec![mark]).await?;
    let taken = b.volumes.create_snapshot(snapshot("s", source.id)).await?;
    assert_eq!((taken.size, taken.volume_id.clone()), (asked, source.id.to_string()));
    assert!(taken.created_nanos > 0);
    store.write(source.id, 4096, b"after.".to_vec()).await?;

    let same = b.volumes.create(from_snapshot("same", asked, taken.id)).await?;
    assert_eq!(same.capacity, asked);
    assert_eq!(store.read(same.id, 4096, 6).await?, b"before");
    assert_eq!(b.volumes.create(from_snapshot("same", asked, taken.id)).await?, same);
    let smaller = b.volumes.create(from_snapshot("smaller", 1, taken.id)).await?;
    assert_eq!(smaller.capacity, asked, "the larger of the two");
    let larger = b.volumes.create(from_snapshot("larger", 20 * MIB, taken.id)).await?;
    assert_eq!((larger.capacity, store.lvol(larger.id).await?.size), (20 * MIB, 20 * MIB));
    let limited = CreateVolume { range: Range { required: 1, limit: asked - 1 }, ..from_snapshot("l", 1, taken.id) };
    assert!(matches!(b.volumes.create(limited).await, Err(Error::OutOfRange(_))));
    let fs = |lvol: &LvolInfo| lvol.attributes.get(attributes::FS).cloned();
    assert_eq!(fs(&store.lvol(larger.id).await?).as_deref(), Some("ext4"), "known to have a file system");
    let other_fs = CreateVolume { capabilities: mount("xfs"), ..from_snapshot("x", 1, taken.id) };
    assert!(matches!(b.volumes.create(other_fs).await, Err(Error::Invalid(_))));
    let absent = b.volumes.create(from_snapshot("absent", 1, uuid::Uuid::from_u128(9))).await;
    assert!(matches!(absent, Err(Error::NotFound(_))));
    let not_a_snapshot = b.volumes.create(from_snapshot("absent", 1, source.id)).await;
    assert!(matches!(not_a_snapshot, Err(Error::NotFound(_))));
    b.checked().await
}

#[tokio::test]
async fn a_clone_of_a_volume_hides_its_snapshot_and_resumes() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    let source = b.volumes.create(volume("source", 8 * MIB)).await?;
    let store = b.store()?;
    store.write(source.id, 0, b"content".to_vec()).await?;
    let clone = b.volumes.create(from_volume("clone", 16 * MIB, source.id)).await?;
    assert_eq!(clone.capacity, 16 * MIB);
    assert_eq!(store.read(clone.id, 0, 7).await?, b"content");
    assert_eq!(b.volumes.create(from_volume("clone", 16 * MIB, source.id)).await?, clone);
    assert_eq!(b.hidden().await?.len(), 1);
    assert!(b.volumes.list_snapshots(0, "", "", "").await?.entries.is_empty(), "hidden means not listed");
    assert_eq!(b.volumes.recover().await?, 0, "the snapshot is in use");

    // Killed between the snapshot and the clone: the retry goes on from it.
    let mut attributes = attributes::of_snapshot(source.id, &Default::default(), 8 * MIB);
    attributes.insert(attributes::CSI_CLONE_FOR.into(), "second".into());
    let cut_off = |uuid, attributes: &attributes::Attributes| coppice_engine::CreateSnapshot {
        lvol: source.id,
        name: format!(".clone-{uuid}"),
        uuid: Some(uuid),
        attributes: attributes.clone(),
        hidden: false,
    };
    let left = uuid::Uuid::new_v4();
    store.snapshot(vec![cut_off(left, &attributes)]).await?;
    let second = b.volumes.create(from_volume("second", 0, source.id)).await?;
    assert_eq!(store.lvol(second.id).await?.parent, Some(left));
    assert_eq!(b.hidden().await?.len(), 2);

    // Killed, and no retry comes: the next start removes it. What others read stays.
    attributes.insert(attributes::CSI_CLONE_FOR.into(), "never".into());
    let orphan = uuid::Uuid::new_v4();
    store.snapshot(vec![cut_off(orphan, &attributes)]).await?;
    assert_eq!(b.volumes.recover().await?, 1);
    assert_eq!(b.volumes.recover().await?, 0);
    gone(store, orphan).await?;
    assert_eq!(store.read(source.id, 0, 7).await?, b"content");
    assert_eq!(store.read(second.id, 0, 7).await?, b"content");

    // A clone for which there is no room leaves nothing, not even its snapshot.
    let thick = || Parameters { thick: true, ..Parameters::default() };
    let filler = b.volumes.create(CreateVolume { parameters: thick(), ..volume("filler", 150 * MIB) }).await?;
    let before = b.lvols().await?.len();
    let refused =
        b.volumes.create(CreateVolume { parameters: thick(), ..from_volume("big", 150 * MIB, source.id) }).await;
    assert!(matches!(&refused, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace), "{refused:?}");
    for lvol in
        b.lvols().await?.iter().filter(|lvol| lvol.attributes.get(attributes::CSI_CLONE_FOR) == Some(&"big".into()))
    {
        gone(store, lvol.uuid).await?;
    }
    assert_eq!(b.lvols().await?.len(), before);
    b.volumes.delete(&filler.id.to_string()).await?;

    // In any order of deletion, the last reader takes the hidden snapshots along.
    for id in [source.id, clone.id, second.id] {
        b.volumes.delete(&id.to_string()).await?;
    }
    for lvol in b.lvols().await? {
        gone(store, lvol.uuid).await?;
    }
    b.checked().await
}

#[tokio::test]
async fn deleted_means_gone() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    for id in ["nonsense", "", &uuid::Uuid::from_u128(3).to_string()] {
        b.volumes.delete(id).await?;
        b.volumes.delete_snapshot(id).await?;
    }
    let source = b.volumes.create(volume("source", 8 * MIB)).await?;
    b.store()?.write(source.id, 0, b"content".to_vec()).await?;
    let taken = b.volumes.create_snapshot(snapshot("s", source.id)).await?;
    let id = taken.id.to_string();
    b.volumes.delete(&id).await?;
    assert_eq!(b.volumes.get_snapshot(&id).await?, taken, "DeleteVolume of a snapshot's id deletes no snapshot");
    b.volumes.delete_snapshot(&source.id.to_string()).await?;
    b.volumes.get(&source.id.to_string()).await?;
    // Two readers: it cannot go at once, but for CSI it is gone.
    let clone = b.volumes.create(from_snapshot("clone", 0, taken.id)).await?;
    b.volumes.delete_snapshot(&id).await?;
    b.volumes.delete_snapshot(&id).await?;
    assert!(matches!(b.volumes.get_snapshot(&id).await, Err(Error::NotFound(_))));
    assert!(b.volumes.list_snapshots(0, "", "", "").await?.entries.is_empty());
    let again = b.volumes.create(from_snapshot("again", 0, taken.id)).await;
    assert!(matches!(again, Err(Error::NotFound(_))));
    let renewed = b.volumes.create_snapshot(snapshot("s", source.id)).await?;
    assert_ne!(renewed.id, taken.id, "its name is free");
    b.volumes.delete(&source.id.to_string()).await?;
    assert_eq!(b.store()?.read(clone.id, 0, 7).await?, b"content");
    let gone = b.volumes.create_snapshot(snapshot("late", source.id)).await;
    assert!(matches!(gone, Err(Error::NotFound(_))));
    assert_eq!(b.volumes.get_snapshot(&renewed.id.to_string()).await?.volume_id, source.id.to_string());
    b.checked().await
}

#[tokio::test]
async fn snapshots_are_idempotent_by_name() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    let one = b.volumes.create(volume("one", MIB)).await?;
    let two = b.volumes.create(volume("two", MIB)).await?;
    let first = b.volumes.create_snapshot(snapshot("s", one.id)).await?;
    assert_eq!(b.volumes.create_snapshot(snapshot("s", one.id)).await?, first);
    let other = b.volumes.create_snapshot(snapshot("s", two.id)).await;
    assert!(matches!(other, Err(Error::Exists(_))));
    let of_snapshot = b.volumes.create_snapshot(snapshot("t", first.id)).await;
    assert!(matches!(of_snapshot, Err(Error::NotFound(_))), "a snapshot is no volume");
    // Filters, and pages.
    for n in 0..4 {
        b.volumes.create_snapshot(snapshot(&format!("more-{n}"), two.id)).await?;
    }
    for (id, count) in [(one.id.to_string(), 1), (two.id.to_string(), 4), ("x".to_string(), 0)] {
        assert_eq!(b.volumes.list_snapshots(0, "", "", &id).await?.entries.len(), count, "{id}");
    }
    Ok(())
}

#[tokio::test]
async fn a_volume_grows_and_never_shrinks() -> Result<()> {
    let b = bench(&[("a", 256 * MIB)]).await?;
    let made = b.volumes.create(volume("v", 8 * MIB)).await?;
    let id = made.id.to_string();
    let to = |required, limit| Range { required, limit };
    let block = Capability { access: Access::Block, mode: Mode::Writer };
    let grown = b.volumes.expand(&id, to(16 * MIB + 1, 0), None).await?;
    assert_eq!((grown.capacity, grown.node_expansion_required), (16 * MIB + 1, true));
    assert_eq!(b.volumes.expand(&id, to(16 * MIB + 1, 0), None).await?, grown);
    let idle_block = b.volumes.expand(&id, to(20 * MIB, 0), Some(block)).await?;
    assert!(!idle_block.node_expansion_required, "nothing on the node uses it");
    assert_eq!(b.volumes.expand(&id, to(MIB, 0), None).await?.capacity, 20 * MIB);
    assert_eq!(b.volumes.get(&id).await?.capacity, 20 * MIB);
    assert!(matches!(b.volumes.expand(&id, to(MIB, 2 * MIB), None).await, Err(Error::OutOfRange(_))));
    assert!(matches!(b.volumes.expand(&id, to(1 << 50, 0), None).await, Err(Error::OutOfRange(_))));
    assert!(matches!(b.volumes.expand(&id, to(0, 0), None).await, Err(Error::Invalid(_))));
    assert!(matches!(b.volumes.expand("x", to(1, 0), None).await, Err(Error::NotFound(_))));
    b.checked().await
}

#[tokio::test]
async fn room_is_found_in_the_emptiest_store_or_refused() -> Result<()> {
    let b = bench(&[("small", 64 * MIB), ("large", 256 * MIB)]).await?;
    let thick = |name: &str, size: u64, lvstore: Option<&str>| CreateVolume {
        parameters: Parameters { thick: true, lvstore: lvstore.map(str::to_string), ..Parameters::default() },
        ..volume(name, size)
    };
    assert_eq!(b.volumes.create(thick("first", 100 * MIB, None)).await?.lvstore, "large");
    assert_eq!(b.volumes.create(thick("there", 16 * MIB, Some("small"))).await?.lvstore, "small");
    let capacity = b.volumes.capacity(Parameters::default(), None).await?;
    assert!(capacity.available > capacity.largest_volume && capacity.largest_volume > 90 * MIB, "{capacity:?}");
    let full = b.volumes.create(thick("full", 200 * MIB, None)).await;
    assert!(matches!(&full, Err(Error::Engine(e)) if e.kind() == ErrorKind::NoSpace), "{full:?}");
    let all: Vec<String> = b.volumes.list(0, "").await?.entries.into_iter().map(|v| v.lvstore).collect();
    assert_eq!(all.len(), 2, "nothing is left of the refused one");
    let never = b.volumes.create(volume("never", 1 << 50)).await;
    assert!(matches!(never, Err(Error::OutOfRange(_))));
    let nowhere = b.volumes.create(thick("x", MIB, Some("absent"))).await;
    assert!(matches!(nowhere, Err(Error::Invalid(_))));
    let place = |node: &str| vec![[("topology.coppice.io/node".to_string(), node.to_string())].into()];
    let elsewhere = CreateVolume { requisite: place("node-2"), ..volume("e", MIB) };
    assert!(matches!(b.volumes.create(elsewhere).await, Err(Error::NoSpace(_))));
    b.volumes.create(CreateVolume { requisite: place("node-1"), ..volume("e", MIB) }).await?;
    assert_eq!(b.volumes.capacity(Parameters::default(), Some(place("node-2").remove(0))).await?, Default::default());
    b.checked().await
}
