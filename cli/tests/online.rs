//! The commands on a running process: what CSI made is seen and worked on through the admin socket.

mod common;

use anyhow::{Context, Result, bail};
use common::{Driver, MIB, block};
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use serde_json::Value;
use std::process::{Command, Stdio};

fn coppice(driver: &Driver, words: &[&str], input: &[u8]) -> Result<(Option<i32>, Vec<u8>, String)> {
    use std::io::Write;
    let mut command = Command::new(env!("CARGO_BIN_EXE_coppice"));
    command.args(words).arg("--run-dir").arg(driver.path("run"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("stdin")?.write_all(input)?;
    let out = child.wait_with_output()?;
    Ok((out.status.code(), out.stdout, String::from_utf8_lossy(&out.stderr).into_owned()))
}

fn done(driver: &Driver, words: &[&str]) -> Result<Vec<u8>> {
    match coppice(driver, words, b"")? {
        (Some(0), stdout, _) => Ok(stdout),
        (code, _, stderr) => bail!("{words:?}: {code:?}: {stderr}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_of_csi_is_a_lvol_of_the_command_line() -> Result<()> {
    let mut driver = Driver::start(1 << 30).await?;
    let mut c = driver.clients().await?;
    let asked = 10 * MIB + 1;
    let volume = c.create("pvc-1", asked, block(Mode::SingleNodeWriter)).await?;
    let listed: Value = serde_json::from_slice(&done(&driver, &["lvol", "ls", "-o", "json"])?)?;
    let lvol = listed.get(0).context("one lvol")?;
    assert_eq!(lvol["uuid"], volume.as_str());
    assert_eq!((&lvol["name"], &lvol["kind"], &lvol["state"]), (&"pvc-1".into(), &"lvol".into(), &"ok".into()));
    for key in ["alias", "lvstore", "size", "block_size", "num_blocks", "cluster_size", "thin", "children", "exports"] {
        assert!(!lvol[key].is_null(), "{key}");
    }
    assert!(lvol.get("parent").is_some() && lvol.get("allocated_clusters").is_some());

    let (code, _, stderr) = coppice(&driver, &["lvol", "write", "pvc-1", "--offset", "5000"], b"by hand")?;
    assert_eq!(code, Some(0), "{stderr}");
    done(&driver, &["lvol", "snapshot", "pvc-1", "monday"])?;
    done(&driver, &["lvol", "clone", "store/monday", "copy"])?;
    assert_eq!(done(&driver, &["lvol", "read", "copy", "--offset", "5000", "--length", "7"])?, b"by hand");
    done(&driver, &["lvol", "inflate", "copy"])?;
    let copy: Value = serde_json::from_slice(&done(&driver, &["lvol", "show", "copy", "-o", "json"])?)?;
    assert!(copy["parent"].is_null(), "{copy}");
    assert_eq!(done(&driver, &["lvol", "read", "copy", "--offset", "5000", "--length", "7"])?, b"by hand");

    // A snapshot by hand has what CSI needs to restore it.
    let get = coppice_proto::csi::v1::ListSnapshotsRequest { source_volume_id: volume.clone(), ..Default::default() };
    let snapshots = c.controller.list_snapshots(get).await?.into_inner().entries;
    let snapshot = snapshots.first().and_then(|entry| entry.snapshot.clone()).context("one snapshot")?;
    assert_eq!(snapshot.size_bytes, asked);

    let (code, _, stderr) = coppice(&driver, &["lvol", "show", "nobody"], b"")?;
    assert_eq!(code, Some(1));
    assert!(stderr.contains("there is no lvol"), "{stderr}");
    let (code, ..) = coppice(&driver, &["lvol", "paint"], b"")?;
    assert_eq!(code, Some(2));
    let findings: Value = serde_json::from_slice(&done(&driver, &["lvstore", "check", "-o", "json"])?)?;
    assert_eq!(findings, serde_json::json!({"findings": []}));
    driver.terminate().await
}
