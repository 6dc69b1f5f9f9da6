//! What the operations need from the place where lvols live.
//!
//! The words are the engine's. A backend may carry them out in this process (`local`), or write down what is wanted and
//! wait until another node has done it; the operations do not see the difference.

use super::{Error, Result, Source};
use async_trait::async_trait;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, LvolInfo};
use uuid::Uuid;

/// A lvstore, as far as placing volumes goes. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Pool {
    /// What its lvols give as their `lvstore`; no other lvstore has it.
    pub key: String,
    /// The name that classes ask for; lvstores of other nodes may have the same.
    pub name: String,
    /// The node whose drive it is.
    pub node: String,
    pub cluster_size: u64,
    /// A larger volume could never be filled, even if it were alone.
    pub largest: u64,
    /// What a new volume can count on.
    pub free: u64,
    /// Sizes of all its lvols together; 0 where nobody keeps account.
    pub committed: u64,
    /// Takes new volumes: neither read-only nor failed nor cordoned.
    pub open: bool,
}

/// What a snapshot of a mounted volume holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// What a power cut would have left.
    Crash,
    /// The file system is written out first.
    #[default]
    Sync,
    /// The file system stands still while the snapshot is taken.
    Freeze,
}

#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// All lvstores, also those without room.
    async fn pools(&self) -> Result<Vec<Pool>>;
    /// Every lvol of every lvstore, hidden ones included.
    async fn lvols(&self) -> Result<Vec<LvolInfo>>;
    async fn lvol(&self, id: Uuid) -> Result<Option<LvolInfo>>;
    /// Durable when it answers, attributes included; nothing is left after a final error. This and the two that follow may
    /// find that the request's name has a lvol already, and then answer with that one, whose id is another: the caller
    /// looks at it, and waits with `made`.
    async fn create(&self, lvstore: &str, how: CreateLvol) -> Result<LvolInfo>;
    async fn snapshot(&self, how: CreateSnapshot, consistency: Consistency) -> Result<LvolInfo>;
    /// Clones the source, whose id `how.snapshot` repeats. Of a volume, as it is at some moment of the call; nothing that was
    /// taken for it is seen, or left after an error.
    async fn clone_lvol(&self, source: Source, how: CreateClone) -> Result<LvolInfo>;
    /// Whether [`Backend::clone_elsewhere`] works.
    fn clones_elsewhere(&self) -> bool {
        false
    }
    /// As `clone_lvol`, but into another lvstore than the source's. It can be used when this answers, and reads what it has
    /// not copied yet from where the source is; how long the answer waits, [`coppice_proto::attributes::CSI_RESTORE`] says.
    async fn clone_elsewhere(&self, lvstore: &str, _source: Source, how: CreateClone) -> Result<LvolInfo> {
        Err(Error::NoSpace(format!("the source {} cannot be cloned into the lvstore {lvstore}", how.snapshot)))
    }
    /// A volume that its request finds on a node where it does not want it: removes it, if it was never handed out. False if
    /// it stays.
    async fn make_way(&self, _id: Uuid) -> Result<bool> {
        Ok(false)
    }
    async fn delete(&self, id: Uuid, deferred: bool) -> Result<()>;
    async fn resize(&self, id: Uuid, size: u64) -> Result<LvolInfo>;
    /// Waits until what an earlier try began is complete.
    async fn made(&self, id: Uuid) -> Result<LvolInfo> {
        self.lvol(id).await?.ok_or_else(|| Error::MayExist(format!("the lvol {id} is gone again: try again")))
    }
    /// Finishes or undoes what a killed predecessor left. Answers with how much that was.
    async fn recover(&self) -> Result<usize> {
        Ok(0)
    }
    async fn set_attributes(&self, id: Uuid, set: Vec<(String, Option<String>)>) -> Result<LvolInfo>;
}
