//! Who has how much of the memory budget: memtables what they need, background work its buffers, the caches the rest.
//!
//! While writers are at their fastest, the caches leave room for all memtables that there may be and for the buffers of background work. The
//! slower the writing, the less of that is in use, and a database that is only read gives its caches the whole budget but a slack for
//! the trunk, iterators and the allocator. The caches give way at once, and get memory back slowly.
//!
//! What the caches have is shared between pages and rows: rows get most of it when keys are being read and the data is larger than the cache, and
//! nothing when all pages fit, since a record in two places is memory wasted. Page indexes and filters, held by segments or in the page cache, come before rows, for every read of
//! a row that is not cached needs them.
//!
//! Called by the thread that keeps the log (after each piece of it that writers fill, and now and then), or with a background
//! step where there are no threads. Time is that of the storage, so that a simulated run goes the same way each time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::primitives::Mutex;

use crate::shared::Shared;

/// The part of the budget that is nobody's.
const SLACK: usize = 8;
/// Buffers that are kept for the next reads and writes have this part of the budget at most while there is background work: what two large
/// compactions let go of, since touching fresh memory costs more than what is done in it.
pub(crate) const IDLE_BUFFERS: usize = 8;
/// The same when there is none.
const IDLE_BUFFERS_AT_REST: usize = 24;
/// The caches get back this part of the budget per second at most.
const RETURN: usize = 4;
/// After this long without a write, idle memory of memtables is given back, and leaves are settled (`scheduler`).
const IDLE: Duration = Duration::from_secs(2);
/// Rows keep their part of the caches after this long without a point read.
const ROWS_STAY: Duration = Duration::from_secs(10);

/// What was seen at the last round.
///
/// The scheduler asks for the last write with its own lock held, and a round asks the scheduler: so that time is not behind the lock.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    seen: Mutex<Seen>,
    /// When a round last found that something had been written, in nanoseconds.
    written_at: AtomicU64,
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

/// The least that the caches get of a budget: what the memtables (one active, two frozen) and the buffers of background work leave of it.
pub(crate) fn least_cache(budget: usize, memtable: usize) -> usize {
    budget.saturating_sub(3 * memtable).saturating_sub(budget / 4).max(budget / 8)
}

/// Of `cache` bytes, the most that rows may have when there are `live` bytes of data.
fn row_limit(cache: usize, live: u64) -> usize {
    if live <= cache as u64 {
        return 0;
    }
    // Indexes and filters take about a fortieth of the data.
    let indexes = usize::try_from(live / 40).unwrap_or(usize::MAX);
    cache.saturating_sub(indexes).clamp(cache / 8, cache / 4 * 3)
}

impl Seen {
    /// What others than the caches need now, or needed lately.
    fn leave(&mut self, now: Duration, need: usize, budget: usize) -> usize {
        let elapsed = now.saturating_sub(self.at).min(Duration::from_secs(RETURN as u64));
        let back = budget as u64 / RETURN as u64 * elapsed.as_millis() as u64 / 1000;
        self.at = now;
        self.left = need.max(self.left.saturating_sub(back as usize));
        self.left
    }
}

impl Memory {
    /// Whether nothing has been written for a while.
    pub(crate) fn at_rest(&self, now: Duration) -> bool {
        now.saturating_sub(Duration::from_nanos(self.written_at.load(Relaxed))) > IDLE
    }
}

impl Shared {
    /// One round. See the module's text.
    pub(crate) fn share_memory(&self) {
        let (budget, now) = (self.options.memory, self.storage.now());
        let heads = |state: &crate::state::State| -> usize {
            state.peek().heads.iter().map(|head| head.table.bytes()).sum()
        };
        let mut need: usize = self.states().iter().map(|state| heads(state)).sum();
        let (left, pointwise) = {
            let mut seen = self.memory.seen.lock();
            let (messages, tasks) = (self.counters.messages.load(Relaxed), self.counters.tasks.load(Relaxed));
            if messages != seen.messages {
                seen.messages = messages;
                self.memory.written_at.store(now.as_nanos() as u64, Relaxed);
                // Until the next round.
                need += self.memtable_bytes / 4;
            } else if self.memory.at_rest(now) {
                self.arenas.release();
            }
            if tasks != seen.tasks || self.scheduler.is_working() {
                seen.tasks = tasks;
                need += budget / 4;
            } else {
                self.pager.trim_buffers(budget / IDLE_BUFFERS_AT_REST);
            }
            let gets = self.counters.gets.load(Relaxed);
            if gets != seen.gets {
                (seen.gets, seen.read_at) = (gets, Some(now));
            }
            let pointwise = seen.read_at.is_some_and(|at| now.saturating_sub(at) < ROWS_STAY);
            (seen.leave(now, need + self.arenas.idle_bytes(), budget), pointwise)
        };
        let least = least_cache(budget, self.memtable_bytes);
        let cache = (budget - budget / SLACK).saturating_sub(left).max(least);
        self.pins.trim(cache / 2, || self.states().iter().map(|state| state.peek().root.clone()).collect());
        let rows = if pointwise { row_limit(cache, self.pager.allocated_bytes()) } else { 0 };
        self.rows.set_limit(rows);
        // The rows' part is left alone from the beginning: pages that give way to rows one by one leave holes that the allocator cannot use for them.
        let pages = cache.saturating_sub(rows).saturating_sub(self.pins.bytes());
        self.pager.set_cache_bytes(pages.max(cache / 8));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_get_nothing_while_all_pages_fit_and_little_when_indexes_take_it_all() {
        let mib = 1 << 20;
        assert_eq!(row_limit(100 * mib, 90 << 20), 0);
        assert_eq!(row_limit(100 * mib, 1 << 30), 100 * mib - (1 << 30) / 40);
        assert_eq!(row_limit(100 * mib, 512 << 20), 75 * mib);
        assert_eq!(row_limit(100 * mib, 100 << 30), 100 * mib / 8);
    }

    #[test]
    fn the_caches_give_way_at_once_and_get_memory_back_slowly() {
        let mut seen = Seen::default();
        assert_eq!(seen.leave(Duration::from_secs(1), 300, 400), 300);
        assert_eq!(seen.leave(Duration::from_secs(2), 50, 400), 200);
        assert_eq!(seen.leave(Duration::from_millis(2500), 50, 400), 150);
        assert_eq!(seen.leave(Duration::from_millis(2500), 250, 400), 250);
        assert_eq!(seen.leave(Duration::from_secs(60), 0, 400), 0);
    }
}
