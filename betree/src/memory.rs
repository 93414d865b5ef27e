//! Who has how much of the memory budget: memtables what they need, background work its buffers, the trunk what it is reckoned to have, the caches the rest.
//!
//! While writers are at their fastest, the caches leave room for all memtables that there may be and for the buffers of background work. The
//! slower the writing, the less of that is in use, and a database that is only read gives its caches the whole budget but a slack for
//! the trunk, iterators and the allocator. The caches give way at once, and get memory back slowly.
//!
//! What the caches have is shared between pages and rows: rows get most of it when keys are being read and the data is larger than the cache, and
//! nothing when all pages fit, since a record in two places is memory wasted. Pages have what rows do not fill: a page read for one row brings thirty
//! more, so from a cold start pages are worth most, and give way as rows take over. Page indexes and filters, held by segments or in the page cache, come before rows, for every read of
//! a row that is not cached needs them.
//!
//! All of that is reckoned with one keyspace that is written to. Where there are several at a time, each freezes its memtable at its part of the size.
//!
//! Called by the thread that keeps the log (after each piece of it that writers fill, and now and then), or with a background
//! step where there are no threads. Time is that of the storage, so that a simulated run goes the same way each time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::primitives::Mutex;

use crate::shared::Shared;

/// Beside what memtables, the trunk and background work need, the caches leave so much, and this part of the budget: the tables of a full page and row cache,
/// iterators, what threads have begun and the allocator keeps.
const SLACK: usize = 16 << 20;
const SLACK_PART: usize = 24;
/// Buffers that are kept for the next reads and writes have this part of the budget at most while there is background work: what two large
/// compactions let go of, since touching fresh memory costs more than what is done in it. As much is reckoned for it while it goes on.
pub(crate) const IDLE_BUFFERS: usize = 8;
/// The same when there is none.
const IDLE_BUFFERS_AT_REST: usize = 64;
/// The caches get back this part of the budget per second at most when nothing is written.
const RETURN: usize = 4;
/// The same while something is: memtables need more and less several times a second, and what caches were given for so short a time they would fill, drop and
/// read again. Gets beside a load at full speed were 11.1 k in 7 s in the mean, 8.5 k with a quarter.
const RETURN_IN_USE: usize = 16;
/// After this long without a write, idle memory of memtables is given back, and leaves are settled (`scheduler`).
const IDLE: Duration = Duration::from_secs(2);
/// Rows may grow by this part of the caches until the next round; what they have not filled yet is the pages'.
const ROWS_STEP: usize = 16;
/// Rows keep their part of the caches after this long without a point read.
const ROWS_STAY: Duration = Duration::from_secs(10);

/// The trunk has about this part of the data: a segment of a megabyte has a descriptor, two keys and a sample for each 32 KiB. While background work
/// goes on, as much again is reckoned for what no checkpoint has let go of yet, and for the holes that all that coming and going leaves in the heap.
const TRUNK: u64 = 256;

/// However many keyspaces are written to, memtables may have so much.
const LEAST_MEMTABLE: usize = 64 << 10;

/// What was seen at the last round, and what follows from it for writers.
///
/// The scheduler asks for the last write with its own lock held, and a round asks the scheduler: so that time is not behind the lock.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    seen: Mutex<Seen>,
    /// When a round last found that something had been written, in nanoseconds.
    written_at: AtomicU64,
    /// Size at which a memtable is frozen now.
    memtable_limit: AtomicUsize,
    /// What the memtable will have that is being made of others.
    compacting: AtomicUsize,
    /// Rows get memory although all pages fit.
    #[cfg(feature = "fuzzing")]
    pub rows_anyway: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Seen {
    at: Duration,
    messages: u64,
    tasks: u64,
    gets: u64,
    /// When keys were last read, if ever.
    read_at: Option<Duration>,
    /// What the caches leave to others.
    left: usize,
}

/// See [`SLACK`].
fn slack(budget: usize) -> usize {
    (SLACK + budget / SLACK_PART).min(budget / 4)
}

/// The least that the caches get of a budget: what the memtables (one active, two frozen), the buffers of background work and the slack leave of it.
pub(crate) fn least_cache(budget: usize, memtable: usize) -> usize {
    budget.saturating_sub(3 * memtable + budget / IDLE_BUFFERS + slack(budget)).max(budget / 8)
}

/// What the trunk of `live` bytes of data takes from the caches, which keep something whatever it has.
fn trunk(live: u64, budget: usize) -> usize {
    usize::try_from(live / TRUNK).unwrap_or(usize::MAX).min(budget / 4)
}

/// Of `cache` bytes, the most that rows may have when there are `live` bytes of data and `pinned` of them are indexes and filters at hand.
fn row_limit(cache: usize, live: u64, pinned: usize) -> usize {
    if live <= cache as u64 {
        return 0;
    }
    // Indexes and filters take about a fortieth of the data, more or less as keys are more or fewer. The last eighth is the pages'.
    let indexes = usize::try_from(live / 40).unwrap_or(usize::MAX).max(pinned);
    cache.saturating_sub(indexes).saturating_sub(cache / 8).clamp(cache / 8, cache / 4 * 3)
}

/// Where the memtables of each keyspace have so many bytes, the size at which one is frozen: with equal ones its part of `memtable`, with one that has
/// nearly all of them nearly all of it.
fn memtable_limit(memtable: usize, tables: &[usize]) -> usize {
    let (sum, largest) = (tables.iter().sum::<usize>(), tables.iter().max().copied().unwrap_or(0));
    let part = memtable as f64 * largest.max(1) as f64 / sum.max(1) as f64;
    (part as usize).max(LEAST_MEMTABLE).min(memtable)
}

impl Seen {
    /// What others than the caches need now, or needed lately; they get back a `part` of the budget per second.
    fn leave(&mut self, now: Duration, need: usize, budget: usize, part: usize) -> usize {
        let elapsed = now.saturating_sub(self.at).min(Duration::from_secs(part as u64));
        let back = budget as u64 / part as u64 * elapsed.as_millis() as u64 / 1000;
        self.at = now;
        self.left = need.max(self.left.saturating_sub(back as usize));
        self.left
    }
}

impl Memory {
    /// For memtables that are frozen at `memtable` bytes where one keyspace is written to.
    pub(crate) fn new(memtable: usize) -> Memory {
        Memory { memtable_limit: AtomicUsize::new(memtable), ..Memory::default() }
    }

    /// Size at which a memtable is frozen now.
    #[inline]
    pub(crate) fn memtable_limit(&self) -> usize {
        self.memtable_limit.load(Relaxed)
    }

    /// A memtable of about so many bytes is being made of others.
    pub(crate) fn set_compacting(&self, bytes: usize) {
        self.compacting.store(bytes, Relaxed);
    }

    /// Whether nothing has been written for a while.
    pub(crate) fn at_rest(&self, now: Duration) -> bool {
        now.saturating_sub(Duration::from_nanos(self.written_at.load(Relaxed))) > IDLE
    }
}

impl Shared {
    /// What all filters may take, in bytes: with the page indexes beside them they are then at hand as a whole, within what `pins` may have.
    pub(crate) fn filter_room(&self) -> u64 {
        self.options.memory as u64 / 5 * 2
    }

    /// One round. See the module's text.
    pub(crate) fn share_memory(&self) {
        let (budget, now) = (self.options.memory, self.storage.now());
        let heads = |state: &crate::state::State| -> usize {
            state.peek().heads.iter().map(|head| head.table.bytes()).sum()
        };
        let tables: Vec<usize> = self.states().iter().map(|state| heads(state)).collect();
        if self.options.memtable_bytes.is_none() {
            self.memory.memtable_limit.store(memtable_limit(self.memtable_bytes, &tables), Relaxed);
        }
        let live = self.pager.allocated_bytes();
        let trunk = trunk(live, budget);
        let mut need: usize = tables.iter().sum::<usize>() + trunk;
        let (left, pointwise) = {
            let mut seen = self.memory.seen.lock();
            let (messages, tasks) = (self.counters.messages.load(Relaxed), self.counters.tasks.load(Relaxed));
            if messages != seen.messages {
                seen.messages = messages;
                self.memory.written_at.store(now.as_nanos() as u64, Relaxed);
                // Until the next round. While memtables are compacted the active one has just begun.
                need += (self.memtable_bytes / 4).max(self.memory.compacting.load(Relaxed));
            } else if self.memory.at_rest(now) {
                self.arenas.release();
            }
            if tasks != seen.tasks || self.scheduler.is_working() {
                seen.tasks = tasks;
                need += budget / IDLE_BUFFERS + trunk;
            } else {
                self.pager.trim_buffers(budget / IDLE_BUFFERS_AT_REST);
            }
            let gets = self.counters.gets.load(Relaxed);
            if gets != seen.gets {
                (seen.gets, seen.read_at) = (gets, Some(now));
            }
            let pointwise = seen.read_at.is_some_and(|at| now.saturating_sub(at) < ROWS_STAY);
            let part = if self.memory.at_rest(now) { RETURN } else { RETURN_IN_USE };
            (seen.leave(now, need + self.arenas.idle_bytes(), budget, part), pointwise)
        };
        let least = least_cache(budget, self.memtable_bytes).saturating_sub(2 * trunk).max(budget / 8);
        let cache = budget.saturating_sub(left + slack(budget)).max(least);
        self.pins.set_in_use(pointwise);
        self.pins
            .trim(cache / 4 * 3, || self.states().iter().map(|state| state.peek().root.clone()).collect());
        #[cfg(feature = "fuzzing")]
        let live = if self.memory.rows_anyway.load(Relaxed) { live.max(cache as u64 + 1) } else { live };
        let most = if pointwise { row_limit(cache, live, self.pins.bytes()) } else { 0 };
        // Rows that were remembered come at once.
        let recalled = self.recall.bytes();
        let least = self.rows.least_step();
        let step = if recalled > 0 { 2 * least + recalled / 4 * 5 } else { least }.max(cache / ROWS_STEP);
        let rows = most.min(self.rows.stats().bytes + step);
        self.rows.set_limit(rows);
        if rows > 0 && recalled > 0 {
            self.scheduler.want_recall();
        }
        let pages = cache.saturating_sub(rows).saturating_sub(self.pins.bytes());
        self.pager.set_cache_bytes(pages.max(cache / 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trunk_takes_from_the_caches_what_it_has_but_not_all() {
        let budget = 460 << 20;
        assert_eq!(trunk(0, budget), 0);
        assert_eq!(trunk(10 << 30, budget), 40 << 20);
        assert_eq!(trunk(u64::MAX, budget), budget / 4);
    }

    #[test]
    fn rows_get_nothing_while_all_pages_fit_and_little_when_indexes_take_it_all() {
        let mib = 1 << 20;
        assert_eq!(row_limit(100 * mib, 90 << 20, 0), 0);
        assert_eq!(row_limit(100 * mib, 1 << 30, 0), 100 * mib - 100 * mib / 8 - (1 << 30) / 40);
        assert_eq!(row_limit(100 * mib, 1 << 30, 40 * mib), 100 * mib - 100 * mib / 8 - 40 * mib);
        assert_eq!(row_limit(100 * mib, 200 << 20, 0), 75 * mib);
        assert_eq!(row_limit(100 * mib, 100 << 30, 0), 100 * mib / 8);
    }

    #[test]
    fn keyspaces_that_are_written_to_divide_the_size_of_a_memtable() {
        let mib = 1 << 20;
        assert_eq!(memtable_limit(64 * mib, &[]), 64 * mib);
        assert_eq!(memtable_limit(64 * mib, &[0, 0]), 64 * mib);
        assert_eq!(memtable_limit(64 * mib, &[0, 30 * mib, 0]), 64 * mib);
        assert_eq!(memtable_limit(64 * mib, &[10 * mib, 10 * mib, 10 * mib, 10 * mib]), 16 * mib);
        assert_eq!(memtable_limit(64 * mib, &[30 * mib, 10 * mib]), 48 * mib);
        assert_eq!(memtable_limit(64 * mib, &[100; 10_000]), LEAST_MEMTABLE);
        assert_eq!(memtable_limit(1024, &[100; 10_000]), 1024);
    }

    #[test]
    fn memtables_of_many_keyspaces_stay_within_the_budget_together() -> crate::Result<()> {
        let disk = betree_testkit::SimStorage::new(1);
        let (budget, keyspaces) = (8 << 20, 16);
        let db = crate::Db::builder().memory(budget).background_threads(0).open_on(disk.as_storage())?;
        let all: Vec<_> =
            (0..keyspaces).map(|i| db.keyspace(&format!("k{i}"))).collect::<crate::Result<_>>()?;
        for i in 0..12_000u64 {
            for keyspace in &all {
                keyspace.insert(i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes(), [7; 100])?;
            }
            if i % 16 == 0 {
                while db.run_background()? {}
                let held = db.stats().memtable_bytes;
                assert!(held <= budget as u64 / 2, "{held} bytes in memtables after {i} records each");
            }
        }
        assert!(db.stats().memtable_flush_bytes > 0);
        Ok(())
    }

    #[test]
    fn the_caches_give_way_at_once_and_get_memory_back_slowly() {
        let mut seen = Seen::default();
        assert_eq!(seen.leave(Duration::from_secs(1), 300, 400, 4), 300);
        assert_eq!(seen.leave(Duration::from_secs(2), 50, 400, 4), 200);
        assert_eq!(seen.leave(Duration::from_millis(2500), 50, 400, 4), 150);
        assert_eq!(seen.leave(Duration::from_millis(2500), 250, 400, 4), 250);
        assert_eq!(seen.leave(Duration::from_millis(4500), 250, 400, 16), 250);
        assert_eq!(seen.leave(Duration::from_millis(6500), 0, 400, 16), 200);
        assert_eq!(seen.leave(Duration::from_secs(60), 0, 400, 4), 0);
    }
}
