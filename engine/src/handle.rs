//! The handles through which the rest of the product uses the engine: [`Engine`], [`Store`], [`Export`].
//!
//! All are cheap to clone, `Send + Sync`, and their futures run on any executor: each call is carried to the store's home
//! shard and answered from there.

use crate::api::*;
use crate::device::{Device, OpenMode, blank_problem, on_thread};
use crate::error::{Error, ErrorKind, Result, err};
use crate::export::{FuseExport, Volume};
use crate::external::Stretch;
use crate::lvol::LvolIo;
use crate::shard::sync::{AsyncMutex, lock};
use crate::shard::{Shard, ShardHandle, ShardThreads};
use crate::store::Lvstore;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// Bytes that `read` and `write` move at a time.
const PIECE: u64 = 1 << 20;

/// A running engine: its shards and the stores opened on them.
#[derive(Clone)]
pub struct Engine(Arc<Running>);

struct Running {
    threads: Mutex<Option<ShardThreads>>,
    shards: Vec<ShardHandle>,
    map_limit_bytes: u64,
    patience: Duration,
    next_home: AtomicUsize,
}

/// An open lvstore.
#[derive(Clone)]
pub struct Store {
    lv: Arc<Lvstore>,
    home: ShardHandle,
    engine: Arc<Running>,
    exports: Exports,
    exporting: Arc<AsyncMutex<()>>,
}

type Exports = Arc<Mutex<BTreeMap<Uuid, Export>>>;

impl Engine {
    pub fn start(config: EngineConfig) -> Result<Engine> {
        let threads = ShardThreads::start(config.shards)?;
        Ok(Engine(Arc::new(Running {
            shards: threads.handles().to_vec(),
            threads: Mutex::new(Some(threads)),
            map_limit_bytes: config.map_limit_bytes,
            patience: config.patience,
            next_home: AtomicUsize::new(0),
        })))
    }

    pub fn shards(&self) -> &[ShardHandle] {
        &self.0.shards
    }

    fn home(&self) -> ShardHandle {
        let n = self.0.next_home.fetch_add(1, Ordering::Relaxed);
        self.0.shards[n % self.0.shards.len()].clone()
    }

    /// Formats `path` (a file or block device that is blank, or `force`) as a lvstore, and closes it again.
    pub async fn create_store(&self, path: &Path, how: CreateStore) -> Result<StoreInfo> {
        crate::format::blob::check_name(how.name.as_bytes())?;
        let made = match how.file_size {
            Some(size) => make_file(path, size, how.force)?,
            None => false,
        };
        let result = self.format(path, how).await;
        // Not if somebody else has taken it meanwhile.
        if made && result.as_ref().is_err_and(|e| e.kind() != ErrorKind::Locked) {
            let _ = std::fs::remove_file(path);
        }
        result
    }

    async fn format(&self, path: &Path, how: CreateStore) -> Result<StoreInfo> {
        let device = self.device(path, OpenMode::ReadWrite).await?;
        let path = path.to_path_buf();
        let problem = match how.force {
            true => None,
            false => {
                let path = path.clone();
                on_thread(move || blank_problem(&path)).await??
            }
        };
        self.home()
            .call(move |shard| async move {
                if let Some(problem) = problem
                    && !Lvstore::creation_was_interrupted(&shard, &device).await?
                {
                    return Err(err!(
                        NotBlank,
                        "{} is not blank: {problem}; use another device, or --force if its content may be lost",
                        path.display()
                    ));
                }
                Lvstore::create(&shard, &device, &how).await
            })
            .await
    }

    /// Opens a lvstore. `Locked` if another opener has it.
    pub async fn open_store(&self, path: &Path, how: OpenStore) -> Result<Store> {
        let mode = if how.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let device = self.device(path, mode).await?;
        let home = self.home();
        let (shards, limit) = (self.0.shards.clone(), self.0.map_limit_bytes);
        let on = home.clone();
        let opened = home.call(move |shard| async move {
            let lv = Lvstore::open(&shard, shards, device, how, limit).await?;
            Ok(Opened { lv: Some(lv), home: on })
        });
        let lv = opened.await?.lv.take().ok_or_else(|| err!(Cancelled, "the store is being closed"))?;
        Ok(Store {
            lv,
            home,
            engine: self.0.clone(),
            exports: Arc::default(),
            exporting: Arc::new(AsyncMutex::new(())),
        })
    }

    /// Looks at what a device holds, and changes nothing. Of a store little more than the super block is read. `Locked` if
    /// somebody has the device.
    pub async fn look(&self, path: &Path) -> Result<Contents> {
        let device = self.device(path, OpenMode::ReadOnly).await?;
        let on = device.clone();
        match self.home().call(move |shard| async move { Lvstore::label(&shard, &on).await }).await {
            Ok(label) => Ok(Contents::Store(label)),
            Err(e) if e.kind() == ErrorKind::NotAStore => {
                let path = path.to_path_buf();
                let problem = on_thread(move || blank_problem(&path)).await??;
                Ok(problem.map_or(Contents::Blank, Contents::Other))
            }
            Err(e) => Err(e),
        }
    }

    /// Opens a device without waiting for it on the executor of who asks.
    async fn device(&self, path: &Path, mode: OpenMode) -> Result<Device> {
        let (path, patience) = (path.to_path_buf(), self.0.patience);
        on_thread(move || Device::open_patiently(&path, mode, patience)).await?
    }

    /// Stops the shards. Stores that are still open are left as a crash would leave them; close them first.
    pub async fn shutdown(&self) {
        let threads = lock(&self.0.threads).take();
        if let Some(threads) = threads {
            threads.stop();
        }
    }
}

/// A store on its way to who asked for it. If nobody waits any more it is closed again: else it would stay locked.
struct Opened {
    lv: Option<Arc<Lvstore>>,
    home: ShardHandle,
}

impl Drop for Opened {
    fn drop(&mut self) {
        let Some(lv) = self.lv.take() else { return };
        self.home.run(move |shard| {
            let on = shard.clone();
            shard.spawn(async move {
                if let Err(e) = lv.close(&on).await {
                    tracing::warn!(error = %e, "closing a store that nobody waits for");
                }
            });
        });
    }
}

/// Makes a sparse file of `size` bytes; true if it was not there before.
fn make_file(path: &Path, size: u64, force: bool) -> Result<bool> {
    let shown = path.display();
    let failed = |e: std::io::Error| {
        Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), format_args!("cannot make {shown}"))
    };
    let open = |new| std::fs::OpenOptions::new().write(true).create_new(new).open(path);
    // Of two that make it at once one has made it: that one may take it away again.
    let (file, exists) = match open(true) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => (open(false).map_err(failed)?, true),
        made => (made.map_err(failed)?, false),
    };
    let now = file.metadata().map_err(failed)?;
    if !now.is_file() {
        return Err(err!(Invalid, "{shown} is not a file: leave out --size"));
    }
    // Somebody's open store keeps its size, whatever is forced.
    crate::device::lock_file(&file, path)?;
    // One of this size may be what an interrupted creation left: `format` looks at what is in it.
    if exists && !force && now.len() > 0 && now.len() != size {
        return Err(err!(
            AlreadyExists,
            "{shown} exists already ({} bytes); leave out --size to use it as it is, or use --force to overwrite it",
            now.len()
        ));
    }
    if now.len() < size || force {
        file.set_len(size).map_err(failed)?;
    }
    Ok(!exists)
}

#[cfg(feature = "sim")]
impl Store {
    /// A store that was opened on shards of a simulated world, its home first.
    pub fn simulated(lv: Arc<Lvstore>) -> Store {
        let shards = lv.shards.clone();
        let home = shards[0].clone();
        let engine = Running {
            threads: Mutex::new(None),
            shards,
            map_limit_bytes: 0,
            patience: Duration::ZERO,
            next_home: AtomicUsize::new(0),
        };
        Store { lv, home, engine: Arc::new(engine), exports: Arc::default(), exporting: Arc::new(AsyncMutex::new(())) }
    }
}

impl Store {
    /// Runs an operation of the store on its home shard.
    async fn at_home<R, F>(&self, f: impl FnOnce(Arc<Lvstore>, Shard) -> F + Send + 'static) -> Result<R>
    where
        R: Send + 'static,
        F: Future<Output = Result<R>> + 'static,
    {
        let lv = self.lv.clone();
        self.home.call(move |shard| f(lv, shard)).await
    }

    pub fn uuid(&self) -> Uuid {
        self.lv.uuid()
    }

    pub fn name(&self) -> String {
        self.lv.name()
    }

    pub fn path(&self) -> PathBuf {
        self.lv.device.path().to_path_buf()
    }

    /// The store as the data path sees it: for exports and measurements.
    pub fn lvstore(&self) -> &Arc<Lvstore> {
        &self.lv
    }

    pub async fn info(&self) -> Result<StoreInfo> {
        Ok(self.lv.info())
    }

    /// Every lvol, snapshots and hidden ones included (see `state`), ordered by creation.
    pub async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        Ok(self.lv.lvols())
    }

    pub async fn lvol(&self, lvol: Uuid) -> Result<LvolInfo> {
        self.lv.lvol(lvol)
    }

    pub async fn create_lvol(&self, how: CreateLvol) -> Result<LvolInfo> {
        self.at_home(|lv, shard| async move { lv.create_lvol(&shard, how).await }).await
    }

    /// Snapshots one or more lvols at one instant; all or none. Answers in the order of the request.
    pub async fn snapshot(&self, how: Vec<CreateSnapshot>) -> Result<Vec<LvolInfo>> {
        self.at_home(|lv, shard| async move { lv.snapshot(&shard, how).await }).await
    }

    pub async fn clone_snapshot(&self, how: CreateClone) -> Result<LvolInfo> {
        self.at_home(|lv, shard| async move { lv.clone_snapshot(&shard, how).await }).await
    }

    /// Makes a writable clone of a snapshot outside of the store. The caller has pinned that. `Away` if it cannot be reached.
    pub async fn clone_external(&self, how: CreateExternalClone) -> Result<LvolInfo> {
        self.at_home(|lv, shard| async move { lv.clone_external(&shard, how).await }).await
    }

    /// UUIDs of the snapshots outside of the store that its lvols depend on.
    pub fn external_parents(&self) -> Vec<Uuid> {
        self.lv.external_parents()
    }

    /// False: metadata of the store does not check out, and may name more than [`Store::external_parents`] says: nobody may
    /// take its pins away.
    pub fn knows_external_parents(&self) -> bool {
        self.lv.knows_external_parents()
    }

    /// Sees to it that an esnap clone gets everything that it reads from its external parent, and waits for that. If it
    /// stands still or `progress` answers `false`, it is not waited for any longer, and goes on by itself.
    pub async fn hydrate(&self, lvol: Uuid, progress: Box<dyn FnMut(Progress) -> bool + Send>) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.hydrate(&shard, lvol, progress).await }).await
    }

    /// Records that lvols of another lvstore read this snapshot. Durable when it returns.
    pub async fn pin(&self, snapshot: Uuid, pin: Pin) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.pin(&shard, snapshot, pin).await }).await
    }

    /// Nothing in that lvstore reads the snapshot any more, or it is lost for good.
    pub async fn unpin(&self, snapshot: Uuid, lvstore: Uuid) -> Result<()> {
        self.at_home(move |lv, shard| async move { lv.unpin(&shard, snapshot, lvstore).await }).await
    }

    /// A snapshot as those outside of the store read it. A deleted one only if it is pinned.
    pub async fn reader(&self, snapshot: Uuid) -> Result<Reader> {
        let size = self.at_home(move |lv, shard| async move { lv.snapshot_size(&shard, snapshot) }).await?;
        Ok(Reader { store: self.clone(), snapshot, size })
    }

    /// Deletes a lvol or snapshot. A snapshot with several clones: `HasClones`, unless `deferred`, which hides it.
    /// `Busy` while it is exported or open.
    pub async fn delete(&self, lvol: Uuid, deferred: bool) -> Result<()> {
        self.at_home(move |lv, shard| async move { lv.delete(&shard, lvol, deferred).await }).await
    }

    /// Rounded up to whole clusters. Shrinking an exported lvol: `Busy`.
    pub async fn resize(&self, lvol: Uuid, size: u64) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.resize(&shard, lvol, size).await }).await
    }

    pub async fn rename(&self, lvol: Uuid, name: &str) -> Result<LvolInfo> {
        let name = name.to_string();
        self.at_home(move |lv, shard| async move { lv.rename(&shard, lvol, &name).await }).await
    }

    /// Sets (`Some`) or removes (`None`) attributes in one transaction, durable when it returns.
    pub async fn set_attributes(&self, lvol: Uuid, set: Vec<(String, Option<String>)>) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.set_attributes(&shard, lvol, set).await }).await
    }

    /// The lvol goes back to one of its ancestors, at once. `Busy` while exported.
    pub async fn revert(&self, lvol: Uuid, snapshot: Uuid) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.revert(&shard, lvol, snapshot).await }).await
    }

    /// Copies everything that is read from ancestors and cuts the link. `progress` is called now and then; `false` cancels.
    pub async fn inflate(&self, lvol: Uuid, progress: Box<dyn FnMut(Progress) -> bool + Send>) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.inflate(&shard, lvol, progress).await }).await
    }

    /// As `inflate`, but only what the direct parent owns.
    pub async fn decouple(&self, lvol: Uuid, progress: Box<dyn FnMut(Progress) -> bool + Send>) -> Result<LvolInfo> {
        self.at_home(move |lv, shard| async move { lv.decouple(&shard, lvol, progress).await }).await
    }

    /// Reads bytes of a lvol or snapshot; any offset and length inside it.
    pub async fn read(&self, lvol: Uuid, offset: u64, length: usize) -> Result<Vec<u8>> {
        self.at_home(move |lv, shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            let end = io.inside(offset, length as u64)?;
            let mut out = Vec::with_capacity(length);
            let block = u64::from(io.block_size());
            let mut at = offset;
            while at < end {
                let from = at / block * block;
                let to = (from + PIECE).min(end.next_multiple_of(block));
                let buf = shard.buf((to - from) as usize).slice(0, (to - from) as usize);
                io.read(from, buf.clone()).await?;
                let stop = end.min(to);
                buf.slice((at - from) as usize, (stop - at) as usize).with(|b| out.extend_from_slice(b));
                at = stop;
            }
            Ok(out)
        })
        .await
    }

    /// Writes bytes; any offset and length inside the lvol. Not durable before `flush`.
    pub async fn write(&self, lvol: Uuid, offset: u64, data: Vec<u8>) -> Result<()> {
        self.at_home(move |lv, shard| async move {
            let io = LvolIo::open(&shard, &lv, lvol)?;
            let end = io.inside(offset, data.len() as u64)?;
            let block = u64::from(io.block_size());
            let mut at = offset;
            while at < end {
                let from = at / block * block;
                let to = (from + PIECE).min(end.next_multiple_of(block));
                let buf = shard.buf((to - from) as usize).slice(0, (to - from) as usize);
                let stop = end.min(to);
                if at > from || stop < to {
                    io.read(from, buf.clone()).await?;
                }
                let part = &data[(at - offset) as usize..(stop - offset) as usize];
                buf.copy_in((at - from) as usize, part);
                io.write(from, buf, false).await?;
                at = stop;
            }
            Ok(())
        })
        .await
    }

    /// Whole blocks; the range reads zero afterwards.
    pub async fn discard(&self, lvol: Uuid, offset: u64, length: u64) -> Result<()> {
        self.at_home(move |lv, shard| async move { LvolIo::open(&shard, &lv, lvol)?.discard(offset, length).await })
            .await
    }

    pub async fn flush(&self, lvol: Uuid) -> Result<()> {
        self.at_home(move |lv, shard| async move { LvolIo::open(&shard, &lv, lvol)?.flush().await }).await
    }

    /// How long the request to the device that was sent first has been without an answer; zero if none is on its way. Does
    /// not answer itself while a data thread stands still.
    pub async fn device_wait(&self) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for handle in &self.lv.shards {
            let key = self.lv.key();
            let asked = handle.call(move |shard| async move {
                let local = Lvstore::local_by_key(&shard, key)?;
                Ok(shard.longest_wait(&local.port.target))
            });
            longest = longest.max(asked.await?);
        }
        Ok(longest)
    }

    /// Verifies every invariant; online, without stopping I/O.
    pub async fn check(&self) -> Result<Vec<Finding>> {
        self.at_home(|lv, shard| async move { lv.check(&shard).await }).await
    }

    /// Finishes whatever is private, so that a close leaves a plain SPDK store.
    pub async fn seal(&self) -> Result<()> {
        self.at_home(|lv, shard| async move { lv.seal(&shard).await }).await
    }

    /// Takes up the room that the device gained.
    pub async fn grow(&self) -> Result<StoreInfo> {
        self.at_home(|lv, shard| async move { lv.grow(&shard).await }).await
    }

    /// Says whose store it is, durably.
    pub async fn set_owner(&self, owner: Option<Uuid>) -> Result<StoreInfo> {
        self.at_home(move |lv, shard| async move { lv.set_owner(&shard, owner).await }).await
    }

    /// Everything durable, clean mark set, lock released. `Busy` while something is exported.
    pub async fn close(&self) -> Result<()> {
        self.at_home(|lv, shard| async move { lv.close(&shard).await }).await
    }
}

/// A snapshot, read from outside of its store. It keeps nobody from deleting it: a pin does.
#[derive(Clone)]
pub struct Reader {
    store: Store,
    snapshot: Uuid,
    size: u64,
}

impl Reader {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Any offset and length inside it, at most [`crate::lvol::READ_MAX`] bytes.
    pub async fn read(&self, off: u64, len: usize) -> Result<bytes::Bytes> {
        let snapshot = self.snapshot;
        // Reads of one snapshot are spread over the data threads.
        let shards = &self.store.engine.shards;
        let shard = &shards[(off / PIECE) as usize % shards.len()];
        let lv = self.store.lv.clone();
        shard.call(move |shard| async move { lv.read_snapshot(&shard, snapshot, off, len).await }).await
    }

    /// What is known of a range, perhaps of its beginning only.
    pub async fn status(&self, off: u64, len: u64) -> Result<Vec<Stretch>> {
        let snapshot = self.snapshot;
        self.store.at_home(move |lv, shard| async move { lv.snapshot_status(&shard, snapshot, off, len).await }).await
    }

    /// Where it may differ from another snapshot of its store: a hole stands for "the same for sure".
    pub async fn delta(&self, other: Uuid, off: u64, len: u64) -> Result<Vec<Stretch>> {
        let snapshot = self.snapshot;
        let work =
            move |lv: Arc<Lvstore>, shard| async move { lv.snapshot_delta(&shard, snapshot, other, off, len).await };
        self.store.at_home(work).await
    }
}

/// A lvol reachable as a kernel block device. Dropping it does *not* take the device away; [`Export::stop`] does.
#[derive(Clone)]
pub struct Export {
    lvol: Uuid,
    fuse: FuseExport,
    exports: Exports,
    lv: Arc<Lvstore>,
}

impl Store {
    /// Makes the lvol a kernel block device (`/dev/loopN`) by a one-file FUSE file system mounted below `dir` and a loop
    /// device with direct I/O on it. Snapshots are exported read-only. Asking again answers with the same export.
    pub async fn export_fuse(&self, lvol: Uuid, dir: &Path, read_only: bool) -> Result<Export> {
        // One at a time: two must not make two devices of one lvol.
        let _one = self.exporting.acquire().await;
        let info = self.lv.lvol(lvol)?;
        let read_only = read_only || info.kind == LvolKind::Snapshot || self.lv.read_only;
        if let Some(export) = self.export_of(lvol) {
            if export.read_only() != read_only {
                let how = if read_only { "read-write" } else { "read-only" };
                return Err(err!(Busy, "lvol {} is exported {how} as {}", info.name, export.device().display()));
            }
            return Ok(export);
        }
        let shards = &self.engine.shards;
        let shard = shards[lvol.as_u128() as usize % shards.len()].clone();
        let lv = self.lv.clone();
        let factory = Box::new(move |shard: &Shard| LvolIo::open(shard, &lv, lvol));
        let fuse = FuseExport::start(vec![(shard, factory)], dir, &lvol.to_string(), read_only).await?;
        let export = Export { lvol, fuse, exports: self.exports.clone(), lv: self.lv.clone() };
        self.lv.set_exports(lvol, vec![export.device().display().to_string()]);
        lock(&self.exports).insert(lvol, export.clone());
        Ok(export)
    }

    /// The export of a lvol, if it has one.
    pub fn export_of(&self, lvol: Uuid) -> Option<Export> {
        lock(&self.exports).get(&lvol).cloned()
    }

    /// Every export of the store.
    pub fn exports(&self) -> Vec<Export> {
        lock(&self.exports).values().cloned().collect()
    }
}

impl Export {
    pub fn lvol(&self) -> Uuid {
        self.lvol
    }

    /// `/dev/loopN`
    pub fn device(&self) -> PathBuf {
        self.fuse.device()
    }

    pub fn read_only(&self) -> bool {
        self.fuse.read_only()
    }

    /// After `Store::resize`: the block device takes the new size.
    pub async fn refresh_size(&self) -> Result<()> {
        self.fuse.refresh_size().await
    }

    /// Takes the device away: loop device, then FUSE mount. `Busy` while the device is mounted or open.
    pub async fn stop(&self) -> Result<()> {
        self.fuse.stop().await?;
        lock(&self.exports).remove(&self.lvol);
        self.lv.set_exports(self.lvol, Vec::new());
        Ok(())
    }
}
