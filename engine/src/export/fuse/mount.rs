//! Mounting the one-file file system, unmounting it, and finding what dead processes left mounted.
//!
//! Everything here blocks: never call it on a shard's thread.

use crate::error::{Error, Result, err};
use crate::sys::fuse_dev;
use rustix::mount::{MountFlags, UnmountFlags};
use std::ffi::{CString, OsString};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// The file system's type as `/proc/self/mountinfo` shows it.
pub const FS_TYPE: &str = "fuse.coppice";

/// A mounted file system, which goes away with this value unless [`Mount::keep`] is called.
pub struct Mount {
    pub dir: PathBuf,
    pub dev: OwnedFd,
    kept: bool,
}

impl Mount {
    /// Makes `parent/name` (and `parent`), mode 0700, and mounts there. Nobody serves it yet: do not look into it.
    pub fn make(parent: &Path, name: &str, read_only: bool) -> Result<Mount> {
        if name.is_empty() || name.len() > 255 || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(err!(Invalid, "{name:?} cannot name an export"));
        }
        let mkdir = |path: &Path, recursive| fs::DirBuilder::new().mode(0o700).recursive(recursive).create(path);
        let failed = |e: std::io::Error, doing: String| Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), doing);
        mkdir(parent, true).map_err(|e| failed(e, format!("cannot make {}", parent.display())))?;
        // The loop driver shows the file's real path, and that is how the device is recognised later.
        let parent = parent.canonicalize().map_err(|e| failed(e, format!("cannot look at {}", parent.display())))?;
        let dir = parent.join(name);
        let shown = dir.display().to_string();
        if mounts_below(&parent)?.iter().any(|m| m.dir == dir) {
            return Err(err!(AlreadyExists, "{shown} is mounted already; remove dead exports first"));
        }
        match mkdir(&dir, false) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                // Left by a crash between making and mounting. A file, or a full directory, is somebody's.
                if !fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none()) {
                    return Err(err!(AlreadyExists, "{shown} exists and is not an empty directory"));
                }
            }
            Err(e) => return Err(failed(e, format!("cannot make {shown}"))),
        }
        let mounted = fuse_dev::open().map_err(|e| failed(e, "cannot open /dev/fuse".into())).and_then(|dev| {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            let flags = if read_only { flags | MountFlags::RDONLY } else { flags };
            let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,default_permissions", dev.as_raw_fd());
            let options = CString::new(options).map_err(|e| err!(Invalid, "mount options: {e}"))?;
            rustix::mount::mount("coppice", &dir, FS_TYPE, flags, Some(options.as_c_str()))
                .map_err(|e| Error::from_errno(e.raw_os_error(), format_args!("cannot mount {shown}")))?;
            Ok(dev)
        });
        match mounted {
            Ok(dev) => Ok(Mount { dir, dev, kept: false }),
            Err(e) => {
                let _ = fs::remove_dir(&dir);
                Err(e)
            }
        }
    }

    /// The mount stays; `unmount` takes it away.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = unmount(&self.dir)
        {
            tracing::warn!(dir = %self.dir.display(), error = %e, "cannot take back a mount");
        }
    }
}

/// Ends the connection, unmounts, and removes the directory; fine if nothing is there. Whoever still has the file open
/// gets errors: see that the loop device is gone first.
pub fn unmount(dir: &Path) -> Result<()> {
    // With both flags nothing can be in the way. FORCE ends the connection, also where a copy of the mount lives on in
    // another mount namespace.
    let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    match rustix::mount::unmount(dir, flags) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(Error::from_errno(e.raw_os_error(), format_args!("cannot unmount {}", dir.display()))),
    }
    match fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(err!(Io, "cannot remove {}: {e}", dir.display())),
        _ => Ok(()),
    }
}

/// A mount of our type, as seen from this process.
#[derive(Debug, PartialEq, Eq)]
pub struct Seen {
    pub dir: PathBuf,
}

impl Seen {
    /// Nobody serves it any more. A server that does not answer within two seconds counts as alive.
    pub fn is_dead(&self) -> bool {
        let (tx, rx) = mpsc::channel();
        let dir = self.dir.clone();
        let asked = std::thread::Builder::new().name("fuse-probe".into()).spawn(move || {
            let _ = tx.send(rustix::fs::stat(&dir));
        });
        let answer = asked.ok().and_then(|_| rx.recv_timeout(Duration::from_secs(2)).ok());
        matches!(answer, Some(Err(rustix::io::Errno::NOTCONN | rustix::io::Errno::CONNABORTED)))
    }
}

/// Mounts of our type below `dir`, the latest first.
pub fn mounts_below(dir: &Path) -> Result<Vec<Seen>> {
    let table = fs::read("/proc/self/mountinfo").map_err(|e| err!(Io, "cannot read /proc/self/mountinfo: {e}"))?;
    let mut seen: Vec<_> = table.split(|b| *b == b'\n').filter_map(parse_line).collect();
    seen.retain(|m| m.dir.starts_with(dir) && m.dir != dir);
    seen.reverse();
    Ok(seen)
}

/// `id parent major:minor root MOUNT-POINT options [optional fields…] - TYPE source super-options`
fn parse_line(line: &[u8]) -> Option<Seen> {
    let mut fields = line.split(|b| *b == b' ');
    let dir = fields.nth(4)?;
    let kind = fields.skip_while(|f| *f != b"-").nth(1)?;
    (kind == FS_TYPE.as_bytes()).then(|| Seen { dir: unescape(dir) })
}

/// The kernel writes blanks, newlines and backslashes in paths as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| first == b'\\' && d.iter().all(|c| (b'0'..=b'7').contains(c)));
        match octal {
            Some(digits) => {
                out.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_mounts_are_found_in_the_table() {
        let line = b"69 23 0:40 / /run/a\\040b/x rw,nosuid shared:5 master:2 - fuse.coppice coppice rw,user_id=0";
        assert_eq!(parse_line(line), Some(Seen { dir: PathBuf::from("/run/a b/x") }));
        assert_eq!(parse_line(b"69 23 0:40 / /run/x rw - fuse.other coppice rw"), None);
        assert_eq!(parse_line(b"69 23 0:40 / /run/x rw"), None);
        assert_eq!(parse_line(b""), None);
        assert_eq!(unescape(b"a\\134b\\09"), PathBuf::from("a\\b\\09"));
    }
}
