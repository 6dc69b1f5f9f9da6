//! Requests of every kind, in every style, right and wrong.

use crate::disk::{CLUSTER, DELTA, Disk, Shelf, locked};
use crate::raw::{Raw, patient};
use crate::{Local, run, until};
use anyhow::{Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use coppice_nbd::proto::*;
use coppice_nbd::server::{BASE_ALLOCATION, Identity, Limits, Source, SourceError};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::io::AsyncReadExt;

const STYLES: [Style; 3] = [Style::Simple, Style::Structured, Style::Extended];
const NONE: CommandFlags = CommandFlags::NONE;

/// A server with one export, "disk", for everybody here.
fn local(disk: &Arc<impl Source>) -> Result<Local> {
    local_with(disk, Limits::default())
}

fn local_with(disk: &Arc<impl Source>, limits: Limits) -> Result<Local> {
    Local::with(Shelf::default().with("disk", disk, &[Identity::Local]), limits)
}

async fn connect(local: &Local, style: Style) -> Result<Raw> {
    let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
    raw.go("disk").await?;
    Ok(raw)
}

#[test]
fn reads_are_what_is_there() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(48));
        let content = disk.content();
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            let all = content.len();
            for (start, length) in
                [(0, 1), (0, all), (511, 513), (all - 1, 1), (CLUSTER - 1, 2 * CLUSTER), (5, 1 << 20)]
            {
                let reply = raw.read(start as u64, length as u64).await?;
                ensure!(reply.error.is_none(), "{style:?} {start}+{length}: {:?}", reply.error);
                ensure!(reply.bytes() == content[start..start + length], "{style:?} {start}+{length}");
                if style == Style::Simple {
                    continue;
                }
                // In pieces that end at multiples of their size, one after the other.
                let mut at = start as u64;
                for (offset, data) in &reply.data {
                    ensure!(*offset == at && data.len() <= 512 << 10);
                    at += data.len() as u64;
                    ensure!(at == (start + length) as u64 || at.is_multiple_of(512 << 10));
                }
                let whole = raw.ask(Command::READ, CommandFlags::DF, start as u64, length as u64).await?;
                ensure!(whole.data.len() == 1 && whole.bytes() == reply.bytes(), "a read that must not be cut");
            }
        }
        until("nobody holds what was sent", || disk.held.now.load(SeqCst) == 0).await
    })
}

#[test]
fn answers_come_in_any_order() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(8) });
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            let slow = raw.request(Command::READ, NONE, 0, 512).await?;
            let quick = raw.request(Command::READ, NONE, CLUSTER as u64, 1024).await?;
            ensure!(raw.reply(1024).await?.cookie == quick, "the quick one waits for the slow one");
            disk.gate.add_permits(1);
            ensure!(raw.reply(512).await?.cookie == slow);
        }
        Ok(())
    })
}

#[test]
fn more_requests_than_places_are_all_answered() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(16));
        let content = disk.content();
        let local = local_with(&disk, Limits { requests_in_flight_max: 4, ..Limits::default() })?;
        let raw = connect(&local, Style::Structured).await?;
        let Raw { io, .. } = raw;
        let (from, to) = tokio::io::split(io);
        let writer = tokio::spawn(async move {
            let mut raw = Raw::new(tokio::io::join(tokio::io::empty(), to));
            raw.style = Style::Structured;
            for n in 0..500_u64 {
                // Inside a piece, so that every reply is one chunk.
                raw.request(Command::READ, NONE, n * 2048, 1999).await?;
            }
            Ok::<_, anyhow::Error>(raw)
        });
        let mut raw = Raw::new(tokio::io::join(from, tokio::io::sink()));
        raw.style = Style::Structured;
        let mut seen = Vec::new();
        for _ in 0..500 {
            let reply = raw.reply(0).await?;
            let (offset, _) = reply.data[0];
            let at = usize::try_from(offset)?;
            ensure!(reply.bytes() == content[at..at + 1999]);
            seen.push(reply.cookie);
        }
        seen.sort_unstable();
        seen.dedup();
        ensure!(seen.len() == 500, "each of them once");
        writer.await??;
        Ok(())
    })
}

#[test]
fn an_error_is_where_it_is() -> Result<()> {
    run(async {
        let bad = (700 << 10) + 77;
        let disk = Arc::new(Disk { bad: Some(bad), ..Disk::sparse(32) });
        let content = disk.content();
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            for flags in [NONE, CommandFlags::DF] {
                if style == Style::Simple && flags != NONE {
                    continue;
                }
                let reply = raw.ask(Command::READ, flags, 0, 1 << 20).await?;
                if style == Style::Simple {
                    ensure!(reply.error == Some((ErrorCode::EIO, String::new(), None)) && reply.data.is_empty());
                } else {
                    let scratched = "the medium is scratched".to_owned();
                    ensure!(reply.error == Some((ErrorCode::EIO, scratched, Some(bad))), "{:?}", reply.error);
                    // What came before the piece that failed is good, and nothing else was sent.
                    let before = if flags == NONE { 512 << 10 } else { 0 };
                    ensure!(reply.bytes() == content[..before]);
                }
            }
            ensure!(raw.read(bad + 1, 4096).await?.error.is_none(), "the connection goes on");
        }
        Ok(())
    })
}

#[test]
fn a_short_read_is_an_error() -> Result<()> {
    run(async {
        let local = local(&Arc::new(Disk { short: true, ..Disk::sparse(4) }))?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            let reply = raw.read(0, 4096).await?;
            ensure!(reply.code() == ErrorCode::EIO && reply.data.is_empty(), "{reply:?}");
        }
        Ok(())
    })
}

#[test]
fn status_says_what_the_source_knows() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(9));
        let local = local(&disk)?;
        let cluster = CLUSTER as u64;
        for style in [Style::Structured, Style::Extended] {
            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            ensure!(raw.contexts("disk", &[BASE_ALLOCATION, DELTA]).await? == [0, 1]);
            raw.go("disk").await?;
            let reply = raw.ask(Command::BLOCK_STATUS, NONE, 512, 4 * cluster).await?;
            let data = |length| Extent { length, flags: 0 };
            let hole = |length| Extent { length, flags: STATE_HOLE | STATE_ZERO };
            let delta = |length| Extent { length, flags: 1 };
            // Two clusters of data, a hole, data: cut to the range, equal neighbours put together.
            let allocation = vec![data(2 * cluster - 512), hole(cluster), data(cluster + 512)];
            let changed = vec![delta(2 * cluster - 512), data(cluster), delta(cluster + 512)];
            ensure!(reply.status == [(0, allocation), (1, changed)], "{reply:?}");
            let reply = raw.ask(Command::BLOCK_STATUS, CommandFlags::REQ_ONE, 2 * cluster + 1, 7 * cluster - 1).await?;
            ensure!(reply.status == [(0, vec![hole(cluster - 1)]), (1, vec![data(cluster - 1)])], "{reply:?}");

            // Only some of the contexts.
            let payload = |ids: &[u32]| {
                let mut out = Vec::new();
                StatusPayload { length: cluster, contexts: ids.to_vec() }.encode(&mut out);
                out
            };
            let mut some = async |ids: &[u32]| {
                let payload = payload(ids);
                let len = payload.len() as u64;
                raw.request_with(Command::BLOCK_STATUS, CommandFlags::PAYLOAD_LEN, 0, len, &payload).await?;
                raw.reply(0).await
            };
            if style == Style::Extended {
                ensure!(some(&[1]).await?.status == [(1, vec![delta(cluster)])]);
                ensure!(some(&[1, 0]).await?.status.len() == 2);
                for wrong in [&[][..], &[2], &[1, 1], &[0; 100]] {
                    let reply = some(wrong).await?;
                    ensure!(reply.code() == ErrorCode::EINVAL, "{wrong:?}: {reply:?}");
                }
            }
            ensure!(raw.read(0, 512).await?.error.is_none(), "the connection goes on");
        }
        Ok(())
    })
}

#[test]
fn what_is_not_known_is_no_hole() -> Result<()> {
    run(async {
        let unknown = 3 * CLUSTER as u64;
        let lost = Arc::new(Disk { unknown_from: Some(unknown), ..Disk::sparse(9) });
        let silent = Arc::new(Disk { silent: true, ..Disk::sparse(9) });
        let exports =
            Shelf::default().with("lost", &lost, &[Identity::Local]).with("silent", &silent, &[Identity::Local]);
        let local = Local::start(exports)?;
        for style in [Style::Structured, Style::Extended] {
            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            raw.contexts("lost", &[BASE_ALLOCATION]).await?;
            raw.go("lost").await?;
            ensure!(raw.ask(Command::BLOCK_STATUS, NONE, 0, unknown).await?.error.is_none());
            let reply = raw.ask(Command::BLOCK_STATUS, NONE, 0, unknown + 1).await?;
            let why = "the map cannot be read".to_owned();
            ensure!(reply.error == Some((ErrorCode::EIO, why, Some(unknown))) && reply.status.is_empty(), "{reply:?}");

            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            raw.contexts("silent", &[BASE_ALLOCATION]).await?;
            raw.go("silent").await?;
            let reply = raw.ask(Command::BLOCK_STATUS, NONE, 0, 512).await?;
            ensure!(reply.code() == ErrorCode::EIO && reply.status.is_empty(), "{reply:?}");
        }
        Ok(())
    })
}

/// Larger than 32 bits can say.
struct Desert;

#[async_trait]
impl Source for Desert {
    fn size_bytes(&self) -> u64 {
        1 << 50
    }
    fn contexts(&self) -> Vec<String> {
        vec![BASE_ALLOCATION.to_owned()]
    }
    async fn read(&self, _offset: u64, length: u32) -> Result<Bytes, SourceError> {
        Ok(vec![0; length as usize].into())
    }
    async fn status(&self, _: &str, offset: u64, _: u64, _: usize) -> Result<Vec<Extent>, SourceError> {
        Ok(vec![Extent { length: (1 << 50) - offset, flags: STATE_HOLE | STATE_ZERO }])
    }
}

#[test]
fn extended_headers_know_64_bits() -> Result<()> {
    run(async {
        let local = local(&Arc::new(Desert))?;
        for (style, asked) in [(Style::Structured, u64::from(u32::MAX)), (Style::Extended, 1 << 49)] {
            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            raw.contexts("disk", &[BASE_ALLOCATION]).await?;
            raw.go("disk").await?;
            let reply = raw.ask(Command::BLOCK_STATUS, NONE, 1 << 48, asked).await?;
            ensure!(reply.status == [(0, vec![Extent { length: asked, flags: 3 }])], "{reply:?}");
            ensure!(raw.ask(Command::CACHE, NONE, 0, asked).await?.error.is_none());
            let large = raw.read(0, (32 << 20) + 1).await?;
            ensure!(large.code() == ErrorCode::EOVERFLOW, "{large:?}");
            ensure!(raw.read((1 << 50) - 1, 1).await?.bytes() == [0]);
        }
        let mut raw = connect(&local, Style::Simple).await?;
        ensure!(raw.read(0, (32 << 20) + 1).await?.code() == ErrorCode::EINVAL);
        ensure!(raw.read(1 << 40, 32 << 20).await?.bytes().len() == 32 << 20);
        Ok(())
    })
}

#[test]
fn nothing_is_done_beyond_the_end_or_within_a_block() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { block: 4096, ..Disk::writable(4) });
        let before = disk.content();
        let size = before.len() as u64;
        let local = local(&disk)?;
        let ranges =
            [(size - 4096, 8192), (size, 4096), (size + 4096, 4096), (u64::MAX - 4095, 4096), (1 << 63, 1 << 31)];
        for style in STYLES {
            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            if style != Style::Simple {
                raw.contexts("disk", &[BASE_ALLOCATION]).await?;
            }
            raw.go("disk").await?;
            for (offset, length) in ranges {
                for command in [Command::READ, Command::TRIM, Command::CACHE, Command::BLOCK_STATUS] {
                    let reply = raw.ask(command, NONE, offset, length).await?;
                    ensure!(reply.code() == ErrorCode::EINVAL, "{style:?} {command:?} {offset}+{length}: {reply:?}");
                }
                // What writes has a value of its own for the end.
                let reply = raw.ask(Command::WRITE_ZEROES, NONE, offset, length).await?;
                ensure!(reply.code() == ErrorCode::ENOSPC, "{reply:?}");
                if length <= 8192 {
                    let reply = raw.write(NONE, offset, &vec![9; length as usize]).await?;
                    ensure!(reply.code() == ErrorCode::ENOSPC, "{reply:?}");
                }
            }
            for (offset, length) in [(1, 4096), (0, 4095), (512, 512), (512, 3584)] {
                for command in [Command::READ, Command::TRIM, Command::CACHE, Command::WRITE_ZEROES] {
                    let reply = raw.ask(command, NONE, offset, length).await?;
                    ensure!(reply.code() == ErrorCode::EINVAL, "{command:?} {offset}+{length}: {reply:?}");
                }
                ensure!(raw.write(NONE, offset, &vec![9; length as usize]).await?.code() == ErrorCode::EINVAL);
            }
            ensure!(raw.read(0, 4096).await?.bytes() == before[..4096], "the connection goes on");
        }
        ensure!(disk.content() == before, "something was written");
        let seen = locked(&disk.seen).clone();
        ensure!(seen.is_empty(), "the source was asked: {seen:?}");
        Ok(())
    })
}

#[test]
fn a_read_only_export_is_not_written() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(4));
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            for command in [Command::TRIM, Command::WRITE_ZEROES] {
                ensure!(raw.ask(command, NONE, 0, 4096).await?.code() == ErrorCode::EPERM, "{command:?}");
            }
            // The payload is read away, whatever flags it comes with.
            for (flags, length) in [(NONE, 4096), (CommandFlags::FUA, 1), (NONE, 1 << 20)] {
                let reply = raw.write(flags, 0, &vec![9; length]).await?;
                ensure!(reply.code() == ErrorCode::EPERM, "{reply:?}");
            }
            ensure!(raw.ask(Command::FLUSH, NONE, 0, 0).await?.error.is_none());
            ensure!(raw.read(0, 4096).await?.bytes() == disk.content()[..4096], "the connection goes on");
        }
        ensure!(locked(&disk.seen).is_empty(), "something reached the source");
        Ok(())
    })
}

#[test]
fn writes_reach_the_source_as_they_were_meant() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::writable(16));
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            locked(&disk.seen).clear();
            ensure!(raw.write(NONE, 100, b"hello").await?.error.is_none());
            ensure!(raw.write(CommandFlags::FUA, 4096, &[7; 700_000]).await?.error.is_none());
            ensure!(raw.read(100, 5).await?.bytes() == b"hello");
            ensure!(raw.read(4096, 700_000).await?.bytes() == [7; 700_000]);
            let zeroes = CommandFlags::NO_HOLE | CommandFlags::FUA;
            ensure!(raw.ask(Command::WRITE_ZEROES, zeroes, 100, 5).await?.error.is_none());
            ensure!(raw.read(100, 5).await?.bytes() == [0; 5]);
            // This value only where a client asked whether it is fast.
            let fast = raw.ask(Command::WRITE_ZEROES, CommandFlags::FAST_ZERO, 0, 512).await?;
            ensure!(fast.code() == ErrorCode::ENOTSUP, "{fast:?}");
            ensure!(raw.ask(Command::TRIM, CommandFlags::FUA, 0, 512).await?.code() == ErrorCode::EIO);
            ensure!(raw.ask(Command::CACHE, NONE, 512, 1024).await?.error.is_none());
            ensure!(raw.ask(Command::FLUSH, NONE, 0, 0).await?.error.is_none());
            let seen = locked(&disk.seen).clone();
            let expected = [
                "write 100+5 fua=false",
                "write 4096+700000 fua=true",
                "zero 100+5 ZeroMode { no_hole: true, fast: false, fua: true }",
                "zero 0+512 ZeroMode { no_hole: false, fast: true, fua: false }",
                "trim 0+512 fua=true",
                "prefetch 512+1024",
                "flush",
            ];
            ensure!(seen == expected, "{seen:#?}");
        }
        Ok(())
    })
}

#[test]
fn what_makes_no_sense_is_refused_and_the_connection_goes_on() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::writable(4));
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            for command in [Command::RESIZE, Command(9), Command(0xffff)] {
                ensure!(raw.ask(command, NONE, 0, 0).await?.code() == ErrorCode::EINVAL, "{command:?}");
            }
            let wrong = [
                (Command::READ, CommandFlags::NO_HOLE, 0, 512),
                (Command::READ, CommandFlags(1 << 9), 0, 512),
                (Command::TRIM, CommandFlags::DF, 0, 512),
                (Command::CACHE, CommandFlags::REQ_ONE, 0, 512),
                (Command::FLUSH, NONE, 0, 512),
                (Command::FLUSH, NONE, 512, 0),
                (Command::BLOCK_STATUS, NONE, 0, 512),
            ];
            for (command, flags, offset, length) in wrong {
                let reply = raw.ask(command, flags, offset, length).await?;
                ensure!(reply.code() == ErrorCode::EINVAL, "{style:?} {command:?} {flags:?}: {reply:?}");
            }
            match style {
                Style::Simple => {
                    let cut = raw.ask(Command::READ, CommandFlags::DF, 0, 512).await?;
                    ensure!(cut.code() == ErrorCode::EINVAL, "nothing is ever cut: {cut:?}");
                }
                Style::Structured => {}
                Style::Extended => {
                    let bare = raw.ask(Command::WRITE, NONE, 0, 512).await?;
                    ensure!(bare.code() == ErrorCode::EINVAL, "a write without payload: {bare:?}");
                    // A payload where none belongs is read away.
                    raw.request_with(Command::READ, CommandFlags::PAYLOAD_LEN, 0, 9, b"123456789").await?;
                    ensure!(raw.reply(0).await?.code() == ErrorCode::EINVAL);
                }
            }
            ensure!(raw.read(0, 512).await?.bytes().len() == 512);
        }
        Ok(())
    })
}

#[test]
fn requests_for_nothing_do_nothing() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::writable(4));
        let size = disk.size_bytes();
        let local = local(&disk)?;
        for style in STYLES {
            let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
            if style != Style::Simple {
                raw.contexts("disk", &[BASE_ALLOCATION]).await?;
            }
            raw.go("disk").await?;
            for offset in [0, 17, size] {
                for command in [Command::READ, Command::TRIM, Command::CACHE, Command::WRITE_ZEROES] {
                    let reply = raw.ask(command, NONE, offset, 0).await?;
                    ensure!(reply.error.is_none() && reply.bytes().is_empty(), "{command:?}: {reply:?}");
                }
                ensure!(raw.write(NONE, offset, &[]).await?.error.is_none());
                ensure!(raw.ask(Command::BLOCK_STATUS, NONE, offset, 0).await?.code() == ErrorCode::EINVAL);
            }
        }
        ensure!(locked(&disk.seen).is_empty());
        Ok(())
    })
}

#[test]
fn payloads_have_a_limit() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::writable(40));
        let limits = Limits { request_bytes_max: 1 << 20, ..Limits::default() };
        let local = local_with(&disk, limits)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            // More than we want, but no attack: read away.
            let reply = raw.write(NONE, 0, &vec![1; (1 << 20) + 1]).await?;
            ensure!(reply.code() == ErrorCode::EINVAL, "{reply:?}");
            ensure!(raw.write(NONE, 0, &vec![1; 1 << 20]).await?.error.is_none());
            let flags = NONE.with(CommandFlags::PAYLOAD_LEN, style == Style::Extended);
            raw.request(Command::WRITE, flags, 0, (32 << 20) + 1).await?;
            raw.closed().await?;
        }
        let mut raw = connect(&local, Style::Extended).await?;
        raw.request(Command::BLOCK_STATUS, CommandFlags::PAYLOAD_LEN, 0, u64::MAX).await?;
        raw.closed().await
    })
}

#[test]
fn what_is_no_request_ends_the_connection() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(4));
        let local = local(&disk)?;
        for style in STYLES {
            let mut good = Vec::new();
            let request = Request { cookie: 1, command: Command::READ, flags: NONE, offset: 0, length: 512 };
            let other = if style == Style::Extended { Style::Simple } else { Style::Extended };
            request.encode(other, &mut good)?;
            good.resize(REQUEST_HEADER_BYTES_MAX, 0);
            for bytes in [good, vec![0; 64], b"GET / HTTP/1.1\r\nHost: example\r\n\r\n1234".to_vec()] {
                let mut raw = connect(&local, style).await?;
                ensure!(raw.read(0, 512).await?.error.is_none());
                raw.send(&bytes).await?;
                raw.closed().await?;
            }
        }
        until("no connection is left", || local.server.connections().is_empty()).await
    })
}

#[test]
fn half_a_request_is_not_waited_for() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::writable(4));
        let limits = Limits { stall_max: Duration::from_millis(300), ..Limits::default() };
        let local = local_with(&disk, limits)?;
        let mut idle = connect(&local, Style::Structured).await?;
        let mut header = connect(&local, Style::Structured).await?;
        header.send(&[0x25, 0x60, 0x95]).await?;
        let mut payload = connect(&local, Style::Structured).await?;
        payload.request_with(Command::WRITE, NONE, 0, 4096, &[1; 4095]).await?;
        header.closed().await?;
        payload.closed().await?;
        // Who says nothing at all is let be.
        ensure!(idle.read(0, 512).await?.error.is_none());
        ensure!(locked(&disk.seen).is_empty());
        Ok(())
    })
}

/// DISC, the end of the stream, a close in the middle: what is in flight is done all the same.
#[test]
fn leaving_is_not_losing() -> Result<()> {
    run(async {
        for how in ["disc", "half-close"] {
            let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(4) });
            let local = local(&disk)?;
            let mut raw = connect(&local, Style::Structured).await?;
            let cookie = raw.request(Command::READ, NONE, 0, 4096).await?;
            patient(disk.waiting.notified()).await?;
            if how == "disc" {
                raw.request(Command::DISC, NONE, 0, 0).await?;
            } else {
                tokio::io::AsyncWriteExt::shutdown(&mut raw.io).await?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            disk.gate.add_permits(1);
            let reply = raw.reply(0).await?;
            ensure!(reply.cookie == cookie && reply.bytes().len() == 4096, "{how}");
            raw.closed().await?;
            until("the connection is gone", || local.server.connections().is_empty()).await?;
        }
        Ok(())
    })
}

#[test]
fn a_client_that_goes_in_mid_reply_takes_nothing_with_it() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(256));
        let limits = Limits {
            request_bytes_max: 16 << 20,
            connection_bytes_max: 16 << 20,
            total_bytes_max: 16 << 20,
            ..Limits::default()
        };
        let local = local_with(&disk, limits)?;
        for style in STYLES {
            for _ in 0..5 {
                let mut raw = connect(&local, style).await?;
                for _ in 0..3 {
                    raw.request(Command::READ, NONE, 0, 16 << 20).await?;
                }
                let mut some = [0; 100_000];
                patient(raw.io.read_exact(&mut some)).await??;
            }
        }
        until("no connection is left", || local.server.connections().is_empty()).await?;
        until("no memory is held", || disk.held.now.load(SeqCst) == 0).await?;
        // The whole share is there for the next.
        let mut raw = connect(&local, Style::Simple).await?;
        ensure!(raw.read(0, 16 << 20).await?.bytes() == disk.content());
        Ok(())
    })
}

#[test]
fn a_source_that_panics_costs_its_connection() -> Result<()> {
    run(async {
        let exports = Shelf::default()
            .with("disk", &Arc::new(Disk { panics: true, ..Disk::sparse(4) }), &[Identity::Local])
            .with("good", &Arc::new(Disk::sparse(4)), &[Identity::Local]);
        let local = Local::start(exports)?;
        let mut good = Raw::unix(&local.socket).await?;
        good.go("good").await?;
        let mut raw = connect(&local, Style::Structured).await?;
        raw.request(Command::READ, NONE, 0, 512).await?;
        raw.closed().await?;
        ensure!(good.read(0, 512).await?.error.is_none());
        Ok(())
    })
}

#[test]
fn a_source_that_never_answers_is_an_error() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(24) });
        let limits = Limits { request_max: Duration::from_millis(300), ..Limits::default() };
        let local = local_with(&disk, limits)?;
        for style in STYLES {
            let mut raw = connect(&local, style).await?;
            let reply = raw.read(512, 4096).await?;
            ensure!(reply.code() == ErrorCode::EIO && reply.data.is_empty(), "{reply:?}");
            ensure!(raw.read(CLUSTER as u64, 4096).await?.error.is_none(), "the connection goes on");
        }
        Ok(())
    })
}
