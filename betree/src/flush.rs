//! Background tasks that move messages down. Each is flat: it reads and writes what belongs to one child, outside all
//! locks, then changes the tree under the keyspace's change lock if the child is still as it was found.
//!
//! - A frozen memtable becomes a run in the root's buffer; slices that are large enough go down by reference at once.
//! - Runs pending for an inner child are merged into one run in that child's buffer.
//! - Runs pending for a leaf become a delta of the leaf, or are merged with its base (compaction), which may split it. Runs that overlap
//!   nothing move into the base by reference: a sequential load moves pointers, not bytes.

use std::iter::Peekable;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use betree_pager::{Extent, Pager, PagerIo};
use betree_storage::AlignedBuf;

use crate::Result;
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
use crate::tree::{self, Descent, LeafChange};
use crate::types::Seqno;
use crate::view::Head;
use crate::writer::{Purpose, RunWriter};

/// How the tree takes what a flush has written, once that is on the device. Whether it did: the child may have changed meanwhile.
pub(crate) type Install = Box<dyn FnOnce(&Shared) -> bool>;

/// The I/O channels of one worker.
pub(crate) struct TaskIo {
    read: PagerIo,
    write: PagerIo,
}

impl TaskIo {
    pub(crate) fn new(pager: &Pager) -> Result<TaskIo> {
        Ok(TaskIo { read: pager.background_io()?, write: pager.background_io()? })
    }

    /// Queues the write of a whole extent.
    pub(crate) fn write(&mut self, extent: &Arc<Extent>, buf: AlignedBuf) {
        self.write.submit_write(extent, 0, buf, 0);
    }

    /// The channel of the writes that are in flight; `idle` takes its place.
    pub(crate) fn hand_over_writes(&mut self, idle: PagerIo) -> PagerIo {
        std::mem::replace(&mut self.write, idle)
    }

    /// Waits for every write queued; the first failure.
    pub(crate) fn finish_writes(&mut self) -> Result<()> {
        Ok(self.write.finish()?)
    }
}

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

/// Where the segments of a run in a buffer end: at the first low key of a leaf at which they are large enough. A segment keeps its space until
/// the last leaf in its range has taken its part, which is long after the first did if there are many of them.
struct Cuts<'a> {
    lows: Peekable<std::vec::IntoIter<&'a [u8]>>,
    at_least: usize,
}

impl<'a> Cuts<'a> {
    /// The cuts of a run for the buffer of `node`. Cost: a look at every leaf below.
    fn new(node: &'a Arc<Node>, options: &TreeOptions) -> Cuts<'a> {
        let mut lows = Vec::new();
        node.visit_nodes(&mut |node| {
            if node.level == 1 {
                lows.extend(node.children.iter().map(|child| &child.low[..]));
            }
        });
        Cuts { lows: lows.into_iter().peekable(), at_least: options.segment_bytes / 4 }
    }

    /// Ends the segment before `key` if it should.
    #[inline]
    fn before(&mut self, key: &[u8], writer: &mut RunWriter<'_>) -> Result<()> {
        if self.lows.peek().is_some_and(|low| *low <= key) {
            while self.lows.next_if(|low| *low <= key).is_some() {}
            writer.cut_segment(self.at_least)?;
        }
        Ok(())
    }
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
    let options = &state.tree;
    let root = state.view().root.clone();
    let mut cuts = Cuts::new(&root, options);
    let mut writer = RunWriter::new(
        &shared.pager,
        &shared.pins,
        &mut io.write,
        shared.writing_options(*options),
        shared.filter_room(),
        Purpose::NewData,
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
    shared.storage.reached("memtable-written");
    let run = Arc::new(Run {
        segments: segments.into_iter().collect(),
        spans: head.table.spans(Seqno(u64::MAX)),
        first,
        last,
    });
    let mut moved = 0;
    state.install(head, last, |root| {
        let root = if run.is_empty() { root.clone() } else { tree::append(root, run, options) };
        settle(root, options, &mut moved)
    });
    shared.storage.reached("memtable-installed");
    shared.discharge(head);
    shared.counters.moved_bytes.fetch_add(moved, Relaxed);
    Ok(())
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
        let arriving: u64 = pending.iter().map(|r| r.bytes_in(&site.low, site.high())).sum();
        let garbage = leaf.garbage + site.covered_garbage(leaf);
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
    if !run.is_empty() {
        deltas.push(Arc::new(run));
    }
    let garbage = leaf.garbage + probe.garbage + site.covered_garbage(leaf);
    Ok(vec![(None, Leaf::new(leaf.base.clone(), deltas, garbage, leaf.settled))])
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
    let total: u64 = runs.iter().map(|r| r.bytes_in(&site.low, site.high())).sum();
    // What will be left: of what is pending, as much is overwriting as of the deltas.
    let (base, deltas) = (leaf.base_bytes(), leaf.delta_bytes());
    let overwriting = leaf.garbage.min(deltas) * total.saturating_sub(base) / deltas.max(1);
    let total = total - overwriting.min(base);
    // One leaf while it fits, else parts that have room to grow.
    let parts = if total <= options.leaf_bytes as u64 {
        1
    } else {
        (total * 3 / 2).div_ceil(options.leaf_bytes as u64)
    };
    let part_bytes = if parts == 1 { u64::MAX } else { total.div_ceil(parts) };

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
    let settled = last.max(leaf.settled);
    let leaf_of = |part: Part| {
        let run = Run { segments: part.segments.into_iter().collect(), spans: Spans::default(), first, last };
        (part.low, Leaf::of_base(Some(Arc::new(run)), settled))
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
    use crate::{Db, Result, TreeOptions};

    /// Segments that wait for several leaves keep their space until the last of them had its turn: they should be few.
    #[test]
    fn segments_of_a_buffer_end_where_leaves_do() -> Result<()> {
        let quarter: u32 = 32 << 10;
        let tree = TreeOptions {
            leaf_bytes: 64 << 10,
            segment_bytes: 4 * quarter as usize,
            fanout: 128,
            ..TreeOptions::default()
        };
        let disk = betree_testkit::SimStorage::new(1);
        let builder =
            Db::builder().memory(8 << 20).memtable_bytes(512 << 10).background_threads(0).tree(tree);
        let db = builder.open_on(disk.as_storage())?;
        let keyspace = db.keyspace("records")?;
        let mut next = 0u64;
        let mut insert = |count: u64| -> Result<()> {
            for _ in 0..count {
                next += 1;
                keyspace.insert(next.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 100])?;
            }
            Ok(())
        };
        insert(20_000)?;
        db.compact()?;
        insert(3_000)?;
        keyspace.state.freeze();
        assert!(db.run_background()?, "the flush of the memtable");

        let root = keyspace.state.view().root.clone();
        let lows: Vec<&[u8]> = root.children.iter().map(|child| &child.low[..]).collect();
        let run = &root.queue.last().expect("the run that was just written").run;
        assert!(lows.len() > 20 && run.segments.len() > 5, "{} leaves, {}", lows.len(), run.segments.len());
        for pair in run.segments.windows(2) {
            let between = |low: &&[u8]| pair[0].max[..] < **low && **low <= pair[1].min[..];
            assert!(lows.iter().any(between), "{:?}", pair[0]);
            assert!(pair[0].data_len >= quarter && pair[0].data_len < 3 * quarter, "{:?}", pair[0]);
        }
        db.check().map(drop)
    }
}
