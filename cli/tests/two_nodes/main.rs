//! A snapshot of one node is a volume of another, at once and whatever happens on the way: the network, either side, the
//! certificates. What is read is right or an error that comes in time, never something else, never zeroes for data.

#[path = "../common/program.rs"]
mod program;
mod rig;

use anyhow::{Context, Result, ensure};
use coppice_nbd::testing::{Direction, End, Faults};
use rig::{Authority, MIB, PARENT_TIMEOUT, Rig, bytes, free_port, until};
use std::process::Command;
use std::time::{Duration, Instant};

/// Type of a descriptor in a page of metadata.
const EXTENT_PAGE: u8 = 6;
/// What a call may take over the time that it waits for the other side.
const SLACK: Duration = Duration::from_secs(4);

/// fio writes and verifies on B while it hydrates; the snapshot is deleted right away; afterwards A is not missed.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn a_volume_at_once_and_then_of_its_own() -> Result<()> {
    let mut rig = Rig::new("4M")?;
    let (snapshot, mut content) = rig.source("v", 96)?;
    let began = Instant::now();
    rig.restore(&snapshot, "c")?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(3), "{took:?} until it could be used");
    rig.a.coppice(&["lvol", "rm", "v"])?;
    rig.a.coppice(&["lvol", "rm", "--deferred", &snapshot])?;
    ensure!(rig.a.json(&["lvol", "ls"])?.as_array().is_some_and(Vec::is_empty), "the snapshot is still listed");
    let device = String::from_utf8(rig.b.coppice(&["lvol", "export", "c"])?)?.trim().to_string();
    let fio = Command::new("fio")
        .args(["--name=verify", "--rw=randwrite", "--bsrange=4k-96k", "--size=24M", "--io_size=24M", "--direct=1"])
        .args(["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--ioengine=psync", "--output-format=terse"])
        .arg(format!("--filename={device}"))
        .output()?;
    ensure!(fio.status.success(), "fio: {}", String::from_utf8_lossy(&fio.stderr));
    let state = rig.b.lvol("c")?;
    ensure!(state["state"] == "hydrating", "hydrated before fio was done, so nothing was shown: {state}");
    let written = std::fs::read(&device)?;
    content[..24 * MIB].copy_from_slice(&written[..24 * MIB]);
    rig.same("c", &content)?;
    rig.b.coppice(&["lvol", "hydrate", "c"])?;
    rig.b.coppice(&["lvol", "export", "c", "--stop"])?;
    ensure!(rig.b.json(&["lvstore", "show"])?.get("external_parents").is_none(), "it still depends on A");
    let lvstore = rig.lvstore_of_b()?;
    rig.a.coppice(&["lvol", "unpin", &snapshot, "--lvstore", &lvstore])?;
    until(10, "the snapshot to go", || Ok(rig.a.lvol(&snapshot).is_err()))?;
    rig.sound()?;
    rig.a.terminate()?;
    rig.same("c", &content)?;
    rig.b.terminate()?;
    rig.b.start()?;
    rig.same("c", &content)
}

/// A is killed, and off for longer than any timeout: own data is there, the rest is an error in time; it heals.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn the_source_goes_and_comes_back() -> Result<()> {
    let mut rig = Rig::new("1M")?;
    let (snapshot, mut content) = rig.source("v", 48)?;
    rig.restore(&snapshot, "c")?;
    let mine = bytes(3, 4 * MIB);
    rig.b.write("c", 30 * MIB, &mine)?;
    content[30 * MIB..34 * MIB].copy_from_slice(&mine);
    rig.a.kill()?;
    ensure!(rig.b.read("c", 30 * MIB, 4 * MIB)? == mine, "own data");
    let began = Instant::now();
    let e = rig.b.read("c", 46 * MIB, 4096).err().context("read without the source")?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(PARENT_TIMEOUT) + SLACK, "{took:?} for the error {e}");
    ensure!(took > Duration::from_secs(PARENT_TIMEOUT - 1), "it was not waited for: {took:?}, {e}");
    until(10, "the state to say it", || Ok(rig.b.lvol("c")?["state"] == "degraded"))?;
    // Whole clusters need nobody.
    let more = bytes(4, 2 * MIB);
    rig.b.write("c", 40 * MIB, &more)?;
    content[40 * MIB..42 * MIB].copy_from_slice(&more);
    rig.a.start()?;
    rig.same("c", &content)?;
    // Both, in any order.
    rig.b.terminate()?;
    rig.a.terminate()?;
    rig.b.start()?;
    ensure!(rig.b.read("c", 30 * MIB, 4 * MIB)? == mine, "own data");
    rig.a.start()?;
    rig.same("c", &content)?;
    rig.a.kill()?;
    rig.b.kill()?;
    rig.a.start()?;
    rig.b.args.retain(|arg| arg != "--hydration-rate" && arg != "1M");
    rig.b.start()?;
    rig.b.hydrated("c", 60)?;
    rig.same("c", &content)?;
    rig.sound()
}

/// What networks do, one after the other, while B hydrates.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn a_bad_network() -> Result<()> {
    let rig = Rig::new("4M")?;
    let (snapshot, content) = rig.source("v", 64)?;
    rig.restore(&snapshot, "c")?;
    let cut = |direction, at, how| Faults { cut: Some((direction, at, how)), ..Faults::default() };
    let faults = [
        Faults { delay: Duration::from_millis(30), ..Faults::default() },
        cut(Direction::ToClient, 200_000, End::Reset),
        cut(Direction::ToClient, 77_777, End::Close),
        cut(Direction::ToServer, 3_000, End::Reset),
        Faults { bytes_per_second: Some(600_000), ..Faults::default() },
        Faults { corrupt: Some((Direction::ToClient, 50_000, 0x40)), ..Faults::default() },
        Faults { refuse: true, ..Faults::default() },
        Faults { black_hole: true, ..Faults::default() },
    ];
    for (n, fault) in faults.iter().enumerate() {
        rig.proxy.set(fault.clone());
        rig.proxy.end_all(if n % 2 == 0 { End::Reset } else { End::Close });
        let began = Instant::now();
        let errors = rig.never_wrong("c", &content, n as u64, 5)?;
        let most = 5 * (Duration::from_secs(PARENT_TIMEOUT) + SLACK);
        ensure!(began.elapsed() < most, "{:?} for five reads with {fault:?}", began.elapsed());
        if matches!(n, 0 | 4) {
            ensure!(errors == 0, "{errors} of 5 reads failed with {fault:?}");
        }
        rig.proxy.heal();
        until(20, "it to heal", || Ok(rig.b.read("c", 63 * MIB, 4096).is_ok()))?;
    }
    // A blip that is shorter than the patience is no error at all.
    rig.proxy.set(Faults { black_hole: true, ..Faults::default() });
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| rig.never_wrong("c", &content, 99, 1));
        std::thread::sleep(Duration::from_millis(1200));
        rig.proxy.heal();
        let errors = reading.join().map_err(|_| anyhow::anyhow!("panicked"))??;
        ensure!(errors == 0, "a blip became an error");
        Ok(())
    })?;
    rig.b.hydrated("c", 120)?;
    rig.same("c", &content)?;
    rig.sound()
}

/// A comes back with another address, which B has as well.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn the_source_moves() -> Result<()> {
    let mut rig = Rig::new("2M")?;
    let (snapshot, content) = rig.source("v", 32)?;
    let other = free_port()?;
    rig.b.terminate()?;
    rig.b.args.extend(["--peer".to_string(), format!("node-a={other}")]);
    rig.b.start()?;
    rig.restore(&snapshot, "c")?;
    rig.a.terminate()?;
    rig.a.args = vec!["--listen".into(), other.to_string()];
    rig.a.start()?;
    rig.same("c", &content)?;
    rig.b.hydrated("c", 60)?;
    rig.same("c", &content)
}

#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn certificates() -> Result<()> {
    let mut rig = Rig::new("1M")?;
    let (snapshot, content) = rig.source("v", 16)?;
    let (secret, _) = rig.source("w", 4)?;
    rig.restore(&snapshot, "c")?;
    rig.same("c", &content)?;
    let refused = |rig: &Rig, what: &str| -> Result<()> {
        let e = rig.b.read("c", 15 * MIB, 4096).err().with_context(|| format!("read with {what}"))?;
        ensure!(rig.b.lvol("c")?["state"] == "degraded", "{what}: {e}");
        Ok(())
    };
    let foreign = Authority::new()?;
    type Wrong<'a> = &'a dyn Fn(&Rig) -> Result<()>;
    let steps: [(&str, Wrong); 4] = [
        ("a certificate of another CA", &|rig| foreign.give(&rig.b.dir, "node-b", false)),
        ("an expired certificate", &|rig| rig.authority.give(&rig.b.dir, "node-b", true)),
        ("the certificate of another node", &|rig| rig.authority.give(&rig.b.dir, "node-c", false)),
        ("a source that is not who it should be", &|rig| {
            rig.authority.give(&rig.b.dir, "node-b", false)?;
            rig.authority.give(&rig.a.dir, "node-x", false)
        }),
    ];
    for (what, wrong) in steps {
        rig.b.terminate()?;
        rig.a.terminate()?;
        wrong(&rig)?;
        rig.a.start()?;
        rig.b.start()?;
        refused(&rig, what)?;
    }
    // Right ones again, in the running processes.
    rig.authority.give(&rig.a.dir, "node-a", false)?;
    until(40, "the new certificate", || Ok(rig.b.read("c", 15 * MIB, 4096).is_ok()))?;
    rig.same("c", &content)?;
    // What is not pinned for B is as if it were not there.
    let e = rig.b.coppice(&["lvol", "clone-external", &secret, "stolen"]).err().context("read what is not pinned")?;
    ensure!(!e.to_string().contains("pinned"), "{e}");
    // And a peer without a certificate learns nothing.
    let list = Command::new("nbdinfo").args(["--list", &format!("nbd://{}", rig.listen)]).output()?;
    let said = String::from_utf8_lossy(&list.stdout).to_string() + &String::from_utf8_lossy(&list.stderr);
    ensure!(!list.status.success() && !said.contains(&snapshot) && !said.contains(&secret), "{said}");
    // A pin that is taken away ends the reading.
    let lvstore = rig.lvstore_of_b()?;
    rig.a.coppice(&["lvol", "unpin", &snapshot, "--lvstore", &lvstore])?;
    rig.b.terminate()?;
    rig.b.start()?;
    refused(&rig, "a pin that was taken away")?;
    rig.pin(&snapshot)?;
    until(40, "it to be served again", || Ok(rig.b.read("c", 15 * MIB, 4096).is_ok()))?;
    rig.same("c", &content)?;
    rig.sound()
}

/// B is killed wherever it is, again and again, while it is written to.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn the_restored_side_is_killed() -> Result<()> {
    let mut rig = Rig::new("6M")?;
    let (snapshot, mut content) = rig.source("v", 48)?;
    rig.restore(&snapshot, "c")?;
    let mut snapshots = Vec::new();
    for n in 0..10u64 {
        let at = (n as usize * 4_444_444) % (47 * MIB) / 4096 * 4096;
        let data = bytes(100 + n, 200_000);
        rig.b.write("c", at, &data)?;
        content[at..at + data.len()].copy_from_slice(&data);
        if n == 4 {
            rig.b.coppice(&["lvol", "snapshot", "c", "cs"])?;
            snapshots.push(content.clone());
        }
        std::thread::sleep(Duration::from_millis(37 * (n * n % 13)));
        rig.b.kill()?;
        rig.b.start()?;
        ensure!(rig.b.read("c", at, data.len())? == data, "a write that was acknowledged as durable is gone");
        rig.never_wrong("c", &content, n, 2)?;
    }
    until(120, "hydration", || Ok(rig.b.json(&["lvstore", "show"])?.get("external_parents").is_none()))?;
    rig.same("c", &content)?;
    for content in &snapshots {
        rig.same("cs", content)?;
    }
    rig.sound()?;
    rig.a.terminate()?;
    rig.same("c", &content)
}

/// Between lvstores of one process pins come and go by themselves; NBD clients of the machine read every lvol; a file can be
/// the parent of a lvol of a closed store.
#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn near_at_hand() -> Result<()> {
    let mut rig = Rig::new("100M")?;
    let second = rig.a.dir.join("second.img").display().to_string();
    rig.a.terminate()?;
    rig.a.coppice(&["lvstore", "create", &second, "--size", "256M", "--name", "second"])?;
    rig.a.args.extend(["--lvstore".to_string(), second]);
    rig.a.start_with(&["lvstore", "ls"])?;
    rig.a.coppice(&["lvol", "create", "v", "16M", "--lvstore", "node-a"])?;
    let mut content = bytes(5, 16 * MIB);
    rig.a.write("v", 0, &content)?;
    let uuid = |lvol: serde_json::Value| lvol["uuid"].as_str().map(str::to_string).context("uuid");
    let first = uuid(rig.a.json(&["lvol", "snapshot", "v", "one"])?)?;
    rig.a.write("v", 4 * MIB, &bytes(6, MIB))?;
    let other = uuid(rig.a.json(&["lvol", "snapshot", "v", "two"])?)?;
    rig.a.coppice(&["lvol", "clone-external", &first, "near", "--lvstore", "second"])?;
    rig.a.coppice(&["lvol", "hydrate", "near"])?;
    ensure!(rig.a.read("near", 0, 16 * MIB)? == content, "the clone in the other lvstore");
    until(20, "the pin to go", || Ok(rig.a.lvol(&first)?.get("pins").is_none()))?;

    let uri =
        |lvol: &str| Ok::<_, anyhow::Error>(String::from_utf8(rig.a.coppice(&["lvol", "export", lvol, "--nbd"])?)?);
    let copy = rig.a.dir.join("copy");
    let copied = Command::new("nbdcopy").arg(uri("one")?.trim()).arg(&copy).output()?;
    ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    ensure!(std::fs::read(&copy)? == content, "what nbdcopy read");
    let map = Command::new("nbdinfo").arg(format!("--map=coppice:delta:{first}")).arg(uri("two")?.trim()).output()?;
    let map = String::from_utf8(map.stdout)?;
    let changed: Vec<&str> = map.lines().filter(|line| line.split_whitespace().nth(2) == Some("1")).collect();
    ensure!(changed.len() == 1 && changed[0].split_whitespace().nth(1) == Some("1048576"), "{other}: {map}");

    let closed = rig.b.store().display().to_string();
    rig.b.terminate()?;
    let parent = "11111111-1111-4111-8111-111111111111";
    let with = ["--image", &closed, "--external", &format!("{parent}={}", copy.display())];
    rig.b.coppice(&[&with[..], &["lvol", "clone-external", parent, "of-a-file", "--no-hydration"]].concat())?;
    let read = |rig: &Rig| rig.b.coppice(&[&with[..], &["lvol", "read", "of-a-file", "--length", "16M"]].concat());
    ensure!(read(&rig)? == content, "read through to the file");
    content.truncate(MIB);
    std::fs::write(&copy, &content)?;
    ensure!(read(&rig).is_err(), "a parent that lost its end was read");
    Ok(())
}

#[test]
#[ignore = "two minutes of bad networks; the step \"two-nodes\" of scripts/test.sh runs it"]
fn no_room_and_a_bad_page() -> Result<()> {
    let mut rig = Rig::with("100M", "1G", "128M")?;
    let (snapshot, content) = rig.source("v", 48)?;
    rig.b.coppice(&["lvol", "create", "big", "96M", "--thick"])?;
    let e = rig.restore(&snapshot, "c").err().context("there was no room for it")?;
    ensure!(e.to_string().contains("reserved"), "{e}");
    rig.b.coppice(&["lvol", "rm", "big"])?;
    until(10, "space to come back", || Ok(rig.b.coppice(&["lvol", "clone-external", &snapshot, "c"]).is_ok()))?;
    rig.b.hydrated("c", 60)?;
    rig.same("c", &content)?;
    // One page of the source's metadata does not check out: its lvol is not served, and nothing is made up.
    rig.b.coppice(&["lvol", "rm", "c"])?;
    until(10, "space to come back", || {
        Ok(rig.b.coppice(&["lvol", "clone-external", &snapshot, "d", "--no-hydration"]).is_ok())
    })?;
    rig.a.terminate()?;
    let mut image = std::fs::read(rig.a.store())?;
    let pages = image.len().min(64 * MIB) / 4096;
    // Its first descriptor says that it is an extent page.
    let extents: Vec<usize> = (1..pages)
        .filter(|n| {
            let page = &image[n * 4096..(n + 1) * 4096];
            coppice_engine::format::parse_page(page).is_ok() && page[16] == EXTENT_PAGE
        })
        .collect();
    ensure!(!extents.is_empty(), "no extent page");
    extents.iter().for_each(|n| image[n * 4096 + 100] ^= 0xff);
    std::fs::write(rig.a.store(), &image)?;
    rig.a.start()?;
    let errors = rig.never_wrong("d", &content, 5, 4)?;
    ensure!(errors == 4, "{errors} of 4 reads of a damaged snapshot were refused");
    extents.iter().for_each(|n| image[n * 4096 + 100] ^= 0xff);
    rig.a.kill()?;
    std::fs::write(rig.a.store(), &image)?;
    rig.a.start()?;
    until(40, "it to heal", || Ok(rig.b.read("d", 0, 4096).is_ok()))?;
    rig.same("d", &content)
}
