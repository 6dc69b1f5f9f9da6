//! What is careful about creating and removing: over all that an object can say and all that the drive can hold.

use super::decide::{Facts, Home, Origin, Said, Step, decide};
use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_kube_api::{FINALIZER, Lvol, LvolReason};
use serde_json::{Value, json};
use uuid::Uuid;

const NODE: &str = "node-a";
const SIZE: u64 = 1 << 30;

/// An object with a finalizer, of an empty volume that was not created yet, changed by `change`.
fn object(change: impl FnOnce(&mut Value)) -> Lvol {
    let mut object = json!({
        "apiVersion": "coppice.io/v1alpha1", "kind": "Lvol",
        "metadata": { "name": "pvc-1", "finalizers": [FINALIZER] },
        "spec": {
            "requestName": "pvc-1", "kind": "Volume", "size": "1Gi", "provisioning": "Thin", "node": NODE,
            "lvstoreUUID": Uuid::from_u128(1), "lvolUUID": Uuid::from_u128(2), "adopted": false
        },
        "status": {}
    });
    change(&mut object);
    serde_json::from_value(object).expect("an object")
}

fn created(object: &mut Value) {
    object["status"]["created"] = json!("2026-01-01T00:00:00Z");
}

fn leaving(object: &mut Value) {
    object["metadata"]["deletionTimestamp"] = json!("2026-01-02T00:00:00Z");
}

fn reclaimed(object: &mut Value) {
    object["spec"]["reclaim"] = json!("Delete");
}

pub(super) fn lvol(size: u64) -> LvolInfo {
    LvolInfo {
        uuid: Uuid::from_u128(2),
        name: "pvc-1".into(),
        alias: "s/pvc-1".into(),
        lvstore: "s".into(),
        size,
        block_size: 4096,
        num_blocks: size / 4096,
        cluster_size: 1 << 20,
        thin: true,
        kind: LvolKind::Lvol,
        ..LvolInfo::default()
    }
}

fn facts(home: Home, lvol: Option<LvolInfo>) -> Facts {
    Facts { home, lvol, origin: Origin::Here }
}

fn reason(step: &Step) -> Option<LvolReason> {
    match step {
        Step::Say(Said::NotReady(reason, _) | Said::Lost(reason, _)) => Some(*reason),
        _ => None,
    }
}

#[test]
fn a_lvol_is_created_only_where_none_was_before() {
    for was_created in [false, true] {
        for adopted in [false, true] {
            for home in [Home::Open, Home::Closed, Home::Lost] {
                for there in [None, Some(lvol(SIZE))] {
                    let object = object(|o| {
                        o["spec"]["adopted"] = json!(adopted);
                        if was_created {
                            created(o);
                        }
                    });
                    let step = decide(&object, &facts(home, there.clone()), NODE);
                    let creates = home == Home::Open && there.is_none() && !was_created && !adopted;
                    assert_eq!(step == Step::Create, creates, "{was_created} {adopted} {home:?} {there:?}: {step:?}");
                    let lost = matches!(step, Step::Say(Said::Lost(..)));
                    let is_missing = home == Home::Lost || (home == Home::Open && there.is_none());
                    assert_eq!(lost, is_missing && (was_created || adopted), "{home:?} {there:?}: {step:?}");
                }
            }
        }
    }
}

#[test]
fn nothing_is_done_before_the_finalizer_is_on_or_for_another_s_deletion() {
    let bare = |o: &mut Value| o["metadata"]["finalizers"] = json!(["somebody/else"]);
    for home in [Home::Open, Home::Closed, Home::Lost] {
        assert_eq!(decide(&object(bare), &facts(home, None), NODE), Step::Claim);
        let gone = object(|o| {
            bare(o);
            leaving(o);
            reclaimed(o);
        });
        assert_eq!(decide(&gone, &facts(home, Some(lvol(SIZE))), NODE), Step::Nothing);
    }
}

#[test]
fn bytes_go_only_when_the_controller_said_so() {
    for home in [Home::Open, Home::Closed, Home::Lost] {
        for there in [None, Some(lvol(SIZE))] {
            // Deleted by hand: the lvol stays, and is an orphan if there may be one.
            let by_hand = object(|o| {
                created(o);
                leaving(o);
            });
            let orphan = there.is_some() || home != Home::Open;
            assert_eq!(decide(&by_hand, &facts(home, there.clone()), NODE), Step::Release { orphan });
            let asked = object(|o| {
                created(o);
                leaving(o);
                reclaimed(o);
            });
            let step = decide(&asked, &facts(home, there.clone()), NODE);
            match (home, &there) {
                (Home::Open, Some(_)) => assert_eq!(step, Step::Remove),
                (Home::Open, None) => assert_eq!(step, Step::Release { orphan: false }),
                (Home::Lost, _) => assert_eq!(step, Step::Bury),
                // Its bytes are on a drive that may come back: the object must stay until then.
                (Home::Closed, _) => assert_eq!(reason(&step), Some(LvolReason::LvstoreNotReady)),
            }
            // Marked, but not deleted: nothing goes.
            let marked = object(|o| {
                created(o);
                reclaimed(o);
            });
            let step = decide(&marked, &facts(home, there), NODE);
            assert!(!matches!(step, Step::Remove | Step::Release { .. } | Step::Bury), "{step:?}");
        }
    }
}

/// An object that was made again for a lvol that lost its own is as good as the first: only making is out of the question.
#[test]
fn an_adopted_lvol_lives_and_goes_like_any_other() {
    let adopted = |change: fn(&mut Value)| {
        object(|o| {
            o["spec"]["adopted"] = json!(true);
            change(o);
        })
    };
    let there = |size| facts(Home::Open, Some(lvol(size)));
    assert_eq!(decide(&adopted(|_| {}), &there(SIZE), NODE), Step::Say(Said::Available), "seen for the first time");
    assert_eq!(decide(&adopted(created), &there(SIZE / 2), NODE), Step::Grow(SIZE));
    let removed = |o: &mut Value| {
        leaving(o);
        reclaimed(o);
    };
    assert_eq!(decide(&adopted(removed), &there(SIZE), NODE), Step::Remove);
    assert_eq!(decide(&adopted(removed), &facts(Home::Open, None), NODE), Step::Release { orphan: false });
    assert_eq!(decide(&adopted(leaving), &there(SIZE), NODE), Step::Release { orphan: true });
    // Its source may be long gone, and a snapshot's may never have been known.
    let rootless = adopted(|o| o["spec"]["kind"] = json!("Snapshot"));
    let origin = Origin::Missing;
    assert_eq!(decide(&rootless, &Facts { origin, ..there(SIZE) }, NODE), Step::Say(Said::Available));
}

#[test]
fn a_volume_grows_and_a_snapshot_never_does() {
    let step = |kind: &str, size: u64| {
        let object = object(|o| {
            created(o);
            o["spec"]["kind"] = json!(kind);
        });
        decide(&object, &facts(Home::Open, Some(lvol(size))), NODE)
    };
    assert_eq!(step("Volume", SIZE / 2), Step::Grow(SIZE));
    assert_eq!(step("Volume", SIZE), Step::Say(Said::Available));
    assert_eq!(step("Volume", SIZE * 2), Step::Say(Said::Available), "a size that was taken back");
    assert_eq!(step("Snapshot", SIZE / 2), Step::Say(Said::Available));
}

#[test]
fn a_damaged_lvol_is_neither_lost_nor_made_again() {
    let damaged = LvolInfo { state: LvolState::Damaged, ..lvol(SIZE / 2) };
    let step = decide(&object(created), &facts(Home::Open, Some(damaged)), NODE);
    assert_eq!(reason(&step), Some(LvolReason::Damaged));
}

#[test]
fn a_source_has_to_be_here() {
    let of = |node: &str| {
        object(|o| {
            o["spec"]["sourceUUID"] = json!(Uuid::from_u128(3));
            o["spec"]["sourceKind"] = json!("Snapshot");
            o["spec"]["sourceNode"] = json!(node);
        })
    };
    let step = |node: &str, origin| decide(&of(node), &Facts { origin, ..facts(Home::Open, None) }, NODE);
    assert_eq!(step(NODE, Origin::Here), Step::Create);
    assert_eq!(reason(&step(NODE, Origin::Missing)), Some(LvolReason::SourceMissing));
    assert_eq!(reason(&step(NODE, Origin::Elsewhere)), Some(LvolReason::SourceUnavailable));
    assert_eq!(reason(&step("node-b", Origin::Here)), Some(LvolReason::SourceUnavailable));
    let rootless = object(|o| o["spec"]["kind"] = json!("Snapshot"));
    assert_eq!(reason(&decide(&rootless, &facts(Home::Open, None), NODE)), Some(LvolReason::CreateFailed));
}
