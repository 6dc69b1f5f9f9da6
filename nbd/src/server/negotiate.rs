//! The negotiation, from the greeting to the first request.
//!
//! ```text
//! greet ─▶ haggle without a peer: STARTTLS and ABORT are answered, nothing else, not even whether an export exists
//!            └─ STARTTLS ─▶ TLS handshake ─▶ haggle with a peer ─▶ GO or EXPORT_NAME: transmission
//! greet ─▶ haggle with a peer (unix socket) ─▶ GO or EXPORT_NAME
//! ```
//!
//! Before TLS is up not one byte more is read than an option has: what follows STARTTLS in the clear cannot be taken for
//! something that came through TLS.

use super::exports::{Exports, Identity, Peer, Refusal, Source};
use super::limits::Limits;
use super::registry::{Connection, Full, Place};
use crate::proto::{
    BlockSizes, CLIENT_HELLO_BYTES, ClientFlags, ClientHello, ClientOption, ExportNameReply, HandshakeFlags, Info,
    InfoKind, InfoQuery, MetaQuery, OPTION_HEADER_BYTES, OptionCode, OptionHeader, OptionReply, OptionReplyKind,
    ProtoError, STATUS_CONTEXTS_MAX, ServerHello, Style, TransmissionFlags,
};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Answers are gathered up to this size; then they are sent.
const ANSWER_BYTES: usize = 64 << 10;

/// What the two sides have agreed on.
pub(super) struct Agreed {
    pub(super) source: Arc<dyn Source>,
    pub(super) identity: Identity,
    pub(super) export: String,
    pub(super) style: Style,
    pub(super) flags: TransmissionFlags,
    pub(super) size_bytes: u64,
    pub(super) sizes: BlockSizes,
    /// A context's id is its index here.
    pub(super) contexts: Vec<String>,
}

/// How haggling ends when nothing is wrong.
pub(super) enum Outcome {
    Transmission(Box<Agreed>),
    StartTls,
    /// The client has gone, or said ABORT.
    Closed,
}

/// Why a negotiation is cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum NegotiationError {
    #[error(transparent)]
    Proto(#[from] ProtoError),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("the client set flags that nobody offered: {0:?}")]
    Flags(ClientFlags),
    #[error("more than {0} options")]
    TooManyOptions(usize),
    /// EXPORT_NAME knows no other answer than this.
    #[error("EXPORT_NAME cannot be answered with an error: {0}")]
    ExportName(String),
}

/// One connection's negotiation.
pub(super) struct Negotiation<'a> {
    pub(super) exports: &'a dyn Exports,
    pub(super) limits: &'a Limits,
    pub(super) place: &'a Place,
    options: usize,
    no_zeroes: bool,
}

/// What was agreed since the last STARTTLS.
#[derive(Default)]
struct State {
    structured: bool,
    extended: bool,
    /// Export and names of contexts.
    contexts: Option<(String, Vec<String>)>,
}

impl State {
    fn style(&self) -> Style {
        match (self.extended, self.structured) {
            (true, _) => Style::Extended,
            (false, true) => Style::Structured,
            (false, false) => Style::Simple,
        }
    }
}

/// What a failed option is answered.
struct Refused(OptionReplyKind, String);

impl From<Refused> for OptionReply {
    fn from(Refused(kind, message): Refused) -> Self {
        Self::Error { kind, message }
    }
}

impl<'a> Negotiation<'a> {
    pub(super) fn new(exports: &'a dyn Exports, limits: &'a Limits, place: &'a Place) -> Self {
        Self { exports, limits, place, options: 0, no_zeroes: false }
    }

    /// The first words of both sides. False if the client has gone without a word, as one does that only looks whether
    /// anybody listens.
    pub(super) async fn greet<S>(&mut self, io: &mut S) -> Result<bool, NegotiationError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut out = Vec::new();
        ServerHello { flags: HandshakeFlags::KNOWN }.encode(&mut out);
        let mut hello = [0; CLIENT_HELLO_BYTES];
        let heard = async {
            io.write_all(&out).await?;
            io.flush().await?;
            read_or_end(io, &mut hello).await
        };
        match heard.await {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            // Gone without having listened to us.
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
                return Ok(false);
            }
            Err(e) => return Err(e.into()),
        }
        let ClientHello { flags } = ClientHello::parse(&hello);
        if !flags.within(ClientFlags::KNOWN) {
            return Err(NegotiationError::Flags(flags));
        }
        self.no_zeroes = flags.contains(ClientFlags::NO_ZEROES);
        Ok(true)
    }

    /// Answers options until something else begins. Without a peer, TLS has to come first. `encrypted` says whether it has.
    pub(super) async fn haggle<S>(
        &mut self,
        io: &mut S,
        peer: Option<&Peer>,
        encrypted: bool,
    ) -> Result<Outcome, NegotiationError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut state = State::default();
        loop {
            let Some((code, data)) = self.next_option(io).await? else { return Ok(Outcome::Closed) };
            let option = match ClientOption::parse(code, &data) {
                Ok(option) => option,
                Err(e) if code == OptionCode::EXPORT_NAME => return Err(e.into()),
                // Before TLS nobody learns more than that TLS is needed.
                Err(_) if peer.is_none() && code != OptionCode::STARTTLS => ClientOption::Unknown(code),
                Err(e) => {
                    if code == OptionCode::SET_META_CONTEXT {
                        state.contexts = None;
                    }
                    answer(io, code, [Refused(OptionReplyKind::ERR_INVALID, e.to_string()).into()]).await?;
                    continue;
                }
            };
            match (option, peer) {
                (ClientOption::Abort, _) => {
                    // The client need not wait for the answer.
                    let _ = answer(io, code, [OptionReply::Ack]).await;
                    return Ok(Outcome::Closed);
                }
                (ClientOption::StartTls, None) => {
                    answer(io, code, [OptionReply::Ack]).await?;
                    return Ok(Outcome::StartTls);
                }
                (ClientOption::ExportName(_), None) => {
                    return Err(NegotiationError::ExportName("TLS is needed first".to_owned()));
                }
                (_, None) => {
                    let message = "nothing is answered before STARTTLS".to_owned();
                    answer(io, code, [Refused(OptionReplyKind::ERR_TLS_REQD, message).into()]).await?;
                }
                (ClientOption::StartTls, Some(_)) => {
                    let refused = if encrypted {
                        Refused(OptionReplyKind::ERR_INVALID, "TLS is up already".to_owned())
                    } else {
                        Refused(OptionReplyKind::ERR_POLICY, "there is no TLS on this socket".to_owned())
                    };
                    answer(io, code, [refused.into()]).await?;
                }
                (ClientOption::ExportName(name), Some(peer)) => {
                    return self.export_name(io, peer, &state, name).await;
                }
                (ClientOption::Go(query), Some(peer)) => {
                    if let Some(agreed) = self.go(io, peer, &state, query).await? {
                        return Ok(Outcome::Transmission(Box::new(agreed)));
                    }
                }
                (option, Some(peer)) => self.answer_option(io, peer, &mut state, option).await?,
            }
        }
    }

    /// The next option and its data; none when the client has closed the connection between two options.
    async fn next_option<S>(&mut self, io: &mut S) -> Result<Option<(OptionCode, Vec<u8>)>, NegotiationError>
    where
        S: AsyncRead + Unpin,
    {
        let mut header = [0; OPTION_HEADER_BYTES];
        if !read_or_end(io, &mut header).await? {
            return Ok(None);
        }
        self.options += 1;
        if self.options > self.limits.options_max {
            return Err(NegotiationError::TooManyOptions(self.limits.options_max));
        }
        let header = OptionHeader::parse(&header)?;
        let mut data = vec![0; header.data_len()?];
        io.read_exact(&mut data).await?;
        Ok(Some((header.code, data)))
    }

    /// Options that leave the negotiation where it is.
    async fn answer_option<S>(
        &self,
        io: &mut S,
        peer: &Peer,
        state: &mut State,
        option: ClientOption,
    ) -> Result<(), NegotiationError>
    where
        S: AsyncWrite + Unpin,
    {
        let code = option.code();
        let replies = match option {
            ClientOption::List => self.list(peer).await,
            ClientOption::Info(query) => {
                match self.open(peer, &query.name).await.and_then(|source| self.agree(source, peer, state, &query.name))
                {
                    Ok(agreed) => infos(&agreed, &query),
                    Err(refused) => vec![refused.into()],
                }
            }
            ClientOption::StructuredReply if state.extended => {
                let message = "extended headers are agreed on, and take precedence".to_owned();
                vec![Refused(OptionReplyKind::ERR_EXT_HEADER_REQD, message).into()]
            }
            ClientOption::StructuredReply => {
                state.structured = true;
                vec![OptionReply::Ack]
            }
            ClientOption::ExtendedHeaders => {
                state.extended = true;
                vec![OptionReply::Ack]
            }
            ClientOption::ListMetaContext(query) => self.contexts(peer, state, &query, true).await,
            ClientOption::SetMetaContext(query) => {
                state.contexts = None;
                let replies = self.contexts(peer, state, &query, false).await;
                if !matches!(replies.last(), Some(OptionReply::Error { .. })) {
                    let names = replies.iter().filter_map(|reply| match reply {
                        OptionReply::MetaContext { name, .. } => Some(name.clone()),
                        _ => None,
                    });
                    state.contexts = Some((query.name, names.collect()));
                }
                replies
            }
            _ => vec![Refused(OptionReplyKind::ERR_UNSUP, format!("{code:?} is not known here")).into()],
        };
        answer(io, code, replies).await
    }

    async fn list(&self, peer: &Peer) -> Vec<OptionReply> {
        let mut all = self.exports.list(peer).await;
        if all.len() > self.limits.list_entries_max {
            tracing::warn!(peer = %peer.identity, exports = all.len(), "the list of exports is cut");
            all.truncate(self.limits.list_entries_max);
        }
        let entries =
            all.into_iter().map(|entry| OptionReply::Server { name: entry.name, description: entry.description });
        entries.chain([OptionReply::Ack]).collect()
    }

    /// LIST_META_CONTEXT and SET_META_CONTEXT.
    async fn contexts(&self, peer: &Peer, state: &State, query: &MetaQuery, list: bool) -> Vec<OptionReply> {
        if state.style() == Style::Simple {
            let message = "structured replies or extended headers come first".to_owned();
            return vec![Refused(OptionReplyKind::ERR_INVALID, message).into()];
        }
        let source = match self.open(peer, &query.name).await {
            Ok(source) => source,
            Err(refused) => return vec![refused.into()],
        };
        let chosen = matching(source.contexts(), &query.queries, list);
        // An id that is listed means nothing.
        let ids = (0..).map(|id| if list { 0 } else { id });
        let replies = ids.zip(chosen).map(|(id, name)| OptionReply::MetaContext { id, name });
        replies.chain([OptionReply::Ack]).collect()
    }

    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refused> {
        match self.exports.open(peer, name).await {
            Ok(source) => Ok(source),
            Err(Refusal::Unknown) => {
                tracing::info!(peer = %peer.identity, export = name, "refused: unknown, or not for this peer");
                let message = format!("there is no export \"{name}\" for {}", peer.identity);
                Err(Refused(OptionReplyKind::ERR_UNKNOWN, message))
            }
            Err(Refusal::Unavailable(why)) => {
                tracing::warn!(peer = %peer.identity, export = name, "cannot be opened: {why}");
                Err(Refused(OptionReplyKind::ERR_PLATFORM, why))
            }
        }
    }

    /// What transmission would be like.
    fn agree(&self, source: Arc<dyn Source>, peer: &Peer, state: &State, name: &str) -> Result<Agreed, Refused> {
        let sizes = BlockSizes {
            min_bytes: source.block_bytes(),
            // A source may prefer more than we take at once.
            preferred_bytes: source.preferred_bytes().min(self.limits.piece_bytes_max),
            max_payload_bytes: self.limits.request_bytes_max,
        };
        if let Err(e) = sizes.check() {
            tracing::error!(export = name, "the source's block sizes are wrong: {e}");
            return Err(Refused(OptionReplyKind::ERR_PLATFORM, e.to_string()));
        }
        let contexts = match &state.contexts {
            Some((export, contexts)) if export == name => contexts.clone(),
            _ => Vec::new(),
        };
        let style = state.style();
        let writable = !source.read_only();
        let flags = TransmissionFlags::HAS_FLAGS
            .with(TransmissionFlags::READ_ONLY, !writable)
            .with(TransmissionFlags::SEND_FLUSH, writable)
            .with(TransmissionFlags::SEND_FUA, writable)
            .with(TransmissionFlags::SEND_TRIM, writable)
            .with(TransmissionFlags::SEND_WRITE_ZEROES, writable)
            .with(TransmissionFlags::SEND_FAST_ZERO, writable)
            .with(TransmissionFlags::SEND_DF, style != Style::Simple)
            .with(TransmissionFlags::CAN_MULTI_CONN, source.can_multi_conn())
            .with(TransmissionFlags::SEND_CACHE, true)
            .with(TransmissionFlags::BLOCK_STATUS_PAYLOAD, style == Style::Extended && !contexts.is_empty());
        let size_bytes = source.size_bytes();
        let (identity, export) = (peer.identity.clone(), name.to_owned());
        Ok(Agreed { source, identity, export, style, flags, size_bytes, sizes, contexts })
    }

    /// Takes the connection's place in transmission.
    fn enter(&self, peer: &Peer, export: &str) -> Result<(), Refused> {
        let connection =
            Connection { identity: peer.identity.clone(), address: peer.address, export: export.to_owned() };
        self.place.enter(connection).map_err(|full| {
            tracing::info!(peer = %peer.identity, export, "refused: {full}");
            let kind = match full {
                Full::Stopping => OptionReplyKind::ERR_SHUTDOWN,
                _ => OptionReplyKind::ERR_POLICY,
            };
            Refused(kind, full.to_string())
        })
    }

    async fn go<S>(
        &self,
        io: &mut S,
        peer: &Peer,
        state: &State,
        query: InfoQuery,
    ) -> Result<Option<Agreed>, NegotiationError>
    where
        S: AsyncWrite + Unpin,
    {
        let opened = self.open(peer, &query.name).await.and_then(|source| self.agree(source, peer, state, &query.name));
        match opened.and_then(|agreed| self.enter(peer, &query.name).map(|()| agreed)) {
            Ok(agreed) => {
                answer(io, OptionCode::GO, infos(&agreed, &query)).await?;
                Ok(Some(agreed))
            }
            Err(refused) => {
                answer(io, OptionCode::GO, [refused.into()]).await?;
                Ok(None)
            }
        }
    }

    async fn export_name<S>(
        &self,
        io: &mut S,
        peer: &Peer,
        state: &State,
        name: String,
    ) -> Result<Outcome, NegotiationError>
    where
        S: AsyncWrite + Unpin,
    {
        if state.extended {
            return Err(NegotiationError::ExportName("extended headers need GO".to_owned()));
        }
        let opened = self.open(peer, &name).await.and_then(|source| self.agree(source, peer, state, &name));
        let agreed = opened.and_then(|agreed| self.enter(peer, &name).map(|()| agreed));
        let agreed = agreed.map_err(|Refused(_, message)| NegotiationError::ExportName(message))?;
        let mut out = Vec::new();
        let reply = ExportNameReply { size_bytes: agreed.size_bytes, flags: agreed.flags };
        reply.encode(self.no_zeroes, &mut out);
        io.write_all(&out).await?;
        io.flush().await?;
        Ok(Outcome::Transmission(Box::new(agreed)))
    }
}

/// The answers to INFO and GO.
fn infos(agreed: &Agreed, query: &InfoQuery) -> Vec<OptionReply> {
    let mut infos = vec![Info::Export { size_bytes: agreed.size_bytes, flags: agreed.flags }];
    let wants = |kind| query.wanted.contains(&kind);
    if wants(InfoKind::BLOCK_SIZE) {
        infos.push(Info::BlockSize(agreed.sizes));
    }
    if wants(InfoKind::NAME) {
        infos.push(Info::Name(agreed.export.clone()));
    }
    if wants(InfoKind::DESCRIPTION) {
        infos.push(Info::Description(agreed.source.description()));
    }
    infos.into_iter().map(OptionReply::Info).chain([OptionReply::Ack]).collect()
}

/// Which of the contexts on offer the queries mean. Only a list knows wildcards: no query at all, or a beginning that ends
/// with a colon.
fn matching(mut offered: Vec<String>, queries: &[String], list: bool) -> Vec<String> {
    let means =
        |query: &String, name: &String| query == name || list && query.ends_with(':') && name.starts_with(query);
    offered.retain(|name| list && queries.is_empty() || queries.iter().any(|query| means(query, name)));
    offered.truncate(STATUS_CONTEXTS_MAX);
    offered
}

/// Fills `message`; false if the other side has closed the connection before its first byte.
async fn read_or_end<S>(io: &mut S, message: &mut [u8]) -> io::Result<bool>
where
    S: AsyncRead + Unpin,
{
    let Some((first, rest)) = message.split_first_mut() else { return Ok(true) };
    if io.read(std::slice::from_mut(first)).await? == 0 {
        return Ok(false);
    }
    io.read_exact(rest).await?;
    Ok(true)
}

async fn answer<S>(
    io: &mut S,
    code: OptionCode,
    replies: impl IntoIterator<Item = OptionReply>,
) -> Result<(), NegotiationError>
where
    S: AsyncWrite + Unpin,
{
    let mut out = Vec::new();
    for reply in replies {
        if let Err(e) = reply.encode(code, &mut out) {
            if reply.is_final() {
                return Err(e.into());
            }
            tracing::error!("left out of an answer: {e}");
        }
        if out.len() >= ANSWER_BYTES {
            io.write_all(&out).await?;
            out.clear();
        }
    }
    io.write_all(&out).await?;
    io.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::matching;

    #[test]
    fn queries_choose_contexts() {
        let offered = || ["base:allocation", "coppice:delta:1", "coppice:delta:2"].map(String::from).to_vec();
        let chosen = |queries: &[&str], list| {
            let queries: Vec<String> = queries.iter().map(|&q| q.to_owned()).collect();
            matching(offered(), &queries, list)
        };
        assert_eq!(chosen(&[], true), offered());
        assert!(chosen(&[], false).is_empty());
        assert_eq!(chosen(&["coppice:"], true), ["coppice:delta:1", "coppice:delta:2"]);
        assert!(chosen(&["coppice:", "base:"], false).is_empty());
        assert_eq!(chosen(&["coppice:delta:2", "base:other", "x"], false), ["coppice:delta:2"]);
        assert!(chosen(&["coppice"], true).is_empty());
        assert!(chosen(&[""], true).is_empty());
    }
}
