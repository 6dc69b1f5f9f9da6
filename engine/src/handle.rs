//! The handles through which the rest of the product uses the engine: [`Engine`], [`Store`], [`Export`].
//!
//! All are cheap to clone, `Send + Sync`, and their futures run on any executor: each call is carried to the store's home
//! shard and answered from there.

use crate::api::*;
use crate::error::{Result, err};
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A running engine: its shards and the stores opened on them.
#[derive(Clone)]
pub struct Engine {}

/// An open lvstore.
#[derive(Clone)]
pub struct Store {}

/// A lvol reachable as a kernel block device. Dropping it does *not* take the device away; [`Export::stop`] does.
#[derive(Clone)]
pub struct Export {}

impl Engine {
    pub fn start(_config: EngineConfig) -> Result<Engine> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Formats `path` (a file or block device that is blank, or `force`) as a lvstore, and closes it again.
    pub async fn create_store(&self, _path: &Path, _how: CreateStore) -> Result<StoreInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Opens a lvstore. `Locked` if another opener has it.
    pub async fn open_store(&self, _path: &Path, _how: OpenStore) -> Result<Store> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Stops the shards. Stores that are still open are left as a crash would leave them; close them first.
    pub async fn shutdown(&self) {}
}

impl Store {
    pub fn uuid(&self) -> Uuid {
        Uuid::nil()
    }
    pub fn name(&self) -> String {
        String::new()
    }
    pub fn path(&self) -> PathBuf {
        PathBuf::new()
    }
    pub async fn info(&self) -> Result<StoreInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Every lvol, snapshots and hidden ones included (see `state`), ordered by creation.
    pub async fn lvols(&self) -> Result<Vec<LvolInfo>> {
        Err(err!(Unsupported, "not built yet"))
    }
    pub async fn lvol(&self, _lvol: Uuid) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    pub async fn create_lvol(&self, _how: CreateLvol) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Snapshots one or more lvols at one instant; all or none. Answers in the order of the request.
    pub async fn snapshot(&self, _how: Vec<CreateSnapshot>) -> Result<Vec<LvolInfo>> {
        Err(err!(Unsupported, "not built yet"))
    }
    pub async fn clone_snapshot(&self, _how: CreateClone) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Deletes a lvol or snapshot. A snapshot with several clones: `HasClones`, unless `deferred`, which hides it.
    /// `Busy` while it is exported or open.
    pub async fn delete(&self, _lvol: Uuid, _deferred: bool) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Rounded up to whole clusters. Shrinking an exported lvol: `Busy`.
    pub async fn resize(&self, _lvol: Uuid, _size: u64) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    pub async fn rename(&self, _lvol: Uuid, _name: &str) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Sets (`Some`) or removes (`None`) attributes in one transaction, durable when it returns.
    pub async fn set_attributes(&self, _lvol: Uuid, _set: Vec<(String, Option<String>)>) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// The lvol goes back to one of its ancestors, at once. `Busy` while exported.
    pub async fn revert(&self, _lvol: Uuid, _snapshot: Uuid) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Copies everything that is read from ancestors and cuts the link. `progress` is called now and then; `false` cancels.
    pub async fn inflate(&self, _lvol: Uuid, _progress: Box<dyn FnMut(Progress) -> bool + Send>) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// As `inflate`, but only what the direct parent owns.
    pub async fn decouple(&self, _lvol: Uuid, _progress: Box<dyn FnMut(Progress) -> bool + Send>) -> Result<LvolInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Reads bytes of a lvol or snapshot; any offset and length inside it.
    pub async fn read(&self, _lvol: Uuid, _offset: u64, _length: usize) -> Result<Vec<u8>> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Writes bytes; any offset and length inside the lvol. Not durable before `flush`.
    pub async fn write(&self, _lvol: Uuid, _offset: u64, _data: Vec<u8>) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Whole blocks; the range reads zero afterwards.
    pub async fn discard(&self, _lvol: Uuid, _offset: u64, _length: u64) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    pub async fn flush(&self, _lvol: Uuid) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Makes the lvol a kernel block device (`/dev/loopN`) by a one-file FUSE file system mounted below `dir` and a loop
    /// device with direct I/O on it. Snapshots are exported read-only. Asking again answers with the same export.
    pub async fn export_fuse(&self, _lvol: Uuid, _dir: &Path, _read_only: bool) -> Result<Export> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// The export of a lvol, if it has one.
    pub fn export_of(&self, _lvol: Uuid) -> Option<Export> {
        None
    }
    /// Verifies every invariant; online, without stopping I/O.
    pub async fn check(&self) -> Result<Vec<Finding>> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Finishes whatever is private, so that a close leaves a plain SPDK store.
    pub async fn seal(&self) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Takes up the room that the device gained.
    pub async fn grow(&self) -> Result<StoreInfo> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Everything durable, clean mark set, lock released. `Busy` while something is exported.
    pub async fn close(&self) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
}

impl Export {
    pub fn lvol(&self) -> Uuid {
        Uuid::nil()
    }
    /// `/dev/loopN`
    pub fn device(&self) -> PathBuf {
        PathBuf::new()
    }
    pub fn read_only(&self) -> bool {
        false
    }
    /// After `Store::resize`: the block device takes the new size.
    pub async fn refresh_size(&self) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
    /// Takes the device away: loop device, then FUSE mount. `Busy` while the device is mounted or open.
    pub async fn stop(&self) -> Result<()> {
        Err(err!(Unsupported, "not built yet"))
    }
}

/// Removes loop devices and FUSE mounts below `dir` that a dead process left behind. Answers with what was removed.
pub fn remove_dead_exports(_dir: &Path) -> Result<Vec<String>> {
    Err(err!(Unsupported, "not built yet"))
}
