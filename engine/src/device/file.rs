//! Files and block devices: opening, locking, size, and whether there is something on them.

use super::{Device, Inner, Source};
use crate::error::{Error, ErrorKind, Result, err};
use crate::sys::block;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    ReadOnly,
    ReadWrite,
}

/// A killed process is gone before its ring is: requests at work, and children that it was just starting, hold the device a
/// little longer. Its successor waits for that: so long, unless told otherwise.
pub const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Bytes at the start and at the end that must be zero on a blank device.
const BLANK_SPAN: u64 = 1 << 20;

impl Device {
    /// Opens and locks a file or block device. `Locked` if somebody else has it for longer than a moment, mounts and other
    /// kernel holders included. Blocks meanwhile.
    pub fn open(path: &Path, mode: OpenMode) -> Result<Device> {
        Device::open_patiently(path, mode, PREDECESSOR_PATIENCE)
    }

    /// As `open`, waiting for `patience` at most for whoever has it.
    pub fn open_patiently(path: &Path, mode: OpenMode, patience: Duration) -> Result<Device> {
        let give_up = Instant::now() + patience;
        loop {
            match Device::open_now(path, mode) {
                Err(e) if e.kind() == ErrorKind::Locked && Instant::now() < give_up => std::thread::sleep(PAUSE),
                done => return done,
            }
        }
    }

    fn open_now(path: &Path, mode: OpenMode) -> Result<Device> {
        let shown = path.display();
        let meta = rustix::fs::stat(path).map_err(|e| Error::from_errno(e.raw_os_error(), &shown))?;
        let kind = FileType::from_raw_mode(meta.st_mode);
        let is_block = match kind {
            FileType::BlockDevice => true,
            FileType::RegularFile => false,
            _ => return Err(err!(Invalid, "{shown}: not a file or block device")),
        };
        let access = if mode == OpenMode::ReadOnly { OFlags::RDONLY } else { OFlags::RDWR };
        let exclusive = if is_block { OFlags::EXCL } else { OFlags::empty() };
        let flags = access | exclusive | OFlags::CLOEXEC;
        let open = |extra| rustix::fs::open(path, flags | extra, Mode::empty());
        // A file system without direct I/O (or with larger alignment than a block) is used through its page cache: flush
        // is fdatasync either way.
        let fd = open(OFlags::DIRECT).or_else(|e| match e {
            rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP => open(OFlags::empty()),
            e => Err(e),
        });
        let fd = fd.map_err(|e| match e {
            rustix::io::Errno::BUSY => {
                err!(Locked, "{shown} is in use: mounted, part of another device, or opened by another process")
            }
            e => Error::from_errno(e.raw_os_error(), format_args!("cannot open {shown}")),
        })?;
        lock_file(&fd, path)?;
        let block_size = if is_block { block::logical_block_size(&fd)? } else { direct_alignment(&fd) };
        let size = size_of(&fd)?;
        Ok(Device(Arc::new(Inner {
            path: path.to_path_buf(),
            size: AtomicU64::new(size),
            block_size,
            is_block_device: is_block,
            source: Source::File(Arc::new(fd)),
        })))
    }
}

/// Locks a file or device until its last descriptor is closed. `Locked` if somebody else has it.
pub(crate) fn lock_file(fd: impl AsFd, path: &Path) -> Result<()> {
    let shown = path.display();
    rustix::fs::flock(fd, FlockOperation::NonBlockingLockExclusive).map_err(|e| match e {
        rustix::io::Errno::WOULDBLOCK => {
            err!(Locked, "{shown} is open in another process; use its admin socket, or stop it first")
        }
        e => Error::from_errno(e.raw_os_error(), format_args!("cannot lock {shown}")),
    })
}

/// Smallest direct I/O that a file takes, bytes. Buffered files take any; 512 is the smallest block of a store.
fn direct_alignment(fd: &OwnedFd) -> u32 {
    let wants = rustix::fs::StatxFlags::DIOALIGN;
    match rustix::fs::statx(fd, "", rustix::fs::AtFlags::EMPTY_PATH, wants) {
        Ok(x) if x.stx_dio_offset_align >= 512 => x.stx_dio_offset_align,
        _ => 512,
    }
}

pub(super) fn size_of(fd: &OwnedFd) -> Result<u64> {
    let meta = rustix::fs::fstat(fd).map_err(|e| Error::from_errno(e.raw_os_error(), "cannot read a device's size"))?;
    match FileType::from_raw_mode(meta.st_mode) {
        FileType::BlockDevice => block::device_size(fd.as_fd()),
        _ => Ok(meta.st_size as u64),
    }
}

/// Why a device must not be formatted, or `None` if it is blank: its first and last MiB are zero. Any read error is an
/// error, never "blank".
pub fn blank_problem(path: &Path) -> Result<Option<String>> {
    let shown = path.display();
    let file = std::fs::File::open(path)
        .map_err(|e| Error::from_errno(e.raw_os_error().unwrap_or(libc::EIO), format_args!("cannot open {shown}")))?;
    let size = size_of(&OwnedFd::from(file.try_clone().map_err(|e| err!(Io, "{shown}: {e}"))?))?;
    let read = |off: u64, len: u64| -> Result<Vec<u8>> {
        let mut bytes = vec![0u8; len as usize];
        file.read_exact_at(&mut bytes, off).map_err(|e| err!(Io, "{shown}: cannot read at {off}: {e}"))?;
        Ok(bytes)
    };
    let head = read(0, size.min(BLANK_SPAN))?;
    if let Some(what) = recognise(&head) {
        return Ok(Some(format!("it holds {what}")));
    }
    if head.iter().any(|b| *b != 0) {
        return Ok(Some("its first MiB is not zero".into()));
    }
    let tail_len = size.min(BLANK_SPAN);
    let tail = read(size - tail_len, tail_len)?;
    if tail.iter().any(|b| *b != 0) {
        return Ok(Some("its last MiB is not zero (a partition table's copy, a RAID or ZFS label?)".into()));
    }
    Ok(None)
}

/// Names the content of a device by the signatures that people meet.
pub(crate) fn recognise(head: &[u8]) -> Option<&'static str> {
    const SIGNATURES: &[(usize, &[u8], &str)] = &[
        (0, b"SPDKBLOB", "an lvstore (SPDK or Coppice)"),
        (0, b"XFSB", "an XFS file system"),
        (0x438, &[0x53, 0xef], "an ext2/3/4 file system"),
        (0x10040, b"_BHRfS_M", "a btrfs file system"),
        (0, b"LUKS\xba\xbe", "a LUKS container"),
        (512, b"LABELONE", "an LVM physical volume"),
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (4086, b"SWAPSPACE2", "swap space"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a Linux RAID member"),
        (510, &[0x55, 0xaa], "a partition table or boot sector"),
    ];
    SIGNATURES
        .iter()
        .find(|(at, bytes, _)| head.get(*at..at + bytes.len()).is_some_and(|b| b == *bytes))
        .map(|(_, _, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn one_opener_at_a_time() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(1 << 20).expect("sized");
        let first = Device::open(file.path(), OpenMode::ReadWrite).expect("first");
        assert_eq!(first.size(), 1 << 20);
        let second = Device::open(file.path(), OpenMode::ReadOnly).err().expect("refused");
        assert_eq!(second.kind(), ErrorKind::Locked);
        drop(first);
        Device::open(file.path(), OpenMode::ReadOnly).expect("free again");
    }

    #[test]
    fn what_is_not_blank_is_named() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        file.as_file().set_len(8 << 20).expect("sized");
        assert_eq!(blank_problem(file.path()).expect("read"), None);
        file.as_file().write_all_at(&[0x53, 0xef], 0x438).expect("write");
        assert!(blank_problem(file.path()).expect("read").expect("not blank").contains("ext2/3/4"));
        file.as_file().write_all_at(&[0, 0], 0x438).expect("write");
        file.as_file().write_all_at(&[1], (8 << 20) - 1).expect("write");
        assert!(blank_problem(file.path()).expect("read").expect("not blank").contains("last MiB"));
        assert_eq!(blank_problem(Path::new("/nonexistent")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
