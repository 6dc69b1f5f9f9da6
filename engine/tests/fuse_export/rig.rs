//! An exported volume on a file in memory that counts, fails on demand, and takes itself away, also when a test panics.

use anyhow::{Context, Result, ensure};
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::error::Error;
use coppice_engine::export::{FuseExport, RawVolume, Volume, VolumeFactory, remove_dead_exports};
use coppice_engine::shard::{Shard, ShardHandle, ShardThreads};
use coppice_engine::sys::buf::BufSlice;
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, Wake, Waker};

pub const MIB: u64 = 1 << 20;
pub const NAME: &str = "7a2f53f0-7a50-4f0d-9d54-2f8b9b6f1a01";

/// What a test sees of its volume, and makes it do.
#[derive(Default)]
pub struct Probe {
    pub reads: AtomicU32,
    pub flushes: AtomicU32,
    pub discarded: AtomicU64,
    pub zeroed: AtomicU64,
    /// An errno that every call of the kind returns, or 0.
    pub fail_read: AtomicI32,
    pub fail_write: AtomicI32,
    pub fail_flush: AtomicI32,
    pub fail_discard: AtomicI32,
}

/// A [`RawVolume`] with counters and faults.
#[derive(Clone)]
pub struct Probed {
    pub raw: RawVolume,
    pub probe: Arc<Probe>,
}

fn fault(errno: &AtomicI32) -> coppice_engine::Result<()> {
    match errno.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(Error::from_errno(errno, "injected")),
    }
}

impl Volume for Probed {
    fn size(&self) -> u64 {
        self.raw.size()
    }

    fn block_size(&self) -> u32 {
        self.raw.block_size()
    }

    fn read_only(&self) -> bool {
        self.raw.read_only()
    }

    async fn read(&self, off: u64, buf: BufSlice) -> coppice_engine::Result<()> {
        self.probe.reads.fetch_add(1, Ordering::SeqCst);
        fault(&self.probe.fail_read)?;
        self.raw.read(off, buf).await
    }

    async fn write(&self, off: u64, buf: BufSlice, fua: bool) -> coppice_engine::Result<()> {
        fault(&self.probe.fail_write)?;
        self.raw.write(off, buf, fua).await
    }

    async fn write_zeroes(&self, off: u64, len: u64) -> coppice_engine::Result<()> {
        self.probe.zeroed.fetch_add(len, Ordering::SeqCst);
        fault(&self.probe.fail_write)?;
        // tmpfs cannot zero a range, but its holes read zero.
        self.raw.discard(off, len).await
    }

    async fn discard(&self, off: u64, len: u64) -> coppice_engine::Result<()> {
        self.probe.discarded.fetch_add(len, Ordering::SeqCst);
        fault(&self.probe.fail_discard)?;
        self.raw.discard(off, len).await
    }

    async fn flush(&self) -> coppice_engine::Result<()> {
        self.probe.flushes.fetch_add(1, Ordering::SeqCst);
        fault(&self.probe.fail_flush)?;
        self.raw.flush().await
    }
}

pub fn wait<T>(f: impl Future<Output = T>) -> T {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut f = std::pin::pin!(f);
    loop {
        match f.as_mut().poll(&mut TaskContext::from_waker(&waker)) {
            Poll::Ready(value) => return value,
            Poll::Pending => std::thread::park(),
        }
    }
}

pub struct Rig {
    /// Mounts of the exported device.
    mounted: Vec<PathBuf>,
    pub export: Option<FuseExport>,
    threads: Option<ShardThreads>,
    pub probe: Arc<Probe>,
    pub size: Arc<AtomicU64>,
    dir: tempfile::TempDir,
}

#[derive(Clone, Copy)]
pub struct Plan {
    pub size: u64,
    pub block_size: u32,
    pub shards: usize,
    pub read_only: bool,
}

pub const PLAN: Plan = Plan { size: 64 * MIB, block_size: 4096, shards: 1, read_only: false };

impl Plan {
    pub fn build(self) -> Result<Rig> {
        let mut rig = Rig {
            mounted: Vec::new(),
            export: None,
            threads: Some(ShardThreads::start(self.shards)?),
            probe: Arc::default(),
            size: Arc::new(AtomicU64::new(self.size)),
            dir: tempfile::tempdir_in("/dev/shm")?,
        };
        fs::File::create(rig.backing())?.set_len(self.size)?;
        rig.export = Some(rig.start(self)?);
        Ok(rig)
    }
}

impl Rig {
    pub fn backing(&self) -> PathBuf {
        self.dir.path().join("backing")
    }

    pub fn exports(&self) -> PathBuf {
        self.dir.path().join("exports")
    }

    /// The one file.
    pub fn file(&self) -> PathBuf {
        self.exports().join(NAME).join("volume")
    }

    pub fn handles(&self) -> Vec<ShardHandle> {
        self.threads.as_ref().map(|t| t.handles().to_vec()).unwrap_or_default()
    }

    pub fn start(&self, plan: Plan) -> coppice_engine::Result<FuseExport> {
        let device = Device::open(&self.backing(), OpenMode::ReadWrite)?;
        let shards = self.handles().into_iter().map(|handle| {
            let (device, probe, size) = (device.clone(), self.probe.clone(), self.size.clone());
            let factory: VolumeFactory<Probed> = Box::new(move |shard: &Shard| {
                let (port, block_size) = (device.port(shard), plan.block_size);
                Ok(Probed { raw: RawVolume { port, size, block_size, read_only: plan.read_only }, probe })
            });
            (handle, factory)
        });
        wait(FuseExport::start(shards.collect(), &self.exports(), NAME, plan.read_only))
    }

    pub fn export(&self) -> &FuseExport {
        self.export.as_ref().expect("exported")
    }

    pub fn device(&self) -> PathBuf {
        self.export().device()
    }

    /// The device's attribute `loop/NAME` in sysfs.
    pub fn loop_attribute(&self, name: &str) -> Result<String> {
        Ok(fs::read_to_string(loop_attribute(&self.device(), name)?)?.trim().to_owned())
    }

    pub fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        Ok(rustix::fs::open(self.device(), flags | OFlags::CLOEXEC, Mode::empty())?)
    }

    pub fn mount(&mut self, options: &str) -> Result<PathBuf> {
        let at = self.dir.path().join("mnt");
        fs::create_dir(&at)?;
        run("mount", &["-o", options, text(&self.device()), text(&at)])?;
        self.mounted.push(at.clone());
        Ok(at)
    }

    pub fn umount(&mut self) -> Result<()> {
        for at in self.mounted.drain(..) {
            run("umount", &[text(&at)])?;
            fs::remove_dir(&at)?;
        }
        Ok(())
    }

    /// Stops, and sees that nothing is left.
    pub fn finish(mut self) -> Result<()> {
        self.umount()?;
        let export = self.export.take().context("exported")?;
        let device = export.device();
        wait(export.stop())?;
        wait(export.stop()).context("a second stop is fine")?;
        nothing_left(&self.exports(), &device)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        for at in &self.mounted {
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
        if let Some(export) = self.export.take()
            && let Err(e) = wait(export.stop())
        {
            eprintln!("left behind: {e}");
        }
        if let Some(threads) = self.threads.take() {
            threads.stop();
        }
        let _ = remove_dead_exports(&self.exports(), &[], &[]);
    }
}

pub fn loop_attribute(device: &Path, name: &str) -> Result<PathBuf> {
    let device = device.file_name().and_then(|n| n.to_str()).context("a device name")?;
    Ok(PathBuf::from(format!("/sys/block/{device}/loop/{name}")))
}

pub fn nothing_left(exports: &Path, device: &Path) -> Result<()> {
    let left: Vec<_> = fs::read_dir(exports)?.flatten().map(|e| e.path()).collect();
    ensure!(left.is_empty(), "left: {left:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains(text(exports)), "still mounted");
    let bound = fs::read_to_string(loop_attribute(device, "backing_file")?).unwrap_or_default();
    ensure!(!bound.contains(text(exports)), "{} is still bound to {bound}", device.display());
    Ok(())
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("plain paths in tests")
}

pub fn run(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).output().with_context(|| format!("{program} is needed"))?;
    let (shown, error) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    ensure!(out.status.success(), "{program} {args:?}: {} {shown} {error}", out.status);
    Ok(shown.into_owned())
}

/// Memory for direct I/O.
pub struct Aligned {
    bytes: Vec<u8>,
    at: usize,
    len: usize,
}

impl Aligned {
    pub fn new(len: usize) -> Aligned {
        let bytes = vec![0u8; len + 4096];
        let at = bytes.as_ptr().align_offset(4096);
        Aligned { bytes, at, len }
    }

    pub fn get(&self) -> &[u8] {
        &self.bytes[self.at..self.at + self.len]
    }

    pub fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.at..self.at + self.len]
    }
}

pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.next(u64::MAX).to_ne_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}
