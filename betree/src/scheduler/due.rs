//! What is due next.
//!
//! Order: frozen memtables first (writers wait for them) and a wanted checkpoint, a few in a row and not while debt is deep; then what somebody waits for
//! (`request`), then the heaviest child, then what a squeeze or a rest leaves time for.
//!
//! A child's score ([`Node::score`]) is the share of its limits that it has used up. It is due at score 1, or as the heaviest child of a node
//! whose children are at one half on average, so that flushes spread over time instead of coming due together. A child that nothing is
//! written to ages with its parent's queue and comes due by its run count, so that it does not pin old runs.
//!
//! At rest, when nothing is due and nothing was written for a while, leaves are *settled*: those whose base is in part overwritten or deleted
//! are compacted, so that space comes back and scans read only what is there. Range deletes go down to them first. So are those on which iterators have
//! spent as many bytes, read from runs above the base, as their compaction reads and writes ([`Crossed`](crate::node::Crossed)): whatever is read afterwards,
//! no more than twice the bytes are moved that the better of the two, to merge at once or never, would have moved. What waits for inner children is
//! passed on by the same rule. When all is settled, free space goes back to the device.
//!
//! Cost of a look: one comparison per inner node, since a node remembers its [`Census`](crate::node::Census), and one per child of the node chosen.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::{Claim, FULL_DEVICE_PAUSE, Inner, Task};
use crate::flush::Site;
use crate::node::{Crossed, Node, Target};
use crate::shared::Shared;
use crate::state::State;
use crate::view::Frozen;

/// Changes of the trees after which a squeeze takes a checkpoint: the nodes that it has to write must fit into its part of the reserve.
const SQUEEZED_TASKS: u64 = 16;
/// Memtables and checkpoints that are worked on one after the other while something is due. Small memtables, or those of many keyspaces, could otherwise keep all
/// workers busy and nobody would see how deep the debt is, for it is found by looking for what is due.
const URGENT_IN_A_ROW: u32 = 4;
/// A checkpoint is due when this fraction of what is in use may have been replaced since the last one, which keeps that: space that others could have.
const HELD_FRACTION: u64 = 128;
/// What a leaf may keep at rest, in percent of its base.
const SETTLED_GARBAGE_PERCENT: u64 = 10;
/// Changes of the trees at rest after which a checkpoint lets go of what they replaced.
const SETTLED_TASKS: u64 = 32;

/// What iterators have spent, in percent of what it costs to read and write `bytes`; 0 below a hundred.
fn repaid(crossed: &Crossed, bytes: u64) -> u64 {
    let percent = crossed.bytes().saturating_mul(50) / bytes.max(1);
    if percent < 100 { 0 } else { percent }
}

/// The most urgent child found so far, and the bytes overdue.
#[derive(Default)]
pub(super) struct Survey {
    best: Option<(f64, Arc<State>, Site)>,
    overdue: u64,
    /// Bytes that the largest single flush or compaction may write.
    largest: u64,
}

impl Survey {
    pub(super) fn node(
        &mut self,
        state: &Arc<State>,
        node: &Arc<Node>,
        high: Option<&[u8]>,
        busy: &dyn Fn(&Claim) -> bool,
        forced: bool,
    ) {
        for (i, child) in node.children.iter().enumerate() {
            // All of them are of one kind.
            let Target::Node(below) = &child.target else { break };
            self.node(state, below, node.high_of(i, high), busy, forced);
        }
        let options = &state.tree;
        let census = if forced { node.take_census(options, true) } else { *node.census(options) };
        self.overdue += census.overdue;
        self.largest = self.largest.max(census.largest);
        let enough = self.best.as_ref().map_or(0.0, |(score, ..)| *score);
        if census.heaviest <= enough || (census.heaviest < 1.0 && census.average <= 0.5) {
            return;
        }
        let mut heaviest: Option<(f64, usize)> = None;
        for i in 0..node.children.len() {
            let score = node.score(i, options, forced);
            if score <= heaviest.map_or(enough, |(score, _)| score) {
                continue;
            }
            if !busy(&claim_of(state, node, i)) {
                heaviest = Some((score, i));
            }
        }
        if let Some((score, index)) = heaviest
            && (score >= 1.0 || census.average > 0.5)
        {
            self.best = Some((score, state.clone(), Site::new(node, index, high)));
        }
    }
}

/// What a task for child `index` of `node` claims.
pub(super) fn claim_of(state: &State, node: &Node, index: usize) -> Claim {
    let child = &node.children[index];
    match &child.target {
        Target::Leaf(leaf) => Claim::Leaf(leaf.id),
        Target::Node(_) => Claim::Inner(state.id, node.level, child.low.clone()),
    }
}

/// The task that passes on what is pending for a child, and its claim. `force`: a leaf is compacted whatever its size.
pub(super) fn task_of(state: Arc<State>, site: Site, force: bool) -> (Claim, Task) {
    let claim = claim_of(&state, &site.node, site.index);
    let task = match &site.node.children[site.index].target {
        Target::Leaf(_) => Task::Leaf(state, site, force),
        Target::Node(_) => Task::Node(state, site),
    };
    (claim, task)
}

/// Finds the child below `node` that is to be settled first, with its waste in percent: an inner one for which range deletes wait that may free
/// something below, or the one with most garbage, or most bytes read in vain, for its size.
fn worst_below(
    state: &Arc<State>,
    node: &Arc<Node>,
    high: Option<&[u8]>,
    inner: &Inner,
    worst: &mut Option<(u64, Claim, Task)>,
) {
    for (index, child) in node.children.iter().enumerate() {
        let child_high = node.high_of(index, high);
        let spans = node.pending_runs(index).any(|q| !q.run.spans.clip(&child.low, child_high).is_empty());
        let waste = match &child.target {
            Target::Leaf(leaf) => {
                let covered = if spans { Site::new(node, index, high).covered_garbage(leaf) } else { 0 };
                let garbage = (leaf.garbage + covered) * 100 / leaf.base_bytes().max(1);
                let all = leaf.base_bytes() + leaf.delta_bytes() + child.pending;
                garbage.max(repaid(&leaf.crossed, all))
            }
            Target::Node(_) if spans => u64::MAX,
            Target::Node(below) => repaid(&below.crossed, child.pending),
        };
        let least = worst.as_ref().map_or(SETTLED_GARBAGE_PERCENT, |(most, ..)| most.saturating_add(1));
        if waste >= least && !inner.claims.contains(&claim_of(state, node, index)) {
            let (claim, task) = task_of(state.clone(), Site::new(node, index, high), true);
            *worst = Some((waste, claim, task));
        }
        if let Target::Node(below) = &child.target {
            worst_below(state, below, child_high, inner, worst);
        }
    }
}

impl Shared {
    /// Picks the next task and claims it. `None`: nothing is due.
    pub(super) fn pick(&self, inner: &mut Inner) -> Option<(Claim, Task)> {
        let states = self.states();
        if inner.urgent_in_a_row < URGENT_IN_A_ROW
            && !self.pressure.is_deep()
            && let Some(urgent) = self.pick_urgent(inner, &states)
        {
            inner.urgent_in_a_row += 1;
            return Some(urgent);
        }
        inner.urgent_in_a_row = 0;
        self.pick_due(inner, &states)
            .or_else(|| self.pick_urgent(inner, &states))
            .or_else(|| self.pick_last(inner))
    }

    /// What writers or the log wait for.
    fn pick_urgent(&self, inner: &mut Inner, states: &[Arc<State>]) -> Option<(Claim, Task)> {
        for state in states {
            let claim = Claim::Memtables(state.id);
            let view = state.peek();
            if view.heads.len() > 1 && view.frozen != Frozen::Rest && !inner.is_busy(&claim) {
                if view.frozen == Frozen::Compact {
                    return Some((claim, Task::CompactMemtables(state.clone(), view.heads[1..].to_vec())));
                }
                let oldest = view.heads[view.heads.len() - 1].clone();
                return Some((claim, Task::Memtable(state.clone(), oldest)));
            }
        }
        let many = inner.squeeze && inner.changed >= SQUEEZED_TASKS;
        let wanted = inner.checkpoint_wanted || many || self.rewritten_since(inner) >= self.held_limit();
        if wanted && !inner.is_busy(&Claim::Checkpoint) {
            return Some(self.checkpoint_task(inner));
        }
        None
    }

    /// A checkpoint of what was changed until now.
    fn checkpoint_task(&self, inner: &mut Inner) -> (Claim, Task) {
        inner.checkpoint_wanted = false;
        inner.changed = 0;
        inner.rewritten_at = self.rewritten();
        (Claim::Checkpoint, Task::Checkpoint)
    }

    fn rewritten(&self) -> u64 {
        self.counters.flush_written.load(Relaxed) + self.counters.compact_written.load(Relaxed)
    }

    /// Bytes written in place of others since the last checkpoint began: about as many are kept for it alone.
    fn rewritten_since(&self, inner: &Inner) -> u64 {
        self.rewritten().saturating_sub(inner.rewritten_at)
    }

    /// So much may be kept for the last checkpoint alone before the next one.
    fn held_limit(&self) -> u64 {
        (self.pager.allocated_bytes() / HELD_FRACTION).max(self.memtable_bytes as u64 / 4)
    }

    /// What keeps the trees in shape, or somebody has asked for.
    fn pick_due(&self, inner: &mut Inner, states: &[Arc<State>]) -> Option<(Claim, Task)> {
        // One at a time while other work is due.
        if !inner.requests.are_served()
            && let Some(picked) = self.pick_requested(inner)
        {
            return Some(picked);
        }
        let forced = inner.squeeze;
        let mut survey = Survey::default();
        for state in states {
            let view = state.peek();
            survey.node(state, &view.root, None, &|claim| inner.is_busy(claim), forced);
        }
        self.pressure.set_debt(survey.overdue);
        // Pages, filters and segments are rounded up.
        self.pager.foresee(survey.largest + survey.largest / 4);
        match survey.best {
            Some((_, state, site)) => Some(task_of(state, site, forced)),
            None => self.pick_requested(inner),
        }
    }

    /// What is done when nothing else can be: the end of a squeeze, and of a round of attempts without space.
    fn pick_last(&self, inner: &mut Inner) -> Option<(Claim, Task)> {
        let full = inner.squeeze || !inner.failed.is_empty();
        if !full {
            if std::mem::take(&mut inner.warming_wanted) {
                return Some((Claim::Warm, Task::Warm));
            }
            if std::mem::take(&mut inner.recall_wanted) && !inner.claims.contains(&Claim::Recall) {
                return Some((Claim::Recall, Task::Recall));
            }
            return self.pick_to_settle(inner);
        }
        if !inner.claims.is_empty() {
            return None;
        }
        if inner.changed > 0 && !inner.failed.contains(&Claim::Checkpoint) {
            return Some(self.checkpoint_task(inner));
        }
        if inner.squeeze && !inner.gave_back {
            inner.gave_back = true;
            return Some((Claim::GiveBack, Task::GiveBack));
        }
        inner.squeeze = false;
        inner.failed.clear();
        inner.retry_at = Some(Instant::now() + FULL_DEVICE_PAUSE);
        None
    }

    /// At rest: the leaf that holds most garbage for its size; at the end, and now and then, a checkpoint, without which no space becomes free; then what is
    /// free goes back to the device, some at a time, so that a writer that comes meanwhile does not wait long for blocks.
    fn pick_to_settle(&self, inner: &mut Inner) -> Option<(Claim, Task)> {
        if !self.memory.at_rest(self.storage.now()) {
            return None;
        }
        let messages = self.counters.messages.load(Relaxed);
        if inner.unsettled_at == Some(messages) {
            return None;
        }
        let mut worst: Option<(u64, Claim, Task)> = None;
        for state in self.states() {
            worst_below(&state, &state.peek().root, None, inner, &mut worst);
        }
        let checkpoint = if worst.is_some() { SETTLED_TASKS } else { 1 };
        if inner.changed >= checkpoint && !inner.claims.contains(&Claim::Checkpoint) {
            return Some(self.checkpoint_task(inner));
        }
        if worst.is_none()
            && inner.claims.is_empty()
            && inner.given_back_at != Some(self.pager.publications())
        {
            return Some((Claim::GiveBack, Task::GiveBack));
        }
        worst.map(|(_, claim, task)| (claim, task))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use betree_storage::Storage;

    use crate::{Db, Result, TreeOptions};

    /// Writes everything four times; compactions for garbage are all but switched off.
    fn overwritten(disk: &Arc<betree_testkit::SimStorage>) -> Result<Db> {
        let tree = TreeOptions {
            leaf_bytes: 64 << 10,
            segment_bytes: 32 << 10,
            leaf_delta_percent: 1000,
            leaf_garbage_percent: 1000,
            ..TreeOptions::default()
        };
        let builder = Db::builder().memory(4 << 20).memtable_bytes(32 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        for round in 0..4u64 {
            for i in 0..4000u64 {
                let key = (i * 2_654_435_761 % 4000).to_be_bytes();
                keyspace.insert(key, [round as u8; 100])?;
            }
        }
        db.checkpoint()?;
        while db.run_background()? {}
        Ok(db)
    }

    #[test]
    fn at_rest_what_was_overwritten_gives_its_space_back() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(1);
        let db = overwritten(&disk)?;
        let before = db.stats();
        while db.run_background()? {}
        assert_eq!(db.stats().background_tasks, before.background_tasks, "nothing is due");

        disk.pause(Duration::from_secs(5));
        while db.run_background()? {}
        let after = db.stats();
        assert!(before.data_live_bytes > 2 * after.data_live_bytes, "{before:?}\n{after:?}");
        let (space, reserve) = (db.shared().pager.stats(), db.shared().pager.reserve_bytes());
        assert!(space.free_bytes - space.unbacked_bytes <= reserve + (64 << 10), "{space:?}");
        disk.pause(Duration::from_secs(5));
        assert!(!db.run_background()?, "what is free was given back");
        db.check()?;
        let rows = db.keyspace("records")?.iter().collect::<Result<Vec<_>>>()?;
        assert_eq!(rows.len(), 4000);
        assert!(rows.iter().all(|(_, value)| value[..] == [3; 100]));
        Ok(())
    }

    #[test]
    fn at_rest_what_iterators_cross_again_and_again_is_merged_and_nothing_else() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(3);
        let tree = TreeOptions { leaf_bytes: 64 << 10, segment_bytes: 32 << 10, ..TreeOptions::default() };
        let builder = Db::builder().memory(1 << 20).memtable_bytes(64 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        for i in 0..40_000u64 {
            keyspace.insert((i * 2_654_435_761 % 40_000).to_be_bytes(), [i as u8; 100])?;
            while i % 500 == 0 && db.run_background()? {}
        }
        db.checkpoint()?;
        let rest = || -> Result<()> {
            for _ in 0..2 {
                disk.pause(Duration::from_secs(5));
                while db.run_background()? {}
            }
            Ok(())
        };
        rest()?;
        let before = db.stats();
        // A few scans do not pay for anything.
        let scan = |from: u64| -> Result<()> {
            let rows = keyspace.range(from.to_be_bytes()..).take(20).collect::<Result<Vec<_>>>()?;
            assert_eq!(rows.len(), 20);
            Ok(())
        };
        (0..20).try_for_each(|i| scan(i * 1000))?;
        rest()?;
        let moved = || {
            let stats = db.stats();
            let sum = |stats: &crate::Stats| stats.compact_bytes_written + stats.flush_bytes_written;
            sum(&stats) - sum(&before)
        };
        assert_eq!(moved(), 0);
        // Many in the lower half pay for the lower half.
        let reads_of_scans = || -> Result<u64> {
            let before = db.stats().cache_misses;
            (0..1000).try_for_each(|i| scan(i * 7919 % 20_000))?;
            Ok(db.stats().cache_misses - before)
        };
        let reads = reads_of_scans()?;
        for _ in 0..30 {
            reads_of_scans()?;
            rest()?;
        }
        let (moved, all) = (moved(), before.data_live_bytes);
        assert!(moved > all / 8 && moved < all, "{moved} of {all} bytes were merged");
        let reads_now = reads_of_scans()?;
        assert!(reads_now < reads * 2 / 3, "{reads_now} reads, before {reads}");
        db.check()?;
        assert_eq!(keyspace.iter().collect::<Result<Vec<_>>>()?.len(), 40_000);
        Ok(())
    }

    #[test]
    fn at_rest_ranges_that_were_deleted_give_their_space_back() -> Result<()> {
        let disk = betree_testkit::SimStorage::new(2);
        let db = overwritten(&disk)?;
        db.compact()?;
        let before = db.stats().data_live_bytes;
        let keyspace = db.keyspace("records")?;
        // Nine tenths of each of 40 pieces: no leaf is covered wholly.
        for piece in (0..4000u64).step_by(100) {
            keyspace.remove_range((piece + 10).to_be_bytes(), (piece + 100).to_be_bytes())?;
        }
        // A round sees the last write, another one the rest.
        while db.run_background()? {}
        disk.pause(Duration::from_secs(5));
        for _ in 0..2 {
            while db.run_background()? {}
        }
        assert!(4 * db.stats().data_live_bytes < before, "{before} {:?}", db.stats());
        db.check()?;
        assert_eq!(keyspace.iter().count(), 400);
        Ok(())
    }
}
