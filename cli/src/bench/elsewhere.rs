//! A snapshot of one store becomes a volume of another, over NBD and TLS on this machine's loopback: how soon it can be used,
//! how fast it becomes a volume of its own, and what that does to the I/O of others meanwhile.
//!
//! Both stores are in this process, each with a data thread of its own, and share its processors: two machines have more.

use super::load::{Job, Kind};
use super::place::{Effort, OnStore, Place, in_turns};
use super::rows::{Row, Show};
use super::stats::{estimate, median, quantile};
use super::steady::full;
use anyhow::{Context, Result, bail};
use coppice_engine::shard::block_on;
use coppice_engine::{CreateExternalClone, OpenStore, Pin, Stores, external};
use coppice_nbd::client::{Endpoint, fixed};
use coppice_nbd::server::{Limits, Listener, Server};
use coppice_nbd::tls::{Certificates, Pem};
use coppice_node::remote::{Exports, Parents, Whereabouts};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::runtime::Handle;
use uuid::Uuid;

const BLOCK: usize = 4096;
/// Names in the certificates. nbdcopy asks for the name in the address.
const SOURCE: &str = "localhost";
const READER: &str = "reader";
/// How long a copy may take until it is given up.
const COPY_MAX: Duration = Duration::from_secs(120);
/// First reads that are timed.
const FIRST_READS: usize = 15;
const COPY_PAIRS: usize = 5;

struct Keys {
    chain: String,
    key: String,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    fn keys(&self, name: &str) -> Result<Keys> {
        let key = KeyPair::generate()?;
        let chain = CertificateParams::new(vec![name.to_string()])?.signed_by(&key, &self.issuer)?.pem();
        Ok(Keys { chain, key: key.serialize_pem() })
    }

    fn certificates(&self, keys: &Keys) -> Result<Certificates> {
        let (chain, key, authorities) = (keys.chain.as_bytes(), keys.key.as_bytes(), self.pem.as_bytes());
        Ok(Certificates::new(Pem { chain, key, authorities })?)
    }
}

/// One store serves a snapshot, the other makes volumes of it.
struct Pair<'a> {
    // Who reads is closed before what it reads from.
    b: OnStore<'a>,
    _served: Served,
    _a: OnStore<'a>,
    snapshot: Uuid,
    bytes: u64,
    at: SocketAddr,
    /// With what nbdcopy shows who it is.
    folder: TempDir,
}

struct Served {
    server: Option<Server>,
    runtime: Handle,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.runtime.block_on(server.stop());
        }
    }
}

impl<'a> Pair<'a> {
    fn new(a: &'a Place, b: &'a Place, bytes: u64, cluster: Option<u32>) -> Result<Pair<'a>> {
        let runtime = Handle::try_current().context("a runtime for the network")?;
        let authority = Authority::new()?;
        let (source, reader) = (authority.keys(SOURCE)?, authority.keys(READER)?);
        let folder = tempfile::tempdir()?;
        for (name, text) in [("ca-cert", &authority.pem), ("client-cert", &reader.chain), ("client-key", &reader.key)] {
            std::fs::write(folder.path().join(format!("{name}.pem")), text)?;
        }

        let store_a = a.store(cluster)?;
        let served = Stores::default();
        served.add(store_a.store.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind(("127.0.0.1", 0)))?;
        let at = listener.local_addr()?;
        let server = {
            let _inside = runtime.enter();
            let listener = Listener::Tcp { listener, certificates: authority.certificates(&source)? };
            Server::start(listener, Arc::new(Exports::new(served)), Limits::default())?
        };

        let endpoint = Endpoint { identity: Some(SOURCE.into()), ..Endpoint::tcp(at) };
        let whereabouts: Whereabouts = Arc::new(move |_| fixed(endpoint.clone()));
        let remote = Some((whereabouts, authority.certificates(&reader)?));
        let parents = Parents::new(Stores::default(), b.shard()?, BTreeMap::new(), remote, runtime.clone());
        let external = external::Access { resolver: Some(Arc::new(parents)), ..external::Access::default() };
        let store_b = b.store_with(cluster, OpenStore { external, ..OpenStore::default() })?;

        let volume = store_a.create("source", bytes)?;
        store_a.fill(volume)?;
        let snapshot = store_a.snapshot(volume, "snapshot")?;
        let pin = Pin { lvstore: store_b.store.uuid(), reader: READER.into() };
        block_on(store_a.store.pin(snapshot, pin))?;
        let _served = Served { server: Some(server), runtime };
        Ok(Pair { b: store_b, _served, _a: store_a, snapshot, bytes, at, folder })
    }

    fn restore(&self, name: &str, hydrate: bool) -> Result<Uuid> {
        let how = CreateExternalClone {
            parent: self.snapshot,
            name: name.into(),
            size: Some(self.bytes),
            hydrate,
            ..CreateExternalClone::default()
        };
        Ok(block_on(self.b.store.clone_external(how))?.uuid)
    }

    fn hydrates(&self, lvol: Uuid) -> Result<bool> {
        Ok(block_on(self.b.store.lvol(lvol))?.hydration.is_some())
    }

    fn until_hydrated(&self, lvol: Uuid) -> Result<()> {
        let began = Instant::now();
        while self.hydrates(lvol)? {
            if began.elapsed() > COPY_MAX {
                bail!("not hydrated after {} s", COPY_MAX.as_secs());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Until everything is there and durable, seconds.
    fn hydration(&self, name: &str) -> Result<f64> {
        let began = Instant::now();
        let lvol = self.restore(name, true)?;
        self.until_hydrated(lvol)?;
        let took = began.elapsed().as_secs_f64();
        self.b.remove(lvol)?;
        Ok(took)
    }

    /// The same over the same link into a file, seconds.
    fn nbdcopy(&self, dir: &Path) -> Result<f64> {
        let file = tempfile::NamedTempFile::new_in(dir)?;
        let from = format!(
            "nbds://{SOURCE}:{}/{}?tls-certificates={}",
            self.at.port(),
            self.snapshot,
            self.folder.path().display()
        );
        let began = Instant::now();
        let mut copy = Command::new("nbdcopy");
        let done = copy.args(["--flush", &from]).arg(file.path()).stdin(Stdio::null()).output()?;
        if !done.status.success() {
            bail!("nbdcopy: {}", String::from_utf8_lossy(&done.stderr));
        }
        Ok(began.elapsed().as_secs_f64())
    }
}

pub fn rows(name: &'static str, dir: &Path, effort: &Effort, cluster: Option<u32>, show: &mut Show<'_>) -> Result<()> {
    let bytes = effort.elsewhere_bytes;
    // For the source, and for two copies with a third of something else.
    let (a, b) = (Place::new(name, dir, bytes + bytes / 2)?, Place::new(name, dir, 3 * bytes)?);
    let pair = Pair::new(&a, &b, bytes, cluster)?;
    first_reads(&pair, &a, show)?;
    copies(&pair, &a, dir, show)?;
    beside(&pair, &a, effort, show)
}

/// From the call that makes the volume until something is read from it, and then what one read of the other store's takes.
fn first_reads(pair: &Pair<'_>, place: &Place, show: &mut Show<'_>) -> Result<()> {
    let (mut first, mut next) = (Vec::new(), Vec::new());
    let (size, clusters) = (pair.b.cluster_size(), pair.bytes / pair.b.cluster_size());
    for n in 0..FIRST_READS {
        let began = Instant::now();
        let lvol = pair.restore(&format!("first-{n}"), false)?;
        let read = |places| {
            let job = Job { latencies: true, ..Job::each(Kind::Read, BLOCK, 1, places) };
            Ok::<_, anyhow::Error>(pair.b.on_lvol(lvol, &job)?.latencies)
        };
        read(vec![size * (n as u64 % clusters)])?;
        first.push(began.elapsed().as_secs_f64() * 1e3);
        // Each in a cluster of its own.
        let places = (0..64.min(clusters)).map(|i| (i * 7 + 1) % clusters * size).collect();
        next.extend(read(places)?.iter().map(|ns| f64::from(*ns) / 1e3));
        pair.b.remove(lvol)?;
    }
    let note = format!("(min–max {:.1}–{:.1})", quantile(&first, 0.0), quantile(&first, 1.0));
    let row = Row::alone(full(place, "restored elsewhere: created and first read"), "ms", median(&first));
    show(row.note(note))?;
    for (q, name) in [(0.5, "p50"), (0.99, "p99")] {
        show(Row::alone(full(place, &format!("4k read of the other store's qd1 {name}")), "µs", quantile(&next, q)))?;
    }
    Ok(())
}

/// Against nbdcopy, which makes a file of the same snapshot.
fn copies(pair: &Pair<'_>, place: &Place, dir: &Path, show: &mut Show<'_>) -> Result<()> {
    let rate = |seconds: f64| pair.bytes as f64 / 1e6 / seconds.max(1e-9);
    let name = full(place, &format!("hydration of {} MiB, nbdcopy / lvol", pair.bytes >> 20));
    pair.hydration("warm")?;
    if Command::new("nbdcopy").arg("--version").output().is_err() {
        let row = Row::alone(name, "MB/s", rate(pair.hydration("alone")?));
        return show(row.note("(no nbdcopy here to compare with: install libnbd-bin)"));
    }
    let pairs =
        in_turns(COPY_PAIRS, |_| pair.nbdcopy(dir).map(rate), |n| pair.hydration(&format!("copy-{n}")).map(rate))?;
    let ratio = estimate(&pairs.iter().map(|(raw, lvol)| lvol / raw.max(1e-9)).collect::<Vec<_>>());
    let each = |f: &dyn Fn(&(f64, f64)) -> f64| median(&pairs.iter().map(f).collect::<Vec<_>>());
    let row = Row::alone(name, "MB/s", each(&|(_, lvol)| *lvol));
    show(Row {
        raw: Some(each(&|(raw, _)| *raw)),
        ratio: Some(ratio.median),
        ratio_low: Some(ratio.low),
        ratio_high: Some(ratio.high),
        ..row
    })
}

/// Latency of I/O on another volume of the store into which is copied, against the same without.
fn beside(pair: &Pair<'_>, place: &Place, effort: &Effort, show: &mut Show<'_>) -> Result<()> {
    let span = (pair.bytes / 4).min(64 << 20);
    let other = pair.b.create("other", span)?;
    pair.b.fill(other)?;
    for (kind, what) in [(Kind::Read, "read"), (Kind::Write, "overwrite")] {
        let job = Job { latencies: true, ..Job::random(kind, BLOCK, 4, 0, span, effort.slice * 2) };
        let (mut calm, mut loaded) = (Vec::new(), Vec::new());
        for n in 0..effort.reps {
            calm.extend(pair.b.on_lvol(other, &job)?.latencies);
            let lvol = pair.restore(&format!("{what}-{n}"), true)?;
            let during = pair.b.on_lvol(other, &job)?.latencies;
            // What ran on after the copy's end says nothing of it.
            if pair.hydrates(lvol)? {
                loaded.extend(during);
            }
            pair.b.remove(lvol)?;
        }
        if loaded.is_empty() {
            bail!("every copy ended before {} ms of I/O were over", job.time.as_millis());
        }
        for (q, name) in [(0.5, "p50"), (0.99, "p99")] {
            let us = |all: &[u32]| quantile(&all.iter().map(|ns| f64::from(*ns) / 1e3).collect::<Vec<_>>(), q);
            let (before, during) = (us(&calm), us(&loaded));
            let name = full(place, &format!("4k {what} qd4 {name}, calm / another hydrates"));
            show(Row { raw: Some(before), ratio: Some(before / during.max(1e-9)), ..Row::alone(name, "µs", during) })?;
        }
    }
    Ok(())
}
