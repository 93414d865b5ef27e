//! Counters and what [`crate::Db::stats`] makes of them.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::shared::Shared;

/// A relaxed counter.
pub(crate) type Counter = AtomicU64;

/// What the engine counts itself; the log and the pager count their own.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub user_bytes: Counter,
    pub messages: Counter,
    pub gets: Counter,
    pub memtable_compactions: Counter,
    pub overtaken_bytes: Counter,
    pub memtable_flush_bytes: Counter,
    pub flush_read: Counter,
    pub flush_written: Counter,
    pub compact_read: Counter,
    pub compact_written: Counter,
    pub moved_bytes: Counter,
    pub checkpoints: Counter,
    pub checkpoint_bytes: Counter,
    pub stall_ns: Counter,
    pub stalls: Counter,
    pub stall_max_ns: Counter,
    pub pace_ns: Counter,
    pub tasks: Counter,
    pub discarded_tasks: Counter,
}

impl Counters {
    pub(crate) fn add(counter: &Counter, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// As [`Counters::add`], for those that change under one lock only: REQUIRES that lock.
    pub(crate) fn add_alone(counter: &Counter, n: u64) {
        counter.store(counter.load(Relaxed) + n, Relaxed);
    }
}

/// A reading of the database's counters. All count from the moment it was opened; sizes are in bytes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Milliseconds since it was opened.
    pub uptime_ms: u64,
    /// The I/O backend: `io_uring`, `portable`, …
    pub backend: String,
    /// The memory budget.
    pub memory_budget: u64,
    /// Memory of all memtables.
    pub memtable_bytes: u64,
    /// Memory of the page cache.
    pub cache_bytes: u64,
    /// Page look-ups answered by the cache.
    pub cache_hits: u64,
    /// Page look-ups that had to read.
    pub cache_misses: u64,
    /// Reads of the device that the caller waited for without sleeping ([`crate::Options::busy_wait`]).
    pub busy_reads: u64,
    /// Memory of the row cache.
    pub row_bytes: u64,
    /// Rows in it.
    pub row_count: u64,
    /// Point reads that found a row there, used or not.
    pub row_hits: u64,
    /// Rows that were remembered when the database was last closed, and brought back since it was opened ([`crate::Options::remember_rows`]).
    pub rows_recalled: u64,
    /// Bytes of the data file that rows take which were remembered, or are for the time after the next start.
    pub rows_remembered_bytes: u64,
    /// Memory of page indexes and filters that segments hold for point reads.
    pub index_bytes: u64,
    /// Bytes appended to the log.
    pub log_bytes_appended: u64,
    /// Bytes of log files that a recovery would read.
    pub log_bytes_live: u64,
    /// Syncs of the log.
    pub log_syncs: u64,
    /// Most writers that shared one sync.
    pub log_group_max: u64,
    /// Bytes of keys and values written by the user.
    pub user_bytes_written: u64,
    /// Messages written.
    pub messages_written: u64,
    /// Point reads.
    pub gets: u64,
    /// In-memory compactions of memtables.
    pub memtable_compactions: u64,
    /// Bytes that they took from memtables: messages that later ones of the same keys hid, which no flush had to write.
    pub memtable_overtaken_bytes: u64,
    /// Bytes of runs made of memtables.
    pub memtable_flush_bytes: u64,
    /// Bytes that flushes (to inner nodes and to leaves as deltas) read.
    pub flush_bytes_read: u64,
    /// Bytes that flushes wrote.
    pub flush_bytes_written: u64,
    /// Bytes that leaf compactions read.
    pub compact_bytes_read: u64,
    /// Bytes that leaf compactions wrote.
    pub compact_bytes_written: u64,
    /// Bytes that went down a level by reference.
    pub moved_bytes: u64,
    /// Checkpoints made durable.
    pub checkpoint_count: u64,
    /// Bytes of nodes, catalogs and remembered rows that they wrote.
    pub checkpoint_bytes: u64,
    /// Length of the data file.
    pub data_file_bytes: u64,
    /// The part of it that is in use.
    pub data_live_bytes: u64,
    /// The part of it that is free.
    pub data_free_bytes: u64,
    /// Nanoseconds that writers waited at the hard limit.
    pub stall_ns: u64,
    /// Times a writer waited at the hard limit.
    pub stall_count: u64,
    /// Longest such wait in nanoseconds.
    pub stall_max_ns: u64,
    /// Nanoseconds by which writers were slowed below the hard limit.
    pub pace_ns: u64,
    /// Background tasks carried out that read or write.
    pub background_tasks: u64,
    /// Background tasks whose result was not wanted any more.
    pub background_tasks_discarded: u64,
    /// Bytes overdue for flushing, as background work last saw it.
    pub debt_bytes: u64,
    /// Levels of the highest tree, leaves included.
    pub tree_height: u64,
    /// Nodes of all trees.
    pub nodes: u64,
    /// Leaves of all trees.
    pub leaves: u64,
    /// Runs of all trees (a shared one counts where it is shared).
    pub runs: u64,
    /// Segments of all trees (a shared one counts where it is shared).
    pub segments: u64,
    /// Keyspaces.
    pub keyspaces: u64,
    /// Messages in runs and memtables: an upper estimate of the number of keys.
    pub approximate_messages: u64,
    /// Bytes written to log and data file per byte written by the user.
    pub write_amplification: f64,
}

impl Shared {
    /// Reads all counters.
    pub(crate) fn stats(&self) -> Stats {
        let pager = self.pager.stats();
        let wal = self.wal.stats();
        let c = &self.counters;
        let rows = self.rows.stats();
        let get = |counter: &Counter| counter.load(Relaxed);
        let mut stats = Stats {
            uptime_ms: self.opened.elapsed().as_millis() as u64,
            backend: self.storage.backend().to_string(),
            memory_budget: self.options.memory as u64,
            cache_bytes: pager.cache.bytes,
            cache_hits: pager.cache.data.hits + pager.cache.meta.hits,
            cache_misses: pager.cache.data.misses + pager.cache.meta.misses,
            busy_reads: pager.busy_reads,
            row_bytes: rows.bytes as u64,
            row_count: rows.rows as u64,
            row_hits: rows.hits,
            rows_recalled: self.recall.rows(),
            rows_remembered_bytes: self.recall.on_disk(),
            index_bytes: self.pins.bytes() as u64,
            log_bytes_appended: wal.appended_bytes,
            log_bytes_live: self.wal.end().0
                - self.checkpoint.try_lock().map_or(self.wal.end(), |d| d.log_start).0,
            log_syncs: wal.syncs,
            log_group_max: wal.largest_group,
            user_bytes_written: get(&c.user_bytes),
            messages_written: get(&c.messages),
            gets: get(&c.gets),
            memtable_compactions: get(&c.memtable_compactions),
            memtable_overtaken_bytes: get(&c.overtaken_bytes),
            memtable_flush_bytes: get(&c.memtable_flush_bytes),
            flush_bytes_read: get(&c.flush_read),
            flush_bytes_written: get(&c.flush_written),
            compact_bytes_read: get(&c.compact_read),
            compact_bytes_written: get(&c.compact_written),
            moved_bytes: get(&c.moved_bytes),
            checkpoint_count: get(&c.checkpoints),
            checkpoint_bytes: get(&c.checkpoint_bytes),
            data_file_bytes: pager.file_bytes,
            data_live_bytes: pager.allocated_bytes,
            data_free_bytes: pager.free_bytes,
            stall_ns: get(&c.stall_ns),
            stall_count: get(&c.stalls),
            stall_max_ns: get(&c.stall_max_ns),
            pace_ns: get(&c.pace_ns),
            background_tasks: get(&c.tasks),
            background_tasks_discarded: get(&c.discarded_tasks),
            debt_bytes: self.pressure.debt(),
            ..Stats::default()
        };
        let mut seen = HashSet::new();
        for state in self.states() {
            let view = state.view();
            stats.keyspaces += 1;
            stats.tree_height = stats.tree_height.max(u64::from(view.root.level) + 1);
            for head in &view.heads {
                stats.memtable_bytes += head.table.bytes() as u64;
                stats.approximate_messages += head.table.len() as u64;
            }
            view.root.visit_nodes(&mut |_| stats.nodes += 1);
            stats.leaves += view.root.leaves();
            view.root.visit_runs(&mut |_| stats.runs += 1);
            view.root.visit_segments(&mut |segment| {
                stats.segments += 1;
                if seen.insert(segment.extent.id()) {
                    stats.approximate_messages += u64::from(segment.messages);
                }
            });
        }
        if stats.user_bytes_written > 0 {
            let written = stats.log_bytes_appended + pager.write_bytes;
            stats.write_amplification = written as f64 / stats.user_bytes_written as f64;
        }
        stats
    }
}
