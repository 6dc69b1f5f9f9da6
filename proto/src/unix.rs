//! Unix sockets: bound with mode 0600 from the first moment, in a directory of mode 0700 when we make it.

use hyper_util::rt::TokioIo;
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use tokio::net::{UnixListener, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// The largest message taken from a peer: a list of all lvols of a large store fits.
pub const MESSAGE_BYTES_MAX: usize = 256 << 20;

/// The path in `unix:///path`, `unix:/path` or `/path`.
pub fn parse_endpoint(endpoint: &str) -> Result<PathBuf, String> {
    let path = endpoint.strip_prefix("unix://").or_else(|| endpoint.strip_prefix("unix:")).unwrap_or(endpoint);
    if path.contains("://") {
        return Err(format!("endpoint {endpoint:?}: only unix sockets are served, as unix:///path/to/csi.sock"));
    }
    if !path.starts_with('/') {
        return Err(format!(
            "endpoint {endpoint:?}: the path of the socket must be absolute, as unix:///path/to/csi.sock"
        ));
    }
    Ok(PathBuf::from(path))
}

/// Makes `dir` (mode 0700) and its parents, if they are not there.
pub fn private_dir(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Listens at `path`. A socket that nobody answers is replaced; one that somebody serves is `AddrInUse`.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        private_dir(dir)?;
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => {
            let message = format!("{} is served by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            use std::os::unix::fs::FileTypeExt;
            if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
                let message = format!("{} exists and is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
            }
            std::fs::remove_file(path)?;
        }
        Err(e) => return Err(e),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // The mode of the socket's own inode is the mode that bind gives to the file: nobody sees it wider.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 128)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

/// A channel over a stream that is connected already. It cannot be connected again.
pub async fn over<S>(stream: S) -> Result<Channel, tonic::transport::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Some(TokioIo::new(stream));
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
            async move { stream }
        }))
        .await
}

/// A channel to the server at `path`; the connection is made at once, so that an absent server is seen here.
pub async fn connect(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_path_buf();
    // The address is a formality: the connector below decides where the bytes go.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn endpoints() {
        assert_eq!(parse_endpoint("unix:///a/b"), Ok(PathBuf::from("/a/b")));
        assert_eq!(parse_endpoint("unix:/a/b"), Ok(PathBuf::from("/a/b")));
        assert_eq!(parse_endpoint("/a/b"), Ok(PathBuf::from("/a/b")));
        for bad in ["tcp://1.2.3.4:5", "unix://a/b", "a/b", ""] {
            assert!(parse_endpoint(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn private_and_exclusive() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("made/admin.sock");
        let first = listen(&path)?;
        let mode = |p: &Path| std::fs::metadata(p).map(|m| m.permissions().mode() & 0o777);
        assert_eq!(mode(&path)?, 0o600);
        assert_eq!(mode(&dir.path().join("made"))?, 0o700);
        assert_eq!(listen(&path).map_err(|e| e.kind()).err(), Some(io::ErrorKind::AddrInUse));
        drop(first);
        listen(&path)?;
        let file = dir.path().join("file");
        std::fs::write(&file, b"kept")?;
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read(&file)?, b"kept");
        Ok(())
    }
}
