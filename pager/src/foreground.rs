//! Whether somebody waits for the device, so that background channels leave it to them.
//!
//! A read that somebody waits for queues at the device behind all that is in flight there, and a merge that streams keeps megabytes in flight. Measured
//! on a virtual disk of 1.1 GB/s with fio, one random read of 4 KiB after the other beside writes of 1 MiB: 4 in flight, p50 15 ms at 1,066 MB/s; 2 in
//! flight, 0.9 ms at 1,078 MB/s; 1 in flight, 0.08 ms at 747 MB/s; pieces of 256 KiB, 2 in flight, 0.09 ms at 849 MB/s. So while somebody reads, a background
//! channel has one request in flight, which goes to the device in pieces of [`PIECE`]; deep queues are for when nobody does, when they keep the
//! device busy over the time that merges compute. Random gets beside inserts at full speed on that disk, of which each is nearly saturated alone: 500 a
//! second, p99 27 to 31 ms, without this; 1,050 to 1,180, p99 9 to 12 ms with it; 1,300 to 1,740, p99 5 to 7 ms with pieces of 128 KiB, but 15 % fewer inserts.
//!
//! Reads that hit the page cache count for nothing. No locks; one store per page that somebody reads from the device.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use betree_storage::Storage;

/// What a background channel asks the device for at once while somebody reads.
pub(crate) const PIECE: usize = 256 << 10;

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
