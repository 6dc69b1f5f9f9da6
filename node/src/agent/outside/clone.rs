//! Making a lvol that reads a snapshot of another lvstore. Many that wait for one that is away are in nobody's way: what takes
//! long has its turn (`turns`).

use super::super::Agent;
use super::super::turns::Looking;
use super::identity::certifiable;
use super::publish::Origin;
use coppice_controller::volume::Error;
use coppice_engine::{CreateExternalClone, ErrorKind, LvolInfo, Store};
use coppice_kube_api::{EXTERNAL_PARENTS_MAX, Outside};
use coppice_nbd::client::{Config, Remote, State};
use coppice_proto::attributes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tracing::warn;
use uuid::Uuid;

/// How long the other node may take to serve the snapshot, until the object says what is waited for; it is tried again.
const SERVED_MAX: Duration = Duration::from_secs(8);
/// The part of it that everybody has, at a source that was not silent; usually that is enough.
const BRIEF: Duration = Duration::from_secs(1);
/// Between two tries.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(250);

fn away(message: String) -> Error {
    coppice_engine::Error::new(ErrorKind::Away, message).into()
}

fn unread(of: Outside<'_>, why: &str) -> Error {
    away(format!("the snapshot {} on the node {} cannot be read: {why}", of.snapshot, of.node))
}

/// Where the snapshot is read.
enum Way {
    Here,
    Remote(Remote),
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
        let silence = self.turns.silence(of.lvstore);
        let looking = silence.as_ref().and_then(|_| self.turns.look(of.lvstore));
        if let (Some(why), None) = (silence, &looking) {
            return Err(unread(of, &why));
        }
        let origin = Origin { lvstore: of.lvstore, node: Some(of.node.to_string()) };
        how.attributes.insert(attributes::OUTSIDE.into(), origin.to_attribute(of.snapshot));
        let _intent = self.intend(store.uuid(), of.snapshot, origin);
        self.publish(store).await.map_err(|e| Error::MayExist(format!("its Lvstore object cannot be written: {e}")))?;
        let parent_size = self.served(store, of, looking).await?;
        how.size = Some(size.max(parent_size));
        Ok(store.clone_external(how).await?)
    }

    /// Waits until the snapshot can be read, briefly or as long as one may who is `looking`. Its size.
    async fn served(&self, store: &Store, of: Outside<'_>, mut looking: Option<Looking<'_>>) -> Result<u64, Error> {
        let began = Instant::now();
        let way = self.way_to(of)?;
        loop {
            let limit = if looking.is_some() { SERVED_MAX } else { BRIEF };
            let (why, silent) = match self.try_read(store, of, &way, began + limit).await {
                Ok(size) => {
                    self.answers(of);
                    return Ok(size);
                }
                Err(no) => no,
            };
            match silent {
                true => self.turns.is_silent(of.lvstore, why.clone()),
                false => self.answers(of),
            }
            if looking.is_some() {
                return Err(unread(of, &why));
            }
            looking = self.turns.look(of.lvstore);
            if looking.is_none() {
                return Err(unread(of, &why));
            }
        }
    }

    fn answers(&self, of: Outside<'_>) {
        if self.turns.answers(of.lvstore) {
            self.changed.notify_one();
        }
    }

    fn way_to(&self, of: Outside<'_>) -> Result<Way, Error> {
        if self.config.stores.get(of.lvstore).is_some() {
            return Ok(Way::Here);
        }
        certifiable(&self.config.node).map_err(away)?;
        // Never without: whoever answers would be believed.
        let Some(certificates) = self.outside.certificates.clone() else {
            return Err(away("this node has nothing to prove who it is: the log of its agent says why".into()));
        };
        let config = Config {
            tls: Some(certificates),
            connections: 1,
            retry_min: PAUSE_MIN,
            retry_max: PAUSE_MAX,
            retry_refused: PAUSE_MAX,
            ..Config::new(of.snapshot.to_string(), (self.whereabouts)(of.snapshot))
        };
        Ok(Way::Remote(Remote::new(config, &tokio::runtime::Handle::current())))
    }

    /// Its size; or why it cannot be read, and whether that is because nobody answers.
    async fn try_read(&self, store: &Store, of: Outside<'_>, way: &Way, until: Instant) -> Result<u64, (String, bool)> {
        let Way::Remote(remote) = way else {
            return self.pinned_here(store, of, until).await.map_err(|why| (why, false));
        };
        let mut certified = self.outside.certified.subscribe();
        if tokio::time::timeout_at(until.into(), certified.wait_for(|yes| *yes)).await.is_err() {
            return Err(("this node has no certificate yet: the controller signs it".into(), true));
        }
        let asked = remote.status_by(0, 1, until).await;
        match (asked, remote.size()) {
            (Ok(_), Some(size)) => Ok(size),
            (asked, _) => Err(match remote.state() {
                State::Away { reason, .. } => (reason, true),
                // It is there, and says no.
                State::Refused { reason, .. } => (reason, false),
                _ => (asked.err().map_or_else(|| "it does not say its size".into(), |e| e.to_string()), true),
            }),
        }
    }

    /// In another lvstore of this node: there it is pinned by ourselves.
    async fn pinned_here(&self, store: &Store, of: Outside<'_>, until: Instant) -> Result<u64, String> {
        loop {
            let there = self.config.stores.get(of.lvstore);
            let lvol = there.and_then(|there| there.lvstore().lvol(of.snapshot).ok());
            match lvol.filter(|lvol| lvol.pins.iter().any(|pin| pin.lvstore == store.uuid())) {
                Some(lvol) => return Ok(lvol.size),
                None if Instant::now() < until => tokio::time::sleep(PAUSE_MIN).await,
                None => return Err("it is not pinned yet".into()),
            }
        }
    }

    /// Before lvols are removed: whoever is to read one of them has it pinned.
    pub async fn secure(&self, lvols: &[Uuid]) -> Result<(), Error> {
        if self.outside.export.is_none() || lvols.is_empty() {
            return Ok(());
        }
        self.pin_readers_of(lvols).await.map_err(|e| {
            warn!(?lvols, "not removed yet: {e}");
            Error::MayExist(format!("it is not known who reads it: {e}"))
        })
    }
}
