//! What reaches the terminal: tables for people, JSON for programs.
//!
//! Names come from a device and may hold anything: what would move a cursor is escaped before a person sees it.

use anyhow::{Context, Result};
use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, IsTerminal, Write};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs; keys are stable.
    Json,
}

/// Writes text to standard output. A reader that has seen enough (`| head`) is no failure.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
}

pub fn print_json<T: Serialize>(value: &T) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// A value as JSON, or else the text for a person.
pub fn show<T: Serialize>(format: Format, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    match format {
        Format::Json => print_json(value),
        Format::Table => print(&(text() + "\n")),
    }
}

/// Colour is for a person at a terminal who has not asked for none (`NO_COLOR`).
pub fn colour() -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
    !refused && !dumb && std::io::stdout().is_terminal()
}

/// A name as it can be shown: control characters and direction marks are escaped.
pub fn clean(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if hidden(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

/// A column: its heading, and whether it holds numbers.
pub type Column = (&'static str, bool);

pub const fn left(heading: &'static str) -> Column {
    (heading, false)
}

pub const fn right(heading: &'static str) -> Column {
    (heading, true)
}

/// Lines without borders, columns aligned, two spaces apart; the first line is the headings, if there are any. One line
/// per row.
pub fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if columns.iter().any(|(heading, _)| !heading.is_empty()) {
        table.set_header(columns.iter().map(|(heading, _)| *heading));
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for (n, (_, number)) in columns.iter().enumerate() {
        if let Some(column) = table.column_mut(n) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if *number { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table.lines().map(|line| line.trim_end().to_string()).collect()
}

/// `key  value` lines.
pub fn facts(facts: Vec<(&'static str, String)>) -> String {
    table(&[left(""), left("")], facts.into_iter().map(|(key, value)| vec![key.to_string(), value])).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_bare() {
        let rows = [vec!["a".into(), "1".into()], vec!["long name".into(), "1000".into()]];
        assert_eq!(
            table(&[left("NAME"), right("SIZE")], rows),
            ["NAME       SIZE", "a             1", "long name  1000"]
        );
    }

    #[test]
    fn wide_letters_count_double() {
        let rows = [vec!["数据".into(), "x".into()], vec!["abcd".into(), "y".into()]];
        assert_eq!(table(&[left("N"), left("V")], rows), ["N     V", "数据  x", "abcd  y"]);
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        assert_eq!(clean("a\u{1b}[2Jb\n\u{202e}ü"), "a\\u{1b}[2Jb\\n\\u{202e}ü");
        let rows = [vec!["a\nb".to_string()]];
        assert_eq!(table(&[left("NAME")], rows).len(), 2);
    }
}
