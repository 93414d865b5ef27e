//! The row cache: values of single keys, for reads that are skewed towards some of them. A data page holds some thirty records of which perhaps
//! one is popular; kept by row, the same memory holds thirty times as many popular ones.
//!
//! A row is a message near the root: it says what the keyspace's tree had for a key when everything up to the Seqno `at` was in it.
//! Nothing has to be told to the cache when the tree changes. A read takes the row as it would take a message that it met on the way down, after it has
//! asked the runs above: those that hold anything newer than `at`, of which there are few, and whose filters are in memory. So a write costs
//! nothing, and a row that was overtaken is found out by the reader. Only where a leaf was
//! compacted since, deletes may have vanished without a trace: there a row is not used.
//!
//! What is read often is often written, too, and a row that was overtaken costs a page read. So the flush of a memtable brings the rows of the keys in it
//! up to date, and makes rows of the others while there is room that no read has filled yet: one look-up per message, in the background. They are then
//! ahead of the views that still have the memtable, whose reads find the key there.
//!
//! Invariant `row.as_of`: the value is what a view of that keyspace with `flushed == at` has in its tree for the key, and no operand lies above it.
//!
//! Owns its memory: chunks of rows, and a table. Called by `get`; one mutex per shard, under which nothing else is locked.

mod shard;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use betree_storage::primitives::Mutex;
use bytes::Bytes;

use self::shard::Shard;
use crate::hash;
use crate::types::{KeyspaceId, Seqno};

/// The most shards.
const MAX_SHARDS: usize = 64;
/// The least memory that is worth a shard of its own.
const SHARD_BYTES: usize = 2 << 20;
/// What a shard takes to begin: a chunk for each of its queues.
const LEAST_SHARD: usize = 128 << 10;

/// Names a row, with the hash of its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowKey<'a> {
    keyspace: KeyspaceId,
    pub key: &'a [u8],
    pub key_hash: u64,
    hash: u64,
}

impl<'a> RowKey<'a> {
    /// REQUIRES that `key_hash` is that of `key`.
    pub(crate) fn new(keyspace: KeyspaceId, key: &'a [u8], key_hash: u64) -> RowKey<'a> {
        let hash = key_hash ^ u64::from(keyspace.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        RowKey { keyspace, key, key_hash, hash }
    }
}

/// A row, as it is remembered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub keyspace: KeyspaceId,
    pub at: Seqno,
    /// How often it was read lately, up to 3.
    pub credit: u8,
    pub key: &'a [u8],
    pub value: &'a [u8],
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Rows {
    shards: Box<[Mutex<Shard>]>,
    limit: AtomicUsize,
}

impl Rows {
    /// A row cache that never gets more than `most` bytes, and has none until [`Rows::set_limit`].
    pub(crate) fn new(most: usize) -> Rows {
        let count = 1 << (most / SHARD_BYTES).clamp(1, MAX_SHARDS).ilog2();
        let shards = (0..count).map(|_| Mutex::new(Shard::default())).collect();
        Rows { shards, limit: AtomicUsize::new(0) }
    }

    /// By so much at least the limit has to grow at a time: with less, no shard could begin.
    pub(crate) fn least_step(&self) -> usize {
        self.shards.len() * LEAST_SHARD
    }

    /// The row of `key`, and as of when.
    #[inline]
    pub(crate) fn get(&self, key: RowKey<'_>) -> Option<(Seqno, Bytes)> {
        if self.limit.load(Relaxed) == 0 {
            return None;
        }
        self.shard(key.hash).lock().get(key)
    }

    /// Keeps a row, unless there is a later one, or it is too large to be worth it.
    #[inline]
    pub(crate) fn insert(&self, key: RowKey<'_>, at: Seqno, value: &[u8]) {
        if self.limit.load(Relaxed) > 0 {
            self.shard(key.hash).lock().insert(key, at, value);
        }
    }

    /// Asks for what [`Rows::insert`] will touch from memory, for a caller that waits for a page first.
    #[inline]
    pub(crate) fn expect(&self, key: RowKey<'_>) {
        if self.limit.load(Relaxed) > 0 {
            self.shard(key.hash).lock().expect(key);
        }
    }

    /// Brings the row of `key` up to date, or makes one if nothing has to leave for it: `value` is what a tree has that holds everything up to `at`.
    #[inline]
    pub(crate) fn flushed(&self, key: RowKey<'_>, at: Seqno, value: &[u8]) {
        self.shard(key.hash).lock().flushed(key, at, value);
    }

    /// Takes rows that were remembered, with less credit than they had: those that are not there and for which nothing has to leave. How many. They are
    /// best in the order in which [`Rows::visit`] shows them.
    pub(crate) fn recall(&self, rows: &[Row<'_>]) -> u64 {
        let name = |row: &Row<'_>| RowKey::new(row.keyspace, row.key, hash::hash(row.key)).hash;
        let hashes: Vec<u64> = rows.iter().map(name).collect();
        let part = |hash: u64| hash as usize & (self.shards.len() - 1);
        let (mut taken, mut from) = (0, 0);
        for hashes in hashes.chunk_by(|&one, &other| part(one) == part(other)) {
            let rows = &rows[from..from + hashes.len()];
            from += hashes.len();
            taken += self.shards[part(hashes[0])].lock().recall(rows, hashes);
        }
        taken
    }

    /// How many parts [`Rows::visit`] has.
    pub(crate) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Shows rows of one part, about `most` bytes: those with most credit first, of equal ones the newest.
    pub(crate) fn visit(&self, shard: usize, most: usize, visit: &mut dyn FnMut(Row<'_>)) {
        self.shards[shard].lock().visit(most, visit);
    }

    /// Whether there is no row.
    pub(crate) fn is_empty(&self) -> bool {
        self.limit.load(Relaxed) == 0 || self.shards.iter().all(|shard| shard.lock().is_empty())
    }

    /// Changes the limit; what is over it leaves at once.
    pub(crate) fn set_limit(&self, bytes: usize) {
        if self.limit.swap(bytes, Relaxed) != bytes {
            for shard in &self.shards {
                shard.lock().set_limit(bytes / self.shards.len());
            }
        }
    }

    /// Bytes of memory in use, rows in it, and look-ups that found one.
    pub(crate) fn stats(&self) -> RowStats {
        let mut sum = RowStats::default();
        for shard in &self.shards {
            shard.lock().add_stats(&mut sum);
        }
        sum
    }

    fn shard(&self, hash: u64) -> &Mutex<Shard> {
        &self.shards[hash as usize & (self.shards.len() - 1)]
    }
}

/// See [`Rows::stats`].
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowStats {
    pub bytes: usize,
    pub rows: usize,
    pub hits: u64,
}
