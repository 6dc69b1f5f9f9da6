//! For tests only: a proxy that makes a bad network of a good one.
//!
//! It stands between a client and a server, both TCP, and does to every connection what its [`Faults`] say at the moment:
//! delay, throttle, hold everything back, close or reset in the middle of a message, change a byte. It has threads of its
//! own and needs no runtime. When it is dropped, its connections end.
//!
//! ```text
//!                        ┌─ read ─▶ delay line ─▶ write ─┐
//!   client ──▶ address ──┤                               ├──▶ server
//!                        └─ write ◀─ delay line ◀─ read ─┘
//! ```

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How soon a change of the faults is felt.
const TURN: Duration = Duration::from_millis(5);
const CHUNK_BYTES: usize = 64 << 10;
/// Chunks on their way in one direction of one connection.
const DELAY_LINE_CHUNKS: usize = 64;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    ToServer,
    ToClient,
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN: an end of file.
    Close,
    /// RST: an error.
    Reset,
}

/// What is wrong with the network. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// On top of what the network takes, in each direction.
    pub delay: Duration,
    /// Of each direction of each connection.
    pub bytes_per_second: Option<u64>,
    /// Nothing passes, in neither direction, and nobody is told; as if every packet were lost. When it ends, what was under
    /// way arrives. New connections are accepted and hear nothing.
    pub black_hole: bool,
    /// A new connection is reset at once.
    pub refuse: bool,
    /// Ends a connection when so many bytes, counted from its beginning, have passed in this direction.
    pub cut: Option<(Direction, u64, End)>,
    /// The byte with this number, counted from the connection's beginning, is changed: XOR with the last value.
    pub corrupt: Option<(Direction, u64, u8)>,
}

/// The proxy: see the module.
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
}

struct Shared {
    faults: Mutex<Faults>,
    target: Mutex<SocketAddr>,
    connections: Mutex<VecDeque<Weak<Pair>>>,
    accepted: AtomicUsize,
    passed: [AtomicU64; 2],
    stopped: AtomicBool,
}

/// A connection: both its ends, and whether it is to end.
struct Pair {
    client: TcpStream,
    server: TcpStream,
    dead: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Listens on a free port of this machine; connections go on to `target`.
    pub fn start(target: SocketAddr) -> io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            faults: Mutex::default(),
            target: Mutex::new(target),
            connections: Mutex::default(),
            accepted: AtomicUsize::new(0),
            passed: Default::default(),
            stopped: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        thread::Builder::new().name("proxy".into()).spawn(move || accepting.accept(&listener))?;
        Ok(Proxy { shared, address })
    }

    /// Where a client connects to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go there from now on. Those that exist stay as they are.
    pub fn set_target(&self, target: SocketAddr) {
        *lock(&self.shared.target) = target;
    }

    /// From now on the network is like this, for connections that exist, too.
    pub fn set(&self, faults: Faults) {
        *lock(&self.shared.faults) = faults;
    }

    /// Changes some of the faults.
    pub fn change(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut lock(&self.shared.faults));
    }

    /// The network is good again.
    pub fn heal(&self) {
        self.set(Faults::default());
    }

    /// Ends every connection that exists.
    pub fn end_all(&self, how: End) {
        for pair in lock(&self.shared.connections).drain(..) {
            if let Some(pair) = pair.upgrade() {
                pair.end(how);
            }
        }
    }

    /// Connections that were accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Bytes that went this way so far, over all connections.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed[direction as usize].load(Ordering::SeqCst)
    }

    /// Connections that exist.
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).iter().filter(|pair| pair.strong_count() > 0).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        self.end_all(End::Close);
    }
}

impl Pair {
    fn end(&self, how: End) {
        match how {
            End::Close => {
                let _ = self.client.shutdown(Shutdown::Write);
                let _ = self.server.shutdown(Shutdown::Write);
            }
            End::Reset => {
                let _ = rustix::net::sockopt::set_socket_linger(&self.client, Some(Duration::ZERO));
                let _ = rustix::net::sockopt::set_socket_linger(&self.server, Some(Duration::ZERO));
            }
        }
        self.dead.store(true, Ordering::SeqCst);
    }

    fn is_dead(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn ends(&self, direction: Direction) -> (&TcpStream, &TcpStream) {
        match direction {
            Direction::ToServer => (&self.client, &self.server),
            Direction::ToClient => (&self.server, &self.client),
        }
    }
}

impl Shared {
    fn accept(self: &Arc<Shared>, listener: &TcpListener) {
        while !self.stopped.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok((client, _)) => {
                    self.accepted.fetch_add(1, Ordering::SeqCst);
                    if lock(&self.faults).refuse {
                        let _ = rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO));
                        continue;
                    }
                    let shared = self.clone();
                    thread::spawn(move || drop(shared.serve(client)));
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => thread::sleep(TURN),
                Err(_) => thread::sleep(TURN * 10),
            }
        }
    }

    fn serve(self: &Arc<Shared>, client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        let target = *lock(&self.target);
        let server = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
        for stream in [&client, &server] {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(TURN))?;
            stream.set_write_timeout(Some(TURN))?;
        }
        let pair = Arc::new(Pair { client, server, dead: AtomicBool::new(false) });
        {
            let mut connections = lock(&self.connections);
            connections.retain(|pair| pair.strong_count() > 0);
            connections.push_back(Arc::downgrade(&pair));
        }
        for direction in [Direction::ToServer, Direction::ToClient] {
            let (line, end) = sync_channel(DELAY_LINE_CHUNKS);
            let (shared, from) = (self.clone(), pair.clone());
            thread::spawn(move || shared.read(&from, direction, &line));
            let (shared, to) = (self.clone(), pair.clone());
            thread::spawn(move || shared.write(&to, direction, &end));
        }
        Ok(())
    }

    fn over(&self, pair: &Pair) -> bool {
        pair.is_dead() || self.stopped.load(Ordering::SeqCst)
    }

    /// Waits while nothing passes. False when the connection is over.
    fn passes(&self, pair: &Pair) -> bool {
        while lock(&self.faults).black_hole && !self.over(pair) {
            thread::sleep(TURN);
        }
        !self.over(pair)
    }

    /// From the one end into the delay line; an empty chunk is the end of file.
    fn read(&self, pair: &Pair, direction: Direction, line: &SyncSender<(Instant, Vec<u8>)>) {
        let (mut from, _) = pair.ends(direction);
        let mut buf = vec![0; CHUNK_BYTES];
        while self.passes(pair) {
            match from.read(&mut buf) {
                Ok(n) => {
                    let due = Instant::now() + lock(&self.faults).delay;
                    if line.send((due, buf[..n].to_vec())).is_err() || n == 0 {
                        return;
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => return pair.end(End::Reset),
            }
        }
    }

    /// Out of the delay line to the other end.
    fn write(&self, pair: &Pair, direction: Direction, line: &Receiver<(Instant, Vec<u8>)>) {
        let (_, to) = pair.ends(direction);
        let mut passed = 0;
        while !self.over(pair) {
            let (due, chunk) = match line.recv_timeout(TURN) {
                Ok(next) => next,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while Instant::now() < due && !self.over(pair) {
                thread::sleep((due - Instant::now().min(due)).min(TURN));
            }
            if chunk.is_empty() {
                let _ = to.shutdown(Shutdown::Write);
                return;
            }
            if !self.pass_on(pair, direction, to, chunk, &mut passed) {
                return;
            }
        }
    }

    /// Writes a chunk with what is to be done to it. False when the connection is over.
    fn pass_on(
        &self,
        pair: &Pair,
        direction: Direction,
        mut to: &TcpStream,
        mut chunk: Vec<u8>,
        passed: &mut u64,
    ) -> bool {
        let faults = lock(&self.faults).clone();
        let mut end = None;
        if let Some((way, at, how)) = faults.cut
            && way == direction
            && at < passed.saturating_add(chunk.len() as u64)
        {
            chunk.truncate(at.saturating_sub(*passed) as usize);
            end = Some(how);
        }
        if let Some((way, at, change)) = faults.corrupt
            && way == direction
            && let Some(byte) = at.checked_sub(*passed).and_then(|at| chunk.get_mut(at as usize))
        {
            *byte ^= change;
        }
        let mut left = &chunk[..];
        while !left.is_empty() {
            if !self.passes(pair) {
                return false;
            }
            // A throttled connection gets its bytes in small pieces, as a slow link would deliver them.
            let piece = match faults.bytes_per_second {
                Some(rate) => left.len().min((rate as usize / 100).max(1)),
                None => left.len(),
            };
            match to.write(&left[..piece]) {
                Ok(n) => {
                    left = &left[n..];
                    *passed += n as u64;
                    self.passed[direction as usize].fetch_add(n as u64, Ordering::SeqCst);
                    if let Some(rate) = faults.bytes_per_second {
                        thread::sleep(Duration::from_secs_f64(n as f64 / rate.max(1) as f64));
                    }
                }
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
                Err(_) => {
                    pair.end(End::Reset);
                    return false;
                }
            }
        }
        if let Some(how) = end {
            pair.end(how);
        }
        end.is_none()
    }
}
