//! One call at a time per name and per id. Others queue, in order, up to a deadline.

use super::{Error, Result};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

pub struct Locks {
    held: Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>,
    deadline: Duration,
}

/// A call's turn; ends when it is dropped.
pub struct Turn {
    key: String,
    held: Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    pub fn new(deadline: Duration) -> Self {
        Locks { held: Arc::default(), deadline }
    }

    /// Waits for the key's turn. A caller that takes several keys takes names before ids.
    pub async fn take(&self, key: &str) -> Result<Turn> {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.entry(key.to_string()).or_default().clone()
        };
        let mut turn = Turn { key: key.to_string(), held: self.held.clone(), guard: None };
        match tokio::time::timeout(self.deadline, lock.lock_owned()).await {
            Ok(guard) => turn.guard = Some(guard),
            Err(_) => {
                let seconds = self.deadline.as_secs();
                let message = format!("another operation on {key} has been running for {seconds} s; try again");
                return Err(Error::Queue(message));
            }
        }
        Ok(turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else has the lock or waits for it: the map stays as small as what is running.
        if held.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            held.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn calls_on_one_key_queue_and_give_up() -> anyhow::Result<()> {
        let locks = Locks::new(Duration::from_millis(50));
        let first = locks.take("a").await?;
        let _other = locks.take("b").await?;
        assert!(matches!(locks.take("a").await, Err(Error::Queue(_))));
        let (second, ()) = tokio::join!(locks.take("a"), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(first);
        });
        drop(second?);
        assert_eq!(locks.held.lock().map(|held| held.len()).ok(), Some(1));
        Ok(())
    }
}
