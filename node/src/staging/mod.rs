//! Volumes on this node, from lvol to pod, in steps that can be repeated and that find their predecessor's half-done work.
//!
//! ```text
//!   lvol ──export──▶ /dev/loopN ──[mkfs] fsck mount grow──▶ staging path ──bind──▶ target path
//!                        └────────────── block ──────────────bind the node──────▶ target path
//! ```
//!
//! What is attached is known from the engine's exports and the kernel's mounts; an attach record per volume in the run
//! directory says how it was staged. After a killed process everything it exported is dead: [`Node::recover`] takes the
//! dead devices away and [`Node::heal`] mounts anew for whoever still uses them; or the next stage or publish does.

mod expand;
mod heal;
mod prepare;
mod publish;
mod quiesce;
mod record;
mod recover;
mod stage;
mod stats;

pub use quiesce::Consistency;
pub use record::Record;
pub use stats::Usage;

use crate::host::command::blocking;
use crate::host::mount::{self, IfBusy};
use crate::host::mountinfo::Mount;
use crate::host::{device, mountinfo};
use crate::{Absent, Error, Result};
use coppice_engine::{ErrorKind, LvolInfo, LvolKind, LvolState, Store, Stores};
use coppice_proto::turns::{Turn, Turns};
use heal::Wounded;
use record::Records;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uuid::Uuid;

/// How long a call waits for another call on the same volume.
const QUEUE_SECONDS_MAX: u64 = 60;

/// Whether anybody serves an export is asked of each, for two seconds.
const DETACH_SECONDS_MAX: u64 = 60;

/// Whose a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    This,
    /// Another volume's, or nothing of this driver.
    Other,
    /// A mount of a device whose server is gone.
    Dead,
}

/// The volumes of this node.
pub struct Node {
    stores: Stores,
    absent: Absent,
    exports: PathBuf,
    records: Records,
    turns: Turns,
    /// Of which a snapshot is being taken, some of them held still; nothing else is done with them meanwhile.
    being_snapshot: Mutex<HashMap<Uuid, (Option<crate::host::freeze::Frozen>, Turn)>>,
    wounded: Mutex<Vec<Wounded>>,
}

impl Node {
    /// `run_dir` belongs to this process alone. `absent`: stores that may have volumes and are not in `stores`.
    pub fn new(stores: Stores, absent: Absent, run_dir: &Path) -> Result<Node> {
        let exports = run_dir.join("exports");
        coppice_proto::unix::private_dir(&exports)
            .map_err(|e| Error::Host(format!("make {}: {e}", exports.display())))?;
        let turns = Turns::new(Duration::from_secs(QUEUE_SECONDS_MAX));
        let records = Records::open(&run_dir.join("attached"))?;
        let (being_snapshot, wounded) = (Mutex::default(), Mutex::default());
        Ok(Node { stores, absent, exports, records, turns, being_snapshot, wounded })
    }

    fn wounded(&self) -> MutexGuard<'_, Vec<Wounded>> {
        self.wounded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a path of the driver's own run directory.
    fn check_place(&self, path: &Path) -> Result<()> {
        match self.exports.parent().is_some_and(|run_dir| path.starts_with(run_dir)) {
            true => {
                Err(Error::Invalid(format!("{} is in the driver's own run directory: use another", path.display())))
            }
            false => Ok(()),
        }
    }

    /// Unmounts the volume from `at`. Nothing is mounted there: fine; something else is: it stays.
    async fn unmount_of(&self, id: &str, at: &Path) -> Result<()> {
        let Some(there) = mountinfo::at(at)? else { return Ok(()) };
        match self.owner_of(&there, id)? {
            Owner::This => mount::unmount(at, IfBusy::Refuse).await,
            Owner::Dead => {
                mount::unmount(at, IfBusy::Detach).await?;
                self.let_go(&there).await
            }
            Owner::Other => {
                let (at, of) = (at.display(), there.source.display());
                let has = device::loops()?.into_iter().find(|(path, _)| *path == there.source);
                let has = has.map_or_else(String::new, |(_, file)| format!(" (which has {})", file.display()));
                Err(Error::Precondition(format!("{at} is a mount of {of}{has}, not of the volume {id}")))
            }
        }
    }

    /// Detaches the device of a dead mount, once that was its last.
    async fn let_go(&self, mount: &Mount) -> Result<()> {
        let Some(device) = loop_of(mount) else { return Ok(()) };
        if !self.mounts_of(&device)?.is_empty() {
            return Ok(());
        }
        let exports = self.exports.clone();
        blocking("detach a dead device", Duration::from_secs(DETACH_SECONDS_MAX), move || {
            Ok(coppice_engine::detach_dead(&exports, &device)?)
        })
        .await
    }

    /// Whose a mount is, as far as a call on the volume `id` is concerned.
    fn owner_of(&self, mount: &Mount, id: &str) -> Result<Owner> {
        let own = Uuid::parse_str(id).ok();
        for export in self.stores.all().iter().flat_map(|store| store.exports()) {
            let device = export.device();
            if mount.is_of(&device, device::number(&device).ok()) {
                return Ok(if Some(export.lvol()) == own { Owner::This } else { Owner::Other });
            }
        }
        // A loop device that no export has, and that is free, still shows one's file or, its mount gone, no path of it any
        // more, is what a killed process left.
        let Some(device) = loop_of(mount) else { return Ok(Owner::Other) };
        let ours = |file: &Path| file.starts_with(&self.exports) || coppice_engine::lost_its_mount(file);
        let foreign = device::loops()?.iter().any(|(path, file)| *path == device && !ours(file));
        Ok(if foreign { Owner::Other } else { Owner::Dead })
    }

    /// Where the FUSE mounts of exports are.
    pub fn exports_dir(&self) -> &Path {
        &self.exports
    }

    /// The volume of that id, in whatever store it is.
    async fn find(&self, id: &str) -> Result<(Store, LvolInfo)> {
        let none = || {
            let message = format!(
                "there is no volume {id:?} on this node: no lvstore here has it, and nothing is made in its place"
            );
            Error::NotFound(message)
        };
        let uuid = Uuid::parse_str(id).map_err(|_| none())?;
        for store in self.stores.all().iter() {
            match store.lvol(uuid).await {
                Ok(lvol) if lvol.kind == LvolKind::Snapshot || lvol.state == LvolState::Hidden => return Err(none()),
                Ok(lvol) if lvol.state == LvolState::Damaged => {
                    let why = lvol.reason.unwrap_or_else(|| "its metadata does not check out".into());
                    let message =
                        format!("the volume {id} is damaged and not opened: {why}; see coppice lvstore check");
                    return Err(Error::Precondition(message));
                }
                Ok(lvol) => return Ok((store.clone(), lvol)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(match self.absent.list() {
            Some(why) => Error::Unavailable(format!("the volume {id} is in no open lvstore of this node; {why}")),
            None => none(),
        })
    }
}

/// The loop device that is mounted or bound.
fn loop_of(mount: &Mount) -> Option<PathBuf> {
    let shown = if mount.fs_type == "devtmpfs" { &mount.root } else { &mount.source };
    let name = shown.file_name().and_then(|name| name.to_str()).filter(|name| name.starts_with("loop"))?;
    Some(Path::new("/dev").join(name))
}
