//! Result rows, as a table for people and as JSON for programs.

use super::load::Slice;
use super::stats::{estimate, median};
use anyhow::Result;
use serde::Serialize;

/// Takes each row as soon as it is known.
pub type Show<'a> = dyn FnMut(Row) -> Result<()> + 'a;

/// One figure. `ratio` is how the lvol does against the raw device: 1 is as good, more is better, whatever the unit.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub name: String,
    pub unit: &'static str,
    pub raw: Option<f64>,
    pub lvol: f64,
    pub ratio: Option<f64>,
    /// 95 % interval of the ratio.
    pub ratio_low: Option<f64>,
    pub ratio_high: Option<f64>,
    /// CPU time of the data thread per I/O, microseconds, kernel included.
    pub cpu_us_raw: Option<f64>,
    pub cpu_us_lvol: Option<f64>,
    /// Median of the differences pair by pair, with its interval: what the lvol layer costs.
    pub cpu_us_above: Option<f64>,
    pub cpu_us_above_low: Option<f64>,
    pub cpu_us_above_high: Option<f64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

impl Row {
    /// Runs of raw device and lvol, pair by pair; `scale` turns I/Os per second into the unit.
    pub fn of_pairs(name: impl Into<String>, unit: &'static str, scale: f64, pairs: &[(Slice, Slice)]) -> Row {
        let each = |f: &dyn Fn(&(Slice, Slice)) -> f64| pairs.iter().map(f).collect::<Vec<f64>>();
        let ratio = estimate(&each(&|(raw, lvol)| lvol.per_second() / raw.per_second().max(1e-9)));
        let above = estimate(&each(&|(raw, lvol)| lvol.cpu_us() - raw.cpu_us()));
        Row {
            name: name.into(),
            unit,
            raw: Some(median(&each(&|(raw, _)| raw.per_second() * scale))),
            lvol: median(&each(&|(_, lvol)| lvol.per_second() * scale)),
            ratio: Some(ratio.median),
            ratio_low: Some(ratio.low),
            ratio_high: Some(ratio.high),
            cpu_us_raw: Some(median(&each(&|(raw, _)| raw.cpu_us()))),
            cpu_us_lvol: Some(median(&each(&|(_, lvol)| lvol.cpu_us()))),
            cpu_us_above: Some(above.median),
            cpu_us_above_low: Some(above.low),
            cpu_us_above_high: Some(above.high),
            note: String::new(),
        }
    }

    /// A figure without a counterpart on the raw device.
    pub fn alone(name: impl Into<String>, unit: &'static str, value: f64) -> Row {
        Row {
            name: name.into(),
            unit,
            raw: None,
            lvol: value,
            ratio: None,
            ratio_low: None,
            ratio_high: None,
            cpu_us_raw: None,
            cpu_us_lvol: None,
            cpu_us_above: None,
            cpu_us_above_low: None,
            cpu_us_above_high: None,
            note: String::new(),
        }
    }

    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.note = note.into();
        self
    }
}

const HEADER: [&str; 9] = ["", "unit", "raw", "lvol", "ratio", "95 %", "CPU µs raw", "CPU µs lvol", "above raw, 95 %"];
const WIDTHS: [usize; 9] = [50, 5, 10, 10, 6, 11, 10, 11, 20];

fn line(cells: &[String]) -> String {
    let mut out = String::new();
    for (n, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        let pad = " ".repeat(width.saturating_sub(cell.chars().count()));
        let (before, after) = if n < 2 { ("", pad.as_str()) } else { (pad.as_str(), "") };
        out.push_str(&format!("{before}{cell}{after}  "));
    }
    out.trim_end().to_string()
}

pub fn header() -> String {
    line(&HEADER.map(String::from))
}

/// Three significant digits, thousands as they are.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 0.1 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

pub fn text(row: &Row) -> String {
    let some = |v: Option<f64>, digits: usize| v.map_or(String::new(), |v| format!("{v:.digits$}"));
    let interval = match (row.ratio_low, row.ratio_high) {
        (Some(low), Some(high)) => format!("{low:.3}–{high:.3}"),
        _ => String::new(),
    };
    let above = match (row.cpu_us_above, row.cpu_us_above_low, row.cpu_us_above_high) {
        (Some(m), Some(low), Some(high)) => format!("{m:+.2} ({low:+.2}…{high:+.2})"),
        _ => String::new(),
    };
    let mut out = line(&[
        row.name.clone(),
        row.unit.to_string(),
        row.raw.map_or(String::new(), figure),
        figure(row.lvol),
        some(row.ratio, 3),
        interval,
        some(row.cpu_us_raw, 2),
        some(row.cpu_us_lvol, 2),
        above,
    ]);
    if !row.note.is_empty() {
        out.push_str(&format!("  {}", row.note));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(ops: u64, cpu_ns: u64) -> Slice {
        Slice { ops, wall_ns: 1_000_000_000, cpu_ns, latencies: Vec::new() }
    }

    #[test]
    fn a_pair_becomes_a_ratio_and_a_difference() {
        let pairs = vec![(slice(1000, 2_000_000), slice(900, 2_250_000)); 5];
        let row = Row::of_pairs("x", "kIOPS", 1e-3, &pairs);
        assert!((row.ratio.expect("ratio") - 0.9).abs() < 1e-9);
        assert!((row.raw.expect("raw") - 1.0).abs() < 1e-9);
        assert!((row.cpu_us_raw.expect("cpu") - 2.0).abs() < 1e-9);
        assert!((row.cpu_us_above.expect("above") - 0.5).abs() < 1e-9);
    }

    #[test]
    fn the_table_lines_up() {
        let row = Row { ratio: Some(0.5), ..Row::alone("µ – wide letters", "ms", 2.0) };
        let at = |text: &str, word: &str| {
            text.find(word).map(|n| text[..n].chars().count() + word.chars().count()).expect("the word")
        };
        assert_eq!(at(&header(), "ratio"), at(&text(&row), "0.500"));
    }
}
