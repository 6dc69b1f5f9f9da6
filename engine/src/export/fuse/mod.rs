//! Export `fuse`: a FUSE file system with one file, mounted at `DIR/NAME/`, served by shards; and a loop device with
//! direct I/O on that file.
//!
//! ```text
//!   /dev/loopN ─▶ DIR/NAME/volume ─▶ /dev/fuse ─▶ shard: server ─▶ Volume
//! ```
//!
//! A device that exists is served. What fails half-way is taken back, also when the caller no longer waits. If the process
//! dies, device and mount stay and answer with errors until [`remove_dead_exports`] takes them away.
//!
//! Setting up and taking down asks the kernel for things that the kernel asks of the shards in turn, so both run on
//! threads of their own.

mod marks;
mod mount;
mod proto;
mod server;

use super::Volume;
use super::loopdev::{Detached, LoopDevice, bound_devices};
use crate::error::{Error, Result, err};
use crate::shard::op::Target;
use crate::shard::sync::lock;
use crate::shard::{Shard, ShardHandle};
use crate::sys::{apart, fuse_dev};
use mount::Mount;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Makes the volume on the shard that will serve it.
pub type VolumeFactory<V> = Box<dyn FnOnce(&Shard) -> Result<V> + Send>;

/// How long stopping waits for requests that are at work.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// How often a size may change while the kernel takes it.
const SIZE_ATTEMPTS: usize = 100;

/// A block device served by shards of this process. Dropping it does not take the device away; [`FuseExport::stop`] does.
#[derive(Clone)]
pub struct FuseExport(Arc<Inner>);

struct Inner {
    device: LoopDevice,
    read_only: bool,
    state: Mutex<State>,
}

/// What is still there; emptied by `stop`, in this order.
struct State {
    attached: bool,
    /// The mounted directory.
    mounted: Option<PathBuf>,
    /// One per shard: closed when its tasks have ended.
    serving: Vec<Receiver<()>>,
}

impl FuseExport {
    /// Makes the device. Each shard serves the volume that its factory makes there; all must be the same volume.
    /// `name` (a UUID) names the directory below `dir`.
    pub async fn start<V: Volume>(
        shards: Vec<(ShardHandle, VolumeFactory<V>)>,
        dir: &Path,
        name: &str,
        read_only: bool,
    ) -> Result<FuseExport> {
        let (dir, name) = (dir.to_path_buf(), name.to_owned());
        let made = off_shard(
            move || start(shards, &dir, &name, read_only),
            |made| {
                // Nobody waits for it any more.
                if let Ok(export) = made
                    && let Err(e) = export.take_down()
                {
                    tracing::warn!(device = %export.device().display(), error = %e, "cannot take back an export");
                }
            },
        );
        made.await
    }

    /// `/dev/loopN`
    pub fn device(&self) -> PathBuf {
        self.0.device.path()
    }

    pub fn read_only(&self) -> bool {
        self.0.read_only
    }

    /// After the volume has another size: the device takes it.
    pub async fn refresh_size(&self) -> Result<()> {
        let inner = self.0.clone();
        let refresh = move || {
            let mounted = lock(&inner.state).mounted.clone();
            let dir = mounted.ok_or_else(|| err!(NotFound, "{} is gone", inner.device.path().display()))?;
            apart::run(|| settle_size(&dir.join(proto::FILE_NAME), inner.read_only))
                .map_err(|e| err!(Io, "cannot start a thread: {e}"))??;
            inner.device.refresh_size()
        };
        off_shard(refresh, drop).await
    }

    /// Takes device and mount away, and waits until no request is at work and no shard holds the volume. `Busy`, with
    /// nothing changed, while the device is mounted or open. May be repeated.
    pub async fn stop(&self) -> Result<()> {
        let export = self.clone();
        off_shard(move || export.take_down(), drop).await
    }

    fn take_down(&self) -> Result<()> {
        let mut state = lock(&self.0.state);
        if state.attached {
            self.0.device.detach()?;
            state.attached = false;
            if let Some(dir) = state.mounted.as_ref().and_then(|dir| dir.parent()) {
                marks::clear_free(dir, &self.0.device);
            }
        }
        if let Some(dir) = &state.mounted {
            mount::unmount(dir)?;
            state.mounted = None;
        }
        wait_for_end(&mut state.serving)
    }
}

/// The kernel takes the volume's size as that of the file. A size that it merely asks for it drops if a write ends meanwhile;
/// the device would then be larger than the file, and fail reads beyond its end. One that is set it keeps.
fn settle_size(file: &Path, read_only: bool) -> Result<()> {
    let failed = |e: rustix::io::Errno| {
        Error::from_errno(e.raw_os_error(), format_args!("cannot set the size of {}", file.display()))
    };
    let access = if read_only { OFlags::RDONLY } else { OFlags::WRONLY };
    let fd = rustix::fs::open(file, access | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    for _ in 0..SIZE_ATTEMPTS {
        let has = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC, StatxFlags::SIZE);
        let size = has.map_err(failed)?.stx_size;
        if read_only {
            return Ok(());
        }
        match rustix::fs::ftruncate(&fd, size) {
            // It has another size by now.
            Err(rustix::io::Errno::PERM) => {}
            done => return done.map_err(failed),
        }
    }
    Err(err!(Busy, "the size of {} changes all the time", file.display()))
}

/// Waits until all have ended; who has is taken off the list.
fn wait_for_end(serving: &mut Vec<Receiver<()>>) -> Result<()> {
    let give_up = Instant::now() + END_PATIENCE;
    while let Some(ended) = serving.last() {
        match ended.recv_timeout(give_up.saturating_duration_since(Instant::now())) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => {
                serving.pop();
            }
            Err(RecvTimeoutError::Timeout) => {
                return Err(err!(Busy, "requests are still at work after {} s", END_PATIENCE.as_secs()));
            }
        }
    }
    Ok(())
}

/// Runs `work` on a thread of its own. If nobody waits for the result any more, `unwanted` gets it.
async fn off_shard<R: Send + 'static>(
    work: impl FnOnce() -> Result<R> + Send + 'static,
    unwanted: impl FnOnce(Result<R>) + Send + 'static,
) -> Result<R> {
    let (tx, rx) = futures_channel::oneshot::channel();
    let thread = std::thread::Builder::new().name("export".into()).spawn(move || {
        if let Err(result) = tx.send(work()) {
            unwanted(result);
        }
    });
    thread.map_err(|e| err!(Io, "cannot start a thread: {e}"))?;
    rx.await.unwrap_or_else(|_| Err(err!(Io, "a thread ended without a result")))
}

/// Blocking. Whatever exists when something fails is dropped, and takes itself away.
fn start<V: Volume>(
    shards: Vec<(ShardHandle, VolumeFactory<V>)>,
    dir: &Path,
    name: &str,
    read_only: bool,
) -> Result<FuseExport> {
    // Declared before the mount: on an error the mount goes first, which is what ends the tasks that this waits for.
    let mut serving = Serving::default();
    let mount = Mount::make(dir, name, read_only)?;
    let mut block_size = None;
    for (number, (shard, factory)) in shards.into_iter().enumerate() {
        let dev = if number == 0 { mount.dev.try_clone() } else { fuse_dev::clone(&mount.dev) };
        let dev = dev.map_err(|e| err!(Io, "cannot duplicate a FUSE descriptor: {e}"))?;
        let (ended, watch) = mpsc::channel();
        let (tx, rx) = mpsc::channel();
        shard.run(move |shard| {
            let started = factory(shard).map(|volume| {
                let block = volume.block_size();
                server::serve(shard, Target::file(Arc::new(dev)), volume, read_only, ended);
                block
            });
            let _ = tx.send(started);
        });
        serving.0.push(watch);
        let block = rx.recv().map_err(|_| err!(Cancelled, "the engine is stopping"))??;
        block_size.get_or_insert(block);
    }
    let block_size = block_size.ok_or_else(|| err!(Invalid, "no shard to serve an export"))?;
    let file = mount.dir.join(proto::FILE_NAME);
    let binding = marks::changing();
    let device = LoopDevice::attach(&file, block_size, read_only, |n| marks::set(dir, n), |n| marks::clear(dir, n))?;
    drop(binding);
    let mounted = Some(mount.dir.clone());
    mount.keep();
    let state = State { attached: true, mounted, serving: std::mem::take(&mut serving.0) };
    tracing::info!(device = %device.path().display(), name, "exported");
    Ok(FuseExport(Arc::new(Inner { device, read_only, state: Mutex::new(state) })))
}

/// Waits, when it goes, for the tasks of an export that did not come to be.
#[derive(Default)]
struct Serving(Vec<Receiver<()>>);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = wait_for_end(&mut self.0);
    }
}

/// Whether a loop device that shows this as its file shows one of an export's whose mount is gone from every mount
/// namespace: all that is left of the path is the name.
pub fn lost_its_mount(file: &Path) -> bool {
    file == Path::new("/").join(proto::FILE_NAME)
}

/// What processes left below a directory, by whether anybody serves it.
pub struct Left {
    dir: PathBuf,
    dead: Vec<mount::Seen>,
    alive: Vec<mount::Seen>,
    marked: Vec<u32>,
    recorded: Vec<PathBuf>,
}

impl Left {
    /// Nothing if there is no such directory. `recorded` are devices that are known to have been a dead process's, for where
    /// the kernel does not tell; others among them are left alone. Blocks for up to two seconds per export: never call it on
    /// a shard's thread.
    pub fn below(dir: &Path, recorded: &[PathBuf]) -> Result<Option<Left>> {
        let dir = match dir.canonicalize() {
            Ok(dir) => dir,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(err!(Io, "{}: {e}", dir.display())),
        };
        let (dead, alive) = mount::mounts_below(&dir)?.into_iter().partition(mount::Seen::is_dead);
        let marked = marks::all(&dir);
        Ok(Some(Left { dir, dead, alive, marked, recorded: recorded.to_vec() }))
    }

    /// The loop devices that dead processes left whose exports were there: all that they can do is to fail.
    pub fn dead_devices(&self) -> Vec<PathBuf> {
        self.dead().iter().map(LoopDevice::path).collect()
    }

    /// As `dead_devices`, those of which nobody recorded that they were a process's: it was killed right after binding them,
    /// or the volume has another device by now and this one has users still.
    pub fn leaked_devices(&self) -> Vec<PathBuf> {
        self.leaked().iter().map(LoopDevice::path).collect()
    }

    fn dead(&self) -> Vec<LoopDevice> {
        bound_devices().into_iter().filter(|device| self.is_dead(device)).collect()
    }

    /// Those that only their mark tells of.
    fn leaked(&self) -> Vec<LoopDevice> {
        let marked = bound_devices().into_iter().filter(|device| self.marked.contains(&device.number));
        let leaked = |device: &LoopDevice| {
            lost_its_mount(&device.backing) && !self.is_dead(device) && device.is_left_of(&self.dir, true)
        };
        marked.filter(leaked).collect()
    }

    /// A device shows its file by a path. Where the process had its own mount namespace (a container), that went with it,
    /// and all that is left of the path is the file's name. A path below `dir` without a mount here is of another mount
    /// namespace, which lives.
    fn is_dead(&self, device: &LoopDevice) -> bool {
        let within = |mount: &mount::Seen| device.backing == mount.dir.join(proto::FILE_NAME);
        self.dead.iter().any(within)
            || lost_its_mount(&device.backing) && device.is_left_of(&self.dir, self.recorded.contains(&device.path()))
    }

    /// Takes it away: loop devices (one that is mounted or open goes with its last user), FUSE mounts, directories. Exports
    /// that somebody serves stay, of this process or another. Answers with what was done, in sentences. Devices to `keep`
    /// stay bound, so that nobody else gets their number.
    pub fn remove(self, keep: &[PathBuf]) -> Result<Vec<String>> {
        let mut done = Vec::new();
        let mut failure: Option<Error> = None;
        // First the devices: once the mount is gone, a device no longer shows where its file was.
        for device in self.dead().into_iter().chain(self.leaked()) {
            let (path, file) = (device.path(), device.backing.clone());
            if keep.contains(&path) {
                continue;
            }
            match let_go(&self.dir, &device) {
                Ok(Detached::Now) => done.push(format!("detached {} from {}", path.display(), file.display())),
                Ok(Detached::WithLastUser) => {
                    done.push(format!("{} will leave {} with its last user", path.display(), file.display()));
                }
                Err(e) => {
                    failure.get_or_insert(e);
                }
            }
        }
        let Left { dir, dead, alive, .. } = self;
        marks::tidy(&dir);
        for mount in dead {
            match mount::unmount(&mount.dir) {
                Ok(()) => done.push(format!("unmounted {}", mount.dir.display())),
                Err(e) => {
                    failure.get_or_insert(e);
                }
            }
        }
        // A crash between making the directory and mounting it leaves it empty. Others' directories have other names.
        for entry in fs::read_dir(&dir).map_err(|e| err!(Io, "{}: {e}", dir.display()))?.flatten() {
            let ours = entry.file_name().to_str().is_some_and(|name| uuid::Uuid::try_parse(name).is_ok());
            let path = entry.path();
            if ours && !alive.iter().any(|mount| mount.dir == path) && fs::remove_dir(&path).is_ok() {
                done.push(format!("removed {}", path.display()));
            }
        }
        match failure {
            None => Ok(done),
            Some(e) => Err(if done.is_empty() { e } else { e.context(format!("after: {}", done.join("; "))) }),
        }
    }
}

/// Detaches a device that was kept, if it is still one that a dead process left. Blocks as [`Left::below`].
pub fn detach_dead(dir: &Path, device: &Path) -> Result<()> {
    let left = Left::below(dir, &[device.to_path_buf()])?;
    for dead in left.iter().flat_map(Left::dead).filter(|dead| dead.path() == device) {
        let_go(dir, &dead)?;
    }
    Ok(())
}

/// At once, or with its last user.
fn let_go(dir: &Path, device: &LoopDevice) -> Result<Detached> {
    let _changing = marks::changing();
    let detached = device.detach_lazily()?;
    marks::clear(dir, device.number);
    Ok(detached)
}

/// Takes away what dead processes left below `dir`: [`Left::remove`].
pub fn remove_dead_exports(dir: &Path, recorded: &[PathBuf], keep: &[PathBuf]) -> Result<Vec<String>> {
    Left::below(dir, recorded)?.map_or(Ok(Vec::new()), |left| left.remove(keep))
}
