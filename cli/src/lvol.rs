//! `coppice lvol …`.

use crate::args::{Global, Lvol, LvolExport, LvolRead, LvolRm, LvolWrite};
use crate::connect::{self, Access, Client, refused, with};
use crate::lvstore::bar;
use crate::output::{self, Format, clean, facts, left, print, print_json, right, show, table};
use crate::size::human;
use crate::stdin;
use crate::tree::{self, percent};
use anyhow::{Context, Result, anyhow, bail};
use coppice_engine::{LvolInfo, LvolKind, LvolState};
use coppice_proto::admin::v1::{self, LvolRequest};
use std::io::{IsTerminal, Write};
use tonic::{Response, Status, Streaming};
use uuid::Uuid;

pub async fn run(global: &Global, command: Lvol) -> Result<()> {
    let format = global.output;
    match command {
        Lvol::Ls(how) => {
            let lvols = with(global, Access::Look, async |c| connect::lvols(c, &how.store, how.hidden).await).await?;
            match format {
                Format::Json => print_json(&lvols),
                Format::Table => print(&list(&lvols)),
            }
        }
        Lvol::Tree(one) => draw_tree(global, &one.store).await,
        Lvol::Show(one) => {
            let (lvol, all) = with(global, Access::Look, async |client| {
                let lvol = get(client, &one.lvol).await?;
                let all = connect::lvols(client, &lvol.lvstore, true).await?;
                Ok((lvol, all))
            })
            .await?;
            show(format, &lvol, || describe(&lvol, &all))
        }
        Lvol::Create(how) => {
            let size = how.size();
            let request = v1::CreateLvolRequest { store: how.lvstore, name: how.name, size, thick: how.thick };
            let made = with(global, Access::Change, async |c| one(c.create_lvol(request).await)).await?;
            say(format, &made, || format!("created {}", sized(&made)))
        }
        Lvol::Snapshot(how) => {
            let request = v1::SnapshotLvolRequest { lvol: how.lvol.clone(), name: how.name };
            let made = with(global, Access::Change, async |c| one(c.snapshot_lvol(request).await)).await?;
            say(format, &made, || format!("took snapshot {} of {}", clean(&made.alias), clean(&how.lvol)))
        }
        Lvol::Clone(how) => {
            let from = how.snapshot.clone();
            let request =
                v1::CloneLvolRequest { snapshot: how.snapshot, name: how.name, size: how.size, thick: how.thick };
            let made = with(global, Access::Change, async |c| one(c.clone_lvol(request).await)).await?;
            say(format, &made, || format!("made {} from {}", sized(&made), clean(&from)))
        }
        Lvol::CloneExternal(how) => {
            let request = v1::CloneExternalRequest {
                parent: how.parent.to_string(),
                name: how.name,
                store: how.lvstore,
                size: how.size,
                thick: how.thick,
                no_hydration: how.no_hydration,
            };
            let made = with(global, Access::Change, async |c| one(c.clone_external(request).await)).await?;
            say(format, &made, || format!("made {} from {}: it can be used at once", sized(&made), how.parent))
        }
        Lvol::Hydrate(how) => {
            let request = LvolRequest { lvol: how.lvol };
            let lvol = with(global, Access::Change, async |client| {
                long_work("hydrating", client.hydrate_lvol(request).await).await
            });
            let lvol = lvol.await?;
            say(format, &lvol, || format!("{} has everything itself, and needs nobody any more", clean(&lvol.alias)))
        }
        Lvol::Pin(how) => {
            let pin = v1::Pin { lvstore: how.lvstore.to_string(), reader: how.reader.clone() };
            let request = v1::PinLvolRequest { lvol: how.snapshot, pin: Some(pin) };
            let lvol = with(global, Access::Change, async |c| one(c.pin_lvol(request).await)).await?;
            say(format, &lvol, || format!("pinned {}: {} may read it", clean(&lvol.alias), clean(&how.reader)))
        }
        Lvol::Unpin(how) => {
            let request = v1::UnpinLvolRequest { lvol: how.snapshot.clone(), lvstore: how.lvstore.to_string() };
            with(global, Access::Change, async |c| c.unpin_lvol(request).await.map_err(refused)).await?;
            match format {
                Format::Json => print_json(&serde_json::json!({})),
                Format::Table => print(&format!("{} is not kept for {} any more\n", clean(&how.snapshot), how.lvstore)),
            }
        }
        Lvol::Resize(how) => {
            let request = v1::ResizeLvolRequest { lvol: how.lvol.clone(), size: how.size() };
            let (before, after) = with(global, Access::Change, async |client| {
                let before = get(client, &how.lvol).await?;
                Ok((before, one(client.resize_lvol(request).await)?))
            })
            .await?;
            say(format, &after, || {
                format!("resized {} from {} to {}", clean(&after.alias), human(before.size), human(after.size))
            })
        }
        Lvol::Rename(how) => {
            let request = v1::RenameLvolRequest { lvol: how.lvol.clone(), name: how.name };
            let lvol = with(global, Access::Change, async |c| one(c.rename_lvol(request).await)).await?;
            say(format, &lvol, || format!("renamed {} to {}", clean(&how.lvol), clean(&lvol.alias)))
        }
        Lvol::Revert(how) => {
            let snapshot = how.snapshot.clone();
            let request = v1::RevertLvolRequest { lvol: how.lvol, snapshot: how.snapshot };
            let lvol = with(global, Access::Change, async |c| one(c.revert_lvol(request).await)).await?;
            say(format, &lvol, || format!("{} went back to {}", clean(&lvol.alias), clean(&snapshot)))
        }
        Lvol::Inflate(how) => {
            let request = LvolRequest { lvol: how.lvol };
            let lvol = with(global, Access::Change, async |client| {
                long_work("inflating", client.inflate_lvol(request).await).await
            });
            let lvol = lvol.await?;
            say(format, &lvol, || format!("inflated {}: it reads from no snapshot any more", clean(&lvol.alias)))
        }
        Lvol::Decouple(how) => {
            let request = LvolRequest { lvol: how.lvol };
            let lvol = with(global, Access::Change, async |client| {
                long_work("decoupling", client.decouple_lvol(request).await).await
            });
            let lvol = lvol.await?;
            say(format, &lvol, || format!("decoupled {} from its parent", clean(&lvol.alias)))
        }
        Lvol::Rm(how) => remove(global, how).await,
        Lvol::Read(how) => read(global, how).await,
        Lvol::Write(how) => write(global, how).await,
        Lvol::Export(how) => export(global, how).await,
    }
}

/// What was done, for a person; the lvol for a program.
fn say(format: Format, lvol: &LvolInfo, text: impl FnOnce() -> String) -> Result<()> {
    show(format, lvol, text)
}

fn one(answer: Result<Response<v1::Lvol>, Status>) -> Result<LvolInfo> {
    connect::lvol(answer.map_err(refused)?.into_inner())
}

async fn get(client: &mut Client, name: &str) -> Result<LvolInfo> {
    one(client.get_lvol(LvolRequest { lvol: name.to_string() }).await)
}

/// `thick lvol fast/db (10.0 GiB)`
fn sized(lvol: &LvolInfo) -> String {
    format!("{} {} ({})", tree::kind(lvol), clean(&lvol.alias), human(lvol.size))
}

fn own(lvol: &LvolInfo) -> u64 {
    lvol.allocated_clusters.saturating_mul(u64::from(lvol.cluster_size))
}

fn exports(lvol: &LvolInfo) -> String {
    if lvol.exports.is_empty() { "–".to_string() } else { lvol.exports.join(" ") }
}

fn list(lvols: &[LvolInfo]) -> String {
    let columns = [
        left("NAME"),
        left("KIND"),
        right("SIZE"),
        right("OWN"),
        right("OWN%"),
        left("STATE"),
        left("EXPORTS"),
        left("UUID"),
    ];
    let rows = lvols.iter().map(|l| {
        vec![
            l.alias.clone(),
            tree::kind(l).to_string(),
            human(l.size),
            human(own(l)),
            percent(own(l), l.size),
            tree::state_of(l),
            exports(l),
            l.uuid.to_string(),
        ]
    });
    table(&columns, rows).join("\n") + "\n"
}

fn describe(lvol: &LvolInfo, all: &[LvolInfo]) -> String {
    let name = |id: &Uuid| {
        let known = all.iter().find(|l| l.uuid == *id);
        known.map_or_else(|| id.to_string(), |l| format!("{} ({id})", l.alias))
    };
    let state = match &lvol.reason {
        Some(why) => format!("{}: {why}", tree::state(lvol.state)),
        None => tree::state(lvol.state).to_string(),
    };
    let mut lines = vec![
        ("name", lvol.name.clone()),
        ("alias", lvol.alias.clone()),
        ("uuid", lvol.uuid.to_string()),
        ("kind", tree::kind(lvol).to_string()),
        ("state", state),
        ("size", format!("{} ({} blocks of {} bytes)", human(lvol.size), lvol.num_blocks, lvol.block_size)),
        (
            "own",
            format!(
                "{} ({} clusters of {})",
                human(own(lvol)),
                lvol.allocated_clusters,
                human(lvol.cluster_size.into())
            ),
        ),
        ("parent", lvol.parent.as_ref().map_or_else(|| "–".to_string(), name)),
    ];
    lines.extend(lvol.children.iter().map(|child| ("child", name(child))));
    if let Some(h) = lvol.hydration {
        lines.push(("to copy", format!("{} of {}", human(h.remaining_bytes), human(h.total_bytes))));
    }
    lines.extend(
        lvol.pins.iter().map(|pin| ("pinned", format!("for the lvstore {}, read by {}", pin.lvstore, pin.reader))),
    );
    lines.push(("exports", exports(lvol)));
    lines.extend(lvol.attributes.iter().map(|(key, value)| ("attribute", format!("{key} = {value}"))));
    facts(lines)
}

async fn draw_tree(global: &Global, store: &str) -> Result<()> {
    let (stores, lvols) = with(global, Access::Look, async |client| {
        let stores = match store {
            "" => connect::stores(client).await?,
            name => {
                let request = v1::StoreRequest { store: name.to_string() };
                vec![connect::store(client.get_store(request).await.map_err(refused)?.into_inner())?]
            }
        };
        Ok((stores, connect::lvols(client, store, true).await?))
    })
    .await?;
    match global.output {
        Format::Json => print_json(&lvols),
        Format::Table => print(&tree::draw(&stores, &lvols, output::colour())),
    }
}

async fn long_work(
    what: &'static str,
    updates: Result<Response<Streaming<v1::WorkUpdate>>, Status>,
) -> Result<LvolInfo> {
    let mut updates = updates.map_err(refused)?.into_inner();
    let bar = bar(what);
    while let Some(update) = updates.message().await.map_err(refused)? {
        match update.update {
            Some(v1::work_update::Update::Progress(progress)) => {
                bar.set_length(progress.total);
                bar.set_position(progress.done);
            }
            Some(v1::work_update::Update::Finished(lvol)) => {
                bar.finish_and_clear();
                return connect::lvol(lvol);
            }
            None => {}
        }
    }
    bail!("{what} ended without an answer; see coppice lvol ls")
}

async fn remove(global: &Global, how: LvolRm) -> Result<()> {
    let (before, after) = with(global, Access::Change, async |client| {
        let before = get(client, &how.lvol).await?;
        // By its UUID: a name could be somebody else's by now.
        let request = v1::DeleteLvolRequest { lvol: before.uuid.to_string(), deferred: how.deferred };
        client.delete_lvol(request).await.map_err(|status| {
            let clones = status.message().contains("deferred deletion") && !how.deferred;
            let hint = if clones { " (--deferred)" } else { "" };
            anyhow!("{:#}{hint}", refused(status))
        })?;
        let rest = connect::lvols(client, &before.lvstore, true).await?;
        let after = rest.into_iter().find(|l| l.uuid == before.uuid);
        Ok((before, after))
    })
    .await?;
    say(global.output, after.as_ref().unwrap_or(&before), || {
        let alias = clean(&before.alias);
        match &after {
            Some(hidden) if hidden.state == LvolState::Hidden && hidden.children.len() > 1 => {
                format!("hid {alias}: {} clones read it, its space comes back with them", hidden.children.len())
            }
            _ => format!("deleted {alias}"),
        }
    })
}

async fn read(global: &Global, how: LvolRead) -> Result<()> {
    if std::io::stdout().is_terminal() && !how.force {
        bail!("standard output is a terminal; redirect it to a file or a pipe, or use --force");
    }
    let request = v1::ReadLvolRequest { lvol: how.lvol, offset: how.offset, length: how.length };
    with(global, Access::Look, async |client| {
        let mut chunks = client.read_lvol(request).await.map_err(refused)?.into_inner();
        let mut out = std::io::stdout();
        while let Some(chunk) = chunks.message().await.map_err(refused)? {
            out.write_all(&chunk.data).context("cannot write to standard output")?;
        }
        out.flush().context("cannot write to standard output")
    })
    .await
}

async fn write(global: &Global, how: LvolWrite) -> Result<()> {
    let (lvol, written) = with(global, Access::Change, async |client| {
        let lvol = get(client, &how.lvol).await?;
        if lvol.kind == LvolKind::Snapshot {
            bail!("{} is a snapshot and never changes; write to a clone of it (coppice lvol clone)", lvol.alias);
        }
        let Some(room) = lvol.size.checked_sub(how.offset) else {
            bail!("offset {} is beyond the end of {} ({} bytes)", how.offset, lvol.alias, lvol.size);
        };
        if let Some(length) = stdin::length().filter(|length| *length > room) {
            bail!("standard input has {length} bytes, and {} has room for {room} at {}", lvol.alias, how.offset);
        }
        let target = v1::WriteTarget { lvol: lvol.uuid.to_string(), offset: how.offset };
        let (parts, reader) = stdin::parts(target, room);
        let written = client.write_lvol(parts).await.map_err(refused)?.into_inner().written;
        // The stream has ended, so the reader has too.
        match reader.join().unwrap_or(stdin::End::Failed(std::io::ErrorKind::Other.into())) {
            stdin::End::Whole => Ok((lvol, written)),
            stdin::End::Longer => {
                bail!("standard input is longer than {} has room; its first {written} bytes were written", lvol.alias)
            }
            stdin::End::Failed(e) => {
                Err(e).context(format!("cannot read standard input; its first {written} bytes were written"))
            }
        }
    })
    .await?;
    say(global.output, &lvol, || format!("wrote {written} bytes to {}, durably", clean(&lvol.alias)))
}

async fn export(global: &Global, how: LvolExport) -> Result<()> {
    if global.image.is_some() {
        bail!("a block device needs a process that stays: start coppice standalone, and export without --image");
    }
    if how.nbd {
        let lvol = with(global, Access::Look, async |client| get(client, &how.lvol).await).await?;
        let socket = global.run_dir.join(coppice_node::remote::SOCKET);
        return say(global.output, &lvol, || format!("nbd+unix:///{}?socket={}", lvol.uuid, socket.display()));
    }
    if how.stop {
        let request = LvolRequest { lvol: how.lvol };
        let lvol = with(global, Access::Change, async |c| one(c.unexport_lvol(request).await)).await?;
        return say(global.output, &lvol, || format!("{} is no block device any more", clean(&lvol.alias)));
    }
    let request = v1::ExportLvolRequest { lvol: how.lvol, read_only: how.read_only };
    let answer = with(global, Access::Change, async |client| {
        Ok(client.export_lvol(request).await.map_err(refused)?.into_inner())
    });
    let answer = answer.await?;
    let lvol = connect::lvol(answer.lvol.context("the answer does not say which lvol")?)?;
    say(global.output, &lvol, || clean(&answer.device))
}
