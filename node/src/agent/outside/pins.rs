//! Pins of our snapshots: made for each Lvol that is to read one, and taken away when nothing in that lvstore does any more.
//!
//! A pin is taken away only on two words. The API server's, asked in this order: no Lvol object of that lvstore is still to be
//! made from the snapshot or may depend on it, and then, its Lvstore object does not name it. And then the lvstore's own, over
//! the link by which it reads: none of its lvols does, or is about to ([`super::unread`]). While it is asked the snapshot is
//! shut for the reader, so nobody new begins to read it in between; and all of it has to have been so for a while
//! (`unpin_after`).
//!
//! What is not there says nothing: no object that was deleted, no older backup of the API's data, no node that is off. A pin
//! of a lvstore that never comes back is a person's to take away, with `coppice lvol unpin`.

use super::super::Agent;
use super::super::failure::{Failure, ask};
use super::publish::Origin;
use super::unread::Unread;
use super::whereabouts::lvstores_of;
use coppice_engine::{ErrorKind, LvolInfo, Pin, Store};
use coppice_kube_api::{Lvol, LvolCondition, Lvstore, SELECT_LVSTORE, SELECT_SOURCE_NODE};
use futures_util::StreamExt;
use kube::api::ListParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use uuid::Uuid;

/// How often all pins are looked at, at least.
const LOOK: Duration = Duration::from_secs(60);
/// Between two rounds, at least.
const REST: Duration = Duration::from_secs(1);
/// Most lvols whose pin is remembered to be there.
const REMEMBERED_MAX: usize = 4096;

/// What was found out about pins.
#[derive(Default)]
pub struct Memory {
    /// UIDs of objects whose snapshot was pinned for them.
    pinned: HashSet<String>,
    /// Since when the API server knows nobody that needs a pin: (snapshot, lvstore).
    free_since: HashMap<(Uuid, Uuid), Instant>,
    /// Pins that only wait for their lvstore's own word; said already.
    waits: HashSet<(Uuid, Uuid)>,
}

/// Pins and unpins, until this is dropped.
pub async fn run(agent: &Agent) {
    let Some(export) = &agent.outside.export else { return };
    agent.tried().await;
    tokio::join!(pin_all(agent), release_all(agent, export.unpin_after));
}

/// Pins what is to be read, as soon as an object says so.
async fn pin_all(agent: &Agent) {
    let api: Api<Lvol> = Api::all(agent.config.client.clone());
    let of_ours = watcher::Config::default().fields(&format!("{SELECT_SOURCE_NODE}={}", agent.config.node));
    let (reader, writer) = reflector::store();
    let mut events = Box::pin(reflector(writer, watcher(api, of_ours)).default_backoff());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                Some(Ok(Event::Apply(object))) if may_depend(&object) => {}
                Some(Ok(Event::Apply(_) | Event::InitDone | Event::Delete(_))) => agent.outside.look.notify_one(),
                Some(Err(e)) => warn!("the watch of those who read our snapshots: {e}"),
                None => return,
            },
            () = agent.outside.store_came.notified() => agent.outside.look.notify_one(),
            () = tokio::time::sleep(LOOK) => {}
        }
        for object in reader.state() {
            agent.pin_for(&object).await;
        }
    }
}

/// Looks which pins nobody needs any more.
async fn release_all(agent: &Agent, unpin_after: Duration) {
    let rest = unpin_after.min(REST);
    loop {
        let waits = match agent.release().await {
            Ok(waits) => waits,
            Err(e) => {
                warn!("pins stay for now: {e}");
                false
            }
        };
        tokio::time::sleep(rest).await;
        let pause = if waits { unpin_after } else { unpin_after.saturating_mul(2) }.min(LOOK);
        let _ = tokio::time::timeout(pause, agent.outside.look.notified()).await;
    }
}

/// Unless it says that it does not read our snapshot any more. What is still to be made says nothing.
fn may_depend(object: &Lvol) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let mut over = conditions.filter(|c| c.type_ == LvolCondition::Dependent.as_str() && c.status == "False");
    over.next().is_none()
}

/// What the API server says of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Needed,
    /// It is named, but nothing seems to need it: soon it is not named any more. Or nothing is said at all.
    Named,
    Free,
}

/// What the API server has of a lvstore.
struct View {
    lvols: Vec<Lvol>,
    objects: Vec<Lvstore>,
}

impl View {
    async fn of(agent: &Agent, pin: &Pin) -> Result<View, Failure> {
        let api: Api<Lvol> = Api::all(agent.config.client.clone());
        let in_it = ListParams::default().fields(&format!("{SELECT_LVSTORE}={}", pin.lvstore));
        let lvols = ask(api.list(&in_it)).await?.items;
        // Only after that.
        let api: Api<Lvstore> = Api::all(agent.config.client.clone());
        Ok(View { lvols, objects: lvstores_of(&api, pin.lvstore, Some(&pin.reader)).await? })
    }

    /// Whether nothing in the lvstore reads the snapshot or is about to.
    fn word(&self, snapshot: Uuid) -> Word {
        let of_it = |lvol: &&Lvol| lvol.spec.outside().is_some_and(|of| of.snapshot == snapshot);
        if self.lvols.iter().filter(of_it).any(may_depend) {
            return Word::Needed;
        }
        let names_nothing = |object: &Lvstore| {
            let named = object.status.as_ref().and_then(|status| status.external_parents.as_ref());
            // One that does not say what it depends on may depend on anything.
            named.is_some_and(|named| named.iter().all(|parent| parent.snapshot_uuid != snapshot))
        };
        let free = !self.objects.is_empty() && self.objects.iter().all(names_nothing);
        if free { Word::Free } else { Word::Named }
    }
}

impl Agent {
    fn store_with(&self, snapshot: Uuid) -> Option<Store> {
        self.config.stores.all().iter().find(|store| store.lvstore().lvol(snapshot).is_ok()).cloned()
    }

    /// Pins what an object is to read, or may read already: by the pin that another lvstore of its node has.
    async fn pin_for(&self, object: &Lvol) {
        let uid = object.uid().unwrap_or_default();
        let mut memory = self.outside.pinning.lock().await;
        let leaves = object.metadata.deletion_timestamp.is_some();
        if !may_depend(object) || leaves || memory.pinned.contains(&uid) {
            return;
        }
        if self.pin(object, &mut memory).await {
            if memory.pinned.len() >= REMEMBERED_MAX {
                memory.pinned.clear();
            }
            memory.pinned.insert(uid);
        }
    }

    /// True if the snapshot is pinned now.
    async fn pin(&self, object: &Lvol, memory: &mut Memory) -> bool {
        let spec = &object.spec;
        let Some(of) = spec.outside().filter(|of| of.lvstore != spec.lvstore_uuid) else { return true };
        let Some(store) = self.store_with(of.snapshot) else { return false };
        pin(&store, of.snapshot, Pin { lvstore: spec.lvstore_uuid, reader: spec.node.clone() }, memory).await
    }

    /// Asks who is to read these snapshots, and pins them for those.
    pub async fn pin_readers_of(&self, snapshots: &[Uuid]) -> Result<(), Failure> {
        let mut memory = self.outside.pinning.lock().await;
        let api: Api<Lvol> = Api::all(self.config.client.clone());
        let of_ours = ListParams::default().fields(&format!("{SELECT_SOURCE_NODE}={}", self.config.node));
        let readers = ask(api.list(&of_ours)).await?.items;
        for object in readers.iter().filter(|object| may_depend(object)) {
            let Some(of) = object.spec.outside().filter(|of| snapshots.contains(&of.snapshot)) else { continue };
            let leaving = object.metadata.deletion_timestamp.is_some();
            if !leaving && !self.pin(object, &mut memory).await && self.store_with(of.snapshot).is_some() {
                return Err(Failure::Unsaid(format!("{} is to read it, and it cannot be pinned", object.name_any())));
            }
        }
        Ok(())
    }

    /// Our snapshots that have pins.
    fn pinned(&self) -> Vec<(Store, LvolInfo)> {
        let stores = self.config.stores.all();
        let of = |store: &Store| {
            let lvols = store.lvstore().lvols().into_iter().filter(|lvol| !lvol.pins.is_empty());
            lvols.map(|lvol| (store.clone(), lvol)).collect::<Vec<_>>()
        };
        stores.iter().flat_map(of).collect()
    }

    /// Pins for the stores whose objects name a snapshot of ours, as far as that lets nobody read what it may not read already:
    /// for another store of a node that has a pin, and on another node for a store that a person has moved there.
    async fn pin_named(&self) -> Result<(), Failure> {
        let pinned = self.pinned();
        if pinned.is_empty() {
            return Ok(());
        }
        let api: Api<Lvstore> = Api::all(self.config.client.clone());
        let objects = ask(api.list(&ListParams::default())).await?.items;
        for (store, lvol) in &pinned {
            for object in &objects {
                let status = object.status.clone().unwrap_or_default();
                let Some(lvstore) = status.uuid.filter(|uuid| *uuid != store.uuid()) else { continue };
                let named = status.external_parents.iter().flatten().any(|parent| parent.snapshot_uuid == lvol.uuid);
                let node = &object.spec.node;
                let may = match lvol.pins.iter().find(|pin| pin.lvstore == lvstore) {
                    Some(pin) => pin.reader != *node && object.spec.adopt == Some(lvstore),
                    None => lvol.pins.iter().any(|pin| pin.reader == *node),
                };
                if !named || !may {
                    continue;
                }
                let mut memory = self.outside.pinning.lock().await;
                pin(store, lvol.uuid, Pin { lvstore, reader: node.clone() }, &mut memory).await;
            }
        }
        Ok(())
    }

    /// Takes away the pins that nothing needs any more. True if one may soon be such.
    async fn release(&self) -> Result<bool, Failure> {
        self.pin_named().await?;
        let mut waits = false;
        let mut views: HashMap<(Uuid, String), View> = HashMap::new();
        let mut there = HashSet::new();
        for (store, lvol) in &self.pinned() {
            // Others, by hand, name readers that are no nodes; those pins are theirs.
            for pin in lvol.pins.iter().filter(|pin| is_node(&pin.reader)) {
                there.insert((lvol.uuid, pin.lvstore));
                let view = match views.entry((pin.lvstore, pin.reader.clone())) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => new.insert(View::of(self, pin).await?),
                };
                waits |= self.release_one(store, lvol.uuid, pin, view).await?;
            }
        }
        let mut memory = self.outside.pinning.lock().await;
        memory.free_since.retain(|key, _| there.contains(key));
        memory.waits.retain(|key| there.contains(key));
        Ok(waits)
    }

    /// True if it is to be looked at again soon.
    async fn release_one(&self, store: &Store, snapshot: Uuid, pin: &Pin, view: &View) -> Result<bool, Failure> {
        let key = (snapshot, pin.lvstore);
        let after = self.outside.export.as_ref().map_or(LOOK, |export| export.unpin_after);
        let word = view.word(snapshot);
        {
            let mut memory = self.outside.pinning.lock().await;
            if word != Word::Free {
                memory.free_since.remove(&key);
                return Ok(word == Word::Named);
            }
            let since = *memory.free_since.entry(key).or_insert_with(Instant::now);
            if since.elapsed() < after {
                return Ok(true);
            }
        }
        // It may take long to find out that nobody answers, and others are pinned meanwhile.
        if let Err(why) = self.unread(snapshot, pin).await {
            if self.outside.pinning.lock().await.waits.insert(key) {
                info!(%snapshot, lvstore = %pin.lvstore, reader = pin.reader, "its pin waits for the reader's word: {why}");
            }
            return Ok(true);
        }
        // Nobody begins to read it from here on; and then it is asked once more.
        let mut memory = self.outside.pinning.lock().await;
        let _shut = self.outside.gate.shut(snapshot, &pin.reader);
        self.close(snapshot, &pin.reader);
        let word = View::of(self, pin).await?.word(snapshot);
        let pinned_anew = !memory.free_since.contains_key(&key);
        if pinned_anew || word != Word::Free || self.unread(snapshot, pin).await.is_err() {
            memory.free_since.remove(&key);
            return Ok(true);
        }
        self.close(snapshot, &pin.reader);
        match store.unpin(snapshot, pin.lvstore).await {
            Ok(()) => {
                info!(%snapshot, lvstore = %pin.lvstore, reader = pin.reader, "nothing there reads it any more: unpinned")
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => warn!(%snapshot, "its pin stays for now: {e}"),
        }
        // Who was written meanwhile gets a new pin.
        memory.pinned.clear();
        memory.free_since.remove(&key);
        Ok(false)
    }

    /// The lvstore's own word that none of its lvols reads the snapshot or is about to. An error says why it is not known.
    async fn unread(&self, snapshot: Uuid, pin: &Pin) -> Result<(), String> {
        let what = Unread { lvstore: pin.lvstore, snapshot };
        if self.config.stores.get(pin.lvstore).is_some() {
            return self.outside.readers(&self.config.stores).answer(what);
        }
        let at = Origin { lvstore: pin.lvstore, node: Some(pin.reader.clone()) };
        let endpoint = self.ask_where(&at).await.map_err(|e| e.to_string())??;
        let certificates = self.outside.certificates.clone().ok_or("this node has no certificate")?;
        what.ask(endpoint, certificates).await
    }

    /// Ends what the reader has open of the snapshot.
    fn close(&self, snapshot: Uuid, reader: &str) {
        use coppice_nbd::server::Identity;
        let Some(server) = self.outside.server.get() else { return };
        server.close(|connection| {
            Uuid::parse_str(&connection.export) == Ok(snapshot)
                && connection.identity == Identity::Certified(reader.to_string())
        });
    }
}

/// True if the snapshot is pinned now. Whoever asks for a pin needs it.
async fn pin(store: &Store, snapshot: Uuid, pin: Pin, memory: &mut Memory) -> bool {
    let Pin { lvstore, reader } = pin.clone();
    memory.free_since.remove(&(snapshot, lvstore));
    match store.pin(snapshot, pin).await {
        Ok(_) => {
            info!(%snapshot, reader, %lvstore, "pinned");
            true
        }
        Err(e) => {
            warn!(%snapshot, reader, %lvstore, "not pinned: {e}");
            false
        }
    }
}

fn is_node(reader: &str) -> bool {
    !reader.is_empty() && reader.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}
