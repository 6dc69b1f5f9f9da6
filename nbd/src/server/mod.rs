//! The NBD server: exports, for peers that may open them, over TCP with mutual TLS or over a unix socket.
//!
//! ```text
//! Listener ─▶ registry: a place? ─▶ negotiate ─▶ TLS ─▶ negotiate ─▶ transmit ─▶ Source
//!                                   (Exports decide what a peer may see)
//! ```
//!
//! * Over TCP nothing is answered before TLS is up and the peer has shown a valid certificate, not even names of exports;
//!   there is no TCP without TLS. Over a unix socket everyone who may open it is [`Identity::Local`].
//! * An export that a peer may not open looks to it exactly as one that does not exist.
//! * What is not known is an error, never a hole; what cannot be read is an error at its offset, never zeroes.
//! * Everything has a limit: [`Limits`]. A peer that is slow, dead or hostile costs its own connection.
//! * A connection keeps what it was granted when it was opened. Whoever takes a right away ends the connections that had it:
//!   [`Server::close`].

mod budget;
mod exports;
mod limits;
mod negotiate;
mod registry;
mod request;
mod socket;
mod transmit;
mod writer;

pub use exports::{BASE_ALLOCATION, Exports, Identity, Listed, Peer, Refusal, Source, SourceError, ZeroMode};
pub use limits::{Limits, LimitsError};
pub use registry::Connection;

use crate::tls::{self, Certificates};
use budget::Budget;
use negotiate::{Agreed, Negotiation, NegotiationError, Outcome};
use registry::{Place, Registry};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use transmit::{End, transmit};

/// How long nothing is accepted after accepting failed, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Failed negotiations are worth one warning in so much time.
const LOUD_EVERY: Duration = Duration::from_secs(10);

/// Time for what comes after the draining of connections when a server stops.
const STOP_SLACK: Duration = Duration::from_secs(5);

/// Where clients connect.
#[derive(Debug)]
pub enum Listener {
    /// With TLS, always.
    Tcp { listener: TcpListener, certificates: Certificates },
    /// Without. Who may open the socket's file may open everything that `Exports` has for [`Identity::Local`].
    Unix(UnixListener),
}

/// What has happened since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that were accepted.
    pub accepted: u64,
    /// Of those, closed at once because there were too many.
    pub turned_away: u64,
    /// Negotiations that failed, TLS included.
    pub negotiations_failed: u64,
    /// Connections that came to transmission.
    pub served: u64,
}

#[derive(Default)]
struct Counters {
    accepted: AtomicU64,
    turned_away: AtomicU64,
    negotiations_failed: AtomicU64,
    served: AtomicU64,
}

/// What all connections share.
struct Shared {
    exports: Arc<dyn Exports>,
    limits: Arc<Limits>,
    registry: Arc<Registry>,
    total: Arc<Semaphore>,
    counters: Counters,
    loud: Loud,
}

/// A server that runs. Dropped, it ends at once; [`Server::stop`] lets requests finish.
pub struct Server {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    /// The task that accepts, and owns all others.
    accepting: AsyncMutex<JoinHandle<()>>,
    cut_off: AbortHandle,
}

impl Server {
    /// Serves on `listener`, in tasks of the present tokio runtime.
    pub fn start(listener: Listener, exports: Arc<dyn Exports>, limits: Limits) -> Result<Self, LimitsError> {
        limits.check()?;
        let limits = Arc::new(limits);
        let shared = Arc::new(Shared {
            exports,
            registry: Registry::new(Arc::clone(&limits)),
            total: budget::total(limits.total_bytes_max),
            limits,
            counters: Counters::default(),
            loud: Loud::default(),
        });
        let (stop, stopping) = watch::channel(false);
        let accepting = tokio::spawn(accept(Arc::clone(&shared), listener, stopping));
        let cut_off = accepting.abort_handle();
        Ok(Self { shared, stop, accepting: AsyncMutex::new(accepting), cut_off })
    }

    /// The connections in transmission.
    pub fn connections(&self) -> Vec<Connection> {
        self.shared.registry.list()
    }

    /// Ends connections, such as those of a peer whose right to an export has ended; requests in flight are answered.
    /// Returns how many.
    pub fn close(&self, which: impl Fn(&Connection) -> bool) -> usize {
        self.shared.registry.close(which)
    }

    pub fn counts(&self) -> Counts {
        let Counters { accepted, turned_away, negotiations_failed, served } = &self.shared.counters;
        Counts {
            accepted: accepted.load(Ordering::Relaxed),
            turned_away: turned_away.load(Ordering::Relaxed),
            negotiations_failed: negotiations_failed.load(Ordering::Relaxed),
            served: served.load(Ordering::Relaxed),
        }
    }

    /// Accepts no more, answers what is in flight, closes everything. Takes at most `Limits::drain_max` and a little.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        self.shared.registry.stop();
        let max = self.shared.limits.drain_max + STOP_SLACK;
        let ended = async {
            let mut accepting = self.accepting.lock().await;
            // One that has been waited for before must not be again.
            if !accepting.is_finished() {
                let _ = (&mut *accepting).await;
            }
        };
        if timeout(max, ended).await.is_err() {
            tracing::warn!("connections did not end in time, and were cut off");
            self.cut_off.abort();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The tasks of the connections go with the set that this task owns.
        self.cut_off.abort();
    }
}

async fn accept(shared: Arc<Shared>, listener: Listener, mut stopping: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept_one(&listener) => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
        match shared.registry.admit(address) {
            Ok(place) => {
                connections.spawn(serve(Arc::clone(&shared), stream, address, place));
            }
            Err(full) => {
                shared.counters.turned_away.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(?address, "turned away: {full}");
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// A connection that has been accepted.
enum Stream {
    Tcp(TcpStream, Certificates),
    Unix(UnixStream),
}

async fn accept_one(listener: &Listener) -> io::Result<(Stream, Option<SocketAddr>)> {
    match listener {
        Listener::Tcp { listener, certificates } => {
            let (tcp, address) = listener.accept().await?;
            Ok((Stream::Tcp(tcp, certificates.clone()), Some(address)))
        }
        Listener::Unix(listener) => Ok((Stream::Unix(listener.accept().await?.0), None)),
    }
}

/// Why there is no transmission.
#[derive(Debug, thiserror::Error)]
enum SetupError {
    #[error(transparent)]
    Negotiation(#[from] NegotiationError),
    #[error("the TLS handshake failed: {0}")]
    Handshake(io::Error),
    #[error("the TLS handshake took too long")]
    HandshakeTimeout,
    #[error(transparent)]
    Identity(#[from] tls::TlsError),
    #[error("the negotiation took too long")]
    Timeout,
    #[error("the socket cannot be set up: {0}")]
    Socket(io::Error),
}

/// One connection, from the greeting to its end.
async fn serve(shared: Arc<Shared>, stream: Stream, address: Option<SocketAddr>, place: Place) {
    let negotiation_max = shared.limits.negotiation_max;
    let negotiated = async {
        Ok(match stream {
            Stream::Unix(unix) => negotiate_unix(&shared, &place, unix).await?.map(Ready::Unix),
            Stream::Tcp(tcp, certificates) => {
                let ready = negotiate_tls(&shared, &place, tcp, &certificates, address).await?;
                ready.map(|(tls, agreed)| Ready::Tls(Box::new(tls), agreed))
            }
        })
    };
    let negotiated = tokio::select! {
        negotiated = timeout(negotiation_max, negotiated) => negotiated.unwrap_or(Err(SetupError::Timeout)),
        () = place.stop() => return,
    };
    match negotiated {
        Ok(Some(Ready::Unix((unix, agreed)))) => run(&shared, &place, unix, *agreed).await,
        Ok(Some(Ready::Tls(tls, agreed))) => run(&shared, &place, tls, *agreed).await,
        Ok(None) => {}
        Err(e) => {
            shared.counters.negotiations_failed.fetch_add(1, Ordering::Relaxed);
            // Anybody can cause these, as often as they like.
            if shared.loud.now() {
                tracing::warn!(?address, "a client came to no transmission: {e}");
            } else {
                tracing::debug!(?address, "a client came to no transmission: {e}");
            }
        }
    }
}

/// A connection that has come to transmission.
enum Ready {
    Unix((UnixStream, Box<Agreed>)),
    Tls(Box<TlsStream<TcpStream>>, Box<Agreed>),
}

async fn negotiate_unix(
    shared: &Shared,
    place: &Place,
    mut unix: UnixStream,
) -> Result<Option<(UnixStream, Box<Agreed>)>, SetupError> {
    let peer = Peer { identity: Identity::Local, address: None };
    let mut negotiation = Negotiation::new(&*shared.exports, &shared.limits, place);
    if !negotiation.greet(&mut unix).await? {
        return Ok(None);
    }
    match negotiation.haggle(&mut unix, Some(&peer), false).await? {
        Outcome::Transmission(agreed) => Ok(Some((unix, agreed))),
        Outcome::StartTls | Outcome::Closed => Ok(None),
    }
}

async fn negotiate_tls(
    shared: &Shared,
    place: &Place,
    mut tcp: TcpStream,
    certificates: &Certificates,
    address: Option<SocketAddr>,
) -> Result<Option<(TlsStream<TcpStream>, Box<Agreed>)>, SetupError> {
    socket::prepare(&tcp, &shared.limits).map_err(SetupError::Socket)?;
    let mut negotiation = Negotiation::new(&*shared.exports, &shared.limits, place);
    if !negotiation.greet(&mut tcp).await? {
        return Ok(None);
    }
    if !matches!(negotiation.haggle(&mut tcp, None, false).await?, Outcome::StartTls) {
        return Ok(None);
    }
    let handshake = TlsAcceptor::from(certificates.server_config()).accept(tcp);
    let handshake = timeout(shared.limits.tls_handshake_max, handshake).await;
    let mut tls = handshake.map_err(|_| SetupError::HandshakeTimeout)?.map_err(SetupError::Handshake)?;
    // The handshake has verified the chain.
    let name = tls::identity(tls.get_ref().1.peer_certificates().unwrap_or_default())?;
    let peer = Peer { identity: Identity::Certified(name), address };
    match negotiation.haggle(&mut tls, Some(&peer), true).await? {
        Outcome::Transmission(agreed) => Ok(Some((tls, agreed))),
        Outcome::StartTls | Outcome::Closed => {
            // Says goodbye, if anybody is listening; the deadline of the negotiation is running.
            let _ = tls.shutdown().await;
            Ok(None)
        }
    }
}

async fn run<S>(shared: &Shared, place: &Place, io: S, agreed: Agreed)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    shared.counters.served.fetch_add(1, Ordering::Relaxed);
    let export = agreed.export.clone();
    let identity = agreed.identity.clone();
    tracing::debug!(peer = %identity, export, style = ?agreed.style, "transmission begins");
    let budget = Budget::new(shared.limits.connection_bytes_max, &shared.total);
    let end = transmit(io, agreed, &shared.limits, budget, place.stop()).await;
    match end {
        End::Disconnected | End::Closed | End::Stopped => tracing::debug!(peer = %identity, export, "{end}"),
        End::Io(_) => tracing::info!(peer = %identity, export, "{end}"),
        End::Proto(_) | End::Stalled | End::Panicked => tracing::warn!(peer = %identity, export, "cut off: {end}"),
    }
}

/// Lets one message through now and then.
#[derive(Default)]
struct Loud(Mutex<Option<Instant>>);

impl Loud {
    fn now(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = last.is_none_or(|last| now.duration_since(last) >= LOUD_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}
