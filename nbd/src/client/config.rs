//! What a remote device is told: which export, where its server is, how patient to be, how much to have in flight.

use crate::tls::Certificates;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => path.display().fmt(f),
        }
    }
}

/// Where the export is at the moment, and who answers there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub address: Address,
    /// The identity that the server's certificate must prove. Needed with TLS, of no use without.
    pub identity: Option<String>,
}

impl Endpoint {
    pub fn tcp(address: SocketAddr) -> Endpoint {
        Endpoint { address: Address::Tcp(address), identity: None }
    }
}

/// Says where the export is, or why that is not known; asked anew at every attempt to connect, since a server may have
/// moved. It has [`Config::connect_timeout`] to answer.
pub type Resolver = Arc<dyn Fn() -> Resolving + Send + Sync>;

/// A resolver at work.
pub type Resolving = Pin<Box<dyn Future<Output = Result<Endpoint, String>> + Send>>;

/// A resolver that always gives the same answer.
pub fn fixed(endpoint: Endpoint) -> Resolver {
    Arc::new(move || {
        let endpoint = endpoint.clone();
        Box::pin(async move { Ok(endpoint) })
    })
}

/// See the fields; [`Config::new`] gives the defaults.
#[derive(Clone)]
pub struct Config {
    /// The export's name: the UUID of a snapshot, where the server is ours.
    pub export: String,
    pub resolver: Resolver,
    /// Without it the connection is plain, and whoever answers is believed.
    pub tls: Option<Certificates>,
    /// What the export's size must be, bytes. Without it the first server's word is taken, and held to afterwards.
    pub size: Option<u64>,
    /// A writable export is refused, as it would change under its reader.
    pub read_only: bool,

    /// How long a request waits for its answer, server away or not. 60 s.
    pub timeout: Duration,
    /// For finding the server and a connection to it. 5 s.
    pub connect_timeout: Duration,
    /// For TLS and the negotiation, when connected. 5 s.
    pub handshake_timeout: Duration,
    /// A connection that owes answers and has said nothing for so long is suspect: what it owes is asked elsewhere. After
    /// three times as long it is given up. 5 s.
    pub silence: Duration,
    /// Pause before a second attempt to connect; it doubles with each. 100 ms.
    pub retry_min: Duration,
    /// The longest pause while a request waits. 2 s.
    pub retry_max: Duration,
    /// The longest pause while nobody waits. 15 s.
    pub retry_idle_max: Duration,
    /// Pause after a server that was refused. 30 s.
    pub retry_refused: Duration,
    /// Connections beyond the first are closed when idle for so long. 30 s.
    pub idle_timeout: Duration,
    /// The last one, too, when idle for so long; the next request brings it back. Servers have only so many places. 60 s.
    pub rest_timeout: Duration,

    /// Connections at most, if the server allows several; at rest there is one, and then none. 4.
    pub connections: usize,
    /// Requests that the server has at once, over all connections. 64.
    pub requests: usize,
    /// Bytes that it was asked for and has not sent, over all connections: the most memory that answers take. 16 MiB.
    pub bytes: u64,
    /// Larger reads are split. 1 MiB.
    pub request_bytes: u32,
    /// Smaller reads near another are enlarged to whole units of this many bytes, aligned; a power of two, or 0 for never.
    /// 64 KiB.
    pub readahead_bytes: u32,
    /// For what was read ahead. 4 MiB, given back after some seconds without reads.
    pub cache_bytes: usize,
}

impl Config {
    pub fn new(export: impl Into<String>, resolver: Resolver) -> Config {
        Config {
            export: export.into(),
            resolver,
            tls: None,
            size: None,
            read_only: true,
            timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(5),
            silence: Duration::from_secs(5),
            retry_min: Duration::from_millis(100),
            retry_max: Duration::from_secs(2),
            retry_idle_max: Duration::from_secs(15),
            retry_refused: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            rest_timeout: Duration::from_secs(60),
            connections: 4,
            requests: 64,
            bytes: 16 << 20,
            request_bytes: 1 << 20,
            readahead_bytes: 64 << 10,
            cache_bytes: 4 << 20,
        }
    }
}
