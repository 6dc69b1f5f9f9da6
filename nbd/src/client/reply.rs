//! A reply while it comes in: is it the answer to what was asked, all of it, and nothing else?
//!
//! Data becomes visible only in [`Assembly::finish`], when every byte that was asked for was sent or named as zero exactly
//! once, and no error came with it. Whatever does not fit is a [`Violation`]; the connection it came over is not believed
//! any more.

use super::pieces::whole_blocks;
use super::state::{Extent, ExtentKind};
use crate::proto::{self, ErrorCode, STATE_HOLE, STATE_ZERO};
use bytes::{Bytes, BytesMut};
use std::ops::Range;

/// Extents that one answer keeps; what comes after them can be asked for again.
const EXTENTS_KEPT_MAX: usize = 4096;
/// Pieces of content smaller than this are not to be expected of a server, but for the first and last of a reply.
const PIECE_BYTES_MIN: u64 = 512;

/// How a reply breaks the protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Violation(pub String);

impl From<proto::ProtoError> for Violation {
    fn from(error: proto::ProtoError) -> Self {
        Violation(error.to_string())
    }
}

/// What a request asks for. The range is what is sent: whole blocks of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Data(Range<u64>),
    Status { range: Range<u64>, context: u32 },
}

impl Asked {
    pub fn range(&self) -> &Range<u64> {
        match self {
            Asked::Data(range) | Asked::Status { range, .. } => range,
        }
    }

    /// Of data that is asked for.
    pub fn data_bytes(&self) -> u64 {
        match self {
            Asked::Data(range) => range.end - range.start,
            Asked::Status { .. } => 0,
        }
    }

    fn contains(&self, offset: u64) -> bool {
        self.range().contains(&offset)
    }
}

/// The server's error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub code: ErrorCode,
    pub message: String,
    pub offset: u64,
}

/// What a reply says when it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All bytes of the range.
    Data(Bytes),
    /// From the beginning of the range on, without a gap; not beyond its end, perhaps not up to it. At least one.
    Extents(Vec<Extent>),
    Failed(Failure),
}

pub(super) struct Assembly {
    asked: Asked,
    len: usize,
    buf: BytesMut,
    /// Which bytes of the range have come, from 0 on: sorted, apart from each other.
    covered: Vec<Range<u64>>,
    chunks: u64,
    extents: Option<Vec<Extent>>,
    failure: Option<Failure>,
}

/// Where data that is coming in belongs.
pub(super) enum Room<'a> {
    /// To the end of this buffer, which has room for it.
    Append(&'a mut BytesMut),
    Within(&'a mut [u8]),
}

impl Assembly {
    /// The range's length fits in memory: it is one request's.
    pub fn new(asked: Asked) -> Assembly {
        let range = asked.range();
        let len = match asked {
            Asked::Data(_) => usize::try_from(range.end - range.start).unwrap_or(usize::MAX),
            Asked::Status { .. } => 0,
        };
        Assembly { asked, len, buf: BytesMut::new(), covered: Vec::new(), chunks: 0, extents: None, failure: None }
    }

    /// The longest piece of data that may come.
    pub fn data_max(&self) -> usize {
        self.len
    }

    /// `len` bytes of data come for `offset`.
    pub fn data(&mut self, offset: u64, len: usize) -> Result<Room<'_>, Violation> {
        let start = self.cover(offset, len as u64)?;
        if self.buf.capacity() < self.len {
            self.buf.reserve(self.len - self.buf.len());
        }
        if self.buf.len() == start {
            return Ok(Room::Append(&mut self.buf));
        }
        // Out of order. The zeroes are covered before anyone sees them, or nobody does.
        if self.buf.len() < self.len {
            self.buf.resize(self.len, 0);
        }
        match self.buf.get_mut(start..start + len) {
            Some(place) => Ok(Room::Within(place)),
            None => Err(Violation("data beyond what was asked for".into())),
        }
    }

    /// `len` bytes from `offset` on are zeroes, the server says.
    pub fn hole(&mut self, offset: u64, len: u64) -> Result<(), Violation> {
        let start = self.cover(offset, len)?;
        let end = start + usize::try_from(len).unwrap_or(usize::MAX);
        if self.buf.capacity() < self.len {
            self.buf.reserve(self.len - self.buf.len());
        }
        if self.buf.len() == start {
            self.buf.resize(end, 0);
        } else if self.buf.len() < end {
            // Nothing has been put there: it is not covered.
            self.buf.resize(self.len, 0);
        }
        Ok(())
    }

    /// Marks a piece of content as come; where it begins in the buffer.
    fn cover(&mut self, offset: u64, len: u64) -> Result<usize, Violation> {
        let Asked::Data(range) = &self.asked else {
            return Err(Violation("content for a request that asked for none".into()));
        };
        let asked = range.end - range.start;
        self.chunks += 1;
        if self.chunks > 2 + asked / PIECE_BYTES_MIN {
            return Err(Violation(format!("more than {} pieces for {asked} bytes", self.chunks - 1)));
        }
        let end = offset.checked_add(len).filter(|end| *end <= range.end);
        let (Some(end), true) = (end, offset >= range.start && len > 0) else {
            let Range { start, end } = range;
            return Err(Violation(format!("bytes {offset} + {len} in an answer for {start} to {end}")));
        };
        let piece = offset - range.start..end - range.start;
        let at = self.covered.partition_point(|come| come.end < piece.start);
        // The first that ends at or behind where the piece begins; nearly always there is at most one.
        let (mut from, mut to) = (piece.start, piece.end);
        let mut until = at;
        for come in self.covered.iter().skip(at).take_while(|come| come.start <= piece.end) {
            if come.start < piece.end && piece.start < come.end {
                return Err(Violation(format!("bytes {offset} + {len} came twice")));
            }
            (from, to) = (from.min(come.start), to.max(come.end));
            until += 1;
        }
        self.covered.splice(at..until, std::iter::once(from..to));
        usize::try_from(piece.start).map_err(|_| Violation("a piece too far off".into()))
    }

    /// What a context says.
    pub fn status(&mut self, context: u32, extents: &[proto::Extent]) -> Result<(), Violation> {
        let Asked::Status { range, context: asked } = &self.asked else {
            return Err(Violation("block status for a request that asked for data".into()));
        };
        if context != *asked {
            return Err(Violation(format!("block status of context {context}, {asked} was asked for")));
        }
        if self.extents.is_some() {
            return Err(Violation("block status came twice".into()));
        }
        let len = range.end - range.start;
        let mut kept: Vec<Extent> = Vec::new();
        let mut at = 0u64;
        let mut full = false;
        for extent in extents {
            if at >= len {
                return Err(Violation(format!("extents beyond the {len} bytes that were asked for")));
            }
            if extent.length == 0 {
                return Err(Violation("an extent without a length".into()));
            }
            if extent.flags > u64::from(u32::MAX) {
                return Err(Violation(format!("flags {:#x} of an extent", extent.flags)));
            }
            let end = at.checked_add(extent.length).ok_or_else(|| Violation("extents beyond 2^64".into()))?.min(len);
            let kind = kind_of(extent.flags);
            let room = kept.len() < EXTENTS_KEPT_MAX;
            match kept.last_mut() {
                _ if full => {}
                Some(last) if last.kind == kind => last.len += end - at,
                _ if room => kept.push(Extent { len: end - at, kind }),
                _ => full = true,
            }
            at = end;
        }
        if kept.is_empty() {
            return Err(Violation("block status without extents".into()));
        }
        self.extents = Some(kept);
        Ok(())
    }

    /// The server could not do it; an offset, if it said one.
    pub fn failed(&mut self, code: ErrorCode, message: String, offset: Option<u64>) -> Result<(), Violation> {
        let asked = self.asked.range().clone();
        self.chunks += 1;
        if self.chunks > 2 + (asked.end - asked.start) / PIECE_BYTES_MIN {
            return Err(Violation("more errors than anyone can have".into()));
        }
        if offset.is_some_and(|offset| !self.asked.contains(offset)) {
            let Range { start, end } = asked;
            return Err(Violation(format!("an error at {} in an answer for {start} to {end}", offset.unwrap_or(0))));
        }
        let offset = offset.unwrap_or(asked.start);
        // The first place; the first word about it.
        if self.failure.as_ref().is_none_or(|known| offset < known.offset) {
            self.failure = Some(Failure { code, message, offset });
        }
        Ok(())
    }

    /// The reply is over.
    pub fn finish(self) -> Result<Outcome, Violation> {
        if let Some(failure) = self.failure {
            return Ok(Outcome::Failed(failure));
        }
        match self.asked {
            Asked::Status { .. } => match self.extents {
                Some(extents) => Ok(Outcome::Extents(extents)),
                None => Err(Violation("an answer without the block status that was asked for".into())),
            },
            Asked::Data(range) => {
                let whole = 0..range.end - range.start;
                if self.covered != [whole] || self.buf.len() != self.len {
                    let come: u64 = self.covered.iter().map(|come| come.end - come.start).sum();
                    return Err(Violation(format!("an answer of {come} bytes where {} were asked for", self.len)));
                }
                Ok(Outcome::Data(self.buf.freeze()))
            }
        }
    }
}

/// Only what is said to read as zeroes counts as such; of a hole without that word nobody knows what it reads as.
fn kind_of(flags: u64) -> ExtentKind {
    match (flags & STATE_ZERO != 0, flags & STATE_HOLE != 0) {
        (true, true) => ExtentKind::Hole,
        (true, false) => ExtentKind::Zero,
        (false, _) => ExtentKind::Data,
    }
}

impl Outcome {
    /// The part for `wanted` of an answer for `asked`, which is `wanted` in whole blocks.
    pub fn part(self, asked: &Range<u64>, wanted: &Range<u64>) -> Outcome {
        let skip = wanted.start.saturating_sub(asked.start);
        let len = wanted.end - wanted.start;
        match self {
            Outcome::Data(data) => {
                let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(data.len());
                Outcome::Data(data.slice(place(skip)..place(skip.saturating_add(len))))
            }
            Outcome::Extents(extents) => {
                let mut at = 0;
                let cut = extents.into_iter().filter_map(|extent| {
                    let (start, end) = (at, at + extent.len);
                    at = end;
                    let part = start.max(skip)..end.min(skip.saturating_add(len));
                    (!part.is_empty()).then(|| Extent { len: part.end - part.start, kind: extent.kind })
                });
                Outcome::Extents(cut.collect())
            }
            Outcome::Failed(failure) => {
                let offset = failure.offset.clamp(wanted.start, wanted.end.saturating_sub(1).max(wanted.start));
                Outcome::Failed(Failure { offset, ..failure })
            }
        }
    }
}

/// `range` in whole blocks of the server's, cut to what a request can say.
pub(super) fn status_range(range: Range<u64>, block: u32, compact: bool) -> Range<u64> {
    let block = u64::from(block.max(1));
    let whole = whole_blocks(range, block);
    let max = u64::from(u32::MAX);
    if compact && whole.end - whole.start > max { whole.start..whole.start + (max - max % block) } else { whole }
}
