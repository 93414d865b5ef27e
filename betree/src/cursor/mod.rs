//! A cursor over the part of one run that lies in one leaf, in one direction, with read-ahead. It may end, or give some keys of the neighbouring
//! leaf, when the leaf is used up.
//!
//! A walk that may end soon reads single pages through the cache; as many as it expects to need were read there together when it began. After
//! them, and a few more, the cursor changes to chunks: large reads past the cache that grow, the next one on its way while this one is
//! consumed. A long walk that comes from another leaf *streams*: chunks from the beginning, and of all segments without a pause. No chunk
//! reaches beyond the leaf.
//!
//! The current entry is decoded once, when the cursor comes to it; its key is put together in place, since all keys of a page share a
//! prefix. Owned by a walk, which lends it the channel for its chunks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use betree_pager::{Page, PageKind, PageRef as PagerPageRef, Pager};
use betree_storage::AlignedBuf;

use crate::Result;
use crate::headed::head_of;
use crate::message::{Kind, MessageRef};
use crate::page::{PageRef, Shape};
use crate::readahead::{ReadAhead, Ticket};
use crate::run::Run;
use crate::segment::{Meta, PageAt, Segment};

mod chunks;
mod skip;

use self::chunks::{FIRST_AHEAD, Piece};
pub(crate) use self::chunks::{FIRST_OF_STREAM, MOST_AHEAD};

/// Pages read one by one before chunks begin, if no more were read together.
const SINGLE_PAGES: usize = 4;
/// Most pages of one run that are read together when a walk begins.
pub(crate) const MOST_TOGETHER: usize = 16;

/// Where to go.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Seek<'a> {
    /// The first entry with a key not below this one; then forward.
    At(&'a [u8]),
    /// The last entry with a key below this one (`None`: the last of all); then backward.
    Before(Option<&'a [u8]>),
}

/// Which way a walk goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

enum Source {
    None,
    Page(Page),
    /// Start and end in the chunk's buffer.
    Chunk(usize, usize),
}

/// Pages side by side that were read together for the first seek; those that were opened are gone.
#[derive(Default)]
struct Warm {
    segment: usize,
    /// The number of the first in its segment.
    first: usize,
    pages: Vec<Option<Page>>,
}

/// See the module's text.
pub(crate) struct RunCursor {
    pager: Pager,
    run: Arc<Run>,
    direction: Direction,
    /// The walk leaves the leaf at this key: not below it forward, below it backward.
    edge: Option<Arc<[u8]>>,
    /// Meta blocks at hand, by segment.
    metas: Vec<(usize, Meta)>,
    segment: usize,
    meta: Option<Meta>,
    /// The pages of the segment in which there may be keys of the leaf.
    pages: Range<usize>,
    page: usize,
    source: Source,
    shape: Shape,
    index: usize,
    valid: bool,
    /// The current entry: its key, which begins with what the page's keys share, the head of that and the key's head; kind and place of its value.
    key: Vec<u8>,
    prefix_head: u64,
    head: u64,
    kind: Kind,
    value: Range<usize>,
    /// Pages entered in sequence since the last seek.
    in_sequence: usize,
    /// Pages read one by one before chunks begin.
    single_pages: usize,
    warm: Warm,
    chunk: Option<(Piece, AlignedBuf)>,
    /// Bytes of chunks that may be on their way, and those that are, in the order in which the cursor comes to them.
    ahead_bytes: usize,
    asked: VecDeque<(Piece, Ticket)>,
    /// Between the two parts of a skip: the page to go to, and whether it is open.
    skips_to: Option<(usize, bool)>,
    /// The pages of the segment that are worth reading ahead: what comes after them is hidden.
    worth: Range<usize>,
}

/// The page of a segment in which a seek begins.
fn page_of(segment: &Segment, meta: &Meta, seek: Seek<'_>) -> usize {
    match seek {
        Seek::At(key) | Seek::Before(Some(key)) => segment.page_of(meta, key),
        Seek::Before(None) => meta.pages() - 1,
    }
}

impl RunCursor {
    pub(crate) fn new(
        pager: &Pager,
        run: Arc<Run>,
        direction: Direction,
        edge: Option<Arc<[u8]>>,
    ) -> RunCursor {
        RunCursor {
            pager: pager.clone(),
            run,
            direction,
            edge,
            metas: Vec::new(),
            segment: 0,
            meta: None,
            pages: 0..0,
            page: 0,
            source: Source::None,
            shape: Shape::default(),
            index: 0,
            valid: false,
            key: Vec::new(),
            prefix_head: 0,
            head: 0,
            kind: Kind::Put,
            value: 0..0,
            in_sequence: 0,
            single_pages: SINGLE_PAGES,
            warm: Warm::default(),
            chunk: None,
            ahead_bytes: FIRST_AHEAD,
            asked: VecDeque::new(),
            skips_to: None,
            worth: 0..usize::MAX,
        }
    }

    /// The current key. REQUIRES a current entry.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    /// The head of the current key. REQUIRES a current entry.
    #[inline]
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.valid
    }

    #[inline]
    pub(crate) fn entry(&self) -> Option<MessageRef<'_>> {
        if !self.valid {
            return None;
        }
        Some(MessageRef { kind: self.kind, key: &self.key, value: &self.bytes()[self.value.clone()] })
    }

    /// The kind of the current entry. REQUIRES a current entry.
    #[inline]
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    fn forward(&self) -> bool {
        self.direction == Direction::Forward
    }

    /// The segment in which a seek begins.
    fn segment_for(&self, seek: Seek<'_>) -> Option<usize> {
        let segments = &self.run.segments;
        match seek {
            Seek::At(key) => {
                let at = segments.reaching(key);
                (at < segments.len()).then_some(at)
            }
            Seek::Before(None) => segments.len().checked_sub(1),
            Seek::Before(Some(key)) => segments.beginning_below(key).checked_sub(1),
        }
    }

    /// The segments that a seek needs the meta blocks of: the one in which it begins, and for a stream all up to the edge.
    fn segments_wanted(&self, seek: Seek<'_>, stream: bool) -> Range<usize> {
        let segments = &self.run.segments;
        let Some(first) = self.segment_for(seek) else { return 0..0 };
        match (&self.edge, self.direction) {
            _ if !stream => first..first + 1,
            (Some(edge), Direction::Forward) => first..segments.beginning_below(edge).max(first + 1),
            (None, Direction::Forward) => first..segments.len(),
            (edge, Direction::Backward) => {
                let low = edge.as_deref().unwrap_or_default();
                segments.reaching(low).min(first)..first + 1
            }
        }
    }

    /// Takes note of the meta blocks at hand that a seek needs, and says which others it needs, by segment.
    pub(crate) fn metas_wanted(&mut self, seek: Seek<'_>, stream: bool) -> Vec<usize> {
        let mut missing = Vec::new();
        for segment in self.segments_wanted(seek, stream) {
            match &*self.run.segments[segment].pin.get() {
                Some(pinned) => {
                    if let Seek::At(key) | Seek::Before(Some(key)) = seek {
                        self.run.segments[segment].prefetch_page_of(pinned, key);
                    }
                    self.metas.push((segment, Meta::clone(pinned)));
                }
                None => missing.push(segment),
            }
        }
        missing
    }

    /// The meta block of a segment.
    pub(crate) fn meta_of(&self, segment: usize) -> PagerPageRef<'_> {
        self.run.segments[segment].meta_ref(true)
    }

    /// As [`RunCursor::meta_of`], past the cache: the read gets under way at the latest with the next ones.
    pub(crate) fn ask_meta(&self, segment: usize, reads: &mut ReadAhead) -> Result<Ticket> {
        let want = self.meta_of(segment);
        reads.ask(&self.run.segments[segment].extent, want.at, want.len as usize)
    }

    /// Takes the meta block that [`RunCursor::meta_of`] asked for.
    pub(crate) fn take_meta(&mut self, segment: usize, page: Page) -> Result<()> {
        self.metas.push((segment, self.run.segments[segment].parse_meta(page)?));
        Ok(())
    }

    fn meta_at_hand(&self, segment: usize) -> Option<&Meta> {
        self.metas.iter().find(|(at, _)| *at == segment).map(|(_, meta)| meta)
    }

    /// The data page that a seek needs by the meta blocks at hand, and up to `count - 1` pages behind it in its segment.
    pub(crate) fn pages_wanted(
        &mut self,
        seek: Seek<'_>,
        count: usize,
    ) -> impl Iterator<Item = PagerPageRef<'_>> {
        self.single_pages = SINGLE_PAGES.max(count);
        // Of the segment past the end there is no meta block.
        let at = self.segment_for(seek).unwrap_or(self.run.segments.len());
        let pages = self.meta_at_hand(at).map_or(0..0, |meta| {
            let page = page_of(&self.run.segments[at], meta, seek);
            match self.direction {
                Direction::Forward => page..(page + count).min(meta.pages()),
                Direction::Backward => (page + 1).saturating_sub(count)..page + 1,
            }
        });
        self.warm = Warm { segment: at, first: pages.start, pages: Vec::with_capacity(pages.len()) };
        let found = self.meta_at_hand(at).map(|meta| (&self.run.segments[at], meta));
        pages.map_while(move |page| {
            let (segment, meta) = found?;
            let place = meta.place(page)?;
            Some(PagerPageRef {
                extent: &segment.extent,
                at: place.at,
                len: place.len,
                expected: place.crc,
                kind: PageKind::Data,
                keep: true,
            })
        })
    }

    /// Takes the next one of the pages that [`RunCursor::pages_wanted`] asked for.
    pub(crate) fn take_page(&mut self, page: Page) {
        self.warm.pages.push(Some(page));
    }

    /// A page of the current segment that was read together with others, once.
    fn take_warm(&mut self, page: usize) -> Option<Page> {
        let index = page.checked_sub(self.warm.first).filter(|_| self.warm.segment == self.segment)?;
        self.warm.pages.get_mut(index)?.take()
    }

    /// The page in which a seek begins; `None`: it is past the run's end.
    fn begin(&mut self, seek: Seek<'_>) -> Result<Option<usize>> {
        self.valid = false;
        self.in_sequence = 0;
        let Some(segment) = self.segment_for(seek) else { return Ok(None) };
        self.open_segment(segment)?;
        Ok(self.meta.as_ref().map(|meta| page_of(&self.run.segments[segment], meta, seek)))
    }

    /// From here on the walk reads everything: asks for the first chunks of a seek, `ahead_bytes` of them.
    pub(crate) fn stream(&mut self, seek: Seek<'_>, ahead_bytes: usize, reads: &mut ReadAhead) -> Result<()> {
        (self.single_pages, self.ahead_bytes) = (0, ahead_bytes);
        let Some(page) = self.begin(seek)? else { return Ok(()) };
        self.ask(self.segment, page, reads)?;
        self.ask_ahead(reads)
    }

    /// Seeks as told; afterwards only the direction's own step may be used.
    pub(crate) fn go(&mut self, seek: Seek<'_>, reads: &mut ReadAhead) -> Result<()> {
        let Some(page) = self.begin(seek)? else { return Ok(()) };
        self.open_page(page, reads)?;
        self.land(seek, reads)
    }

    /// To the entry that a seek means, in the page that is open or the one after it.
    fn land(&mut self, seek: Seek<'_>, reads: &mut ReadAhead) -> Result<()> {
        self.index = match seek {
            Seek::At(key) | Seek::Before(Some(key)) => self.search(key)?,
            Seek::Before(None) => self.shape.count,
        };
        match (self.direction, self.index) {
            (Direction::Forward, index) if index == self.shape.count => self.next_page(reads),
            (Direction::Forward, _) => self.load(),
            (Direction::Backward, 0) => self.previous_page(reads),
            (Direction::Backward, _) => {
                self.index -= 1;
                self.load()
            }
        }
    }

    /// The place in the page of the next entry in the direction, if it is there.
    #[inline]
    fn next_index(&self) -> Option<usize> {
        match self.direction {
            Direction::Forward => Some(self.index + 1).filter(|&next| next < self.shape.count),
            Direction::Backward => self.index.checked_sub(1),
        }
    }

    /// To the next entry in the direction; false: it is not in this page, or is for [`RunCursor::step`] to complain of.
    #[inline]
    pub(crate) fn step_in_page(&mut self) -> bool {
        self.next_index().is_some_and(|next| self.decode(next))
    }

    /// To the next entry in the direction.
    #[inline]
    pub(crate) fn step(&mut self, reads: &mut ReadAhead) -> Result<()> {
        if let Some(next) = self.next_index() {
            self.index = next;
            return self.load();
        }
        match self.direction {
            Direction::Forward => self.next_page(reads),
            Direction::Backward => self.previous_page(reads),
        }
    }

    /// Gives back what it has or waits for.
    pub(crate) fn finish(self, reads: &mut ReadAhead) {
        for (_, ticket) in self.asked {
            reads.give_up(ticket);
        }
        if let Some((_, buf)) = self.chunk {
            reads.recycle(buf);
        }
    }

    fn search(&self, key: &[u8]) -> Result<usize> {
        let found = PageRef::new(self.bytes()).and_then(|p| p.search(key)).ok_or_else(|| self.lie())?;
        Ok(found.unwrap_or_else(|at| at))
    }

    fn next_page(&mut self, reads: &mut ReadAhead) -> Result<()> {
        self.valid = false;
        if self.page + 1 < self.pages.end {
            self.open_page(self.page + 1, reads)?;
        } else if self.is_inside(self.segment + 1) {
            self.open_segment(self.segment + 1)?;
            self.open_page(0, reads)?;
        } else {
            return Ok(());
        }
        self.index = 0;
        self.load()
    }

    fn previous_page(&mut self, reads: &mut ReadAhead) -> Result<()> {
        self.valid = false;
        if self.page > self.pages.start {
            self.open_page(self.page - 1, reads)?;
        } else if self.segment > 0 && self.is_inside(self.segment - 1) {
            self.open_segment(self.segment - 1)?;
            let last = self.meta.as_ref().map_or(0, |m| m.pages() - 1);
            self.open_page(last, reads)?;
        } else {
            return Ok(());
        }
        self.index = self.shape.count - 1;
        self.load()
    }

    /// Whether there may be keys of the leaf in a segment that the walk has yet to come to.
    fn is_inside(&self, segment: usize) -> bool {
        let Some(segment) = self.run.segments.get(segment) else { return false };
        match (&self.edge, self.direction) {
            (None, _) => true,
            (Some(edge), Direction::Forward) => *segment.min < **edge,
            (Some(edge), Direction::Backward) => *segment.max >= **edge,
        }
    }

    fn open_segment(&mut self, segment: usize) -> Result<()> {
        if self.meta.is_none() || self.segment != segment {
            let meta = match self.meta_at_hand(segment) {
                Some(meta) => meta.clone(),
                None => self.run.segments[segment].meta(&self.pager)?,
            };
            self.pages = self.pages_of_leaf(segment, &meta);
            self.worth = 0..usize::MAX;
            self.meta = Some(meta);
            self.segment = segment;
        }
        Ok(())
    }

    /// The pages of a segment in which there may be keys of the leaf, as far as the edge says.
    fn pages_of_leaf(&self, segment: usize, meta: &Meta) -> Range<usize> {
        let segment = &self.run.segments[segment];
        match (&self.edge, self.direction) {
            (Some(edge), Direction::Forward) if *segment.max >= **edge => 0..segment.page_of(meta, edge) + 1,
            (Some(edge), Direction::Backward) if *segment.min < **edge => {
                segment.page_of(meta, edge)..meta.pages()
            }
            _ => 0..meta.pages(),
        }
    }

    fn place(&self, page: usize) -> Result<PageAt> {
        self.place_in(self.segment, self.meta.as_ref(), page)
    }

    fn place_in(&self, segment: usize, meta: Option<&Meta>, page: usize) -> Result<PageAt> {
        meta.and_then(|m| m.place(page)).ok_or_else(|| {
            let segment = &self.run.segments[segment];
            segment.corrupt(segment.data_len, "meta block", format!("no place for page {page}"))
        })
    }

    fn open_page(&mut self, page: usize, reads: &mut ReadAhead) -> Result<()> {
        let place = self.place(page)?;
        self.page = page;
        self.in_sequence += 1;
        if self.in_sequence > self.single_pages {
            self.open_in_chunk(page, place, reads)?;
        } else {
            self.source = Source::Page(match self.take_warm(page) {
                Some(page) => page,
                None => self.run.segments[self.segment].page(&self.pager, place)?,
            });
        }
        let mut key = std::mem::take(&mut self.key);
        let page = PageRef::new(self.bytes()).map(|page| {
            key.clear();
            key.extend_from_slice(page.prefix());
            page.shape()
        });
        self.prefix_head = head_of(&key);
        self.key = key;
        self.shape = page.ok_or_else(|| self.lie())?;
        Ok(())
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match (&self.source, &self.chunk) {
            (Source::Page(page), _) => page,
            (Source::Chunk(start, end), Some((_, buf))) => &buf[*start..*end],
            _ => &[],
        }
    }

    /// Makes the entry at `index` the current one.
    #[inline]
    fn load(&mut self) -> Result<()> {
        self.valid = self.decode(self.index);
        if self.valid { Ok(()) } else { Err(self.lie()) }
    }

    /// Makes the entry at `index` the current one; false: it does not decode, and nothing has changed.
    #[inline(always)]
    fn decode(&mut self, index: usize) -> bool {
        let mut key = std::mem::take(&mut self.key);
        let page = PageRef::again(self.bytes(), self.shape);
        let entry = page.entry(index).map(|entry| {
            // What is before the suffix is the prefix, since the page was opened.
            key.truncate(self.shape.prefix);
            key.extend_from_slice(entry.suffix);
            // From the page, since a load of what has just been put together in pieces would wait for the stores.
            let shift = 8 * self.shape.prefix as u32;
            let head = self.prefix_head | head_of(entry.suffix).checked_shr(shift).unwrap_or(0);
            (entry.kind, entry.value_at..entry.value_at + entry.value.len(), head)
        });
        self.key = key;
        let Some(entry) = entry else { return false };
        (self.kind, self.value, self.head) = entry;
        self.index = index;
        true
    }

    #[cold]
    fn lie(&self) -> crate::Error {
        let at = self.place(self.page).map_or(0, |p| p.at);
        self.run.segments[self.segment].corrupt(at, "data page", "an entry does not decode")
    }
}
