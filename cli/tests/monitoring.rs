//! Names agree: what alerts and dashboard ask for is exported, what is exported is in docs/monitoring.md with its type and
//! labels, and every alert is tested and explained. The standalone role is the real process with a volume in use; the other two
//! roles are what they would say, with one of everything. Needs root.
//!
//! `COPPICE_EXPOSITIONS=DIR` keeps what was said there, for promtool (`scripts/monitoring.sh`).

mod common;

use anyhow::{Context, Result, bail};
use common::{Driver, MIB, block};
use coppice_controller::kube::metrics as controller_metrics;
use coppice_engine::{CreateLvol, CreateSnapshot, CreateStore, Engine, EngineConfig, OpenStore, Store, Stores};
use coppice_kube_api::{Lvstore, LvstoreCondition};
use coppice_node::metrics::{StoreMetrics, Wanted};
use coppice_proto::attributes;
use coppice_proto::csi::v1::volume_capability::access_mode::Mode;
use coppice_proto::exposition::Exposition;
use coppice_proto::timings::Timings;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn file(name: &str) -> Result<String> {
    std::fs::read_to_string(root().join(name)).with_context(|| name.to_string())
}

/// Keeps what a role said for promtool, if somebody wants it.
fn keep(role: &str, text: &str) -> Result<()> {
    if let Some(dir) = std::env::var_os("COPPICE_EXPOSITIONS") {
        std::fs::write(Path::new(&dir).join(role), text)?;
    }
    Ok(())
}

/// Type and labels (but for `le`) of each metric of an exposition, and its samples.
#[derive(Default)]
struct Said {
    types: BTreeMap<String, String>,
    labels: BTreeMap<String, BTreeSet<String>>,
    samples: Vec<(String, f64)>,
}

impl Said {
    fn read(&mut self, text: &str) -> Result<()> {
        let mut family = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').context("a type")?;
                family = name.to_string();
                let before = self.types.insert(name.into(), kind.into());
                assert!(before.is_none_or(|before| before == kind), "{name} is of two types");
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').context("a value")?;
                assert!(series.starts_with(&family), "{series} stands below {family}");
                self.samples.push((series.to_string(), value.parse()?));
                let labels = self.labels.entry(family.clone()).or_default();
                let inside = series.split_once('{').map_or("", |(_, inside)| inside);
                labels.extend(inside.split("=\"").filter_map(|part| part.rsplit(['"', ',']).next()).map(String::from));
                labels.retain(|label| !label.is_empty() && label != "le" && label != "}");
            }
        }
        Ok(())
    }

    /// The sum of the samples that begin so and have all of these parts.
    fn sum(&self, name: &str, parts: &[&str]) -> f64 {
        let named =
            |series: &str| series.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('{'));
        let of = self.samples.iter().filter(|(s, _)| named(s) && parts.iter().all(|part| s.contains(part)));
        of.map(|(_, value)| value).sum()
    }

    /// Names that queries may use.
    fn series(&self) -> BTreeSet<String> {
        let parts = |(name, kind): (&String, &String)| match kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")).to_vec(),
            _ => vec![name.clone()],
        };
        self.types.iter().flat_map(parts).collect()
    }
}

fn get(at: &str, path: &str) -> Result<String> {
    let mut stream = std::net::TcpStream::connect(at)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer")?;
    if !head.starts_with("HTTP/1.1 200 ") {
        bail!("{head}");
    }
    Ok(body.to_string())
}

/// A real process with a volume that was written, flushed and read, a snapshot of it, and calls that succeeded and failed.
async fn standalone() -> Result<String> {
    let mut driver = Driver::start(1 << 30).await?;
    let mut c = driver.clients().await?;
    let how = || block(Mode::SingleNodeWriter);
    let volume = c.create("v", 64 * MIB, how()).await?;
    let (staging, target) = (driver.path("staging"), driver.path("pods/block"));
    c.stage(&volume, &staging, how()).await?;
    c.publish(&volume, &staging, &target, how(), false).await?;
    assert!(c.stage("missing", &staging, how()).await.is_err());
    let mut device = std::fs::File::options().read(true).write(true).open(&target)?;
    device.write_all(&vec![7; 1 << 20])?;
    device.sync_all()?;
    c.snapshot(&volume, "s", "crash").await?;
    let text = get(&driver.http()?, "/metrics")?;
    assert_eq!(get(&driver.http()?, "/readyz")?, "ok\n");
    drop(device);
    c.unpublish(&volume, &target).await?;
    c.unstage(&volume, &staging).await?;
    driver.terminate().await?;
    Ok(text)
}

/// A new store in a file, open.
async fn store(dir: &Path) -> Result<(Engine, Store)> {
    let engine = Engine::start(EngineConfig { shards: 2, ..EngineConfig::default() })?;
    let how = CreateStore {
        file_size: Some(256 << 20),
        name: "fast".into(),
        cluster_size: None,
        max_size: None,
        block_size: None,
        force: false,
        owner: None,
    };
    let path = dir.join("fast");
    engine.create_store(&path, how).await?;
    let store = engine.open_store(&path, OpenStore::default()).await?;
    Ok((engine, store))
}

/// A node with a store that works, one that is lost and one that was never opened.
async fn node() -> Result<String> {
    let dir = tempfile::tempdir()?;
    let (engine, store) = store(dir.path()).await?;
    let claim = [(attributes::CSI_PVC.to_string(), "team-a/data".to_string())];
    let lvol = |name: &str, size| CreateLvol { name: name.into(), size, ..CreateLvol::default() };
    let thin = store.create_lvol(CreateLvol { attributes: claim.into(), ..lvol("thin", 64 << 20) }).await?;
    store.create_lvol(CreateLvol { thick: true, ..lvol("thick", 16 << 20) }).await?;
    store.write(thin.uuid, 0, vec![1; 8 << 20]).await?;
    store.flush(thin.uuid).await?;
    let of = [(attributes::CSI_VOLUME_SNAPSHOT.to_string(), "team-a/before".to_string())];
    let snapshot =
        CreateSnapshot { lvol: thin.uuid, name: "s".into(), uuid: None, attributes: of.into(), hidden: false };
    store.snapshot(vec![snapshot]).await?;
    store.write(thin.uuid, 0, vec![2; 1 << 20]).await?;
    store.read(thin.uuid, 4096, 8192).await?;
    let metrics = StoreMetrics::new(Stores::from(vec![store.clone()]), "node-a".into());
    let wanted = [("fast", vec![]), ("slow", vec![LvstoreCondition::Lost]), ("new", vec![])];
    let wanted = wanted.map(|(name, conditions)| Wanted { name: name.into(), conditions });
    let mut out = Exposition::of("node");
    metrics.expose(&mut out, &wanted).await;
    Timings::default().expose(&mut out);
    store.close().await?;
    engine.shutdown().await;
    Ok(out.finish())
}

fn controller() -> Result<String> {
    let object: Lvstore = serde_json::from_value(serde_json::json!({
        "apiVersion": "coppice.io/v1alpha1", "kind": "Lvstore", "metadata": { "name": "a-fast" },
        "spec": { "node": "node-a", "name": "fast", "device": "x", "unschedulable": false },
    }))?;
    let mut out = Exposition::of("controller");
    controller_metrics::expose(&mut out, true, Some(2), &[Arc::new(object)]);
    Timings::default().expose(&mut out);
    Ok(out.finish())
}

async fn everything() -> Result<Said> {
    let mut said = Said::default();
    for (role, text) in [("standalone", standalone().await?), ("node", node().await?), ("controller", controller()?)] {
        keep(role, &text)?;
        said.read(&text)?;
    }
    Ok(said)
}

/// The metrics that a query names: words that begin as ours do, outside strings.
fn metrics_of(query: &str) -> BTreeSet<String> {
    let outside: String = query.split('"').step_by(2).collect::<Vec<_>>().join("\"");
    let words = outside.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("coppice_") || word.starts_with("csi_")).map(String::from).collect()
}

fn yaml(name: &str) -> Result<Value> {
    serde_saphyr::from_str(&file(name)?).with_context(|| name.to_string())
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

/// Every alert: name and rule.
fn alerts() -> Result<Vec<(String, Value)>> {
    let rules = yaml("charts/coppice/files/rules.yaml")?;
    let rules = items(&rules, "groups").flat_map(|group| items(group, "rules"));
    rules.map(|rule| Ok((rule["alert"].as_str().context("a name")?.to_string(), rule.clone()))).collect()
}

/// Every query of the dashboard, its variables' included.
fn dashboard() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(&file("charts/coppice/files/dashboard.json")?)?;
    let shown = items(&dashboard, "panels").flat_map(|panel| items(panel, "targets")).map(|target| &target["expr"]);
    let variables = items(&dashboard["templating"], "list").map(|variable| &variable["query"]["query"]);
    let variables = variables.filter(|query| !query.is_null());
    shown.chain(variables).map(|query| Ok(query.as_str().context("a query")?.to_string())).collect()
}

#[tokio::test]
async fn what_is_asked_for_is_exported_and_what_is_exported_is_documented() -> Result<()> {
    let said = everything().await?;
    let series = said.series();
    let mut queries = dashboard()?;
    assert!(queries.len() > 30, "{} queries", queries.len());
    for (_, rule) in alerts()? {
        queries.push(rule["expr"].as_str().context("an expression")?.into());
    }
    for query in queries {
        let named = metrics_of(&query);
        assert!(!named.is_empty(), "no metric of ours: {query}");
        let missing: Vec<_> = named.difference(&series).collect();
        assert!(missing.is_empty(), "{missing:?} is not exported: {query}");
    }

    let mut exported = BTreeMap::new();
    for (name, kind) in &said.types {
        let labels = said.labels.get(name).with_context(|| format!("{name} has no sample here"))?;
        exported.insert(name.clone(), (kind.clone(), labels.clone()));
    }
    let mut documented = BTreeMap::new();
    for line in file("docs/monitoring.md")?.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [name, kind, _unit, labels, meaning] = cells.as_slice() else { continue };
        assert!(!meaning.is_empty(), "{line}");
        let labels =
            labels.split(',').map(|label| label.trim().to_string()).filter(|label| !label.is_empty()).collect();
        documented.insert(name.trim_matches('`').to_string(), (kind.to_string(), labels));
    }
    assert_eq!(documented, exported, "docs/monitoring.md (left) and what is exported (right)");
    Ok(())
}

#[tokio::test]
async fn a_volume_in_use_is_seen() -> Result<()> {
    let mut said = Said::default();
    said.read(&standalone().await?)?;
    let value = |name: &str, parts: &[&str]| said.sum(name, parts);
    let mib = (1 << 20) as f64;
    assert_eq!(value("coppice_lvstore_ready", &["lvstore=\"store\"", "node=\"test-node\""]), 1.0);
    assert_eq!(value("coppice_lvstore_condition", &[]), 0.0);
    let parts = ["allocated", "free", "reserved"].map(|part| value(&format!("coppice_lvstore_{part}_bytes"), &[]));
    let size = value("coppice_lvstore_size_bytes", &[]);
    assert!(parts.iter().sum::<f64>() <= size && parts[0] >= mib && parts[1] > size / 2.0, "{parts:?} of {size}");
    assert_eq!(value("coppice_lvstore_committed_bytes", &[]), 2.0 * 64.0 * mib, "the volume and its snapshot");
    assert_eq!(value("coppice_lvol_size_bytes", &[]), 2.0 * 64.0 * mib);
    assert!(value("coppice_lvol_allocated_bytes", &[]) >= mib);
    assert_eq!(value("coppice_lvol_exclusive_bytes", &[]), 0.0, "the volume reads all from its snapshot");
    assert_eq!(value("coppice_lvol_write_bytes_total", &[]), mib);
    let writes = value("coppice_lvol_write_ops_total", &[]);
    assert!(writes >= 1.0, "{writes}");
    assert_eq!(value("coppice_lvstore_latency_seconds_count", &["operation=\"write\""]), writes);
    assert_eq!(value("coppice_lvstore_latency_seconds_bucket", &["operation=\"write\"", "le=\"+Inf\""]), writes);
    assert!(value("coppice_lvstore_latency_seconds_sum", &["operation=\"write\""]) > 0.0);
    assert!(value("coppice_lvstore_latency_seconds_count", &["operation=\"flush\""]) >= 1.0);
    assert!(value("coppice_device_stall_seconds", &[]) < 5.0);
    let calls = |method: &str, code: &str| {
        let (method, code) = (format!("/{method}\""), format!("code=\"{code}\""));
        value("csi_plugin_operations_seconds_count", &[&method, &code, "driver_name=\"csi.coppice.io\""])
    };
    assert_eq!([calls("CreateVolume", "OK"), calls("NodeStageVolume", "OK")], [1.0, 1.0]);
    assert_eq!(calls("NodeStageVolume", "NotFound"), 1.0);
    Ok(())
}

#[tokio::test]
async fn a_node_says_what_is_missing() -> Result<()> {
    let mut said = Said::default();
    said.read(&node().await?)?;
    let of = |name: &str, store: &str, part: &str| said.sum(name, &[&format!("lvstore=\"{store}\""), part]);
    assert_eq!(["fast", "slow", "new"].map(|s| of("coppice_lvstore_ready", s, "")), [1.0, 0.0, 0.0]);
    assert_eq!(of("coppice_lvstore_condition", "slow", "condition=\"Lost\""), 1.0);
    assert_eq!(said.sum("coppice_lvstore_condition", &[]), 1.0, "no other condition");
    assert_eq!(said.samples.iter().filter(|(name, _)| name.starts_with("coppice_lvstore_condition")).count(), 9);
    let claim = ["namespace=\"team-a\"", "persistentvolumeclaim=\"data\""];
    assert_eq!(said.sum("coppice_lvol_size_bytes", &claim), (64 << 20) as f64, "the volume; its snapshot has no claim");
    let unclaimed = ["namespace=\"team-a\"", "persistentvolumeclaim=\"\""];
    assert_eq!(said.sum("coppice_lvol_size_bytes", &unclaimed), (64 << 20) as f64, "the snapshot");
    let of_nobody = ["namespace=\"\"", "persistentvolumeclaim=\"\""];
    assert_eq!(said.sum("coppice_lvol_size_bytes", &of_nobody), (16 << 20) as f64, "said to be empty");
    assert!(said.sum("coppice_lvol_write_bytes_total", &claim) >= (9 << 20) as f64);
    assert!(said.sum("coppice_lvol_read_ops_total", &claim) >= 1.0);
    let exclusive = said.sum("coppice_lvol_exclusive_bytes", &claim);
    assert_eq!(exclusive, said.sum("coppice_lvol_allocated_bytes", &claim), "nobody reads from the volume");
    assert!(exclusive >= (1 << 20) as f64);
    assert!(said.sum("coppice_lvstore_reserved_bytes", &[]) >= (16 << 20) as f64);
    Ok(())
}

#[tokio::test]
async fn a_data_thread_that_stands_still_counts_as_a_stall() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (engine, store) = store(dir.path()).await?;
    let metrics = StoreMetrics::new(Stores::from(vec![store.clone()]), "node-a".into());
    let (release, held) = std::sync::mpsc::channel::<()>();
    let thread = engine.shards().last().context("a data thread")?;
    thread.run(move |_| {
        // Ends with the sender.
        let _ = held.recv();
    });
    let stall = async || {
        let mut out = Exposition::of("node");
        metrics.expose(&mut out, &[]).await;
        let mut said = Said::default();
        said.read(&out.finish())?;
        Ok::<_, anyhow::Error>(said.sum("coppice_device_stall_seconds", &[]))
    };
    let (first, second) = (stall().await?, stall().await?);
    assert!(first >= 1.9 && second >= first + 1.9, "{first} s, {second} s");
    drop(release);
    assert!(stall().await? < 1.0);
    store.close().await?;
    engine.shutdown().await;
    Ok(())
}

#[test]
fn every_alert_is_tested_and_explained() -> Result<()> {
    let document = file("docs/monitoring.md")?;
    let tests = yaml("charts/coppice/tests/rules.yaml")?;
    let checks: Vec<&Value> = items(&tests, "tests").flat_map(|test| items(test, "promql_expr_test")).collect();
    let mut names = BTreeSet::new();
    for (name, rule) in alerts()? {
        let of = |check: &&&Value| check["expr"].as_str().is_some_and(|e| e.contains(&format!("alertname=\"{name}\"")));
        let (quiet, loud): (Vec<&&Value>, Vec<&&Value>) =
            checks.iter().filter(of).partition(|check| items(check, "exp_samples").next().is_none());
        assert!(!loud.is_empty(), "{name} has no test in which it fires");
        assert!(!quiet.is_empty(), "{name} has no test in which it does not fire");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        assert!(["warning", "critical"].contains(&severity), "{name}: severity {severity:?}");
        let annotations = &rule["annotations"];
        for text in ["summary", "description"] {
            assert!(annotations[text].as_str().is_some_and(|text| text.len() > 20), "{name} has no {text}");
        }
        assert!(document.contains(&format!("\n### {name}\n")), "docs/monitoring.md does not explain {name}");
        let url = annotations["runbook_url"].as_str().unwrap_or_default();
        let wanted = format!("/blob/main/docs/monitoring.md#{}", name.to_lowercase());
        assert!(url.starts_with(env!("CARGO_PKG_REPOSITORY")) && url.ends_with(&wanted), "{name}: {url}");
        assert!(names.insert(name.clone()), "{name} twice");
    }
    for title in document.lines().filter_map(|line| line.strip_prefix("### Coppice")) {
        assert!(
            names.contains(&format!("Coppice{title}")),
            "docs/monitoring.md explains Coppice{title}, which is no alert"
        );
    }
    Ok(())
}

#[test]
fn names_are_found_in_queries() {
    let query = "max by (node) (coppice_a_bytes{x=\"coppice_b\"}) / on (node) rate(csi_c_count[5m]) > 0";
    assert_eq!(metrics_of(query), ["coppice_a_bytes", "csi_c_count"].map(String::from).into());
}
