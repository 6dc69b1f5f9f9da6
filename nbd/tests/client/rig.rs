//! Servers to connect to, what they serve, and how to wait.

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use coppice_nbd::client::{Address, Config, Endpoint, Error, Remote, State, fixed};
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// No future of a test takes longer.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How late something may be on a machine that is busy with other things.
const SLACK: Duration = Duration::from_secs(5);

/// Whether something that was to take `due` has taken so long, and hardly longer.
#[track_caller]
pub fn took(start: Instant, due: Duration) {
    let took = start.elapsed();
    assert!(took >= due && took < due + SLACK, "it took {took:?}, {due:?} was due");
}

/// Where the client does its work; the tests' futures run elsewhere.
pub static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
});

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Drives a future on this thread, without tokio.
#[track_caller]
pub fn wait<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let until = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return result;
        }
        let now = Instant::now();
        assert!(now < until, "no end after {TEST_TIMEOUT:?}");
        thread::park_timeout(until - now);
    }
}

/// Waits for a state.
#[track_caller]
pub fn until(remote: &Remote, what: impl Fn(&State) -> bool) -> State {
    let mut watch = remote.watch();
    wait(async move { watch.wait_for(what).await.expect("the device is there").clone() })
}

pub fn connected(state: &State) -> bool {
    matches!(state, State::Connected { .. })
}

pub fn away(state: &State) -> bool {
    matches!(state, State::Away { .. })
}

/// The reason of a state that has one, or of an error.
pub fn reason(state: &State) -> &str {
    match state {
        State::Away { reason, .. } | State::Refused { reason, .. } => reason,
        _ => "",
    }
}

/// For tests: everything is tried again soon.
pub fn config(export: &str, endpoint: Endpoint) -> Config {
    let ms = Duration::from_millis;
    Config {
        timeout: Duration::from_secs(20),
        retry_min: ms(20),
        retry_max: ms(100),
        retry_idle_max: ms(200),
        retry_refused: ms(200),
        ..Config::new(export, fixed(endpoint))
    }
}

pub fn remote(config: Config) -> Remote {
    Remote::new(config, RUNTIME.handle())
}

/// A server of somebody else's, which ends with this. The port is ours, so that it is known and nobody takes it.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    _listener: TcpListener,
}

impl Server {
    pub fn nbdkit(args: &[&str]) -> Result<Server> {
        let mut all = vec!["nbdkit", "-f"];
        all.extend(args);
        Server::start(&all)
    }

    /// Of an image; read-only and for any number of clients, if `args` do not say otherwise.
    pub fn qemu(image: &Path, args: &[&str]) -> Result<Server> {
        let mut all = vec!["qemu-nbd", "--persistent"];
        all.extend(args);
        all.push(image.to_str().context("a path")?);
        Server::start(&all)
    }

    /// Starts a server that takes its listening socket from whoever starts it, as both do.
    fn start(args: &[&str]) -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "sh", "-c", script, "sh"]).args(args);
        command.stdin(Stdio::from(std::os::fd::OwnedFd::from(listener.try_clone()?)));
        // What they say of connections that are cut off is of no use, and much.
        if std::env::var_os("NBD_TEST_LOUD").is_none() {
            command.stderr(Stdio::null());
        }
        let child = command.spawn().with_context(|| format!("cannot start {}: run scripts/setup.sh test", args[0]))?;
        Ok(Server { child, address, _listener: listener })
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::tcp(self.address)
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn run(command: &[&str]) -> Result<()> {
    let output = Command::new(command[0]).args(&command[1..]).output().with_context(|| command.join(" "))?;
    ensure!(output.status.success(), "{}: {}", command.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A sparse file whose content is known.
pub struct Image {
    pub folder: tempfile::TempDir,
    pub path: PathBuf,
    pub content: Vec<u8>,
    /// Where there is data: offset and length, in whole blocks of 64 KiB.
    pub data: Vec<(u64, u64)>,
}

pub const UNIT: u64 = 65536;

impl Image {
    /// Of `units` times 64 KiB; data in some of them.
    pub fn new(units: u64) -> Result<Image> {
        // Not on tmpfs, whose holes are pages.
        let folder = tempfile::Builder::new().prefix("coppice-nbd").tempdir_in("/var/tmp")?;
        let path = folder.path().join("image");
        let file = File::create(&path)?;
        file.set_len(units * UNIT)?;
        let mut content = vec![0; (units * UNIT) as usize];
        let mut data: Vec<(u64, u64)> = Vec::new();
        for unit in (0..units).filter(|unit| unit % 5 < 2 || unit % 7 == 3) {
            let bytes = noise(unit, UNIT as usize);
            file.write_all_at(&bytes, unit * UNIT)?;
            content[(unit * UNIT) as usize..][..UNIT as usize].copy_from_slice(&bytes);
            match data.last_mut() {
                Some((off, len)) if *off + *len == unit * UNIT => *len += UNIT,
                _ => data.push((unit * UNIT, UNIT)),
            }
        }
        file.sync_all()?;
        Ok(Image { folder, path, content, data })
    }

    pub fn path(&self) -> &str {
        self.path.to_str().expect("a path of this test")
    }

    pub fn len(&self) -> u64 {
        self.content.len() as u64
    }

    pub fn bytes(&self, off: u64, len: u32) -> &[u8] {
        &self.content[off as usize..][..len as usize]
    }

    /// Reads all of it and compares, with up to `depth` requests at once.
    #[track_caller]
    pub fn verify(&self, remote: &Remote, len: u32, depth: usize) -> Result<(), Error> {
        let offsets: Vec<u64> = (0..self.len()).step_by(len as usize).collect();
        for some in offsets.chunks(depth) {
            let reads: Vec<_> = some.iter().map(|&off| (off, len.min((self.len() - off) as u32))).collect();
            for ((off, len), read) in reads.iter().zip(many(remote, &reads)) {
                assert!(read? == self.bytes(*off, *len), "wrong bytes at {off} + {len}");
            }
        }
        Ok(())
    }
}

/// Reads several ranges at once.
#[track_caller]
pub fn many(remote: &Remote, ranges: &[(u64, u32)]) -> Vec<Result<Bytes, Error>> {
    let mut reads: Vec<_> = ranges.iter().map(|&(off, len)| Box::pin(remote.read(off, len))).collect();
    let mut results: Vec<_> = reads.iter().map(|_| None).collect();
    wait(std::future::poll_fn(move |cx| {
        for (read, result) in reads.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(done) = read.as_mut().poll(cx)
            {
                *result = Some(done);
            }
        }
        match results.iter().all(Option::is_some) {
            true => Poll::Ready(results.drain(..).flatten().collect()),
            false => Poll::Pending,
        }
    }))
}

/// Bytes that look random and are never all zero.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_le_bytes).take(len).collect()
}

/// What nbdkit's pattern plugin serves: each 8 bytes are their own offset.
pub fn pattern(off: u64, len: u32) -> Vec<u8> {
    (off..off + u64::from(len)).map(|at| (at & !7).to_be_bytes()[(at & 7) as usize]).collect()
}

pub fn unix(path: &Path) -> Endpoint {
    Endpoint { address: Address::Unix(path.to_path_buf()), identity: None }
}
