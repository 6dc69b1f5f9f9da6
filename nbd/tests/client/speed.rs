//! How fast it is: reported, not judged. `cargo test -p coppice-nbd --test client speed -- --nocapture`.

use super::tls::{named, names};
use super::{ours, rig::*};
use crate::pki::Ca;
use anyhow::Result;
use coppice_nbd::client::{Config, Remote};
use std::sync::Arc;
use std::time::Instant;

const TOTAL: u64 = 128 << 20;
const REQUEST: u32 = 1 << 20;

/// Sequential reads with so many in flight; MiB/s.
fn sequential(remote: &Remote, depth: usize) -> Result<f64> {
    let start = Instant::now();
    let offsets: Vec<(u64, u32)> = (0..TOTAL).step_by(REQUEST as usize).map(|off| (off, REQUEST)).collect();
    for some in offsets.chunks(depth) {
        for read in many(remote, some) {
            read?;
        }
    }
    Ok(TOTAL as f64 / start.elapsed().as_secs_f64() / f64::from(1 << 20))
}

/// Small reads one after the other: microseconds each.
fn small(remote: &Remote, step: u64) -> Result<f64> {
    const READS: u64 = 500;
    let start = Instant::now();
    for n in 0..READS {
        wait(remote.read(n * step % TOTAL, 4096))?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / READS as f64)
}

#[test]
fn speed_of_reads() -> Result<()> {
    let (authority, folder) = (Ca::new("ours")?, tempfile::tempdir()?);
    authority.sign(names(&["a.nodes.test"]))?.folder(&authority, folder.path(), "server")?;
    let certificates = format!("--tls-certificates={}", folder.path().display());
    let size = format!("size={TOTAL}");
    let plain = Server::nbdkit(&["-r", "memory", &size])?;
    let secure = Server::nbdkit(&["-r", "--tls=require", "--tls-verify-peer", &certificates, "memory", &size])?;
    let tls = authority.certificates(ours::READER)?;
    let content = bytes::Bytes::from(noise(1, TOTAL as usize));
    let memory = Arc::new(ours::Memory { content, bad: None, data: vec![(0, TOTAL)] });
    let (_server, address) = ours::serve(memory, authority.certificates(ours::SOURCE)?, None)?;
    for (name, config) in [
        ("nbdkit", config("", plain.endpoint())),
        ("nbdkit, TLS", Config { tls: Some(tls.clone()), ..config("", named(&secure, "a.nodes.test")) }),
        ("ours, TLS", ours::reader(address, ours::SOURCE, tls)),
    ] {
        let start = Instant::now();
        let first = remote(config.clone());
        wait(first.read(0, 4096))?;
        println!("{name:11}  connect and first read: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
        for connections in [1, 4] {
            let remote = remote(Config { connections, ..config.clone() });
            let rate = sequential(&remote, 8)?;
            println!("{name:11}  1 MiB, 8 in flight, {connections} connection(s): {rate:.0} MiB/s");
        }
        for readahead_bytes in [0, 65536, 256 << 10] {
            let remote = remote(Config { readahead_bytes, ..config.clone() });
            let (sequential, random) = (small(&remote, 4096)?, small(&remote, 9 * 65536 + 4096)?);
            println!(
                "{name:11}  4 KiB one by one, {readahead_bytes} ahead: sequential {sequential:.0} µs, random {random:.0} µs"
            );
        }
    }
    Ok(())
}
