//! External commands: never a shell, always a deadline, output captured.

use crate::{Error, Result};
use coppice_engine::sys::apart;
use std::ffi::{OsStr, OsString};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;
use tracing::debug;

/// Output beyond this is of no use in an error message.
const OUTPUT_BYTES_MAX: usize = 4096;
/// Where the tools are, also for a process that was started with a bare environment.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that ran to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// `None`: killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Output {
    /// The failure of the command, with everything that it said.
    pub fn error(&self) -> Error {
        let code = self.code.map_or("a signal".to_string(), |code| format!("exit code {code}"));
        let said: Vec<&str> = [self.stderr.trim(), self.stdout.trim()].into_iter().filter(|s| !s.is_empty()).collect();
        Error::Host(format!("{}: {code}: {}", self.what, said.join("; ")))
    }

    /// The output, if the exit code is 0.
    pub fn ok(self) -> Result<Output> {
        match self.code {
            Some(0) => Ok(self),
            _ => Err(self.error()),
        }
    }
}

/// Runs a program. It is killed at the deadline, and when the caller goes away.
pub async fn run<S: AsRef<OsStr>>(program: &str, args: &[S], deadline: Duration) -> Result<Output> {
    run_with(program, args, &[], deadline).await
}

/// As [`run`], with extra environment variables.
pub async fn run_with<S: AsRef<OsStr>>(
    program: &str,
    args: &[S],
    env: &[(&str, &OsStr)],
    deadline: Duration,
) -> Result<Output> {
    let words: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_os_string()).collect();
    let shown: Vec<_> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let what = format!("{program} {}", shown.join(" "));
    debug!(command = what, "running");
    let mut command = Command::new(program);
    command.args(&words).env("PATH", PATH).env("LC_ALL", "C").envs(env.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    // Ctrl-C in a terminal goes to its whole process group; a tool in mid-work is not for it to kill.
    command.process_group(0);
    let child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Precondition(format!("{program} is not installed on this node")),
        _ => Error::Host(format!("{what}: {e}")),
    })?;
    match tokio::time::timeout(deadline, child.wait_with_output()).await {
        Ok(Ok(done)) => {
            Ok(Output { code: done.status.code(), stdout: text(&done.stdout), stderr: text(&done.stderr), what })
        }
        Ok(Err(e)) => Err(Error::Host(format!("{what}: {e}"))),
        Err(_) => Err(Error::Deadline(format!("{what}: not done after {} s", deadline.as_secs()))),
    }
}

fn text(bytes: &[u8]) -> String {
    let cut = bytes.get(..OUTPUT_BYTES_MAX).unwrap_or(bytes);
    String::from_utf8_lossy(cut).into_owned()
}

/// Runs blocking system calls off the executor, on a thread apart because they may ask devices that this process serves. At
/// the deadline the caller goes on; the kernel may still be at it. Files are opened in `work` itself.
pub async fn blocking<T: Send + 'static>(
    what: &str,
    deadline: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::time::timeout(deadline, tokio::task::spawn_blocking(|| apart::run(work))).await {
        Ok(Ok(Ok(done))) => done,
        Ok(Ok(Err(e))) => Err(Error::Host(format!("{what}: cannot start a thread: {e}"))),
        Ok(Err(e)) => Err(Error::Host(format!("{what}: {e}"))),
        Err(_) => Err(Error::Deadline(format!("{what}: not done after {} s", deadline.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn codes_output_and_deadlines() -> anyhow::Result<()> {
        let second = Duration::from_secs(10);
        let out = run("sh", &["-c", "echo out; echo err >&2; exit 3"], second).await?;
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.as_str()), (Some(3), "out\n", "err\n"));
        let message = out.ok().map_err(|e| e.to_string()).err().unwrap_or_default();
        assert!(message.contains("exit code 3") && message.contains("err"), "{message}");
        let late = run("sleep", &["5"], Duration::from_millis(50)).await;
        assert!(matches!(late, Err(Error::Deadline(_))));
        let absent = run("no-such-tool-here", &["5"], second).await;
        assert!(matches!(absent, Err(Error::Precondition(_))));
        Ok(())
    }
}
