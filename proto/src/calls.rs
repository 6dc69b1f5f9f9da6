//! Calls that run to their end.
//!
//! A call of CSI changes things in several steps. It runs in a task of its own, so that a client that hangs up does not cut
//! it in half, and a server that stops waits for it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tonic::{Response, Status};
use tracing::{Instrument, info, info_span};

/// Calls that run at a time; more of them queue.
const CALLS_MAX: u32 = 1024;

/// The running calls of a server. Clones count together.
#[derive(Clone)]
pub struct Calls {
    places: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

impl Default for Calls {
    fn default() -> Self {
        Calls { places: Arc::new(Semaphore::new(CALLS_MAX as usize)), next: Arc::default() }
    }
}

impl Calls {
    /// Runs a call to its end, under a span with its number and the object that it is about.
    pub async fn run<T, F>(&self, call: &'static str, object: &str, work: F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let stopping = |_| Status::unavailable("the driver is stopping");
        let place = self.places.clone().acquire_owned().await.map_err(stopping)?;
        let request = self.next.fetch_add(1, Ordering::Relaxed);
        let span = info_span!("csi", call, request, object);
        let task = tokio::spawn(
            async move {
                let _place = place;
                let answer = work.await;
                if let Err(refusal) = &answer {
                    info!(code = ?refusal.code(), "refused: {}", refusal.message());
                }
                answer
            }
            .instrument(span),
        );
        match task.await {
            Ok(answer) => answer.map(Response::new),
            Err(e) => Err(Status::unavailable(format!("{call} was cut off: {e}"))),
        }
    }

    /// Lets no new call begin and waits for those that run; false if some still run at the deadline.
    pub async fn finish(&self, deadline: Duration) -> bool {
        let done = tokio::time::timeout(deadline, self.places.acquire_many(CALLS_MAX)).await.is_ok();
        self.places.close();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_caller_that_leaves_does_not_cut_the_call() {
        let calls = Calls::default();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let work = calls.run("Test", "", async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = sender.send(());
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_millis(5), work).await.is_err());
        assert!(!calls.clone().finish(Duration::from_millis(1)).await);
        assert_eq!(receiver.await, Ok(()));
        let late = calls.run("Test", "", async { Ok(()) }).await;
        assert_eq!(late.map_err(|e| e.code()).err(), Some(tonic::Code::Unavailable));
    }
}
