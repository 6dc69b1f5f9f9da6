//! `coppice bench --quick` runs to its end, and what it prints for programs is what the documents promise. The figures
//! themselves are not judged: a test machine is busy with other tests.

#[path = "common/program.rs"]
mod program;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Command;

fn number(row: &Value, key: &str) -> Result<f64> {
    row[key].as_f64().with_context(|| format!("{key} of {row} is a number"))
}

#[test]
#[ignore = "half a minute of full load; the step \"bench\" of scripts/test.sh runs it"]
fn a_quick_run_prints_every_row_as_json() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let run =
        Command::new(program::coppice()).args(["-o", "json", "bench", "--quick", "--dir"]).arg(dir.path()).output()?;
    ensure!(run.status.success(), "bench failed: {}", String::from_utf8_lossy(&run.stderr));
    let printed: Value = serde_json::from_slice(&run.stdout)?;
    let rows = printed["rows"].as_array().context("an array of rows")?;
    let names: BTreeSet<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    ensure!(names.len() == rows.len(), "each row has a name of its own");
    for device in ["file", "memory"] {
        for what in [
            "4k random read qd1",
            "4k random read qd32",
            "4k random overwrite qd1",
            "4k random overwrite qd32",
            "128k sequential read qd4",
            "128k sequential overwrite qd4",
            "4k first touch qd1",
            "4k first touch qd32",
            "4k first touch, COW qd1",
            "4k first touch, COW qd32",
            "4k random read qd32, depth 8 against 0",
            "4k random read qd32, depth 32 against 0",
            "4k random overwrite qd32, depth 32 against 0",
            "flush, no map change",
            "flush with a map change",
            "16 writers: overwrite and flush",
            "16 writers: first touch and flush",
        ] {
            let name = format!("{device}: {what}");
            let row = rows.iter().find(|row| row["name"] == name.as_str()).with_context(|| format!("row {name}"))?;
            ensure!(row["unit"].is_string(), "{row}");
            ensure!(number(row, "raw")? > 0.0 && number(row, "lvol")? > 0.0, "both sides did something: {row}");
            ensure!(number(row, "cpu_us_raw")? > 0.0 && number(row, "cpu_us_lvol")? > 0.0, "{row}");
            let (low, ratio, high) = (number(row, "ratio_low")?, number(row, "ratio")?, number(row, "ratio_high")?);
            ensure!(0.0 < low && low <= ratio && ratio <= high, "the interval holds the ratio: {row}");
        }
        let held = format!("{device}: 4k write qd4 p99.9, calm / snapshotted");
        ensure!(names.contains(held.as_str()), "row {held}");
    }
    for name in ["null: 4k random read qd32", "snapshot, 1 GiB mapped", "delete of the snapshot, 1 GiB mapped"] {
        ensure!(names.contains(name), "row {name}");
    }
    for device in ["file", "memory"] {
        for what in [
            "restored elsewhere: created and first read",
            "4k read of the other store's qd1 p99",
            "hydration of 128 MiB, nbdcopy / lvol",
            "4k read qd4 p99, calm / another hydrates",
        ] {
            let name = format!("{device}: {what}");
            let row = rows.iter().find(|row| row["name"] == name.as_str()).with_context(|| format!("row {name}"))?;
            ensure!(number(row, "lvol")? > 0.0, "{row}");
        }
        let copy = format!("{device}: hydration of 128 MiB, nbdcopy / lvol");
        let row = rows.iter().find(|row| row["name"] == copy.as_str()).context("the row of the copy")?;
        ensure!(number(row, "raw")? > 0.0, "nbdcopy is there: {row}");
    }
    ensure!(std::fs::read_dir(dir.path())?.next().is_none(), "nothing stays behind");
    Ok(())
}
