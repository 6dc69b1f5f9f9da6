//! One request: whether it may be done, what the source is asked, what is answered.

use super::budget::{Budget, Share};
use super::exports::{Source, SourceError, ZeroMode};
use super::limits::Limits;
use super::negotiate::Agreed;
use super::writer::Outgoing;
use crate::proto::{
    Chunk, Command, CommandFlags, ErrorCode, Extent, ReplyTo, Request, StatusPayload, Style, TransmissionFlags,
    encode_simple_reply,
};
use bytes::Bytes;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// What all requests of a connection share.
pub(super) struct Session {
    pub(super) agreed: Agreed,
    pub(super) limits: Arc<Limits>,
    pub(super) budget: Budget,
}

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: ErrorCode,
    pub(super) message: String,
    pub(super) offset: Option<u64>,
}

impl Failure {
    pub(super) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), offset: None }
    }
}

/// The writer is gone, and with it whoever would have read the answer.
pub(super) struct Gone;

/// What came behind a request's header.
#[derive(Default)]
pub(super) struct Payload {
    pub(super) data: Bytes,
    /// Freed when the request has been answered.
    pub(super) _share: Option<Share>,
}

impl Session {
    fn source(&self) -> &dyn Source {
        &*self.agreed.source
    }

    /// Whether `request` may be done. Its payload has not been read yet.
    pub(super) fn check(&self, request: &Request) -> Result<(), Failure> {
        let Agreed { flags: offered, style, size_bytes, .. } = self.agreed;
        let invalid = |message: String| Err(Failure::new(ErrorCode::EINVAL, message));
        let Some(rules) = Rules::of(request.command, offered, style) else {
            return invalid(format!("there is no request of type {}", request.command.0));
        };
        if rules.writes && offered.contains(TransmissionFlags::READ_ONLY) {
            return Err(Failure::new(ErrorCode::EPERM, "the export is read-only"));
        }
        if !request.flags.within(rules.flags) {
            return invalid(format!("{:?} cannot have the flags {:?} here", request.command, request.flags));
        }
        let carries = request.flags.contains(CommandFlags::PAYLOAD_LEN);
        if request.command == Command::WRITE && style == Style::Extended && !carries {
            return invalid("a write with extended headers needs the flag PAYLOAD_LEN".to_owned());
        }
        if !rules.ranged {
            return match (request.offset, request.length) {
                (0, 0) => Ok(()),
                _ => invalid(format!("{:?} has neither offset nor length", request.command)),
            };
        }
        if request.command == Command::BLOCK_STATUS && carries {
            // The range's length is in the payload.
            return match request.length {
                8.. if request.length <= StatusPayload::BYTES_MAX as u64 => Ok(()),
                _ => invalid("the payload of a block status request is too short or too long".to_owned()),
            };
        }
        check_range(request.offset, request.length, size_bytes, self.agreed.sizes.min_bytes)
            .map_err(|message| Failure::new(rules.beyond(&message), message.text()))
    }

    /// The piece of a read that begins at `at`: pieces end where a multiple of the piece size does.
    fn piece(&self, at: u64, end: u64) -> u32 {
        let max = u64::from(self.limits.piece_bytes_max);
        let piece = (max - at % max).min(end - at);
        u32::try_from(piece).unwrap_or(self.limits.piece_bytes_max)
    }

    /// What the source is doing, or an error when it takes too long. Only the source is on the clock: a client that takes
    /// its replies slowly gets no errors for that.
    async fn in_time<T>(&self, work: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        let max = self.limits.request_max;
        match tokio::time::timeout(max, work).await {
            Ok(done) => done,
            Err(_) => {
                tracing::error!(export = self.agreed.export, "a request was not done within {} s", max.as_secs());
                Err(SourceError::new(5, format!("not done within {} s", max.as_secs())))
            }
        }
    }

    /// Reads a piece, and makes sure that it is one.
    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, Failure> {
        let failure = |e: SourceError| {
            let within = |at: &u64| (offset..offset + u64::from(length)).contains(at);
            Failure { offset: Some(e.offset.filter(within).unwrap_or(offset)), ..self.failure(e, false) }
        };
        let data = self.in_time(self.source().read(offset, length)).await.map_err(failure)?;
        if u64::try_from(data.len()) != Ok(length.into()) {
            tracing::error!(export = self.agreed.export, offset, length, found = data.len(), "a read of wrong length");
            return Err(failure(SourceError::new(5, "the source answered with another length than asked for")));
        }
        Ok(data)
    }

    fn failure(&self, e: SourceError, fast_zero: bool) -> Failure {
        let code = match ErrorCode::from_errno(e.errno) {
            // These two mean something particular to a client.
            ErrorCode::ENOTSUP if !fast_zero => ErrorCode::EIO,
            ErrorCode::EOVERFLOW => ErrorCode::EIO,
            code => code,
        };
        Failure { code, message: e.message, offset: e.offset.filter(|at| *at < self.agreed.size_bytes) }
    }
}

/// What a command may have.
struct Rules {
    flags: CommandFlags,
    writes: bool,
    /// Whether it has an offset and a length.
    ranged: bool,
    command: Command,
}

impl Rules {
    fn of(command: Command, offered: TransmissionFlags, style: Style) -> Option<Self> {
        let extended = style == Style::Extended;
        let own = match command {
            Command::READ => CommandFlags::NONE.with(CommandFlags::DF, style != Style::Simple),
            Command::WRITE => CommandFlags::NONE.with(CommandFlags::PAYLOAD_LEN, extended),
            Command::WRITE_ZEROES => CommandFlags::NO_HOLE | CommandFlags::FAST_ZERO,
            Command::TRIM | Command::FLUSH | Command::CACHE => CommandFlags::NONE,
            Command::BLOCK_STATUS => {
                let payload = offered.contains(TransmissionFlags::BLOCK_STATUS_PAYLOAD);
                CommandFlags::REQ_ONE.with(CommandFlags::PAYLOAD_LEN, payload)
            }
            _ => return None,
        };
        Some(Self {
            // Where FUA is offered it may stand anywhere.
            flags: own.with(CommandFlags::FUA, offered.contains(TransmissionFlags::SEND_FUA)),
            writes: matches!(command, Command::WRITE | Command::WRITE_ZEROES | Command::TRIM),
            ranged: command != Command::FLUSH,
            command,
        })
    }

    /// The value for a bad range.
    fn beyond(&self, range: &BadRange) -> ErrorCode {
        match range {
            BadRange::Beyond { .. } if matches!(self.command, Command::WRITE | Command::WRITE_ZEROES) => {
                ErrorCode::ENOSPC
            }
            _ => ErrorCode::EINVAL,
        }
    }
}

enum BadRange {
    Beyond { offset: u64, length: u64, size: u64 },
    Unaligned { block: u32 },
}

impl BadRange {
    fn text(&self) -> String {
        match self {
            Self::Beyond { offset, length, size } => {
                format!("{length} bytes at {offset} end beyond the export, which has {size} bytes")
            }
            Self::Unaligned { block } => format!("offset and length have to be multiples of {block}"),
        }
    }
}

/// Inside the export, and whole blocks; the last block may be short.
fn check_range(offset: u64, length: u64, size: u64, block: u32) -> Result<(), BadRange> {
    let end = offset.checked_add(length).filter(|end| *end <= size);
    let Some(end) = end else { return Err(BadRange::Beyond { offset, length, size }) };
    let whole = |n: u64| n.is_multiple_of(block.max(1).into());
    if !whole(offset) || !(whole(end) || end == size) {
        return Err(BadRange::Unaligned { block });
    }
    Ok(())
}

/// A request that is being answered.
pub(super) struct Answer {
    session: Arc<Session>,
    request: Request,
    replies: mpsc::Sender<Outgoing>,
    /// Goes out with the last reply.
    slot: Option<OwnedSemaphorePermit>,
}

impl Answer {
    pub(super) fn new(
        session: Arc<Session>,
        request: Request,
        replies: mpsc::Sender<Outgoing>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        Self { session, request, replies, slot: Some(slot) }
    }

    /// Does the request and answers it.
    pub(super) async fn run(mut self, payload: Payload) {
        // If the answer cannot be sent, nobody is there to read it.
        let _ = self.execute(payload).await;
    }

    /// Says why it is not done.
    pub(super) async fn refuse(mut self, failure: Failure) {
        let _ = self.fail(failure).await;
    }

    async fn execute(&mut self, payload: Payload) -> Result<(), Gone> {
        let Request { command, flags, offset, length, .. } = self.request;
        let fua = flags.contains(CommandFlags::FUA);
        let session = Arc::clone(&self.session);
        let source = session.source();
        match command {
            Command::READ => return self.read().await,
            Command::BLOCK_STATUS => return self.status(&payload.data).await,
            _ => {}
        }
        let done = match command {
            Command::FLUSH if session.agreed.flags.contains(TransmissionFlags::READ_ONLY) => Ok(()),
            Command::FLUSH => session.in_time(source.flush()).await,
            _ if length == 0 => Ok(()),
            Command::WRITE => session.in_time(source.write(offset, payload.data, fua)).await,
            Command::TRIM => session.in_time(source.trim(offset, length, fua)).await,
            Command::CACHE => session.in_time(source.prefetch(offset, length)).await,
            Command::WRITE_ZEROES => {
                let (no_hole, fast) = (flags.contains(CommandFlags::NO_HOLE), flags.contains(CommandFlags::FAST_ZERO));
                session.in_time(source.write_zeroes(offset, length, ZeroMode { no_hole, fast, fua })).await
            }
            _ => Err(SourceError::new(22, "no such request")),
        };
        match done {
            Ok(()) => self.done().await,
            Err(e) => self.fail(session.failure(e, flags.contains(CommandFlags::FAST_ZERO))).await,
        }
    }

    async fn read(&mut self) -> Result<(), Gone> {
        let Request { flags, offset, length, .. } = self.request;
        let session = Arc::clone(&self.session);
        let style = session.agreed.style;
        if length > u64::from(session.limits.request_bytes_max) {
            // Chunked replies know a value for this.
            let code = if style == Style::Simple { ErrorCode::EINVAL } else { ErrorCode::EOVERFLOW };
            let message = format!("{} bytes can be read at once", session.limits.request_bytes_max);
            return self.fail(Failure::new(code, message)).await;
        }
        if length == 0 {
            return self.done().await;
        }
        if style == Style::Simple || flags.contains(CommandFlags::DF) {
            self.read_whole(&session, offset, offset + length).await
        } else {
            self.read_pieces(&session, offset, offset + length).await
        }
    }

    /// Every piece is sent when it is there; an error ends it, and says where it was.
    async fn read_pieces(&mut self, session: &Session, mut at: u64, end: u64) -> Result<(), Gone> {
        while at < end {
            let length = session.piece(at, end);
            let share = session.budget.take(length.into()).await.map_err(|_| Gone)?;
            let next = at + u64::from(length);
            match session.read(at, length).await {
                Ok(data) => {
                    let chunk = Chunk::Data { offset: at, data: data.clone() };
                    // The data is in memory: nothing can go wrong with it any more but the connection.
                    self.chunk(&chunk, next == end, vec![data], Some(share)).await?;
                }
                Err(failure) => return self.fail(failure).await,
            }
            at = next;
        }
        Ok(())
    }

    /// One reply with all the data, or an error: nothing is sent before all of it is there.
    async fn read_whole(&mut self, session: &Session, start: u64, end: u64) -> Result<(), Gone> {
        let share = session.budget.take(end - start).await.map_err(|_| Gone)?;
        let mut pieces = Vec::new();
        let mut at = start;
        while at < end {
            let length = session.piece(at, end);
            match session.read(at, length).await {
                Ok(data) => pieces.push(data),
                Err(failure) => return self.fail(failure).await,
            }
            at += u64::from(length);
        }
        if session.agreed.style == Style::Simple {
            let mut header = Vec::new();
            encode_simple_reply(ErrorCode::OK, self.request.cookie, &mut header);
            return self.send(header, pieces, Some(share), true).await;
        }
        let mut header = Vec::new();
        let len = pieces.iter().map(Bytes::len).sum();
        match Chunk::encode_data_header(self.to(), true, start, len, &mut header) {
            Ok(()) => self.send(header, pieces, Some(share), true).await,
            Err(e) => self.fail(Failure::new(ErrorCode::EOVERFLOW, e.to_string())).await,
        }
    }

    async fn status(&mut self, payload: &[u8]) -> Result<(), Gone> {
        let session = Arc::clone(&self.session);
        let (length, ids) = match self.status_wanted(&session, payload) {
            Ok(wanted) => wanted,
            Err(failure) => return self.fail(failure).await,
        };
        let bytes = 16 * session.limits.status_extents_max as u64;
        let last = ids.len() - 1;
        for (n, id) in ids.into_iter().enumerate() {
            let share = session.budget.take(bytes).await.map_err(|_| Gone)?;
            match self.extents(&session, id, length).await {
                Ok(extents) => {
                    let chunk = Chunk::Status { context: id, extents };
                    self.chunk(&chunk, n == last, Vec::new(), Some(share)).await?;
                }
                Err(failure) => return self.fail(failure).await,
            }
        }
        Ok(())
    }

    /// The length of the range and the ids of the contexts, at least one.
    fn status_wanted(&self, session: &Session, payload: &[u8]) -> Result<(u64, Vec<u32>), Failure> {
        let Agreed { contexts, size_bytes, sizes, .. } = &session.agreed;
        let invalid = |message: String| Failure::new(ErrorCode::EINVAL, message);
        let known = u32::try_from(contexts.len()).unwrap_or(0);
        if known == 0 {
            return Err(invalid("no context was chosen in the negotiation".to_owned()));
        }
        let (length, ids) = if self.request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            let StatusPayload { length, contexts: ids } =
                StatusPayload::parse(payload).map_err(|e| invalid(e.to_string()))?;
            let twice = ids.iter().enumerate().any(|(n, id)| ids.iter().skip(n + 1).any(|other| other == id));
            if ids.is_empty() || twice || ids.iter().any(|id| *id >= known) {
                return Err(invalid("contexts that were not chosen, or one twice, or none".to_owned()));
            }
            check_range(self.request.offset, length, *size_bytes, sizes.min_bytes)
                .map_err(|bad| invalid(bad.text()))?;
            (length, ids)
        } else {
            (self.request.length, (0..known).collect())
        };
        if length == 0 { Err(invalid("there is no status of nothing".to_owned())) } else { Ok((length, ids)) }
    }

    /// What one context says: at least one extent, none beyond the range.
    async fn extents(&self, session: &Session, id: u32, length: u64) -> Result<Vec<Extent>, Failure> {
        let offset = self.request.offset;
        let name = usize::try_from(id).ok().and_then(|id| session.agreed.contexts.get(id));
        let Some(name) = name else { return Err(Failure::new(ErrorCode::EINVAL, "no such context")) };
        let one = self.request.flags.contains(CommandFlags::REQ_ONE);
        let max = if one { 1 } else { session.limits.status_extents_max };
        let found = session.in_time(session.source().status(name, offset, length, max)).await;
        let found = found.map_err(|e| {
            let range = offset..offset + length;
            let failure = session.failure(e, false);
            Failure { offset: failure.offset.filter(|at| range.contains(at)), ..failure }
        })?;
        let mut left = length;
        let mut extents: Vec<Extent> = Vec::new();
        for extent in found {
            if left == 0 {
                break;
            }
            if extent.length == 0 {
                return Err(Failure::new(ErrorCode::EIO, "the source said nothing about a part of the range"));
            }
            let length = extent.length.min(left);
            left -= length;
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.flags == extent.flags => last.length += length,
                _ if full => break,
                _ => extents.push(Extent { length, flags: extent.flags }),
            }
        }
        if extents.is_empty() {
            return Err(Failure::new(ErrorCode::EIO, "the source does not know what is there"));
        }
        Ok(extents)
    }

    fn to(&self) -> ReplyTo {
        ReplyTo { style: self.session.agreed.style, cookie: self.request.cookie, offset: self.request.offset }
    }

    async fn done(&mut self) -> Result<(), Gone> {
        if self.session.agreed.style == Style::Simple {
            let mut header = Vec::new();
            encode_simple_reply(ErrorCode::OK, self.request.cookie, &mut header);
            return self.send(header, Vec::new(), None, true).await;
        }
        self.chunk(&Chunk::None, true, Vec::new(), None).await
    }

    async fn fail(&mut self, failure: Failure) -> Result<(), Gone> {
        let Failure { code: error, message, offset } = failure;
        tracing::debug!(request = ?self.request, ?error, message, "a request failed");
        if self.session.agreed.style == Style::Simple {
            let mut header = Vec::new();
            encode_simple_reply(error, self.request.cookie, &mut header);
            return self.send(header, Vec::new(), None, true).await;
        }
        let chunk = match offset {
            Some(offset) if self.has(offset) => Chunk::ErrorAt { error, message, offset },
            _ => Chunk::Error { error, message },
        };
        self.chunk(&chunk, true, Vec::new(), None).await
    }

    /// Whether `offset` lies in the request.
    fn has(&self, offset: u64) -> bool {
        let Request { offset: start, length, flags, command, .. } = self.request;
        let elsewhere = command == Command::BLOCK_STATUS && flags.contains(CommandFlags::PAYLOAD_LEN);
        offset >= start && (elsewhere || offset - start < length)
    }

    async fn chunk(&mut self, chunk: &Chunk, done: bool, data: Vec<Bytes>, share: Option<Share>) -> Result<(), Gone> {
        let mut header = Vec::new();
        if let Err(e) = chunk.encode(self.to(), done, &mut header) {
            // Only flags of more than 32 bits from a source, for a client with compact headers.
            tracing::error!(export = self.session.agreed.export, "a reply cannot be sent: {e}");
            header.clear();
            let error = Chunk::Error { error: ErrorCode::EIO, message: e.to_string() };
            error.encode(self.to(), true, &mut header).map_err(|_| Gone)?;
            self.send(header, Vec::new(), None, true).await?;
            // Whatever would have come after it must not come.
            return Err(Gone);
        }
        self.send(header, data, share, done).await
    }

    async fn send(
        &mut self,
        header: Vec<u8>,
        payload: Vec<Bytes>,
        share: Option<Share>,
        last: bool,
    ) -> Result<(), Gone> {
        let room = self.replies.reserve().await.map_err(|_| Gone)?;
        let slot = if last { self.slot.take() } else { None };
        room.send(Outgoing { header: header.into(), payload, share, slot });
        Ok(())
    }
}
