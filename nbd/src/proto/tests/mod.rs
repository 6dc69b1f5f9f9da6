//! Tests of the messages: known bytes, what survives a round trip, what is refused.

mod golden;
mod refuse;
mod round_trip;

/// A small generator of numbers; a failing test prints its seed.
pub(super) struct Rng(pub u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// A number of any magnitude.
    pub(super) fn any(&mut self) -> u64 {
        let shift = self.below(64);
        self.next() >> shift
    }

    pub(super) fn name(&mut self, bytes_max: u64) -> String {
        let alphabet = ['a', 'Z', '0', '-', ':', '/', 'ä', '語', '🌲', ' '];
        let mut name = String::new();
        let want = self.below(bytes_max + 1) as usize;
        loop {
            let next = alphabet[self.below(alphabet.len() as u64) as usize];
            if name.len() + next.len_utf8() > want {
                return name;
            }
            name.push(next);
        }
    }
}
