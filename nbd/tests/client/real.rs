//! Real servers of others: what they serve is read as it is, what they refuse is told as they say it.

use super::rig::*;
use anyhow::Result;
use coppice_nbd::client::{Error, Extent, ExtentKind, Remote, State};
use coppice_nbd::proto::ErrorCode;
use std::fs;
use std::time::{Duration, Instant};

/// All extents of a device.
fn extents(remote: &Remote, size: u64) -> Result<Vec<(u64, Extent)>> {
    let (mut at, mut all) = (0, Vec::new());
    while at < size {
        for extent in wait(remote.status(at, size - at))? {
            all.push((at, extent));
            at += extent.len;
        }
    }
    assert_eq!(at, size, "no more than asked for");
    Ok(all)
}

/// Where a server sees data, neighbours joined.
fn data(extents: &[(u64, Extent)]) -> Vec<(u64, u64)> {
    let mut found: Vec<(u64, u64)> = Vec::new();
    for (at, extent) in extents.iter().filter(|(_, extent)| extent.kind == ExtentKind::Data) {
        match found.last_mut() {
            Some((off, len)) if *off + *len == *at => *len += extent.len,
            _ => found.push((*at, extent.len)),
        }
    }
    found
}

#[test]
fn nbdkit_reads_of_every_size_and_place() -> Result<()> {
    let size = 10_000_001;
    let server = Server::nbdkit(&["-r", "pattern", &format!("size={size}")])?;
    for readahead_bytes in [0, 65536] {
        let remote = remote(coppice_nbd::client::Config { readahead_bytes, ..config("", server.endpoint()) });
        for (off, len) in [(0, 1), (7, 9), (4095, 2), (65535, 2), (123_456, 70_000), (1_000_000, 3_333_333)] {
            assert!(wait(remote.read(off, len))? == pattern(off, len), "{off} + {len}");
        }
        assert!(wait(remote.read(size - 3, 3))? == pattern(size - 3, 3));
        assert_eq!(remote.size(), Some(size));
        assert!(wait(remote.read(5, 0))?.is_empty());
        let beyond = wait(remote.read(size - 3, 4));
        assert!(matches!(beyond, Err(Error::OutOfRange { .. })), "{beyond:?}");
        let beyond = wait(remote.read(u64::MAX, 4));
        assert!(matches!(beyond, Err(Error::OutOfRange { .. })), "{beyond:?}");
        assert!(remote.counters().bytes_read > 0);
    }
    Ok(())
}

#[test]
fn nbdkit_a_sparse_file_and_its_holes() -> Result<()> {
    let image = Image::new(64)?;
    let server = Server::nbdkit(&["-r", "file", image.path()])?;
    let remote = remote(config("", server.endpoint()));
    image.verify(&remote, 100_000, 16)?;
    let all = extents(&remote, image.len())?;
    assert_eq!(data(&all), image.data);
    assert!(all.iter().all(|(_, extent)| extent.kind != ExtentKind::Zero), "a file's holes are holes: {all:?}");
    // From the middle of an extent on.
    let first = wait(remote.status(1000, 512))?;
    assert_eq!(first, [Extent { len: 512, kind: ExtentKind::Data }]);
    Ok(())
}

#[test]
fn qemu_a_raw_file_and_a_qcow2_image() -> Result<()> {
    let image = Image::new(64)?;
    let qcow2 = image.folder.path().join("image.qcow2");
    run(&["qemu-img", "convert", "-O", "qcow2", image.path(), &qcow2.to_string_lossy()])?;
    for (path, format) in [(&image.path, "raw"), (&qcow2, "qcow2")] {
        let server = Server::qemu(path, &["--read-only", "--shared=4", "-f", format, "-x", "an export"])?;
        let remote = remote(config("an export", server.endpoint()));
        image.verify(&remote, 1 << 20, 4)?;
        image.verify(&remote, 4096, 16)?;
        assert_eq!(data(&extents(&remote, image.len())?), image.data, "{format}");
    }
    Ok(())
}

#[test]
fn qemu_one_client_at_a_time() -> Result<()> {
    let image = Image::new(64)?;
    // A second connection would hang: qemu-nbd takes one client at a time.
    let server = Server::qemu(&image.path, &["--read-only", "-f", "raw"])?;
    let remote = remote(config("", server.endpoint()));
    image.verify(&remote, 65536, 64)?;
    assert_eq!(remote.state(), State::Connected { connections: 1 });
    Ok(())
}

#[test]
fn nbdkit_without_structured_replies() -> Result<()> {
    let image = Image::new(16)?;
    let server = Server::nbdkit(&["-r", "--no-sr", "file", image.path()])?;
    let remote = remote(config("", server.endpoint()));
    image.verify(&remote, 50_000, 8)?;
    // No block status: all of it is data.
    let all = extents(&remote, image.len())?;
    assert_eq!(data(&all), [(0, image.len())]);
    Ok(())
}

#[test]
fn nbdkit_block_sizes_are_kept_to() -> Result<()> {
    let image = Image::new(16)?;
    let policy = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536"];
    let mut args = vec!["-r", "--filter=blocksize-policy", "file", image.path(), "blocksize-error-policy=error"];
    args.extend(policy);
    let server = Server::nbdkit(&args)?;
    for readahead_bytes in [0, 1 << 20] {
        let remote = remote(coppice_nbd::client::Config { readahead_bytes, ..config("", server.endpoint()) });
        for (off, len) in [(1, 1), (4095, 2), (0, 1 << 20), (100, 300_000), (4096, 4096)] {
            assert!(wait(remote.read(off, len))? == image.bytes(off, len), "{off} + {len}");
        }
        assert_eq!(data(&extents(&remote, image.len())?), image.data);
    }
    Ok(())
}

#[test]
fn nbdkit_errors_come_back_at_once_and_are_not_repeated() -> Result<()> {
    let image = Image::new(16)?;
    let trigger = image.folder.path().join("bad");
    let args =
        ["-r", "--filter=error", "file", image.path(), "error-rate=100%", &format!("error-file={}", trigger.display())];
    let server = Server::nbdkit(&args)?;
    let remote = remote(config("", server.endpoint()));
    image.verify(&remote, 65536, 4)?;
    fs::write(&trigger, "")?;
    let start = Instant::now();
    let read = wait(remote.read(512, 512 << 10));
    assert!(matches!(read, Err(Error::Server { code: ErrorCode::EIO, .. })), "{read:?}");
    // What is not known is no hole.
    let status = wait(remote.status(0, image.len()));
    assert!(matches!(status, Err(Error::Server { code: ErrorCode::EIO, .. })), "{status:?}");
    took(start, Duration::ZERO);
    assert!(connected(&remote.state()));
    fs::remove_file(&trigger)?;
    image.verify(&remote, 65536, 4)?;
    assert_eq!(remote.counters().retries, 0);
    Ok(())
}

#[test]
fn nbdkit_a_bad_block_fails_alone() -> Result<()> {
    let bad = 100_000;
    let pread = format!(
        "if [ $4 -le {bad} ] && [ $(($4 + $3)) -gt {bad} ]; then echo EIO bad block >&2; exit 1; fi; head -c $3 /dev/zero | tr '\\0' x"
    );
    let server =
        Server::nbdkit(&["-r", "eval", "get_size=echo 1M", &format!("pread={pread}"), "can_multi_conn=exit 0"])?;
    let remote = remote(config("", server.endpoint()));
    until(&remote, connected);
    // All within one unit of what is read ahead; after the first, all of it is.
    assert!(wait(remote.read(65_536, 1)).is_ok());
    let reads = many(&remote, &[(98_304, 512), (99_999, 1), (bad, 1), (99_840, 512), (100_001, 1)]);
    let good: Vec<bool> = reads.iter().map(Result::is_ok).collect();
    assert_eq!(good, [true, true, false, false, true], "{reads:?}");
    for read in reads {
        match read {
            Ok(bytes) => assert!(bytes.iter().all(|byte| *byte == b'x')),
            Err(Error::Server { code, off, .. }) => assert!(code == ErrorCode::EIO && (99_840..100_352).contains(&off)),
            Err(e) => panic!("{e:?}"),
        }
    }
    Ok(())
}

#[test]
fn nbdkit_a_server_that_says_it_shuts_down_is_away() -> Result<()> {
    let image = Image::new(16)?;
    let trigger = image.folder.path().join("down");
    fs::write(&trigger, "")?;
    let trigger_is = format!("error-file={}", trigger.display());
    let args = ["-r", "--filter=error", "file", image.path(), "error=ESHUTDOWN", "error-pread-rate=100%", &trigger_is];
    let server = Server::nbdkit(&args)?;
    let remote = remote(config("", server.endpoint()));
    let start = Instant::now();
    let read = wait(remote.read_by(0, 4096, start + Duration::from_secs(1)));
    let Err(Error::TimedOut { reason, .. }) = read else { panic!("{read:?}") };
    assert!(reason.contains("shutting down"), "{reason}");
    took(start, Duration::from_secs(1));
    fs::remove_file(&trigger)?;
    image.verify(&remote, 65536, 4)?;
    Ok(())
}

#[test]
fn nbdkit_a_slow_server_is_waited_for_but_no_longer_than_the_deadline() -> Result<()> {
    let server = Server::nbdkit(&["-r", "--filter=delay", "pattern", "size=16M", "rdelay=700ms"])?;
    let config = coppice_nbd::client::Config { silence: Duration::from_millis(250), ..config("", server.endpoint()) };
    let remote = remote(config);
    let start = Instant::now();
    let reads: Vec<(u64, u32)> = (0..32).map(|n| (n * 300_000, 4096)).collect();
    for ((off, len), read) in reads.iter().zip(many(&remote, &reads)) {
        assert!(read? == pattern(*off, *len));
    }
    // Slower than what counts as silence, and yet it is answered, all of it at about the same time.
    took(start, Duration::from_millis(700));
    let start = Instant::now();
    let late = wait(remote.read_by(12 << 20, 512, start + Duration::from_millis(300)));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    took(start, Duration::from_millis(300));
    Ok(())
}

#[test]
fn what_may_not_be_a_parent_is_refused() -> Result<()> {
    let image = Image::new(16)?;
    let writable = Server::nbdkit(&["file", image.path()])?;
    let server = Server::nbdkit(&["-r", "file", image.path()])?;
    let wrong_size = coppice_nbd::client::Config { size: Some(512), ..config("", server.endpoint()) };
    for (config, why) in
        [(config("", writable.endpoint()), "writable"), (wrong_size, "its size is 1048576 bytes, not 512")]
    {
        let remote = remote(config);
        let state = until(&remote, |state| matches!(state, State::Refused { .. }));
        assert!(reason(&state).contains(why), "{state:?}");
        let read = wait(remote.read_by(0, 512, Instant::now() + Duration::from_millis(200)));
        let Err(Error::TimedOut { reason, .. }) = read else { panic!("{read:?}") };
        assert!(reason.contains("refused for") && reason.contains(why), "{reason}");
        assert_eq!(remote.counters().bytes_read, 0);
    }
    let writable = coppice_nbd::client::Config { read_only: false, ..config("", writable.endpoint()) };
    image.verify(&remote(writable), 65536, 4)?;
    Ok(())
}

#[test]
fn an_export_that_is_not_there_is_away_until_it_comes() -> Result<()> {
    let image = Image::new(16)?;
    let name = "7f3c8b1e-6e0d-4a53-9a51-1f9d2f9f6c11";
    let served = image.folder.path().join("exports");
    fs::create_dir(&served)?;
    let server = Server::nbdkit(&["-r", "file", &format!("dir={}", served.display())])?;
    let remote = remote(config(name, server.endpoint()));
    let state = until(&remote, away);
    assert!(reason(&state).contains(&server.address.to_string()), "{state:?}");
    fs::copy(&image.path, served.join(name))?;
    image.verify(&remote, 65536, 4)?;
    Ok(())
}

#[test]
fn a_unix_socket_will_do() -> Result<()> {
    let image = Image::new(16)?;
    let socket = image.folder.path().join("socket");
    let remote = remote(config("", unix(&socket)));
    let state = until(&remote, away);
    assert!(reason(&state).contains("socket: No such file"), "{state:?}");
    let socket = socket.to_string_lossy();
    let _server = std::process::Command::new("nbdkit")
        .args(["-f", "--exit-with-parent", "-r", "-U", &socket, "file", image.path()])
        .spawn()
        .map(Kill)?;
    image.verify(&remote, 65536, 4)?;
    Ok(())
}

struct Kill(std::process::Child);

impl Drop for Kill {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn connections_follow_the_work() -> Result<()> {
    let server = Server::nbdkit(&["-r", "--filter=delay", "pattern", "size=64M", "rdelay=20ms"])?;
    let config =
        coppice_nbd::client::Config { idle_timeout: Duration::from_millis(300), ..config("", server.endpoint()) };
    let remote = remote(config);
    until(&remote, connected);
    assert_eq!(remote.state(), State::Connected { connections: 1 });
    let reads: Vec<(u64, u32)> = (0..40).map(|n| (n << 20, 1 << 20)).collect();
    let start = Instant::now();
    while remote.state() != (State::Connected { connections: 4 }) {
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", remote.state());
        for ((off, len), read) in reads.iter().zip(many(&remote, &reads)) {
            // Not all of it: that takes longer than connections stay.
            let read = read?;
            assert!(read.len() == *len as usize && read[..4096] == pattern(*off, 4096));
        }
    }
    until(&remote, |state| *state == State::Connected { connections: 1 });
    Ok(())
}

#[test]
fn at_rest_there_is_no_connection() -> Result<()> {
    let server = Server::nbdkit(&["-r", "pattern", "size=64M"])?;
    let config =
        coppice_nbd::client::Config { rest_timeout: Duration::from_millis(200), ..config("", server.endpoint()) };
    let remote = remote(config);
    for n in 0..3 {
        assert_eq!(&wait(remote.read(n << 20, 4096))?[..], pattern(n << 20, 4096));
        until(&remote, |state| *state == State::Resting);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(remote.state(), State::Resting);
    }
    assert_eq!((remote.counters().connects, remote.counters().disconnects), (3, 0));
    Ok(())
}

#[test]
fn a_runtime_that_ends_leaves_nobody_waiting() -> Result<()> {
    let server = Server::nbdkit(&["-r", "--filter=delay", "pattern", "size=1M", "rdelay=5"])?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let remote = Remote::new(config("", server.endpoint()), runtime.handle());
    let reader = remote.clone();
    let read = std::thread::spawn(move || wait(reader.read(0, 512)));
    until(&remote, connected);
    std::thread::sleep(Duration::from_millis(200));
    runtime.shutdown_background();
    assert_eq!(read.join().map_err(|_| anyhow::anyhow!("the reader panicked"))?, Err(Error::Closed));
    assert_eq!(wait(remote.read(0, 512)), Err(Error::Closed));
    Ok(())
}
