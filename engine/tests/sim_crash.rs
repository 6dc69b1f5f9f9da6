//! The real engine under power cuts and device errors. See `sim/mod.rs`.
#![cfg(feature = "sim")]

mod sim;

use sim::{Plan, attempt, campaign};

const QUIET: Plan = Plan { rounds: 6, faults: false, narrow: false };
const FAULTY: Plan = Plan { rounds: 6, faults: true, narrow: false };
const NARROW: Plan = Plan { rounds: 6, faults: false, narrow: true };

/// Seeds that failed once.
const REMEMBERED: &str = include_str!("sim_seeds.txt");

#[test]
fn remembered_seeds() {
    for line in REMEMBERED.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let (seed, faults) = line.split_once(" ").expect("SEED FAULTS");
        let plan = Plan { faults: faults.starts_with('1'), ..QUIET };
        if let Err(why) = attempt(seed.parse().expect("a number"), plan) {
            panic!("seed {seed}: {why}");
        }
    }
}

// Several tests, so that several cores work; together more than 10,000 power cuts.

#[test]
fn power_cuts_a() {
    campaign("power cuts", 1, 4_000, QUIET);
}

#[test]
fn power_cuts_b() {
    campaign("power cuts", 1_000_000, 4_000, QUIET);
}

#[test]
fn device_errors_and_power_cuts() {
    campaign("device errors", 2_000_000, 3_000, FAULTY);
}

#[test]
fn snapshots_over_one_busy_cluster() {
    campaign("one busy cluster", 3_000_000, 1_500, NARROW);
}

/// The same seed gives the same run: a failure can be replayed.
#[test]
fn runs_repeat() {
    for seed in 1..6 {
        let trace = |_| sim::trace(seed, QUIET);
        assert_eq!(trace(0), trace(1), "seed {seed}");
    }
}

#[test]
#[ignore = "replays one run: SIM_SEED, SIM_FAULTS, SIM_NARROW"]
fn replay() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (faults, narrow) = (number("SIM_FAULTS") == Some(1), number("SIM_NARROW") == Some(1));
    let plan = Plan { faults, narrow, ..QUIET };
    let seed = number("SIM_SEED").expect("SIM_SEED is a number");
    sim::run(seed, plan).expect("the run succeeds");
}

#[test]
#[ignore = "runs for COPPICE_SOAK_SECONDS"]
fn soak() {
    let seconds = std::env::var("COPPICE_SOAK_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(60);
    let start = std::time::Instant::now();
    let mut seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_secs()) << 20;
    while start.elapsed().as_secs() < seconds {
        campaign("soak", seed, 300, if seed.is_multiple_of(2) { QUIET } else { FAULTY });
        seed += 1_001;
    }
}
