//! A cursor over one run through the page cache, in either direction, with read-ahead.
//!
//! Single pages come through the cache; as many as the iterator expects to need were read there together when it began. After them, and a few
//! more in one direction, the cursor changes to chunks: large reads past the cache that grow from 64 KiB to 1 MiB, the next one on its way
//! while this one is consumed (forward). Owned by an iterator.

use std::sync::Arc;

use betree_pager::{Page, PageKind, PageRef as PagerPageRef, Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;
use crate::message::MessageRef;
use crate::page::PageRef;
use crate::run::Run;
use crate::segment::{Meta, PageAt};

/// Pages read one by one before chunks begin, if no more were read together.
const SINGLE_PAGES: usize = 4;
/// Most pages of one run that are read together when an iterator begins.
pub(crate) const MOST_TOGETHER: usize = 16;
const FIRST_CHUNK: usize = 64 << 10;
const LARGEST_CHUNK: usize = 1 << 20;

/// Where to go.
#[derive(Copy, Clone, Debug)]
pub(crate) enum Seek<'a> {
    /// The first entry with a key not below this one; then forward.
    At(&'a [u8]),
    /// The last entry with a key below this one (`None`: the last of all); then backward.
    Before(Option<&'a [u8]>),
}

/// Pages `from..to` of a segment in one buffer.
struct Chunk {
    segment: usize,
    from: usize,
    to: usize,
    /// Offset in the extent of the buffer's start.
    base: u32,
    buf: AlignedBuf,
}

enum Source {
    None,
    Page(Page),
    /// Start and end in the chunk's buffer.
    Chunk(usize, usize),
}

/// See the module's text.
pub(crate) struct RunCursor {
    pager: Pager,
    run: Arc<Run>,
    segment: usize,
    meta: Option<Meta>,
    page: usize,
    source: Source,
    index: usize,
    count: usize,
    key: Vec<u8>,
    valid: bool,
    /// Pages entered in sequence since the last seek.
    in_sequence: usize,
    /// Pages read one by one before chunks begin.
    single_pages: usize,
    chunk: Option<Chunk>,
    chunk_bytes: usize,
    io: Option<PagerIo>,
    /// What is on its way: segment, pages.
    requested: Option<(usize, usize, usize, u32)>,
}

impl RunCursor {
    pub(crate) fn new(pager: &Pager, run: Arc<Run>) -> RunCursor {
        RunCursor {
            pager: pager.clone(),
            run,
            segment: 0,
            meta: None,
            page: 0,
            source: Source::None,
            index: 0,
            count: 0,
            key: Vec::new(),
            valid: false,
            in_sequence: 0,
            single_pages: SINGLE_PAGES,
            chunk: None,
            chunk_bytes: FIRST_CHUNK,
            io: None,
            requested: None,
        }
    }

    /// The current key. REQUIRES a current entry.
    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        &self.key
    }

    #[inline]
    pub(crate) fn valid(&self) -> bool {
        self.valid
    }

    pub(crate) fn entry(&self) -> Option<MessageRef<'_>> {
        if !self.valid {
            return None;
        }
        let entry = PageRef::new(self.bytes())?.entry(self.index)?;
        Some(MessageRef { kind: entry.kind, key: &self.key, value: entry.value })
    }

    /// The segment in which a seek begins.
    fn segment_for(&self, seek: Seek<'_>) -> Option<usize> {
        let segments = &self.run.segments;
        match seek {
            Seek::At(key) => {
                let at = segments.partition_point(|s| *s.max < *key);
                (at < segments.len()).then_some(at)
            }
            Seek::Before(None) => segments.len().checked_sub(1),
            Seek::Before(Some(key)) => segments.partition_point(|s| *s.min < *key).checked_sub(1),
        }
    }

    /// The meta block that a seek needs, if its segment holds it.
    pub(crate) fn meta_at_hand(&self, seek: Seek<'_>) -> Option<Meta> {
        let segment = &self.run.segments[self.segment_for(seek)?];
        segment.pin.get().as_ref().map(|pinned| pinned.meta.clone())
    }

    /// The meta block that a seek needs.
    pub(crate) fn meta_wanted(&self, seek: Seek<'_>) -> Option<PagerPageRef<'_>> {
        let segment = &self.run.segments[self.segment_for(seek)?];
        Some(PagerPageRef {
            extent: &segment.extent,
            at: segment.data_len,
            len: segment.meta_len,
            expected: segment.meta_crc,
            kind: PageKind::Meta,
            keep: true,
        })
    }

    /// The meta block of a seek, of the page that [`RunCursor::meta_wanted`] asked for.
    pub(crate) fn parse_meta(&self, seek: Seek<'_>, page: Page) -> Result<Option<Meta>> {
        let segment = self.segment_for(seek).map(|index| &self.run.segments[index]);
        segment.map(|s| Meta::parse(page, s.extent.offset(), s.data_len)).transpose()
    }

    /// The data page that a seek needs by its meta block, and up to `count - 1` pages behind it in its segment.
    pub(crate) fn pages_wanted<'a>(
        &'a mut self,
        seek: Seek<'_>,
        meta: &'a Meta,
        count: usize,
    ) -> impl Iterator<Item = PagerPageRef<'a>> {
        self.single_pages = SINGLE_PAGES.max(count);
        let segment = self.segment_for(seek).map(|index| &self.run.segments[index]);
        let pages = match seek {
            Seek::At(key) => {
                let first = meta.page_of(key);
                first..(first + count).min(meta.pages())
            }
            Seek::Before(key) => {
                let last = key.map_or(meta.pages() - 1, |key| meta.page_of(key));
                (last + 1).saturating_sub(count)..last + 1
            }
        };
        pages.filter_map(move |page| {
            let (segment, place) = (segment?, meta.place(page)?);
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

    /// Seeks as told; afterwards only the direction's own step may be used.
    pub(crate) fn go(&mut self, seek: Seek<'_>) -> Result<()> {
        self.valid = false;
        self.in_sequence = 0;
        self.chunk_bytes = FIRST_CHUNK;
        let Some(segment) = self.segment_for(seek) else { return Ok(()) };
        self.open_segment(segment)?;
        let forward = matches!(seek, Seek::At(_));
        let page = match (seek, &self.meta) {
            (Seek::At(key) | Seek::Before(Some(key)), Some(meta)) => meta.page_of(key),
            (_, meta) => meta.as_ref().map_or(0, |m| m.pages() - 1),
        };
        self.open_page(page, forward)?;
        self.index = match seek {
            Seek::At(key) | Seek::Before(Some(key)) => self.search(key)?,
            Seek::Before(None) => self.count,
        };
        match (forward, self.index) {
            (true, index) if index == self.count => self.next_page(),
            (true, _) => self.load(),
            (false, 0) => self.previous_page(),
            (false, _) => {
                self.index -= 1;
                self.load()
            }
        }
    }

    /// To the next entry.
    #[inline]
    pub(crate) fn advance(&mut self) -> Result<()> {
        self.index += 1;
        if self.index < self.count { self.load() } else { self.next_page() }
    }

    /// To the entry before.
    pub(crate) fn retreat(&mut self) -> Result<()> {
        if self.index == 0 {
            return self.previous_page();
        }
        self.index -= 1;
        self.load()
    }

    fn search(&self, key: &[u8]) -> Result<usize> {
        let found = PageRef::new(self.bytes()).and_then(|p| p.search(key)).ok_or_else(|| self.lie())?;
        Ok(found.unwrap_or_else(|at| at))
    }

    fn next_page(&mut self) -> Result<()> {
        self.valid = false;
        let pages = self.meta.as_ref().map_or(0, Meta::pages);
        if self.page + 1 < pages {
            self.open_page(self.page + 1, true)?;
        } else if self.segment + 1 < self.run.segments.len() {
            self.open_segment(self.segment + 1)?;
            self.open_page(0, true)?;
        } else {
            return Ok(());
        }
        self.index = 0;
        self.load()
    }

    fn previous_page(&mut self) -> Result<()> {
        self.valid = false;
        if self.page > 0 {
            self.open_page(self.page - 1, false)?;
        } else if self.segment > 0 {
            self.open_segment(self.segment - 1)?;
            let last = self.meta.as_ref().map_or(0, |m| m.pages() - 1);
            self.open_page(last, false)?;
        } else {
            return Ok(());
        }
        self.index = self.count - 1;
        self.load()
    }

    fn open_segment(&mut self, segment: usize) -> Result<()> {
        if self.meta.is_none() || self.segment != segment {
            self.meta = Some(self.run.segments[segment].meta(&self.pager)?);
            self.segment = segment;
        }
        Ok(())
    }

    fn place(&self, page: usize) -> Result<PageAt> {
        let place = self.meta.as_ref().and_then(|m| m.place(page));
        place.ok_or_else(|| {
            let segment = &self.run.segments[self.segment];
            segment.corrupt(segment.data_len, "meta block", format!("no place for page {page}"))
        })
    }

    fn open_page(&mut self, page: usize, forward: bool) -> Result<()> {
        let place = self.place(page)?;
        self.page = page;
        self.in_sequence += 1;
        if self.in_sequence > self.single_pages {
            self.open_in_chunk(page, place, forward)?;
        } else {
            let segment = self.run.segments[self.segment].clone();
            self.source = Source::Page(segment.page(&self.pager, place)?);
        }
        let page = PageRef::new(self.bytes()).ok_or_else(|| self.lie())?;
        self.count = page.count();
        Ok(())
    }

    fn open_in_chunk(&mut self, page: usize, place: PageAt, forward: bool) -> Result<()> {
        let held = |c: &Chunk| c.segment == self.segment && (c.from..c.to).contains(&page);
        if !self.chunk.as_ref().is_some_and(held) {
            self.read_chunk(page, forward)?;
        }
        let Some(chunk) = &self.chunk else { return Err(self.lie()) };
        let start = (place.at - chunk.base) as usize;
        let end = start + place.len as usize;
        let offset = self.run.segments[self.segment].extent.offset() + u64::from(place.at);
        self.pager.verify(&chunk.buf[start..end], offset, place.crc)?;
        self.source = Source::Chunk(start, end);
        Ok(())
    }

    /// Pages from `page` on (or up to it, backward) that make up about `chunk_bytes`: from, to, first byte, length.
    fn chunk_range(&self, page: usize, forward: bool) -> Result<(usize, usize, u32, usize)> {
        let pages = self.meta.as_ref().map_or(0, Meta::pages);
        let (mut from, mut to) = (page, page + 1);
        let first = self.place(page)?;
        let (mut start, mut end) = (first.at, first.at + first.len);
        while ((end - start) as usize) < self.chunk_bytes {
            if forward && to < pages {
                let place = self.place(to)?;
                end = place.at + place.len;
                to += 1;
            } else if !forward && from > 0 {
                from -= 1;
                start = self.place(from)?.at;
            } else {
                break;
            }
        }
        Ok((from, to, start, (end - start) as usize))
    }

    fn request(&mut self, page: usize, forward: bool) -> Result<()> {
        let (from, to, base, len) = self.chunk_range(page, forward)?;
        let extent = self.run.segments[self.segment].extent.clone();
        let io = match &mut self.io {
            Some(io) => io,
            None => self.io.insert(self.pager.io()?),
        };
        io.submit_read(&extent, base, len, 0);
        io.kick();
        self.requested = Some((self.segment, from, to, base));
        self.chunk_bytes = (self.chunk_bytes * 2).min(LARGEST_CHUNK);
        Ok(())
    }

    fn read_chunk(&mut self, page: usize, forward: bool) -> Result<()> {
        let wanted = (self.segment, page);
        let mut arrived = self.collect()?;
        if !arrived.as_ref().is_some_and(|c| c.segment == wanted.0 && (c.from..c.to).contains(&wanted.1)) {
            self.request(page, forward)?;
            arrived = self.collect()?;
        }
        if let (Some(io), Some(old)) = (&self.io, self.chunk.take()) {
            io.recycle(old.buf);
        }
        self.chunk = arrived;
        let next = self.chunk.as_ref().map_or(0, |c| c.to);
        if forward && next < self.meta.as_ref().map_or(0, Meta::pages) {
            self.request(next, true)?;
        }
        Ok(())
    }

    /// Waits for what is on its way, if anything.
    fn collect(&mut self) -> Result<Option<Chunk>> {
        let (Some((segment, from, to, base)), Some(io)) = (self.requested.take(), &mut self.io) else {
            return Ok(None);
        };
        let mut done = Vec::with_capacity(1);
        io.wait(1, &mut done);
        match done.pop() {
            None => Ok(None),
            Some(completion) => {
                completion.result?;
                Ok(Some(Chunk { segment, from, to, base, buf: completion.buf }))
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        match (&self.source, &self.chunk) {
            (Source::Page(page), _) => page,
            (Source::Chunk(start, end), Some(chunk)) => &chunk.buf[*start..*end],
            _ => &[],
        }
    }

    #[inline]
    fn load(&mut self) -> Result<()> {
        let mut key = std::mem::take(&mut self.key);
        let loaded = PageRef::new(self.bytes()).and_then(|p| p.key_into(self.index, &mut key)).is_some();
        self.key = key;
        self.valid = loaded;
        if loaded { Ok(()) } else { Err(self.lie()) }
    }

    #[cold]
    fn lie(&self) -> crate::Error {
        let at = self.place(self.page).map_or(0, |p| p.at);
        self.run.segments[self.segment].corrupt(at, "data page", "an entry does not decode")
    }
}
