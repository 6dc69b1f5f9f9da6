//! Authorities and certificates for tests, good and bad.

use anyhow::Result;
use coppice_nbd::tls::{Certificates, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use std::fs;
use std::path::Path;

/// A certificate authority.
pub struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// What a certificate is to say.
pub struct Order<'a> {
    pub names: &'a [&'a str],
    /// Years; the first of January.
    pub valid: (i32, i32),
    pub usages: &'a [ExtendedKeyUsagePurpose],
}

pub const BOTH: &[ExtendedKeyUsagePurpose] =
    &[ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

impl Default for Order<'_> {
    fn default() -> Self {
        Self { names: &[], valid: (2020, 4000), usages: BOTH }
    }
}

/// A certificate and its key, as PEM.
pub struct Keys {
    pub chain: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    pub fn sign(&self, order: Order<'_>) -> Result<Keys> {
        let names: Vec<String> = order.names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names)?;
        params.not_before = date_time_ymd(order.valid.0, 1, 1);
        params.not_after = date_time_ymd(order.valid.1, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = order.usages.to_vec();
        params.distinguished_name.push(DnType::CommonName, "only for people");
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Keys { chain: certificate.pem(), key: key.serialize_pem() })
    }

    /// A good certificate for this name.
    pub fn keys(&self, name: &str) -> Result<Keys> {
        self.sign(Order { names: &[name], ..Order::default() })
    }

    /// What someone uses who has such a certificate, and believes this authority.
    pub fn certificates(&self, name: &str) -> Result<Certificates> {
        self.keys(name)?.believing(self)
    }
}

impl Keys {
    pub fn believing(&self, ca: &Ca) -> Result<Certificates> {
        let authorities = ca.pem();
        Ok(Certificates::new(self.pem(&authorities))?)
    }

    pub fn pem<'a>(&'a self, authorities: &'a str) -> Pem<'a> {
        Pem { chain: self.chain.as_bytes(), key: self.key.as_bytes(), authorities: authorities.as_bytes() }
    }

    /// The folder that libnbd, QEMU and nbdkit want; `side` is "client" or "server".
    pub fn folder(&self, ca: &Ca, folder: &Path, side: &str) -> Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("ca-cert.pem"), ca.pem())?;
        fs::write(folder.join(format!("{side}-cert.pem")), &self.chain)?;
        fs::write(folder.join(format!("{side}-key.pem")), &self.key)?;
        Ok(())
    }
}
