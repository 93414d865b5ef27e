//! The way of a point read through the tree: the runs that may say something of one key.
//!
//! A run is five places in memory, each known from the one before: the run, the largest keys of its segments, the segment, its meta block, the line of the filter. A path has about
//! five runs, and their places lie in nobody's cache. So all runs of a path take each step together, and what the next step needs is asked for from memory for all of them
//! before any takes it: a path costs about what one run does.
//!
//! Called by `get`; no I/O and no locks.

use std::sync::Arc;

use betree_storage::prefetch;

use crate::node::Target;
use crate::pins::Held;
use crate::rows::RowKey;
use crate::run::Run;
use crate::segment::Segment;
use crate::types::Seqno;
use crate::view::View;

/// Runs that go together. As many references to what segments hold can be had cheaply at a time (`arc_swap`).
const TOGETHER: usize = 8;

/// A run on the path, and its only segment that may have the key.
pub(crate) struct Step<'a> {
    pub run: &'a Arc<Run>,
    pub segment: Option<&'a Arc<Segment>>,
}

/// The runs on the path of `key` that may say something of it newer than `than`, newest first, and since when absence from them means something
/// (`settled` of the leaf).
pub(crate) fn of<'a>(view: &'a View, key: RowKey<'_>, than: Option<Seqno>) -> (Vec<Step<'a>>, Seqno) {
    let mut path = Path { key, than, group: [None; TOGETHER], count: 0, steps: Vec::new() };
    let mut node = &view.root;
    loop {
        let index = node.child_of(key.key);
        let target = &node.children[index].target;
        match target {
            Target::Node(below) => prefetch::value(&**below),
            Target::Leaf(leaf) => prefetch::value(&**leaf),
        }
        node.pending_runs(index).for_each(|queued| path.add(&queued.run));
        match target {
            Target::Node(below) => node = below,
            Target::Leaf(leaf) => {
                leaf.runs().for_each(|run| path.add(run));
                path.sift();
                return (path.steps, leaf.settled);
            }
        }
    }
}

struct Path<'a, 'k> {
    key: RowKey<'k>,
    than: Option<Seqno>,
    /// Runs to be asked, newest first.
    group: [Option<&'a Arc<Run>>; TOGETHER],
    count: usize,
    steps: Vec<Step<'a>>,
}

impl<'a> Path<'a, '_> {
    #[inline]
    fn add(&mut self, run: &'a Arc<Run>) {
        prefetch::value(&**run);
        self.group[self.count] = Some(run);
        self.count += 1;
        if self.count == TOGETHER {
            self.sift();
        }
    }

    /// Empties the group. Those that may be newer than `than` are at its beginning; how many.
    fn take_newer(&mut self) -> usize {
        let count = std::mem::take(&mut self.count);
        let Some(than) = self.than else { return count };
        let mut newer = 0;
        for at in 0..count {
            if self.group[at].is_some_and(|run| run.last > than) {
                self.group[newer] = self.group[at];
                newer += 1;
            }
        }
        newer
    }

    /// Takes those of the group that may say something.
    fn sift(&mut self) {
        let RowKey { key, key_hash, .. } = self.key;
        let count = self.take_newer();
        let runs = || self.group[..count].iter().flatten();
        runs().for_each(|run| run.segments.prefetch_search());
        let mut places = [0; TOGETHER];
        for (run, place) in runs().zip(&mut places) {
            *place = run.segments.reaching(key);
            run.segments.get(*place).inspect(|place| prefetch::value(*place));
        }
        for (run, place) in runs().zip(&places) {
            run.segments.get(*place).inspect(|segment| segment.prefetch());
        }
        let mut segments: [Option<(&Arc<Segment>, Held)>; TOGETHER] = Default::default();
        for ((run, place), segment) in runs().zip(&places).zip(&mut segments) {
            let found = run.segments.get(*place).filter(|segment| segment.begins_at_or_below(key));
            *segment = found.map(|segment| (segment, segment.pin.get()));
            segment.as_ref().and_then(|(_, held)| held.as_deref()).inspect(|meta| prefetch::value(*meta));
        }
        for (_, held) in segments.iter().flatten() {
            held.as_ref().inspect(|meta| meta.prefetch(key_hash));
        }
        for (run, segment) in self.group[..count].iter().flatten().zip(&segments) {
            let may_have = |held: &Held| held.as_ref().is_none_or(|meta| meta.may_contain(key_hash));
            let segment = segment.as_ref().and_then(|(segment, held)| may_have(held).then_some(*segment));
            segment.inspect(|segment| prefetch::value(&*segment.extent));
            if segment.is_some() || !run.spans.is_empty() {
                self.steps.push(Step { run, segment });
            }
        }
    }
}
