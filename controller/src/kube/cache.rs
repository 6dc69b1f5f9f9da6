//! What the API server has of one kind, kept up to date by a watch.
//!
//! Reading it costs nothing. It may lag, so what it does not have is no proof; what decides is a write.

use futures_util::StreamExt;
use kube::api::Api;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_kind};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

/// Objects by name.
pub type Objects<K> = BTreeMap<String, Arc<K>>;

pub struct Cache<K> {
    objects: RwLock<Objects<K>>,
    /// Counts changes; 0 until the first list is complete.
    changes: watch::Sender<u64>,
}

impl<K> Cache<K> {
    fn empty() -> Arc<Cache<K>> {
        Arc::new(Cache { objects: RwLock::default(), changes: watch::Sender::new(0) })
    }

    /// Looks at all objects at one moment. `look` must be quick: the watch waits for it.
    pub fn look<T>(&self, look: impl FnOnce(&Objects<K>) -> T) -> T {
        look(&self.objects.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn get(&self, name: &str) -> Option<Arc<K>> {
        self.look(|objects| objects.get(name).cloned())
    }

    pub fn all(&self) -> Vec<Arc<K>> {
        self.look(|objects| objects.values().cloned().collect())
    }

    /// True once the first list is complete.
    pub fn is_synced(&self) -> bool {
        *self.changes.borrow() > 0
    }

    pub async fn synced(&self) {
        // The sender lives as long as we do.
        let _ = self.changes.subscribe().wait_for(|changes| *changes > 0).await;
    }

    /// Asks `look` now and after every change, until it answers or the deadline is there.
    pub async fn wait<T>(&self, deadline: Instant, mut look: impl FnMut(&Objects<K>) -> Option<T>) -> Option<T> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = self.look(&mut look) {
                return Some(found);
            }
            tokio::time::timeout_at(deadline, changes.changed()).await.ok()?.ok()?;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Objects<K>)) {
        change(&mut self.objects.write().unwrap_or_else(PoisonError::into_inner));
        self.changes.send_modify(|changes| *changes += 1);
    }
}

impl<K> Cache<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Begins to watch, in a task of `tasks`. `slim` takes away what nobody reads.
    pub fn start(api: Api<K>, tasks: &mut JoinSet<()>, slim: fn(&mut K)) -> Arc<Cache<K>> {
        let cache = Cache::empty();
        let kept = cache.clone();
        tasks.spawn(async move {
            let mut events = watch_kind(api, watcher::Config::default()).default_backoff().boxed();
            let mut listed = Objects::new();
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => kept.apply(event.modify(slim), &mut listed),
                    Err(e) => warn!(kind = %K::kind(&()), "the watch is begun again: {e}"),
                }
            }
        });
        cache
    }

    fn apply(&self, event: Event<K>, listed: &mut Objects<K>) {
        match event {
            Event::Init => listed.clear(),
            Event::InitApply(object) => {
                listed.insert(object.name_any(), Arc::new(object));
            }
            Event::InitDone => self.change(|objects| *objects = std::mem::take(listed)),
            Event::Apply(object) => self.change(|objects| {
                objects.insert(object.name_any(), Arc::new(object));
            }),
            Event::Delete(object) => self.change(|objects| {
                objects.remove(&object.name_any());
            }),
        }
    }
}
