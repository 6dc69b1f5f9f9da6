//! Standard input as the stream of `lvol write`.
//!
//! A thread reads, because standard input blocks; it is left behind when the other end refuses.

use coppice_proto::admin::v1::write_lvol_request::Part;
use coppice_proto::admin::v1::{WriteLvolRequest, WriteTarget};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::thread::JoinHandle;
use tokio::sync::mpsc::{Sender, channel};
use tokio_stream::wrappers::ReceiverStream;

/// Bytes of one message.
const PART_BYTES: u64 = 1 << 20;

/// How standard input ended.
pub enum End {
    /// All of it was sent.
    Whole,
    /// There is more than there was room for.
    Longer,
    Failed(io::Error),
}

/// Bytes that are left in standard input, if it is a file.
pub fn length() -> Option<u64> {
    let mut file = File::from(io::stdin().as_fd().try_clone_to_owned().ok()?);
    let meta = file.metadata().ok().filter(|meta| meta.is_file())?;
    Some(meta.len().saturating_sub(file.stream_position().ok()?))
}

/// The messages of the call: the target, then at most `room` bytes.
pub fn parts(target: WriteTarget, room: u64) -> (ReceiverStream<WriteLvolRequest>, JoinHandle<End>) {
    let (sender, receiver) = channel(4);
    let reader = std::thread::spawn(move || {
        let first = WriteLvolRequest { part: Some(Part::Target(target)) };
        if sender.blocking_send(first).is_err() {
            return End::Whole;
        }
        send(io::stdin().lock(), room, &sender).unwrap_or_else(End::Failed)
    });
    (ReceiverStream::new(receiver), reader)
}

fn send(mut input: impl Read, mut room: u64, sender: &Sender<WriteLvolRequest>) -> io::Result<End> {
    while room > 0 {
        let mut data = Vec::new();
        let count = input.by_ref().take(room.min(PART_BYTES)).read_to_end(&mut data)? as u64;
        room -= count;
        // Nobody listens any more: the answer says why.
        if count == 0 || sender.blocking_send(WriteLvolRequest { part: Some(Part::Data(data)) }).is_err() {
            return Ok(End::Whole);
        }
    }
    Ok(if input.take(1).read_to_end(&mut Vec::new())? == 0 { End::Whole } else { End::Longer })
}
