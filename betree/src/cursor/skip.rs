//! Skipping what newer spans hide, in two parts, so that the reads of all cursors of a walk are under way before one of them waits.

use super::chunks::{FIRST_AHEAD, Piece};
use super::{Direction, RunCursor, Seek, page_of};
use crate::Result;
use crate::readahead::ReadAhead;

impl RunCursor {
    /// Begins to skip what lies before a seek in the direction, unread where it fills pages: the read of the page that the seek means gets under way.
    /// To be followed by [`RunCursor::end_skip`]. What comes after `until` in the direction is hidden again. REQUIRES a current entry, and that the seek
    /// does not go back.
    pub(crate) fn begin_skip(
        &mut self,
        seek: Seek<'_>,
        until: Option<&[u8]>,
        reads: &mut ReadAhead,
    ) -> Result<()> {
        self.valid = false;
        self.skips_to = None;
        let Some(segment) = self.segment_for(seek).filter(|&at| at == self.segment || self.is_inside(at))
        else {
            return Ok(());
        };
        let stays = segment == self.segment;
        self.open_segment(segment)?;
        let Some(meta) = &self.meta else { return Ok(()) };
        let there = &self.run.segments[segment];
        let page = page_of(there, meta, seek);
        self.worth = match (until, self.direction) {
            (None, _) => 0..usize::MAX,
            (Some(key), Direction::Forward) => 0..there.page_of(meta, key) + 1,
            (Some(key), Direction::Backward) => there.page_of(meta, key)..usize::MAX,
        };
        self.skips_to = Some((page, stays && page == self.page));
        let has = |piece: &Piece| piece.has(segment, page);
        let is_at_hand = self.chunk.as_ref().is_some_and(|(piece, _)| has(piece));
        if self.in_sequence >= self.single_pages && !is_at_hand {
            // What comes now may be as short as what was skipped was long.
            self.ahead_bytes = FIRST_AHEAD;
            self.give_up_before(segment, page, reads);
            if self.asked.is_empty() {
                self.ask(segment, page, reads)?;
            }
        }
        Ok(())
    }

    /// Goes where [`RunCursor::begin_skip`] was told to.
    pub(crate) fn end_skip(&mut self, seek: Seek<'_>, reads: &mut ReadAhead) -> Result<()> {
        let Some((page, is_open)) = self.skips_to.take() else { return Ok(()) };
        if !is_open {
            self.open_page(page, reads)?;
        }
        self.land(seek, reads)
    }
}
