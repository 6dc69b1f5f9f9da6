//! Metrics of the controller. What they mean, with alerts: docs/monitoring.md.

use coppice_kube_api::Lvstore;
use coppice_proto::exposition::{Exposition, Metric};
use std::sync::Arc;

const LEADER: Metric =
    Metric::gauge("coppice_controller_leader", "1 on the replica that does the background work, else 0.");
const WANTED: Metric = Metric::gauge(
    "coppice_lvstore_wanted",
    "1 for each Lvstore object, whether or not its node can be reached. Every replica says it.",
);
const ORPHANS: Metric = Metric::gauge(
    "coppice_orphans",
    "Lvol objects without PersistentVolume, claim or VolumeSnapshotContent. Said by the leader once it has looked.",
);

/// `orphans`: how many there were when they were last looked for.
pub fn expose(out: &mut Exposition, leads: bool, orphans: Option<u64>, lvstores: &[Arc<Lvstore>]) {
    out.family(LEADER).count(&[], u64::from(leads));
    let mut wanted = out.family(WANTED);
    for Lvstore { spec, .. } in lvstores.iter().map(Arc::as_ref) {
        wanted.count(&[("lvstore", &spec.name), ("node", &spec.node)], 1);
    }
    let mut family = out.family(ORPHANS);
    if let Some(orphans) = orphans {
        family.count(&[], orphans);
    }
}
