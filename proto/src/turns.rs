//! One call at a time per name and per id. Others queue, in order, up to a deadline.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

type Held = Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>;

pub struct Turns {
    held: Held,
    deadline: Duration,
}

/// A call's turn; ends when it is dropped.
pub struct Turn {
    key: String,
    held: Held,
    guard: Option<OwnedMutexGuard<()>>,
}

/// The turn did not come in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooLong(pub String);

impl Turns {
    pub fn new(deadline: Duration) -> Self {
        Turns { held: Arc::default(), deadline }
    }

    /// Waits for the key's turn. A caller that takes several keys takes names before ids.
    pub async fn take(&self, key: &str) -> Result<Turn, TooLong> {
        let lock = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.entry(key.to_string()).or_default().clone()
        };
        let mut turn = Turn { key: key.to_string(), held: self.held.clone(), guard: None };
        match tokio::time::timeout(self.deadline, lock.lock_owned()).await {
            Ok(guard) => turn.guard = Some(guard),
            Err(_) => {
                let seconds = self.deadline.as_secs();
                return Err(TooLong(format!("another operation on {key} has been running for {seconds} s; try again")));
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
    async fn calls_on_one_key_queue_and_give_up() {
        let turns = Turns::new(Duration::from_millis(50));
        let first = turns.take("a").await;
        let _other = turns.take("b").await;
        assert!(turns.take("a").await.is_err());
        let (second, ()) = tokio::join!(turns.take("a"), async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(first);
        });
        assert!(second.is_ok());
        drop(second);
        assert_eq!(turns.held.lock().map(|held| held.len()).ok(), Some(1));
    }
}
