//! The checker: every named invariant, every checksum, every message of the trees.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use crate::Result;
use crate::merge::Merge;
use crate::node::{Leaf, Node, Target};
use crate::run::Run;
use crate::segment::Segment;
use crate::shared::Shared;
use crate::state::State;
use crate::types::Seqno;

/// Most problems that a report names.
const MAX_PROBLEMS: usize = 1000;

/// What [`crate::Db::check`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckReport {
    /// What is wrong, each with its invariant and its place; at most 1,000.
    pub problems: Vec<String>,
    /// Keyspaces checked.
    pub keyspaces: u64,
    /// Nodes checked.
    pub nodes: u64,
    /// Leaves checked.
    pub leaves: u64,
    /// Runs checked, shared ones where they are shared.
    pub runs: u64,
    /// Segments read.
    pub segments: u64,
    /// Data pages read and verified.
    pub pages: u64,
    /// Messages read.
    pub messages: u64,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(text);
        }
    }
}

/// Checks all trees.
pub(crate) fn check(shared: &Shared) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let states = shared.states();
    let mut extents: HashMap<u64, (u32, u64)> = HashMap::new();
    // Views are held so that nothing is reused while it is read.
    let views: Vec<_> = states.iter().map(|s| s.view()).collect();
    for (state, view) in states.iter().zip(&views) {
        report.keyspaces += 1;
        check_node(&mut report, state, &view.root, b"", None, None);
        let mut above = None;
        for head in &view.heads {
            if let Some((first, last)) = head.table.seqnos() {
                if first <= view.flushed || above.is_some_and(|a| last >= a) {
                    report.problem(format!(
                        "view.nothing_between: keyspace {:?}: memtable {first}..={last} with {} in the tree",
                        state.name, view.flushed
                    ));
                }
                above = Some(first);
            }
        }
        let mut segments: Vec<Arc<Segment>> = Vec::new();
        view.root.visit_segments(&mut |segment| {
            let extent = &segment.extent;
            match extents.insert(extent.offset(), (extent.len(), extent.id())) {
                None => segments.push(segment.clone()),
                Some((_, id)) if id == extent.id() => {}
                Some(_) => {
                    report.problem(format!("extent.owned_once: two segments at offset {}", extent.offset()))
                }
            }
        });
        for segment in segments {
            check_segment(&mut report, shared, state, &segment)?;
        }
    }
    let mut sorted: Vec<_> = extents.iter().map(|(&offset, &(len, _))| (offset, len)).collect();
    sorted.sort_unstable();
    for pair in sorted.windows(2) {
        if pair[0].0 + u64::from(pair[0].1) > pair[1].0 {
            report.problem(format!("extent.owned_once: offsets {} and {} overlap", pair[0].0, pair[1].0));
        }
    }
    Ok(report)
}

/// Checks the shape of a node and everything below. `above`: the oldest Seqno of what lies above it.
fn check_node(
    report: &mut CheckReport,
    state: &State,
    node: &Arc<Node>,
    low: &[u8],
    high: Option<&[u8]>,
    level: Option<u32>,
) {
    report.nodes += 1;
    let place = format!("keyspace {:?} node {:?} level {}", state.name, low, node.level);
    if level.is_some_and(|l| l != node.level) || node.level == 0 {
        report.problem(format!("tree.levels_uniform: {place}"));
    }
    if node.children.is_empty() || **node.low() != *low {
        report.problem(format!("node.pivots_sorted: {place}: first pivot is not the node's low key"));
        return;
    }
    for (i, pair) in node.children.windows(2).enumerate() {
        if pair[0].low >= pair[1].low || high.is_some_and(|h| *pair[1].low >= *h) {
            report.problem(format!("node.pivots_sorted: {place}: child {}", i + 1));
        }
    }
    for pair in node.queue.windows(2) {
        if pair[0].number >= pair[1].number || pair[0].run.last >= pair[1].run.first {
            report.problem(format!(
                "buffer.runs_ordered: {place}: runs {} and {}",
                pair[0].number, pair[1].number
            ));
        }
    }
    if node.queue.last().is_some_and(|q| q.number >= node.next_number) {
        report.problem(format!("buffer.runs_ordered: {place}: a number is not below {}", node.next_number));
    }
    for queued in &node.queue {
        check_run(report, &queued.run, &place);
    }
    for (i, child) in node.children.iter().enumerate() {
        if child.cursor > node.next_number {
            report.problem(format!("buffer.cursor_monotone: {place}: child {i} is at {}", child.cursor));
        }
        let child_high = node.high_of(i, high);
        let oldest = node.pending_runs(i).filter(|q| q.run.touches(&child.low, child_high)).last();
        if let Some(oldest) = oldest {
            let newest_below = newest(&child.target, &child.low, child_high);
            if newest_below >= oldest.run.first {
                report.problem(format!(
                    "tree.seqno_falls_downwards: {place}: child {i} has {newest_below} under a run from {}",
                    oldest.run.first
                ));
            }
        }
        match &child.target {
            Target::Node(below) => {
                check_node(report, state, below, &child.low, child_high, Some(node.level - 1))
            }
            Target::Leaf(leaf) => {
                if node.level != 1 {
                    report.problem(format!("tree.levels_uniform: {place}: child {i} is a leaf"));
                }
                check_leaf(report, leaf, &place);
            }
        }
    }
}

/// The newest Seqno in a vertex's own runs that concern the range.
fn newest(target: &Target, low: &[u8], high: Option<&[u8]>) -> Seqno {
    let mut newest = Seqno(0);
    let mut look = |run: &Arc<Run>| {
        if run.touches(low, high) {
            newest = newest.max(run.last);
        }
    };
    match target {
        Target::Leaf(leaf) => leaf.runs().for_each(&mut look),
        Target::Node(node) => node.queue.iter().for_each(|q| look(&q.run)),
    }
    newest
}

fn check_leaf(report: &mut CheckReport, leaf: &Leaf, place: &str) {
    report.leaves += 1;
    let runs: Vec<_> = leaf.runs().collect();
    for run in &runs {
        check_run(report, run, place);
    }
    for pair in runs.windows(2) {
        if pair[0].first <= pair[1].last {
            report.problem(format!(
                "tree.seqno_falls_downwards: {place}: a leaf has {}..={} over {}..={}",
                pair[0].first, pair[0].last, pair[1].first, pair[1].last
            ));
        }
    }
}

fn check_run(report: &mut CheckReport, run: &Run, place: &str) {
    report.runs += 1;
    for pair in run.segments.windows(2) {
        if pair[0].max >= pair[1].min {
            report.problem(format!("run.segments_ascend: {place}: at offset {}", pair[1].extent.offset()));
        }
    }
    if run.first > run.last {
        report.problem(format!("run.seqnos: {place}: {}..={}", run.first, run.last));
    }
}

/// Reads a segment whole: checksums, order, bounds, counts, filter.
fn check_segment(
    report: &mut CheckReport,
    shared: &Shared,
    state: &State,
    segment: &Arc<Segment>,
) -> Result<()> {
    report.segments += 1;
    let place = format!("keyspace {:?} segment at offset {}", state.name, segment.extent.offset());
    let meta = match segment.meta(&shared.pager) {
        Ok(meta) => meta,
        Err(error @ crate::Error::Corrupt { .. }) => {
            report.problem(format!("page.checksum_in_parent: {place}: {error}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    report.pages += meta.pages() as u64;
    let run = Arc::new(Run {
        segments: vec![segment.clone()],
        spans: Default::default(),
        first: Seqno(0),
        last: Seqno(0),
    });
    let mut io = shared.pager.io()?;
    let mut count = 0u64;
    let mut before: Option<Vec<u8>> = None;
    let mut wrong = Vec::new();
    let result = (|| {
        let mut merge = Merge::new(&shared.pager, &mut io, None, &[run], b"", None, false)?;
        while let Some(message) = merge.step()? {
            count += 1;
            if before.as_ref().is_some_and(|b| **b >= *message.key) {
                wrong.push(format!("page.keys_ascend: {place}: at entry {count}"));
            }
            if !segment.covers(message.key) {
                wrong.push(format!("segment.keys_in_bounds: {place}: entry {count}"));
            }
            if !meta.may_contain(crate::hash::hash(message.key)) {
                wrong.push(format!("filter.no_false_negative: {place}: entry {count}"));
            }
            let page = meta.page_of(message.key);
            if page > 0 && meta.separator(page) > message.key {
                wrong.push(format!("segment.separators: {place}: entry {count}"));
            }
            let key = before.get_or_insert_with(Vec::new);
            key.clear();
            key.extend_from_slice(message.key);
        }
        Ok(())
    })();
    wrong.into_iter().for_each(|w| report.problem(w));
    report.messages += count;
    match result {
        Ok(()) => {
            if count != u64::from(segment.messages) || meta.messages() != segment.messages {
                report.problem(format!(
                    "segment.count: {place}: {} in the node, {} in the meta block, {count} in the pages",
                    segment.messages,
                    meta.messages()
                ));
            }
            Ok(())
        }
        Err(error @ crate::Error::Corrupt { .. }) => {
            report.problem(format!("page.checksum_in_parent: {place}: {error}"));
            Ok(())
        }
        Err(error) => Err(error),
    }
}
