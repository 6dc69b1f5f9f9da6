//! Volumes that all callers create, use and delete at the same time under the same names. What becomes of a call depends on
//! the others; that it is answered with one of the right codes, and that nothing of it is left, does not.

use crate::caller::{Caller, ask, expect};
use crate::common::{MIB, block, mount, text};
use crate::world::World;
use anyhow::{Context, Result};
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::node_client::NodeClient;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::*;
use std::path::PathBuf;
use tonic::Code;

const NAMES: u64 = 3;

/// The same request for the same name, always.
fn request(number: u64) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: format!("shared-{number}"),
        capacity_range: Some(CapacityRange { required_bytes: 20 * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![capability(number)],
        ..Default::default()
    }
}

fn capability(number: u64) -> VolumeCapability {
    if number == 0 { block(Mode::SingleNodeWriter) } else { mount("ext4") }
}

fn snapshot_request(volume: &str) -> CreateSnapshotRequest {
    CreateSnapshotRequest { name: format!("of-{volume}"), source_volume_id: volume.into(), ..Default::default() }
}

fn place(world: &World, volume: &str, name: &str) -> PathBuf {
    world.base.join("shared").join(volume).join(name)
}

fn told(world: &World) -> Vec<String> {
    world.shared.lock().map(|ids| ids.clone()).unwrap_or_default()
}

pub async fn step(caller: &mut Caller) -> Result<()> {
    let world = caller.world.clone();
    for _ in 0..caller.random.between(2, 8) {
        // Any of the last few: some of them are deleted already.
        let all = told(&world);
        let recent = all.get(all.len().saturating_sub(4)..).unwrap_or_default();
        let action = caller.random.below(10);
        if recent.is_empty() || action < 2 {
            let number = caller.random.below(NAMES);
            // Others grow it meanwhile, so the copies of a call may tell different sizes, but of one volume.
            let create = move |channel| async move {
                let answer = ControllerClient::new(channel).create_volume(request(number)).await?;
                Ok(answer.map(|answer| answer.volume.map(|volume| volume.volume_id)))
            };
            let answer = caller.line.settle(&mut caller.random, "create_volume", create).await?;
            let id = answer.context("create a shared volume")?.context("a volume")?;
            if let Ok(mut ids) = world.shared.lock()
                && !ids.contains(&id)
            {
                ids.push(id);
            }
            continue;
        }
        let id = caller.random.pick(recent).clone();
        let capability = capability(caller.random.below(2));
        let (staging, target) = (text(&place(&world, &id, "staging")), text(&place(&world, &id, "target")));
        use Code::{AlreadyExists, FailedPrecondition, NotFound, OutOfRange};
        let usable = [Code::Ok, NotFound, FailedPrecondition, AlreadyExists];
        match action {
            2 => {
                let request = DeleteVolumeRequest { volume_id: id, ..Default::default() };
                // Copies of it may meet a volume that another caller stages meanwhile.
                once(caller, request).await?;
            }
            3 => loosely(caller, "snapshot", &[Code::Ok, NotFound], snapshot_request(&id)).await?,
            4 => {
                let request = NodeStageVolumeRequest {
                    volume_id: id,
                    staging_target_path: staging,
                    volume_capability: Some(capability),
                    ..Default::default()
                };
                loosely(caller, "stage", &usable, request).await?;
            }
            5 | 6 => {
                let request = NodePublishVolumeRequest {
                    volume_id: id,
                    staging_target_path: staging,
                    target_path: target,
                    volume_capability: Some(capability),
                    ..Default::default()
                };
                loosely(caller, "publish", &usable, request).await?;
            }
            7 => {
                let request = NodeUnpublishVolumeRequest { volume_id: id, target_path: target };
                loosely(caller, "unpublish", &[Code::Ok, FailedPrecondition], request).await?;
            }
            8 => {
                let request = NodeUnstageVolumeRequest { volume_id: id, staging_target_path: staging };
                loosely(caller, "unstage", &[Code::Ok, FailedPrecondition], request).await?;
            }
            _ => {
                let more = 20 * MIB + caller.random.below(8 << 20) as i64;
                let request = ControllerExpandVolumeRequest {
                    volume_id: id,
                    capacity_range: Some(CapacityRange { required_bytes: more, limit_bytes: 0 }),
                    ..Default::default()
                };
                loosely(caller, "expand", &[Code::Ok, NotFound, OutOfRange], request).await?;
            }
        }
    }
    Ok(())
}

/// A request that can be sent alone.
trait Send1 {
    async fn send(self, channel: tonic::transport::Channel) -> Result<tonic::Response<()>, tonic::Status>;
}

macro_rules! sends {
    ($($request:ident by $client:ident $method:ident),*) => {$(
        impl Send1 for $request {
            async fn send(self, channel: tonic::transport::Channel) -> Result<tonic::Response<()>, tonic::Status> {
                $client::new(channel).$method(self).await.map(|_| tonic::Response::new(()))
            }
        }
    )*};
}
sends!(
    DeleteVolumeRequest by ControllerClient delete_volume,
    CreateSnapshotRequest by ControllerClient create_snapshot,
    ControllerExpandVolumeRequest by ControllerClient controller_expand_volume,
    NodeStageVolumeRequest by NodeClient node_stage_volume,
    NodePublishVolumeRequest by NodeClient node_publish_volume,
    NodeUnpublishVolumeRequest by NodeClient node_unpublish_volume,
    NodeUnstageVolumeRequest by NodeClient node_unstage_volume
);

async fn once(caller: &mut Caller, request: DeleteVolumeRequest) -> Result<()> {
    loosely(caller, "delete", &[Code::Ok, Code::FailedPrecondition], request).await
}

/// One call, whose answer depends on others; it is not repeated.
async fn loosely(caller: &mut Caller, what: &'static str, allowed: &[Code], request: impl Send1) -> Result<()> {
    match caller.line.call(what, |channel| request.send(channel)).await? {
        crate::world::Ended::Refused(status) if status.code() != Code::Aborted => {
            expect(&format!("{what} of a shared volume"), Err::<(), _>(status), allowed)?;
        }
        _ => {}
    }
    Ok(())
}

/// Takes everything away; nobody else is at it. Creating again finds what a cut-off call left without an answer.
pub async fn clear(caller: &mut Caller) -> Result<()> {
    let world = caller.world.clone();
    let mut ids = told(&world);
    for number in 0..NAMES {
        let mut request = request(number);
        // It may have grown.
        request.capacity_range = Some(CapacityRange { required_bytes: 1, limit_bytes: 0 });
        let answer = ask!(caller, ControllerClient, create_volume, request);
        ids.push(answer.context("create a shared volume")?.volume.context("a volume")?.volume_id);
    }
    ids.sort();
    ids.dedup();
    for id in ids {
        let answer = ask!(caller, ControllerClient, create_snapshot, snapshot_request(&id));
        if let Ok(snapshot) = &answer {
            let snapshot_id = snapshot.snapshot.clone().context("a snapshot")?.snapshot_id;
            let request = DeleteSnapshotRequest { snapshot_id, ..Default::default() };
            expect("delete", ask!(caller, ControllerClient, delete_snapshot, request), &[Code::Ok])?;
        }
        expect("snapshot", answer, &[Code::Ok, Code::NotFound])?;
        let target_path = text(&place(&world, &id, "target"));
        let request = NodeUnpublishVolumeRequest { volume_id: id.clone(), target_path };
        expect("unpublish", ask!(caller, NodeClient, node_unpublish_volume, request), &[Code::Ok])?;
        let staging_target_path = text(&place(&world, &id, "staging"));
        let request = NodeUnstageVolumeRequest { volume_id: id.clone(), staging_target_path };
        expect("unstage", ask!(caller, NodeClient, node_unstage_volume, request), &[Code::Ok])?;
        let request = DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() };
        expect("delete", ask!(caller, ControllerClient, delete_volume, request), &[Code::Ok])?;
        for name in ["staging", ""] {
            match std::fs::remove_dir(place(&world, &id, name)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).context(id),
                _ => {}
            }
        }
    }
    if let Ok(mut all) = world.shared.lock() {
        all.clear();
    }
    Ok(())
}
