//! What the tree looks like.

use super::*;
use std::collections::BTreeMap;
use uuid::Uuid;

const CLUSTER: u32 = 1 << 20;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn lvol(n: u128, name: &str, kind: LvolKind, parent: u128, size_mib: u64, own: u64) -> LvolInfo {
    LvolInfo {
        uuid: id(n),
        name: name.into(),
        alias: format!("fast/{name}"),
        lvstore: "fast".into(),
        size: size_mib << 20,
        block_size: 4096,
        num_blocks: (size_mib << 20) / 4096,
        cluster_size: CLUSTER,
        thin: true,
        kind,
        parent: (parent > 0).then(|| id(parent)),
        children: Vec::new(),
        allocated_clusters: own,
        state: LvolState::Ok,
        reason: None,
        exports: Vec::new(),
        attributes: BTreeMap::new(),
        ..LvolInfo::default()
    }
}

fn store() -> StoreInfo {
    StoreInfo {
        uuid: id(1000),
        name: "fast".into(),
        path: "/dev/nvme1n1".into(),
        owner: None,
        size: 64 << 30,
        cluster_size: CLUSTER,
        block_size: 4096,
        total_clusters: 65536,
        metadata_clusters: 1024,
        allocated_clusters: 15360,
        reserved_clusters: 8192,
        quarantined_clusters: 0,
        free_clusters: 40960,
        metadata_pages: 100,
        free_metadata_pages: 50,
        max_size: 256 << 30,
        lvols: 3,
        snapshots: 2,
        external_parents: Vec::new(),
        hidden_bytes: 0,
        bstype: "COPPICE".into(),
        clean: false,
        read_only: false,
        spdk_readable: false,
        seal_work: Vec::new(),
        failed: None,
    }
}

fn lines(lvols: &[LvolInfo]) -> Vec<String> {
    draw(&[store()], lvols, false).lines().map(str::to_string).collect()
}

/// The example of docs/cli.md.
fn example() -> Vec<LvolInfo> {
    let (snapshot, clone) = (LvolKind::Snapshot, LvolKind::Clone);
    let mut all = vec![
        lvol(1, "db-monday", snapshot, 0, 20480, 9216),
        lvol(2, "db-tuesday", snapshot, 1, 20480, 512),
        lvol(3, "db", clone, 2, 20480, 300),
        lvol(4, "report", clone, 1, 30720, 1),
        lvol(5, "old", snapshot, 2, 20480, 0),
        lvol(6, "ci-1", clone, 5, 20480, 64),
        lvol(7, "ci-2", clone, 5, 20480, 0),
        lvol(8, "queue", LvolKind::Lvol, 0, 8192, 0),
    ];
    all[2].exports.push("/dev/loop0".into());
    all[4].state = LvolState::Hidden;
    all[7].thin = false;
    all
}

const EXAMPLE: &str = "\
NAME           KIND            SIZE        OWN  OWN%   INHERITS  STATE   EXPORTS
db-monday      snapshot    20.0 GiB    9.0 GiB   45%          –  ok      –
├─ db-tuesday  snapshot    20.0 GiB  512.0 MiB    2%  ≤ 9.0 GiB  ok      –
│  ├─ db       clone       20.0 GiB  300.0 MiB    1%  ≤ 9.5 GiB  ok      /dev/loop0
│  └─ old      snapshot    20.0 GiB        0 B    0%  ≤ 9.5 GiB  hidden  –
│     ├─ ci-1  clone       20.0 GiB   64.0 MiB   <1%  ≤ 9.5 GiB  ok      –
│     └─ ci-2  clone       20.0 GiB        0 B    0%  ≤ 9.5 GiB  ok      –
└─ report      clone       30.0 GiB    1.0 MiB   <1%  ≤ 9.0 GiB  ok      –
queue          thick lvol   8.0 GiB        0 B    0%          –  ok      –

fast  ████████▒▒▒▒░░░░░░░░░░░░░░░░░░░░  16.0 GiB used, 8.0 GiB reserved, 40.0 GiB free of 64.0 GiB
";

#[test]
fn the_example_is_drawn() {
    assert_eq!(draw(&[store()], &example(), false), EXAMPLE);
}

#[test]
fn the_documents_show_what_is_drawn() {
    assert!(
        include_str!("../../docs/cli.md").contains(EXAMPLE),
        "docs/cli.md must hold:
{EXAMPLE}"
    );
}

#[test]
fn colour_changes_no_letter() {
    let plain = draw(&[store()], &example(), false);
    assert!(!plain.contains('\x1b'));
    let coloured = draw(&[store()], &example(), true);
    let hidden = coloured.lines().find(|line| line.contains(" old ")).expect("drawn");
    assert!(hidden.starts_with(DIM) && hidden.ends_with(PLAIN), "{hidden}");
    let stripped = [DIM, RED, BOLD, PLAIN].iter().fold(coloured, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn nothing_is_left_out() {
    let snapshot = LvolKind::Snapshot;
    // A parent that is not there, and two that are each other's parents.
    let all = [
        lvol(1, "orphan", LvolKind::Clone, 99, 1, 0),
        lvol(2, "a", snapshot, 3, 1, 0),
        lvol(3, "b", snapshot, 2, 1, 0),
    ];
    let drawn = lines(&all);
    for name in ["orphan ", "a ", "└─ b "] {
        assert_eq!(drawn.iter().filter(|line| line.starts_with(name)).count(), 1, "{name}: {drawn:?}");
    }
    assert_eq!(drawn.len(), 1 + 3 + 2);
}

#[test]
fn an_inherited_part_is_no_larger_than_what_is_not_own() {
    let snapshot = lvol(1, "s", LvolKind::Snapshot, 0, 100, 90);
    let full = lvol(2, "full", LvolKind::Clone, 1, 100, 100);
    let most = lvol(3, "most", LvolKind::Clone, 1, 100, 60);
    let drawn = lines(&[snapshot, full, most]);
    assert!(drawn[2].contains("├─ full") && !drawn[2].contains('≤'), "{drawn:?}");
    assert!(drawn[3].contains("└─ most") && drawn[3].contains("≤ 40.0 MiB"), "{drawn:?}");
}

#[test]
fn a_long_chain_is_drawn_narrowly_and_without_recursion() {
    let chain: Vec<LvolInfo> = (1..=3000).map(|n| lvol(n, &format!("s{n}"), LvolKind::Snapshot, n - 1, 1, 0)).collect();
    let drawn = lines(&chain);
    assert_eq!(drawn.len(), 3000 + 3);
    assert!(drawn[3].starts_with("  └ s3 "), "{}", drawn[3]);
}

#[test]
fn stores_without_lvols_and_names_that_are_hostile() {
    assert_eq!(lines(&[])[0], "no lvols");
    let drawn = lines(&[lvol(1, "a\x1b[2J\nb", LvolKind::Lvol, 0, 1, 0)]);
    assert!(drawn[1].starts_with("a\\u{1b}[2J\\nb "), "{drawn:?}");
    let mut full = store();
    (full.allocated_clusters, full.reserved_clusters, full.free_clusters) = (64512, 0, 0);
    full.hidden_bytes = 1 << 30;
    let mut gone = lvol(1, &format!(".deleted-{}", id(1)), LvolKind::Snapshot, 0, 1, 0);
    gone.state = LvolState::Hidden;
    assert!(lines(&[gone])[1].starts_with("(deleted)  snapshot"));
    let drawn = draw(&[full], &[], false);
    assert!(drawn.contains(&"█".repeat(32)) && drawn.contains("(1.0 GiB by hidden snapshots)"), "{drawn}");
}

#[test]
fn several_stores_keep_their_own() {
    let mut other = store();
    other.name = "slow".into();
    let mut b = lvol(2, "b", LvolKind::Lvol, 0, 1, 0);
    b.lvstore = "slow".into();
    let drawn = draw(&[store(), other], &[lvol(1, "a", LvolKind::Lvol, 0, 1, 0), b], false);
    let heads: Vec<&str> = drawn.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(heads, ["NAME", "a", "", "fast", "", "NAME", "b", "", "slow"]);
}
