//! Who is believed, and what happens when certificates change.

use crate::disk::{Disk, Shelf, certified};
use crate::pki::{BOTH, Ca, Keys, Order};
use crate::raw::Raw;
use crate::{run, serve_tls, until};
use anyhow::{Context, Result, ensure};
use coppice_nbd::proto::*;
use coppice_nbd::server::{Limits, Server};
use coppice_nbd::tls::{Certificates, Pem, is_believed, server_name};
use rcgen::ExtendedKeyUsagePurpose;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::TLS13;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn shelf() -> Shelf {
    Shelf::default().with("disk", &Arc::new(Disk::sparse(4)), &[certified("node-b")])
}

async fn serve(certificates: Certificates) -> Result<(Server, SocketAddr, Arc<Shelf>)> {
    let exports = Arc::new(shelf());
    let (server, address) = serve_tls(Arc::<Shelf>::clone(&exports), certificates, Limits::default()).await?;
    Ok((server, address, exports))
}

/// The client gets nothing: the handshake fails, or the connection ends with the first word after it (the server checks
/// the client's certificate when the client believes to be through).
async fn refused(address: SocketAddr, client: &Certificates) -> Result<()> {
    let Ok(mut raw) = Raw::tls(address, client).await else { return Ok(()) };
    let answer = raw.option(ClientOption::List).await;
    ensure!(answer.is_err(), "it was answered: {answer:?}");
    Ok(())
}

fn order<'a>(names: &'a [&'a str]) -> Order<'a> {
    Order { names, ..Order::default() }
}

#[test]
fn one_knows_whether_ones_own_certificate_is_believed() -> Result<()> {
    let (ca, other) = (Ca::new("ca")?, Ca::new("ca")?);
    let both = format!("{}{}", other.pem(), ca.pem());
    let names = &["node-a"];
    let (good, expired) = (ca.keys("node-a")?, ca.sign(Order { valid: (2020, 2021), ..order(names) })?);
    let early = ca.sign(Order { valid: (3000, 4000), ..order(names) })?;
    for (what, keys, authorities, wanted) in [
        ("good", &good, ca.pem(), true),
        ("one of two", &good, both.clone(), true),
        ("another authority of that name", &good, other.pem(), false),
        ("expired", &expired, both.clone(), false),
        ("by a clock that is behind", &early, both, true),
        ("early and of another", &early, other.pem(), false),
    ] {
        ensure!(is_believed(keys.chain.as_bytes(), authorities.as_bytes())? == wanted, "{what}");
    }
    ensure!(is_believed(good.chain.as_bytes(), b"nonsense").is_err(), "no authorities");
    Ok(())
}

#[test]
fn only_good_certificates_are_believed() -> Result<()> {
    run(async {
        let (ca, other) = (Ca::new("ca")?, Ca::new("ca")?);
        let (server, address, exports) = serve(ca.certificates("localhost")?).await?;
        let names = &["node-b"];
        let bad: [(&str, Keys); 4] = [
            ("expired", ca.sign(Order { valid: (2020, 2021), ..order(names) })?),
            ("not yet valid", ca.sign(Order { valid: (3000, 4000), ..order(names) })?),
            ("signed by another", other.keys("node-b")?),
            ("for servers only", ca.sign(Order { usages: &[ExtendedKeyUsagePurpose::ServerAuth], ..order(names) })?),
        ];
        for (n, (what, keys)) in (1..).zip(bad) {
            let config = client_config(&ca, &keys)?;
            let answered = match Raw::tls_to(address, "localhost", config).await {
                Ok(mut raw) => raw.option(ClientOption::List).await.is_ok(),
                Err(_) => false,
            };
            ensure!(!answered, "{what}: it was answered");
            until(what, || server.counts().negotiations_failed == n).await?;
        }
        // Good certificates of nobody in particular.
        for names in [&[][..], &["node-b", "node-c"], &["*.example.com"]] {
            let config = client_config(&ca, &ca.sign(order(names))?)?;
            let mut raw = Raw::tls_to(address, "localhost", config).await?;
            ensure!(raw.option(ClientOption::List).await.is_err(), "{names:?}: it was answered");
        }
        ensure!(exports.asked.load(SeqCst) == 0, "somebody looked for exports");
        let mut good = Raw::tls(address, &ca.certificates("node-b")?).await?;
        good.go("disk").await?;
        Ok(())
    })
}

/// A client's configuration without the checks of [`Certificates`].
fn client_config(ca: &Ca, keys: &Keys) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let chain = CertificateDer::pem_slice_iter(keys.chain.as_bytes()).collect::<Result<_, _>>()?;
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(keys.key.as_bytes())?;
    Ok(Arc::new(config.with_root_certificates(roots).with_client_auth_cert(chain, key)?))
}

#[test]
fn without_a_certificate_there_is_nothing() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let (_server, address, exports) = serve(ca.certificates("localhost")?).await?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
        let config = Arc::new(config.with_root_certificates(roots).with_no_client_auth());
        if let Ok(mut raw) = Raw::tls_to(address, "localhost", config).await {
            ensure!(raw.option(ClientOption::List).await.is_err(), "it was answered");
        }
        ensure!(exports.asked.load(SeqCst) == 0, "somebody looked for exports");
        Ok(())
    })
}

#[test]
fn a_client_does_not_believe_everybody_either() -> Result<()> {
    run(async {
        let (ca, other) = (Ca::new("ca")?, Ca::new("ca")?);
        let client = ca.certificates("node-b")?;
        let only = |usage| Order { usages: usage, ..order(&["localhost"]) };
        let bad: [(&str, Keys); 4] = [
            ("another node", ca.keys("node-c")?),
            ("signed by another", other.keys("localhost")?),
            ("expired", ca.sign(Order { valid: (2020, 2021), ..order(&["localhost"]) })?),
            ("for clients only", ca.sign(only(&[ExtendedKeyUsagePurpose::ClientAuth]))?),
        ];
        for (what, keys) in bad {
            let (_server, address, _) = serve(keys.believing(&ca)?).await?;
            ensure!(Raw::tls(address, &client).await.is_err(), "{what}: it was believed");
        }
        let (_server, address, _) = serve(ca.sign(only(BOTH))?.believing(&ca)?).await?;
        Raw::tls(address, &client).await?.go("disk").await?;
        Ok(())
    })
}

#[test]
fn certificates_change_while_connections_run() -> Result<()> {
    run(async {
        let (old, new) = (Ca::new("old")?, Ca::new("new")?);
        let certificates = old.certificates("localhost")?;
        let (_server, address, _) = serve(certificates.clone()).await?;
        let (old_client, new_client) = (old.certificates("node-b")?, new.certificates("node-b")?);
        let mut running = Raw::tls(address, &old_client).await?.styled(Style::Structured).await?;
        running.go("disk").await?;
        refused(address, &new_client).await?;

        let (new_keys, new_pem) = (new.keys("localhost")?, new.pem());
        // What does not fit together changes nothing.
        let foreign = new.keys("localhost")?;
        let empty = Pem { chain: &[], key: &[], authorities: &[] };
        for bad in [
            Pem { key: foreign.key.as_bytes(), ..new_keys.pem(&new_pem) },
            Pem {
                authorities: b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                ..new_keys.pem(&new_pem)
            },
            Pem { chain: b"nothing", ..new_keys.pem(&new_pem) },
            empty,
        ] {
            let why = certificates.replace(bad).err().context("it was taken")?;
            ensure!(!why.to_string().contains("PRIVATE"), "{why}");
        }
        Raw::tls(address, &old_client).await?.go("disk").await?;

        certificates.replace(new_keys.pem(&new_pem))?;
        ensure!(running.read(0, 4096).await?.bytes().len() == 4096, "the running connection was cut");
        Raw::tls(address, &new_client).await?.go("disk").await?;
        refused(address, &old_client).await?;

        // Both for a while, as when an authority is renewed.
        let both = old.pem() + &new_pem;
        certificates.replace(new_keys.pem(&both))?;
        let between = Certificates::new(old.keys("node-b")?.pem(&both))?;
        Raw::tls(address, &between).await?.go("disk").await?;
        ensure!(running.read(0, 4096).await?.bytes().len() == 4096);
        Ok(())
    })
}

/// A session that is resumed would be let in without a look at the certificate.
#[test]
fn nothing_is_resumed() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let (_server, address, _) = serve(ca.certificates("localhost")?).await?;
        let config = client_config(&ca, &ca.keys("node-b")?)?;
        for _ in 0..2 {
            let mut raw = Raw::tcp(address).await?;
            ensure!(raw.option(ClientOption::StartTls).await? == [OptionReply::Ack]);
            let connector = TlsConnector::from(Arc::clone(&config));
            let tls = connector.connect(server_name("localhost")?, raw.io).await?;
            let mut raw = Raw::new(tls);
            raw.go("disk").await?;
            // Tickets would have come by now.
            raw.read(0, 512).await?;
        }
        let mut tcp = Raw::tcp(address).await?;
        ensure!(tcp.option(ClientOption::StartTls).await? == [OptionReply::Ack]);
        let tls = TlsConnector::from(config).connect(server_name("localhost")?, tcp.io).await?;
        ensure!(tls.get_ref().1.handshake_kind() == Some(HandshakeKind::Full));
        Ok(())
    })
}

#[test]
fn a_handshake_has_a_deadline() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let limits = Limits { tls_handshake_max: std::time::Duration::from_millis(200), ..Limits::default() };
        let (server, address) = serve_tls(Arc::new(shelf()), ca.certificates("localhost")?, limits).await?;
        let mut raw = Raw::tcp(address).await?;
        ensure!(raw.option(ClientOption::StartTls).await? == [OptionReply::Ack]);
        raw.closed().await?;
        until("it is counted", || server.counts().negotiations_failed == 1).await?;
        drop(TcpStream::connect(address).await?);
        Ok(())
    })
}

#[test]
fn keys_are_not_shown() -> Result<()> {
    let ca = Ca::new("ca")?;
    let keys = ca.keys("Node-B")?;
    let authorities = ca.pem();
    let certificates = keys.believing(&ca)?;
    ensure!(format!("{certificates:?}") == "Certificates { identity: \"node-b\", .. }", "{certificates:?}");
    ensure!(format!("{:?}", keys.pem(&authorities)) == "Pem { .. }");
    // The secret where a certificate belongs, and the other way round.
    for bad in [
        Pem { chain: keys.key.as_bytes(), ..keys.pem(&authorities) },
        Pem { key: keys.chain.as_bytes(), ..keys.pem(&authorities) },
        Pem { authorities: keys.key.as_bytes(), ..keys.pem(&authorities) },
    ] {
        let why = Certificates::new(bad).err().context("it was taken")?;
        let line = keys.key.lines().nth(1).context("no key")?;
        ensure!(!format!("{why} {why:?}").contains(line), "{why}");
    }
    ensure!(server_name("10.0.0.1").is_err() && server_name("no name").is_err());
    Ok(())
}
