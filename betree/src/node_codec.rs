//! Nodes on disk.
//!
//! ```text
//!  0  u32  checksum (the pager's)      4  u8  page type = 3      5  3 bytes reserved, zero
//!  8  u32  body length                12  4 bytes reserved, zero
//! 16  …    body, then zeros to a multiple of 4096
//!
//! body    := level | next_number | count | queued* | count | child*          (numbers are varints unless said)
//! queued  := number | run
//! run     := first | last | count | segment* | bytes(spans)
//! segment := offset/4096 | data_len/4096 | meta_len/4096 | meta checksum u32 | messages | bytes(min) | bytes(max) | count | bytes(sample)*
//! child   := bytes(low) | cursor | pending | target
//! target  := 0u8 | count | run*              a leaf: its deltas, oldest first …
//!                | 0u8 or 1u8 run            … and its base, if any
//!          | 1u8 | offset/4096 | length/4096 | checksum u32     a node
//! bytes   := length | bytes
//! ```
//!
//! A segment that several runs share is written with each; reading joins them again by their offset. Decoding bounds
//! every count by the bytes left and checks `node.pivots_sorted`, `buffer.runs_ordered` and `tree.levels_uniform` as it goes.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use betree_pager::{BLOCK, PageKind, Pager};

use crate::message::{get_varint, put_varint};
use crate::node::{Child, Leaf, Node, NodePlace, Queued, Target};
use crate::run::Run;
use crate::segment::Segment;
use crate::spans::Spans;
use crate::types::Seqno;
use crate::{Error, Result};

/// Page type of nodes.
pub(crate) const TYPE_NODE: u8 = 3;
const HEADER: usize = 16;
/// Deepest tree that is believed: a fanout of 2 over more blocks than a file can have.
const MAX_LEVEL: u64 = 64;

/// Place and checksum of a node, as its parent (or the catalog) stores it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(crate) struct NodePointer {
    pub offset: u64,
    pub len: u32,
    pub crc: u32,
}

impl NodePointer {
    pub(crate) fn of(place: &NodePlace) -> NodePointer {
        NodePointer { offset: place.extent.offset(), len: place.len, crc: place.crc }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.offset / BLOCK as u64);
        put_varint(out, u64::from(self.len) / BLOCK as u64);
        out.extend_from_slice(&self.crc.to_le_bytes());
    }

    pub(crate) fn decode(input: &mut &[u8]) -> Option<NodePointer> {
        let offset = get_varint(input)?.checked_mul(BLOCK as u64)?;
        let len = u32::try_from(get_varint(input)?.checked_mul(BLOCK as u64)?).ok()?;
        Some(NodePointer { offset, len, crc: get_u32(input)? })
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn get_bytes<'a>(input: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(get_varint(input)?).ok()?;
    let (bytes, rest) = input.split_at_checked(len)?;
    *input = rest;
    Some(bytes)
}

pub(crate) fn get_u32(input: &mut &[u8]) -> Option<u32> {
    let (bytes, rest) = input.split_first_chunk::<4>()?;
    *input = rest;
    Some(u32::from_le_bytes(*bytes))
}

fn get_u8(input: &mut &[u8]) -> Option<u8> {
    let (&byte, rest) = input.split_first()?;
    *input = rest;
    Some(byte)
}

/// A count of things that take at least one byte each.
fn get_count(input: &mut &[u8]) -> Option<usize> {
    let count = usize::try_from(get_varint(input)?).ok()?;
    (count <= input.len()).then_some(count)
}

fn put_run(out: &mut Vec<u8>, run: &Run) {
    put_varint(out, run.first.0);
    put_varint(out, run.last.0);
    put_varint(out, run.segments.len() as u64);
    for s in &run.segments {
        put_varint(out, s.extent.offset() / BLOCK as u64);
        put_varint(out, u64::from(s.data_len) / BLOCK as u64);
        put_varint(out, u64::from(s.meta_len) / BLOCK as u64);
        out.extend_from_slice(&s.meta_crc.to_le_bytes());
        put_varint(out, u64::from(s.messages));
        put_bytes(out, &s.min);
        put_bytes(out, &s.max);
        put_varint(out, s.samples.len() as u64);
        s.samples.iter().for_each(|k| put_bytes(out, k));
    }
    let mut spans = Vec::new();
    run.spans.encode(&mut spans);
    put_bytes(out, &spans);
}

/// The node's bytes without its checksum, a multiple of 4096 long. REQUIRES: every node below has its place.
pub(crate) fn encode(node: &Node) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out[4] = TYPE_NODE;
    put_varint(&mut out, u64::from(node.level));
    put_varint(&mut out, node.next_number);
    put_varint(&mut out, node.queue.len() as u64);
    for queued in &node.queue {
        put_varint(&mut out, queued.number);
        put_run(&mut out, &queued.run);
    }
    put_varint(&mut out, node.children.len() as u64);
    for child in &node.children {
        put_bytes(&mut out, &child.low);
        put_varint(&mut out, child.cursor);
        put_varint(&mut out, child.pending);
        match &child.target {
            Target::Leaf(leaf) => {
                out.push(0);
                put_varint(&mut out, leaf.deltas.len() as u64);
                leaf.deltas.iter().for_each(|run| put_run(&mut out, run));
                out.push(u8::from(leaf.base.is_some()));
                leaf.base.iter().for_each(|run| put_run(&mut out, run));
            }
            Target::Node(below) => {
                out.push(1);
                let Some(place) = below.place.get() else {
                    unreachable!("a node is encoded after the nodes below it were placed")
                };
                NodePointer::of(place).encode(&mut out);
            }
        }
    }
    let body = (out.len() - HEADER) as u32;
    out[8..12].copy_from_slice(&body.to_le_bytes());
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    out
}

/// Reads trees back, joining shared segments and taking ownership of every extent once.
pub(crate) struct NodeReader<'a> {
    pager: &'a Pager,
    segments: HashMap<u64, Arc<Segment>>,
}

impl<'a> NodeReader<'a> {
    pub(crate) fn new(pager: &'a Pager) -> Self {
        NodeReader { pager, segments: HashMap::new() }
    }

    /// The node at `pointer` with everything below it. Its pivots must lie in `low..high`, its level be `level` if given.
    pub(crate) fn read(
        &mut self,
        pointer: NodePointer,
        level: Option<u32>,
        low: &[u8],
        high: Option<&[u8]>,
    ) -> Result<Arc<Node>> {
        let extent = self.pager.adopt(pointer.offset, pointer.len)?;
        let page = self.pager.get(&extent, 0, pointer.len, pointer.crc, PageKind::Node)?;
        let lie = |detail: &str| corrupt(pointer.offset, detail);
        let body = page.get(8..12).and_then(|mut b| get_u32(&mut b)).unwrap_or(0) as usize;
        if page.get(4) != Some(&TYPE_NODE) {
            return Err(lie("page type is not that of a node"));
        }
        if page[5..8].iter().chain(&page[12..HEADER]).any(|&b| b != 0) {
            return Err(lie("reserved bytes are not zero"));
        }
        let mut input = page.get(HEADER..HEADER + body).ok_or_else(|| lie("the body is cut off"))?;
        let input = &mut input;
        let short = || corrupt(pointer.offset, "the body does not decode");

        let own_level = get_varint(input).ok_or_else(short)?;
        if own_level == 0 || own_level > MAX_LEVEL || level.is_some_and(|l| u64::from(l) != own_level) {
            return Err(lie("tree.levels_uniform: the level is not one below the parent's"));
        }
        let next_number = get_varint(input).ok_or_else(short)?;
        let mut queue: Vec<Queued> = Vec::new();
        for _ in 0..get_count(input).ok_or_else(short)? {
            let number = get_varint(input).ok_or_else(short)?;
            let run = self.run(input).ok_or_else(short)??;
            if number >= next_number
                || queue.last().is_some_and(|q| q.number >= number || q.run.last >= run.first)
            {
                return Err(lie("buffer.runs_ordered: numbers and Seqnos do not ascend"));
            }
            queue.push(Queued { number, run: Arc::new(run) });
        }
        let count = get_count(input).ok_or_else(short)?;
        let mut drafts: Vec<(Child, Option<NodePointer>)> = Vec::with_capacity(count);
        for i in 0..count {
            let child_low = get_bytes(input).ok_or_else(short)?;
            let sorted = match drafts.last() {
                None => i > 0 || *child_low == *low,
                Some((before, _)) => *before.low < *child_low,
            };
            if !sorted || high.is_some_and(|h| child_low >= h) {
                return Err(lie("node.pivots_sorted: the low keys do not ascend within the node's range"));
            }
            let cursor = get_varint(input).ok_or_else(short)?;
            let pending = get_varint(input).ok_or_else(short)?;
            if cursor > next_number {
                return Err(lie("buffer.cursor_monotone: a cursor is above the next run number"));
            }
            let (target, pointer) = match (get_u8(input).ok_or_else(short)?, own_level) {
                (0, 1) => (Target::Leaf(self.leaf(input).ok_or_else(short)??), None),
                (1, 2..) => {
                    let pointer = NodePointer::decode(input).ok_or_else(short)?;
                    (Target::Leaf(Leaf::new(None, Vec::new())), Some(pointer))
                }
                _ => return Err(lie("tree.levels_uniform: a child is not of the level below")),
            };
            drafts.push((Child { low: Arc::from(child_low), cursor, pending, target }, pointer));
        }
        if drafts.is_empty() || !input.is_empty() {
            return Err(lie("no children, or bytes left over"));
        }
        let ends: Vec<_> = drafts[1..].iter().map(|(c, _)| c.low.clone()).collect();
        let mut children = Vec::with_capacity(drafts.len());
        for (i, (mut child, below)) in drafts.into_iter().enumerate() {
            if let Some(below) = below {
                let child_high = ends.get(i).map(|k| &k[..]).or(high);
                child.target =
                    Target::Node(self.read(below, Some(own_level as u32 - 1), &child.low, child_high)?);
            }
            children.push(child);
        }
        let place = OnceLock::new();
        let _ = place.set(NodePlace { extent: Arc::new(extent), len: pointer.len, crc: pointer.crc });
        Ok(Arc::new(Node { level: own_level as u32, children, queue, next_number, place }))
    }

    fn leaf(&mut self, input: &mut &[u8]) -> Option<Result<Arc<Leaf>>> {
        let mut deltas = Vec::new();
        for _ in 0..get_count(input)? {
            match self.run(input)? {
                Ok(run) => deltas.push(Arc::new(run)),
                Err(e) => return Some(Err(e)),
            }
        }
        let base = match get_u8(input)? {
            0 => None,
            1 => match self.run(input)? {
                Ok(run) => Some(Arc::new(run)),
                Err(e) => return Some(Err(e)),
            },
            _ => return None,
        };
        Some(Ok(Leaf::new(base, deltas)))
    }

    fn run(&mut self, input: &mut &[u8]) -> Option<Result<Run>> {
        let (first, last) = (Seqno(get_varint(input)?), Seqno(get_varint(input)?));
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        for _ in 0..get_count(input)? {
            match self.segment(input)? {
                Ok(segment) => {
                    if segments.last().is_some_and(|s| s.max >= segment.min) {
                        return Some(Err(segment.corrupt(0, "run", "run.segments_ascend: segments overlap")));
                    }
                    segments.push(segment);
                }
                Err(e) => return Some(Err(e)),
            }
        }
        let spans = Spans::decode(get_bytes(input)?)?;
        (first <= last).then_some(Ok(Run { segments, spans, first, last }))
    }

    fn segment(&mut self, input: &mut &[u8]) -> Option<Result<Arc<Segment>>> {
        let offset = get_varint(input)?.checked_mul(BLOCK as u64)?;
        let data_len = u32::try_from(get_varint(input)?.checked_mul(BLOCK as u64)?).ok()?;
        let meta_len = u32::try_from(get_varint(input)?.checked_mul(BLOCK as u64)?).ok()?;
        let meta_crc = get_u32(input)?;
        let messages = u32::try_from(get_varint(input)?).ok()?;
        let (min, max) = (get_bytes(input)?, get_bytes(input)?);
        let mut samples: Vec<Box<[u8]>> = Vec::new();
        for _ in 0..get_count(input)? {
            samples.push(get_bytes(input)?.into());
        }
        let len = data_len.checked_add(meta_len)?;
        if data_len == 0 || meta_len == 0 || min > max {
            return None;
        }
        if let Some(known) = self.segments.get(&offset) {
            let same = known.data_len == data_len && known.meta_crc == meta_crc && *known.min == *min;
            return Some(if same {
                Ok(known.clone())
            } else {
                Err(corrupt(offset, "extent.owned_once: two different segments at one place"))
            });
        }
        let extent = match self.pager.adopt(offset, len) {
            Ok(extent) => Arc::new(extent),
            Err(e) => return Some(Err(e.into())),
        };
        let segment = Arc::new(Segment {
            extent,
            data_len,
            meta_len,
            meta_crc,
            messages,
            min: min.into(),
            max: max.into(),
            samples: samples.into(),
        });
        self.segments.insert(offset, segment.clone());
        Some(Ok(segment))
    }
}

#[cold]
fn corrupt(offset: u64, detail: &str) -> Error {
    Error::Corrupt {
        file: betree_pager::FILE_NAME.to_string(),
        offset,
        structure: "node",
        detail: detail.to_string(),
    }
}
