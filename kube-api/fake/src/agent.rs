//! A node's agent without an engine: it says that lvols are there.

use crate::{Api, text};
use coppice_kube_api::FINALIZER;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const CLUSTER: u64 = 64 << 10;

/// What the drive of a node has.
#[derive(Clone, Default)]
pub struct Drive {
    /// Lvols by UUID, and their sizes.
    pub lvols: Arc<Mutex<BTreeMap<String, u64>>>,
}

impl Drive {
    pub fn has(&self, uuid: &str) -> bool {
        self.lvols.lock().expect("no test panics with it").contains_key(uuid)
    }
}

fn bytes(object: &Value, path: &str) -> u64 {
    text(object, path).parse::<coppice_kube_api::ByteSize>().map_or(0, |size| size.bytes())
}

fn condition(kind: &str, holds: bool, reason: &str, object: &Value) -> Value {
    json!({ "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": "",
        "observedGeneration": object["metadata"]["generation"], "lastTransitionTime": "2026-01-01T00:00:00Z" })
}

/// Works on the objects of `node`, whose store has `capacity` bytes, until the task is aborted.
pub fn start(api: Api, node: &'static str, drive: Drive, capacity: u64) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            for object in api.all("lvols").iter().filter(|object| text(object, "/spec/node") == node) {
                reconcile(&api, object, &drive, capacity);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
}

fn reconcile(api: &Api, object: &Value, drive: &Drive, capacity: u64) {
    let name = text(object, "/metadata/name");
    let uuid = text(object, "/spec/lvolUUID");
    let mut lvols = drive.lvols.lock().expect("no test panics with it");
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
    if !object["metadata"]["deletionTimestamp"].is_null() {
        if text(object, "/spec/reclaim") == "Delete" {
            lvols.remove(&uuid);
        }
        let _ = api.patch("lvols", &name, &json!({ "metadata": { "finalizers": [] } }), false);
        return;
    }
    if !held {
        let _ = api.patch("lvols", &name, &json!({ "metadata": { "finalizers": [FINALIZER] } }), false);
        return;
    }
    if object["spec"]["adopted"] == true && text(object, "/status/created").is_empty() {
        adopt(api, object, lvols.get(&uuid).copied());
        return;
    }
    let size = bytes(object, "/spec/size").next_multiple_of(CLUSTER);
    let has = bytes(object, "/status/size");
    let used: u64 = lvols.values().sum();
    let status = match (has, used + size - has > capacity) {
        (0, true) => {
            let condition = condition("Ready", false, "NoSpace", object);
            if object.pointer("/status/conditions/0") == Some(&condition) {
                return;
            }
            json!({ "conditions": [condition] })
        }
        (has, false) if has != size => {
            lvols.insert(uuid, size);
            json!({ "created": "2026-01-01T00:00:00Z", "size": size.to_string(),
                "conditions": [condition("Ready", true, "Available", object)] })
        }
        (has, true) if has != size => json!({ "conditions": [
            condition("Ready", true, "Available", object), condition("ResizeFailed", true, "NoSpace", object),
        ] }),
        _ => return,
    };
    let _ = api.patch("lvols", &name, &json!({ "status": status }), true);
}

/// An adopted lvol is there, or it is lost: it is never made.
fn adopt(api: &Api, object: &Value, has: Option<u64>) {
    let status = match has {
        Some(size) => json!({ "created": "2026-01-01T00:00:00Z", "size": size.to_string(),
            "conditions": [condition("Ready", true, "Available", object)] }),
        None => json!({ "conditions": [condition("Lost", true, "Missing", object)] }),
    };
    if object["status"] != status {
        let _ = api.patch("lvols", &text(object, "/metadata/name"), &json!({ "status": status }), true);
    }
}
