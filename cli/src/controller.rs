//! `coppice controller`: CSI Controller over the objects of the Kubernetes API, for the sidecars in its own pod.
//!
//! Any number of replicas may run: each serves its own sidecars, and the objects are what they share. Only the work that
//! nobody asks for (`background`) is done by one at a time.

use crate::http;
use crate::serving::Signals;
use anyhow::{Context, Result};
use clap::Args;
use coppice_controller::csi::{ControllerService, IdentityService};
use coppice_controller::kube::{Background, KubeBackend};
use coppice_controller::volume::Volumes;
use coppice_proto::calls::Calls;
use coppice_proto::csi::v1::controller_server::ControllerServer;
use coppice_proto::csi::v1::identity_server::IdentityServer;
use coppice_proto::exposition::Exposition;
use coppice_proto::timings::Timings;
use coppice_proto::unix;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server as Grpc;
use tracing::{info, warn};

/// How long calls that are running may take to end; a pod has 30 s by default.
const DRAIN_SECONDS_MAX: u64 = 20;
/// How long the API server may take to let another replica have the lease.
const LEASE_SECONDS_MAX: u64 = 5;

#[derive(Args, Clone, Debug)]
pub struct ControllerArgs {
    /// The unix socket of CSI, as unix:///path/to/csi.sock
    #[arg(long, env = "CSI_ENDPOINT", value_name = "unix://PATH")]
    pub endpoint: String,
    /// Where health, readiness and metrics are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
    /// Name of this pod, by which replicas tell each other apart
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub pod_name: String,
    /// Namespace of this pod, where the replicas' Lease is
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAME")]
    pub pod_namespace: String,
}

pub async fn run(args: ControllerArgs) -> Result<()> {
    let mut signals = Signals::new()?;
    let endpoint = unix::parse_endpoint(&args.endpoint).map_err(anyhow::Error::msg)?;
    let client = kube::Client::try_default().await.context("find the API server: kubeconfig, or the pod's account")?;
    let backend = Arc::new(KubeBackend::start(client.clone()));
    let background = Background::new(client, backend.clone(), args.pod_namespace, args.pod_name);
    let (calls, timings) = (Calls::default(), Timings::default());
    let (stop, stopped) = watch::channel(false);
    let mut serving: JoinSet<Result<()>> = JoinSet::new();
    if let Some(at) = args.http {
        let (backend, background, timings) = (backend.clone(), background.clone(), timings.clone());
        let metrics = move || {
            let mut out = Exposition::of("controller");
            background.metrics(&mut out);
            timings.expose(&mut out);
            std::future::ready(out.finish())
        };
        serving.spawn(http::serve(at, move || backend.is_synced(), metrics));
    }
    let csi = serve(backend, calls.clone(), timings, &endpoint, stopped.clone());
    let mut csi = std::pin::pin!(csi);
    let mut work = tokio::spawn(background.run(stopped));
    let ended = tokio::select! {
        () = signals.any() => Ok(()),
        ended = &mut csi => ended.context("the CSI socket is not served any more"),
        ended = &mut work => ended.context("the background work ended"),
        Some(ended) = serving.join_next() => ended.context("http ended").and_then(|ended| ended),
    };
    let _ = stop.send(true);
    let limit = Duration::from_secs(DRAIN_SECONDS_MAX);
    // Answers are written out, then nothing more comes.
    let drained = match &ended {
        Ok(()) => tokio::time::timeout(limit, csi).await.is_ok() && calls.finish(limit).await,
        Err(_) => calls.finish(limit).await,
    };
    if !work.is_finished() {
        let _ = tokio::time::timeout(Duration::from_secs(LEASE_SECONDS_MAX), &mut work).await;
    }
    if !drained {
        warn!("calls are still running after {DRAIN_SECONDS_MAX} s: cut off; their retries find what they left");
    }
    let _ = std::fs::remove_file(&endpoint);
    ended
}

/// Serves CSI once the cluster's objects are known: sidecars wait for the socket.
async fn serve(
    backend: Arc<KubeBackend>,
    calls: Calls,
    timings: Timings,
    endpoint: &Path,
    mut stopped: watch::Receiver<bool>,
) -> Result<()> {
    tokio::select! {
        () = backend.synced() => {}
        _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
    }
    let volumes = Arc::new(Volumes::new(backend));
    let router = Grpc::builder()
        .layer(timings)
        .add_service(IdentityServer::new(IdentityService { alpha: false }))
        .add_service(ControllerServer::new(ControllerService::new(volumes, calls, false)));
    let listener = unix::listen(endpoint).with_context(|| format!("listen on {}", endpoint.display()))?;
    info!(endpoint = %endpoint.display(), "serving");
    let until = async move {
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    Ok(router.serve_with_incoming_shutdown(UnixListenerStream::new(listener), until).await?)
}
