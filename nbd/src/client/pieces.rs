//! How a read is cut into requests. All of it is arithmetic.

use std::ops::Range;

/// A request to be made, and which part of it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub wanted: Range<u64>,
    /// What to ask the server for; larger than `wanted` if something is read ahead.
    pub fetch: Range<u64>,
}

impl Piece {
    pub fn is_enlarged(&self) -> bool {
        self.wanted != self.fetch
    }
}

/// Cuts `range` where a multiple of `max` lies in it. With a `unit`, a read that is smaller is enlarged to whole units, which end
/// at `size`. `max` and `unit` are not 0, and a unit is not larger than `max`.
pub(super) fn cut(range: Range<u64>, max: u64, ahead: Option<(u64, u64)>) -> Vec<Piece> {
    let unit = ahead.filter(|(unit, _)| range.end - range.start < *unit);
    let step = unit.map_or(max, |(unit, _)| unit).max(1);
    let mut pieces = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let floor = start - start % step;
        let end = floor.saturating_add(step).min(range.end);
        let fetch = match unit {
            Some((unit, size)) => floor..floor.saturating_add(unit).min(size).max(end),
            None => start..end,
        };
        pieces.push(Piece { wanted: start..end, fetch });
        start = end;
    }
    pieces
}

/// The smallest range of whole blocks around `range`.
pub(super) fn whole_blocks(range: Range<u64>, block: u64) -> Range<u64> {
    let block = block.max(1);
    let start = range.start - range.start % block;
    start..range.end.checked_next_multiple_of(block).unwrap_or(range.end)
}

/// The most that one request may ask for: not more than `wished` and `payload_max`, and whole blocks.
pub(super) fn request_max(wished: u32, payload_max: u32, block: u32) -> u64 {
    let (max, block) = (wished.min(payload_max), block.max(1));
    u64::from((max - max % block).max(block))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_what_was_asked_and_fit() {
        // A walk over many sizes and places; odd ones, too.
        for size in [1u64, 511, 4096, 100_000, 1 << 20] {
            for max in [512u64, 4096, 65536] {
                for unit in [0u64, 512, 4096, 65536] {
                    let ahead = (unit != 0).then_some((unit.min(max), size));
                    for (start, len) in [(0, 1), (0, size), (size / 3, size / 7), (size - 1, 1), (511, 2), (4095, 4098)]
                    {
                        let range = start..(start + len).min(size);
                        if range.is_empty() {
                            continue;
                        }
                        let pieces = cut(range.clone(), max, ahead);
                        assert_eq!(pieces[0].wanted.start, range.start);
                        assert_eq!(pieces[pieces.len() - 1].wanted.end, range.end);
                        assert!(pieces.windows(2).all(|two| two[0].wanted.end == two[1].wanted.start));
                        for Piece { wanted, fetch } in pieces {
                            assert!(!wanted.is_empty() && fetch.start <= wanted.start && fetch.end >= wanted.end);
                            assert!(fetch.end <= size && fetch.end - fetch.start <= max, "{fetch:?} of {size}, {max}");
                            // A request of whole blocks does not leave its slot, so it stays within the maximum.
                            let blocks = whole_blocks(fetch.clone(), 512);
                            assert!(blocks.end - blocks.start <= max, "{blocks:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_small_read_is_enlarged_and_a_large_one_is_not() {
        let ahead = Some((65536, 1 << 20));
        let small = cut(70_000..70_001, 1 << 20, ahead);
        assert_eq!(small, [Piece { wanted: 70_000..70_001, fetch: 65536..131072 }]);
        assert_eq!(cut(65_535..65_537, 1 << 20, ahead).len(), 2);
        let large = cut(1..65_537, 1 << 20, ahead);
        assert_eq!(large, [Piece { wanted: 1..65_537, fetch: 1..65_537 }]);
        assert!(!large[0].is_enlarged());
        let last = cut(100_000..100_001, 1 << 20, Some((65536, 100_001)));
        assert_eq!(last[0].fetch, 65536..100_001);
    }

    #[test]
    fn the_largest_request_is_whole_blocks() {
        assert_eq!(request_max(1 << 20, u32::MAX, 4096), 1 << 20);
        assert_eq!(request_max(1 << 20, 70_000, 4096), 69_632);
        assert_eq!(request_max(1000, 70_000, 4096), 4096);
        assert_eq!(whole_blocks(1..2, 1), 1..2);
        assert_eq!(whole_blocks(u64::MAX - 1..u64::MAX, 4096).end, u64::MAX);
    }
}
