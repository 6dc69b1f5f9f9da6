//! What users put into volumes, and whether it is still there.
//!
//! Content follows from a number, so only the number is remembered. What was written and not yet flushed when the driver
//! died may hold anything of before or after; it is not looked at again until it is written anew.

use crate::random::Random;
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const SLOT_BYTES: u64 = 32 << 10;
pub const SLOTS: u64 = 24;

/// What is known of a volume's content: files of a file system, or slots of a block device.
#[derive(Clone, Debug, Default)]
pub struct Content {
    known: BTreeMap<u64, u64>,
    doubtful: BTreeSet<u64>,
}

fn bytes_of(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let count = random.between(1, 96 << 10) as usize;
    random.bytes(count)
}

fn name(slot: u64) -> String {
    format!("file-{slot}")
}

/// Where slot `slot` of a device of `size` bytes is; none if it does not fit.
fn offset(slot: u64, size: u64) -> Option<u64> {
    // Spread, so that slots meet many clusters, and always at the same place, however far the volume grows.
    let at = slot * (96 << 10);
    (at + SLOT_BYTES <= size).then_some(at)
}

fn slot_bytes(number: u64) -> Vec<u8> {
    Random::new(number).bytes(SLOT_BYTES as usize)
}

impl Content {
    /// Changes one file durably. On an error it is in doubt.
    pub fn change_file(&mut self, dir: &Path, random: &mut Random) -> Result<()> {
        let (slot, number) = (random.below(SLOTS), random.next());
        let path = dir.join(name(slot));
        let here = File::open(dir)?;
        let remove = random.chance(20);
        let before = self.known.remove(&slot);
        let doubted = !self.doubtful.insert(slot);
        if remove {
            match fs::remove_file(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound && (before.is_none() || doubted) => {}
                other => other?,
            }
        } else {
            let mut file = OpenOptions::new().write(true).create(true).truncate(random.chance(50)).open(&path)?;
            let content = bytes_of(number);
            file.write_all(&content)?;
            file.set_len(content.len() as u64)?;
            file.sync_all()?;
        }
        here.sync_all()?;
        self.doubtful.remove(&slot);
        if !remove {
            self.known.insert(slot, number);
        }
        Ok(())
    }

    pub fn check_files(&self, dir: &Path) -> Result<()> {
        for (slot, number) in &self.known {
            let path = dir.join(name(*slot));
            let found = fs::read(&path).with_context(|| format!("what was flushed to {}", path.display()))?;
            compare(&found, &bytes_of(*number)).with_context(|| format!("{}", path.display()))?;
        }
        for entry in fs::read_dir(dir)? {
            let found = entry?.file_name().to_string_lossy().into_owned();
            let Some(slot) = found.strip_prefix("file-").and_then(|slot| slot.parse().ok()) else { continue };
            ensure!(
                self.known.contains_key(&slot) || self.doubtful.contains(&slot),
                "{} should not be there",
                dir.join(found).display()
            );
        }
        Ok(())
    }

    /// Changes one slot of a device durably.
    pub fn change_device(&mut self, device: &Path, size: u64, random: &mut Random) -> Result<()> {
        let (slot, number) = (random.below(SLOTS), random.next());
        let Some(at) = offset(slot, size) else { return Ok(()) };
        let mut file = OpenOptions::new().write(true).open(device)?;
        self.known.remove(&slot);
        self.doubtful.insert(slot);
        file.seek(SeekFrom::Start(at))?;
        file.write_all(&slot_bytes(number))?;
        file.sync_all()?;
        self.doubtful.remove(&slot);
        self.known.insert(slot, number);
        Ok(())
    }

    /// Slots that were never written are zero.
    pub fn check_device(&self, device: &Path, size: u64) -> Result<()> {
        let mut file = File::open(device)?;
        for slot in (0..SLOTS).filter(|slot| !self.doubtful.contains(slot)) {
            let Some(at) = offset(slot, size) else { continue };
            let mut found = vec![0; SLOT_BYTES as usize];
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut found)?;
            let want = self.known.get(&slot).map_or_else(|| vec![0; found.len()], |number| slot_bytes(*number));
            compare(&found, &want).with_context(|| format!("slot {slot} of {} at {at}", device.display()))?;
        }
        Ok(())
    }
}

fn compare(found: &[u8], want: &[u8]) -> Result<()> {
    if found == want {
        return Ok(());
    }
    ensure!(found.len() == want.len(), "{} bytes, {} were flushed", found.len(), want.len());
    let at = found.iter().zip(want).position(|(a, b)| a != b).unwrap_or_default();
    let zero = found.iter().skip(at).take(512).all(|byte| *byte == 0);
    bail!("differs from what was flushed at {at} of {} (zero there: {zero})", want.len())
}

/// True if something is mounted at `path`.
pub fn is_mounted(path: &Path) -> Result<bool> {
    Ok(coppice_node::host::mountinfo::at(path)?.is_some() && fs::symlink_metadata(path).is_ok_and(|m| m.mode() != 0))
}
