//! What tests rely on: a server that is down, that cuts its client off, and that answers only what was selected.

use anyhow::{Context, Result};
use coppice_fake_api::{Api, Cut, Health};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::Api as Kube;
use kube::api::{ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::json;

fn node(name: &str) -> serde_json::Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "podCIDR": name } })
}

#[tokio::test]
async fn a_client_is_cut_off_before_or_after_its_write() -> Result<()> {
    for (how, written) in [(Cut::Before, false), (Cut::After, true)] {
        let server = Api::new();
        let nodes: Kube<Node> = Kube::all(server.client());
        server.cut_off(2, how);
        nodes.create(&PostParams::default(), &serde_json::from_value(node("a"))?).await?;
        nodes.get("a").await?;
        assert!(!server.is_cut_off());
        let label = Patch::Merge(json!({ "metadata": { "labels": { "x": "y" } } }));
        assert!(nodes.patch("a", &PatchParams::default(), &label).await.is_err());
        assert!(server.is_cut_off() && nodes.get("a").await.is_err(), "{how:?}");
        server.set_health(Health::Up);
        assert_eq!(nodes.get("a").await?.metadata.labels.is_some(), written, "{how:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_watched_is_what_was_selected_and_ends_when_the_server_does() -> Result<()> {
    let server = Api::new();
    for name in ["a", "b"] {
        server.put("nodes", node(name));
    }
    server.put("namespaces", json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-system" } }));
    let client = server.client();
    assert!(Kube::<Namespace>::all(client.clone()).get("kube-system").await?.metadata.uid.is_some());
    let nodes: Kube<Node> = Kube::all(client);
    let listed = nodes.list(&ListParams::default().fields("spec.podCIDR=b")).await?;
    assert_eq!(listed.items.len(), 1);
    let mut seen = nodes.watch(&WatchParams::default().fields("spec.podCIDR=b"), "0").await?.boxed();
    let first = seen.next().await.context("an event")??;
    assert!(matches!(first, WatchEvent::Added(node) if node.metadata.name.as_deref() == Some("b")));
    server.set_health(Health::Silent);
    assert!(seen.next().await.is_none());
    Ok(())
}
