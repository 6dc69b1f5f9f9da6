//! Lvstores of this node that are not open, and why: a volume that is not found may be in one of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Clones are the same list.
#[derive(Clone, Default)]
pub struct Absent(Arc<Mutex<BTreeMap<String, String>>>);

impl Absent {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if that is new.
    pub fn set(&self, lvstore: &str, why: impl Into<String>) -> bool {
        let why = why.into();
        self.all().insert(lvstore.into(), why.clone()) != Some(why)
    }

    /// It is open, or not expected any more.
    pub fn clear(&self, lvstore: &str) {
        self.all().remove(lvstore);
    }

    /// All of them, for a person; `None` if all are open.
    pub fn list(&self) -> Option<String> {
        let all = self.all();
        let said: Vec<String> = all.iter().map(|(name, why)| format!("{name}: {why}")).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}
