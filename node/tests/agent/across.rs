//! Two nodes, each with an agent and an engine of its own, and the controller's authority: a snapshot of one becomes a volume of
//! the other. Whatever happens in between, the snapshot stays as long as the other's store reads it, and every byte is right.

use super::rig::{MIB, Rig, Running, eventually};
use anyhow::{Context, Result, ensure};
use coppice_controller::kube::authority::Authority;
use coppice_engine::{LvolState, Store};
use coppice_fake_api::{Api, Cut, Health, text};
use futures_util::future::try_join_all;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use uuid::Uuid;

const SIZE: u64 = 24 * MIB;

/// The controller's part, and both nodes.
struct Two {
    api: Api,
    a: Rig,
    b: Rig,
    authority: JoinHandle<()>,
}

impl Drop for Two {
    fn drop(&mut self) {
        self.authority.abort();
    }
}

impl Two {
    fn new() -> Result<Two> {
        let api = Api::new();
        let system = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-system" } });
        api.put("namespaces", system);
        let authority = Authority::new(api.client(), "coppice");
        let authority = tokio::spawn(async move {
            loop {
                let _ = authority.round(jiff_now()).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let (a, b) = (Rig::beside(&api, "node-a")?, Rig::beside(&api, "node-b")?);
        for rig in [&a, &b] {
            rig.lvstore("pool", json!({ "fileSize": "128Mi" }));
        }
        Ok(Two { api, a, b, authority })
    }

    async fn start(&self) -> Result<(Running, Running)> {
        let both = (self.a.start()?, self.b.start()?);
        for rig in [&self.a, &self.b] {
            rig.lvstore_is(&rig.pool_name(), "Ready", "True/Open").await?;
        }
        Ok(both)
    }

    /// A volume on A that holds `seed`, and a snapshot of it; the UUIDs of both.
    async fn source(&self, a: &Running, seed: u8) -> Result<(Uuid, Uuid)> {
        let volume = self.a.volume("source", json!({ "size": SIZE.to_string() }))?;
        self.a.lvol_is("source", "Ready", "True/Available").await?;
        let store = a.store()?;
        for (off, data) in content(seed) {
            store.write(volume, off, data).await?;
        }
        store.flush(volume).await?;
        let of = json!({ "kind": "Snapshot", "sourceUUID": volume, "sourceKind": "Volume", "sourceNode": "node-a",
            "size": SIZE.to_string() });
        let snapshot = self.a.volume("snapshot", of)?;
        self.a.lvol_is("snapshot", "Ready", "True/Available").await?;
        Ok((volume, snapshot))
    }

    /// What the controller writes for a restore on B.
    fn restore(&self, name: &str, snapshot: Uuid) -> Result<Uuid> {
        let from = self.a.uuid_of("node-a-pool").context("A's store")?;
        let spec = json!({ "size": SIZE.to_string(), "sourceUUID": snapshot, "sourceKind": "Snapshot",
            "sourceNode": "node-a", "sourceLvstoreUUID": from, "sourceSnapshotUUID": snapshot, "restore": "Lazy" });
        self.b.volume(name, spec)
    }

    fn parents(&self) -> Vec<String> {
        let object = self.api.get("lvstores", "node-b-pool").unwrap_or_default();
        let named = object["status"]["externalParents"].as_array().cloned().unwrap_or_default();
        named.iter().map(|parent| text(parent, "/snapshotUUID")).collect()
    }

    fn remove(&self, name: &str) {
        let _ = self.api.patch("lvols", name, &json!({ "spec": { "reclaim": "Delete" } }), false);
        self.api.remove("lvols", name);
    }

    async fn hydrated(&self, name: &str) -> Result<()> {
        self.b.lvol_is(name, "Dependent", "False/Hydrated").await
    }
}

fn jiff_now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(0)
}

/// A few MiB here and there; the rest is zero.
fn content(seed: u8) -> Vec<(u64, Vec<u8>)> {
    let part = |off: u64| (off, (0..2 * MIB).map(|i| (i / 4096 + off / MIB) as u8 ^ seed).collect());
    [0, 7 * MIB + 12288, 15 * MIB, SIZE - 2 * MIB].map(part).to_vec()
}

async fn holds(store: &Store, lvol: Uuid, seed: u8) -> Result<()> {
    let mut wanted = vec![0_u8; SIZE as usize];
    for (off, data) in content(seed) {
        wanted[off as usize..off as usize + data.len()].copy_from_slice(&data);
    }
    for off in (0..SIZE).step_by(MIB as usize) {
        let got = store.read(lvol, off, MIB as usize).await?;
        ensure!(got[..] == wanted[off as usize..(off + MIB) as usize], "{lvol} differs at {off}");
    }
    Ok(())
}

fn is_pinned(a: &Store, snapshot: Uuid) -> bool {
    a.lvstore().lvol(snapshot).is_ok_and(|lvol| !lvol.pins.is_empty())
}

/// Looks all the time whether what B reads is pinned in A.
struct Guard {
    broken: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Guard {
    fn new(a: Store, b: Store, snapshot: Uuid) -> Guard {
        let broken = Arc::new(AtomicBool::new(false));
        let found = broken.clone();
        let task = tokio::spawn(async move {
            loop {
                if b.external_parents().contains(&snapshot) && !is_pinned(&a, snapshot) {
                    // It may have been cut off in between.
                    found.fetch_or(b.external_parents().contains(&snapshot), Ordering::Relaxed);
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Guard { broken, task }
    }

    fn ends(self) -> Result<()> {
        self.task.abort();
        ensure!(!self.broken.load(Ordering::Relaxed), "the snapshot was read and not pinned");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_read_elsewhere_at_once_and_copied_and_let_go() -> Result<()> {
    let two = Two::new()?;
    let (a, b) = two.start().await?;
    let (volume, snapshot) = two.source(&a, 1).await?;
    // What A's volume becomes afterwards is nobody's concern.
    a.store()?.write(volume, 0, vec![9; 65536]).await?;
    let guard = Guard::new(a.store()?, b.store()?, snapshot);
    let copy = two.restore("copy", snapshot)?;
    two.b.lvol_is("copy", "Ready", "True/Available").await?;
    // Both objects go at once, as users do it.
    two.remove("snapshot");
    two.remove("source");
    holds(&b.store()?, copy, 1).await?;
    two.hydrated("copy").await?;
    eventually("B's store names nothing", || two.parents().is_empty()).await?;
    eventually("both objects are gone", || two.api.all("lvols").len() == 1).await?;
    eventually("A has nothing left of it", || a.store().is_ok_and(|store| store.lvstore().lvols().is_empty())).await?;
    guard.ends()?;
    a.stop().await?;
    holds(&b.store()?, copy, 1).await?;
    let events = two.api.all("events");
    for reason in ["Hydrating", "Hydrated"] {
        assert!(events.iter().any(|event| event["reason"] == reason), "{reason}");
    }
    let object = two.api.get("lvols", "copy").context("the object")?;
    assert!(object["status"]["hydration"].is_null() && object["status"]["parent"].is_null(), "{object}");
    assert!(b.store()?.check().await?.iter().all(|finding| finding.heals));
    b.stop().await
}

/// A goes away while B still reads from it, and B, too; nothing is unpinned meanwhile, and all heals.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_away_keeps_what_the_other_needs() -> Result<()> {
    let mut two = Two::new()?;
    // So slow that it is not done before A goes.
    two.b.hydrate_at(Some(64 << 10));
    let (a, b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 2).await?;
    let copy = two.restore("copy", snapshot)?;
    two.b.lvol_is("copy", "Ready", "True/Available").await?;
    ensure!(b.store()?.external_parents() == [snapshot], "it depends");
    a.kill().await;
    two.b.lvol_is("copy", "Degraded", "True/SourceUnavailable").await?;
    b.store()?.write(copy, 4 * MIB, vec![7; 65536]).await?;
    ensure!(b.store()?.read(copy, 4 * MIB, 65536).await? == vec![7; 65536], "its own data stays readable");

    // B is gone as well; A comes back, on another port, and is told to delete everything.
    b.kill().await;
    two.remove("snapshot");
    two.remove("source");
    let a = two.a.start()?;
    eventually("the objects are gone", || two.api.all("lvols").len() == 1)
        .await
        .with_context(|| format!("there are {:#?}", two.api.all("lvols")))?;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned while its reader was away");
    let hidden = a.store()?.lvstore().lvol(snapshot)?;
    ensure!(hidden.state == LvolState::Hidden, "{hidden:?}");
    // Even without an agent's word: B's Lvstore object says nothing, or is not there while the Lvol is.
    let said = two.api.get("lvstores", "node-b-pool").context("the store")?;
    two.api.remove("lvstores", "node-b-pool");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned because an Lvstore object was deleted");
    // Not even if another node's agent claims to have B's store.
    let mut other = said.clone();
    (other["metadata"], other["spec"]["node"]) = (json!({ "name": "node-c-pool" }), json!("node-c"));
    other["status"]["externalParents"] = json!([]);
    two.api.put("lvstores", other);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned because another node says that it does not need it");
    two.api.remove("lvstores", "node-c-pool");
    let mut again = said;
    again["status"]["externalParents"] = json!(null);
    two.api.put("lvstores", again);
    tokio::time::sleep(Duration::from_millis(1000)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned because an Lvstore object says nothing");

    two.b.hydrate_at(None);
    let b = two.b.start()?;
    eventually("B's store is open", || b.store().is_ok()).await?;
    eventually("it says again what it needs", || two.parents() == [snapshot.to_string()]).await?;
    two.b.lvol_is("copy", "Degraded", "False/AsExpected").await?;
    two.hydrated("copy").await?;
    eventually("A has nothing left of it", || a.store().is_ok_and(|store| store.lvstore().lvols().is_empty())).await?;
    let store = b.store()?;
    store.write(copy, 4 * MIB, vec![0; 65536]).await?;
    holds(&store, copy, 2).await?;
    drop(store);
    a.stop().await?;
    b.stop().await
}

/// A is restarted in good order, and its store closed and opened while the agent runs: whoever reads on B waits, and sees no
/// error.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_source_is_no_error() -> Result<()> {
    let mut two = Two::new()?;
    two.b.hydrate_at(Some(64 << 10));
    let (a, b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 5).await?;
    let copy = two.restore("copy", snapshot)?;
    two.b.lvol_is("copy", "Ready", "True/Available").await?;
    let (store, stop) = (b.store()?, Arc::new(AtomicBool::new(false)));
    let wanted = content(5).pop().context("content")?;
    let readers: Vec<_> = (0..4_usize)
        .map(|reader| {
            let (store, stop, (off, data)) = (store.clone(), stop.clone(), wanted.clone());
            tokio::spawn(async move {
                let mut n = reader;
                // Too large to come from what was read ahead.
                while !stop.load(Ordering::Relaxed) {
                    let at = n * 40_961 % (data.len() - 100_000);
                    let got = store.read(copy, off + at as u64, 100_000).await?;
                    ensure!(got[..] == data[at..at + 100_000], "it differs at {at}");
                    n += 1;
                }
                Ok(())
            })
        })
        .collect();
    let mut a = a;
    for _ in 0..2 {
        a.stop().await?;
        a = two.a.start()?;
        two.a.lvstore_is(&two.a.pool_name(), "Ready", "True/Open").await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    // The object is made anew: the agent closes the store, and opens it.
    let object = two.api.get("lvstores", &two.a.pool_name()).context("A's store")?;
    let before = a.store()?;
    two.api.remove("lvstores", &two.a.pool_name());
    eventually("it is closed", || a.store().is_err()).await?;
    two.api.put("lvstores", object);
    eventually("it is open again", || a.store().is_ok_and(|now| now.lvstore().key() != before.lvstore().key())).await?;
    drop(before);
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(store.external_parents() == [snapshot], "it was hydrated before anything was shown");
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        tokio::time::timeout(Duration::from_secs(25), reader).await.context("a read has no end")???;
    }
    drop(store);
    a.stop().await?;
    b.stop().await
}

/// Which of the two is killed when the API server is cut off.
#[derive(Clone, Copy, Debug)]
enum Who {
    A,
    B,
    Both,
}

/// From the moment that the Lvol is written until all is copied. True if it was cut off at the `nth` write.
async fn restored(nth: usize, how: Cut, who: Who) -> Result<bool> {
    let two = Two::new()?;
    let (mut a, mut b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 3).await?;
    two.authority.abort();
    two.api.cut_off(nth, how);
    let copy = two.restore("copy", snapshot)?;
    let done = || two.b.condition("lvols", "copy", "Dependent") == "False/Hydrated" && two.parents().is_empty();
    eventually("done or cut off", || two.api.is_cut_off() || done()).await?;
    let cut = two.api.is_cut_off();
    if matches!(who, Who::A | Who::Both) {
        a.kill().await;
        two.api.set_health(Health::Up);
        a = two.a.start()?;
    }
    if matches!(who, Who::B | Who::Both) {
        b.kill().await;
        two.api.set_health(Health::Up);
        b = two.b.start()?;
    }
    let authority = Authority::new(two.api.client(), "coppice");
    let signing = tokio::spawn(async move {
        loop {
            let _ = authority.round(jiff_now()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    two.b
        .lvol_is("copy", "Ready", "True/Available")
        .await
        .with_context(|| format!("{:#?} {:#?}", two.api.all("lvstores"), two.api.all("certificatesigningrequests")))?;
    // As soon as it says so, users delete what it was made from.
    two.remove("snapshot");
    two.remove("source");
    eventually("both stores are open", || a.store().is_ok() && b.store().is_ok()).await?;
    let guard = Guard::new(a.store()?, b.store()?, snapshot);
    holds(&b.store()?, copy, 3).await?;
    eventually("it is copied", || b.store().is_ok_and(|store| store.external_parents().is_empty())).await?;
    eventually("A has nothing left of it", || a.store().is_ok_and(|store| store.lvstore().lvols().is_empty()))
        .await
        .with_context(|| format!("there are {:?}", a.store().map(|store| store.lvstore().lvols())))?;
    guard.ends()?;
    holds(&b.store()?, copy, 3).await?;
    signing.abort();
    a.stop().await?;
    b.stop().await?;
    Ok(cut)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_write() -> Result<()> {
    const AT_A_TIME: usize = 6;
    for who in [Who::A, Who::B, Who::Both] {
        for how in [Cut::Before, Cut::After] {
            let mut next = 1;
            loop {
                let some = next..next + AT_A_TIME;
                let runs = some.clone().map(async |nth| {
                    restored(nth, how, who).await.with_context(|| format!("write {nth}, {how:?}, {who:?} killed"))
                });
                let cut = try_join_all(runs).await?;
                if let Some(enough) = cut.iter().position(|cut| !cut) {
                    ensure!(next + enough > 4, "{} writes are too few to mean something", next + enough);
                    break;
                }
                next = some.end;
            }
        }
    }
    Ok(())
}

/// A volume that is given up before it is made leaves no pin.
#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_wanted_any_more_leaves_no_pin() -> Result<()> {
    let two = Two::new()?;
    let a = two.a.start()?;
    two.a.lvstore_is("node-a-pool", "Ready", "True/Open").await?;
    let b = two.b.start()?;
    two.b.lvstore_is("node-b-pool", "Ready", "True/Open").await?;
    let (_, snapshot) = two.source(&a, 4).await?;
    b.kill().await;
    two.restore("copy", snapshot)?;
    eventually("pinned before its reader is there", || a.store().is_ok_and(|store| is_pinned(&store, snapshot)))
        .await?;
    tokio::time::sleep(Duration::from_millis(1000)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "it is still to be made");
    two.remove("copy");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "its reader may have made it, and has not said otherwise");
    let b = two.b.start()?;
    eventually("unpinned", || a.store().is_ok_and(|store| !is_pinned(&store, snapshot))).await?;
    b.stop().await?;
    a.stop().await
}

/// Every object of B is gone, as after a slip, a cluster built anew or an older backup of it: while B is off, and while it
/// works. The engines know better; and what is made anew reads on.
#[tokio::test(flavor = "multi_thread")]
async fn objects_that_are_gone_say_nothing() -> Result<()> {
    let mut two = Two::new()?;
    two.b.hydrate_at(Some(64 << 10));
    let (a, b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 6).await?;
    let copy = two.restore("copy", snapshot)?;
    two.b.lvol_is("copy", "Ready", "True/Available").await?;
    let (lvol, lvstore) = (two.api.get("lvols", "copy"), two.api.get("lvstores", "node-b-pool"));
    let (mut lvol, lvstore) = (lvol.context("the lvol")?, lvstore.context("the lvstore")?);
    two.remove("snapshot");
    two.remove("source");
    eventually("the source's objects are gone", || two.api.all("lvols").len() == 1).await?;

    // An older backup: nothing of it is there, and B's store works.
    two.api.remove("lvols", "copy");
    let mut older = lvstore.clone();
    older["status"]["externalParents"] = json!([]);
    two.api.remove("lvstores", "node-b-pool");
    two.api.put("lvstores", older);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned by an older backup");
    b.kill().await;
    two.api.remove("lvstores", "node-b-pool");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    ensure!(is_pinned(&a.store()?, snapshot), "unpinned because nothing is there any more");

    // Both made anew by a person, who does not know where it reads.
    let spec = lvol["spec"].as_object_mut().context("a spec")?;
    spec.retain(|key, _| !key.starts_with("source"));
    spec.insert("adopted".into(), json!(true));
    lvol["status"] = json!({});
    let mut anew = lvstore;
    anew["spec"]["adopt"] = anew["status"]["uuid"].clone();
    anew["status"] = json!({});
    two.api.put("lvstores", anew);
    two.api.put("lvols", lvol);
    two.b.hydrate_at(None);
    let b = two.b.start()?;
    eventually("its store names it again", || two.parents() == [snapshot.to_string()]).await?;
    eventually("it is hydrated", || b.store().is_ok_and(|store| store.external_parents().is_empty())).await?;
    holds(&b.store()?, copy, 6).await?;
    eventually("A has nothing left of it", || a.store().is_ok_and(|store| store.lvstore().lvols().is_empty())).await?;
    a.stop().await?;
    b.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_certificate_of_its_own_reads_nothing() -> Result<()> {
    let two = Two::new()?;
    let a = two.a.start()?;
    two.a.lvstore_is("node-a-pool", "Ready", "True/Open").await?;
    let (_, snapshot) = two.source(&a, 5).await?;
    // An agent that claims to be node-b, with a token of node-c.
    let thief = Rig { node: "node-b", ..Rig::beside(&two.api, "node-c")? };
    let b = thief.start_as("node-c")?;
    thief.lvstore_is("node-b-pool", "Ready", "True/Open").await?;
    two.restore("copy", snapshot)?;
    eventually("its request was denied", || {
        let requests = two.api.all("certificatesigningrequests");
        requests.iter().any(|request| request["status"]["conditions"][0]["type"] == "Denied")
    })
    .await?;
    two.b.lvol_is("copy", "Ready", "False/SourceUnavailable").await?;
    ensure!(b.store()?.lvols().await?.is_empty(), "nothing was made");
    b.kill().await;
    a.stop().await
}

/// The Secret was deleted, or is an older one again: nobody believes what the last authority signed.
#[tokio::test(flavor = "multi_thread")]
async fn another_authority_is_believed_at_once() -> Result<()> {
    let two = Two::new()?;
    let (a, b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 7).await?;
    two.restore("first", snapshot)?;
    two.b.lvol_is("first", "Ready", "True/Available").await?;
    let bundle = || two.api.get("configmaps", "coppice-export-ca").map(|map| text(&map, "/data/ca.crt"));
    let before = bundle();
    ensure!(before.as_ref().is_some_and(|bundle| bundle.contains("BEGIN CERTIFICATE")), "{before:?}");
    two.hydrated("first").await?;
    two.api.remove("secrets", "coppice-export-ca");
    eventually("there is another authority", || bundle() != before).await?;
    // Both have seen it.
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let copy = two.restore("second", snapshot)?;
    two.b.lvol_is("second", "Ready", "True/Available").await?;
    holds(&b.store()?, copy, 7).await?;
    a.stop().await?;
    b.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_one_request_waits() -> Result<()> {
    let two = Two::new()?;
    two.authority.abort();
    let a = two.a.start()?;
    let requests = || two.api.all("certificatesigningrequests");
    eventually("it asks", || requests().len() == 1).await?;
    two.api.set_health(Health::Refusing);
    tokio::time::sleep(Duration::from_secs(2)).await;
    two.api.set_health(Health::Up);
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(requests().len() == 1, "{:#?}", requests());
    // Kubernetes removes old ones.
    let first = text(&requests()[0], "/metadata/name");
    two.api.remove("certificatesigningrequests", &first);
    eventually("it asks again", || requests().len() == 1 && text(&requests()[0], "/metadata/name") != first).await?;
    a.stop().await
}

/// Many that wait for a node that is off are in nobody's way, and are served when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_keeps_nobody_waiting() -> Result<()> {
    const MANY: usize = 60;
    let two = Two::new()?;
    let (a, b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 8).await?;
    a.kill().await;
    for n in 0..MANY {
        two.restore(&format!("copy-{n}"), snapshot)?;
    }
    two.b.lvol_is("copy-0", "Ready", "False/SourceUnavailable").await?;
    for n in 0..4 {
        let began = std::time::Instant::now();
        let name = format!("own-{n}");
        two.b.volume(&name, json!({}))?;
        two.b.lvol_is(&name, "Ready", "True/Available").await?;
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(3), "{name} took {took:?}");
    }
    for n in 1..MANY {
        two.remove(&format!("copy-{n}"));
    }
    eventually("the others are gone", || two.api.all("lvols").len() == 7).await?;
    let a = two.a.start()?;
    two.a.lvstore_is("node-a-pool", "Ready", "True/Open").await?;
    two.b.lvol_is("copy-0", "Ready", "True/Available").await?;
    a.stop().await?;
    b.stop().await
}

/// A node whose name is an address can prove to nobody who it is: it reads nothing, and never from whoever answers.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_name_is_an_address_reads_nothing() -> Result<()> {
    let two = Two::new()?;
    let a = two.a.start()?;
    two.a.lvstore_is("node-a-pool", "Ready", "True/Open").await?;
    let (_, snapshot) = two.source(&a, 9).await?;
    let there = Rig::beside(&two.api, "10.0.0.7")?;
    there.lvstore("pool", json!({ "fileSize": "64Mi" }));
    let b = there.start()?;
    there.lvstore_is("10.0.0.7-pool", "Ready", "True/Open").await?;
    let from = two.a.uuid_of("node-a-pool").context("A's store")?;
    there.volume(
        "copy",
        json!({ "size": SIZE.to_string(), "sourceUUID": snapshot, "sourceKind": "Snapshot", "sourceNode": "node-a",
            "sourceLvstoreUUID": from, "sourceSnapshotUUID": snapshot, "restore": "Lazy" }),
    )?;
    there.lvol_is("copy", "Ready", "False/SourceUnavailable").await?;
    let object = two.api.get("lvols", "copy").context("the object")?;
    ensure!(text(&object, "/status/conditions/0/message").contains("cannot be in a certificate"), "{object}");
    ensure!(b.store()?.lvols().await?.is_empty(), "nothing was made");
    b.kill().await;
    a.stop().await
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

/// Two copies, and what may happen to them, their source and both agents, in an order that follows from the seed.
async fn in_the_order_of(seed: u64) -> Result<()> {
    let mut dice = Dice(seed);
    let mut two = Two::new()?;
    two.b.hydrate_at([None, Some(1 << 20), Some(4 << 20)][dice.roll(3) as usize]);
    let (mut a, mut b) = two.start().await?;
    let (_, snapshot) = two.source(&a, 6).await?;
    let copies = [two.restore("one", snapshot)?, two.restore("two", snapshot)?];
    let mut left = vec!["ready", "a", "b", "a", "b", "one", "pause", "pause"];
    let mut done = Vec::new();
    while !left.is_empty() {
        let what = left.swap_remove(dice.roll(left.len() as u64) as usize);
        done.push(what);
        match what {
            // The volumes are there: so users delete what they were made from.
            "ready" => {
                for name in ["one", "two"] {
                    if two
                        .api
                        .get("lvols", name)
                        .is_some_and(|object| object["metadata"]["deletionTimestamp"].is_null())
                    {
                        two.b.lvol_is(name, "Ready", "True/Available").await?;
                    }
                }
                two.remove("snapshot");
                two.remove("source");
            }
            "a" => {
                a.kill().await;
                a = two.a.start()?;
            }
            "b" => {
                b.kill().await;
                two.b.hydrate_at([None, Some(1 << 20)][dice.roll(2) as usize]);
                b = two.b.start()?;
            }
            "one" => two.remove("one"),
            _ => {}
        }
        let until = std::time::Instant::now() + Duration::from_millis(dice.roll(1200));
        while std::time::Instant::now() < until {
            if let (Ok(a), Ok(b)) = (a.store(), b.store()) {
                let reads = b.external_parents().contains(&snapshot);
                let still = reads && !is_pinned(&a, snapshot) && b.external_parents().contains(&snapshot);
                ensure!(!still, "read and not pinned after {done:?}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    eventually("all is copied", || b.store().is_ok_and(|store| store.external_parents().is_empty()))
        .await
        .with_context(|| format!("{done:?}"))?;
    two.b.lvol_is("two", "Ready", "True/Available").await?;
    holds(&b.store()?, copies[1], 6).await.with_context(|| format!("{done:?}"))?;
    eventually("A has nothing left of it", || a.store().is_ok_and(|store| store.lvstore().lvols().is_empty()))
        .await
        .with_context(|| format!("{done:?}"))?;
    eventually("one copy is left", || two.api.all("lvols").len() == 1).await?;
    a.stop().await?;
    b.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn in_any_order() -> Result<()> {
    const SEEDS: u64 = 12;
    const AT_A_TIME: u64 = 3;
    for first in (1..=SEEDS).step_by(AT_A_TIME as usize) {
        let some = (first..first + AT_A_TIME)
            .map(async |seed| in_the_order_of(seed).await.with_context(|| format!("seed {seed}")));
        try_join_all(some).await?;
    }
    Ok(())
}
