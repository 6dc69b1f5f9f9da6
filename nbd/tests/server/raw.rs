//! A client that says exactly what a test wants to be said. Every wait has an end.

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use coppice_nbd::proto::*;
use coppice_nbd::tls::{Certificates, server_name};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longer than any answer takes, shorter than a test may.
pub const PATIENCE: Duration = Duration::from_secs(10);

pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// One connection.
pub struct Raw {
    pub io: Box<dyn Io>,
    pub style: Style,
    cookie: u64,
}

/// A reply put together from its chunks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub cookie: u64,
    /// Data and holes, in the order of arrival.
    pub data: Vec<(u64, Bytes)>,
    pub status: Vec<(u32, Vec<Extent>)>,
    /// Value, message, offset.
    pub error: Option<(ErrorCode, String, Option<u64>)>,
    pub chunks: usize,
}

impl Reply {
    pub fn bytes(&self) -> Vec<u8> {
        self.data.iter().flat_map(|(_, data)| data.to_vec()).collect()
    }

    pub fn code(&self) -> ErrorCode {
        self.error.as_ref().map_or(ErrorCode::OK, |(code, ..)| *code)
    }
}

pub async fn patient<T>(what: impl Future<Output = T>) -> Result<T> {
    timeout(PATIENCE, what).await.context("no answer in time")
}

impl Raw {
    pub fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), style: Style::Simple, cookie: 100 }
    }

    /// After the greeting.
    pub async fn unix(path: &Path) -> Result<Self> {
        Self::new(UnixStream::connect(path).await?).greeted().await
    }

    /// After the greeting, before TLS.
    pub async fn tcp(address: SocketAddr) -> Result<Self> {
        Self::new(TcpStream::connect(address).await?).greeted().await
    }

    /// After STARTTLS; the server has to be "localhost".
    pub async fn tls(address: SocketAddr, certificates: &Certificates) -> Result<Self> {
        Self::tls_to(address, "localhost", certificates.client_config()).await
    }

    pub async fn tls_to(
        address: SocketAddr,
        name: &str,
        config: std::sync::Arc<tokio_rustls::rustls::ClientConfig>,
    ) -> Result<Self> {
        let mut raw = Self::new(TcpStream::connect(address).await?).greeted().await?;
        ensure!(raw.option(ClientOption::StartTls).await? == [OptionReply::Ack]);
        let tls = TlsConnector::from(config).connect(server_name(name)?, raw.io);
        Ok(Self::new(patient(tls).await??))
    }

    async fn greeted(mut self) -> Result<Self> {
        let mut hello = [0; SERVER_HELLO_BYTES];
        patient(self.io.read_exact(&mut hello)).await??;
        ensure!(ServerHello::parse(&hello)?.flags == HandshakeFlags::KNOWN);
        self.send(&[0, 0, 0, 3]).await?;
        Ok(self)
    }

    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        patient(async {
            self.io.write_all(bytes).await?;
            self.io.flush().await
        })
        .await??;
        Ok(())
    }

    /// Says the option; all replies up to the final one.
    pub async fn option(&mut self, option: ClientOption) -> Result<Vec<OptionReply>> {
        let mut out = Vec::new();
        option.encode(&mut out)?;
        self.send(&out).await?;
        self.replies(option.code()).await
    }

    pub async fn replies(&mut self, code: OptionCode) -> Result<Vec<OptionReply>> {
        let mut replies = Vec::new();
        loop {
            let mut header = [0; OPTION_REPLY_HEADER_BYTES];
            patient(self.io.read_exact(&mut header)).await??;
            let header = OptionReplyHeader::parse(&header)?;
            ensure!(header.option == code, "an answer to {:?}", header.option);
            let mut data = vec![0; header.data_len()?];
            patient(self.io.read_exact(&mut data)).await??;
            let reply = OptionReply::parse(header.kind, &data)?;
            let last = reply.is_final();
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// Agrees on a style.
    pub async fn styled(mut self, style: Style) -> Result<Self> {
        let option = match style {
            Style::Simple => return Ok(self),
            Style::Structured => ClientOption::StructuredReply,
            Style::Extended => ClientOption::ExtendedHeaders,
        };
        ensure!(self.option(option).await? == [OptionReply::Ack]);
        self.style = style;
        Ok(self)
    }

    /// Chooses contexts; their ids.
    pub async fn contexts(&mut self, export: &str, queries: &[&str]) -> Result<Vec<u32>> {
        let queries = queries.iter().map(|&query| query.to_owned()).collect();
        let set = ClientOption::SetMetaContext(MetaQuery { name: export.to_owned(), queries });
        let replies = self.option(set).await?;
        ensure!(replies.last() == Some(&OptionReply::Ack), "{replies:?}");
        let id = |reply: &OptionReply| match reply {
            OptionReply::MetaContext { id, .. } => Some(*id),
            _ => None,
        };
        Ok(replies.iter().filter_map(id).collect())
    }

    /// Into transmission; size and flags.
    pub async fn go(&mut self, export: &str) -> Result<(u64, TransmissionFlags)> {
        let query = InfoQuery { name: export.to_owned(), wanted: Vec::new() };
        match self.option(ClientOption::Go(query)).await?.as_slice() {
            [OptionReply::Info(Info::Export { size_bytes, flags }), OptionReply::Ack] => Ok((*size_bytes, *flags)),
            other => Err(anyhow!("GO was answered {other:?}")),
        }
    }

    /// A request without payload; its cookie.
    pub async fn request(&mut self, command: Command, flags: CommandFlags, offset: u64, length: u64) -> Result<u64> {
        self.request_with(command, flags, offset, length, &[]).await
    }

    pub async fn request_with(
        &mut self,
        command: Command,
        flags: CommandFlags,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> Result<u64> {
        self.cookie += 1;
        let mut out = Vec::new();
        Request { cookie: self.cookie, command, flags, offset, length }.encode(self.style, &mut out)?;
        out.extend_from_slice(payload);
        self.send(&out).await?;
        Ok(self.cookie)
    }

    /// The next reply, of which the chunks are not mixed with others. `length` is what was asked for, which only matters
    /// for the data of a simple reply.
    pub async fn reply(&mut self, length: usize) -> Result<Reply> {
        let mut reply = Reply::default();
        loop {
            let mut header = [0; REPLY_HEADER_BYTES_MAX];
            patient(self.io.read_exact(&mut header[..4])).await??;
            let len = reply_header_len(self.style, *header.first_chunk().context("no magic")?)?;
            patient(self.io.read_exact(&mut header[4..len])).await??;
            let header = ReplyHeader::parse(self.style, &header[..len])?;
            ensure!(reply.chunks == 0 || reply.cookie == header.cookie(), "chunks of two requests");
            reply.cookie = header.cookie();
            reply.chunks += 1;
            let (simple, payload_len) = match header {
                ReplyHeader::Simple { error, .. } if error.is_ok() => (true, length),
                ReplyHeader::Simple { error, .. } => {
                    reply.error = Some((error, String::new(), None));
                    return Ok(reply);
                }
                ReplyHeader::Chunk { .. } => (false, header.payload_len(64 << 20)?),
            };
            let mut payload = vec![0; payload_len];
            patient(self.io.read_exact(&mut payload)).await??;
            if simple {
                reply.data.push((0, payload.into()));
                return Ok(reply);
            }
            let ReplyHeader::Chunk { kind, .. } = header else { bail!("not a chunk") };
            match Chunk::parse(self.style, kind, payload.into())? {
                Chunk::None => {}
                Chunk::Data { offset, data } => reply.data.push((offset, data)),
                Chunk::Hole { .. } => bail!("nobody sends holes"),
                Chunk::Status { context, extents } => reply.status.push((context, extents)),
                Chunk::Error { error, message } => reply.error = Some((error, message, None)),
                Chunk::ErrorAt { error, message, offset } => reply.error = Some((error, message, Some(offset))),
            }
            if header.is_done() {
                return Ok(reply);
            }
        }
    }

    /// Request and reply.
    pub async fn ask(&mut self, command: Command, flags: CommandFlags, offset: u64, length: u64) -> Result<Reply> {
        let cookie = self.request(command, flags, offset, length).await?;
        let expected = if command == Command::READ { usize::try_from(length).unwrap_or(0) } else { 0 };
        let reply = self.reply(expected).await?;
        ensure!(reply.cookie == cookie, "an answer to another request");
        Ok(reply)
    }

    pub async fn read(&mut self, offset: u64, length: u64) -> Result<Reply> {
        self.ask(Command::READ, CommandFlags::NONE, offset, length).await
    }

    /// A write, with the flag that extended headers want.
    pub async fn write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) -> Result<Reply> {
        let flags = flags.with(CommandFlags::PAYLOAD_LEN, self.style == Style::Extended);
        let cookie = self.request_with(Command::WRITE, flags, offset, data.len() as u64, data).await?;
        let reply = self.reply(0).await?;
        ensure!(reply.cookie == cookie, "an answer to another request");
        Ok(reply)
    }

    /// The server closes the connection, and says nothing more.
    pub async fn closed(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        // A reset or an alert is an end as well.
        let _ = patient(self.io.read_to_end(&mut rest)).await?;
        ensure!(rest.is_empty(), "{} bytes before the end: {rest:?}", rest.len());
        Ok(())
    }
}
