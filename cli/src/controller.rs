//! `coppice controller`: CSI Controller over the objects of the Kubernetes API, for the sidecars in its own pod.
//!
//! Any number of replicas may run: each serves its own sidecars, and the objects are what they share. Only the work that
//! nobody asks for (`background`) is done by one at a time.

use crate::http;
use crate::serving::{Serving, Signals};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use coppice_controller::csi::{ControllerService, IdentityService};
use coppice_controller::kube::{Background, KubeBackend};
use coppice_controller::volume::Volumes;
use coppice_proto::csi::v1::controller_server::ControllerServer;
use coppice_proto::csi::v1::identity_server::IdentityServer;
use coppice_proto::exposition::Exposition;
use coppice_proto::unix;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tracing::info;

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
    let mut serving = Serving::new();
    let (of, told, timings) = (backend.clone(), background.clone(), serving.timings.clone());
    let metrics = move || {
        let mut out = Exposition::of("controller");
        told.metrics(&mut out);
        timings.expose(&mut out);
        std::future::ready(out.finish())
    };
    let http = async {
        match args.http {
            Some(at) => http::serve(at, move || of.is_synced(), metrics).await,
            None => std::future::pending().await,
        }
    };
    let mut http = std::pin::pin!(http);
    let stop = watch::Sender::new(false);
    let mut work = tokio::spawn(background.run(stop.subscribe()));
    let ended = tokio::select! {
        // Only then the cluster's objects are known: sidecars wait for the socket.
        () = backend.synced() => {
            let volumes = Arc::new(Volumes::new(backend.clone()));
            let csi = serving
                .grpc()
                .add_service(IdentityServer::new(IdentityService { alpha: false }))
                .add_service(ControllerServer::new(ControllerService::new(volumes, serving.calls.clone(), false)));
            serving.serve(csi, &endpoint)?;
            info!(endpoint = %endpoint.display(), "serving");
            tokio::select! {
                ended = serving.until_stopped(signals) => ended,
                _ = &mut work => Err(anyhow!("the background work ended")),
                ended = &mut http => ended,
            }
        }
        () = signals.any() => Ok(()),
        _ = &mut work => Err(anyhow!("the background work ended")),
        ended = &mut http => ended,
    };
    let _ = stop.send(true);
    serving.drain().await;
    if !work.is_finished() {
        let _ = tokio::time::timeout(Duration::from_secs(LEASE_SECONDS_MAX), &mut work).await;
    }
    serving.remove_sockets();
    ended
}
