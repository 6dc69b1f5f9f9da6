//! Transmission on one connection: reads requests, has them done many at a time, and lets replies go out in any order.
//!
//! ```text
//!            slot free?     share of memory?
//! client ──▶ read header ──▶ read payload ──▶ task per request ──▶ writer ──▶ client
//!               ▲                                                    │
//!               └──────────── slot and share come back ◀─────────────┘
//! ```
//!
//! Whoever does not take replies finds that no more requests are read, and is cut off when a reply does not get through in
//! time. When the client says DISC or closes its side, and when the server stops, what is in flight is still answered, within
//! `Limits::drain_max`. A message that is none ends the connection: nothing behind it can be trusted.

use super::budget::Budget;
use super::limits::Limits;
use super::negotiate::Agreed;
use super::request::{Answer, Failure, Payload, Session};
use super::writer::write_replies;
use crate::proto::{Command, PAYLOAD_DEFAULT_BYTES_MAX, ProtoError, REQUEST_HEADER_BYTES_MAX, Request};
use bytes::BytesMut;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, BufReader};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Requests are read from the socket in bulk; large payloads pass by this buffer.
const READ_BUFFER_BYTES: usize = 32 << 10;

/// Payload that nobody wants is read away in bites of this size.
const SKIP_BYTES: usize = 16 << 10;

/// How a transmission ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client has disconnected")]
    Disconnected,
    #[error("the client has closed the connection")]
    Closed,
    #[error("the server has ended the connection")]
    Stopped,
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the client began a message and did not finish it in time")]
    Stalled,
    #[error("a request panicked")]
    Panicked,
}

/// A request with what came behind it, or why it is not done.
type Next = (Request, OwnedSemaphorePermit, Result<Payload, Failure>);

/// Serves until something ends it.
pub(super) async fn transmit<S>(
    io: S,
    agreed: Agreed,
    limits: &Arc<Limits>,
    budget: Budget,
    stop: impl Future<Output = ()>,
) -> End
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (from, to) = tokio::io::split(io);
    let mut reader = Reader {
        from: BufReader::with_capacity(READ_BUFFER_BYTES, from),
        slots: Arc::new(Semaphore::new(limits.requests_in_flight_max)),
        session: Arc::new(Session { agreed, limits: Arc::clone(limits), budget }),
    };
    let (replies, queue) = mpsc::channel(limits.requests_in_flight_max);
    let mut writer = tokio::spawn(write_replies(to, queue, Arc::clone(limits)));
    let mut writing = true;
    let mut tasks = JoinSet::new();
    let mut stop = pin!(stop);

    let end = 'end: loop {
        let session = Arc::clone(&reader.session);
        let mut next = pin!(reader.next());
        let (request, slot, payload) = loop {
            tokio::select! {
                biased;
                () = &mut stop => break 'end End::Stopped,
                written = &mut writer => {
                    writing = false;
                    // It does not end by itself while we hold the other end of its queue.
                    break 'end match written {
                        Ok(Err(e)) => End::Io(e),
                        Ok(Ok(())) | Err(_) => End::Panicked,
                    };
                }
                Some(done) = tasks.join_next() => if done.is_err() {
                    break 'end End::Panicked;
                },
                next = &mut next => match next {
                    Ok(next) => break next,
                    Err(end) => break 'end end,
                },
            }
        };
        let answer = Answer::new(session, request, replies.clone(), slot);
        tasks.spawn(async move {
            match payload {
                Ok(payload) => answer.run(payload).await,
                Err(failure) => answer.refuse(failure).await,
            }
        });
    };

    // The writer ends when the last request has handed over its last reply.
    drop(replies);
    let drained = timeout(limits.drain_max, async {
        while tasks.join_next().await.is_some() {}
        if writing {
            // What it has to say about a client that is leaving helps nobody.
            let _ = (&mut writer).await;
        }
    });
    if drained.await.is_err() {
        tracing::warn!("requests in flight were not done in time, and are given up");
        writer.abort();
    }
    end
}

struct Reader<R> {
    from: BufReader<R>,
    slots: Arc<Semaphore>,
    session: Arc<Session>,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// The next request. Waits as long as it likes for one to begin, but not for the rest of it.
    async fn next(&mut self) -> Result<Next, End> {
        // Nothing is read that could not be kept.
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| End::Stopped)?;
        if self.from.fill_buf().await?.is_empty() {
            return Err(End::Closed);
        }
        let request = self.header().await?;
        if request.command == Command::DISC {
            return Err(End::Disconnected);
        }
        let length = request.payload_len(self.session.agreed.style);
        let max = self.session.limits.request_bytes_max;
        if length > max.max(PAYLOAD_DEFAULT_BYTES_MAX).into() {
            return Err(ProtoError::TooLong { what: "the payload of a request", found: length, max: max.into() }.into());
        }
        let verdict = match self.session.check(&request) {
            Ok(()) if length > max.into() => {
                let message = format!("a request may carry {max} bytes");
                Err(Failure::new(crate::proto::ErrorCode::EINVAL, message))
            }
            verdict => verdict,
        };
        let payload = match verdict {
            Err(failure) => {
                self.skip(length).await?;
                Err(failure)
            }
            Ok(()) if length == 0 => Ok(Payload::default()),
            Ok(()) => Ok(self.payload(length).await?),
        };
        Ok((request, slot, payload))
    }

    async fn header(&mut self) -> Result<Request, End> {
        let style = self.session.agreed.style;
        let mut header = [0; REQUEST_HEADER_BYTES_MAX];
        let header = header.get_mut(..style.request_header_bytes()).unwrap_or_default();
        let max = self.session.limits.message_max(header.len());
        timeout(max, self.from.read_exact(header)).await.map_err(|_| End::Stalled)??;
        Ok(Request::parse(style, header)?)
    }

    /// `length` has been compared with the limit.
    async fn payload(&mut self, length: u64) -> Result<Payload, End> {
        let share = self.session.budget.take(length).await.map_err(|_| End::Stopped)?;
        let bytes = usize::try_from(length).map_err(|_| End::Stalled)?;
        let max = self.session.limits.message_max(bytes);
        let mut data = BytesMut::with_capacity(bytes);
        let mut from = (&mut self.from).take(length);
        let read = async {
            while data.len() < bytes {
                if from.read_buf(&mut data).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok::<_, io::Error>(())
        };
        timeout(max, read).await.map_err(|_| End::Stalled)??;
        Ok(Payload { data: data.freeze(), _share: Some(share) })
    }

    async fn skip(&mut self, length: u64) -> Result<(), End> {
        let bytes = usize::try_from(length).map_err(|_| End::Stalled)?;
        let max = self.session.limits.message_max(bytes);
        let skip = async {
            let mut left = bytes;
            let mut bite = [0; SKIP_BYTES];
            while let Some(bite) = bite.get_mut(..left.min(SKIP_BYTES))
                && left > 0
            {
                left -= self.from.read_exact(bite).await?;
            }
            Ok::<_, io::Error>(())
        };
        timeout(max, skip).await.map_err(|_| End::Stalled)??;
        Ok(())
    }
}
