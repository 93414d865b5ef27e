//! Reading segments from the device, past the page cache: for the checker and for salvage.
//!
//! A [`Window`] is one read of neighbouring data pages. Where the device refuses a long read, the page alone is tried, so that a bad
//! sector costs no more pages than it must. Owned by one thread; no locks.

use betree_pager::{BLOCK, Inspector, Page, PageKind};
use betree_storage::AlignedBuf;

use crate::Result;
use crate::segment::{Meta, PageAt};
use crate::stored::StoredSegment;

/// Bytes that are read ahead.
const PIECE: u32 = 128 << 10;

/// Reads and verifies a meta block.
pub(crate) fn read_meta(inspector: &Inspector, segment: &StoredSegment) -> Result<Meta> {
    let at = segment.offset + u64::from(segment.data_len);
    let page = inspector.page(at, segment.meta_len, segment.meta_crc)?;
    Meta::parse(Page::copy_of(&page, PageKind::Meta), segment.offset, segment.data_len)
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Window {
    buf: AlignedBuf,
    /// Offset in the file of `buf[0]`.
    base: u64,
}

impl Default for Window {
    fn default() -> Self {
        Window { buf: AlignedBuf::empty(), base: 0 }
    }
}

impl Window {
    /// `len` bytes at `at` of the segment's data pages, not verified. REQUIRES `at + len <= data_len`.
    pub(crate) fn bytes(
        &mut self,
        inspector: &Inspector,
        segment: &StoredSegment,
        at: u32,
        len: u32,
    ) -> Result<&[u8]> {
        let offset = segment.offset + u64::from(at);
        let end = offset + u64::from(len);
        if offset < self.base || end > self.base + self.buf.len() as u64 {
            let ahead = PIECE.min(segment.data_len - at).max(len) / BLOCK as u32 * BLOCK as u32;
            let read = inspector.bytes(offset, ahead);
            self.buf = AlignedBuf::empty();
            self.buf = match read {
                Ok(buf) => buf,
                Err(_) if ahead > len => inspector.bytes(offset, len)?,
                Err(error) => return Err(error.into()),
            };
            self.base = offset;
        }
        let from = (offset - self.base) as usize;
        Ok(&self.buf[from..from + len as usize])
    }

    /// A data page, verified against the checksum that the meta block holds.
    pub(crate) fn page(
        &mut self,
        inspector: &Inspector,
        segment: &StoredSegment,
        place: PageAt,
    ) -> Result<&[u8]> {
        let bytes = self.bytes(inspector, segment, place.at, place.len)?;
        inspector.verify(bytes, segment.offset + u64::from(place.at), place.crc)?;
        Ok(bytes)
    }
}
