//! Counters of the pager: what [`Pager::stats`](crate::Pager::stats) reports.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::cache::{PageKind, ShardStats};

/// Cache look-ups of one page kind.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct KindStats {
    /// Found in the cache.
    pub hits: u64,
    /// Not found.
    pub misses: u64,
}

/// The page cache.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CacheStats {
    /// The configured budget.
    pub budget: u64,
    /// Bytes charged, bookkeeping included.
    pub bytes: u64,
    /// Pages held.
    pub pages: u64,
    /// Pages that left to make room.
    pub evictions: u64,
    /// Look-ups of [`PageKind::Data`].
    pub data: KindStats,
    /// Look-ups of [`PageKind::Meta`].
    pub meta: KindStats,
    /// Look-ups of [`PageKind::Node`].
    pub node: KindStats,
}

/// A point-in-time reading; counters count from open.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// The file's length.
    pub file_bytes: u64,
    /// Owned by extents.
    pub allocated_bytes: u64,
    /// Free, reserve included.
    pub free_bytes: u64,
    /// The part of `free_bytes` that the device may not have allocated: punched holes, and space that was free when
    /// the file was opened.
    pub unbacked_bytes: u64,
    /// Given back to the device by cutting and punching.
    pub given_back_bytes: u64,
    /// Read requests.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Those of the reads that their thread did not sleep through.
    pub busy_reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Checkpoints published.
    pub publishes: u64,
    /// Time spent in the syncs and superblock writes of publishing.
    pub publish_nanos: u64,
    /// The cache.
    pub cache: CacheStats,
}

/// The counters that are not derived from other state.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    reads: AtomicU64,
    read_bytes: AtomicU64,
    pub(crate) busy_reads: AtomicU64,
    writes: AtomicU64,
    write_bytes: AtomicU64,
    pub(crate) given_back_bytes: AtomicU64,
    pub(crate) publishes: AtomicU64,
    pub(crate) publish_nanos: AtomicU64,
}

impl Counters {
    pub(crate) fn read(&self, bytes: usize) {
        self.reads.fetch_add(1, Relaxed);
        self.read_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn wrote(&self, bytes: usize) {
        self.writes.fetch_add(1, Relaxed);
        self.write_bytes.fetch_add(bytes as u64, Relaxed);
    }

    /// The counters' part of the stats.
    pub(crate) fn fill(&self, stats: &mut Stats) {
        stats.reads = self.reads.load(Relaxed);
        stats.read_bytes = self.read_bytes.load(Relaxed);
        stats.busy_reads = self.busy_reads.load(Relaxed);
        stats.writes = self.writes.load(Relaxed);
        stats.write_bytes = self.write_bytes.load(Relaxed);
        stats.given_back_bytes = self.given_back_bytes.load(Relaxed);
        stats.publishes = self.publishes.load(Relaxed);
        stats.publish_nanos = self.publish_nanos.load(Relaxed);
    }
}

impl CacheStats {
    pub(crate) fn of(shards: &ShardStats, budget: usize) -> Self {
        let kind = |kind: PageKind| KindStats {
            hits: shards.hits[kind.index()],
            misses: shards.misses[kind.index()],
        };
        Self {
            budget: budget as u64,
            bytes: shards.bytes as u64,
            pages: shards.pages as u64,
            evictions: shards.evictions,
            data: kind(PageKind::Data),
            meta: kind(PageKind::Meta),
            node: kind(PageKind::Node),
        }
    }
}
