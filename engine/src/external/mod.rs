//! Parents outside of a store: what an esnap clone reads where nobody in its own store has written.
//!
//! The metadata names such a parent by UUID, which stands for one immutable content for ever. A [`Resolver`], given with the
//! store when it is opened, turns the UUID into an [`External`]: a snapshot of another lvstore, a file, something on another
//! node. The engine only reads it, and never takes "cannot be reached" for zeroes.
//!
//! ```text
//!   lvol ─▶ Outside (how far the parent shows) ─▶ Link (one per parent and store) ─▶ External, from the Resolver
//! ```

mod file;
mod local;

pub use file::FileParent;
pub use local::{LocalParent, has_left};

use crate::error::{Result, err};
use crate::shard::sync::lock;
use bytes::Bytes;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use uuid::Uuid;

/// How long a read waits for a parent that is away.
pub const PARENT_PATIENCE: Duration = Duration::from_secs(60);

/// What a call on an external parent answers, on any executor.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

/// A part of a parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Bytes.
    pub len: u64,
    /// It is known to read as zero.
    pub hole: bool,
}

/// Stretches that follow one another, those of one kind together.
#[derive(Default)]
pub(crate) struct Stretches {
    pub all: Vec<Stretch>,
}

impl Stretches {
    pub fn add(&mut self, len: u64, hole: bool) {
        match self.all.last_mut() {
            Some(last) if last.hole == hole => last.len += len,
            _ if len > 0 => self.all.push(Stretch { len, hole }),
            _ => {}
        }
    }
}

/// An immutable device outside of the store. Calls wait for it as long as it is away, up to `patience`, and then answer
/// [`crate::ErrorKind::Away`]. What it cannot read is an error, never zeroes.
pub trait External: Send + Sync {
    /// Bytes; waits until it is known.
    fn size(&self, patience: Duration) -> Answer<u64>;
    /// Exactly `len` bytes from `off` on, which lie inside.
    fn read(&self, off: u64, len: usize, patience: Duration) -> Answer<Bytes>;
    /// What is known of a range that lies inside: stretches from `off` on that follow one another, at least one, perhaps
    /// fewer bytes than asked. What is not known is an error, or data; never a hole.
    fn status(&self, off: u64, len: u64, patience: Duration) -> Answer<Vec<Stretch>>;
    /// Why it cannot be read now; `None`: it can, as far as is known.
    fn away(&self) -> Option<String>;
}

/// Finds parents. It may answer with one that is not there yet, and that waits by itself.
pub trait Resolver: Send + Sync {
    /// `None`: nobody knows anything of such a parent.
    fn resolve(&self, parent: Uuid) -> Option<Arc<dyn External>>;
}

/// How a store reaches external parents, and copies them.
#[derive(Clone)]
pub struct Access {
    pub resolver: Option<Arc<dyn Resolver>>,
    /// How long a read waits for a parent that is away (`parent_timeout`).
    pub patience: Duration,
    /// Most bytes per second that hydration moves, over all lvols of the store; `None`: as much as there is.
    pub hydration_bytes_per_second: Option<u64>,
    /// Copies side by side per lvol.
    pub hydration_copies: usize,
}

impl Default for Access {
    fn default() -> Self {
        Access {
            resolver: None,
            patience: PARENT_PATIENCE,
            hydration_bytes_per_second: None,
            hydration_copies: HYDRATION_COPIES,
        }
    }
}

/// Copies side by side, of up to a MiB each.
const HYDRATION_COPIES: usize = 8;

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("resolver", &self.resolver.is_some())
            .field("patience", &self.patience)
            .field("hydration_bytes_per_second", &self.hydration_bytes_per_second)
            .finish_non_exhaustive()
    }
}

/// A parent as one store uses it.
pub struct Link {
    /// As the metadata names it.
    name: String,
    uuid: Option<Uuid>,
    access: Access,
    found: Mutex<Option<Arc<dyn External>>>,
    /// Bytes, once they are known: a parent never changes.
    size: OnceLock<u64>,
    /// Reads of users, not of hydration, that are on their way.
    waiting: AtomicUsize,
}

/// A read of a user, as long as it is on its way.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Link {
    /// `identity`: the value of the xattr `EXTSNAP`.
    pub fn new(identity: &[u8], access: Access) -> Arc<Link> {
        let text = String::from_utf8_lossy(identity);
        let name = text.trim_end_matches('\0').to_string();
        Arc::new(Link {
            uuid: Uuid::try_parse(&name).ok(),
            name,
            access,
            found: Mutex::new(None),
            size: OnceLock::new(),
            waiting: AtomicUsize::new(0),
        })
    }

    pub fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    fn find(&self) -> Result<Arc<dyn External>> {
        let Some(uuid) = self.uuid else {
            return Err(err!(Away, "its external parent {:?} is not named by a UUID", self.name));
        };
        let mut found = lock(&self.found);
        if let Some(external) = &*found {
            return Ok(external.clone());
        }
        let resolved = self.access.resolver.as_ref().and_then(|resolver| resolver.resolve(uuid));
        let external = resolved.ok_or_else(|| err!(Away, "its external parent {uuid} is not known here"))?;
        *found = Some(external.clone());
        Ok(external)
    }

    /// Why the parent cannot be read now.
    pub fn away(&self) -> Option<String> {
        match self.find() {
            Ok(external) => external.away(),
            Err(e) => Some(e.message().to_string()),
        }
    }

    /// Asks one that was away whether it answers, and waits for that no longer than `patience`.
    pub async fn answers(&self, patience: Duration) -> Result<()> {
        let asked = self.find()?.status(0, 1, patience.min(self.access.patience)).await;
        // What it says of itself does not change from one time to the next.
        asked.map(|_| ()).map_err(|e| match self.away() {
            Some(why) => err!(Away, "{why}"),
            None => e,
        })
    }

    pub async fn size(&self) -> Result<u64> {
        if let Some(size) = self.size.get() {
            return Ok(*size);
        }
        let size = self.find()?.size(self.access.patience).await?;
        Ok(*self.size.get_or_init(|| size))
    }

    pub async fn read(&self, off: u64, len: usize) -> Result<Bytes> {
        let bytes = self.find()?.read(off, len, self.access.patience).await?;
        if bytes.len() != len {
            return Err(err!(Io, "the external parent {} gave {} of {len} bytes at {off}", self.name, bytes.len()));
        }
        Ok(bytes)
    }

    /// As `read`, for a user: hydration makes way.
    pub async fn read_first(&self, off: u64, len: usize) -> Result<Bytes> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        self.read(off, len).await
    }

    /// Whether a user waits for it now.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Stretches for the whole range.
    pub async fn status(&self, off: u64, len: u64) -> Result<Vec<Stretch>> {
        let external = self.find()?;
        let mut found = Stretches::default();
        let mut at = 0;
        while at < len {
            let some = external.status(off + at, len - at, self.access.patience).await?;
            let before = at;
            for stretch in some {
                let n = stretch.len.min(len - at);
                at += n;
                found.add(n, stretch.hole);
            }
            if at == before {
                return Err(err!(Io, "the external parent {} does not say what it has at {}", self.name, off + at));
            }
        }
        Ok(found.all)
    }
}

/// The external parent as a lvol that carries it, and its descendants, see it.
pub struct Outside {
    pub link: Arc<Link>,
    /// Number of the lvol that carries the parent.
    pub carrier: u32,
    /// Bytes of the parent that show; behind that everything reads zero.
    visible: AtomicU64,
    /// Bytes that the parent must have, if that was written down.
    size: Option<u64>,
}

impl Outside {
    pub fn new(link: Arc<Link>, carrier: u32, visible: u64, size: Option<u64>) -> Arc<Outside> {
        Arc::new(Outside { link, carrier, visible: AtomicU64::new(visible), size })
    }

    /// Where what the parent has ends. A parent of another size than it had is not the same, or not whole: what it lacks must
    /// never be taken for zeroes.
    pub async fn end(&self) -> Result<u64> {
        let size = self.link.size().await?;
        match self.size {
            Some(wanted) if wanted != size => {
                Err(err!(Away, "the external parent {} has {size} bytes instead of {wanted}", self.link.name))
            }
            None if size == 0 => Err(err!(Away, "the external parent {} is empty", self.link.name)),
            _ => Ok(self.visible().min(size)),
        }
    }

    pub fn visible(&self) -> u64 {
        self.visible.load(Ordering::Acquire)
    }

    pub fn set_visible(&self, bytes: u64) {
        self.visible.store(bytes, Ordering::Release);
    }
}
