//! What is answered before transmission, and to whom.

use crate::disk::{DELTA, Disk, Shelf, certified};
use crate::pki::Ca;
use crate::raw::{Raw, patient};
use crate::{Local, run, serve_tls};
use anyhow::{Result, ensure};
use coppice_nbd::proto::*;
use coppice_nbd::server::{BASE_ALLOCATION, Identity, Limits};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

fn info(name: &str, wanted: &[InfoKind]) -> InfoQuery {
    InfoQuery { name: name.to_owned(), wanted: wanted.to_vec() }
}

fn meta(name: &str, queries: &[&str]) -> MetaQuery {
    MetaQuery { name: name.to_owned(), queries: queries.iter().map(|&query| query.to_owned()).collect() }
}

fn shelf() -> Shelf {
    let disk = Arc::new(Disk::sparse(6));
    Shelf::default()
        .with("mine", &disk, &[Identity::Local, certified("node-b")])
        .with("hers", &disk, &[certified("x")])
        .with("other", &disk, &[Identity::Local])
}

fn error(replies: &[OptionReply]) -> Option<OptionReplyKind> {
    match replies {
        [OptionReply::Error { kind, .. }] => Some(*kind),
        _ => None,
    }
}

#[test]
fn before_tls_nothing_is_answered() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let exports = Arc::new(shelf());
        let (_server, address) =
            serve_tls(Arc::<Shelf>::clone(&exports), ca.certificates("localhost")?, Limits::default()).await?;
        let mut raw = Raw::tcp(address).await?;
        let all = [
            ClientOption::List,
            ClientOption::Info(info("mine", &[])),
            ClientOption::Go(info("mine", &[])),
            ClientOption::Go(info("nobody's", &[])),
            ClientOption::StructuredReply,
            ClientOption::ExtendedHeaders,
            ClientOption::ListMetaContext(meta("mine", &[])),
            ClientOption::SetMetaContext(meta("mine", &["base:allocation"])),
            ClientOption::Unknown(OptionCode(4711)),
        ];
        let mut answers = Vec::new();
        for option in all {
            let answer = raw.option(option.clone()).await?;
            ensure!(error(&answer) == Some(OptionReplyKind::ERR_TLS_REQD), "{option:?}: {answer:?}");
            answers.push(answer);
        }
        answers.dedup();
        ensure!(answers.len() == 1, "the answers differ: {answers:?}");
        // A malformed option learns no more.
        raw.send(b"IHAVEOPT\0\0\0\x07\0\0\0\x03abc").await?;
        ensure!(error(&raw.replies(OptionCode::GO).await?) == Some(OptionReplyKind::ERR_TLS_REQD));
        ensure!(raw.option(ClientOption::Abort).await? == [OptionReply::Ack]);
        raw.closed().await?;

        let mut raw = Raw::tcp(address).await?;
        let mut out = Vec::new();
        ClientOption::ExportName("mine".to_owned()).encode(&mut out)?;
        raw.send(&out).await?;
        raw.closed().await?;
        ensure!(exports.asked.load(SeqCst) == 0, "somebody looked for exports");
        Ok(())
    })
}

/// What an attacker slips in behind STARTTLS must not be answered as if it had come through TLS.
#[test]
fn what_follows_starttls_in_the_clear_is_not_an_option() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let exports = Arc::new(shelf());
        let (_server, address) =
            serve_tls(Arc::<Shelf>::clone(&exports), ca.certificates("localhost")?, Limits::default()).await?;
        let mut raw = Raw::tcp(address).await?;
        let mut out = Vec::new();
        ClientOption::StartTls.encode(&mut out)?;
        ClientOption::List.encode(&mut out)?;
        raw.send(&out).await?;
        ensure!(raw.replies(OptionCode::STARTTLS).await? == [OptionReply::Ack]);
        let mut rest = Vec::new();
        let _ = patient(raw.io.read_to_end(&mut rest)).await?;
        // A TLS alert, perhaps; no answer to LIST.
        ensure!(rest.first().is_none_or(|first| *first == 0x15), "{rest:?}");
        ensure!(exports.asked.load(SeqCst) == 0, "somebody looked for exports");
        Ok(())
    })
}

#[test]
fn a_peer_sees_what_is_its_own() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let (_server, address) = serve_tls(Arc::new(shelf()), ca.certificates("localhost")?, Limits::default()).await?;
        let mut raw = Raw::tls(address, &ca.certificates("node-b")?).await?;
        let entry = OptionReply::Server { name: "mine".into(), description: "a disk in memory".into() };
        ensure!(raw.option(ClientOption::List).await? == [entry, OptionReply::Ack]);

        // Another's export and one that does not exist: the same answer, but for the name that the client said.
        let mut raw = raw.styled(Style::Structured).await?;
        let ask: [fn(&str) -> ClientOption; 4] = [
            |name| ClientOption::Info(info(name, &[])),
            |name| ClientOption::Go(info(name, &[])),
            |name| ClientOption::ListMetaContext(meta(name, &[])),
            |name| ClientOption::SetMetaContext(meta(name, &[BASE_ALLOCATION])),
        ];
        for option in ask {
            let (hers, none) = (raw.option(option("hers")).await?, raw.option(option("none")).await?);
            ensure!(error(&hers) == Some(OptionReplyKind::ERR_UNKNOWN), "{hers:?}");
            ensure!(format!("{hers:?}").replace("hers", "none") == format!("{none:?}"), "{hers:?} is not {none:?}");
        }
        ensure!(raw.go("mine").await?.0 == 6 << 16);

        let mut stranger = Raw::tls(address, &ca.certificates("node-c")?).await?;
        ensure!(stranger.option(ClientOption::List).await? == [OptionReply::Ack]);
        ensure!(stranger.go("mine").await.is_err());
        // EXPORT_NAME has no other answer than an end.
        let mut out = Vec::new();
        ClientOption::ExportName("mine".to_owned()).encode(&mut out)?;
        stranger.send(&out).await?;
        stranger.closed().await
    })
}

#[test]
fn tls_is_where_it_belongs() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        let mut raw = Raw::unix(&local.socket).await?;
        ensure!(error(&raw.option(ClientOption::StartTls).await?) == Some(OptionReplyKind::ERR_POLICY));
        ensure!(raw.go("mine").await.is_ok());

        let ca = Ca::new("ca")?;
        let (_server, address) = serve_tls(Arc::new(shelf()), ca.certificates("localhost")?, Limits::default()).await?;
        let mut raw = Raw::tls(address, &ca.certificates("node-b")?).await?;
        ensure!(error(&raw.option(ClientOption::StartTls).await?) == Some(OptionReplyKind::ERR_INVALID));
        Ok(())
    })
}

#[test]
fn information_is_what_was_asked_for() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        let mut raw = Raw::unix(&local.socket).await?;
        let flags = TransmissionFlags::HAS_FLAGS
            | TransmissionFlags::READ_ONLY
            | TransmissionFlags::CAN_MULTI_CONN
            | TransmissionFlags::SEND_CACHE;
        let export = OptionReply::Info(Info::Export { size_bytes: 6 << 16, flags });
        ensure!(raw.option(ClientOption::Info(info("mine", &[]))).await? == [export.clone(), OptionReply::Ack]);
        let kinds = [InfoKind::NAME, InfoKind::BLOCK_SIZE, InfoKind(99), InfoKind::DESCRIPTION];
        let sizes = BlockSizes { min_bytes: 1, preferred_bytes: 64 << 10, max_payload_bytes: 32 << 20 };
        let expected = [
            export,
            OptionReply::Info(Info::BlockSize(sizes)),
            OptionReply::Info(Info::Name("mine".into())),
            OptionReply::Info(Info::Description("a disk in memory".into())),
            OptionReply::Ack,
        ];
        ensure!(raw.option(ClientOption::Info(info("mine", &kinds))).await? == expected);

        let broken = raw.option(ClientOption::Go(info("broken", &[]))).await?;
        let message = "its store is closed".to_owned();
        ensure!(broken == [OptionReply::Error { kind: OptionReplyKind::ERR_PLATFORM, message }]);

        // What chunked replies add.
        let mut raw = raw.styled(Style::Structured).await?;
        ensure!(raw.go("mine").await?.1 == flags | TransmissionFlags::SEND_DF);
        let mut raw = Raw::unix(&local.socket).await?.styled(Style::Extended).await?;
        raw.contexts("mine", &[BASE_ALLOCATION]).await?;
        let extended = TransmissionFlags::SEND_DF | TransmissionFlags::BLOCK_STATUS_PAYLOAD;
        ensure!(raw.go("mine").await?.1 == flags | extended);
        Ok(())
    })
}

#[test]
fn contexts_are_listed_and_chosen() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        let mut raw = Raw::unix(&local.socket).await?;
        for option in
            [ClientOption::ListMetaContext(meta("mine", &[])), ClientOption::SetMetaContext(meta("mine", &[]))]
        {
            let refused = raw.option(option).await?;
            ensure!(error(&refused) == Some(OptionReplyKind::ERR_INVALID), "before structured replies: {refused:?}");
        }
        let mut raw = raw.styled(Style::Structured).await?;
        let context = |id, name: &str| OptionReply::MetaContext { id, name: name.to_owned() };
        let all = [context(0, BASE_ALLOCATION), context(0, DELTA), OptionReply::Ack];
        ensure!(raw.option(ClientOption::ListMetaContext(meta("mine", &[]))).await? == all);
        let one = [context(0, DELTA), OptionReply::Ack];
        ensure!(raw.option(ClientOption::ListMetaContext(meta("mine", &["coppice:", "other:x"]))).await? == one);
        ensure!(raw.contexts("mine", &["base:", "coppice:"]).await?.is_empty());
        ensure!(raw.contexts("mine", &[DELTA]).await? == [0]);
        ensure!(raw.contexts("mine", &[DELTA, BASE_ALLOCATION]).await? == [0, 1]);
        // A choice that fails takes the one before with it.
        let failed = raw.option(ClientOption::SetMetaContext(meta("none", &[DELTA]))).await?;
        ensure!(error(&failed) == Some(OptionReplyKind::ERR_UNKNOWN));
        raw.go("mine").await?;
        let status = raw.ask(Command::BLOCK_STATUS, CommandFlags::NONE, 0, 4096).await?;
        ensure!(status.code() == ErrorCode::EINVAL, "{status:?}");
        // A choice is for its export, and for no other.
        for (export, code) in [("mine", ErrorCode::OK), ("other", ErrorCode::EINVAL)] {
            let mut raw = Raw::unix(&local.socket).await?.styled(Style::Structured).await?;
            raw.contexts("mine", &[BASE_ALLOCATION]).await?;
            raw.go(export).await?;
            let status = raw.ask(Command::BLOCK_STATUS, CommandFlags::NONE, 0, 4096).await?;
            ensure!(status.code() == code, "{export}: {status:?}");
        }
        Ok(())
    })
}

#[test]
fn options_that_are_wrong_are_told_so() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        let mut raw = Raw::unix(&local.socket).await?;
        // An unknown option with data is stepped over.
        raw.send(b"IHAVEOPT\0\0\x12\x34\0\0\0\x05hello").await?;
        ensure!(error(&raw.replies(OptionCode(0x1234)).await?) == Some(OptionReplyKind::ERR_UNSUP));
        raw.send(b"IHAVEOPT\0\0\0\x03\0\0\0\x01x").await?;
        ensure!(error(&raw.replies(OptionCode::LIST).await?) == Some(OptionReplyKind::ERR_INVALID));
        // A name that is longer than its option.
        raw.send(b"IHAVEOPT\0\0\0\x07\0\0\0\x06\xff\xff\xff\xff\0\0").await?;
        ensure!(error(&raw.replies(OptionCode::GO).await?) == Some(OptionReplyKind::ERR_INVALID));
        let mut raw = raw.styled(Style::Extended).await?;
        let refused = raw.option(ClientOption::StructuredReply).await?;
        ensure!(error(&refused) == Some(OptionReplyKind::ERR_EXT_HEADER_REQD));
        let mut out = Vec::new();
        ClientOption::ExportName("mine".to_owned()).encode(&mut out)?;
        raw.send(&out).await?;
        raw.closed().await
    })
}

#[test]
fn the_oldest_option_still_works() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        for (flags, padding) in [(3_u8, 0), (1, 124), (0, 124)] {
            let mut raw = Raw::new(UnixStream::connect(&local.socket).await?);
            let mut hello = [0; SERVER_HELLO_BYTES];
            patient(raw.io.read_exact(&mut hello)).await??;
            raw.send(&[0, 0, 0, flags]).await?;
            let mut out = Vec::new();
            ClientOption::ExportName("mine".to_owned()).encode(&mut out)?;
            raw.send(&out).await?;
            let mut reply = [0; ExportNameReply::BYTES];
            patient(raw.io.read_exact(&mut reply)).await??;
            ensure!(ExportNameReply::parse(&reply)?.size_bytes == 6 << 16);
            let mut zeroes = vec![1; padding];
            patient(raw.io.read_exact(&mut zeroes)).await??;
            ensure!(zeroes.iter().all(|zero| *zero == 0));
            ensure!(raw.read(0, 512).await?.bytes().len() == 512);
        }
        Ok(())
    })
}

#[test]
fn what_is_no_negotiation_ends() -> Result<()> {
    run(async {
        let limits = Limits { options_max: 5, ..Limits::default() };
        let local = Local::with(shelf(), limits)?;
        let huge = [b"IHAVEOPT\0\0\0\x07".as_slice(), &(1_u32 << 20).to_be_bytes()].concat();
        let wrong = b"IHAVENOT\0\0\0\x07\0\0\0\0".to_vec();
        for bytes in [huge, wrong] {
            let mut raw = Raw::unix(&local.socket).await?;
            raw.send(&bytes).await?;
            raw.closed().await?;
        }
        // Flags that nobody offered.
        let mut raw = Raw::new(UnixStream::connect(&local.socket).await?);
        let mut hello = [0; SERVER_HELLO_BYTES];
        patient(raw.io.read_exact(&mut hello)).await??;
        raw.send(&[0, 0, 0, 7]).await?;
        raw.closed().await?;
        // One option too many.
        let mut raw = Raw::unix(&local.socket).await?;
        for _ in 0..5 {
            raw.option(ClientOption::List).await?;
        }
        let mut out = Vec::new();
        ClientOption::List.encode(&mut out)?;
        raw.send(&out).await?;
        raw.closed().await
    })
}

/// Half an option, and one byte now and then: neither keeps its place.
#[test]
fn the_slow_are_cut_off() -> Result<()> {
    run(async {
        let limits = Limits { negotiation_max: Duration::from_millis(400), ..Limits::default() };
        let local = Local::with(shelf(), limits)?;
        let start = Instant::now();
        let mut half = Raw::unix(&local.socket).await?;
        half.send(b"IHAVEOPT\0\0").await?;
        let mut silent = Raw::unix(&local.socket).await?;
        let mut loris = Raw::unix(&local.socket).await?;
        let trickle = async {
            for byte in [b"IHAVEOPT\0\0\0\x07\0\0\x40\0".as_slice(), &[0; 1000]].concat() {
                if loris.io.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let (half, silent, _) = tokio::join!(half.closed(), silent.closed(), trickle);
        half.and(silent)?;
        ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        crate::until("all failures are counted", || local.server.counts().negotiations_failed == 3).await
    })
}

/// Probes connect and leave. That is no failure worth a line in a log.
#[test]
fn a_look_is_free() -> Result<()> {
    run(async {
        let local = Local::start(shelf())?;
        for _ in 0..3 {
            drop(UnixStream::connect(&local.socket).await?);
            drop(Raw::unix(&local.socket).await?);
        }
        let mut broken = Raw::unix(&local.socket).await?;
        broken.send(b"IHAVE").await?;
        drop(broken);
        crate::until("the broken one is counted", || local.server.counts().negotiations_failed == 1).await?;
        ensure!(local.server.counts().accepted == 7);
        Ok(())
    })
}

#[test]
fn garbage_harms_nobody() -> Result<()> {
    run(async {
        let limits = Limits { negotiation_max: Duration::from_secs(2), ..Limits::default() };
        let local = Local::with(shelf(), limits)?;
        let mut witness = Raw::unix(&local.socket).await?;
        witness.go("mine").await?;
        for seed in 0..100_u64 {
            let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut random = || {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state
            };
            let mut bytes = match seed % 3 {
                0 => Vec::new(),
                1 => vec![0, 0, 0, 3],
                _ => b"\0\0\0\x03IHAVEOPT\0\0\0".to_vec(),
            };
            for _ in 0..random() % 300 {
                bytes.push(random() as u8);
            }
            let mut stream = UnixStream::connect(&local.socket).await?;
            // It may be gone before all is said.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut rest = Vec::new();
            let _ = patient(stream.read_to_end(&mut rest)).await?;
        }
        ensure!(witness.read(0, 4096).await?.bytes().len() == 4096);
        Ok(())
    })
}
