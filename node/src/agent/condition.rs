//! What the status of a Lvstore object says.

use coppice_engine::{LvolState, Store, StoreInfo};
use coppice_kube_api::{
    ByteSize, Lvstore, LvstoreCondition, LvstoreReason, LvstoreStatus, Space, condition, set_condition,
};

/// Bytes of a metadata page.
pub const PAGE_BYTES: u64 = 4096;

/// The status that the object has now, to be changed.
pub fn of(object: &Lvstore) -> LvstoreStatus {
    object.status.clone().unwrap_or_default()
}

/// True if the condition is new.
pub fn set(
    object: &Lvstore,
    status: &mut LvstoreStatus,
    what: LvstoreCondition,
    holds: bool,
    reason: LvstoreReason,
    message: &str,
) -> bool {
    let new = condition(what, holds, reason, message, object.metadata.generation, jiff::Timestamp::now());
    set_condition(&mut status.conditions, new)
}

/// The store is open.
pub fn set_ready(object: &Lvstore, status: &mut LvstoreStatus, read_only: bool, message: &str) {
    let reason = if read_only { LvstoreReason::ReadOnly } else { LvstoreReason::Open };
    set(object, status, LvstoreCondition::Ready, true, reason, message);
    not_bad(object, status, None);
}

/// What was bad is not so any more, `but` one.
pub fn not_bad(object: &Lvstore, status: &mut LvstoreStatus, but: Option<LvstoreCondition>) {
    for bad in [LvstoreCondition::Failing, LvstoreCondition::Lost, LvstoreCondition::Foreign] {
        let is_there = status.conditions.iter().any(|condition| condition.type_ == bad.as_str());
        if is_there && Some(bad) != but {
            set(object, status, bad, false, LvstoreReason::AsExpected, "");
        }
    }
}

pub fn space(store: &Store, info: &StoreInfo) -> Space {
    let cluster = u64::from(info.cluster_size);
    let bytes = |clusters: u64| ByteSize::from(clusters.saturating_mul(cluster));
    let lvols = store.lvstore().lvols();
    let shown = lvols.iter().filter(|lvol| lvol.state != LvolState::Hidden);
    Space {
        total: bytes(info.total_clusters),
        free: bytes(info.free_clusters),
        committed: shown.map(|lvol| lvol.size).fold(0, u64::saturating_add).into(),
        metadata: bytes(info.metadata_clusters),
        metadata_free: info.free_metadata_pages.saturating_mul(PAGE_BYTES).into(),
    }
}
