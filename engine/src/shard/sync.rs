//! Waiting for a condition that other tasks, possibly on other shards, bring about.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Tasks that wait for something guarded by the lock that also guards this list.
#[derive(Default)]
pub struct WaitList(Vec<Waker>);

impl WaitList {
    pub fn register(&mut self, cx: &Context<'_>) {
        if !self.0.iter().any(|w| w.will_wake(cx.waker())) {
            self.0.push(cx.waker().clone());
        }
    }

    /// All look at their condition again.
    pub fn wake_all(&mut self) {
        for waker in self.0.drain(..) {
            waker.wake();
        }
    }
}

/// Locks, whatever became of an earlier holder: the data is consistent at every unlock or the process is gone.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until `ready` answers; it registers the context in the right list when it answers `Pending`.
pub async fn wait_until<T, R>(mutex: &Mutex<T>, mut ready: impl FnMut(&mut T, &mut Context<'_>) -> Poll<R>) -> R {
    poll_fn(|cx| ready(&mut lock(mutex), cx)).await
}

/// A value set once, awaited by many.
pub struct Once<T>(Mutex<(Option<T>, WaitList)>);

impl<T: Clone> Default for Once<T> {
    fn default() -> Self {
        Once(Mutex::new((None, WaitList::default())))
    }
}

impl<T: Clone> Once<T> {
    pub fn set(&self, value: T) {
        let mut guard = lock(&self.0);
        if guard.0.is_none() {
            guard.0 = Some(value);
        }
        guard.1.wake_all();
    }

    pub fn get(&self) -> Option<T> {
        lock(&self.0).0.clone()
    }

    pub async fn wait(&self) -> T {
        wait_until(&self.0, |(value, list), cx| match value {
            Some(v) => Poll::Ready(v.clone()),
            None => {
                list.register(cx);
                Poll::Pending
            }
        })
        .await
    }
}

/// A value that one task at a time may hold across waits.
pub struct AsyncMutex<T>(Mutex<(Option<T>, WaitList)>);

impl<T> AsyncMutex<T> {
    pub fn new(value: T) -> Self {
        AsyncMutex(Mutex::new((Some(value), WaitList::default())))
    }

    pub async fn acquire(&self) -> AsyncGuard<'_, T> {
        let value = wait_until(&self.0, |(value, list), cx| match value.take() {
            Some(v) => Poll::Ready(v),
            None => {
                list.register(cx);
                Poll::Pending
            }
        })
        .await;
        AsyncGuard { mutex: self, value: Some(value) }
    }
}

/// Gives the value back when it is dropped.
pub struct AsyncGuard<'a, T> {
    mutex: &'a AsyncMutex<T>,
    value: Option<T>,
}

impl<T> std::ops::Deref for AsyncGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.value.as_ref().expect("present until drop")
    }
}

impl<T> std::ops::DerefMut for AsyncGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("present until drop")
    }
}

impl<T> Drop for AsyncGuard<'_, T> {
    fn drop(&mut self) {
        let mut state = lock(&self.mutex.0);
        state.0 = self.value.take();
        state.1.wake_all();
    }
}
