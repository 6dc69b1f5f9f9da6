//! The real binary, as a person or a script uses it: on images, and against a process that serves the admin socket.

use anyhow::{Context, Result, ensure};
use coppice_engine::{Engine, EngineConfig, OpenStore};
use coppice_node::admin::AdminService;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A folder with images, in which the binary runs.
struct Place {
    dir: TempDir,
}

/// How a run ended.
struct Run {
    code: Option<i32>,
    out: Vec<u8>,
    err: String,
}

impl Run {
    fn of(output: Output) -> Run {
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        Run { code: output.status.code(), out: output.stdout, err }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }
}

impl Place {
    fn new() -> Result<Place> {
        Ok(Place { dir: tempfile::tempdir()? })
    }

    /// With a lvstore `fast` of 64 MiB in 64 KiB clusters on fast.img.
    fn with_store() -> Result<Place> {
        let place = Place::new()?;
        place.ok("lvstore create fast.img --size 64M --cluster-size 64K")?;
        Ok(place)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_coppice"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, line: &str) -> Result<Run> {
        Ok(Run::of(self.command(line).output()?))
    }

    #[track_caller]
    fn ok(&self, line: &str) -> Result<String> {
        let run = self.run(line)?;
        ensure!(run.code == Some(0) && run.err.is_empty(), "{line}: {:?} {}", run.code, run.err);
        Ok(run.text())
    }

    /// On fast.img.
    fn img(&self, line: &str) -> Result<String> {
        self.ok(&format!("{line} --image fast.img"))
    }

    fn json(&self, line: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.img(&format!("{line} -o json"))?)?)
    }

    /// Refused: exit code 1, nothing on standard output, one sentence with these words on standard error.
    fn refused(&self, line: &str, words: &str) -> Result<()> {
        let run = self.run(line)?;
        ensure!(run.code == Some(1), "{line}: {:?} {} {}", run.code, run.text(), run.err);
        ensure!(run.out.is_empty(), "{line} printed {}", run.text());
        ensure!(run.err.lines().count() == 1 && run.err.starts_with("error: "), "{line}: {}", run.err);
        ensure!(run.err.contains(words), "{line}: {:?} is not in {}", words, run.err);
        Ok(())
    }

    fn write(&self, line: &str, data: &[u8]) -> Result<Run> {
        let mut child =
            self.command(line).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("standard input")?;
        let sent = input.write_all(data);
        drop(input);
        let run = Run::of(child.wait_with_output()?);
        // A command that refuses need not read to the end.
        ensure!(sent.is_ok() || run.code != Some(0), "{line}: {sent:?}");
        Ok(run)
    }

    fn write_ok(&self, line: &str, data: &[u8]) -> Result<()> {
        let run = self.write(&format!("{line} --image fast.img"), data)?;
        ensure!(run.code == Some(0), "{line}: {}", run.err);
        Ok(())
    }

    fn read(&self, line: &str) -> Result<Vec<u8>> {
        let run = self.run(&format!("{line} --image fast.img"))?;
        ensure!(run.code == Some(0), "{line}: {}", run.err);
        Ok(run.out)
    }
}

/// Bytes that repeat nowhere near a cluster.
fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn the_life_of_a_lvol() -> Result<()> {
    let place = Place::with_store()?;
    assert_eq!(place.img("lvol create db 8M")?, "created lvol fast/db (8.0 MiB)\n");
    let first = pattern(300_001, 1);
    place.write_ok("lvol write db --offset 4097", &first)?;
    assert_eq!(place.read("lvol read db --offset 4097 --length 300001")?, first);
    let whole = place.read("lvol read fast/db")?;
    assert_eq!(whole.len() as u64, 8 * MIB);
    assert!(whole[..4097].iter().all(|b| *b == 0) && whole[4097 + first.len()..].iter().all(|b| *b == 0));

    assert_eq!(place.img("lvol snapshot db monday")?, "took snapshot fast/monday of db\n");
    let second = pattern(100_000, 2);
    place.write_ok("lvol write db", &second)?;
    assert_eq!(place.read("lvol read monday --offset 4097 --length 300001")?, first);
    assert_eq!(place.read("lvol read db --length 100000")?, second);

    place.img("lvol clone monday copy --size 16M")?;
    assert_eq!(place.read("lvol read copy --offset 4097 --length 300001")?, first);
    place.img("lvol rename copy report")?;
    place.img("lvol resize report 1Gi")?;
    assert_eq!(place.json("lvol show report")?["size"], 1u64 << 30);
    place.img("lvol resize report --size 8M")?;
    assert_eq!(place.json("lvol show report")?["size"], 8 * MIB);

    assert_eq!(place.img("lvol revert db monday")?, "fast/db went back to monday\n");
    assert_eq!(place.read("lvol read db --offset 4097 --length 300001")?, first);

    place.img("lvol inflate report")?;
    let report = place.json("lvol show report")?;
    assert_eq!((report["kind"].as_str(), report["parent"].is_null()), (Some("lvol"), true), "{report}");
    assert_eq!(place.read("lvol read report --offset 4097 --length 300001")?, first);
    place.img("lvol decouple db")?;
    assert_eq!(place.json("lvol show db")?["parent"], Value::Null);

    for name in ["monday", "report", "db"] {
        assert_eq!(place.img(&format!("lvol rm {name}"))?, format!("deleted fast/{name}\n"));
    }
    assert_eq!(place.json("lvol ls --hidden")?, Value::Array(Vec::new()));
    assert_eq!(place.img("lvstore check")?, "nothing found: every invariant holds\n");
    let store = place.json("lvstore show")?;
    assert_eq!((&store["allocated_clusters"], &store["reserved_clusters"]), (&0.into(), &0.into()));
    Ok(())
}

#[test]
fn the_tree_as_people_see_it() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    place.write_ok("lvol write db", &pattern(2 << 20, 1))?;
    place.img("lvol snapshot db monday")?;
    place.write_ok("lvol write db --offset 4M", &pattern(65536, 2))?;
    place.img("lvol snapshot db tuesday")?;
    place.img("lvol clone monday report --size 16M --thick")?;
    place.img("lvol clone tuesday ci")?;
    place.img("lvol create queue 1M")?;
    assert_eq!(
        place.img("lvol rm tuesday --deferred")?,
        "hid fast/tuesday: 2 clones read it, its space comes back with them\n"
    );
    // The first three in order of creation; what a snapshot leaves behind is older than a clone made later.
    let expected = "\
NAME             KIND             SIZE       OWN  OWN%   INHERITS  STATE   EXPORTS
monday           snapshot      8.0 MiB   2.0 MiB   25%          –  ok      –
├─ (deleted)     snapshot      8.0 MiB  64.0 KiB   <1%  ≤ 2.0 MiB  hidden  –
│  ├─ db         clone         8.0 MiB       0 B    0%  ≤ 2.1 MiB  ok      –
│  └─ ci         clone         8.0 MiB       0 B    0%  ≤ 2.1 MiB  ok      –
└─ report        thick clone  16.0 MiB       0 B    0%  ≤ 2.0 MiB  ok      –
queue            lvol          1.0 MiB       0 B    0%          –  ok      –
";
    let drawn = place.img("lvol tree")?;
    let squeeze =
        |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    let (tree, space) = drawn.split_once("\n\n").context("a footer")?;
    assert_eq!(squeeze(tree), squeeze(expected), "{drawn}");
    assert!(
        space.starts_with("fast  █") && space.contains("16.0 MiB reserved") && space.contains("64.0 KiB by hidden"),
        "{space}"
    );
    // Columns are aligned: every kind begins below KIND.
    let column = |line: &str| line.chars().count();
    let head = tree.lines().next().context("a heading")?;
    let at = column(head.split("KIND").next().unwrap_or_default());
    for line in tree.lines().skip(1) {
        let before: String = line.chars().take(at).collect();
        assert!(before.ends_with("  "), "{line}");
    }
    assert!(!drawn.contains('\x1b'), "no colour in a pipe");
    assert_eq!(place.img("lvol tree fast")?, drawn);
    Ok(())
}

#[test]
fn json_for_programs() -> Result<()> {
    let place = Place::with_store()?;
    let keys = |value: &Value| -> BTreeSet<String> {
        value.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default()
    };
    let lvol_keys: BTreeSet<String> =
        "uuid name alias lvstore size block_size num_blocks cluster_size thin kind parent \
                                       children allocated_clusters state exports"
            .split_whitespace()
            .map(str::to_string)
            .collect();
    let made = place.json("lvol create db 1000000 --thick")?;
    assert_eq!(keys(&made), lvol_keys);
    assert_eq!(made["size"], 16 * 65536, "rounded up to whole clusters");
    assert_eq!((&made["thin"], &made["kind"], &made["state"]), (&false.into(), &"lvol".into(), &"ok".into()));
    assert_eq!((&made["alias"], &made["lvstore"]), (&"fast/db".into(), &"fast".into()));
    assert_eq!(made["num_blocks"].as_u64(), Some(16 * 65536 / 4096));
    let snapshot = place.json("lvol snapshot db s")?;
    assert_eq!((&snapshot["kind"], &snapshot["name"]), (&"snapshot".into(), &"s".into()));
    let clone = place.json("lvol clone s c")?;
    assert_eq!((&clone["kind"], &clone["parent"]), (&"clone".into(), &snapshot["uuid"]));
    let all = place.json("lvol ls")?;
    let names: Vec<_> = all.as_array().context("an array")?.iter().map(|l| l["name"].as_str()).collect();
    assert_eq!(names.len(), 3);
    assert!(all.as_array().into_iter().flatten().any(|l| *l == clone), "ls prints what show prints");
    let id = clone["uuid"].as_str().context("a UUID")?;
    assert_eq!(place.json(&format!("lvol show {id}"))?, clone);
    assert_eq!(place.json("lvol tree")?, all);
    assert_eq!(place.json("lvol rm c")?["uuid"], clone["uuid"]);

    let stores = place.json("lvstore ls")?;
    let store = place.json("lvstore show fast")?;
    assert_eq!(stores, Value::Array(vec![store.clone()]));
    let number = |key: &str| store[key].as_u64().unwrap_or(u64::MAX);
    let parts =
        ["metadata_clusters", "allocated_clusters", "reserved_clusters", "quarantined_clusters", "free_clusters"];
    assert_eq!(parts.map(number).iter().sum::<u64>(), number("total_clusters"), "{store}");
    assert_eq!((number("size"), number("cluster_size"), number("lvols")), (64 * MIB, 65536, 1));
    assert_eq!(place.json("lvstore check")?, serde_json::json!({ "findings": [] }));
    assert_eq!(place.json("lvstore seal")?["name"], "fast");
    Ok(())
}

#[test]
fn looking_changes_no_byte() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    place.write_ok("lvol write db", &pattern(1 << 20, 3))?;
    let before = std::fs::read(place.path("fast.img"))?;
    for line in ["lvstore ls", "lvstore show", "lvstore check", "lvol ls", "lvol tree", "lvol show db", "lvol read db"]
    {
        place.img(line)?;
        assert!(std::fs::read(place.path("fast.img"))? == before, "{line} changed the image");
    }
    Ok(())
}

#[test]
fn a_sealed_store_is_plain() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    assert_eq!(place.img("lvstore seal")?, "sealed lvstore fast and closed it: SPDK can open it now\n");
    let store = place.json("lvstore show")?;
    assert_eq!((&store["spdk_readable"], &store["clean"]), (&true.into(), &true.into()), "{store}");
    assert_eq!(store["bstype"], "LVOLSTORE");
    Ok(())
}

#[test]
fn a_file_that_was_made_larger() -> Result<()> {
    let place = Place::with_store()?;
    assert!(place.img("lvstore grow")?.contains("already"));
    OpenOptions::new().write(true).open(place.path("fast.img"))?.set_len(128 * MIB)?;
    assert_eq!(place.img("lvstore grow fast")?, "lvstore fast grew from 64.0 MiB to 128.0 MiB\n");
    assert_eq!(place.json("lvstore show")?["size"], 128 * MIB);
    place.img("lvol create large 100M --thick")?;
    place.img("lvstore check")?;
    Ok(())
}

#[test]
fn check_says_what_it_finds() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    let image = OpenOptions::new().read(true).write(true).open(place.path("fast.img"))?;
    let mut word = [0; 4];
    image.read_exact_at(&mut word, 48)?;
    let metadata = u64::from(u32::from_le_bytes(word)) * 4096;
    // Page 0 of the metadata is the lvstore's own; the lvol's come next.
    for page in 1..16 {
        let mut byte = [0];
        let at = metadata + page * 4096 + 100;
        image.read_exact_at(&mut byte, at)?;
        image.write_all_at(&[byte[0] ^ 0xff], at)?;
    }
    let run = place.run("lvstore check --image fast.img -o json")?;
    assert_eq!(run.code, Some(1), "{}", run.err);
    let found: Value = serde_json::from_str(&run.text())?;
    let findings = found["findings"].as_array().context("an array")?;
    assert!(!findings.is_empty() && findings.iter().all(|f| f["kind"].is_string() && f["message"].is_string()));
    let run = place.run("lvstore check --image fast.img")?;
    assert_eq!(run.code, Some(1));
    assert!(run.text().starts_with("FOUND"), "{}", run.text());
    Ok(())
}

#[test]
fn removing_a_store() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    // Without page 0 the store is found by the copy that its last close left: so the copy has to go too.
    let image = OpenOptions::new().read(true).write(true).open(place.path("fast.img"))?;
    let mut page = [0; 4096];
    image.read_exact_at(&mut page, 0)?;
    image.write_all_at(&[0; 4096], 0)?;
    assert_eq!(place.json("lvstore show")?["name"], "fast");
    image.write_all_at(&page, 0)?;
    drop(image);

    let before = std::fs::read(place.path("fast.img"))?;
    place.refused("lvstore rm fast.img", "holds 1 lvols (db)")?;
    assert!(std::fs::read(place.path("fast.img"))? == before);
    assert_eq!(place.ok("lvstore rm fast.img --force")?, "removed lvstore fast with 1 lvols from fast.img\n");
    place.refused("lvstore show --image fast.img", "not a lvstore")?;
    place.refused("lvstore rm fast.img --force", "nothing to remove")?;
    place.ok("lvstore create fast.img --name again")?;
    assert_eq!(place.ok("lvstore rm --image fast.img")?, "removed lvstore again from fast.img\n");
    place.refused("lvstore rm nowhere.img", "does not exist")?;
    std::fs::write(place.path("letter"), pattern(1 << 20, 9))?;
    place.refused("lvstore rm letter --force", "nothing to remove")?;
    assert!(std::fs::read(place.path("letter"))? == pattern(1 << 20, 9));
    Ok(())
}

#[test]
fn removing_a_store_that_does_not_open() -> Result<()> {
    let place = Place::with_store()?;
    let image = OpenOptions::new().write(true).open(place.path("fast.img"))?;
    // The metadata of the lvstore itself.
    let md_start = {
        let mut word = [0; 4];
        File::open(place.path("fast.img"))?.read_exact_at(&mut word, 48)?;
        u64::from(u32::from_le_bytes(word))
    };
    image.write_all_at(&[0x5a; 4096], md_start * 4096)?;
    drop(image);
    place.refused("lvstore rm fast.img", "--force removes it")?;
    place.ok("lvstore rm fast.img --force")?;
    place.ok("lvstore create fast.img")?;
    Ok(())
}

#[test]
fn what_is_refused() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    place.img("lvol snapshot db s")?;
    place.img("lvol clone s c")?;
    let long = "n".repeat(64);
    let refusals = [
        ("lvol show nobody", "there is no lvol \"nobody\""),
        ("lvol show 00000000-0000-4000-8000-000000000000", "there is no lvol"),
        ("lvstore show nobody", "there is no lvstore \"nobody\""),
        ("lvol create db 1M", "db"),
        (&format!("lvol create {long} 1M"), "1 to 63 bytes"),
        ("lvol create big 1G --thick", "big"),
        ("lvol snapshot s t", "snapshot"),
        ("lvol clone db e", "snapshot"),
        ("lvol clone s e --size 1M", "8388608"),
        ("lvol rm s", "delete clones first, or ask for deferred deletion (--deferred)"),
        ("lvol revert s s", "snapshot"),
        ("lvol rename c db", "db"),
        ("lvol read db --offset 9M", "beyond the end"),
        ("lvol read db --offset 8M --length 1", "beyond the end"),
        ("lvol export db", "coppice standalone"),
        ("lvol clone-external 11111111-1111-4111-8111-111111111111 y", "no open lvstore here has"),
        ("lvol ls nobody", "there is no lvstore"),
    ];
    for (line, words) in refusals {
        place.refused(&format!("{line} --image fast.img"), words)?;
    }
    place.refused("lvol ls --image nowhere.img", "nowhere.img")?;
    place.refused("lvol ls --image .", "not a file or block device")?;
    place.refused("lvol ls --run-dir nowhere", "coppice standalone")?;
    place.refused("node --node-name n --endpoint nowhere", "must be absolute")?;
    place.refused("controller --pod-name p --pod-namespace s --endpoint nowhere", "must be absolute")?;
    place.img("lvstore check")?;
    Ok(())
}

#[test]
fn what_is_not_formatted() -> Result<()> {
    let place = Place::with_store()?;
    place.refused("lvstore create fast.img", "not blank")?;
    place.refused("lvstore create fast.img --size 64M", "not blank")?;
    place.refused("lvstore create fast.img --size 65M", "exists already")?;
    place.refused("lvstore create new.img", "--size")?;
    place.refused("lvstore create /dev/null --size 1G", "no file")?;
    place.refused("lvstore create small.img --size 64K", "at least")?;
    assert!(!place.path("small.img").exists(), "nothing is left of what was refused");
    place.refused("lvstore create new.img --size 64M --cluster-size 100000", "power of two")?;
    let ext4 = File::create(place.path("ext4.img"))?;
    ext4.set_len(64 * MIB)?;
    ext4.write_all_at(&[0x53, 0xef], 0x438)?;
    place.refused("lvstore create ext4.img", "ext2/3/4")?;
    let mut magic = [0; 2];
    File::open(place.path("ext4.img"))?.read_exact_at(&mut magic, 0x438)?;
    assert_eq!(magic, [0x53, 0xef]);
    place.ok("lvstore create ext4.img --force")?;
    assert!(place.ok("lvstore ls --image ext4.img")?.contains("ext4 "), "named after the file");
    Ok(())
}

#[test]
fn wrong_usage_is_code_2() -> Result<()> {
    let place = Place::with_store()?;
    let lines = [
        "",
        "lvol",
        "nonsense",
        "lvol create db --image fast.img",
        "lvol create db 1X --image fast.img",
        "lvol create db 1M --size 1M --image fast.img",
        "lvol create db -- -1",
        "lvol resize db",
        "lvol read db --offset much",
        "lvol ls -o yaml",
        "lvstore create",
        "lvstore rm",
        "lvstore create a.img --image fast.img",
        "demo --image fast.img",
    ];
    for line in lines {
        let run = place.run(line)?;
        assert_eq!(run.code, Some(2), "{line}: {}", run.err);
        assert!(run.out.is_empty() && !run.err.is_empty(), "{line}");
    }
    let help = place.ok("lvol create --help")?;
    assert!(help.contains("powers of 1024"), "{help}");
    Ok(())
}

#[test]
fn input_that_does_not_fit() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 64K")?;
    // A file's length is known beforehand: nothing is written.
    std::fs::write(place.path("long"), pattern(65537, 4))?;
    let mut command = place.command("lvol write db --image fast.img");
    let run = Run::of(command.stdin(File::open(place.path("long"))?).output()?);
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("65537") && run.err.contains("65536"), "{}", run.err);
    assert!(place.read("lvol read db")?.iter().all(|b| *b == 0));
    // A pipe's is not: what fits is written, and that is said.
    let run = place.write("lvol write db --offset 60K --image fast.img", &pattern(8192, 5))?;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("first 4096 bytes were written"), "{}", run.err);
    assert_eq!(place.read("lvol read db --offset 60K")?, pattern(8192, 5)[..4096]);
    let run = place.write("lvol write db --offset 65K --image fast.img", b"x")?;
    assert!(run.code == Some(1) && run.err.contains("beyond the end"), "{}", run.err);
    // Exactly to the end fits, and nothing at all does.
    place.write_ok("lvol write db", &pattern(65536, 6))?;
    place.write_ok("lvol write db --offset 64K", b"")?;
    assert_eq!(place.read("lvol read db")?, pattern(65536, 6));
    place.img("lvol snapshot db s")?;
    let run = place.write("lvol write s --image fast.img", b"x")?;
    assert!(run.code == Some(1) && run.err.contains("snapshot"), "{}", run.err);
    Ok(())
}

#[test]
fn an_interrupted_command_closes_the_store() -> Result<()> {
    let place = Place::with_store()?;
    place.img("lvol create db 8M")?;
    let mut child = place
        .command("lvol write db --image fast.img")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("standard input")?;
    input.write_all(&pattern(1 << 20, 7))?;
    let deadline = Instant::now() + Duration::from_secs(60);
    // A second opener is refused from the moment on when the first has it.
    loop {
        let run = place.run("lvol ls --image fast.img")?;
        if run.code == Some(1) && run.err.contains("open in another process") {
            break;
        }
        ensure!(Instant::now() < deadline, "the first opener never came: {}", run.err);
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(200));
    ensure!(Command::new("kill").args(["-INT", &child.id().to_string()]).status()?.success(), "kill");
    let run = Run::of(child.wait_with_output()?);
    drop(input);
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: interrupted\n"));
    let store = place.json("lvstore show")?;
    assert_eq!((&store["clean"], &store["bstype"]), (&true.into(), &"LVOLSTORE".into()), "{store}");
    place.img("lvstore check")?;
    Ok(())
}

/// Two stores, served as a running process serves them.
async fn serve(dir: &Path) -> Result<Engine> {
    let engine = Engine::start(EngineConfig::default())?;
    let mut stores = Vec::new();
    for name in ["fast.img", "slow.img"] {
        stores.push(engine.open_store(&dir.join(name), OpenStore::default()).await?);
    }
    let service = AdminService::new(stores.into(), dir.join("run/exports"));
    let listener = coppice_proto::unix::listen(&dir.join("run/admin.sock"))?;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service.into_server()).serve_with_incoming(incoming));
    Ok(engine)
}

#[test]
fn a_running_process_and_its_stores() -> Result<()> {
    let place = Place::with_store()?;
    place.ok("lvstore create slow.img --size 64M")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let engine = runtime.block_on(serve(place.dir.path()))?;
    let on = |line: &str| place.ok(&format!("{line} --run-dir run"));

    place.refused("lvol create db 8M --run-dir run", "say which lvstore")?;
    on("lvol create db 8M --lvstore slow")?;
    on("lvol create db 4M --lvstore fast")?;
    place.refused("lvol show db --run-dir run", "not unique")?;
    let data = pattern(3 << 20, 8);
    let run = place.write("lvol write slow/db --offset 512 --run-dir run", &data)?;
    assert_eq!(run.code, Some(0), "{}", run.err);
    on("lvol snapshot slow/db s")?;
    let run = place.run("lvol read s --offset 512 --length 3M --run-dir run")?;
    assert!(run.code == Some(0) && run.out == data, "{}", run.err);
    let drawn = on("lvol tree")?;
    assert!(drawn.contains("\nfast  ") && drawn.contains("\nslow  ") && drawn.contains("└─ db"), "{drawn}");
    let stores: Value = serde_json::from_str(&on("lvstore ls -o json")?)?;
    assert_eq!(stores.as_array().map(Vec::len), Some(2));
    on("lvol inflate slow/db")?;
    on("lvstore check slow")?;
    assert!(on("lvstore seal slow")?.contains("next close"));
    assert_eq!(on("lvol rm s")?, "deleted slow/s\n");

    // Whoever has a store open keeps everybody else out.
    place.refused("lvol ls --image slow.img", "open in another process")?;
    place.refused("lvstore rm slow.img --force", "open in another process")?;
    place.refused("lvstore create slow.img --force", "open in another process")?;

    place.refused("lvol export slow/db --stop --run-dir run", "not exported")?;
    let device = on("lvol export slow/db --read-only")?;
    let device = device.trim_end();
    assert!(device.starts_with("/dev/loop"), "{device}");
    let mut bytes = vec![0; data.len()];
    File::open(device)?.read_exact_at(&mut bytes, 512)?;
    assert!(bytes == data);
    let lvol: Value = serde_json::from_str(&on("lvol show slow/db -o json")?)?;
    assert_eq!(lvol["exports"], serde_json::json!([device]));
    place.refused("lvol rm slow/db --run-dir run", "in use")?;
    on("lvol export slow/db --stop")?;
    on("lvol rm slow/db")?;

    runtime.block_on(engine.shutdown());
    drop(runtime);
    place.refused("lvol ls --run-dir run", "no coppice process answers")?;
    Ok(())
}
