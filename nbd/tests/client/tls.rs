//! TLS against servers of others: only the right server is read from, and what it says when it does not want us is told.

use super::rig::*;
use crate::pki::{Ca, Order};
use anyhow::Result;
use coppice_nbd::client::{Config, Endpoint, State};
use coppice_nbd::tls::Certificates;
use std::path::Path;
use std::sync::{Arc, Mutex};

const SERVER: &str = "server.nodes.test";
const CLIENT: &str = "client.nodes.test";

/// Long ago.
pub const EXPIRED: (i32, i32) = (2001, 2002);

/// As an order of a certificate.
pub fn names<'a>(names: &'a [&'a str]) -> Order<'a> {
    Order { names, ..Order::default() }
}

pub fn nbdkit(folder: &Path, image: &Image) -> Result<Server> {
    let certificates = format!("--tls-certificates={}", folder.display());
    Server::nbdkit(&["-r", "--tls=require", "--tls-verify-peer", &certificates, "file", image.path()])
}

pub fn named(server: &Server, identity: &str) -> Endpoint {
    Endpoint { identity: Some(identity.to_string()), ..server.endpoint() }
}

fn config_tls(endpoint: Endpoint, tls: Certificates) -> Config {
    Config { tls: Some(tls), ..config("", endpoint) }
}

#[test]
fn nbdkit_and_qemu_are_read_over_tls() -> Result<()> {
    let (image, authority) = (Image::new(64)?, Ca::new("ours")?);
    let folder = image.folder.path().join("pki");
    authority.sign(names(&[SERVER]))?.folder(&authority, &folder, "server")?;
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=server,dir={},verify-peer=on", folder.display());
    let tls = authority.certificates(CLIENT)?;
    let qemu = Server::qemu(
        &image.path,
        &["--read-only", "--shared=4", "-f", "raw", "--object", &credentials, "--tls-creds", "tls0"],
    )?;
    for server in [nbdkit(&folder, &image)?, qemu] {
        let remote = remote(config_tls(named(&server, SERVER), tls.clone()));
        image.verify(&remote, 1 << 20, 4)?;
        image.verify(&remote, 10_000, 16)?;
    }
    Ok(())
}

#[test]
fn a_server_that_is_not_the_right_one_is_refused() -> Result<()> {
    let (image, authority, other) = (Image::new(4)?, Ca::new("ours")?, Ca::new("another")?);
    let folder = |name: &str| image.folder.path().join(name);
    authority.sign(names(&[SERVER]))?.folder(&authority, &folder("good"), "server")?;
    authority.sign(Order { valid: EXPIRED, ..names(&[SERVER]) })?.folder(&authority, &folder("expired"), "server")?;
    authority.sign(names(&[SERVER, "other.nodes.test"]))?.folder(&authority, &folder("many"), "server")?;
    authority.sign(names(&["*.nodes.test"]))?.folder(&authority, &folder("wild"), "server")?;
    other.sign(names(&[SERVER]))?.folder(&other, &folder("unknown"), "server")?;
    let tls = authority.certificates(CLIENT)?;
    for (name, identity, why) in [
        ("good", "other.nodes.test", "not valid for name"),
        ("expired", SERVER, "xpired"),
        ("many", SERVER, "exactly one DNS name"),
        ("wild", SERVER, "wildcard"),
        ("unknown", SERVER, "UnknownIssuer"),
    ] {
        let server = nbdkit(&folder(name), &image)?;
        let remote = remote(config_tls(named(&server, identity), tls.clone()));
        let state = until(&remote, |state| matches!(state, State::Refused { .. } | State::Connected { .. }));
        assert!(reason(&state).contains(why), "{name}: {state:?}");
        assert_eq!(remote.counters().bytes_read, 0);
    }
    // No way around TLS.
    let plain = Server::nbdkit(&["-r", "--tls=off", "file", image.path()])?;
    let remote = remote(config_tls(named(&plain, SERVER), tls));
    let state = until(&remote, |state| matches!(state, State::Refused { .. } | State::Connected { .. }));
    assert!(reason(&state).contains("does not do TLS"), "{state:?}");
    Ok(())
}

#[test]
fn a_server_that_does_not_want_us_is_away_until_it_does() -> Result<()> {
    let (image, authority, other) = (Image::new(4)?, Ca::new("ours")?, Ca::new("another")?);
    let folder = image.folder.path().join("pki");
    authority.sign(names(&[SERVER]))?.folder(&authority, &folder, "server")?;
    let server = nbdkit(&folder, &image)?;

    // Without TLS it gives nothing.
    let plain = remote(config("", server.endpoint()));
    assert!(reason(&until(&plain, away)).contains("demands TLS"));

    // Signed by somebody whom it does not know; then it is replaced.
    let own = other.keys(CLIENT)?.believing(&authority)?;
    let remote = remote(config_tls(named(&server, SERVER), own.clone()));
    let state = until(&remote, away);
    assert!(!reason(&state).is_empty());
    own.replace(authority.keys(CLIENT)?.pem(&authority.pem()))?;
    image.verify(&remote, 65536, 4)?;
    Ok(())
}

#[test]
fn a_server_that_moves_to_another_node_has_another_certificate() -> Result<()> {
    let (image, authority) = (Image::new(16)?, Ca::new("ours")?);
    let folder = |name: &str| image.folder.path().join(name);
    authority.sign(names(&["a.nodes.test"]))?.folder(&authority, &folder("a"), "server")?;
    authority.sign(names(&["b.nodes.test"]))?.folder(&authority, &folder("b"), "server")?;
    let (mut a, b) = (nbdkit(&folder("a"), &image)?, nbdkit(&folder("b"), &image)?);
    let now = Arc::new(Mutex::new(Ok(named(&a, "a.nodes.test"))));
    let known = now.clone();
    let resolver = Arc::new(move || {
        let answer = known.lock().map_or_else(|_| Err("poisoned".to_string()), |answer| answer.clone());
        Box::pin(async move { answer }) as coppice_nbd::client::Resolving
    });
    let config = Config {
        resolver,
        timeout: std::time::Duration::from_secs(20),
        ..config_tls(named(&a, "a.nodes.test"), authority.certificates(CLIENT)?)
    };
    let remote = remote(config);
    image.verify(&remote, 65536, 4)?;
    *now.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Err("its node is not known yet".to_string());
    a.kill();
    let state = until(&remote, |state| reason(state).contains("not known yet"));
    assert!(away(&state));
    // The right address, the name of the node where it was.
    *now.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Ok(named(&b, "a.nodes.test"));
    until(&remote, |state| matches!(state, State::Refused { .. }));
    *now.lock().map_err(|_| anyhow::anyhow!("poisoned"))? = Ok(named(&b, "b.nodes.test"));
    remote.nudge();
    image.verify(&remote, 65536, 4)?;
    Ok(())
}
