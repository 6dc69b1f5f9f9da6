//! What the operations need from the place where lvols live.
//!
//! The words are the engine's. A backend may carry them out in this process (`local`), or write down what is wanted and
//! wait until another node has done it; the operations do not see the difference.

use super::Result;
use async_trait::async_trait;
use coppice_engine::{CreateClone, CreateLvol, CreateSnapshot, LvolInfo, StoreInfo};
use uuid::Uuid;

/// A lvstore and the node whose drive it is.
#[derive(Clone, Debug)]
pub struct Pool {
    pub info: StoreInfo,
    pub node: String,
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
    /// Durable when it answers, attributes included; nothing is left after an error.
    async fn create(&self, lvstore: &str, how: CreateLvol) -> Result<LvolInfo>;
    async fn snapshot(&self, how: CreateSnapshot, consistency: Consistency) -> Result<LvolInfo>;
    async fn clone_snapshot(&self, how: CreateClone) -> Result<LvolInfo>;
    async fn delete(&self, id: Uuid, deferred: bool) -> Result<()>;
    async fn resize(&self, id: Uuid, size: u64) -> Result<LvolInfo>;
    async fn set_attributes(&self, id: Uuid, set: Vec<(String, Option<String>)>) -> Result<LvolInfo>;
}
