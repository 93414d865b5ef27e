//! The leaves that a walk comes to: which runs there are for each, and getting their reads under way in time.
//!
//! The first leaf is *warmed*: the meta blocks of all its runs are read in one batch, then the first pages of all in another. In a stream the chunks of
//! the next leaf are on their way while the records of this one are taken; of small leaves, the chunks of as many as have together what one large
//! leaf may have. And the meta blocks of as many after them, without which their chunks cannot be asked for.

use std::collections::VecDeque;
use std::sync::Arc;

use betree_pager::BLOCK;

use super::Walk;
use crate::Result;
use crate::cursor::{Direction, MOST_AHEAD, MOST_TOGETHER, RunCursor, Seek};
use crate::node::{Crossed, Target};
use crate::readahead::Ticket;
use crate::run::Run;
use crate::spans::Spans;

/// Most leaves with chunks on their way: there may be nothing to ask for in any of them.
const MOST_LEAVES: usize = 16;

/// The runs on the path to a leaf, newest first, and the part of the leaf that the walk sees.
pub(super) struct LeafPart {
    pub low: Arc<[u8]>,
    pub high: Option<Arc<[u8]>>,
    pub cursors: Vec<RunCursor>,
    /// Estimates of the bytes of each in the leaf.
    sizes: Vec<u64>,
    /// What is charged with the reads of each; the leaf's base is read in any case.
    crossed: Vec<Option<Crossed>>,
    pub spans: Vec<Spans>,
    pub has_spans: bool,
    /// Meta blocks on their way, by cursor and segment; `None`: not asked for yet.
    metas: Option<Vec<(usize, usize, Ticket)>>,
    /// Whether its chunks are under way.
    streams: bool,
}

impl Walk {
    /// The leaf in which `seek` begins, with the runs of its path.
    pub(super) fn leaf_at(&self, seek: Seek<'_>) -> LeafPart {
        let mut node = &self.view.root;
        let mut node_high: Option<&[u8]> = None;
        // With an estimate of the bytes of each in the leaf's range, and what its reads are charged to.
        let mut runs: Vec<(&Arc<Run>, u64, Option<&Crossed>)> = Vec::with_capacity(16);
        let leaf_low = loop {
            let index = match seek {
                Seek::At(key) => node.child_of(key),
                Seek::Before(None) => node.children.len() - 1,
                Seek::Before(Some(key)) => node.children.partition_point(|c| *c.low < *key).saturating_sub(1),
            };
            // What waits for an inner child is for many leaves.
            let (leaves, crossed) = match &node.children[index].target {
                Target::Node(below) => (below.children.len(), &below.crossed),
                Target::Leaf(leaf) => (1, &leaf.crossed),
            };
            let waiting = node.children[index].pending;
            let share = waiting / (leaves * node.pending_runs(index).count().max(1)) as u64;
            runs.extend(node.pending_runs(index).map(|q| (&q.run, share, Some(crossed))));
            node_high = node.high_of(index, node_high);
            match &node.children[index].target {
                Target::Node(below) => node = below,
                Target::Leaf(leaf) => {
                    runs.extend(leaf.deltas.iter().rev().map(|run| (run, run.bytes(), Some(&leaf.crossed))));
                    runs.extend(leaf.base.iter().map(|run| (run, run.bytes(), None)));
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
            crossed: Vec::with_capacity(runs.len()),
            spans: Vec::with_capacity(runs.len()),
            has_spans: false,
            metas: None,
            streams: false,
        };
        let edge = match self.direction {
            Direction::Forward => leaf.high.clone(),
            Direction::Backward => Some(leaf.low.clone()),
        };
        let mut newer = Spans::default();
        self.spans[..self.memtables].iter().for_each(|s| newer.union(&s.clip(from, to)));
        for (run, size, crossed) in runs {
            if newer.covers(from, to) {
                break;
            }
            if !run.touches(from, to) {
                continue;
            }
            let spans = run.spans.clip(from, to);
            leaf.cursors.push(RunCursor::new(&self.pager, run.clone(), self.direction, edge.clone()));
            leaf.sizes.push(size);
            leaf.crossed.push(crossed.cloned());
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

    /// Has the meta blocks that a stream through the leaf will need on their way.
    fn ask_metas(&mut self, leaf: &mut LeafPart) -> Result<()> {
        let LeafPart { low, high, cursors, metas, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        let asked = metas.insert(Vec::new());
        for (i, cursor) in cursors.iter_mut().enumerate() {
            for segment in cursor.metas_wanted(seek, true) {
                match self.pager.cached(cursor.meta_of(segment)) {
                    Some(page) => cursor.take_meta(segment, page)?,
                    None => asked.push((i, segment, cursor.ask_meta(segment, &mut self.reads)?)),
                }
            }
        }
        self.reads.kick();
        Ok(())
    }

    /// Takes what [`Walk::ask_metas`] asked for, or else reads it.
    fn take_metas(&mut self, leaf: &mut LeafPart) -> Result<()> {
        let Some(asked) = leaf.metas.take() else { return self.read_metas(leaf, true) };
        for (i, segment, ticket) in asked {
            let cursor = &mut leaf.cursors[i];
            let page = match self.reads.take(ticket)? {
                Some(buf) => {
                    let page = self.pager.accept(&cursor.meta_of(segment), &buf)?;
                    self.reads.recycle(buf);
                    page
                }
                None => self.pager.get_ref(cursor.meta_of(segment))?,
            };
            cursor.take_meta(segment, page)?;
        }
        Ok(())
    }

    /// Reads what the cursors' seeks need, all of a level together.
    pub(super) fn warm(&self, leaf: &mut LeafPart) -> Result<()> {
        self.read_metas(leaf, false)?;
        let LeafPart { low, high, cursors, sizes, crossed, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        // Of what is expected, each run has the share that it has of the leaf.
        let all = sizes.iter().copied().fold(1, u64::saturating_add);
        let mut wants = Vec::with_capacity(2 * cursors.len());
        let mut ends = Vec::with_capacity(cursors.len());
        for (cursor, size) in cursors.iter_mut().zip(sizes) {
            // A walk begins somewhere within its first page.
            let more = (self.expected.saturating_mul(*size) / all + BLOCK as u64 / 2) / BLOCK as u64;
            wants.extend(cursor.pages_wanted(seek, 1 + (more as usize).min(MOST_TOGETHER)));
            ends.push(wants.len());
        }
        let (pages, missed) = self.pager.get_many_telling(&wants);
        for index in missed {
            let cursor = ends.partition_point(|&end| end <= index);
            if let Some(crossed) = &crossed[cursor] {
                crossed.add(u64::from(wants[index].len));
            }
        }
        for (index, page) in pages.into_iter().enumerate() {
            cursors[ends.partition_point(|&end| end <= index)].take_page(page?);
        }
        Ok(())
    }

    /// The neighbour of the leaf `low..high`; `None` at the end of the range.
    pub(super) fn leaf_after(&self, low: &[u8], high: Option<&[u8]>) -> Option<LeafPart> {
        match (self.direction, high) {
            (Direction::Forward, Some(end)) => {
                self.high.as_deref().is_none_or(|high| end < high).then(|| self.leaf_at(Seek::At(end)))
            }
            (Direction::Forward, None) => None,
            (Direction::Backward, _) => (*low > *self.low).then(|| self.leaf_at(Seek::Before(Some(low)))),
        }
    }

    /// The first chunks of a leaf's runs get under way, if they are not.
    pub(super) fn stream(&mut self, leaf: &mut LeafPart) -> Result<()> {
        if leaf.streams {
            return Ok(());
        }
        leaf.streams = true;
        self.take_metas(leaf)?;
        let LeafPart { low, high, cursors, .. } = leaf;
        let seek = seek(self.direction, low, high.as_deref());
        for cursor in cursors {
            cursor.stream(seek, self.stream_ahead, &mut self.reads)?;
        }
        self.reads.kick();
        Ok(())
    }

    /// Gets the reads of the leaves after `leaf` under way.
    pub(super) fn look_ahead(&mut self, leaf: &LeafPart) -> Result<()> {
        self.stream_ahead = (self.stream_ahead * 2).min(MOST_AHEAD);
        let mut ahead = std::mem::take(&mut self.ahead);
        let (mut streaming, mut bytes) = (0, 0);
        while streaming < MOST_LEAVES && bytes < self.stream_ahead && self.reach(&mut ahead, leaf, streaming)
        {
            self.stream(&mut ahead[streaming])?;
            bytes += ahead[streaming].cursors.iter().map(RunCursor::bytes_asked).sum::<usize>();
            streaming += 1;
        }
        for index in streaming..2 * streaming {
            if !self.reach(&mut ahead, leaf, index) {
                break;
            }
            if ahead[index].metas.is_none() && !ahead[index].streams {
                self.ask_metas(&mut ahead[index])?;
            }
        }
        self.ahead = ahead;
        Ok(())
    }

    /// Whether `ahead`, the leaves after `leaf`, has one at `index`; the next one is added if that is it.
    fn reach(&self, ahead: &mut VecDeque<LeafPart>, leaf: &LeafPart, index: usize) -> bool {
        if ahead.len() == index {
            let last = ahead.back().unwrap_or(leaf);
            ahead.extend(self.leaf_after(&last.low, last.high.as_deref()));
        }
        ahead.len() > index
    }
}

/// Where the cursors of the part `low..high` of a leaf begin.
pub(super) fn seek<'a>(direction: Direction, low: &'a [u8], high: Option<&'a [u8]>) -> Seek<'a> {
    match direction {
        Direction::Forward => Seek::At(low),
        Direction::Backward => Seek::Before(high),
    }
}

#[cfg(test)]
mod tests {
    use super::super::STREAM_AFTER;
    use super::*;
    use crate::types::Seqno;
    use crate::{Db, TreeOptions};

    /// Walks over leaves of about so many bytes: how many leaves had chunks on their way at the most, and how many bytes.
    fn most_on_their_way(leaf_bytes: usize, direction: Direction) -> Result<(usize, usize)> {
        let tree = TreeOptions { leaf_bytes, segment_bytes: 32 << 10, ..TreeOptions::default() };
        let disk = betree_testkit::SimStorage::new(1);
        let builder =
            Db::builder().memory(256 << 20).memtable_bytes(1 << 20).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let records = 100_000u64;
        for i in 0..records {
            keyspace.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 100])?;
        }
        db.compact()?;
        let (view, pager) = (keyspace.state.view(), &db.shared().pager);
        let mut walk = Walk::new(pager, &view, None, Seqno(u64::MAX), direction, 0, b"", None)?;
        let (mut rows, mut leaves, mut bytes) = (0, 0, 0);
        while walk.step()? {
            rows += 1;
            let streaming = walk.ahead.iter().filter(|leaf| leaf.streams);
            let asked: usize =
                streaming.clone().flat_map(|leaf| &leaf.cursors).map(RunCursor::bytes_asked).sum();
            assert!(rows > STREAM_AFTER || asked == 0, "the walk may end soon");
            (leaves, bytes) = (leaves.max(streaming.count()), bytes.max(asked));
        }
        assert_eq!(rows, records);
        Ok((leaves, bytes))
    }

    #[test]
    fn in_a_stream_several_small_leaves_are_on_their_way_or_one_large_one() -> Result<()> {
        for direction in [Direction::Forward, Direction::Backward] {
            let (leaves, bytes) = most_on_their_way(64 << 10, direction)?;
            assert!(leaves == MOST_LEAVES && bytes < MOST_LEAVES * (128 << 10), "{leaves} {bytes}");
            let (leaves, bytes) = most_on_their_way(512 << 10, direction)?;
            assert!((4..=8).contains(&leaves) && (MOST_AHEAD..MOST_AHEAD + (1 << 20)).contains(&bytes));
            let (leaves, _) = most_on_their_way(4 << 20, direction)?;
            assert!(leaves <= 2, "{leaves}");
        }
        Ok(())
    }
}
