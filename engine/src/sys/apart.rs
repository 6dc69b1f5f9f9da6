//! Work on devices that this process itself serves.
//!
//! Such work can wait in the kernel, uninterruptibly, for an answer of this process. If the process is killed meanwhile, the
//! threads that answer are gone, and the wait ends when the FUSE connection does. A waiting thread that shares the table of
//! open files keeps the connection open, and every pipe and lock. So the work is done by a thread with a table of its own; the
//! end of the others can then be seen from outside. The rings that it still has mapped hold the connection too: somebody
//! outside must abort it (the guard of `coppice standalone`).

use std::io;

/// Runs `work` on a thread that shares no open file with the rest of the process but the standard streams, and waits for
/// it. It may neither use nor drop a file that was opened elsewhere, nor wake an executor.
pub fn run<R: Send>(work: impl FnOnce() -> R + Send) -> io::Result<R> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("apart".into()).spawn_scoped(scope, || {
            // SAFETY: the call takes three integers. It gives the thread a table without the files from 3 up; they stay
            // open for all other threads, and this one, new, has no handle of any.
            let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
            if done < 0 { Err(io::Error::last_os_error()) } else { Ok(work()) }
        })?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    #[test]
    fn a_thread_apart_shares_no_files() -> std::io::Result<()> {
        let mut kept = fs::File::open("/proc/self/maps")?;
        let open = || {
            fs::read_dir("/proc/thread-self/fd")
                .map(|fds| fds.flatten().filter(|fd| fd.file_name().len() > 1 || fd.file_name() > *"2").count())
        };
        // The directory that is being listed is open.
        assert!(super::run(open)?? <= 1);
        let mut first = [0; 1];
        kept.read_exact(&mut first)
    }
}
