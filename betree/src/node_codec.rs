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
//! target  := 0u8 | settled | count | run*    a leaf: since when absence says something, its deltas, oldest first …
//!                | 0u8 or 1u8 run            … and its base, if any
//!          | 1u8 | offset/4096 | length/4096 | checksum u32     a node
//! bytes   := length | bytes
//! ```
//!
//! A segment that several runs share is written with each; reading joins them again by their offset. Decoding (`stored`) bounds
//! every count by the bytes left; a node that breaks `node.pivots_sorted`, `buffer.runs_ordered` or `tree.levels_uniform` is refused.

use std::collections::HashMap;
use std::sync::Arc;

use betree_pager::{BLOCK, PageKind, Pager};

use crate::headed::Headed;
use crate::message::{get_varint, put_varint};
use crate::node::{Child, Leaf, Node, NodePlace, Queued, Target};
use crate::page::Spread;
use crate::pins::Pin;
use crate::run::Run;
use crate::segment::Segment;
use crate::stored::{HEADER, StoredNode, StoredRun, StoredSegment, StoredTarget};
use crate::{Error, Result};

/// Page type of nodes.
pub(crate) const TYPE_NODE: u8 = 3;

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

    /// Takes possession of what it points to.
    pub(crate) fn adopt(&self, pager: &Pager) -> Result<Arc<NodePlace>> {
        let extent = Arc::new(pager.adopt(self.offset, self.len)?);
        Ok(Arc::new(NodePlace { extent, len: self.len, crc: self.crc }))
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

pub(crate) fn get_u8(input: &mut &[u8]) -> Option<u8> {
    let (&byte, rest) = input.split_first()?;
    *input = rest;
    Some(byte)
}

/// A count of things that take at least one byte each.
pub(crate) fn get_count(input: &mut &[u8]) -> Option<usize> {
    let count = usize::try_from(get_varint(input)?).ok()?;
    (count <= input.len()).then_some(count)
}

fn put_run(out: &mut Vec<u8>, run: &Run) {
    put_varint(out, run.first.0);
    put_varint(out, run.last.0);
    put_varint(out, run.segments.len() as u64);
    for s in run.segments.iter() {
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
                put_varint(&mut out, leaf.settled.0);
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
        let stored = StoredNode::decode(&page, pointer.offset)?;
        let mut fault = None;
        stored.faults(level.map(u64::from), low, high, &mut |what| {
            fault.get_or_insert(what);
        });
        if let Some(fault) = fault {
            return Err(corrupt(pointer.offset, &fault));
        }
        let mut queue = Vec::with_capacity(stored.queue.len());
        for (number, run) in &stored.queue {
            queue.push(Queued { number: *number, run: self.run(run)? });
        }
        let mut children = Vec::with_capacity(stored.children.len());
        let own_level = stored.level as u32;
        for (i, child) in stored.children.iter().enumerate() {
            let target = match &child.target {
                StoredTarget::Leaf { settled, deltas, base } => {
                    let base = base.as_ref().map(|run| self.run(run)).transpose()?;
                    let deltas = deltas.iter().map(|run| self.run(run)).collect::<Result<_>>()?;
                    Target::Leaf(Leaf::new(base, deltas, 0, 0, *settled))
                }
                StoredTarget::Node(below) => {
                    let child_high = stored.high_of(i, high);
                    Target::Node(self.read(*below, Some(own_level - 1), &child.low, child_high)?)
                }
            };
            let low = Arc::from(&child.low[..]);
            children.push(Child {
                low: Headed::new(low),
                cursor: child.cursor,
                pending: child.pending,
                target,
            });
        }
        let node = Node::new(own_level, children, queue, stored.next_number);
        let _ = node.place.set(NodePlace { extent: Arc::new(extent), len: pointer.len, crc: pointer.crc });
        Ok(Arc::new(node))
    }

    fn run(&mut self, stored: &StoredRun) -> Result<Arc<Run>> {
        let segments = stored.segments.iter().map(|s| self.segment(s)).collect::<Result<_>>()?;
        Ok(Arc::new(Run { segments, spans: stored.spans.clone(), first: stored.first, last: stored.last }))
    }

    fn segment(&mut self, stored: &StoredSegment) -> Result<Arc<Segment>> {
        let offset = stored.offset;
        if let Some(known) = self.segments.get(&offset) {
            let same = known.data_len == stored.data_len
                && known.meta_crc == stored.meta_crc
                && *known.min == *stored.min;
            return if same {
                Ok(known.clone())
            } else {
                Err(corrupt(offset, "extent.owned_once: two different segments at one place"))
            };
        }
        let segment = Arc::new(Segment {
            extent: Arc::new(self.pager.adopt(offset, stored.len())?),
            data_len: stored.data_len,
            meta_len: stored.meta_len,
            meta_crc: stored.meta_crc,
            messages: stored.messages,
            min: Headed::new(stored.min.clone()),
            max: Headed::new(stored.max.clone()),
            spread: Spread::new(&stored.min, &stored.max),
            samples: stored.samples.clone(),
            pin: Pin::default(),
        });
        self.segments.insert(offset, segment.clone());
        Ok(segment)
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
