//! Verification: reads everything again from the device, by itself, and compares with what is in memory.
//!
//! While it reads, the writer of metadata waits, so that the device holds exactly the last commit; reads, overwrites and
//! first touches go on.

use super::Lvstore;
use super::load::{self, finding};
use crate::api::Finding;
use crate::error::Result;
use crate::external::Access;
use crate::format::Bits;
use crate::shard::Shard;
use crate::shard::sync::lock;
use std::sync::atomic::Ordering;

impl Lvstore {
    /// Every violated invariant. Empty: the store is sound.
    pub async fn check(&self, shard: &Shard) -> Result<Vec<Finding>> {
        let local = self.local(shard)?;
        if self.active.load(Ordering::Acquire) {
            self.commit().await?;
        }
        let journal = self.journal.acquire().await;
        let disk = match load::load(&local.port, &self.device, true, Access::default()).await {
            Ok(loaded) => loaded,
            Err(e) => return Ok(vec![finding("unreadable", None, e.to_string())]),
        };
        let mut findings = disk.core.load_findings.clone();
        if disk.start.from_copy {
            let message = "the super block is unreadable; its second copy is used and replaces it with the next write";
            findings.push(Finding { heals: true, ..finding("super-block", None, message) });
        }
        if let Some(area) = &disk.start.area
            && let Some(problem) = area.copy_problem(&local.port, &disk.core.super_block).await?
        {
            // Between a crash and the first change it may be newer than page 0, or torn.
            let heals = !self.is_active();
            let when = if heals { "the next change" } else { "a close" };
            let message = format!("the second copy of the super block {problem}; {when} writes it anew");
            findings.push(Finding { heals, ..finding("super-block", None, message) });
        }
        for r in disk.core.records.values() {
            if let Some(why) = &r.damaged
                && !findings.iter().any(|f| f.kind != "name" && f.lvol.as_deref() == Some(&r.name()))
            {
                findings.push(finding("damaged", Some(&r.name()), why.clone()));
            }
        }
        let core = lock(&self.core);
        drop(journal);
        if disk.core.uuid != core.uuid {
            findings.push(finding("identity", None, "another store lies on the device now"));
            return Ok(findings);
        }
        // What the device says is owned must be in use in memory, or it would be given away.
        let (pages, clusters) = &disk.owned;
        missing(&mut findings, "cluster", clusters, core.clusters.used_bits());
        missing(&mut findings, "metadata page", pages, core.pages.used_bits());
        let quiet = !core.has_pending() && core.reclaim.is_idle() && core.allocating.is_empty() && core.merges == 0;
        if quiet && !disk.extents_hidden {
            leaked(&mut findings, "cluster", disk.core.clusters.used_bits(), core.clusters.used_bits());
            leaked(&mut findings, "metadata page", disk.core.pages.used_bits(), core.pages.used_bits());
            for (uuid, lid) in &core.by_uuid {
                let (Some(r), Some(d)) =
                    (core.records.get(lid), disk.core.by_uuid.get(uuid).and_then(|l| disk.core.records.get(l)))
                else {
                    let name = core.records.get(lid).map(|r| r.name());
                    findings.push(finding(
                        "lvol-missing",
                        name.as_deref(),
                        format!("lvol {uuid} is not on the device"),
                    ));
                    continue;
                };
                if r.damaged.is_none() && (r.own, r.zero_marks) != (d.own, d.zero_marks) {
                    let message = format!("owns {} clusters on the device and {} in memory", d.own, r.own);
                    findings.push(finding("own-count", Some(&r.name()), message));
                }
            }
            let own: u64 = core.records.values().map(|r| r.own).sum();
            let damaged = core.records.values().any(|r| r.damaged.is_some());
            if own != core.allocated() && !damaged {
                let message = format!("the lvols own {own} clusters, and {} are allocated", core.allocated());
                findings.push(finding("accounting", None, message));
            }
        }
        Ok(findings)
    }
}

fn missing(findings: &mut Vec<Finding>, what: &str, disk: &Bits, memory: &Bits) {
    let lost: Vec<u32> = disk.iter().filter(|n| !memory.get(*n)).collect();
    if let Some(first) = lost.first() {
        let message =
            format!("{} {what}s are owned on the device and free in memory, the first is {first}", lost.len());
        findings.push(finding("not-in-use", None, message));
    }
}

fn leaked(findings: &mut Vec<Finding>, what: &str, disk: &Bits, memory: &Bits) {
    let lost: Vec<u32> = memory.iter().filter(|n| !disk.get(*n)).collect();
    if let Some(first) = lost.first() {
        let message = format!("{} {what}s are in use and owned by nobody, the first is {first}", lost.len());
        findings.push(finding("leaked", None, message));
    }
}
