//! Mutual TLS 1.3: who we are, who is believed, and who the other side is.
//!
//! Both sides show a certificate that the bundle of CAs in [`Certificates`] has signed, and that is valid now; without one
//! the handshake fails. Nothing is resumed and nothing is sent early: every connection proves itself anew.
//!
//! *The identity of a peer is the one DNS name in its certificate's subject alternative names*, in lower case. The common
//! name does not count: no TLS library of today looks at it to check a server, and one rule for both directions is easier
//! to get right. A client whose certificate has no such name, several, or a wildcard, has no identity and is refused. A
//! client asks for its server by that name ([`server_name`]), whatever the address is, so that the certificate of another
//! node is refused. Extended key usage is checked where the certificate has it: `serverAuth` for who serves, `clientAuth`
//! for who connects.
//!
//! [`Certificates::replace`] takes effect with the next handshake; running connections stay as they are, and what does not
//! fit together changes nothing. Keys appear in no log, no error and no `Debug`.

use arc_swap::ArcSwap;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, ClientConfig, RootCertStore, ServerConfig, version::TLS13};
use std::fmt;
use std::sync::Arc;

/// Most certificates in a chain, and most CAs in a bundle.
pub const CERTIFICATES_MAX: usize = 64;

/// What is wrong with certificates, keys and names.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the {what} is not PEM, or has no such entry: {why}")]
    Pem { what: &'static str, why: String },
    #[error("the {what} has {found} certificates, {CERTIFICATES_MAX} are allowed")]
    TooMany { what: &'static str, found: usize },
    #[error("the certificate cannot be used: {why}; it has to be X.509 version 3 and to belong to the key")]
    Certificate { why: String },
    #[error("a CA of the bundle cannot be used: {why}")]
    Authority { why: String },
    #[error("\"{name}\" is no name that a certificate could have; a DNS name is expected")]
    Name { name: String },
    #[error("the peer's certificate names {found}; it has to have exactly one DNS name, and no wildcard")]
    Identity { found: String },
}

/// Own chain and key, and the CAs whose signature counts, as PEM.
///
/// The chain begins with the own certificate.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    pub chain: &'a [u8],
    pub key: &'a [u8],
    pub authorities: &'a [u8],
}

impl fmt::Debug for Pem<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pem { .. }")
    }
}

/// What both configurations are made from, prepared for each direction.
struct Prepared {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    identity: String,
}

/// Shared by all who serve or connect with it.
#[derive(Clone)]
pub struct Certificates(Arc<ArcSwap<Prepared>>);

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("identity", &self.0.load().identity).finish_non_exhaustive()
    }
}

impl Certificates {
    /// Refused unless all of it can be read and the key belongs to the certificate. That the certificate is valid now is
    /// for the peers to judge.
    pub fn new(pem: Pem<'_>) -> Result<Self, TlsError> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(prepare(pem)?))))
    }

    /// New handshakes use these. After an error the old ones stay.
    pub fn replace(&self, pem: Pem<'_>) -> Result<(), TlsError> {
        self.0.store(Arc::new(prepare(pem)?));
        Ok(())
    }

    /// Our own name, as peers see it.
    pub fn identity(&self) -> String {
        self.0.load().identity.clone()
    }

    /// For the next connection that is accepted.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.load().server)
    }

    /// For the next connection that is made; use it with [`server_name`].
    pub fn client_config(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.load().client)
    }
}

/// The name under which a client asks for the server with this identity.
pub fn server_name(identity: &str) -> Result<ServerName<'static>, TlsError> {
    match ServerName::try_from(identity) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name.to_owned()),
        _ => Err(TlsError::Name { name: identity.to_owned() }),
    }
}

/// Who showed this chain. It has to have been verified: this looks at the name only.
pub fn identity(chain: &[CertificateDer<'_>]) -> Result<String, TlsError> {
    let none = || TlsError::Identity { found: "nobody".to_owned() };
    let leaf = chain.first().ok_or_else(none)?;
    let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|why| TlsError::Certificate { why: why.to_string() })?;
    let names: Vec<&str> = leaf.valid_dns_names().take(2).collect();
    match names.as_slice() {
        [] => Err(none()),
        [name] if !name.contains('*') => Ok(name.to_ascii_lowercase()),
        several => Err(TlsError::Identity { found: several.join(" and ") }),
    }
}

/// Whether who believes these authorities believes this chain: they have signed it, and it has not run out. One that is not
/// valid yet counts, since that says more of our clock than of the certificate.
pub fn is_believed(chain: &[u8], authorities: &[u8]) -> Result<bool, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = verifier(&provider, &roots(authorities)?)?;
    let chain = certificates("certificate chain", chain)?;
    let Some((own, rest)) = chain.split_first() else { return Ok(false) };
    let verified = match verifier.verify_client_cert(own, rest, UnixTime::now()) {
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
            verifier.verify_client_cert(own, rest, not_before)
        }
        verified => verified,
    };
    Ok(verified.is_ok())
}

fn roots(authorities: &[u8]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for root in certificates("CA bundle", authorities)? {
        roots.add(root).map_err(|e| TlsError::Authority { why: e.to_string() })?;
    }
    Ok(Arc::new(roots))
}

fn verifier(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|e| TlsError::Authority { why: e.to_string() })
}

fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |why: String| TlsError::Pem { what, why };
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        found.push(certificate.map_err(|e| bad(e.to_string()))?);
        if found.len() > CERTIFICATES_MAX {
            return Err(TlsError::TooMany { what, found: found.len() });
        }
    }
    if found.is_empty() { Err(bad("no certificate in it".to_owned())) } else { Ok(found) }
}

fn prepare(pem: Pem<'_>) -> Result<Prepared, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = |e: rustls::Error| TlsError::Certificate { why: e.to_string() };

    let roots = roots(pem.authorities)?;
    let clients = verifier(&provider, &roots)?;
    let chain = certificates("certificate chain", pem.chain)?;
    // The reason is left out on purpose: it could quote what it did not understand.
    let key = PrivateKeyDer::from_pem_slice(pem.key)
        .map_err(|_| TlsError::Pem { what: "key", why: "PKCS#8, PKCS#1 or SEC1 is expected".to_owned() })?;
    let identity = identity(&chain)?;
    // Compares the certificate with the key.
    let own = CertifiedKey::from_der(chain, key, &provider).map_err(certificate)?;
    let own = Arc::new(SingleCertAndKey::from(own));

    let server = server_config(&provider, clients, Arc::clone(&own)).map_err(certificate)?;
    let client = client_config(&provider, roots, own).map_err(certificate)?;
    Ok(Prepared { server: Arc::new(server), client: Arc::new(client), identity })
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    clients: Arc<dyn ClientCertVerifier>,
    own: Arc<SingleCertAndKey>,
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(own);
    // A session that is resumed would not be checked again.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    own: Arc<SingleCertAndKey>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_cert_resolver(own);
    config.resumption = Resumption::disabled();
    Ok(config)
}
