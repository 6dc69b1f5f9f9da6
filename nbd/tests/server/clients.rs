//! Real clients: nbdinfo, nbdcopy, qemu-img and fio, over a unix socket and over TLS.

use crate::disk::{CLUSTER, Disk, Shelf, certified, locked};
use crate::pki::{Ca, Order};
use crate::raw::PATIENCE;
use crate::{Local, run, serve_tls};
use anyhow::{Context, Result, bail, ensure};
use coppice_nbd::server::{Identity, Limits, Server};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::timeout;

const CLUSTERS: usize = 300;

/// Runs a client; what it says.
async fn client(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(2 * PATIENCE, command.output()).await.with_context(|| format!("{program} hangs"))?;
    let output = output.with_context(|| format!("{program} cannot be run; scripts/setup.sh test installs it"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        bail!("{program} {arguments:?}: {}\n{}{}", output.status, text(&output.stdout), text(&output.stderr));
    }
    Ok(text(&output.stdout))
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no text")
}

/// A server over TLS, with the folder that libnbd and QEMU want.
struct Remote {
    _server: Server,
    address: SocketAddr,
    folder: TempDir,
    ca: Ca,
}

impl Remote {
    async fn start(exports: Shelf) -> Result<Self> {
        let (ca, folder) = (Ca::new("ca")?, tempfile::tempdir()?);
        let (server, address) = serve_tls(Arc::new(exports), ca.certificates("localhost")?, Limits::default()).await?;
        ca.keys("node-b")?.folder(&ca, folder.path(), "client")?;
        Ok(Self { _server: server, address, folder, ca })
    }

    fn uri(&self, export: &str) -> String {
        self.uri_with(export, self.folder.path())
    }

    fn uri_with(&self, export: &str, certificates: &Path) -> String {
        let port = self.address.port();
        format!("nbds://localhost:{port}/{export}?tls-certificates={}", certificates.display())
    }

    /// What qemu-img needs to open the export.
    fn qemu(&self, export: &str, more: &str) -> [String; 3] {
        let folder = self.folder.path().display();
        let port = self.address.port();
        [
            "--object".to_owned(),
            format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={folder}{more}"),
            format!(
                "driver=nbd,server.type=inet,server.host=localhost,server.port={port},export={export},tls-creds=tls0"
            ),
        ]
    }
}

fn everybody() -> [Identity; 2] {
    [Identity::Local, certified("node-b")]
}

/// Data and holes as the disk has them, as (start, length, hole) with equal neighbours put together.
fn map() -> Vec<(u64, u64, bool)> {
    let mut map: Vec<(u64, u64, bool)> = Vec::new();
    for cluster in 0..CLUSTERS as u64 {
        let (length, hole) = (CLUSTER as u64, cluster % 3 == 2);
        match map.last_mut() {
            Some((_, last, same)) if *same == hole => *last += length,
            _ => map.push((cluster * length, length, hole)),
        }
    }
    map
}

/// The values of `"key": value` in a client's JSON, in order. Numbers and truth values need no more than this.
fn values<'a>(json: &'a str, key: &str) -> Vec<&'a str> {
    let key = format!("\"{key}\"");
    let after = json.match_indices(&key).filter_map(|(at, _)| json[at + key.len()..].trim_start().strip_prefix(':'));
    after.map(|rest| rest.split([',', '}', '\n']).next().unwrap_or("").trim()).collect()
}

fn numbers(json: &str, key: &str) -> Vec<u64> {
    values(json, key).iter().filter_map(|value| value.parse().ok()).collect()
}

/// Everything that reads one read-only export.
async fn read_everything(uri: &str, disk: &Disk) -> Result<()> {
    let content = disk.content();
    let info = client("nbdinfo", &["--json", uri]).await?;
    ensure!(numbers(&info, "export-size") == [content.len() as u64], "{info}");
    for (key, value) in [
        ("is_read_only", "true"),
        ("can_multi_conn", "true"),
        ("can_df", "true"),
        ("can_cache", "true"),
        ("can_flush", "false"),
        ("block_size_preferred", "65536"),
        ("block_size_maximum", "33554432"),
        ("description", "\"a disk in memory\""),
    ] {
        ensure!(values(&info, key) == [value], "{key} is not {value}: {info}");
    }
    ensure!(info.contains("base:allocation") && info.contains("coppice:delta:0a1b"), "{info}");

    let json = client("nbdinfo", &["--json", "--map", uri]).await?;
    let holes = numbers(&json, "type").into_iter().map(|kind| kind == 3);
    let found: Vec<_> = numbers(&json, "offset").into_iter().zip(numbers(&json, "length")).zip(holes).collect();
    let found: Vec<_> = found.into_iter().map(|((start, length), hole)| (start, length, hole)).collect();
    ensure!(found == map(), "{json}");
    let delta = client("nbdinfo", &["--json", "--map=coppice:delta:0a1b", uri]).await?;
    ensure!(numbers(&delta, "type").iter().take(3).eq(&[1, 0, 1]), "{delta}");

    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("copy");
    client("nbdcopy", &[uri, text(&copy)?]).await?;
    ensure!(fs::read(&copy)? == content, "nbdcopy read something else");
    // As an old client does it: no structured replies, one request at a time.
    let plain = folder.path().join("plain");
    client("nbdcopy", &["--synchronous", "--allocated", uri, text(&plain)?]).await?;
    ensure!(fs::read(&plain)? == content, "nbdcopy --synchronous read something else");
    Ok(())
}

#[test]
fn libnbd_reads() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(CLUSTERS));
        let local = Local::start(Shelf::default().with("disk", &disk, &everybody()))?;
        read_everything(&local.uri("disk"), &disk).await
    })
}

#[test]
fn libnbd_reads_over_tls() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(CLUSTERS));
        let hers = Arc::new(Disk::sparse(1));
        let exports = Shelf::default().with("disk", &disk, &everybody()).with("hers", &hers, &[certified("node-x")]);
        let remote = Remote::start(exports).await?;
        read_everything(&remote.uri("disk"), &disk).await?;

        let list = client("nbdinfo", &["--list", "--json", &remote.uri("")]).await?;
        ensure!(values(&list, "export-name") == ["\"disk\""], "{list}");
        let refused = client("nbdinfo", &[&remote.uri("hers")]).await.err().context("it was opened")?;
        ensure!(format!("{refused:#}").contains("No such file or directory for export: hers"), "{refused:#}");

        // Who has no good certificate sees nothing.
        let (other, folder) = (Ca::new("ca")?, tempfile::tempdir()?);
        let expired = Order { names: &["node-b"], valid: (2020, 2021), ..Order::default() };
        for (what, keys) in [("foreign", other.keys("node-b")?), ("expired", remote.ca.sign(expired)?)] {
            let bad = folder.path().join(what);
            keys.folder(&remote.ca, &bad, "client")?;
            for option in ["--list", "--size"] {
                let answer = client("nbdinfo", &[option, &remote.uri_with("disk", &bad)]).await;
                ensure!(answer.is_err(), "{what}: {answer:?}");
            }
        }
        let plain = format!("nbd://localhost:{}/disk", remote.address.port());
        let refused = client("nbdinfo", &["--list", &plain]).await.err().context("it was answered without TLS")?;
        ensure!(!format!("{refused:#}").contains("a disk in memory"), "{refused:#}");
        Ok(())
    })
}

/// Copies a file to an empty disk, and looks what arrived.
async fn written(disk: &Disk, uri: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("image");
    fs::write(&file, Disk::sparse(CLUSTERS).content())?;
    client("nbdcopy", &["--flush", text(&file)?, uri]).await?;
    ensure!(disk.content() == fs::read(&file)?, "something else was written");
    ensure!(locked(&disk.seen).iter().any(|what| what == "flush"));
    Ok(())
}

#[test]
fn libnbd_writes() -> Result<()> {
    run(async {
        let disk = || {
            let disk = Disk::writable(CLUSTERS);
            locked(&disk.bytes).fill(0xee);
            Arc::new(disk)
        };
        let (near, far) = (disk(), disk());
        let local = Local::start(Shelf::default().with("disk", &near, &everybody()))?;
        written(&near, &local.uri("disk")).await?;
        let remote = Remote::start(Shelf::default().with("disk", &far, &everybody())).await?;
        written(&far, &remote.uri("disk")).await
    })
}

/// qemu-img reads, with what it needs to open the export as its last arguments.
async fn qemu_reads(open: &[&str], disk: &Disk) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let qemu = async |command: &str, options: &[&str], target: &[&str]| {
        client("qemu-img", &[&[command], options, &["--image-opts"], open, target].concat()).await
    };
    let info = qemu("info", &["--output=json"], &[]).await?;
    ensure!(numbers(&info, "virtual-size").contains(&(disk.content().len() as u64)), "{info}");
    let json = qemu("map", &["--output=json"], &[]).await?;
    let zero = values(&json, "zero").into_iter().map(|zero| zero == "true");
    let ranges = numbers(&json, "start").into_iter().zip(numbers(&json, "length"));
    let found: Vec<_> = ranges.zip(zero).map(|((start, length), hole)| (start, length, hole)).collect();
    ensure!(found == map(), "{json}");
    let raw: PathBuf = folder.path().join("raw");
    qemu("convert", &["-O", "raw"], &[text(&raw)?]).await?;
    ensure!(fs::read(&raw)? == disk.content(), "qemu-img read something else");
    Ok(())
}

#[test]
fn qemu_img_reads() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { block: 512, ..Disk::sparse(CLUSTERS) });
        let local = Local::start(Shelf::default().with("disk", &disk, &everybody()))?;
        let open = format!("driver=nbd,server.type=unix,server.path={},export=disk", local.socket.display());
        qemu_reads(&[&open], &disk).await
    })
}

#[test]
fn qemu_img_reads_over_tls() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { block: 512, ..Disk::sparse(CLUSTERS) });
        let remote = Remote::start(Shelf::default().with("disk", &disk, &everybody())).await?;
        let [object, credentials, open] = remote.qemu("disk", "");
        qemu_reads(&[&object, &credentials, &open], &disk).await?;
        // An older TLS is none.
        let [object, credentials, open] = remote.qemu("disk", ",priority=NORMAL:-VERS-TLS1.3");
        let old = client("qemu-img", &["info", &object, &credentials, "--image-opts", &open]).await;
        ensure!(old.is_err(), "TLS 1.2 was spoken: {old:?}");
        Ok(())
    })
}

/// fio writes and verifies what it wrote, many requests at a time. (For TLS its library takes certificates from one place of
/// the whole machine only.)
#[test]
fn fio_verifies() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { block: 512, ..Disk::writable(CLUSTERS) });
        let local = Local::start(Shelf::default().with("disk", &disk, &everybody()))?;
        let folder = tempfile::tempdir()?;
        let uri = format!("--uri={}", local.uri("disk"));
        let size = format!("--size={}", CLUSTERS * CLUSTER);
        let aux = format!("--aux-path={}", folder.path().display());
        let load = ["--name=load", "--ioengine=nbd", &uri, &size, &aux, "--iodepth=32", "--bsrange=512-256k"];
        let check = ["--rw=randrw", "--verify=crc32c", "--verify_fatal=1", "--io_size=24m", "--randseed=7"];
        let report = client("fio", &[&load[..], &check, &["--output-format=json"]].concat()).await?;
        let errors = numbers(&report, "error");
        ensure!(!errors.is_empty() && errors.iter().all(|error| *error == 0), "{report}");
        ensure!(numbers(&report, "total_ios").iter().any(|ios| *ios > 100), "{report}");
        Ok(())
    })
}
