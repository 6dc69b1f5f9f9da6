//! One caller: it makes volumes of its own, uses them, and knows what every answer must be.

use crate::common::{MIB, block, mount, text};
use crate::content::{Content, is_mounted};
use crate::model::{OwnSnapshot, OwnVolume, Use};
use crate::random::Random;
use crate::world::{Line, World};
use anyhow::{Context, Result, bail, ensure};
use coppice_proto::csi::v1::controller_client::ControllerClient;
use coppice_proto::csi::v1::node_client::NodeClient;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use coppice_proto::csi::v1::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Status};

const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 4;
/// A user that waits longer for its own I/O hangs.
const USE_SECONDS_MAX: u64 = 120;
const BTRFS_GROWS_FROM: i64 = 256 * MIB;

pub struct Caller {
    name: String,
    pub world: Arc<World>,
    pub random: Random,
    pub line: Line,
    pub volumes: Vec<OwnVolume>,
    pub snapshots: Vec<OwnSnapshot>,
    made: u64,
    pub done: Vec<String>,
}

/// Calls a method of a service with a request, as often as the line wants.
macro_rules! ask {
    ($caller:expr, $service:ident, $method:ident, $request:expr) => {{
        let request = $request;
        let caller = &mut *$caller;
        caller
            .line
            .settle(&mut caller.random, stringify!($method), move |channel| {
                let request = request.clone();
                async move { $service::new(channel).$method(request).await }
            })
            .await?
    }};
}
pub(crate) use ask;

fn code<T>(answer: &Result<T, Status>) -> Code {
    answer.as_ref().map_or_else(|status| status.code(), |_| Code::Ok)
}

/// The answer must be one of these codes.
pub fn expect<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>, allowed: &[Code]) -> Result<Code> {
    let got = code(&answer);
    ensure!(allowed.contains(&got), "{what}: {got:?}, where {allowed:?} is right: {answer:?}");
    Ok(got)
}

fn capability(how: Use, random: &mut Random) -> VolumeCapability {
    match how {
        Use::Block => block(*random.pick(&[Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter])),
        Use::FileSystem(fs_type) => mount(fs_type),
    }
}

impl Caller {
    pub fn new(name: String, world: Arc<World>, random: Random) -> Caller {
        let line = Line::new(world.clone());
        Caller { name, world, random, line, volumes: vec![], snapshots: vec![], made: 0, done: vec![] }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    fn note(&mut self, what: String) {
        self.done.push(what);
    }

    fn new_name(&mut self) -> String {
        self.made += 1;
        // Volumes and snapshots of different callers share their spelling, so that lvol names meet.
        format!("{}-{}", self.name, self.made)
    }

    pub async fn life(&mut self) -> Result<u64> {
        Ok(self.line.channel().await?.0)
    }

    /// One random step.
    pub async fn step(&mut self) -> Result<()> {
        let volume = (!self.volumes.is_empty()).then(|| self.random.below(self.volumes.len() as u64) as usize);
        let snapshot = (!self.snapshots.is_empty()).then(|| self.random.below(self.snapshots.len() as u64) as usize);
        match (self.random.below(100), volume, snapshot) {
            (0..8, _, _) | (_, None, None) => self.create(None).await,
            (8..14, Some(v), _) => {
                self.create(Some(Source::Volume(VolumeSource { volume_id: self.volumes[v].id() }))).await
            }
            (14..22, _, Some(s)) => {
                let snapshot_id = self.snapshots[s].snapshot.snapshot_id.clone();
                self.create(Some(Source::Snapshot(SnapshotSource { snapshot_id }))).await
            }
            (22..26, Some(v), _) => self.create_again(v).await,
            (26..31, Some(v), _) => self.delete(v).await,
            (31..40, Some(v), _) => self.snapshot(v).await,
            (40..42, Some(v), Some(s)) => self.snapshot_again(s, v).await,
            (42..46, _, Some(s)) => self.delete_snapshot(s).await,
            (46..52, Some(v), _) => self.expand(v).await,
            (52..57, Some(v), _) => self.stage(v).await,
            (57..66, Some(v), _) => self.publish(v).await,
            (66..70, Some(v), _) => self.unpublish(v).await,
            (70..74, Some(v), _) => self.unstage(v).await,
            (74..86, Some(v), _) => self.use_it(v).await,
            (86..88, Some(v), _) => self.statistics(v).await,
            (88..92, ..) => self.look().await,
            (92..95, ..) => crate::refusals::some(self).await,
            (95..100, ..) => crate::shared::step(self).await,
            _ => self.look().await,
        }
    }

    async fn create(&mut self, source: Option<Source>) -> Result<()> {
        if self.volumes.len() >= VOLUMES_MAX {
            let mut one = self.random.below(VOLUMES_MAX as u64) as usize;
            if source == Some(Source::Volume(VolumeSource { volume_id: self.volumes[one].id() })) {
                one = (one + 1) % VOLUMES_MAX;
            }
            self.delete(one).await?;
        }
        if self.volumes.len() >= VOLUMES_MAX {
            return Ok(());
        }
        let (how, least, content) = match &source {
            None => {
                let how = *self.random.pick(&[
                    Use::Block,
                    Use::Block,
                    Use::FileSystem("ext4"),
                    Use::FileSystem("ext4"),
                    Use::FileSystem("xfs"),
                    Use::FileSystem("btrfs"),
                ]);
                (how, 0, Content::default())
            }
            Some(Source::Volume(from)) => {
                let from = self.volumes.iter().find(|v| v.id() == from.volume_id).context("its own source")?;
                (from.how, from.volume.capacity_bytes, from.content.clone())
            }
            Some(Source::Snapshot(from)) => {
                let from = self.snapshots.iter().find(|s| s.snapshot.snapshot_id == from.snapshot_id);
                let from = from.context("its own source")?;
                (from.how, from.snapshot.size_bytes, from.content.clone())
            }
        };
        let low = match how {
            Use::Block => 1,
            Use::FileSystem("ext4") => 16 * MIB,
            Use::FileSystem("xfs") => 300 * MIB,
            Use::FileSystem(_) => 112 * MIB,
        };
        let required = match (least, self.random.below(3)) {
            (0, _) => low + self.random.below(48 << 20) as i64,
            (_, 0) => 0,
            (least, 1) => least,
            (least, _) => least + self.random.below(40 << 20) as i64,
        };
        let reported = required.max(least);
        let limit = if self.random.chance(50) { 0 } else { reported + self.random.below(2) as i64 * 4096 };
        let name = self.new_name();
        let mut parameters = std::collections::BTreeMap::new();
        if self.random.chance(40) {
            parameters.insert("provisioning".to_string(), self.random.pick(&["thin", "thick"]).to_string());
        }
        if self.random.chance(20) {
            parameters.insert("csi.storage.k8s.io/pvc/name".into(), name.clone());
        }
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: (required != 0 || limit != 0)
                .then_some(CapacityRange { required_bytes: required, limit_bytes: limit }),
            volume_capabilities: vec![capability(how, &mut self.random)],
            parameters,
            volume_content_source: source.clone().map(|source| VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let answer = ask!(self, ControllerClient, create_volume, request.clone());
        self.note(format!("create {name} {how:?} {required}..{limit} from {source:?}: {:?}", code(&answer)));
        let volume = match answer {
            Err(status) if status.code() == Code::ResourceExhausted => return Ok(()),
            answer => answer.with_context(|| format!("{request:?}"))?.volume.context("a volume")?,
        };
        ensure!(volume.capacity_bytes == reported, "asked for {required}, source {least}, got {volume:?}");
        ensure!(
            volume.content_source.as_ref().and_then(|source| source.r#type.clone()) == source,
            "the source of {volume:?} should be {source:?}"
        );
        let dir = self.world.base.join("use").join(&name);
        self.volumes.push(OwnVolume { request, volume, how, content, staged: None, published: vec![], dir });
        Ok(())
    }

    /// The same again gives the same; something else of that name is refused.
    async fn create_again(&mut self, v: usize) -> Result<()> {
        let own = self.volumes[v].clone();
        let mut request = own.request.clone();
        let size = own.volume.capacity_bytes;
        // It may have grown since: ask for what it has.
        request.capacity_range = Some(CapacityRange { required_bytes: size, limit_bytes: 0 });
        let answer = ask!(self, ControllerClient, create_volume, request.clone());
        let again = answer.context("create again")?.volume;
        ensure!(again.as_ref() == Some(&own.volume), "created again: {again:?}, first {:?}", own.volume);
        let wrong = match self.random.below(4) {
            0 => {
                request.capacity_range = Some(CapacityRange { required_bytes: size + 1, limit_bytes: 0 });
                "size"
            }
            1 => {
                request.capacity_range = Some(CapacityRange { required_bytes: 0, limit_bytes: size - 1 });
                if size == 1 {
                    return Ok(());
                }
                "limit"
            }
            2 => {
                let thick = request.parameters.get("provisioning").is_some_and(|p| p == "thick");
                let other = if thick { "thin" } else { "thick" };
                request.parameters.insert("provisioning".into(), other.into());
                "provisioning"
            }
            _ => {
                request.volume_content_source = match &request.volume_content_source {
                    Some(_) => None,
                    None => {
                        Some(VolumeContentSource { r#type: Some(Source::Volume(VolumeSource { volume_id: own.id() })) })
                    }
                };
                "source"
            }
        };
        let answer = ask!(self, ControllerClient, create_volume, request);
        expect(&format!("create again with another {wrong}"), answer, &[Code::AlreadyExists])?;
        Ok(())
    }

    /// Takes it out of use first, or sees that it cannot be deleted while it is in use.
    pub async fn delete(&mut self, v: usize) -> Result<()> {
        let id = self.volumes[v].id();
        let life = self.life().await?;
        if self.volumes[v].is_staged(life) {
            let answer = ask!(
                self,
                ControllerClient,
                delete_volume,
                DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() }
            );
            let got = expect("delete of a staged volume", answer, &[Code::FailedPrecondition, Code::Ok])?;
            if got == Code::Ok {
                ensure!(self.life().await? != life, "a staged volume was deleted");
                // After a restart it is in use only once it was mounted anew. What is left of it is taken away all the same.
                self.put_away(v).await?;
                self.note(format!("deleted after a restart: {}", self.volumes[v].request.name));
                self.volumes.remove(v);
                return Ok(());
            }
        }
        self.put_away(v).await?;
        for _ in 0..self.random.between(1, 2) {
            let answer = ask!(
                self,
                ControllerClient,
                delete_volume,
                DeleteVolumeRequest { volume_id: id.clone(), ..Default::default() }
            );
            expect("delete", answer, &[Code::Ok])?;
        }
        let answer =
            ask!(self, ControllerClient, controller_get_volume, ControllerGetVolumeRequest { volume_id: id.clone() });
        expect("get after delete", answer, &[Code::NotFound])?;
        self.note(format!("deleted {}", self.volumes[v].request.name));
        self.volumes.remove(v);
        Ok(())
    }

    async fn snapshot(&mut self, v: usize) -> Result<()> {
        if self.snapshots.len() >= SNAPSHOTS_MAX {
            let old = self.random.below(SNAPSHOTS_MAX as u64) as usize;
            self.delete_snapshot(old).await?;
        }
        let own = self.volumes[v].clone();
        let name = self.new_name();
        let mut request =
            CreateSnapshotRequest { name: name.clone(), source_volume_id: own.id(), ..Default::default() };
        if self.random.chance(60) {
            let how = self.random.pick(&["sync", "freeze", "crash"]).to_string();
            request.parameters.insert("consistency".into(), how);
        }
        let answer = ask!(self, ControllerClient, create_snapshot, request.clone());
        self.note(format!("snapshot {name} of {} {:?}: {:?}", own.request.name, request.parameters, code(&answer)));
        let snapshot = match answer {
            Err(status) if status.code() == Code::ResourceExhausted => return Ok(()),
            answer => answer.with_context(|| format!("{request:?}"))?.snapshot.context("a snapshot")?,
        };
        ensure!(snapshot.size_bytes == own.volume.capacity_bytes, "{snapshot:?} of {:?}", own.volume);
        ensure!(snapshot.source_volume_id == own.id() && snapshot.ready_to_use, "{snapshot:?}");
        self.snapshots.push(OwnSnapshot { request, snapshot, how: own.how, content: own.content });
        Ok(())
    }

    async fn snapshot_again(&mut self, s: usize, v: usize) -> Result<()> {
        let own = self.snapshots[s].clone();
        let answer = ask!(self, ControllerClient, create_snapshot, own.request.clone());
        let again = answer.context("snapshot again")?.snapshot;
        ensure!(again.as_ref() == Some(&own.snapshot), "taken again: {again:?}, first {:?}", own.snapshot);
        let other = self.volumes[v].id();
        if other != own.snapshot.source_volume_id {
            let request = CreateSnapshotRequest { source_volume_id: other, ..own.request };
            let answer = ask!(self, ControllerClient, create_snapshot, request);
            expect("a snapshot's name for another volume", answer, &[Code::AlreadyExists])?;
        }
        Ok(())
    }

    pub async fn delete_snapshot(&mut self, s: usize) -> Result<()> {
        let id = self.snapshots[s].snapshot.snapshot_id.clone();
        for _ in 0..self.random.between(1, 2) {
            let request = DeleteSnapshotRequest { snapshot_id: id.clone(), ..Default::default() };
            let answer = ask!(self, ControllerClient, delete_snapshot, request);
            expect("delete a snapshot", answer, &[Code::Ok])?;
        }
        let request = CreateVolumeRequest {
            name: self.new_name(),
            volume_capabilities: vec![block(Mode::SingleNodeWriter)],
            volume_content_source: Some(VolumeContentSource {
                r#type: Some(Source::Snapshot(SnapshotSource { snapshot_id: id.clone() })),
            }),
            ..Default::default()
        };
        let answer = ask!(self, ControllerClient, create_volume, request);
        expect("a volume from a deleted snapshot", answer, &[Code::NotFound])?;
        let answer =
            ask!(self, ControllerClient, get_snapshot, GetSnapshotRequest { snapshot_id: id, ..Default::default() });
        expect("get a deleted snapshot", answer, &[Code::NotFound])?;
        self.note(format!("deleted snapshot {}", self.snapshots[s].request.name));
        self.snapshots.remove(s);
        Ok(())
    }

    async fn expand(&mut self, v: usize) -> Result<()> {
        let own = self.volumes[v].clone();
        let more = if self.random.chance(30) { 0 } else { self.random.between(1, 64 << 20) as i64 };
        let want = own.volume.capacity_bytes + more;
        let range =
            Some(CapacityRange { required_bytes: want, limit_bytes: if self.random.chance(30) { want } else { 0 } });
        let request = ControllerExpandVolumeRequest {
            volume_id: own.id(),
            capacity_range: range,
            volume_capability: self.random.chance(70).then(|| own.capability()),
            ..Default::default()
        };
        let answer = ask!(self, ControllerClient, controller_expand_volume, request);
        self.note(format!("expand {} to {want}: {:?}", own.request.name, code(&answer)));
        match answer {
            Err(status) if status.code() == Code::ResourceExhausted => return Ok(()),
            answer => {
                let got = answer.context("expand")?.capacity_bytes;
                ensure!(got == want, "expanded to {got}, not to {want}");
            }
        }
        self.volumes[v].volume.capacity_bytes = want;
        let less = ControllerExpandVolumeRequest {
            volume_id: own.id(),
            capacity_range: Some(CapacityRange { required_bytes: 0, limit_bytes: want - 1 }),
            ..Default::default()
        };
        if want > 1 {
            let answer = ask!(self, ControllerClient, controller_expand_volume, less);
            expect("expand to less", answer, &[Code::OutOfRange])?;
        }
        self.grow_on_node(v, range).await
    }

    async fn grow_on_node(&mut self, v: usize, range: Option<CapacityRange>) -> Result<()> {
        let own = self.volumes[v].clone();
        let life = self.life().await?;
        let here = own.published.iter().filter(|(.., of)| *of == life).map(|(path, ..)| path.clone()).next();
        let path = here.unwrap_or_else(|| own.staging());
        let request = NodeExpandVolumeRequest {
            volume_id: own.id(),
            volume_path: text(&path),
            capacity_range: range,
            ..Default::default()
        };
        let answer = ask!(self, NodeClient, node_expand_volume, request);
        let alive = own.is_staged(life) && self.life().await? == life;
        let stays = match own.how {
            Use::FileSystem("btrfs") => own.volume.capacity_bytes < BTRFS_GROWS_FROM,
            Use::FileSystem("ext4") => !coppice_node::host::device::has_sys_resource(),
            _ => false,
        };
        match answer {
            Ok(grown) => ensure!(grown.capacity_bytes == own.volume.capacity_bytes, "{grown:?} of {:?}", own.volume),
            Err(status) => {
                let right = match status.code() {
                    Code::NotFound => !alive,
                    Code::FailedPrecondition => stays,
                    _ => false,
                };
                ensure!(right, "expand on the node, staged: {alive}: {status:?}");
            }
        }
        Ok(())
    }

    fn stage_request(&self, v: usize) -> NodeStageVolumeRequest {
        let own = &self.volumes[v];
        NodeStageVolumeRequest {
            volume_id: own.id(),
            staging_target_path: text(&own.staging()),
            volume_capability: Some(own.capability()),
            ..Default::default()
        }
    }

    fn publish_request(&self, v: usize, target: &Path, readonly: bool) -> NodePublishVolumeRequest {
        let own = &self.volumes[v];
        NodePublishVolumeRequest {
            volume_id: own.id(),
            staging_target_path: text(&own.staging()),
            target_path: text(target),
            volume_capability: Some(own.capability()),
            readonly,
            ..Default::default()
        }
    }

    async fn stage(&mut self, v: usize) -> Result<()> {
        let life = self.life().await?;
        let request = self.stage_request(v);
        let answer = ask!(self, NodeClient, node_stage_volume, request.clone());
        let after = self.life().await?;
        self.note(format!("stage {}: {:?}", self.volumes[v].request.name, code(&answer)));
        answer.with_context(|| format!("stage {:?}", self.volumes[v]))?;
        // Whether before or after the last restart is known only if there was none.
        self.volumes[v].staged = (life == after).then_some(life);
        if life != after {
            return Ok(());
        }
        // Staged otherwise is refused.
        match self.random.below(8) {
            0 => {
                let elsewhere = NodeStageVolumeRequest {
                    staging_target_path: text(&self.volumes[v].dir.join("elsewhere")),
                    ..request
                };
                let answer = ask!(self, NodeClient, node_stage_volume, elsewhere);
                self.refused_unless_restarted(v, "stage elsewhere", answer, Code::AlreadyExists).await?;
            }
            1 if self.volumes[v].how != Use::Block => {
                let other =
                    NodeStageVolumeRequest { volume_capability: Some(block(Mode::SingleNodeWriter)), ..request };
                let answer = ask!(self, NodeClient, node_stage_volume, other);
                self.refused_unless_restarted(v, "stage as a block device", answer, Code::AlreadyExists).await?;
            }
            2 if self.volumes.len() > 1 => {
                // The place of another volume is taken.
                let other = (v + 1) % self.volumes.len();
                let blocks = self.volumes[v].how == Use::Block || self.volumes[other].how == Use::Block;
                let id = self.volumes[other].id();
                if !blocks && !self.volumes[other].is_staged(life) {
                    let there = NodeStageVolumeRequest {
                        volume_id: id.clone(),
                        volume_capability: Some(self.volumes[other].capability()),
                        ..request
                    };
                    let answer = ask!(self, NodeClient, node_stage_volume, there);
                    let refused = answer.is_err();
                    if self.life().await? == life {
                        expect("stage over another volume", answer, &[Code::FailedPrecondition, Code::AlreadyExists])?;
                    } else if !refused {
                        let staging = text(&self.volumes[v].staging());
                        let undo = NodeUnstageVolumeRequest { volume_id: id, staging_target_path: staging };
                        expect("undo", ask!(self, NodeClient, node_unstage_volume, undo), &[Code::Ok])?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// For a call that must be refused because of something staged; after a restart nothing may be, so it may have been
    /// done: then it is undone.
    async fn refused_unless_restarted<T: std::fmt::Debug>(
        &mut self,
        v: usize,
        what: &str,
        answer: Result<T, Status>,
        right: Code,
    ) -> Result<()> {
        let restarted = !self.volumes[v].is_staged(self.line.channel().await?.0);
        match answer {
            Err(status) if status.code() == right => Ok(()),
            Ok(_) if restarted => {
                for place in ["elsewhere", "staging"] {
                    let staging_target_path = text(&self.volumes[v].dir.join(place));
                    let request = NodeUnstageVolumeRequest { volume_id: self.volumes[v].id(), staging_target_path };
                    let answer = ask!(self, NodeClient, node_unstage_volume, request);
                    expect("undo", answer, &[Code::Ok, Code::FailedPrecondition])?;
                }
                let _ = std::fs::remove_dir(self.volumes[v].dir.join("elsewhere"));
                self.volumes[v].staged = None;
                Ok(())
            }
            other => bail!("{what}: {other:?}, where {right:?} is right"),
        }
    }

    async fn publish(&mut self, v: usize) -> Result<()> {
        let number = self.random.below(3);
        let target = self.volumes[v].target(number);
        let read_only = self.volumes[v].how != Use::Block && self.random.chance(20);
        let life = self.life().await?;
        // Of an earlier life it is there, dead or mounted anew.
        let in_doubt = |(path, was, of): &(PathBuf, bool, u64)| {
            *path == target && (*of == u64::MAX || *of != life && *was != read_only)
        };
        if self.volumes[v].published.iter().any(in_doubt) {
            self.unpublish_at(v, target.clone()).await?;
        }
        let there = self.volumes[v].published.iter().find(|(path, ..)| *path == target).cloned();
        let request = self.publish_request(v, &target, read_only);
        if self.random.chance(70) && !self.volumes[v].is_staged(life) {
            self.stage(v).await?;
        }
        let answer = ask!(self, NodeClient, node_publish_volume, request);
        let after = self.life().await?;
        self.note(format!("publish {} at {number} {read_only}: {:?}", self.volumes[v].request.name, code(&answer)));
        match (&there, &answer) {
            (Some((_, was, of)), Err(status)) if *of == life && *was != read_only => {
                ensure!(status.code() == Code::AlreadyExists, "published otherwise: {status:?}");
                return Ok(());
            }
            (Some((_, was, of)), Ok(_)) if *of == life && after == life && *was != read_only => {
                bail!("published read-only {was} and then read-only {read_only} at {}", target.display())
            }
            _ => {}
        }
        answer.with_context(|| format!("publish {:?}", self.volumes[v]))?;
        let own = &mut self.volumes[v];
        own.published.retain(|(path, ..)| *path != target);
        // After a restart in between it may be there or not; it is unpublished at the end all the same.
        let life_of = if life == after { life } else { u64::MAX };
        own.published.push((target, read_only, life_of));
        if life == after {
            own.staged = Some(life);
        }
        Ok(())
    }

    async fn unpublish(&mut self, v: usize) -> Result<()> {
        let own = self.volumes[v].clone();
        let target = match own.published.is_empty() {
            true => own.target(self.random.below(3)),
            false => self.random.pick(&own.published).0.clone(),
        };
        self.unpublish_at(v, target).await
    }

    async fn unpublish_at(&mut self, v: usize, target: PathBuf) -> Result<()> {
        let request = NodeUnpublishVolumeRequest { volume_id: self.volumes[v].id(), target_path: text(&target) };
        let answer = ask!(self, NodeClient, node_unpublish_volume, request);
        self.note(format!("unpublish {}: {:?}", target.display(), code(&answer)));
        answer.context("unpublish")?;
        ensure!(std::fs::symlink_metadata(&target).is_err(), "{} is still there", target.display());
        self.volumes[v].published.retain(|(path, ..)| *path != target);
        Ok(())
    }

    async fn unstage(&mut self, v: usize) -> Result<()> {
        let life = self.life().await?;
        let own = self.volumes[v].clone();
        let staging_target_path = text(&own.staging());
        let answer = ask!(
            self,
            NodeClient,
            node_unstage_volume,
            NodeUnstageVolumeRequest { volume_id: own.id(), staging_target_path }
        );
        let after = self.life().await?;
        self.note(format!("unstage {}: {:?}", own.request.name, code(&answer)));
        let published = own.published.iter().any(|(.., of)| *of == life);
        // Users of an earlier life may have been mounted anew.
        let unsure = own.published.iter().any(|(.., of)| *of != life);
        match answer {
            Ok(_) => {
                ensure!(!published || after != life, "unstaged while published: {own:?}");
                self.volumes[v].staged = None;
                ensure!(!is_mounted(&own.staging())?, "{} is still mounted", own.staging().display());
            }
            Err(status) => {
                let right = status.code() == Code::FailedPrecondition && (published || unsure);
                ensure!(right, "unstage of {own:?}: {status:?}");
            }
        }
        Ok(())
    }

    /// Unpublished everywhere, unstaged, its directories removed.
    pub async fn put_away(&mut self, v: usize) -> Result<()> {
        for target in self.volumes[v].published.clone() {
            self.unpublish_at(v, target.0).await?;
        }
        self.unstage(v).await?;
        ensure!(self.volumes[v].staged.is_none(), "{:?} stays staged", self.volumes[v]);
        // The caller made the way to these places, not the driver.
        let dir = self.volumes[v].dir.clone();
        for place in ["staging", "pods/0", "pods/1", "pods/2", "pods", ""] {
            match std::fs::remove_dir(dir.join(place)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("remove {}", dir.join(place).display()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Reads everything and changes some of it, as the user of a volume would. Errors are only for users of a dead driver.
    pub async fn use_it(&mut self, v: usize) -> Result<()> {
        let life = self.life().await?;
        if self.volumes[v].writable(life).is_none() {
            self.publish(v).await?;
        }
        let own = &self.volumes[v];
        let Some(path) = own.writable(life).map(Path::to_path_buf) else { return Ok(()) };
        let (how, size, mut content, mut random) = (own.how, own.size(), own.content.clone(), self.random.fork());
        let changes = self.random.below(6);
        let world = self.world.clone();
        let using = world.users.read().await;
        if self.world.deaths() != life {
            return Ok(());
        }
        let at = path.clone();
        let work = tokio::task::spawn_blocking(move || {
            let done = (|| {
                ensure!(is_mounted(&at)?, "{} is published and not mounted", at.display());
                match how {
                    Use::Block => content.check_device(&at, size)?,
                    Use::FileSystem(_) => content.check_files(&at)?,
                }
                for _ in 0..changes {
                    match how {
                        Use::Block => content.change_device(&at, size, &mut random)?,
                        Use::FileSystem(_) => content.change_file(&at, &mut random)?,
                    }
                }
                Ok(())
            })();
            (content, done)
        });
        let limit = Duration::from_secs(USE_SECONDS_MAX);
        let (content, done) = tokio::time::timeout(limit, work).await.context("I/O hangs")??;
        drop(using);
        self.volumes[v].content = content;
        match done {
            Err(_) if self.world.deaths() != life => self.note(format!("use of {} cut off", path.display())),
            Err(e) => return Err(e.context(format!("using {:?}", self.volumes[v]))),
            Ok(()) => self.note(format!("used {} {changes}", path.display())),
        }
        Ok(())
    }

    async fn statistics(&mut self, v: usize) -> Result<()> {
        let life = self.life().await?;
        let own = self.volumes[v].clone();
        let at = own.published.iter().find(|(.., of)| *of == life).map(|(path, ..)| path.clone());
        let path = at.clone().unwrap_or_else(|| own.target(2));
        let request = NodeGetVolumeStatsRequest { volume_id: own.id(), volume_path: text(&path), ..Default::default() };
        let (id, request_) = (own.id(), request);
        let request = move |channel| {
            let request = request_.clone();
            async move { NodeClient::new(channel).node_get_volume_stats(request).await }
        };
        // Not through `settle`: two copies may see different numbers.
        match self.line.call("node_get_volume_stats", request).await? {
            crate::world::Ended::Ok(stats) => {
                let bytes = stats.usage.first().context("usage")?;
                ensure!(bytes.total > 0 && bytes.used >= 0 && bytes.used <= bytes.total, "{bytes:?}");
                if own.how == Use::Block {
                    ensure!(bytes.total >= own.volume.capacity_bytes, "{bytes:?} of {id} {own:?}");
                }
            }
            crate::world::Ended::Refused(status) => {
                ensure!(status.code() == Code::NotFound, "{status:?}");
                ensure!(at.is_none() || self.life().await? != life, "published, and not found: {own:?}");
            }
            crate::world::Ended::Cut => {}
        }
        Ok(())
    }

    /// Everything that it owns is reported, as it is, and nothing that it deleted.
    pub async fn look(&mut self) -> Result<()> {
        let volumes = self.all_volumes().await?;
        let snapshots = self.all_snapshots("").await?;
        for own in &self.volumes {
            ensure!(volumes.contains(&own.volume), "not listed as it is: {:?}", own.volume);
        }
        for own in &self.snapshots {
            ensure!(snapshots.contains(&own.snapshot), "not listed as it is: {:?}", own.snapshot);
        }
        for own in self.volumes.clone() {
            let answer =
                ask!(self, ControllerClient, controller_get_volume, ControllerGetVolumeRequest { volume_id: own.id() });
            ensure!(answer.context("get")?.volume.as_ref() == Some(&own.volume), "get of {:?}", own.volume);
            let of = self.all_snapshots(&own.id()).await?;
            let want = self.snapshots.iter().filter(|s| s.snapshot.source_volume_id == own.id()).count();
            ensure!(of.len() == want, "{want} snapshots of {}, listed: {of:?}", own.id());
        }
        if !self.volumes.is_empty() {
            let own = self.random.pick(&self.volumes).clone();
            let request = ValidateVolumeCapabilitiesRequest {
                volume_id: own.id(),
                volume_capabilities: vec![own.capability()],
                ..Default::default()
            };
            let answer = ask!(self, ControllerClient, validate_volume_capabilities, request);
            ensure!(answer.context("validate")?.confirmed.is_some(), "its own capability is not confirmed");
        }
        if !self.snapshots.is_empty() {
            let own = self.random.pick(&self.snapshots).snapshot.clone();
            let request = GetSnapshotRequest { snapshot_id: own.snapshot_id.clone(), ..Default::default() };
            let answer = ask!(self, ControllerClient, get_snapshot, request);
            ensure!(answer.context("get a snapshot")?.snapshot.as_ref() == Some(&own), "get of {own:?}");
        }
        Ok(())
    }

    pub async fn all_volumes(&mut self) -> Result<Vec<Volume>> {
        let (mut all, mut starting_token) = (Vec::new(), String::new());
        let max_entries = self.random.below(5) as i32;
        loop {
            let request = ListVolumesRequest { max_entries, starting_token };
            let page = self.page(move |channel| {
                let request = request.clone();
                async move { ControllerClient::new(channel).list_volumes(request).await }
            });
            let page = page.await?;
            ensure!(max_entries == 0 || page.entries.len() <= max_entries as usize, "more entries than asked for");
            all.extend(page.entries.into_iter().filter_map(|entry| entry.volume));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                break;
            }
        }
        let mut ids: Vec<&str> = all.iter().map(|volume| volume.volume_id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        ensure!(ids.len() == all.len(), "listed twice: {all:?}");
        Ok(all)
    }

    pub async fn all_snapshots(&mut self, of: &str) -> Result<Vec<Snapshot>> {
        let (mut all, mut starting_token) = (Vec::new(), String::new());
        let max_entries = self.random.below(5) as i32;
        loop {
            let request =
                ListSnapshotsRequest { max_entries, starting_token, source_volume_id: of.into(), ..Default::default() };
            let page = self.page(move |channel| {
                let request = request.clone();
                async move { ControllerClient::new(channel).list_snapshots(request).await }
            });
            let page = page.await?;
            all.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot));
            starting_token = page.next_token;
            if starting_token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// A page of a list: others change what is in it, so copies may differ.
    async fn page<T, F, Fut>(&mut self, call: F) -> Result<T>
    where
        F: Fn(tonic::transport::Channel) -> Fut,
        Fut: Future<Output = Result<tonic::Response<T>, Status>>,
        T: std::fmt::Debug,
    {
        loop {
            match self.line.call("list", &call).await? {
                crate::world::Ended::Ok(page) => return Ok(page),
                crate::world::Ended::Cut => {}
                crate::world::Ended::Refused(status) => bail!("list: {status:?}"),
            }
        }
    }

    /// Looks at all content: of every volume, and of every snapshot through a volume made from it.
    pub async fn check_content(&mut self) -> Result<()> {
        for v in 0..self.volumes.len() {
            self.use_it(v).await?;
        }
        for s in 0..self.snapshots.len() {
            while self.volumes.len() >= VOLUMES_MAX {
                self.delete(0).await?;
            }
            let snapshot_id = self.snapshots[s].snapshot.snapshot_id.clone();
            self.create(Some(Source::Snapshot(SnapshotSource { snapshot_id }))).await?;
            let last = self.volumes.len() - 1;
            self.use_it(last).await?;
            self.delete(last).await?;
        }
        Ok(())
    }
}
