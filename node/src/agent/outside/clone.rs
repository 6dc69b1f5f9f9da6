//! Making a lvol that reads a snapshot of another lvstore.

use super::super::Agent;
use super::publish::Origin;
use coppice_controller::volume::Error;
use coppice_engine::{CreateExternalClone, ErrorKind, LvolInfo, Store};
use coppice_kube_api::{EXTERNAL_PARENTS_MAX, Lvol, Outside};
use coppice_nbd::client::{Config, Remote};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;
use uuid::Uuid;

/// How long the other node may take to serve the snapshot, until the object says what is waited for; it is tried again.
const SERVED_MAX: Duration = Duration::from_secs(8);
/// Between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(250);

fn away(message: String) -> Error {
    coppice_engine::Error::new(ErrorKind::Away, message).into()
}

impl Agent {
    /// `how` without size: `size` is the least. When this answers, the lvol is there and its store's object names the
    /// snapshot.
    pub async fn clone_outside(
        self: &Arc<Self>,
        store: &Store,
        of: Outside<'_>,
        mut how: CreateExternalClone,
        size: u64,
    ) -> Result<LvolInfo, Error> {
        if self.outside.export.is_none() {
            return Err(away("this node reads no snapshots of others: it has no address for its own".into()));
        }
        let known = store.external_parents();
        if known.len() >= EXTERNAL_PARENTS_MAX && !known.contains(&of.snapshot) {
            let message =
                format!("its lvstore reads {EXTERNAL_PARENTS_MAX} snapshots of others: more are not possible");
            return Err(coppice_engine::Error::new(ErrorKind::NoSpace, message).into());
        }
        let origin = Origin { lvstore: of.lvstore, node: Some(of.node.to_string()) };
        let _intent = self.intend(store.uuid(), of.snapshot, origin);
        self.publish(store).await.map_err(|e| Error::MayExist(format!("its Lvstore object cannot be written: {e}")))?;
        let parent_size = self.served(store, of).await?;
        how.size = Some(size.max(parent_size));
        Ok(store.clone_external(how).await?)
    }

    /// Waits until the snapshot can be read. Its size.
    async fn served(&self, store: &Store, of: Outside<'_>) -> Result<u64, Error> {
        let until = Instant::now() + SERVED_MAX;
        if self.config.stores.get(of.lvstore).is_some() {
            return self.pinned_here(store, of, until).await;
        }
        let _ = tokio::time::timeout_at(until.into(), self.outside.certified.subscribe().wait_for(|yes| *yes)).await;
        let config = Config {
            tls: self.outside.certificates.clone(),
            connections: 1,
            retry_min: PAUSE_MIN,
            retry_max: PAUSE_MAX,
            retry_refused: PAUSE_MAX,
            ..Config::new(of.snapshot.to_string(), (self.whereabouts)(of.snapshot))
        };
        let remote = Remote::new(config, &tokio::runtime::Handle::current());
        let asked = remote.status_by(0, 1, until).await;
        match (asked, remote.size()) {
            (Ok(_), Some(size)) => Ok(size),
            (asked, _) => {
                let why = match remote.state() {
                    coppice_nbd::client::State::Away { reason, .. }
                    | coppice_nbd::client::State::Refused { reason, .. } => reason,
                    _ => asked.err().map_or_else(|| "it does not say its size".into(), |e| e.to_string()),
                };
                Err(away(format!("the snapshot {} on the node {} cannot be read: {why}", of.snapshot, of.node)))
            }
        }
    }

    /// In another lvstore of this node: there it is pinned by ourselves.
    async fn pinned_here(&self, store: &Store, of: Outside<'_>, until: Instant) -> Result<u64, Error> {
        loop {
            let there = self.config.stores.get(of.lvstore);
            let lvol = there.and_then(|there| there.lvstore().lvol(of.snapshot).ok());
            match lvol.filter(|lvol| lvol.pins.iter().any(|pin| pin.lvstore == store.uuid())) {
                Some(lvol) => return Ok(lvol.size),
                None if Instant::now() < until => tokio::time::sleep(PAUSE_MIN).await,
                None => return Err(away(format!("the snapshot {} is not pinned yet", of.snapshot))),
            }
        }
    }

    /// Before a snapshot is removed: whoever is to read it has it pinned.
    pub async fn secure(&self, object: &Lvol) -> Result<(), Error> {
        if self.outside.export.is_none() {
            return Ok(());
        }
        let snapshot: Uuid = object.spec.lvol_uuid;
        self.pin_readers_of(snapshot).await.map_err(|e| {
            warn!(%snapshot, "not removed yet: {e}");
            Error::MayExist(format!("it is not known who reads it: {e}"))
        })
    }
}
