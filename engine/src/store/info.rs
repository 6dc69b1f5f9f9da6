//! What a store and its lvols look like from outside.

use super::Lvstore;
use super::activate::area_clusters;
use super::core::{ATTR_HIDDEN, ATTR_SNAPSHOT, ATTR_THICK, Core, Lid, Record};
use super::load::is_ours;
use crate::api::{Hydration, LvolInfo, LvolKind, LvolState, Pin, StoreInfo};
use crate::counters::{LvolTotals, StoreTotals};
use crate::device::Device;
use crate::error::Result;
use crate::format::PrivateState;
use crate::lvol::parent_uuid;
use crate::shard::sync::lock;
use std::collections::BTreeMap;
use uuid::Uuid;

impl Lvstore {
    pub fn info(&self) -> StoreInfo {
        info_of(&lock(&self.core), &self.device, self.read_only)
    }

    pub fn uuid(&self) -> Uuid {
        lock(&self.core).uuid
    }

    pub fn name(&self) -> String {
        lock(&self.core).name.clone()
    }

    pub fn lvols(&self) -> Vec<LvolInfo> {
        let core = lock(&self.core);
        core.records.keys().filter_map(|lid| self.describe(&core, *lid).ok()).collect()
    }

    pub fn lvol(&self, uuid: Uuid) -> Result<LvolInfo> {
        let core = lock(&self.core);
        let lid = core.lid_of(uuid)?;
        self.describe(&core, lid)
    }

    /// How long its lvols' requests took.
    pub fn latencies(&self) -> StoreTotals {
        StoreTotals::of(&self.latencies)
    }

    /// What each lvol did; hidden ones do nothing.
    pub fn io_totals(&self) -> BTreeMap<Uuid, LvolTotals> {
        let core = lock(&self.core);
        core.records.values().filter(|r| !r.hidden).map(|r| (r.hot.uuid, r.hot.totals())).collect()
    }

    /// Notes how a lvol can be reached, for `exports` of its description.
    pub fn set_exports(&self, uuid: Uuid, exports: Vec<String>) {
        let mut all = lock(&self.exports);
        if exports.is_empty() {
            all.remove(&uuid);
        } else {
            all.insert(uuid, exports);
        }
    }

    pub(crate) fn describe(&self, core: &Core, lid: Lid) -> Result<LvolInfo> {
        let r = core.record(lid)?;
        let exports = lock(&self.exports).get(&r.hot.uuid).cloned().unwrap_or_default();
        Ok(describe(core, r, exports))
    }
}

fn describe(core: &Core, r: &Record, exports: Vec<String>) -> LvolInfo {
    let size = r.clusters() * u64::from(core.geo.cluster_size);
    let name = r.name();
    let cluster_size = u64::from(core.geo.cluster_size);
    let external = r.external().and_then(parent_uuid);
    let hydration = r.external().and_then(|_| r.meta.hydration()).map(|(_, total)| Hydration {
        remaining_bytes: r.promised.min(total).saturating_mul(cluster_size),
        total_bytes: total.saturating_mul(cluster_size),
        copied_bytes: core.hydration.copied_bytes(r.hot.lid),
    });
    let away = r.hot.external.load().as_ref().and_then(|outside| outside.link.away());
    let parent = r.parent.and_then(|p| core.records.get(&p)).map(|p| p.hot.uuid);
    let kind = match () {
        () if r.is_snapshot() => LvolKind::Snapshot,
        () if r.external().is_some() => LvolKind::EsnapClone,
        () if r.parent.is_some() => LvolKind::Clone,
        () => LvolKind::Lvol,
    };
    let (state, reason) = match &r.damaged {
        Some(why) => (LvolState::Damaged, Some(why.clone())),
        None if r.hidden => (LvolState::Hidden, None),
        None if away.is_some() => (LvolState::Degraded, away),
        None if hydration.is_some() => {
            (LvolState::Hydrating, core.hydration.failure(r.hot.lid).map(|e| e.message().to_string()))
        }
        None => (LvolState::Ok, None),
    };
    LvolInfo {
        uuid: r.hot.uuid,
        alias: format!("{}/{name}", core.name),
        name,
        lvstore: core.name.clone(),
        size,
        block_size: core.geo.io_unit,
        num_blocks: size / u64::from(core.geo.io_unit),
        cluster_size: core.geo.cluster_size,
        // A snapshot reserves nothing: it is what it was made from.
        thin: if r.is_snapshot() { r.meta.flags.is_thin() } else { !r.thick },
        kind,
        parent: parent.or(external),
        children: r
            .children
            .iter()
            .filter_map(|c| core.records.get(c))
            .filter(|c| !c.hidden)
            .map(|c| c.hot.uuid)
            .collect(),
        allocated_clusters: r.own,
        pins: r
            .meta
            .pins()
            .map(|(lvstore, reader)| Pin { lvstore, reader: String::from_utf8_lossy(reader).into() })
            .collect(),
        hydration,
        state,
        reason,
        exports,
        attributes: attributes(r),
    }
}

/// The user's attributes: every text xattr that is not the engine's own.
pub fn attributes(r: &Record) -> BTreeMap<String, String> {
    let own = ["name", "uuid", ATTR_THICK, ATTR_HIDDEN, ATTR_SNAPSHOT];
    r.meta
        .xattrs
        .iter()
        .filter(|x| !x.internal)
        .filter_map(|x| {
            Some((std::str::from_utf8(&x.name).ok()?.to_string(), std::str::from_utf8(&x.value).ok()?.to_string()))
        })
        .filter(|(name, _)| !own.contains(&name.as_str()))
        .collect()
}

/// What keeps the store from being a plain SPDK one, in words.
pub fn seal_work(core: &Core) -> Vec<String> {
    let mut work = Vec::new();
    let marks: u64 = core.records.values().map(|r| r.zero_marks).sum();
    if marks > 0 {
        work.push(format!("{marks} discarded clusters of clones to be filled with zeroes"));
    }
    let cluster_size = u64::from(core.geo.cluster_size);
    let hidden = |r: &&Record| r.meta.visible().zip(r.meta.parent_size()).is_some_and(|(shows, has)| shows < has);
    let partly = core
        .records
        .values()
        .filter(|r| r.external().is_some() && r.clusters() * cluster_size > r.visible(cluster_size));
    let partly = partly.filter(hidden).count();
    if partly > 0 {
        work.push(format!("{partly} lvols, of whose external parents only a part shows, to be hydrated"));
    }
    let merging = core.records.values().filter(|r| r.hidden && r.children.len() < 2).count();
    if merging > 0 {
        work.push(format!("{merging} deleted snapshots to be merged into their clones"));
    }
    work
}

pub fn info_of(core: &Core, device: &Device, read_only: bool) -> StoreInfo {
    let total = u64::from(core.clusters.total());
    let ours = is_ours(&core.super_block);
    let system = core.system_clusters();
    // The journal's place is set aside from the start, so that what is reported as free can be used.
    let planned = if system == 0 && !read_only {
        u64::from(area_clusters(core.geo.size, core.geo.cluster_size).0).min(core.clusters.unreserved())
    } else {
        0
    };
    let free_all = u64::from(core.clusters.free());
    // What is on its way back also stands behind reservations.
    let reserved = core.clusters.reserved.min(free_all);
    let allocated = core.allocated();
    let quarantined = core.clusters.quarantined;
    let metadata = u64::from(core.geo.md_clusters) + system + planned;
    let hidden: u64 = core.records.values().filter(|r| r.hidden).map(|r| r.own).sum();
    let work = seal_work(core);
    let in_use = matches!(core.super_block.private(), Ok(Some(p)) if p.state == PrivateState::InUse);
    StoreInfo {
        uuid: core.uuid,
        name: core.name.clone(),
        path: device.path().display().to_string(),
        // What cannot be read as an owner is none of ours, and never overwritten.
        owner: core.super_block.owner().unwrap_or(None),
        size: core.geo.size,
        cluster_size: core.geo.cluster_size,
        block_size: core.geo.io_unit,
        total_clusters: total,
        metadata_clusters: metadata,
        allocated_clusters: allocated,
        reserved_clusters: reserved,
        quarantined_clusters: quarantined,
        free_clusters: total - metadata - allocated - reserved - quarantined,
        metadata_pages: u64::from(core.pages.total()),
        free_metadata_pages: u64::from(core.pages.free()),
        max_size: core.geo.mask_capacity_clusters() * u64::from(core.geo.cluster_size),
        lvols: core.records.values().filter(|r| !r.is_snapshot()).count() as u64,
        snapshots: core.records.values().filter(|r| r.is_snapshot() && !r.hidden).count() as u64,
        hidden_bytes: hidden * u64::from(core.geo.cluster_size),
        external_parents: core.external_parents(),
        bstype: String::from_utf8_lossy(&core.super_block.bstype).trim_end_matches('\0').to_string(),
        clean: core.super_block.is_clean(),
        read_only: core.read_only,
        spdk_readable: !ours && !in_use,
        seal_work: work,
        failed: core.failed.clone(),
    }
}
