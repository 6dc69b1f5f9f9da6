//! What a Lvstore lies on: finding it, refusing what is in use, and looking at what is there.

use super::failure::Refusal;
use super::plan::OnDevice;
use crate::host::mountinfo;
use coppice_engine::device::on_thread;
use coppice_engine::{Contents, Engine, ErrorKind, LvolState, OpenStore};
use coppice_kube_api::{LvstoreReason, Place};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, Refusal>;

fn refuse<T>(reason: LvstoreReason, message: impl Into<String>) -> Result<T> {
    Err(Refusal(reason, message.into()))
}

/// Where the store is to be, and whether something is there. Only a file may be absent.
pub async fn resolve(place: Place<'_>, file_dir: &Path) -> Result<(PathBuf, bool)> {
    let (device, file_dir) = (place.device().to_string(), file_dir.to_path_buf());
    on_thread(move || resolve_now(Place::of(&device), &file_dir)).await.map_err(failed)?
}

fn resolve_now(place: Place<'_>, file_dir: &Path) -> Result<(PathBuf, bool)> {
    match place {
        Place::File(name) => {
            // The API server has checked the name already; a folder is left nowhere all the same.
            if name.contains('/') || name.is_empty() || name.starts_with('.') {
                return refuse(LvstoreReason::DeviceMissing, format!("{name:?} is not the name of a file"));
            }
            let path = file_dir.join(name);
            let shown = path.display();
            let dir =
                rustix::fs::openat(CWD, file_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            let dir = dir.map_err(|e| Refusal(LvstoreReason::DeviceMissing, format!("{}: {e}", file_dir.display())))?;
            let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            match rustix::fs::openat2(&dir, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), how) {
                Ok(file) => {
                    let kind = rustix::fs::fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
                    match kind {
                        Ok(FileType::RegularFile) => Ok((path, true)),
                        Ok(_) => refuse(LvstoreReason::DeviceMissing, format!("{shown} is not a file")),
                        Err(e) => refuse(LvstoreReason::DeviceMissing, format!("{shown}: {e}")),
                    }
                }
                Err(rustix::io::Errno::NOENT) => Ok((path, false)),
                Err(e) => refuse(LvstoreReason::DeviceMissing, format!("{shown}: {e}")),
            }
        }
        Place::Drive(link) => {
            let path = std::fs::canonicalize(link);
            let path = path.map_err(|e| Refusal(LvstoreReason::DeviceMissing, format!("{link}: {e}")))?;
            check_drive(&path)?;
            Ok((path, true))
        }
    }
}

/// Refuses a drive that the kernel uses for something.
fn check_drive(path: &Path) -> Result<()> {
    let shown = path.display();
    let host = |e: crate::Error| Refusal(LvstoreReason::OpenFailed, e.to_string());
    let number = crate::host::device::number(path).map_err(|e| Refusal(LvstoreReason::DeviceMissing, e.to_string()))?;
    let name = crate::host::device::name(path).map_err(host)?;
    let sys = Path::new("/sys/class/block").join(name);
    let entries = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    if entries(&sys).iter().any(|entry| entry.join("partition").exists()) {
        return refuse(LvstoreReason::DevicePartitioned, format!("{shown} has partitions"));
    }
    if let Some(mount) = mountinfo::read().map_err(host)?.iter().find(|mount| mount.is_of(path, Some(number))) {
        return refuse(LvstoreReason::DeviceMounted, format!("{shown} is mounted at {}", mount.target.display()));
    }
    if let Some(holder) = entries(&sys.join("holders")).first() {
        let holder = holder.file_name().unwrap_or_default().to_string_lossy();
        return refuse(LvstoreReason::DeviceHeld, format!("{shown} is held by {holder}"));
    }
    Ok(())
}

/// Major and minor number of a block device.
pub fn number(path: &Path) -> Option<(u32, u32)> {
    crate::host::device::number(path).ok()
}

/// Looks at a device that exists, and changes nothing.
pub async fn look(engine: &Engine, path: &Path) -> Result<OnDevice> {
    match engine.look(path).await.map_err(failed)? {
        Contents::Blank => Ok(OnDevice::Blank),
        Contents::Other(what) => Ok(OnDevice::Other(what)),
        Contents::Store(label) => {
            Ok(OnDevice::Store { uuid: label.uuid, name: label.name, owner: label.owner, lvols: None })
        }
    }
}

/// How many lvols a store has. All of its metadata is read.
pub async fn count(engine: &Engine, path: &Path) -> Result<usize> {
    let store = engine.open_store(path, OpenStore { read_only: true, ..Default::default() }).await.map_err(failed)?;
    let lvols = store.lvols().await.map_err(failed)?;
    store.close().await.map_err(failed)?;
    Ok(lvols.iter().filter(|lvol| lvol.state != LvolState::Hidden).count())
}

/// A store that does not open.
pub fn failed(error: coppice_engine::Error) -> Refusal {
    let reason = match error.kind() {
        ErrorKind::NotBlank => LvstoreReason::DeviceNotBlank,
        ErrorKind::Locked => LvstoreReason::DeviceHeld,
        ErrorKind::NotFound => LvstoreReason::DeviceMissing,
        ErrorKind::Io | ErrorKind::Failed => LvstoreReason::DeviceFailed,
        _ => LvstoreReason::OpenFailed,
    };
    Refusal(reason, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_beneath_their_directory() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let files = dir.path().join("files");
        std::fs::create_dir(&files)?;
        std::fs::write(dir.path().join("outside"), b"x")?;
        std::fs::write(files.join("inside"), b"x")?;
        std::os::unix::fs::symlink("../outside", files.join("link"))?;
        let at = |device| resolve_now(Place::of(device), &files);
        assert_eq!(at("inside"), Ok((files.join("inside"), true)));
        assert_eq!(at("absent"), Ok((files.join("absent"), false)));
        for bad in ["link", "..", "../outside", "a/../../outside", ""] {
            assert!(at(bad).is_err(), "{bad}");
        }
        assert!(at("/dev/disk/by-id/none").is_err());
        Ok(())
    }
}
