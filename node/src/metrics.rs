//! Metrics of the lvstores of this process. What they mean, with alerts: docs/monitoring.md.
//!
//! All is read when it is asked for. The engine's counters cost a lock of the store's metadata for a moment; how long the
//! device has not answered is asked of the data threads, which may stand still themselves: that is waited for only so long.

use crate::agent::condition::{PAGE_BYTES, space};
use coppice_engine::counters::{LatencyTotals, LvolTotals, StoreTotals};
use coppice_engine::{LvolInfo, LvolKind, LvolState, Store, StoreInfo, Stores};
use coppice_kube_api::{LvstoreCondition, Space};
use coppice_proto::attributes;
use coppice_proto::exposition::{Exposition, Metric};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long the data threads may take to say how long the device has not answered.
const ASK_SECONDS_MAX: u64 = 2;

const READY: Metric = Metric::gauge("coppice_lvstore_ready", "1 if the lvstore is open and its device works, else 0.");
const CONDITION: Metric = Metric::gauge(
    "coppice_lvstore_condition",
    "1 if the lvstore is Failing (its device fails requests), Lost (not on its device) or Foreign (another cluster's), else 0.",
);
const STALL: Metric = Metric::gauge(
    "coppice_device_stall_seconds",
    "Age of the oldest request that the lvstore's device has not answered; 0 if there is none.",
);
const LATENCY: Metric = Metric::histogram(
    "coppice_lvstore_latency_seconds",
    "How long reads, writes and flushes of the lvstore's lvols took, failed ones left out.",
);
const LVOL_INFO: Metric =
    Metric::gauge("coppice_lvol_info", "1 for each lvol, with its name, its kind and whether its metadata checks out.");

/// A metric, and its value as one number.
type Of<T> = (Metric, fn(&T) -> u64);

/// Those of a lvstore.
const OF_STORE: [Of<Seen>; 12] = [
    (Metric::gauge("coppice_lvstore_size_bytes", "Size of the lvstore."), |s| s.space.total.bytes()),
    (Metric::gauge("coppice_lvstore_free_bytes", "What nothing uses and no thick lvol has reserved."), |s| {
        s.space.free.bytes()
    }),
    (Metric::gauge("coppice_lvstore_allocated_bytes", "What lvols and snapshots use."), |s| {
        s.clusters(s.info.allocated_clusters)
    }),
    (Metric::gauge("coppice_lvstore_reserved_bytes", "What thick lvols have reserved and not used yet."), |s| {
        s.clusters(s.info.reserved_clusters)
    }),
    (Metric::gauge("coppice_lvstore_committed_bytes", "Sizes of all lvols and snapshots together."), |s| {
        s.space.committed.bytes()
    }),
    (Metric::gauge("coppice_lvstore_metadata_size_bytes", "Room for metadata, in use or not."), |s| {
        s.info.metadata_pages.saturating_mul(PAGE_BYTES)
    }),
    (Metric::gauge("coppice_lvstore_metadata_free_bytes", "Room for metadata that is not in use."), |s| {
        s.space.metadata_free.bytes()
    }),
    (Metric::gauge("coppice_hidden_bytes", "Held by deleted snapshots that clones still read."), |s| {
        s.info.hidden_bytes
    }),
    (
        Metric::gauge(
            "coppice_hydration_remaining_bytes",
            "Still to be copied from other nodes, by all lvols of the lvstore that depend on them.",
        ),
        |s| s.shown_or_not().filter_map(|lvol| lvol.hydration).map(|h| h.remaining_bytes).fold(0, u64::saturating_add),
    ),
    (Metric::gauge("coppice_lvols_degraded", "Lvols that depend on another node which cannot be reached."), |s| {
        count(s.shown_or_not().filter(|lvol| lvol.state == LvolState::Degraded))
    }),
    (Metric::gauge("coppice_external_parents", "Snapshots of other lvstores that lvols of this one depend on."), |s| {
        count(s.info.external_parents.iter())
    }),
    (Metric::gauge("coppice_pins", "Lvstores that depend on snapshots of this one, for each snapshot."), |s| {
        count(s.shown_or_not().flat_map(|lvol| &lvol.pins))
    }),
];

/// Those of a lvol, snapshots included.
const OF_LVOL: [Of<LvolInfo>; 2] = [
    (Metric::gauge("coppice_lvol_size_bytes", "Size of the lvol."), |lvol| lvol.size),
    (
        Metric::gauge("coppice_lvol_allocated_bytes", "What the lvol uses itself, without what it reads from others."),
        own,
    ),
];
const EXCLUSIVE: Metric = Metric::gauge(
    "coppice_lvol_exclusive_bytes",
    "What deleting the lvol gives back for certain: all that it uses itself, or 0 while other lvols read from it.",
);

/// Those that count what a lvol did. Snapshots do nothing.
const OF_IO: [Of<LvolTotals>; 4] = [
    (Metric::counter("coppice_lvol_read_bytes_total", "Bytes read from the lvol since its store was opened."), |io| {
        io.read_bytes
    }),
    (Metric::counter("coppice_lvol_read_ops_total", "Reads of the lvol since its store was opened."), |io| io.reads),
    (
        Metric::counter("coppice_lvol_write_bytes_total", "Bytes written to the lvol since its store was opened."),
        |io| io.write_bytes,
    ),
    (Metric::counter("coppice_lvol_write_ops_total", "Writes to the lvol since its store was opened."), |io| io.writes),
];

/// A lvstore that there should be, open or not.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    /// As its object has it.
    pub conditions: Vec<LvstoreCondition>,
}

/// The metrics of the lvstores of a process.
pub struct StoreMetrics {
    stores: Stores,
    node: String,
    /// Stores whose data threads do not answer, since when.
    unanswered: Mutex<BTreeMap<Uuid, Instant>>,
}

/// What is read of a store at one moment.
struct Seen {
    info: StoreInfo,
    space: Space,
    lvols: Vec<LvolInfo>,
    io: BTreeMap<Uuid, LvolTotals>,
    latencies: StoreTotals,
    stall: Duration,
}

impl Seen {
    fn clusters(&self, clusters: u64) -> u64 {
        clusters.saturating_mul(u64::from(self.info.cluster_size))
    }

    fn shown_or_not(&self) -> impl Iterator<Item = &LvolInfo> {
        self.lvols.iter()
    }

    fn shown(&self) -> impl Iterator<Item = &LvolInfo> {
        self.lvols.iter().filter(|lvol| lvol.state != LvolState::Hidden)
    }
}

fn count<T>(all: impl Iterator<Item = T>) -> u64 {
    u64::try_from(all.count()).unwrap_or(u64::MAX)
}

/// The namespace of the claim or snapshot that it was made for, and the claim's name; empty where there is none.
fn owner(lvol: &LvolInfo) -> (&str, &str) {
    let of = |key: &str| lvol.attributes.get(key).and_then(|text| text.split_once('/'));
    let claim = of(attributes::CSI_PVC).unwrap_or_default();
    match of(attributes::CSI_VOLUME_SNAPSHOT) {
        Some((namespace, _)) if claim.0.is_empty() => (namespace, ""),
        _ => claim,
    }
}

fn own(lvol: &LvolInfo) -> u64 {
    lvol.allocated_clusters.saturating_mul(u64::from(lvol.cluster_size))
}

impl StoreMetrics {
    pub fn new(stores: Stores, node: String) -> StoreMetrics {
        StoreMetrics { stores, node, unanswered: Mutex::default() }
    }

    /// `wanted`: the lvstores that there should be beside those that are open, which are always wanted.
    pub async fn expose(&self, out: &mut Exposition, wanted: &[Wanted]) {
        let stores = self.stores.all();
        // Side by side: one that stands still must not make a reader wait for all.
        let seen = join_all(stores.iter().map(|store| self.look(store))).await;
        let all: Vec<Seen> = seen.into_iter().flatten().collect();
        self.states(out, &all, wanted);
        self.spaces(out, &all);
        self.lvols(out, &all);
    }

    /// `None`: the store was closed meanwhile.
    async fn look(&self, store: &Store) -> Option<Seen> {
        let info = store.info().await.ok()?;
        let lvstore = store.lvstore();
        Some(Seen {
            space: space(store, &info),
            info,
            lvols: lvstore.lvols(),
            io: lvstore.io_totals(),
            latencies: lvstore.latencies(),
            stall: self.stall(store).await,
        })
    }

    async fn stall(&self, store: &Store) -> Duration {
        let asked = Instant::now();
        let answer = tokio::time::timeout(Duration::from_secs(ASK_SECONDS_MAX), store.device_wait()).await;
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(waited) => {
                unanswered.remove(&store.uuid());
                waited.unwrap_or_default()
            }
            Err(_) => unanswered.entry(store.uuid()).or_insert(asked).elapsed(),
        }
    }

    fn states(&self, out: &mut Exposition, all: &[Seen], wanted: &[Wanted]) {
        let open: BTreeMap<&str, &Seen> = all.iter().map(|seen| (seen.info.name.as_str(), seen)).collect();
        let names: BTreeSet<&str> = open.keys().copied().chain(wanted.iter().map(|w| w.name.as_str())).collect();
        let failed = |name: &str| open.get(name).is_some_and(|seen| seen.info.failed.is_some());
        let mut ready = out.family(READY);
        for name in &names {
            let works = open.contains_key(name) && !failed(name);
            ready.count(&[("lvstore", name), ("node", &self.node)], u64::from(works));
        }
        let mut conditions = out.family(CONDITION);
        for name in &names {
            for bad in [LvstoreCondition::Failing, LvstoreCondition::Lost, LvstoreCondition::Foreign] {
                let said = wanted.iter().any(|w| w.name == *name && w.conditions.contains(&bad));
                let holds = said || (bad == LvstoreCondition::Failing && failed(name));
                let labels = [("condition", bad.as_str()), ("lvstore", name), ("node", &self.node)];
                conditions.count(&labels, u64::from(holds));
            }
        }
    }

    fn spaces(&self, out: &mut Exposition, all: &[Seen]) {
        for (metric, value) in OF_STORE {
            let mut family = out.family(metric);
            for seen in all {
                family.count(&[("lvstore", &seen.info.name), ("node", &self.node)], value(seen));
            }
        }
        let mut stalls = out.family(STALL);
        for seen in all {
            stalls.sample(&[("lvstore", &seen.info.name), ("node", &self.node)], seen.stall.as_secs_f64());
        }
        let bounds = LatencyTotals::bounds();
        let mut latencies = out.family(LATENCY);
        for seen in all {
            let StoreTotals { read, write, flush } = &seen.latencies;
            for (operation, times) in [("read", read), ("write", write), ("flush", flush)] {
                let labels = [("lvstore", seen.info.name.as_str()), ("node", &self.node), ("operation", operation)];
                latencies.histogram(&labels, &bounds, &times.buckets, times.sum_ns as f64 / 1e9);
            }
        }
    }

    fn lvols(&self, out: &mut Exposition, all: &[Seen]) {
        let lvols: Vec<(&Seen, &LvolInfo, String)> =
            all.iter().flat_map(|seen| seen.shown().map(move |lvol| (seen, lvol, lvol.uuid.to_string()))).collect();
        let labelled: Vec<_> = lvols.iter().map(|(seen, lvol, uuid)| (*seen, *lvol, uuid, owner(lvol))).collect();
        let mut write = |metric: Metric, value: &dyn Fn(&Seen, &LvolInfo) -> Option<u64>| {
            let mut family = out.family(metric);
            for (seen, lvol, uuid, (space, claim)) in &labelled {
                let labels = [
                    ("lvol", uuid.as_str()),
                    ("lvstore", &lvol.lvstore),
                    ("namespace", space),
                    ("node", &self.node),
                    ("persistentvolumeclaim", claim),
                ];
                if let Some(value) = value(seen, lvol) {
                    family.count(&labels, value);
                }
            }
        };
        for (metric, value) in OF_LVOL {
            write(metric, &|_, lvol| Some(value(lvol)));
        }
        // Hidden ones read, too.
        let read_by_others: BTreeSet<Uuid> =
            all.iter().flat_map(|seen| &seen.lvols).filter_map(|lvol| lvol.parent).collect();
        write(EXCLUSIVE, &|_, lvol| Some(if read_by_others.contains(&lvol.uuid) { 0 } else { own(lvol) }));
        for (metric, value) in OF_IO {
            write(metric, &|seen, lvol| {
                let io = seen.io.get(&lvol.uuid).filter(|_| lvol.kind != LvolKind::Snapshot)?;
                Some(value(io))
            });
        }
        let mut info = out.family(LVOL_INFO);
        for (_, lvol, uuid, _) in &labelled {
            let kind = if lvol.kind == LvolKind::Snapshot { "snapshot" } else { "volume" };
            let state = if lvol.state == LvolState::Damaged { "damaged" } else { "ok" };
            let labels = [
                ("kind", kind),
                ("lvol", uuid.as_str()),
                ("lvstore", &lvol.lvstore),
                ("name", &lvol.name),
                ("node", &self.node),
                ("state", state),
            ];
            info.count(&labels, 1);
        }
    }
}
