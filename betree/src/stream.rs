//! Bulk reading of runs for flush and compaction: parts of segments by single large reads, the next one on its way while this
//! one is consumed. Bypasses the page cache for data (meta blocks come through it).
//!
//! A [`RunStream`] yields the entries of one run with keys in `low..high`, ascending. Owned by one merge in one thread.

use std::ops::Range;
use std::sync::Arc;

use betree_pager::{Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;
use crate::headed::head_of;
use crate::message::{Kind, MessageRef};
use crate::page::{PageRef, Shape};
use crate::segment::{Meta, PageAt, Segment};

/// Bytes of the first part of a stream, about.
const FIRST_PART: u32 = 128 << 10;
/// Bytes of any part at most, if a page is not longer.
const LARGEST_PART: usize = 1 << 20;
/// However little memory there is, so many bytes are read at a time.
const SMALLEST_PART: usize = 32 << 10;

/// Most bytes of a part where so many streams together may have `memory`: each has one part that is being consumed and one on its way. A power of two, as
/// buffers are.
pub(crate) fn part_bytes(memory: usize, streams: usize) -> u32 {
    let each = memory / (2 * streams.max(1));
    (1 << each.clamp(SMALLEST_PART, LARGEST_PART).ilog2()) as u32
}

/// Where a part ends that begins at page `from` and takes `most` bytes or one page.
fn end_of_part(segment: &Segment, meta: &Meta, from: usize, to: usize, most: u32) -> Result<usize> {
    let place = |index| {
        let lie = || segment.corrupt(segment.data_len, "meta block", format!("no place for page {index}"));
        meta.place(index).ok_or_else(lie)
    };
    let start = place(from)?.at;
    for index in from + 1..to {
        let place = place(index)?;
        if place.at + place.len > start.saturating_add(most) {
            return Ok(index);
        }
    }
    Ok(to)
}

/// Pages of one segment that are read together.
struct Part {
    segment: Arc<Segment>,
    meta: Meta,
    from: usize,
    to: usize,
    /// Whether keys must be compared with the ends of the range.
    at_edge: bool,
}

impl Part {
    fn place(&self, index: usize) -> Result<PageAt> {
        self.meta.place(index).ok_or_else(|| {
            self.segment.corrupt(self.segment.data_len, "meta block", format!("no place for page {index}"))
        })
    }

    /// First byte and length of what is read of the segment.
    fn extent_range(&self) -> Result<(u32, u32)> {
        let (first, last) = (self.place(self.from)?, self.place(self.to - 1)?);
        Ok((first.at, last.at + last.len - first.at))
    }
}

/// See the module's text.
pub(crate) struct RunStream {
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    parts: Vec<Part>,
    /// The part being consumed; `parts[part + 1]` may be on its way.
    part: usize,
    buf: AlignedBuf,
    /// Offset in the extent of `buf[0]`.
    base: u32,
    arrived: Option<AlignedBuf>,
    requested: usize,
    /// The current page: its index in the segment, its place in `buf`, and its shape.
    page: usize,
    start: usize,
    end: usize,
    shape: Shape,
    /// The current entry: its index in the page, its key with the first eight bytes as a big-endian number, its kind, the place of its value in `buf`.
    index: usize,
    pub key: Vec<u8>,
    pub head: u64,
    pub kind: Kind,
    value: Range<usize>,
    valid: bool,
}

impl RunStream {
    /// Over these segments of a run, with their meta blocks, in parts of at most `part_bytes`.
    pub(crate) fn new(
        segments: impl Iterator<Item = (Arc<Segment>, Meta)>,
        low: &[u8],
        high: Option<&[u8]>,
        part_bytes: u32,
    ) -> Result<RunStream> {
        let mut parts = Vec::new();
        for (segment, meta) in segments {
            let at_edge = !segment.inside(low, high);
            let from = if *segment.min < *low { meta.page_of(low) } else { 0 };
            let to = match high {
                Some(high) if *segment.max >= *high => meta.page_of(high) + 1,
                _ => meta.pages(),
            };
            let to = to.max(from + 1);
            let mut start = from;
            while start < to {
                // A merge begins when it has something of every run: the first part of each is short.
                let most = if parts.is_empty() { FIRST_PART.min(part_bytes) } else { part_bytes };
                let end = end_of_part(&segment, &meta, start, to, most)?;
                let (segment, meta) = (segment.clone(), meta.clone());
                parts.push(Part { segment, meta, from: start, to: end, at_edge });
                start = end;
            }
        }
        Ok(RunStream {
            low: low.to_vec(),
            high: high.map(<[u8]>::to_vec),
            parts,
            part: 0,
            buf: AlignedBuf::empty(),
            base: 0,
            arrived: None,
            requested: 0,
            page: 0,
            start: 0,
            end: 0,
            shape: Shape::default(),
            index: 0,
            key: Vec::new(),
            head: 0,
            kind: Kind::Put,
            value: 0..0,
            valid: false,
        })
    }

    /// Bytes that the stream will read.
    pub(crate) fn bytes(&self) -> u64 {
        self.parts.iter().filter_map(|p| p.extent_range().ok()).map(|r| u64::from(r.1)).sum()
    }

    /// Asks for the next part, if one is left and none is on its way.
    pub(crate) fn request(&mut self, io: &mut PagerIo, token: u64) -> Result<()> {
        let started = if self.buf.is_empty() { 0 } else { self.part + 1 };
        if self.requested == started
            && let Some(part) = self.parts.get(self.requested)
        {
            let (at, len) = part.extent_range()?;
            io.submit_read(&part.segment.extent, at, len as usize, token);
            io.kick();
            self.requested += 1;
        }
        Ok(())
    }

    /// Takes what [`RunStream::request`] asked for.
    pub(crate) fn arrive(&mut self, buf: AlignedBuf) {
        self.arrived = Some(buf);
    }

    /// Its buffer, for reuse.
    pub(crate) fn into_buf(self) -> Option<AlignedBuf> {
        (!self.buf.is_empty()).then_some(self.buf)
    }

    /// Whether there is a current entry.
    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.valid
    }

    /// The current entry. REQUIRES [`RunStream::valid`].
    #[inline]
    pub(crate) fn entry(&self) -> MessageRef<'_> {
        MessageRef { kind: self.kind, key: &self.key, value: &self.buf[self.value.clone()] }
    }

    /// Moves to the next entry. False: the part read so far is used up; call [`RunStream::next_part`].
    #[inline]
    pub(crate) fn advance(&mut self, pager: &Pager) -> Result<bool> {
        self.index += 1;
        if self.index < self.shape.count {
            self.load_entry()?;
            return Ok(self.valid);
        }
        self.page += 1;
        if self.part < self.parts.len() && self.page < self.parts[self.part].to {
            self.open_page(pager)?;
            self.load_entry()?;
            return Ok(self.valid);
        }
        self.valid = false;
        Ok(false)
    }

    /// Whether a part is left after the current one.
    pub(crate) fn has_next_part(&self) -> bool {
        let next = if self.buf.is_empty() { self.part } else { self.part + 1 };
        next < self.parts.len()
    }

    /// Whether the next part's bytes are here.
    pub(crate) fn next_part_arrived(&self) -> bool {
        self.arrived.is_some()
    }

    /// Moves to the first entry of the next part. REQUIRES that it arrived.
    pub(crate) fn next_part(&mut self, pager: &Pager, io: &PagerIo) -> Result<()> {
        let Some(buf) = self.arrived.take() else { return Ok(()) };
        if !self.buf.is_empty() {
            self.part += 1;
            io.recycle(std::mem::take(&mut self.buf));
        }
        self.buf = buf;
        self.base = self.parts[self.part].extent_range()?.0;
        self.page = self.parts[self.part].from;
        self.open_page(pager)?;
        if self.parts[self.part].at_edge {
            let page = PageRef::new(&self.buf[self.start..self.end]);
            match page.and_then(|p| p.search(&self.low)) {
                Some(Ok(i) | Err(i)) => self.index = i,
                None => return Err(self.lie()),
            }
            if self.index == self.shape.count {
                self.index -= 1;
                self.advance(pager)?;
                return Ok(());
            }
        }
        self.load_entry()
    }

    fn open_page(&mut self, pager: &Pager) -> Result<()> {
        let part = &self.parts[self.part];
        let place = part.place(self.page)?;
        let start = (place.at - self.base) as usize;
        let bytes = &self.buf[start..start + place.len as usize];
        pager.verify(bytes, part.segment.extent.offset() + u64::from(place.at), place.crc)?;
        let page = PageRef::new(bytes).ok_or_else(|| self.lie())?;
        self.key.clear();
        self.key.extend_from_slice(page.prefix());
        self.shape = page.shape();
        (self.start, self.end) = (start, start + place.len as usize);
        self.index = 0;
        Ok(())
    }

    #[inline]
    fn load_entry(&mut self) -> Result<()> {
        let page = PageRef::again(&self.buf[self.start..self.end], self.shape);
        let Some(entry) = page.entry(self.index) else { return Err(self.lie()) };
        // What is before the suffix is the prefix, since the page was opened.
        self.key.truncate(self.shape.prefix);
        self.key.extend_from_slice(entry.suffix);
        self.kind = entry.kind;
        let value_at = self.start + entry.value_at;
        self.value = value_at..value_at + entry.value.len();
        self.head = head_of(&self.key);
        self.valid = true;
        if self.parts[self.part].at_edge && self.high.as_ref().is_some_and(|h| self.key >= *h) {
            // Past the end: nothing of this run is left.
            self.valid = false;
            self.part = self.parts.len();
            self.requested = self.parts.len();
        }
        Ok(())
    }

    #[cold]
    fn lie(&self) -> crate::Error {
        let part = &self.parts[self.part.min(self.parts.len() - 1)];
        part.segment.corrupt(self.base + self.start as u32, "data page", "an entry does not decode")
    }
}

#[cfg(test)]
mod tests {
    use super::part_bytes;

    #[test]
    fn parts_are_as_large_as_memory_allows_for_all_streams_together() {
        let mib = 1 << 20;
        assert_eq!(part_bytes(29 * mib, 14), 1 << 20);
        assert_eq!(part_bytes(7 * mib / 2, 11), 128 << 10);
        assert_eq!(part_bytes(0, 11), 32 << 10);
        assert_eq!(part_bytes(usize::MAX, 0), 1 << 20);
        for streams in 1..100 {
            let part = part_bytes(64 * mib, streams) as usize;
            assert!(2 * streams * part <= 64 * mib, "{streams} streams with parts of {part} bytes");
        }
    }
}
