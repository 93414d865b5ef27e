//! Counters of the log. Written with relaxed atomics by whoever does the work; read by [`crate::Wal::stats`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What the log did since it was opened, and how many files it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes the log grew by, frame headers included.
    pub appended_bytes: u64,
    /// Records appended.
    pub records: u64,
    /// Sync rounds: each covers a group of callers.
    pub syncs: u64,
    /// Callers of sync that needed one; divided by `syncs` it is the mean group.
    pub sync_callers: u64,
    /// The largest group one round covered.
    pub largest_group: u64,
    /// Log files that hold records.
    pub live_files: u64,
    /// Files kept for recycling.
    pub spare_files: u64,
    /// Files created anew.
    pub created: u64,
    /// Files recycled from spares.
    pub recycled: u64,
    /// Files removed.
    pub removed: u64,
    /// Times the file held in reserve was taken, because the device was full.
    pub reserve_taken: u64,
    /// Windows the appender had to make itself because none was prepared: each is a stall of a writer.
    pub unprepared_windows: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub syncs: AtomicU64,
    pub sync_callers: AtomicU64,
    pub largest_group: AtomicU64,
    pub created: AtomicU64,
    pub recycled: AtomicU64,
    pub removed: AtomicU64,
    pub reserve_taken: AtomicU64,
    pub unprepared_windows: AtomicU64,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Relaxed);
}

impl crate::files::Shared {
    /// A snapshot of the counters; each is exact, together they are not of one instant.
    pub fn stats(&self) -> Stats {
        let (live_files, spare_files) = {
            let queue = self.queue.lock();
            (queue.live.len() as u64, queue.spares.len() as u64)
        };
        let counters = &self.counters;
        Stats {
            appended_bytes: self.end.load(Relaxed) - self.opened_at.0,
            records: self.records.load(Relaxed),
            syncs: counters.syncs.load(Relaxed),
            sync_callers: counters.sync_callers.load(Relaxed),
            largest_group: counters.largest_group.load(Relaxed),
            live_files,
            spare_files,
            created: counters.created.load(Relaxed),
            recycled: counters.recycled.load(Relaxed),
            removed: counters.removed.load(Relaxed),
            reserve_taken: counters.reserve_taken.load(Relaxed),
            unprepared_windows: counters.unprepared_windows.load(Relaxed),
        }
    }
}
