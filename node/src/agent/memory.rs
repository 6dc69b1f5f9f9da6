//! Which stores were open on this node, noted on its disk: after a boot without the API server these are opened again, and
//! no others. A note never leads to anything being formatted or taken over: the store must be the one that is noted, and be
//! the noted cluster's.
//!
//! One small file of JSON beside the lvstores that are files, replaced as a whole. It may be lost: then stores open when the
//! API server has been asked.

use coppice_engine::device::on_thread;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use tokio::sync::Mutex;
use tracing::warn;
use uuid::Uuid;

/// Not the name of a lvstore: those do not begin with a dot.
const FILE_NAME: &str = ".opened.json";

/// A store that was open for an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    pub node: String,
    /// Of the object.
    pub uid: String,
    /// `spec.device`.
    pub device: String,
    pub store: Uuid,
    pub cluster: Uuid,
}

/// By the names of the objects.
type Notes = BTreeMap<String, Note>;

pub struct Memory {
    path: PathBuf,
    /// `None`: not read yet.
    notes: Mutex<Option<Notes>>,
}

impl Memory {
    pub fn new(file_dir: &Path) -> Memory {
        Memory { path: file_dir.join(FILE_NAME), notes: Mutex::new(None) }
    }

    pub async fn all(&self) -> Notes {
        let mut notes = self.notes.lock().await;
        self.read(&mut notes).await.clone()
    }

    pub async fn keep(&self, name: &str, note: Note) {
        self.change(|notes| notes.insert(name.into(), note.clone()) != Some(note)).await;
    }

    pub async fn forget(&self, name: &str) {
        self.change(|notes| notes.remove(name).is_some()).await;
    }

    /// `how` answers whether it changed anything.
    async fn change(&self, how: impl FnOnce(&mut Notes) -> bool) {
        let mut notes = self.notes.lock().await;
        let notes = self.read(&mut notes).await;
        if !how(notes) {
            return;
        }
        let (path, text) = (self.path.clone(), serde_json::to_vec_pretty(notes));
        let written = match text {
            Ok(text) => on_thread(move || replace(&path, &text)).await.unwrap_or_else(|e| Err(io::Error::other(e))),
            Err(e) => Err(e.into()),
        };
        if let Err(e) = written {
            warn!("{}: not written: {e}", self.path.display());
        }
    }

    async fn read<'n>(&self, notes: &'n mut Option<Notes>) -> &'n mut Notes {
        if notes.is_none() {
            let path = self.path.clone();
            let read = on_thread(move || std::fs::read(path)).await;
            *notes = Some(match read {
                Ok(Ok(text)) => serde_json::from_slice(&text).unwrap_or_else(|e| {
                    warn!("{}: not understood: {e}", self.path.display());
                    Notes::new()
                }),
                Ok(Err(e)) if e.kind() == io::ErrorKind::NotFound => Notes::new(),
                Ok(Err(e)) => self.unread(&e),
                Err(e) => self.unread(&e),
            });
        }
        notes.get_or_insert_default()
    }

    fn unread(&self, why: &dyn std::error::Error) -> Notes {
        warn!("{}: not read: {why}", self.path.display());
        Notes::new()
    }
}

/// The old content or the new one, whenever the machine loses power.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    std::fs::File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notes_outlive_the_process_and_may_be_lost() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let place = dir.path().join("made when it is needed");
        let note = Note {
            node: "n".into(),
            uid: "u".into(),
            device: "f".into(),
            store: Uuid::from_u128(1),
            cluster: Uuid::from_u128(2),
        };
        let first = Memory::new(&place);
        assert!(first.all().await.is_empty());
        first.keep("a", note.clone()).await;
        first.keep("b", note.clone()).await;
        first.forget("b").await;
        assert_eq!(Memory::new(&place).all().await, BTreeMap::from([("a".to_string(), note)]));
        std::fs::write(place.join(FILE_NAME), b"{ torn")?;
        assert!(Memory::new(&place).all().await.is_empty());
        Ok(())
    }
}
