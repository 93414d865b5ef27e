//! Segments: the contiguous pieces of a run, each one extent: data pages, then one meta block (page index and filter).
//!
//! ```text
//! meta block
//!  0  u32  checksum (the pager's)          4  u8  page type = 2       5  3 bytes reserved, zero
//!  8  u32  data pages (≥ 1)               12  u32 filter bytes (multiple of 64)
//! 16  u32  separator bytes                20  u32 messages
//! 24  40 bytes reserved, zero
//! 64  …    filter (see `filter`)
//!     …    12 bytes per page: u32 first block in the extent | u32 checksum of the page | u32 end of its separator
//!     …    separators, ascending: separator i is above every key of page i − 1 and not above any of page i
//!     …    zeros to a multiple of 4096
//! ```
//!
//! A [`Segment`] in memory is the descriptor that the node holds; it owns the extent, so that space comes back when the
//! last tree version that names it is gone. Invariants: `segment.keys_in_bounds` (min ≤ every key ≤ max),
//! `segment.pages_tile_the_data`, `page.checksum_in_parent`.

use std::sync::Arc;

use betree_pager::{BLOCK, Extent, Page, PageKind, PageRef as PagerPageRef, Pager};
use betree_storage::{Slabs, prefetch};
use bytes::Bytes;

use crate::filter;
use crate::headed::{Headed, head_of};
use crate::page::{Share, Spread};
use crate::pins::Pin;
use crate::{Error, Result};

/// Page type of meta blocks.
pub(crate) const TYPE_META: u8 = 2;
/// Bytes before the filter.
pub(crate) const META_HEADER: usize = 64;
/// Bytes of a page's row in the table.
pub(crate) const META_ROW: usize = 12;
/// Every so many bytes of data a key is kept in memory, to estimate how much of a segment lies in a key range.
pub(crate) const SAMPLE_BYTES: usize = 32 << 10;

/// A contiguous piece of a run. See the module's text.
///
/// What a point read asks first lies in one line of the processor's caches.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Segment {
    pub min: Headed<Box<[u8]>>,
    /// The meta block, if point reads have it at hand.
    pub pin: Pin,
    /// Of the smallest and the largest key.
    pub spread: Spread,
    pub max: Headed<Box<[u8]>>,
    pub extent: Arc<Extent>,
    /// Bytes of data pages; the meta block follows.
    pub data_len: u32,
    pub meta_len: u32,
    pub meta_crc: u32,
    pub messages: u32,
    /// Ascending keys at even distances (first keys of pages), for estimates only.
    pub samples: Box<[Box<[u8]>]>,
}

/// Where a data page lies in its segment, and its checksum.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageAt {
    pub at: u32,
    pub len: u32,
    pub crc: u32,
}

impl Segment {
    /// An error that names a place in this segment.
    #[cold]
    pub(crate) fn corrupt(&self, at: u32, structure: &'static str, detail: impl Into<String>) -> Error {
        Error::Corrupt {
            file: betree_pager::FILE_NAME.to_string(),
            offset: self.extent.offset() + u64::from(at),
            structure,
            detail: detail.into(),
        }
    }

    /// Asks the processor for what a point read looks at.
    #[inline]
    pub(crate) fn prefetch(&self) {
        prefetch::bytes(std::ptr::from_ref(self).cast(), 1);
    }

    /// Whether the smallest key is not above `key`.
    #[inline]
    pub(crate) fn begins_at_or_below(&self, key: &[u8]) -> bool {
        self.min.compare(head_of(key), key).is_le()
    }

    /// Whether the smallest key is below `key`.
    #[inline]
    pub(crate) fn begins_below(&self, key: &[u8]) -> bool {
        self.min.compare(head_of(key), key).is_lt()
    }

    /// Whether any key in `low..high` may be here.
    pub(crate) fn overlaps(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        *self.max >= *low && high.is_none_or(|h| *self.min < *h)
    }

    /// Whether every key here lies in `low..high`.
    pub(crate) fn inside(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        *self.min >= *low && high.is_none_or(|h| *self.max < *h)
    }

    /// Estimate of the bytes of data pages with keys in `low..high`.
    pub(crate) fn bytes_in(&self, low: &[u8], high: Option<&[u8]>) -> u64 {
        if !self.overlaps(low, high) {
            return 0;
        }
        if self.inside(low, high) || self.samples.is_empty() {
            return u64::from(self.data_len);
        }
        let from = self.samples.partition_point(|s| **s < *low);
        let to = high.map_or(self.samples.len(), |h| self.samples.partition_point(|s| **s < *h));
        let share = ((to - from) as u64).max(1);
        u64::from(self.data_len) * share / (self.samples.len() as u64).max(1)
    }

    /// What to ask the pager for to get the meta block.
    pub(crate) fn meta_ref(&self, keep: bool) -> PagerPageRef<'_> {
        let (at, len, expected) = (self.data_len, self.meta_len, self.meta_crc);
        PagerPageRef { extent: &self.extent, at, len, expected, kind: PageKind::Meta, keep }
    }

    /// The meta block from the page that [`Segment::meta_ref`] asks for.
    pub(crate) fn parse_meta(&self, page: Page) -> Result<Meta> {
        Meta::parse(page, self.extent.offset(), self.data_len)
    }

    /// The meta block, at hand, from the cache or by one read.
    pub(crate) fn meta(&self, pager: &Pager) -> Result<Meta> {
        if let Some(pinned) = &*self.pin.get() {
            return Ok(Meta::clone(pinned));
        }
        self.parse_meta(pager.get_ref(self.meta_ref(true))?)
    }

    /// The meta blocks of several segments. All that are neither at hand nor in the cache are read in one batch, and cached if `keep` says so.
    pub(crate) fn metas(
        pager: &Pager,
        segments: &[&Arc<Segment>],
        keep: impl Fn(&Segment) -> bool,
    ) -> Result<Vec<Meta>> {
        let held: Vec<Option<Meta>> =
            segments.iter().map(|segment| segment.pin.get().as_deref().cloned()).collect();
        let missing = segments.iter().zip(&held).filter(|(_, held)| held.is_none());
        let wants: Vec<_> = missing.map(|(segment, _)| segment.meta_ref(keep(segment))).collect();
        let mut pages = pager.get_many(&wants).into_iter();
        let mut metas = Vec::with_capacity(segments.len());
        for (segment, held) in segments.iter().zip(held) {
            metas.push(match held {
                Some(meta) => meta,
                None => match pages.next() {
                    Some(page) => segment.parse_meta(page?)?,
                    None => segment.meta(pager)?,
                },
            });
        }
        Ok(metas)
    }

    /// The only data page that may hold `key`, by the meta block.
    #[inline]
    pub(crate) fn page_of(&self, meta: &Meta, key: &[u8]) -> usize {
        meta.page_near(key, self.spread.share(key))
    }

    /// Asks the processor for what [`Segment::page_of`] looks at first.
    #[inline]
    pub(crate) fn prefetch_page_of(&self, meta: &Meta, key: &[u8]) {
        meta.prefetch_rows(self.spread.share(key));
    }

    /// A data page, from the cache or by one read.
    pub(crate) fn page(&self, pager: &Pager, place: PageAt) -> Result<Page> {
        Ok(pager.get(&self.extent, place.at, place.len, place.crc, PageKind::Data)?)
    }
}

/// Rows on either side of a guess that a search will probably look at.
const NEAR_ROWS: usize = 3;

/// A parsed meta block.
#[derive(Clone, Debug)]
pub(crate) struct Meta {
    /// The page, with one pointer to its bytes.
    page: Bytes,
    pages: usize,
    data_len: u32,
    table: usize,
    keys: usize,
    keys_len: usize,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

impl Meta {
    /// Reads the meta block of the segment at `offset` that has `data_len` bytes of data pages.
    pub(crate) fn parse(page: Page, offset: u64, data_len: u32) -> Result<Meta> {
        let lie = |detail: &str| Error::Corrupt {
            file: betree_pager::FILE_NAME.to_string(),
            offset: offset + u64::from(data_len),
            structure: "meta block",
            detail: detail.to_string(),
        };
        let bytes = &page[..];
        let field = |at| u32_at(bytes, at).unwrap_or(0) as usize;
        let (pages, filter_len, keys_len) = (field(8), field(12), field(16));
        let table = META_HEADER + filter_len;
        let keys = table + pages * META_ROW;
        if bytes.get(4) != Some(&TYPE_META)
            || pages == 0
            || filter_len % filter::LINE != 0
            || keys + keys_len > bytes.len()
        {
            return Err(lie("the header does not add up"));
        }
        if bytes[5..8].iter().chain(&bytes[24..META_HEADER]).any(|&b| b != 0) {
            return Err(lie("reserved bytes are not zero"));
        }
        Ok(Meta { pages, data_len, table, keys, keys_len, page: Bytes::from_owner(page) })
    }

    /// The same, in memory of the slabs if they have room.
    pub(crate) fn copied_to(&self, slabs: &Slabs) -> Option<Meta> {
        Some(Meta { page: Bytes::from_owner(slabs.copy_of(&self.page)?), ..*self })
    }

    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Number of messages the header states.
    pub(crate) fn messages(&self) -> u32 {
        u32_at(&self.page, 20).unwrap_or(0)
    }

    /// Asks the processor for what [`Meta::may_contain`] will look at.
    #[inline]
    pub(crate) fn prefetch(&self, hash: u64) {
        filter::prefetch(&self.page[META_HEADER..self.table], hash);
    }

    /// Whether the key of `hash` may be in the segment.
    #[inline]
    pub(crate) fn may_contain(&self, hash: u64) -> bool {
        filter::may_contain(&self.page[META_HEADER..self.table], hash)
    }

    /// Place and checksum of data page `index`; `None` if there is none or the block lies.
    pub(crate) fn place(&self, index: usize) -> Option<PageAt> {
        if index >= self.pages {
            return None;
        }
        let row = self.table + index * META_ROW;
        let at = u32_at(&self.page, row)?.checked_mul(BLOCK as u32)?;
        let end = if index + 1 < self.pages {
            u32_at(&self.page, row + META_ROW)?.checked_mul(BLOCK as u32)?
        } else {
            self.data_len
        };
        let crc = u32_at(&self.page, row + 4)?;
        // Not `then_some`: the difference of places that do not ascend is none.
        (at < end && end <= self.data_len).then(|| PageAt { at, len: end - at, crc })
    }

    /// The places of page `index` and of those beside it in the same `bytes` of the data, counted from its begin, without any that is longer than that.
    pub(crate) fn around(&self, index: usize, bytes: u32) -> impl Iterator<Item = PageAt> {
        let part = move |index| self.place(index).map(|place| place.at / bytes);
        let wanted = part(index);
        let here = move |index: &usize| wanted.is_some() && part(*index) == wanted;
        let first = (0..index).rev().take_while(here).last().unwrap_or(index);
        let places = (first..self.pages).take_while(here).filter_map(|index| self.place(index));
        places.filter(move |place| place.len <= bytes)
    }

    /// `segment.pages_tile_the_data`: the first page that does not begin where the one before ends.
    pub(crate) fn first_gap(&self) -> Option<usize> {
        let mut end = 0;
        (0..self.pages).find(|&index| match self.place(index) {
            Some(place) if place.at == end => {
                end = place.at + place.len;
                false
            }
            _ => true,
        })
    }

    /// The separator of page `index` (empty if the block lies: searches then end at the wrong page, whose bounds tell).
    pub(crate) fn separator(&self, index: usize) -> &[u8] {
        let end_of = |i: usize| u32_at(&self.page, self.table + i * META_ROW + 8).unwrap_or(0) as usize;
        let start = if index == 0 { 0 } else { end_of(index - 1) };
        let end = end_of(index).min(self.keys_len);
        self.page.get(self.keys + start.min(end)..self.keys + end).unwrap_or(&[])
    }

    /// Where in page `index` of `segment`, whose meta block this is, the key probably is.
    #[inline]
    pub(crate) fn share(&self, index: usize, segment: &Segment, key: &[u8]) -> Share {
        let low = if index > 0 { self.separator(index) } else { &segment.min };
        let high = if index + 1 < self.pages { self.separator(index + 1) } else { &segment.max };
        Spread::new(low, high).share(key)
    }

    /// Asks the processor for what [`Meta::page_near`] will look at first.
    #[inline]
    pub(crate) fn prefetch_rows(&self, share: Share) {
        let rows = self.page.as_ptr().wrapping_add(self.table + share.of(self.pages) * META_ROW);
        prefetch::bytes(rows.wrapping_sub(NEAR_ROWS * META_ROW), 2 * NEAR_ROWS * META_ROW);
        prefetch::bytes(self.page.as_ptr().wrapping_add(self.keys + share.of(self.keys_len)), 1);
    }

    /// The only page that may hold `key`.
    pub(crate) fn page_of(&self, key: &[u8]) -> usize {
        self.search(key, 1, self.pages)
    }

    /// The same, searched from where it probably is: in steps that double, then by halves. Cost: about one comparison where the guess is right, twice those of
    /// [`Meta::page_of`] at the worst.
    #[inline]
    pub(crate) fn page_near(&self, key: &[u8], share: Share) -> usize {
        let (mut low, mut high) = (1, self.pages);
        let mut at = share.of(self.pages);
        let mut step = 1;
        while low < high {
            at = at.clamp(low, high - 1);
            if self.separator(at) <= key {
                low = at + 1;
                at += step;
            } else {
                high = at;
                at = at.saturating_sub(step);
            }
            step *= 2;
            if low >= high || at < low || at >= high {
                break;
            }
        }
        self.search(key, low, high)
    }

    /// The last page before `high` whose separator is not above `key`, given that it is not before `low` - 1.
    #[inline]
    fn search(&self, key: &[u8], mut low: usize, mut high: usize) -> usize {
        while low < high {
            let middle = (low + high) / 2;
            if self.separator(middle) <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low - 1
    }
}

/// The shortest key above `below` and not above `key`. REQUIRES `below < key`.
pub(crate) fn separator<'a>(below: &[u8], key: &'a [u8]) -> &'a [u8] {
    &key[..(crate::page::common_prefix(below, key) + 1).min(key.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A meta block without a filter, of pages of one block each.
    fn meta_of(separators: &[Vec<u8>]) -> Meta {
        meta_of_pages(separators, |_| 1)
    }

    /// The same, of pages of as many blocks as `blocks` says.
    fn meta_of_pages(separators: &[Vec<u8>], blocks: impl Fn(usize) -> u32) -> Meta {
        let mut bytes = vec![0; META_HEADER];
        let (mut keys, mut rows, mut block) = (Vec::new(), Vec::new(), 0);
        for (page, separator) in separators.iter().enumerate() {
            keys.extend_from_slice(separator);
            rows.extend([block, 0, keys.len() as u32].into_iter().flat_map(u32::to_le_bytes));
            block += blocks(page);
        }
        bytes[4] = TYPE_META;
        bytes[8..12].copy_from_slice(&(separators.len() as u32).to_le_bytes());
        bytes[16..20].copy_from_slice(&(keys.len() as u32).to_le_bytes());
        bytes.extend(rows);
        bytes.extend(keys);
        let data_len = block * BLOCK as u32;
        Meta::parse(Page::copy_of(&bytes, PageKind::Meta), 0, data_len).unwrap()
    }

    #[test]
    fn wherever_a_search_for_a_page_begins_it_ends_at_the_same_page() {
        for pages in [1, 2, 3, 7, 64, 257] {
            // The first page has none; the others are uneven.
            let separators = (0..pages).map(|page| match page {
                0 => Vec::new(),
                page => u32::to_be_bytes(page * page * 1000)[..].to_vec(),
            });
            let meta = meta_of(&separators.collect::<Vec<_>>());
            for page in 0..pages {
                for key in [page * page * 1000, page * page * 1000 + 1, (page + 1) * (page + 1) * 1000 - 1] {
                    let key = key.to_be_bytes();
                    assert_eq!(meta.page_of(&key), page as usize);
                    for guess in (0..pages).step_by(1 + pages as usize / 20).chain([pages - 1]) {
                        let share = Spread::new(&[0], &[200]).share(&[(guess * 200 / pages) as u8]);
                        assert_eq!(
                            meta.page_near(&key, share),
                            page as usize,
                            "{pages} pages, guess {guess}"
                        );
                    }
                    let past = Spread::new(b"a", b"b").share(b"c");
                    assert_eq!(meta.page_near(&key, past), page as usize);
                }
            }
        }
    }

    #[test]
    fn around_a_page_are_those_of_the_same_part_of_the_data() {
        let separators = (0..40u32).map(|page| page.to_be_bytes().to_vec()).collect::<Vec<_>>();
        let around = |meta: &Meta, index| {
            let places = meta.around(index, 64 << 10).map(|place| place.at / BLOCK as u32);
            places.collect::<Vec<_>>()
        };
        let even = meta_of(&separators);
        assert_eq!(around(&even, 16), (16..32).collect::<Vec<_>>());
        assert_eq!(around(&even, 31), around(&even, 16));
        assert_eq!(around(&even, 15), (0..16).collect::<Vec<_>>());
        assert_eq!(around(&even, 39), (32..40).collect::<Vec<_>>());
        assert_eq!(around(&even, 40), []);
        // The one with a large value is left to who asks for it.
        let uneven = meta_of_pages(&separators, |page| if page == 20 { 17 } else { 1 });
        assert_eq!(around(&uneven, 17), [16, 17, 18, 19]);
        assert_eq!(around(&uneven, 20), around(&uneven, 17));
        assert_eq!(around(&uneven, 21), (37..48).collect::<Vec<_>>());
    }
}
