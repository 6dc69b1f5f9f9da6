//! What was read ahead, for a moment. Parents never change, so nothing in it grows old; it is given back to save memory.

use bytes::Bytes;
use std::collections::{HashMap, VecDeque};

/// First in, first out, by bytes.
pub(super) struct Cache {
    bytes_max: usize,
    bytes: usize,
    units: HashMap<u64, Bytes>,
    order: VecDeque<u64>,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache { bytes_max, bytes: 0, units: HashMap::new(), order: VecDeque::new() }
    }

    /// Keeps `unit`, which begins at `off`.
    pub fn put(&mut self, off: u64, unit: Bytes) {
        if unit.len() > self.bytes_max || self.units.contains_key(&off) {
            return;
        }
        self.bytes += unit.len();
        self.units.insert(off, unit);
        self.order.push_back(off);
        while self.bytes > self.bytes_max
            && let Some(oldest) = self.order.pop_front()
        {
            self.bytes -= self.units.remove(&oldest).map_or(0, |unit| unit.len());
        }
    }

    /// `len` bytes from `off` on, of the unit that begins at `unit`.
    pub fn get(&self, unit: u64, off: u64, len: u64) -> Option<Bytes> {
        let bytes = self.units.get(&unit)?;
        let start = usize::try_from(off.checked_sub(unit)?).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        (end <= bytes.len()).then(|| bytes.slice(start..end))
    }

    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    pub fn clear(&mut self) {
        *self = Cache::new(self.bytes_max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_below_its_limit_and_forgets_the_oldest() {
        let mut cache = Cache::new(4096);
        for unit in 0..8u8 {
            cache.put(u64::from(unit) * 1024, Bytes::from(vec![unit; 1024]));
            cache.put(u64::from(unit) * 1024, Bytes::from(vec![unit; 1024]));
            assert!(cache.bytes <= 4096 && cache.order.len() == cache.units.len());
        }
        assert_eq!(cache.get(3072, 3072, 1024), None);
        assert_eq!(cache.get(4096, 4100, 2), Some(Bytes::from(vec![4; 2])));
        assert_eq!(cache.get(4096, 4100, 1024), None, "beyond the unit");
        cache.put(1 << 20, Bytes::from(vec![0; 4097]));
        assert_eq!(cache.get(1 << 20, 1 << 20, 1), None);
        cache.clear();
        assert!(cache.is_empty() && cache.bytes == 0);
    }
}
