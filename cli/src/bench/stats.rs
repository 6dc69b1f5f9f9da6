//! Medians, and how far they can be trusted.

/// A median with the bounds of its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the part `q` of the values lies; 0 for none.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (sorted.get(at.floor() as usize), sorted.get(at.ceil() as usize));
    match (below, above) {
        (Some(a), Some(b)) => a + (b - a) * at.fract(),
        _ => 0.0,
    }
}

/// Bootstrap: the median of many samples drawn anew from the values. Says how much the median would move if the run were
/// repeated *now*; it knows nothing of other machines and other days.
pub fn estimate(values: &[f64]) -> Estimate {
    const SAMPLES: usize = 2000;
    let mut random = Random::new(values.len() as u64 + 1);
    let mut medians = Vec::with_capacity(SAMPLES);
    let mut sample = Vec::with_capacity(values.len());
    for _ in 0..SAMPLES {
        sample.clear();
        sample.extend((0..values.len()).filter_map(|_| values.get(random.below(values.len() as u64) as usize)));
        medians.push(median(&sample));
    }
    Estimate { median: median(values), low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) }
}

/// A small generator for places and samples; the same seed gives the same run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Below `n`, which is not 0. Takes the high half of a product: no division on the path that is measured.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for n in (1..values.len()).rev() {
            values.swap(n, self.below(n as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.9), 9.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_interval_holds_the_median_and_shrinks_with_the_spread() {
        let wide = estimate(&[0.5, 0.8, 1.0, 1.2, 1.5, 0.9, 1.1]);
        let tight = estimate(&[1.0, 1.01, 0.99, 1.0, 1.0, 1.0, 1.0]);
        assert!(wide.low <= wide.median && wide.median <= wide.high);
        assert!(tight.high - tight.low < wide.high - wide.low);
    }

    #[test]
    fn a_shuffle_keeps_everything() {
        let mut values: Vec<u32> = (0..100).collect();
        Random::new(7).shuffle(&mut values);
        assert_ne!(values, (0..100).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..100).collect::<Vec<_>>());
    }
}
