//! Health, readiness and metrics, over plain HTTP for kubelet and Prometheus.
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | 200 as long as the process serves |
//! | `/readyz` | 200 once it does its work, else 503 |
//! | `/metrics` | the text of Prometheus, version 0.0.4 |

use anyhow::{Context, Result};
use bytes::Bytes;
use coppice_proto::exposition;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tracing::{debug, info};

/// Connections at a time; more of them wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to say what it wants.
const HEADER_SECONDS_MAX: u64 = 10;

/// Serves until the future is dropped. `ready` and `metrics` are called once for each request, and must not block for long.
/// Port 0 is any free port; the log says which.
pub async fn serve<M>(
    at: SocketAddr,
    ready: impl Fn() -> bool + Send + Sync + 'static,
    metrics: impl Fn() -> M + Send + Sync + 'static,
) -> Result<()>
where
    M: Future<Output = String> + Send + 'static,
{
    let listener = TcpListener::bind(at).await.with_context(|| format!("listen on {at}"))?;
    info!(at = %listener.local_addr().unwrap_or(at), "health and metrics");
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let answers = Arc::new((ready, metrics));
    loop {
        let place = places.clone().acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) => {
                // Out of descriptors, or a client that left: neither may end this.
                debug!("accept: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let answers = answers.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: Request<Incoming>| {
                let answers = answers.clone();
                async move {
                    let path = request.uri().path();
                    Ok::<_, Infallible>(answer(request.method(), path, &answers.0, &answers.1).await)
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(HEADER_SECONDS_MAX));
            if let Err(e) = http.serve_connection(TokioIo::new(stream), service).await {
                debug!("http: {e}");
            }
        });
    }
}

async fn answer<M: Future<Output = String>>(
    method: &Method,
    path: &str,
    ready: &impl Fn() -> bool,
    metrics: &impl Fn() -> M,
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/healthz") => (StatusCode::OK, "text/plain", "ok\n".into()),
        (&Method::GET | &Method::HEAD, "/readyz") => match ready() {
            true => (StatusCode::OK, "text/plain", "ok\n".into()),
            false => (StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".into()),
        },
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, exposition::CONTENT_TYPE, metrics().await),
        _ => (StatusCode::NOT_FOUND, "text/plain", "there are /healthz, /readyz and /metrics\n".into()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_answered() {
        let ask = async |method: &Method, path: &str, ready: bool| {
            answer(method, path, &|| ready, &async || "a 1\n".into()).await.status().as_u16()
        };
        assert_eq!(ask(&Method::GET, "/healthz", false).await, 200);
        assert_eq!(ask(&Method::GET, "/readyz", false).await, 503);
        assert_eq!(ask(&Method::GET, "/readyz", true).await, 200);
        assert_eq!(ask(&Method::GET, "/metrics", false).await, 200);
        assert_eq!(ask(&Method::POST, "/metrics", true).await, 404);
        assert_eq!(ask(&Method::GET, "/", true).await, 404);
    }
}
