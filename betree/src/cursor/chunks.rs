//! The chunks of a cursor: large reads past the cache, the next one on its way while this one is consumed, none of them beyond the leaf, nor
//! beyond what is worth reading.

use std::ops::Range;

use super::{RunCursor, Source};
use crate::Result;
use crate::readahead::ReadAhead;
use crate::segment::PageAt;

/// Bytes of a first chunk, about; the next ones are twice as long as those before.
pub(super) const FIRST_CHUNK: usize = 64 << 10;
/// The first chunk of a stream.
pub(super) const FIRST_OF_STREAM: usize = 256 << 10;
const LARGEST_CHUNK: usize = 1 << 20;

/// Some pages of a segment that lie side by side.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub segment: usize,
    pub pages: Range<usize>,
    /// Where they begin in the extent.
    pub base: u32,
}

impl Piece {
    pub fn has(&self, segment: usize, page: usize) -> bool {
        self.segment == segment && self.pages.contains(&page)
    }
}

impl RunCursor {
    pub(super) fn open_in_chunk(&mut self, page: usize, place: PageAt, reads: &mut ReadAhead) -> Result<()> {
        if !self.chunk.as_ref().is_some_and(|(piece, _)| piece.has(self.segment, page)) {
            self.read_chunk(page, reads)?;
        }
        let Some((piece, buf)) = &self.chunk else { return Err(self.lie()) };
        let start = (place.at - piece.base) as usize;
        let end = start + place.len as usize;
        let offset = self.run.segments[self.segment].extent.offset() + u64::from(place.at);
        self.pager.verify(&buf[start..end], offset, place.crc)?;
        self.source = Source::Chunk(start, end);
        Ok(())
    }

    /// Asks for pages from `page` on (or up to it, backward) that make up about `chunk_bytes`, none of them beyond the leaf but `page`.
    pub(super) fn ask(&mut self, segment: usize, page: usize, reads: &mut ReadAhead) -> Result<()> {
        let other = if segment == self.segment { None } else { self.meta_at_hand(segment) };
        let pages = other.map(|meta| self.pages_of_leaf(segment, meta));
        let pages = pages.unwrap_or_else(|| self.pages.clone());
        let meta = other.or(self.meta.as_ref());
        let first = self.place_in(segment, meta, page)?;
        let (mut from, mut to) = (page, page + 1);
        let (mut start, mut end) = (first.at, first.at + first.len);
        while ((end - start) as usize) < self.chunk_bytes {
            if self.forward() && to < pages.end && self.worth.contains(&to) {
                let place = self.place_in(segment, meta, to)?;
                end = place.at + place.len;
                to += 1;
            } else if !self.forward() && from > pages.start && self.worth.contains(&(from - 1)) {
                from -= 1;
                start = self.place_in(segment, meta, from)?.at;
            } else {
                break;
            }
        }
        // A meta block that lies may have places that do not ascend.
        let len = end.checked_sub(start).ok_or_else(|| self.lie())?;
        let ticket = reads.ask(&self.run.segments[segment].extent, start, len as usize)?;
        self.asked = Some((Piece { segment, pages: from..to, base: start }, ticket));
        self.chunk_bytes = (self.chunk_bytes * 2).min(LARGEST_CHUNK);
        Ok(())
    }

    /// Makes the chunk with `page` the current one, and asks for the one after it.
    fn read_chunk(&mut self, page: usize, reads: &mut ReadAhead) -> Result<()> {
        if let Some((_, old)) = self.chunk.take() {
            reads.recycle(old);
        }
        if let Some((piece, ticket)) = self.asked.take() {
            if piece.has(self.segment, page) {
                self.asked = Some((piece, ticket));
            } else {
                reads.give_up(ticket);
            }
        }
        if self.asked.is_none() {
            self.ask(self.segment, page, reads)?;
            reads.kick();
        }
        if let Some((piece, ticket)) = self.asked.take() {
            let after = if self.forward() { Some(piece.pages.end) } else { piece.pages.start.checked_sub(1) };
            self.chunk = reads.take(ticket)?.map(|buf| (piece, buf));
            self.ask_ahead(after, reads)?;
        }
        Ok(())
    }

    /// Asks for the chunk that begins at page `after` of the segment, or else at the next segment's first page.
    fn ask_ahead(&mut self, after: Option<usize>, reads: &mut ReadAhead) -> Result<()> {
        if let Some(page) = after.filter(|page| self.pages.contains(page)) {
            if !self.worth.contains(&page) {
                return Ok(());
            }
            self.ask(self.segment, page, reads)?;
        } else {
            let next = if self.forward() { Some(self.segment + 1) } else { self.segment.checked_sub(1) };
            let Some((segment, meta)) = next.and_then(|next| Some((next, self.meta_at_hand(next)?))) else {
                return Ok(());
            };
            let page = if self.forward() { 0 } else { meta.pages() - 1 };
            self.ask(segment, page, reads)?;
        }
        reads.kick();
        Ok(())
    }
}
