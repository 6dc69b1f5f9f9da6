//! Mounting and unmounting.

use super::command::blocking;
use super::mountinfo;
use crate::error::Doing;
use crate::{Error, Result};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Journal replay of a large file system takes its time.
const MOUNT_SECONDS_MAX: u64 = 300;
const UNMOUNT_SECONDS_MAX: u64 = 120;
/// Limits of Linux.
const PATH_BYTES_MAX: usize = 4095;
const NAME_BYTES_MAX: usize = 255;

/// Mount options, split as mount(2) wants them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub flags: MountFlags,
    pub read_only: bool,
    /// Options of the file system.
    pub data: Vec<String>,
}

impl Options {
    /// Reads options as a person writes them. Those that would change what is mounted where are refused.
    pub fn read<S: AsRef<str>>(words: &[S]) -> Result<Options> {
        let mut out = Options { flags: MountFlags::empty(), read_only: false, data: Vec::new() };
        for word in words.iter().flat_map(|words| words.as_ref().split(',')).filter(|word| !word.is_empty()) {
            let (flag, on) = match word {
                "ro" | "rw" => {
                    out.read_only = word == "ro";
                    continue;
                }
                "defaults" | "async" | "auto" | "noauto" | "nouser" | "nofail" | "_netdev" => continue,
                "nosuid" => (MountFlags::NOSUID, true),
                "suid" => (MountFlags::NOSUID, false),
                "nodev" => (MountFlags::NODEV, true),
                "dev" => (MountFlags::NODEV, false),
                "noexec" => (MountFlags::NOEXEC, true),
                "exec" => (MountFlags::NOEXEC, false),
                "noatime" => (MountFlags::NOATIME, true),
                "atime" => (MountFlags::NOATIME, false),
                "nodiratime" => (MountFlags::NODIRATIME, true),
                "diratime" => (MountFlags::NODIRATIME, false),
                "relatime" => (MountFlags::RELATIME, true),
                "strictatime" => (MountFlags::STRICTATIME, true),
                "sync" => (MountFlags::SYNCHRONOUS, true),
                "dirsync" => (MountFlags::DIRSYNC, true),
                "lazytime" => (MountFlags::LAZYTIME, true),
                "bind" | "rbind" | "remount" | "move" | "loop" | "user" | "users" => {
                    return Err(Error::Invalid(format!("the mount option {word:?} is not possible for a volume")));
                }
                other if other.chars().any(char::is_control) => {
                    return Err(Error::Invalid(format!("the mount option {other:?} contains control characters")));
                }
                other => {
                    out.data.push(other.to_string());
                    continue;
                }
            };
            out.flags.set(flag, on);
        }
        Ok(out)
    }

    /// The flags that belong to a mount, not to the file system: what a bind mount can have.
    fn of_mount(&self) -> MountFlags {
        let all = MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC
            | MountFlags::NOATIME
            | MountFlags::NODIRATIME
            | MountFlags::RELATIME
            | MountFlags::STRICTATIME;
        self.flags & all
    }
}

/// Mounts a file system, read-write.
pub async fn mount(device: &Path, target: &Path, fs_type: &str, options: &Options) -> Result<()> {
    let data = CString::new(options.data.join(",")).map_err(|e| Error::Invalid(format!("mount options: {e}")))?;
    let (device, target, fs_type) = (device.to_path_buf(), target.to_path_buf(), fs_type.to_string());
    let flags = options.flags;
    let what = format!("mount {fs_type} of {} at {}", device.display(), target.display());
    blocking(&what.clone(), Duration::from_secs(MOUNT_SECONDS_MAX), move || {
        rustix::mount::mount(&device, &target, fs_type.as_str(), flags, data.as_c_str()).map_err(|e| match e {
            Errno::INVAL => Error::Invalid(format!("{what}: {e}: the kernel refuses an option or the file system")),
            Errno::NODEV => Error::Precondition(format!("{what}: this kernel has no {fs_type}")),
            // Looked for before the mount, but two may come at once.
            Errno::EXIST => Error::Precondition(format!(
                "{what}: a {fs_type} with the same fsid is mounted already: unmount the volume that this one was cloned from"
            )),
            // "Structure needs cleaning".
            Errno::UCLEAN => Error::Precondition(format!(
                "{what}: {e}: the file system is damaged; look at it with xfs_repair -n or btrfs check, or restore a snapshot"
            )),
            e => Error::Host(format!("{what}: {e}")),
        })
    })
    .await
}

/// Binds `source` to `target` with the options of a mount; read-only if asked.
pub async fn bind(source: &Path, target: &Path, options: &Options, read_only: bool) -> Result<()> {
    let (source, target) = (source.to_path_buf(), target.to_path_buf());
    let mut flags = options.of_mount();
    flags.set(MountFlags::RDONLY, read_only);
    let what = format!("bind {} to {}", source.display(), target.display());
    blocking(&what.clone(), Duration::from_secs(MOUNT_SECONDS_MAX), move || {
        rustix::mount::mount_bind(&source, &target).doing(|| what.clone())?;
        if flags.is_empty() {
            return Ok(());
        }
        let remounted = rustix::mount::mount_remount(&target, MountFlags::BIND | flags, c"");
        if remounted.is_err() {
            // Half bound is not bound: a volume that should be read-only must not be there writable.
            let _ = rustix::mount::unmount(&target, UnmountFlags::DETACH);
        }
        remounted.doing(|| what)
    })
    .await
}

/// What to do with a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfBusy {
    Refuse,
    /// Its device is dead: take it out of sight, the kernel frees it with its last user.
    Detach,
}

/// Unmounts everything at `target`, stacked mounts too. Nothing mounted there is fine.
pub async fn unmount(target: &Path, if_busy: IfBusy) -> Result<()> {
    let target = target.to_path_buf();
    let what = format!("unmount {}", target.display());
    blocking(&what.clone(), Duration::from_secs(UNMOUNT_SECONDS_MAX), move || {
        while mountinfo::at(&target)?.is_some() {
            match rustix::mount::unmount(&target, UnmountFlags::NOFOLLOW) {
                Ok(()) => {}
                // Not a mount point any more: somebody was faster.
                Err(Errno::INVAL | Errno::NOENT) if mountinfo::at(&target)?.is_none() => {}
                Err(_) if if_busy == IfBusy::Detach => {
                    let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                    rustix::mount::unmount(&target, flags).doing(|| what.clone())?;
                }
                Err(Errno::BUSY) => {
                    return Err(Error::Precondition(format!("{what}: in use; stop what uses it and try again")));
                }
                Err(e) => return Err(Error::Host(format!("{what}: {e}"))),
            }
        }
        Ok(())
    })
    .await
}

/// Writes everything of the file system at `path` to its device.
pub async fn sync_file_system(path: &Path, deadline: Duration) -> Result<()> {
    let path = path.to_path_buf();
    blocking(&format!("sync {}", path.display()), deadline, move || {
        let dir = std::fs::File::open(&path).doing(|| format!("open {}", path.display()))?;
        rustix::fs::syncfs(&dir).doing(|| format!("sync {}", path.display()))
    })
    .await
}

/// Writes out what the kernel caches of a block device.
pub async fn sync_device(device: &Path, deadline: Duration) -> Result<()> {
    let device = device.to_path_buf();
    blocking(&format!("sync {}", device.display()), deadline, move || {
        let file = std::fs::File::open(&device).doing(|| format!("open {}", device.display()))?;
        file.sync_all().doing(|| format!("sync {}", device.display()))
    })
    .await
}

/// Makes the directory `target` to mount on, if it is not there.
pub fn make_dir(target: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match std::fs::symlink_metadata(target) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(Error::Precondition(format!("{} exists and is not a directory", target.display()))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(at_path(e, format_args!("look at {}", target.display()))),
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o750).create(target);
    made.map_err(|e| at_path(e, format_args!("make the directory {}", target.display())))
}

/// Makes the file `target` to bind a device node on, if it is not there.
pub fn make_file(target: &Path) -> Result<()> {
    if let Some(dir) = target.parent() {
        make_dir(dir)?;
    }
    match std::fs::OpenOptions::new().write(true).create_new(true).open(target) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            let meta = std::fs::symlink_metadata(target).doing(|| format!("look at {}", target.display()))?;
            match meta.is_file() {
                true => Ok(()),
                false => Err(Error::Precondition(format!("{} exists and is not a file", target.display()))),
            }
        }
        Err(e) => Err(at_path(e, format_args!("make the file {}", target.display()))),
    }
}

/// The error of a path that the caller chose: where it is at fault, the caller has to act.
fn at_path(e: std::io::Error, doing: std::fmt::Arguments<'_>) -> Error {
    use std::io::ErrorKind::{DirectoryNotEmpty, NotADirectory, ReadOnlyFilesystem, ResourceBusy};
    match e.kind() {
        DirectoryNotEmpty => Error::Precondition(format!("{doing}: it is not empty, and not ours to empty")),
        NotADirectory | ReadOnlyFilesystem | ResourceBusy => {
            Error::Precondition(format!("{doing}: {e}; use another path"))
        }
        _ => Error::Host(format!("{doing}: {e}")),
    }
}

/// Removes an unmounted target: an empty file or directory, never anything with content.
pub fn remove_target(target: &Path) -> Result<()> {
    let meta = match std::fs::symlink_metadata(target) {
        Ok(meta) => meta,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(Error::Host(format!("look at {}: {e}", target.display()))),
    };
    if meta.is_dir() {
        return std::fs::remove_dir(target)
            .map_err(|e| at_path(e, format_args!("remove the directory {}", target.display())));
    }
    if meta.is_file() && meta.len() == 0 {
        return std::fs::remove_file(target).doing(|| format!("remove {}", target.display()));
    }
    let message = format!("{} is neither a directory nor an empty file: it is not ours to remove", target.display());
    Err(Error::Precondition(message))
}

/// Refuses paths that are not absolute, or that climb.
pub fn check_path(path: &str, what: &str) -> Result<PathBuf> {
    if path.is_empty() {
        return Err(Error::Invalid(format!("the request has no {what}")));
    }
    let parts_fit = path.split('/').all(|part| part.len() <= NAME_BYTES_MAX);
    if path.len() > PATH_BYTES_MAX || !parts_fit || path.contains('\0') {
        return Err(Error::Invalid(format!("the {what} is longer than a path can be, or has a zero byte in it")));
    }
    let path = PathBuf::from(path);
    let climbs = path.components().any(|part| matches!(part, std::path::Component::ParentDir));
    if !path.is_absolute() || climbs {
        return Err(Error::Invalid(format!("the {what} {} is not an absolute path without ..", path.display())));
    }
    Ok(resolve(&path))
}

/// The path as mountinfo writes it: no symbolic links on the way, no doubled or trailing slashes. The last part itself is
/// not followed: it may be a dead mount, or not there yet.
pub fn resolve(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().collect();
    for ancestor in plain.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), plain.strip_prefix(ancestor)) {
            return real.join(rest);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_flags_and_data() -> anyhow::Result<()> {
        let options = Options::read(&["noatime,ro", "discard", "nosuid", "suid", "commit=30"])?;
        assert_eq!(options.flags, MountFlags::NOATIME);
        assert!(options.read_only);
        assert_eq!(options.data, ["discard", "commit=30"]);
        for bad in ["bind", "remount", "loop", "x\ny"] {
            assert!(matches!(Options::read(&[bad]), Err(Error::Invalid(_))), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn targets() -> anyhow::Result<()> {
        for bad in ["", "a/b", "/a/../b"] {
            assert!(matches!(check_path(bad, "target path"), Err(Error::Invalid(_))), "{bad}");
        }
        assert_eq!(check_path("/nowhere//b/", "target path")?, Path::new("/nowhere/b"));
        let dir = tempfile::tempdir()?;
        let real = dir.path().canonicalize()?;
        std::fs::create_dir(real.join("real"))?;
        std::os::unix::fs::symlink(real.join("real"), real.join("link"))?;
        assert_eq!(resolve(&real.join("link/x/y")), real.join("real/x/y"), "mountinfo knows no links");
        let full = dir.path().join("full");
        std::fs::create_dir(&full)?;
        std::fs::write(full.join("kept"), b"data")?;
        assert!(remove_target(&full).is_err());
        assert!(remove_target(&full.join("kept")).is_err());
        assert_eq!(std::fs::read(full.join("kept"))?, b"data");
        make_file(&dir.path().join("a/b"))?;
        make_file(&dir.path().join("a/b"))?;
        remove_target(&dir.path().join("a/b"))?;
        remove_target(&dir.path().join("a/b"))?;
        make_dir(&dir.path().join("a"))?;
        assert!(make_file(&dir.path().join("a")).is_err());
        Ok(())
    }
}
