//! Threads that use a published volume: as a block device, or through a file system.

use crate::disk::{Disk, Random};
use crate::model::{BLOCK, Content, new_value, stamp};
use anyhow::{Context, Result, bail};
use coppice_engine::shard::sync::lock;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Blocks of one write at most.
const BLOCKS_MAX: u64 = 64;
/// Files that a file system holds at most.
const FILES_MAX: usize = 24;

/// What must be in a volume.
#[derive(Clone)]
pub enum Holds {
    Blocks(Arc<Mutex<Content>>),
    /// Name, value and bytes of each file that was synced.
    Files(Arc<Mutex<Vec<(String, u64, usize)>>>),
}

pub struct Writer {
    thread: JoinHandle<Result<()>>,
    stop: Arc<AtomicBool>,
}

impl Writer {
    pub fn start(at: PathBuf, holds: Holds, disk: Arc<Disk>, seed: u64) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let random = Random(seed);
            let done = match &holds {
                Holds::Blocks(content) => write_blocks(&at, content, &disk, random, &stopped),
                Holds::Files(files) => write_files(&at, files, &disk, random, &stopped),
            };
            // Without power nothing succeeds.
            done.or_else(|e| if disk.is_on() { Err(e.context(at.display().to_string())) } else { Ok(()) })
        });
        Writer { thread, stop }
    }

    pub fn finish(self) -> Result<()> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?
    }
}

fn write_blocks(at: &Path, content: &Mutex<Content>, disk: &Disk, mut random: Random, stop: &AtomicBool) -> Result<()> {
    let file = File::from(rustix::fs::open(at, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, Mode::empty())?);
    let mut memory = vec![0u8; (BLOCKS_MAX as usize + 1) * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    while !stop.load(Ordering::SeqCst) {
        if random.percent(15) {
            file.sync_data()?;
            if disk.is_on() {
                lock(content).flushed();
            }
            continue;
        }
        let all = lock(content).size() / BLOCK as u64;
        // Half of the writes meet in an eighth of the volume.
        let space = if random.percent(50) { all / 8 } else { all };
        let first = random.below(space);
        let longest = if random.percent(80) { 8 } else { BLOCKS_MAX };
        let blocks = (1 + random.below(longest)).min(all - first);
        let zero = random.percent(10);
        let value = if zero { 0 } else { new_value() };
        lock(content).issue(first as usize, blocks as usize, value);
        let (off, len) = (first * BLOCK as u64, blocks as usize * BLOCK);
        if zero {
            rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, off, len as u64)?;
        } else {
            let bytes = &mut memory[aligned..aligned + len];
            stamp(bytes, off as usize / 512, value);
            file.write_all_at(bytes, off)?;
        }
        if !disk.is_on() {
            return Ok(());
        }
        lock(content).complete(first as usize, blocks as usize);
    }
    Ok(())
}

fn write_files(
    dir: &Path,
    files: &Mutex<Vec<(String, u64, usize)>>,
    disk: &Disk,
    mut random: Random,
    stop: &AtomicBool,
) -> Result<()> {
    while !stop.load(Ordering::SeqCst) {
        let (value, len) = (new_value(), BLOCK * (1 + random.below(16) as usize));
        let name = format!("file-{value}");
        let mut bytes = vec![0u8; len];
        stamp(&mut bytes, 0, value);
        let mut file = File::create(dir.join(&name))?;
        file.write_all(&bytes)?;
        if random.percent(30) {
            continue; // Never synced, and nobody asks for it.
        }
        file.sync_all()?;
        File::open(dir)?.sync_all()?;
        if !disk.is_on() {
            return Ok(());
        }
        lock(files).push((name, value, len));
        let old = {
            let mut files = lock(files);
            let old = files.len().saturating_sub(FILES_MAX);
            files.drain(..old).collect::<Vec<_>>()
        };
        for (old, ..) in old {
            fs::remove_file(dir.join(old))?;
        }
        // Those that nobody asks for go too.
        for entry in fs::read_dir(dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let known = lock(files).iter().any(|(known, ..)| *known == name);
            if name.starts_with("file-") && !known && random.percent(50) {
                fs::remove_file(entry.path())?;
            }
        }
    }
    Ok(())
}

/// Every file that was synced is there.
pub fn check_files(dir: &Path, files: &[(String, u64, usize)]) -> Result<()> {
    for (name, value, len) in files {
        let found = fs::read(dir.join(name)).with_context(|| format!("{name} was synced"))?;
        let mut expected = vec![0u8; *len];
        stamp(&mut expected, 0, *value);
        if found != expected {
            bail!("{name} was synced and holds something else");
        }
    }
    Ok(())
}
