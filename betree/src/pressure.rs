//! Back-pressure: writers are slowed smoothly in proportion to the debt of background work, long before a hard limit.
//!
//! Debt is the number of bytes that wait in buffers of nodes although their flush is due. Up to `FREE_DEBT` memtables' worth
//! of it, writers run free; above that their rate is held to a share of the rate at which background work drains the
//! buffers, so that debt settles where both are equal. The hard limit is the number of frozen memtables (`commit`), which wait while debt is deep.
//!
//! Time is that of the storage ([`Storage::now`]), so that on a simulated disk a run does not depend on how long anything took.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::Storage;
use betree_storage::primitives::Mutex;

/// Debt, in memtables, below which nobody is slowed.
const FREE_DEBT: f64 = 2.0;
/// Debt, in memtables, at which writers get a fifth of the drain rate.
const FULL_DEBT: f64 = 8.0;
/// Debt, in memtables, above which what is due comes before memtables, so that writers wait at the hard limit.
const DEEP_DEBT: f64 = 16.0;
/// A writer is held up once for so many bytes written.
const GRAIN: u64 = 256 << 10;
/// Longest single delay.
const LONGEST: Duration = Duration::from_millis(20);

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Pressure {
    memtable_bytes: f64,
    debt: AtomicU64,
    /// Bytes written since the last look.
    written: AtomicU64,
    /// Bytes per second drained, smoothed; 0 until known.
    drain_rate: AtomicU64,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// When the last grain was let through.
    last: Duration,
    /// Since when `drained` counts.
    drain_since: Duration,
    drained: u64,
}

impl Pressure {
    pub(crate) fn new(memtable_bytes: usize, clock: &dyn Storage) -> Pressure {
        let now = clock.now();
        Pressure {
            memtable_bytes: memtable_bytes.max(1) as f64,
            debt: AtomicU64::new(0),
            written: AtomicU64::new(0),
            drain_rate: AtomicU64::new(0),
            pace: Mutex::new(Pace { last: now, drain_since: now, drained: 0 }),
        }
    }

    /// Bytes overdue, as the scheduler just saw.
    pub(crate) fn set_debt(&self, bytes: u64) {
        self.debt.store(bytes, Relaxed);
    }

    /// Whether slowing writers did not suffice: another memtable in the tree would only make it worse.
    pub(crate) fn is_deep(&self) -> bool {
        self.debt() as f64 > DEEP_DEBT * self.memtable_bytes
    }

    pub(crate) fn debt(&self) -> u64 {
        self.debt.load(Relaxed)
    }

    /// `bytes` have been taken out of a node's buffer.
    pub(crate) fn drained(&self, bytes: u64, clock: &dyn Storage) {
        let time = clock.now();
        let mut pace = self.pace.lock();
        pace.drained += bytes;
        let elapsed = time.saturating_sub(pace.drain_since).as_secs_f64();
        if elapsed > 0.5 {
            let now = pace.drained as f64 / elapsed;
            let before = self.drain_rate.load(Relaxed) as f64;
            let rate = if before == 0.0 { now } else { 0.7 * before + 0.3 * now };
            self.drain_rate.store(rate as u64, Relaxed);
            pace.drained = 0;
            pace.drain_since = time;
        }
    }

    /// How long a writer of `bytes` bytes has to wait. Cheap unless there is debt.
    #[inline]
    pub(crate) fn delay(&self, bytes: u64, clock: &dyn Storage) -> Option<Duration> {
        let debt = self.debt.load(Relaxed) as f64 / self.memtable_bytes;
        if debt <= FREE_DEBT {
            return None;
        }
        let written = self.written.fetch_add(bytes, Relaxed) + bytes;
        if written < GRAIN {
            return None;
        }
        self.written.store(0, Relaxed);
        self.grain(debt, written, clock)
    }

    #[cold]
    fn grain(&self, debt: f64, written: u64, clock: &dyn Storage) -> Option<Duration> {
        let drain = self.drain_rate.load(Relaxed) as f64;
        if drain == 0.0 {
            return None;
        }
        // 2 at the free limit, 1 halfway where debt settles, 0.2 at the full limit.
        let over = ((debt - FREE_DEBT) / (FULL_DEBT - FREE_DEBT)).min(1.0);
        let share = (2.0 - 2.0 * over).max(0.2);
        let due = Duration::from_secs_f64(written as f64 / (drain * share));
        let mut pace = self.pace.lock();
        let now = clock.now();
        // Time not used is not saved up: it would let a burst through.
        let target = pace.last.max(now.saturating_sub(due)) + due;
        let wait = target.saturating_sub(now).min(LONGEST);
        pace.last = now + wait;
        (!wait.is_zero()).then_some(wait)
    }
}
