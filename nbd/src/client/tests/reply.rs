//! Replies: honest ones in any order and cut, and every way to lie.

use super::Rng;
use crate::client::reply::{Asked, Assembly, Failure, Outcome, Room, Violation, status_range};
use crate::client::{Extent, ExtentKind};
use crate::proto::{self, ErrorCode, STATE_HOLE, STATE_ZERO};
use std::ops::Range;

/// A piece of a reply to a read.
#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Data(Range<u64>),
    Hole(Range<u64>),
}

/// What the export has at `at`; never 0, as a forgotten byte would be.
fn byte(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 | 1
}

fn give(assembly: &mut Assembly, piece: &Piece) -> Result<(), Violation> {
    match piece {
        Piece::Hole(range) => assembly.hole(range.start, range.end.wrapping_sub(range.start)),
        Piece::Data(range) => {
            let data: Vec<u8> = range.clone().map(byte).collect();
            match assembly.data(range.start, data.len())? {
                Room::Append(buf) => buf.extend_from_slice(&data),
                Room::Within(place) => place.copy_from_slice(&data),
            }
            Ok(())
        }
    }
}

fn reply(asked: &Range<u64>, pieces: &[Piece]) -> Result<Outcome, Violation> {
    let mut assembly = Assembly::new(Asked::Data(asked.clone()));
    pieces.iter().try_for_each(|piece| give(&mut assembly, piece))?;
    assembly.finish()
}

/// An honest reply: the range cut at random places, some of it holes, in any order.
fn honest(rng: &mut Rng, asked: &Range<u64>) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut at = asked.start;
    while at < asked.end {
        let end = (at + 512 * (1 + rng.below(8))).min(asked.end);
        pieces.push(if rng.one_in(3) { Piece::Hole(at..end) } else { Piece::Data(at..end) });
        at = end;
    }
    match rng.below(3) {
        0 => {}
        1 => pieces.reverse(),
        _ => {
            for i in (1..pieces.len()).rev() {
                pieces.swap(i, rng.below(i as u64 + 1) as usize);
            }
        }
    }
    pieces
}

#[test]
fn honest_replies_are_taken_however_they_are_cut() {
    for seed in 0..2000 {
        let mut rng = Rng(seed);
        let start = rng.below(1 << 20);
        let asked = start..start + 1 + rng.below(20_000);
        let pieces = honest(&mut rng, &asked);
        let Ok(Outcome::Data(data)) = reply(&asked, &pieces) else { panic!("seed {seed}: refused") };
        let mut expected = vec![0; data.len()];
        assert_eq!(data.len() as u64, asked.end - asked.start);
        for piece in &pieces {
            if let Piece::Data(range) = piece {
                for at in range.clone() {
                    expected[(at - asked.start) as usize] = byte(at);
                }
            }
        }
        assert!(data == expected, "seed {seed}: wrong bytes");
    }
}

#[test]
fn no_lie_passes() {
    for seed in 0..4000 {
        let mut rng = Rng(seed);
        let start = 4096 + rng.below(1 << 20);
        let asked = start..start + 1 + rng.below(20_000);
        let mut pieces = honest(&mut rng, &asked);
        let which = rng.below(pieces.len() as u64) as usize;
        let range = match &pieces[which] {
            Piece::Data(range) | Piece::Hole(range) => range.clone(),
        };
        let lie = match rng.below(7) {
            0 => {
                pieces.remove(which);
                "a piece is missing"
            }
            1 => {
                pieces.push(pieces[which].clone());
                "a piece comes twice"
            }
            2 => {
                pieces[which] = Piece::Data(range.start..range.end + 1);
                "a piece is too long"
            }
            3 => {
                pieces[which] = Piece::Hole(range.start - 1..range.end);
                "a piece begins too early"
            }
            4 => {
                pieces[which] = Piece::Data(range.start..range.end - 1);
                "a piece is too short"
            }
            5 => {
                let by = 1 + rng.below(1 << 40);
                pieces[which] = Piece::Hole(range.start + by..range.end + by);
                "a piece is elsewhere"
            }
            _ => {
                pieces.insert(which, Piece::Hole(u64::MAX - 4..u64::MAX.wrapping_add(4)));
                "a piece is beyond everything"
            }
        };
        let result = reply(&asked, &pieces);
        assert!(result.is_err(), "seed {seed}: {lie}, and yet {asked:?} is answered");
    }
}

#[test]
fn crumbs_are_refused_before_they_cost_much() {
    let asked = 0..1 << 20;
    let crumbs: Vec<Piece> = (0..1 << 20).map(|at| Piece::Data(at..at + 1)).collect();
    assert!(matches!(reply(&asked, &crumbs), Err(Violation(why)) if why.contains("pieces")));
}

#[test]
fn an_error_is_an_error_whatever_came_with_it() {
    let asked = 1000..9000;
    let mut assembly = Assembly::new(Asked::Data(asked.clone()));
    give(&mut assembly, &Piece::Data(1000..9000)).unwrap();
    assembly.failed(ErrorCode::EIO, "worse".into(), Some(7000)).unwrap();
    assembly.failed(ErrorCode::EIO, "bad block".into(), Some(5096)).unwrap();
    let failure = Failure { code: ErrorCode::EIO, message: "bad block".into(), offset: 5096 };
    assert_eq!(assembly.finish(), Ok(Outcome::Failed(failure)));

    // Without an offset it is at the beginning.
    let mut assembly = Assembly::new(Asked::Data(asked.clone()));
    assembly.failed(ErrorCode::EPERM, String::new(), None).unwrap();
    assert!(matches!(assembly.finish(), Ok(Outcome::Failed(Failure { offset: 1000, .. }))));

    let mut assembly = Assembly::new(Asked::Data(asked));
    assert!(assembly.failed(ErrorCode::EIO, String::new(), Some(9000)).is_err());
    assert!(assembly.failed(ErrorCode::EIO, String::new(), Some(999)).is_err());
    for _ in 0..100 {
        let _ = assembly.failed(ErrorCode::EIO, String::new(), None);
    }
    assert!(assembly.failed(ErrorCode::EIO, String::new(), None).is_err(), "errors without end");
}

fn status(asked: Range<u64>, extents: &[(u64, u64)]) -> Result<Outcome, Violation> {
    let mut assembly = Assembly::new(Asked::Status { range: asked, context: 7 });
    let extents: Vec<_> = extents.iter().map(|&(length, flags)| proto::Extent { length, flags }).collect();
    assembly.status(7, &extents)?;
    assembly.finish()
}

#[test]
fn block_status_is_cut_to_what_was_asked_and_joined() {
    let extents = [(512, 0), (512, STATE_HOLE), (4096, STATE_HOLE | STATE_ZERO), (4096, STATE_ZERO), (u64::MAX / 2, 8)];
    let expected = [
        // A hole that nobody says reads as zeroes is data.
        Extent { len: 1024, kind: ExtentKind::Data },
        Extent { len: 4096, kind: ExtentKind::Hole },
        Extent { len: 4096, kind: ExtentKind::Zero },
        Extent { len: 784, kind: ExtentKind::Data },
    ];
    assert_eq!(status(4096..14096, &extents), Ok(Outcome::Extents(expected.to_vec())));
    let part = Outcome::Extents(expected.to_vec()).part(&(4096..14096), &(5000..6000));
    let [data, hole] = [(120, ExtentKind::Data), (880, ExtentKind::Hole)].map(|(len, kind)| Extent { len, kind });
    assert_eq!(part, Outcome::Extents(vec![data, hole]));
    assert_eq!(
        status(0..8192, &[(512, 0)]),
        Ok(Outcome::Extents(vec![Extent { len: 512, kind: ExtentKind::Data }])),
        "less than asked for is allowed"
    );
}

#[test]
fn false_block_status_is_refused() {
    for (what, extents) in [
        ("no extents", vec![]),
        ("an extent of no length", vec![(512, 0), (0, 0)]),
        ("extents behind the end", vec![(8192, 0), (512, 0)]),
        ("flags that nobody knows", vec![(8192, 1 << 32)]),
        ("more than there can be", vec![(8191, 0), (u64::MAX, 0)]),
    ] {
        assert!(status(0..8192, &extents).is_err(), "{what}");
    }
    let mut assembly = Assembly::new(Asked::Status { range: 0..8192, context: 7 });
    let extents = [proto::Extent { length: 8192, flags: 3 }];
    assert!(assembly.status(8, &extents).is_err(), "another context");
    assert!(assembly.hole(0, 512).is_err(), "content");
    assembly.status(7, &extents).unwrap();
    assert!(assembly.status(7, &extents).is_err(), "twice");

    let assembly = Assembly::new(Asked::Status { range: 0..8192, context: 7 });
    assert!(assembly.finish().is_err(), "no block status at all");
    let mut assembly = Assembly::new(Asked::Data(0..8192));
    assert!(assembly.status(7, &extents).is_err(), "block status for a read");
}

#[test]
fn a_flood_of_extents_ends_the_answer_early() {
    let flood: Vec<(u64, u64)> = (0..10_000).map(|n| (512, n % 2 * (STATE_ZERO | STATE_HOLE))).collect();
    let Ok(Outcome::Extents(extents)) = status(0..512 * 10_000, &flood) else { panic!("refused") };
    assert_eq!(extents.len(), 4096);
    assert!(extents.iter().all(|extent| extent.len == 512));
}

#[test]
fn questions_for_status_fit_the_style() {
    assert_eq!(status_range(1..8 << 30, 4096, false), 0..8 << 30);
    let compact = status_range(5000..8 << 30, 4096, true);
    assert_eq!(compact, 4096..4096 + (1 << 32) - 4096);
}
