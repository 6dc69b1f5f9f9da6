//! Removing a lvstore from its device.
//!
//! ```text
//!   lock ▶ look at it ▶ copies of the super block ▶ flush ▶ page 0 ▶ flush ▶ the rest of what must be zero on a blank device
//! ```
//!
//! Cut off before page 0 is gone, the store is whole; afterwards nothing opens it. The lock is held from the look to the
//! end: nobody makes a lvol in between. The data of the lvols stays where it was until the space is used again.

use anyhow::{Result, bail};
use coppice_engine::device::{Device, OpenMode};
use coppice_engine::format::{PAGE_SIZE, SuperBlock, SuperCopy};
use coppice_engine::shard::{Port, Shard, all};
use coppice_engine::store::Lvstore;
use coppice_engine::{Engine, ErrorKind, LvolState, OpenStore};
use indicatif::ProgressBar;
use std::path::Path;

const P: u64 = PAGE_SIZE as u64;
/// At the start and at the end of the device, so that it counts as blank.
const BLANK_SPAN: u64 = 1 << 20;
/// Pages that are looked at side by side.
const LOOKS: usize = 128;

/// What was removed.
pub struct Removed {
    /// `None`: it could not be opened.
    pub name: Option<String>,
    pub lvols: usize,
}

/// `force`: also with lvols in it, or if it does not open.
pub async fn remove(engine: &Engine, path: &Path, force: bool, progress: ProgressBar) -> Result<Removed> {
    let device = Device::open(path, OpenMode::ReadWrite)?;
    let shown = path.display().to_string();
    let shards = engine.shards().to_vec();
    let Some(home) = engine.shards().first() else { bail!("the engine has no shard") };
    let done = home.call(move |shard| async move {
        let port = device.port(&shard);
        let opened = Lvstore::open(
            &shard,
            shards,
            device.clone(),
            OpenStore { read_only: true, ..Default::default() },
            16 << 20,
        )
        .await;
        let mut removed = Removed { name: None, lvols: 0 };
        let cluster_size;
        let store = match opened {
            Ok(store) => {
                let lvols = store.lvols().into_iter();
                // Deleted snapshots go with what reads them.
                let names: Vec<String> = lvols.filter(|l| l.state != LvolState::Hidden).map(|l| l.name).collect();
                removed = Removed { name: Some(store.name()), lvols: names.len() };
                cluster_size = Some(store.cluster_size());
                if !names.is_empty() && !force {
                    store.close(&shard).await?;
                    let some = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
                    let more = if names.len() > 5 { ", …" } else { "" };
                    return Ok(Err(format!(
                        "lvstore {} on {shown} holds {} lvols ({some}{more}); delete them first, or use --force if \
                         their data may be lost",
                        store.name(),
                        names.len()
                    )));
                }
                Some(store)
            }
            Err(e) => {
                let head = first_page(&port, &device).await;
                let ours = head.as_deref().is_some_and(|page| page.starts_with(b"SPDKBLOB"));
                match e.kind() {
                    ErrorKind::Io | ErrorKind::Failed | ErrorKind::Locked => return Err(e),
                    _ if !ours => return Ok(Err(format!("{shown} holds no lvstore: there is nothing to remove"))),
                    _ if !force => return Err(e.context("it does not open; --force removes it nevertheless")),
                    _ => {
                        let block = head.and_then(|page| SuperBlock::parse(&page).ok());
                        cluster_size = block.map(|block| u64::from(block.cluster_size));
                        None
                    }
                }
            }
        };
        if let Some(size) = cluster_size {
            remove_copies(&port, device.size(), size.max(P), &progress).await?;
            port.flush().done("cannot flush the device").await?;
        }
        write_zeroes(&port, 0, P).await?;
        port.flush().done("cannot flush the device").await?;
        let size = device.size() / P * P;
        let head = BLANK_SPAN.min(size);
        write_zeroes(&port, P, head.saturating_sub(P)).await?;
        let tail = size.saturating_sub(BLANK_SPAN).max(head);
        write_zeroes(&port, tail, size - tail).await?;
        port.flush().done("cannot flush the device").await?;
        if let Some(store) = store {
            store.close(&shard).await?;
        }
        Ok(Ok(removed))
    });
    done.await?.map_err(anyhow::Error::msg)
}

async fn first_page(port: &Port, device: &Device) -> Option<Vec<u8>> {
    if device.size() < P {
        return None;
    }
    let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
    port.read(0, buf.clone()).done("cannot read the super block").await.ok()?;
    Some(buf.to_vec())
}

/// Zeroes every copy of a super block, which begins at the start of some cluster: without page 0 it would be found and
/// the store would be there again.
async fn remove_copies(
    port: &Port,
    size: u64,
    cluster_size: u64,
    progress: &ProgressBar,
) -> coppice_engine::Result<()> {
    let clusters = size / cluster_size;
    progress.set_length(clusters);
    let buf = port.shard.buf(LOOKS * PAGE_SIZE);
    let mut first = 0;
    while first < clusters {
        let places: Vec<(u64, usize)> =
            (first..clusters).take(LOOKS).enumerate().map(|(n, c)| (c * cluster_size, n * PAGE_SIZE)).collect();
        let read = |(off, at): (u64, usize)| port.read(off, buf.slice(at, PAGE_SIZE));
        let together = all(places.iter().map(|p| read(*p)).collect(), "cannot read").await;
        for (off, at) in &places {
            // A page that cannot be read cannot be taken for a copy either.
            if together.is_err() && read((*off, *at)).done("cannot read").await.is_err() {
                continue;
            }
            let copy = buf.slice(*at, PAGE_SIZE).with(SuperCopy::parse);
            if copy.is_ok_and(|copy| copy.own_offset == *off) {
                write_zeroes(port, *off, 2 * P.min(cluster_size / 2)).await?;
            }
        }
        first += places.len() as u64;
        progress.set_position(first);
    }
    Ok(())
}

/// Written, not discarded: a discarded range may keep its content.
async fn write_zeroes(port: &Port, off: u64, len: u64) -> coppice_engine::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let shard: &Shard = &port.shard;
    let buf = shard.buf(len as usize).slice(0, len as usize);
    buf.fill_zero();
    port.write(off, buf, false).done("cannot write zeroes").await
}
