//! A good server behind a bad network: slow, dead, cut off in the middle of a message, moved. Every byte that is read is
//! right, and nobody waits beyond the deadline.

use super::rig::*;
use super::tls::{named, names, nbdkit};
use crate::pki::Ca;
use anyhow::Result;
use coppice_nbd::client::{Config, Endpoint, Error, Remote, State};
use coppice_nbd::testing::{Direction, End, Faults, Proxy};
use std::thread;
use std::time::{Duration, Instant};

const MS: fn(u64) -> Duration = Duration::from_millis;

struct Line {
    image: Image,
    server: Server,
    proxy: Proxy,
}

impl Line {
    fn new(units: u64) -> Result<Line> {
        let image = Image::new(units)?;
        // Of the two, the one that survives connections that are cut off.
        let server = Server::qemu(&image.path, &["--read-only", "--shared=0", "-f", "raw"])?;
        let proxy = Proxy::start(server.address)?;
        Ok(Line { image, server, proxy })
    }

    fn config(&self) -> Config {
        // Little is kept, so that it has to be read again.
        Config { silence: MS(400), cache_bytes: 256 << 10, ..config("", Endpoint::tcp(self.proxy.address())) }
    }

    fn remote(&self) -> Remote {
        remote(self.config())
    }
}

#[test]
fn a_slow_network_is_only_slow() -> Result<()> {
    let line = Line::new(32)?;
    line.proxy.set(Faults { delay: MS(30), bytes_per_second: Some(300_000), ..Faults::default() });
    // A request takes much longer than what counts as silence; but bytes come all the time.
    let remote = remote(Config { silence: MS(1500), ..line.config() });
    line.image.verify(&remote, 1 << 20, 8)?;
    assert_eq!((remote.counters().disconnects, remote.counters().retries), (0, 0));
    Ok(())
}

#[test]
fn a_black_hole_is_noticed_and_survived() -> Result<()> {
    let line = Line::new(64)?;
    let remote = line.remote();
    line.image.verify(&remote, 65536, 8)?;
    line.proxy.change(|faults| faults.black_hole = true);
    let reader = remote.clone();
    let start = Instant::now();
    let read = thread::spawn(move || wait(reader.read(500_000, 100_000)));
    let state = until(&remote, away);
    assert!(reason(&state).contains("said nothing"), "{state:?}");
    took(start, MS(400));
    // Others have deadlines of their own.
    let start = Instant::now();
    let late = wait(remote.read_by(0, 512, start + MS(300)));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    took(start, MS(300));
    thread::sleep(MS(1500));
    line.proxy.heal();
    assert!(read.join().expect("the reader")? == line.image.bytes(500_000, 100_000));
    line.image.verify(&remote, 65536, 8)?;
    Ok(())
}

#[test]
fn away_for_longer_than_the_deadline_then_back() -> Result<()> {
    let line = Line::new(16)?;
    let remote = line.remote();
    line.image.verify(&remote, 65536, 4)?;
    line.proxy.change(|faults| faults.refuse = true);
    line.proxy.end_all(End::Reset);
    let start = Instant::now();
    for (off, len) in [(0, 512), (70_000, 512), (500_000, 200_000)] {
        let read = wait(remote.read_by(off, len, start + MS(700)));
        let Err(Error::TimedOut { reason, .. }) = read else { panic!("{read:?}") };
        assert!(reason.contains("away for"), "{reason}");
        assert!(reason.contains(&line.proxy.address().to_string()), "{reason}");
    }
    took(start, MS(700));
    assert!(matches!(remote.state(), State::Away { .. }));
    line.proxy.heal();
    // The next read works; nobody has to do anything.
    line.image.verify(&remote, 65536, 4)?;
    assert!(connected(&remote.state()));
    Ok(())
}

#[test]
fn connections_cut_anywhere_give_no_wrong_byte() -> Result<()> {
    let line = Line::new(64)?;
    for (n, how) in [End::Close, End::Reset].into_iter().cycle().take(8).enumerate() {
        let remote = line.remote();
        // Every connection ends somewhere: in the negotiation, in a header, in data; a little later each time.
        let mut at = 7 + n as u64 * 1013;
        line.proxy.change(|faults| faults.cut = Some((Direction::ToClient, at, how)));
        let reader = remote.clone();
        let ranges: Vec<(u64, u32)> = (0..20).map(|k| (k * 200_000 + n as u64 * 777, 150_000)).collect();
        let asked = ranges.clone();
        let reads = thread::spawn(move || many(&reader, &asked));
        while !reads.is_finished() {
            thread::sleep(MS(15));
            at = at.saturating_mul(3) / 2;
            line.proxy.change(|faults| faults.cut = Some((Direction::ToClient, at, how)));
        }
        for ((off, len), read) in ranges.iter().zip(reads.join().expect("the reader")) {
            assert!(read? == line.image.bytes(*off, *len), "{off} + {len}");
        }
    }
    Ok(())
}

#[test]
fn connections_that_die_all_the_time_still_make_progress() -> Result<()> {
    let line = Line::new(128)?;
    let remote = line.remote();
    until(&remote, connected);
    thread::scope(|scope| {
        let reader = scope.spawn(|| line.image.verify(&remote, 65536, 16));
        let (mut n, mut answered) = (0, 0);
        while !reader.is_finished() {
            // No connection gets far, but each a little.
            thread::sleep(MS(5));
            let now = remote.counters().requests;
            if now > answered {
                (n, answered) = (n + 1, now);
                line.proxy.end_all(if n % 2 == 0 { End::Reset } else { End::Close });
            }
        }
        assert!(n >= 5, "{n} connections died");
        reader.join().expect("the reader")
    })?;
    Ok(())
}

#[test]
fn a_server_at_another_address_is_found() -> Result<()> {
    let mut line = Line::new(64)?;
    let other = Server::nbdkit(&["-r", "file", line.image.path()])?;
    let remote = line.remote();
    line.image.verify(&remote, 65536, 8)?;
    line.proxy.set_target(other.address);
    line.server.kill();
    line.proxy.end_all(End::Reset);
    line.image.verify(&remote, 65536, 8)?;

    // And one that is not the same: it is refused, until the right one is back.
    let smaller = Image::new(32)?;
    let wrong = Server::nbdkit(&["-r", "file", smaller.path()])?;
    line.proxy.set_target(wrong.address);
    line.proxy.end_all(End::Reset);
    let state = until(&remote, |state| matches!(state, State::Refused { .. }));
    assert!(reason(&state).contains("another export"), "{state:?}");
    let read = wait(remote.read_by(3 << 20, 4096, Instant::now() + MS(300)));
    assert!(matches!(read, Err(Error::TimedOut { .. })), "{read:?}");
    line.proxy.set_target(other.address);
    line.image.verify(&remote, 65536, 8)?;
    Ok(())
}

/// Plain, as TLS would notice any of this: where a header is changed, the client must not take what follows for data.
#[test]
fn a_changed_byte_in_a_header_is_never_believed() -> Result<()> {
    let line = Line::new(4)?;
    let plain = Config { readahead_bytes: 0, connections: 1, ..line.config() };
    // How many bytes come before the first reply.
    let before = line.proxy.passed(Direction::ToClient);
    let quiet = remote(plain.clone());
    until(&quiet, connected);
    thread::sleep(MS(50));
    let handshake = line.proxy.passed(Direction::ToClient) - before;
    drop(quiet);
    // A structured reply: 20 bytes of header, then 8 of an offset, then data.
    for at in 0..28 {
        for change in [0x01, 0x80] {
            line.proxy.change(|faults| faults.corrupt = Some((Direction::ToClient, handshake + at, change)));
            let remote = remote(plain.clone());
            until(&remote, connected);
            // Believed or not, the next connection is good.
            let good = line.proxy.accepted();
            let reader = remote.clone();
            let read = thread::spawn(move || wait(reader.read(70_000, 5000)));
            while !read.is_finished() && line.proxy.accepted() == good && remote.counters().disconnects == 0 {
                thread::sleep(MS(1));
            }
            line.proxy.heal();
            let read = read.join().expect("the reader");
            match read {
                Ok(bytes) => assert!(bytes == line.image.bytes(70_000, 5000), "byte {at} ^ {change:#x}"),
                Err(e) => panic!("byte {at} ^ {change:#x}: {e}"),
            }
        }
    }
    Ok(())
}

#[test]
fn under_tls_a_changed_byte_is_noticed_wherever_it_is() -> Result<()> {
    let (image, authority) = (Image::new(64)?, Ca::new("ours")?);
    let folder = image.folder.path().join("pki");
    authority.sign(names(&["a.nodes.test"]))?.folder(&authority, &folder, "server")?;
    let server = nbdkit(&folder, &image)?;
    let proxy = Proxy::start(server.address)?;
    let endpoint =
        Endpoint { address: coppice_nbd::client::Address::Tcp(proxy.address()), ..named(&server, "a.nodes.test") };
    let tls = Some(authority.certificates("b.nodes.test")?);
    for at in [5000, 20_000, 100_003, 1_000_000, 2_345_678] {
        let remote = remote(Config { tls: tls.clone(), connections: 1, ..config("", endpoint.clone()) });
        proxy.change(|faults| faults.corrupt = Some((Direction::ToClient, at, 1)));
        until(&remote, connected);
        thread::scope(|scope| {
            let reader = scope.spawn(|| image.verify(&remote, 65536, 8));
            while !reader.is_finished() && remote.counters().disconnects == 0 {
                thread::sleep(MS(1));
            }
            proxy.heal();
            reader.join().expect("the reader")
        })?;
        assert!(remote.counters().disconnects > 0, "byte {at} made no difference");
    }
    Ok(())
}

#[test]
fn a_device_that_nobody_has_any_more_is_gone_at_once() -> Result<()> {
    let line = Line::new(16)?;
    let remote = line.remote();
    line.image.verify(&remote, 65536, 16)?;
    let reader = remote.clone();
    // A future that is not waited for holds nothing up.
    drop(reader.read(0, 512));
    assert!(line.proxy.connections() > 0);
    drop((remote, reader));
    let start = Instant::now();
    while line.proxy.connections() > 0 {
        assert!(start.elapsed() < MS(5000), "{} connections are left", line.proxy.connections());
        thread::sleep(MS(5));
    }

    // Though the server hears nothing.
    let remote = line.remote();
    until(&remote, connected);
    line.proxy.change(|faults| faults.black_hole = true);
    let mut watch = remote.watch();
    drop(remote);
    let gone = wait(async { watch.wait_for(|_| false).await.is_err() });
    assert!(gone);
    took(start, MS(0));
    Ok(())
}

#[test]
fn random_trouble_for_some_seconds() -> Result<()> {
    let line = Line::new(64)?;
    let remote = line.remote();
    until(&remote, connected);
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    println!("seed {seed}");
    let numbers = noise(seed, 4096);
    let mut numbers = numbers.iter().copied().cycle().map(u64::from);
    let end = Instant::now() + Duration::from_secs(6);
    let mut rounds = 0;
    while Instant::now() < end {
        let mut number = || numbers.next().unwrap_or(0);
        thread::scope(|scope| {
            let reader = scope.spawn(|| line.image.verify(&remote, 50_000, 16));
            while !reader.is_finished() {
                let how = if number() % 2 == 0 { End::Close } else { End::Reset };
                match number() % 6 {
                    0 => line.proxy.change(|faults| faults.black_hole = true),
                    1 => line.proxy.change(|faults| faults.refuse = true),
                    2 => line.proxy.end_all(how),
                    3 => line.proxy.change(|faults| faults.delay = MS(number() / 4)),
                    4 => {
                        let at = number() * 300;
                        line.proxy.change(|faults| faults.cut = Some((Direction::ToClient, at, how)));
                    }
                    _ => line.proxy.change(|faults| faults.bytes_per_second = Some(100_000 * (1 + number()))),
                }
                thread::sleep(MS(number()));
                line.proxy.heal();
                thread::sleep(MS(number()));
            }
            reader.join().expect("the reader")
        })
        .map_err(|e| anyhow::anyhow!("seed {seed}: {e}"))?;
        rounds += 1;
    }
    println!("{rounds} rounds, {:?}", remote.counters());
    Ok(())
}
