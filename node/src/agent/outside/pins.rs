//! Pins of our snapshots: made for each Lvol that is to read one, and taken away when nothing in that lvstore does any more.
//!
//! A pin is taken away only if the API server itself says so, asked in this order: no Lvol object of that lvstore is still to be
//! made from the snapshot, and then, its Lvstore object does not name it. That object names it before the lvol exists, so
//! both together cannot be true of one that is read. While it is asked the snapshot is shut for the reader, so nobody new
//! begins to read it in between; and all of it has to have been so for a while (`unpin_after`).
//!
//! A lvstore counts as lost when there is neither a Lvstore object nor any Lvol object of it: whoever deletes all of them has
//! said so. A node that is gone, silent or cut off says nothing.

use super::super::Agent;
use super::super::failure::{Failure, ask};
use super::whereabouts::lvstores_of;
use coppice_engine::{ErrorKind, Pin, Store};
use coppice_kube_api::{Lvol, LvolCondition, Lvstore, SELECT_LVSTORE, SELECT_SOURCE_NODE};
use futures_util::StreamExt;
use kube::api::ListParams;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};
use tracing::{info, warn};
use uuid::Uuid;

/// How often all pins are looked at, at least.
const LOOK: Duration = Duration::from_secs(60);
/// Most lvols whose pin is remembered to be there.
const REMEMBERED_MAX: usize = 4096;

/// What was found out about pins.
#[derive(Default)]
pub struct Memory {
    /// UIDs of objects whose snapshot was pinned for them.
    pinned: HashSet<String>,
    /// Since when nothing needs a pin: (snapshot, lvstore).
    free_since: HashMap<(Uuid, Uuid), Instant>,
}

/// Pins and unpins, until this is dropped.
pub async fn run(agent: &Agent) {
    let Some(export) = &agent.outside.export else { return };
    agent.tried().await;
    let api: Api<Lvol> = Api::all(agent.config.client.clone());
    let of_ours = watcher::Config::default().fields(&format!("{SELECT_SOURCE_NODE}={}", agent.config.node));
    let (reader, writer) = reflector::store();
    let mut events = Box::pin(reflector(writer, watcher(api, of_ours)).default_backoff());
    let short = export.unpin_after.min(LOOK);
    let look = export.unpin_after.saturating_mul(2).min(LOOK);
    let mut next = Instant::now();
    loop {
        let mut release = false;
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                Some(Ok(Event::Apply(object))) => release = !may_depend(&object),
                Some(Ok(Event::InitDone | Event::Delete(_))) => release = true,
                Some(Err(e)) => warn!("the watch of those who read our snapshots: {e}"),
                None => return,
            },
            () = agent.outside.look.notified() => release = true,
            () = tokio::time::sleep_until(next.into()) => release = true,
        }
        for object in reader.state() {
            agent.pin_for(&object).await;
        }
        if release {
            let waits = match agent.release().await {
                Ok(waits) => waits,
                Err(e) => {
                    warn!("pins stay for now: {e}");
                    false
                }
            };
            next = Instant::now() + if waits { short } else { look };
        }
    }
}

/// Unless it says that it does not read our snapshot any more.
fn may_depend(object: &Lvol) -> bool {
    let conditions = object.status.iter().flat_map(|status| &status.conditions);
    let mut over = conditions.filter(|c| c.type_ == LvolCondition::Dependent.as_str() && c.status == "False");
    over.next().is_none()
}

/// What the API server says of a pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Needed,
    /// It is named, but nothing seems to need it: soon it is not named any more.
    Named,
    Free,
}

impl Agent {
    fn store_with(&self, snapshot: Uuid) -> Option<Store> {
        self.config.stores.all().iter().find(|store| store.lvstore().lvol(snapshot).is_ok()).cloned()
    }

    /// Pins what an object is to read. One that was made has its pin.
    async fn pin_for(&self, object: &Lvol) {
        let made = object.status.as_ref().is_some_and(|status| status.created.is_some());
        let uid = object.uid().unwrap_or_default();
        let mut memory = self.outside.pinning.lock().await;
        if made || object.metadata.deletion_timestamp.is_some() || memory.pinned.contains(&uid) {
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
        memory.free_since.remove(&(of.snapshot, spec.lvstore_uuid));
        let pin = Pin { lvstore: spec.lvstore_uuid, reader: spec.node.clone() };
        match store.pin(of.snapshot, pin).await {
            Ok(_) => {
                info!(snapshot = %of.snapshot, reader = spec.node, lvstore = %spec.lvstore_uuid, "pinned");
                true
            }
            Err(e) => {
                warn!(snapshot = %of.snapshot, reader = spec.node, "not pinned: {e}");
                false
            }
        }
    }

    /// Asks who is to read a snapshot, and pins it for those.
    pub(super) async fn pin_readers_of(&self, snapshot: Uuid) -> Result<(), Failure> {
        let mut memory = self.outside.pinning.lock().await;
        let api: Api<Lvol> = Api::all(self.config.client.clone());
        let of_ours = ListParams::default().fields(&format!("{SELECT_SOURCE_NODE}={}", self.config.node));
        let readers = ask(api.list(&of_ours)).await?.items;
        let reads =
            |object: &&Lvol| object.spec.outside().is_some_and(|of| of.snapshot == snapshot) && may_depend(object);
        for object in readers.iter().filter(reads) {
            let leaving = object.metadata.deletion_timestamp.is_some();
            if !leaving && !self.pin(object, &mut memory).await && self.store_with(snapshot).is_some() {
                return Err(Failure::Unsaid(format!("{} is to read it, and it cannot be pinned", object.name_any())));
            }
        }
        Ok(())
    }

    /// Takes away the pins that nothing needs any more. True if one may soon be such.
    async fn release(&self) -> Result<bool, Failure> {
        let mut waits = false;
        let mut there = HashSet::new();
        for store in self.config.stores.all().iter() {
            for lvol in store.lvstore().lvols().iter().filter(|lvol| !lvol.pins.is_empty()) {
                // Others, by hand, name readers that are no nodes; those pins are theirs.
                for pin in lvol.pins.iter().filter(|pin| is_node(&pin.reader)) {
                    there.insert((lvol.uuid, pin.lvstore));
                    waits |= self.release_one(store, lvol.uuid, pin).await?;
                }
            }
        }
        self.outside.pinning.lock().await.free_since.retain(|key, _| there.contains(key));
        Ok(waits)
    }

    /// True if it is to be looked at again soon.
    async fn release_one(&self, store: &Store, snapshot: Uuid, pin: &Pin) -> Result<bool, Failure> {
        let key = (snapshot, pin.lvstore);
        let after = self.outside.export.as_ref().map_or(LOOK, |export| export.unpin_after);
        let mut memory = self.outside.pinning.lock().await;
        let word = self.word_of(snapshot, pin).await?;
        if word != Word::Free {
            memory.free_since.remove(&key);
            return Ok(word == Word::Named);
        }
        let since = *memory.free_since.entry(key).or_insert_with(Instant::now);
        if since.elapsed() < after {
            return Ok(true);
        }
        // Nobody begins to read it from here on; and then it is asked once more.
        let _shut = self.outside.gate.shut(snapshot, &pin.reader);
        self.close(snapshot, &pin.reader);
        if self.word_of(snapshot, pin).await? != Word::Free {
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

    /// Ends what the reader has open of the snapshot.
    fn close(&self, snapshot: Uuid, reader: &str) {
        use coppice_nbd::server::Identity;
        let Some(server) = self.outside.server.get() else { return };
        server.close(|connection| {
            Uuid::parse_str(&connection.export) == Ok(snapshot)
                && connection.identity == Identity::Certified(reader.to_string())
        });
    }

    /// Whether nothing in the pin's lvstore reads the snapshot or is about to, as the API server has it now.
    async fn word_of(&self, snapshot: Uuid, pin: &Pin) -> Result<Word, Failure> {
        let lvols: Api<Lvol> = Api::all(self.config.client.clone());
        let in_it = ListParams::default().fields(&format!("{SELECT_LVSTORE}={}", pin.lvstore));
        let lvols = ask(lvols.list(&in_it)).await?.items;
        let to_come = |lvol: &Lvol| {
            let made = lvol.status.as_ref().is_some_and(|status| status.created.is_some());
            !made && lvol.spec.outside().is_some_and(|of| of.snapshot == snapshot)
        };
        if lvols.iter().any(to_come) {
            return Ok(Word::Needed);
        }
        let depends = |lvol: &Lvol| lvol.spec.outside().is_some_and(|of| of.snapshot == snapshot) && may_depend(lvol);
        let otherwise = if lvols.iter().any(depends) { Word::Needed } else { Word::Named };
        // Only after that.
        let api: Api<Lvstore> = Api::all(self.config.client.clone());
        let objects = lvstores_of(&api, pin.lvstore, Some(&pin.reader)).await?;
        if objects.is_empty() {
            return Ok(if lvols.is_empty() { Word::Free } else { otherwise });
        }
        let free = objects.iter().all(|object| {
            let named = object.status.as_ref().and_then(|status| status.external_parents.as_ref());
            // One that does not say what it depends on may depend on anything.
            named.is_some_and(|named| named.iter().all(|parent| parent.snapshot_uuid != snapshot))
        });
        Ok(if free { Word::Free } else { otherwise })
    }
}

fn is_node(reader: &str) -> bool {
    !reader.is_empty() && reader.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
}
