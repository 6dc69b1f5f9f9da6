//! A process outside that ends what a killed driver leaves waiting.
//!
//! A thread that asks a device of its own process waits in the kernel for an answer that a killed process cannot give. The
//! wait ends when the kernel gives the FUSE connection up, and the kernel does not as long as that thread keeps the rings
//! mapped on which requests are read: the process would never be gone, nor its locks. The guard sees its pipe close,
//! because such threads hold no files ([`coppice_engine::sys::apart`]), and aborts the connections of the run directory.
//!
//! Then it waits for those threads: one that is mounting may still do so, and the successor has to find that mount. It holds
//! the run directory's lock until it is done, so that it never meets a successor's exports.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Waits for the end of its input. A forced unmount of a file system in use fails, after it has aborted the connection; so
/// mount and device stay for the successor, who cleans up. Of a process whose threads have ended nothing is left, or one task
/// that nobody has waited for; a thread that does not come back holds the successor up for two seconds.
const SCRIPT: &str = r#"trap '' HUP INT TERM
word=$(cat)
for at in "$1"/*; do umount -c -f "$at"; done
[ "$word" != end ] || exit 0
for turn in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    set -- /proc/"$PPID"/task/*
    [ $# -gt 1 ] || break
    sleep 0.1
done"#;
/// What it reads before the end of an orderly stop: nobody has to be waited for.
const ORDERLY: &[u8] = b"end";

/// Dropping it ends it, and waits for that.
pub struct Guard(Child);

impl Guard {
    pub fn start(lock: &File, exports: &Path) -> Result<Guard> {
        let mut command = Command::new("sh");
        command.arg("-c").arg(SCRIPT).arg("coppice-guard").arg(exports).process_group(0);
        command.stdin(Stdio::piped()).stdout(lock.try_clone().context("duplicate the lock")?).stderr(Stdio::null());
        Ok(Guard(command.spawn().context("start the guard")?))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.0.stdin.take() {
            let _ = stdin.write_all(ORDERLY);
        }
        let _ = self.0.wait();
    }
}
