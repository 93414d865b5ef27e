//! The trunk: nodes, children and leaves as immutable values.
//!
//! A node owns a **buffer**: a queue of runs, oldest first, each with a number. Each child has a **cursor**: the runs
//! with numbers below it were passed on to that child already. What is above the cursor and in the child's key range is
//! pending for it. A leaf is one base run and some delta runs, all newer ones after.
//!
//! A change makes new nodes along the path to the root (`tree`); whoever holds an old root keeps seeing the old tree, and
//! keeps its runs' extents alive.
//!
//! Invariants: `node.pivots_sorted` (children's low keys strictly ascend, the first equals the node's own low key),
//! `buffer.cursor_monotone` (a cursor never exceeds the next run number and never moves back), `buffer.runs_ordered`
//! (numbers and Seqnos ascend), `tree.seqno_falls_downwards` (on every path, what lies higher is newer),
//! `tree.levels_uniform` (all leaves have the same depth).

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use betree_pager::Extent;

use crate::headed::{Headed, head_of};
use crate::run::Run;
use crate::segment::Segment;
use crate::types::Seqno;

/// Names a leaf in this process, so that a task finds what it worked on. Never stored.
#[derive(Copy, Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub(crate) struct LeafId(u64);

impl LeafId {
    pub(crate) fn fresh() -> LeafId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        LeafId(NEXT.fetch_add(1, Relaxed))
    }
}

/// A key that pivots share.
pub(crate) type Pivot = Headed<Arc<[u8]>>;

/// A run in a node's buffer.
#[derive(Debug, Clone)]
pub(crate) struct Queued {
    pub number: u64,
    pub run: Arc<Run>,
}

/// What hangs below a pivot.
#[derive(Debug, Clone)]
pub(crate) enum Target {
    Node(Arc<Node>),
    Leaf(Arc<Leaf>),
}

/// A child of a node.
#[derive(Debug, Clone)]
pub(crate) struct Child {
    /// Smallest key that belongs to the child.
    pub low: Pivot,
    /// First run number of the parent's buffer that has not been passed on to it.
    pub cursor: u64,
    /// Estimate of the bytes pending for it.
    pub pending: u64,
    pub target: Target,
}

/// Bottom vertex of the tree.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub id: LeafId,
    pub base: Option<Arc<Run>>,
    /// Oldest first.
    pub deltas: Vec<Arc<Run>>,
    /// Estimate of the bytes of the base that the deltas overwrite or delete, and of the deletes among them. Never stored: after
    /// opening it counts from nothing again.
    pub garbage: u64,
    /// Deletes up to here may have vanished with what they deleted: absence from the runs says nothing of the time before. Never stored.
    pub settled: Seqno,
}

impl Leaf {
    /// A leaf without deltas.
    pub(crate) fn of_base(base: Option<Arc<Run>>, settled: Seqno) -> Arc<Leaf> {
        Leaf::new(base, Vec::new(), 0, settled)
    }

    pub(crate) fn new(
        base: Option<Arc<Run>>,
        deltas: Vec<Arc<Run>>,
        garbage: u64,
        settled: Seqno,
    ) -> Arc<Leaf> {
        let base = base.filter(|r| !r.is_empty());
        Arc::new(Leaf { id: LeafId::fresh(), base, deltas, garbage, settled })
    }

    /// Its runs, newest first.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.deltas.iter().rev().chain(&self.base)
    }

    pub(crate) fn base_bytes(&self) -> u64 {
        self.base.as_ref().map_or(0, |r| r.bytes())
    }

    pub(crate) fn delta_bytes(&self) -> u64 {
        self.deltas.iter().map(|r| r.bytes()).sum()
    }
}

/// Where a node lies in the data file: owned by the node, written by the checkpoint that first needed it.
#[derive(Debug)]
pub(crate) struct NodePlace {
    pub extent: Arc<Extent>,
    pub len: u32,
    pub crc: u32,
}

/// Trunk vertex.
#[derive(Debug)]
pub(crate) struct Node {
    /// 1: its children are leaves.
    pub level: u32,
    pub children: Vec<Child>,
    pub queue: Vec<Queued>,
    pub next_number: u64,
    pub place: OnceLock<NodePlace>,
}

impl Node {
    /// A tree without any message.
    pub(crate) fn empty_root() -> Arc<Node> {
        let leaf = Target::Leaf(Leaf::of_base(None, Seqno(0)));
        let child = Child { low: Headed::new(Arc::from(&b""[..])), cursor: 0, pending: 0, target: leaf };
        Arc::new(Node {
            level: 1,
            children: vec![child],
            queue: Vec::new(),
            next_number: 0,
            place: OnceLock::new(),
        })
    }

    /// Smallest key that belongs to it.
    pub(crate) fn low(&self) -> &Pivot {
        &self.children[0].low
    }

    /// The child to which `key` belongs.
    #[inline]
    pub(crate) fn child_of(&self, key: &[u8]) -> usize {
        let head = head_of(key);
        self.children.partition_point(|c| c.low.compare(head, key).is_le()).saturating_sub(1)
    }

    /// The first key above child `index`: its sibling's low key, or the node's own upper end.
    pub(crate) fn high_of<'a>(&'a self, index: usize, high: Option<&'a [u8]>) -> Option<&'a [u8]> {
        self.children.get(index + 1).map(|c| &c.low[..]).or(high)
    }

    /// Runs pending for child `index`, newest first (whether or not they touch its range).
    #[inline]
    pub(crate) fn pending_runs(&self, index: usize) -> impl Iterator<Item = &Queued> {
        let cursor = self.children[index].cursor;
        self.queue.iter().rev().take_while(move |q| q.number >= cursor)
    }

    /// Visits every node below and this one, parents first.
    pub(crate) fn visit_nodes<'a>(self: &'a Arc<Node>, visit: &mut dyn FnMut(&'a Arc<Node>)) {
        visit(self);
        for child in &self.children {
            if let Target::Node(node) = &child.target {
                node.visit_nodes(visit);
            }
        }
    }

    /// Visits every leaf with its key range.
    pub(crate) fn visit_leaves<'a>(
        self: &'a Arc<Node>,
        high: Option<&'a [u8]>,
        visit: &mut dyn FnMut(&'a Arc<Leaf>, &'a [u8], Option<&'a [u8]>),
    ) {
        for (i, child) in self.children.iter().enumerate() {
            let child_high = self.high_of(i, high);
            match &child.target {
                Target::Node(node) => node.visit_leaves(child_high, visit),
                Target::Leaf(leaf) => visit(leaf, &child.low, child_high),
            }
        }
    }

    /// Visits every run (shared ones more than once).
    pub(crate) fn visit_runs<'a>(self: &'a Arc<Node>, visit: &mut dyn FnMut(&'a Arc<Run>)) {
        self.queue.iter().for_each(|q| visit(&q.run));
        for child in &self.children {
            match &child.target {
                Target::Node(node) => node.visit_runs(visit),
                Target::Leaf(leaf) => leaf.runs().for_each(&mut *visit),
            }
        }
    }

    /// Visits every segment (shared ones more than once).
    pub(crate) fn visit_segments<'a>(self: &'a Arc<Node>, visit: &mut dyn FnMut(&'a Arc<Segment>)) {
        self.visit_runs(&mut |run| run.segments.iter().for_each(&mut *visit));
    }
}
