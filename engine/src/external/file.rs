//! A file or block device as an external parent, read only. Whoever gives it promises that nobody writes to it.

use super::{Answer, External, Stretch};
use crate::device::on_thread;
use crate::error::{Error, Result, err};
use crate::shard::sync::lock;
use bytes::Bytes;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Opened by the first call that needs it, and again after a failure.
pub struct FileParent(Arc<Inner>);

struct Inner {
    path: PathBuf,
    /// Why the last call failed.
    away: Mutex<Option<String>>,
}

impl FileParent {
    pub fn new(path: &Path) -> FileParent {
        FileParent(Arc::new(Inner { path: path.to_path_buf(), away: Mutex::new(None) }))
    }

    fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut File) -> std::io::Result<T> + Send + 'static,
    ) -> Answer<T> {
        let inner = self.0.clone();
        Box::pin(async move {
            let on = inner.clone();
            let done = on_thread(move || -> Result<T> {
                let shown = on.path.display();
                let mut file = File::open(&on.path).map_err(|e| err!(Away, "external parent {shown}: {e}"))?;
                work(&mut file).map_err(|e| failed(&e).context(format_args!("external parent {shown}")))
            });
            let done = done.await?;
            *lock(&inner.away) = done.as_ref().err().map(|e| e.message().to_string());
            done
        })
    }
}

fn failed(e: &std::io::Error) -> Error {
    err!(Io, "{e}")
}

impl External for FileParent {
    fn size(&self, _: Duration) -> Answer<u64> {
        // Of a block device, too.
        self.with(|file| file.seek(SeekFrom::End(0)))
    }

    fn read(&self, off: u64, len: usize, _: Duration) -> Answer<Bytes> {
        self.with(move |file| {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, off)?;
            Ok(bytes.into())
        })
    }

    fn status(&self, off: u64, len: u64, _: Duration) -> Answer<Vec<Stretch>> {
        self.with(move |file| {
            use rustix::fs::{SeekFrom, seek};
            let end = off + len;
            // What is missing at its end is no hole.
            if file.seek(std::io::SeekFrom::End(0))? < end {
                return Err(std::io::Error::other("it is shorter than it was"));
            }
            let data = match seek(&*file, SeekFrom::Data(off)) {
                Ok(at) => at.clamp(off, end),
                // No data up to the end of the file.
                Err(rustix::io::Errno::NXIO) => end,
                // No such question to a block device, and to some file systems.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => off,
                Err(e) => return Err(e.into()),
            };
            if data > off {
                return Ok(vec![Stretch { len: data - off, hole: true }]);
            }
            let hole = seek(&*file, SeekFrom::Hole(off)).map_or(end, |at| at.clamp(off, end));
            // A hole that begins right here was data a moment ago: say data, and be asked again.
            let len = if hole > off { hole - off } else { len };
            Ok(vec![Stretch { len, hole: false }])
        })
    }

    fn away(&self) -> Option<String> {
        lock(&self.0.away).clone()
    }
}
