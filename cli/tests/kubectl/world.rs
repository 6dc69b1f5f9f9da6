//! A cluster to look at: two nodes with a store each, volumes, snapshots and clones of two namespaces.

use anyhow::{Context, Result};
use coppice_fake_api::{Api, serve};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;
use tokio::process::Command;

/// The API server, and programs that use it.
pub struct World {
    pub api: Api,
    pub dir: TempDir,
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl World {
    pub async fn empty() -> Result<World> {
        let (api, dir) = (Api::new(), tempfile::tempdir()?);
        serve(&api, &dir.path().join("kubeconfig")).await?;
        Ok(World { api, dir })
    }

    /// With everything.
    pub async fn full() -> Result<World> {
        let world = World::empty().await?;
        fill(&world.api);
        Ok(world)
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .env_remove("COPPICE_LOG")
            .current_dir(self.dir.path());
        command
    }

    pub async fn run(&self, args: &[&str]) -> Result<Said> {
        let program = Path::new(env!("CARGO_BIN_EXE_coppice"));
        let output = self.command(program).arg("kubectl").args(args).output().await?;
        said(&output)
    }

    /// The binary under another name, as kubectl calls its plugins.
    pub async fn run_as(&self, name: &str, args: &[&str]) -> Result<Said> {
        let link: PathBuf = self.dir.path().join(name);
        if !link.exists() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_coppice"), &link)?;
        }
        said(&self.command(&link).args(args).output().await?)
    }

    /// What a command prints that has to succeed.
    pub async fn ok(&self, args: &[&str]) -> Result<String> {
        let said = self.run(args).await?;
        anyhow::ensure!(said.code == Some(0), "{args:?}: {said:?}");
        Ok(said.out)
    }

    /// The complaint of a command that has to be refused.
    pub async fn refused(&self, args: &[&str]) -> Result<String> {
        let said = self.run(args).await?;
        anyhow::ensure!(said.code == Some(1), "{args:?}: {said:?}");
        Ok(said.err)
    }
}

fn said(output: &Output) -> Result<Said> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).context("no UTF-8");
    Ok(Said { code: output.status.code(), out: text(&output.stdout)?, err: text(&output.stderr)? })
}

/// `days` ago, as objects have it.
pub fn ago(days: i64) -> String {
    let second = jiff::Timestamp::now().as_second() - days * 86400 - 3600;
    jiff::Timestamp::from_second(second).map(|time| time.to_string()).unwrap_or_default()
}

pub fn id(n: u128) -> String {
    uuid::Uuid::from_u128((0x7c9e_6679 << 96) + n).to_string()
}

pub fn store_id(node: &str) -> String {
    id(0xa000 + u128::from(node.as_bytes().last().copied().unwrap_or_default()))
}

pub fn condition(kind: &str, holds: bool, reason: &str, message: &str) -> Value {
    json!({ "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
        "lastTransitionTime": ago(2) })
}

pub fn lvstore(api: &Api, node: &str) {
    api.put(
        "lvstores",
        json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore",
            "metadata": { "name": format!("{node}-pool"), "creationTimestamp": ago(9) },
            "spec": { "node": node, "name": "pool", "device": "/dev/disk/by-id/nvme-1", "unschedulable": false },
            "status": { "uuid": store_id(node), "clusterSize": "64Ki", "conditions": [condition("Ready", true, "Open", "")],
                "space": { "total": "64Gi", "free": "40Gi", "committed": "71Gi", "metadata": "1Gi", "metadataFree": "1Gi" } },
        }),
    );
}

/// An lvol and what stands before it.
pub struct Lvol<'a> {
    pub n: u128,
    pub node: &'a str,
    /// `namespace/name` of its claim or VolumeSnapshot.
    pub owner: &'a str,
    pub kind: &'a str,
    pub size: &'a str,
    pub allocated: &'a str,
    pub parent: Option<u128>,
    pub source: Option<(u128, &'a str)>,
    pub days: i64,
}

impl Lvol<'_> {
    pub fn object_name(&self) -> String {
        let uid = uuid::Uuid::from_u128((0x6f0c_fb0a << 96) + self.n);
        match self.kind {
            "Snapshot" => format!("snapshot-{uid}"),
            _ => format!("pvc-{uid}"),
        }
    }

    pub fn put(&self, api: &Api) {
        let snapshot = self.kind == "Snapshot";
        let annotation = if snapshot { "coppice.io/volumesnapshot" } else { "coppice.io/pvc" };
        let mut object = json!({
            "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol",
            "metadata": { "name": self.object_name(), "creationTimestamp": ago(self.days), "labels": { "coppice.io/lvstore": "pool" },
                "annotations": { annotation: self.owner } },
            "spec": { "requestName": self.object_name(), "kind": self.kind, "size": self.size, "provisioning": "Thin",
                "node": self.node, "lvstoreUUID": store_id(self.node), "lvolUUID": id(self.n), "adopted": false },
            "status": { "created": ago(self.days), "size": self.size, "allocated": self.allocated, "parent": self.parent.map(id),
                "conditions": [condition("Ready", true, "Available", "")] },
        });
        if let Some((source, kind)) = self.source {
            object["spec"]["sourceUUID"] = json!(id(source));
            object["spec"]["sourceKind"] = json!(kind);
            object["spec"]["sourceNode"] = json!(self.node);
        }
        if self.parent.is_none() {
            object["status"].as_object_mut().map(|status| status.remove("parent"));
        }
        api.put("lvols", object);
        let (namespace, name) = self.owner.split_once('/').unwrap_or(("default", self.owner));
        match snapshot {
            true => self.put_snapshot(api, namespace, name),
            false => self.put_claim(api, namespace, name),
        }
    }

    fn put_claim(&self, api: &Api, namespace: &str, name: &str) {
        let volume = self.object_name();
        api.put(
            "persistentvolumes",
            json!({ "apiVersion": "v1", "kind": "PersistentVolume", "metadata": { "name": volume },
                "spec": { "capacity": { "storage": self.size }, "accessModes": ["ReadWriteOnce"],
                    "claimRef": { "namespace": namespace, "name": name }, "persistentVolumeReclaimPolicy": "Delete",
                    "storageClassName": "coppice", "csi": { "driver": "csi.coppice.io", "volumeHandle": id(self.n) } },
                "status": { "phase": "Bound" } }),
        );
        api.put(
            "persistentvolumeclaims",
            json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "metadata": { "namespace": namespace, "name": name, "creationTimestamp": ago(self.days) },
                "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "coppice", "volumeMode": "Filesystem",
                    "volumeName": volume, "resources": { "requests": { "storage": self.size } } },
                "status": { "phase": "Bound", "capacity": { "storage": self.size } } }),
        );
    }

    fn put_snapshot(&self, api: &Api, namespace: &str, name: &str) {
        let content = self.object_name().replace("snapshot-", "snapcontent-");
        api.put(
            "volumesnapshotcontents",
            json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": { "name": content },
                "spec": { "driver": "csi.coppice.io", "deletionPolicy": "Delete", "sourceVolumeMode": "Filesystem",
                    "volumeSnapshotRef": { "namespace": namespace, "name": name } },
                "status": { "snapshotHandle": id(self.n) } }),
        );
        api.put(
            "volumesnapshots",
            json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "metadata": { "namespace": namespace, "name": name, "creationTimestamp": ago(self.days) },
                "spec": { "volumeSnapshotClassName": "coppice", "source": { "persistentVolumeClaimName": "data" } },
                "status": { "readyToUse": true, "restoreSize": self.size, "boundVolumeSnapshotContentName": content } }),
        );
    }
}

pub fn classes(api: &Api) {
    for (name, mode, driver) in [
        ("coppice", "WaitForFirstConsumer", "csi.coppice.io"),
        ("coppice-clone", "Immediate", "csi.coppice.io"),
        ("other", "Immediate", "ebs.csi.aws.com"),
    ] {
        api.put(
            "storageclasses",
            json!({ "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": name },
                "provisioner": driver, "volumeBindingMode": mode, "reclaimPolicy": "Delete" }),
        );
    }
    for (name, driver) in [("coppice", "csi.coppice.io"), ("ebs", "ebs.csi.aws.com")] {
        api.put(
            "volumesnapshotclasses",
            json!({ "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass", "metadata": { "name": name },
                "driver": driver, "deletionPolicy": "Delete" }),
        );
    }
}

fn fill(api: &Api) {
    classes(api);
    lvstore(api, "node1");
    lvstore(api, "node2");
    let lvol = |n, owner, kind, allocated| Lvol {
        n,
        node: "node1",
        owner,
        kind,
        size: "20Gi",
        allocated,
        parent: None,
        source: None,
        days: 5,
    };
    let all = [
        Lvol { source: Some((2, "Volume")), ..lvol(1, "default/monday", "Snapshot", "9Gi") },
        // Taken for the clone, and hidden since: no object stands for it.
        Lvol { parent: Some(99), ..lvol(2, "default/data", "Volume", "300Mi") },
        Lvol { parent: Some(99), source: Some((2, "Volume")), days: 1, ..lvol(3, "default/copy", "Volume", "12Mi") },
        Lvol {
            parent: Some(1),
            source: Some((1, "Snapshot")),
            days: 2,
            size: "30Gi",
            ..lvol(4, "reports/quarter", "Volume", "1Mi")
        },
        Lvol { node: "node2", size: "8Gi", days: 3, ..lvol(5, "default/queue", "Volume", "2Gi") },
    ];
    for lvol in all {
        lvol.put(api);
    }
    let kept = json!([{ "lvolUUID": id(99), "parent": id(1), "size": "20Gi", "allocated": "512Mi" }]);
    let _ = api.patch("lvstores", "node1-pool", &json!({ "status": { "kept": kept } }), true);
    api.put(
        "pods",
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "default", "name": "postgres-0" },
            "spec": { "nodeName": "node1", "containers": [{ "name": "postgres", "env": [{ "name": "PASSWORD", "value": "hunter2" }] }],
                "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
            "status": { "phase": "Running" } }),
    );
    api.put(
        "pods",
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "namespace": "coppice", "name": "coppice-node-x",
                "labels": { "app.kubernetes.io/name": "coppice" } },
            "spec": { "nodeName": "node1", "containers": [{ "name": "coppice" }] },
            "status": { "phase": "Running", "containerStatuses": [{ "name": "coppice", "restartCount": 1, "ready": true,
                "image": "i", "imageID": "i" }] } }),
    );
}

/// Events about an object.
pub fn event(api: &Api, plural: &str, name: &str, reason: &str, message: &str) {
    let Some(object) = api.get(plural, name) else { return };
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_string();
    api.put(
        "events",
        json!({ "apiVersion": "v1", "kind": "Event",
            "metadata": { "namespace": namespace, "name": format!("{name}.{reason}") },
            "involvedObject": { "kind": object["kind"], "name": name, "uid": object["metadata"]["uid"] },
            "type": "Warning", "reason": reason, "message": message, "lastTimestamp": ago(0) }),
    );
}
