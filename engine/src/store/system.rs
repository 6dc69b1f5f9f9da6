//! The system area: the clusters of the private system blob, which hold the second copy of the super block and the
//! journal.
//!
//! ```text
//!   page 0      1             2        3        4 …
//!   ┌──────────┬─────────────┬────────┬────────┬──────────────────────────────┐
//!   │ envelope │ super image │ head A │ head B │ log: record │ record │ …     │
//!   └──────────┴─────────────┴────────┴────────┴──────────────────────────────┘
//! ```
//!
//! The area exists while the store is marked `COPPICE`; a clean close gives its clusters back. The log is filled from its
//! start; when it is full everything is written home and it begins anew (see `commit`).

use crate::error::{Result, err};
use crate::format::{JournalHead, PAGE_SIZE, Page, RecordHeader, RecordPage, SuperBlock, SuperCopy};
use crate::shard::{Io, Port, all};
use crate::sys::buf::BufSlice;
use uuid::Uuid;

const COPY_PAGE: u32 = 0;
const HEAD_PAGES: [u32; 2] = [2, 3];
const LOG_PAGE: u32 = 4;
/// Fewest pages with which the journal works.
pub const AREA_PAGES_MIN: u32 = 24;
const P: u64 = PAGE_SIZE as u64;

/// Where the area is, and how far its log is filled.
#[derive(Clone, Debug)]
pub struct SystemArea {
    /// (byte offset on the device, bytes)
    extents: Vec<(u64, u64)>,
    pub store_uuid: Uuid,
    nonce: u64,
    /// Sequence number of the next record.
    seq: u64,
    /// Next free page of the log.
    at: u32,
    head_generation: u64,
}

impl SystemArea {
    pub fn new(clusters: &[(u32, u32)], cluster_size: u32, store_uuid: Uuid, nonce: u64) -> SystemArea {
        let size = u64::from(cluster_size);
        let extents = clusters.iter().map(|(start, n)| (u64::from(*start) * size, u64::from(*n) * size)).collect();
        SystemArea { extents, store_uuid, nonce, seq: 1, at: 0, head_generation: 0 }
    }

    fn pages(&self) -> u32 {
        (self.extents.iter().map(|(_, len)| len).sum::<u64>() / P) as u32
    }

    fn log_pages(&self) -> u32 {
        self.pages().saturating_sub(LOG_PAGE)
    }

    /// Images that one record can hold.
    pub fn record_pages(&self) -> usize {
        (self.log_pages().saturating_sub(1) as usize).min(crate::format::RECORD_PAGES_MAX)
    }

    pub fn has_room(&self, images: usize) -> bool {
        self.at as usize + 1 + images <= self.log_pages() as usize
    }

    /// The pieces of the device that hold `len` bytes from page `page` on: (offset, bytes).
    fn pieces(&self, page: u32, mut len: u64) -> Result<Vec<(u64, u64)>> {
        let mut skip = u64::from(page) * P;
        let mut pieces = Vec::new();
        for (start, size) in &self.extents {
            if skip >= *size {
                skip -= size;
                continue;
            }
            let take = len.min(size - skip);
            pieces.push((start + skip, take));
            len -= take;
            skip = 0;
            if len == 0 {
                return Ok(pieces);
            }
        }
        Err(err!(Corrupt, "the system area is shorter than it should be"))
    }

    fn write(&self, port: &Port, page: u32, buf: &BufSlice) -> Result<Vec<Io>> {
        let mut done = 0;
        let mut ios = Vec::new();
        for (off, len) in self.pieces(page, buf.len() as u64)? {
            ios.push(port.write(off, buf.slice(done, len as usize), false));
            done += len as usize;
        }
        Ok(ios)
    }

    async fn read(&self, port: &Port, page: u32, buf: &BufSlice) -> Result<()> {
        let mut done = 0;
        let mut ios = Vec::new();
        for (off, len) in self.pieces(page, buf.len() as u64)? {
            ios.push(port.read(off, buf.slice(done, len as usize)));
            done += len as usize;
        }
        all(ios, "cannot read the system area").await
    }

    /// Offset of the envelope of the super block's copy.
    fn copy_offset(&self) -> u64 {
        self.extents.first().map_or(0, |(off, _)| *off)
    }

    /// Writes the second copy of the super block. Not flushed.
    pub async fn write_super_copy(&self, port: &Port, super_block: &SuperBlock, generation: u64) -> Result<()> {
        let image = super_block.encode();
        let envelope = SuperCopy::of(&image, self.copy_offset(), generation, *self.store_uuid.as_bytes()).encode();
        let buf = port.shard.buf(2 * PAGE_SIZE).slice(0, 2 * PAGE_SIZE);
        buf.copy_in(0, &envelope);
        buf.copy_in(PAGE_SIZE, &image);
        all(self.write(port, COPY_PAGE, &buf)?, "cannot write the copy of the super block").await
    }

    /// What is wrong with the second copy of the super block, if something is.
    pub async fn copy_problem(&self, port: &Port, super_block: &SuperBlock) -> Result<Option<&'static str>> {
        let buf = port.shard.buf(2 * PAGE_SIZE).slice(0, 2 * PAGE_SIZE);
        if self.read(port, COPY_PAGE, &buf).await.is_err() {
            return Ok(Some("cannot be read"));
        }
        Ok(buf.with(|bytes| {
            let (envelope, image) = bytes.split_at_checked(PAGE_SIZE)?;
            match SuperCopy::parse(envelope) {
                Ok(copy) if copy.own_offset == self.copy_offset() && copy.matches(image) => {
                    (SuperBlock::parse(image).as_ref() != Ok(super_block)).then_some("is not what the super block is")
                }
                _ => Some("does not check out"),
            }
        }))
    }

    fn head(&self, md_limit: u32) -> JournalHead {
        JournalHead {
            generation: self.head_generation,
            nonce: self.nonce,
            tail_seq: self.seq,
            tail_page: 0,
            md_limit,
            store_uuid: *self.store_uuid.as_bytes(),
        }
    }

    /// Begins the log anew: every record so far is home and durable. Not flushed.
    pub async fn restart_log(&mut self, port: &Port, md_limit: u32) -> Result<()> {
        self.head_generation += 1;
        self.at = 0;
        self.write_head(port, self.head_place(), md_limit).await
    }

    /// The place of a head follows from its generation, so the newest intact one is never the one that is overwritten.
    fn head_place(&self) -> u32 {
        HEAD_PAGES[(self.head_generation % 2) as usize]
    }

    async fn write_head(&self, port: &Port, place: u32, md_limit: u32) -> Result<()> {
        let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        buf.copy_in(0, &self.head(md_limit).encode());
        all(self.write(port, place, &buf)?, "cannot write the journal's head").await
    }

    /// Both heads of a new area and an empty log, so that nothing older is ever taken for one. Not flushed.
    pub async fn write_first_heads(&mut self, port: &Port, md_limit: u32) -> Result<()> {
        let empty = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        empty.fill_zero();
        all(self.write(port, LOG_PAGE, &empty)?, "cannot write the journal").await?;
        for _ in HEAD_PAGES {
            self.head_generation += 1;
            self.write_head(port, self.head_place(), md_limit).await?;
        }
        Ok(())
    }

    /// Writes a record; there must be room. Not flushed.
    pub async fn append(&mut self, port: &Port, images: &[(u32, Box<Page>)], md_limit: u32) -> Result<()> {
        if !self.has_room(images.len()) {
            return Err(err!(Corrupt, "a journal record of {} pages does not fit", images.len()));
        }
        let header = RecordHeader {
            nonce: self.nonce,
            seq: self.seq,
            md_limit,
            pages: images.iter().map(|(index, image)| RecordPage::of(*index, image)).collect(),
        };
        let len = (1 + images.len()) * PAGE_SIZE;
        let buf = port.shard.buf(len).slice(0, len);
        buf.copy_in(0, &header.encode()?);
        for (n, (_, image)) in images.iter().enumerate() {
            buf.copy_in((1 + n) * PAGE_SIZE, &image[..]);
        }
        let ios = self.write(port, LOG_PAGE + self.at, &buf)?;
        all(ios, "cannot write the journal").await?;
        self.at += header.ring_pages();
        self.seq += 1;
        Ok(())
    }

    /// Reads the newest head and every record behind it; calls `page` for each image in order. Ends at the first record
    /// that is not whole: it was never acknowledged, if none lies behind it. Answers with the limit of the metadata pages
    /// in use.
    pub async fn replay(&mut self, port: &Port, mut page: impl FnMut(u32, Page)) -> Result<u32> {
        let buf = port.shard.buf(PAGE_SIZE).slice(0, PAGE_SIZE);
        let mut newest: Option<JournalHead> = None;
        let mut one_lost = false;
        for place in HEAD_PAGES {
            let read = self.read(port, place, &buf).await;
            match read.and_then(|()| buf.with(JournalHead::parse).map_err(Into::into)) {
                Ok(head) if head.store_uuid == *self.store_uuid.as_bytes() => {
                    if newest.is_none_or(|n| n.generation < head.generation) {
                        newest = Some(head);
                    }
                }
                _ => one_lost = true,
            }
        }
        let Some(head) = newest else {
            return Err(err!(
                Corrupt,
                "both heads of the journal are unreadable: what was acknowledged last is not known"
            ));
        };
        self.nonce = head.nonce;
        self.seq = head.tail_seq;
        self.at = head.tail_page;
        self.head_generation = head.generation;
        let mut limit = head.md_limit;
        if one_lost {
            // Torn while it was being written, a head leaves the log of the other one in force. But a record that is newer
            // than the other one's log was written under the lost head, which was durable, as was all that lies before it.
            self.read(port, LOG_PAGE, &buf).await?;
            if let Ok(first) = buf.with(RecordHeader::parse)
                && first.seq > self.seq
            {
                (self.nonce, self.seq, self.at) = (first.nonce, first.seq, 0);
            }
        }
        while self.at < self.log_pages() {
            self.read(port, LOG_PAGE + self.at, &buf).await?;
            let Ok(record) = buf.with(RecordHeader::parse) else { break };
            let fits = record.ring_pages() <= self.log_pages() - self.at;
            if record.nonce != self.nonce || record.seq != self.seq || !fits {
                break;
            }
            let mut images = Vec::with_capacity(record.pages.len());
            let len = record.pages.len() * PAGE_SIZE;
            if len > 0 {
                let body = port.shard.buf(len).slice(0, len);
                self.read(port, LOG_PAGE + self.at + 1, &body).await?;
                for n in 0..record.pages.len() {
                    let mut image = [0; PAGE_SIZE];
                    body.copy_out(n * PAGE_SIZE, &mut image);
                    images.push(image);
                }
            }
            if !record.pages.iter().zip(&images).all(|(entry, image)| entry.matches(image)) {
                break;
            }
            limit = limit.max(record.md_limit);
            for (entry, image) in record.pages.iter().zip(images) {
                page(entry.index, image);
            }
            self.at += record.ring_pages();
            self.seq += 1;
        }
        self.nothing_behind(port).await?;
        Ok(limit)
    }

    /// A record is written when the one before it is durable. So if there are later ones behind the place where the replay
    /// ended, the one there was acknowledged and is damaged; what the store says without it would be wrong.
    async fn nothing_behind(&self, port: &Port) -> Result<()> {
        const SPAN: u32 = 256;
        let buf = port.shard.buf(SPAN as usize * PAGE_SIZE);
        let later = |page: &[u8]| RecordHeader::parse(page).is_ok_and(|r| r.nonce == self.nonce && r.seq > self.seq);
        let mut at = self.at;
        while at < self.log_pages() {
            let count = SPAN.min(self.log_pages() - at);
            let span = buf.slice(0, count as usize * PAGE_SIZE);
            let mut found = false;
            if self.read(port, LOG_PAGE + at, &span).await.is_ok() {
                found = span.with(|bytes| bytes.chunks_exact(PAGE_SIZE).any(later));
            } else {
                // Page by page. Not being readable says nothing about what would be there.
                let one = buf.slice(0, PAGE_SIZE);
                for page in at..at + count {
                    found |= self.read(port, LOG_PAGE + page, &one).await.is_ok() && one.with(later);
                }
            }
            if found {
                return Err(err!(
                    Corrupt,
                    "record {} of the journal is damaged, and later ones are intact: what was acknowledged is lost; read \
                     the device again elsewhere, or restore",
                    self.seq
                ));
            }
            at += count;
        }
        Ok(())
    }

    /// The area goes on under a new nonce: what an unfinished record left behind can never be taken for a new one.
    pub fn renew(&mut self, nonce: u64) {
        self.nonce = nonce;
        self.seq += 1;
    }
}

/// A copy of a super block, found on a device.
pub struct FoundCopy {
    pub image: SuperBlock,
    pub generation: u64,
    pub store_uuid: Uuid,
}

/// Looks for copies of super blocks on the whole device: only when page 0 is unreadable. Newest first. The envelope names
/// its own place, so a copy inside a lvol (a nested store) is not taken.
pub async fn find_super_copies(port: &Port, device_size: u64) -> Result<Vec<FoundCopy>> {
    const SPAN: usize = 1 << 20;
    let buf = port.shard.buf(SPAN + PAGE_SIZE);
    let mut found = Vec::new();
    let mut off = 0;
    while off + 2 * P <= device_size {
        // One page more than the step, so that an image behind an envelope is always in sight.
        let len = (SPAN as u64 + P).min(device_size - off) / P * P;
        let piece = buf.slice(0, len as usize);
        if port.read(off, piece.clone()).done("looking for the super block's copy").await.is_ok() {
            piece.with(|bytes| {
                let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE_SIZE).collect();
                for (n, pair) in pages.windows(2).enumerate() {
                    let Ok(copy) = SuperCopy::parse(pair[0]) else { continue };
                    if copy.own_offset != off + n as u64 * P || !copy.matches(pair[1]) {
                        continue;
                    }
                    let Ok(image) = SuperBlock::parse(pair[1]) else { continue };
                    let store_uuid = Uuid::from_bytes(copy.store_uuid);
                    found.push(FoundCopy { image, generation: copy.generation, store_uuid });
                }
            });
        }
        off += SPAN as u64;
    }
    found.sort_by_key(|copy| std::cmp::Reverse(copy.generation));
    Ok(found)
}
