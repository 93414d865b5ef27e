//! Changes of the tree: pure functions from a root to a new root, by copying the path.
//!
//! No I/O happens here and nothing is waited for; the callers hold the keyspace's tree lock while they apply a change and
//! publish the new root. Splitting a node shares its queue between the halves by reference. The order of the steps of one change:
//! edit the one node it is about, drop what every child has passed (`prune`), split if too wide, then the same for its parent.
//!
//! Source of the shape: Bender et al., "An Introduction to Bε-trees and Write-Optimization" (;login:, October 2015);
//! buffers as queues of runs with per-child cursors after Conway et al., "SplinterDB" (USENIX ATC 2020).

use std::sync::Arc;

use crate::headed::Headed;
use crate::node::{Child, Leaf, LeafId, Node, Queued, Target};
use crate::options::TreeOptions;
use crate::run::Run;
use crate::spans::Spans;

/// A node being changed.
struct Draft {
    level: u32,
    children: Vec<Child>,
    queue: Vec<Queued>,
    next_number: u64,
}

impl Draft {
    fn of(node: &Node) -> Draft {
        Draft {
            level: node.level,
            children: node.children.clone(),
            queue: node.queue.clone(),
            next_number: node.next_number,
        }
    }

    fn finish(self) -> Arc<Node> {
        Arc::new(Node::new(self.level, self.children, self.queue, self.next_number))
    }

    /// The first key above child `index`.
    fn high_of<'a>(children: &'a [Child], index: usize, high: Option<&'a [u8]>) -> Option<&'a [u8]> {
        children.get(index + 1).map(|c| &c.low[..]).or(high)
    }

    /// Appends a run to the buffer.
    fn append(&mut self, run: Arc<Run>, high: Option<&[u8]>) {
        let number = self.next_number;
        for i in 0..self.children.len() {
            let child_high = Self::high_of(&self.children, i, high);
            let low = &self.children[i].low;
            if run.touches(low, child_high) {
                // A range delete frees what it covers below: worth as much as it frees.
                let covers = run.spans.covers(low, child_high);
                let freed = if covers { target_bytes(&self.children[i].target) } else { 0 };
                self.children[i].pending += run.bytes_in(low, child_high).max(1) + freed;
            } else if self.children[i].cursor == number {
                self.children[i].cursor = number + 1;
            }
        }
        self.next_number = number + 1;
        self.queue.push(Queued { number, run });
    }

    /// Drops runs, and segments of runs, that every child concerned has passed.
    fn prune(&mut self, high: Option<&[u8]>) {
        let children = &self.children;
        self.queue.retain_mut(|queued| {
            let number = queued.number;
            let waits = |low: &[u8], last: Option<&[u8]>| {
                // `last` is inclusive: whether any child from that of `low` to that of `last` has its cursor at or below the run.
                let from = children.partition_point(|c| *c.low <= *low).saturating_sub(1);
                let to =
                    last.map_or(children.len(), |l| children.partition_point(|c| *c.low <= *l)).max(from + 1);
                children[from..to].iter().any(|c| c.cursor <= number)
            };
            let run = &queued.run;
            let keep: Vec<bool> = run.segments.iter().map(|s| waits(&s.min, Some(&s.max))).collect();
            let spans_wait = run.spans.iter().any(|(start, end)| waits(start, Some(end)));
            if !spans_wait && !keep.contains(&true) {
                return false;
            }
            if keep.contains(&false) {
                let kept = run.segments.iter().zip(keep).filter(|(_, keep)| *keep);
                let segments = kept.map(|(segment, _)| segment.clone()).collect();
                let (spans, first, last) = (run.spans.clone(), run.first, run.last);
                queued.run = Arc::new(Run { segments, spans, first, last });
            }
            true
        });
        // A cursor stands at the first run that still concerns its child.
        for i in 0..self.children.len() {
            let child_high = Self::high_of(&self.children, i, high);
            let (low, cursor) = (&self.children[i].low, self.children[i].cursor);
            let first = self.queue.iter().find(|q| q.number >= cursor && q.run.touches(low, child_high));
            let cursor = first.map_or(self.next_number, |q| q.number);
            self.children[i].cursor = cursor;
            if cursor == self.next_number {
                self.children[i].pending = 0;
            }
        }
    }

    /// The node, or its halves if it has more than `fanout` children.
    fn split(mut self, fanout: usize, high: Option<&[u8]>) -> Vec<Arc<Node>> {
        self.prune(high);
        if self.children.len() <= fanout {
            return vec![self.finish()];
        }
        let parts = self.children.len().div_ceil(fanout * 2 / 3).max(2);
        let width = self.children.len().div_ceil(parts);
        let mut nodes = Vec::with_capacity(parts);
        let mut children = self.children.into_iter().peekable();
        while children.peek().is_some() {
            let part: Vec<Child> = children.by_ref().take(width).collect();
            let part_high = children.peek().map(|c| c.low.clone());
            let part_high = part_high.as_deref().or(high);
            let low = part[0].low.clone();
            let queue = self.queue.iter().filter(|q| q.run.touches(&low, part_high));
            let queue = queue
                .map(|q| Queued { number: q.number, run: Arc::new(q.run.slice(&low, part_high)) })
                .collect();
            let mut draft = Draft { level: self.level, children: part, queue, next_number: self.next_number };
            draft.prune(part_high);
            nodes.push(draft.finish());
        }
        nodes
    }
}

/// Bytes of pages below a child, counted without its ancestors' buffers.
fn target_bytes(target: &Target) -> u64 {
    match target {
        Target::Leaf(leaf) => leaf.base_bytes() + leaf.delta_bytes(),
        Target::Node(node) => {
            node.queue.iter().map(|q| q.run.bytes()).sum::<u64>()
                + node.children.iter().map(|c| target_bytes(&c.target)).sum::<u64>()
        }
    }
}

/// Changes a draft: told which child the key belongs to and where the node's range ends.
type Change<'a> = dyn FnMut(&mut Draft, usize, Option<&[u8]>) + 'a;

/// Edits the node that `reach` (from the root: key and number of steps down) names and rebuilds the path.
fn edit(
    node: &Arc<Node>,
    high: Option<&[u8]>,
    key: &[u8],
    steps: u32,
    options: &TreeOptions,
    change: &mut Change<'_>,
) -> Vec<Arc<Node>> {
    let mut draft = Draft::of(node);
    let index = node.child_of(key);
    if steps == 0 {
        change(&mut draft, index, high);
    } else if let Target::Node(below) = &node.children[index].target {
        let child = &node.children[index];
        let made = edit(below, node.high_of(index, high), key, steps - 1, options, change);
        replace(&mut draft, index, child, made);
    }
    merge_small(&mut draft, options);
    draft.split(options.fanout, high)
}

/// Puts the nodes that came of a child in its place. Their pending bytes share the child's.
fn replace(draft: &mut Draft, index: usize, child: &Child, made: Vec<Arc<Node>>) {
    let pending = child.pending / made.len().max(1) as u64;
    let children = made.into_iter().enumerate().map(|(i, node)| Child {
        // The first keeps the child's pivot, though the node's own first pivot equals it anyway.
        low: if i == 0 { child.low.clone() } else { node.low().clone() },
        cursor: child.cursor,
        pending,
        target: Target::Node(node),
    });
    draft.children.splice(index..=index, children.collect::<Vec<_>>());
}

/// Joins neighbouring nodes below `draft` that are small together, have empty buffers and the same runs waiting above them. A flush into one of them that is
/// under way comes to nothing then ([`descend`]).
fn merge_small(draft: &mut Draft, options: &TreeOptions) {
    let mut i = 0;
    while i + 1 < draft.children.len() {
        let (a, b) = (&draft.children[i], &draft.children[i + 1]);
        if let (Target::Node(x), Target::Node(y)) = (&a.target, &b.target)
            && x.children.len() + y.children.len() <= options.fanout / 2
            && x.queue.is_empty()
            && y.queue.is_empty()
            && a.cursor == b.cursor
        {
            let mut joined = Draft::of(x);
            joined.next_number = x.next_number.max(y.next_number);
            joined.children.extend(y.children.iter().cloned());
            for child in &mut joined.children {
                child.cursor = joined.next_number;
            }
            let child = Child {
                low: a.low.clone(),
                cursor: a.cursor,
                pending: a.pending + b.pending,
                target: Target::Node(joined.finish()),
            };
            draft.children.splice(i..=i + 1, [child]);
        } else {
            i += 1;
        }
    }
}

/// Makes one root of the nodes that came of the old one, growing the tree while there are several and shrinking it
/// while the root has a single inner child and nothing in its buffer.
fn crown(mut nodes: Vec<Arc<Node>>, options: &TreeOptions) -> Arc<Node> {
    while nodes.len() > 1 {
        let level = nodes[0].level + 1;
        let children = nodes
            .into_iter()
            .map(|n| Child { low: n.low().clone(), cursor: 0, pending: 0, target: Target::Node(n) })
            .collect();
        nodes = Draft { level, children, queue: Vec::new(), next_number: 0 }.split(options.fanout, None);
    }
    let mut root = nodes.pop().unwrap_or_else(Node::empty_root);
    while root.children.len() == 1 && root.queue.is_empty() {
        let Target::Node(below) = &root.children[0].target else { break };
        root = below.clone();
    }
    root
}

/// A new root with `run`, newer than everything in the tree, in the root's buffer.
pub(crate) fn append(root: &Arc<Node>, run: Arc<Run>, options: &TreeOptions) -> Arc<Node> {
    let made = edit(root, None, b"", 0, options, &mut |draft, _, high| draft.append(run.clone(), high));
    crown(made, options)
}

/// What a flush into a leaf, or the compaction of one, made of it.
pub(crate) struct LeafChange {
    /// The leaf it was.
    pub old: LeafId,
    /// A key in the leaf's range.
    pub key: Vec<u8>,
    /// What it became: at least one, the first with the old one's low key.
    pub new: Vec<(Option<Vec<u8>>, Arc<Leaf>)>,
    /// The cursor that the flush caught up to.
    pub cursor: u64,
    /// Pending bytes that it took over.
    pub taken: u64,
}

/// A new root with a leaf replaced; `None` if the leaf is no longer there.
pub(crate) fn replace_leaf(
    root: &Arc<Node>,
    change: &LeafChange,
    options: &TreeOptions,
) -> Option<Arc<Node>> {
    let steps = root.level - 1;
    let mut found = false;
    let made = edit(root, None, &change.key, steps, options, &mut |draft, index, _| {
        let old = draft.children[index].clone();
        found = matches!(&old.target, Target::Leaf(leaf) if leaf.id == change.old);
        if !found {
            return;
        }
        let pending = old.pending.saturating_sub(change.taken) / change.new.len().max(1) as u64;
        let children = change.new.iter().map(|(low, leaf)| Child {
            low: low.as_ref().map_or_else(|| old.low.clone(), |l| Headed::new(Arc::from(&l[..]))),
            cursor: old.cursor.max(change.cursor),
            pending,
            target: Target::Leaf(leaf.clone()),
        });
        draft.children.splice(index..=index, children.collect::<Vec<_>>());
        join_small_leaves(draft, options);
    });
    found.then(|| crown(made, options))
}

/// Joins neighbouring leaves that are small together, have no deltas and nothing pending. Their segments become one
/// base by reference.
fn join_small_leaves(draft: &mut Draft, options: &TreeOptions) {
    let next = draft.next_number;
    let settled = |child: &Child| match &child.target {
        Target::Leaf(leaf) if leaf.deltas.is_empty() && child.cursor == next => Some(leaf.clone()),
        _ => None,
    };
    let mut i = 0;
    while i + 1 < draft.children.len() {
        let joined = match (settled(&draft.children[i]), settled(&draft.children[i + 1])) {
            (Some(a), Some(b)) if a.base_bytes() + b.base_bytes() <= options.leaf_bytes as u64 / 2 => {
                let runs = || a.base.iter().chain(&b.base);
                Leaf::of_base(
                    Some(Arc::new(Run {
                        segments: runs().flat_map(|r| r.segments.iter().cloned()).collect(),
                        spans: Spans::default(),
                        first: runs().map(|r| r.first).min().unwrap_or_default(),
                        last: runs().map(|r| r.last).max().unwrap_or_default(),
                    })),
                    a.settled.max(b.settled),
                )
            }
            _ => {
                i += 1;
                continue;
            }
        };
        draft.children[i].target = Target::Leaf(joined);
        draft.children.remove(i + 1);
    }
}

/// What a flush from a node into an inner child does.
pub(crate) struct Descent {
    /// The child's low key.
    pub key: Vec<u8>,
    /// The end of the range that was merged. A child that reaches further was joined with its neighbour since, for which runs wait that are not in it.
    pub high: Option<Vec<u8>>,
    /// Level of the parent.
    pub level: u32,
    /// What the pending runs became; `None`: they go down by reference.
    pub merged: Option<Run>,
    /// The cursor that the flush started from and the one it caught up to.
    pub from: u64,
    pub cursor: u64,
}

/// A new root in which the runs pending for an inner child were passed on to it; `None` if it is not as the task found it.
pub(crate) fn descend(root: &Arc<Node>, change: &Descent, options: &TreeOptions) -> Option<Arc<Node>> {
    if root.level < change.level || change.level < 2 {
        return None;
    }
    let mut done = false;
    let made =
        edit(root, None, &change.key, root.level - change.level, options, &mut |draft, index, high| {
            let child = draft.children[index].clone();
            let Target::Node(below) = &child.target else { return };
            let child_high = Draft::high_of(&draft.children, index, high).map(<[u8]>::to_vec);
            let child_high = child_high.as_deref();
            let ends_within = match (child_high, change.high.as_deref()) {
                (_, None) => true,
                (None, Some(_)) => false,
                (Some(child), Some(merged)) => child <= merged,
            };
            if child.cursor != change.from || *child.low != *change.key || !ends_within {
                return;
            }
            done = true;
            let mut receiver = Draft::of(below);
            match &change.merged {
                Some(run) if run.is_empty() => {}
                Some(run) => receiver.append(Arc::new(run.slice(&child.low, child_high)), child_high),
                None => {
                    for queued in
                        draft.queue.iter().filter(|q| q.number >= child.cursor && q.number < change.cursor)
                    {
                        let slice = queued.run.slice(&child.low, child_high);
                        if !slice.is_empty() {
                            receiver.append(Arc::new(slice), child_high);
                        }
                    }
                }
            }
            let parts = receiver.split(options.fanout, child_high);
            let moved = Child { cursor: change.cursor, pending: 0, ..child.clone() };
            replace(draft, index, &moved, parts);
        });
    done.then(|| crown(made, options))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Seqno;

    fn child(low: &str, target: Target) -> Child {
        Child { low: Headed::new(Arc::from(low.as_bytes())), cursor: 0, pending: 1, target }
    }

    fn deleting(from: &[u8], to: &[u8]) -> Run {
        let mut spans = Spans::default();
        spans.insert(from, to);
        Run { segments: [].into_iter().collect(), spans, first: Seqno(1), last: Seqno(1) }
    }

    /// A root with one run that waits for both of its children.
    fn two_small_nodes() -> (Arc<Node>, Run) {
        let node = |lows: [&str; 2]| {
            let leaves = lows.map(|low| child(low, Target::Leaf(Leaf::of_base(None, Seqno(0)))));
            Target::Node(Arc::new(Node::new(1, leaves.into(), Vec::new(), 0)))
        };
        let run = deleting(b"a", b"z");
        let children = vec![child("", node(["", "c"])), child("m", node(["m", "p"]))];
        let queue = vec![Queued { number: 0, run: Arc::new(run.clone()) }];
        (Arc::new(Node::new(2, children, queue, 1)), run)
    }

    fn flush(low: &[u8], high: Option<&[u8]>, run: &Run) -> Descent {
        let (key, high_key) = (low.to_vec(), high.map(<[u8]>::to_vec));
        Descent { key, high: high_key, level: 2, merged: Some(run.slice(low, high)), from: 0, cursor: 1 }
    }

    #[test]
    fn a_flush_into_a_node_that_was_joined_with_its_neighbour_meanwhile_takes_nothing_from_the_neighbour() {
        let options = TreeOptions::default();
        let (root, run) = two_small_nodes();
        let flushes = [flush(b"", Some(b"m"), &run), flush(b"m", None, &run)];
        for (i, change) in flushes.iter().enumerate() {
            let made = descend(&root, change, &options).expect("it is as the task found it");
            assert_eq!(made.children.len(), 2);
            assert_eq!((made.children[i].cursor, made.children[1 - i].cursor), (1, 0));
        }
        // Any change of the tree joins the two.
        let joined = append(&root, Arc::new(deleting(b"x", b"y")), &options);
        assert_eq!((joined.children.len(), joined.children[0].cursor), (1, 0));
        for change in &flushes {
            assert!(descend(&joined, change, &options).is_none());
        }
    }
}
