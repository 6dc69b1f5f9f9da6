//! Where the parents of esnap clones are: in a lvstore that is open here, in a file, or on another node.

use coppice_engine::external::{Answer, External, FileParent, LocalParent, Resolver, Stretch, has_left};
use coppice_engine::shard::ShardHandle;
use coppice_engine::{Error, ErrorKind, Result, Stores};
use coppice_nbd::client::{self, Config, ExtentKind, Remote, State};
use coppice_nbd::tls::Certificates;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Handle;
use uuid::Uuid;

/// Says, whenever it is asked, where a snapshot is served at the moment and by whom.
pub type Whereabouts = Arc<dyn Fn(Uuid) -> client::Resolver + Send + Sync>;

/// Bytes that one request of ours asks for at most.
const REQUEST_BYTES: u32 = 1 << 20;
/// How long after a store was closed under a read it is looked who has the snapshot now.
const LOOK: Duration = Duration::from_millis(200);

/// Finds parents for the engine. What is open here is read here; a parent that is nowhere yet is waited for.
pub struct Parents {
    stores: Stores,
    /// Where to wait.
    shard: ShardHandle,
    files: BTreeMap<Uuid, PathBuf>,
    remote: Option<(Whereabouts, Certificates)>,
    runtime: Handle,
}

impl Parents {
    /// `remote`: how other nodes are reached; without it none is.
    pub fn new(
        stores: Stores,
        shard: ShardHandle,
        files: BTreeMap<Uuid, PathBuf>,
        remote: Option<(Whereabouts, Certificates)>,
        runtime: Handle,
    ) -> Parents {
        Parents { stores, shard, files, remote, runtime }
    }
}

impl Resolver for Parents {
    fn resolve(&self, parent: Uuid) -> Option<Arc<dyn External>> {
        let remote = self.remote.as_ref().map(|(whereabouts, certificates)| {
            let config = Config {
                tls: Some(certificates.clone()),
                request_bytes: REQUEST_BYTES,
                ..Config::new(parent.to_string(), whereabouts(parent))
            };
            Remote::new(config, &self.runtime)
        });
        let found = Arc::new(Parent {
            local: LocalParent::new(self.stores.clone(), parent, self.shard.clone()),
            file: self.files.get(&parent).map(|path| FileParent::new(path)),
            remote,
        });
        Some(Arc::new(Shared(found)))
    }
}

struct Parent {
    local: LocalParent,
    file: Option<FileParent>,
    remote: Option<Remote>,
}

#[derive(Clone)]
struct Shared(Arc<Parent>);

/// Who answers a call.
enum Way {
    Here(coppice_engine::Reader),
    Remote(Remote),
    Nobody,
}

impl Parent {
    async fn way(&self) -> Result<Way> {
        Ok(match (self.local.find().await?, &self.remote) {
            (Some(reader), _) => Way::Here(reader),
            (None, Some(remote)) => Way::Remote(remote.clone()),
            (None, None) => Way::Nobody,
        })
    }

    /// Asks whoever has it. A store that is closed under the question is waited for, or whoever has the snapshot then is
    /// asked.
    async fn ask<T>(&self, patience: Duration, question: impl Fn(Way, Duration) -> Answer<T>) -> Result<T> {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match question(self.way().await?, left).await {
                Err(e) if has_left(&e) && Instant::now() < until => self.local.pause(&mut LOOK.min(left)).await?,
                Err(e) if has_left(&e) => return Err(Error::new(ErrorKind::Away, e.message())),
                done => return done,
            }
        }
    }
}

impl External for Shared {
    fn size(&self, patience: Duration) -> Answer<u64> {
        if let Some(file) = &self.0.file {
            return file.size(patience);
        }
        let parent = self.0.clone();
        Box::pin(async move {
            match parent.way().await? {
                Way::Here(reader) => Ok(reader.size()),
                Way::Nobody => parent.local.size(patience).await,
                Way::Remote(remote) => {
                    if remote.size().is_none() {
                        // The first answer brings it.
                        remote.status_by(0, 1, Instant::now() + patience).await.map_err(failed)?;
                    }
                    remote.size().ok_or_else(|| Error::new(ErrorKind::Away, "the parent's size is not known yet"))
                }
            }
        })
    }

    fn read(&self, off: u64, len: usize, patience: Duration) -> Answer<bytes::Bytes> {
        if let Some(file) = &self.0.file {
            return file.read(off, len, patience);
        }
        let parent = self.0.clone();
        let local = parent.local.clone();
        let question = move |way, left| -> Answer<bytes::Bytes> {
            match way {
                Way::Here(reader) => Box::pin(async move { reader.read(off, len).await }),
                Way::Nobody => local.read(off, len, left),
                Way::Remote(remote) => Box::pin(async move {
                    let too_long = |_| Error::new(ErrorKind::Invalid, format!("{len} bytes are too many for one read"));
                    let len = u32::try_from(len).map_err(too_long)?;
                    remote.read_by(off, len, Instant::now() + left).await.map_err(failed)
                }),
            }
        };
        Box::pin(async move { parent.ask(patience, question).await })
    }

    fn status(&self, off: u64, len: u64, patience: Duration) -> Answer<Vec<Stretch>> {
        if let Some(file) = &self.0.file {
            return file.status(off, len, patience);
        }
        let parent = self.0.clone();
        let local = parent.local.clone();
        let question = move |way, left| -> Answer<Vec<Stretch>> {
            match way {
                Way::Here(reader) => Box::pin(async move { reader.status(off, len).await }),
                Way::Nobody => local.status(off, len, left),
                Way::Remote(remote) => Box::pin(async move {
                    let extents = remote.status_by(off, len, Instant::now() + left).await.map_err(failed)?;
                    let stretch = |e: client::Extent| Stretch { len: e.len, hole: e.kind != ExtentKind::Data };
                    Ok(extents.into_iter().map(stretch).collect())
                }),
            }
        };
        Box::pin(async move { parent.ask(patience, question).await })
    }

    fn away(&self) -> Option<String> {
        let parent = &self.0;
        match (&parent.file, &parent.remote) {
            (Some(file), _) => file.away(),
            (None, None) => parent.local.away(),
            (None, Some(_)) if parent.local.is_near() => None,
            (None, Some(remote)) => match remote.state() {
                State::Connected { .. } | State::Resting => None,
                State::Connecting => Some("its external parent is being connected".into()),
                State::Away { reason, .. } | State::Refused { reason, .. } => {
                    Some(format!("its external parent cannot be reached: {reason}"))
                }
            },
        }
    }
}

/// What the server says is an error of the parent; everything else, of the way to it.
fn failed(e: client::Error) -> Error {
    let kind = match &e {
        client::Error::TimedOut { .. } | client::Error::Closed | client::Error::TooMany(_) => ErrorKind::Away,
        client::Error::OutOfRange { .. } => ErrorKind::OutOfRange,
        client::Error::Server { .. } | client::Error::Protocol { .. } => ErrorKind::Io,
    };
    Error::new(kind, e.to_string())
}
