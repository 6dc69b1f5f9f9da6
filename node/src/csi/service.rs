//! The Node service.
//!
//! Each call runs to its end, whatever the client does: no volume is left half mounted.

use super::status::status;
use crate::host::mount::check_path;
use crate::staging::{Node as Volumes, Usage};
use coppice_proto::calls::Calls;
use coppice_proto::capability::{Capability, TOPOLOGY_NODE};
use coppice_proto::csi::v1::node_server::Node;
use coppice_proto::csi::v1::node_service_capability::rpc::Type as RpcType;
use coppice_proto::csi::v1::node_service_capability::{Rpc, Type};
use coppice_proto::csi::v1::volume_usage::Unit;
use coppice_proto::csi::v1::*;
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub struct NodeService {
    volumes: Arc<Volumes>,
    node_id: String,
    calls: Calls,
}

impl NodeService {
    pub fn new(volumes: Arc<Volumes>, calls: Calls, node_id: String) -> Self {
        NodeService { volumes, node_id, calls }
    }
}

fn need(value: &str, what: &str) -> Result<(), Status> {
    match value.is_empty() {
        true => Err(Status::invalid_argument(format!("the request has no {what}"))),
        false => Ok(()),
    }
}

fn capability(wire: Option<&VolumeCapability>) -> Result<Capability, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument("the request has no volume capability"))?;
    Capability::read(wire).map_err(Status::invalid_argument)
}

fn usage(unit: Unit, total: u64, used: u64, available: u64) -> VolumeUsage {
    let count = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    VolumeUsage { unit: unit.into(), total: count(total), used: count(used), available: count(available) }
}

fn size(value: i64, what: &str) -> Result<u64, Status> {
    u64::try_from(value).map_err(|_| Status::invalid_argument(format!("capacity_range: {what} is negative: {value}")))
}

#[tonic::async_trait]
impl Node for NodeService {
    async fn node_stage_volume(&self, request: Request<NodeStageVolumeRequest>) -> Answer<NodeStageVolumeResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodeStageVolume", &id, async move {
                need(&request.volume_id, "volume id")?;
                let staging = check_path(&request.staging_target_path, "staging target path").map_err(status)?;
                let capability = capability(request.volume_capability.as_ref())?;
                volumes.stage(&request.volume_id, &staging, &capability).await.map_err(status)?;
                Ok(NodeStageVolumeResponse {})
            })
            .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Answer<NodeUnstageVolumeResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodeUnstageVolume", &id, async move {
                need(&request.volume_id, "volume id")?;
                let staging = check_path(&request.staging_target_path, "staging target path").map_err(status)?;
                volumes.unstage(&request.volume_id, &staging).await.map_err(status)?;
                Ok(NodeUnstageVolumeResponse {})
            })
            .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Answer<NodePublishVolumeResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodePublishVolume", &id, async move {
                need(&request.volume_id, "volume id")?;
                let target = check_path(&request.target_path, "target path").map_err(status)?;
                let capability = capability(request.volume_capability.as_ref())?;
                if request.staging_target_path.is_empty() {
                    return Err(Status::failed_precondition(
                        "the request has no staging target path: stage the volume first",
                    ));
                }
                let staging = check_path(&request.staging_target_path, "staging target path").map_err(status)?;
                let id = &request.volume_id;
                volumes.publish(id, &staging, &target, &capability, request.readonly).await.map_err(status)?;
                Ok(NodePublishVolumeResponse {})
            })
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Answer<NodeUnpublishVolumeResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodeUnpublishVolume", &id, async move {
                need(&request.volume_id, "volume id")?;
                let target = check_path(&request.target_path, "target path").map_err(status)?;
                volumes.unpublish(&request.volume_id, &target).await.map_err(status)?;
                Ok(NodeUnpublishVolumeResponse {})
            })
            .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<NodeGetVolumeStatsRequest>,
    ) -> Answer<NodeGetVolumeStatsResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodeGetVolumeStats", &id, async move {
                need(&request.volume_id, "volume id")?;
                need(&request.volume_path, "volume path")?;
                let usages = match volumes.stats(&request.volume_id, &request.volume_path).await.map_err(status)? {
                    Usage::Block { total } => {
                        let total = i64::try_from(total).unwrap_or(i64::MAX);
                        vec![VolumeUsage { unit: Unit::Bytes.into(), total, ..VolumeUsage::default() }]
                    }
                    Usage::Mount { bytes: b, inodes } => {
                        let mut all = vec![usage(Unit::Bytes, b.total, b.used, b.available)];
                        all.extend(inodes.map(|i| usage(Unit::Inodes, i.total, i.used, i.available)));
                        all
                    }
                };
                Ok(NodeGetVolumeStatsResponse { usage: usages })
            })
            .await
    }

    async fn node_get_volume_health(
        &self,
        _: Request<NodeGetVolumeHealthRequest>,
    ) -> Answer<NodeGetVolumeHealthResponse> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<NodeGetStorageHealthRequest>,
    ) -> Answer<NodeGetStorageHealthResponse> {
        Err(Status::unimplemented("storage health is not reported yet"))
    }

    async fn node_expand_volume(&self, request: Request<NodeExpandVolumeRequest>) -> Answer<NodeExpandVolumeResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("NodeExpandVolume", &id, async move {
                need(&request.volume_id, "volume id")?;
                need(&request.volume_path, "volume path")?;
                let range = request.capacity_range.unwrap_or_default();
                let required = size(range.required_bytes, "required_bytes")?;
                let limit = size(range.limit_bytes, "limit_bytes")?;
                let (id, path) = (&request.volume_id, &request.volume_path);
                let size = volumes.expand(id, path, required, limit).await.map_err(status)?;
                Ok(NodeExpandVolumeResponse { capacity_bytes: i64::try_from(size).unwrap_or(i64::MAX) })
            })
            .await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Answer<NodeGetCapabilitiesResponse> {
        let able = [
            RpcType::StageUnstageVolume,
            RpcType::GetVolumeStats,
            RpcType::ExpandVolume,
            RpcType::SingleNodeMultiWriter,
        ];
        let capability = |kind: RpcType| NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities: able.map(capability).to_vec() }))
    }

    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Answer<NodeGetInfoResponse> {
        let segments = [(TOPOLOGY_NODE.to_string(), self.node_id.clone())].into();
        Ok(Response::new(NodeGetInfoResponse {
            node_id: self.node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(Topology { segments }),
        }))
    }
}
