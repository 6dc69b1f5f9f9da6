//! Calls with something missing, wrong or impossible in them. Each changes nothing and has its code.

use crate::caller::{Caller, ask, expect};
use crate::common::{MIB, block, mount, text};
use anyhow::Result;
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::node_client::NodeClient;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use coppice_proto::csi::v1::*;
use tonic::Code;

const UNKNOWN: [&str; 3] = ["3f333333-3333-4333-8333-333333333333", "no-such-thing", "../../etc"];

fn good(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 }),
        volume_capabilities: vec![block(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

/// Ways to spoil a CreateVolume, and the code that each deserves.
fn spoiled(name: &str, unknown: &str) -> Vec<(&'static str, CreateVolumeRequest, Code)> {
    let range = |required_bytes, limit_bytes| Some(CapacityRange { required_bytes, limit_bytes });
    let parameter = |key: &str, value: &str| [(key.to_string(), value.to_string())].into();
    let source = |source| Some(VolumeContentSource { r#type: source });
    let base = || good(name);
    let no_mode = VolumeCapability { access_mode: None, ..block(Mode::SingleNodeWriter) };
    let no_type = VolumeCapability { access_type: None, ..block(Mode::SingleNodeWriter) };
    let place = Topology { segments: parameter("topology.coppice.io/node", "elsewhere") };
    let there = Some(TopologyRequirement { requisite: vec![place], preferred: vec![] });
    use Code::*;
    vec![
        ("no name", CreateVolumeRequest { name: String::new(), ..base() }, InvalidArgument),
        ("a long name", CreateVolumeRequest { name: "n".repeat(129), ..base() }, InvalidArgument),
        ("an odd name", CreateVolumeRequest { name: "a\nb".into(), ..base() }, InvalidArgument),
        ("no capability", CreateVolumeRequest { volume_capabilities: vec![], ..base() }, InvalidArgument),
        ("no access mode", CreateVolumeRequest { volume_capabilities: vec![no_mode], ..base() }, InvalidArgument),
        ("no access type", CreateVolumeRequest { volume_capabilities: vec![no_type], ..base() }, InvalidArgument),
        (
            "many nodes",
            CreateVolumeRequest { volume_capabilities: vec![block(Mode::MultiNodeMultiWriter)], ..base() },
            InvalidArgument,
        ),
        ("an odd fs", CreateVolumeRequest { volume_capabilities: vec![mount("ntfs")], ..base() }, InvalidArgument),
        ("negative", CreateVolumeRequest { capacity_range: range(-1, 0), ..base() }, InvalidArgument),
        ("limit below", CreateVolumeRequest { capacity_range: range(2 * MIB, MIB), ..base() }, InvalidArgument),
        ("all there is", CreateVolumeRequest { capacity_range: range(i64::MAX, 0), ..base() }, OutOfRange),
        ("a parameter", CreateVolumeRequest { parameters: parameter("colour", "red"), ..base() }, InvalidArgument),
        ("thinnish", CreateVolumeRequest { parameters: parameter("provisioning", "some"), ..base() }, InvalidArgument),
        ("a lvstore", CreateVolumeRequest { parameters: parameter("lvstore", "nowhere"), ..base() }, InvalidArgument),
        ("mutable", CreateVolumeRequest { mutable_parameters: parameter("iops", "1"), ..base() }, InvalidArgument),
        ("no source", CreateVolumeRequest { volume_content_source: source(None), ..base() }, InvalidArgument),
        (
            "an empty snapshot id",
            CreateVolumeRequest {
                volume_content_source: source(Some(Source::Snapshot(SnapshotSource::default()))),
                ..base()
            },
            InvalidArgument,
        ),
        (
            "an unknown snapshot",
            CreateVolumeRequest {
                volume_content_source: source(Some(Source::Snapshot(SnapshotSource { snapshot_id: unknown.into() }))),
                ..base()
            },
            NotFound,
        ),
        (
            "an unknown volume",
            CreateVolumeRequest {
                volume_content_source: source(Some(Source::Volume(VolumeSource { volume_id: unknown.into() }))),
                ..base()
            },
            NotFound,
        ),
        ("elsewhere", CreateVolumeRequest { accessibility_requirements: there, ..base() }, ResourceExhausted),
    ]
}

pub async fn some(caller: &mut Caller) -> Result<()> {
    let unknown = caller.random.pick(&UNKNOWN).to_string();
    let all = spoiled("refused", &unknown);
    for _ in 0..3 {
        let (what, request, right) = caller.random.pick(&all).clone();
        expect(&format!("create with {what}"), ask!(caller, ControllerClient, create_volume, request), &[right])?;
    }
    match caller.random.below(4) {
        0 => controller(caller, unknown).await,
        1 => too_small(caller).await,
        2 => node(caller, unknown).await,
        _ => paths(caller).await,
    }
}

/// A volume on which its file system does not fit is refused when it is staged, and can be deleted then.
async fn too_small(caller: &mut Caller) -> Result<()> {
    let name = format!("small-{}", caller.name());
    let request = CreateVolumeRequest { volume_capabilities: vec![mount("xfs")], ..good(&name) };
    let answer = ask!(caller, ControllerClient, create_volume, request);
    let volume_id = answer?.volume.unwrap_or_default().volume_id;
    let request = NodeStageVolumeRequest {
        volume_id: volume_id.clone(),
        staging_target_path: text(&caller.world.base.join("small")),
        volume_capability: Some(mount("xfs")),
        ..Default::default()
    };
    let answer = ask!(caller, NodeClient, node_stage_volume, request);
    expect("stage a small xfs", answer, &[Code::FailedPrecondition])?;
    let request = DeleteVolumeRequest { volume_id, ..Default::default() };
    expect("delete what was not staged", ask!(caller, ControllerClient, delete_volume, request), &[Code::Ok])?;
    Ok(())
}

async fn controller(caller: &mut Caller, unknown: String) -> Result<()> {
    let range = Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 });
    for (volume_id, right) in [(String::new(), Code::InvalidArgument), (unknown, Code::NotFound)] {
        let deleted = if volume_id.is_empty() { right } else { Code::Ok };
        let request = DeleteVolumeRequest { volume_id: volume_id.clone(), ..Default::default() };
        expect("delete", ask!(caller, ControllerClient, delete_volume, request), &[deleted])?;
        let request = DeleteSnapshotRequest { snapshot_id: volume_id.clone(), ..Default::default() };
        expect("delete a snapshot", ask!(caller, ControllerClient, delete_snapshot, request), &[deleted])?;
        let request = GetSnapshotRequest { snapshot_id: volume_id.clone(), ..Default::default() };
        expect("get a snapshot", ask!(caller, ControllerClient, get_snapshot, request), &[right])?;
        let request = ControllerGetVolumeRequest { volume_id: volume_id.clone() };
        expect("get", ask!(caller, ControllerClient, controller_get_volume, request), &[right])?;
        let request =
            ControllerExpandVolumeRequest { volume_id: volume_id.clone(), capacity_range: range, ..Default::default() };
        expect("expand", ask!(caller, ControllerClient, controller_expand_volume, request), &[right])?;
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume_id.clone(),
            volume_capabilities: vec![mount("")],
            ..Default::default()
        };
        expect("validate", ask!(caller, ControllerClient, validate_volume_capabilities, request), &[right])?;
        let request =
            CreateSnapshotRequest { name: "refused".into(), source_volume_id: volume_id, ..Default::default() };
        expect("snapshot", ask!(caller, ControllerClient, create_snapshot, request), &[right])?;
    }
    for (max_entries, starting_token, right) in [(-1, "", Code::InvalidArgument), (0, "token", Code::Aborted)] {
        let request = ListVolumesRequest { max_entries, starting_token: starting_token.into() };
        list_refused(caller, request, right).await?;
    }
    Ok(())
}

/// `Aborted` is a final answer here, which `settle` would take for a request to try again.
async fn list_refused(caller: &mut Caller, request: ListVolumesRequest, right: Code) -> Result<()> {
    loop {
        let request = request.clone();
        let ended = caller
            .line
            .call("list", |channel| async move { ControllerClient::new(channel).list_volumes(request).await });
        match ended.await? {
            crate::world::Ended::Cut => {}
            crate::world::Ended::Ok(page) => anyhow::bail!("a list that should be refused: {page:?}"),
            crate::world::Ended::Refused(status) => {
                anyhow::ensure!(status.code() == right, "list: {status:?}, where {right:?} is right");
                return Ok(());
            }
        }
    }
}

async fn node(caller: &mut Caller, unknown: String) -> Result<()> {
    let place = text(&caller.world.base.join("nowhere"));
    for (volume_id, right) in [(String::new(), Code::InvalidArgument), (unknown, Code::NotFound)] {
        let request = NodeStageVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: place.clone(),
            volume_capability: Some(mount("ext4")),
            ..Default::default()
        };
        expect("stage", ask!(caller, NodeClient, node_stage_volume, request), &[right])?;
        let request = NodePublishVolumeRequest {
            volume_id: volume_id.clone(),
            staging_target_path: place.clone(),
            target_path: format!("{place}/target"),
            volume_capability: Some(mount("ext4")),
            ..Default::default()
        };
        expect("publish", ask!(caller, NodeClient, node_publish_volume, request), &[right])?;
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume_id.clone(),
            volume_path: place.clone(),
            ..Default::default()
        };
        expect("statistics", ask!(caller, NodeClient, node_get_volume_stats, request), &[right])?;
        let request =
            NodeExpandVolumeRequest { volume_id: volume_id.clone(), volume_path: place.clone(), ..Default::default() };
        expect("grow", ask!(caller, NodeClient, node_expand_volume, request), &[right])?;
        let gone = if volume_id.is_empty() { vec![right] } else { vec![Code::Ok, Code::NotFound] };
        let request = NodeUnpublishVolumeRequest { volume_id: volume_id.clone(), target_path: place.clone() };
        expect("unpublish", ask!(caller, NodeClient, node_unpublish_volume, request), &gone)?;
        let request = NodeUnstageVolumeRequest { volume_id, staging_target_path: place.clone() };
        expect("unstage", ask!(caller, NodeClient, node_unstage_volume, request), &gone)?;
    }
    Ok(())
}

/// Paths that are missing, not paths, or somebody else's.
async fn paths(caller: &mut Caller) -> Result<()> {
    if caller.volumes.is_empty() {
        return Ok(());
    }
    let own = caller.random.pick(&caller.volumes).clone();
    let base = caller.world.base.clone();
    let capability = Some(own.capability());
    let invalid = [Code::InvalidArgument];
    for bad in [
        "",
        "relative/path",
        "/a/../b",
        "/with\0zero",
        &format!("/{}", "long/".repeat(1000)),
        &format!("/{}", "l".repeat(300)),
    ] {
        let request = NodeStageVolumeRequest {
            volume_id: own.id(),
            staging_target_path: bad.into(),
            volume_capability: capability.clone(),
            ..Default::default()
        };
        expect("stage at a bad path", ask!(caller, NodeClient, node_stage_volume, request), &invalid)?;
        let request = NodePublishVolumeRequest {
            volume_id: own.id(),
            staging_target_path: text(&own.staging()),
            target_path: bad.into(),
            volume_capability: capability.clone(),
            ..Default::default()
        };
        expect("publish at a bad path", ask!(caller, NodeClient, node_publish_volume, request), &invalid)?;
        let request = NodeUnpublishVolumeRequest { volume_id: own.id(), target_path: bad.into() };
        expect("unpublish a bad path", ask!(caller, NodeClient, node_unpublish_volume, request), &invalid)?;
        let request = NodeUnstageVolumeRequest { volume_id: own.id(), staging_target_path: bad.into() };
        expect("unstage a bad path", ask!(caller, NodeClient, node_unstage_volume, request), &invalid)?;
    }
    let none =
        NodeStageVolumeRequest { volume_id: own.id(), staging_target_path: text(&own.staging()), ..Default::default() };
    expect("stage without a capability", ask!(caller, NodeClient, node_stage_volume, none), &invalid)?;
    let unstaged = NodePublishVolumeRequest {
        volume_id: own.id(),
        target_path: text(&own.target(0)),
        volume_capability: capability,
        ..Default::default()
    };
    let answer = ask!(caller, NodeClient, node_publish_volume, unstaged);
    expect("publish without a staging path", answer, &[Code::FailedPrecondition])?;
    // Nothing is unmounted or removed that is not this volume's.
    let others = [text(&base.join("run/exports")), text(&base.join("run")), "/proc".into(), text(&base)];
    let target_path = caller.random.pick(&others).clone();
    let before = coppice_node::host::mountinfo::at(std::path::Path::new(&target_path))?.is_some();
    let refused = [Code::FailedPrecondition, Code::InvalidArgument];
    let request = NodeUnpublishVolumeRequest { volume_id: own.id(), target_path: target_path.clone() };
    expect("unpublish somebody's directory", ask!(caller, NodeClient, node_unpublish_volume, request), &refused)?;
    let after = coppice_node::host::mountinfo::at(std::path::Path::new(&target_path))?.is_some();
    anyhow::ensure!(before == after, "{target_path} was unmounted");
    // A live volume under another's id.
    let life = caller.life().await?;
    let other = caller.volumes.iter().find(|v| v.id() != own.id() && v.writable(life).is_some()).cloned();
    if let Some(other) = other
        && let Some(path) = other.writable(life)
    {
        let request = NodeUnpublishVolumeRequest { volume_id: own.id(), target_path: text(path) };
        let answer = ask!(caller, NodeClient, node_unpublish_volume, request);
        if caller.life().await? == life {
            expect("unpublish another volume's target", answer, &refused)?;
            anyhow::ensure!(crate::content::is_mounted(path)? || caller.world.deaths() != life, "it was unmounted");
        }
    }
    Ok(())
}
