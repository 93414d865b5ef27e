//! One shard of the page cache: S3-FIFO eviction (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for
//! cache eviction", SOSP 2023).
//!
//! A new page enters a small queue with a tenth of the budget. What is used again while there moves to the main queue
//! when it reaches the end, the rest leaves and only its key's hash is remembered in the ghost list; a page that
//! returns while remembered enters the main queue directly. The main queue gives pages another turn for each credit.
//! So a scan passes through the small queue, and a hit writes nothing but a credit.
//!
//! Meta pages enter the main queue at once and may collect more credit.
//!
//! Invariants (`cache.charged_once`): every page of the table is in exactly one queue once; `bytes` and
//! `small_bytes` are the sums of the charges; `bytes` is within the budget whenever the lock is free.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::table::{Queue, Slot, Table};
use super::{Key, Page, PageKind};

/// Passes an already mixed u64 through.
#[derive(Debug, Default, Clone, Copy)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

/// What a page costs beside its bytes: two heap headers (32), the shared page (48), its slot at the lowest load of the table (86), queue places with
/// slack for the queue's growth (32), a ghost (48).
pub(crate) const OVERHEAD: usize = 256;
/// The small queue's part of the budget.
const SMALL_FRACTION: usize = 10;
/// The largest page, as a part of the budget.
const LARGEST_FRACTION: usize = 8;
/// The credit a data page can collect.
const MAX_CREDIT: u8 = 3;
/// The credit a meta page can collect.
const MAX_META_CREDIT: u8 = 7;

/// Pages that are kept room for, however few there are.
const FEW: usize = 64;

fn charge(len: usize) -> usize {
    len + OVERHEAD
}

/// Counters of a shard, and their sum over all shards.
#[derive(Debug, Default, Clone)]
pub(crate) struct ShardStats {
    pub(crate) bytes: usize,
    pub(crate) pages: usize,
    pub(crate) hits: [u64; 3],
    pub(crate) misses: [u64; 3],
    pub(crate) evictions: u64,
}

impl ShardStats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.bytes += other.bytes;
        self.pages += other.pages;
        self.evictions += other.evictions;
        for kind in 0..3 {
            self.hits[kind] += other.hits[kind];
            self.misses[kind] += other.misses[kind];
        }
    }
}

/// The state behind one shard's mutex.
#[derive(Debug)]
pub(crate) struct Shard {
    budget: usize,
    bytes: usize,
    small_bytes: usize,
    table: Table,
    small: VecDeque<Key>,
    main: VecDeque<Key>,
    ghosts: Ghosts,
    stats: ShardStats,
}

impl Shard {
    pub(crate) fn new(budget: usize) -> Self {
        Self {
            budget,
            bytes: 0,
            small_bytes: 0,
            table: Table::default(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: Ghosts::default(),
            stats: ShardStats::default(),
        }
    }

    /// The page if it is here, has this length and carries this checksum; counts a hit of `kind`.
    pub(crate) fn get(&mut self, key: Key, len: u32, checksum: u32, kind: PageKind) -> Option<Page> {
        let slot = self.table.get_mut(key)?;
        let page = slot.page(len, checksum)?.clone();
        let most = if slot.kind == PageKind::Meta { MAX_META_CREDIT } else { MAX_CREDIT };
        // Written only when it changes: hot pages stay clean in the cache lines of several cores.
        if slot.credit < most {
            slot.credit += 1;
        }
        self.stats.hits[kind.index()] += 1;
        Some(page)
    }

    /// Counts a look-up that found nothing and goes on to the device.
    pub(crate) fn missed(&mut self, kind: PageKind) {
        self.stats.misses[kind.index()] += 1;
    }

    /// Adds or replaces a page and returns what had to leave, for the caller to free without the lock.
    pub(crate) fn insert(&mut self, key: Key, page: Page) -> Vec<Page> {
        let new = charge(page.len());
        if new > self.budget / LARGEST_FRACTION {
            return vec![page];
        }
        let mut gone = Vec::new();
        if let Some(slot) = self.table.get_mut(key) {
            // Two readers missed it at once, or it was rebuilt: the later one stays, where the former was.
            let old = charge(slot.len());
            self.bytes = self.bytes - old + new;
            if slot.queue == Queue::Small {
                self.small_bytes = self.small_bytes - old + new;
            }
            gone.push(slot.replace(page));
        } else {
            self.bytes += new;
            let queue = if self.ghosts.remove(key) || page.kind() == PageKind::Meta {
                self.main.push_back(key);
                Queue::Main
            } else {
                self.small_bytes += new;
                self.small.push_back(key);
                Queue::Small
            };
            self.table.insert(Slot::new(key, page, queue));
        }
        self.evict(&mut gone);
        gone
    }

    pub(crate) fn set_budget(&mut self, budget: usize) -> Vec<Page> {
        self.budget = budget;
        let mut gone = Vec::new();
        self.evict(&mut gone);
        if self.small.capacity() + self.main.capacity() > 4 * self.table.len() + FEW {
            self.shrink();
        }
        gone
    }

    /// Lets go of the memory that more pages needed than there are now.
    fn shrink(&mut self) {
        self.table.shrink();
        self.small.shrink_to_fit();
        self.main.shrink_to_fit();
        self.ghosts.shrink();
    }

    pub(crate) fn stats(&self) -> ShardStats {
        ShardStats { bytes: self.bytes, pages: self.table.len(), ..self.stats.clone() }
    }

    fn evict(&mut self, gone: &mut Vec<Page>) {
        while self.bytes > self.budget {
            let small_first = self.small_bytes > self.budget / SMALL_FRACTION || self.main.is_empty();
            let turned = if small_first { self.turn_small(gone) } else { self.turn_main(gone) };
            if !turned {
                break;
            }
        }
        self.ghosts.trim(self.table.len());
    }

    /// Moves the small queue's oldest page to the main queue if it was used again, out otherwise.
    fn turn_small(&mut self, gone: &mut Vec<Page>) -> bool {
        let Some(key) = self.small.pop_front() else { return false };
        let Some(slot) = self.table.get_mut(key) else { return true };
        self.small_bytes -= charge(slot.len());
        // One further use may be the same operation reading the page twice; two are a habit.
        if slot.credit > 1 {
            slot.queue = Queue::Main;
            slot.credit = 0;
            self.main.push_back(key);
        } else {
            self.remove(key, gone);
            self.ghosts.add(key);
        }
        true
    }

    /// Gives the main queue's oldest page another turn for a credit, or lets it go. Credits are finite, so the loop
    /// around it ends.
    fn turn_main(&mut self, gone: &mut Vec<Page>) -> bool {
        let Some(key) = self.main.pop_front() else { return false };
        let Some(slot) = self.table.get_mut(key) else { return true };
        if slot.credit > 0 {
            slot.credit -= 1;
            self.main.push_back(key);
        } else {
            self.remove(key, gone);
        }
        true
    }

    fn remove(&mut self, key: Key, gone: &mut Vec<Page>) {
        if let Some(slot) = self.table.remove(key) {
            self.bytes -= charge(slot.len());
            self.stats.evictions += 1;
            gone.push(slot.into_page());
        }
    }

    /// Asserts `cache.charged_once`.
    #[cfg(test)]
    pub(crate) fn check(&mut self) {
        let (small, main) = (self.small.clone(), self.main.clone());
        let mut queued = |queue: VecDeque<Key>, which: Queue| {
            let mut bytes = 0;
            for key in queue {
                let slot = self.table.get_mut(key).unwrap();
                assert_eq!(slot.queue, which);
                bytes += charge(slot.len());
            }
            bytes
        };
        let small = queued(small, Queue::Small);
        assert_eq!(small, self.small_bytes);
        assert_eq!(small + queued(main, Queue::Main), self.bytes);
        assert_eq!(self.small.len() + self.main.len(), self.table.len());
        assert_eq!(self.table.keys().count(), self.table.len());
        assert!(self.bytes <= self.budget);
    }
}

/// The hashes of the keys that left the small queue last, at most as many as there are pages.
#[derive(Debug, Default)]
struct Ghosts {
    /// Hash to the number under which it is in `order`; an older number there is stale.
    numbers: HashMap<u64, u64, BuildHasherDefault<Mixed>>,
    order: VecDeque<(u64, u64)>,
    next: u64,
}

impl Ghosts {
    fn add(&mut self, key: Key) {
        self.next += 1;
        self.numbers.insert(key.hash(), self.next);
        self.order.push_back((key.hash(), self.next));
    }

    /// Whether the key was remembered; it no longer is.
    fn remove(&mut self, key: Key) -> bool {
        self.numbers.remove(&key.hash()).is_some()
    }

    fn shrink(&mut self) {
        self.numbers.shrink_to_fit();
        self.order.shrink_to_fit();
    }

    fn trim(&mut self, most: usize) {
        while self.order.len() > most {
            let Some((hash, number)) = self.order.pop_front() else { return };
            if self.numbers.get(&hash) == Some(&number) {
                self.numbers.remove(&hash);
            }
        }
    }
}
