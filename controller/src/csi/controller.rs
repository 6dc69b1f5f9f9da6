//! The Controller service over [`Volumes`].
//!
//! Each call runs to its end, whatever the client does.

use super::status::status;
use crate::volume::{
    CreateSnapshot, CreateVolume, Parameters, Range, Snapshot as OurSnapshot, Source, SourceId, Volume as OurVolume,
    Volumes, check_snapshot_parameters, owner,
};
use coppice_proto::calls::Calls;
use coppice_proto::capability::{Capability, TOPOLOGY_NODE};
use coppice_proto::csi::v1::controller_server::Controller;
use coppice_proto::csi::v1::controller_service_capability::rpc::Type as RpcType;
use coppice_proto::csi::v1::controller_service_capability::{Rpc, Type};
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use coppice_proto::csi::v1::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Clone)]
pub struct ControllerService {
    volumes: Arc<Volumes>,
    /// Say where snapshots can be used (alpha in the standard).
    alpha: bool,
    calls: Calls,
}

impl ControllerService {
    pub fn new(volumes: Arc<Volumes>, calls: Calls, alpha: bool) -> Self {
        ControllerService { volumes, alpha, calls }
    }

    fn snapshot(&self, snapshot: OurSnapshot) -> Snapshot {
        snapshot_message(snapshot, self.alpha)
    }
}

fn bytes(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn place(node: String) -> Topology {
    Topology { segments: [(TOPOLOGY_NODE.to_string(), node)].into() }
}

fn places(topology: Option<TopologyRequirement>) -> Vec<BTreeMap<String, String>> {
    topology.map(|t| t.requisite.into_iter().map(|place| place.segments).collect()).unwrap_or_default()
}

fn range(range: Option<CapacityRange>) -> Result<Range, Status> {
    let range = range.unwrap_or_default();
    Range::read(range.required_bytes, range.limit_bytes).map_err(status)
}

fn capabilities(wire: &[VolumeCapability]) -> Result<Vec<Capability>, Status> {
    wire.iter().map(|c| Capability::read(c).map_err(Status::invalid_argument)).collect()
}

fn need(value: &str, what: &str) -> Result<(), Status> {
    match value.is_empty() {
        true => Err(Status::invalid_argument(format!("the request has no {what}"))),
        false => Ok(()),
    }
}

fn no_mutable(parameters: &BTreeMap<String, String>) -> Result<(), Status> {
    match parameters.keys().next() {
        Some(key) => Err(Status::invalid_argument(format!("mutable parameter {key:?}: volumes have none"))),
        None => Ok(()),
    }
}

fn volume_message(volume: OurVolume) -> Volume {
    let content_source = volume.source.map(|source| VolumeContentSource {
        r#type: Some(match source {
            Source::Snapshot(id) => SourceType::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
            Source::Volume(id) => SourceType::Volume(VolumeSource { volume_id: id.to_string() }),
        }),
    });
    Volume {
        capacity_bytes: bytes(volume.capacity),
        volume_id: volume.id.to_string(),
        // Nothing that ties the volume to a place: it may move.
        volume_context: BTreeMap::new(),
        content_source,
        accessible_topology: vec![place(volume.node)],
    }
}

fn snapshot_message(snapshot: OurSnapshot, alpha: bool) -> Snapshot {
    let (seconds, nanos) = (snapshot.created_nanos / 1_000_000_000, snapshot.created_nanos % 1_000_000_000);
    let creation_time = prost_types::Timestamp {
        seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
        nanos: i32::try_from(nanos).unwrap_or(0),
    };
    Snapshot {
        size_bytes: bytes(snapshot.size),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume_id,
        creation_time: Some(creation_time),
        ready_to_use: true,
        group_snapshot_id: String::new(),
        accessible_topology: if alpha { vec![place(snapshot.node)] } else { vec![] },
    }
}

#[tonic::async_trait]
impl Controller for ControllerService {
    async fn create_volume(&self, request: Request<CreateVolumeRequest>) -> Answer<CreateVolumeResponse> {
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let name = request.name.clone();
        self.calls
            .run_in_time("CreateVolume", &name, &headers, async move {
                need(&request.name, "name")?;
                no_mutable(&request.mutable_parameters)?;
                let source = match request.volume_content_source.map(|source| source.r#type) {
                    None => None,
                    Some(Some(SourceType::Snapshot(s))) => {
                        need(&s.snapshot_id, "snapshot id in its volume_content_source")?;
                        Some(SourceId::Snapshot(s.snapshot_id))
                    }
                    Some(Some(SourceType::Volume(v))) => {
                        need(&v.volume_id, "volume id in its volume_content_source")?;
                        Some(SourceId::Volume(v.volume_id))
                    }
                    Some(None) => return Err(Status::invalid_argument("volume_content_source names no source")),
                };
                let how = CreateVolume {
                    name: request.name,
                    range: range(request.capacity_range)?,
                    capabilities: capabilities(&request.volume_capabilities)?,
                    parameters: Parameters::read(&request.parameters).map_err(status)?,
                    claim: owner(&request.parameters, "pvc"),
                    source,
                    requisite: places(request.accessibility_requirements),
                };
                let volume = volumes.create(how).await.map_err(status)?;
                Ok(CreateVolumeResponse { volume: Some(volume_message(volume)) })
            })
            .await
    }

    async fn delete_volume(&self, request: Request<DeleteVolumeRequest>) -> Answer<DeleteVolumeResponse> {
        let headers = request.metadata().clone();
        let id = request.into_inner().volume_id;
        let volumes = self.volumes.clone();
        self.calls
            .run_in_time("DeleteVolume", &id.clone(), &headers, async move {
                need(&id, "volume id")?;
                volumes.delete(&id).await.map_err(status)?;
                Ok(DeleteVolumeResponse {})
            })
            .await
    }

    async fn controller_publish_volume(
        &self,
        _: Request<ControllerPublishVolumeRequest>,
    ) -> Answer<ControllerPublishVolumeResponse> {
        Err(Status::unimplemented("a volume is on its node already: nothing is attached by the controller"))
    }

    async fn controller_unpublish_volume(
        &self,
        _: Request<ControllerUnpublishVolumeRequest>,
    ) -> Answer<ControllerUnpublishVolumeResponse> {
        Err(Status::unimplemented("a volume is on its node already: nothing is detached by the controller"))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<ValidateVolumeCapabilitiesResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run("ValidateVolumeCapabilities", &id, async move {
                need(&request.volume_id, "volume id")?;
                if request.volume_capabilities.is_empty() {
                    return Err(Status::invalid_argument("the request has no volume capabilities"));
                }
                volumes.get(&request.volume_id).await.map_err(status)?;
                let refused = |message: String| Ok(ValidateVolumeCapabilitiesResponse { confirmed: None, message });
                for wire in &request.volume_capabilities {
                    match Capability::read(wire).map(|capability| capability.refusal()) {
                        Ok(None) => {}
                        Ok(Some(why)) | Err(why) => return refused(why),
                    }
                }
                if let Err(e) = Parameters::read(&request.parameters) {
                    return refused(e.to_string());
                }
                if let Err(e) = no_mutable(&request.mutable_parameters) {
                    return refused(e.message().to_string());
                }
                let confirmed = validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context,
                    volume_capabilities: request.volume_capabilities,
                    parameters: request.parameters,
                    mutable_parameters: request.mutable_parameters,
                };
                Ok(ValidateVolumeCapabilitiesResponse { confirmed: Some(confirmed), message: String::new() })
            })
            .await
    }

    async fn list_volumes(&self, request: Request<ListVolumesRequest>) -> Answer<ListVolumesResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        self.calls
            .run("ListVolumes", "", async move {
                let page = volumes.list(request.max_entries, &request.starting_token).await.map_err(status)?;
                let entry =
                    |volume| list_volumes_response::Entry { volume: Some(volume_message(volume)), status: None };
                Ok(ListVolumesResponse {
                    entries: page.entries.into_iter().map(entry).collect(),
                    next_token: page.next_token,
                })
            })
            .await
    }

    async fn controller_list_volume_health(
        &self,
        _: Request<ControllerListVolumeHealthRequest>,
    ) -> Answer<ControllerListVolumeHealthResponse> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }

    async fn controller_get_volume_health(
        &self,
        _: Request<ControllerGetVolumeHealthRequest>,
    ) -> Answer<ControllerGetVolumeHealthResponse> {
        Err(Status::unimplemented("volume health is not reported yet"))
    }

    async fn get_capacity(&self, request: Request<GetCapacityRequest>) -> Answer<GetCapacityResponse> {
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        self.calls
            .run("GetCapacity", "", async move {
                let parameters = Parameters::read(&request.parameters).map_err(status)?;
                let possible = capabilities(&request.volume_capabilities)?.iter().all(|c| c.refusal().is_none());
                let place = request.accessible_topology.map(|place| place.segments);
                let capacity = match possible {
                    true => volumes.capacity(parameters, place).await.map_err(status)?,
                    false => Default::default(),
                };
                Ok(GetCapacityResponse {
                    available_capacity: bytes(capacity.available),
                    maximum_volume_size: Some(bytes(capacity.largest_volume)),
                    minimum_volume_size: Some(bytes(capacity.smallest_volume)),
                })
            })
            .await
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Answer<ControllerGetCapabilitiesResponse> {
        let able = [
            RpcType::CreateDeleteVolume,
            RpcType::ListVolumes,
            RpcType::GetCapacity,
            RpcType::CreateDeleteSnapshot,
            RpcType::ListSnapshots,
            RpcType::CloneVolume,
            RpcType::ExpandVolume,
            RpcType::GetVolume,
            RpcType::SingleNodeMultiWriter,
            RpcType::GetSnapshot,
        ];
        let capability =
            |kind: RpcType| ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })) };
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities: able.map(capability).to_vec() }))
    }

    async fn create_snapshot(&self, request: Request<CreateSnapshotRequest>) -> Answer<CreateSnapshotResponse> {
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let (volumes, this) = (self.volumes.clone(), self.clone());
        let name = request.name.clone();
        self.calls
            .run_in_time("CreateSnapshot", &name, &headers, async move {
                need(&request.name, "name")?;
                need(&request.source_volume_id, "source volume id")?;
                let how = CreateSnapshot {
                    name: request.name,
                    volume_id: request.source_volume_id,
                    consistency: check_snapshot_parameters(&request.parameters).map_err(status)?,
                    owner: owner(&request.parameters, "volumesnapshot"),
                    requisite: places(request.accessibility_requirements),
                };
                let snapshot = volumes.create_snapshot(how).await.map_err(status)?;
                Ok(CreateSnapshotResponse { snapshot: Some(this.snapshot(snapshot)) })
            })
            .await
    }

    async fn delete_snapshot(&self, request: Request<DeleteSnapshotRequest>) -> Answer<DeleteSnapshotResponse> {
        let headers = request.metadata().clone();
        let id = request.into_inner().snapshot_id;
        let volumes = self.volumes.clone();
        self.calls
            .run_in_time("DeleteSnapshot", &id.clone(), &headers, async move {
                need(&id, "snapshot id")?;
                volumes.delete_snapshot(&id).await.map_err(status)?;
                Ok(DeleteSnapshotResponse {})
            })
            .await
    }

    async fn list_snapshots(&self, request: Request<ListSnapshotsRequest>) -> Answer<ListSnapshotsResponse> {
        let request = request.into_inner();
        let (volumes, this) = (self.volumes.clone(), self.clone());
        self.calls
            .run("ListSnapshots", "", async move {
                let (token, of) = (&request.starting_token, &request.source_volume_id);
                let page = volumes.list_snapshots(request.max_entries, token, &request.snapshot_id, of).await;
                let page = page.map_err(status)?;
                let entry = |snapshot| list_snapshots_response::Entry { snapshot: Some(this.snapshot(snapshot)) };
                Ok(ListSnapshotsResponse {
                    entries: page.entries.into_iter().map(entry).collect(),
                    next_token: page.next_token,
                })
            })
            .await
    }

    async fn get_snapshot(&self, request: Request<GetSnapshotRequest>) -> Answer<GetSnapshotResponse> {
        let id = request.into_inner().snapshot_id;
        let (volumes, this) = (self.volumes.clone(), self.clone());
        self.calls
            .run("GetSnapshot", &id.clone(), async move {
                need(&id, "snapshot id")?;
                let snapshot = volumes.get_snapshot(&id).await.map_err(status)?;
                Ok(GetSnapshotResponse { snapshot: Some(this.snapshot(snapshot)) })
            })
            .await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<ControllerExpandVolumeRequest>,
    ) -> Answer<ControllerExpandVolumeResponse> {
        let headers = request.metadata().clone();
        let request = request.into_inner();
        let volumes = self.volumes.clone();
        let id = request.volume_id.clone();
        self.calls
            .run_in_time("ControllerExpandVolume", &id, &headers, async move {
                need(&request.volume_id, "volume id")?;
                let range = range(request.capacity_range)?;
                let capability = request.volume_capability.as_ref().map(Capability::read).transpose();
                let capability = capability.map_err(Status::invalid_argument)?;
                let expanded = volumes.expand(&request.volume_id, range, capability).await.map_err(status)?;
                Ok(ControllerExpandVolumeResponse {
                    capacity_bytes: bytes(expanded.capacity),
                    node_expansion_required: expanded.node_expansion_required,
                })
            })
            .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<ControllerGetVolumeRequest>,
    ) -> Answer<ControllerGetVolumeResponse> {
        let id = request.into_inner().volume_id;
        let volumes = self.volumes.clone();
        self.calls
            .run("ControllerGetVolume", &id.clone(), async move {
                need(&id, "volume id")?;
                let volume = volumes.get(&id).await.map_err(status)?;
                let status = controller_get_volume_response::VolumeStatus { published_node_ids: vec![] };
                Ok(ControllerGetVolumeResponse { volume: Some(volume_message(volume)), status: Some(status) })
            })
            .await
    }

    async fn controller_modify_volume(
        &self,
        _: Request<ControllerModifyVolumeRequest>,
    ) -> Answer<ControllerModifyVolumeResponse> {
        Err(Status::unimplemented("volumes have no parameters that can be changed"))
    }
}
