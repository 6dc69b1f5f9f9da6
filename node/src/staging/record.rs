//! Attach records: how each volume of this node was staged. One small JSON file per volume, replaced whole.

use crate::error::Doing;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing::warn;
use uuid::Uuid;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub uuid: Uuid,
    pub lvstore: String,
    pub staging: PathBuf,
    /// `None`: raw block.
    pub fs_type: Option<String>,
    /// Mount options as they were asked for.
    #[serde(default)]
    pub options: Vec<String>,
    pub device: PathBuf,
    /// Device names mean nothing after another boot.
    pub boot_id: String,
}

pub struct Records {
    dir: PathBuf,
    putting: Mutex<()>,
}

impl Records {
    pub fn open(dir: &Path) -> Result<Records> {
        coppice_proto::unix::private_dir(dir).doing(|| format!("make {}", dir.display()))?;
        for entry in std::fs::read_dir(dir).doing(|| format!("list {}", dir.display()))? {
            let path = entry.doing(|| format!("list {}", dir.display()))?.path();
            // A killed process was about to put it in its place.
            if path.extension().is_some_and(|extension| extension == "new") {
                std::fs::remove_file(&path).doing(|| format!("remove {}", path.display()))?;
            }
        }
        Ok(Records { dir: dir.to_path_buf(), putting: Mutex::default() })
    }

    fn path(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.json"))
    }

    /// A device belongs to one record: it was free before, so whoever else is said to have it had it once. A successor that
    /// found both would take one volume's users for the other's.
    pub fn put(&self, record: &Record) -> Result<()> {
        let _one = self.putting.lock().unwrap_or_else(PoisonError::into_inner);
        for other in self.all()?.iter().filter(|other| other.device == record.device && other.uuid != record.uuid) {
            self.remove(other.uuid)?;
        }
        let path = self.path(record.uuid);
        let new = path.with_extension("new");
        let text = serde_json::to_vec_pretty(record).map_err(|e| Error::Host(format!("attach record: {e}")))?;
        std::fs::write(&new, text).doing(|| format!("write {}", new.display()))?;
        std::fs::rename(&new, &path).doing(|| format!("write {}", path.display()))
    }

    pub fn get(&self, uuid: Uuid) -> Result<Option<Record>> {
        let path = self.path(uuid);
        match std::fs::read(&path) {
            Ok(text) => Ok(read(&path, &text)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::Host(format!("read {}: {e}", path.display()))),
        }
    }

    pub fn remove(&self, uuid: Uuid) -> Result<()> {
        let path = self.path(uuid);
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Host(format!("remove {}: {e}", path.display())))
            }
            _ => Ok(()),
        }
    }

    pub fn all(&self) -> Result<Vec<Record>> {
        let mut out = Vec::new();
        for entry in std::fs::read_dir(&self.dir).doing(|| format!("list {}", self.dir.display()))? {
            let path = entry.doing(|| format!("list {}", self.dir.display()))?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let text = std::fs::read(&path).doing(|| format!("read {}", path.display()))?;
                out.extend(read(&path, &text));
            }
        }
        Ok(out)
    }
}

/// A record that cannot be read is as good as none: the kernel knows what is mounted.
fn read(path: &Path, text: &[u8]) -> Option<Record> {
    serde_json::from_slice(text).map_err(|e| warn!(path = %path.display(), "attach record: {e}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_nonsense_is_none() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let records = Records::open(&dir.path().join("attached"))?;
        let record = Record {
            uuid: Uuid::from_u128(5),
            lvstore: "s".into(),
            staging: "/staging".into(),
            fs_type: Some("ext4".into()),
            options: vec!["noatime".into()],
            device: "/dev/loop9".into(),
            boot_id: "b".into(),
        };
        records.put(&record)?;
        records.put(&record)?;
        assert_eq!(records.get(record.uuid)?, Some(record.clone()));
        assert_eq!(records.all()?, std::slice::from_ref(&record));
        std::fs::write(records.path(Uuid::from_u128(6)), b"{")?;
        let next = Record { uuid: Uuid::from_u128(7), ..record.clone() };
        records.put(&next)?;
        assert_eq!(records.all()?, std::slice::from_ref(&next), "who had the device before has it no more");
        records.put(&record)?;
        assert_eq!(records.get(Uuid::from_u128(6))?, None);
        assert_eq!(records.all()?.len(), 1);
        std::fs::write(dir.path().join("attached/half.new"), b"{")?;
        Records::open(&dir.path().join("attached"))?;
        assert!(!dir.path().join("attached/half.new").exists(), "a half-written one goes at the next start");
        records.remove(record.uuid)?;
        records.remove(record.uuid)?;
        assert_eq!(records.get(record.uuid)?, None);
        Ok(())
    }
}
