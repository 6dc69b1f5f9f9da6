//! Our certificate: a key that never leaves this process, a CertificateSigningRequest, and the certificate that the controller
//! signs. Renewed long before it ends, each time with a new key, and without anybody noticing; and at once when the authority
//! that signed it is not believed any more. A request is made once and waited for: Kubernetes keeps it for a day.

use super::super::Agent;
use super::super::failure::ask;
use coppice_controller::kube::authority::{CERTIFICATE_SECONDS, USAGES};
use coppice_kube_api::{EXPORT_AUTHORITY, EXPORT_BUNDLE, EXPORT_SIGNER};
use coppice_nbd::tls::{Certificates, Pem, is_believed, server_name};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a request may stay without an answer until it is said.
const ANSWER_SLOW: Duration = Duration::from_secs(60);
/// First and longest pause between two looks for the answer.
const LOOK_MIN: Duration = Duration::from_millis(100);
const LOOK_MAX: Duration = Duration::from_secs(5);
/// When it is tried again after a failure.
const AGAIN_MIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// A certificate is renewed when that part of its life is over.
const RENEW_PERCENT: u64 = 60;

type Result<T> = std::result::Result<T, String>;

struct Signed {
    chain: Vec<u8>,
    key: String,
}

/// Whether it can be the name in a certificate; or what to say of that.
pub fn certifiable(node: &str) -> Result<()> {
    match server_name(node) {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "the name of the node {node} cannot be in a certificate, which takes DNS names and no addresses: its snapshots \
             are read on that node only, and it reads none of others"
        )),
    }
}

/// A certificate of our own making, which nobody believes: until there is a real one.
pub fn placeholder(node: &str) -> Result<Certificates> {
    certifiable(node)?;
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
    let bundle = bundle(agent).await?;
    if !is_believed(&signed.chain, bundle.as_bytes()).map_err(|e| e.to_string())? {
        return Err(format!("the one that was signed is not of an authority of the ConfigMap {EXPORT_AUTHORITY}"));
    }
    take(certificates, &signed, &bundle)?;
    info!(node = agent.config.node, "certificate for the snapshot export");
    Ok(signed)
}

fn take(certificates: &Certificates, signed: &Signed, bundle: &str) -> Result<()> {
    let pem = Pem { chain: &signed.chain, key: signed.key.as_bytes(), authorities: bundle.as_bytes() };
    certificates.replace(pem).map_err(|e| e.to_string())
}

/// Until the certificate is to be renewed: takes what is new of the authority. If that is another one it is at once, since nobody
/// believes ours any more.
async fn follow(agent: &Agent, certificates: &Certificates, signed: &Signed) {
    let life = u64::try_from(CERTIFICATE_SECONDS).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(life * RENEW_PERCENT / 100);
    let mut known = String::new();
    while Instant::now() < until {
        let look = agent.config.timing.authority;
        tokio::time::sleep(look.min(until.saturating_duration_since(Instant::now()))).await;
        let now = match bundle(agent).await {
            Ok(now) => now,
            Err(e) => {
                warn!("the certificates of the authority are not known: {e}");
                continue;
            }
        };
        // Also if nothing is new: it may have run out while this machine slept.
        if is_believed(&signed.chain, now.as_bytes()).is_ok_and(|believed| !believed) {
            warn!(
                "the certificate for the snapshot export has another authority, or has run out: a new one is asked for"
            );
            return;
        }
        if now != known {
            match take(certificates, signed, &now) {
                Ok(()) => known = now,
                Err(e) => warn!("the certificates of the authority are not used: {e}"),
            }
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
    answer(&api, &name).await.map(|chain| Signed { chain, key })
}

/// Waits for the answer, as long as the request is there: another one would only be one more.
async fn answer(api: &Api<CertificateSigningRequest>, name: &str) -> Result<Vec<u8>> {
    let (began, mut pause, mut said) = (Instant::now(), LOOK_MIN, false);
    loop {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_MAX);
        let now = match ask(api.get_opt(name)).await {
            Ok(Some(now)) => now,
            Ok(None) => return Err(format!("the request {name} is gone")),
            Err(e) => {
                warn!("no answer to the request {name} yet: {e}");
                continue;
            }
        };
        let status = now.status.unwrap_or_default();
        if let Some(certificate) = status.certificate {
            return Ok(certificate.0);
        }
        let refused = |kind: &str| kind == "Denied" || kind == "Failed";
        if let Some(no) = status.conditions.iter().flatten().find(|condition| refused(&condition.type_)) {
            let why = no.message.as_deref().unwrap_or_default();
            return Err(format!("the request {name} is {}: {why}", no.type_));
        }
        if !said && began.elapsed() >= ANSWER_SLOW {
            said = true;
            let seconds = ANSWER_SLOW.as_secs();
            warn!("the request {name} has no answer after {seconds} s: does the controller run? It is waited for");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_every_name_of_a_node_can_be_in_a_certificate() {
        for node in ["node-a", "a.example.org", "10-0-0-7"] {
            assert_eq!(placeholder(node).map(|certificates| certificates.identity()), Ok(node.to_string()));
        }
        for node in ["10.0.0.7", "node.7", "a_b c", ""] {
            let why = placeholder(node).map(|certificates| certificates.identity());
            assert!(why.as_ref().is_err_and(|why| why.contains("cannot be in a certificate")), "{node}: {why:?}");
        }
    }
}
