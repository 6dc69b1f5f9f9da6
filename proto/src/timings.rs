//! How long the calls of CSI take and how they end, under the name and with the labels and buckets that sidecars and other
//! drivers use, so that dashboards need not know whose they are.

use crate::capability::DRIVER_NAME;
use crate::exposition::{Exposition, Metric};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tower::{Layer, Service};

/// What [`Timings::expose`] writes.
pub const OPERATIONS: Metric = Metric::histogram(
    "csi_plugin_operations_seconds",
    "Container Storage Interface operation duration with gRPC error code status total",
);

/// Upper bounds of the buckets, seconds.
const BOUNDS: [f64; 13] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 25.0, 50.0, 120.0, 300.0, 600.0];
/// Only calls below it are counted: not those of the admin API.
const PREFIX: &str = "/csi.v1.";
/// Most pairs of method and code. CSI has fewer methods than that, but a caller may send any name.
const SERIES_MAX: usize = 512;

#[derive(Default)]
struct Series {
    buckets: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

type All = BTreeMap<(String, &'static str), Series>;

/// The calls of all servers that a clone of it is a layer of.
#[derive(Clone, Default)]
pub struct Timings(Arc<Mutex<All>>);

impl Timings {
    fn record(&self, method: &str, code: Code, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (method.to_string(), code_name(code));
        if all.len() >= SERIES_MAX && !all.contains_key(&key) {
            return;
        }
        let series = all.entry(key).or_default();
        let bucket = BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound).unwrap_or(BOUNDS.len());
        if let Some(bucket) = series.buckets.get_mut(bucket) {
            *bucket += 1;
        }
        series.sum = series.sum.saturating_add(took);
    }

    pub fn expose(&self, out: &mut Exposition) {
        let mut family = out.family(OPERATIONS);
        for ((method, code), series) in &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            let labels = [
                ("driver_name", DRIVER_NAME),
                ("grpc_status_code", code),
                ("method_name", method.as_str()),
                ("migrated", "false"),
            ];
            family.histogram(&labels, &BOUNDS, &series.buckets, series.sum.as_secs_f64());
        }
    }
}

/// As gRPC's libraries write it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

impl<S> Layer<S> for Timings {
    type Service = Timed<S>;

    fn layer(&self, inner: S) -> Timed<S> {
        Timed { inner, timings: self.clone() }
    }
}

/// A service whose calls are timed.
#[derive(Clone)]
pub struct Timed<S> {
    inner: S,
    timings: Timings,
}

impl<S, B, R> Service<Request<B>> for Timed<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let method = Some(request.uri().path()).filter(|path| path.starts_with(PREFIX)).map(String::from);
        // Whoever hangs up leaves it at this.
        let call = Call { timings: self.timings.clone(), method, began: Instant::now(), code: Code::Cancelled };
        let work = self.inner.call(request);
        Box::pin(async move {
            let answer = work.await;
            call.ends(answer.as_ref().map_or(Code::Unavailable, |answer| code_of(answer.headers())));
            answer
        })
    }
}

/// A refusal says so in its headers; what succeeds only has its code behind the answer.
fn code_of(headers: &HeaderMap) -> Code {
    headers.get("grpc-status").map_or(Code::Ok, |code| Code::from_bytes(code.as_bytes()))
}

/// A call that runs; it is recorded when it ends, however that comes.
struct Call {
    timings: Timings,
    method: Option<String>,
    began: Instant,
    code: Code,
}

impl Call {
    fn ends(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(method) = &self.method {
            self.timings.record(method, self.code, self.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Status;
    use tower::ServiceExt;

    fn text(timings: &Timings) -> String {
        let mut out = Exposition::default();
        timings.expose(&mut out);
        out.finish()
    }

    /// A server of one call; `None`: it never answers.
    async fn call(timings: &Timings, path: &str, answer: Option<Result<(), Status>>) {
        let inner = tower::service_fn(move |_: Request<()>| {
            let answer = answer.clone();
            async move {
                Ok::<_, std::convert::Infallible>(match answer {
                    Some(Ok(())) => Response::new(tonic::body::Body::empty()),
                    Some(Err(status)) => status.into_http(),
                    None => std::future::pending().await,
                })
            }
        });
        let request = Request::builder().uri(format!("http://x{path}")).body(()).unwrap_or_default();
        let _ = timings.layer(inner).oneshot(request).await;
    }

    #[tokio::test]
    async fn calls_are_counted_by_method_and_code() {
        let timings = Timings::default();
        call(&timings, "/csi.v1.Node/NodeStageVolume", Some(Ok(()))).await;
        call(&timings, "/csi.v1.Node/NodeStageVolume", Some(Ok(()))).await;
        call(&timings, "/csi.v1.Node/NodeStageVolume", Some(Err(Status::not_found("no")))).await;
        call(&timings, "/coppice.admin.v1.Admin/List", Some(Ok(()))).await;
        let left = call(&timings, "/csi.v1.Node/NodeGetInfo", None);
        assert!(tokio::time::timeout(Duration::from_millis(1), left).await.is_err());
        let text = text(&timings);
        let count = |code: &str, method: &str| {
            let labels = format!(
                "driver_name=\"{DRIVER_NAME}\",grpc_status_code=\"{code}\",method_name=\"/csi.v1.Node/{method}\",migrated=\"false\""
            );
            let line = format!("csi_plugin_operations_seconds_count{{{labels}}} ");
            let bucket = format!("csi_plugin_operations_seconds_bucket{{{labels},le=\"0.1\"}} ");
            let value = |line: &str| text.lines().find_map(|l| l.strip_prefix(line)).map(String::from);
            assert!(value(&bucket).is_some(), "{text}");
            value(&line)
        };
        assert_eq!(count("OK", "NodeStageVolume").as_deref(), Some("2"));
        assert_eq!(count("NotFound", "NodeStageVolume").as_deref(), Some("1"));
        assert_eq!(count("Canceled", "NodeGetInfo").as_deref(), Some("1"));
        assert!(!text.contains("admin"), "{text}");
    }

    #[test]
    fn times_lie_in_their_buckets_and_names_have_an_end() {
        let timings = Timings::default();
        for ms in [100, 101, 600_000, 600_001] {
            timings.record("/csi.v1.Node/A", Code::Ok, Duration::from_millis(ms));
        }
        let text1 = text(&timings);
        let of = |le: &str| {
            let end = format!("le=\"{le}\"}} ");
            text1.lines().find_map(|line| line.split_once(&end)).map(|(_, value)| value.to_string()).unwrap_or_default()
        };
        assert_eq!([of("0.1"), of("0.25"), of("600"), of("+Inf")], ["1", "2", "3", "4"]);
        for n in 0..SERIES_MAX * 2 {
            timings.record(&format!("/csi.v1.Node/{n}"), Code::Unimplemented, Duration::ZERO);
        }
        assert_eq!(text(&timings).matches("_count{").count(), SERIES_MAX);
    }
}
