//! Background tasks that move messages down. Each is flat: it reads and writes what belongs to one child, outside all
//! locks, then changes the tree under the keyspace's change lock if the child is still as it was found.
//!
//! - A frozen memtable becomes a run in the root's buffer; slices that are large enough go down by reference at once.
//! - Runs pending for an inner child are merged into one run in that child's buffer.
//! - Runs pending for a leaf become a delta of the leaf, or are merged with its base (compaction), which may split it. Runs that overlap
//!   nothing move into the base by reference: a sequential load moves pointers, not bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use betree_pager::PagerIo;

use crate::Result;
use crate::cuts::Cuts;
use crate::garbage::Probe;
use crate::hash::hash;
use crate::merge::Merge;
use crate::message::Kind;
use crate::node::{Leaf, Node, Target};
use crate::options::TreeOptions;
use crate::rows::RowKey;
use crate::run::Run;
use crate::segment::{Segment, separator};
use crate::shared::Shared;
use crate::spans::Spans;
use crate::state::State;
use crate::stats::Counter;
use crate::task_io::TaskIo;
use crate::tree::{self, Descent, LeafChange};
use crate::types::Seqno;
use crate::view::Head;
use crate::writer::{Purpose, RunWriter};

/// How the tree takes what a flush has written, once that is on the device. Whether it did: the child may have changed meanwhile.
pub(crate) type Install = Box<dyn FnOnce(&Shared) -> bool>;

/// A child of a node at the moment a task was picked, with its key range.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub node: Arc<Node>,
    pub index: usize,
    pub low: Vec<u8>,
    pub high: Option<Vec<u8>>,
}

impl Site {
    /// Child `index` of `node`, whose range ends at `high`.
    pub(crate) fn new(node: &Arc<Node>, index: usize, high: Option<&[u8]>) -> Site {
        Site {
            node: node.clone(),
            index,
            low: node.children[index].low.to_vec(),
            high: node.high_of(index, high).map(<[u8]>::to_vec),
        }
    }

    fn high(&self) -> Option<&[u8]> {
        self.high.as_deref()
    }

    /// Estimate of the bytes of the leaf's base that range deletes pending for it cover.
    pub(crate) fn covered_garbage(&self, leaf: &Leaf) -> u64 {
        let Some(base) = &leaf.base else { return 0 };
        let mut spans = Spans::default();
        for queued in self.node.pending_runs(self.index) {
            spans.union(&queued.run.spans.clip(&self.low, self.high()));
        }
        spans.iter().map(|(start, end)| base.bytes_in(start, Some(end))).sum()
    }

    /// Estimate of the bytes that these runs have for the child.
    fn bytes_of(&self, runs: &[Arc<Run>]) -> u64 {
        runs.iter().map(|run| run.bytes_in(&self.low, self.high())).sum()
    }

    /// Runs pending for the child that concern its range, newest first.
    fn runs(&self) -> Vec<Arc<Run>> {
        let runs = self.node.pending_runs(self.index).map(|q| q.run.clone());
        runs.filter(|r| r.touches(&self.low, self.high())).collect()
    }
}

/// Smallest slice of a run that goes down by reference, in bytes per run: smaller ones are merged on the way.
fn reference_bytes(options: &TreeOptions) -> u64 {
    options.segment_bytes as u64 / 4
}

/// Whether what is pending for inner child `index` can go down by reference.
fn goes_by_reference(node: &Node, index: usize, high: Option<&[u8]>, options: &TreeOptions) -> bool {
    let low = &node.children[index].low;
    let child_high = node.high_of(index, high);
    let (mut runs, mut bytes, mut points) = (0, 0, false);
    for queued in node.pending_runs(index) {
        if queued.run.touches(low, child_high) {
            runs += 1;
            bytes += queued.run.bytes_in(low, child_high);
            points |= !queued.run.segments_in(low, child_high).is_empty();
        }
    }
    runs > 0 && (!points || bytes / runs >= reference_bytes(options))
}

/// Sends every slice that is large enough down by reference, level by level. Pure memory.
fn settle(mut root: Arc<Node>, options: &TreeOptions, moved: &mut u64) -> Arc<Node> {
    fn find(node: &Arc<Node>, high: Option<&[u8]>, options: &TreeOptions) -> Option<(Descent, u64)> {
        if node.level < 2 {
            return None;
        }
        for (i, child) in node.children.iter().enumerate() {
            if child.cursor < node.next_number && goes_by_reference(node, i, high, options) {
                let descent = Descent {
                    key: child.low.to_vec(),
                    high: node.high_of(i, high).map(<[u8]>::to_vec),
                    level: node.level,
                    merged: None,
                    from: child.cursor,
                    cursor: node.next_number,
                };
                return Some((descent, child.pending));
            }
        }
        node.children.iter().enumerate().find_map(|(i, child)| match &child.target {
            Target::Node(below) => find(below, node.high_of(i, high), options),
            Target::Leaf(_) => None,
        })
    }
    while let Some((descent, bytes)) = find(&root, None, options) {
        let Some(next) = tree::descend(&root, &descent, options) else { break };
        *moved += bytes;
        root = next;
    }
    root
}

fn seqnos<'a>(runs: impl Iterator<Item = &'a Arc<Run>> + Clone) -> (Seqno, Seqno) {
    (runs.clone().map(|r| r.first).min().unwrap_or_default(), runs.map(|r| r.last).max().unwrap_or_default())
}

/// Writes the oldest memtable of a keyspace as a run and puts it into the tree.
pub(crate) fn flush_memtable(
    shared: &Shared,
    state: &State,
    head: &Arc<Head>,
    io: &mut TaskIo,
) -> Result<()> {
    let Some((first, last)) = head.table.seqnos() else {
        state.install(head, Seqno(0), Arc::clone);
        shared.discharge(head);
        return Ok(());
    };
    let written = write_memtable(shared, state, head, last, io);
    if written.is_err() && state.is_dropped() {
        // Nobody will try again.
        shared.discharge(head);
    }
    let segments = written?;
    shared.storage.reached("memtable-written");
    let run = Arc::new(Run {
        segments: segments.into_iter().collect(),
        spans: head.table.spans(Seqno(u64::MAX)),
        first,
        last,
    });
    let (options, mut moved) = (&state.tree, 0);
    state.install(head, last, |root| {
        let root = if run.is_empty() { root.clone() } else { tree::append(root, run, options) };
        settle(root, options, &mut moved)
    });
    shared.storage.reached("memtable-installed");
    shared.discharge(head);
    shared.counters.moved_bytes.fetch_add(moved, Relaxed);
    Ok(())
}

/// Writes the messages of a memtable, of which `last` is the newest, as the segments of one run, and waits for the writes.
fn write_memtable(
    shared: &Shared,
    state: &State,
    head: &Head,
    last: Seqno,
    io: &mut TaskIo,
) -> Result<Vec<Arc<Segment>>> {
    let options = &state.tree;
    let root = state.view().root.clone();
    let mut cuts = Cuts::new(&root, options);
    let mut writer = RunWriter::new(
        &shared.pager,
        &shared.pins,
        &mut io.write,
        shared.writing_options(*options),
        shared.filter_room(),
        Purpose::NewData(&head.charge),
        &shared.counters.memtable_flush_bytes,
    );
    let rows = Some(&shared.rows).filter(|rows| !rows.is_empty());
    let mut cursor = head.table.cursor(Seqno(u64::MAX));
    cursor.seek(b"");
    while let Some(message) = cursor.entry() {
        cuts.before(message.key, &mut writer)?;
        let key_hash = writer.push(message)?;
        if let Some(rows) = rows
            && message.kind == Kind::Put
        {
            rows.flushed(RowKey::new(state.id, message.key, key_hash), last, message.value);
        }
        cursor.advance();
    }
    let segments = writer.cut()?;
    writer.finish()?;
    Ok(segments)
}

fn rewriter<'a>(
    shared: &'a Shared,
    io: &'a mut PagerIo,
    options: TreeOptions,
    written: &'a Counter,
) -> RunWriter<'a> {
    let (options, room) = (shared.writing_options(options), shared.filter_room());
    RunWriter::new(&shared.pager, &shared.pins, io, options, room, Purpose::Rewrite, written)
}

/// Merges what is pending for an inner child into one run in the child's buffer. `begun` is called when the first reads are done; the writes are in
/// flight at the end.
pub(crate) fn flush_to_node(
    shared: &Shared,
    state: &Arc<State>,
    site: &Site,
    io: &mut TaskIo,
    begun: &mut dyn FnMut(),
) -> Result<Install> {
    let Target::Node(below) = &site.node.children[site.index].target else { return Ok(Box::new(|_| false)) };
    let runs = site.runs();
    let options = &state.tree;
    let (first, last) = seqnos(runs.iter());
    let mut merge =
        Merge::new(&shared.pager, &mut io.read, state.operator(), &runs, &site.low, site.high(), false)?;
    begun();
    let spans = merge.spans();
    shared.counters.flush_read.fetch_add(merge.bytes(), Relaxed);
    let mut writer = rewriter(shared, &mut io.write, *options, &shared.counters.flush_written);
    let mut cuts = Cuts::new(below, options);
    while let Some(message) = merge.step()? {
        cuts.before(message.key, &mut writer)?;
        writer.push(message)?;
    }
    let segments = writer.cut()?;
    writer.leave();
    let descent = Descent {
        key: site.low.clone(),
        high: site.high.clone(),
        level: site.node.level,
        merged: Some(Run { segments: segments.into_iter().collect(), spans, first, last }),
        from: site.node.children[site.index].cursor,
        cursor: site.node.next_number,
    };
    let state = state.clone();
    Ok(Box::new(move |shared| {
        shared.storage.reached("flush-written");
        let (options, mut moved) = (&state.tree, 0);
        let done = state.change(|root| {
            tree::descend(root, &descent, options).map(|root| settle(root, options, &mut moved))
        });
        shared.counters.moved_bytes.fetch_add(moved, Relaxed);
        done
    }))
}

/// Flushes what is pending for a leaf, as [`flush_to_node`]. `force`: compact the leaf whatever its size.
pub(crate) fn flush_to_leaf(
    shared: &Shared,
    state: &Arc<State>,
    site: &Site,
    io: &mut TaskIo,
    force: bool,
    begun: &mut dyn FnMut(),
) -> Result<Install> {
    let child = &site.node.children[site.index];
    let Target::Leaf(leaf) = &child.target else { return Ok(Box::new(|_| false)) };
    let options = &state.tree;
    let pending = site.runs();
    let (new, written) = if let Some(moved) = by_reference(site, leaf, &pending, options) {
        shared.counters.moved_bytes.fetch_add(child.pending, Relaxed);
        (moved, None)
    } else {
        let arriving = site.bytes_of(&pending);
        let garbage = leaf.garbage + site.covered_garbage(leaf) + leaf.garbage_of(arriving);
        let deltas = leaf.delta_bytes() + arriving;
        let share = |percent: u64| leaf.base_bytes() * percent / 100;
        let garbage_percent = options.leaf_garbage_percent as u64 * spread(leaf, &site.low) / 100;
        let compact = force
            || leaf.base.is_none()
            || deltas >= share(options.leaf_delta_percent as u64)
            || garbage > share(garbage_percent)
            || leaf.deltas.len() >= options.max_runs;
        if compact {
            (compact_leaf(shared, state, site, leaf, &pending, io, begun)?, Some("leaf-compacted"))
        } else {
            (add_delta(shared, state, site, leaf, &pending, io, begun)?, Some("delta-written"))
        }
    };
    let change = LeafChange {
        old: leaf.id,
        key: site.low.clone(),
        new,
        cursor: site.node.next_number,
        taken: child.pending,
    };
    let state = state.clone();
    Ok(Box::new(move |shared| {
        if let Some(place) = written {
            shared.storage.reached(place);
        }
        let done = state.change(|root| tree::replace_leaf(root, &change, &state.tree));
        if done {
            shared.pressure.drained(change.taken, &*shared.storage);
        }
        done
    }))
}

/// Percent of the limit of garbage at which this leaf is compacted, 75 to 125: leaves that are overwritten alike would else be compacted all
/// at the same time, and the disk would be fullest just before.
fn spread(leaf: &Leaf, low: &[u8]) -> u64 {
    let last = leaf.base.as_ref().map_or(0, |run| run.last.0);
    75 + hash(low).wrapping_add(hash(&last.to_le_bytes())) % 51
}

/// Bytes of a leaf's base that `came` bytes of messages overwrote or deleted, in percent of them.
fn overwriting_percent(garbage: u64, came: u64) -> u64 {
    (garbage * 100 / came.max(1)).min(1000)
}

/// Most segments of a leaf that were moved in by reference.
const MAX_MOVED_SEGMENTS: usize = 32;

/// New leaves with their low keys; the first keeps that of the old leaf.
type NewLeaves = Vec<(Option<Vec<u8>>, Arc<Leaf>)>;

/// The leaf's base with the pending segments put between its own, if nothing overlaps and they are worth keeping as they are.
fn by_reference(site: &Site, leaf: &Leaf, pending: &[Arc<Run>], options: &TreeOptions) -> Option<NewLeaves> {
    if pending.is_empty() || !leaf.deltas.is_empty() || pending.iter().any(|r| !r.spans.is_empty()) {
        return None;
    }
    let mut segments: Vec<Arc<Segment>> = Vec::new();
    for run in pending.iter().chain(&leaf.base) {
        segments.extend(run.segments_in(&site.low, site.high()).iter().cloned());
    }
    segments.sort_by(|a, b| a.min.cmp(&b.min));
    let bytes: u64 = segments.iter().map(|s| u64::from(s.data_len)).sum();
    let fits = segments.iter().all(|s| s.inside(&site.low, site.high()))
        && segments.windows(2).all(|pair| pair[0].max < pair[1].min)
        && bytes / segments.len().max(1) as u64 >= reference_bytes(options)
        && segments.len() * options.segment_bytes
            <= MAX_MOVED_SEGMENTS * options.leaf_bytes.max(bytes as usize);
    if !fits {
        return None;
    }
    let (first, last) = seqnos(pending.iter().chain(&leaf.base));
    let mut new: NewLeaves = Vec::new();
    let mut low: Option<Vec<u8>> = None;
    let mut part: Vec<Arc<Segment>> = Vec::new();
    let mut part_bytes = 0;
    let finish = |part: &mut Vec<Arc<Segment>>| {
        let segments = std::mem::take(part);
        let run = Run { segments: segments.into_iter().collect(), spans: Spans::default(), first, last };
        Leaf::of_base(Some(Arc::new(run)), leaf.settled)
    };
    for segment in segments {
        if part_bytes > 0 && part_bytes + u64::from(segment.data_len) > options.leaf_bytes as u64 {
            let above = part.last().map(|s| separator(&s.max, &segment.min).to_vec());
            new.push((low.take(), finish(&mut part)));
            low = above;
            part_bytes = 0;
        }
        part_bytes += u64::from(segment.data_len);
        part.push(segment);
    }
    new.push((low.take(), finish(&mut part)));
    Some(new)
}

/// Merges the pending runs into one more delta.
fn add_delta(
    shared: &Shared,
    state: &State,
    site: &Site,
    leaf: &Leaf,
    pending: &[Arc<Run>],
    io: &mut TaskIo,
    begun: &mut dyn FnMut(),
) -> Result<NewLeaves> {
    let (first, last) = seqnos(pending.iter());
    let mut merge =
        Merge::new(&shared.pager, &mut io.read, state.operator(), pending, &site.low, site.high(), false)?;
    begun();
    let spans = merge.spans();
    shared.counters.flush_read.fetch_add(merge.bytes(), Relaxed);
    let mut writer = rewriter(shared, &mut io.write, state.tree, &shared.counters.flush_written);
    let mut probe = Probe::new(leaf.base.as_deref());
    while let Some(message) = merge.step()? {
        probe.see(&shared.pager, message)?;
        writer.push(message)?;
    }
    let segments = writer.cut()?;
    writer.leave();
    let mut deltas = leaf.deltas.clone();
    let run = Run { segments: segments.into_iter().collect(), spans, first, last };
    let overwriting = overwriting_percent(probe.garbage, site.bytes_of(pending));
    if !run.is_empty() {
        deltas.push(Arc::new(run));
    }
    let garbage = leaf.garbage + probe.garbage + site.covered_garbage(leaf);
    Ok(vec![(None, Leaf::new(leaf.base.clone(), deltas, garbage, overwriting, leaf.settled))])
}

/// Merges everything of the leaf and everything pending for it into one base, or the bases of several leaves.
fn compact_leaf(
    shared: &Shared,
    state: &State,
    site: &Site,
    leaf: &Leaf,
    pending: &[Arc<Run>],
    io: &mut TaskIo,
    begun: &mut dyn FnMut(),
) -> Result<NewLeaves> {
    let options = &state.tree;
    let runs: Vec<Arc<Run>> = pending.iter().chain(leaf.runs()).cloned().collect();
    let (first, last) = seqnos(runs.iter());
    let total = site.bytes_of(&runs);
    let came = total.saturating_sub(leaf.base_bytes());
    let left = total - leaf.garbage_of(came).min(leaf.base_bytes());
    // One leaf while it fits, else parts that have room to grow.
    let parts = if left <= options.leaf_bytes as u64 {
        1
    } else {
        (left * 3 / 2).div_ceil(options.leaf_bytes as u64)
    };
    let part_bytes = if parts == 1 { u64::MAX } else { left.div_ceil(parts) };

    let mut merge =
        Merge::new(&shared.pager, &mut io.read, state.operator(), &runs, &site.low, site.high(), true)?;
    begun();
    shared.counters.compact_read.fetch_add(merge.bytes(), Relaxed);
    let mut writer = rewriter(shared, &mut io.write, *options, &shared.counters.compact_written);
    let mut written: Vec<Part> = Vec::new();
    let mut low: Option<Vec<u8>> = None;
    while let Some(message) = merge.step()? {
        if writer.run_bytes() >= part_bytes {
            let segments = writer.cut()?;
            let above = separator(writer.last_key(), message.key).to_vec();
            written.push(Part { low: low.replace(above), segments });
        }
        writer.push(message)?;
    }
    let segments = writer.cut()?;
    written.push(Part { low, segments });
    writer.leave();
    let messages: u64 =
        leaf.base.iter().flat_map(|run| run.segments.iter()).map(|s| u64::from(s.messages)).sum();
    let overwriting = overwriting_percent(merge.hidden_oldest * leaf.base_bytes() / messages.max(1), came);
    let settled = last.max(leaf.settled);
    let leaf_of = |part: Part| {
        let run = Run { segments: part.segments.into_iter().collect(), spans: Spans::default(), first, last };
        (part.low, Leaf::new(Some(Arc::new(run)), Vec::new(), 0, overwriting, settled))
    };
    Ok(join_parts(written, options.leaf_bytes as u64).into_iter().map(leaf_of).collect())
}

/// What may become a leaf: its low key, if it is not the first, and its segments.
struct Part {
    low: Option<Vec<u8>>,
    segments: Vec<Arc<Segment>>,
}

/// Neighbours that fit into one leaf together become one: more than expected was overwritten or deleted.
fn join_parts(parts: Vec<Part>, leaf_bytes: u64) -> Vec<Part> {
    let bytes = |segments: &[Arc<Segment>]| segments.iter().map(|s| u64::from(s.data_len)).sum::<u64>();
    let mut joined: Vec<Part> = Vec::new();
    for part in parts {
        match joined.last_mut() {
            Some(last) if bytes(&last.segments) + bytes(&part.segments) <= leaf_bytes => {
                last.segments.extend(part.segments);
            }
            _ => joined.push(part),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use crate::node::Target;
    use crate::{Db, Result, TreeOptions};

    /// Most bytes of deltas per hundred bytes of base while records are written in random order: new ones, then twice all of them anew.
    fn deltas_of_new_and_overwritten_records(tree: TreeOptions) -> Result<(u64, u64)> {
        let tree = TreeOptions { leaf_bytes: 64 << 10, segment_bytes: 32 << 10, ..tree };
        let disk = betree_testkit::SimStorage::new(1);
        let builder = Db::builder().memory(8 << 20).memtable_bytes(64 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let records = 10_000u64;
        let mut most = [0; 4];
        for (round, most) in most.iter_mut().enumerate() {
            for i in 0..records {
                let id = i * 7919 % records;
                keyspace.insert(id.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [round as u8; 100])?;
                if i % 250 != 0 {
                    continue;
                }
                while db.run_background()? {}
                let (mut base, mut deltas) = (0, 0);
                keyspace.state.view().root.visit_nodes(&mut |node| {
                    for child in &node.children {
                        if let Target::Leaf(leaf) = &child.target {
                            base += leaf.base_bytes();
                            deltas += leaf.delta_bytes();
                        }
                    }
                });
                if base > 512 << 10 {
                    *most = (deltas * 100 / base).max(*most);
                }
            }
        }
        db.check()?;
        assert_eq!(keyspace.iter().count() as u64, records);
        // Before the second round is over not every leaf knows what comes.
        Ok((most[0], most[2].max(most[3])))
    }

    #[test]
    fn what_overwrites_a_leaf_does_not_pile_up_above_it() -> Result<()> {
        let (new, overwritten) = deltas_of_new_and_overwritten_records(TreeOptions::default())?;
        assert!(new > 20 && overwritten < 30, "deltas of {new} and {overwritten} percent");
        let lax = TreeOptions { leaf_garbage_percent: 1000, ..TreeOptions::default() };
        let (_, overwritten) = deltas_of_new_and_overwritten_records(lax)?;
        assert!(overwritten > 40, "deltas of {overwritten} percent");
        Ok(())
    }

    /// Of what comes for a leaf in ten runs, most is older versions of the same few keys: that is no garbage in the base.
    #[test]
    fn a_few_hot_keys_do_not_have_their_leaf_compacted_all_the_time() -> Result<()> {
        let tree = TreeOptions { leaf_bytes: 64 << 10, segment_bytes: 32 << 10, ..TreeOptions::default() };
        let disk = betree_testkit::SimStorage::new(1);
        let builder = Db::builder().memory(8 << 20).memtable_bytes(8 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        for id in 0..2_000u64 {
            keyspace.insert(id.to_be_bytes(), [7; 100])?;
        }
        db.compact()?;
        let before = db.stats();
        for i in 0..20_000u64 {
            keyspace.insert((1000 + i * 7 % 20).to_be_bytes(), [i as u8; 100])?;
            if i % 50 == 0 {
                keyspace.state.freeze();
                while db.run_background()? {}
            }
        }
        let after = db.stats();
        let flushes = (after.memtable_flush_bytes - before.memtable_flush_bytes) / (4 << 10);
        let compactions = (after.compact_bytes_written - before.compact_bytes_written) / (64 << 10);
        assert!(flushes > 100 && compactions * 40 < flushes, "{compactions} for {flushes} flushes");
        db.check().map(drop)
    }
}
