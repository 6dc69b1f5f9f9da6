//! Our certificate: a key that never leaves this process, a CertificateSigningRequest, and the certificate that the controller
//! signs. Renewed long before it ends, each time with a new key, and without anybody noticing.

use super::super::Agent;
use super::super::failure::ask;
use coppice_controller::kube::authority::{CERTIFICATE_SECONDS, USAGES};
use coppice_kube_api::{EXPORT_AUTHORITY, EXPORT_BUNDLE, EXPORT_SIGNER};
use coppice_nbd::tls::{Certificates, Pem};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a request may stay without an answer until another one is made.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// First and longest pause between two looks for the answer.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(2);
/// When it is tried again after a failure.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// How often it is looked whether the authority's certificates are others.
const BUNDLE: Duration = Duration::from_secs(600);
/// A certificate is renewed when that part of its life is over.
const RENEW_PERCENT: u64 = 60;

type Result<T> = std::result::Result<T, String>;

struct Signed {
    chain: Vec<u8>,
    key: String,
}

/// A certificate of our own making, which nobody believes: until there is a real one.
pub fn placeholder(node: &str) -> Result<Certificates> {
    let made = || {
        let key = KeyPair::generate()?;
        Ok::<_, rcgen::Error>((CertificateParams::new(vec![node.to_string()])?.self_signed(&key)?.pem(), key))
    };
    let (certificate, key) = made().map_err(|e| format!("a certificate for {node} cannot be made: {e}"))?;
    let (chain, key) = (certificate.as_bytes(), key.serialize_pem());
    Certificates::new(Pem { chain, key: key.as_bytes(), authorities: chain }).map_err(|e| e.to_string())
}

/// Has a certificate, for ever.
pub async fn run(agent: &Agent) {
    let Some(certificates) = &agent.outside.certificates else { return };
    let mut again = AGAIN_MIN;
    loop {
        match renewed(agent, certificates).await {
            Ok(signed) => {
                again = AGAIN_MIN;
                agent.outside.certified.send_replace(true);
                follow(agent, certificates, &signed).await;
            }
            Err(e) => {
                warn!("no certificate for the snapshot export: {e}");
                tokio::time::sleep(again).await;
                again = (again * 2).min(AGAIN_MAX);
            }
        }
    }
}

/// A new key and certificate, in use.
async fn renewed(agent: &Agent, certificates: &Certificates) -> Result<Signed> {
    let signed = request(agent).await?;
    take(certificates, &signed, &bundle(agent).await?)?;
    info!(node = agent.config.node, "certificate for the snapshot export");
    Ok(signed)
}

fn take(certificates: &Certificates, signed: &Signed, bundle: &str) -> Result<()> {
    let pem = Pem { chain: &signed.chain, key: signed.key.as_bytes(), authorities: bundle.as_bytes() };
    certificates.replace(pem).map_err(|e| e.to_string())
}

/// Until the certificate is to be renewed: takes what is new of the authority.
async fn follow(agent: &Agent, certificates: &Certificates, signed: &Signed) {
    let life = u64::try_from(CERTIFICATE_SECONDS).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(life * RENEW_PERCENT / 100);
    let mut known = String::new();
    while Instant::now() < until {
        tokio::time::sleep(BUNDLE.min(until.saturating_duration_since(Instant::now()))).await;
        match bundle(agent).await {
            Ok(now) if now != known => match take(certificates, signed, &now) {
                Ok(()) => known = now,
                Err(e) => warn!("the certificates of the authority are not used: {e}"),
            },
            Ok(_) => {}
            Err(e) => warn!("the certificates of the authority are not known: {e}"),
        }
    }
}

async fn bundle(agent: &Agent) -> Result<String> {
    let namespace = agent.outside.export.as_ref().map(|export| export.namespace.as_str()).unwrap_or_default();
    let api: Api<ConfigMap> = Api::namespaced(agent.config.client.clone(), namespace);
    let map = ask(api.get(EXPORT_AUTHORITY)).await.map_err(|e| e.to_string())?;
    let bundle = map.data.and_then(|mut data| data.remove(EXPORT_BUNDLE));
    bundle.ok_or_else(|| format!("the ConfigMap {EXPORT_AUTHORITY} has no {EXPORT_BUNDLE}"))
}

async fn request(agent: &Agent) -> Result<Signed> {
    let node = &agent.config.node;
    let made = || {
        let key = KeyPair::generate()?;
        let request = CertificateParams::new(vec![node.clone()])?.serialize_request(&key)?.pem()?;
        Ok::<_, rcgen::Error>((key.serialize_pem(), request))
    };
    let (key, pem) = made().map_err(|e| format!("a request for {node} cannot be made: {e}"))?;
    let api: Api<CertificateSigningRequest> = Api::all(agent.config.client.clone());
    let object = serde_json::from_value(json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": { "generateName": format!("coppice-export-{node}-") },
        "spec": { "signerName": EXPORT_SIGNER, "usages": USAGES, "expirationSeconds": CERTIFICATE_SECONDS,
            "request": ByteString(pem.into_bytes()) },
    }));
    let object = object.map_err(|e| e.to_string())?;
    let name = ask(api.create(&PostParams::default(), &object)).await.map_err(|e| e.to_string())?.name_any();
    let (began, mut pause) = (Instant::now(), LOOK_MIN);
    while began.elapsed() < ANSWER_MAX {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
        let now = ask(api.get(&name)).await.map_err(|e| e.to_string())?;
        let Some(status) = now.status else { continue };
        if let Some(certificate) = status.certificate {
            return Ok(Signed { chain: certificate.0, key });
        }
        let refused = |kind: &str| kind == "Denied" || kind == "Failed";
        if let Some(no) = status.conditions.iter().flatten().find(|condition| refused(&condition.type_)) {
            let why = no.message.as_deref().unwrap_or_default();
            return Err(format!("the request {name} is {}: {why}", no.type_));
        }
    }
    Err(format!("the request {name} has no answer after {} s: does the controller run?", ANSWER_MAX.as_secs()))
}
