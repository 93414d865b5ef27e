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
//! Invariants (`cache.charged_once`): every entry of the table is in exactly one queue once; `bytes` and
//! `small_bytes` are the sums of the charges; `bytes` is within the budget whenever the lock is free.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::{Page, PageKind};

/// Names a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) extent: u64,
    pub(crate) block: u32,
}

impl Key {
    /// A well-mixed hash: extent ids and blocks are small consecutive numbers.
    pub(crate) fn hash(self) -> u64 {
        let mut x = self.extent.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(self.block).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^= x >> 32;
        x = x.wrapping_mul(0xD6E8_FEB8_6659_FD93);
        x ^ x >> 29
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(Key::hash(*self));
    }
}

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

type Table<K, V> = HashMap<K, V, BuildHasherDefault<Mixed>>;

/// What an entry costs beside its page's bytes: two heap headers (32), the shared page (48), the entry with slack for
/// the vector's growth (64), a table slot at the usual load (48), queue places (16), a ghost (48).
pub(crate) const OVERHEAD: usize = 256;
/// The small queue's part of the budget.
const SMALL_FRACTION: usize = 10;
/// The largest page, as a part of the budget.
const LARGEST_FRACTION: usize = 8;
/// The credit a data page can collect.
const MAX_CREDIT: u8 = 3;
/// The credit a meta page can collect.
const MAX_META_CREDIT: u8 = 7;

/// Entries that are kept room for, however few there are.
const FEW: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Queue {
    Small,
    Main,
}

#[derive(Debug)]
struct Entry {
    key: Key,
    page: Page,
    queue: Queue,
    credit: u8,
}

impl Entry {
    fn charge(&self) -> usize {
        charge(&self.page)
    }
}

fn charge(page: &Page) -> usize {
    page.len() + OVERHEAD
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
    table: Table<Key, u32>,
    entries: Vec<Option<Entry>>,
    vacant: Vec<u32>,
    small: VecDeque<u32>,
    main: VecDeque<u32>,
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
            entries: Vec::new(),
            vacant: Vec::new(),
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghosts: Ghosts::default(),
            stats: ShardStats::default(),
        }
    }

    /// The page if it is here and `fits`; counts a hit of `kind`.
    pub(crate) fn get(&mut self, key: Key, kind: PageKind, fits: impl FnOnce(&Page) -> bool) -> Option<Page> {
        let entry = self.table.get(&key).and_then(|&slot| self.entries[slot as usize].as_mut());
        match entry {
            Some(entry) if fits(&entry.page) => {
                let most = if entry.page.kind() == PageKind::Meta { MAX_META_CREDIT } else { MAX_CREDIT };
                // Written only when it changes: hot pages stay clean in the cache lines of several cores.
                if entry.credit < most {
                    entry.credit += 1;
                }
                self.stats.hits[kind.index()] += 1;
                Some(entry.page.clone())
            }
            _ => None,
        }
    }

    /// Counts a look-up that found nothing and goes on to the device.
    pub(crate) fn missed(&mut self, kind: PageKind) {
        self.stats.misses[kind.index()] += 1;
    }

    /// Adds or replaces a page and returns what had to leave, for the caller to free without the lock.
    pub(crate) fn insert(&mut self, key: Key, page: Page) -> Vec<Page> {
        if charge(&page) > self.budget / LARGEST_FRACTION {
            return vec![page];
        }
        let mut gone = Vec::new();
        if let Some(&slot) = self.table.get(&key) {
            // Two readers missed it at once, or it was rebuilt: the later one stays, where the former was.
            if let Some(entry) = self.entries[slot as usize].as_mut() {
                let (old, new) = (entry.charge(), charge(&page));
                self.bytes = self.bytes - old + new;
                if entry.queue == Queue::Small {
                    self.small_bytes = self.small_bytes - old + new;
                }
                gone.push(std::mem::replace(&mut entry.page, page));
            }
        } else {
            let returned = self.ghosts.remove(key);
            let main = returned || page.kind() == PageKind::Meta;
            self.bytes += charge(&page);
            let queue = if main { Queue::Main } else { Queue::Small };
            let slot = self.place(Entry { key, page, queue, credit: 0 });
            self.table.insert(key, slot);
        }
        self.evict(&mut gone);
        gone
    }

    pub(crate) fn set_budget(&mut self, budget: usize) -> Vec<Page> {
        self.budget = budget;
        let mut gone = Vec::new();
        self.evict(&mut gone);
        if self.entries.len() > 2 * self.table.len() + FEW {
            self.shrink();
        }
        gone
    }

    /// Lets go of the memory that more entries needed than there are now.
    fn shrink(&mut self) {
        let mut entries = Vec::with_capacity(self.table.len());
        for slot in self.small.iter_mut().chain(&mut self.main) {
            let entry = self.entries[*slot as usize].take();
            *slot = entries.len() as u32;
            if let Some(entry) = &entry {
                self.table.insert(entry.key, *slot);
            }
            entries.push(entry);
        }
        (self.entries, self.vacant) = (entries, Vec::new());
        self.table.shrink_to_fit();
        self.small.shrink_to_fit();
        self.main.shrink_to_fit();
        self.ghosts.shrink();
    }

    pub(crate) fn stats(&self) -> ShardStats {
        ShardStats { bytes: self.bytes, pages: self.table.len(), ..self.stats.clone() }
    }

    /// Stores an entry in a slot and at the end of its queue.
    fn place(&mut self, entry: Entry) -> u32 {
        let (queue, charge) = (entry.queue, entry.charge());
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.entries[slot as usize] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                (self.entries.len() - 1) as u32
            }
        };
        match queue {
            Queue::Small => {
                self.small_bytes += charge;
                self.small.push_back(slot);
            }
            Queue::Main => self.main.push_back(slot),
        }
        slot
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
        let Some(slot) = self.small.pop_front() else { return false };
        let Some(entry) = self.entries[slot as usize].as_mut() else { return true };
        self.small_bytes -= entry.charge();
        // One further use may be the same operation reading the page twice; two are a habit.
        if entry.credit > 1 {
            entry.queue = Queue::Main;
            entry.credit = 0;
            self.main.push_back(slot);
        } else {
            let key = entry.key;
            self.remove(slot, gone);
            self.ghosts.add(key);
        }
        true
    }

    /// Gives the main queue's oldest page another turn for a credit, or lets it go. Credits are finite, so the loop
    /// around it ends.
    fn turn_main(&mut self, gone: &mut Vec<Page>) -> bool {
        let Some(slot) = self.main.pop_front() else { return false };
        let Some(entry) = self.entries[slot as usize].as_mut() else { return true };
        if entry.credit > 0 {
            entry.credit -= 1;
            self.main.push_back(slot);
        } else {
            self.remove(slot, gone);
        }
        true
    }

    fn remove(&mut self, slot: u32, gone: &mut Vec<Page>) {
        if let Some(entry) = self.entries[slot as usize].take() {
            self.bytes -= entry.charge();
            self.table.remove(&entry.key);
            self.vacant.push(slot);
            self.stats.evictions += 1;
            gone.push(entry.page);
        }
    }

    /// Asserts `cache.charged_once`.
    #[cfg(test)]
    pub(crate) fn check(&self) {
        let queued = |queue: &VecDeque<u32>, which: Queue| {
            let entries = queue.iter().map(|&slot| self.entries[slot as usize].as_ref().unwrap());
            entries.inspect(|entry| assert_eq!(entry.queue, which)).map(Entry::charge).sum::<usize>()
        };
        let small = queued(&self.small, Queue::Small);
        assert_eq!(small, self.small_bytes);
        assert_eq!(small + queued(&self.main, Queue::Main), self.bytes);
        assert_eq!(self.small.len() + self.main.len(), self.table.len());
        assert_eq!(self.table.len() + self.vacant.len(), self.entries.len());
        assert!(self.bytes <= self.budget);
        for (key, &slot) in &self.table {
            assert_eq!(self.entries[slot as usize].as_ref().unwrap().key, *key);
        }
    }
}

/// The hashes of the keys that left the small queue last, at most as many as there are pages.
#[derive(Debug, Default)]
struct Ghosts {
    /// Hash to the number under which it is in `order`; an older number there is stale.
    numbers: Table<u64, u64>,
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
