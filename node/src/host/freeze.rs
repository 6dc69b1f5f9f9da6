//! Holding a file system still. A process outside thaws it if this one dies or hangs with it frozen.

use super::command::run;
use crate::error::Doing;
use crate::{Error, Result};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tracing::warn;

const FREEZE_SECONDS_MAX: u64 = 30;
/// After that long the watchdog thaws, whatever happens here.
const WATCHDOG_SECONDS: u64 = 60;

/// A frozen file system; [`Frozen::thaw`] ends it.
pub struct Frozen {
    path: PathBuf,
    watchdog: Watchdog,
}

struct Watchdog(Child);

impl Watchdog {
    fn start(path: &Path) -> Result<Watchdog> {
        // A shell of its own session and process group: it outlives this process, and is killed with its sleep.
        let script = format!("sleep {WATCHDOG_SECONDS}; exec fsfreeze -u \"$1\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg("coppice-thaw").arg(path).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Watchdog(command.spawn().doing(|| "start the watchdog that thaws".into())?))
    }

    async fn stop(mut self) {
        if let Some(group) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
        let _ = self.0.wait().await;
    }
}

/// Writes out and freezes the file system at `path`.
pub async fn freeze(path: &Path) -> Result<Frozen> {
    let watchdog = Watchdog::start(path)?;
    let args = [OsStr::new("-f"), path.as_os_str()];
    let frozen = run("fsfreeze", &args, Duration::from_secs(FREEZE_SECONDS_MAX)).await.and_then(|out| out.ok());
    match frozen {
        Ok(_) => Ok(Frozen { path: path.to_path_buf(), watchdog }),
        Err(Error::Deadline(e)) => {
            // It may freeze yet; the watchdog stays to thaw it.
            warn!(path = %path.display(), "the freeze is given up: {e}");
            Err(Error::Deadline(e))
        }
        Err(e) => {
            watchdog.stop().await;
            Err(e)
        }
    }
}

/// Thaws what a killed process may have left frozen: a file system that is unmounted frozen stays for ever.
pub async fn thaw_dead(path: &Path) {
    let args = [OsStr::new("-u"), path.as_os_str()];
    // Most are not frozen; that is no failure. One that is being frozen is waited for.
    let _ = run("fsfreeze", &args, Duration::from_secs(FREEZE_SECONDS_MAX)).await;
}

impl Frozen {
    /// Thaws. An error if it was not frozen any more: then it moved while it should have been still.
    pub async fn thaw(self) -> Result<()> {
        let args = [OsStr::new("-u"), self.path.as_os_str()];
        let thawed = run("fsfreeze", &args, Duration::from_secs(FREEZE_SECONDS_MAX)).await.and_then(|out| out.ok());
        match thawed {
            Ok(_) => {
                self.watchdog.stop().await;
                Ok(())
            }
            Err(e) => Err(Error::Deadline(format!("the file system did not stay frozen, or does not thaw: {e}"))),
        }
    }
}
