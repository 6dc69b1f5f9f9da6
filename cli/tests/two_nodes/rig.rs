//! Two `coppice standalone` with certificates, and between them a proxy that makes a bad network of a good one.

use crate::program::coppice;
use anyhow::{Context, Result, bail, ensure};
use coppice_nbd::testing::Proxy;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Of B: how long a read waits for A, seconds.
pub const PARENT_TIMEOUT: u64 = 3;
pub const MIB: usize = 1 << 20;

/// A CA and what it signs.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

impl Authority {
    pub fn new() -> Result<Authority> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Authority { issuer: Issuer::new(params, key), pem })
    }

    /// Writes certificate, key and bundle of one node into a directory.
    pub fn give(&self, dir: &Path, name: &str, expired: bool) -> Result<()> {
        let mut params = CertificateParams::new(vec![name.to_string()])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            params.not_before = rcgen::date_time_ymd(2020, 1, 1);
            params.not_after = rcgen::date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        std::fs::write(dir.join("ca.pem"), &self.pem)?;
        std::fs::write(dir.join("key.pem"), key.serialize_pem())?;
        std::fs::write(dir.join("cert.pem"), certificate.pem())?;
        Ok(())
    }
}

pub struct Node {
    pub name: &'static str,
    pub dir: PathBuf,
    child: Option<Child>,
    pub args: Vec<String>,
}

impl Node {
    pub fn store(&self) -> PathBuf {
        self.dir.join("store.img")
    }

    pub fn start(&mut self) -> Result<()> {
        self.start_with(&["lvstore", "show"])
    }

    /// It runs once this can be answered.
    pub fn start_with(&mut self, question: &[&str]) -> Result<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log"))?;
        let mut command = Command::new(coppice());
        command.arg("standalone").arg("--lvstore").arg(self.store()).arg("--node-id").arg(self.name);
        command.arg("--endpoint").arg(format!("unix://{}", self.dir.join("csi.sock").display()));
        command.arg("--run-dir").arg(self.dir.join("run"));
        for (option, file) in [("--tls-cert", "cert.pem"), ("--tls-key", "key.pem"), ("--tls-ca", "ca.pem")] {
            command.arg(option).arg(self.dir.join(file));
        }
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(command.spawn()?);
        let began = Instant::now();
        while self.coppice(question).is_err() {
            ensure!(began.elapsed() < Duration::from_secs(30), "{} does not serve:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub fn terminate(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        ensure!(status.success(), "{} ended with {status}:\n{}", self.name, self.log());
        Ok(())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(coppice());
        command.arg("--run-dir").arg(self.dir.join("run")).args(args);
        command
    }

    pub fn coppice(&self, args: &[&str]) -> Result<Vec<u8>> {
        answer(args, self.command(args).output()?)
    }

    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_slice(&self.coppice(&[args, &["-o", "json"]].concat())?)?)
    }

    pub fn write(&self, lvol: &str, offset: usize, data: &[u8]) -> Result<()> {
        let offset = offset.to_string();
        let args = ["lvol", "write", lvol, "--offset", &offset];
        let mut child =
            self.command(&args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("standard input")?;
        // An error of the command is told by its end.
        let _ = input.write_all(data);
        drop(input);
        answer(&args, child.wait_with_output()?).map(|_| ())
    }

    pub fn read(&self, lvol: &str, offset: usize, length: usize) -> Result<Vec<u8>> {
        let (offset, length) = (offset.to_string(), length.to_string());
        self.coppice(&["lvol", "read", lvol, "--offset", &offset, "--length", &length])
    }

    /// The lvol as it is described.
    pub fn lvol(&self, name: &str) -> Result<Value> {
        self.json(&["lvol", "show", name])
    }

    pub fn hydrated(&self, name: &str, seconds: u64) -> Result<()> {
        until(seconds, &format!("{name} to be hydrated"), || Ok(self.lvol(name)?["kind"] == "lvol"))
            .with_context(|| format!("{:?}\n{}", self.lvol(name), self.log()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.kill();
        // What a test that failed left mounted.
        let exports = self.dir.join("run/exports");
        let _ = coppice_engine::remove_dead_exports(&exports, &[], &[]);
    }
}

fn answer(args: &[&str], output: Output) -> Result<Vec<u8>> {
    if !output.status.success() {
        bail!("coppice {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

pub fn until(seconds: u64, what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let give_up = Instant::now() + Duration::from_secs(seconds);
    while !done()? {
        ensure!(Instant::now() < give_up, "waited {seconds} s for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Bytes that a seed determines, none of them often the same as its neighbour.
pub fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(length + 8);
    while out.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(length);
    out
}

pub fn free_port() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Node A has snapshots; node B reads them through the proxy.
pub struct Rig {
    pub a: Node,
    pub b: Node,
    pub proxy: Proxy,
    pub authority: Authority,
    pub listen: SocketAddr,
    _dir: TempDir,
}

impl Rig {
    /// `rate`: bytes per second of B's hydration.
    pub fn new(rate: &str) -> Result<Rig> {
        Self::with(rate, "1G", "1G")
    }

    pub fn with(rate: &str, size_a: &str, size_b: &str) -> Result<Rig> {
        let dir = tempfile::Builder::new().prefix("coppice-two-").tempdir()?;
        let authority = Authority::new()?;
        let listen = free_port()?;
        let proxy = Proxy::start(listen)?;
        let node = |name: &'static str, size: &str, args: Vec<String>| -> Result<Node> {
            let node = Node { name, dir: dir.path().canonicalize()?.join(name), child: None, args };
            std::fs::create_dir(&node.dir)?;
            let store = node.store().display().to_string();
            node.coppice(&["lvstore", "create", &store, "--size", size, "--name", name])?;
            authority.give(&node.dir, name, false)?;
            Ok(node)
        };
        let mut a = node("node-a", size_a, vec!["--listen".into(), listen.to_string()])?;
        let args = ["--peer", &format!("node-a={}", proxy.address()), "--parent-timeout", &PARENT_TIMEOUT.to_string()];
        let mut args: Vec<String> = args.iter().map(ToString::to_string).collect();
        args.extend(["--hydration-rate".to_string(), rate.to_string()]);
        let mut b = node("node-b", size_b, args)?;
        a.start()?;
        b.start()?;
        Ok(Rig { a, b, proxy, authority, listen, _dir: dir })
    }

    /// A lvol of A with a hole in the middle, its snapshot's UUID, and what is in it.
    pub fn source(&self, name: &str, mib: usize) -> Result<(String, Vec<u8>)> {
        self.a.coppice(&["lvol", "create", name, &format!("{mib}M")])?;
        let mut content = vec![0; mib * MIB];
        for (from, to) in [(0, mib / 3), (mib / 2, mib)] {
            let data = bytes(from as u64 + 7, (to - from) * MIB - 4096);
            content[from * MIB..from * MIB + data.len()].copy_from_slice(&data);
            self.a.write(name, from * MIB, &data)?;
        }
        let snapshot = self.a.json(&["lvol", "snapshot", name, &format!("{name}-s")])?;
        Ok((snapshot["uuid"].as_str().context("uuid")?.to_string(), content))
    }

    pub fn lvstore_of_b(&self) -> Result<String> {
        Ok(self.b.json(&["lvstore", "show"])?["uuid"].as_str().context("uuid")?.to_string())
    }

    pub fn pin(&self, snapshot: &str) -> Result<()> {
        let lvstore = self.lvstore_of_b()?;
        self.a.coppice(&["lvol", "pin", snapshot, "--lvstore", &lvstore, "--reader", "node-b"]).map(|_| ())
    }

    pub fn restore(&self, snapshot: &str, name: &str) -> Result<()> {
        self.pin(snapshot)?;
        self.b.coppice(&["lvol", "clone-external", snapshot, name]).map(|_| ())
    }

    /// All of a lvol of B.
    pub fn same(&self, name: &str, content: &[u8]) -> Result<()> {
        for (n, piece) in content.chunks(8 * MIB).enumerate() {
            let found = self.b.read(name, n * 8 * MIB, piece.len())?;
            if let Some(at) = found.iter().zip(piece).position(|(x, y)| x != y) {
                bail!("{name}: byte {} is another", n * 8 * MIB + at);
            }
            ensure!(found.len() == piece.len(), "{name}: {} bytes instead of {}", found.len(), piece.len());
        }
        Ok(())
    }

    /// Reads here and there: right, or an error; never other bytes. Answers how many were errors.
    pub fn never_wrong(&self, name: &str, content: &[u8], seed: u64, reads: usize) -> Result<usize> {
        let mut errors = 0;
        for n in 0..reads {
            let length = 100_000;
            let at = (seed.wrapping_mul(31).wrapping_add(n as u64 * 7_777_777) as usize) % (content.len() - length);
            match self.b.read(name, at, length) {
                Ok(found) => ensure!(found == content[at..at + length], "{name}: wrong bytes at {at}"),
                Err(_) => errors += 1,
            }
        }
        Ok(errors)
    }

    /// Both stores are sound.
    pub fn sound(&self) -> Result<()> {
        for node in [&self.a, &self.b] {
            let found = node.json(&["lvstore", "check"])?;
            ensure!(found["findings"].as_array().is_some_and(Vec::is_empty), "{}: {found}", node.name);
        }
        Ok(())
    }
}
