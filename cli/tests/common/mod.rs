//! A `coppice standalone` of its own for a test, on a lvstore in a temporary file, and its CSI clients.

// Each test file uses a part of it.
#![allow(dead_code)]

pub mod program;

use anyhow::{Context, Result, bail};
use coppice_engine::{CreateStore, Engine, EngineConfig, Finding, LvolInfo, OpenStore};
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::node_client::NodeClient;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use coppice_proto::csi::v1::*;
use coppice_proto::unix;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;

pub const MIB: i64 = 1 << 20;

pub struct Driver {
    // The process ends before the directory goes.
    child: Option<Child>,
    dir: TempDir,
    pub base: PathBuf,
    store: PathBuf,
}

pub struct Clients {
    pub controller: ControllerClient<Channel>,
    pub node: NodeClient<Channel>,
}

impl Driver {
    pub async fn start(store_bytes: u64) -> Result<Driver> {
        let dir = tempfile::Builder::new().prefix("coppice-test-").tempdir()?;
        let base = dir.path().canonicalize()?;
        let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
        let how = CreateStore {
            file_size: Some(store_bytes),
            name: "store".into(),
            cluster_size: None,
            max_size: None,
            block_size: None,
            force: false,
            owner: None,
        };
        engine.create_store(&base.join("store"), how).await?;
        engine.shutdown().await;
        let mut driver = Driver { child: None, dir, store: base.join("store"), base };
        driver.run().await?;
        Ok(driver)
    }

    /// For the lvstore at `store`; it does not run yet.
    pub fn on(store: &Path) -> Result<Driver> {
        let dir = tempfile::Builder::new().prefix("coppice-test-").tempdir()?;
        let base = dir.path().canonicalize()?;
        Ok(Driver { child: None, dir, base, store: store.into() })
    }

    /// Starts the process and waits for its socket.
    pub async fn run(&mut self) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.base.join("log"))?;
        let mut command = Command::new(program::coppice());
        command.arg("standalone").arg("--lvstore").arg(&self.store);
        command.arg("--endpoint").arg(format!("unix://{}", self.socket().display()));
        command.arg("--run-dir").arg(self.base.join("run")).arg("--node-id").arg("test-node");
        command.arg("--http").arg("127.0.0.1:0");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        let began = Instant::now();
        while !self.answers().await {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("the driver does not serve:\n{}", self.log());
            }
            if let Some(code) = self.child.as_mut().and_then(|child| child.try_wait().transpose()).transpose()? {
                bail!("the driver ended with {code}:\n{}", self.log());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The process that was started listens. A child that its killed predecessor was just starting holds the old socket open
    /// for a moment.
    async fn answers(&self) -> bool {
        let Ok(stream) = tokio::net::UnixStream::connect(self.socket()).await else { return false };
        let listener = stream.peer_cred().ok().and_then(|cred| cred.pid());
        listener.is_some() && listener == self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok())
    }

    fn socket(&self) -> PathBuf {
        self.base.join("csi.sock")
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.base.join("log")).unwrap_or_default()
    }

    /// Where health and metrics are served: the process says so in its log.
    pub fn http(&self) -> Result<String> {
        let log = self.log();
        let said = log.lines().rev().find(|line| line.contains("health and metrics")).context("http is served")?;
        let at = said.find("127.0.0.1:").and_then(|from| said.get(from..)).context("an address")?;
        Ok(at.chars().take_while(|c| c.is_ascii_digit() || matches!(c, '.' | ':')).collect())
    }

    pub async fn clients(&self) -> Result<Clients> {
        let channel = unix::connect(&self.socket()).await?;
        Ok(Clients { controller: ControllerClient::new(channel.clone()), node: NodeClient::new(channel) })
    }

    /// As a crash or the out-of-memory killer would.
    pub fn kill(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the driver does not run")?;
        child.kill()?;
        let began = Instant::now();
        while child.try_wait()?.is_none() {
            if began.elapsed() > Duration::from_secs(30) {
                bail!("the killed driver {} does not go: its own devices hold it", child.id());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// How the driver ended, if it did without being told.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }

    /// As an orchestrator ends it; it must end well.
    pub async fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("the driver does not run")?;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = tokio::task::spawn_blocking(move || child.wait()).await??;
        if !status.success() {
            bail!("the driver ended with {status}:\n{}", self.log());
        }
        Ok(())
    }

    /// What the closed store holds, and what its checker finds.
    pub async fn inspect(&self) -> Result<(Vec<LvolInfo>, Vec<Finding>)> {
        let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
        let store = engine.open_store(&self.store, OpenStore { read_only: true, ..Default::default() }).await?;
        let found = (store.lvols().await?, store.check().await?);
        store.close().await?;
        engine.shutdown().await;
        Ok(found)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    pub fn mounts(&self) -> Result<Vec<PathBuf>> {
        let all = coppice_node::host::mountinfo::read()?;
        Ok(all.into_iter().map(|m| m.target).filter(|target| target.starts_with(&self.base)).collect())
    }

    /// Ends the process if it runs, and takes its mounts and devices away, as a reboot does.
    pub fn power_off(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // The exports' own mounts come last: their devices are found by them.
        let exports = self.base.join("run/exports");
        let mounts = self.mounts().unwrap_or_default();
        for target in mounts.into_iter().rev().filter(|target| !target.starts_with(&exports)) {
            let _ = rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = coppice_engine::remove_dead_exports(&exports, &[], &[]);
    }
}

impl Drop for Driver {
    // A test that failed half way leaves mounts; none may outlive it.
    fn drop(&mut self) {
        self.power_off();
    }
}

pub fn mount(fs_type: &str) -> VolumeCapability {
    mount_as(fs_type, Mode::SingleNodeWriter)
}

pub fn mount_as(fs_type: &str, mode: Mode) -> VolumeCapability {
    let mount = MountVolume { fs_type: fs_type.into(), ..Default::default() };
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(mount)),
    }
}

pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Block(BlockVolume {})),
    }
}

pub fn text(path: &Path) -> String {
    path.display().to_string()
}

impl Clients {
    pub async fn create(&mut self, name: &str, bytes: i64, how: VolumeCapability) -> Result<String> {
        self.create_from(name, bytes, how, None).await
    }

    pub async fn create_from(
        &mut self,
        name: &str,
        bytes: i64,
        how: VolumeCapability,
        source: Option<volume_content_source::Type>,
    ) -> Result<String> {
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![how],
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let volume = self.controller.create_volume(request).await?.into_inner().volume;
        Ok(volume.context("a volume")?.volume_id)
    }

    pub async fn snapshot(&mut self, volume: &str, name: &str, consistency: &str) -> Result<String> {
        let request = CreateSnapshotRequest {
            name: name.into(),
            source_volume_id: volume.into(),
            parameters: [("consistency".to_string(), consistency.to_string())].into(),
            ..Default::default()
        };
        let snapshot = self.controller.create_snapshot(request).await?.into_inner().snapshot;
        Ok(snapshot.context("a snapshot")?.snapshot_id)
    }

    pub async fn stage(&mut self, volume: &str, staging: &Path, how: VolumeCapability) -> Result<(), tonic::Status> {
        let request = NodeStageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(staging),
            volume_capability: Some(how),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await.map(|_| ())
    }

    pub async fn publish(
        &mut self,
        volume: &str,
        staging: &Path,
        target: &Path,
        how: VolumeCapability,
        readonly: bool,
    ) -> Result<(), tonic::Status> {
        let request = NodePublishVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: text(staging),
            target_path: text(target),
            volume_capability: Some(how),
            readonly,
            ..Default::default()
        };
        self.node.node_publish_volume(request).await.map(|_| ())
    }

    pub async fn unpublish(&mut self, volume: &str, target: &Path) -> Result<(), tonic::Status> {
        let request = NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path: text(target) };
        self.node.node_unpublish_volume(request).await.map(|_| ())
    }

    pub async fn unstage(&mut self, volume: &str, staging: &Path) -> Result<(), tonic::Status> {
        let request = NodeUnstageVolumeRequest { volume_id: volume.into(), staging_target_path: text(staging) };
        self.node.node_unstage_volume(request).await.map(|_| ())
    }

    pub async fn delete(&mut self, volume: &str) -> Result<(), tonic::Status> {
        let request = DeleteVolumeRequest { volume_id: volume.into(), ..Default::default() };
        self.controller.delete_volume(request).await.map(|_| ())
    }
}
