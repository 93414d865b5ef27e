//! Nodes as they are on disk: decoded values that own no extents.
//!
//! Opening decodes a node into these and then takes possession of its extents (`node_codec`); the checker and salvage work on them as
//! they are, because what they read may contradict itself. Decoding only bounds lengths and counts; [`StoredNode::faults`] names the invariants
//! that do not hold: `tree.levels_uniform`, `node.pivots_sorted`, `buffer.runs_ordered`, `buffer.cursor_monotone`, `run.segments_ascend`,
//! `run.seqnos`, `segment.keys_in_bounds`. Called by `node_codec`, `check`, `salvage`; no locks.

use std::sync::Arc;

use betree_pager::BLOCK;

use crate::message::get_varint;
use crate::node::{Node, Target};
use crate::node_codec::{NodePointer, TYPE_NODE, get_bytes, get_count, get_u8, get_u32};
use crate::run::Run;
use crate::segment::Segment;
use crate::spans::Spans;
use crate::types::Seqno;
use crate::{Error, Result};

/// Bytes before a node's body.
pub(crate) const HEADER: usize = 16;
/// Deepest tree that is believed: a fanout of 2 over more blocks than a file can have.
pub(crate) const MAX_LEVEL: u64 = 64;

/// Descriptor of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredSegment {
    pub offset: u64,
    pub data_len: u32,
    pub meta_len: u32,
    pub meta_crc: u32,
    pub messages: u32,
    pub min: Box<[u8]>,
    pub max: Box<[u8]>,
    pub samples: Box<[Box<[u8]>]>,
}

/// A run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredRun {
    pub first: Seqno,
    pub last: Seqno,
    pub segments: Vec<StoredSegment>,
    pub spans: Spans,
}

/// What hangs below a pivot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoredTarget {
    Node(NodePointer),
    /// Up to where deletes may have vanished, deltas oldest first, and the base.
    Leaf {
        settled: Seqno,
        deltas: Vec<Arc<StoredRun>>,
        base: Option<Arc<StoredRun>>,
    },
}

/// A child of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredChild {
    pub low: Box<[u8]>,
    pub cursor: u64,
    pub pending: u64,
    pub target: StoredTarget,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredNode {
    pub level: u64,
    pub next_number: u64,
    /// Number and run, oldest first.
    pub queue: Vec<(u64, Arc<StoredRun>)>,
    pub children: Vec<StoredChild>,
}

impl StoredSegment {
    fn decode(input: &mut &[u8]) -> Option<StoredSegment> {
        let offset = get_varint(input)?.checked_mul(BLOCK as u64)?;
        let data_len = u32::try_from(get_varint(input)?.checked_mul(BLOCK as u64)?).ok()?;
        let meta_len = u32::try_from(get_varint(input)?.checked_mul(BLOCK as u64)?).ok()?;
        let meta_crc = get_u32(input)?;
        let messages = u32::try_from(get_varint(input)?).ok()?;
        let (min, max) = (get_bytes(input)?.into(), get_bytes(input)?.into());
        let mut samples: Vec<Box<[u8]>> = Vec::new();
        for _ in 0..get_count(input)? {
            samples.push(get_bytes(input)?.into());
        }
        data_len.checked_add(meta_len)?;
        offset.checked_add(u64::from(data_len) + u64::from(meta_len))?;
        if data_len == 0 || meta_len == 0 {
            return None;
        }
        let samples = samples.into();
        Some(StoredSegment { offset, data_len, meta_len, meta_crc, messages, min, max, samples })
    }

    fn of(segment: &Segment) -> StoredSegment {
        StoredSegment {
            offset: segment.extent.offset(),
            data_len: segment.data_len,
            meta_len: segment.meta_len,
            meta_crc: segment.meta_crc,
            messages: segment.messages,
            min: (*segment.min).into(),
            max: (*segment.max).into(),
            samples: segment.samples.clone(),
        }
    }

    /// Bytes of its extent.
    pub(crate) fn len(&self) -> u32 {
        self.data_len + self.meta_len
    }
}

impl StoredRun {
    fn decode(input: &mut &[u8]) -> Option<Arc<StoredRun>> {
        let (first, last) = (Seqno(get_varint(input)?), Seqno(get_varint(input)?));
        let mut segments = Vec::new();
        for _ in 0..get_count(input)? {
            segments.push(StoredSegment::decode(input)?);
        }
        let spans = Spans::decode(get_bytes(input)?)?;
        Some(Arc::new(StoredRun { first, last, segments, spans }))
    }

    fn of(run: &Run) -> Arc<StoredRun> {
        let segments = run.segments.iter().map(|s| StoredSegment::of(s)).collect();
        Arc::new(StoredRun { first: run.first, last: run.last, segments, spans: run.spans.clone() })
    }

    /// The segments with keys in `low..high`.
    pub(crate) fn segments_in(&self, low: &[u8], high: Option<&[u8]>) -> &[StoredSegment] {
        let from = self.segments.partition_point(|s| *s.max < *low);
        let to = high.map_or(self.segments.len(), |h| self.segments.partition_point(|s| *s.min < *h));
        self.segments.get(from..to).unwrap_or_default()
    }

    /// Whether any message or span may concern `low..high`.
    pub(crate) fn touches(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        !self.segments_in(low, high).is_empty() || !self.spans.clip(low, high).is_empty()
    }

    fn faults(&self, wrong: &mut impl FnMut(String)) {
        if self.first > self.last {
            wrong(format!("run.seqnos: {}..={}", self.first, self.last));
        }
        for segment in self.segments.iter().filter(|s| s.min > s.max) {
            wrong(format!(
                "segment.keys_in_bounds: the segment at offset {} begins above its end",
                segment.offset
            ));
        }
        for pair in self.segments.windows(2) {
            if pair[0].max >= pair[1].min {
                wrong(format!(
                    "run.segments_ascend: the segment at offset {} is not above the one before",
                    pair[1].offset
                ));
            }
        }
    }
}

impl StoredTarget {
    fn decode(input: &mut &[u8]) -> Option<StoredTarget> {
        match get_u8(input)? {
            0 => {
                let settled = Seqno(get_varint(input)?);
                let mut deltas = Vec::new();
                for _ in 0..get_count(input)? {
                    deltas.push(StoredRun::decode(input)?);
                }
                let base = match get_u8(input)? {
                    0 => None,
                    1 => Some(StoredRun::decode(input)?),
                    _ => return None,
                };
                Some(StoredTarget::Leaf { settled, deltas, base })
            }
            1 => Some(StoredTarget::Node(NodePointer::decode(input)?)),
            _ => None,
        }
    }

    fn of(target: &Target) -> StoredTarget {
        match target {
            Target::Node(node) => StoredTarget::Node(match node.place.get() {
                Some(place) => NodePointer::of(place),
                None => NodePointer { offset: 0, len: 0, crc: 0 },
            }),
            Target::Leaf(leaf) => StoredTarget::Leaf {
                settled: leaf.settled,
                deltas: leaf.deltas.iter().map(|run| StoredRun::of(run)).collect(),
                base: leaf.base.as_ref().map(|run| StoredRun::of(run)),
            },
        }
    }
}

impl StoredNode {
    /// Reads the page of a node at `offset`, whose checksums were verified.
    pub(crate) fn decode(page: &[u8], offset: u64) -> Result<StoredNode> {
        let lie = |detail: &str| Error::Corrupt {
            file: betree_pager::FILE_NAME.to_string(),
            offset,
            structure: "node",
            detail: detail.to_string(),
        };
        let body = page.get(8..12).and_then(|mut b| get_u32(&mut b)).unwrap_or(0) as usize;
        if page.get(4) != Some(&TYPE_NODE) {
            return Err(lie("page type is not that of a node"));
        }
        let reserved = page.get(5..8).into_iter().chain(page.get(12..HEADER)).flatten();
        if reserved.into_iter().any(|&b| b != 0) {
            return Err(lie("reserved bytes are not zero"));
        }
        let input = page.get(HEADER..).and_then(|rest| rest.get(..body));
        let mut input = input.ok_or_else(|| lie("the body is cut off"))?;
        let node = StoredNode::decode_body(&mut input).ok_or_else(|| lie("the body does not decode"))?;
        if !input.is_empty() {
            return Err(lie("bytes are left over"));
        }
        Ok(node)
    }

    fn decode_body(input: &mut &[u8]) -> Option<StoredNode> {
        let (level, next_number) = (get_varint(input)?, get_varint(input)?);
        let mut queue = Vec::new();
        for _ in 0..get_count(input)? {
            queue.push((get_varint(input)?, StoredRun::decode(input)?));
        }
        let mut children = Vec::new();
        for _ in 0..get_count(input)? {
            children.push(StoredChild {
                low: get_bytes(input)?.into(),
                cursor: get_varint(input)?,
                pending: get_varint(input)?,
                target: StoredTarget::decode(input)?,
            });
        }
        Some(StoredNode { level, next_number, queue, children })
    }

    /// A node in memory in this form.
    pub(crate) fn of(node: &Node) -> StoredNode {
        let child = |c: &crate::node::Child| StoredChild {
            low: (*c.low).into(),
            cursor: c.cursor,
            pending: c.pending,
            target: StoredTarget::of(&c.target),
        };
        StoredNode {
            level: u64::from(node.level),
            next_number: node.next_number,
            queue: node.queue.iter().map(|q| (q.number, StoredRun::of(&q.run))).collect(),
            children: node.children.iter().map(child).collect(),
        }
    }

    /// What does not hold of a node that belongs at `level` (the root: any) and has the keys `low..high`.
    pub(crate) fn faults(
        &self,
        level: Option<u64>,
        low: &[u8],
        high: Option<&[u8]>,
        wrong: &mut impl FnMut(String),
    ) {
        if self.level == 0 || self.level > MAX_LEVEL || level.is_some_and(|l| l != self.level) {
            wrong("tree.levels_uniform: the level is not one below the parent's".into());
        }
        for pair in self.queue.windows(2) {
            if pair[0].0 >= pair[1].0 || pair[0].1.last >= pair[1].1.first {
                wrong(format!(
                    "buffer.runs_ordered: numbers or Seqnos of runs {} and {} do not ascend",
                    pair[0].0, pair[1].0
                ));
            }
        }
        if self.queue.last().is_some_and(|(number, _)| *number >= self.next_number) {
            wrong("buffer.runs_ordered: a run has a number that was not given yet".into());
        }
        self.queue.iter().for_each(|(_, run)| run.faults(wrong));
        if self.children.first().is_none_or(|first| *first.low != *low) {
            wrong("node.pivots_sorted: the first pivot is not the node's low key".into());
        }
        for (i, child) in self.children.iter().enumerate() {
            let sorted = i == 0 || self.children[i - 1].low < child.low;
            if !sorted || high.is_some_and(|h| *child.low >= *h) {
                wrong(format!(
                    "node.pivots_sorted: child {i}: low keys do not ascend within the node's range"
                ));
            }
            if child.cursor > self.next_number {
                wrong(format!("buffer.cursor_monotone: child {i}: its cursor is above the next run number"));
            }
            match (&child.target, self.level) {
                (StoredTarget::Leaf { deltas, base, .. }, 1) => {
                    deltas.iter().chain(base).for_each(|run| run.faults(wrong));
                }
                (StoredTarget::Node(_), 2..) => {}
                _ => wrong(format!("tree.levels_uniform: child {i} is not of the level below")),
            }
        }
    }

    /// The first key above child `index`: its sibling's low key, or the node's own upper end.
    pub(crate) fn high_of<'a>(&'a self, index: usize, high: Option<&'a [u8]>) -> Option<&'a [u8]> {
        self.children.get(index + 1).map(|c| &c.low[..]).or(high)
    }

    /// Runs pending for child `index`, newest first.
    pub(crate) fn pending_runs(&self, index: usize) -> impl Iterator<Item = &Arc<StoredRun>> {
        let cursor = self.children[index].cursor;
        self.queue.iter().rev().filter(move |(number, _)| *number >= cursor).map(|(_, run)| run)
    }
}
