//! What to do next with a Lvol object, from the object and from what is on the drive. Pure: all that is careful about
//! creating and removing is here, and tested here.
//!
//! ```text
//!            ┌ being deleted ── reclaim ──▶ Remove, then Release        (store lost: Bury, then Release)
//!            │                └ otherwise ─▶ Release, the lvol stays
//!   object ──┤ no finalizer ──▶ Claim
//!            │ lvol is there ─▶ Grow, or Say Available
//!            └ lvol is not ───▶ created before, or adopted: Say Lost; else Create
//! ```

use coppice_engine::{LvolInfo, LvolState};
use coppice_kube_api::{FINALIZER, Kind, Lvol, LvolReason, Reclaim};
use coppice_proto::attributes::reported_size;
use kube::ResourceExt;

/// The lvstore of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    Open,
    /// Not open now: it may be again.
    Closed,
    /// Its drive has been swapped, or is blank.
    Lost,
}

/// The source of the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Here,
    Missing,
    /// In another lvstore of this node, and the object does not say so.
    Elsewhere,
    /// In another lvstore, as the object says.
    Outside,
}

/// What is known of the drive at this moment.
#[derive(Clone, Debug)]
pub struct Facts {
    pub home: Home,
    /// Without hidden ones, which were deleted.
    pub lvol: Option<LvolInfo>,
    pub origin: Origin,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// Put the finalizer on.
    Claim,
    Create,
    /// To that many bytes.
    Grow(u64),
    Remove,
    /// Note in the Lvstore object that the lvol has to go should the drive come back.
    Bury,
    /// Take the finalizer off. `orphan`: the lvol stays on the drive.
    Release {
        orphan: bool,
    },
    Say(Said),
}

/// What the status is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Available,
    NotReady(LvolReason, String),
    Lost(LvolReason, String),
}

pub fn decide(object: &Lvol, facts: &Facts, node: &str) -> Step {
    let claimed = object.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    if object.metadata.deletion_timestamp.is_some() {
        return if claimed { leave(object, facts) } else { Step::Nothing };
    }
    if !claimed {
        return Step::Claim;
    }
    let not_ready = |reason, message: &str| Step::Say(Said::NotReady(reason, message.to_string()));
    let lost = |reason, message: &str| Step::Say(Said::Lost(reason, message.to_string()));
    let spec = &object.spec;
    let created = object.status.as_ref().is_some_and(|status| status.created.is_some());
    match facts.home {
        Home::Closed => return not_ready(LvolReason::LvstoreNotReady, "its lvstore is not open"),
        Home::Lost if created || spec.adopted => {
            return lost(LvolReason::LvstoreLost, "its lvstore is not on its device any more");
        }
        Home::Lost => return not_ready(LvolReason::LvstoreNotReady, "its lvstore is lost"),
        Home::Open => {}
    }
    let Some(lvol) = &facts.lvol else {
        return match () {
            () if created => lost(LvolReason::Missing, "it was created, and the lvstore does not have it"),
            () if spec.adopted => lost(LvolReason::Missing, "the lvstore does not have the lvol that was adopted"),
            () => create(object, facts.origin, node),
        };
    };
    if lvol.state == LvolState::Damaged {
        let why = lvol.reason.as_deref().unwrap_or("its metadata does not check out");
        return not_ready(LvolReason::Damaged, why);
    }
    let wanted = spec.size.bytes();
    if spec.kind == Kind::Volume && wanted > reported_size(&lvol.attributes, lvol.size) {
        return Step::Grow(wanted);
    }
    Step::Say(Said::Available)
}

fn create(object: &Lvol, origin: Origin, node: &str) -> Step {
    let spec = &object.spec;
    let not_ready = |reason, message: String| Step::Say(Said::NotReady(reason, message));
    let Some(source) = spec.source_uuid else {
        return match spec.kind {
            Kind::Volume => Step::Create,
            Kind::Snapshot => not_ready(LvolReason::CreateFailed, "a snapshot needs a source".into()),
        };
    };
    if origin == Origin::Outside {
        return Step::Create;
    }
    if let Some(other) = spec.source_node.as_ref().filter(|other| *other != node) {
        let message = format!("the source {source} is on the node {other}; it can only be used there");
        return not_ready(LvolReason::SourceUnavailable, message);
    }
    match origin {
        Origin::Here | Origin::Outside => Step::Create,
        Origin::Missing => not_ready(LvolReason::SourceMissing, format!("there is no lvol {source}")),
        Origin::Elsewhere => {
            not_ready(LvolReason::SourceUnavailable, format!("the source {source} is in another lvstore"))
        }
    }
}

fn leave(object: &Lvol, facts: &Facts) -> Step {
    let created = object.status.as_ref().is_some_and(|status| status.created.is_some());
    if object.spec.reclaim != Some(Reclaim::Delete) {
        let orphan = facts.lvol.is_some() || (facts.home != Home::Open && created);
        return Step::Release { orphan };
    }
    match (facts.home, &facts.lvol) {
        (Home::Open, Some(_)) => Step::Remove,
        (Home::Open, None) => Step::Release { orphan: false },
        (Home::Lost, _) => Step::Bury,
        (Home::Closed, _) => {
            Step::Say(Said::NotReady(LvolReason::LvstoreNotReady, "it is removed when its lvstore is open".into()))
        }
    }
}
