//! The engine's words and those of the admin API, in both directions and without loss.

use crate::admin::v1;
use coppice_engine::{Finding, Hydration, LvolInfo, LvolKind, LvolState, Pin, StoreInfo};
use uuid::Uuid;

/// A message from a peer that does not keep to the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the answer does not keep to the admin API: {}", self.0)
    }
}

impl std::error::Error for Malformed {}

fn uuid(text: &str) -> Result<Uuid, Malformed> {
    Uuid::parse_str(text).map_err(|_| Malformed(format!("{text:?} is not a UUID")))
}

impl From<LvolInfo> for v1::Lvol {
    fn from(lvol: LvolInfo) -> Self {
        let kind = match lvol.kind {
            LvolKind::Lvol => v1::LvolKind::Lvol,
            LvolKind::Snapshot => v1::LvolKind::Snapshot,
            LvolKind::Clone => v1::LvolKind::Clone,
            LvolKind::EsnapClone => v1::LvolKind::EsnapClone,
        };
        let state = match lvol.state {
            LvolState::Ok => v1::LvolState::Ok,
            LvolState::Degraded => v1::LvolState::Degraded,
            LvolState::Hydrating => v1::LvolState::Hydrating,
            LvolState::Hidden => v1::LvolState::Hidden,
            LvolState::Damaged => v1::LvolState::Damaged,
        };
        v1::Lvol {
            uuid: lvol.uuid.to_string(),
            name: lvol.name,
            alias: lvol.alias,
            lvstore: lvol.lvstore,
            size: lvol.size,
            block_size: lvol.block_size,
            num_blocks: lvol.num_blocks,
            cluster_size: lvol.cluster_size,
            thin: lvol.thin,
            kind: kind.into(),
            parent: lvol.parent.map(|id| id.to_string()),
            children: lvol.children.iter().map(Uuid::to_string).collect(),
            allocated_clusters: lvol.allocated_clusters,
            state: state.into(),
            reason: lvol.reason,
            exports: lvol.exports,
            attributes: lvol.attributes,
            pins: lvol.pins.into_iter().map(Into::into).collect(),
            hydration: lvol.hydration.map(|h| v1::Hydration {
                remaining_bytes: h.remaining_bytes,
                total_bytes: h.total_bytes,
                copied_bytes: h.copied_bytes,
            }),
        }
    }
}

impl From<Pin> for v1::Pin {
    fn from(pin: Pin) -> Self {
        v1::Pin { lvstore: pin.lvstore.to_string(), reader: pin.reader }
    }
}

impl TryFrom<v1::Pin> for Pin {
    type Error = Malformed;

    fn try_from(pin: v1::Pin) -> Result<Self, Malformed> {
        Ok(Pin { lvstore: uuid(&pin.lvstore)?, reader: pin.reader })
    }
}

impl TryFrom<v1::Lvol> for LvolInfo {
    type Error = Malformed;

    fn try_from(lvol: v1::Lvol) -> Result<Self, Malformed> {
        let kind = match lvol.kind() {
            v1::LvolKind::Lvol => LvolKind::Lvol,
            v1::LvolKind::Snapshot => LvolKind::Snapshot,
            v1::LvolKind::Clone => LvolKind::Clone,
            v1::LvolKind::EsnapClone => LvolKind::EsnapClone,
            v1::LvolKind::Unspecified => return Err(Malformed(format!("kind {} of {}", lvol.kind, lvol.alias))),
        };
        let state = match lvol.state() {
            v1::LvolState::Ok => LvolState::Ok,
            v1::LvolState::Degraded => LvolState::Degraded,
            v1::LvolState::Hydrating => LvolState::Hydrating,
            v1::LvolState::Hidden => LvolState::Hidden,
            v1::LvolState::Damaged => LvolState::Damaged,
            v1::LvolState::Unspecified => return Err(Malformed(format!("state {} of {}", lvol.state, lvol.alias))),
        };
        Ok(LvolInfo {
            uuid: uuid(&lvol.uuid)?,
            name: lvol.name,
            alias: lvol.alias,
            lvstore: lvol.lvstore,
            size: lvol.size,
            block_size: lvol.block_size,
            num_blocks: lvol.num_blocks,
            cluster_size: lvol.cluster_size,
            thin: lvol.thin,
            kind,
            parent: lvol.parent.as_deref().map(uuid).transpose()?,
            children: lvol.children.iter().map(|id| uuid(id)).collect::<Result<_, _>>()?,
            allocated_clusters: lvol.allocated_clusters,
            state,
            reason: lvol.reason,
            exports: lvol.exports,
            attributes: lvol.attributes,
            pins: lvol.pins.into_iter().map(Pin::try_from).collect::<Result<_, _>>()?,
            hydration: lvol.hydration.map(|h| Hydration {
                remaining_bytes: h.remaining_bytes,
                total_bytes: h.total_bytes,
                copied_bytes: h.copied_bytes,
            }),
        })
    }
}

impl From<StoreInfo> for v1::Store {
    fn from(store: StoreInfo) -> Self {
        v1::Store {
            uuid: store.uuid.to_string(),
            name: store.name,
            path: store.path,
            size: store.size,
            cluster_size: store.cluster_size,
            block_size: store.block_size,
            total_clusters: store.total_clusters,
            metadata_clusters: store.metadata_clusters,
            allocated_clusters: store.allocated_clusters,
            reserved_clusters: store.reserved_clusters,
            quarantined_clusters: store.quarantined_clusters,
            free_clusters: store.free_clusters,
            metadata_pages: store.metadata_pages,
            free_metadata_pages: store.free_metadata_pages,
            max_size: store.max_size,
            lvols: store.lvols,
            snapshots: store.snapshots,
            hidden_bytes: store.hidden_bytes,
            bstype: store.bstype,
            clean: store.clean,
            read_only: store.read_only,
            spdk_readable: store.spdk_readable,
            seal_work: store.seal_work,
            failed: store.failed,
            owner: store.owner.map(|owner| owner.to_string()),
            external_parents: store.external_parents.iter().map(Uuid::to_string).collect(),
        }
    }
}

impl TryFrom<v1::Store> for StoreInfo {
    type Error = Malformed;

    fn try_from(store: v1::Store) -> Result<Self, Malformed> {
        Ok(StoreInfo {
            uuid: uuid(&store.uuid)?,
            name: store.name,
            path: store.path,
            owner: store.owner.as_deref().map(uuid).transpose()?,
            size: store.size,
            cluster_size: store.cluster_size,
            block_size: store.block_size,
            total_clusters: store.total_clusters,
            metadata_clusters: store.metadata_clusters,
            allocated_clusters: store.allocated_clusters,
            reserved_clusters: store.reserved_clusters,
            quarantined_clusters: store.quarantined_clusters,
            free_clusters: store.free_clusters,
            metadata_pages: store.metadata_pages,
            free_metadata_pages: store.free_metadata_pages,
            max_size: store.max_size,
            lvols: store.lvols,
            snapshots: store.snapshots,
            hidden_bytes: store.hidden_bytes,
            external_parents: store.external_parents.iter().map(|id| uuid(id)).collect::<Result<_, _>>()?,
            bstype: store.bstype,
            clean: store.clean,
            read_only: store.read_only,
            spdk_readable: store.spdk_readable,
            seal_work: store.seal_work,
            failed: store.failed,
        })
    }
}

impl From<Finding> for v1::Finding {
    fn from(finding: Finding) -> Self {
        v1::Finding { kind: finding.kind, lvol: finding.lvol, message: finding.message, heals: finding.heals }
    }
}

impl From<v1::Finding> for Finding {
    fn from(finding: v1::Finding) -> Self {
        Finding { kind: finding.kind, lvol: finding.lvol, message: finding.message, heals: finding.heals }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lvol_survives_the_way_there_and_back() {
        let lvol = LvolInfo {
            uuid: Uuid::new_v4(),
            name: "a".into(),
            alias: "s/a".into(),
            lvstore: "s".into(),
            size: 1 << 30,
            block_size: 4096,
            num_blocks: 1 << 18,
            cluster_size: 65536,
            thin: true,
            kind: LvolKind::Clone,
            parent: Some(Uuid::new_v4()),
            children: vec![Uuid::new_v4(), Uuid::new_v4()],
            allocated_clusters: 7,
            state: LvolState::Hidden,
            reason: Some("why".into()),
            exports: vec!["/dev/loop3".into()],
            attributes: [("k".to_string(), "v".to_string())].into(),
            pins: vec![Pin { lvstore: Uuid::new_v4(), reader: "node-b".into() }],
            hydration: Some(Hydration { remaining_bytes: 1, total_bytes: 2, copied_bytes: 3 }),
        };
        let back = LvolInfo::try_from(v1::Lvol::from(lvol.clone()));
        assert_eq!(format!("{back:?}"), format!("{:?}", Ok::<_, Malformed>(lvol.clone())));
        let wrong = v1::Lvol { uuid: "x".into(), ..v1::Lvol::from(lvol.clone()) };
        assert!(LvolInfo::try_from(wrong).is_err());
        let wrong = v1::Lvol { kind: 99, ..v1::Lvol::from(lvol) };
        assert!(LvolInfo::try_from(wrong).is_err());
    }
}
