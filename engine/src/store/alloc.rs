//! Who has which cluster and which metadata page. Kept in memory; built from the metadata when a store is opened.
//!
//! A cluster is free, or used (metadata, allocated), or *quarantined*: freed, but not reusable before the free is durable
//! and every I/O planned before it has completed. Thick lvols *reserve* clusters without saying which.

use crate::format::Bits;

/// The clusters of a store.
pub struct Clusters {
    used: Bits,
    free: u32,
    /// Promised to thick lvols.
    pub reserved: u64,
    /// Set in `used`, but on their way back.
    pub quarantined: u64,
    cursor: u32,
}

/// Clusters of a window: a new stream of writes begins at one that is all free, so that streams do not interleave.
const WINDOW: u32 = 64;

impl Clusters {
    pub fn new(used: Bits) -> Clusters {
        let free = used.len() - used.count_ones();
        Clusters { used, free, reserved: 0, quarantined: 0, cursor: 0 }
    }

    pub fn total(&self) -> u32 {
        self.used.len()
    }

    /// Neither used nor quarantined, reserved ones included.
    pub fn free(&self) -> u32 {
        self.free
    }

    /// What thin lvols may still take.
    pub fn unreserved(&self) -> u64 {
        u64::from(self.free).saturating_sub(self.reserved)
    }

    pub fn is_used(&self, cluster: u32) -> bool {
        self.used.get(cluster)
    }

    pub fn used_bits(&self) -> &Bits {
        &self.used
    }

    /// Takes a free cluster: the one behind `after` if it is free, else the start of a free window, else the next free one.
    pub fn claim(&mut self, after: Option<u32>) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let chosen = match after.map(|a| a + 1) {
            Some(next) if next < self.used.len() && !self.used.get(next) => next,
            _ => self.window().or_else(|| self.used.first_clear(self.cursor)).or_else(|| self.used.first_clear(0))?,
        };
        self.take(chosen);
        self.cursor = chosen;
        Some(chosen)
    }

    /// The start of an all-free window at or behind the cursor; looks at a bounded number of them.
    fn window(&mut self) -> Option<u32> {
        let windows = self.used.len() / WINDOW;
        if windows == 0 || self.free < WINDOW {
            return None;
        }
        let first = self.cursor / WINDOW;
        (0..windows.min(64)).map(|n| (first + n) % windows).find_map(|w| {
            let start = w * WINDOW;
            (start..start + WINDOW).all(|c| !self.used.get(c)).then_some(start)
        })
    }

    /// The `count` highest free clusters that lie together, as (start, count); fewer runs are better.
    pub fn claim_runs_from_end(&mut self, count: u32, runs_max: usize) -> Option<Vec<(u32, u32)>> {
        if self.free < count {
            return None;
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut need = count;
        let mut cluster = self.used.len();
        while need > 0 && cluster > 0 {
            cluster -= 1;
            if self.used.get(cluster) {
                continue;
            }
            let full = runs.len() == runs_max;
            match runs.last_mut() {
                Some((start, len)) if *start == cluster + 1 => {
                    *start = cluster;
                    *len += 1;
                }
                _ if full => return None,
                _ => runs.push((cluster, 1)),
            }
            need -= 1;
        }
        if need > 0 {
            return None;
        }
        for (start, len) in &runs {
            (*start..*start + *len).for_each(|c| {
                self.take(c);
            });
        }
        Some(runs)
    }

    /// Marks a cluster used; false if it was already.
    pub fn take(&mut self, cluster: u32) -> bool {
        let new = self.used.set(cluster);
        if new {
            self.free -= 1;
        }
        new
    }

    /// Gives a cluster back at once: it was claimed and never published, or its quarantine is over.
    pub fn release(&mut self, cluster: u32) {
        if self.used.clear(cluster) {
            self.free += 1;
        } else {
            debug_assert!(false, "cluster {cluster} was free already");
        }
    }

    pub fn grow(&mut self, total: u32) {
        self.free += total - self.used.len();
        self.used.resize(total);
    }
}

/// The metadata pages of a store. Lowest first, so that what has to be read at the next start lies together.
pub struct Pages {
    used: Bits,
    free: u32,
    cursor: u32,
    /// No page at or behind this has been used since the store was opened.
    limit: u32,
}

impl Pages {
    pub fn new(used: Bits) -> Pages {
        let free = used.len() - used.count_ones();
        let limit = used.iter().last().map_or(0, |n| n + 1);
        Pages { used, free, cursor: 0, limit }
    }

    pub fn free(&self) -> u32 {
        self.free
    }

    pub fn total(&self) -> u32 {
        self.used.len()
    }

    pub fn limit(&self) -> u32 {
        self.limit
    }

    pub fn used_bits(&self) -> &Bits {
        &self.used
    }

    /// The lowest free page. Page 0 is never given out for anything but a root (an extent table cannot name it).
    pub fn claim(&mut self) -> Option<u32> {
        let page = self.used.first_clear(self.cursor.max(1))?;
        self.used.set(page);
        self.free -= 1;
        self.cursor = page + 1;
        self.limit = self.limit.max(page + 1);
        Some(page)
    }

    pub fn release(&mut self, page: u32) {
        if self.used.clear(page) {
            self.free += 1;
            self.cursor = self.cursor.min(page);
        } else {
            debug_assert!(false, "metadata page {page} was free already");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_stays_together_and_streams_apart() {
        let mut c = Clusters::new(Bits::new(1000));
        c.take(0);
        let a = c.claim(None).expect("a");
        let b = c.claim(None).expect("b");
        assert!(a.abs_diff(b) >= WINDOW);
        assert_eq!(c.claim(Some(a)), Some(a + 1));
        assert_eq!(c.claim(Some(b)), Some(b + 1));
        assert_eq!(c.free(), 995);
    }

    #[test]
    fn the_last_free_cluster_is_found() {
        let mut c = Clusters::new(Bits::new(70));
        for n in 0..70 {
            if n != 3 {
                c.take(n);
            }
        }
        assert_eq!(c.claim(Some(69)), Some(3));
        assert_eq!(c.claim(None), None);
        c.release(69);
        assert_eq!(c.claim_runs_from_end(1, 1), Some(vec![(69, 1)]));
    }

    #[test]
    fn pages_come_lowest_first() {
        let mut p = Pages::new(Bits::new(8));
        assert_eq!((p.claim(), p.claim()), (Some(1), Some(2)));
        p.release(1);
        assert_eq!((p.claim(), p.claim(), p.limit()), (Some(1), Some(3), 4));
    }
}
