//! Point reads: the path of one key, newest first, until something decides.
//!
//! memtables → row cache → for each node of the path the runs above the child's cursor → deltas → base. Each run answers by key range, filter, page
//! index, page; so a key that is not in a run usually costs no data page. One hash per read. A row that was cached stands for all runs
//! but those that hold anything newer (`rows`); what a read found in a page becomes a row.

use std::sync::Arc;
use std::task::Poll;

use betree_pager::{Extent, MOST_TOGETHER, Page, PageKind, PageReads, PageRef as PagerPageRef, Pager};
use bytes::Bytes;

use crate::hash::hash;
use crate::memtable::Base;
use crate::message::Kind;
use crate::operands;
use crate::operator::MergeOperator;
use crate::page::{PageRef, Share};
use crate::path::{self, Step};
use crate::pins::Pins;
use crate::rows::{RowKey, Rows};
use crate::segment::{Meta, PageAt, Segment};
use crate::types::{KeyspaceId, Seqno};
use crate::view::View;
use crate::{Error, Result};

/// Where reads of one keyspace look beside its view.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub pager: &'a Pager,
    pub pins: &'a Pins,
    pub rows: &'a Rows,
    pub keyspace: KeyspaceId,
}

/// A page that a lookup needs to go on.
pub(crate) struct Want<'a> {
    segment: &'a Arc<Segment>,
    place: PageAt,
    kind: PageKind,
    keep: bool,
}

impl<'a> Want<'a> {
    fn to_missing(&self) -> Missing {
        Missing { segment: self.segment.clone(), place: self.place, kind: self.kind, keep: self.keep }
    }

    /// Meta blocks that the segment will hold do not go into the page cache as well.
    fn meta(segment: &'a Arc<Segment>, pins: &Pins) -> Want<'a> {
        let place = PageAt { at: segment.data_len, len: segment.meta_len, crc: segment.meta_crc };
        Want { segment, place, kind: PageKind::Meta, keep: !pins.has_room(segment.meta_len as usize) }
    }

    /// Whether this is the page. It need not be what the lookup stopped for: another may have had the segment hold its meta block meanwhile.
    pub(crate) fn is(&self, page: &Page) -> bool {
        (page.kind(), page.len(), page.checksum()) == (self.kind, self.place.len as usize, self.place.crc)
    }

    /// Whether the other is the same place.
    fn is_same(&self, other: &Want<'_>) -> bool {
        self.place == other.place && Arc::ptr_eq(self.segment, other.segment)
    }

    pub(crate) fn reference(&self) -> PagerPageRef<'a> {
        PagerPageRef {
            extent: &self.segment.extent,
            at: self.place.at,
            len: self.place.len,
            expected: self.place.crc,
            kind: self.kind,
            keep: self.keep,
        }
    }
}

/// The row that names a data page.
#[derive(Clone, Copy)]
pub(crate) struct Near<'a> {
    meta: &'a Meta,
    index: usize,
}

impl Near<'_> {
    /// The data pages that are read with the wanted one where all data fits the cache.
    fn pages<'a>(&self, want: &Want<'a>) -> Vec<PagerPageRef<'a>> {
        let places = self.meta.around(self.index, MOST_TOGETHER);
        places.map(|place| Want { place, ..*want }.reference()).collect()
    }
}

/// A [`Want`] that is kept while the page is read.
pub(crate) struct Missing {
    segment: Arc<Segment>,
    place: PageAt,
    kind: PageKind,
    keep: bool,
}

impl Missing {
    pub(crate) fn want(&self) -> Want<'_> {
        Want { segment: &self.segment, place: self.place, kind: self.kind, keep: self.keep }
    }

    /// The extent that it lies in, the byte where it begins there, and its length.
    pub(crate) fn place(&self) -> (&Arc<Extent>, u32, usize) {
        (&self.segment.extent, self.place.at, self.place.len as usize)
    }
}

/// A lookup of one key that can stop for a page and go on when it is there.
pub(crate) struct Lookup<'a> {
    view: &'a View,
    reader: Reader<'a>,
    key: RowKey<'a>,
    /// What the row cache has for the key, and as of when. Then `path` has the runs that hold anything newer.
    row: Option<(Seqno, Bytes)>,
    /// Newest first, without those whose filters were at hand and say that the key is not there.
    path: Vec<Step<'a>>,
    next: usize,
    meta: Option<Meta>,
    /// Operands met so far, newest first.
    operands: Vec<Bytes>,
    /// How many of them were in memtables.
    fresh: usize,
    /// What decided.
    base: Option<Base>,
}

/// How far a lookup came.
pub(crate) enum Progress<'a> {
    Done,
    Need(Want<'a>),
}

/// What decides, and the operands above it, newest first.
pub(crate) type Found = (Option<Base>, Vec<Bytes>);

impl<'a> Lookup<'a> {
    /// Looks into what is in memory; `Err` if that decides, or filters say that there is nothing else.
    pub(crate) fn start(
        reader: Reader<'a>,
        view: &'a View,
        key: &'a [u8],
        at: Seqno,
    ) -> std::result::Result<Lookup<'a>, Found> {
        let mut operands = Vec::new();
        for head in &view.heads {
            if let Some(base) = head.table.get(key, at, &mut operands) {
                return Err((Some(base), operands));
            }
        }
        let named = RowKey::new(reader.keyspace, key, hash(key));
        let mut row = reader.rows.get(named).filter(|(as_of, _)| *as_of <= view.flushed);
        if let Some((as_of, value)) = &row
            && *as_of == view.flushed
        {
            return Err((Some(Base::Put(value.clone())), operands));
        }
        let (mut path, settled) = path::of(view, named, row.as_ref().map(|(as_of, _)| *as_of));
        // It may have been deleted since, and the delete be gone.
        if row.take_if(|(as_of, _)| *as_of < settled).is_some() {
            path = path::of(view, named, None).0;
        }
        if path.is_empty() && row.is_none() {
            return Err((None, operands));
        }
        let fresh = operands.len();
        Ok(Lookup { view, reader, key: named, row, path, next: 0, meta: None, operands, fresh, base: None })
    }

    /// Goes on as far as `fetch` has the pages.
    pub(crate) fn go(
        &mut self,
        mut fetch: impl FnMut(&Want<'a>, Option<Near<'_>>) -> Result<Option<Page>>,
    ) -> Result<Progress<'a>> {
        let key = self.key.key;
        while let Some(&Step { run, segment }) = self.path.get(self.next) {
            if let Some(segment) = segment {
                let pinned = segment.pin.get();
                if pinned.is_none() && self.meta.is_none() {
                    self.reader.pins.demand();
                    let want = Want::meta(segment, self.reader.pins);
                    let Some(page) = fetch(&want, None)? else { return Ok(Progress::Need(want)) };
                    let meta = segment.parse_meta(page)?;
                    self.reader.pins.pin(segment, &meta);
                    self.meta = Some(meta);
                }
                let meta = self.meta.as_ref().or(pinned.as_deref());
                if let Some(meta) = meta.filter(|meta| meta.may_contain(self.key.key_hash)) {
                    let guess = segment.spread.share(key);
                    meta.prefetch_rows(guess);
                    let index = meta.page_near(key, guess);
                    let place = meta.place(index).ok_or_else(|| {
                        segment.corrupt(segment.data_len, "meta block", format!("no page {index}"))
                    })?;
                    let want = Want { segment, place, kind: PageKind::Data, keep: true };
                    self.reader.rows.expect(self.key);
                    let near = Some(Near { meta, index });
                    let Some(page) = fetch(&want, near)? else { return Ok(Progress::Need(want)) };
                    let share = meta.share(index, segment, key);
                    share.prefetch(&page);
                    self.base = self.search(segment, place, &page, share)?;
                    if self.base.is_some() {
                        return Ok(Progress::Done);
                    }
                    // Whether the row counts these operands cannot be told: the run reaches back before it.
                    if self.operands.len() > self.fresh
                        && self.row.take_if(|(as_of, _)| run.first <= *as_of).is_some()
                    {
                        self.operands.truncate(self.fresh);
                        self.path = path::of(self.view, self.key, None).0;
                        (self.next, self.meta) = (0, None);
                        continue;
                    }
                }
                self.meta = None;
            }
            if run.spans.contains(key) {
                self.base = Some(Base::Deleted);
                return Ok(Progress::Done);
            }
            self.next += 1;
        }
        Ok(Progress::Done)
    }

    /// What a lookup that is done has found. A value that no operand lies above becomes a row.
    pub(crate) fn finish(self) -> Found {
        let base = self.base.or_else(|| self.row.map(|(_, value)| Base::Put(value)));
        if let Some(Base::Put(value)) = &base
            && self.operands.len() == self.fresh
        {
            self.reader.rows.insert(self.key, self.view.flushed, value);
        }
        (base, self.operands)
    }

    fn search(
        &mut self,
        segment: &Segment,
        place: PageAt,
        page: &Page,
        share: Share,
    ) -> Result<Option<Base>> {
        let lie = || segment.corrupt(place.at, "data page", "an entry does not decode");
        let page = PageRef::new(page).ok_or_else(lie)?;
        let Ok(index) = page.search_near(self.key.key, share).ok_or_else(lie)? else { return Ok(None) };
        let entry = page.entry(index).ok_or_else(lie)?;
        Ok(match entry.kind {
            Kind::Put => Some(Base::Put(Bytes::copy_from_slice(entry.value))),
            Kind::Delete | Kind::RangeDelete => Some(Base::Deleted),
            Kind::Merge => {
                let list = operands::decode(entry.value).ok_or_else(lie)?;
                self.operands.extend(list.iter().rev().map(|o| Bytes::copy_from_slice(o)));
                None
            }
        })
    }
}

/// The value that `base` and the operands above it (newest first) make.
pub(crate) fn value(
    operator: Option<&dyn MergeOperator>,
    key: &[u8],
    base: Option<Base>,
    operands: &[Bytes],
) -> Result<Option<Bytes>> {
    let base = match base {
        Some(Base::Put(value)) => Some(value),
        Some(Base::Deleted) | None => None,
    };
    if operands.is_empty() {
        return Ok(base);
    }
    let operator = operator.ok_or_else(missing_operator)?;
    let oldest_first: Vec<&[u8]> = operands.iter().rev().map(|o| &o[..]).collect();
    Ok(Some(operator.full_merge(key, base.as_deref(), &oldest_first).into()))
}

#[cold]
pub(crate) fn missing_operator() -> Error {
    Error::MergeOperator {
        keyspace: String::new(),
        detail: "operands are stored, but no merge operator is known".into(),
    }
}

/// The value of `key` in `view` as of `at`.
pub(crate) fn get(
    reader: Reader<'_>,
    operator: impl FnOnce() -> Option<Arc<dyn MergeOperator>>,
    view: &View,
    key: &[u8],
    at: Seqno,
) -> Result<Option<Bytes>> {
    let found = match Lookup::start(reader, view, key, at) {
        Err(found) => found,
        Ok(mut lookup) => {
            while let Progress::Need(_) = lookup.go(|want, near| {
                let around = || near.map_or_else(Vec::new, |near| near.pages(want));
                reader.pager.get_around(want.reference(), around).map(Some).map_err(Error::from)
            })? {}
            lookup.finish()
        }
    };
    value_of(operator, key, found)
}

/// As [`get`], with the pages that `fetch` has: the value, or the page that is missing.
pub(crate) fn attempt(
    reader: Reader<'_>,
    operator: impl FnOnce() -> Option<Arc<dyn MergeOperator>>,
    view: &View,
    key: &[u8],
    at: Seqno,
    mut fetch: impl FnMut(&Want<'_>) -> Option<Page>,
) -> Result<std::result::Result<Option<Bytes>, Missing>> {
    let found = match Lookup::start(reader, view, key, at) {
        Err(found) => found,
        Ok(mut lookup) => match lookup.go(|want, _| Ok(fetch(want)))? {
            Progress::Need(want) => return Ok(Err(want.to_missing())),
            Progress::Done => lookup.finish(),
        },
    };
    value_of(operator, key, found).map(Ok)
}

/// As [`get`], if no page has to be read for it.
pub(crate) fn in_memory(
    reader: Reader<'_>,
    operator: impl FnOnce() -> Option<Arc<dyn MergeOperator>>,
    view: &View,
    key: &[u8],
    at: Seqno,
) -> Result<Poll<Option<Bytes>>> {
    let cached = |want: &Want<'_>| reader.pager.cached(want.reference());
    Ok(attempt(reader, operator, view, key, at, cached)?.map_or(Poll::Pending, Poll::Ready))
}

fn value_of(
    operator: impl FnOnce() -> Option<Arc<dyn MergeOperator>>,
    key: &[u8],
    (base, operands): Found,
) -> Result<Option<Bytes>> {
    if operands.is_empty() {
        return value(None, key, base, &operands);
    }
    value(operator().as_deref(), key, base, &operands)
}

/// The values of `keys`, with the page reads of all of them in flight together: each is asked for as soon as it is known that it is needed, and each lookup
/// goes on as soon as its page has come.
pub(crate) fn multi_get(
    reader: Reader<'_>,
    operator: Option<Arc<dyn MergeOperator>>,
    view: &View,
    keys: &[&[u8]],
    at: Seqno,
) -> Result<Vec<Option<Bytes>>> {
    let mut values = vec![None; keys.len()];
    let mut waiting = Waiting { reads: reader.pager.reads(), asked: Vec::new() };
    let mut next = 0;
    loop {
        while let Some(key) = keys.get(next).filter(|_| !waiting.reads.is_full()) {
            let (base, operands) = match Lookup::start(reader, view, key, at) {
                Err(found) => found,
                Ok(lookup) => waiting.advance(reader.pager, next, lookup, None)?.unwrap_or_default(),
            };
            values[next] = value(operator.as_deref(), key, base, &operands)?;
            next += 1;
        }
        let Some(arrived) = waiting.reads.take() else { return Ok(values) };
        let Some(place) = waiting.asked.iter().position(|asked| asked.token == arrived.token) else {
            // Its lookups would be answered as if their keys were not there.
            panic!("multi_get: a page arrived that was not asked for");
        };
        let Asked { want, lookups, .. } = waiting.asked.swap_remove(place);
        let page = waiting.reads.page(&arrived, 0, &want.reference())?;
        waiting.reads.recycle(arrived);
        for (index, lookup) in lookups {
            if let Some((base, operands)) =
                waiting.advance(reader.pager, index, lookup, Some(page.clone()))?
            {
                values[index] = value(operator.as_deref(), keys[index], base, &operands)?;
            }
        }
    }
}

/// A page that was asked for, and whose lookups wait for it, by the index of their key.
struct Asked<'a> {
    token: u64,
    want: Want<'a>,
    lookups: Vec<(usize, Lookup<'a>)>,
}

/// The lookups of many keys that wait for pages.
struct Waiting<'a> {
    reads: PageReads<'a>,
    asked: Vec<Asked<'a>>,
}

impl<'a> Waiting<'a> {
    /// Goes on with a lookup as far as pages are in the cache; what it found, or `None` if it waits for a page now.
    fn advance(
        &mut self,
        pager: &Pager,
        index: usize,
        mut lookup: Lookup<'a>,
        mut page: Option<Page>,
    ) -> Result<Option<Found>> {
        let mut asked = None;
        let progress = lookup.go(|want, _| {
            if let Some(page) = page.take().filter(|page| want.is(page)) {
                return Ok(Some(page));
            }
            asked = self.asked.iter().position(|asked| asked.want.is_same(want));
            Ok(if asked.is_none() { pager.cached_or_missed(want.reference()) } else { None })
        })?;
        let Progress::Need(want) = progress else { return Ok(Some(lookup.finish())) };
        match asked {
            Some(place) => self.asked[place].lookups.push((index, lookup)),
            None => {
                // No other request of this call has the index of a key that waits.
                let token = index as u64;
                self.reads.ask(&want.reference(), want.place.len as usize, token)?;
                self.asked.push(Asked { token, want, lookups: vec![(index, lookup)] });
            }
        }
        Ok(None)
    }
}
