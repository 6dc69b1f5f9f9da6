//! Users of a volume whose device died with a killed process: they see I/O errors until their file system is mounted anew.
//!
//! Their dead mounts stay where they are, and the new one goes on top. Were they taken away, a container that kubelet starts
//! again in its pod would find the empty directory below, on the node's own disk, and a database would begin anew in there.
//! A raw block device cannot be replaced under its users: it answers errors until the volume is published elsewhere.

use super::stage::key;
use super::{Node, Record};
use crate::Result;
use crate::host::mount::{self, Options};
use crate::host::mountinfo::{self, Mount};
use coppice_proto::capability::{Access, Capability, Mode};
use std::sync::Arc;
use std::time::Duration;
use tracing::{info, warn};

/// How long what cannot be healed now is left alone: its lvstore may not be open yet.
const PAUSE: Duration = Duration::from_secs(5);

/// A volume and the dead mounts of its users.
pub(super) struct Wounded {
    pub record: Record,
    pub users: Vec<Mount>,
    /// Said already.
    pub failure: String,
}

impl Record {
    /// Whether a mount of the volume is a user's. Where kubelet keeps parts of volumes for containers (`subPath`), it looks
    /// anew for each.
    pub(super) fn is_user(&self, mount: &Mount) -> bool {
        let is_part = mount.target.components().any(|part| part.as_os_str() == "volume-subpaths");
        mount.target != self.staging && !is_part
    }
}

impl Node {
    /// Goes on until no user of a volume has only a dead mount.
    pub async fn heal(self: Arc<Node>) {
        loop {
            let mut left = Vec::new();
            let all = std::mem::take(&mut *self.wounded());
            for mut wounded in all {
                if let Err(e) = self.heal_one(&wounded).await {
                    let failure = e.to_string();
                    if failure != wounded.failure {
                        warn!(volume = %wounded.record.uuid, "its users still see I/O errors: {failure}");
                        wounded.failure = failure;
                    }
                    left.push(wounded);
                }
            }
            if left.is_empty() {
                return;
            }
            self.wounded().extend(left);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn heal_one(&self, Wounded { record, users, .. }: &Wounded) -> Result<()> {
        let id = record.uuid.to_string();
        let _turn = self.turns.take(&key(&id)).await?;
        let mut waiting = Vec::new();
        for user in users {
            // Gone, or published anew.
            if mountinfo::at(&user.target)?.is_some_and(|now| now == *user) {
                waiting.push(user);
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let access =
            Access::Mount { fs_type: record.fs_type.clone().unwrap_or_default(), flags: record.options.clone() };
        self.stage_in_turn(&id, &record.staging, &Capability { access, mode: Mode::Writer }).await?;
        for user in waiting {
            mount::bind(&record.staging, &user.target, &Options::read(&user.options)?, user.read_only()).await?;
            info!(volume = id, target = %user.target.display(), "mounted anew: a container that starts now has its data");
        }
        Ok(())
    }
}
