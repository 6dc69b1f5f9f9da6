//! Pins, hydration and the loss of either side: two lvstores on the real engine. See `sim/pair.rs`.
#![cfg(feature = "sim")]

mod sim;

use sim::pair::{Tally, attempt, run};

fn campaign(first: u64, runs: u64) {
    let mut sum = Tally::default();
    for seed in first..first + runs {
        let did = attempt(seed).unwrap_or_else(|why| {
            panic!(
                "{why}\nreplay with: SIM_SEED={seed} cargo test --profile simulate -p coppice-engine --features sim --test \
                 sim_pins -- replay --ignored --nocapture"
            )
        });
        sum.clones += did.clones;
        sum.needless += did.needless;
        sum.unpinned += did.unpinned;
        sum.outlived += did.outlived;
        sum.read += did.read;
        sum.unread += did.unread;
        (0..2).for_each(|side| sum.cuts[side] += did.cuts[side]);
    }
    println!("{runs} runs: {sum:?}");
    let enough = sum.clones > 2 * runs && sum.unpinned > runs && sum.outlived > runs && sum.read.min(sum.unread) > runs;
    assert!(enough && sum.cuts.iter().all(|cuts| *cuts > 2 * runs), "{sum:?}: that shows nothing");
}

#[test]
fn nothing_that_the_other_reads_is_freed_a() {
    campaign(1, 40);
}

#[test]
fn nothing_that_the_other_reads_is_freed_b() {
    campaign(1_000_000, 40);
}

#[test]
#[ignore = "replays one run: SIM_SEED"]
fn replay() {
    let seed = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse().ok()).expect("SIM_SEED is a number");
    println!("{:?}", run(seed).expect("the run succeeds"));
}
