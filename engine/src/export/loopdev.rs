//! Loop devices: attach with direct I/O, take a new size, detach and see that it happened.
//!
//! Everything here blocks, and opening the backing file of an export or asking for its size waits for the shard that
//! serves it: never call any of it on a shard's thread. What asks the device or its file runs apart, so that a killed process
//! does not wait for its own answer ([`apart`]).

use crate::error::{Error, Result, err};
use crate::sys::{apart, loop_ctl};
use rustix::fs::{CWD, FileType, Mode, OFlags, major, makedev, minor};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Major device number of loop devices.
const LOOP_MAJOR: u32 = 7;
/// How often a free device may be lost to another process before that is an error.
const ATTEMPTS: usize = 64;
/// How long openers that come and go (udev, blkid) are waited for.
const BUSY_PATIENCE: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// A loop device and the file that it is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    pub number: u32,
    /// As `/sys/block/loopN/loop/backing_file` shows it, without "(deleted)".
    pub backing: PathBuf,
}

/// What became of a device that was to be detached, whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    Now,
    /// Somebody has it open or mounted; it goes with the last of them.
    WithLastUser,
}

impl LoopDevice {
    /// Binds `file` to a free loop device. A node missing in `/dev` (containers) is made, and stays. `about_to` hears which
    /// device is tried, before that; `not_that` that it was not bound.
    pub fn attach(
        file: &Path,
        block_size: u32,
        read_only: bool,
        about_to: impl Fn(u32) -> Result<()> + Send,
        not_that: impl Fn(u32) + Send,
    ) -> Result<LoopDevice> {
        on_thread_apart(|| Self::attach_here(file, block_size, read_only, about_to, not_that))
    }

    fn attach_here(
        file: &Path,
        block_size: u32,
        read_only: bool,
        about_to: impl Fn(u32) -> Result<()>,
        not_that: impl Fn(u32),
    ) -> Result<LoopDevice> {
        let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
        let backing = rustix::fs::open(file, access | OFlags::CLOEXEC | OFlags::DIRECT, Mode::empty())
            .map_err(|e| failed(e.into(), format_args!("cannot open {}", file.display())))?;
        let control = open_node(Path::new("/dev/loop-control"), FileType::CharacterDevice, (10, 237), OFlags::RDWR)?;
        let flags = loop_ctl::FLAG_DIRECT_IO | if read_only { loop_ctl::FLAG_READ_ONLY } else { 0 };
        for _ in 0..ATTEMPTS {
            let number = loop_ctl::get_free(&control).map_err(|e| failed(e, "cannot get a free loop device"))?;
            let device = LoopDevice { number, backing: file.to_path_buf() };
            let opened = device.open(access)?;
            about_to(number)?;
            match loop_ctl::configure(&opened, &backing, block_size, flags, file.as_os_str().as_bytes()) {
                Ok(()) => {
                    if read_sysfs(number, "loop/dio").as_deref() != Some("1") {
                        tracing::warn!(device = %device.path().display(), "the loop device does no direct I/O");
                    }
                    return Ok(device);
                }
                // Another process took it in between.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EBUSY | libc::EAGAIN)) => {
                    not_that(number);
                    std::thread::sleep(PAUSE / 10)
                }
                Err(e) => {
                    not_that(number);
                    return Err(failed(
                        e,
                        format_args!("cannot bind {} to {}", file.display(), device.path().display()),
                    ));
                }
            }
        }
        Err(err!(Busy, "lost the race for a free loop device {ATTEMPTS} times"))
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// The device takes its file's size of now.
    pub fn refresh_size(&self) -> Result<()> {
        on_thread_apart(|| {
            let opened = self.open(OFlags::RDONLY)?;
            loop_ctl::set_capacity(&opened)
                .map_err(|e| failed(e, format_args!("cannot set the size of {}", self.path().display())))
        })
    }

    /// Detaches if nobody has the device open or mounted, in any mount namespace; else `Busy`, and nothing has changed.
    /// A device that is no longer bound to this file (somebody detached it) counts as detached.
    pub fn detach(&self) -> Result<()> {
        let give_up = Instant::now() + BUSY_PATIENCE;
        loop {
            if !self.is_bound() {
                return Ok(());
            }
            match on_thread_apart(|| self.try_detach()) {
                Err(e) if e.kind() == crate::error::ErrorKind::Busy && Instant::now() < give_up => {
                    std::thread::sleep(PAUSE);
                }
                Err(e) => return Err(e),
                Ok(()) => return self.wait_until_free(),
            }
        }
    }

    fn try_detach(&self) -> Result<()> {
        let shown = self.path();
        let busy = || err!(Busy, "{} is mounted or open", shown.display());
        if fs::read_dir(format!("/sys/block/loop{}/holders", self.number)).is_ok_and(|mut d| d.next().is_some()) {
            return Err(err!(Busy, "{} is part of another device", shown.display()));
        }
        // O_EXCL finds mounts, the lazily unmounted and other namespaces' included; they hold the device exclusively.
        let opened = match self.open(OFlags::RDONLY | OFlags::EXCL) {
            Ok(opened) => opened,
            Err(_) if !self.is_bound() => return Ok(()),
            Err(e) => return Err(e),
        };
        // What somebody wrote through the page cache and left there must reach the file before it is gone.
        if let Err(e) = rustix::fs::fsync(&opened) {
            tracing::warn!(device = %shown.display(), error = %e, "flush before detaching failed");
        }
        // This takes effect with the last close. If ours is the last, the status is gone at once and nobody can open the
        // device any more; if not, the order is taken back while our own descriptor still holds the device.
        match loop_ctl::clear(&opened) {
            Ok(()) => {}
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return Ok(()),
            Err(e) => return Err(failed(e, format_args!("cannot detach {}", shown.display()))),
        }
        match loop_ctl::status(&opened) {
            Err(e) if e.raw_os_error() == Some(libc::ENXIO) => Ok(()),
            Ok(mut status) => {
                status.flags &= !loop_ctl::FLAG_AUTOCLEAR;
                loop_ctl::set_status(&opened, &status).map_err(|e| {
                    failed(e, format_args!("{} is open, and will go with its last user", shown.display()))
                })?;
                Err(busy())
            }
            // The status asks the file's server; if that is dead, the device may go with its last user.
            Err(_) => Err(busy()),
        }
    }

    fn wait_until_free(&self) -> Result<()> {
        let give_up = Instant::now() + 4 * BUSY_PATIENCE;
        while self.is_bound() {
            if Instant::now() > give_up {
                return Err(err!(Busy, "{} is still bound to {}", self.path().display(), self.backing.display()));
            }
            std::thread::sleep(PAUSE / 10);
        }
        Ok(())
    }

    /// Detaches for whoever uses it, at the latest with its last user: for a file whose server is dead.
    pub fn detach_lazily(&self) -> Result<Detached> {
        on_thread_apart(|| self.detach_lazily_here())
    }

    fn detach_lazily_here(&self) -> Result<Detached> {
        // A mount has it exclusively, and will not go while we wait.
        let mounted = self.open(OFlags::RDONLY | OFlags::EXCL).is_err_and(|e| e.errno() == libc::EBUSY);
        let opened = match self.open(OFlags::RDONLY) {
            Ok(opened) => opened,
            Err(_) if !self.is_bound() => return Ok(Detached::Now),
            Err(e) => return Err(e),
        };
        match loop_ctl::clear(&opened) {
            Err(e) if e.raw_os_error() != Some(libc::ENXIO) => {
                return Err(failed(e, format_args!("cannot detach {}", self.path().display())));
            }
            _ => drop(opened),
        }
        match mounted || self.wait_until_free().is_err() {
            false => Ok(Detached::Now),
            true => Ok(Detached::WithLastUser),
        }
    }

    /// Of a device whose file has no path any more: whether [`LoopDevice::attach`] found the file below `dir`. Of a file on a
    /// dead FUSE file system the driver often says nothing; then it is if it is `recorded`. The kernel keeps the first
    /// 63 bytes of the name.
    pub fn is_left_of(&self, dir: &Path, recorded: bool) -> bool {
        let Ok(opened) = self.open(OFlags::RDONLY) else { return false };
        match loop_ctl::status(&opened) {
            Ok(status) => {
                let (name, dir) = (status.name(), dir.as_os_str().as_bytes());
                name.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
                    || recorded && name.len() == loop_ctl::NAME_MAX && dir.starts_with(name)
            }
            Err(e) => recorded && matches!(e.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)),
        }
    }

    /// Is the device still bound to this file?
    pub fn is_bound(&self) -> bool {
        backing_file(self.number).is_some_and(|file| file == self.backing)
    }

    /// Is the device bound to nothing?
    pub fn is_free(&self) -> bool {
        backing_file(self.number).is_none()
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let numbers = read_sysfs(self.number, "dev").and_then(|s| {
            let (major, minor) = s.split_once(':')?;
            Some((major.parse().ok()?, minor.parse().ok()?))
        });
        open_node(&self.path(), FileType::BlockDevice, numbers.unwrap_or((LOOP_MAJOR, self.number)), flags)
    }
}

fn on_thread_apart<R: Send>(work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    apart::run(work).map_err(|e| err!(Io, "cannot start a thread: {e}"))?
}

/// Every bound loop device.
pub fn bound_devices() -> Vec<LoopDevice> {
    let Ok(entries) = fs::read_dir("/sys/block") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|e| e.file_name().to_str()?.strip_prefix("loop")?.parse().ok());
    let mut devices: Vec<_> =
        numbers.filter_map(|number| Some(LoopDevice { number, backing: backing_file(number)? })).collect();
    devices.sort_by_key(|d| d.number);
    devices
}

fn backing_file(number: u32) -> Option<PathBuf> {
    let shown = read_sysfs(number, "loop/backing_file")?;
    Some(PathBuf::from(shown.strip_suffix(" (deleted)").unwrap_or(&shown)))
}

fn read_sysfs(number: u32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/sys/block/loop{number}/{name}")).ok()?;
    Some(text.strip_suffix('\n').unwrap_or(&text).to_owned())
}

/// Opens a device node, after making it if it is missing, and sees that it is the right device.
fn open_node(path: &Path, kind: FileType, (want_major, want_minor): (u32, u32), flags: OFlags) -> Result<OwnedFd> {
    let shown = path.display();
    let open = || rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty());
    let opened = match open() {
        Err(rustix::io::Errno::NOENT) => {
            let number = makedev(want_major, want_minor);
            match rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o660), number) {
                Ok(()) | Err(rustix::io::Errno::EXIST) => open(),
                Err(e) => return Err(failed(e.into(), format_args!("{shown} is missing and cannot be made"))),
            }
        }
        other => other,
    };
    let opened = opened.map_err(|e| failed(e.into(), format_args!("cannot open {shown}")))?;
    let stat = rustix::fs::fstat(&opened).map_err(|e| failed(e.into(), format_args!("cannot look at {shown}")))?;
    if FileType::from_raw_mode(stat.st_mode) != kind
        || (major(stat.st_rdev), minor(stat.st_rdev)) != (want_major, want_minor)
    {
        return Err(err!(Io, "{shown} is not device {want_major}:{want_minor}; remove it"));
    }
    Ok(opened)
}

fn failed(e: io::Error, doing: impl std::fmt::Display) -> Error {
    Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), doing)
}
