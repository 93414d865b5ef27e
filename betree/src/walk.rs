//! One direction of an iterator: merges everything that may hold the next key, leaf by leaf.
//!
//! Memtables are walked over the whole range; the runs of the path to one leaf only over that leaf's range. When the first leaf is opened the meta
//! blocks of all its runs are read in one batch, then the first pages of all in another: as many of each run as make up, with the others', what walks
//! of this keyspace used to take lately. A long walk that comes to another leaf streams: while it takes the records of one leaf, the first chunks of the
//! next one are on their way.
//!
//! Sources are ordered newest first; a span of a newer source hides what older ones have. The next key is found by the heads of the sources'
//! keys, which lie side by side in `order`. What was found last stays with its sources until the next step, so that it can be lent.

use std::cmp::Ordering;
use std::sync::Arc;

use betree_pager::{BLOCK, Page, Pager};

use crate::Result;
use crate::cursor::{Direction, MOST_TOGETHER, RunCursor, Seek};
use crate::get::missing_operator;
use crate::headed::{Headed, head_of};
use crate::memtable::MemCursor;
use crate::message::{Kind, MessageRef};
use crate::node::Target;
use crate::operands;
use crate::operator::MergeOperator;
use crate::readahead::ReadAhead;
use crate::run::Run;
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

/// The runs on the path to a leaf, newest first, and the part of the leaf that the walk sees.
struct LeafPart {
    low: Arc<[u8]>,
    high: Option<Arc<[u8]>>,
    cursors: Vec<RunCursor>,
    /// Estimates of the bytes of each in the leaf.
    sizes: Vec<u64>,
    spans: Vec<Spans>,
    has_spans: bool,
    /// Whether its chunks are under way.
    streams: bool,
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
    /// The value found last, if it is not that of `order[0]`.
    folded: Option<Vec<u8>>,
    /// The part of the current leaf: its lowest key, and the first key above it.
    leaf_low: Arc<[u8]>,
    leaf_high: Option<Headed<Arc<[u8]>>>,
    /// The next leaf, when its reads are under way.
    ahead: Option<LeafPart>,
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
            folded: None,
            leaf_low: Arc::default(),
            leaf_high: None,
            ahead: None,
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
        let warm = walk.warm(&mut leaf)?;
        walk.enter(leaf)?;
        drop(warm);
        Ok(walk)
    }

    /// The leaf in which `seek` begins, with the runs of its path.
    fn leaf_at(&self, seek: Seek<'_>) -> LeafPart {
        let mut node = &self.view.root;
        let mut node_high: Option<&[u8]> = None;
        // With an estimate of the bytes of each in the leaf's range.
        let mut runs: Vec<(&Arc<Run>, u64)> = Vec::with_capacity(16);
        let leaf_low = loop {
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
                    break &*node.children[index].low;
                }
            }
        };
        // The part of the leaf that the walk will see: what a newer span covers of it wholly is not opened at all.
        let from = leaf_low.max(&self.low);
        let to = match (node_high, self.high.as_deref()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let mut leaf = LeafPart {
            low: from.into(),
            high: to.map(Arc::from),
            cursors: Vec::with_capacity(runs.len()),
            sizes: Vec::with_capacity(runs.len()),
            spans: Vec::with_capacity(runs.len()),
            has_spans: false,
            streams: false,
        };
        let edge = match self.direction {
            Direction::Forward => leaf.high.clone(),
            Direction::Backward => Some(leaf.low.clone()),
        };
        let mut newer = Spans::default();
        self.spans[..self.memtables].iter().for_each(|s| newer.union(&s.clip(from, to)));
        for (run, size) in runs {
            if newer.covers(from, to) {
                break;
            }
            if !run.touches(from, to) {
                continue;
            }
            let spans = run.spans.clip(from, to);
            leaf.cursors.push(RunCursor::new(&self.pager, run.clone(), self.direction, edge.clone()));
            leaf.sizes.push(size);
            newer.union(&spans);
            leaf.spans.push(spans);
        }
        leaf.has_spans = !newer.is_empty();
        leaf
    }

    /// Reads the meta blocks that the leaf's cursors need, all together.
    fn read_metas(&self, leaf: &mut LeafPart, stream: bool) -> Result<()> {
        let LeafPart { low, high, cursors, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        let mut missing: Vec<(usize, usize)> = Vec::new();
        for (i, cursor) in cursors.iter_mut().enumerate() {
            missing.extend(cursor.metas_wanted(seek, stream).into_iter().map(|segment| (i, segment)));
        }
        if missing.is_empty() {
            return Ok(());
        }
        let wants: Vec<_> = missing.iter().map(|&(i, segment)| cursors[i].meta_of(segment)).collect();
        let pages = self.pager.get_many(&wants);
        for ((i, segment), page) in missing.into_iter().zip(pages) {
            cursors[i].take_meta(segment, page?)?;
        }
        Ok(())
    }

    /// Reads what the cursors' seeks need, all of a level together. The pages are to be held until the seeks have found them in the cache.
    fn warm(&self, leaf: &mut LeafPart) -> Result<Vec<Page>> {
        self.read_metas(leaf, false)?;
        let LeafPart { low, high, cursors, sizes, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        // Of what is expected, each run has the share that it has of the leaf.
        let all = sizes.iter().copied().fold(1, u64::saturating_add);
        let mut wants = Vec::with_capacity(2 * cursors.len());
        for (cursor, size) in cursors.iter_mut().zip(sizes) {
            // A walk begins somewhere within its first page.
            let more = (self.expected.saturating_mul(*size) / all + BLOCK as u64 / 2) / BLOCK as u64;
            wants.extend(cursor.pages_wanted(seek, 1 + (more as usize).min(MOST_TOGETHER)));
        }
        Ok(self.pager.get_many(&wants).into_iter().collect::<Result<_, _>>()?)
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

    /// The neighbour of the leaf `low..high`; `None` at the end of the range.
    fn leaf_after(&self, low: &[u8], high: Option<&[u8]>) -> Option<LeafPart> {
        match (self.direction, high) {
            (Direction::Forward, Some(end)) => {
                self.high.as_deref().is_none_or(|high| end < high).then(|| self.leaf_at(Seek::At(end)))
            }
            (Direction::Forward, None) => None,
            (Direction::Backward, _) => (*low > *self.low).then(|| self.leaf_at(Seek::Before(Some(low)))),
        }
    }

    /// The first chunks of a leaf's runs get under way, if they are not.
    fn stream(&mut self, leaf: &mut LeafPart) -> Result<()> {
        if leaf.streams {
            return Ok(());
        }
        leaf.streams = true;
        self.read_metas(leaf, true)?;
        let LeafPart { low, high, cursors, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        for cursor in cursors {
            cursor.stream(seek, &mut self.reads)?;
        }
        self.reads.kick();
        Ok(())
    }

    /// Goes on to the neighbouring leaf; false at the end of the range.
    fn next_leaf(&mut self) -> Result<bool> {
        let stream = self.steps >= STREAM_AFTER;
        let next = match self.ahead.take() {
            Some(leaf) => Some(leaf),
            None => {
                let (low, high) = (self.leaf_low.clone(), self.leaf_high.clone());
                self.leaf_after(&low, high.as_deref())
            }
        };
        let Some(mut leaf) = next else { return Ok(false) };
        if stream {
            self.stream(&mut leaf)?;
            if let Some(mut ahead) = self.leaf_after(&leaf.low.clone(), leaf.high.clone().as_deref()) {
                self.stream(&mut ahead)?;
                self.ahead = Some(ahead);
            }
            self.enter(leaf)?;
        } else {
            let warm = self.warm(&mut leaf)?;
            self.enter(leaf)?;
            drop(warm);
        }
        Ok(true)
    }

    #[inline]
    fn compare(&self, a: Near, b: Near) -> Ordering {
        let keys =
            a.head.cmp(&b.head).then_with(|| self.sources[a.source].key().cmp(&self.sources[b.source].key()));
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
    pub(crate) fn step(&mut self) -> Result<bool> {
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
                return Ok(true);
            }
            self.hidden += 1;
            if self.hidden >= HIDDEN_IN_A_ROW && self.has_spans {
                self.hidden = 0;
                self.skip_hidden()?;
            }
        }
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
    #[inline]
    pub(crate) fn found(&self) -> Option<(&[u8], &[u8])> {
        let first = self.order.first().filter(|_| self.used > 0)?;
        let entry = self.sources[first.source].entry()?;
        Some((entry.key, self.folded.as_deref().unwrap_or(entry.value)))
    }

    /// Whether the sources `order[..used]`, which have the same key, say that it is present.
    #[inline]
    fn resolve(&mut self, first: Near) -> Result<bool> {
        self.folded = None;
        if !self.has_spans {
            match self.sources[first.source].entry().map(|entry| entry.kind) {
                Some(Kind::Put) => return Ok(true),
                Some(Kind::Delete) => return Ok(false),
                _ => {}
            }
        }
        self.fold()
    }

    /// As [`Walk::resolve`], where operands or spans have a say.
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
            let moved = Near { head, source };
            let mut at = at;
            while let Some(&next) = self.order.get(at + 1)
                && self.compare(moved, next) == Ordering::Greater
            {
                self.order[at] = next;
                at += 1;
            }
            self.order[at] = moved;
        }
        Ok(())
    }
}

fn owned((start, end): (&[u8], &[u8])) -> (Box<[u8]>, Box<[u8]>) {
    (start.into(), end.into())
}

/// Where the cursors of the part `low..high` of a leaf begin.
fn seek<'a>(direction: Direction, low: &'a [u8], high: Option<&'a [u8]>) -> Seek<'a> {
    match direction {
        Direction::Forward => Seek::At(low),
        Direction::Backward => Seek::Before(high),
    }
}
