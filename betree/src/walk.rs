//! One direction of an iterator: merges everything that may hold the next key, leaf by leaf.
//!
//! Memtables are walked over the whole range; the runs of the path to one leaf only over that leaf's range. When a leaf is
//! used up the next one is opened: the meta blocks of all its runs are read in one batch, then the first pages of all in another: as many of each
//! run as make up, with the others', what walks of this keyspace used to take lately.
//! Sources are ordered newest first; a span of a newer source hides what older ones have.

use std::cmp::Ordering;
use std::sync::Arc;

use betree_pager::{BLOCK, Pager};

use crate::Result;
use crate::cursor::{MOST_TOGETHER, RunCursor, Seek};
use crate::get::{missing_operator, value};
use crate::memtable::{Base, MemCursor};
use crate::message::{Kind, MessageRef};
use crate::node::Target;
use crate::operands;
use crate::operator::MergeOperator;
use crate::run::Run;
use crate::segment::Meta;
use crate::spans::Spans;
use crate::types::Seqno;
use crate::view::View;
use bytes::Bytes;

/// Which way a walk goes.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

enum Source {
    Memtable(MemCursor),
    Run(Box<RunCursor>),
}

impl Source {
    #[inline]
    fn key(&self) -> Option<&[u8]> {
        match self {
            Source::Memtable(cursor) => cursor.entry().map(|m| m.key),
            Source::Run(cursor) => cursor.valid().then(|| cursor.key()),
        }
    }

    fn entry(&self) -> Option<MessageRef<'_>> {
        match self {
            Source::Memtable(cursor) => cursor.entry(),
            Source::Run(cursor) => cursor.entry(),
        }
    }

    fn step(&mut self, direction: Direction) -> Result<()> {
        match (self, direction) {
            (Source::Memtable(cursor), Direction::Forward) => cursor.advance(),
            (Source::Memtable(cursor), Direction::Backward) => cursor.retreat(),
            (Source::Run(cursor), Direction::Forward) => return cursor.advance(),
            (Source::Run(cursor), Direction::Backward) => return cursor.retreat(),
        }
        Ok(())
    }
}

/// See the module's text.
pub(crate) struct Walk {
    pager: Pager,
    view: Arc<View>,
    direction: Direction,
    /// Bytes of records that the walk is expected to take.
    expected: u64,
    /// Newest first: the memtables, then the runs of the current leaf's path.
    sources: Vec<Source>,
    spans: Vec<Spans>,
    has_spans: bool,
    memtables: usize,
    /// Sources with a current key, nearest first.
    order: Vec<usize>,
    used: usize,
    /// The current leaf's range.
    leaf_low: Vec<u8>,
    leaf_high: Option<Vec<u8>>,
}

impl Walk {
    /// A walk that begins at the first key not below `low` (forward), or the last below `high` (backward).
    pub(crate) fn new(
        pager: &Pager,
        view: &Arc<View>,
        at: Seqno,
        direction: Direction,
        expected: u64,
        low: &[u8],
        high: Option<&[u8]>,
    ) -> Result<Walk> {
        let mut walk = Walk {
            pager: pager.clone(),
            view: view.clone(),
            direction,
            expected,
            sources: Vec::with_capacity(16),
            spans: Vec::with_capacity(16),
            has_spans: false,
            memtables: 0,
            order: Vec::with_capacity(16),
            used: 0,
            leaf_low: Vec::new(),
            leaf_high: None,
        };
        for head in view.heads.iter().filter(|h| !h.table.is_empty()) {
            let mut cursor = head.table.cursor(at);
            match direction {
                Direction::Forward => cursor.seek(low),
                Direction::Backward => cursor.seek_before(high),
            }
            walk.sources.push(Source::Memtable(cursor));
            walk.spans.push(head.table.spans(at));
        }
        walk.memtables = walk.sources.len();
        match direction {
            Direction::Forward => walk.open_leaf(Seek::At(low), low, high)?,
            Direction::Backward => walk.open_leaf(Seek::Before(high), low, high)?,
        }
        Ok(walk)
    }

    /// Puts the runs of the path to the leaf where `seek` begins behind the memtables.
    fn open_leaf(&mut self, seek: Seek<'_>, low: &[u8], high: Option<&[u8]>) -> Result<()> {
        self.sources.truncate(self.memtables);
        self.spans.truncate(self.memtables);
        let view = self.view.clone();
        let mut node = &view.root;
        let mut node_high: Option<&[u8]> = None;
        // With an estimate of the bytes of each in the leaf's range.
        let mut runs: Vec<(&Arc<Run>, u64)> = Vec::with_capacity(16);
        loop {
            let index = match seek {
                Seek::At(key) => node.child_of(key),
                Seek::Before(None) => node.children.len() - 1,
                Seek::Before(Some(key)) => node.children.partition_point(|c| *c.low < *key).saturating_sub(1),
            };
            // What waits for an inner child is for many leaves.
            let (waiting, leaves) = match &node.children[index].target {
                Target::Node(below) => (node.children[index].pending, below.children.len()),
                Target::Leaf(_) => (node.children[index].pending, 1),
            };
            let share = waiting / (leaves * node.pending_runs(index).count().max(1)) as u64;
            runs.extend(node.pending_runs(index).map(|q| (&q.run, share)));
            node_high = node.high_of(index, node_high);
            match &node.children[index].target {
                Target::Node(below) => node = below,
                Target::Leaf(leaf) => {
                    runs.extend(leaf.runs().map(|run| (run, run.bytes())));
                    self.leaf_low.clear();
                    self.leaf_low.extend_from_slice(&node.children[index].low);
                    break;
                }
            }
        }
        self.leaf_high = node_high.map(<[u8]>::to_vec);

        // The part of the leaf that the walk will see: what a newer span covers of it wholly is not opened at all.
        let from = if *self.leaf_low > *low { &self.leaf_low[..] } else { low };
        let to = match (self.leaf_high.as_deref(), high) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut newer = Spans::default();
        self.spans.iter().for_each(|s| newer.union(&s.clip(from, to)));
        let mut cursors: Vec<RunCursor> = Vec::with_capacity(runs.len());
        let mut sizes = Vec::with_capacity(runs.len());
        for (run, size) in runs {
            if newer.covers(from, to) {
                break;
            }
            if !run.touches(from, to) {
                continue;
            }
            let spans = run.spans.clip(from, to);
            cursors.push(RunCursor::new(&self.pager, run.clone()));
            sizes.push(size);
            newer.union(&spans);
            self.spans.push(spans);
        }
        self.has_spans = !newer.is_empty();
        let seek = match seek {
            // A cursor begins in the leaf, though its run may reach beyond.
            Seek::At(key) => Seek::At(if *key < *from { from } else { key }),
            Seek::Before(key) => Seek::Before(match (key, to) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            }),
        };
        let warm = self.warm(&mut cursors, &sizes, seek)?;
        for mut cursor in cursors {
            cursor.go(seek)?;
            self.sources.push(Source::Run(Box::new(cursor)));
        }
        drop(warm);
        self.sort();
        Ok(())
    }

    /// Reads what the cursors' seeks need, all of a level together. The pages are held until the seeks have found them in the cache.
    fn warm(
        &self,
        cursors: &mut [RunCursor],
        sizes: &[u64],
        seek: Seek<'_>,
    ) -> Result<Vec<betree_pager::Page>> {
        let mut metas: Vec<Option<Meta>> = cursors.iter().map(|c| c.meta_at_hand(seek)).collect();
        let missing: Vec<usize> = (0..cursors.len()).filter(|&i| metas[i].is_none()).collect();
        let (missing, wants): (Vec<_>, Vec<_>) =
            missing.into_iter().filter_map(|i| Some((i, cursors[i].meta_wanted(seek)?))).unzip();
        let mut held = Vec::with_capacity(3 * cursors.len());
        let pages = if wants.is_empty() { Vec::new() } else { self.pager.get_many(&wants) };
        for (i, page) in missing.into_iter().zip(pages) {
            let page = page?;
            held.push(page.clone());
            metas[i] = cursors[i].parse_meta(seek, page)?;
        }
        // Of what is expected, each run has the share that it has of the leaf.
        let all = sizes.iter().copied().fold(1, u64::saturating_add);
        let mut wants = Vec::with_capacity(2 * cursors.len());
        for ((cursor, meta), size) in cursors.iter_mut().zip(&metas).zip(sizes) {
            let Some(meta) = meta else { continue };
            // A walk begins somewhere within its first page.
            let more = (self.expected.saturating_mul(*size) / all + BLOCK as u64 / 2) / BLOCK as u64;
            wants.extend(cursor.pages_wanted(seek, meta, 1 + (more as usize).min(MOST_TOGETHER)));
        }
        for page in self.pager.get_many(&wants) {
            held.push(page?);
        }
        Ok(held)
    }

    fn sort(&mut self) {
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        order.extend((0..self.sources.len()).filter(|&i| self.sources[i].key().is_some()));
        order.sort_by(|&a, &b| self.compare(a, b));
        self.order = order;
        self.used = 0;
    }

    #[inline]
    fn compare(&self, a: usize, b: usize) -> Ordering {
        let keys = self.sources[a].key().cmp(&self.sources[b].key());
        let keys = if self.direction == Direction::Forward { keys } else { keys.reverse() };
        keys.then(a.cmp(&b))
    }

    /// The nearest key of the current leaf, if any.
    fn nearest(&self) -> Option<&[u8]> {
        let key = self.sources[*self.order.first()?].key()?;
        let inside = *key >= *self.leaf_low && self.leaf_high.as_deref().is_none_or(|h| key < h);
        inside.then_some(key)
    }

    /// The next key that is present in `low..high`, with its value.
    pub(crate) fn next(
        &mut self,
        low: &[u8],
        high: Option<&[u8]>,
        operator: &Option<Arc<dyn MergeOperator>>,
    ) -> Result<Option<(Bytes, Bytes)>> {
        loop {
            self.consume()?;
            let Some(key) = self.nearest() else {
                if !self.next_leaf(low, high)? {
                    return Ok(None);
                }
                continue;
            };
            if *key < *low || high.is_some_and(|h| key >= h) {
                // Forward walks begin inside the range and leave it once; so do backward ones at the other end.
                return Ok(None);
            }
            let first = self.order[0];
            self.used = 1;
            while self
                .order
                .get(self.used)
                .is_some_and(|&i| self.sources[i].key() == self.sources[first].key())
            {
                self.used += 1;
            }
            if let Some(found) = self.resolve(operator)? {
                return Ok(Some(found));
            }
        }
    }

    /// What the sources `order[..used]`, which have the same key, say of it.
    fn resolve(&self, operator: &Option<Arc<dyn MergeOperator>>) -> Result<Option<(Bytes, Bytes)>> {
        let Some(key) = self.sources[self.order[0]].key() else { return Ok(None) };
        let mut operands: Vec<Bytes> = Vec::new();
        let mut base = None;
        let mut passed = 0;
        for &i in &self.order[..self.used] {
            if self.has_spans && self.spans[passed..i].iter().any(|s| s.contains(key)) {
                break;
            }
            passed = i;
            let Some(entry) = self.sources[i].entry() else { return Ok(None) };
            match entry.kind {
                Kind::Put => {
                    base = Some(Base::Put(Bytes::copy_from_slice(entry.value)));
                    break;
                }
                Kind::Delete | Kind::RangeDelete => break,
                Kind::Merge => {
                    let list = operands::decode(entry.value).ok_or_else(missing_operator)?;
                    operands.extend(list.iter().rev().map(|o| Bytes::copy_from_slice(o)));
                }
            }
        }
        let value = value(operator.as_deref(), key, base, &operands)?;
        Ok(value.map(|value| (Bytes::copy_from_slice(key), value)))
    }

    #[inline]
    fn consume(&mut self) -> Result<()> {
        while self.used > 0 {
            self.used -= 1;
            let i = self.order[self.used];
            self.sources[i].step(self.direction)?;
            if self.sources[i].key().is_none() {
                self.order.remove(self.used);
                continue;
            }
            let mut at = self.used;
            while at + 1 < self.order.len()
                && self.compare(self.order[at], self.order[at + 1]) == Ordering::Greater
            {
                self.order.swap(at, at + 1);
                at += 1;
            }
        }
        Ok(())
    }

    /// Goes on to the neighbouring leaf; false at the end of the range.
    fn next_leaf(&mut self, low: &[u8], high: Option<&[u8]>) -> Result<bool> {
        match self.direction {
            Direction::Forward => {
                let Some(next) = self.leaf_high.clone() else { return Ok(false) };
                if high.is_some_and(|h| *next >= *h) {
                    return Ok(false);
                }
                self.open_leaf(Seek::At(&next), low, high)?;
            }
            Direction::Backward => {
                let next = self.leaf_low.clone();
                if *next <= *low {
                    return Ok(false);
                }
                self.open_leaf(Seek::Before(Some(&next)), low, high)?;
            }
        }
        Ok(true)
    }
}
