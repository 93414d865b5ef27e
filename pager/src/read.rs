//! Reading pages: cache, then one read, verified before anybody sees it.
//!
//! Two threads that miss the same page at once both read it; the later insertion replaces the former, with equal
//! bytes. That is rarer and cheaper than making every miss wait on a shared table.
//!
//! Single misses use one blocking read, straight into the frame that the cache will hold; where all that is stored fits the cache, one of what lies
//! around the page. Pages that lie side by side are one request: alone it is a blocking read into the frames of all, and several are in flight
//! together (`reads`).

use std::io::IoSliceMut;
use std::ops::Range;

use betree_storage::Frame;

use crate::cache::{Key, Page, PageKind};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::pager::Pager;
use crate::reads::{Arrived, PageReads};
use crate::{BLOCK, FILE_NAME};

/// Bytes of neighbouring pages read by one request, if a page is not longer.
pub const MOST_TOGETHER: u32 = 64 << 10;

/// Names one page of an extent, with the checksum its parent holds.
#[derive(Debug, Clone, Copy)]
pub struct PageRef<'a> {
    /// The extent it lies in.
    pub extent: &'a Extent,
    /// Where in the extent, in bytes; a multiple of [`BLOCK`].
    pub at: u32,
    /// Its length in bytes; a multiple of [`BLOCK`].
    pub len: u32,
    /// The checksum its parent holds.
    pub expected: u32,
    /// What it is for.
    pub kind: PageKind,
    /// Whether it goes into the page cache when it was read.
    pub keep: bool,
}

impl PageRef<'_> {
    fn key(&self) -> Key {
        Key { extent: self.extent.id(), block: self.at / BLOCK as u32 }
    }

    pub(crate) fn file_offset(&self) -> u64 {
        self.extent.offset() + u64::from(self.at)
    }

    /// The reference comes from disk: one that leaves its extent is corruption.
    fn check(&self) -> Result<()> {
        check_bounds(self.extent, self.at, self.len as usize)
    }
}

/// Checks that a piece is made of whole blocks inside its extent.
pub(crate) fn check_bounds(extent: &Extent, at: u32, len: usize) -> Result<()> {
    let whole = len > 0 && (at as usize).is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
    if whole && at as usize + len <= extent.len() as usize {
        return Ok(());
    }
    Err(Error::Corruption {
        file: FILE_NAME.to_owned(),
        offset: extent.offset(),
        what: "page bounds",
        expected: format!("whole blocks within an extent of {} bytes", extent.len()),
        got: format!("{len} bytes at {at}"),
    })
}

impl Pager {
    /// The page at byte `at` of `extent`: from the cache, or read, verified against the parent's checksum `expected`,
    /// and cached.
    pub fn get(&self, extent: &Extent, at: u32, len: u32, expected: u32, kind: PageKind) -> Result<Page> {
        self.get_ref(PageRef { extent, at, len, expected, kind, keep: true })
    }

    /// As [`Pager::get`], with the page's coordinates in one value.
    pub fn get_ref(&self, want: PageRef<'_>) -> Result<Page> {
        want.check()?;
        debug_assert!(want.extent.is_of(&self.0), "an extent of another pager");
        match self.0.cache.get(want.key(), want.len, want.expected, want.kind) {
            Some(page) => Ok(page),
            None => self.read_one(&want),
        }
    }

    /// As [`Pager::get_ref`]. If the page has to be read and the cache has room for everything that is stored, so that all of it will be there one day, what
    /// `around` names is read with it: itself and pages side by side with it, up to [`MOST_TOGETHER`]. Cost: 205 µs for 64 KiB
    /// on a disk where 4 KiB take 110. What is wrong with a page beside it is left to that page's own read.
    pub fn get_around<'a>(
        &self,
        want: PageRef<'a>,
        around: impl FnOnce() -> Vec<PageRef<'a>>,
    ) -> Result<Page> {
        want.check()?;
        debug_assert!(want.extent.is_of(&self.0), "an extent of another pager");
        if let Some(page) = self.0.cache.get(want.key(), want.len, want.expected, want.kind) {
            return Ok(page);
        }
        if self.allocated_bytes() <= self.0.cache.budget() as u64
            && let Some(page) = self.read_around(&want, &around())
        {
            return Ok(page);
        }
        self.read_one(&want)
    }

    /// Reads those of `around` that are not in the cache, among which `want` is; `None` if it did not come.
    fn read_around(&self, want: &PageRef<'_>, around: &[PageRef<'_>]) -> Option<Page> {
        let absent = |&index: &usize| around[index].check().is_ok() && self.cached(around[index]).is_none();
        let missing: Vec<usize> = (0..around.len()).filter(absent).collect();
        let own = *missing.iter().find(|&&index| around[index].key() == want.key())?;
        let mut pages = vec![None; around.len()];
        self.read_many(around, &missing, &mut pages).ok()?;
        pages[own].take()?.ok()
    }

    /// The pages in the order asked for. All that are not cached are read in one batch.
    pub fn get_many(&self, wants: &[PageRef<'_>]) -> Vec<Result<Page>> {
        self.get_many_telling(wants).0
    }

    /// As [`Pager::get_many`], with the indexes of those that had to be read.
    pub fn get_many_telling(&self, wants: &[PageRef<'_>]) -> (Vec<Result<Page>>, Vec<usize>) {
        let mut pages = Vec::with_capacity(wants.len());
        let mut missing = Vec::new();
        for (index, want) in wants.iter().enumerate() {
            pages.push(match want.check() {
                Err(error) => Some(Err(error)),
                Ok(()) => self.0.cache.get(want.key(), want.len, want.expected, want.kind).map(Ok),
            });
            if pages[index].is_none() {
                missing.push(index);
            }
        }
        match missing[..] {
            [] => {}
            [index] => pages[index] = Some(self.read_one(&wants[index])),
            _ => {
                if let Err(error) = self.read_many(wants, &missing, &mut pages) {
                    for &index in &missing {
                        pages[index].get_or_insert_with(|| Err(error.clone()));
                    }
                }
            }
        }
        // Every index was either found or missing, and every missing one was answered.
        let answered = pages.into_iter().zip(wants);
        let pages = answered.map(|(page, want)| page.unwrap_or_else(|| self.read_one(want))).collect();
        (pages, missing)
    }

    /// The page if it is in the cache; never reads. Absence is not counted as a miss.
    #[must_use]
    pub fn cached(&self, want: PageRef<'_>) -> Option<Page> {
        self.0.cache.peek(want.key(), want.len, want.expected, want.kind)
    }

    /// As [`Pager::cached`]; absence counts as a miss, since the caller then reads the page.
    #[must_use]
    pub fn cached_or_missed(&self, want: PageRef<'_>) -> Option<Page> {
        self.0.cache.get(want.key(), want.len, want.expected, want.kind)
    }

    /// Puts a sealed page that was just built into the cache and returns it.
    ///
    /// Its write need not have happened yet.
    pub fn insert(&self, extent: &Extent, at: u32, page: &[u8], kind: PageKind) -> Page {
        let key = Key { extent: extent.id(), block: at / BLOCK as u32 };
        let page = Page::in_frame(&self.0.frames, page, kind);
        self.0.cache.insert(key, page.clone());
        page
    }

    fn read_one(&self, want: &PageRef<'_>) -> Result<Page> {
        if let Some(mut frame) = self.0.frames.take(want.len as usize) {
            self.read_into(want, &mut [IoSliceMut::new(&mut frame)])?;
            return self.accept_frame(want, frame);
        }
        let mut buf = self.0.buffers.get(want.len as usize);
        let read = self.read_into(want, &mut [IoSliceMut::new(&mut buf)]);
        let page = read.and_then(|()| self.accept(want, &buf));
        self.0.buffers.put(buf);
        page
    }

    /// Fills the buffers from where `first` begins, by one read, and waits for it.
    fn read_into(&self, first: &PageRef<'_>, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.0.counters.read(bufs.iter().map(|buf| buf.len()).sum());
        let offset = first.file_offset();
        // Background work reads page indexes in this way too, but data by channels.
        if first.kind != PageKind::Data {
            return Ok(self.0.file.read_vectored_at(offset, bufs)?);
        }
        let wait = self.0.busy_wait.begin(self.0.storage.now());
        let (result, time) = self.0.foreground.timed(&*self.0.storage, || match wait.is_busy() {
            true => self.read_busily(offset, bufs),
            false => Ok(self.0.file.read_vectored_at(offset, bufs)?),
        });
        wait.took(time);
        result
    }

    /// A frame for each of the `missing`, if there are frames for all.
    fn frames_for(&self, wants: &[PageRef<'_>], missing: &[usize]) -> Option<Vec<Frame>> {
        missing.iter().map(|&index| self.0.frames.take(wants[index].len as usize)).collect()
    }

    /// Reads `missing`, indexes into `wants`, and fills their places in `pages`.
    fn read_many(
        &self,
        wants: &[PageRef<'_>],
        missing: &[usize],
        pages: &mut [Option<Result<Page>>],
    ) -> Result<()> {
        let ranges = together(wants, missing);
        if ranges.len() == 1
            && let Some(mut frames) = self.frames_for(wants, missing)
        {
            let mut bufs: Vec<_> = frames.iter_mut().map(|frame| IoSliceMut::new(frame)).collect();
            self.read_into(&wants[missing[0]], &mut bufs)?;
            for (&index, frame) in missing.iter().zip(frames) {
                pages[index] = Some(self.accept_frame(&wants[index], frame));
            }
            return Ok(());
        }
        let mut reads = self.reads();
        let mut fill = |reads: &PageReads<'_>, arrived: Arrived| {
            let mut at = 0;
            for &index in &missing[ranges[arrived.token as usize].clone()] {
                pages[index] = Some(reads.page(&arrived, at, &wants[index]));
                at += wants[index].len as usize;
            }
            reads.recycle(arrived);
        };
        for (token, range) in ranges.iter().enumerate() {
            if reads.is_full()
                && let Some(arrived) = reads.take()
            {
                fill(&reads, arrived);
            }
            let range = &missing[range.clone()];
            let len = range.iter().map(|&index| wants[index].len as usize).sum();
            reads.ask(&wants[range[0]], len, token as u64)?;
        }
        // Nobody can do anything with a few of them: one waking up is for all.
        reads.wait_for_all();
        while let Some(arrived) = reads.take() {
            fill(&reads, arrived);
        }
        Ok(())
    }

    /// The page in `bytes`, which were read from its place: verified, and cached if it is to be kept.
    pub fn accept(&self, want: &PageRef<'_>, bytes: &[u8]) -> Result<Page> {
        self.verify(bytes, want.file_offset(), want.expected)?;
        Ok(self.keep(want, Page::in_frame(&self.0.frames, bytes, want.kind)))
    }

    /// The page in `frame`, into which it was read, as [`Pager::accept`].
    fn accept_frame(&self, want: &PageRef<'_>, frame: Frame) -> Result<Page> {
        self.verify(&frame, want.file_offset(), want.expected)?;
        Ok(self.keep(want, Page::of_frame(frame, want.kind)))
    }

    /// Caches a page that was read, if it is to be kept.
    fn keep(&self, want: &PageRef<'_>, page: Page) -> Page {
        if want.keep {
            self.0.cache.insert(want.key(), page.clone());
        }
        page
    }
}

/// The wanted pages, by ranges of `missing`, that lie side by side in the order asked for, up to a limit: each range is one read.
fn together(wants: &[PageRef<'_>], missing: &[usize]) -> Vec<Range<usize>> {
    let mut reads: Vec<Range<usize>> = Vec::with_capacity(missing.len());
    let mut bytes = 0u32;
    for (i, &index) in missing.iter().enumerate() {
        let want = &wants[index];
        let follows = i > 0 && {
            let before = &wants[missing[i - 1]];
            before.extent.id() == want.extent.id() && before.at.checked_add(before.len) == Some(want.at)
        };
        match reads.last_mut() {
            Some(read) if follows && bytes.saturating_add(want.len) <= MOST_TOGETHER => {
                read.end = i + 1;
                bytes += want.len;
            }
            _ => {
                reads.push(i..i + 1);
                bytes = want.len;
            }
        }
    }
    reads
}
