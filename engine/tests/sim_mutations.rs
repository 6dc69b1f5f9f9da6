//! Proof that the simulator sees: deliberate bugs in the engine, each of which must be caught.
#![cfg(feature = "sim")]

mod sim;

use coppice_engine::sim::mutation::{Mutation, set};
use sim::{Plan, attempt, pair};

/// Runs in which a bug must show itself.
const RUNS: u64 = 1_500;
const RUNS_OF_THE_PAIR: u64 = 200;

/// In one store.
fn caught(mutation: Mutation) {
    let plan = Plan { rounds: 6, faults: false, narrow: false };
    let plans = [Plan { narrow: true, ..plan }, plan, Plan { faults: true, ..plan }];
    let runs = plans.into_iter().flat_map(|plan| (1..=RUNS / 3).map(move |seed| (seed, plan)));
    caught_by(mutation, runs, |(seed, plan)| (seed, attempt(seed, plan).map(drop)));
}

/// Between two stores.
fn caught_by_the_pair(mutation: Mutation) {
    caught_by(mutation, 1..=RUNS_OF_THE_PAIR, |seed| (seed, pair::attempt(seed).map(drop)));
}

fn caught_by<T>(mutation: Mutation, runs: impl Iterator<Item = T>, attempt: impl Fn(T) -> (u64, Result<(), String>)) {
    // The panics of the bug are expected: they need no backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    for run in runs {
        set(mutation);
        let (seed, result) = attempt(run);
        set(Mutation::None);
        if let Err(why) = result {
            println!("{mutation:?}: caught by run {seed}: {why}");
            return;
        }
    }
    let _ = std::panic::take_hook();
    panic!("{mutation:?} was not noticed");
}

macro_rules! each_is_caught {
    ($caught:ident: $($test:ident: $mutation:ident,)*) => {
        $(#[test] fn $test() { $caught(Mutation::$mutation); })*
    };
}

each_is_caught! {
    caught:
    skip_flush: SkipFlush,
    cut_after_flush: CutAfterFlush,
    publish_early: PublishEarly,
    free_before_commit: FreeBeforeCommit,
    reuse_before_reads_end: ReuseBeforeReadsEnd,
    swap_shard_by_shard: SwapShardByShard,
    merge_wrong_order: MergeWrongOrder,
    lose_super_copy: LoseSuperCopy,
    skip_zero_fill: SkipZeroFill,
    copy_too_early: CopyTooEarly,
    home_before_journal: HomeBeforeJournal,
    tail_before_home: TailBeforeHome,
}

each_is_caught! {
    caught_by_the_pair:
    pin_not_durable: PinNotDurable,
    unpin_with_delete: UnpinWithDelete,
    merge_pinned: MergePinned,
    give_up_parent_early: GiveUpParentEarly,
    zeroes_for_away: ZeroesForAway,
    hydration_leaves_out: HydrationLeavesOut,
}

/// The same runs without a bug.
#[test]
fn no_bug_no_alarm() {
    for seed in 1..=40 {
        for faults in [false, true] {
            attempt(seed, Plan { rounds: 6, faults, narrow: !faults && seed.is_multiple_of(2) })
                .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        }
    }
}
