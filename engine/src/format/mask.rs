//! The three masks of a store: which metadata pages, clusters and blob ids are used.
//!
//! | off in area | width | field |
//! |---:|---:|---|
//! | 0 | 1 | kind: 0 metadata pages, 1 clusters, 2 blob ids |
//! | 1 | 4 | length in bits |
//! | 5 | … | bit n is bit (n mod 8) of byte 5 + n/8 |
//!
//! Everything behind the last bit is zero. There is no CRC.

use super::bytes::{array_at, u32_at};
use super::error::FormatError;
use super::page::{PAGE_SIZE, Page};

const HEADER: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskKind {
    Pages = 0,
    Clusters = 1,
    BlobIds = 2,
}

/// A bitmap. Indices beyond its end read as clear and cannot be set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    words: Vec<u64>,
    len: u32,
}

impl Bits {
    /// `len` clear bits.
    pub fn new(len: u32) -> Bits {
        Bits { words: vec![0; len.div_ceil(64) as usize], len }
    }

    pub fn len(&self) -> u32 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, n: u32) -> bool {
        self.words.get(n as usize / 64).is_some_and(|w| w >> (n % 64) & 1 == 1)
    }

    /// Sets a bit; true if it was clear and within the map.
    pub fn set(&mut self, n: u32) -> bool {
        if n >= self.len || self.get(n) {
            return false;
        }
        if let Some(word) = self.words.get_mut(n as usize / 64) {
            *word |= 1 << (n % 64);
        }
        true
    }

    /// Clears a bit; true if it was set.
    pub fn clear(&mut self, n: u32) -> bool {
        let was = self.get(n);
        if let Some(word) = self.words.get_mut(n as usize / 64) {
            *word &= !(1 << (n % 64));
        }
        was
    }

    pub fn count_ones(&self) -> u32 {
        self.words.iter().map(|w| w.count_ones()).sum()
    }

    /// Indices of the set bits, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(n, &word)| {
            let mut left = word;
            std::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(n as u32 * 64 + bit)
            })
        })
    }

    /// The lowest clear bit that is not below `from`.
    pub fn first_clear(&self, from: u32) -> Option<u32> {
        let start = from as usize / 64;
        for (n, &word) in self.words.iter().enumerate().skip(start) {
            let below = if n == start { (1u64 << (from % 64)) - 1 } else { 0 };
            let bit = (word | below).trailing_ones();
            if bit < 64 {
                return Some(n as u32 * 64 + bit).filter(|&n| n < self.len);
            }
        }
        None
    }

    /// Changes the length; new bits are clear.
    pub fn resize(&mut self, len: u32) {
        self.words.resize(len.div_ceil(64) as usize, 0);
        self.len = len;
        self.trim();
    }

    /// Bits behind the end are zero: `count_ones` and `iter` rely on it.
    fn trim(&mut self) {
        if let (Some(last), rest @ 1..) = (self.words.last_mut(), self.len % 64) {
            *last &= (1 << rest) - 1;
        }
    }

    /// Bytes `n..n + 8` of the bitmap as a number; zero behind its end.
    fn eight_bytes(&self, n: usize) -> u64 {
        let word = |i: usize| self.words.get(i).copied().unwrap_or(0);
        match 8 * (n % 8) {
            0 => word(n / 8),
            shift => word(n / 8) >> shift | word(n / 8 + 1) << (64 - shift),
        }
    }
}

/// Reads a mask from its whole area.
pub fn parse(kind: MaskKind, area: &[u8]) -> Result<Bits, FormatError> {
    let [found] = array_at::<1>(area, 0)?;
    if found != kind as u8 {
        return Err(FormatError::field("kind of a mask", found, "another mask is expected at this place"));
    }
    let len = u32_at(area, 1)?;
    let body = area.get(HEADER..).unwrap_or(&[]);
    let Some(body) = body.get(..len.div_ceil(8) as usize) else {
        return Err(FormatError::field("length of a mask", len, "more bits than its area holds"));
    };
    let words = body.chunks(8).map(|chunk| {
        let mut word = [0; 8];
        word.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(word)
    });
    let mut bits = Bits { words: words.collect(), len };
    bits.trim();
    Ok(bits)
}

/// The 4096-byte piece of a mask's area in which bit `n` lies.
pub fn piece_of(n: u32) -> u32 {
    ((HEADER as u64 + u64::from(n / 8)) / PAGE_SIZE as u64) as u32
}

/// One 4096-byte piece of a mask's area, so that a change of one bit writes one piece.
pub fn encode_piece(kind: MaskKind, bits: &Bits, piece: u32) -> Page {
    let mut page = [0; PAGE_SIZE];
    let start = piece as usize * PAGE_SIZE;
    for (n, to) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let at = start + 8 * n;
        let word = match at.checked_sub(HEADER) {
            Some(byte) => bits.eight_bytes(byte),
            None => kind as u64 | u64::from(bits.len) << 8 | bits.eight_bytes(0) << (8 * HEADER),
        };
        *to = word.to_le_bytes();
    }
    page
}

/// A whole area of `area_len` bytes.
pub fn encode(kind: MaskKind, bits: &Bits, area_len: usize) -> Result<Vec<u8>, FormatError> {
    let need = HEADER + bits.len.div_ceil(8) as usize;
    if need > area_len {
        return Err(FormatError::Truncated { what: "area of a mask", need, have: area_len });
    }
    let pieces = area_len.div_ceil(PAGE_SIZE) as u32;
    let mut area: Vec<u8> = (0..pieces).flat_map(|piece| encode_piece(kind, bits, piece)).collect();
    area.truncate(area_len);
    Ok(area)
}
