//! docs/troubleshooting.md has every reason and condition, in the table of its kind: a state that a person sees in a column can
//! be looked up there. And nothing else, so that what is renamed or removed does not stay.

use coppice_kube_api::{LvolCondition, LvolReason, LvstoreCondition, LvstoreReason};
use std::collections::BTreeSet;
use std::path::Path;

fn words<T: Copy + Into<&'static str>>(all: &[T]) -> BTreeSet<&'static str> {
    all.iter().map(|word| (*word).into()).collect()
}

/// The text below a heading, up to the next of its level or a higher one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(&format!("\n{heading}\n")).map_or(page.len(), |at| at + heading.len() + 2);
    let text = page.get(start..).unwrap_or_default();
    text.find("\n## ").and_then(|end| text.get(..end)).unwrap_or(text)
}

/// What is set as code in the first cell of each row.
fn first_cells(section: &str) -> BTreeSet<&str> {
    let rows = section.lines().filter_map(|line| line.strip_prefix("| "));
    let cells = rows.filter_map(|row| row.split(" |").next());
    cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect()
}

/// What the section about a kind lacks, or has too much.
fn complaints(page: &str, heading: &str, reasons: &BTreeSet<&str>, conditions: &BTreeSet<&str>) -> Vec<String> {
    let text = section(page, heading);
    let there = first_cells(text);
    let missing = reasons.difference(&there).map(|word| format!("{heading}: there is no row for `{word}`"));
    let unknown = there.difference(reasons).map(|word| format!("{heading}: `{word}` is not a reason"));
    let silent = conditions.iter().filter(|word| !text.contains(&format!("`{word}`")));
    let silent = silent.map(|word| format!("{heading}: the condition `{word}` is not mentioned"));
    missing.chain(unknown).chain(silent).collect()
}

#[test]
fn a_page_that_lacks_something_is_seen() {
    let (reasons, conditions) = (BTreeSet::from(["Open", "Lost"]), BTreeSet::from(["Ready"]));
    let of = |page: &str| complaints(page, "## A", &reasons, &conditions);
    assert_eq!(of("\n## A\n`Ready`\n| `Open`, `Lost` | x |\n\n## B\n| `Other` | x |\n"), Vec::<String>::new());
    assert_eq!(of("").len(), 3, "no such section");
    assert_eq!(of("\n## A\n`Ready`\n| `Open` | see `Lost` |\n").len(), 1, "mentioned, but no row");
    assert_eq!(of("\n## A\n`Ready`\n| `Open` | x |\n## B\n| `Lost` | x |\n").len(), 1, "in another section");
    assert_eq!(of("\n## A\n`Ready`\n| `Open`, `Lost`, `Gone` | x |\n").len(), 1, "a reason that there is not");
    assert_eq!(of("\n## A\nReady\n| `Open`, `Lost` | x |\n").len(), 1, "a condition that is not set as code");
}

#[test]
fn every_state_can_be_looked_up() -> Result<(), std::io::Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let page = std::fs::read_to_string(path)?;
    let lvstore = (words(LvstoreReason::ALL), words(LvstoreCondition::ALL));
    let lvol = (words(LvolReason::ALL), words(LvolCondition::ALL));
    let mut found = complaints(&page, "## States of a Lvstore", &lvstore.0, &lvstore.1);
    found.extend(complaints(&page, "## States of a Lvol", &lvol.0, &lvol.1));
    assert!(found.is_empty(), "docs/troubleshooting.md:\n{}", found.join("\n"));
    Ok(())
}
