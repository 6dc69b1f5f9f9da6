//! Who the driver is.

use coppice_proto::capability::DRIVER_NAME;
use coppice_proto::csi::v1::identity_server::Identity;
use coppice_proto::csi::v1::plugin_capability::service::Type as ServiceType;
use coppice_proto::csi::v1::plugin_capability::volume_expansion::Type as ExpansionType;
use coppice_proto::csi::v1::plugin_capability::{Service, Type, VolumeExpansion};
use coppice_proto::csi::v1::*;
use tonic::{Request, Response, Status};

#[derive(Clone, Copy, Debug, Default)]
pub struct IdentityService {
    /// Advertise what is alpha in the standard.
    pub alpha: bool,
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        Ok(Response::new(GetPluginInfoResponse {
            name: DRIVER_NAME.into(),
            vendor_version: env!("CARGO_PKG_VERSION").into(),
            manifest: [("url".to_string(), env!("CARGO_PKG_REPOSITORY").to_string())].into(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        let service =
            |kind: ServiceType| PluginCapability { r#type: Some(Type::Service(Service { r#type: kind.into() })) };
        let expansion = VolumeExpansion { r#type: ExpansionType::Online.into() };
        let mut capabilities = vec![
            service(ServiceType::ControllerService),
            service(ServiceType::VolumeAccessibilityConstraints),
            PluginCapability { r#type: Some(Type::VolumeExpansion(expansion)) },
        ];
        if self.alpha {
            capabilities.push(service(ServiceType::SnapshotAccessibilityConstraints));
        }
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}
