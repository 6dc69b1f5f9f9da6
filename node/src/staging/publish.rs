//! Publish: bind what is staged to where one user expects it. Unpublish: take it away.

use super::stage::{check, key};
use super::{Node, Owner};
use crate::host::mount::{self, Options};
use crate::host::{device, mountinfo};
use crate::{Error, Result};
use coppice_proto::capability::{Access, Capability, Mode};
use std::path::Path;
use tracing::info;
use uuid::Uuid;

impl Node {
    /// Stages first, if the staging mount is gone.
    pub async fn publish(
        &self,
        id: &str,
        staging: &Path,
        target: &Path,
        capability: &Capability,
        read_only: bool,
    ) -> Result<()> {
        check(capability)?;
        self.check_place(staging)?;
        self.check_place(target)?;
        if staging == target {
            return Err(Error::Invalid(format!("staging and target path are the same: {}", target.display())));
        }
        let _turn = self.turns.take(&key(id)).await?;
        let (flags, is_block): (&[String], bool) = match &capability.access {
            Access::Mount { flags, .. } => (flags, false),
            Access::Block => (&[], true),
        };
        let options = Options::read(flags)?;
        let read_only = read_only || options.read_only || capability.mode == Mode::ReaderOnly;
        // A read-only bind does not make a block device read-only: the device itself is, for all who use it at that time.
        let device = match is_block && read_only {
            true => {
                let reader = Capability { mode: Mode::ReaderOnly, ..capability.clone() };
                self.stage_in_turn(id, staging, &reader).await?
            }
            false => self.stage_in_turn(id, staging, capability).await?,
        };
        let number = device::number(&device).ok();
        let there = mountinfo::at(target)?;
        let is_mounted = there.is_some();
        match there {
            Some(there) if there.is_of(&device, number) => {
                if there.read_only() != read_only && !is_block {
                    let how = if there.read_only() { "read-only" } else { "writable" };
                    let at = target.display();
                    return Err(Error::Exists(format!("the volume {id} is published at {at} already, {how}")));
                }
                return Ok(());
            }
            Some(there) if self.owner_of(&there, id)? != Owner::Dead => {
                let (at, of) = (target.display(), there.source.display());
                return Err(Error::Precondition(format!("{at} is a mount of {of} already: unpublish that first")));
            }
            // A dead device cannot be replaced by another, but a dead file system is covered: the target is never bare.
            Some(_) if is_block => self.unmount_of(id, target).await?,
            Some(_) | None => {}
        }
        if capability.mode == Mode::SingleWriter {
            let other = self.mounts_of(&device)?.into_iter().find(|m| m.target != staging && m.target != target);
            if let Some(other) = other {
                let at = other.target.display();
                let message = format!("the volume {id} is for a single user and published at {at} already");
                return Err(Error::Precondition(message));
            }
        }
        if is_block {
            mount::make_file(target)?;
            mount::bind(&device, target, &options, false).await?;
        } else {
            match mount::make_dir(target) {
                // A file system that is dead does not even say what it is mounted on.
                Err(Error::Host(_)) if is_mounted => {}
                made => made?,
            }
            mount::bind(staging, target, &options, read_only).await?;
        }
        info!(volume = id, target = %target.display(), read_only, "published");
        Ok(())
    }

    /// Unmounts and removes the target. Works without the volume, and when its device is dead.
    pub async fn unpublish(&self, id: &str, target: &Path) -> Result<()> {
        self.check_place(target)?;
        let _turn = self.turns.take(&key(id)).await?;
        if let Some(record) = Uuid::parse_str(id).ok().map(|uuid| self.records.get(uuid)).transpose()?.flatten()
            && record.staging == target
        {
            let message = format!("the volume {id} is staged at {}, not published: unstage it", target.display());
            return Err(Error::Precondition(message));
        }
        self.unmount_of(id, target).await?;
        mount::remove_target(target)?;
        info!(volume = id, target = %target.display(), "unpublished");
        Ok(())
    }
}
