//! The file system on an exported lvol: found, or made if there never was one.
//!
//! ```text
//!            probe
//!   ┌──────────┴───────────────┐
//!  blank                     something
//!   │ coppice.fs set? ─yes─▶ data lost: refuse         making set, fs not? ─yes─▶ our mkfs was cut off: make it again
//!   no                                                 else ─▶ it must be the file system asked for
//!   └▶ making := T, mkfs, fs := T and making removed
//! ```
//!
//! The marks are durable before the next step, and nothing is mounted before `coppice.fs` is set: so a device with only
//! `making` holds nobody's data.

use crate::host::probe::{Content, probe};
use crate::host::{device, mkfs};
use crate::{Error, Result};
use coppice_engine::{ErrorKind, LvolInfo, Store};
use coppice_proto::attributes::{CSI_FSTYPE, FS, FS_MAKING};
use coppice_proto::capability::{DEFAULT_FILE_SYSTEM, FILE_SYSTEMS};
use std::path::Path;
use tracing::warn;

/// What is ready to be mounted.
pub struct Ready {
    pub fs_type: String,
    pub fs_uuid: String,
}

/// Makes sure that `device`, the export of `lvol`, holds a file system; `asked` is empty if the caller does not care.
pub async fn prepare(store: &Store, lvol: &LvolInfo, device: &Path, asked: &str) -> Result<Ready> {
    let had = lvol.attributes.get(FS).map(String::as_str);
    let making = lvol.attributes.contains_key(FS_MAKING) && had.is_none();
    let of_class = lvol.attributes.get(CSI_FSTYPE).map(String::as_str);
    let wanted = if asked.is_empty() { had.or(of_class).unwrap_or(DEFAULT_FILE_SYSTEM) } else { asked };
    let id = lvol.uuid;
    match probe(device).await? {
        Content::Blank => {
            if let Some(had) = had {
                let message = format!(
                    "the volume {id} should hold {had} but its device {} probes as blank: it is not formatted again; \
                     restore a snapshot, or look at it with coppice lvol read",
                    device.display()
                );
                return Err(Error::Precondition(message));
            }
            make(store, lvol, device, wanted, making).await?;
        }
        Content::FileSystem { .. } | Content::PartitionTable(_) if making => {
            warn!(volume = %id, "an interrupted mkfs is done again");
            make(store, lvol, device, wanted, true).await?;
        }
        Content::PartitionTable(table) => {
            let message = format!(
                "the volume {id} holds a partition table ({table}), not a file system: use it as a block volume"
            );
            return Err(Error::Precondition(message));
        }
        Content::FileSystem { fs_type, uuid } => {
            let explicit = !asked.is_empty() && asked != fs_type;
            if explicit || !FILE_SYSTEMS.contains(&fs_type.as_str()) {
                let message =
                    format!("the volume {id} holds {fs_type}, not {wanted}: it is neither formatted nor mounted");
                return Err(Error::Precondition(message));
            }
            if had.is_none() {
                let mark = (FS.to_string(), Some(fs_type.clone()));
                store.set_attributes(id, vec![mark]).await?;
            }
            return Ok(Ready { fs_type, fs_uuid: uuid });
        }
    }
    match probe(device).await? {
        Content::FileSystem { fs_type, uuid } if fs_type == wanted => Ok(Ready { fs_type, fs_uuid: uuid }),
        other => Err(Error::Host(format!("mkfs made {wanted} on {}, which probes as {other:?}", device.display()))),
    }
}

async fn make(store: &Store, lvol: &LvolInfo, device: &Path, fs_type: &str, again: bool) -> Result<()> {
    let mark = (FS_MAKING.to_string(), Some(fs_type.to_string()));
    store.set_attributes(lvol.uuid, vec![mark]).await?;
    if let Err(e) = mkfs::make(device, fs_type, device::size(device)?, again).await {
        // Its own words for a full store are of an I/O error.
        let store = store.info().await?;
        return Err(match store.free_clusters {
            0 => Error::Engine(coppice_engine::Error::new(
                ErrorKind::NoSpace,
                format!(
                    "the lvstore {} is full, no file system can be made on the volume {}: {e}",
                    store.name, lvol.uuid
                ),
            )),
            _ => e,
        });
    }
    store.flush(lvol.uuid).await?;
    let done = vec![(FS.to_string(), Some(fs_type.to_string())), (FS_MAKING.to_string(), None)];
    store.set_attributes(lvol.uuid, done).await?;
    Ok(())
}
