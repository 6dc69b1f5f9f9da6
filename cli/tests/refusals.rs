//! Bad input, each with its exact code, through the CSI of a running `coppice standalone`.

mod common;

use anyhow::Result;
use common::{Driver, MIB, block, mount, mount_as, text};
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use coppice_proto::csi::v1::*;
use tonic::Code;

const NOBODY: &str = "00000000-0000-4000-8000-000000000001";

fn base() -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: "x".into(),
        capacity_range: Some(CapacityRange { required_bytes: MIB, limit_bytes: 0 }),
        volume_capabilities: vec![mount("ext4")],
        ..Default::default()
    }
}

fn with(parameter: (&str, &str)) -> CreateVolumeRequest {
    CreateVolumeRequest { parameters: [(parameter.0.to_string(), parameter.1.to_string())].into(), ..base() }
}

fn of_size(required_bytes: i64, limit_bytes: i64) -> CreateVolumeRequest {
    CreateVolumeRequest { capacity_range: Some(CapacityRange { required_bytes, limit_bytes }), ..base() }
}

fn from(source: Source) -> CreateVolumeRequest {
    CreateVolumeRequest { volume_content_source: Some(VolumeContentSource { r#type: Some(source) }), ..base() }
}

#[tokio::test]
async fn volumes_that_are_not_made() -> Result<()> {
    let mut driver = Driver::start(1 << 30).await?;
    let mut c = driver.clients().await?;
    let capability = |capability| CreateVolumeRequest { volume_capabilities: vec![capability], ..base() };
    let topology = |node: &str| {
        let place = Topology { segments: [("topology.coppice.io/node".to_string(), node.to_string())].into() };
        TopologyRequirement { requisite: vec![place], preferred: vec![] }
    };
    let table = [
        (CreateVolumeRequest { name: String::new(), ..base() }, Code::InvalidArgument, "name"),
        (CreateVolumeRequest { name: "y".repeat(129), ..base() }, Code::InvalidArgument, "129 bytes"),
        (CreateVolumeRequest { name: "a\u{7}".into(), ..base() }, Code::InvalidArgument, "control characters"),
        (CreateVolumeRequest { volume_capabilities: vec![], ..base() }, Code::InvalidArgument, "capabilities"),
        (capability(block(Mode::Unknown)), Code::InvalidArgument, "access mode"),
        (capability(block(Mode::MultiNodeMultiWriter)), Code::InvalidArgument, "SINGLE_NODE"),
        (capability(mount_as("ext4", Mode::MultiNodeReaderOnly)), Code::InvalidArgument, "SINGLE_NODE"),
        (capability(mount("ntfs")), Code::InvalidArgument, "ext4, xfs or btrfs"),
        (of_size(-1, 0), Code::InvalidArgument, "negative"),
        (of_size(0, -1), Code::InvalidArgument, "negative"),
        (of_size(2, 1), Code::InvalidArgument, "below"),
        (of_size(i64::MAX, 0), Code::OutOfRange, "larger than the lvstore"),
        (with(("provisioning", "fat")), Code::InvalidArgument, "thin, thick"),
        (with(("restore", "later")), Code::InvalidArgument, "lazy, eager"),
        (with(("export", "iscsi")), Code::InvalidArgument, "auto, ublk, nbd, fuse"),
        (with(("lvstore", "absent")), Code::InvalidArgument, "there are: store"),
        (with(("csi.storage.k8s.io/fstype", "zfs")), Code::InvalidArgument, "ext4, xfs or btrfs"),
        (with(("replicas", "3")), Code::InvalidArgument, "is not known"),
        (from(Source::Snapshot(SnapshotSource { snapshot_id: NOBODY.into() })), Code::NotFound, "snapshot"),
        (from(Source::Snapshot(SnapshotSource { snapshot_id: "x".into() })), Code::NotFound, "snapshot"),
        (from(Source::Volume(VolumeSource { volume_id: NOBODY.into() })), Code::NotFound, "volume"),
        (
            CreateVolumeRequest { accessibility_requirements: Some(topology("elsewhere")), ..base() },
            Code::ResourceExhausted,
            "topology",
        ),
        (
            CreateVolumeRequest { mutable_parameters: [("a".to_string(), "b".to_string())].into(), ..base() },
            Code::InvalidArgument,
            "mutable",
        ),
    ];
    for (request, code, says) in table {
        let shown = format!("{request:?}");
        match c.controller.create_volume(request).await {
            Ok(_) => anyhow::bail!("made: {shown}"),
            Err(status) => {
                assert_eq!(status.code(), code, "{shown}: {status:?}");
                assert!(status.message().contains(says), "{shown}: {status:?}");
            }
        }
    }
    let thick = CreateVolumeRequest { name: "thick".into(), ..with(("provisioning", "thick")) };
    let most = |name: &str| CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: 600 * MIB, limit_bytes: 0 }),
        ..thick.clone()
    };
    c.controller.create_volume(most("first")).await?;
    let full = c.controller.create_volume(most("second")).await;
    assert_eq!(full.map_err(|s| s.code()).err(), Some(Code::ResourceExhausted));
    let all = c.controller.list_volumes(ListVolumesRequest::default()).await?.into_inner();
    assert_eq!(all.entries.len(), 1, "what was refused left nothing");

    let token = ListVolumesRequest { starting_token: "nonsense".into(), ..Default::default() };
    assert_eq!(c.controller.list_volumes(token).await.map_err(|s| s.code()).err(), Some(Code::Aborted));
    let token = ListSnapshotsRequest { starting_token: "nonsense".into(), ..Default::default() };
    assert_eq!(c.controller.list_snapshots(token).await.map_err(|s| s.code()).err(), Some(Code::Aborted));
    let get = GetSnapshotRequest { snapshot_id: NOBODY.into(), ..Default::default() };
    assert_eq!(c.controller.get_snapshot(get).await.map_err(|s| s.code()).err(), Some(Code::NotFound));
    let get = ControllerGetVolumeRequest { volume_id: NOBODY.into() };
    assert_eq!(c.controller.controller_get_volume(get).await.map_err(|s| s.code()).err(), Some(Code::NotFound));
    for parameters in [[("consistency", "eventual")], [("colour", "blue")]] {
        let parameters = parameters.map(|(k, v)| (k.to_string(), v.to_string())).into();
        let request = CreateSnapshotRequest {
            name: "s".into(),
            source_volume_id: NOBODY.into(),
            parameters,
            ..Default::default()
        };
        let refused = c.controller.create_snapshot(request).await.map_err(|s| s.code()).err();
        assert_eq!(refused, Some(Code::InvalidArgument));
    }
    driver.terminate().await
}

#[tokio::test]
async fn a_file_system_that_does_not_fit_waits_for_room() -> Result<()> {
    let mut driver = Driver::start(256 << 20).await?;
    let mut c = driver.clients().await?;
    let volume = c.create("thin", 64 * MIB, mount("ext4")).await?;
    let room = c.controller.get_capacity(GetCapacityRequest::default()).await?.into_inner().available_capacity;
    let thick = CreateVolumeRequest {
        name: "thick".into(),
        capacity_range: Some(CapacityRange { required_bytes: room, limit_bytes: 0 }),
        ..with(("provisioning", "thick"))
    };
    let thick = c.controller.create_volume(thick).await?.into_inner().volume.expect("made").volume_id;
    let staging = driver.path("staging");
    let full = c.stage(&volume, &staging, mount("ext4")).await.expect_err("refused");
    assert_eq!(full.code(), Code::ResourceExhausted, "{full:?}");
    assert!(full.message().contains("the lvstore store is full"), "{full:?}");
    c.delete(&thick).await?;
    c.stage(&volume, &staging, mount("ext4")).await?;
    for (fs_type, fits) in [("ext4", true), ("", true), ("xfs", false)] {
        let request = ValidateVolumeCapabilitiesRequest {
            volume_id: volume.clone(),
            volume_capabilities: vec![mount(fs_type)],
            ..Default::default()
        };
        let answer = c.controller.validate_volume_capabilities(request).await?.into_inner();
        assert_eq!(answer.confirmed.is_some(), fits, "{fs_type}: {answer:?}");
    }
    c.unstage(&volume, &staging).await?;
    c.delete(&volume).await?;
    driver.terminate().await
}

#[tokio::test]
async fn uses_that_are_refused() -> Result<()> {
    let mut driver = Driver::start(1 << 30).await?;
    let mut c = driver.clients().await?;
    let volume = c.create("v", 64 * MIB, mount("ext4")).await?;
    let tiny = c.create("tiny", 64 * MIB, mount("xfs")).await?;
    let (staging, target) = (driver.path("staging"), driver.path("target"));
    let flags = |flag: &str| {
        let mut capability = mount("ext4");
        if let Some(volume_capability::AccessType::Mount(m)) = &mut capability.access_type {
            m.mount_flags = vec![flag.into()];
        }
        capability
    };
    let stage = |id: &str, path: String, capability: Option<VolumeCapability>| NodeStageVolumeRequest {
        volume_id: id.into(),
        staging_target_path: path,
        volume_capability: capability,
        ..Default::default()
    };
    let at = || text(&staging);
    let table = [
        (stage("", at(), Some(mount("ext4"))), Code::InvalidArgument),
        (stage(&volume, String::new(), Some(mount("ext4"))), Code::InvalidArgument),
        (stage(&volume, "relative".into(), Some(mount("ext4"))), Code::InvalidArgument),
        (stage(&volume, "/a/../b".into(), Some(mount("ext4"))), Code::InvalidArgument),
        (stage(&volume, at(), None), Code::InvalidArgument),
        (stage(NOBODY, at(), Some(mount("ext4"))), Code::NotFound),
        (stage("x", at(), Some(mount("ext4"))), Code::NotFound),
        (stage(&volume, at(), Some(mount_as("ext4", Mode::MultiNodeMultiWriter))), Code::InvalidArgument),
        (stage(&volume, at(), Some(mount("ntfs"))), Code::InvalidArgument),
        (stage(&volume, at(), Some(flags("bind"))), Code::InvalidArgument),
        (stage(&volume, at(), Some(flags("no-such-option"))), Code::InvalidArgument),
        (stage(&tiny, at(), Some(mount("xfs"))), Code::FailedPrecondition),
    ];
    for (request, code) in table {
        let shown = format!("{request:?}");
        let refused = c.node.node_stage_volume(request).await.map_err(|s| s.code()).err();
        assert_eq!(refused, Some(code), "{shown}");
    }
    assert!(driver.mounts()?.iter().all(|target| target.starts_with(driver.path("run"))), "nothing is mounted");
    let no_staging = NodePublishVolumeRequest {
        volume_id: volume.clone(),
        target_path: text(&target),
        volume_capability: Some(mount("ext4")),
        ..Default::default()
    };
    let refused = c.node.node_publish_volume(no_staging).await.map_err(|s| s.code()).err();
    assert_eq!(refused, Some(Code::FailedPrecondition));
    let full = driver.path("full");
    std::fs::create_dir(&full)?;
    std::fs::write(full.join("kept"), b"mine")?;
    assert!(c.unpublish(&volume, &full).await.is_err(), "a directory with content is not removed");
    assert_eq!(std::fs::read(full.join("kept"))?, b"mine");
    let expand = NodeExpandVolumeRequest {
        volume_id: volume.clone(),
        volume_path: text(&target),
        capacity_range: Some(CapacityRange { required_bytes: 1 << 40, limit_bytes: 0 }),
        ..Default::default()
    };
    let refused = c.node.node_expand_volume(expand).await.map_err(|s| s.code()).err();
    assert_eq!(refused, Some(Code::FailedPrecondition));
    for id in [&volume, &tiny] {
        c.unstage(id, &staging).await?;
        c.delete(id).await?;
    }
    driver.terminate().await
}
