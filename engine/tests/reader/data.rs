//! Content of lvols: through the parent chain, streamed into hashes, or own clusters only.

use super::blob::{Blob, Parent};
use super::{LvolView, Reader};
use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

/// Content is streamed in pieces of at most this size.
const PIECE_BYTES: u64 = 1 << 20;
static ZEROES: [u8; PIECE_BYTES as usize] = [0; PIECE_BYTES as usize];

/// Where one piece of an lvol, inside one cluster, comes from.
enum Source {
    Zero,
    Device(u64),
    External(String),
}

impl Reader {
    pub fn read(&self, lvol: &LvolView, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut out = Vec::with_capacity(len);
        self.stream(lvol, offset, len as u64, &mut |bytes| out.extend_from_slice(bytes))?;
        Ok(out)
    }

    /// Over the whole content. Takes seconds per GiB however sparse the lvol is.
    pub fn sha256(&self, lvol: &LvolView) -> Result<String> {
        let mut hash = Sha256::new();
        self.stream(lvol, 0, lvol.size_bytes, &mut |bytes| hash.update(bytes))?;
        Ok(hex(&hash.finalize()))
    }

    /// Over the lvol's own clusters in ascending order: each one's index as u64, little-endian, then its bytes.
    pub fn own_clusters_sha256(&self, lvol: &LvolView) -> Result<String> {
        let cluster_size = self.store.geometry.cluster_size;
        let mut hash = Sha256::new();
        for (at, _) in &lvol.own_clusters {
            hash.update(at.to_le_bytes());
            self.stream(lvol, at * cluster_size, cluster_size, &mut |bytes| hash.update(bytes))?;
        }
        Ok(hex(&hash.finalize()))
    }

    fn stream(&self, lvol: &LvolView, offset: u64, len: u64, sink: &mut dyn FnMut(&[u8])) -> Result<()> {
        let end = offset.checked_add(len).context("range overflows")?;
        ensure!(end <= lvol.size_bytes, "{offset}+{len} is beyond the end of {:?}, {}", lvol.name, lvol.size_bytes);
        let cluster_size = self.store.geometry.cluster_size;
        let mut buf = Vec::new();
        let mut at = offset;
        while at < end {
            let inside = at % cluster_size;
            let count = (cluster_size - inside).min(end - at).min(PIECE_BYTES);
            let size = usize::try_from(count)?;
            match self.source(lvol.blob_id, at / cluster_size)? {
                Source::Device(start) if !self.image.is_hole(start + inside, count) => {
                    buf.resize(size, 0);
                    self.image.read(start + inside, &mut buf)?;
                    sink(&buf);
                }
                Source::Zero | Source::Device(_) => sink(ZEROES.get(..size).unwrap_or_default()),
                Source::External(id) => {
                    let Some(esnap) = &self.options.esnap else { bail!("external snapshot {id} is not given") };
                    buf.clear();
                    buf.resize(size, 0);
                    esnap(&id, at, &mut buf).with_context(|| format!("external snapshot {id} at {at}"))?;
                    sink(&buf);
                }
            }
            at += count;
        }
        Ok(())
    }

    /// Own cluster, else the parent's, and so on; beyond a parent's end and without a parent there are zeroes.
    fn source(&self, mut id: u64, cluster: u64) -> Result<Source> {
        for _ in 0..self.store.blobs.len() {
            let blob: &Blob = self.store.blobs.get(&id).with_context(|| format!("no blob {id:#x}"))?;
            if cluster >= blob.num_clusters {
                return Ok(Source::Zero);
            }
            if let Some(own) = blob.map.get(&cluster) {
                return Ok(Source::Device(u64::from(*own) * self.store.geometry.cluster_size));
            }
            match blob.parent() {
                Parent::None => return Ok(Source::Zero),
                Parent::Snapshot(parent) => id = parent,
                Parent::External(esnap) => return Ok(Source::External(esnap)),
            }
        }
        bail!("the ancestors of {id:#x} go in a circle")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
