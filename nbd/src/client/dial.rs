//! One attempt to connect: find the server, connect, TLS, negotiate, and see that it is the right one.
//!
//! Until TLS stands, messages are read to the byte, so that nothing that came in the clear is taken for something that came
//! under its protection. With TLS asked for there is no way around it.

use super::config::{Address, Config};
use super::table::Peer;
use crate::proto::{
    CLIENT_HELLO_BYTES, ClientFlags, ClientHello, ClientOption, Command, CommandFlags, HandshakeFlags, Info, InfoKind,
    InfoQuery, MetaQuery, OPTION_REPLY_HEADER_BYTES, OptionReply, OptionReplyHeader, OptionReplyKind,
    PAYLOAD_DEFAULT_BYTES_MAX, ProtoError, Request, SERVER_HELLO_BYTES, ServerHello, Style, TransmissionFlags,
};
use crate::tls::{self, Certificates};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Answers to one option that we take.
const REPLIES_MAX: usize = 64;
/// The context that says what is allocated.
const ALLOCATION: &str = "base:allocation";
/// Probes of a connection that is idle; then it counts as lost.
const KEEPALIVE_PROBES: u32 = 3;

pub(super) type Reading = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type Writing = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection in transmission.
pub(super) struct Dialed {
    pub peer: Peer,
    pub reading: Reading,
    pub writing: Writing,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct DialError {
    pub address: Option<Address>,
    pub reason: String,
    /// A server is there, but it is not the right one.
    pub refused: bool,
}

/// The same before the address is known.
#[derive(Debug)]
pub(super) struct Why {
    reason: String,
    refused: bool,
}

impl Why {
    pub fn away(reason: impl Into<String>) -> Why {
        Why { reason: reason.into(), refused: false }
    }

    pub fn refused(reason: impl Into<String>) -> Why {
        Why { reason: reason.into(), refused: true }
    }
}

impl From<io::Error> for Why {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::UnexpectedEof => Why::away("it closes the connection while it negotiates"),
            _ => Why::away(e.to_string()),
        }
    }
}

impl From<ProtoError> for Why {
    fn from(e: ProtoError) -> Self {
        Why::away(e.to_string())
    }
}

/// Tries once. `size` is what the export's size must be.
pub(super) async fn dial(config: &Config, size: Option<u64>) -> Result<Dialed, DialError> {
    let nowhere = |reason: String| DialError { address: None, reason, refused: false };
    let limit = config.connect_timeout;
    let late = || nowhere(format!("where it is was not found out within {} s", limit.as_secs_f64()));
    let endpoint = timeout(limit, (config.resolver)()).await.map_err(|_| late())?.map_err(nowhere)?;
    let address = endpoint.address;
    let there = |why: Why| DialError { address: Some(address.clone()), reason: why.reason, refused: why.refused };
    let late =
        |doing: &str, limit: Duration| there(Why::away(format!("{doing} took longer than {} s", limit.as_secs_f64())));

    let connecting = timeout(limit, connect(&address, config.silence)).await;
    let stream = connecting.map_err(|_| late("connecting", limit))?.map_err(|e| there(e.into()))?;
    let limit = config.handshake_timeout;
    let negotiated = timeout(limit, negotiate(stream, config, endpoint.identity.as_deref(), &address)).await;
    let mut dialed = negotiated.map_err(|_| late("negotiating", limit))?.map_err(there)?;

    let wrong = match size {
        Some(size) if dialed.peer.size != size => {
            Some(format!("its size is {} bytes, not {size}: this is another export", dialed.peer.size))
        }
        _ if !dialed.peer.size.is_multiple_of(dialed.peer.block.into()) => {
            let Peer { size, block, .. } = dialed.peer;
            Some(format!("its size of {size} bytes is not a multiple of its block size of {block}"))
        }
        _ => None,
    };
    match wrong {
        None => Ok(dialed),
        Some(reason) => {
            // It need not wait for us; if it does not listen it does not matter.
            let _ = timeout(Duration::from_millis(100), goodbye(&mut dialed.writing, dialed.peer.style)).await;
            Err(there(Why::refused(reason)))
        }
    }
}

/// Ends a transmission as the protocol wants it.
pub(super) async fn goodbye(writing: &mut Writing, style: Style) -> io::Result<()> {
    let request = Request { cookie: 0, command: Command::DISC, flags: CommandFlags::NONE, offset: 0, length: 0 };
    let mut bytes = Vec::new();
    request.encode(style, &mut bytes).map_err(io::Error::other)?;
    writing.write_all(&bytes).await?;
    writing.flush().await?;
    writing.shutdown().await
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(address: &Address, silence: Duration) -> io::Result<Box<dyn Stream>> {
    match address {
        Address::Unix(path) => Ok(Box::new(UnixStream::connect(path).await?)),
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            notice_death(&stream, silence)?;
            Ok(Box::new(stream))
        }
    }
}

/// Has the kernel notice a peer that is gone: while idle by probes, while something is under way by the lack of
/// acknowledgements.
fn notice_death(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    use rustix::net::sockopt;
    let second = Duration::from_secs(1);
    let patience = silence.max(second) * 3;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, silence.max(second))?;
    sockopt::set_tcp_keepintvl(stream, (silence / 2).max(second))?;
    sockopt::set_tcp_keepcnt(stream, KEEPALIVE_PROBES)?;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

async fn negotiate(
    mut stream: Box<dyn Stream>,
    config: &Config,
    identity: Option<&str>,
    address: &Address,
) -> Result<Dialed, Why> {
    let mut hello = [0; SERVER_HELLO_BYTES];
    stream.read_exact(&mut hello).await?;
    let hello = ServerHello::parse(&hello)?;
    if !hello.flags.contains(HandshakeFlags::FIXED_NEWSTYLE) {
        return Err(Why::away("the server is too old: it does not negotiate in the fixed new style"));
    }
    let no_zeroes = hello.flags.contains(HandshakeFlags::NO_ZEROES);
    let flags = ClientFlags::FIXED_NEWSTYLE.with(ClientFlags::NO_ZEROES, no_zeroes);
    let mut bytes = Vec::with_capacity(CLIENT_HELLO_BYTES);
    ClientHello { flags }.encode(&mut bytes);
    stream.write_all(&bytes).await?;
    if let Some(tls) = &config.tls {
        let Some(identity) = identity else {
            return Err(Why::away("nobody says whose certificate its server must have"));
        };
        if let Answer::No { kind, message } = ask(&mut stream, ClientOption::StartTls).await? {
            return Err(Why::refused(format!("the server does not do TLS ({kind:?}{})", after_colon(&message))));
        }
        stream = secure(stream, tls, identity).await?;
    }
    let (export, style) = (&config.export, style(&mut stream).await?);
    let context = match style {
        Style::Simple => None,
        Style::Structured | Style::Extended => context(&mut stream, export).await?,
    };
    let terms = go(&mut stream, export, style).await?;
    let read_only = terms.flags.contains(TransmissionFlags::READ_ONLY);
    let peer = Peer {
        address: address.clone(),
        style,
        size: terms.size,
        block: terms.block,
        payload_max: terms.payload_max,
        context,
        multi: terms.flags.contains(TransmissionFlags::CAN_MULTI_CONN),
    };
    let (reading, writing) = tokio::io::split(stream);
    let mut dialed = Dialed { peer, reading: Box::new(reading), writing: Box::new(writing) };
    if config.read_only && !read_only {
        let _ = goodbye(&mut dialed.writing, style).await;
        return Err(Why::refused("it is writable: only an export that does not change can be a parent"));
    }
    Ok(dialed)
}

/// TLS on top of `stream`, with the server that `identity` names and no other.
async fn secure(stream: Box<dyn Stream>, own: &Certificates, identity: &str) -> Result<Box<dyn Stream>, Why> {
    let name = tls::server_name(identity).map_err(|e| Why::away(e.to_string()))?;
    let connector = TlsConnector::from(own.client_config());
    let stream = connector.connect(name, stream).await.map_err(|e| {
        let inner = e.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match inner {
            Some(rustls::Error::InvalidCertificate(why)) => {
                Why::refused(format!("its certificate is not that of {identity}: {why}"))
            }
            _ => e.into(),
        }
    })?;
    // A certificate of several names would pass for each of them.
    let (_, session) = stream.get_ref();
    match tls::identity(session.peer_certificates().unwrap_or_default()) {
        Ok(found) if found == identity.to_ascii_lowercase() => Ok(Box::new(stream)),
        Ok(found) => Err(Why::refused(format!("its certificate is that of {found}, not of {identity}"))),
        Err(e) => Err(Why::refused(e.to_string())),
    }
}

/// What came before an acknowledgement, or the error.
enum Answer {
    Yes(Vec<OptionReply>),
    No { kind: OptionReplyKind, message: String },
}

async fn ask(stream: &mut Box<dyn Stream>, option: ClientOption) -> Result<Answer, Why> {
    let code = option.code();
    let mut bytes = Vec::new();
    option.encode(&mut bytes)?;
    stream.write_all(&bytes).await?;
    stream.flush().await?;
    let mut replies = Vec::new();
    loop {
        let mut header = [0; OPTION_REPLY_HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = OptionReplyHeader::parse(&header)?;
        if header.option != code {
            return Err(Why::away(format!("it answers {:?} when asked {code:?}", header.option)));
        }
        let mut data = vec![0; header.data_len()?];
        stream.read_exact(&mut data).await?;
        match OptionReply::parse(header.kind, &data)? {
            OptionReply::Ack => return Ok(Answer::Yes(replies)),
            // Whatever was asked, these say that there is no point in going on.
            OptionReply::Error { kind: OptionReplyKind::ERR_SHUTDOWN, message } => {
                return Err(Why::away(format!("the server is shutting down{}", after_colon(&message))));
            }
            OptionReply::Error { kind: OptionReplyKind::ERR_TLS_REQD, message } => {
                return Err(Why::away(format!("the server demands TLS{}", after_colon(&message))));
            }
            OptionReply::Error { kind, message } => return Ok(Answer::No { kind, message }),
            reply if replies.len() < REPLIES_MAX => replies.push(reply),
            _ => return Err(Why::away(format!("more than {REPLIES_MAX} answers to {code:?}"))),
        }
    }
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// The best headers that the server has.
async fn style(stream: &mut Box<dyn Stream>) -> Result<Style, Why> {
    for (option, style) in
        [(ClientOption::ExtendedHeaders, Style::Extended), (ClientOption::StructuredReply, Style::Structured)]
    {
        if let Answer::Yes(_) = ask(stream, option).await? {
            return Ok(style);
        }
    }
    Ok(Style::Simple)
}

/// The number of `base:allocation`, if the server has it.
async fn context(stream: &mut Box<dyn Stream>, export: &str) -> Result<Option<u32>, Why> {
    let query = MetaQuery { name: export.to_string(), queries: vec![ALLOCATION.to_string()] };
    let Answer::Yes(replies) = ask(stream, ClientOption::SetMetaContext(query)).await? else { return Ok(None) };
    let mut found = None;
    for reply in replies {
        match reply {
            OptionReply::MetaContext { id, name } if name == ALLOCATION && found.is_none() => found = Some(id),
            other => return Err(Why::away(format!("it answers {other:?} when asked for {ALLOCATION}"))),
        }
    }
    Ok(found)
}

struct Terms {
    size: u64,
    flags: TransmissionFlags,
    block: u32,
    payload_max: u32,
}

/// Chooses the export; transmission begins.
async fn go(stream: &mut Box<dyn Stream>, export: &str, style: Style) -> Result<Terms, Why> {
    let query = InfoQuery { name: export.to_string(), wanted: vec![InfoKind::BLOCK_SIZE] };
    let replies = match ask(stream, ClientOption::Go(query)).await? {
        Answer::Yes(replies) => replies,
        Answer::No { kind, message } => {
            let what = match kind {
                OptionReplyKind::ERR_UNKNOWN => "it has no such export".to_string(),
                OptionReplyKind::ERR_POLICY => "it does not let us have this export".to_string(),
                OptionReplyKind::ERR_UNSUP => "the server is too old: it does not know GO".to_string(),
                kind => format!("it does not give us this export ({kind:?})"),
            };
            return Err(Why::away(format!("{what}{}", after_colon(&message))));
        }
    };
    let mut terms = None;
    let (mut block, mut payload_max) = (1, PAYLOAD_DEFAULT_BYTES_MAX);
    for reply in replies {
        match reply {
            OptionReply::Info(Info::Export { size_bytes, flags }) => terms = Some((size_bytes, flags)),
            OptionReply::Info(Info::BlockSize(sizes)) => {
                (block, payload_max) = (sizes.min_bytes, sizes.max_payload_bytes);
            }
            OptionReply::Info(Info::Name(name)) if !export.is_empty() && name != export => {
                return Err(Why::refused(format!("it gives us the export {name:?}: this is another export")));
            }
            OptionReply::Info(_) => {}
            other => return Err(Why::away(format!("it answers {other:?} to GO"))),
        }
    }
    let Some((size, flags)) = terms else { return Err(Why::away("it does not say how large the export is")) };
    if style == Style::Simple {
        // A simple reply cannot carry more.
        payload_max = payload_max.min(PAYLOAD_DEFAULT_BYTES_MAX);
    }
    Ok(Terms { size, flags, block, payload_max })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::sockopt;

    /// A peer that is switched off cannot be had in a test; that the kernel is told to notice it can.
    #[test]
    fn the_kernel_watches_for_a_dead_peer() -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
            let stream = TcpStream::connect(listener.local_addr()?).await?;
            notice_death(&stream, Duration::from_secs(5))?;
            assert!(sockopt::socket_keepalive(&stream)?);
            let idle =
                sockopt::tcp_keepidle(&stream)? + sockopt::tcp_keepintvl(&stream)? * sockopt::tcp_keepcnt(&stream)?;
            assert!(idle <= Duration::from_secs(15), "{idle:?}");
            assert_eq!(sockopt::tcp_user_timeout(&stream)?, 15_000);
            Ok(())
        })
    }
}
