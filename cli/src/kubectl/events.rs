//! Events, which tell what the sidecars, the scheduler and kubelet did about an object.

use super::cluster::Cluster;
use super::print::age;
use crate::output::{left, table};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::ListParams;

/// Where the Events of objects are that have no namespace.
const NOWHERE: &str = "default";
/// The latest that are shown.
const SHOWN_MAX: usize = 20;

/// One Event, as far as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub last: Option<Time>,
    pub warning: bool,
    pub reason: String,
    /// `PersistentVolumeClaim/data`
    pub about: String,
    pub message: String,
}

/// The Events of an object, the oldest first. None if they may not be read: they only add to an answer.
pub async fn of(cluster: &Cluster, namespace: Option<&str>, uid: &str) -> Vec<Said> {
    let api: Api<Event> = Api::namespaced(cluster.client.clone(), namespace.unwrap_or(NOWHERE));
    let about = ListParams::default().fields(&format!("involvedObject.uid={uid}"));
    let Ok(list) = api.list(&about).await else { return Vec::new() };
    let mut all: Vec<Said> = list.items.into_iter().map(said).collect();
    all.sort_by(|a, b| a.last.cmp(&b.last));
    all
}

fn said(event: Event) -> Said {
    let series = event.series.and_then(|series| series.last_observed_time);
    let micro = series.or(event.event_time).map(|time| Time(time.0));
    let object = event.involved_object;
    Said {
        last: event.last_timestamp.or(micro).or(event.metadata.creation_timestamp),
        warning: event.type_.as_deref() == Some("Warning"),
        reason: event.reason.unwrap_or_default(),
        about: format!("{}/{}", object.kind.unwrap_or_default(), object.name.unwrap_or_default()),
        message: event.message.unwrap_or_default(),
    }
}

/// A table of the latest.
pub fn lines(all: &[Said], now: jiff::Timestamp) -> Vec<String> {
    let latest = all.get(all.len().saturating_sub(SHOWN_MAX)..).unwrap_or_default();
    let rows = latest.iter().map(|event| {
        let kind = if event.warning { "Warning" } else { "Normal" };
        vec![
            age(event.last.as_ref(), now),
            kind.to_string(),
            event.reason.clone(),
            event.about.clone(),
            event.message.trim().to_string(),
        ]
    });
    table(&[left("LAST"), left("TYPE"), left("REASON"), left("ABOUT"), left("MESSAGE")], rows)
}
