//! When something last happened, where more of it is expected for a while.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The last time of something. No locks; of two at once either counts.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    /// In nanoseconds of the storage's clock, and one; 0: never.
    last: AtomicU64,
}

impl Recent {
    /// It happens.
    pub(crate) fn note(&self, now: Duration) {
        self.last.store(now.as_nanos() as u64 + 1, Relaxed);
    }

    /// Whether it happened not longer than `lull` ago.
    pub(crate) fn is_within(&self, lull: Duration, now: Duration) -> bool {
        match self.last.load(Relaxed) {
            0 => false,
            last => now.as_nanos() as u64 <= last + lull.as_nanos() as u64,
        }
    }
}
