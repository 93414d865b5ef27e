//! The messages of one run in key order, past damage: what cannot be read becomes a gap in the keys.
//!
//! With its meta block a segment's damaged pages are passed over one by one, and separators tell which keys each may have had. Without it
//! the data pages are found by themselves: they lie back to back, and each verifies by its own checksum at one length only. There is
//! then no parent to tell a page of today from an older one of the same place, so keys must go on ascending within the segment's bounds;
//! and it is done only where the segment is known to own its place.
//!
//! A gap is known before any key behind it is handed out. One page and one read of [`Window`] are in memory. Called by salvage.

use std::collections::HashMap;
use std::sync::Arc;

use betree_pager::{BLOCK, FILE_NAME, Inspector};

use super::report::{Damage, KeyRange, Losses};
use super::trunk::Trust;
use crate::device::{Window, read_meta};
use crate::message::Kind;
use crate::page::{HEADER, PageRef, TYPE_DATA, offsets_len};
use crate::segment::Meta;
use crate::stored::{StoredRun, StoredSegment};

/// Longest page of more than one entry.
const MAX_PAGE: u32 = 64 << 10;
/// Meta blocks kept.
const MAX_METAS: usize = 256;

/// What all streams of one keyspace share.
pub(super) struct Source<'a> {
    pub inspector: &'a Inspector,
    pub keyspace: &'a str,
    /// Meta blocks read lately; a run that waits high in the tree is met again in every leaf's range. `None`: damaged.
    metas: HashMap<u64, Option<Meta>>,
    /// Bytes of data pages read.
    pub read: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(inspector: &'a Inspector, keyspace: &'a str) -> Source<'a> {
        Source { inspector, keyspace, metas: HashMap::new(), read: 0 }
    }

    fn meta(&mut self, segment: &StoredSegment, trust: Trust, losses: &mut Losses) -> Option<Meta> {
        if let Some(known) = self.metas.get(&segment.offset) {
            return known.clone();
        }
        let read = read_meta(self.inspector, segment).and_then(|meta| match meta.first_gap() {
            None => Ok(meta),
            Some(page) => Err(crate::Error::Corrupt {
                file: FILE_NAME.into(),
                offset: segment.offset + u64::from(segment.data_len),
                structure: "meta block",
                detail: format!("segment.pages_tile_the_data: page {page}"),
            }),
        });
        if self.metas.len() >= MAX_METAS {
            self.metas.clear();
        }
        let meta = match (read, trust) {
            (Ok(meta), _) => Some(meta),
            (Err(error), Trust::Live) => {
                let detail = format!(
                    "{error}; its data pages are read by their own checksums, without their parent's"
                );
                losses.add(self.meta_damage(segment, None, 0, detail));
                None
            }
            (Err(error), Trust::Stale) => {
                let range = KeyRange { low: segment.min.to_vec(), high: Some(successor(&segment.max)) };
                let detail = format!("{error}; the segment may have been given up since");
                losses.add(self.meta_damage(segment, Some(range), segment.messages.into(), detail));
                None
            }
        };
        self.metas.insert(segment.offset, meta.clone());
        meta
    }

    fn meta_damage(
        &self,
        segment: &StoredSegment,
        range: Option<KeyRange>,
        messages: u64,
        detail: String,
    ) -> Damage {
        Damage {
            structure: "meta block",
            file: FILE_NAME.into(),
            offset: segment.offset + u64::from(segment.data_len),
            len: segment.meta_len.into(),
            keyspace: Some(self.keyspace.into()),
            range,
            messages: Some(messages),
            detail,
        }
    }
}

/// The key that follows `key` at once.
fn successor(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

/// Where a stream is in its segment.
enum At {
    /// Before the segment of this index.
    Segment,
    /// Before this page of the meta block's table.
    Page {
        meta: Meta,
        page: usize,
        to: usize,
    },
    /// Before this byte of the data, without a meta block; since this byte nothing was found.
    Byte {
        at: u32,
        lost: Option<u32>,
    },
    End,
}

/// See the module's text.
pub(super) struct Stream {
    run: Arc<StoredRun>,
    trust: Trust,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    segment: usize,
    at: At,
    window: Window,
    page: Vec<u8>,
    index: usize,
    /// Length of the pages found without a meta block so far.
    usual: u32,
    /// The last key read of the segment, in range or not.
    last: Option<Vec<u8>>,
    /// The current entry.
    pub key: Vec<u8>,
    pub kind: Kind,
    pub valid: bool,
    /// Keys that may have been in what was passed over and are not below the current key yet.
    gaps: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Stream {
    /// Over the keys of `run` in `low..high`, before the first.
    pub(super) fn new(run: Arc<StoredRun>, trust: Trust, low: &[u8], high: Option<&[u8]>) -> Stream {
        let segment = run.segments.partition_point(|s| *s.max < *low);
        Stream {
            run,
            trust,
            low: low.to_vec(),
            high: high.map(<[u8]>::to_vec),
            segment,
            at: At::Segment,
            window: Window::default(),
            page: Vec::new(),
            index: 0,
            usual: BLOCK as u32,
            last: None,
            key: Vec::new(),
            kind: Kind::Put,
            valid: false,
            gaps: Vec::new(),
        }
    }

    pub(super) fn run(&self) -> &StoredRun {
        &self.run
    }

    /// Whether a message of `key`, which is not above the current key, may have been lost here.
    pub(super) fn may_have_lost(&self, key: &[u8]) -> bool {
        self.gaps.iter().any(|(low, high)| **low <= *key && *key < **high)
    }

    /// The value of the current entry.
    pub(super) fn value(&self) -> Option<&[u8]> {
        Some(PageRef::new(&self.page)?.entry(self.index)?.value)
    }

    fn segment(&self) -> Option<&StoredSegment> {
        self.run.segments.get(self.segment)
    }

    /// Goes to the next entry in range.
    pub(super) fn advance(&mut self, source: &mut Source<'_>, losses: &mut Losses) {
        if self.valid {
            let done = &self.key;
            self.gaps.retain(|(_, high)| **high > **done);
        }
        loop {
            if !self.page.is_empty() {
                match self.next_in_page() {
                    Some(true) => return,
                    Some(false) => continue,
                    None => self.page.clear(),
                }
            }
            if !self.next_page(source, losses) {
                self.valid = false;
                self.page.clear();
                return;
            }
        }
    }

    /// The next entry of the page: whether it is in range; `None` behind the last.
    fn next_in_page(&mut self) -> Option<bool> {
        let index = if self.valid { self.index + 1 } else { self.index };
        self.valid = false;
        self.index = index;
        let page = PageRef::new(&self.page)?;
        if index >= page.count() {
            return None;
        }
        let mut key = std::mem::take(&mut self.key);
        let kind = page.key_into(index, &mut key)?.kind;
        self.key = key;
        if self.high.as_ref().is_some_and(|high| *self.key >= **high) {
            self.at = At::End;
            return None;
        }
        if *self.key < *self.low {
            self.index = index + 1;
            return Some(false);
        }
        (self.kind, self.valid) = (kind, true);
        Some(true)
    }

    /// Puts the next page that can be read into `page`; false when there is none.
    fn next_page(&mut self, source: &mut Source<'_>, losses: &mut Losses) -> bool {
        loop {
            match std::mem::replace(&mut self.at, At::End) {
                At::End => return false,
                At::Segment => {
                    let Some(segment) = self.segment() else { return false };
                    if self.high.as_ref().is_some_and(|high| *segment.min >= **high) {
                        return false;
                    }
                    let meta = source.meta(segment, self.trust, losses);
                    let (min, max) = (segment.min.clone(), segment.max.clone());
                    self.last = None;
                    self.at = match meta {
                        None if self.trust == Trust::Stale => {
                            self.gaps.push((min.to_vec(), successor(&max)));
                            self.segment += 1;
                            At::Segment
                        }
                        None => At::Byte { at: 0, lost: None },
                        Some(meta) => {
                            let page = if *min < *self.low { meta.page_of(&self.low) } else { 0 };
                            let to = match &self.high {
                                Some(high) => meta.page_of(high) + 1,
                                None => meta.pages(),
                            };
                            At::Page { page, to, meta }
                        }
                    };
                }
                At::Page { meta, page, to } if page < to.min(meta.pages()) => {
                    let found = self.table_page(&meta, page, source, losses);
                    self.at = At::Page { meta, page: page + 1, to };
                    if found {
                        return true;
                    }
                }
                At::Page { .. } => self.next_segment(),
                At::Byte { at, lost } => {
                    if self.byte_page(at, lost, source, losses) {
                        return true;
                    }
                }
            }
        }
    }

    fn next_segment(&mut self) {
        self.segment += 1;
        self.at = At::Segment;
    }

    /// Reads page `index` of the table; a damaged one becomes a gap.
    fn table_page(
        &mut self,
        meta: &Meta,
        index: usize,
        source: &mut Source<'_>,
        losses: &mut Losses,
    ) -> bool {
        let run = self.run.clone();
        let (Some(segment), Some(place)) = (run.segments.get(self.segment), meta.place(index)) else {
            return false;
        };
        source.read += u64::from(place.len);
        let error = match self.window.page(source.inspector, segment, place) {
            Ok(bytes) if readable(bytes) => {
                self.page.clear();
                self.page.extend_from_slice(bytes);
                (self.index, self.valid) = (0, false);
                return true;
            }
            Ok(_) => "its entries do not decode".to_owned(),
            Err(error) => error.to_string(),
        };
        let low = if index == 0 { segment.min.to_vec() } else { meta.separator(index).to_vec() };
        let high = match index + 1 < meta.pages() {
            true => meta.separator(index + 1).to_vec(),
            false => successor(&segment.max),
        };
        losses.add(Damage {
            structure: "data page",
            file: FILE_NAME.into(),
            offset: segment.offset + u64::from(place.at),
            len: place.len.into(),
            keyspace: Some(source.keyspace.into()),
            range: Some(KeyRange { low: low.clone(), high: Some(high.clone()) }),
            messages: Some(u64::from(segment.messages) / meta.pages() as u64),
            detail: error,
        });
        self.gaps.push((low, high));
        false
    }

    /// Looks for a page at byte `at` of a segment without meta block, and moves on.
    fn byte_page(
        &mut self,
        at: u32,
        lost: Option<u32>,
        source: &mut Source<'_>,
        losses: &mut Losses,
    ) -> bool {
        let run = self.run.clone();
        let Some(segment) = run.segments.get(self.segment) else { return false };
        if at >= segment.data_len {
            if let Some(from) = lost {
                let high = successor(&segment.max);
                self.lost_bytes(segment, from, at, high, source.keyspace, losses);
            }
            self.next_segment();
            return false;
        }
        let Some(len) = self.length_at(segment, at, source) else {
            self.at = At::Byte { at: at + BLOCK as u32, lost: lost.or(Some(at)) };
            return false;
        };
        source.read += u64::from(len);
        self.usual = len;
        if let Some(from) = lost {
            let mut first = Vec::new();
            let _ = PageRef::new(&self.page).and_then(|page| page.key_into(0, &mut first));
            self.lost_bytes(segment, from, at, first, source.keyspace, losses);
        }
        let mut last = Vec::new();
        let _ = PageRef::new(&self.page).and_then(|page| page.key_into(page.count() - 1, &mut last));
        self.last = Some(last);
        (self.index, self.valid) = (0, false);
        self.at = At::Byte { at: at + len, lost: None };
        true
    }

    /// The keys up to `high` that lay in the data's bytes `from..to` are lost.
    fn lost_bytes(
        &mut self,
        segment: &StoredSegment,
        from: u32,
        to: u32,
        high: Vec<u8>,
        keyspace: &str,
        losses: &mut Losses,
    ) {
        let low = self.last.as_ref().map_or_else(|| segment.min.to_vec(), |last| successor(last));
        let share = u64::from(segment.messages) * u64::from(to - from) / u64::from(segment.data_len);
        losses.add(Damage {
            structure: "data page",
            file: FILE_NAME.into(),
            offset: segment.offset + u64::from(from),
            len: (to - from).into(),
            keyspace: Some(keyspace.into()),
            range: Some(KeyRange { low: low.clone(), high: Some(high.clone()) }),
            messages: Some(share),
            detail: "no data page verifies here; the meta block that would place them is damaged".into(),
        });
        self.gaps.push((low, high));
    }

    /// The length of the data page that verifies at byte `at`, which is then in `page`.
    fn length_at(&mut self, segment: &StoredSegment, at: u32, source: &Source<'_>) -> Option<u32> {
        let left = segment.data_len - at;
        let block = BLOCK as u32;
        let head = self.window.bytes(source.inspector, segment, at, block.min(left)).ok()?;
        let head: [u8; HEADER] = *head.first_chunk()?;
        if head[4] != TYPE_DATA {
            return None;
        }
        let end = u32::from_le_bytes([head[12], head[13], head[14], head[15]]);
        let least = end.checked_add(offsets_len(&head))?.checked_next_multiple_of(block)?.max(block);
        let longer = (least..=MAX_PAGE.max(least)).step_by(BLOCK);
        for len in std::iter::once(self.usual).filter(|usual| *usual >= least).chain(longer) {
            if len > left {
                continue;
            }
            let Ok(bytes) = self.window.bytes(source.inspector, segment, at, len) else { continue };
            if !source.inspector.fits(bytes, segment.offset + u64::from(at)) || !readable(bytes) {
                continue;
            }
            self.page.clear();
            self.page.extend_from_slice(bytes);
            let page = PageRef::new(&self.page)?;
            let (mut first, mut last) = (Vec::new(), Vec::new());
            page.key_into(0, &mut first)?;
            page.key_into(page.count() - 1, &mut last)?;
            let ascends = self.last.as_ref().is_none_or(|before| **before < *first);
            if ascends && *segment.min <= *first && *last <= *segment.max {
                return Some(len);
            }
            // An older page that lies where the one of today was lost.
            self.page.clear();
            return None;
        }
        None
    }
}

/// Whether every entry of a page that verified decodes, with ascending keys.
fn readable(bytes: &[u8]) -> bool {
    let Some(page) = PageRef::new(bytes) else { return false };
    let (mut before, mut key) = (Vec::new(), Vec::new());
    (0..page.count()).all(|index| {
        let decodes = page.key_into(index, &mut key).is_some() && (index == 0 || before < key);
        std::mem::swap(&mut before, &mut key);
        decodes
    })
}
