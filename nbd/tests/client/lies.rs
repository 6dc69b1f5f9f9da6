//! What becomes of lies: never a wrong byte, never zeroes for data, never a wait beyond the deadline.

use super::liar::*;
use super::rig::*;
use anyhow::Result;
use coppice_nbd::client::{Config, Endpoint, Error, ExtentKind, Resolving, State};
use coppice_nbd::proto::{
    Chunk, ChunkKind, ClientOption, Command, ErrorCode, Extent, Info, OptionCode, OptionReply, Style,
    TransmissionFlags, encode_simple_reply,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const OFF: u64 = 65536 + 512;
const LEN: u32 = 8192;
const DEADLINE: Duration = Duration::from_millis(1500);

/// A lie: what it says to a request.
type Lie = fn(&Ask) -> Vec<u8>;

/// The bytes of a header with something changed.
fn changed(mut bytes: Vec<u8>, at: usize, new: &[u8]) -> Vec<u8> {
    bytes[at..at + new.len()].copy_from_slice(new);
    bytes
}

/// Where the length of a chunk is.
fn length_field(ask: &Ask, length: u32) -> (usize, Vec<u8>) {
    match ask.style {
        Style::Extended => (24, u64::from(length).to_be_bytes().to_vec()),
        _ => (16, length.to_be_bytes().to_vec()),
    }
}

fn hole(ask: &Ask, off: u64, len: u32, done: bool) -> Vec<u8> {
    chunk(ask, Chunk::Hole { offset: off, length: len }, done)
}

fn none(ask: &Ask) -> Vec<u8> {
    chunk(ask, Chunk::None, true)
}

fn other_cookie(ask: &Ask) -> Ask {
    let mut other = *ask;
    other.request.cookie ^= 0x55;
    other
}

/// Lies about data. No honest answer to a read is in any of them.
const READ_LIES: &[(&str, Lie)] = &[
    ("nothing at all, and that is all", none),
    ("another cookie", |ask| truth(&other_cookie(ask))),
    ("data of another place", |ask| data(ask, ask.request.offset + 512, ask.request.length, true)),
    ("data of another place, at our offset in the header only", |ask| {
        let mut elsewhere = *ask;
        elsewhere.request.offset += 4096;
        changed(truth(&elsewhere), 16, &ask.request.offset.to_be_bytes())
    }),
    ("the end is missing", |ask| data(ask, ask.request.offset, ask.request.length - 1, true)),
    ("the beginning is missing", |ask| data(ask, ask.request.offset + 1, ask.request.length - 1, true)),
    ("the middle is missing", |ask| {
        let (off, len) = (ask.request.offset, ask.request.length);
        [data(ask, off, len / 2 - 512, false), data(ask, off + len / 2, len / 2, true)].concat()
    }),
    ("too much", |ask| data(ask, ask.request.offset, ask.request.length + 1, true)),
    ("some of it twice", |ask| {
        let (off, len) = (ask.request.offset, ask.request.length);
        [data(ask, off, len / 2 + 1, false), data(ask, off + len / 2, len / 2, true)].concat()
    }),
    ("data, and then it is a hole", |ask| {
        let (off, len) = (ask.request.offset, ask.request.length);
        [data(ask, off, len, false), hole(ask, off, 512, true)].concat()
    }),
    ("a hole that goes beyond", |ask| hole(ask, ask.request.offset, ask.request.length as u32 + 1, true)),
    ("a hole that begins before", |ask| hole(ask, ask.request.offset - 512, ask.request.length as u32 + 512, true)),
    ("a hole of nothing", |ask| {
        let bytes = hole(ask, ask.request.offset, 1, true);
        let at = bytes.len() - 4;
        [changed(bytes, at, &[0; 4]), truth(ask)].concat()
    }),
    ("a hole at the end of everything", |ask| hole(ask, u64::MAX - 100, ask.request.length as u32, true)),
    ("an empty chunk that is not the last", |ask| [chunk(ask, Chunk::None, false), truth(ask)].concat()),
    ("a simple reply where it may not be", |ask| {
        let mut out = Vec::new();
        encode_simple_reply(ErrorCode::OK, ask.request.cookie, &mut out);
        [out, pattern(ask.request.offset, ask.request.length as u32)].concat()
    }),
    ("a chunk of a kind that nobody knows", |ask| changed(truth(ask), 6, &100u16.to_be_bytes())),
    ("a chunk without end", |ask| {
        let (at, length) = length_field(ask, u32::MAX);
        changed(truth(ask), at, &length)
    }),
    ("block status", |ask| status(ask, vec![Extent { length: ask.request.length, flags: 3 }], true)),
    ("an error that is none", |ask| {
        let error = Chunk::Error { error: ErrorCode::EIO, message: String::new() };
        let bytes = chunk(ask, error, true);
        let at = bytes.len() - 6;
        changed(bytes, at, &[0; 4])
    }),
    ("an error with a message that is longer than itself", |ask| {
        let error = Chunk::Error { error: ErrorCode::EIO, message: "x".into() };
        let bytes = chunk(ask, error, true);
        let at = bytes.len() - 3;
        changed(bytes, at, &[1, 0])
    }),
    ("an error elsewhere", |ask| {
        let (error, offset) = (ErrorCode::EIO, ask.request.offset + ask.request.length);
        chunk(ask, Chunk::ErrorAt { error, message: "bad".into(), offset }, true)
    }),
    ("a magic number that is none", |ask| changed(truth(ask), 0, &[1, 2, 3, 4])),
    ("text", |_| b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n".to_vec()),
    ("crumbs", |ask| {
        (0..ask.request.length)
            .flat_map(|n| data(ask, ask.request.offset + n, 1, n + 1 == ask.request.length))
            .collect()
    }),
];

/// Lies about what is where.
const STATUS_LIES: &[(&str, Lie)] = &[
    ("nothing at all, and that is all", none),
    ("extents of another context", |ask| {
        let extents = vec![Extent { length: ask.request.length, flags: 3 }];
        chunk(ask, Chunk::Status { context: CONTEXT + 1, extents }, true)
    }),
    ("an extent of no length", |ask| {
        let bytes = status(ask, vec![Extent { length: 512, flags: 3 }], true);
        let (at, len) = if ask.style == Style::Extended { (16, 8) } else { (8, 4) };
        let at = bytes.len() - at;
        changed(bytes, at, &[0; 8][..len])
    }),
    ("no extents", |ask| {
        let mut bytes = status(ask, vec![Extent { length: 512, flags: 3 }], true);
        let (extent, head) = if ask.style == Style::Extended { (16, 8) } else { (8, 4) };
        bytes.truncate(bytes.len() - extent);
        if ask.style == Style::Extended {
            let at = bytes.len() - 4;
            bytes = changed(bytes, at, &[0; 4]);
        }
        let (at, length) = length_field(ask, head);
        changed(bytes, at, &length)
    }),
    ("half an extent", |ask| {
        let mut bytes = status(ask, vec![Extent { length: 512, flags: 3 }; 2], true);
        let half = if ask.style == Style::Extended { 8 } else { 4 };
        let length = if ask.style == Style::Extended { 8 + 24 } else { 4 + 12 };
        bytes.truncate(bytes.len() - half);
        let (at, length) = length_field(ask, length);
        changed(bytes, at, &length)
    }),
    ("extents behind the end", |ask| {
        let length = ask.request.length;
        status(ask, vec![Extent { length, flags: 3 }, Extent { length, flags: 3 }], true)
    }),
    ("twice", |ask| {
        let extents = vec![Extent { length: ask.request.length, flags: 3 }];
        [status(ask, extents.clone(), false), status(ask, extents, true)].concat()
    }),
    ("extents without end", |ask| {
        let bytes = status(ask, vec![Extent { length: 1, flags: 3 }; 1000], true);
        let (at, length) = length_field(ask, 64 << 20);
        changed(bytes, at, &length)
    }),
    ("a chunk of the other style", |ask| {
        let other = if ask.style == Style::Extended { ChunkKind::BLOCK_STATUS } else { ChunkKind::BLOCK_STATUS_EXT };
        let bytes = status(ask, vec![Extent { length: ask.request.length, flags: 3 }], true);
        changed(bytes, 6, &other.0.to_be_bytes())
    }),
    ("data", |ask| data(ask, ask.request.offset, ask.request.length.min(4096), true)),
    ("a hole", |ask| hole(ask, ask.request.offset, ask.request.length as u32, true)),
    ("that all is well, in a simple reply", |ask| {
        let mut out = Vec::new();
        encode_simple_reply(ErrorCode::OK, ask.request.cookie, &mut out);
        out
    }),
    ("a header for another offset", |ask| {
        let mut elsewhere = *ask;
        elsewhere.request.offset += 4096;
        match ask.style {
            Style::Extended => truth(&elsewhere),
            _ => truth(&other_cookie(ask)),
        }
    }),
];

fn liar_config(liar: &Liar) -> Config {
    Config { readahead_bytes: 0, ..config("", Endpoint::tcp(liar.address)) }
}

/// An error because of the lie, in time.
#[track_caller]
fn caught<T: std::fmt::Debug>(result: Result<T, Error>, since: Instant, what: &str, style: Style) {
    assert!(
        matches!(result, Err(Error::Protocol { .. } | Error::TimedOut { .. })),
        "{style:?}, {what}: it was answered with {result:?}"
    );
    took(since, Duration::ZERO);
}

#[test]
fn no_lie_about_data_is_believed() -> Result<()> {
    for style in [Style::Structured, Style::Extended] {
        for (what, lie) in READ_LIES {
            let lie = *lie;
            let liar = Liar::start(Script::new(style, move |ask| Say::Bytes(lie(ask))))?;
            let remote = remote(liar_config(&liar));
            let start = Instant::now();
            caught(wait(remote.read_by(OFF, LEN, start + DEADLINE)), start, what, style);
            assert_eq!(remote.counters().bytes_read, 0, "{what}");
        }
    }
    Ok(())
}

#[test]
fn who_lies_twice_and_then_speaks_the_truth_is_heard() -> Result<()> {
    for style in [Style::Structured, Style::Extended] {
        for (what, lie) in READ_LIES {
            let lie = *lie;
            let script = Script::new(style, move |ask| match ask.connection {
                0 | 1 => Say::Bytes(lie(ask)),
                _ => Say::Truth,
            });
            let liar = Liar::start(script)?;
            // A length that is not kept to looks like silence.
            let remote = remote(Config { silence: Duration::from_millis(50), ..liar_config(&liar) });
            let read = wait(remote.read(OFF, LEN)).map_err(|e| anyhow::anyhow!("{style:?}, {what}: {e}"))?;
            assert!(read == pattern(OFF, LEN), "{what}");
            assert!(liar.connections() >= 3, "{what}: it was believed");
        }
    }
    Ok(())
}

#[test]
fn no_lie_about_holes_is_believed() -> Result<()> {
    for style in [Style::Structured, Style::Extended] {
        for (what, lie) in STATUS_LIES {
            let lie = *lie;
            let liar = Liar::start(Script::new(style, move |ask| match ask.request.command {
                Command::BLOCK_STATUS => Say::Bytes(lie(ask)),
                _ => Say::Truth,
            }))?;
            let remote = remote(liar_config(&liar));
            let start = Instant::now();
            caught(wait(remote.status_by(OFF, 65536, start + DEADLINE)), start, what, style);
            // It does not lie about data.
            assert!(wait(remote.read(OFF, LEN))? == pattern(OFF, LEN), "{what}");
        }
    }
    Ok(())
}

#[test]
fn what_is_true_is_believed_in_every_style() -> Result<()> {
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let liar = Liar::start(Script::new(style, |_| Say::Truth))?;
        let remote = remote(Config { readahead_bytes: 65536, ..liar_config(&liar) });
        assert!(wait(remote.read(OFF, LEN))? == pattern(OFF, LEN));
        assert!(wait(remote.read(3, (SIZE - 3) as u32))? == pattern(3, (SIZE - 3) as u32));
        let status = wait(remote.status(OFF, 65536))?;
        assert!(matches!(status[..], [extent] if extent.len == 65536 && extent.kind == ExtentKind::Data));
        assert_eq!(remote.counters().violations, 0);
        // One connection, and a few more for the large read.
        assert!(liar.connections() <= 4);
    }
    Ok(())
}

#[test]
fn pieces_in_any_order_between_those_of_others() -> Result<()> {
    // Answers to two requests at once, piece by piece, backwards, the holes among them real ones.
    let first = std::sync::Mutex::new(None::<Ask>);
    let script = Script::new(Style::Structured, move |ask| {
        let Ok(mut first) = first.lock() else { return Say::Nothing };
        let Some(other) = first.take() else {
            *first = Some(*ask);
            return Say::Nothing;
        };
        let mut bytes = Vec::new();
        for n in (0..8).rev() {
            for ask in [&other, ask] {
                bytes.extend(data(ask, ask.request.offset + n * 1024, 1024, false));
            }
        }
        bytes.extend(none(ask));
        bytes.extend(none(&other));
        Say::Bytes(bytes)
    });
    let liar = Liar::start(script)?;
    let remote = remote(Config { connections: 1, ..liar_config(&liar) });
    for (read, off) in many(&remote, &[(0, 8192), (100_000, 8192)]).into_iter().zip([0, 100_000]) {
        assert!(read? == pattern(off, 8192));
    }
    Ok(())
}

#[test]
fn answers_for_each_other_are_noticed() -> Result<()> {
    // The cookies of two requests, exchanged.
    for style in [Style::Structured, Style::Extended] {
        let first = std::sync::Mutex::new(None::<Ask>);
        let script = Script::new(style, move |ask| {
            let Ok(mut first) = first.lock() else { return Say::Nothing };
            let Some(mut other) = first.take() else {
                *first = Some(*ask);
                return Say::Nothing;
            };
            let mut ask = *ask;
            std::mem::swap(&mut ask.request.cookie, &mut other.request.cookie);
            Say::Bytes([truth(&ask), truth(&other)].concat())
        });
        let liar = Liar::start(script)?;
        let remote = remote(Config { connections: 1, timeout: DEADLINE, ..liar_config(&liar) });
        let start = Instant::now();
        for read in many(&remote, &[(0, 8192), (100_000, 8192)]) {
            caught(read, start, "answers for each other", style);
        }
    }
    Ok(())
}

#[test]
fn an_answer_that_comes_twice_ends_the_connection_and_harms_nobody() -> Result<()> {
    let liar = Liar::start(Script::new(Style::Extended, |ask| Say::Bytes([truth(ask), truth(ask)].concat())))?;
    let remote = remote(liar_config(&liar));
    for n in 0..10 {
        assert!(wait(remote.read(n * 5000, 5000))? == pattern(n * 5000, 5000));
    }
    assert!(remote.counters().violations >= 5, "{:?}", remote.counters());
    Ok(())
}

#[test]
fn who_says_nothing_or_little_is_waited_for_until_the_deadline() -> Result<()> {
    for say in [|_: &Ask| Say::Nothing, |ask: &Ask| Say::Slowly(truth(ask), Duration::from_millis(20))] {
        let liar = Liar::start(Script::new(Style::Structured, say))?;
        let remote = remote(Config { silence: Duration::from_millis(300), ..liar_config(&liar) });
        let start = Instant::now();
        let read = wait(remote.read_by(OFF, LEN, start + DEADLINE));
        assert!(matches!(read, Err(Error::TimedOut { .. })), "{read:?}");
        took(start, DEADLINE);
    }
    Ok(())
}

#[test]
fn an_export_that_changes_its_size_is_another() -> Result<()> {
    let mut script = Script::new(Style::Extended, |ask| match (ask.connection, ask.nth) {
        (0, 1) => Say::Bytes(vec![0; 64]),
        _ => Say::Truth,
    });
    script.size = |connection| if connection == 0 { SIZE } else { 2 * SIZE };
    let liar = Liar::start(script)?;
    let remote = remote(Config { connections: 1, ..liar_config(&liar) });
    assert!(wait(remote.read(OFF, LEN))? == pattern(OFF, LEN));
    let read = wait(remote.read_by(OFF, LEN, Instant::now() + DEADLINE));
    let Err(Error::TimedOut { reason, .. }) = read else { panic!("{read:?}") };
    assert!(reason.contains("another export"), "{reason}");
    assert!(matches!(remote.state(), State::Refused { .. }));
    assert_eq!(remote.size(), Some(SIZE));
    Ok(())
}

#[test]
fn errors_of_all_kinds_are_told_as_they_are() -> Result<()> {
    let script = Script::new(Style::Structured, |ask| {
        let at = ask.request.offset + 1000;
        let says = |error, message: &str, offset| Chunk::ErrorAt { error, message: message.into(), offset };
        Say::Bytes(match ask.nth {
            0 => chunk(ask, Chunk::Error { error: ErrorCode::EPERM, message: "no".into() }, true),
            // Data first, then that some of it is bad.
            1 => [
                data(ask, ask.request.offset, ask.request.length, false),
                chunk(ask, says(ErrorCode::EIO, "bad\nblock", at), true),
            ]
            .concat(),
            2 => {
                let mut out = Vec::new();
                encode_simple_reply(ErrorCode::EIO, ask.request.cookie, &mut out);
                out
            }
            // One that nobody knows is an error nevertheless.
            3 => changed(chunk(ask, Chunk::Error { error: ErrorCode(4711), message: "?".into() }, true), 6, &[0xff, 1]),
            _ => truth(ask),
        })
    });
    let liar = Liar::start(script)?;
    let remote = remote(liar_config(&liar));
    let expect = [
        (ErrorCode::EPERM, OFF, "no"),
        (ErrorCode::EIO, OFF + 1000, "bad block"),
        (ErrorCode::EIO, OFF, ""),
        (ErrorCode(4711), OFF, "?"),
    ];
    for (code, off, message) in expect {
        let read = wait(remote.read(OFF, LEN));
        let expected = Err(Error::Server { export: String::new(), off, code, message: message.to_string() });
        assert_eq!(read, expected);
    }
    assert!(wait(remote.read(OFF, LEN))? == pattern(OFF, LEN));
    assert_eq!(liar.connections(), 1, "errors are no reason to give a connection up");
    Ok(())
}

#[test]
fn nonsense_in_the_negotiation_is_away_and_ends_in_time() -> Result<()> {
    let greetings: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("text", b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec()),
        ("the old style", [&b"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53"[..], &[0; 136]].concat()),
        ("no new style that can be used", b"NBDMAGICIHAVEOPT\0\0".to_vec()),
    ];
    for (what, greeting) in greetings {
        let mut script = Script::new(Style::Extended, |_| Say::Truth);
        script.greeting = Some(greeting);
        let liar = Liar::start(script)?;
        let remote = remote(Config { handshake_timeout: Duration::from_millis(300), ..liar_config(&liar) });
        let start = Instant::now();
        let state = until(&remote, |state| *state != State::Connecting);
        assert!(away(&state), "{what}: {state:?}");
        took(start, Duration::ZERO);
        let read = wait(remote.read_by(0, 512, Instant::now() + Duration::from_millis(100)));
        assert!(matches!(read, Err(Error::TimedOut { .. })), "{what}: {read:?}");
    }
    type Option = fn(&ClientOption) -> std::option::Option<Vec<u8>>;
    let options: [(&str, Option); 6] = [
        ("answers to another option", |option| {
            let mut out = Vec::new();
            OptionReply::Ack.encode(OptionCode::LIST, &mut out).ok()?;
            matches!(option, ClientOption::Go(_)).then_some(out)
        }),
        ("an acknowledgement without a size", |option| {
            let mut out = Vec::new();
            OptionReply::Ack.encode(option.code(), &mut out).ok()?;
            matches!(option, ClientOption::Go(_)).then_some(out)
        }),
        ("answers without end", |option| {
            let mut out = Vec::new();
            let server = OptionReply::Server { name: "x".into(), description: String::new() };
            for _ in 0..10_000 {
                server.encode(option.code(), &mut out).ok()?;
            }
            Some(out)
        }),
        ("an answer that is longer than anything", |option| {
            let mut out = Vec::new();
            OptionReply::Ack.encode(option.code(), &mut out).ok()?;
            let at = out.len() - 4;
            Some(changed(out, at, &u32::MAX.to_be_bytes()))
        }),
        ("silence", |_| Some(Vec::new())),
        ("another context than asked for", |option| {
            let mut out = Vec::new();
            let context = OptionReply::MetaContext { id: 1, name: "qemu:dirty-bitmap:x".into() };
            context.encode(option.code(), &mut out).ok()?;
            OptionReply::Ack.encode(option.code(), &mut out).ok()?;
            matches!(option, ClientOption::SetMetaContext(_)).then_some(out)
        }),
    ];
    for (what, option) in options {
        let mut script = Script::new(Style::Extended, |_| Say::Truth);
        script.option = option;
        let liar = Liar::start(script)?;
        let remote = remote(Config { handshake_timeout: Duration::from_millis(300), ..liar_config(&liar) });
        let start = Instant::now();
        let state = until(&remote, |state| *state != State::Connecting);
        assert!(away(&state), "{what}: {state:?}");
        took(start, Duration::ZERO);
    }
    Ok(())
}

#[test]
fn replies_of_a_style_that_was_not_agreed_on_are_refused() -> Result<()> {
    for (agreed, other) in [
        (Style::Structured, Style::Extended),
        (Style::Extended, Style::Structured),
        (Style::Extended, Style::Simple),
        (Style::Simple, Style::Structured),
    ] {
        let liar = Liar::start(Script::new(agreed, move |ask| Say::Bytes(truth(&Ask { style: other, ..*ask }))))?;
        let remote = remote(liar_config(&liar));
        let start = Instant::now();
        caught(wait(remote.read_by(OFF, LEN, start + DEADLINE)), start, "another style", agreed);
    }
    Ok(())
}

#[test]
fn a_server_that_gives_another_export_is_refused() -> Result<()> {
    let mut script = Script::new(Style::Extended, |_| Say::Truth);
    script.option = |option| {
        let ClientOption::Go(_) = option else { return None };
        let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::READ_ONLY;
        let (export, name) = (Info::Export { size_bytes: SIZE, flags }, Info::Name("another".into()));
        let mut out = Vec::new();
        for reply in [OptionReply::Info(export), OptionReply::Info(name), OptionReply::Ack] {
            reply.encode(option.code(), &mut out).ok()?;
        }
        Some(out)
    };
    let liar = Liar::start(script)?;
    let remote = remote(Config { export: "the one".into(), ..liar_config(&liar) });
    let state = until(&remote, |state| *state != State::Connecting);
    assert!(matches!(state, State::Refused { .. }) && reason(&state).contains("\"another\""), "{state:?}");
    Ok(())
}

#[test]
fn a_resolver_may_not_know_and_may_not_answer() -> Result<()> {
    let liar = Liar::start(Script::new(Style::Extended, |_| Say::Truth))?;
    let (asked, address) = (Arc::new(AtomicUsize::new(0)), liar.address);
    let count = asked.clone();
    let resolver = Arc::new(move || {
        let n = count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            match n {
                0 => Err("nobody knows its node".to_string()),
                1 => std::future::pending().await,
                _ => Ok(Endpoint::tcp(address)),
            }
        }) as Resolving
    });
    let config = Config { resolver, connect_timeout: Duration::from_millis(200), ..liar_config(&liar) };
    let remote = remote(config);
    let state = until(&remote, away);
    assert_eq!(reason(&state), "nobody knows its node");
    let state = until(&remote, |state| reason(state).contains("not found out"));
    assert!(away(&state));
    assert!(wait(remote.read(OFF, LEN))? == pattern(OFF, LEN));
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    Ok(())
}
