//! The life of one store: created, worked on by the real binary, cut off, opened, looked at, again and again.

use crate::common::{Clients, Driver, block, mount};
use crate::disk::{Disk, Random, SECTOR};
use crate::model::{BLOCK, Content};
use crate::writer::{Holds, Writer, check_files};
use anyhow::{Context, Result, bail, ensure};
use coppice_engine::shard::sync::lock;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::csi::v1::volume_content_source::{SnapshotSource, Type as Source, VolumeSource};
use coppice_proto::csi::v1::*;
use serde_json::Value;
use std::collections::HashMap;
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
/// Volumes are multiples of this, as is every cluster size.
const UNIT: u64 = 4 * MIB;
const FS_BYTES: u64 = 32 * MIB;
const DISK: u64 = 256 * MIB;
const DISK_MAX: u64 = 384 * MIB;
/// Volumes and snapshots at once.
const OBJECTS_MAX: usize = 12;
/// A call or command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(40);
/// Work before a power cut takes no longer.
const WORK: Duration = Duration::from_millis(1500);

/// Whether something exists, after a call whose answer the power cut swallowed.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    There,
    MaybeMade,
    MaybeGone,
}

struct Object {
    name: String,
    id: String,
    snapshot: bool,
    holds: Holds,
    is: Is,
    /// A size that it may have.
    growing: Option<u64>,
    writer: Option<Writer>,
}

pub struct Life {
    pub cuts: usize,
    disk: Arc<Disk>,
    driver: Driver,
    store: PathBuf,
    objects: Vec<Object>,
    random: Random,
    names: u64,
    size: u64,
    story: Vec<String>,
    // The disk goes before its directory.
    dir: tempfile::TempDir,
}

/// What `coppice` printed, whatever it said; an error if it crashed or hung.
async fn command(words: &[&str]) -> Result<Output> {
    let mut command = tokio::process::Command::new(crate::common::program::coppice());
    command.args(words).stdin(Stdio::null()).kill_on_drop(true);
    let out = tokio::time::timeout(PATIENCE, command.output()).await;
    let out = out.with_context(|| format!("coppice {words:?} hangs"))??;
    let stderr = String::from_utf8_lossy(&out.stderr);
    if out.status.signal().is_some() || stderr.contains("panicked") {
        bail!("coppice {words:?} crashed, {}: {stderr}", out.status);
    }
    Ok(out)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn json(bytes: &[u8]) -> Result<Value> {
    Ok(serde_json::from_slice(bytes)?)
}

impl Life {
    pub fn new(seed: u64) -> Result<Life> {
        let mut random = Random(seed);
        let dir = tempfile::Builder::new().prefix("coppice-power-").tempdir()?;
        let block_size = if random.percent(50) { 512 } else { 4096 };
        let disk = Disk::new(dir.path(), DISK, DISK_MAX, block_size, random.next())?;
        let store = disk.device();
        let story = vec![format!("{} with blocks of {block_size}", store.display())];
        Ok(Life {
            cuts: 0,
            disk: Arc::new(disk),
            driver: Driver::on(&store)?,
            store,
            objects: Vec::new(),
            random,
            names: 0,
            size: DISK,
            story,
            dir,
        })
    }

    /// The last things that happened.
    pub fn story(&self) -> String {
        let from = self.story.len().saturating_sub(40);
        format!(
            "what happened:\n  {}\nthe driver's log:\n{}",
            self.story[from..].join("\n  "),
            tail(&self.driver.log())
        )
    }

    pub fn keep_image(&self, to: &Path) -> Result<()> {
        Ok(self.disk.copy_slowly(to, Duration::ZERO)?)
    }

    fn tell(&mut self, what: impl Into<String>) {
        self.story.push(what.into());
    }

    pub async fn live(&mut self, cuts: usize) -> Result<()> {
        self.create_store().await?;
        for _ in 0..cuts {
            self.start().await.context("opening the store")?;
            self.look().await.context("looking at what is there")?;
            self.work().await.context("working")?;
            if self.disk.is_on() && self.random.percent(40) {
                self.close().await.context("closing")?;
            }
            self.power_off()?;
        }
        self.start().await.context("opening the store")?;
        self.look().await.context("looking at what is there")?;
        self.end().await.context("deleting everything")
    }

    /// The power goes off, if it has not, and comes back.
    fn power_off(&mut self) -> Result<()> {
        self.disk.cut_now();
        self.driver.power_off();
        for object in &mut self.objects {
            if let Some(writer) = object.writer.take() {
                writer.finish()?;
            }
        }
        // A reboot empties /run.
        for entry in std::fs::read_dir(&self.driver.base)?.flatten() {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path)? } else { std::fs::remove_file(path)? }
        }
        // The super block of ext4 has two sectors, and ext4 has no way back from a half of it.
        let files = self.objects.iter().any(|object| matches!(object.holds, Holds::Files(_)));
        let left = self.disk.restore(if files { BLOCK } else { SECTOR });
        self.cuts += 1;
        self.tell(format!("power cut {}: the disk kept {left}", self.cuts));
        Ok(())
    }

    /// Cuts inside of `lvstore create`, until one gets through.
    async fn create_store(&mut self) -> Result<()> {
        let cluster = ["4K", "16K", "128K", "1M", "4M"][self.random.below(5) as usize];
        let store = text(&self.store);
        loop {
            if self.random.percent(60) {
                self.disk.cut_in(1 + self.random.below(25));
            }
            let made = command(&["lvstore", "create", &store, "--name", "store", "--cluster-size", cluster]).await?;
            let said = String::from_utf8_lossy(&made.stderr).trim().to_owned();
            self.tell(format!("lvstore create, clusters of {cluster}: {} {said}", made.status));
            match (self.disk.is_on(), made.status.success()) {
                (true, true) => break,
                // The last cut came when all was done but the answer.
                (true, false) if self.cuts > 0 && said.contains("lvstore") => break,
                (true, false) => bail!("lvstore create: {said}"),
                (false, _) => self.power_off()?,
            }
        }
        self.disk.never_cut();
        Ok(())
    }

    /// Starts the driver, with power cuts in the recovery.
    async fn start(&mut self) -> Result<()> {
        loop {
            if self.random.percent(20) {
                let before = self.disk.requests();
                let found = command(&["lvstore", "check", "-o", "json", "--image", &text(&self.store)]).await?;
                let findings = json(&found.stdout).with_context(|| said(&found))?;
                // A cut between the super block and its copy leaves them different; such a finding heals.
                let all = findings["findings"].as_array().context("findings")?;
                ensure!(all.iter().all(|f| f["heals"] == true), "check of a crashed store: {}", said(&found));
                ensure!(found.status.success(), "check of a crashed store: {}", said(&found));
                ensure!(self.disk.requests() == before, "check wrote to the store");
            }
            if self.random.percent(40) {
                let few = self.random.below(40);
                self.disk.cut_in(1 + few);
            }
            let started = self.driver.run().await;
            let on = self.disk.is_on();
            self.tell(format!(
                "start: {}, power {}",
                if started.is_ok() { "ok" } else { "failed" },
                if on { "on" } else { "off" }
            ));
            match started {
                Ok(()) if on => break,
                Err(e) if on || e.to_string().contains("does not serve") => return Err(e),
                _ => self.power_off()?,
            }
        }
        self.disk.never_cut();
        Ok(())
    }

    async fn admin(&self, words: &[&str]) -> Result<Output> {
        let run = text(&self.driver.path("run"));
        let mut all = vec!["--run-dir", &run];
        all.extend(words);
        command(&all).await
    }

    async fn asked(&self, words: &[&str]) -> Result<Vec<u8>> {
        let out = self.admin(words).await?;
        ensure!(out.status.success(), "{words:?}: {}", said(&out));
        Ok(out.stdout)
    }

    /// Compares everything with what must be there.
    async fn look(&mut self) -> Result<()> {
        self.asked(&["lvstore", "check"]).await?;
        let listed = json(&self.asked(&["lvol", "ls", "--hidden", "-o", "json"]).await?)?;
        let listed = listed.as_array().context("a list")?;
        self.account(listed).await?;
        let shown: HashMap<&str, &Value> =
            listed.iter().filter(|l| l["state"] != "hidden").filter_map(|l| Some((l["name"].as_str()?, l))).collect();
        for name in shown.keys() {
            ensure!(self.objects.iter().any(|o| o.name == *name), "{name} is there and was deleted, or never made");
        }
        for mut object in std::mem::take(&mut self.objects) {
            let Some(found) = shown.get(object.name.as_str()) else {
                ensure!(object.is != Is::There, "{} is gone", object.name);
                continue;
            };
            let id = found["uuid"].as_str().context("uuid")?;
            ensure!(found["state"] == "ok", "{found}");
            ensure!((found["kind"] == "snapshot") == object.snapshot, "{found}");
            ensure!(object.id.is_empty() || object.id == id, "{} has another id: {found}", object.name);
            object.id = id.into();
            object.is = Is::There;
            let size = found["size"].as_u64().context("size")?;
            if let Holds::Blocks(content) = &object.holds {
                let bytes = self.asked(&["lvol", "read", id]).await?;
                ensure!(bytes.len() as u64 == size, "{}: {} bytes of {size}", object.name, bytes.len());
                let mut content = lock(content);
                if object.growing == Some(size) {
                    content.resize(size);
                }
                ensure!(content.size() == size, "{}: size {size} instead of {}", object.name, content.size());
                content.observe(&bytes).with_context(|| object.name.clone())?;
            }
            object.growing = None;
            self.objects.push(object);
        }
        let mut clients = self.driver.clients().await?;
        for n in 0..self.objects.len() {
            if self.objects[n].snapshot {
                continue;
            }
            if let Holds::Files(files) = &self.objects[n].holds.clone() {
                let at = self.publish(&mut clients, n).await?.context("published")?;
                check_files(&at, &lock(files)).with_context(|| self.objects[n].name.clone())?;
            } else if self.random.percent(60) {
                self.publish(&mut clients, n).await?;
            }
            self.write_to(n);
        }
        Ok(())
    }

    /// The space adds up, and whatever is allocated belongs to somebody.
    async fn account(&self, listed: &[Value]) -> Result<()> {
        let store = json(&self.asked(&["lvstore", "show", "-o", "json"]).await?)?;
        let n = |key: &str| store[key].as_u64().with_context(|| format!("{key} of {store}"));
        let parts = n("metadata_clusters")?
            + n("allocated_clusters")?
            + n("reserved_clusters")?
            + n("quarantined_clusters")?
            + n("free_clusters")?;
        ensure!(parts == n("total_clusters")?, "the space does not add up: {store}");
        let owned: u64 = listed.iter().filter_map(|l| l["allocated_clusters"].as_u64()).sum();
        ensure!(owned == n("allocated_clusters")?, "{owned} clusters are owned: {store}");
        Ok(())
    }

    /// A call's answer; `None` if the power went off before it was sure to have come.
    async fn call<T>(&self, what: &str, call: impl Future<Output = Result<T>>) -> Result<Option<T>> {
        let answer = tokio::time::timeout(PATIENCE, call).await.with_context(|| format!("{what} hangs"))?;
        match answer {
            Ok(answer) if self.disk.is_on() => Ok(Some(answer)),
            Err(e) if self.disk.is_on() => Err(e.context(format!("{what} failed with the power on"))),
            _ => Ok(None),
        }
    }

    fn place(&self, kind: &str, n: usize) -> PathBuf {
        self.driver.path(&format!("{kind}/{}", self.objects[n].name))
    }

    fn capability(&self, n: usize) -> VolumeCapability {
        match self.objects[n].holds {
            Holds::Blocks(_) => block(Mode::SingleNodeWriter),
            Holds::Files(_) => mount("ext4"),
        }
    }

    async fn publish(&mut self, clients: &mut Clients, n: usize) -> Result<Option<PathBuf>> {
        let (staging, target, how) = (self.place("staging", n), self.place("pods", n), self.capability(n));
        let id = self.objects[n].id.clone();
        let done = self.call("stage and publish", async {
            clients.stage(&id, &staging, how.clone()).await?;
            Ok(clients.publish(&id, &staging, &target, how, false).await?)
        });
        Ok(done.await?.map(|()| target))
    }

    /// Starts the writer of a published volume.
    fn write_to(&mut self, n: usize) {
        let target = self.place("pods", n);
        if target.exists() && self.objects[n].writer.is_none() {
            let (holds, seed) = (self.objects[n].holds.clone(), self.random.next());
            self.objects[n].writer = Some(Writer::start(target, holds, self.disk.clone(), seed));
        }
    }

    async fn unpublish(&mut self, clients: &mut Clients, n: usize) -> Result<()> {
        if let Some(writer) = self.objects[n].writer.take() {
            tokio::task::spawn_blocking(|| writer.finish()).await??;
        }
        let (staging, target) = (self.place("staging", n), self.place("pods", n));
        let id = self.objects[n].id.clone();
        let done = self.call("unpublish and unstage", async {
            clients.unpublish(&id, &target).await?;
            Ok(clients.unstage(&id, &staging).await?)
        });
        done.await.map(|_| ())
    }

    fn pick(&mut self, wanted: impl Fn(&Object) -> bool) -> Option<usize> {
        let those: Vec<usize> = (0..self.objects.len()).filter(|n| wanted(&self.objects[*n])).collect();
        those.get(self.random.below(those.len() as u64) as usize).copied()
    }

    /// Random calls while the writers write, until the power goes off or the time is over.
    async fn work(&mut self) -> Result<()> {
        let mut clients = self.driver.clients().await?;
        let began = Instant::now();
        let copy = self.dir.path().join("copy");
        let copier = self.random.percent(25).then(|| {
            let (disk, to) = (self.disk.clone(), copy.clone());
            std::thread::spawn(move || disk.copy_slowly(&to, Duration::from_micros(500)))
        });
        if self.random.percent(85) {
            let many = [40, 400, 4000][self.random.below(3) as usize];
            let n = 1 + self.random.below(many);
            self.disk.cut_in(n);
            self.tell(format!("the power goes off at request {n}"));
        }
        while self.disk.is_on() && began.elapsed() < WORK {
            self.step(&mut clients).await?;
        }
        if let Some(copier) = copier {
            tokio::task::spawn_blocking(move || copier.join())
                .await?
                .map_err(|_| anyhow::anyhow!("the copier panicked"))??;
            self.judge_copy(&copy).await.context("a copy of the image that was taken while it was written to")?;
        }
        Ok(())
    }

    async fn step(&mut self, clients: &mut Clients) -> Result<()> {
        let room = self.objects.len() < OBJECTS_MAX;
        match self.random.below(100) {
            0..25 if room => self.create(clients, None).await,
            25..45 if room => match self.pick(|o| !o.snapshot && matches!(o.holds, Holds::Blocks(_))) {
                Some(n) => self.snapshot(clients, n).await,
                None => Ok(()),
            },
            45..60 if room => match self.pick(|o| matches!(o.holds, Holds::Blocks(_))) {
                Some(n) => self.create(clients, Some(n)).await,
                None => Ok(()),
            },
            60..70 => match self.pick(|o| !o.snapshot && matches!(o.holds, Holds::Blocks(_))) {
                Some(n) => self.expand(clients, n).await,
                None => Ok(()),
            },
            70..73 => self.grow_store().await,
            73..88 => match self.pick(|_| true) {
                Some(n) => self.delete(clients, n).await,
                None => Ok(()),
            },
            _ => {
                tokio::time::sleep(Duration::from_millis(self.random.below(80))).await;
                Ok(())
            }
        }
    }

    /// A new volume: empty, or from a snapshot or volume.
    async fn create(&mut self, clients: &mut Clients, from: Option<usize>) -> Result<()> {
        self.names += 1;
        let name = format!("vol-{}", self.names);
        let as_files = from.is_none() && self.random.percent(25);
        let mut size = if as_files { FS_BYTES } else { UNIT * (1 + self.random.below(2)) };
        let mut taken = None;
        let source = from.map(|n| {
            let Object { id, snapshot, holds, .. } = &self.objects[n];
            if let Holds::Blocks(content) = holds {
                let mut content = lock(content);
                size = content.size() + if self.random.percent(30) { UNIT } else { 0 };
                taken = Some(content.begin_snapshot());
            }
            match snapshot {
                true => Source::Snapshot(SnapshotSource { snapshot_id: id.clone() }),
                false => Source::Volume(VolumeSource { volume_id: id.clone() }),
            }
        });
        let thick = self.random.percent(25);
        let request = CreateVolumeRequest {
            name: name.clone(),
            capacity_range: Some(CapacityRange { required_bytes: size as i64, limit_bytes: 0 }),
            volume_capabilities: vec![if as_files { mount("ext4") } else { block(Mode::SingleNodeWriter) }],
            volume_content_source: source.map(|source| VolumeContentSource { r#type: Some(source) }),
            parameters: [("provisioning".to_string(), if thick { "thick" } else { "thin" }.to_string())].into(),
            ..Default::default()
        };
        let what = format!(
            "create {name}, {size} bytes{}{}",
            if thick { ", thick" } else { "" },
            match from {
                Some(n) => format!(", from {}", self.objects[n].name),
                None => String::new(),
            }
        );
        self.tell(&*what);
        let made =
            self.call(&what, async { Ok(clients.controller.create_volume(request).await?.into_inner()) }).await?;
        let mut content = taken.unwrap_or_else(|| Content::zeroes(size));
        if let Some(n) = from
            && let Holds::Blocks(origin) = &self.objects[n].holds
        {
            lock(origin).end_snapshot(&mut content);
        }
        content.resize(size);
        let id = made.and_then(|made| made.volume).map(|volume| volume.volume_id).unwrap_or_default();
        let holds = match as_files {
            true => Holds::Files(Arc::default()),
            false => Holds::Blocks(Arc::new(Mutex::new(content))),
        };
        let is = if id.is_empty() { Is::MaybeMade } else { Is::There };
        self.objects.push(Object { name, id, snapshot: false, holds, is, growing: None, writer: None });
        let n = self.objects.len() - 1;
        if is == Is::There && self.publish(clients, n).await?.is_some() {
            self.write_to(n);
        }
        Ok(())
    }

    async fn snapshot(&mut self, clients: &mut Clients, n: usize) -> Result<()> {
        self.names += 1;
        let name = format!("snap-{}", self.names);
        self.tell(format!("snapshot {name} of {}", self.objects[n].name));
        let Holds::Blocks(origin) = self.objects[n].holds.clone() else { return Ok(()) };
        let mut content = lock(&origin).begin_snapshot();
        let id = self.objects[n].id.clone();
        let made = self.call("snapshot", clients.snapshot(&id, &name, "sync")).await?;
        lock(&origin).end_snapshot(&mut content);
        let is = if made.is_some() { Is::There } else { Is::MaybeMade };
        let holds = Holds::Blocks(Arc::new(Mutex::new(content)));
        let id = made.unwrap_or_default();
        self.objects.push(Object { name, id, snapshot: true, holds, is, growing: None, writer: None });
        Ok(())
    }

    async fn expand(&mut self, clients: &mut Clients, n: usize) -> Result<()> {
        let Holds::Blocks(content) = self.objects[n].holds.clone() else { return Ok(()) };
        let size = lock(&content).size() + UNIT;
        if size > 4 * UNIT {
            return Ok(());
        }
        let (id, target) = (self.objects[n].id.clone(), self.place("pods", n));
        self.tell(format!("expand {} to {size}", self.objects[n].name));
        self.objects[n].growing = Some(size);
        let range = Some(CapacityRange { required_bytes: size as i64, limit_bytes: 0 });
        let request =
            ControllerExpandVolumeRequest { volume_id: id.clone(), capacity_range: range, ..Default::default() };
        let done =
            self.call("expand", async { Ok(clients.controller.controller_expand_volume(request).await?) }).await?;
        if done.is_none() {
            return Ok(());
        }
        self.objects[n].growing = None;
        if self.objects[n].writer.is_some() {
            let request = NodeExpandVolumeRequest {
                volume_id: id,
                volume_path: text(&target),
                capacity_range: range,
                ..Default::default()
            };
            self.call("expand on the node", async { Ok(clients.node.node_expand_volume(request).await?) }).await?;
        }
        if self.disk.is_on() {
            lock(&content).resize(size);
        } else {
            self.objects[n].growing = Some(size);
        }
        Ok(())
    }

    async fn grow_store(&mut self) -> Result<()> {
        self.size = (self.size + 16 * MIB).min(DISK_MAX);
        // Asking for the new size waits for the shard that answers.
        let (disk, size) = (self.disk.clone(), self.size);
        tokio::task::spawn_blocking(move || disk.grow(size)).await??;
        self.tell(format!("lvstore grow to {size}"));
        let grown = self.admin(&["lvstore", "grow"]).await?;
        ensure!(grown.status.success() || !self.disk.is_on(), "lvstore grow: {}", said(&grown));
        Ok(())
    }

    async fn delete(&mut self, clients: &mut Clients, n: usize) -> Result<()> {
        self.tell(format!("delete {}", self.objects[n].name));
        let id = self.objects[n].id.clone();
        let done = if self.objects[n].snapshot {
            self.objects[n].is = Is::MaybeGone;
            let request = DeleteSnapshotRequest { snapshot_id: id, ..Default::default() };
            self.call("delete a snapshot", async { Ok(clients.controller.delete_snapshot(request).await.map(|_| ())?) })
                .await
        } else {
            self.unpublish(clients, n).await?;
            self.objects[n].is = Is::MaybeGone;
            self.call("delete a volume", async { Ok(clients.delete(&id).await?) }).await
        };
        if done?.is_some() {
            self.objects.remove(n);
        }
        Ok(())
    }

    /// The driver ends as an orchestrator ends it, with a power cut on the way or not; then the closed store is sealed, grown.
    async fn close(&mut self) -> Result<()> {
        self.disk.never_cut();
        let mut clients = self.driver.clients().await?;
        for n in 0..self.objects.len() {
            if !self.objects[n].snapshot {
                self.unpublish(&mut clients, n).await?;
            }
        }
        if self.random.percent(60) {
            self.disk.cut_in(1 + self.random.below(30));
        }
        let ended = tokio::time::timeout(PATIENCE, self.driver.terminate()).await.context("the driver does not end")?;
        self.tell(format!("terminated: {}, power {}", ended.is_ok(), self.disk.is_on()));
        if !self.disk.is_on() {
            return Ok(());
        }
        ended?;
        self.disk.never_cut();
        let store = text(&self.store);
        for words in [["lvstore", "check"], ["lvstore", "seal"], ["lvstore", "grow"], ["lvstore", "check"]] {
            if words[1] != "check" && self.random.percent(40) {
                self.disk.cut_in(1 + self.random.below(30));
            }
            let out = command(&[words[0], words[1], "--image", &store]).await?;
            self.tell(format!("{words:?} of the closed store: {}", out.status));
            if !self.disk.is_on() {
                return Ok(());
            }
            ensure!(out.status.success(), "{words:?} of the closed store: {}", said(&out));
            self.disk.never_cut();
        }
        Ok(())
    }

    /// Everything goes, and nothing is left of it.
    async fn end(&mut self) -> Result<()> {
        let mut clients = self.driver.clients().await?;
        while !self.objects.is_empty() {
            let n = self.random.below(self.objects.len() as u64) as usize;
            self.delete(&mut clients, n).await?;
        }
        self.driver.terminate().await?;
        let store = text(&self.store);
        let checked = command(&["lvstore", "check", "--image", &store]).await?;
        ensure!(checked.status.success(), "check: {}", said(&checked));
        let listed = json(&command(&["lvol", "ls", "--hidden", "-o", "json", "--image", &store]).await?.stdout)?;
        ensure!(listed.as_array().is_some_and(Vec::is_empty), "left: {listed}");
        let shown = json(&command(&["lvstore", "show", "-o", "json", "--image", &store]).await?.stdout)?;
        ensure!(shown["allocated_clusters"] == 0 && shown["reserved_clusters"] == 0, "left: {shown}");
        ensure!(shown["clean"] == true, "not clean: {shown}");
        Ok(())
    }

    /// What is no image of any moment may be refused, or be found damaged; no command may crash or hang on it.
    async fn judge_copy(&mut self, copy: &Path) -> Result<()> {
        let image = text(copy);
        for words in [["lvstore", "show"], ["lvstore", "check"], ["lvol", "tree"]] {
            command(&[words[0], words[1], "--image", &image]).await?;
        }
        let listed = command(&["lvol", "ls", "--hidden", "-o", "json", "--image", &image]).await?;
        self.tell(format!("a copy lists with {}: {}", listed.status, String::from_utf8_lossy(&listed.stderr).trim()));
        if listed.status.success() {
            let listed = json(&listed.stdout)?;
            let ids: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|l| l["uuid"].as_str()).collect();
            for id in &ids {
                command(&["lvol", "read", id, "--image", &image]).await?;
            }
            let mut driver = Driver::on(copy)?;
            if let Err(e) = driver.run().await {
                ensure!(!e.to_string().contains("does not serve"), "the driver hangs: {e}");
            } else {
                tokio::time::timeout(PATIENCE, driver.terminate()).await.context("the driver does not end")?.ok();
            }
            ensure!(!driver.log().contains("panicked"), "the driver crashed: {}", driver.log());
            for id in ids {
                command(&["lvol", "rm", id, "--image", &image]).await?;
            }
        }
        Ok(())
    }
}

impl Drop for Life {
    // After a failure: nobody may use the disk when it goes.
    fn drop(&mut self) {
        self.disk.cut_now();
        self.driver.power_off();
        for writer in self.objects.iter_mut().filter_map(|object| object.writer.take()) {
            let _ = writer.finish();
        }
    }
}

fn said(out: &Output) -> String {
    format!("{} {}{}", out.status, String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// The end of a log.
fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
