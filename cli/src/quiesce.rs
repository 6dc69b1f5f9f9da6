//! Where the controller's snapshots meet the node's mounts, when both are in one process.

use async_trait::async_trait;
use coppice_controller::local::Quiesce;
use coppice_controller::volume::{Consistency, Error, Result};
use coppice_node::staging::{Consistency as NodeConsistency, Node};
use std::sync::Arc;
use uuid::Uuid;

pub struct NodeQuiesce(pub Arc<Node>);

fn error(error: coppice_node::Error) -> Error {
    match error {
        coppice_node::Error::Deadline(e) | coppice_node::Error::Queue(e) => Error::Deadline(e),
        coppice_node::Error::Engine(e) => Error::Engine(e),
        other => Error::Precondition(format!("the file system cannot be written out: {other}")),
    }
}

#[async_trait]
impl Quiesce for NodeQuiesce {
    async fn before_snapshot(&self, lvol: Uuid, how: Consistency) -> Result<()> {
        let how = match how {
            Consistency::Crash => NodeConsistency::Crash,
            Consistency::Sync => NodeConsistency::Sync,
            Consistency::Freeze => NodeConsistency::Freeze,
        };
        self.0.before_snapshot(lvol, how).await.map_err(error)
    }

    async fn after_snapshot(&self, lvol: Uuid, _: Consistency) -> Result<()> {
        self.0.after_snapshot(lvol).await.map_err(error)
    }
}
