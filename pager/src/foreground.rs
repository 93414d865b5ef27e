//! Whether somebody waits for the device, so that background channels leave it to them.
//!
//! A read that somebody waits for queues at the device behind all that is in flight there, and a merge that streams keeps megabytes in flight. Measured
//! on a virtual disk of 1.1 GB/s with fio, one random read of 4 KiB after the other beside writes of 1 MiB: 4 in flight, p50 15 ms at 1,066 MB/s; 2 in
//! flight, 0.9 ms at 1,078 MB/s; 1 in flight, 0.08 ms at 747 MB/s; pieces of 256 KiB, 2 in flight, 0.09 ms at 849 MB/s. So while somebody reads, a background
//! channel has one request in flight, which goes to the device in pieces of [`PIECE`]; deep queues are for when nobody does, when they keep the
//! device busy over the time that merges compute.
//!
//! Random gets beside inserts at full speed, on that disk, which the inserts alone keep busy: 470 to 740 a second, p99 19 to 37 ms, without this (six runs); with
//! pieces of 384 KiB 1,250 to 1,580, p99 8 to 9 ms, and 0.71 to 0.95 of the inserts without gets (three); of 256 KiB 1,040 to 2,000, p99 4 to 13 ms, 0.56 to 0.86
//! of the inserts (ten); of 128 KiB 1,170 to 2,000, p99 4 to 11 ms, 0.60 to 0.84 (five). With two requests of 256 KiB in flight p99 is 11 to 20 ms.
//!
//! Reads that hit the page cache count for nothing. No locks; one store per page that somebody reads from the device.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::Storage;

/// What a background channel asks the device for at once while somebody reads.
pub(crate) const PIECE: usize = 384 << 10;

/// For how long after a read others are expected.
const LULL: Duration = Duration::from_secs(1);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Foreground {
    /// When somebody last began to read from the device, in nanoseconds of the storage's clock, and one; 0: never.
    last: AtomicU64,
}

impl Foreground {
    /// Somebody begins to read.
    pub(crate) fn reads(&self, clock: &dyn Storage) {
        self.last.store(clock.now().as_nanos() as u64 + 1, Relaxed);
    }

    /// Whether somebody reads, as far as one can tell.
    pub(crate) fn is_reading(&self, clock: &dyn Storage) -> bool {
        match self.last.load(Relaxed) {
            0 => false,
            last => clock.now().as_nanos() as u64 <= last + LULL.as_nanos() as u64,
        }
    }
}
