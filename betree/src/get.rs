//! Point reads: the path of one key, newest first, until something decides.
//!
//! memtables → for each node of the path the runs above the child's cursor → deltas → base. Each run answers by key range, filter, page index, page;
//! so a key that is not in a run usually costs no data page. One hash per read.

use std::sync::Arc;

use betree_pager::{Page, PageKind, PageRef as PagerPageRef, Pager};
use bytes::Bytes;

use crate::hash::hash;
use crate::memtable::Base;
use crate::message::Kind;
use crate::node::Target;
use crate::operands;
use crate::operator::MergeOperator;
use crate::page::PageRef;
use crate::run::Run;
use crate::segment::{Meta, PageAt, Segment};
use crate::types::Seqno;
use crate::view::View;
use crate::{Error, Result};

/// A page that a lookup needs to go on.
pub(crate) struct Want<'a> {
    segment: &'a Segment,
    place: PageAt,
    kind: PageKind,
}

impl<'a> Want<'a> {
    fn meta(segment: &'a Segment) -> Want<'a> {
        let place = PageAt { at: segment.data_len, len: segment.meta_len, crc: segment.meta_crc };
        Want { segment, place, kind: PageKind::Meta }
    }

    fn reference(&self) -> PagerPageRef<'a> {
        PagerPageRef {
            extent: &self.segment.extent,
            at: self.place.at,
            len: self.place.len,
            expected: self.place.crc,
            kind: self.kind,
        }
    }
}

/// A lookup of one key that can stop for a page and go on when it is there.
pub(crate) struct Lookup<'a> {
    key: &'a [u8],
    hash: u64,
    /// Runs of the path, newest first.
    runs: Vec<&'a Arc<Run>>,
    next: usize,
    meta: Option<Meta>,
    /// Operands met so far, newest first.
    operands: Vec<Bytes>,
}

/// How far a lookup came.
pub(crate) enum Progress<'a> {
    Found(Base),
    Nothing,
    Need(Want<'a>),
}

impl<'a> Lookup<'a> {
    /// Looks into the memtables; `Err(base)` if they decide.
    pub(crate) fn start(
        view: &'a View,
        key: &'a [u8],
        at: Seqno,
    ) -> std::result::Result<Lookup<'a>, (Base, Vec<Bytes>)> {
        let mut operands = Vec::new();
        for head in &view.heads {
            if let Some(base) = head.table.get(key, at, &mut operands) {
                return Err((base, operands));
            }
        }
        let mut runs = Vec::with_capacity(16);
        let mut node = &view.root;
        loop {
            let index = node.child_of(key);
            runs.extend(node.pending_runs(index).map(|q| &q.run));
            match &node.children[index].target {
                Target::Node(below) => node = below,
                Target::Leaf(leaf) => {
                    runs.extend(leaf.runs());
                    break;
                }
            }
        }
        Ok(Lookup { key, hash: hash(key), runs, next: 0, meta: None, operands })
    }

    /// Goes on as far as `fetch` has the pages.
    pub(crate) fn go(
        &mut self,
        mut fetch: impl FnMut(&Want<'a>) -> Result<Option<Page>>,
    ) -> Result<Progress<'a>> {
        while let Some(run) = self.runs.get(self.next).copied() {
            if let Some(segment) = run.segment_of(self.key) {
                if self.meta.is_none() {
                    let want = Want::meta(segment);
                    let Some(page) = fetch(&want)? else { return Ok(Progress::Need(want)) };
                    self.meta = Some(Meta::parse(page, segment.extent.offset(), segment.data_len)?);
                }
                let meta = self.meta.as_ref().filter(|m| m.may_contain(self.hash));
                if let Some(meta) = meta {
                    let index = meta.page_of(self.key);
                    let place = meta.place(index).ok_or_else(|| {
                        segment.corrupt(segment.data_len, "meta block", format!("no page {index}"))
                    })?;
                    let want = Want { segment, place, kind: PageKind::Data };
                    let Some(page) = fetch(&want)? else { return Ok(Progress::Need(want)) };
                    if let Some(base) = self.search(segment, place, &page)? {
                        return Ok(Progress::Found(base));
                    }
                }
                self.meta = None;
            }
            if run.spans.contains(self.key) {
                return Ok(Progress::Found(Base::Deleted));
            }
            self.next += 1;
        }
        Ok(Progress::Nothing)
    }

    fn search(&mut self, segment: &Segment, place: PageAt, page: &Page) -> Result<Option<Base>> {
        let lie = || segment.corrupt(place.at, "data page", "an entry does not decode");
        let page = PageRef::new(page).ok_or_else(lie)?;
        let Ok(index) = page.search(self.key).ok_or_else(lie)? else { return Ok(None) };
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
    pager: &Pager,
    operator: impl FnOnce() -> Option<Arc<dyn MergeOperator>>,
    view: &View,
    key: &[u8],
    at: Seqno,
) -> Result<Option<Bytes>> {
    let (base, operands) = match Lookup::start(view, key, at) {
        Err((base, operands)) => (Some(base), operands),
        Ok(mut lookup) => {
            let base = match lookup.go(|want| Ok(Some(pager.get_ref(want.reference())?)))? {
                Progress::Found(base) => Some(base),
                Progress::Nothing | Progress::Need(_) => None,
            };
            (base, lookup.operands)
        }
    };
    if operands.is_empty() {
        return value(None, key, base, &operands);
    }
    value(operator().as_deref(), key, base, &operands)
}

/// The values of `keys`, with the page reads of all of them in flight together, level by level.
pub(crate) fn multi_get(
    pager: &Pager,
    operator: Option<Arc<dyn MergeOperator>>,
    view: &View,
    keys: &[&[u8]],
    at: Seqno,
) -> Result<Vec<Option<Bytes>>> {
    let mut values: Vec<Option<Bytes>> = vec![None; keys.len()];
    // Index of the key, its lookup, the page it waited for.
    let mut waiting: Vec<(usize, Lookup<'_>, Option<Page>)> = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        match Lookup::start(view, key, at) {
            Err((base, operands)) => values[i] = value(operator.as_deref(), key, Some(base), &operands)?,
            Ok(lookup) => waiting.push((i, lookup, None)),
        }
    }
    while !waiting.is_empty() {
        let mut blocked = Vec::with_capacity(waiting.len());
        let mut wants = Vec::with_capacity(waiting.len());
        for (i, mut lookup, mut supplied) in waiting {
            let progress =
                lookup.go(|want| Ok(supplied.take().or_else(|| pager.cached(want.reference()))))?;
            let base = match progress {
                Progress::Need(want) => {
                    wants.push(want);
                    blocked.push((i, lookup));
                    continue;
                }
                Progress::Found(base) => Some(base),
                Progress::Nothing => None,
            };
            values[i] = value(operator.as_deref(), keys[i], base, &lookup.operands)?;
        }
        let references: Vec<_> = wants.iter().map(Want::reference).collect();
        let pages = if references.is_empty() { Vec::new() } else { pager.get_many(&references) };
        waiting = Vec::with_capacity(blocked.len());
        for ((i, lookup), page) in blocked.into_iter().zip(pages) {
            waiting.push((i, lookup, Some(page?)));
        }
    }
    Ok(values)
}
