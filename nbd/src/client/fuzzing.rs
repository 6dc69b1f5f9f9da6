//! Entry point for fuzzers: what a server may send to a client that has asked something. It asserts instead of answering.

use super::config::{Address, Config, Endpoint, fixed};
use super::link::replies_end;
use super::reply::Outcome;
use super::state::ExtentKind;
use super::table::{Part, Peer, Reply};
use super::{Shared, Table};
use crate::proto::{Chunk, ReplyHeader, STATE_ZERO, Style, reply_header_len};
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

const SIZE: u64 = 1 << 20;
const CONTEXT: u32 = 5;
/// What is asked: reads, and the last is for block status.
const READS: [Range<u64>; 2] = [4096..5000, 8192..8193];
const STATUS: Range<u64> = 0..65536;

/// A server's whole side of the transmission, to a client with two reads and a question for block status; the first byte
/// chooses the style. Whatever the client then has is what a second, simpler reading of the same bytes has, too.
pub fn fuzz_answers(bytes: &[u8]) {
    answers(bytes);
}

/// How many of the three were answered with what they asked for.
fn answers(bytes: &[u8]) -> usize {
    let Some((first, stream)) = bytes.split_first() else { return 0 };
    let mut answered = 0;
    let style = [Style::Simple, Style::Structured, Style::Extended][usize::from(first % 3)];
    let endpoint = Endpoint { address: Address::Unix("/nowhere".into()), identity: None };
    let config = Config { readahead_bytes: 0, connections: 1, ..Config::new("x", fixed(endpoint)) };
    let now = Instant::now();
    let shared = Shared::new(config, 0);
    let peer = Peer {
        address: Address::Unix("/nowhere".into()),
        style,
        size: SIZE,
        block: 1,
        payload_max: 1 << 20,
        context: (style != Style::Simple).then_some(CONTEXT),
        multi: false,
    };
    let (orders, mut asked) = mpsc::unbounded_channel();
    let (link, heard) = shared.with(|table| table.link_up(peer, orders, now));
    let mut reads: Vec<oneshot::Receiver<Reply>> = Vec::new();
    let mut status = None;
    shared.with(|table: &mut Table| {
        let deadline = now + Duration::from_secs(60);
        for range in READS {
            match table.read(range, deadline, now).map(|mut parts| parts.pop()) {
                Ok(Some(Part::Coming(coming))) => reads.push(coming),
                _ => panic!("a read that cannot be asked"),
            }
        }
        status = table.status(STATUS, deadline, now).ok();
    });
    // Cookies are counted up, whatever they begin with: the fuzzer says 0, 1 and 2.
    let mut cookies = Vec::new();
    while let Ok(super::table::Order::Ask(request)) = asked.try_recv() {
        cookies.push(request.cookie);
    }
    let stream = with_cookies(style, stream, &cookies);
    let expected = read_simply(style, &stream, &cookies);

    replies_end(&shared, link, style, heard, stream);

    for (n, (mut read, range)) in reads.into_iter().zip(READS).enumerate() {
        match read.try_recv() {
            Ok(Ok(Outcome::Data(data))) => {
                assert_eq!(data.len() as u64, range.end - range.start);
                assert_eq!(Some(&data[..]), expected.get(&n).map(|data| &data[..]), "read {n}");
                answered += 1;
            }
            Ok(Ok(other)) => panic!("a read was answered with {other:?}"),
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Empty) => {}
            Err(oneshot::error::TryRecvError::Closed) => panic!("a read was forgotten"),
        }
    }
    if let Some(mut status) = status
        && let Ok(Ok(outcome)) = status.try_recv()
    {
        let Outcome::Extents(extents) = outcome else { panic!("{outcome:?} for a question about holes") };
        let (mut at, told) = (0u64, expected.get(&READS.len()));
        assert!(!extents.is_empty());
        for extent in &extents {
            assert!(extent.len > 0);
            if extent.kind != ExtentKind::Data {
                // One byte of the second reading per 512.
                let Some(told) = told else { panic!("zeroes that nobody named") };
                let range = at as usize / 512..(at + extent.len).div_ceil(512) as usize;
                assert!(told.get(range).is_some_and(|told| told.contains(&1)), "zeroes that nobody named");
            }
            at += extent.len;
        }
        assert!(at <= STATUS.end);
        answered += 1;
    }
    answered
}

/// Replaces the small cookies of the fuzzer's by the real ones, where headers are to be expected.
fn with_cookies(style: Style, stream: &[u8], cookies: &[u64]) -> Vec<u8> {
    let mut out = stream.to_vec();
    let mut at = 0;
    while let Some((header, len)) = header_at(style, &out, at) {
        let said = header.cookie();
        if let Some(real) = usize::try_from(said).ok().and_then(|n| cookies.get(n)) {
            let place = at + 8;
            if let Some(bytes) = out.get_mut(place..place + 8) {
                bytes.copy_from_slice(&real.to_be_bytes());
            }
        }
        let follows = match header {
            ReplyHeader::Simple { error, .. } if style == Style::Simple && error.is_ok() => usize::try_from(said)
                .ok()
                .and_then(|n| READS.get(n))
                .map_or(0, |range| (range.end - range.start) as usize),
            ReplyHeader::Simple { .. } => 0,
            ReplyHeader::Chunk { length, .. } => usize::try_from(length).unwrap_or(usize::MAX),
        };
        at = at.saturating_add(len).saturating_add(follows);
    }
    out
}

fn header_at(style: Style, stream: &[u8], at: usize) -> Option<(ReplyHeader, usize)> {
    let rest = stream.get(at..)?;
    let len = reply_header_len(style, *rest.first_chunk()?).ok()?;
    Some((ReplyHeader::parse(style, rest.get(..len)?).ok()?, len))
}

/// What comes for each question, read byte by byte: only what is complete, and was sent once.
fn read_simply(style: Style, stream: &[u8], cookies: &[u64]) -> HashMap<usize, Vec<u8>> {
    let mut done = HashMap::new();
    let mut open: HashMap<usize, (Vec<Option<u8>>, bool)> = HashMap::new();
    let mut at = 0;
    while let Some((header, len)) = header_at(style, stream, at) {
        at += len;
        let Some(n) = cookies.iter().position(|cookie| *cookie == header.cookie()) else { break };
        let range = READS.get(n).cloned();
        let size = range.as_ref().map_or(STATUS.end as usize / 512, |range| (range.end - range.start) as usize);
        let (bytes, failed) = open.entry(n).or_insert_with(|| (vec![None; size], false));
        let mut set = |from: u64, data: &[u8]| {
            let start = from - range.as_ref().map_or(0, |range| range.start);
            for (place, byte) in data.iter().enumerate() {
                match bytes.get_mut(start.saturating_add(place as u64) as usize) {
                    Some(known @ None) => *known = Some(*byte),
                    _ => *failed = true,
                }
            }
        };
        match header {
            ReplyHeader::Simple { error, .. } if !error.is_ok() => *failed = true,
            ReplyHeader::Simple { .. } => {
                let (Some(data), Some(range)) = (stream.get(at..at + size), READS.get(n)) else { break };
                at += size;
                set(range.start, data);
            }
            ReplyHeader::Chunk { kind, length, .. } => {
                let Some(payload) = usize::try_from(length).ok().and_then(|len| stream.get(at..)?.get(..len)) else {
                    break;
                };
                at += payload.len();
                match Chunk::parse(style, kind, Bytes::copy_from_slice(payload)) {
                    Ok(Chunk::Data { offset, data }) if n < READS.len() && offset >= READS[n].start => {
                        set(offset, &data)
                    }
                    Ok(Chunk::Hole { offset, length }) if n < READS.len() && offset >= READS[n].start => {
                        set(offset, &vec![0; (length as usize).min(SIZE as usize)]);
                    }
                    Ok(Chunk::Status { extents, .. }) if n == READS.len() => {
                        let mut begin = 0u64;
                        for extent in extents {
                            let end = begin.saturating_add(extent.length).min(STATUS.end);
                            for unit in begin / 512..end.div_ceil(512) {
                                let zero = u8::from(extent.flags & STATE_ZERO != 0);
                                let known = &mut bytes[unit as usize];
                                *known = Some(known.unwrap_or(0).max(zero));
                            }
                            begin = end;
                        }
                    }
                    Ok(Chunk::None) => {}
                    _ => *failed = true,
                }
            }
        }
        if header.is_done() {
            let Some((bytes, failed)) = open.remove(&n) else { break };
            // An answer that comes a second time is none.
            if n < READS.len() {
                if let Some(all) = bytes.into_iter().collect::<Option<Vec<u8>>>().filter(|_| !failed) {
                    done.entry(n).or_insert(all);
                }
            } else if !failed {
                done.entry(n).or_insert_with(|| bytes.into_iter().map(|byte| byte.unwrap_or(0)).collect());
            }
        }
    }
    done
}

#[cfg(test)]
mod tests {
    /// The seeds reach what they are for.
    #[test]
    fn honest_seeds_are_answers() -> anyhow::Result<()> {
        let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/seeds/nbd_answers");
        // A server without block status: that question is answered without asking.
        for (seed, answers) in [("simple", 3), ("structured", 3), ("extended", 3), ("extended_errors", 0)] {
            assert_eq!(super::answers(&std::fs::read(format!("{seeds}/{seed}"))?), answers, "{seed}");
        }
        Ok(())
    }
}
