//! The page cache: immutable pages in memory, sharded by key.
//!
//! A key is (extent id, block within the extent). Ids are never reused, so a page of a freed extent can never be
//! mistaken for one of the extent that took its place; it just ages out, and nothing has to be told to forget it.
//!
//! Pages lie in frames (`storage`), from which memory goes back page by page when the budget falls, very long ones in exact heap allocations.
//! A blocking read goes straight into its frames; what is read by requests in flight together is copied out of their buffers.
//!
//! Locks: one mutex per shard, held for one map look-up on a hit, and for the evictions an insertion causes on a miss.
//! Pages are freed after the lock is released.

#[cfg(all(test, feature = "shuttle"))]
mod models;
mod shard;
mod table;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use betree_storage::primitives::Mutex;
use betree_storage::{Frame, Frames, prefetch};

use self::shard::Shard;
pub(crate) use self::shard::ShardStats;
pub(crate) use self::table::Key;
use crate::checksum;

/// What a page is for: decides how the cache treats it and which counters it moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PageKind {
    /// Messages and values.
    Data,
    /// Page indexes and filters: needed for every access to the data behind them, so they stay longer than data.
    Meta,
    /// Trunk nodes: the engine keeps them decoded, so here they come and go like data.
    Node,
}

impl PageKind {
    #[cfg(test)]
    const ALL: [Self; 3] = [Self::Data, Self::Meta, Self::Node];

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// The verified bytes of one page, shared and immutable. It outlives its place in the cache and its extent.
#[derive(Clone)]
pub struct Page(Arc<PageInner>);

struct PageInner {
    bytes: Memory,
    checksum: u32,
    kind: PageKind,
}

/// Where a page's bytes are.
enum Memory {
    Frame(Frame),
    /// What is longer than any frame, or belongs to no pager.
    Heap(Box<[u8]>),
}

impl Page {
    /// Copies a sealed page. The caller has verified or sealed it.
    #[must_use]
    pub fn copy_of(bytes: &[u8], kind: PageKind) -> Self {
        Self::new(Memory::Heap(bytes.into()), kind)
    }

    /// The same, in a frame unless it is too long for one.
    pub(crate) fn in_frame(frames: &Frames, bytes: &[u8], kind: PageKind) -> Self {
        Self::new(frames.copy_of(bytes).map_or_else(|| Memory::Heap(bytes.into()), Memory::Frame), kind)
    }

    /// A sealed page that was read into a frame. The caller has verified it.
    pub(crate) fn of_frame(frame: Frame, kind: PageKind) -> Self {
        Self::new(Memory::Frame(frame), kind)
    }

    fn new(bytes: Memory, kind: PageKind) -> Self {
        let checksum = checksum::stored(&bytes).unwrap_or(0);
        Self(Arc::new(PageInner { bytes, checksum, kind }))
    }

    /// The checksum the page carries and its parent stores.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        self.0.checksum
    }

    fn prefetch(&self) {
        prefetch::value(&*self.0);
    }

    /// What the page is for.
    #[must_use]
    pub fn kind(&self) -> PageKind {
        self.0.kind
    }
}

impl Deref for Memory {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Frame(frame) => frame,
            Self::Heap(bytes) => bytes,
        }
    }
}

impl Deref for Page {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.0.bytes
    }
}

impl AsRef<[u8]> for Page {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Page {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Page").field("len", &self.len()).field("kind", &self.kind()).finish_non_exhaustive()
    }
}

/// The most shards.
const MAX_SHARDS: usize = 64;
/// The least memory that is worth a shard of its own.
const SHARD_BYTES: usize = 512 << 10;

/// The shards.
#[derive(Debug)]
pub(crate) struct Cache {
    shards: Box<[Mutex<Shard>]>,
    budget: AtomicUsize,
}

impl Cache {
    /// A cache of `bytes`. The number of shards is fixed from then on.
    pub(crate) fn new(bytes: usize) -> Self {
        let count = (bytes / SHARD_BYTES).clamp(1, MAX_SHARDS);
        let count = if count.is_power_of_two() { count } else { count.next_power_of_two() / 2 };
        let shards = (0..count).map(|_| Mutex::new(Shard::new(bytes / count))).collect();
        Self { shards, budget: AtomicUsize::new(bytes) }
    }

    /// The page, if it is here, has this length and carries this checksum.
    ///
    /// A page that differs counts as a miss: the read that follows says which of the two is wrong.
    pub(crate) fn get(&self, key: Key, len: u32, checksum: u32, kind: PageKind) -> Option<Page> {
        let mut shard = self.shard(key).lock();
        let found = shard.get(key, len, checksum, kind);
        if found.is_none() {
            shard.missed(key, kind);
        }
        found
    }

    /// As [`Cache::get`], for a caller who asks first and reads later: absence is not counted.
    pub(crate) fn peek(&self, key: Key, len: u32, checksum: u32, kind: PageKind) -> Option<Page> {
        self.shard(key).lock().get(key, len, checksum, kind)
    }

    /// Adds or replaces a page. One longer than an eighth of a shard is left out: it would push out too many others.
    pub(crate) fn insert(&self, key: Key, page: Page) {
        let evicted = self.shard(key).lock().insert(key, page);
        drop(evicted);
    }

    /// Changes the budget, evicting at once what is over it.
    pub(crate) fn set_budget(&self, bytes: usize) {
        self.budget.store(bytes, Relaxed);
        for shard in &self.shards {
            let evicted = shard.lock().set_budget(bytes / self.shards.len());
            drop(evicted);
        }
    }

    pub(crate) fn budget(&self) -> usize {
        self.budget.load(Relaxed)
    }

    /// The sums over all shards.
    pub(crate) fn stats(&self) -> ShardStats {
        let mut sum = ShardStats::default();
        for shard in &self.shards {
            sum.add(&shard.lock().stats());
        }
        sum
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        // The upper half of the hash: the lower bits place the key inside the shard's table.
        &self.shards[(key.hash() >> 32) as usize & (self.shards.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(key: u64, len: usize, kind: PageKind) -> Page {
        let mut bytes = vec![key as u8; len];
        bytes[..4].copy_from_slice(&(key as u32).to_le_bytes());
        Page::copy_of(&bytes, kind)
    }

    fn key(id: u64) -> Key {
        Key { extent: id, block: 0 }
    }

    fn get(cache: &Cache, id: u64, kind: PageKind) -> Option<Page> {
        cache.get(key(id), 4096, id as u32, kind)
    }

    #[test]
    fn a_hit_returns_the_bytes_and_another_length_or_checksum_is_a_miss() {
        let cache = Cache::new(1 << 20);
        cache.insert(key(1), page(1, 4096, PageKind::Data));
        assert_eq!(get(&cache, 1, PageKind::Data).unwrap()[4..], vec![1; 4092]);
        assert!(cache.get(key(1), 8192, 1, PageKind::Data).is_none());
        assert!(cache.get(key(1), 4096, 2, PageKind::Data).is_none());
        assert!(cache.get(Key { extent: 1, block: 1 }, 4096, 1, PageKind::Data).is_none());
        let stats = cache.stats();
        assert_eq!((stats.hits[0], stats.misses[0]), (1, 3));
    }

    #[test]
    fn a_page_over_an_eighth_of_a_shard_is_not_kept() {
        let cache = Cache::new(256 << 10);
        cache.insert(key(1), page(1, 36 << 10, PageKind::Data));
        cache.insert(key(2), page(2, 28 << 10, PageKind::Data));
        assert!(cache.get(key(1), 36 << 10, 1, PageKind::Data).is_none());
        assert!(cache.get(key(2), 28 << 10, 2, PageKind::Data).is_some());
    }

    #[test]
    fn a_scan_pushes_out_neither_what_is_used_often_nor_the_meta_pages() {
        let cache = Cache::new(512 << 10);
        for id in 0..30 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        for id in 30..40 {
            cache.insert(key(id), page(id, 4096, PageKind::Meta));
        }
        for _ in 0..3 {
            for id in 0..30 {
                get(&cache, id, PageKind::Data).unwrap();
            }
        }
        for id in 1000..6000 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        let kept = (0..40).filter(|&id| get(&cache, id, PageKind::Data).is_some()).count();
        assert_eq!(kept, 40);
    }

    #[test]
    fn a_page_that_comes_back_soon_after_eviction_is_kept() {
        let cache = Cache::new(512 << 10);
        for id in 0..200 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        assert!(get(&cache, 60, PageKind::Data).is_none());
        cache.insert(key(60), page(60, 4096, PageKind::Data));
        for id in 1000..1200 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        assert!(get(&cache, 60, PageKind::Data).is_some());
    }

    #[test]
    fn shrinking_evicts_at_once() {
        let cache = Cache::new(1 << 20);
        for id in 0..200 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        assert!(cache.stats().bytes > 700 << 10);
        let latest = (0..200).rev().find(|&id| get(&cache, id, PageKind::Data).is_some()).unwrap();
        cache.set_budget(100 << 10);
        assert!(cache.stats().bytes <= 100 << 10);
        cache.shards.iter().for_each(|shard| shard.lock().check());
        assert!(get(&cache, latest, PageKind::Data).is_some());
        for id in 1000..1100 {
            cache.insert(key(id), page(id, 4096, PageKind::Data));
        }
        cache.shards.iter().for_each(|shard| shard.lock().check());
        assert!(cache.stats().pages > 10);
        cache.set_budget(0);
        assert_eq!((cache.stats().bytes, cache.stats().pages), (0, 0));
        cache.insert(key(1), page(1, 4096, PageKind::Data));
        assert_eq!(cache.stats().pages, 0);
    }

    /// Every hit is what was inserted, and the budget holds after every step, from several threads.
    #[test]
    fn random_use_from_several_threads_stays_in_the_budget_and_returns_the_right_bytes() {
        let seed = 0x5eed_0002_u64;
        println!("seed {seed:#x}");
        let cache = Cache::new(2 << 20);
        std::thread::scope(|scope| {
            for thread in 1..=4u64 {
                let cache = &cache;
                scope.spawn(move || {
                    let mut state = seed.wrapping_mul(thread);
                    for step in 0..20_000u64 {
                        state ^= state << 13;
                        state ^= state >> 7;
                        state ^= state << 17;
                        // Squaring skews the choice, so that some keys are hot.
                        let id = (state % 1500) * (state >> 32 & 0x3ff) / 1024;
                        let kind = PageKind::ALL[(id % 3) as usize];
                        match get(cache, id, kind) {
                            Some(found) => {
                                assert_eq!(found.len(), 4096);
                                assert!(found[4..].iter().all(|&b| b == id as u8));
                            }
                            None => cache.insert(key(id), page(id, 4096, kind)),
                        }
                        if step % 64 == 0 {
                            assert!(cache.stats().bytes <= 2 << 20);
                        }
                    }
                });
            }
        });
        let stats = cache.stats();
        assert!(stats.evictions > 0 && stats.hits.iter().sum::<u64>() > 0);
        for shard in &cache.shards {
            shard.lock().check();
        }
    }
}
