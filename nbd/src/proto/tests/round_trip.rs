//! What is written reads the same.

use super::Rng;
use crate::proto::fuzzing::{fuzz_option_replies, fuzz_options, fuzz_replies, fuzz_requests};
use crate::proto::*;
use bytes::Bytes;

const SEEDS: u64 = 2000;

type Parser = fn(&[u8]);

fn option(rng: &mut Rng) -> ClientOption {
    let info = |rng: &mut Rng| InfoQuery {
        name: rng.name(4096),
        wanted: (0..rng.below(8)).map(|_| InfoKind(rng.below(6) as u16)).collect(),
    };
    let meta = |rng: &mut Rng| MetaQuery {
        name: rng.name(4096),
        queries: (0..rng.below(12)).map(|_| rng.name(4096)).collect(),
    };
    match rng.below(11) {
        0 => ClientOption::ExportName(rng.name(4096)),
        1 => ClientOption::Abort,
        2 => ClientOption::List,
        3 => ClientOption::StartTls,
        4 => ClientOption::Info(info(rng)),
        5 => ClientOption::Go(info(rng)),
        6 => ClientOption::StructuredReply,
        7 => ClientOption::ListMetaContext(meta(rng)),
        8 => ClientOption::SetMetaContext(meta(rng)),
        9 => ClientOption::ExtendedHeaders,
        _ => ClientOption::Unknown(OptionCode(100 + rng.below(1000) as u32)),
    }
}

#[test]
fn options() {
    for seed in 0..SEEDS {
        let option = option(&mut Rng(seed));
        let mut out = Vec::new();
        option.encode(&mut out).unwrap();
        let (header, data) = out.split_first_chunk::<OPTION_HEADER_BYTES>().unwrap();
        let header = OptionHeader::parse(header).unwrap();
        assert_eq!((header.code, header.data_len()), (option.code(), Ok(data.len())), "seed {seed}");
        assert_eq!(ClientOption::parse(header.code, data), Ok(option), "seed {seed}");
    }
}

fn option_reply(rng: &mut Rng) -> OptionReply {
    let min_bytes = 1 << rng.below(17);
    let preferred_bytes = 512_u32.max(min_bytes) << rng.below(8);
    let max_payload_bytes = preferred_bytes.saturating_add(rng.any() as u32);
    match rng.below(8) {
        0 => OptionReply::Ack,
        1 => OptionReply::Server { name: rng.name(4096), description: rng.name(4096) },
        2 => OptionReply::Info(Info::Export { size_bytes: rng.any(), flags: TransmissionFlags(rng.next() as u16) }),
        3 => OptionReply::Info(Info::Name(rng.name(4096))),
        4 => OptionReply::Info(Info::Description(rng.name(4096))),
        5 => OptionReply::Info(Info::BlockSize(BlockSizes { min_bytes, preferred_bytes, max_payload_bytes })),
        6 => OptionReply::MetaContext { id: rng.any() as u32, name: rng.name(4096) },
        _ => OptionReply::Error { kind: OptionReplyKind(0x8000_0000 | rng.any() as u32), message: rng.name(4096) },
    }
}

#[test]
fn option_replies() {
    for seed in 0..SEEDS {
        let reply = option_reply(&mut Rng(seed));
        let mut out = Vec::new();
        reply.encode(OptionCode::INFO, &mut out).unwrap();
        let (header, data) = out.split_first_chunk::<OPTION_REPLY_HEADER_BYTES>().unwrap();
        let header = OptionReplyHeader::parse(header).unwrap();
        assert_eq!((header.kind, header.data_len()), (reply.kind(), Ok(data.len())), "seed {seed}");
        assert_eq!(OptionReply::parse(header.kind, data), Ok(reply), "seed {seed}");
    }
}

fn chunk(rng: &mut Rng, style: Style) -> Chunk {
    let wide = if style == Style::Extended { u64::MAX } else { u32::MAX.into() };
    let extent = |rng: &mut Rng| Extent { length: (rng.any() & wide).max(1), flags: rng.any() & wide };
    match rng.below(6) {
        0 => Chunk::None,
        1 => Chunk::Data { offset: rng.any(), data: (0..=rng.below(100)).map(|n| n as u8).collect() },
        2 => Chunk::Hole { offset: rng.any(), length: (rng.any() as u32).max(1) },
        3 => Chunk::Status { context: rng.any() as u32, extents: (0..=rng.below(50)).map(|_| extent(rng)).collect() },
        4 => Chunk::Error { error: ErrorCode((rng.any() as u32).max(1)), message: rng.name(4096) },
        _ => Chunk::ErrorAt { error: ErrorCode((rng.any() as u32).max(1)), message: rng.name(4096), offset: rng.any() },
    }
}

#[test]
fn chunks() {
    for seed in 0..SEEDS {
        for style in [Style::Structured, Style::Extended] {
            let mut rng = Rng(seed);
            let chunk = chunk(&mut rng, style);
            let to = ReplyTo { style, cookie: rng.any(), offset: rng.any() };
            let done = rng.below(2) == 0;
            let mut out = Vec::new();
            chunk.encode(to, done, &mut out).unwrap();
            if let Chunk::Data { data, .. } = &chunk {
                out.extend_from_slice(data);
            }
            let len = reply_header_len(style, *out.first_chunk().unwrap()).unwrap();
            let (header, payload) = out.split_at(len);
            let header = ReplyHeader::parse(style, header).unwrap();
            assert_eq!((header.cookie(), header.is_done()), (to.cookie, done), "seed {seed}");
            assert_eq!(header.payload_len(101), Ok(payload.len()), "seed {seed}");
            let again = Chunk::parse(style, chunk.kind(style), Bytes::copy_from_slice(payload));
            assert_eq!(again, Ok(chunk), "seed {seed}");
        }
    }
}

#[test]
fn requests() {
    for seed in 0..SEEDS {
        for style in [Style::Simple, Style::Extended] {
            let mut rng = Rng(seed);
            let length = rng.any();
            let request = Request {
                cookie: rng.any(),
                command: Command(rng.below(12) as u16),
                flags: CommandFlags(rng.any() as u16),
                offset: rng.any(),
                length: if style == Style::Extended { length } else { length & u64::from(u32::MAX) },
            };
            let mut out = Vec::new();
            request.encode(style, &mut out).unwrap();
            assert_eq!(out.len(), style.request_header_bytes());
            assert_eq!(Request::parse(style, &out), Ok(request), "seed {seed}");
        }
    }
}

/// The entry points of the fuzzers see whole conversations, cut and bent: they assert what a parser promises.
#[test]
fn bent_messages_harm_nobody() {
    for seed in 0..SEEDS {
        let mut rng = Rng(seed);
        let mut options = vec![0, 0, 0, 3];
        let mut replies = Vec::new();
        ServerHello { flags: HandshakeFlags::FIXED_NEWSTYLE }.encode(&mut replies);
        let style_byte = 1 + rng.below(2) as u8;
        let style = if style_byte == 1 { Style::Structured } else { Style::Extended };
        let mut chunks = vec![style_byte];
        let mut requests = vec![style_byte];
        for _ in 0..4 {
            option(&mut rng).encode(&mut options).unwrap();
            option_reply(&mut rng).encode(OptionCode::GO, &mut replies).unwrap();
            let chunk = chunk(&mut rng, style);
            chunk.encode(ReplyTo { style, cookie: 1, offset: 2 }, false, &mut chunks).unwrap();
            if let Chunk::Data { data, .. } = &chunk {
                chunks.extend_from_slice(data);
            }
            let (flags, command) = (CommandFlags(rng.any() as u16), Command(rng.below(9) as u16));
            let request = Request { cookie: 1, command, flags, offset: rng.any(), length: rng.below(20) };
            request.encode(style, &mut requests).unwrap();
            requests.extend(std::iter::repeat_n(7, request.payload_len(style) as usize));
        }
        let parsers: [(Parser, Vec<u8>); 4] = [
            (fuzz_options, options),
            (fuzz_option_replies, replies),
            (fuzz_replies, chunks),
            (fuzz_requests, requests),
        ];
        for (parser, mut message) in parsers {
            parser(&message);
            for _ in 0..rng.below(4) {
                let at = rng.below(message.len() as u64) as usize;
                message[at] = rng.next() as u8;
            }
            parser(&message);
            message.truncate(rng.below(message.len() as u64 + 1) as usize);
            parser(&message);
        }
    }
}
