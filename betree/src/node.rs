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

use crate::headed::{Headed, Heads, head_of};
use crate::options::TreeOptions;
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

/// Bytes that iterators read from the device because what waits for a vertex, or lies over a leaf's base, was not merged with what is below yet. Never
/// stored, and nothing again in the vertex that takes this one's place. At rest it decides what is merged (`scheduler::due`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Crossed(Arc<AtomicU64>);

impl Crossed {
    pub(crate) fn add(&self, bytes: u64) {
        self.0.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Relaxed)
    }
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
    /// Of the messages that came last: bytes of the base that they overwrote or deleted, in percent of their own. Never stored.
    pub overwriting_percent: u64,
    /// Deletes up to here may have vanished with what they deleted: absence from the runs says nothing of the time before.
    pub settled: Seqno,
    pub crossed: Crossed,
}

impl Leaf {
    /// A leaf without deltas.
    pub(crate) fn of_base(base: Option<Arc<Run>>, settled: Seqno) -> Arc<Leaf> {
        Leaf::new(base, Vec::new(), 0, 0, settled)
    }

    pub(crate) fn new(
        base: Option<Arc<Run>>,
        deltas: Vec<Arc<Run>>,
        garbage: u64,
        overwriting_percent: u64,
        settled: Seqno,
    ) -> Arc<Leaf> {
        let base = base.filter(|r| !r.is_empty());
        Arc::new(Leaf {
            id: LeafId::fresh(),
            base,
            deltas,
            garbage,
            overwriting_percent,
            settled,
            crossed: Crossed::default(),
        })
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

    /// Estimate of the bytes of the base that `arriving` bytes of messages overwrite or delete: as many as of those before them.
    pub(crate) fn garbage_of(&self, arriving: u64) -> u64 {
        arriving * self.overwriting_percent / 100
    }

    /// Whether most of what came last overwrote or deleted something.
    pub(crate) fn is_overwritten(&self) -> bool {
        self.overwriting_percent >= 50
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
    /// Of the children's low keys.
    lows: Heads,
    pub queue: Vec<Queued>,
    pub next_number: u64,
    pub place: OnceLock<NodePlace>,
    pub crossed: Crossed,
    /// What [`Node::census`] found.
    census: OnceLock<Census>,
}

/// What waits for the children of one node, those of its descendants not counted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Census {
    /// The largest score of a child, and the average of all.
    pub heaviest: f64,
    pub average: f64,
    /// Bytes overdue.
    pub overdue: u64,
    /// Bytes that the largest single flush or compaction may write.
    pub largest: u64,
}

/// Runs that may wait for a child. A tenth fewer for a leaf that they mostly overwrite: there they are not what is stored, but on top of it. All such
/// leaves have the same limit, so that neighbours come due one after the other, and a segment that several of them share is soon given back.
fn runs_at_most(child: &Target, options: &TreeOptions) -> usize {
    match child {
        Target::Leaf(leaf) if leaf.is_overwritten() => options.max_runs - options.max_runs / 10,
        Target::Leaf(_) | Target::Node(_) => options.max_runs,
    }
}

impl Node {
    /// The share of its limits that child `index` has used up: runs pending, and bytes pending against half a leaf; 0: nothing is pending.
    /// `all_due`: nothing may be left pending, and no delta.
    pub(crate) fn score(&self, index: usize, options: &TreeOptions, all_due: bool) -> f64 {
        let child = &self.children[index];
        let runs = self.queue.len() - self.queue.partition_point(|q| q.number < child.cursor);
        let rough = all_due && matches!(&child.target, Target::Leaf(l) if !l.deltas.is_empty());
        let least = if all_due && (runs > 0 || rough) { 1.0 } else { 0.0 };
        if runs == 0 {
            return least;
        }
        let by_runs = runs as f64 / runs_at_most(&child.target, options) as f64;
        by_runs.max(child.pending as f64 / (options.leaf_bytes as f64 / 2.0)).max(least)
    }

    /// What waits for its children. Found once per node, since a change makes new nodes.
    pub(crate) fn census(&self, options: &TreeOptions) -> &Census {
        self.census.get_or_init(|| self.take_census(options, false))
    }

    /// As [`Node::census`], of this moment.
    pub(crate) fn take_census(&self, options: &TreeOptions, all_due: bool) -> Census {
        let mut census = Census::default();
        let (mut sum, mut pending) = (0.0, 0);
        for (i, child) in self.children.iter().enumerate() {
            let score = self.score(i, options, all_due);
            if score == 0.0 {
                continue;
            }
            let below = match &child.target {
                Target::Leaf(leaf) => leaf.base_bytes() + leaf.delta_bytes(),
                Target::Node(_) => 0,
            };
            census.heaviest = census.heaviest.max(score);
            census.largest = census.largest.max(child.pending + below);
            sum += score;
            pending += child.pending;
            if score >= 1.0 {
                census.overdue += child.pending;
            }
        }
        census.average = sum / self.children.len() as f64;
        if census.average > 0.5 && census.average < 1.0 {
            census.overdue += (pending as f64 * (census.average - 0.5)) as u64;
        }
        census
    }

    /// A node that no checkpoint has needed yet.
    pub(crate) fn new(level: u32, children: Vec<Child>, queue: Vec<Queued>, next_number: u64) -> Node {
        let (place, census) = (OnceLock::new(), OnceLock::new());
        let lows = children.iter().map(|child| child.low.head()).collect();
        Node { level, children, lows, queue, next_number, place, crossed: Crossed::default(), census }
    }

    /// A tree without any message.
    pub(crate) fn empty_root() -> Arc<Node> {
        let leaf = Target::Leaf(Leaf::of_base(None, Seqno(0)));
        let child = Child { low: Headed::new(Arc::from(&b""[..])), cursor: 0, pending: 0, target: leaf };
        Arc::new(Node::new(1, vec![child], Vec::new(), 0))
    }

    /// Smallest key that belongs to it.
    pub(crate) fn low(&self) -> &Pivot {
        &self.children[0].low
    }

    /// The child to which `key` belongs.
    #[inline]
    pub(crate) fn child_of(&self, key: &[u8]) -> usize {
        self.lows.partition_point(head_of(key), |at| *self.children[at].low <= *key).saturating_sub(1)
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

    /// Number of leaves below.
    pub(crate) fn leaves(&self) -> u64 {
        self.children
            .iter()
            .map(|child| match &child.target {
                Target::Node(node) => node.leaves(),
                Target::Leaf(_) => 1,
            })
            .sum()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spans::Spans;

    #[test]
    fn a_leaf_that_is_overwritten_comes_due_with_fewer_runs() {
        let options = TreeOptions::default();
        let score = |overwriting: u64, runs: usize| {
            let leaf = Leaf::new(None, Vec::new(), 0, overwriting, Seqno(0));
            let child = Child {
                low: Headed::new(Arc::from(&b""[..])),
                cursor: 0,
                pending: 1,
                target: Target::Leaf(leaf),
            };
            let run = Run {
                segments: std::iter::empty().collect(),
                spans: Spans::default(),
                first: Seqno(0),
                last: Seqno(0),
            };
            let queue =
                (0..runs as u64).map(|number| Queued { number, run: Arc::new(run.clone()) }).collect();
            Node::new(1, vec![child], queue, runs as u64).score(0, &options, false)
        };
        let most = options.max_runs;
        assert!(score(0, most - 1) < 1.0 && score(0, most) >= 1.0);
        assert!(score(90, most - 2) < 1.0 && score(90, most - 1) >= 1.0);
    }
}
