//! `coppice lvstore …`.

use crate::args::{Global, Lvstore, StoreCreate, StoreRm, wrong_usage};
use crate::connect::{self, Access, refused, with};
use crate::output::{Format, clean, facts, left, print, print_json, right, show, table};
use crate::size::human;
use crate::tree::percent;
use crate::{Outcome, wipe};
use anyhow::{Result, bail};
use coppice_engine::{CreateStore, Engine, EngineConfig, Finding, StoreInfo};
use coppice_proto::admin::v1::StoreRequest;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// `lvstore check -o json`.
#[derive(Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// `lvstore rm -o json`.
#[derive(Serialize)]
struct Removed<'a> {
    removed: Option<String>,
    path: &'a Path,
    lvols: usize,
}

pub async fn run(global: &Global, command: Lvstore) -> Result<Outcome> {
    let format = global.output;
    match command {
        Lvstore::Create(how) => create(global, how).await?,
        Lvstore::Rm(how) => remove(global, how).await?,
        Lvstore::Ls => {
            let stores = with(global, Access::Look, async |client| connect::stores(client).await).await?;
            match format {
                Format::Json => print_json(&stores)?,
                Format::Table => print(&list(&stores, global.image.is_some()))?,
            }
        }
        Lvstore::Show(one) => {
            let request = StoreRequest { store: one.store };
            let store = with(global, Access::Look, async |client| {
                connect::store(client.get_store(request).await.map_err(refused)?.into_inner())
            });
            let store = store.await?;
            show(format, &store, || describe(&store, global.image.is_some()))?;
        }
        Lvstore::Grow(one) => {
            let request = StoreRequest { store: one.store };
            let (before, after) = with(global, Access::Change, async |client| {
                let before = client.get_store(request.clone()).await.map_err(refused)?.into_inner();
                let after = client.grow_store(request).await.map_err(refused)?.into_inner();
                Ok((connect::store(before)?, connect::store(after)?))
            })
            .await?;
            show(format, &after, || grown(&before, &after))?;
        }
        Lvstore::Seal(one) => {
            let request = StoreRequest { store: one.store };
            let store = with(global, Access::Change, async |client| {
                connect::store(client.seal_store(request).await.map_err(refused)?.into_inner())
            });
            let store = store.await?;
            show(format, &store, || match global.image {
                Some(_) => format!("sealed lvstore {} and closed it: SPDK can open it now", clean(&store.name)),
                None => format!("sealed lvstore {}: its next close leaves a plain SPDK store", clean(&store.name)),
            })?;
        }
        Lvstore::Check(one) => {
            let request = StoreRequest { store: one.store };
            let findings = with(global, Access::Look, async |client| {
                Ok(client.check_store(request).await.map_err(refused)?.into_inner().findings)
            });
            let findings: Vec<Finding> = findings.await?.into_iter().map(Into::into).collect();
            return report(format, findings);
        }
    }
    Ok(Outcome::Done)
}

async fn create(global: &Global, how: StoreCreate) -> Result<()> {
    let path = place(global, how.path);
    let there = std::fs::metadata(&path);
    match (&there, how.size) {
        (Ok(there), Some(_)) if !there.is_file() => {
            bail!("{} is no file: --size makes a file; leave it out for a device", path.display())
        }
        (Err(e), None) if e.kind() == std::io::ErrorKind::NotFound => {
            bail!("{} does not exist; add --size SIZE to make a file of that size", path.display())
        }
        _ => {}
    }
    let store = CreateStore {
        file_size: how.size,
        name: how.name.unwrap_or_else(|| name_of(&path)),
        cluster_size: how.cluster_size,
        max_size: how.max_size,
        block_size: how.block_size,
        force: how.force,
        owner: None,
    };
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let made = engine.create_store(&path, store).await;
    engine.shutdown().await;
    let made = made?;
    show(global.output, &made, || {
        format!(
            "created lvstore {} on {}: {}, clusters of {}, can grow to {}",
            clean(&made.name),
            path.display(),
            human(made.size),
            human(made.cluster_size.into()),
            human(made.max_size)
        )
    })
}

async fn remove(global: &Global, how: StoreRm) -> Result<()> {
    let path = place(global, how.path);
    if !path.exists() {
        bail!("{} does not exist; name the file or device that holds the lvstore", path.display());
    }
    let engine = Engine::start(EngineConfig { shards: 1, ..EngineConfig::default() })?;
    let done = wipe::remove(&engine, &path, how.force, bar("looking for copies")).await;
    engine.shutdown().await;
    let done = done?;
    let answer = Removed { removed: done.name.clone(), path: &path, lvols: done.lvols };
    show(global.output, &answer, || {
        let name = done.name.as_deref().map_or_else(String::new, |name| format!(" {}", clean(name)));
        let lvols = if done.lvols > 0 { format!(" with {} lvols", done.lvols) } else { String::new() };
        format!("removed lvstore{name}{lvols} from {}", path.display())
    })
}

/// Where the lvstore of `create` and `rm` is.
fn place(global: &Global, path: Option<PathBuf>) -> PathBuf {
    match (path, &global.image) {
        (Some(path), None) => path,
        (None, Some(image)) => image.clone(),
        (Some(_), Some(_)) => wrong_usage("name the file or device once: as FILE|DEV or with --image"),
        (None, None) => wrong_usage("name the file or device of the lvstore"),
    }
}

fn name_of(path: &Path) -> String {
    path.file_stem().map_or_else(|| "lvstore".to_string(), |stem| stem.to_string_lossy().into_owned())
}

/// A bar on standard error; none when that is no terminal.
pub fn bar(what: &'static str) -> ProgressBar {
    let bar = ProgressBar::no_length();
    if let Ok(style) = ProgressStyle::with_template("{msg}  {bar:32}  {percent:>3}%  {elapsed} (about {eta} to go)") {
        bar.set_style(style.progress_chars("█▌░"));
    }
    bar.with_message(what)
}

fn bytes(store: &StoreInfo, clusters: u64) -> u64 {
    clusters.saturating_mul(u64::from(store.cluster_size))
}

fn used(store: &StoreInfo) -> u64 {
    store.metadata_clusters + store.allocated_clusters + store.quarantined_clusters
}

/// A closed image is opened for reading only by the one who looks: that says nothing about the store.
fn condition(store: &StoreInfo, closed: bool) -> &'static str {
    match (&store.failed, closed, store.read_only) {
        (Some(_), _, _) => "failed",
        (None, true, _) => "closed",
        (None, false, true) => "read-only",
        (None, false, false) => "ok",
    }
}

fn list(stores: &[StoreInfo], closed: bool) -> String {
    let columns = [
        left("NAME"),
        right("SIZE"),
        right("USED"),
        right("RESERVED"),
        right("FREE"),
        right("USED%"),
        right("LVOLS"),
        right("SNAPSHOTS"),
        left("STATE"),
        left("PATH"),
    ];
    let rows = stores.iter().map(|s| {
        vec![
            s.name.clone(),
            human(s.size),
            human(bytes(s, used(s))),
            human(bytes(s, s.reserved_clusters)),
            human(bytes(s, s.free_clusters)),
            percent(used(s), s.total_clusters),
            s.lvols.to_string(),
            s.snapshots.to_string(),
            condition(s, closed).to_string(),
            s.path.clone(),
        ]
    });
    table(&columns, rows).join("\n") + "\n"
}

fn describe(store: &StoreInfo, closed: bool) -> String {
    let part = |clusters: u64| {
        format!("{} ({clusters} clusters, {})", human(bytes(store, clusters)), percent(clusters, store.total_clusters))
    };
    let readable = match (store.spdk_readable, store.seal_work.is_empty()) {
        (true, _) => "yes".to_string(),
        (false, true) => "no; after a clean close".to_string(),
        (false, false) => format!("no; to be sealed first: {}", store.seal_work.join("; ")),
    };
    let mut lines = vec![
        ("name", store.name.clone()),
        ("uuid", store.uuid.to_string()),
        ("path", store.path.clone()),
        ("state", condition(store, closed).to_string()),
        ("owner", store.owner.map_or_else(|| "none".to_string(), |owner| format!("the cluster {owner}"))),
        ("size", human(store.size)),
        ("can grow to", human(store.max_size)),
        ("cluster size", human(store.cluster_size.into())),
        ("block size", human(store.block_size.into())),
        ("total", part(store.total_clusters)),
        ("  metadata", part(store.metadata_clusters)),
        ("  allocated", part(store.allocated_clusters)),
        ("  reserved", part(store.reserved_clusters)),
        ("  quarantined", part(store.quarantined_clusters)),
        ("  free", part(store.free_clusters)),
        ("metadata pages", format!("{}, {} of them free", store.metadata_pages, store.free_metadata_pages)),
        ("lvols", store.lvols.to_string()),
        ("snapshots", store.snapshots.to_string()),
        ("held by hidden snapshots", human(store.hidden_bytes)),
        ("type on the device", format!("{}, {}", store.bstype, if store.clean { "clean" } else { "in use" })),
        ("readable by SPDK", readable),
    ];
    if let Some(why) = &store.failed {
        lines.push(("failed", why.clone()));
    }
    facts(lines)
}

fn grown(before: &StoreInfo, after: &StoreInfo) -> String {
    let name = clean(&after.name);
    if before.size == after.size {
        return format!("lvstore {name} covers its device already: {}", human(after.size));
    }
    format!("lvstore {name} grew from {} to {}", human(before.size), human(after.size))
}

fn report(format: Format, findings: Vec<Finding>) -> Result<Outcome> {
    let sound = findings.iter().all(|f| f.heals);
    let outcome = if sound { Outcome::Done } else { Outcome::Found };
    match format {
        Format::Json => print_json(&Findings { findings })?,
        Format::Table if findings.is_empty() => print("nothing found: every invariant holds\n")?,
        Format::Table => {
            let rows = findings.into_iter().map(|f| vec![f.kind, f.lvol.unwrap_or_else(|| "–".into()), f.message]);
            print(&(table(&[left("FOUND"), left("LVOL"), left("WHAT")], rows).join("\n") + "\n"))?;
            if sound {
                print("nothing is lost: this is what a crash leaves\n")?;
            }
        }
    }
    Ok(outcome)
}
