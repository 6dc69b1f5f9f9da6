//! An API server in this process, as far as our roles need one: objects with versions and finalizers, preconditions, merge
//! patches, lists and watches with field selectors. No schema, no admission.

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper::{Method, Request, Response, StatusCode};
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use uuid::Uuid;

/// How a request says who makes it.
const ACCOUNT: &str = "x-test-account";
const NODE: &str = "x-test-node";

type Key = (String, String);
pub(crate) type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Whether it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Health {
    #[default]
    Up,
    /// Connections are refused.
    Refusing,
    /// Nothing is ever answered.
    Silent,
}

/// Where a client is cut off from a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The write is not carried out.
    Before,
    /// It is, but the answer is lost.
    After,
}

#[derive(Default)]
pub struct State {
    version: u64,
    health: Health,
    /// Writes until it is cut off, and how.
    cut: Option<(usize, Cut)>,
    pub objects: BTreeMap<Key, Value>,
    /// Version, plural, type of event, object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Method and plural of every request that was answered.
    pub requests: Vec<String>,
    /// Plurals that nobody may use.
    pub forbidden: BTreeSet<String>,
    /// Plurals of kinds that the server does not know.
    pub unknown: BTreeSet<String>,
}

/// Clones are the same server.
#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<State>>,
    /// Held from reading an object to writing it.
    turn: Arc<Mutex<()>>,
    version: watch::Sender<u64>,
}

impl Api {
    #[expect(clippy::new_without_default, reason = "an empty server is something to be made on purpose")]
    pub fn new() -> Api {
        Api { state: Arc::default(), turn: Arc::default(), version: watch::Sender::new(0) }
    }

    pub fn client(&self) -> kube::Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let this = this.clone();
            async move { this.answer_if_up(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// A client with a token of `account` that is bound to a pod of `node`.
    pub fn client_as(&self, account: &str, node: &str) -> kube::Client {
        let (this, account, node) = (self.clone(), account.to_string(), node.to_string());
        let service = tower::service_fn(move |mut request: Request<Body>| {
            let this = this.clone();
            for (header, value) in [(ACCOUNT, &account), (NODE, &node)] {
                if let Ok(value) = value.parse() {
                    request.headers_mut().insert(header, value);
                }
            }
            async move { this.answer_if_up(request).await }
        });
        kube::Client::new(service, "default")
    }

    /// From now on, and no cut that was to come does. What is watched ends when it is not up.
    pub fn set_health(&self, health: Health) {
        {
            let mut state = self.state();
            (state.health, state.cut) = (health, None);
        }
        self.version.send_modify(|_| {});
    }

    /// At the `nth` write from now, counted from 1, it refuses connections until it is told to be up again: as if the client
    /// were killed there.
    pub fn cut_off(&self, nth: usize, how: Cut) {
        self.state().cut = Some((nth, how));
    }

    /// False if the write of [`Api::cut_off`] did not come yet.
    pub fn is_cut_off(&self) -> bool {
        let state = self.state();
        state.cut.is_none() && state.health != Health::Up
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&(plural.into(), name.into())).cloned()
    }

    pub fn all(&self, plural: &str) -> Vec<Value> {
        self.state().objects.iter().filter(|((p, _), _)| p == plural).map(|(_, object)| object.clone()).collect()
    }

    /// Writes an object as somebody else does: with a new version, and a generation that follows the spec.
    pub fn put(&self, plural: &str, object: Value) {
        let _turn = self.turn();
        self.write(plural, object);
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("no test panics with it")
    }

    fn write(&self, plural: &str, mut object: Value) {
        let mut state = self.state();
        let name = text(&object, "/metadata/name");
        let old = state.objects.get(&(plural.to_string(), name.clone())).cloned();
        object["metadata"]["uid"] = old.as_ref().map_or(json!(Uuid::new_v4()), |old| old["metadata"]["uid"].clone());
        let spec_changed = old.as_ref().is_none_or(|old| old["spec"] != object["spec"]);
        let generation = old.as_ref().and_then(|old| old["metadata"]["generation"].as_i64()).unwrap_or(0);
        object["metadata"]["generation"] = json!(generation + i64::from(spec_changed));
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        }
        let leaving = !object["metadata"]["deletionTimestamp"].is_null();
        let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let key = (plural.to_string(), name);
        let kind = match (leaving && !held, old.is_some()) {
            (true, _) => "DELETED",
            (false, true) => "MODIFIED",
            (false, false) => "ADDED",
        };
        match kind {
            "DELETED" => state.objects.remove(&key),
            _ => state.objects.insert(key, object.clone()),
        };
        state.events.push((version, plural.into(), kind, object));
        drop(state);
        self.version.send_replace(version);
    }

    /// Deletes an object, which is gone when its last finalizer is.
    pub fn remove(&self, plural: &str, name: &str) {
        let _turn = self.turn();
        let Some(mut object) = self.get(plural, name) else { return };
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:01Z");
        self.write(plural, object);
    }

    /// Carries out a merge patch; `status` only touches the status.
    pub fn patch(&self, plural: &str, name: &str, patch: &Value, status: bool) -> Result<Value, StatusCode> {
        let _turn = self.turn();
        let mut object = self.get(plural, name).ok_or(StatusCode::NOT_FOUND)?;
        for key in ["uid", "resourceVersion"] {
            let asked = &patch["metadata"][key];
            if !asked.is_null() && *asked != object["metadata"][key] {
                return Err(StatusCode::CONFLICT);
            }
        }
        match status {
            true => merge(&mut object["status"], &patch["status"]),
            false => {
                let mut patch = patch.clone();
                if let Some(map) = patch.as_object_mut() {
                    map.remove("status");
                }
                merge(&mut object, &patch);
            }
        }
        self.write(plural, object.clone());
        Ok(self.get(plural, name).unwrap_or(object))
    }

    pub(crate) async fn answer_if_up(&self, request: Request<Body>) -> io::Result<Answer> {
        let health = self.state().health;
        match health {
            Health::Up => {}
            Health::Refusing => return Err(io::ErrorKind::ConnectionRefused.into()),
            Health::Silent => std::future::pending().await,
        }
        let cut = match request.method() {
            &Method::GET => None,
            _ => self.count_write(),
        };
        if cut == Some(Cut::Before) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let answer = self.answer(request).await;
        if cut == Some(Cut::After) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(answer) }
    }

    fn count_write(&self) -> Option<Cut> {
        let mut state = self.state();
        let (left, how) = state.cut?;
        if left > 1 {
            state.cut = Some((left - 1, how));
            return None;
        }
        state.cut = None;
        state.health = Health::Refusing;
        drop(state);
        self.version.send_modify(|_| {});
        Some(how)
    }

    async fn answer(&self, request: Request<Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        let path = &path[if path[0] == "api" { 2 } else { 3 }..];
        let namespaced = path[0] == "namespaces" && path.len() > 2;
        let namespace = path.get(1).copied().filter(|_| namespaced);
        let path = if namespaced { &path[2..] } else { path };
        let (plural, name, sub) = (path[0], path.get(1).copied(), path.get(2).copied());
        let query = parts.uri.query().unwrap_or("");
        self.state().requests.push(format!("{} {plural}", parts.method));
        if self.state().unknown.contains(plural) {
            return refused(StatusCode::NOT_FOUND, "NotFound");
        }
        if self.state().forbidden.contains(plural) {
            return refused(StatusCode::FORBIDDEN, "Forbidden");
        }
        match (&parts.method, name) {
            (&Method::GET, None) if query.contains("watch=") => self.stream(plural, query),
            (&Method::GET, None) => {
                let version = self.state().version.to_string();
                let (selector, mut items) = (Selector::of(query), self.all(plural));
                items.retain(|object| selector.takes(object));
                items.retain(|object| namespace.is_none_or(|wanted| text(object, "/metadata/namespace") == wanted));
                let list = json!({ "kind": "List", "apiVersion": "v1",
                    "metadata": { "resourceVersion": version }, "items": items });
                whole(StatusCode::OK, &list)
            }
            (&Method::GET, Some(name)) if sub == Some("log") => {
                Response::new(Full::new(Bytes::from(format!("the log of {name}\n"))).boxed())
            }
            (&Method::GET, Some(name)) => match self.get(plural, name) {
                Some(object) => whole(StatusCode::OK, &object),
                None => refused(StatusCode::NOT_FOUND, "NotFound"),
            },
            (&Method::POST, None) => {
                let mut body = body;
                if plural == "certificatesigningrequests" {
                    // The API server's own words, whatever the request says.
                    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
                    body["spec"]["username"] = json!(header(ACCOUNT).unwrap_or_default());
                    body["spec"]["extra"] = match header(NODE) {
                        Some(node) => json!({ "authentication.kubernetes.io/node-name": [node] }),
                        None => json!({}),
                    };
                }
                let generated =
                    body["metadata"]["generateName"].as_str().map(|start| format!("{start}{}", Uuid::new_v4()));
                if let (true, Some(name)) = (body["metadata"]["name"].is_null(), generated) {
                    body["metadata"]["name"] = json!(name);
                }
                let name = text(&body, "/metadata/name");
                let _turn = self.turn();
                if self.get(plural, &name).is_some() {
                    return refused(StatusCode::CONFLICT, "AlreadyExists");
                }
                self.write(plural, body);
                whole(StatusCode::CREATED, &self.get(plural, &name).unwrap_or_default())
            }
            (&Method::PATCH, Some(name)) => {
                match self.patch(plural, name, &body, sub == Some("status") || sub == Some("approval")) {
                    Ok(object) => whole(StatusCode::OK, &object),
                    Err(StatusCode::NOT_FOUND) => refused(StatusCode::NOT_FOUND, "NotFound"),
                    Err(code) => refused(code, "Conflict"),
                }
            }
            (&Method::DELETE, Some(name)) => {
                let Some(object) = self.get(plural, name) else { return refused(StatusCode::NOT_FOUND, "NotFound") };
                let uid = &body["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return refused(StatusCode::CONFLICT, "Conflict");
                }
                self.remove(plural, name);
                whole(StatusCode::OK, &object)
            }
            _ => refused(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn stream(&self, plural: &str, query: &str) -> Answer {
        let since: u64 = parameter(query, "resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let what = (plural.to_string(), Selector::of(query));
        let start = (self.clone(), self.version.subscribe(), what, since);
        let events = futures_util::stream::unfold(start, |(api, mut versions, what, since)| async move {
            let (plural, selector) = &what;
            loop {
                versions.borrow_and_update();
                let next = {
                    let state = api.state();
                    if state.health != Health::Up {
                        return None;
                    }
                    let mut later = state.events.iter().filter(|(v, p, ..)| *v > since && p == plural);
                    later.find(|(.., object)| selector.takes(object)).cloned()
                };
                if let Some((version, _, kind, object)) = next {
                    let line = format!("{}\n", json!({ "type": kind, "object": object }));
                    let frame = Ok::<_, Infallible>(Frame::data(Bytes::from(line)));
                    return Some((frame, (api, versions, what, version)));
                }
                versions.changed().await.ok()?;
            }
        });
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Box::pin(events)))))
    }
}

/// Of a query that was not decoded.
fn parameter<'q>(query: &'q str, name: &str) -> Option<&'q str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// Pointers into an object, and the texts that have to be there.
struct Selector(Vec<(String, String)>);

impl Selector {
    fn of(query: &str) -> Selector {
        let text = parameter(query, "fieldSelector")
            .unwrap_or_default()
            .replace("%3D", "=")
            .replace("%2C", ",")
            .replace("%2F", "/");
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        let pointer = |field: &str| format!("/{}", field.replace('.', "/"));
        let fields = pairs.map(|(field, value)| (pointer(field), value.trim_start_matches('=').to_string()));
        let labels = parameter(query, "labelSelector").unwrap_or_default().replace("%3D", "=").replace("%2F", "/");
        let pointer = |label: &str| format!("/metadata/labels/{}", label.replace('/', "~1"));
        let labels = labels.split_once('=').map(|(label, value)| (pointer(label), value.to_string()));
        Selector(fields.chain(labels).collect())
    }

    fn takes(&self, object: &Value) -> bool {
        self.0.iter().all(|(pointer, value)| text(object, pointer) == *value)
    }
}

/// A stream that only one task ever polls.
struct SyncStream(std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + Sync>>);

impl futures_util::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

/// What an object has at a JSON pointer; empty if it is no text.
pub fn text(object: &Value, path: &str) -> String {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_string()
}

fn merge(into: &mut Value, patch: &Value) {
    let Some(patch) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                into.as_object_mut().map(|map| map.remove(key));
            }
            value => merge(&mut into[key], value),
        }
    }
}

fn whole(code: StatusCode, body: &Value) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())).boxed());
    *response.status_mut() = code;
    response
}

fn refused(code: StatusCode, reason: &str) -> Answer {
    let body = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16() });
    whole(code, &body)
}
