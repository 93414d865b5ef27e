//! The chunks of a cursor: large reads past the cache, the next one on its way while this one is consumed, none of them beyond the leaf, nor
//! beyond what is worth reading.

use std::ops::Range;

use super::{RunCursor, Source};
use crate::Result;
use crate::readahead::ReadAhead;
use crate::segment::PageAt;

/// Bytes on their way ahead of a cursor when its first chunk is asked for, about; twice as many with each chunk that it comes to.
pub(super) const FIRST_AHEAD: usize = 64 << 10;
/// The same in the first leaf of a stream; twice as many with each leaf, so that of a long one the next leaf is on its way as a whole, or several
/// small ones.
pub(crate) const FIRST_OF_STREAM: usize = 512 << 10;
/// Most bytes on their way: with half as many on the way to be read and as many being consumed, the device need not wait.
pub(crate) const MOST_AHEAD: usize = 2 << 20;

/// Some pages of a segment that lie side by side.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub segment: usize,
    pub pages: Range<usize>,
    /// Where they begin in the extent.
    pub base: u32,
    pub len: usize,
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

    /// Asks for pages from `page` on (or up to it, backward) that make up about half of the bytes that may be on their way, none of them beyond the
    /// leaf but `page`.
    pub(super) fn ask(&mut self, segment: usize, page: usize, reads: &mut ReadAhead) -> Result<()> {
        let other = if segment == self.segment { None } else { self.meta_at_hand(segment) };
        let pages = other.map(|meta| self.pages_of_leaf(segment, meta));
        let pages = pages.unwrap_or_else(|| self.pages.clone());
        let meta = other.or(self.meta.as_ref());
        let first = self.place_in(segment, meta, page)?;
        let (mut from, mut to) = (page, page + 1);
        let (mut start, mut end) = (first.at, first.at + first.len);
        let most = (self.ahead_bytes / 2).max(FIRST_AHEAD);
        while ((end - start) as usize) < most {
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
        let len = end.checked_sub(start).ok_or_else(|| self.lie())? as usize;
        let ticket = reads.ask(&self.run.segments[segment].extent, start, len)?;
        self.asked.push_back((Piece { segment, pages: from..to, base: start, len }, ticket));
        Ok(())
    }

    /// Bytes on their way.
    pub(crate) fn bytes_asked(&self) -> usize {
        self.asked.iter().map(|(piece, _)| piece.len).sum()
    }

    /// Makes the chunk with `page` the current one, and asks for those after it.
    fn read_chunk(&mut self, page: usize, reads: &mut ReadAhead) -> Result<()> {
        if let Some((_, old)) = self.chunk.take() {
            reads.recycle(old);
        }
        self.give_up_before(self.segment, page, reads);
        if self.asked.is_empty() {
            self.ask(self.segment, page, reads)?;
            reads.kick();
        }
        if let Some((piece, ticket)) = self.asked.pop_front() {
            self.chunk = reads.take(ticket)?.map(|buf| (piece, buf));
            self.ahead_bytes = (self.ahead_bytes * 2).min(MOST_AHEAD);
            self.ask_ahead(reads)?;
        }
        Ok(())
    }

    /// Gives up what was asked for up to the piece with this page; all, if none has it.
    pub(super) fn give_up_before(&mut self, segment: usize, page: usize, reads: &mut ReadAhead) {
        while let Some((piece, ticket)) = self.asked.front()
            && !piece.has(segment, page)
        {
            reads.give_up(*ticket);
            self.asked.pop_front();
        }
    }

    /// Asks for what comes after the last piece, until enough is on its way.
    pub(super) fn ask_ahead(&mut self, reads: &mut ReadAhead) -> Result<()> {
        while self.bytes_asked() < self.ahead_bytes
            && let Some((segment, page)) = self.page_ahead()
        {
            self.ask(segment, page, reads)?;
        }
        reads.kick();
        Ok(())
    }

    /// The segment and page after the last piece, if it is known and worth reading.
    fn page_ahead(&self) -> Option<(usize, usize)> {
        let last =
            self.asked.back().map(|(piece, _)| piece).or(self.chunk.as_ref().map(|(piece, _)| piece))?;
        let page = if self.forward() { Some(last.pages.end) } else { last.pages.start.checked_sub(1) };
        let pages = match self.meta_at_hand(last.segment) {
            Some(meta) if last.segment != self.segment => self.pages_of_leaf(last.segment, meta),
            _ => self.pages.clone(),
        };
        if let Some(page) = page.filter(|page| pages.contains(page)) {
            return self.worth.contains(&page).then_some((last.segment, page));
        }
        let next = if self.forward() { last.segment + 1 } else { last.segment.checked_sub(1)? };
        let meta = self.meta_at_hand(next).filter(|_| self.is_inside(next))?;
        Some((next, if self.forward() { 0 } else { meta.pages() - 1 }))
    }
}
