//! What is on a device, by blkid with kubelet's conventions: exit code 2 means blank, anything else but 0 is an error.
//!
//! blkid also answers 2 when it cannot open or read the device. A device is called blank only after its ends, where every
//! signature is, have been read here without error.

use super::command::{blocking, run};
use crate::error::Doing;
use crate::{Error, Result};
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

const PROBE_SECONDS_MAX: u64 = 60;
/// Signatures lie within the first and last mebibyte.
const ENDS_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    Blank,
    FileSystem { fs_type: String, uuid: String },
    PartitionTable(String),
}

pub async fn probe(device: &Path) -> Result<Content> {
    let deadline = Duration::from_secs(PROBE_SECONDS_MAX);
    let path = device.to_path_buf();
    blocking(&format!("read {}", device.display()), deadline, move || read_ends(&path)).await?;
    let mut args: Vec<&std::ffi::OsStr> =
        ["-p", "-s", "TYPE", "-s", "PTTYPE", "-s", "UUID", "-o", "export"].map(std::ffi::OsStr::new).to_vec();
    args.push(device.as_os_str());
    let out = run("blkid", &args, deadline).await?;
    match out.code {
        Some(2) if out.stderr.trim().is_empty() && out.stdout.trim().is_empty() => Ok(Content::Blank),
        Some(0) => found(&out.stdout).ok_or_else(|| out.error()),
        _ => Err(out.error()),
    }
}

fn found(export: &str) -> Option<Content> {
    let value = |key: &str| {
        export.lines().find_map(|line| line.split_once('=').filter(|(k, _)| *k == key).map(|(_, v)| v.to_string()))
    };
    match (value("TYPE"), value("PTTYPE")) {
        (Some(fs_type), _) => Some(Content::FileSystem { fs_type, uuid: value("UUID").unwrap_or_default() }),
        (None, Some(table)) => Some(Content::PartitionTable(table)),
        (None, None) => None,
    }
}

fn read_ends(device: &Path) -> Result<()> {
    let what = || format!("read {}", device.display());
    let mut file = std::fs::File::open(device).doing(what)?;
    let size = file.seek(SeekFrom::End(0)).doing(what)?;
    if size == 0 {
        return Err(Error::Host(format!("{} has no size", device.display())));
    }
    for start in [0, size.saturating_sub(ENDS_BYTES)] {
        file.seek(SeekFrom::Start(start)).doing(what)?;
        let mut end = Vec::new();
        file.by_ref().take(ENDS_BYTES).read_to_end(&mut end).doing(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn blank_full_and_absent() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let image = dir.path().join("image");
        std::fs::File::create(&image)?.set_len(16 << 20)?;
        assert_eq!(probe(&image).await?, Content::Blank);
        run("mkfs.ext4", &[image.as_os_str()], Duration::from_secs(60)).await?.ok()?;
        match probe(&image).await? {
            Content::FileSystem { fs_type, uuid } => assert_eq!((fs_type.as_str(), uuid.len()), ("ext4", 36)),
            other => anyhow::bail!("{other:?}"),
        }
        assert!(probe(&dir.path().join("absent")).await.is_err(), "what cannot be read is not blank");
        let empty = dir.path().join("empty");
        std::fs::File::create(&empty)?;
        assert!(probe(&empty).await.is_err());
        Ok(())
    }
}
