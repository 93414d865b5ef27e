//! One direction of an iterator: merges everything that may hold the next key, leaf by leaf.
//!
//! Memtables are walked over the whole range; the runs of the path to one leaf only over that leaf's range ([`leaves`]). Of the first leaf as many pages
//! of each run are read at once as make up, with the others', what walks of this keyspace used to take lately. A long walk that comes to another leaf
//! streams.
//!
//! Sources are ordered newest first; a span of a newer source hides what older ones have. The next key is found by the heads of the sources'
//! keys, which lie side by side in `order`. What was found last stays with its sources until the next step, so that it can be lent.

mod leaves;

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::sync::Arc;

use betree_pager::Pager;

use self::leaves::{LeafPart, seek};
use crate::Result;
use crate::cursor::{Direction, FIRST_OF_STREAM, RunCursor, Seek};
use crate::get::missing_operator;
use crate::headed::{Headed, head_of};
use crate::memtable::MemCursor;
use crate::message::{Kind, MessageRef};
use crate::operands;
use crate::operator::MergeOperator;
use crate::readahead::ReadAhead;
use crate::spans::Spans;
use crate::types::Seqno;
use crate::view::View;

/// A walk that has passed so many keys is taken for one that reads everything.
const STREAM_AFTER: u64 = 4096;
/// After so many keys in a row that were not there, a walk looks whether a span hides more, and skips it.
const HIDDEN_IN_A_ROW: u32 = 8;

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

    /// The head of the current key.
    #[inline]
    fn head(&self) -> Option<u64> {
        match self {
            Source::Memtable(cursor) => cursor.entry().map(|m| head_of(m.key)),
            Source::Run(cursor) => cursor.valid().then(|| cursor.head()),
        }
    }

    #[inline]
    fn entry(&self) -> Option<MessageRef<'_>> {
        match self {
            Source::Memtable(cursor) => cursor.entry(),
            Source::Run(cursor) => cursor.entry(),
        }
    }

    #[inline]
    fn kind(&self) -> Option<Kind> {
        match self {
            Source::Memtable(cursor) => cursor.entry().map(|m| m.kind),
            Source::Run(cursor) => cursor.valid().then(|| cursor.kind()),
        }
    }

    #[inline]
    fn step(&mut self, direction: Direction, reads: &mut ReadAhead) -> Result<()> {
        match (self, direction) {
            (Source::Run(cursor), _) => return cursor.step(reads),
            (Source::Memtable(cursor), Direction::Forward) => cursor.advance(),
            (Source::Memtable(cursor), Direction::Backward) => cursor.retreat(),
        }
        Ok(())
    }

    /// Begins to skip what lies before a seek; what comes after `until` is hidden again. REQUIRES a current key before the seek.
    fn begin_skip(&mut self, seek: Seek<'_>, until: Option<&[u8]>, reads: &mut ReadAhead) -> Result<()> {
        match (self, seek) {
            (Source::Run(cursor), _) => return cursor.begin_skip(seek, until, reads),
            (Source::Memtable(cursor), Seek::At(key)) => cursor.seek(key),
            (Source::Memtable(cursor), Seek::Before(key)) => cursor.seek_before(key),
        }
        Ok(())
    }

    /// Ends what [`Source::begin_skip`] began.
    fn end_skip(&mut self, seek: Seek<'_>, reads: &mut ReadAhead) -> Result<()> {
        match self {
            Source::Run(cursor) => cursor.end_skip(seek, reads),
            Source::Memtable(_) => Ok(()),
        }
    }
}

/// A source with a current key, and the key's head.
#[derive(Copy, Clone, Debug)]
struct Near {
    head: u64,
    source: usize,
}

/// See the module's text.
pub(crate) struct Walk {
    view: Arc<View>,
    direction: Direction,
    operator: Option<Arc<dyn MergeOperator>>,
    /// The range, as far as it goes.
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    pager: Pager,
    reads: ReadAhead,
    /// Bytes of records that the walk is expected to take.
    expected: u64,
    /// Newest first: the memtables, then the runs of the current leaf's path.
    sources: Vec<Source>,
    spans: Vec<Spans>,
    has_spans: bool,
    memtables: usize,
    /// Sources with a current key, nearest first.
    order: Vec<Near>,
    /// How many at the front of `order` have the key found last.
    used: usize,
    /// What the source that had the last key alone has less far ([`Walk::distance`]) than this comes before anything of the others, and is in the leaf.
    alone_before: u64,
    /// The value found last, if it is not that of `order[0]`.
    folded: Option<Vec<u8>>,
    /// The part of the current leaf: its lowest key, and the first key above it.
    leaf_low: Arc<[u8]>,
    leaf_high: Option<Headed<Arc<[u8]>>>,
    /// The leaves that come next in a stream: chunks of the first ones are on their way, meta blocks of those after them.
    ahead: VecDeque<LeafPart>,
    /// Bytes that the next leaf of a stream may have on their way for each of its runs, and small leaves together.
    stream_ahead: usize,
    /// Keys passed so far.
    steps: u64,
    /// Keys passed since one was there.
    hidden: u32,
}

impl Walk {
    /// A walk that begins at the first key not below `low` (forward), or the last below `high` (backward).
    #[allow(clippy::too_many_arguments, reason = "each is a part of what a walk is")]
    pub(crate) fn new(
        pager: &Pager,
        view: &Arc<View>,
        operator: Option<Arc<dyn MergeOperator>>,
        at: Seqno,
        direction: Direction,
        expected: u64,
        low: &[u8],
        high: Option<&[u8]>,
    ) -> Result<Walk> {
        let mut walk = Walk {
            view: view.clone(),
            direction,
            operator,
            low: low.to_vec(),
            high: high.map(<[u8]>::to_vec),
            pager: pager.clone(),
            reads: ReadAhead::new(pager),
            expected,
            sources: Vec::with_capacity(16),
            spans: Vec::with_capacity(16),
            has_spans: false,
            memtables: 0,
            order: Vec::with_capacity(16),
            used: 0,
            alone_before: 0,
            folded: None,
            leaf_low: Arc::default(),
            leaf_high: None,
            ahead: VecDeque::new(),
            stream_ahead: FIRST_OF_STREAM,
            steps: 0,
            hidden: 0,
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
        let seek = match direction {
            Direction::Forward => Seek::At(low),
            Direction::Backward => Seek::Before(high),
        };
        let mut leaf = walk.leaf_at(seek);
        walk.warm(&mut leaf)?;
        walk.enter(leaf)?;
        Ok(walk)
    }

    /// Makes `leaf` the current one.
    fn enter(&mut self, leaf: LeafPart) -> Result<()> {
        for source in self.sources.drain(self.memtables..) {
            if let Source::Run(cursor) = source {
                cursor.finish(&mut self.reads);
            }
        }
        self.spans.truncate(self.memtables);
        self.spans.extend(leaf.spans);
        self.has_spans = leaf.has_spans;
        let seek = seek(self.direction, &leaf.low, leaf.high.as_deref());
        for mut cursor in leaf.cursors {
            cursor.go(seek, &mut self.reads)?;
            self.sources.push(Source::Run(Box::new(cursor)));
        }
        self.leaf_low = leaf.low;
        self.leaf_high = leaf.high.map(Headed::new);
        let mut order = std::mem::take(&mut self.order);
        order.clear();
        let near = |source: usize| Some(Near { head: self.sources[source].head()?, source });
        order.extend((0..self.sources.len()).filter_map(near));
        order.sort_by(|&a, &b| self.compare(a, b));
        self.order = order;
        self.used = 0;
        Ok(())
    }

    /// Goes on to the neighbouring leaf; false at the end of the range.
    fn next_leaf(&mut self) -> Result<bool> {
        let stream = self.steps >= STREAM_AFTER;
        let next = match self.ahead.pop_front() {
            Some(leaf) => Some(leaf),
            None => {
                let (low, high) = (self.leaf_low.clone(), self.leaf_high.clone());
                self.leaf_after(&low, high.as_deref())
            }
        };
        let Some(mut leaf) = next else { return Ok(false) };
        if stream {
            self.stream(&mut leaf)?;
            self.look_ahead(&leaf)?;
            self.enter(leaf)?;
        } else {
            self.warm(&mut leaf)?;
            self.enter(leaf)?;
        }
        Ok(true)
    }

    #[inline]
    fn compare(&self, a: Near, b: Near) -> Ordering {
        if a.head != b.head {
            return if (a.head < b.head) == (self.direction == Direction::Forward) {
                Ordering::Less
            } else {
                Ordering::Greater
            };
        }
        self.compare_keys(a, b)
    }

    /// As [`Walk::compare`], for keys with the same head.
    #[inline(never)]
    fn compare_keys(&self, a: Near, b: Near) -> Ordering {
        let keys = self.sources[a.source].key().cmp(&self.sources[b.source].key());
        let keys = if self.direction == Direction::Forward { keys } else { keys.reverse() };
        keys.then(a.source.cmp(&b.source))
    }

    /// Whether the nearest key is in the current leaf.
    #[inline]
    fn is_inside(&self, near: Near) -> bool {
        let key = || self.sources[near.source].key().unwrap_or_default();
        match (self.direction, &self.leaf_high) {
            (Direction::Forward, None) => true,
            (Direction::Forward, Some(high)) => high.compare(near.head, key()).is_gt(),
            (Direction::Backward, _) => *key() >= *self.leaf_low,
        }
    }

    /// Finds the next key that is present in the range; false: there is none.
    #[inline]
    pub(crate) fn step(&mut self) -> Result<bool> {
        if self.alone_before > 0 && self.step_alone() { Ok(true) } else { self.step_among() }
    }

    /// The next key, if the source that had the last one alone has it in the same page, alone again, and its value decides; false: that is for
    /// [`Walk::step_among`] to find out. REQUIRES `alone_before`.
    #[inline]
    fn step_alone(&mut self) -> bool {
        let near = &mut self.order[0];
        let Source::Run(cursor) = &mut self.sources[near.source] else { return false };
        if !cursor.step_in_page() {
            return false;
        }
        let (head, put) = (cursor.head(), cursor.kind() == Kind::Put);
        near.head = head;
        if put && self.distance(head) < self.alone_before {
            self.steps += 1;
            return true;
        }
        self.used = 0;
        self.sift(0);
        false
    }

    /// As [`Walk::step`], among all sources.
    #[inline(never)]
    fn step_among(&mut self) -> Result<bool> {
        self.alone_before = 0;
        loop {
            self.consume()?;
            self.steps += 1;
            let Some(first) = self.order.first().copied().filter(|&first| self.is_inside(first)) else {
                if !self.next_leaf()? {
                    return Ok(false);
                }
                continue;
            };
            self.used = 1;
            while let Some(next) = self.order.get(self.used)
                && next.head == first.head
                && self.sources[next.source].key() == self.sources[first.source].key()
            {
                self.used += 1;
            }
            if self.resolve(first)? {
                self.hidden = 0;
                if self.used == 1 && self.folded.is_none() {
                    self.alone_before = self.others_from();
                }
                return Ok(true);
            }
            self.hidden += 1;
            if self.hidden >= HIDDEN_IN_A_ROW && self.has_spans {
                self.hidden = 0;
                self.skip_hidden()?;
            }
        }
    }

    /// A number that rises along the direction, of a key with this head.
    #[inline]
    fn distance(&self, head: u64) -> u64 {
        if self.direction == Direction::Forward { head } else { !head }
    }

    /// Before this distance no other source has anything, no span hides anything of the source of the key found last, and the leaf does not end.
    #[inline]
    fn others_from(&self) -> u64 {
        let end = match (self.direction, &self.leaf_high) {
            (Direction::Forward, high) => high.as_ref().map(Headed::head),
            (Direction::Backward, _) => Some(head_of(&self.leaf_low)),
        };
        let others = self.order.get(1).map(|near| near.head);
        let before = |nearest: u64, head: u64| nearest.min(self.distance(head));
        let nearest = [others, end].into_iter().flatten().fold(u64::MAX, before);
        if self.has_spans { self.next_spans().fold(nearest, before) } else { nearest }
    }

    /// The heads of where the next spans begin, seen along the direction, that hide what the source of the key found last has.
    fn next_spans(&self) -> impl Iterator<Item = u64> {
        let source = self.order.first().map_or(0, |near| near.source);
        let key = self.sources.get(source).and_then(Source::key).unwrap_or_default();
        self.spans[..source].iter().filter_map(move |spans| match self.direction {
            Direction::Forward => spans.span_at_or_after(key).map(|(start, _)| head_of(start)),
            Direction::Backward => spans.span_before(key).map(|(_, end)| head_of(end)),
        })
    }

    /// Takes every source to the end of the span that hides the nearest key, if one does.
    fn skip_hidden(&mut self) -> Result<()> {
        let Some(near) = self.order.first().copied() else { return Ok(()) };
        let Some(key) = self.sources[near.source].key() else { return Ok(()) };
        let span = |spans: &Spans| spans.span_at_or_after(key).filter(|(start, _)| *start <= key).map(owned);
        let newer = self.spans[..near.source].iter().enumerate();
        let Some((hider, (start, end))) = newer.filter_map(|(i, spans)| Some((i, span(spans)?))).next()
        else {
            return Ok(());
        };
        let spans = &self.spans[hider];
        let (seek, until) = match self.direction {
            Direction::Forward => (Seek::At(&end), spans.span_at_or_after(&end).map(|span| span.0)),
            Direction::Backward => (Seek::Before(Some(&start)), spans.span_before(&start).map(|span| span.1)),
        };
        let mut order = std::mem::take(&mut self.order);
        let is_hidden = |sources: &[Source], source: usize| {
            source > hider
                && sources[source].key().is_some_and(|key| match self.direction {
                    Direction::Forward => *key < *end,
                    Direction::Backward => *key >= *start,
                })
        };
        // All reads get under way before the first is waited for.
        let hidden: Vec<usize> =
            order.iter().map(|near| near.source).filter(|&source| is_hidden(&self.sources, source)).collect();
        for &source in &hidden {
            self.sources[source].begin_skip(seek, until, &mut self.reads)?;
        }
        self.reads.kick();
        for &source in &hidden {
            self.sources[source].end_skip(seek, &mut self.reads)?;
        }
        order.retain_mut(|near| self.sources[near.source].head().map(|head| near.head = head).is_some());
        order.sort_by(|&a, &b| self.compare(a, b));
        self.order = order;
        self.used = 0;
        Ok(())
    }

    /// The record that [`Walk::step`] found last, until it is called again.
    #[inline(always)]
    pub(crate) fn found(&self) -> Option<(&[u8], &[u8])> {
        let first = self.order.first().filter(|_| self.used > 0)?;
        let entry = self.sources[first.source].entry()?;
        Some((entry.key, self.folded.as_deref().unwrap_or(entry.value)))
    }

    /// Whether the sources `order[..used]`, which have the same key, say that it is present.
    #[inline]
    fn resolve(&mut self, first: Near) -> Result<bool> {
        self.folded = None;
        if self.has_spans {
            let key = self.sources[first.source].key().unwrap_or_default();
            if self.spans[..first.source].iter().any(|spans| spans.contains(key)) {
                return Ok(false);
            }
        }
        match self.sources[first.source].kind() {
            Some(Kind::Put) => Ok(true),
            Some(Kind::Delete) => Ok(false),
            _ => self.fold(),
        }
    }

    /// As [`Walk::resolve`], where operands have a say.
    fn fold(&mut self) -> Result<bool> {
        let Some(key) = self.order.first().and_then(|near| self.sources[near.source].key()) else {
            return Ok(false);
        };
        let mut operands: Vec<&[u8]> = Vec::new();
        let mut base = None;
        let mut passed = 0;
        for near in &self.order[..self.used] {
            let i = near.source;
            if self.has_spans && self.spans[passed..i].iter().any(|s| s.contains(key)) {
                break;
            }
            passed = i;
            let Some(entry) = self.sources[i].entry() else { break };
            match entry.kind {
                Kind::Put => {
                    base = Some(entry.value);
                    break;
                }
                Kind::Delete | Kind::RangeDelete => break,
                Kind::Merge => {
                    operands.extend(operands::decode(entry.value).ok_or_else(missing_operator)?.iter().rev());
                }
            }
        }
        if operands.is_empty() {
            self.folded = base.map(<[u8]>::to_vec);
            return Ok(self.folded.is_some());
        }
        let operator = self.operator.as_deref().ok_or_else(missing_operator)?;
        operands.reverse();
        self.folded = Some(operator.full_merge(key, base, &operands));
        Ok(true)
    }

    #[inline]
    fn consume(&mut self) -> Result<()> {
        while self.used > 0 {
            self.used -= 1;
            let at = self.used;
            let source = self.order[at].source;
            self.sources[source].step(self.direction, &mut self.reads)?;
            let Some(head) = self.sources[source].head() else {
                self.order.remove(at);
                continue;
            };
            self.order[at] = Near { head, source };
            self.sift(at);
        }
        Ok(())
    }

    /// Moves `order[at]`, whose source has moved on, to where it belongs.
    #[inline]
    fn sift(&mut self, mut at: usize) {
        let moved = self.order[at];
        while let Some(&next) = self.order.get(at + 1)
            && self.compare(moved, next) == Ordering::Greater
        {
            self.order[at] = next;
            at += 1;
        }
        self.order[at] = moved;
    }
}

fn owned((start, end): (&[u8], &[u8])) -> (Box<[u8]>, Box<[u8]>) {
    (start.into(), end.into())
}
