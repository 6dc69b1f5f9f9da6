//! Reads the source tree and holds it to the rules that no compiler knows.
//!
//! Each rule is a function from the tree to a list of complaints `path:line: what`, and each is shown a bad example here, so
//! that a rule that has gone blind is noticed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Longest Rust file, in lines: what one can read in a sitting, with some mercy. Tests may be longer.
const RUST_LINES_MAX: usize = 900;

/// Folders that are not source (`.git` is a file in a second work tree).
const SKIPPED: [&str; 4] = [".git", "target", "fuzz-out", "node_modules"];

/// Every text file of the tree, by its path from the root.
struct Tree {
    root: PathBuf,
    files: BTreeMap<String, String>,
}

impl Tree {
    fn read() -> Tree {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf();
        let mut files = BTreeMap::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("a folder of the tree") {
                let entry = entry.expect("an entry of the tree");
                let (path, kind) = (entry.path(), entry.file_type().expect("its type"));
                if SKIPPED.contains(&entry.file_name().to_string_lossy().as_ref()) {
                    continue;
                }
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file()
                    && let Ok(text) = fs::read_to_string(&path)
                {
                    let name = path.strip_prefix(&root).expect("below the root").to_string_lossy().into_owned();
                    files.insert(name, text);
                }
            }
        }
        assert!(files.contains_key("Cargo.toml") && files.contains_key("Makefile"), "this is not the tree");
        Tree { root, files }
    }

    /// A tree of files made up for showing that a rule sees.
    fn of(files: &[(&str, &str)]) -> Tree {
        let files = files.iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        Tree { root: PathBuf::from("/nonexistent"), files }
    }

    fn with(&self, extension: &str) -> impl Iterator<Item = (&str, &str)> {
        let dot = format!(".{extension}");
        self.files.iter().filter(move |(name, _)| name.ends_with(&dot)).map(|(n, t)| (n.as_str(), t.as_str()))
    }

    fn text(&self, name: &str) -> &str {
        self.files.get(name).map_or("", String::as_str)
    }

    /// Whether a path from the root exists, as a file or folder.
    fn has(&self, path: &str) -> bool {
        let folder = format!("{}/", path.trim_end_matches('/'));
        path.is_empty()
            || self.files.contains_key(path)
            || self.files.keys().any(|name| name.starts_with(&folder))
            || self.root.join(path).exists()
    }
}

/// The source with comments, strings and character literals blanked out; lines stay where they are.
fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let mut i = 0;
    // Skips to `end`, keeping the line breaks.
    let blank = |out: &mut String, from: usize, to: usize| {
        for c in chars.iter().take(to).skip(from) {
            out.push(if *c == '\n' { '\n' } else { ' ' });
        }
    };
    while i < chars.len() {
        let start = i;
        let word_before = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
        if at(i) == '/' && at(i + 1) == '/' {
            while i < chars.len() && at(i) != '\n' {
                i += 1;
            }
        } else if at(i) == '/' && at(i + 1) == '*' {
            let mut depth = 0;
            while i < chars.len() {
                match (at(i), at(i + 1)) {
                    ('/', '*') => (depth, i) = (depth + 1, i + 2),
                    ('*', '/') => (depth, i) = (depth - 1, i + 2),
                    _ => i += 1,
                }
                if depth == 0 {
                    break;
                }
            }
        } else if !word_before && raw_string_hashes(&chars, i).is_some() {
            let (hashes, open) = raw_string_hashes(&chars, i).unwrap_or_default();
            i = open + 1;
            while i < chars.len() && !(at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#')) {
                i += 1;
            }
            i += 1 + hashes;
        } else if at(i) == '"' {
            i += 1;
            while i < chars.len() && at(i) != '"' {
                i += if at(i) == '\\' { 2 } else { 1 };
            }
            i += 1;
        } else if at(i) == '\'' && (at(i + 1) == '\\' || at(i + 2) == '\'') {
            i += if at(i + 1) == '\\' { 3 } else { 2 };
            while i < chars.len() && at(i) != '\'' {
                i += 1;
            }
            i += 1;
        } else {
            out.push(at(i));
            i += 1;
            continue;
        }
        i = i.min(chars.len());
        blank(&mut out, start, i);
    }
    out
}

/// `r"`, `br#"` and the like at `i`: the number of hashes and where the quote is.
fn raw_string_hashes(chars: &[char], i: usize) -> Option<(usize, usize)> {
    let mut at = i;
    if matches!(chars.get(at), Some('b' | 'c')) {
        at += 1;
    }
    if chars.get(at) != Some(&'r') {
        return None;
    }
    at += 1;
    let hashes = chars.iter().skip(at).take_while(|c| **c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some((hashes, at + hashes))
}

/// Whether `word` stands in `line` with no identifier character on either side.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part) && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

fn unsafe_stays_in_sys(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.with("rs").filter(|(name, _)| !name.starts_with("engine/src/sys")) {
        for (n, line) in code_only(text).lines().enumerate() {
            if has_word(line, "unsafe") {
                found.push(format!("{name}:{}: unsafe code belongs in engine/src/sys", n + 1));
            }
        }
    }
    found
}

fn nothing_unfinished(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.with("rs") {
        for (n, line) in code_only(text).lines().enumerate() {
            for word in ["todo", "unimplemented", "dbg"] {
                let call = format!("{word}!");
                if line.contains(&call) && has_word(line, word) {
                    found.push(format!("{name}:{}: {call}", n + 1));
                }
            }
        }
    }
    found
}

fn files_are_readable(tree: &Tree) -> Vec<String> {
    let long = tree.with("rs").filter(|(name, text)| {
        !name.contains("tests/") && !name.contains("/generated") && text.lines().count() > RUST_LINES_MAX
    });
    long.map(|(name, text)| {
        format!("{name}:1: {} lines, {RUST_LINES_MAX} at most: a name is missing", text.lines().count())
    })
    .collect()
}

fn modules_say_what_they_own(tree: &Tree) -> Vec<String> {
    let silent = tree.with("rs").filter(|(name, text)| {
        // A few lines explain themselves.
        name.contains("src/") && text.lines().count() > 5 && !text.trim_start().starts_with("//!")
    });
    silent.map(|(name, _)| format!("{name}:1: say in a //! comment what this module owns and promises")).collect()
}

fn no_paths_of_one_machine(tree: &Tree) -> Vec<String> {
    // Put together here, so that this file does not contain them.
    let paths: Vec<String> = [("/wo", "rk/"), ("/ro", "ot/"), ("/ho", "me/"), ("/tmp", "/wt"), ("/tmp", "/target")]
        .map(|(a, b)| format!("{a}{b}"))
        .into();
    let mut found = Vec::new();
    for (name, text) in &tree.files {
        for (n, line) in text.lines().enumerate() {
            for path in &paths {
                // Only where it begins a path: "engine/work/" is someone's folder, not the machine's.
                let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-}~/".contains(c));
                if line.match_indices(path.as_str()).any(|(at, _)| begins(at)) {
                    found.push(format!("{name}:{}: a path of one machine: {path}", n + 1));
                }
            }
        }
    }
    found
}

/// Code blocks blanked out, lines kept: a link or heading in an example is none.
fn prose_only(text: &str) -> String {
    let mut fenced = false;
    let lines = text.lines().map(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fenced || fence { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The anchors of a document: its headings, lower case, words joined by hyphens.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose_only(text);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// `folder/../a/./b` without the dots; `None` if it leaves the tree.
fn normal(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn links_resolve(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in tree.with("md") {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (n, line) in prose_only(text).lines().enumerate() {
            for target in line.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
                if target.contains("://") || target.starts_with("mailto:") {
                    continue;
                }
                let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
                let path = if path.is_empty() { Some(name.to_string()) } else { normal(&format!("{folder}/{path}")) };
                match path {
                    Some(path) if tree.has(&path) => {
                        if !anchor.is_empty() && !anchors(tree.text(&path)).contains(anchor) {
                            found.push(format!("{name}:{}: {path} has no heading #{anchor}", n + 1));
                        }
                    }
                    _ => found.push(format!("{name}:{}: the link {target} leads nowhere", n + 1)),
                }
            }
        }
    }
    found
}

fn make_targets_exist(tree: &Tree) -> Vec<String> {
    let makefile = tree.text("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '#', '.']))
        .filter_map(|line| line.split_once(':'))
        .filter(|(_, rest)| !rest.starts_with('='))
        .map(|(target, _)| target.trim())
        .collect();
    let mut found = Vec::new();
    for (name, text) in tree.with("md") {
        let mut fenced = false;
        for (n, line) in text.lines().enumerate() {
            fenced ^= line.trim_start().starts_with("```");
            // In prose only what is set as code counts: "make sure" is English.
            let code: Vec<&str> = if fenced { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
            for code in code {
                let Some(rest) = code.trim_start().strip_prefix("make ") else { continue };
                let words = rest.split_whitespace().take_while(|word| !word.starts_with('#'));
                for word in words.filter(|word| !word.contains('=') && !word.starts_with('-')) {
                    if !targets.contains(word) {
                        found.push(format!("{name}:{}: the Makefile has no target \"{word}\"", n + 1));
                    }
                }
            }
        }
    }
    found
}

fn licence_is_there(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let licence = tree.text("LICENSE");
    if !licence.contains("Apache License") || !licence.contains("Version 2.0, January 2004") {
        found.push("LICENSE:1: the text of Apache-2.0 is missing".to_string());
    }
    for (name, text) in tree.with("toml").filter(|(name, _)| name.ends_with("Cargo.toml")) {
        let said = text.contains("license.workspace = true") || text.contains("license = \"Apache-2.0\"");
        if !said {
            found.push(format!("{name}:1: say license.workspace = true"));
        }
    }
    found
}

fn scripts_stop_at_errors(tree: &Tree) -> Vec<String> {
    let scripts = tree
        .files
        .iter()
        .filter(|(_, text)| text.starts_with("#!") && text.lines().next().is_some_and(|l| l.ends_with("bash")));
    let careless =
        scripts.filter(|(_, text)| !text.lines().any(|line| line == "set -euo pipefail" || line == "set -uo pipefail"));
    careless.map(|(name, _)| format!("{name}:1: set -euo pipefail is missing")).collect()
}

#[track_caller]
fn holds(rule: fn(&Tree) -> Vec<String>) {
    let found = rule(&Tree::read());
    assert!(found.is_empty(), "{} complaint(s):\n{}", found.len(), found.join("\n"));
}

#[track_caller]
fn sees(rule: fn(&Tree) -> Vec<String>, bad: &[(&str, &str)], good: &[(&str, &str)]) {
    assert!(!rule(&Tree::of(bad)).is_empty(), "the rule does not see the bad example");
    assert_eq!(rule(&Tree::of(good)), Vec::<String>::new(), "the rule complains about the good example");
}

#[test]
fn unsafe_code_is_in_one_folder() {
    sees(
        unsafe_stays_in_sys,
        &[("engine/src/a.rs", "let c = '\"'; unsafe { f() }; let s = \"\";")],
        &[
            ("engine/src/sys/ring.rs", "unsafe { f() }"),
            (
                "node/src/a.rs",
                "#![deny(unsafe_code)] // unsafe\n/* unsafe */ let s = r#\"unsafe \"#; let t = \"\\\"unsafe\";",
            ),
        ],
    );
    holds(unsafe_stays_in_sys);
}

#[test]
fn nothing_is_left_unfinished() {
    sees(
        nothing_unfinished,
        &[("a/src/a.rs", concat!("fn f() { to", "do!() }"))],
        &[("a/src/a.rs", "// no todo! here\nlet s = \"dbg!\";")],
    );
    holds(nothing_unfinished);
}

#[test]
fn files_can_be_read_in_a_sitting() {
    let long = "//! x\n".repeat(RUST_LINES_MAX + 1);
    sees(files_are_readable, &[("a/src/a.rs", &long)], &[("a/tests/a.rs", &long), ("a/src/b.rs", "//! x\n")]);
    holds(files_are_readable);
}

#[test]
fn modules_open_with_what_they_own() {
    let code = "fn f() {}\n".repeat(9);
    let opened = format!("//! Owns f.\n{code}");
    sees(modules_say_what_they_own, &[("a/src/a.rs", &code)], &[("a/src/a.rs", &opened), ("a/tests/t.rs", &code)]);
    holds(modules_say_what_they_own);
}

#[test]
fn no_path_of_a_work_machine() {
    sees(
        no_paths_of_one_machine,
        &[("docs/a.md", concat!("see `/ho", "me/me/x`"))],
        &[("docs/a.md", concat!("see `docs/ho", "me/x` and ~/ro", "ot/"))],
    );
    holds(no_paths_of_one_machine);
}

#[test]
fn every_link_in_the_documents_leads_somewhere() {
    let there = ("docs/b.md", "# A title: with, signs\n");
    sees(
        links_resolve,
        &[("docs/a.md", "[b](c.md)"), there],
        &[("docs/a.md", "[b](./b.md) [c](https://x.y/z)"), there],
    );
    let good = [("docs/a.md", "[b](b.md#a-title-with-signs)"), there];
    sees(links_resolve, &[("docs/a.md", "[b](b.md#other)"), there], &good);
    holds(links_resolve);
}

#[test]
fn every_make_target_in_the_documents_exists() {
    let makefile = ("Makefile", "SHELL := bash\ntest: build ## text\n\t@true\n");
    sees(
        make_targets_exist,
        &[("README.md", "run `make tset`"), makefile],
        &[("README.md", "make sure of `make test A=b`\n```\nmake test   # a remark\n```\n"), makefile],
    );
    holds(make_targets_exist);
}

#[test]
fn the_licence_is_there_and_named() {
    let licence = ("LICENSE", "Apache License\nVersion 2.0, January 2004");
    sees(
        licence_is_there,
        &[("a/Cargo.toml", "[package]"), licence],
        &[("a/Cargo.toml", "[package]\nlicense.workspace = true"), licence],
    );
    holds(licence_is_there);
}

#[test]
fn every_script_stops_at_errors() {
    sees(
        scripts_stop_at_errors,
        &[("a.sh", "#!/usr/bin/env bash\ntrue\n")],
        &[("a.sh", "#!/usr/bin/env bash\nset -euo pipefail\n"), ("b.py", "#!/usr/bin/env python3\n")],
    );
    holds(scripts_stop_at_errors);
}
