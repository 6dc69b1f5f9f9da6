//! Volumes on this node, from lvol to pod, in steps that can be repeated and that find their predecessor's half-done work.
//!
//! ```text
//!   lvol ──export──▶ /dev/loopN ──[mkfs] fsck mount grow──▶ staging path ──bind──▶ target path
//!                        └────────────── block ──────────────bind the node──────▶ target path
//! ```
//!
//! What is attached is known from the engine's exports and the kernel's mounts; an attach record per volume in the run
//! directory says how it was staged. After a killed process everything it exported is dead: [`Node::recover`] takes
//! the dead mounts and devices away, and the next stage or publish builds them anew.

mod expand;
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

use crate::{Error, Result};
use coppice_engine::{ErrorKind, LvolInfo, LvolKind, LvolState, Store};
use coppice_proto::turns::Turns;
use record::Records;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use uuid::Uuid;

/// How long a call waits for another call on the same volume.
const QUEUE_SECONDS_MAX: u64 = 60;

/// The volumes of this node.
pub struct Node {
    stores: Arc<[Store]>,
    exports: PathBuf,
    records: Records,
    turns: Turns,
    frozen: Mutex<HashMap<Uuid, crate::host::freeze::Frozen>>,
}

impl Node {
    /// `run_dir` belongs to this process alone.
    pub fn new(stores: Arc<[Store]>, run_dir: &Path) -> Result<Node> {
        let exports = run_dir.join("exports");
        coppice_proto::unix::private_dir(&exports)
            .map_err(|e| Error::Host(format!("make {}: {e}", exports.display())))?;
        let turns = Turns::new(Duration::from_secs(QUEUE_SECONDS_MAX));
        let records = Records::open(&run_dir.join("attached"))?;
        Ok(Node { stores, exports, records, turns, frozen: Mutex::default() })
    }

    /// Where the FUSE mounts of exports are.
    pub fn exports_dir(&self) -> &Path {
        &self.exports
    }

    /// The volume of that id, in whatever store it is.
    async fn find(&self, id: &str) -> Result<(&Store, LvolInfo)> {
        let none = || Error::NotFound(format!("there is no volume {id:?} on this node"));
        let uuid = Uuid::parse_str(id).map_err(|_| none())?;
        for store in self.stores.iter() {
            match store.lvol(uuid).await {
                Ok(lvol) if lvol.kind == LvolKind::Snapshot || lvol.state == LvolState::Hidden => return Err(none()),
                Ok(lvol) if lvol.state == LvolState::Damaged => {
                    let why = lvol.reason.unwrap_or_else(|| "its metadata does not check out".into());
                    let message =
                        format!("the volume {id} is damaged and not opened: {why}; see coppice lvstore check");
                    return Err(Error::Precondition(message));
                }
                Ok(lvol) => return Ok((store, lvol)),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(none())
    }
}
