//! How kubelet learns of the driver: it watches a directory for sockets, asks each what it is, and answers how that went.

use coppice_proto::registration::registration_server::{Registration, RegistrationServer};
use coppice_proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use std::path::{Path, PathBuf};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

/// Versions of the CSI API, as kubelet counts them.
const SUPPORTED_VERSIONS: &str = "1.0.0";

pub struct Registrar {
    driver: String,
    /// The socket of CSI, as the host sees it.
    endpoint: PathBuf,
    registered: watch::Sender<bool>,
}

impl Registrar {
    pub fn new(driver: &str, endpoint: &Path) -> (RegistrationServer<Registrar>, watch::Receiver<bool>) {
        let (registered, seen) = watch::channel(false);
        let registrar = Registrar { driver: driver.into(), endpoint: endpoint.into(), registered };
        (RegistrationServer::new(registrar), seen)
    }

    /// Where kubelet looks.
    ///
    /// Kubelet names the socket's path as the authority of its requests, with `%2F` for each slash. A host has no such
    /// character, so HTTP libraries refuse the request (kubernetes/kubernetes#109081); what stands before an `@` may have it.
    pub fn socket(kubelet_dir: &Path, driver: &str) -> PathBuf {
        kubelet_dir.join("plugins_registry").join(format!("node@{driver}-reg.sock"))
    }
}

#[tonic::async_trait]
impl Registration for Registrar {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: self.driver.clone(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec![SUPPORTED_VERSIONS.into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        match status.plugin_registered {
            true => info!("registered with kubelet"),
            // Kubelet tries again by itself.
            false => warn!("kubelet does not register the driver: {}", status.error),
        }
        self.registered.send_replace(status.plugin_registered);
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_authority_is_understood() -> anyhow::Result<()> {
        let path = Registrar::socket(Path::new("/var/lib/kubelet"), "csi.coppice.io");
        let authority = path.display().to_string().replace('/', "%2F");
        let uri = format!("http://{authority}/pluginregistration.Registration/GetInfo");
        assert_eq!(uri.parse::<tonic::transport::Uri>()?.host(), Some("csi.coppice.io-reg.sock"));
        assert!("http://%2Fa%2Fb.sock/c".parse::<tonic::transport::Uri>().is_err(), "no need for the @ any more");
        Ok(())
    }
}
