//! Clones of snapshots outside of the store, and what is read from those.

use super::io::Handle;
use super::tree::NewLvol;
use crate::api::{CreateExternalClone, LvolInfo};
use crate::error::{ErrorKind, Result, err};
use crate::external::Link;
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::sim::mutation::{Mutation, active};
use crate::store::Lvstore;
use crate::store::core::{Core, Lid};
use crate::sys::buf::BufSlice;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// A write of a part of a cluster asks the parent for all of it at once.
const CLUSTER_MAX: u64 = 64 << 20;
/// How long a parent is asked, before a clone of it is made, what it has. What is not known by then counts as data.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes of a parent that one question is about.
pub(super) const SPAN: u64 = 1 << 30;

impl Handle {
    /// Fills `buf` with what the external parent has at `off`; behind its end is nothing but zeroes.
    pub(super) async fn read_external(&self, off: u64, buf: &BufSlice) -> Result<()> {
        let Some(outside) = self.lvol.external.load_full() else {
            // It was cut off meanwhile: what had no place in the store by then reads zero.
            return Err(err!(Cancelled, "lvol {}: its external parent is gone", self.lvol.uuid));
        };
        let mut end = outside.visible();
        if end > off {
            end = self.named(outside.end().await)?;
        }
        let n = end.saturating_sub(off).min(buf.len() as u64) as usize;
        if n > 0 {
            let bytes = match outside.link.read_first(off, n).await {
                Err(e) if active(Mutation::ZeroesForAway) && e.kind() == ErrorKind::Away => vec![0; n].into(),
                read => self.named(read)?,
            };
            buf.copy_in(0, &bytes);
        }
        buf.zero(n, buf.len() - n);
        Ok(())
    }

    fn named<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|e| e.context(format_args!("lvol {}", self.lvol.uuid)))
    }

    /// The whole of a cluster, from the external parent.
    pub(super) async fn fetch_cluster(&self, logical: u64) -> Result<BufSlice> {
        let size = self.store.cluster_size();
        if size > CLUSTER_MAX {
            return Err(err!(
                Unsupported,
                "lvol {}: its clusters of {size} bytes are too large for an external parent (at most {CLUSTER_MAX})",
                self.lvol.uuid
            ));
        }
        let buf = self.local.shard.buf(size as usize).slice(0, size as usize);
        self.read_external(logical * size, &buf).await?;
        Ok(buf)
    }
}

impl Lvstore {
    /// Makes a writable clone of a snapshot that is not in this store. The parent answers first: its size, and what it has.
    pub async fn clone_external(self: &Arc<Self>, shard: &Shard, how: CreateExternalClone) -> Result<LvolInfo> {
        let uuid = how.uuid.unwrap_or_else(|| shard.random_uuid());
        if self.cluster_size() > CLUSTER_MAX {
            return Err(err!(
                Unsupported,
                "lvstore {} has clusters of {} bytes; external parents need at most {CLUSTER_MAX}",
                self.name(),
                self.cluster_size()
            ));
        }
        let check = |core: &Core| {
            core.may_change()?;
            core.check_new_name(&how.name)?;
            core.check_new_uuid(uuid)?;
            match core.by_uuid.contains_key(&how.parent) {
                true => Err(err!(
                    Invalid,
                    "{} is in the same lvstore {}: make an ordinary clone of it",
                    how.parent,
                    core.name
                )),
                false => Ok(()),
            }
        };
        let identity = identity(how.parent);
        let link = {
            let core = lock(&self.core);
            check(&core)?;
            let known = core.links.get(&identity).cloned();
            known.unwrap_or_else(|| Link::new(&identity, core.access.clone()))
        };
        let parent_size = link.size().await?;
        if parent_size == 0 {
            return Err(err!(Invalid, "the snapshot {} is empty", how.parent));
        }
        let size = how.size.unwrap_or(parent_size);
        if size < parent_size {
            return Err(err!(
                Invalid,
                "clone {}: {size} bytes are fewer than its parent {} has ({parent_size})",
                how.name,
                how.parent
            ));
        }
        let data = match how.hydrate {
            true => self.data_clusters(shard, &link, parent_size).await?,
            false => 0,
        };
        self.activate(shard).await?;
        let change = |core: &mut Core| {
            check(core)?;
            let new = NewLvol {
                name: &how.name,
                uuid,
                clusters: core.clusters_for(size)?,
                thick: how.thick,
                attributes: &how.attributes,
                parent: None,
                promise: data,
            };
            let lid = core.add_lvol(new, &format!("the clone of {}", how.parent), |meta| {
                meta.set_external_parent(&identity, parent_size, Some(parent_size));
                if how.hydrate {
                    meta.set_hydration(data, data);
                }
            })?;
            Ok((lid, core.open_batch))
        };
        let (lid, batch) = self.change(8, change).await?;
        self.durable(batch).await?;
        let mut core = lock(&self.core);
        core.hydration.wake();
        self.describe(&core, lid)
    }

    /// Clusters in which the parent has data, as far as it can be found out quickly.
    pub(super) async fn data_clusters(&self, shard: &Shard, link: &Link, size: u64) -> Result<u64> {
        let cluster = self.cluster_size();
        let until = shard.now_ns().saturating_add(LOOK.as_nanos() as u64);
        let span = SPAN.max(cluster);
        let (mut at, mut data) = (0, 0);
        while at < size {
            if shard.now_ns() > until {
                return Ok(data + (size - at).div_ceil(cluster));
            }
            let len = span.min(size - at);
            data += data_runs(&link.status(at, len).await?, cluster).iter().map(|(_, n)| n).sum::<u64>();
            at += len;
        }
        Ok(data)
    }

    /// UUIDs of the external parents that lvols of the store name, hidden ones included. What is not among them is not read
    /// any more, whatever happens.
    ///
    /// Only if [`Lvstore::knows_external_parents`] says that nothing may be missing.
    pub fn external_parents(&self) -> Vec<Uuid> {
        lock(&self.core).external_parents()
    }

    /// The external parent that a lvol reads, itself or through its ancestors.
    pub(crate) fn external_parent_of(&self, lvol: Uuid) -> Option<Uuid> {
        let core = lock(&self.core);
        core.record(core.lid_of(lvol).ok()?).ok()?.hot.external.load_full()?.link.uuid()
    }

    /// False: metadata does not check out or cannot be read, and may name external parents that nobody knows of.
    pub fn knows_external_parents(&self) -> bool {
        let core = lock(&self.core);
        !core.parents_unknown && core.records.values().all(|r| r.damaged.is_none())
    }
}

impl Core {
    /// A lvol stops naming its external parent, with the open batch.
    pub(super) fn gives_up_parent(&mut self, lid: Lid) {
        let Some(parent) = self.records.get(&lid).and_then(|r| parent_uuid(r.external()?)) else { return };
        let durable = self.durable_batch;
        self.given_up.retain(|_, batch| *batch > durable);
        self.given_up.insert(parent, self.open_batch);
    }

    /// UUIDs of the external parents that lvols of the store name, or named in what is durable.
    pub(crate) fn external_parents(&self) -> Vec<Uuid> {
        // After a crash that came too early it would be read again: named until the change is durable.
        let durable = if active(Mutation::GiveUpParentEarly) { u64::MAX } else { self.durable_batch };
        let given_up = self.given_up.iter().filter(|(_, batch)| **batch > durable).map(|(parent, _)| *parent);
        let mut all: Vec<Uuid> = self.records.values().filter_map(|r| parent_uuid(r.external()?)).collect();
        all.extend(given_up);
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// What stretches from a cluster's start on say of the clusters: runs (first, how many) that hold data. One that holds some
/// counts as a whole.
pub(super) fn data_runs(stretches: &[crate::external::Stretch], cluster: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    for stretch in stretches {
        let end = at + stretch.len;
        if !stretch.hole && stretch.len > 0 {
            let (first, last) = (at / cluster, end.div_ceil(cluster));
            match runs.last_mut() {
                Some((from, n)) if *from + *n >= first => *n = (*n).max(last - *from),
                _ => runs.push((first, last - first)),
            }
        }
        at = end;
    }
    runs
}

/// A UUID as the xattr `EXTSNAP` has it.
fn identity(uuid: Uuid) -> Vec<u8> {
    let mut text = uuid.hyphenated().to_string().into_bytes();
    text.push(0);
    text
}

/// The UUID in the xattr `EXTSNAP`.
pub(crate) fn parent_uuid(identity: &[u8]) -> Option<Uuid> {
    let text = std::str::from_utf8(identity).ok()?;
    Uuid::try_parse(text.trim_end_matches('\0')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::external::Stretch;

    #[test]
    fn a_cluster_with_some_data_has_data() {
        let s = |len, hole| Stretch { len, hole };
        assert_eq!(data_runs(&[s(100, true)], 10), []);
        assert_eq!(data_runs(&[s(9, true), s(2, false), s(89, true)], 10), [(0, 2)]);
        assert_eq!(data_runs(&[s(10, false), s(10, true), s(5, false), s(1, true), s(2, false)], 10), [(0, 1), (2, 1)]);
        assert_eq!(data_runs(&[s(15, false), s(1, true), s(4, false), s(10, false)], 10), [(0, 3)]);
        assert_eq!(data_runs(&[s(0, false), s(7, false)], 10), [(0, 1)]);
    }

    #[test]
    fn identities_are_spdks() {
        let uuid = Uuid::from_u128(0xabc);
        assert_eq!(identity(uuid).len(), 37);
        assert_eq!(parent_uuid(&identity(uuid)), Some(uuid));
        assert_eq!(parent_uuid(b"nvme0n1"), None);
    }
}
