//! The lvstores that are open in this process, as they come and go.

use crate::handle::Store;
use std::sync::{Arc, PoisonError, RwLock};
use uuid::Uuid;

/// A set of open stores. Clones are the same set.
///
/// Whoever looks takes what is open at that moment; a store that is closed meanwhile refuses the work.
#[derive(Clone, Default)]
pub struct Stores(Arc<RwLock<Arc<[Store]>>>);

impl Stores {
    pub fn all(&self) -> Arc<[Store]> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn get(&self, uuid: Uuid) -> Option<Store> {
        self.all().iter().find(|store| store.uuid() == uuid).cloned()
    }

    /// A store of the same UUID is replaced.
    pub fn add(&self, store: Store) {
        self.change(|all| {
            all.retain(|other| other.uuid() != store.uuid());
            all.push(store);
        });
    }

    /// The store is still open, and the caller's to close.
    pub fn remove(&self, uuid: Uuid) -> Option<Store> {
        self.change(|all| {
            let at = all.iter().position(|store| store.uuid() == uuid)?;
            Some(all.remove(at))
        })
    }

    fn change<T>(&self, how: impl FnOnce(&mut Vec<Store>) -> T) -> T {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut all = now.to_vec();
        let answer = how(&mut all);
        *now = all.into();
        answer
    }
}

impl From<Vec<Store>> for Stores {
    fn from(stores: Vec<Store>) -> Self {
        Stores(Arc::new(RwLock::new(stores.into())))
    }
}
