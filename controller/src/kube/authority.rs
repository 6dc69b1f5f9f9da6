//! Who may show snapshots to whom: the authority that signs the certificates of the agents' snapshot export.
//!
//! ```text
//!   agent: key in memory ──▶ CertificateSigningRequest (coppice.io/export) ──▶ we: is the name the requester's node?
//!   Secret: the authority's key │ ConfigMap: its certificates ──▶ every agent      └ yes: approved and signed, no: denied
//! ```
//!
//! The name in a certificate is the node that the requester's token is bound to, which the API server vouches for; so whoever
//! takes over one node gets no certificate of another. Everything else in a certificate is ours to say, whatever is asked for.
//!
//! The authority is made at the first start and renewed long before it ends: the next one is published first, signs when every
//! agent has had time to read of it, and the last one is believed until what it signed has run out. Of a node's requests only
//! the newest is signed: nobody has the keys of the others any more. Old ones are removed by Kubernetes itself.

use coppice_kube_api::{EXPORT_AUTHORITY, EXPORT_BUNDLE, EXPORT_SIGNER};
use futures_util::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing::{info, warn};

/// The account of the agents.
const AGENTS: &str = "coppice-node";
/// Where the API server says to which node a token is bound.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
/// What a certificate is for; a request has to ask for just that.
pub const USAGES: [&str; 3] = ["digital signature", "server auth", "client auth"];
/// How long a certificate of an agent is valid, seconds.
pub const CERTIFICATE_SECONDS: i64 = 24 * 3600;
/// For clocks that are behind.
const SKEW_SECONDS: i64 = 300;
const DAY: i64 = 24 * 3600;
/// How long an authority is valid, and when the next one is made.
const AUTHORITY_DAYS: i64 = 365;
const RENEW_DAYS: i64 = 270;
/// How long the next authority is known before it signs, and the last one after it did.
const SETTLE_SECONDS: i64 = 2 * DAY;
/// The key of the Secret.
const SECRET_KEY: &str = "authority.json";
/// How often the authority, and requests that the watch may have missed, are looked at.
const LOOK: Duration = Duration::from_secs(30);
/// Between two looks for what the watch has seen.
const TURN: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the API server: {0}")]
    Api(#[from] kube::Error),
    #[error("a certificate cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(
        "the Secret {EXPORT_AUTHORITY} is not what the controller wrote ({0}): delete it, and the agents get new certificates"
    )]
    Secret(String),
    #[error("the authority cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the authority is written by others at the same time")]
    Conflict,
}

type Result<T> = std::result::Result<T, AuthorityError>;

/// A key pair and its certificate, as PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    certificate: String,
    key: String,
    /// When it was made: seconds since 1970.
    since: i64,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Last {
    certificate: String,
    /// Until when it is believed.
    until: i64,
}

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    /// It signs.
    current: Pair,
    /// It will.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<Pair>,
    /// It did.
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Last>,
}

impl Pair {
    fn new(now: i64) -> Result<Pair> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, format!("coppice export {now}"));
        valid(&mut params, now, AUTHORITY_DAYS * DAY);
        let certificate = params.self_signed(&key)?.pem();
        Ok(Pair { certificate, key: key.serialize_pem(), since: now })
    }
}

fn valid(params: &mut CertificateParams, now: i64, seconds: i64) {
    let at = |second: i64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(second).unwrap_or(0));
    params.not_before = at(now - SKEW_SECONDS);
    params.not_after = at(now + seconds);
}

impl Held {
    fn new(now: i64) -> Result<Held> {
        Ok(Held { current: Pair::new(now)?, next: None, last: None })
    }

    /// What it is to be now.
    fn turned(&self, now: i64) -> Result<Held> {
        let mut new = self.clone();
        new.last = new.last.filter(|last| last.until > now);
        match new.next.take() {
            Some(next) if now - next.since >= SETTLE_SECONDS => {
                let certificate = std::mem::replace(&mut new.current, next).certificate;
                new.last = Some(Last { certificate, until: now + SETTLE_SECONDS });
            }
            Some(next) => new.next = Some(next),
            None if now - new.current.since >= RENEW_DAYS * DAY => new.next = Some(Pair::new(now)?),
            None => {}
        }
        Ok(new)
    }

    /// The certificates that agents believe.
    fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let last = self.last.as_ref().map(|last| last.certificate.as_str());
        std::iter::once(self.current.certificate.as_str()).chain(next).chain(last).collect()
    }

    /// A certificate for `node`, and nothing else, over the key of the request.
    fn sign(&self, request: CertificateSigningRequestParams, node: &str, now: i64, seconds: i64) -> Result<String> {
        let issuer = Issuer::from_ca_cert_pem(&self.current.certificate, KeyPair::from_pem(&self.current.key)?)?;
        let mut params = CertificateParams::new(vec![node.to_string()])?;
        params.distinguished_name.push(DnType::CommonName, node);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid(&mut params, now, seconds.clamp(600, CERTIFICATE_SECONDS));
        let request = CertificateSigningRequestParams { params, public_key: request.public_key };
        Ok(request.signed_by(&issuer)?.pem())
    }
}

/// The node that a request may have a certificate for, with its key; or why it gets none. `agents`: their account.
fn judge(
    request: &CertificateSigningRequest,
    agents: &str,
) -> std::result::Result<(String, CertificateSigningRequestParams), String> {
    let spec = &request.spec;
    if spec.username.as_deref() != Some(agents) {
        let who = spec.username.as_deref().unwrap_or_default();
        return Err(format!("only {agents} gets certificates of {EXPORT_SIGNER}, not {who}"));
    }
    let nodes = spec.extra.as_ref().and_then(|extra| extra.get(NODE_NAME)).map_or(&[][..], Vec::as_slice);
    let [node] = nodes else {
        return Err("the token of the requester is not bound to a pod of a node".into());
    };
    let mut usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    usages.sort_unstable();
    let mut wanted = USAGES;
    wanted.sort_unstable();
    if usages != wanted {
        return Err(format!("the usages have to be {}", USAGES.join(", ")));
    }
    let text = std::str::from_utf8(&spec.request.0).map_err(|_| "the request is not PEM".to_string())?;
    let parsed =
        CertificateSigningRequestParams::from_pem(text).map_err(|e| format!("the request is not valid: {e}"))?;
    match parsed.params.subject_alt_names.as_slice() {
        [SanType::DnsName(name)] if name.as_str() == node => Ok((node.clone(), parsed)),
        _ => Err(format!("the requester is on the node {node}: that has to be the one name in the request")),
    }
}

/// The node and its key, or the reason and the words of a refusal.
type Judged = std::result::Result<(String, CertificateSigningRequestParams), (&'static str, String)>;

/// Requests and what is to become of each, the newest first. Of a node's proper ones only the newest gets its certificate; those
/// of one second are equally new.
fn judged<'a>(
    requests: &[&'a CertificateSigningRequest],
    agents: &str,
) -> Vec<(&'a CertificateSigningRequest, Judged)> {
    let made = |request: &CertificateSigningRequest| request.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut requests = requests.to_vec();
    requests.sort_by_key(|request| std::cmp::Reverse(made(request)));
    let mut newest = BTreeMap::new();
    let judge_one = |request: &'a CertificateSigningRequest| {
        let judged =
            judge(request, agents).map_err(|why| ("NotTheRequestersNode", why)).and_then(
                |(node, parsed)| match *newest.entry(node.clone()).or_insert(made(request)) {
                    newest if newest == made(request) => Ok((node, parsed)),
                    _ => Err(("Replaced", format!("the node {node} has made a newer request"))),
                },
            );
        (request, judged)
    };
    requests.into_iter().map(judge_one).collect()
}

/// It is for us and has no answer yet.
fn is_open(request: &CertificateSigningRequest) -> bool {
    let signed = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    let ours = request.spec.signer_name == EXPORT_SIGNER;
    ours && !signed && !has(request, "Denied") && !has(request, "Failed")
}

/// `True` if the condition is there.
fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == kind && condition.status == "True")
}

pub struct Authority {
    client: Client,
    namespace: String,
    agents: String,
}

impl Authority {
    /// `namespace`: where Coppice is installed.
    pub fn new(client: Client, namespace: &str) -> Authority {
        let agents = format!("system:serviceaccount:{namespace}:{AGENTS}");
        Authority { client, namespace: namespace.to_string(), agents }
    }

    /// Works as long as `leads` is true, and waits for that otherwise.
    pub async fn run(&self, leads: &AtomicBool) {
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let ours = watcher::Config::default().fields(&format!("spec.signerName={EXPORT_SIGNER}"));
        let mut events = Box::pin(watcher(api, ours).default_backoff());
        let mut every = tokio::time::interval(TURN);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked: Option<tokio::time::Instant> = None;
        let mut changed = false;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(_)) => changed = true,
                    Some(Err(e)) => warn!("the watch of certificate requests: {e}"),
                    None => return,
                },
                // Many requests at once are answered together.
                _ = every.tick() => {
                    if !leads.load(Ordering::Relaxed) {
                        looked = None;
                        continue;
                    }
                    if changed || looked.is_none_or(|at| at.elapsed() >= LOOK) {
                        looked = Some(tokio::time::Instant::now());
                        changed = false;
                        if let Err(e) = self.round(jiff::Timestamp::now().as_second()).await {
                            warn!("certificates for the snapshot export: {e}");
                        }
                    }
                }
            }
        }
    }

    /// Sees to it that there is an authority, that everybody knows it, and that every request has its answer.
    pub async fn round(&self, now: i64) -> Result<()> {
        let held = self.held(now).await?;
        self.publish(&held).await?;
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        let ours = ListParams::default().fields(&format!("spec.signerName={EXPORT_SIGNER}"));
        let all = api.list(&ours).await?.items;
        let open: Vec<_> = all.iter().filter(|request| is_open(request)).collect();
        for (request, judged) in judged(&open, &self.agents) {
            if let Err(e) = self.answer(&api, &held, request, judged, now).await {
                warn!(request = request.name_any(), "no answer yet: {e}");
            }
        }
        Ok(())
    }

    async fn answer(
        &self,
        api: &Api<CertificateSigningRequest>,
        held: &Held,
        request: &CertificateSigningRequest,
        judged: Judged,
        now: i64,
    ) -> Result<()> {
        let name = request.name_any();
        let condition = |kind: &str, reason: &str, message: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": message });
        let approved = has(request, "Approved");
        if let Err((reason, why)) = &judged {
            warn!(request = name, "no certificate: {why}");
            let kind = if approved { "Failed" } else { "Denied" };
            let patch = json!({ "status": { "conditions": [condition(kind, reason, why)] } });
            let (how, patch) = (PatchParams::default(), Patch::Merge(&patch));
            match approved {
                // Somebody else has approved it. Nobody signs it for that.
                true => api.patch_status(&name, &how, &patch).await?,
                false => api.patch_approval(&name, &how, &patch).await?,
            };
            return Ok(());
        }
        let Ok((node, parsed)) = judged else { return Ok(()) };
        let conditions = match approved {
            true => request.status.as_ref().and_then(|status| status.conditions.clone()).map(|all| json!(all)),
            false => Some(json!([condition("Approved", "ItsOwnNode", "the name is that of the requester's node")])),
        };
        if !approved {
            let patch = json!({ "status": { "conditions": conditions } });
            api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        }
        let seconds = request.spec.expiration_seconds.map_or(CERTIFICATE_SECONDS, i64::from);
        let certificate = held.sign(parsed, &node, now, seconds)?;
        let patch = json!({ "status": { "certificate": ByteString(certificate.into_bytes()) } });
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        info!(request = name, node, "certificate for the snapshot export");
        Ok(())
    }

    /// The authority, as it is to be now; made if there is none.
    async fn held(&self, now: i64) -> Result<Held> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = |held: &Held| Ok::<_, AuthorityError>(json!({ SECRET_KEY: ByteString(serde_json::to_vec(held)?) }));
        let Some(secret) = api.get_opt(EXPORT_AUTHORITY).await? else {
            let held = Held::new(now)?;
            let secret = serde_json::from_value(json!({ "apiVersion": "v1", "kind": "Secret",
                "metadata": { "name": EXPORT_AUTHORITY }, "type": "Opaque", "data": data(&held)? }))?;
            return match api.create(&PostParams::default(), &secret).await {
                Ok(_) => {
                    info!("an authority for the snapshot export was made");
                    Ok(held)
                }
                Err(kube::Error::Api(status)) if status.is_already_exists() => Err(AuthorityError::Conflict),
                Err(e) => Err(e.into()),
            };
        };
        let text = secret.data.as_ref().and_then(|data| data.get(SECRET_KEY));
        let text = text.ok_or_else(|| AuthorityError::Secret(format!("it has no {SECRET_KEY}")))?;
        // The reason could quote the key.
        let held: Held =
            serde_json::from_slice(&text.0).map_err(|_| AuthorityError::Secret("it does not parse".into()))?;
        let turned = held.turned(now)?;
        if turned != held {
            let patch = json!({
                "metadata": { "resourceVersion": secret.resource_version() }, "data": data(&turned)?,
            });
            match api.patch(EXPORT_AUTHORITY, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_) => info!("the authority of the snapshot export was renewed"),
                Err(kube::Error::Api(status)) if status.is_conflict() => return Err(AuthorityError::Conflict),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(turned)
    }

    async fn publish(&self, held: &Held) -> Result<()> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &self.namespace);
        let data = json!({ EXPORT_BUNDLE: held.bundle() });
        match api.get_opt(EXPORT_AUTHORITY).await? {
            None => {
                let map = serde_json::from_value(json!({ "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": { "name": EXPORT_AUTHORITY }, "data": data }))?;
                match api.create(&PostParams::default(), &map).await {
                    Err(kube::Error::Api(status)) if status.is_already_exists() => Err(AuthorityError::Conflict),
                    done => Ok(done.map(|_| ())?),
                }
            }
            Some(map) if map.data.as_ref().and_then(|data| data.get(EXPORT_BUNDLE)) == Some(&held.bundle()) => Ok(()),
            Some(_) => {
                let patch = json!({ "data": data });
                Ok(api.patch(EXPORT_AUTHORITY, &PatchParams::default(), &Patch::Merge(&patch)).await.map(|_| ())?)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "system:serviceaccount:coppice:coppice-node";

    fn request(names: &[&str], change: serde_json::Value) -> CertificateSigningRequest {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let pem = CertificateParams::new(names).and_then(|params| params.serialize_request(&key)?.pem());
        let mut object = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest", "metadata": { "name": "r" },
            "spec": { "signerName": EXPORT_SIGNER, "username": AGENT, "usages": USAGES,
                "extra": { NODE_NAME: ["node-a"] }, "request": ByteString(pem.expect("a request").into_bytes()) }
        });
        for (key, value) in change.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).expect("a request")
    }

    #[test]
    fn a_node_gets_a_certificate_for_its_own_name_and_nothing_else() {
        let node = judge(&request(&["node-a"], json!({})), AGENT).map(|(node, _)| node);
        assert_eq!(node.as_deref(), Ok("node-a"));
        for (names, change) in [
            (&["node-b"][..], json!({})),
            (&["node-a", "node-b"], json!({})),
            (&[], json!({})),
            (&["*"], json!({})),
            (&["node-a"], json!({ "username": "system:serviceaccount:other:coppice-node" })),
            (&["node-a"], json!({ "username": "system:admin" })),
            (&["node-a"], json!({ "extra": {} })),
            (&["node-a"], json!({ "extra": { NODE_NAME: [] } })),
            (&["node-a"], json!({ "extra": { NODE_NAME: ["node-a", "node-b"] } })),
            (&["node-a"], json!({ "usages": ["digital signature", "client auth"] })),
            (&["node-a"], json!({ "usages": ["cert sign", "digital signature", "server auth", "client auth"] })),
            (&["node-a"], json!({ "request": ByteString(b"nonsense".to_vec()) })),
        ] {
            assert!(judge(&request(names, change.clone()), AGENT).is_err(), "{names:?} {change}");
        }
    }

    /// Without a controller, agents that were restarted have left requests behind.
    #[test]
    fn only_the_newest_request_of_a_node_is_signed() {
        let at = |name: &str, node: &str, time: &str| {
            let mut object = request(&[node], json!({ "extra": { NODE_NAME: [node] } }));
            object.metadata.name = Some(name.into());
            object.metadata.creation_timestamp = serde_json::from_value(json!(time)).expect("a time");
            object
        };
        let all = [
            at("old", "node-a", "2026-01-01T00:00:01Z"),
            at("other", "node-b", "2026-01-01T00:00:00Z"),
            at("new", "node-a", "2026-01-01T00:00:09Z"),
            at("as-new", "node-a", "2026-01-01T00:00:09Z"),
            // One that gets none does not stand in the way of those that do.
            request(&["node-c"], json!({})),
        ];
        let judged = judged(&all.iter().collect::<Vec<_>>(), AGENT);
        let what = |(request, judged): &(&CertificateSigningRequest, Judged)| {
            (request.name_any(), judged.as_ref().map(|(node, _)| node.clone()).map_err(|(reason, _)| *reason))
        };
        let is =
            |name: &str, what: std::result::Result<&str, &'static str>| (name.to_string(), what.map(str::to_string));
        assert_eq!(
            judged.iter().map(what).collect::<Vec<_>>(),
            [
                is("new", Ok("node-a")),
                is("as-new", Ok("node-a")),
                is("old", Err("Replaced")),
                is("other", Ok("node-b")),
                is("r", Err("NotTheRequestersNode")),
            ]
        );
    }

    #[test]
    fn an_authority_is_known_before_it_signs_and_after() {
        let start = 1_800_000_000;
        let first = Held::new(start).expect("an authority");
        assert!(first.turned(start + 269 * DAY).expect("a turn") == first);
        let known = first.turned(start + 270 * DAY).expect("a turn");
        assert!(known.current == first.current && known.next.is_some());
        assert_eq!(known.bundle().matches("BEGIN CERTIFICATE").count(), 2);
        assert!(known.turned(start + 271 * DAY).expect("a turn") == known);
        let signs = known.turned(start + 272 * DAY).expect("a turn");
        assert!(Some(&signs.current) == known.next.as_ref() && signs.bundle().contains(&first.current.certificate));
        let alone = signs.turned(start + 275 * DAY).expect("a turn");
        assert_eq!(alone.bundle(), signs.current.certificate);
        assert!(alone.turned(start + 275 * DAY).expect("a turn") == alone);
    }
}
