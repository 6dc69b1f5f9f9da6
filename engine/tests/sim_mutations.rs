//! Proof that the simulator sees: deliberate bugs in the engine, each of which must be caught.
#![cfg(feature = "sim")]

mod sim;

use coppice_engine::sim::mutation::{Mutation, set};
use sim::{Plan, attempt};

/// Runs in which a bug must show itself.
const RUNS: u64 = 1_500;

fn caught(mutation: Mutation) {
    // The panics of the bug are expected: they need no backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let plan = Plan { rounds: 6, faults: false, narrow: false };
    for plan in [Plan { narrow: true, ..plan }, plan, Plan { faults: true, ..plan }] {
        for seed in 1..=RUNS / 3 {
            set(mutation);
            let result = attempt(seed, plan);
            set(Mutation::None);
            if let Err(why) = result {
                println!("{mutation:?}: caught by run {seed}: {why}");
                return;
            }
        }
    }
    let _ = std::panic::take_hook();
    panic!("{mutation:?} was not noticed in {RUNS} runs");
}

macro_rules! each_is_caught {
    ($($test:ident: $mutation:ident,)*) => {
        $(#[test] fn $test() { caught(Mutation::$mutation); })*
    };
}

each_is_caught! {
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
