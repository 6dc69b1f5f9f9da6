//! Stores that a real SPDK wrote: finds the archives and unpacks them into a temporary folder.
//!
//! `COPPICE_FIXTURES` names their folder; without it they are looked for beside the source tree. `none` skips the tests
//! that need them, and a line on the output says so.

// Each test binary that includes this module uses a part of it.
#![allow(dead_code)]

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub struct Fixture {
    folder: TempDir,
    pub name: String,
    /// What SPDK itself reported about the store.
    pub facts: Value,
}

/// The folder of the archives, None when the tests that need it are to be skipped.
pub fn folder() -> Result<Option<PathBuf>> {
    let folder = match std::env::var_os("COPPICE_FIXTURES") {
        Some(value) if value == "none" => {
            println!("skipped: COPPICE_FIXTURES=none");
            return Ok(None);
        }
        Some(value) => PathBuf::from(value),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/spdk"),
    };
    ensure!(
        folder.is_dir(),
        "no folder {}: set COPPICE_FIXTURES to the folder of the stores written by SPDK (*.tar.zst), or to `none` to skip",
        folder.display()
    );
    Ok(Some(folder))
}

/// Names of all archives in the folder.
pub fn names() -> Result<Option<Vec<String>>> {
    let Some(folder) = folder()? else { return Ok(None) };
    let mut names = Vec::new();
    for entry in folder.read_dir()? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".tar.zst").map(str::to_string));
    }
    names.sort();
    Ok(Some(names))
}

impl Fixture {
    pub fn unpack(name: &str) -> Result<Option<Fixture>> {
        let Some(archives) = folder()? else { return Ok(None) };
        let archive = archives.join(format!("{name}.tar.zst"));
        let folder = tempfile::Builder::new().prefix("coppice-fixture-").tempdir()?;
        let mut tar = Command::new("tar");
        tar.args(["--sparse", "--zstd", "-xf"]).arg(&archive).arg("-C").arg(folder.path());
        let output = tar.output().context("run tar")?;
        ensure!(
            output.status.success(),
            "tar could not unpack {} (is zstd installed?): {}",
            archive.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        let json = std::fs::read(folder.path().join(format!("{name}.json")))?;
        let facts = serde_json::from_slice(&json).with_context(|| format!("{name}.json"))?;
        Ok(Some(Fixture { folder, name: name.to_string(), facts }))
    }

    pub fn image(&self) -> PathBuf {
        self.file(&format!("{}.img", self.name))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
