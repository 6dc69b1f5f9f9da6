//! The Lvstore objects of this node, each in the care of a [`Keeper`] of its own: a device that hangs delays no other.

use super::Agent;
use super::keeper::{Keeper, View};
use coppice_kube_api::{Lvstore, SELECT_NODE};
use futures_util::StreamExt;
use futures_util::future::join_all;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, ResourceExt};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;
use uuid::Uuid;

/// How long keepers may take to end what they began.
const END_SECONDS_MAX: u64 = 10;
/// Stands for every lvstore while it is not known which there are.
const UNNAMED: &str = "all lvstores";

/// The keepers at work, by the names of their objects.
struct Keepers {
    agent: Arc<Agent>,
    stop: watch::Receiver<bool>,
    views: BTreeMap<String, Kept>,
    tasks: JoinSet<()>,
}

struct Kept {
    view: watch::Sender<View>,
    tried: watch::Receiver<bool>,
}

pub async fn run(agent: Arc<Agent>, mut stop: watch::Receiver<bool>) {
    let api: Api<Lvstore> = Api::all(agent.config.client.clone());
    let own = watcher::Config::default().fields(&format!("{SELECT_NODE}={}", agent.config.node));
    let (reader, writer) = reflector::store();
    let mut events = Box::pin(reflector(writer, watcher(api, own)).default_backoff());
    let _ = agent.lvstores.set(reader.clone());
    agent.config.absent.set(UNNAMED, "the API server has not named them yet");
    let mut keepers =
        Keepers { agent: agent.clone(), stop: stop.clone(), views: BTreeMap::new(), tasks: JoinSet::new() };
    let mut listed = false;
    let mut without_api = pin!(tokio::time::sleep(agent.config.timing.api));
    let mut waits_for_api = true;
    loop {
        tokio::select! {
            biased;
            // First of all: a keeper that ends because of it is not hired again.
            () = stopped(&mut stop) => break,
            event = events.next() => match event {
                Some(Ok(Event::Init | Event::InitApply(_))) => continue,
                Some(Ok(Event::InitDone)) if !listed => {
                    listed = true;
                    keepers.show(reader.state());
                    agent.config.absent.clear(UNNAMED);
                    keepers.say_when_tried(true);
                }
                Some(Ok(_)) => keepers.show(reader.state()),
                Some(Err(e)) => warn!("the watch of lvstores: {e}"),
                None => break,
            },
            () = &mut without_api, if waits_for_api && !listed => {
                waits_for_api = false;
                keepers.open_remembered().await;
            }
            // Its object may be there again.
            Some(_) = keepers.tasks.join_next() => keepers.show(reader.state()),
        }
    }
    let end = Duration::from_secs(END_SECONDS_MAX);
    let ended = async { while keepers.tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(end, ended).await.is_err() {
        warn!("a device does not answer: what was begun with it is left");
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

impl Keepers {
    /// Shows every keeper its object, and hires those that are missing.
    fn show(&mut self, mut objects: Vec<Arc<Lvstore>>) {
        objects
            .sort_by_key(|object| (object.metadata.creation_timestamp.clone().map(|time| time.0), object.name_any()));
        let known: Vec<Uuid> = objects.iter().filter_map(|o| o.status.as_ref()?.uuid).collect();
        super::lock(&self.agent.lost).retain(|uuid, _| known.contains(uuid));
        self.views.retain(|_, kept| !kept.view.is_closed());
        for (name, kept) in &self.views {
            if !objects.iter().any(|object| object.name_any() == *name) {
                kept.show(View::Gone);
            }
        }
        for (at, object) in objects.iter().enumerate() {
            let earlier = objects.get(..at).unwrap_or_default();
            let twin =
                |other: &&Arc<Lvstore>| other.spec.name == object.spec.name || other.spec.device == object.spec.device;
            let twin = earlier.iter().find(twin).map(|twin| twin.name_any());
            self.keeper(&object.name_any()).show(View::Is { object: object.clone(), twin });
        }
    }

    /// The API server has not answered: what was open before is opened, so that its volumes can be used.
    async fn open_remembered(&mut self) {
        let mut notes = self.agent.memory.all().await;
        notes.retain(|_, note| note.node == self.agent.config.node);
        warn!(stores = notes.len(), "the API server does not answer: what was open before is opened without it");
        for (name, note) in notes {
            self.keeper(&name).show(View::Remembered(note));
        }
        self.say_when_tried(false);
    }

    fn keeper(&mut self, name: &str) -> &Kept {
        self.views.entry(name.into()).or_insert_with(|| {
            let (view, views) = watch::channel(View::Unknown);
            let (tried, is_tried) = watch::channel(false);
            let keeper = Keeper::new(self.agent.clone(), name.into(), tried);
            self.tasks.spawn(keeper.run(views, self.stop.clone()));
            Kept { view, tried: is_tried }
        })
    }

    /// Lets volumes be used once every store that is known now was tried, or some seconds have passed. `listed`: these are
    /// all the stores that there are.
    fn say_when_tried(&self, listed: bool) {
        let agent = self.agent.clone();
        let tried: Vec<_> = self.views.values().map(|kept| kept.tried.clone()).collect();
        tokio::spawn(async move {
            let all = join_all(tried.into_iter().map(async |mut one| {
                let _ = one.wait_for(|tried| *tried).await;
            }));
            if tokio::time::timeout(agent.config.timing.tried, all).await.is_err() {
                warn!("not every lvstore was tried in time: volumes of the others can be used");
            }
            agent.tried.send_replace(true);
            if listed {
                agent.listed.send_replace(true);
            }
        });
    }
}

impl Kept {
    fn show(&self, view: View) {
        self.view.send_if_modified(|old| {
            let new = *old != view;
            if new {
                *old = view;
            }
            new
        });
    }
}
