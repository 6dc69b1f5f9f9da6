//! What lvols did and how long it took, counted where it happens.
//!
//! Every counter has one writer, the data thread that it belongs to, and is read by whoever wants the sum: so counting is a
//! load, an addition and a store, without a lock and without a shared cache line. Times come from the clock that the shard
//! reads once per round (`Shard::round_ns`). Counters begin at zero when a store is opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bound of the first bucket of a latency, microseconds; each bucket reaches twice as far as the one before.
const FIRST_BOUND_US: u64 = 16;
/// Buckets with an upper bound; the last ends at 16.8 s.
const BOUNDS: usize = 21;

/// A number that one thread changes and any thread reads.
#[derive(Default)]
struct Count(AtomicU64);

impl Count {
    fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one lvol did on one shard. Aligned, so that two shards never share a cache line.
#[derive(Default)]
#[repr(align(64))]
pub struct LvolCounts {
    reads: Count,
    read_bytes: Count,
    writes: Count,
    write_bytes: Count,
}

impl LvolCounts {
    pub(crate) fn read(&self, bytes: u64) {
        self.reads.add(1);
        self.read_bytes.add(bytes);
    }

    pub(crate) fn written(&self, bytes: u64) {
        self.writes.add(1);
        self.write_bytes.add(bytes);
    }
}

/// What a lvol did since its store was opened. Requests that failed do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LvolTotals {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
}

impl LvolTotals {
    pub(crate) fn add(&mut self, counts: &LvolCounts) {
        self.reads += counts.reads.get();
        self.read_bytes += counts.read_bytes.get();
        self.writes += counts.writes.get();
        self.write_bytes += counts.write_bytes.get();
    }
}

/// How long requests of one kind took, on one shard.
#[derive(Default)]
pub struct Latency {
    buckets: [Count; BOUNDS + 1],
    sum_ns: Count,
}

impl Latency {
    pub(crate) fn observe(&self, ns: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(ns)) {
            bucket.add(1);
        }
        self.sum_ns.add(ns);
    }
}

/// The bucket of a time. A bound belongs to the bucket that it ends.
fn bucket_of(ns: u64) -> usize {
    let bounds = ns.div_ceil(FIRST_BOUND_US * 1000);
    // How often the first bound has to be doubled.
    let doublings = u64::BITS - bounds.saturating_sub(1).leading_zeros();
    (doublings as usize).min(BOUNDS)
}

/// How long the requests to a store's lvols took, on one shard.
#[derive(Default)]
#[repr(align(64))]
pub struct StoreLatency {
    pub(crate) read: Latency,
    pub(crate) write: Latency,
    pub(crate) flush: Latency,
}

impl StoreLatency {
    /// Requests so far, of every kind.
    pub(crate) fn requests(&self) -> u64 {
        let all = [&self.read, &self.write, &self.flush];
        all.iter().flat_map(|latency| &latency.buckets).map(Count::get).fold(0, u64::wrapping_add)
    }
}

/// A distribution of times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyTotals {
    /// Requests for each of [`LatencyTotals::bounds`], those of the smaller ones not included, and last those beyond.
    pub buckets: Vec<u64>,
    pub sum_ns: u64,
}

impl LatencyTotals {
    fn of<'a>(all: impl Iterator<Item = &'a Latency>) -> LatencyTotals {
        let mut total = LatencyTotals { buckets: vec![0; BOUNDS + 1], sum_ns: 0 };
        for latency in all {
            for (sum, bucket) in total.buckets.iter_mut().zip(&latency.buckets) {
                *sum += bucket.get();
            }
            total.sum_ns = total.sum_ns.wrapping_add(latency.sum_ns.get());
        }
        total
    }

    /// Upper bounds of the buckets but the last, in seconds.
    pub fn bounds() -> Vec<f64> {
        (0..BOUNDS).map(|n| (FIRST_BOUND_US << n) as f64 / 1e6).collect()
    }
}

/// How long the requests to a store's lvols took since the store was opened. Requests that failed do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StoreTotals {
    pub read: LatencyTotals,
    pub write: LatencyTotals,
    pub flush: LatencyTotals,
}

impl StoreTotals {
    pub(crate) fn of(shards: &[Arc<StoreLatency>]) -> StoreTotals {
        StoreTotals {
            read: LatencyTotals::of(shards.iter().map(|shard| &shard.read)),
            write: LatencyTotals::of(shards.iter().map(|shard| &shard.write)),
            flush: LatencyTotals::of(shards.iter().map(|shard| &shard.flush)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_bucket_whose_bound_it_does_not_exceed() {
        let bounds = LatencyTotals::bounds();
        assert_eq!((bounds.len(), bounds.first(), bounds.last()), (BOUNDS, Some(&16e-6), Some(&16.777216)));
        let times = (0..BOUNDS).flat_map(|n| [-1i64, 0, 1].map(|d| (16_000i64 << n) + d));
        for ns in times.chain([0, 1, 100, i64::MAX]) {
            let wanted = bounds.iter().position(|bound| ns as f64 <= bound * 1e9).unwrap_or(BOUNDS);
            assert_eq!(bucket_of(ns as u64), wanted, "{ns} ns");
        }
    }

    #[test]
    fn shards_add_up() {
        let shards = [Arc::new(StoreLatency::default()), Arc::default()];
        shards[0].read.observe(16_000);
        shards[1].read.observe(16_001);
        shards[1].flush.observe(u64::MAX / 2);
        let total = StoreTotals::of(&shards);
        assert_eq!((total.read.buckets[0], total.read.buckets[1], total.read.sum_ns), (1, 1, 32_001));
        assert_eq!((total.flush.buckets[BOUNDS], total.write.sum_ns), (1, 0));
    }
}
