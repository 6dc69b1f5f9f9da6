//! `dump`: what a report of a fault needs, in one archive. No secrets: of other kinds only what names our driver, and nothing is read
//! from pods but those of Coppice itself.

use super::args::Dump;
use super::cluster::{Cluster, list};
use super::objects::{lvol_of_content, lvol_of_volume, text};
use super::print::{documents, object, say};
use anyhow::{Context, Result};
use coppice_proto::capability::DRIVER_NAME;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, CSIStorageCapacity, StorageClass};
use kube::api::{ListParams, LogParams};
use kube::{Api, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// On every pod of the chart.
const OUR_PODS: &str = "app.kubernetes.io/name=coppice";
/// Of the log of one container, bytes and lines.
const LOG_BYTES_MAX: i64 = 20 << 20;
const LOG_LINES_MAX: i64 = 50_000;
/// What kubectl keeps of an object beside it: the same once more.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Files by name, and what could not be had.
#[derive(Default)]
struct Collected {
    files: Vec<(String, String)>,
    missing: Vec<String>,
}

pub async fn run(cluster: &Cluster, args: &Dump) -> Result<()> {
    let name = format!("coppice-dump-{}", stamp(jiff::Timestamp::now()));
    let to = args.to.clone().unwrap_or_else(|| PathBuf::from(format!("{name}.tar.gz")));
    let collected = collect(cluster).await?;
    let count = collected.files.len();
    let folder = to.to_string_lossy().ends_with('/') || to.is_dir();
    match folder {
        true => write_folder(&to, &collected)?,
        false => write_archive(&to, &name, &collected)?,
    }
    for missing in &collected.missing {
        eprintln!("note: {missing}");
    }
    say(&format!(
        "{count} files in {}. Object names, logs and Events may tell of your applications: look before you pass it on.",
        to.display()
    ))
}

/// `20260131-235959`, in UTC.
pub fn stamp(now: jiff::Timestamp) -> String {
    let digits: String = now.to_string().chars().filter(char::is_ascii_digit).take(14).collect();
    let (day, time) = digits.split_at(digits.len().min(8));
    format!("{day}-{time}")
}

async fn collect(cluster: &Cluster) -> Result<Collected> {
    let client = &cluster.client;
    let mut out = Collected::default();
    out.files.push(("version.txt".into(), format!("coppice {}\n", env!("CARGO_PKG_VERSION"))));
    out.objects("lvols", &cluster.lvols(), |_| true).await?;
    out.objects("lvstores", &cluster.lvstores(), |_| true).await?;
    out.objects("persistentvolumes", &cluster.volumes(), |one| lvol_of_volume(one).is_some()).await?;
    let classes: Api<StorageClass> = Api::all(client.clone());
    out.objects("storageclasses", &classes, |one| one.provisioner == DRIVER_NAME).await?;
    let drivers: Api<CSIDriver> = Api::all(client.clone());
    out.objects("csidrivers", &drivers, |one| one.name_any() == DRIVER_NAME).await?;
    let nodes: Api<CSINode> = Api::all(client.clone());
    out.objects("csinodes", &nodes, |_| true).await?;
    let ours: BTreeSet<String> = match list(&classes).await {
        Ok(all) => all.iter().filter(|one| one.provisioner == DRIVER_NAME).map(ResourceExt::name_any).collect(),
        Err(_) => BTreeSet::new(),
    };
    let capacities: Api<CSIStorageCapacity> = Api::all(client.clone());
    out.objects("csistoragecapacities", &capacities, |one| ours.contains(&one.storage_class_name)).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    out.objects("nodes", &nodes, |_| true).await?;
    out.objects("volumesnapshotclasses", &cluster.of_snapshots("VolumeSnapshotClass"), |one| {
        text(one, "/driver") == DRIVER_NAME
    })
    .await?;
    out.objects("volumesnapshotcontents", &cluster.of_snapshots("VolumeSnapshotContent"), |one| {
        lvol_of_content(one).is_some()
    })
    .await?;
    out.pods(cluster).await?;
    out.events(cluster).await?;
    if !out.missing.is_empty() {
        out.files.push(("missing.txt".into(), out.missing.join("\n") + "\n"));
    }
    Ok(out)
}

impl Collected {
    async fn objects<K>(&mut self, name: &str, api: &Api<K>, ours: impl Fn(&K) -> bool) -> Result<()>
    where
        K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
    {
        match list(api).await {
            Ok(all) => {
                let all: Vec<Value> = all.iter().filter(|one| ours(one)).map(bare).collect::<Result<_>>()?;
                self.files.push((format!("objects/{name}.yaml"), documents(&all)?));
            }
            Err(e) => self.missing.push(format!("{name}: {e}")),
        }
        Ok(())
    }

    /// Descriptions and logs of Coppice's own pods, wherever it is installed.
    async fn pods(&mut self, cluster: &Cluster) -> Result<()> {
        let pods = match cluster.pods().list(&ListParams::default().labels(OUR_PODS)).await {
            Ok(pods) => pods.items,
            Err(e) => {
                self.missing.push(format!("pods: {e}"));
                return Ok(());
            }
        };
        let objects: Vec<Value> = pods.iter().map(bare).collect::<Result<_>>()?;
        self.files.push(("objects/pods.yaml".into(), documents(&objects)?));
        for pod in pods {
            let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
            let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
            let restarts = |container: &str| {
                let all = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
                all.filter(|status| status.name == container).map(|status| status.restart_count).sum::<i32>()
            };
            for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
                let container = &container.name;
                self.log(&api, &name, container, false).await;
                if restarts(container) > 0 {
                    self.log(&api, &name, container, true).await;
                }
            }
        }
        Ok(())
    }

    async fn log(&mut self, api: &Api<Pod>, pod: &str, container: &str, previous: bool) {
        let how = LogParams {
            container: Some(container.to_string()),
            previous,
            timestamps: true,
            limit_bytes: Some(LOG_BYTES_MAX),
            tail_lines: Some(LOG_LINES_MAX),
            ..LogParams::default()
        };
        let which = if previous { "previous" } else { "log" };
        match api.logs(pod, &how).await {
            Ok(text) => self.files.push((format!("logs/{pod}.{container}.{which}"), text)),
            Err(e) => self.missing.push(format!("{which} of {pod}, {container}: {e}")),
        }
    }

    /// Events about our kinds, and about claims and snapshots, which say what went wrong with them.
    async fn events(&mut self, cluster: &Cluster) -> Result<()> {
        let api: Api<Event> = Api::all(cluster.client.clone());
        let kinds =
            ["Lvol", "Lvstore", "PersistentVolume", "PersistentVolumeClaim", "VolumeSnapshot", "VolumeSnapshotContent"];
        let ours = |event: &Event| {
            let about = &event.involved_object;
            let of_chart = || about.name.as_deref().is_some_and(|name| name.starts_with("coppice-"));
            kinds.contains(&about.kind.as_deref().unwrap_or_default()) || of_chart()
        };
        self.objects("events", &api, ours).await
    }
}

/// An object without what is not needed.
fn bare(of: &impl Serialize) -> Result<Value> {
    let mut object = object(of)?;
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    Ok(object)
}

fn write_folder(to: &Path, collected: &Collected) -> Result<()> {
    for (name, content) in &collected.files {
        let path = to.join(name);
        let folder = path.parent().unwrap_or(to);
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn write_archive(to: &Path, folder: &str, collected: &Collected) -> Result<()> {
    let file = fs::OpenOptions::new().write(true).create_new(true).open(to);
    let file = file.with_context(|| format!("make {}", to.display()))?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let now = u64::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
    for (name, content) in &collected.files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(now);
        archive.append_data(&mut header, format!("{folder}/{name}"), content.as_bytes())?;
    }
    archive
        .into_inner()
        .and_then(GzEncoder::finish)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_in_a_name() {
        let now = jiff::Timestamp::from_second(1_767_225_599).expect("a time");
        assert_eq!(stamp(now), "20251231-235959");
    }
}
