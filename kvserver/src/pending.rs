//! The writes of a group of commands on their way into one engine batch.
//!
//! Commands of a pipeline run one after the other, but their writes reach the engine together: one batch, one log write.
//! Until then reads must see them, so small writes are kept here a second time, found by hash of the key. What is
//! too large to keep twice, or has no single key (range deletes), makes the next read of anything it could concern
//! commit first.
//!
//! The executor holds the key locks from before the first write until [`Pending::commit`] has returned.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use betree::{Bytes, Durability, WriteBatch};

use crate::failure::{Failure, Outcome};
use crate::locks::Locks;
use crate::store::{Space, Store};

/// Values above this are not kept a second time.
const LARGEST_KEPT: usize = 64 << 10;
/// A batch is committed early, between two commands, beyond this size.
const FULL_BYTES: usize = 1 << 20;
const FULL_LEN: usize = 8192;
/// Memory that is kept for the next batch.
const MEMORY_KEPT: usize = 64 << 10;

/// What is known here about a key.
#[derive(Debug, PartialEq, Eq)]
pub enum Known {
    /// Nothing: ask the engine.
    No,
    /// Written in this group: its value, or `None` if removed.
    Yes(Option<Bytes>),
    /// Commit first, then ask the engine.
    AfterCommit,
}

#[derive(Debug)]
struct Write {
    db: u8,
    space: Space,
    key: (u32, u32),
    /// `None`: removed. `Some(None)`: written, but too large to keep.
    value: Option<Option<(u32, u32)>>,
}

/// Hashes are random already.
#[derive(Debug, Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The writes of a group.
pub struct Pending {
    batch: WriteBatch,
    writes: Vec<Write>,
    latest: HashMap<u64, u32, BuildHasherDefault<Identity>>,
    arena: Vec<u8>,
    has_ranges: bool,
    /// Whether anything in this group reads what it wrote; if not, nothing is kept.
    tracking: bool,
    /// Stripes of the keys written in this group, if it is tracked.
    touched: Vec<u32>,
    failed: Option<betree::Error>,
    commits: u64,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending").field("writes", &self.batch.len()).finish_non_exhaustive()
    }
}

impl Pending {
    /// An empty group.
    pub fn new(store: &Store) -> Self {
        Pending {
            batch: store.engine.batch(),
            writes: Vec::new(),
            latest: HashMap::default(),
            arena: Vec::new(),
            has_ranges: false,
            tracking: true,
            touched: Vec::new(),
            failed: None,
            commits: 0,
        }
    }

    /// Starts a group; `tracking` says whether one of its commands reads.
    pub fn begin(&mut self, tracking: bool) {
        self.tracking = tracking;
        self.touched.clear();
        self.touched.shrink_to(FULL_LEN);
        self.failed = None;
        self.commits = 0;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Differs from every earlier one of the group if anything was written since.
    pub fn position(&self) -> (u64, usize) {
        (self.commits, self.batch.len())
    }

    /// Whether enough waits to be worth a commit between two commands.
    pub fn is_full(&self) -> bool {
        self.batch.encoded_len() > FULL_BYTES || self.batch.len() > FULL_LEN
    }

    /// Whether the group has written something.
    pub fn has_written(&self) -> bool {
        self.commits > 0
    }

    /// Stripes of the keys that were written, or `None` if every key that was locked was.
    pub fn touched(&self) -> Option<&[u32]> {
        self.tracking.then_some(&self.touched)
    }

    /// The first failure of a commit in this group.
    pub fn failure(&mut self) -> Option<betree::Error> {
        self.failed.take()
    }

    /// Apart from each other for the same key in different keyspaces.
    fn identity(hash: u64, db: u8, space: Space) -> u64 {
        hash ^ (u64::from(db) << 1 | u64::from(space == Space::Expires))
    }

    fn keep(&mut self, store: &Store, db: u8, space: Space, key: &[u8], value: Option<&[u8]>) {
        if !self.tracking {
            return;
        }
        let mut copy = |bytes: &[u8]| {
            let start = self.arena.len() as u32;
            self.arena.extend_from_slice(bytes);
            (start, self.arena.len() as u32)
        };
        let key_at = copy(key);
        let value = value.map(|v| (v.len() <= LARGEST_KEPT).then(|| copy(v)));
        let hash = store.locks.hash(key);
        match (space, key) {
            (Space::Data, _) => self.touched.push(Locks::stripe_of(hash)),
            (Space::Expires, [b'k', key @ ..]) => self.touched.push(store.locks.stripe(key)),
            (Space::Expires, _) => {}
        }
        self.latest.insert(Self::identity(hash, db, space), self.writes.len() as u32);
        self.writes.push(Write { db, space, key: key_at, value });
    }

    /// Writes a value.
    pub fn put(&mut self, store: &Store, db: u8, space: Space, key: &[u8], value: &[u8]) -> Outcome {
        self.room(store)?;
        self.batch.insert(store.create(db, space)?, key, value)?;
        self.keep(store, db, space, key, Some(value));
        Ok(())
    }

    /// Removes a key.
    pub fn remove(&mut self, store: &Store, db: u8, space: Space, key: &[u8]) -> Outcome {
        let Some(keyspace) = store.keyspace(db, space) else { return Ok(()) };
        self.room(store)?;
        self.batch.remove(keyspace, key)?;
        self.keep(store, db, space, key, None);
        Ok(())
    }

    /// Removes the keys from `start` up to, not including, `end`.
    pub fn remove_range(&mut self, store: &Store, db: u8, space: Space, start: &[u8], end: &[u8]) -> Outcome {
        let Some(keyspace) = store.keyspace(db, space) else { return Ok(()) };
        self.batch.remove_range(keyspace, start, end)?;
        self.has_ranges = true;
        Ok(())
    }

    /// One command can bring more than a batch may hold; then it is written in parts.
    fn room(&mut self, store: &Store) -> Outcome {
        if self.batch.encoded_len() > 1 << 30 || self.arena.len() > 1 << 30 {
            self.commit(store)
        } else {
            Ok(())
        }
    }

    /// What this group knows about a key.
    pub fn known(&self, store: &Store, db: u8, space: Space, key: &[u8]) -> Known {
        if self.has_ranges {
            return Known::AfterCommit;
        }
        if self.writes.is_empty() {
            return if self.batch.is_empty() || self.tracking { Known::No } else { Known::AfterCommit };
        }
        let Some(&at) = self.latest.get(&Self::identity(store.locks.hash(key), db, space)) else {
            return Known::No;
        };
        let write = &self.writes[at as usize];
        let bytes = |(start, end): (u32, u32)| &self.arena[start as usize..end as usize];
        if (write.db, write.space) != (db, space) || bytes(write.key) != key {
            // Two keys with one hash: not worth more than being right.
            return Known::AfterCommit;
        }
        match write.value {
            None => Known::Yes(None),
            Some(None) => Known::AfterCommit,
            Some(Some(at)) => Known::Yes(Some(Bytes::copy_from_slice(bytes(at)))),
        }
    }

    /// Writes everything to the engine as one batch. Whatever comes of it, nothing waits afterwards; a failure is also
    /// kept for the executor, which takes back the replies of the group.
    pub fn commit(&mut self, store: &Store) -> Outcome {
        self.forget();
        if self.batch.is_empty() {
            return Ok(());
        }
        let large = self.batch.encoded_len() > MEMORY_KEPT;
        // Durability is the connection's business: it holds the replies until a shared sync (`durable`).
        let result = store.engine.write_with(&mut self.batch, Durability::Buffered);
        if large || result.is_err() {
            self.batch = store.engine.batch();
        }
        self.commits += 1;
        result.map_err(|error| {
            self.failed.get_or_insert_with(|| error.clone());
            Failure::Engine(error)
        })
    }

    /// Forgets everything that waits.
    pub fn discard(&mut self) {
        self.batch.clear();
        self.forget();
    }

    fn forget(&mut self) {
        self.has_ranges = false;
        if self.writes.is_empty() {
            return;
        }
        self.writes.clear();
        self.latest.clear();
        self.arena.clear();
        // There is one of these for each connection, and most of the time most are idle.
        self.writes.shrink_to(MEMORY_KEPT / size_of::<Write>());
        self.latest.shrink_to(1024);
        self.arena.shrink_to(MEMORY_KEPT);
    }
}
