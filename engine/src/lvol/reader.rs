//! What a snapshot says of itself to those who read it from outside: its bytes, what is a hole, what differs from another.

use super::io::{LvolIo, Plan, Seen};
use crate::error::{Result, err};
use crate::export::Volume;
use crate::external::{Stretch, Stretches};
use crate::shard::Shard;
use crate::shard::sync::lock;
use crate::store::Lvstore;
use crate::store::map::LEAF_CLUSTERS;
use bytes::Bytes;
use std::sync::Arc;
use uuid::Uuid;

/// Bytes that one read moves at most.
pub const READ_MAX: usize = 64 << 20;
/// Stretches of one answer.
const STRETCHES_MAX: usize = 4096;
/// Clusters that one answer looks at.
const CLUSTERS_MAX: u64 = 64 * LEAF_CLUSTERS;

impl Lvstore {
    /// Opens a snapshot for reading; a deleted one only if it is pinned.
    fn open_snapshot(self: &Arc<Self>, shard: &Shard, uuid: Uuid) -> Result<LvolIo> {
        let local = self.local(shard)?;
        let core = lock(&self.core);
        if core.leaving {
            return Err(err!(Cancelled, "lvstore {} is being closed", core.name));
        }
        let r = core.record(core.lid_of(uuid)?)?;
        r.intact()?;
        if !r.is_snapshot() {
            return Err(err!(WrongKind, "lvol {} is writable: only a snapshot can be read from outside", r.name()));
        }
        if r.was_deleted() && !r.is_pinned() {
            return Err(err!(NotFound, "snapshot {uuid} was deleted"));
        }
        if r.busy == Some("snapshot") {
            return Err(err!(Busy, "snapshot {} is being taken", r.name()));
        }
        let hot = r.hot.clone();
        drop(core);
        Ok(LvolIo::in_background(self, local, hot))
    }

    pub(crate) fn snapshot_size(self: &Arc<Self>, shard: &Shard, uuid: Uuid) -> Result<u64> {
        Ok(self.open_snapshot(shard, uuid)?.size())
    }

    pub(crate) async fn read_snapshot(
        self: &Arc<Self>,
        shard: &Shard,
        uuid: Uuid,
        off: u64,
        len: usize,
    ) -> Result<Bytes> {
        let io = self.open_snapshot(shard, uuid)?;
        let end = io.inside(off, len as u64)?;
        if len > READ_MAX {
            return Err(err!(Invalid, "{len} bytes are too many for one read (at most {READ_MAX})"));
        }
        let block = u64::from(io.block_size());
        let (from, to) = (off / block * block, end.next_multiple_of(block));
        let whole = (to - from) as usize;
        let buf = shard.buf(whole).slice(0, whole);
        io.read(from, buf.clone()).await?;
        Ok(buf.slice((off - from) as usize, len).with(Bytes::copy_from_slice))
    }

    /// Holes and data from `off` on, whose owner does not matter. An external parent is asked for its part.
    pub(crate) async fn snapshot_status(
        self: &Arc<Self>,
        shard: &Shard,
        uuid: Uuid,
        off: u64,
        len: u64,
    ) -> Result<Vec<Stretch>> {
        let io = self.open_snapshot(shard, uuid)?;
        let end = io.inside(off, len)?;
        let size = self.cluster_size();
        let mut found = Stretches::default();
        let mut at = off;
        let last = end.min(off.saturating_add(CLUSTERS_MAX * size));
        while at < last && found.all.len() < STRETCHES_MAX {
            let h = io.handle();
            match h.plan_read(at, last - at) {
                Plan::Device { len, .. } => {
                    found.add(len, false);
                    at += len;
                }
                Plan::Zero { len } => {
                    found.add(len, true);
                    at += len;
                }
                Plan::External { len: n } => {
                    let outside = h.lvol.external.load_full();
                    let outside = outside.ok_or_else(|| err!(Cancelled, "the external parent is gone"))?;
                    let shown = outside.end().await?.clamp(at, at + n) - at;
                    if shown > 0 {
                        for stretch in outside.link.status(at, shown).await? {
                            found.add(stretch.len, stretch.hole);
                        }
                    }
                    found.add(n - shown, true);
                    at += n;
                }
                Plan::Missing | Plan::Allocate { .. } => {
                    self.load_leaf(shard, &h.lvol, at / size).await?;
                }
            }
        }
        Ok(found.all)
    }

    /// Where the snapshot may differ from another of the same store: `hole` says that both read the same for sure.
    pub(crate) async fn snapshot_delta(
        self: &Arc<Self>,
        shard: &Shard,
        uuid: Uuid,
        other: Uuid,
        off: u64,
        len: u64,
    ) -> Result<Vec<Stretch>> {
        let (io, other) = (self.open_snapshot(shard, uuid)?, self.open_snapshot(shard, other)?);
        let end = io.inside(off, len)?;
        let size = self.cluster_size();
        let mut found = Stretches::default();
        let mut at = off;
        let last = end.min(off.saturating_add(CLUSTERS_MAX * size));
        while at < last && found.all.len() < STRETCHES_MAX {
            let n = ((at / size + 1) * size).min(last) - at;
            let (a, b) = (io.handle(), other.handle());
            let cluster = at / size;
            let inside = cluster < b.lvol.clusters();
            let of = |h: &super::io::Handle| Seen::of(&h.lvol.map.load(), h.lvol.token(), cluster).map(|s| s.entry);
            match (of(a), if inside { of(b) } else { None }) {
                (None, _) => {
                    self.load_leaf(shard, &a.lvol, cluster).await?;
                    continue;
                }
                (Some(_), None) if inside => {
                    self.load_leaf(shard, &b.lvol, cluster).await?;
                    continue;
                }
                // The same place of the device, which neither of them ever writes again.
                (Some(x), Some(y)) if x.cluster().is_some() => found.add(n, x.cluster() == y.cluster()),
                // Zero, or what the external parent has, which is the same for both if they have the same one.
                (Some(x), Some(y)) => {
                    let kinds = (x.is_external(), y.is_external());
                    found.add(
                        n,
                        y.cluster().is_none()
                            && (kinds == (false, false) || kinds == (true, true) && same_parent(a, b)),
                    );
                }
                (Some(_), None) => found.add(n, false),
            }
            at += n;
        }
        Ok(found.all)
    }
}

fn same_parent(a: &super::io::Handle, b: &super::io::Handle) -> bool {
    match (a.lvol.external.load_full(), b.lvol.external.load_full()) {
        (Some(x), Some(y)) => Arc::ptr_eq(&x, &y),
        _ => false,
    }
}
