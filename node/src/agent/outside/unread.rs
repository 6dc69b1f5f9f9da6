//! The word that ends a pin: a lvstore's own, that none of its lvols reads a snapshot of another node.
//!
//! It is asked over the link by which snapshots are read, as an export that can be opened only if it is so:
//! `unread/LVSTORE/SNAPSHOT`. Whatever else comes back (no such export, no connection, another certificate) says nothing.

use super::publish::Intents;
use crate::agent::lock;
use async_trait::async_trait;
use bytes::Bytes;
use coppice_engine::Stores;
use coppice_nbd::client::{Config, Endpoint, Remote, fixed};
use coppice_nbd::server::{Source, SourceError};
use coppice_nbd::tls::Certificates;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long the other side may take.
const ANSWER_MAX: Duration = Duration::from_secs(3);
const PREFIX: &str = "unread/";
/// Of the export that is opened; what is in it says nothing.
const BYTES: u32 = 512;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unread {
    pub lvstore: Uuid,
    pub snapshot: Uuid,
}

impl Unread {
    pub fn name(&self) -> String {
        format!("{PREFIX}{}/{}", self.lvstore, self.snapshot)
    }

    pub fn parse(export: &str) -> Option<Unread> {
        let (lvstore, snapshot) = export.strip_prefix(PREFIX)?.split_once('/')?;
        Some(Unread { lvstore: Uuid::parse_str(lvstore).ok()?, snapshot: Uuid::parse_str(snapshot).ok()? })
    }

    /// Asks the node that has the lvstore, which has to prove that it is that.
    pub async fn ask(&self, at: Endpoint, certificates: Certificates) -> Result<(), String> {
        let config = Config { tls: Some(certificates), connections: 1, ..Config::new(self.name(), fixed(at)) };
        let remote = Remote::new(config, &tokio::runtime::Handle::current());
        remote.read_by(0, BYTES, Instant::now() + ANSWER_MAX).await.map(drop).map_err(|e| e.to_string())
    }
}

/// Who in the lvstores of this node reads snapshots of others, or is about to.
#[derive(Clone)]
pub struct Readers {
    pub stores: Stores,
    pub intents: Arc<Mutex<Intents>>,
}

impl Readers {
    pub fn answer(&self, Unread { lvstore, snapshot }: Unread) -> Result<(), String> {
        let store = self.stores.get(lvstore).ok_or_else(|| format!("the lvstore {lvstore} is not open here"))?;
        // In this order: who has made its lvol has no intent any more, but a parent.
        if lock(&self.intents).contains_key(&(lvstore, snapshot)) {
            return Err("a lvol that reads it is being made".into());
        }
        if !store.knows_external_parents() {
            return Err("some of its metadata cannot be read, and may name it".into());
        }
        match store.external_parents().contains(&snapshot) {
            true => Err("a lvol reads it".into()),
            false => Ok(()),
        }
    }
}

/// The export that says yes.
pub struct Yes;

#[async_trait]
impl Source for Yes {
    fn size_bytes(&self) -> u64 {
        u64::from(BYTES)
    }

    async fn read(&self, _: u64, length: u32) -> Result<Bytes, SourceError> {
        Ok(Bytes::from(vec![0; usize::try_from(length).unwrap_or(0)]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_read_as_it_was_written() {
        let what = Unread { lvstore: Uuid::from_u128(1), snapshot: Uuid::from_u128(2) };
        assert_eq!(Unread::parse(&what.name()), Some(what));
        for other in ["", "unread/", "unread/x/y", &Uuid::nil().to_string(), &format!("unread/{}", Uuid::nil())] {
            assert_eq!(Unread::parse(other), None, "{other}");
        }
    }
}
