//! Stage: lvol to mounted file system. Unstage: back.

use super::{Node, Owner, Record, prepare};
use crate::host::mount::{self, IfBusy, Options};
use crate::host::{device, grow, mkfs, mountinfo};
use crate::{Error, Result};
use coppice_engine::{ErrorKind, Export, LvolInfo, Store};
use coppice_proto::capability::{Access, Capability, Mode};
use std::path::{Path, PathBuf};
use tracing::{info, warn};
use uuid::Uuid;

impl Node {
    pub async fn stage(&self, id: &str, staging: &Path, capability: &Capability) -> Result<()> {
        check(capability)?;
        self.check_place(staging)?;
        let _turn = self.turns.take(&key(id)).await?;
        self.stage_in_turn(id, staging, capability).await?;
        Ok(())
    }

    /// Answers with the device. What is staged already, as asked, is left alone.
    pub(super) async fn stage_in_turn(&self, id: &str, staging: &Path, capability: &Capability) -> Result<PathBuf> {
        let (store, lvol) = self.find(id).await?;
        if let Some(device) = self.staged(&store, &lvol, staging, capability)? {
            return Ok(device);
        }
        let was_exported = store.export_of(lvol.uuid).is_some();
        let done = self.stage_anew(&store, &lvol, staging, capability).await;
        if done.is_err()
            && !was_exported
            && let Some(export) = store.export_of(lvol.uuid)
        {
            // A volume that could not be staged is not in use: it can be deleted.
            match export.stop().await {
                Ok(()) => self.records.remove(lvol.uuid)?,
                Err(e) => warn!(volume = %lvol.uuid, "its device stays until it is unstaged: {e}"),
            }
        }
        done
    }

    async fn stage_anew(
        &self,
        store: &Store,
        lvol: &LvolInfo,
        staging: &Path,
        capability: &Capability,
    ) -> Result<PathBuf> {
        match &capability.access {
            Access::Block => {
                let export = self.export(store, lvol, capability.mode == Mode::ReaderOnly).await?;
                self.record(lvol, staging, None, &[], &export)?;
                info!(volume = %lvol.uuid, device = %export.device().display(), "staged as a block device");
                Ok(export.device())
            }
            Access::Mount { fs_type, flags } => {
                // Writable even for readers: the journal must be replayed.
                let export = self.export(store, lvol, false).await?;
                self.mount_staged(store, lvol, staging, fs_type, flags, &export).await?;
                Ok(export.device())
            }
        }
    }

    async fn mount_staged(
        &self,
        store: &Store,
        lvol: &LvolInfo,
        staging: &Path,
        asked: &str,
        flags: &[String],
        export: &Export,
    ) -> Result<()> {
        let mut options = Options::read(flags)?;
        if let Some(there) = mountinfo::at(staging)? {
            let (at, of) = (staging.display(), there.source.display());
            match self.owner_of(&there, &lvol.uuid.to_string())? {
                // A killed process was still mounting it when this one looked.
                Owner::Dead => self.unmount_of(&lvol.uuid.to_string(), staging).await?,
                _ => return Err(Error::Precondition(format!("{at} is a mount of {of} already: unstage that first"))),
            }
        }
        let device = export.device();
        export.refresh_size().await?;
        let ready = prepare::prepare(store, lvol, &device, asked).await?;
        let fs_type = ready.fs_type.as_str();
        mkfs::check(&device, fs_type).await?;
        match fs_type {
            // A clone has its origin's UUID.
            "xfs" => options.data.push("nouuid".into()),
            "btrfs" => mkfs::check_btrfs_twin(&device, &ready.fs_uuid)?,
            _ => {}
        }
        grow::before_mount(&device, fs_type).await?;
        mount::make_dir(staging)?;
        self.record(lvol, staging, Some(fs_type), flags, export)?;
        mount::mount(&device, staging, fs_type, &options).await?;
        if grow::can_grow(&device, fs_type)?
            && let Err(e) = grow::mounted(&device, fs_type, staging).await
        {
            mount::unmount(staging, IfBusy::Refuse).await?;
            return Err(e);
        }
        info!(volume = %lvol.uuid, device = %device.display(), fs_type, staging = %staging.display(), "staged");
        Ok(())
    }

    /// The device, if the volume is staged as asked. Staged otherwise is refused; half staged is not staged.
    fn staged(&self, store: &Store, lvol: &LvolInfo, staging: &Path, asked: &Capability) -> Result<Option<PathBuf>> {
        let Some(export) = store.export_of(lvol.uuid) else { return Ok(None) };
        let Some(record) = self.records.get(lvol.uuid)? else { return Ok(None) };
        let device = export.device();
        let in_place = mountinfo::at(&record.staging)?.is_some_and(|m| m.is_of(&device, device::number(&device).ok()));
        let is_block = record.fs_type.is_none();
        if !is_block && !in_place {
            // The mount is gone (a reboot of the mount namespace, a hand): build it again.
            return Ok(None);
        }
        let differs = |what: &str| Err(Error::Exists(format!("the volume {} is staged {what}", lvol.uuid)));
        if record.staging != staging {
            return differs(&format!("at {}, not at {}", record.staging.display(), staging.display()));
        }
        match (&asked.access, &record.fs_type) {
            (Access::Block, None) if (asked.mode == Mode::ReaderOnly) == export.read_only() => Ok(Some(device)),
            (Access::Block, None) if self.mounts_of(&device)?.is_empty() => Ok(None),
            (Access::Block, None) => differs("with another access mode, and in use"),
            (Access::Mount { fs_type, .. }, Some(staged)) if fs_type.is_empty() || fs_type == staged => {
                Ok(Some(device))
            }
            (Access::Mount { fs_type, .. }, Some(staged)) => differs(&format!("as {staged}, not as {fs_type}")),
            (Access::Block, Some(staged)) => differs(&format!("as {staged}, not as a block device")),
            (Access::Mount { .. }, None) if self.mounts_of(&device)?.is_empty() => Ok(None),
            (Access::Mount { .. }, None) => differs("as a block device, and in use"),
        }
    }

    /// The block device of the lvol. One of the other kind, if nobody uses it, is replaced.
    async fn export(&self, store: &Store, lvol: &LvolInfo, read_only: bool) -> Result<Export> {
        if let Some(there) = store.export_of(lvol.uuid)
            && there.read_only() != read_only
        {
            there.stop().await?;
        }
        Ok(store.export_fuse(lvol.uuid, self.exports_dir(), read_only).await?)
    }

    fn record(
        &self,
        lvol: &LvolInfo,
        staging: &Path,
        fs_type: Option<&str>,
        options: &[String],
        export: &Export,
    ) -> Result<()> {
        self.records.put(&Record {
            uuid: lvol.uuid,
            lvstore: lvol.lvstore.clone(),
            staging: staging.to_path_buf(),
            fs_type: fs_type.map(str::to_string),
            options: options.to_vec(),
            device: export.device(),
            boot_id: device::boot_id()?,
        })
    }

    /// Where the device is mounted or bound.
    pub(super) fn mounts_of(&self, device: &Path) -> Result<Vec<mountinfo::Mount>> {
        let number = device::number(device).ok();
        Ok(mountinfo::read()?.into_iter().filter(|mount| mount.is_of(device, number)).collect())
    }

    pub async fn unstage(&self, id: &str, staging: &Path) -> Result<()> {
        self.check_place(staging)?;
        let _turn = self.turns.take(&key(id)).await?;
        let uuid = Uuid::parse_str(id).ok();
        let export = uuid.and_then(|uuid| self.stores.all().iter().find_map(|store| store.export_of(uuid)));
        if let (Some(uuid), Some(_)) = (uuid, &export)
            && let Some(record) = self.records.get(uuid)?.filter(|record| record.staging != staging)
        {
            let (at, asked) = (record.staging.display(), staging.display());
            return Err(Error::Precondition(format!("the volume {id} is staged at {at}, not at {asked}")));
        }
        if let Some(export) = &export {
            let others: Vec<String> = self
                .mounts_of(&export.device())?
                .iter()
                .filter(|mount| mount.target != staging)
                .map(|mount| mount.target.display().to_string())
                .collect();
            if !others.is_empty() {
                let message = format!("the volume {id} is still published at {}", others.join(", "));
                return Err(Error::Precondition(message));
            }
        }
        self.unmount_of(id, staging).await?;
        if let Some(export) = export {
            match export.stop().await {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        if let Some(uuid) = uuid {
            self.records.remove(uuid)?;
            info!(volume = %uuid, "unstaged");
        }
        Ok(())
    }
}

/// The key under which calls on a volume queue, however its id is written.
pub(super) fn key(id: &str) -> String {
    Uuid::parse_str(id).map_or_else(|_| id.to_string(), |uuid| uuid.to_string())
}

pub(super) fn check(capability: &Capability) -> Result<()> {
    match capability.refusal() {
        Some(why) => Err(Error::Invalid(why)),
        None => Ok(()),
    }
}
