//! The whole store as text, for failure messages.

use super::Reader;
use super::blob::{Blob, Parent};
use std::fmt::{self, Write};

/// At most this many runs or extent pages of one blob are listed.
const LISTED_MAX: usize = 24;

impl Reader {
    pub fn dump(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail.
        _ = self.write_dump(&mut out);
        out
    }

    fn write_dump(&self, out: &mut String) -> fmt::Result {
        let (sb, geometry, view) = (&self.store.sb, &self.store.geometry, self.store());
        writeln!(out, "lvstore {:?} {} bstype {} version {}", view.name, view.uuid, view.bstype, sb.version)?;
        writeln!(
            out,
            "  clean {} super blob {:#x} size {} io unit {} page {} cluster {} ({} clusters, {} metadata, {} free)",
            sb.clean,
            sb.super_blob,
            geometry.size,
            geometry.io_unit_size,
            geometry.page_size,
            geometry.cluster_size,
            geometry.total_clusters,
            geometry.md_clusters,
            view.free_clusters
        )?;
        for (name, area) in [
            ("page mask", sb.page_mask),
            ("cluster mask", sb.cluster_mask),
            ("blob id mask", sb.blob_id_mask),
            ("metadata", sb.md),
        ] {
            write!(out, "  {name} {}+{}", area.start, area.len)?;
        }
        writeln!(out)?;
        if !self.store.recovered {
            let masks = &self.store.masks;
            for mask in [Some(&masks.pages), Some(&masks.clusters), masks.blob_ids.as_ref()].into_iter().flatten() {
                writeln!(out, "  mask type {} bits {} set {}", mask.kind, mask.bits, runs(mask.set.iter().copied()))?;
            }
        }
        writeln!(out, "  broken pages {}", runs(self.store.broken_pages.iter().copied()))?;
        for text in self.store.load_failures.iter().map(|t| format!("refused: {t}")).chain(self.repairs().to_vec()) {
            writeln!(out, "  {text}")?;
        }
        for blob in self.store.blobs.values() {
            self.write_blob(out, blob)?;
        }
        Ok(())
    }

    fn write_blob(&self, out: &mut String, blob: &Blob) -> fmt::Result {
        let state = match self.store.listed.get(&blob.id) {
            None => "not listed".to_string(),
            Some(None) => "open".to_string(),
            Some(Some(why)) => format!("unopenable: {why}"),
        };
        writeln!(out, "blob {:#x} {state}", blob.id)?;
        let flags = blob.flags;
        let parent = match blob.parent() {
            Parent::None => "none".to_string(),
            Parent::Snapshot(id) => format!("{id:#x}"),
            Parent::External(id) => format!("external {id}"),
        };
        writeln!(
            out,
            "  flags {:#x}/{:#x}/{:#x} parent {parent} clusters {} (table {:?}) own {} chain {}",
            flags.invalid,
            flags.data_ro,
            flags.md_ro,
            blob.num_clusters,
            blob.table_clusters,
            blob.map.len(),
            runs(blob.chain.iter().copied())
        )?;
        for xattr in &blob.xattrs {
            let kind = if xattr.internal { "internal" } else { "user" };
            let padding = xattr.value.iter().rev().take_while(|b| **b == 0).count();
            let value = xattr.value.get(..xattr.value.len() - padding).unwrap_or_default();
            writeln!(out, "  {kind} {} = {} + {padding} NUL", xattr.name.escape_ascii(), value.escape_ascii())?;
        }
        for ep in blob.extent_pages.iter().take(LISTED_MAX) {
            write!(out, "  ep {}@{}", ep.slot, ep.page)?;
        }
        let more = blob.extent_pages.len().saturating_sub(LISTED_MAX);
        writeln!(out, "{}", if more > 0 { format!("  and {more} more") } else { String::new() })?;
        writeln!(out, "  at {} on {}", runs(blob.map.keys().copied()), runs(blob.map.values().map(|c| u64::from(*c))))?;
        for fault in &blob.faults {
            writeln!(out, "  fault {}: {} ({:?})", fault.rule, fault.text, fault.harm)?;
        }
        Ok(())
    }
}

/// `1-3,7`; long lists are cut.
pub fn runs<T: Into<u64>>(items: impl Iterator<Item = T>) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for item in items.map(Into::into) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == item => *last = item,
            _ => runs.push((item, item)),
        }
    }
    let text = |(a, b): &(u64, u64)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    let mut out = runs.iter().take(LISTED_MAX).map(text).collect::<Vec<_>>().join(",");
    if runs.len() > LISTED_MAX {
        out += &format!(",… ({} runs)", runs.len());
    }
    if out.is_empty() { "none".into() } else { out }
}
