//! The steps of the demo. Each says what is asked through CSI, how long it took, and what the lvols are afterwards.

use crate::output::colour;
use crate::size::human;
use crate::standalone::Server;
use crate::tree;
use anyhow::{Context, Result, bail};
use coppice_node::host::device;
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::identity_client::IdentityClient;
use coppice_proto::csi::v1::node_client::NodeClient;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as SourceType, VolumeSource};
use coppice_proto::csi::v1::volume_usage::Unit;
use coppice_proto::csi::v1::*;
use coppice_proto::unix;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// Where volumes are staged and published, below the demo's directory; the names of the entries are volume ids.
pub const STAGING: &str = "staging";
pub const PODS: &str = "pods";

const VOLUME_BYTES: i64 = 256 << 20;
const GROWN_BYTES: i64 = 1 << 30;
/// What the application in the pod writes.
const FILE_BYTES: usize = 24 << 20;

struct Demo<'a> {
    base: &'a Path,
    server: &'a Server,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
    step: u32,
}

/// From an empty lvstore to an empty lvstore.
pub async fn run(base: &Path, server: &Server) -> Result<()> {
    let channel = unix::connect(&base.join("csi.sock")).await.context("connect to the CSI socket")?;
    let mut identity = IdentityClient::new(channel.clone());
    let driver = identity.get_plugin_info(GetPluginInfoRequest {}).await?.into_inner();
    println!("The driver says it is {} {}.", driver.name, driver.vendor_version);
    let (controller, node) = (ControllerClient::new(channel.clone()), NodeClient::new(channel));
    let mut demo = Demo { base, server, controller, node, step: 0 };

    demo.say("A volume", "CreateVolume name=database required_bytes=256Mi fsType=ext4");
    let began = Instant::now();
    let database = demo.create("database", VOLUME_BYTES, None).await?;
    demo.done(began, "thin: nothing is taken before something is written").await?;

    demo.say("A pod uses it", "NodeStageVolume, NodePublishVolume volume=database");
    let began = Instant::now();
    let target = demo.publish(&database).await?;
    let took = format!("an empty ext4 of 256 MiB at {}", shown(base, &target));
    demo.done(began, &took).await?;

    demo.say("The pod writes", "write ledger.dat (24 MiB), fsync");
    let began = Instant::now();
    write_file(&target.join("ledger.dat"), b'A').await?;
    demo.done(began, "24 MiB on the drive").await?;

    demo.say("A snapshot, while the pod goes on", "CreateSnapshot source=database name=monday");
    let began = Instant::now();
    let monday = demo.snapshot(&database, "monday").await?;
    demo.done(began, "the file system is written out first; what the two share is stored once").await?;

    demo.say("An accident", "overwrite the first third of ledger.dat, fsync");
    let began = Instant::now();
    overwrite_third(&target.join("ledger.dat"), b'X').await?;
    demo.done(began, "only what changed takes room; the snapshot does not move").await?;

    demo.say("Restore", "CreateVolume name=restored source=snapshot:monday, NodeStageVolume, NodePublishVolume");
    let began = Instant::now();
    let source = SourceType::Snapshot(SnapshotSource { snapshot_id: monday.clone() });
    let restored = demo.create("restored", VOLUME_BYTES, Some(source)).await?;
    let restored_target = demo.publish(&restored).await?;
    expect_file(&restored_target.join("ledger.dat"), &[(0, b'A'), (FILE_BYTES - 1, b'A')]).await?;
    demo.done(began, "mounted beside the original; ledger.dat is as it was on monday").await?;

    demo.say(
        "Clone a volume that is in use",
        "CreateVolume name=copy source=volume:database, NodeStageVolume, NodePublishVolume",
    );
    let began = Instant::now();
    let source = SourceType::Volume(VolumeSource { volume_id: database.clone() });
    let copy = demo.create("copy", VOLUME_BYTES, Some(source)).await?;
    let copy_target = demo.publish(&copy).await?;
    expect_file(&copy_target.join("ledger.dat"), &[(0, b'X'), (FILE_BYTES - 1, b'A')]).await?;
    demo.done(began, "it has the accident too: it is a copy of now, not of monday").await?;

    demo.say("Grow", "ControllerExpandVolume volume=restored required_bytes=1Gi, NodeExpandVolume");
    let began = Instant::now();
    let how = demo.expand(&restored, &restored_target).await?;
    demo.done(began, &how).await?;

    demo.say("The end", "NodeUnpublishVolume, NodeUnstageVolume, DeleteVolume, DeleteSnapshot of everything");
    let began = Instant::now();
    for volume in [&database, &restored, &copy] {
        demo.unpublish(volume).await?;
    }
    // The snapshot first: its clones still read it, so it goes out of sight and its bytes follow later.
    demo.controller.delete_snapshot(DeleteSnapshotRequest { snapshot_id: monday, ..Default::default() }).await?;
    for volume in [database, restored, copy] {
        demo.controller.delete_volume(DeleteVolumeRequest { volume_id: volume, ..Default::default() }).await?;
    }
    demo.emptied().await?;
    demo.done(began, "every cluster is free again").await?;
    demo.verify().await
}

impl Demo<'_> {
    fn say(&mut self, what: &str, asked: &str) {
        self.step += 1;
        println!("\n── {}. {what}", self.step);
        println!("   CSI: {asked}");
    }

    /// The time since `began`, a remark, and the lvols now.
    async fn done(&self, began: Instant, remark: &str) -> Result<()> {
        println!("   {:>6.1} ms: {remark}\n", began.elapsed().as_secs_f64() * 1e3);
        let (mut stores, mut lvols) = (Vec::new(), Vec::new());
        for store in self.server.stores().all().iter() {
            stores.push(store.info().await?);
            lvols.extend(store.lvols().await?);
        }
        for line in tree::draw(&stores, &lvols, colour()).trim_end().lines() {
            println!("{}", format!("   {line}").trim_end());
        }
        Ok(())
    }

    async fn create(&mut self, name: &str, bytes: i64, source: Option<SourceType>) -> Result<String> {
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![capability()],
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let volume = self.controller.create_volume(request).await?.into_inner().volume;
        Ok(volume.context("CreateVolume answered without a volume")?.volume_id)
    }

    async fn snapshot(&mut self, volume: &str, name: &str) -> Result<String> {
        let request =
            CreateSnapshotRequest { source_volume_id: volume.into(), name: name.into(), ..Default::default() };
        let snapshot = self.controller.create_snapshot(request).await?.into_inner().snapshot;
        Ok(snapshot.context("CreateSnapshot answered without a snapshot")?.snapshot_id)
    }

    async fn publish(&mut self, volume: &str) -> Result<PathBuf> {
        let (staging, target) = (self.base.join(STAGING).join(volume), self.base.join(PODS).join(volume));
        let request = NodeStageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(&staging)?,
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(&staging)?,
            target_path: text(&target)?,
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        Ok(target)
    }

    async fn unpublish(&mut self, volume: &str) -> Result<()> {
        let target_path = text(&self.base.join(PODS).join(volume))?;
        let request = NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path };
        self.node.node_unpublish_volume(request).await?;
        let staging_target_path = text(&self.base.join(STAGING).join(volume))?;
        let request = NodeUnstageVolumeRequest { volume_id: volume.into(), staging_target_path };
        self.node.node_unstage_volume(request).await?;
        Ok(())
    }

    /// Answers with how the file system grew.
    async fn expand(&mut self, volume: &str, target: &Path) -> Result<String> {
        let range = Some(CapacityRange { required_bytes: GROWN_BYTES, limit_bytes: 0 });
        let request = ControllerExpandVolumeRequest {
            volume_id: volume.into(),
            capacity_range: range,
            volume_capability: Some(capability()),
            ..Default::default()
        };
        self.controller.controller_expand_volume(request).await?;
        let online = device::has_sys_resource();
        if online {
            let request = NodeExpandVolumeRequest {
                volume_id: volume.into(),
                volume_path: text(target)?,
                capacity_range: range,
                ..Default::default()
            };
            self.node.node_expand_volume(request).await?;
        } else {
            self.unpublish(volume).await?;
            self.publish(volume).await?;
        }
        let request =
            NodeGetVolumeStatsRequest { volume_id: volume.into(), volume_path: text(target)?, ..Default::default() };
        let usage = self.node.node_get_volume_stats(request).await?.into_inner().usage;
        let bytes = usage.iter().find(|usage| usage.unit() == Unit::Bytes).context("no bytes among the statistics")?;
        // An ext4 keeps some of its device for itself.
        if bytes.total < GROWN_BYTES / 2 {
            bail!("the file system has {} bytes after growing to {GROWN_BYTES}", bytes.total);
        }
        let size = human(u64::try_from(bytes.total)?);
        Ok(match online {
            true => format!("while it is mounted; the file system has {size} now"),
            false => format!(
                "this process lacks CAP_SYS_RESOURCE, which a mounted ext4 needs for growing, so the pod was restarted; \
                 the file system has {size} now"
            ),
        })
    }

    /// Waits until the store holds nothing: what is deleted is reclaimed when nothing in flight can read it any more.
    async fn emptied(&self) -> Result<()> {
        let began = Instant::now();
        for store in self.server.stores().all().iter() {
            loop {
                let (left, info) = (store.lvols().await?, store.info().await?);
                let held = info.allocated_clusters + info.reserved_clusters + info.quarantined_clusters;
                if left.is_empty() && held == 0 {
                    break;
                }
                if began.elapsed() > Duration::from_secs(10) {
                    let names: Vec<String> = left.into_iter().map(|lvol| lvol.alias).collect();
                    bail!("everything was deleted, but there are {held} clusters and lvols: {}", names.join(", "));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    async fn verify(&self) -> Result<()> {
        for store in self.server.stores().all().iter() {
            if let Some(finding) = store.check().await?.first() {
                bail!("the store does not check out: {}", finding.message);
            }
        }
        println!("\n   The store checks out: every invariant holds.");
        Ok(())
    }
}

fn capability() -> VolumeCapability {
    let mount = MountVolume { fs_type: "ext4".into(), ..Default::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_string())
}

fn shown(base: &Path, path: &Path) -> String {
    path.strip_prefix(base).unwrap_or(path).display().to_string()
}

async fn write_file(path: &Path, byte: u8) -> Result<()> {
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || {
        let mut file = std::fs::File::create(&path).with_context(|| format!("make {}", path.display()))?;
        file.write_all(&vec![byte; FILE_BYTES])?;
        Ok(file.sync_all()?)
    })
    .await?
}

async fn overwrite_third(path: &Path, byte: u8) -> Result<()> {
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || {
        let mut file = std::fs::OpenOptions::new().write(true).open(&path)?;
        file.write_all(&vec![byte; FILE_BYTES / 3])?;
        Ok(file.sync_all()?)
    })
    .await?
}

/// The file has its full length and these bytes at these places.
async fn expect_file(path: &Path, places: &[(usize, u8)]) -> Result<()> {
    let content = tokio::fs::read(path).await.with_context(|| format!("read {}", path.display()))?;
    if content.len() != FILE_BYTES {
        bail!("{} has {} bytes, not {FILE_BYTES}", path.display(), content.len());
    }
    for (at, byte) in places {
        if content.get(*at) != Some(byte) {
            bail!("{} does not hold {:?} at {at}", path.display(), char::from(*byte));
        }
    }
    Ok(())
}
