//! Trunk and runs: the shape of every node (`stored` names what does not hold), and `tree.seqno_falls_downwards` along every path.
//!
//! The same checks serve a tree in memory and one on disk; they differ in how they come to the nodes below. Called by the checker.

use std::sync::Arc;

use super::Checker;
use crate::node::{Node, Target};
use crate::node_codec::NodePointer;
use crate::stored::{StoredNode, StoredRun, StoredTarget};

/// The place of a node in the tree: what its parents say of it.
struct Spot<'a> {
    keyspace: &'a str,
    level: Option<u64>,
    low: &'a [u8],
    high: Option<&'a [u8]>,
    /// Runs above that are pending for it.
    above: &'a [Arc<StoredRun>],
}

impl Spot<'_> {
    fn name(&self, node: &StoredNode) -> String {
        format!("keyspace {:?} node {:?} level {}", self.keyspace, lossy(self.low), node.level)
    }
}

fn lossy(key: &[u8]) -> String {
    String::from_utf8_lossy(&key[..key.len().min(64)]).into_owned()
}

impl Checker<'_> {
    /// A tree in memory with all its segments.
    pub(super) fn tree_in_memory(&mut self, keyspace: &str, root: &Arc<Node>) {
        let spot = Spot { keyspace, level: None, low: b"", high: None, above: &[] };
        self.node_in_memory(&spot, root);
    }

    fn node_in_memory(&mut self, spot: &Spot<'_>, node: &Arc<Node>) {
        let stored = StoredNode::of(node);
        if let Some(place) = node.place.get() {
            self.own(place.extent.offset(), place.len, place.crc);
        }
        let children = self.node(spot, &stored);
        for (i, above) in children.into_iter().enumerate() {
            let (Some(child), Some(stored_child)) = (node.children.get(i), stored.children.get(i)) else {
                continue;
            };
            if let Target::Node(below) = &child.target {
                let spot = Spot {
                    keyspace: spot.keyspace,
                    level: stored.level.checked_sub(1),
                    low: &stored_child.low,
                    high: stored.high_of(i, spot.high),
                    above: &above,
                };
                self.node_in_memory(&spot, below);
            }
        }
    }

    /// What the durable checkpoint wrote of a tree: each node against what is in memory.
    pub(super) fn durable_nodes(&mut self, root: &Arc<Node>) {
        root.visit_nodes(&mut |node| {
            let Some(place) = node.place.get() else { return };
            if !self.own(place.extent.offset(), place.len, place.crc) {
                return;
            }
            let name = format!("checkpoint node {:?} level {}", lossy(node.low()), node.level);
            let Some(page) = self.read(NodePointer::of(place), &name) else { return };
            match StoredNode::decode(&page, place.extent.offset()) {
                Ok(found) if found == StoredNode::of(node) => {}
                Ok(_) => self.problem(format!("page.sealed: {name}: another node lies there")),
                Err(error) => self.unreadable(&name, error),
            }
        });
    }

    /// The extents of the durable checkpoint, which are owned though the trees of now may not have them any more
    /// (`checkpoint.holds_its_extents`).
    pub(super) fn durable_segments(&mut self, root: &Arc<Node>) {
        root.visit_segments(&mut |segment| {
            self.own(segment.extent.offset(), segment.extent.len(), segment.meta_crc);
        });
    }

    /// A tree on disk.
    pub(super) fn tree_on_disk(&mut self, keyspace: &str, root: NodePointer) {
        let spot = Spot { keyspace, level: None, low: b"", high: None, above: &[] };
        self.node_on_disk(&spot, root);
    }

    fn node_on_disk(&mut self, spot: &Spot<'_>, pointer: NodePointer) {
        let name = format!("keyspace {:?} node {:?}", spot.keyspace, lossy(spot.low));
        if !self.own(pointer.offset, pointer.len, pointer.crc) {
            // Nodes are not shared: going down again could go round in a circle.
            return self.problem(format!("extent.owned_once: {name}: a second parent of the same node"));
        }
        let Some(page) = self.read(pointer, &name) else { return };
        let node = match StoredNode::decode(&page, pointer.offset) {
            Ok(node) => node,
            Err(error) => return self.unreadable(&name, error),
        };
        drop(page);
        let children = self.node(spot, &node);
        for (i, above) in children.into_iter().enumerate() {
            let Some(child) = node.children.get(i) else { continue };
            if let StoredTarget::Node(below) = &child.target
                && node.level > 1
            {
                let spot = Spot {
                    keyspace: spot.keyspace,
                    level: Some(node.level - 1),
                    low: &child.low,
                    high: node.high_of(i, spot.high),
                    above: &above,
                };
                self.node_on_disk(&spot, *below);
            }
        }
    }

    /// Checks a node and its leaves. For each child the runs that are above it.
    fn node(&mut self, spot: &Spot<'_>, node: &StoredNode) -> Vec<Vec<Arc<StoredRun>>> {
        self.report.nodes += 1;
        let name = spot.name(node);
        let mut faults = Vec::new();
        node.faults(spot.level, spot.low, spot.high, &mut |what| {
            // The invariant's name goes first, then the place.
            faults.push(match what.split_once(": ") {
                Some((invariant, detail)) => format!("{invariant}: {name}: {detail}"),
                None => format!("{name}: {what}"),
            });
        });
        faults.into_iter().for_each(|fault| self.problem(fault));
        for (number, run) in &node.queue {
            self.run(spot, run, &format!("{name} run {number}"));
        }
        let mut children = Vec::with_capacity(node.children.len());
        for (i, child) in node.children.iter().enumerate() {
            let high = node.high_of(i, spot.high);
            let mut above: Vec<_> = node.pending_runs(i).chain(spot.above).cloned().collect();
            above.retain(|run| run.touches(&child.low, high));
            if let StoredTarget::Leaf { deltas, base, .. } = &child.target {
                self.report.leaves += 1;
                let name = format!("{name} leaf {:?}", lossy(&child.low));
                let spot = Spot { level: None, low: &child.low, high, above: &above, ..*spot };
                let mut newer: Option<&Arc<StoredRun>> = None;
                for (i, run) in deltas.iter().rev().chain(base).enumerate() {
                    if let Some(newer) = newer
                        && newer.first <= run.last
                    {
                        self.problem(format!(
                            "tree.seqno_falls_downwards: {name}: {}..={} over {}..={}",
                            newer.first, newer.last, run.first, run.last
                        ));
                    }
                    newer = Some(run);
                    self.run(&spot, run, &format!("{name} run {i} from the newest"));
                }
            }
            children.push(above);
        }
        children
    }

    /// Checks a run of a vertex against what lies above it, and reads its segments.
    fn run(&mut self, spot: &Spot<'_>, run: &StoredRun, name: &str) {
        self.report.runs += 1;
        if run.touches(spot.low, spot.high)
            && let Some(above) = spot.above.iter().find(|above| above.first <= run.last)
        {
            self.problem(format!(
                "tree.seqno_falls_downwards: {name}: {}..={} lies under a run {}..={}",
                run.first, run.last, above.first, above.last
            ));
        }
        for segment in &run.segments {
            if self.own(segment.offset, segment.len(), segment.meta_crc) {
                self.segment(segment, name);
            }
        }
    }
}
