//! `/proc/self/mountinfo`, parsed. See proc_pid_mountinfo(5) for the fields.

use crate::error::Doing;
use crate::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// One mount of this mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Major and minor number of the file system; not the device's own for btrfs.
    pub device: (u32, u32),
    /// What of the file system is mounted: `/`, or for a bind mount a path below it.
    pub root: PathBuf,
    pub target: PathBuf,
    /// Options of this mount, not of the file system.
    pub options: Vec<String>,
    pub fs_type: String,
    pub source: PathBuf,
}

impl Mount {
    pub fn read_only(&self) -> bool {
        self.options.iter().any(|option| option == "ro")
    }

    /// True if this is a file system on `device`, or `device` itself bound to a path.
    pub fn is_of(&self, device: &Path, number: Option<(u32, u32)>) -> bool {
        if self.is_node_of(device) {
            return true;
        }
        self.fs_type != "devtmpfs" && (self.source == device || number.is_some_and(|number| self.device == number))
    }

    /// True if this is the device node bound to a path, as for a raw block volume.
    pub fn is_node_of(&self, device: &Path) -> bool {
        let node = device.file_name().map(|name| Path::new("/").join(name));
        self.fs_type == "devtmpfs" && node.is_some_and(|node| self.root == node)
    }
}

/// All mounts, in the order in which they were made.
pub fn read() -> Result<Vec<Mount>> {
    let path = "/proc/self/mountinfo";
    let bytes = std::fs::read(path).doing(|| format!("read {path}"))?;
    parse(&bytes)
}

/// The topmost mount at exactly this path.
pub fn at(target: &Path) -> Result<Option<Mount>> {
    Ok(read()?.into_iter().rev().find(|mount| mount.target == target))
}

fn parse(bytes: &[u8]) -> Result<Vec<Mount>> {
    let lines = bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    lines
        .map(|line| {
            let shown = || Error::Host(format!("mountinfo: cannot read {:?}", String::from_utf8_lossy(line)));
            parse_line(line).ok_or_else(shown)
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let (_id, _parent) = (fields.next()?, fields.next()?);
    let device = text(fields.next()?);
    let (major, minor) = device.split_once(':')?;
    let root = unescape(fields.next()?);
    let target = unescape(fields.next()?);
    let options = text(fields.next()?).split(',').map(str::to_string).collect();
    // Optional fields, ended by a dash.
    fields.by_ref().find(|field| *field == b"-")?;
    let fs_type = text(fields.next()?);
    let source = unescape(fields.next()?);
    Some(Mount { device: (major.parse().ok()?, minor.parse().ok()?), root, target, options, fs_type, source })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            _ => {
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

    const SAMPLE: &[u8] = b"\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
40 22 7:3 / /var/with\\040space\\134x ro,noatime master:1 propagate_from:2 - xfs /dev/loop3 rw,nouuid\n\
41 22 0:6 /loop3 /var/target rw - devtmpfs udev rw\n\
42 22 0:50 / /var/b rw - btrfs /dev/loop4 rw,subvol=/\n";

    #[test]
    fn fields_and_escapes() -> anyhow::Result<()> {
        let mounts = parse(SAMPLE)?;
        assert_eq!(mounts.len(), 4);
        let xfs = &mounts[1];
        assert_eq!(xfs.target, Path::new("/var/with space\\x"));
        assert_eq!((xfs.device, xfs.fs_type.as_str(), xfs.read_only()), ((7, 3), "xfs", true));
        let of_loop3: Vec<bool> = mounts.iter().map(|m| m.is_of(Path::new("/dev/loop3"), Some((7, 3)))).collect();
        assert_eq!(of_loop3, [false, true, true, false]);
        assert!(mounts[3].is_of(Path::new("/dev/loop4"), Some((7, 4))), "btrfs is known by its source");
        assert!(!read()?.is_empty());
        Ok(())
    }

    #[test]
    fn nonsense_is_an_error() {
        for bad in [&b"x"[..], b"1 2 3 / / rw - ext4 d rw", b"1 2 7:x / / rw - ext4 d", b"1 2 7:1 / / rw ext4 d"] {
            assert!(parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
