//! The client and the server of this crate: what each promises the other, over TLS and all the styles that both know.

use super::rig::*;
use super::tls::{EXPIRED, names};
use crate::pki::{Ca, Order};
use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;
use coppice_nbd::client::{Address, Config, Endpoint, Error, ExtentKind, Remote};
use coppice_nbd::proto::{ErrorCode, Extent, STATE_HOLE, STATE_ZERO};
use coppice_nbd::server::{
    BASE_ALLOCATION, Exports, Identity, Limits, Listed, Listener, Peer, Refusal, Server, Source, SourceError,
};
use coppice_nbd::tls::Certificates;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;

pub const SOURCE: &str = "source.nodes.test";
pub const READER: &str = "reader.nodes.test";
pub const EXPORT: &str = "2f1b9f30-8d5e-4a3c-9a52-0c8a8e1f5b77";

/// An export in memory; one byte of it cannot be read.
pub struct Memory {
    pub content: Bytes,
    pub bad: Option<u64>,
    /// Where there is data; the rest are holes.
    pub data: Vec<(u64, u64)>,
}

impl Memory {
    fn hole_until(&self, at: u64) -> (bool, u64) {
        let size = self.content.len() as u64;
        match self.data.iter().find(|(off, len)| off + len > at) {
            Some((off, len)) if *off <= at => (false, off + len),
            Some((off, _)) => (true, *off),
            None => (true, size),
        }
    }
}

#[async_trait]
impl Source for Memory {
    fn size_bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn block_bytes(&self) -> u32 {
        512
    }

    fn contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_string()]
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, SourceError> {
        let range = offset..offset + u64::from(length);
        match self.bad {
            Some(bad) if range.contains(&bad) => Err(SourceError::new(5, "a bad page").at(bad)),
            _ => Ok(self.content.slice(range.start as usize..range.end as usize)),
        }
    }

    async fn status(&self, _: &str, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, SourceError> {
        let (mut at, mut extents) = (offset, Vec::new());
        while at < offset + length && extents.len() < max {
            let (hole, end) = self.hole_until(at);
            let end = end.min(offset + length);
            extents.push(Extent { length: end - at, flags: if hole { STATE_HOLE | STATE_ZERO } else { 0 } });
            at = end;
        }
        Ok(extents)
    }
}

struct One(Arc<Memory>);

#[async_trait]
impl Exports for One {
    async fn list(&self, _: &Peer) -> Vec<Listed> {
        Vec::new()
    }

    async fn open(&self, peer: &Peer, name: &str) -> Result<Arc<dyn Source>, Refusal> {
        match peer.identity == Identity::Certified(READER.to_string()) && name == EXPORT {
            true => Ok(self.0.clone()),
            false => Err(Refusal::Unknown),
        }
    }
}

/// Serves `memory`; the address that it got.
pub fn serve(memory: Arc<Memory>, certificates: Certificates, at: Option<SocketAddr>) -> Result<(Server, SocketAddr)> {
    RUNTIME.block_on(async {
        let at = at.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = TcpListener::bind(at).await?;
        let address = listener.local_addr()?;
        let server = Server::start(Listener::Tcp { listener, certificates }, Arc::new(One(memory)), Limits::default())?;
        Ok((server, address))
    })
}

pub fn reader(address: SocketAddr, identity: &str, tls: Certificates) -> Config {
    let endpoint = Endpoint { address: Address::Tcp(address), identity: Some(identity.to_string()) };
    Config { tls: Some(tls), ..config(EXPORT, endpoint) }
}

fn memory(image: &Image, bad: Option<u64>) -> Arc<Memory> {
    Arc::new(Memory { content: image.content.clone().into(), bad, data: image.data.clone() })
}

#[test]
fn data_and_holes_come_over_as_they_are() -> Result<()> {
    let (image, authority) = (Image::new(64)?, Ca::new("ours")?);
    let (_server, address) = serve(memory(&image, None), authority.certificates(SOURCE)?, None)?;
    let remote = remote(reader(address, SOURCE, authority.certificates(READER)?));
    image.verify(&remote, 1 << 20, 4)?;
    image.verify(&remote, 10_000, 16)?;
    let (mut at, mut data) = (0, Vec::new());
    while at < image.len() {
        for extent in wait(remote.status(at, image.len() - at))? {
            match extent.kind {
                ExtentKind::Data => data.push((at, extent.len)),
                kind => assert_eq!(kind, ExtentKind::Hole),
            }
            at += extent.len;
        }
    }
    assert_eq!(data, image.data);
    Ok(())
}

#[test]
fn a_byte_that_cannot_be_read_is_an_error_there_and_nowhere_else() -> Result<()> {
    let (image, authority, bad) = (Image::new(64)?, Ca::new("ours")?, 70_123);
    let (_server, address) = serve(memory(&image, Some(bad)), authority.certificates(SOURCE)?, None)?;
    let remote = remote(reader(address, SOURCE, authority.certificates(READER)?));
    assert!(wait(remote.read(65536, 512))? == image.bytes(65536, 512));
    for (off, len, good) in [(66_000, 100, true), (70_000, 1000, false), (70_656, 512, true), (0, 1 << 20, false)] {
        match wait(remote.read(off, len)) {
            Ok(bytes) => assert!(good && bytes == image.bytes(off, len), "{off} + {len}"),
            Err(Error::Server { code: ErrorCode::EIO, off: at, message, .. }) => {
                assert!(!good && at == bad && message.contains("a bad page"), "{off} + {len}: {at}, {message}");
            }
            Err(e) => panic!("{off} + {len}: {e}"),
        }
    }
    Ok(())
}

#[test]
fn only_who_may_read_reads_and_only_from_the_right_server() -> Result<()> {
    let (image, authority) = (Image::new(4)?, Ca::new("ours")?);
    let (_server, address) = serve(memory(&image, None), authority.certificates(SOURCE)?, None)?;
    let stranger = remote(reader(address, SOURCE, authority.certificates("stranger.nodes.test")?));
    assert!(reason(&until(&stranger, away)).contains("no such export"));
    let expired = remote(reader(
        address,
        SOURCE,
        authority.sign(Order { valid: EXPIRED, ..names(&[READER]) })?.believing(&authority)?,
    ));
    assert!(reason(&until(&expired, away)).contains("xpired"), "{:?}", expired.state());
    let deceived = remote(reader(address, "other.nodes.test", authority.certificates(READER)?));
    let state = until(&deceived, |state| matches!(state, coppice_nbd::client::State::Refused { .. }));
    assert!(reason(&state).contains("other.nodes.test"), "{state:?}");
    Ok(())
}

#[test]
fn a_server_that_stops_and_starts_again_is_not_noticed_by_those_who_can_wait() -> Result<()> {
    let (image, authority) = (Image::new(64)?, Ca::new("ours")?);
    let (memory, own) = (memory(&image, None), authority.certificates(SOURCE)?);
    let (server, address) = serve(memory.clone(), own.clone(), None)?;
    let remote = remote(Config { cache_bytes: 0, ..reader(address, SOURCE, authority.certificates(READER)?) });
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                image.verify(&remote, 65536, 16)?;
            }
            Ok::<_, Error>(())
        });
        let mut server = server;
        for n in 0..6 {
            std::thread::sleep(Duration::from_millis(200));
            // Once with an orderly end, once without.
            if n % 2 == 0 {
                RUNTIME.block_on(server.stop());
            } else {
                drop(server);
            }
            std::thread::sleep(Duration::from_millis(50));
            // One that was dropped may keep its address for a moment.
            let again = || serve(memory.clone(), own.clone(), Some(address)).ok();
            let mut tries = std::iter::repeat_with(again).inspect(|_| std::thread::sleep(Duration::from_millis(10)));
            server = tries.by_ref().take(500).flatten().next().expect("the same address").0;
        }
        until(&remote, connected);
        over.store(true, Ordering::SeqCst);
        reader.join().expect("the reader")
    })?;
    assert!(remote.counters().disconnects >= 6, "{:?}", remote.counters());
    Ok(())
}

#[test]
fn many_devices_of_one_server() -> Result<()> {
    let (image, authority) = (Image::new(16)?, Ca::new("ours")?);
    let (_server, address) = serve(memory(&image, None), authority.certificates(SOURCE)?, None)?;
    let tls = authority.certificates(READER)?;
    let remotes: Vec<Remote> = (0..40).map(|_| remote(reader(address, SOURCE, tls.clone()))).collect();
    for remote in &remotes {
        image.verify(remote, 65536, 4)?;
    }
    Ok(())
}
