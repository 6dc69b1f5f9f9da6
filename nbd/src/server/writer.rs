//! Sends replies: headers and payload as they lie in memory, several replies per system call, within a deadline.

use super::budget::Share;
use super::limits::Limits;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;

/// Replies are gathered until there is so much; then they are sent.
const BATCH_BYTES: usize = 1 << 20;

/// A reply, or a chunk of one.
pub(super) struct Outgoing {
    pub(super) header: Bytes,
    /// Follows the header, in this order.
    pub(super) payload: Vec<Bytes>,
    /// Freed once it is sent.
    pub(super) share: Option<Share>,
    /// The request's place among those in flight; with its last reply.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

/// Pieces that are sent one after the other without being copied together.
#[derive(Default)]
struct Rope {
    pieces: VecDeque<Bytes>,
    len: usize,
}

impl Rope {
    fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.len += piece.len();
            self.pieces.push_back(piece);
        }
    }
}

impl Buf for Rope {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.pieces.front().map_or(&[], |piece| piece.as_ref())
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let pairs = slices.iter_mut().zip(&self.pieces);
        pairs.map(|(slice, piece)| *slice = IoSlice::new(piece)).count()
    }

    fn advance(&mut self, mut count: usize) {
        self.len -= count;
        while let Some(front) = self.pieces.front_mut()
            && count > 0
        {
            let here = count.min(front.len());
            front.advance(here);
            count -= here;
            if front.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

/// Sends until all senders are gone, then says goodbye. Ends with an error when the other side is gone, or too slow.
pub(super) async fn write_replies(
    mut to: impl AsyncWrite + Unpin,
    mut replies: mpsc::Receiver<Outgoing>,
    limits: Arc<Limits>,
) -> io::Result<()> {
    let mut rope = Rope::default();
    let mut held = Vec::new();
    while let Some(first) = replies.recv().await {
        let mut next = Some(first);
        while let Some(Outgoing { header, payload, share, slot }) = next {
            rope.push(header);
            payload.into_iter().for_each(|piece| rope.push(piece));
            held.push((share, slot));
            next = if rope.len < BATCH_BYTES { replies.try_recv().ok() } else { None };
        }
        within(&limits, rope.len, async {
            to.write_all_buf(&mut rope).await?;
            to.flush().await
        })
        .await?;
        held.clear();
    }
    within(&limits, 0, to.shutdown()).await
}

async fn within(limits: &Limits, bytes: usize, work: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    match timeout(limits.message_max(bytes), work).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes its replies too slowly")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rope_is_its_pieces() {
        let mut rope = Rope::default();
        for piece in ["ab", "", "cde", "f"] {
            rope.push(Bytes::from_static(piece.as_bytes()));
        }
        let mut slices = [IoSlice::new(&[]); 2];
        assert_eq!(rope.chunks_vectored(&mut slices), 2);
        assert_eq!((&*slices[0], &*slices[1]), (&b"ab"[..], &b"cde"[..]));
        rope.advance(3);
        assert_eq!((rope.chunk(), rope.remaining()), (&b"de"[..], 3));
        assert_eq!(rope.copy_to_bytes(3), Bytes::from_static(b"def"));
        assert!(!rope.has_remaining());
    }
}
