//! Calls that run to their end.
//!
//! A call of CSI changes things in several steps. It runs in a task of its own, so that a client that hangs up does not cut
//! it in half, and a server that stops waits for it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use tracing::{Instrument, info, info_span};

/// Calls that run at a time; more of them queue.
const CALLS_MAX: u32 = 1024;

tokio::task_local! {
    static DEADLINE: Option<Instant>;
}

/// When the caller of the running call gives up, if it said so.
pub fn deadline() -> Option<Instant> {
    DEADLINE.try_with(|deadline| *deadline).ok().flatten()
}

/// How long the caller waits, from the header that every gRPC client with a timeout sends: up to eight digits and a unit.
fn timeout(headers: &MetadataMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

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

    /// The same for a call that may have to wait long: [`deadline`] tells its work when the caller gives up.
    pub async fn run_in_time<T, F>(
        &self,
        call: &'static str,
        object: &str,
        headers: &MetadataMap,
        work: F,
    ) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let deadline = timeout(headers).map(|timeout| Instant::now() + timeout);
        self.run(call, object, DEADLINE.scope(deadline, work)).await
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

    #[test]
    fn timeouts_of_callers() {
        let read = |text: &'static str| {
            let mut headers = MetadataMap::new();
            headers.insert("grpc-timeout", tonic::metadata::MetadataValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(read("60S"), Some(Duration::from_secs(60)));
        assert_eq!(read("59999m"), Some(Duration::from_millis(59999)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "S", "10", "-1S", "+1S", "123456789S", "1s"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(timeout(&MetadataMap::new()), None);
    }

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
