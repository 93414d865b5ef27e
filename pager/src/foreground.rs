//! Whether somebody waits for the device, so that background channels leave it to them.
//!
//! A read that somebody waits for queues at the device behind all that is in flight there, and a merge that streams keeps megabytes in flight. Measured
//! on a virtual disk of 1.1 GB/s with fio, one random read of 4 KiB after the other beside writes of 1 MiB: 4 in flight, p50 15 ms at 1,066 MB/s; 2 in
//! flight, 0.9 ms at 1,078 MB/s; 1 in flight, 0.08 ms at 747 MB/s; pieces of 256 KiB, 2 in flight, 0.09 ms at 849 MB/s. So while somebody reads, a background
//! channel has few requests in flight, which go to the device in pieces of [`PIECE`]; deep queues are for when nobody does, when they keep the
//! device busy over the time that merges compute.
//!
//! How few depends on what they do to reads: one, and up to [`MOST`] as long as reads are quick. Each quick read adds a little, a slow one takes half (as the
//! window of TCP, RFC 5681): where one read in a hundred is slow there are three, where one in thirty is there is one. Only reads of a page that
//! somebody waits for are timed; when others begin there is one.
//!
//! Random gets beside inserts at full speed, on that disk, which the inserts alone keep busy: 470 to 740 a second, p99 19 to 37 ms, without this (six runs); with
//! pieces of 384 KiB 1,250 to 1,580, p99 8 to 9 ms, and 0.71 to 0.95 of the inserts without gets (three); of 256 KiB 1,040 to 2,000, p99 4 to 13 ms, 0.56 to 0.86
//! of the inserts (ten); of 128 KiB 1,170 to 2,000, p99 4 to 11 ms, 0.60 to 0.84 (five). With two requests of 256 KiB in flight p99 is 11 to 20 ms.
//! On a disk of 1.4 GB/s, four times each in turn: one request, pieces of 384 KiB, 1,770 to 2,390 gets a second, p99 3 to 4 ms, 0.60 to 0.73 of the inserts; by the rule
//! above, pieces of 512 KiB, 1,620 to 2,360, p99 4 to 5 ms, 0.80 to 0.96.
//!
//! Reads that hit the page cache count for nothing. No locks; a store or two and two looks at the clock per page that somebody reads from the device.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::Storage;

use crate::recent::Recent;

/// What a request of a background channel asks the device for at once while somebody reads.
pub(crate) const PIECE: usize = 512 << 10;

/// For how long after a read others are expected.
const LULL: Duration = Duration::from_secs(1);

/// A read of a page that takes longer is slow: a get does about two beside a load, and 10 ms are much for one in a hundred gets.
const SLOW: Duration = Duration::from_millis(4);

/// Requests that a background channel has in flight at most while somebody reads.
const MOST: usize = 4;
/// Quick reads that allow one more.
const QUICK: usize = 64;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Foreground {
    /// When somebody last began to read from the device.
    last: Recent,
    /// What quick reads have added, in units of a [`QUICK`]th request. Two reads that end at once may count as one.
    room: AtomicUsize,
}

impl Foreground {
    /// Somebody begins to read, and nobody will time it.
    pub(crate) fn reads(&self, clock: &dyn Storage) {
        self.last.note(clock.now());
        self.room.store(0, Relaxed);
    }

    /// Somebody reads by `read`, which is timed: its result and its time.
    pub(crate) fn timed<R>(&self, clock: &dyn Storage, read: impl FnOnce() -> R) -> (R, Duration) {
        let begun = clock.now();
        self.last.note(begun);
        let result = read();
        let time = clock.now().saturating_sub(begun);
        self.took(time);
        (result, time)
    }

    fn took(&self, time: Duration) {
        let room = self.room.load(Relaxed);
        let next = if time > SLOW { room / 2 } else { (room + 1).min(MOST * QUICK) };
        // Written only when it changes, as long as reads are quick.
        if next != room {
            self.room.store(next, Relaxed);
        }
    }

    /// Requests that a background channel may have in flight while somebody reads.
    pub(crate) fn requests(&self) -> usize {
        (self.room.load(Relaxed) / QUICK).max(1)
    }

    /// Whether somebody reads, as far as one can tell.
    pub(crate) fn is_reading(&self, clock: &dyn Storage) -> bool {
        self.last.is_within(LULL, clock.now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_reads_allow_more_requests_beside_them_and_slow_ones_fewer() {
        let foreground = Foreground::default();
        let read = |count: usize, time: Duration| {
            (0..count).for_each(|_| foreground.took(time));
            foreground.requests()
        };
        let (quick, slow) = (Duration::from_micros(100), SLOW + Duration::from_millis(1));
        assert_eq!(read(0, quick), 1);
        assert_eq!(read(QUICK, quick), 1);
        assert_eq!(read(QUICK, quick), 2);
        assert_eq!(read(10 * QUICK, quick), MOST);
        assert_eq!((read(1, slow), read(1, slow), read(1, slow)), (MOST / 2, MOST / 4, 1));
        // One slow read in thirty.
        read(10 * QUICK, quick);
        for _ in 0..20 {
            read(29, quick);
            read(1, slow);
        }
        assert_eq!(foreground.requests(), 1);
    }
}
