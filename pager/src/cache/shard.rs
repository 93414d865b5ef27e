//! One shard of the page cache: S3-FIFO eviction (Yang, Zhang, Qiu, Yue, Rashmi: "FIFO queues are all you need for
//! cache eviction", SOSP 2023).
//!
//! A new page enters a small queue with a tenth of the budget. What is used again while there moves to the main queue
//! when it reaches the end, the rest leaves and only a tag of its key is remembered, until that of another takes its place; a page that
//! returns while remembered enters the main queue directly. The main queue gives pages another turn for each credit.
//! So a scan passes through the small queue, and a hit writes nothing but a credit.
//!
//! Meta pages enter the main queue at once and may collect more credit.
//!
//! Invariants (`cache.charged_once`): every page of the table is in exactly one queue once; `bytes` and
//! `small_bytes` are the sums of the charges; `bytes` is within the budget whenever the lock is free.

use std::collections::VecDeque;

use betree_storage::prefetch;

use super::table::{Queue, Slot, Table};
use super::{Key, Page, PageKind};

/// What a page costs beside its bytes: two heap headers (32), the shared page (64), its slot and ghost at the lowest load of the table (91), queue places
/// with slack for the queue's growth (32).
pub(crate) const OVERHEAD: usize = 224;
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

    /// Counts a look-up that found nothing and goes on to the device. What the insertion that follows will touch comes from memory meanwhile.
    pub(crate) fn missed(&mut self, key: Key, kind: PageKind) {
        self.stats.misses[kind.index()] += 1;
        self.ghosts.prefetch(key);
        // The page that leaves is found by its slot, so that of the next is asked for as well.
        if let Some(&next) = self.small.get(1) {
            self.table.prefetch(next);
        }
        if let Some(&oldest) = self.small.front() {
            self.ghosts.prefetch(oldest);
            self.table.get_mut(oldest).inspect(|slot| slot.prefetch());
        }
    }

    /// Adds or replaces a page and returns what had to leave, for the caller to free without the lock.
    pub(crate) fn insert(&mut self, key: Key, page: Page) -> Gone {
        let new = charge(page.len());
        let mut gone = Gone::default();
        if new > self.budget / LARGEST_FRACTION {
            gone.push(page);
            return gone;
        }
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
            let queue = if self.ghosts.take(key) || page.kind() == PageKind::Meta {
                self.main.push_back(key);
                Queue::Main
            } else {
                self.small_bytes += new;
                self.small.push_back(key);
                Queue::Small
            };
            self.table.insert(Slot::new(key, page, queue));
            self.ghosts.fit(&self.table);
        }
        self.evict(&mut gone);
        gone
    }

    pub(crate) fn set_budget(&mut self, budget: usize) -> Gone {
        self.budget = budget;
        let mut gone = Gone::default();
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
        self.ghosts.fit(&self.table);
    }

    pub(crate) fn stats(&self) -> ShardStats {
        ShardStats { bytes: self.bytes, pages: self.table.len(), ..self.stats.clone() }
    }

    fn evict(&mut self, gone: &mut Gone) {
        while self.bytes > self.budget {
            let small_first = self.small_bytes > self.budget / SMALL_FRACTION || self.main.is_empty();
            let turned = if small_first { self.turn_small(gone) } else { self.turn_main(gone) };
            if !turned {
                break;
            }
        }
    }

    /// Moves the small queue's oldest page to the main queue if it was used again, out otherwise.
    fn turn_small(&mut self, gone: &mut Gone) -> bool {
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
    fn turn_main(&mut self, gone: &mut Gone) -> bool {
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

    fn remove(&mut self, key: Key, gone: &mut Gone) {
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

/// Pages that had to leave. Nearly always there is one at most, which needs no memory.
#[derive(Debug, Default)]
pub(crate) struct Gone {
    first: Option<Page>,
    more: Vec<Page>,
}

impl Gone {
    fn push(&mut self, page: Page) {
        if let Some(before) = self.first.replace(page) {
            self.more.push(before);
        }
    }
}

/// Tags of the keys that left the small queue lately. Each has one place, which the next with the same place takes: with as many places as the table has,
/// they are remembered about as long as it takes for that many others to leave.
#[derive(Debug, Default)]
struct Ghosts(Box<[u16]>);

impl Ghosts {
    /// Has as many places as the table, a power of two.
    fn fit(&mut self, table: &Table) {
        if self.0.len() != table.slots() {
            self.0 = vec![0; table.slots()].into();
        }
    }

    /// The place of a key and its tag, which is never that of an empty place.
    fn place(&mut self, key: Key) -> Option<(&mut u16, u16)> {
        let hash = key.hash();
        let mask = self.0.len().checked_sub(1)?;
        let tag = ((hash >> 48) as u16).max(1);
        Some((&mut self.0[hash as usize & mask], tag))
    }

    fn add(&mut self, key: Key) {
        if let Some((place, tag)) = self.place(key) {
            *place = tag;
        }
    }

    /// Whether the key was remembered; it no longer is.
    fn take(&mut self, key: Key) -> bool {
        self.place(key).is_some_and(|(place, tag)| {
            let remembered = *place == tag;
            if remembered {
                *place = 0;
            }
            remembered
        })
    }

    fn prefetch(&mut self, key: Key) {
        self.place(key).inspect(|(place, _)| prefetch::value(&**place));
    }
}
