//! The real shards: a thread each, with its ring.

use super::{Backend, Notifier, Shard, ShardHandle};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::ring::Ring;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

/// Ready tasks that run before completions and messages are looked at again.
const BURST: usize = 256;

/// The running data threads of an engine.
pub struct ShardThreads {
    handles: Vec<ShardHandle>,
    threads: Vec<JoinHandle<()>>,
}

impl ShardThreads {
    pub fn start(count: usize) -> Result<ShardThreads> {
        Self::start_on(count, |_| {
            let ring = Ring::new()?;
            let notifier: Arc<dyn Notifier> = ring.notifier();
            Ok((Box::new(ring) as Box<dyn Backend>, notifier))
        })
    }

    /// Starts threads on a backend other than the plain ring. `make` runs on each of them.
    pub fn start_on(
        count: usize,
        make: impl Fn(usize) -> Result<(Box<dyn Backend>, Arc<dyn Notifier>)> + Clone + Send + 'static,
    ) -> Result<ShardThreads> {
        let mut started = ShardThreads { handles: Vec::new(), threads: Vec::new() };
        for id in 0..count.max(1) {
            let (tx, rx) = mpsc::channel();
            let make = make.clone();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{id}"))
                .spawn(move || {
                    let (backend, notifier) = match make(id) {
                        Ok(made) => made,
                        Err(e) => {
                            let _ = tx.send(Err(e));
                            return;
                        }
                    };
                    let shard = Shard::new(id, backend, notifier);
                    let _ = tx.send(Ok(shard.handle()));
                    run(&shard);
                })
                .map_err(|e| Error::new(ErrorKind::Io, format!("cannot start a data thread: {e}")))?;
            started.threads.push(thread);
            let handle = rx.recv().map_err(|_| Error::new(ErrorKind::Io, "a data thread ended at its start"))?;
            started.handles.push(handle?);
        }
        Ok(started)
    }

    pub fn handles(&self) -> &[ShardHandle] {
        &self.handles
    }

    /// Asks every thread to end and waits for it. Operations in flight are waited for, tasks are dropped.
    pub fn stop(mut self) {
        for handle in &self.handles {
            handle.run(|shard| shard.stop());
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for ShardThreads {
    fn drop(&mut self) {
        for handle in &self.handles {
            handle.run(|shard| shard.stop());
        }
    }
}

fn run(shard: &Shard) {
    let backend: &dyn Backend = &*shard.0.backend;
    let mut done = Vec::with_capacity(1024);
    while !shard.0.stopping.get() {
        let timeout = if shard.ready_len() > 0 || shard.has_remote() {
            Some(Duration::ZERO)
        } else {
            shard.next_deadline().map(|at| Duration::from_nanos(at.saturating_sub(shard.now_ns())))
        };
        backend.wait(timeout, &mut done);
        shard.enter(|| {
            // First: the clock that it reads is that of the completions.
            shard.fire_timers();
            for (key, result) in done.drain(..) {
                shard.complete(key, result);
            }
            shard.deliver_remote();
            for _ in 0..shard.ready_len().min(BURST) {
                shard.run_ready(0);
            }
        });
    }
    shard.enter(|| shard.abandon());
    // The kernel may still be at work on buffers of operations whose futures are gone.
    for _ in 0..100 {
        if shard.ops_in_flight() == 0 {
            break;
        }
        backend.wait(Some(Duration::from_millis(50)), &mut done);
        for (key, result) in done.drain(..) {
            shard.complete(key, result);
        }
    }
    if shard.ops_in_flight() > 0 {
        // A device that does not answer: ring and buffers stay for as long as the process, as the kernel may write to them.
        std::mem::forget(shard.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::block_on;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn calls_cross_threads_and_timers_fire() {
        let threads = ShardThreads::start(2).expect("start");
        let [a, b] = threads.handles() else { panic!("two shards") };
        let (b2, hits) = (b.clone(), Arc::new(AtomicU32::new(0)));
        let seen = hits.clone();
        let answer = block_on(a.call(move |shard| async move {
            shard.sleep(Duration::from_millis(5)).await;
            let there = b2.call(|other| async move { Ok(other.id()) }).await?;
            seen.fetch_add(1, Ordering::SeqCst);
            Ok((shard.id(), there))
        }));
        assert_eq!(answer, Ok((0, 1)));
        assert_eq!(hits.load(Ordering::SeqCst), 1);
        threads.stop();
    }

    #[test]
    fn a_request_without_an_answer_grows_old() {
        use crate::shard::op::{IoOp, Target};
        let threads = ShardThreads::start(1).expect("start");
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let reader = Arc::new(std::os::fd::OwnedFd::from(reader));
        let other = Arc::new(std::os::fd::OwnedFd::from(tempfile::tempfile().expect("a file")));
        let waits = block_on(threads.handles()[0].call(move |shard| async move {
            let (silent, other) = (Target::file(reader), Target::file(other));
            let buf = shard.buf(4096).slice(0, 1);
            let op = IoOp::ReadStream { target: silent.clone(), buf };
            let (on, io) = (shard.clone(), shard.io(op));
            let answered = std::rc::Rc::new(std::cell::Cell::new(0));
            let seen = answered.clone();
            shard.spawn(async move { seen.set(io.await) });
            let before = on.longest_wait(&silent);
            on.sleep(Duration::from_millis(30)).await;
            let (during, elsewhere) = (on.longest_wait(&silent), on.longest_wait(&other));
            assert_eq!(rustix::io::write(&writer, b"x"), Ok(1));
            while answered.get() == 0 {
                on.sleep(Duration::from_millis(1)).await;
            }
            Ok([before, during, elsewhere, on.longest_wait(&silent)])
        }))
        .expect("answers");
        let [before, during, elsewhere, after] = waits;
        assert_eq!([before, elsewhere, after], [Duration::ZERO; 3]);
        assert!(during >= Duration::from_millis(25), "{during:?}");
        threads.stop();
    }

    #[test]
    fn what_a_device_says_is_an_io_error() {
        use crate::shard::check_result;
        for errno in [libc::ENOENT, libc::EBUSY, libc::EINVAL, libc::EROFS, libc::EIO] {
            let e = check_result(-errno, Some(512), "read").expect_err("an error");
            assert_eq!(e.kind(), ErrorKind::Io, "{e}");
        }
        assert_eq!(check_result(-libc::ENOSPC, None, "write").expect_err("full").kind(), ErrorKind::NoSpace);
    }

    #[test]
    fn files_are_read_back_as_written() {
        use crate::shard::op::Target;
        use crate::shard::{Port, all};
        let file = tempfile::tempfile().expect("a file");
        let fd = Arc::new(std::os::fd::OwnedFd::from(file));
        let threads = ShardThreads::start(1).expect("start");
        let result = block_on(threads.handles()[0].call(move |shard| async move {
            let port = Port { shard: shard.clone(), target: Target::file(fd) };
            let buf = shard.buf(8192);
            for i in 0..8u8 {
                buf.slice(usize::from(i) * 1024, 1024).copy_in(0, &[i; 1024]);
            }
            all(vec![port.write(4096, buf.slice(4096, 4096), false), port.write(0, buf.slice(0, 4096), true)], "write")
                .await?;
            port.flush().done("flush").await?;
            let back = shard.buf(8192);
            port.read(0, back.slice(0, 8192)).done("read").await?;
            let short = port.read(4096, back.slice(0, 8192)).done("short read").await;
            assert!(short.is_err(), "a short read is an error");
            Ok(back.slice(0, 4096).to_vec())
        }))
        .expect("io");
        assert_eq!(result[4095], 7, "the short read filled the first half with the second page");
        threads.stop();
    }
}
