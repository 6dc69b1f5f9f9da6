//! What one peer can take from the others, and how a server stops.

use crate::disk::{Disk, Shelf, certified};
use crate::pki::Ca;
use crate::raw::Raw;
use crate::{Local, run, serve_tls, until};
use anyhow::{Context, Result, ensure};
use coppice_nbd::proto::*;
use coppice_nbd::server::{BASE_ALLOCATION, Identity, Limits};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

fn shelf(disk: &Arc<Disk>) -> Shelf {
    Shelf::default().with("disk", disk, &[Identity::Local, certified("node-b"), certified("node-c")])
}

async fn connect(local: &Local, style: Style) -> Result<Raw> {
    let mut raw = Raw::unix(&local.socket).await?.styled(style).await?;
    raw.go("disk").await?;
    Ok(raw)
}

#[test]
fn limits_have_to_fit_together() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(1));
        let bad = Limits { request_bytes_max: 64 << 20, connection_bytes_max: 1 << 20, ..Limits::default() };
        let refused = Local::with(shelf(&disk), bad).err().context("it started")?;
        ensure!(refused.to_string().contains("connection_bytes_max"), "{refused}");
        Ok(())
    })
}

#[test]
fn answers_have_a_limit() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(9));
        let exports = shelf(&disk).with("more", &disk, &[Identity::Local]);
        let limits = Limits { list_entries_max: 1, status_extents_max: 2, ..Limits::default() };
        let local = Local::with(exports, limits)?;
        let mut raw = Raw::unix(&local.socket).await?.styled(Style::Structured).await?;
        ensure!(raw.option(ClientOption::List).await?.len() == 2, "an entry and the end");
        raw.contexts("disk", &[BASE_ALLOCATION]).await?;
        raw.go("disk").await?;
        let reply = raw.ask(Command::BLOCK_STATUS, CommandFlags::NONE, 0, 9 << 16).await?;
        let lengths: Vec<u64> = reply.status.iter().flat_map(|(_, e)| e).map(|extent| extent.length).collect();
        ensure!(reply.error.is_none() && !lengths.is_empty() && lengths.len() <= 2, "{reply:?}");
        Ok(())
    })
}

#[test]
fn a_peer_has_only_its_share_of_connections() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let limits = Limits { connections_per_peer_max: 2, ..Limits::default() };
        let disk = Arc::new(Disk::sparse(1));
        let (server, address) = serve_tls(Arc::new(shelf(&disk)), ca.certificates("localhost")?, limits).await?;
        let (b, c) = (ca.certificates("node-b")?, ca.certificates("node-c")?);
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut raw = Raw::tls(address, &b).await?;
            raw.go("disk").await?;
            open.push(raw);
        }
        let mut third = Raw::tls(address, &b).await?;
        let go = ClientOption::Go(InfoQuery { name: "disk".into(), wanted: Vec::new() });
        let refused = third.option(go).await?;
        let message = "this peer has 2 connections, the most allowed: close some, or try again later".to_owned();
        ensure!(refused == [OptionReply::Error { kind: OptionReplyKind::ERR_POLICY, message }], "{refused:?}");
        Raw::tls(address, &c).await?.go("disk").await?;
        open.pop();
        until("a place is free", || server.connections().len() < 2).await?;
        third.go("disk").await?;
        Ok(())
    })
}

#[test]
fn strangers_do_not_keep_others_out() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let limits =
            Limits { negotiating_per_address_max: 3, negotiation_max: Duration::from_millis(500), ..Limits::default() };
        let disk = Arc::new(Disk::sparse(1));
        let (server, address) = serve_tls(Arc::new(shelf(&disk)), ca.certificates("localhost")?, limits).await?;
        let b = ca.certificates("node-b")?;
        let mut known = Raw::tls(address, &b).await?;
        known.go("disk").await?;
        let mut strangers = Vec::new();
        for _ in 0..3 {
            strangers.push(Raw::tcp(address).await?);
        }
        let mut fourth = Raw::new(TcpStream::connect(address).await?);
        fourth.closed().await?;
        ensure!(server.counts().turned_away == 1);
        ensure!(known.read(0, 512).await?.error.is_none(), "who is in transmission does not notice");
        // They do not stay.
        for mut stranger in strangers {
            stranger.closed().await?;
        }
        Raw::tls(address, &b).await?.go("disk").await?;
        Ok(())
    })
}

/// Whoever asks for much and takes nothing holds its share of memory, no more, and not for long.
#[test]
fn a_client_that_takes_nothing_is_cut_off() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(128));
        let share = 2 << 20;
        let limits = Limits {
            request_bytes_max: 1 << 20,
            connection_bytes_max: share,
            total_bytes_max: 3 * share,
            stall_max: Duration::from_millis(500),
            bytes_per_second_min: 10 << 20,
            ..Limits::default()
        };
        let local = Local::with(shelf(&disk), limits)?;
        let start = Instant::now();
        let mut greedy = Vec::new();
        for style in [Style::Simple, Style::Structured] {
            let mut raw = connect(&local, style).await?;
            for n in 0..100 {
                raw.request(Command::READ, CommandFlags::NONE, n % 7 * (1 << 20), 1 << 20).await?;
            }
            greedy.push(raw);
        }
        until("both hold what they may", || disk.held.now.load(SeqCst) >= share as usize).await?;
        let mut modest = connect(&local, Style::Structured).await?;
        ensure!(modest.read(0, 512).await?.error.is_none(), "there is some left for others");
        until("they are cut off", || local.server.connections().len() == 1).await?;
        ensure!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        until("nothing is held", || disk.held.now.load(SeqCst) == 0).await?;
        let most = disk.held.most.load(SeqCst);
        ensure!(most <= 2 * share as usize + 512, "{most} bytes were held");
        Ok(())
    })
}

#[test]
fn the_total_is_shared_by_waiting() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk::sparse(64));
        let content = disk.content();
        let limits = Limits {
            request_bytes_max: 1 << 20,
            connection_bytes_max: 1 << 20,
            total_bytes_max: 1 << 20,
            ..Limits::default()
        };
        let local = Local::with(shelf(&disk), limits)?;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..6 {
            let mut raw = connect(&local, [Style::Simple, Style::Structured, Style::Extended][n % 3]).await?;
            let content = content.clone();
            tasks.spawn(async move {
                for round in 0..20 {
                    let start = ((n + round) % 3) << 20;
                    let reply = raw.read(start as u64, 1 << 20).await?;
                    ensure!(reply.bytes() == content[start..start + (1 << 20)]);
                }
                Ok(())
            });
        }
        while let Some(done) = tasks.join_next().await {
            done??;
        }
        let most = disk.held.most.load(SeqCst);
        ensure!(most <= 1 << 20, "{most} bytes were held");
        Ok(())
    })
}

#[test]
fn stopping_answers_what_is_in_flight() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(4) });
        let local = Local::start(shelf(&disk))?;
        let mut busy = connect(&local, Style::Structured).await?;
        let mut idle = connect(&local, Style::Structured).await?;
        let mut negotiating = Raw::unix(&local.socket).await?;
        let cookie = busy.request(Command::READ, CommandFlags::NONE, 0, 4096).await?;
        disk.waiting.notified().await;
        let server = local.server;
        let stopping = tokio::spawn(async move { server.stop().await });
        idle.closed().await?;
        negotiating.closed().await?;
        ensure!(Raw::unix(&local.socket).await.is_err(), "somebody was let in");
        ensure!(!stopping.is_finished(), "it did not wait");
        disk.gate.add_permits(1);
        let reply = busy.reply(0).await?;
        ensure!(reply.cookie == cookie && reply.bytes().len() == 4096);
        busy.closed().await?;
        stopping.await?;
        Ok(())
    })
}

#[test]
fn stopping_does_not_wait_for_ever() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(4) });
        let limits = Limits { drain_max: Duration::from_millis(300), ..Limits::default() };
        let local = Local::with(shelf(&disk), limits)?;
        let mut busy = connect(&local, Style::Structured).await?;
        busy.request(Command::READ, CommandFlags::NONE, 0, 4096).await?;
        disk.waiting.notified().await;
        let start = Instant::now();
        local.server.stop().await;
        ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        busy.closed().await
    })
}

#[test]
fn a_server_that_is_dropped_is_gone() -> Result<()> {
    run(async {
        let disk = Arc::new(Disk { gated: Some(0), ..Disk::sparse(4) });
        let local = Local::start(shelf(&disk))?;
        let mut busy = connect(&local, Style::Structured).await?;
        busy.request(Command::READ, CommandFlags::NONE, 0, 4096).await?;
        disk.waiting.notified().await;
        drop(local.server);
        busy.closed().await
    })
}

#[test]
fn rights_that_end_end_connections() -> Result<()> {
    run(async {
        let ca = Ca::new("ca")?;
        let disk = Arc::new(Disk::sparse(1));
        let certificates = ca.certificates("localhost")?;
        let (server, address) = serve_tls(Arc::new(shelf(&disk)), certificates, Limits::default()).await?;
        let mut b = Raw::tls(address, &ca.certificates("node-b")?).await?;
        let mut c = Raw::tls(address, &ca.certificates("node-c")?).await?;
        b.go("disk").await?;
        c.go("disk").await?;
        let names: Vec<String> = server.connections().iter().map(|c| format!("{} {}", c.identity, c.export)).collect();
        ensure!(names.len() == 2 && names.contains(&"node-b disk".to_owned()), "{names:?}");
        ensure!(server.close(|connection| connection.identity == certified("node-b")) == 1);
        b.closed().await?;
        ensure!(c.read(0, 512).await?.error.is_none());
        Ok(())
    })
}
