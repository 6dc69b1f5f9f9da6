//! Metrics of the lvstores of this process, as Prometheus reads them.

use coppice_engine::{LvolState, Stores};
use std::fmt::Write;

/// Text of Prometheus, version 0.0.4.
pub fn metrics(stores: &Stores, node: &str) -> String {
    let stores: Vec<_> = stores.all().iter().map(|store| (store.lvstore().info(), store.lvstore().lvols())).collect();
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, values: Vec<(String, u64)>| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
        for (labels, value) in values {
            let _ = writeln!(out, "{name}{{{labels},node=\"{node}\"}} {value}");
        }
    };
    type Of = fn(&coppice_engine::StoreInfo) -> u64;
    let of_stores: [(&str, &str, Of); 6] = [
        ("coppice_lvstore_size_bytes", "Size of the lvstore.", |i| i.total_clusters * u64::from(i.cluster_size)),
        ("coppice_lvstore_free_bytes", "What nothing uses or has reserved.", |i| {
            i.free_clusters * u64::from(i.cluster_size)
        }),
        ("coppice_lvstore_allocated_bytes", "What lvols use.", |i| i.allocated_clusters * u64::from(i.cluster_size)),
        ("coppice_lvstore_reserved_bytes", "What thick lvols have reserved.", |i| {
            i.reserved_clusters * u64::from(i.cluster_size)
        }),
        ("coppice_lvstore_metadata_free_bytes", "Metadata that is not in use.", |i| i.free_metadata_pages * 4096),
        ("coppice_hidden_bytes", "Held by deleted snapshots that clones still read.", |i| i.hidden_bytes),
    ];
    for (name, help, value) in of_stores {
        let values = stores.iter().map(|(info, _)| (format!("lvstore=\"{}\"", label(&info.name)), value(info)));
        gauge(name, help, values.collect());
    }
    let lvols = || {
        let seen = stores.iter().flat_map(|(_, lvols)| lvols).filter(|lvol| lvol.state != LvolState::Hidden);
        seen.map(|lvol| {
            let labels =
                format!("lvstore=\"{}\",lvol=\"{}\",uuid=\"{}\"", label(&lvol.lvstore), label(&lvol.name), lvol.uuid);
            (labels, lvol)
        })
    };
    gauge("coppice_lvol_size_bytes", "Size of the lvol.", lvols().map(|(l, lvol)| (l, lvol.size)).collect());
    let allocated = lvols().map(|(l, lvol)| (l, lvol.allocated_clusters.saturating_mul(u64::from(lvol.cluster_size))));
    gauge("coppice_lvol_allocated_bytes", "What the lvol uses itself.", allocated.collect());
    out
}

/// The value of a label, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
