//! Whether a thread that waits for a page keeps its processor or sleeps.
//!
//! To sleep costs more than the switch of threads: where the processor then has nothing to do it halts, and of a virtual machine gives itself back to
//! the host; the interrupt has to fetch it again, and the caches are cold. A thread that looks again and again whether its read has ended (it
//! *busy-waits*) has none of that. Measured in a virtual machine with two processors, one thread: gets 54 to 64 µs each at 53 to 62 µs of
//! processor time, instead of 80 to 87 at 41 to 47 µs; scans of 100 rows 79 to 97 µs instead of 105 to 123.
//!
//! - Where it gains too little it is waste, so it is measured: of each [`PERIOD`] reads [`TRIES`] wait in the other way than the rest, and threads busy-wait as long as
//!   that makes their reads shorter by a tenth. On a machine that is woken quickly, or whose processors have other work, it does not.
//! - At most half of the processors are waited on in this way, but two where there are two or three (of two YCSB A by two threads was faster by 15 % than with one), and none while more threads
//!   read than there are processors, or background work has asked for something a moment ago: then the processor has something better to do. Beside inserts at full speed it cost a tenth of the gets, and of the inserts.
//! - After [`LONGEST`] the thread sleeps. It does not yield meanwhile (`sched_yield` every 15 µs took 8 of the 20 µs that there are to gain): who wakes up beside it
//!   gets the processor from the scheduler, and a read that is interrupted so takes longer.
//!
//! Only reads of data pages that the caller of a get or scan waits for, one at a time, come here. No locks; some counters per read of the device.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use crate::recent::Recent;

/// A read that takes longer is slept through, and all are while they take longer in the mean: the time to wake up is a small part of it, and if the device has so much
/// to do, the processors have too.
pub(crate) const LONGEST: Duration = Duration::from_micros(250);

/// For how long after a request of background work more of it is expected: merges compute in between.
const LULL: Duration = Duration::from_millis(20);

/// Of so many reads, [`TRIES`] wait in the way that is not the chosen one.
const PERIOD: usize = 256;
const TRIES: usize = 4;

/// Processors that are waited on where there are so many, though they be more than half.
const PAIR: usize = 2;

/// A time counts as this many means at most.
const OUTLIER: u64 = 4;
/// The share of a new time in a mean: one in so many.
const SMOOTH: u64 = 16;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct BusyWait {
    processors: usize,
    /// Threads that busy-wait at the same time, at most; 0: never any.
    most: usize,
    /// Threads that read, and those of them that busy-wait.
    reading: AtomicUsize,
    busy: AtomicUsize,
    /// When background work last asked for something or had it.
    background: Recent,
    /// Reads that were begun and might wait in either way.
    reads: AtomicUsize,
    /// Nanoseconds of a read in either way, smoothed; 0: not known yet. Two that end at once may count as one.
    slept: AtomicU64,
    stayed: AtomicU64,
    /// Whether to busy-wait is faster.
    chosen: AtomicBool,
}

/// How one read waits, until it has ended.
#[derive(Debug)]
pub(crate) struct Wait<'a> {
    of: &'a BusyWait,
    busy: bool,
    /// Whether its time is compared: it might have waited in the other way.
    counts: bool,
}

impl BusyWait {
    /// For so many processors; 0: nobody is to busy-wait.
    pub(crate) fn new(processors: usize) -> BusyWait {
        BusyWait {
            processors,
            most: if processors < PAIR { 0 } else { (processors / 2).max(PAIR) },
            reading: AtomicUsize::new(0),
            busy: AtomicUsize::new(0),
            background: Recent::default(),
            reads: AtomicUsize::new(0),
            slept: AtomicU64::new(0),
            stayed: AtomicU64::new(0),
            chosen: AtomicBool::new(false),
        }
    }

    /// A thread begins to read.
    pub(crate) fn begin(&self, now: Duration) -> Wait<'_> {
        let mut wait = Wait { of: self, busy: false, counts: false };
        if self.most == 0 {
            return wait;
        }
        wait.counts = self.reading.fetch_add(1, Relaxed) < self.processors
            && self.busy.load(Relaxed) < self.most
            && !self.background.is_within(LULL, now);
        if wait.counts {
            let tried = self.reads.fetch_add(1, Relaxed) % PERIOD < TRIES;
            wait.busy = self.chosen.load(Relaxed) != tried;
        }
        if wait.busy {
            self.busy.fetch_add(1, Relaxed);
        }
        wait
    }

    /// Background work asks for something or has it.
    pub(crate) fn background(&self, now: Duration) {
        self.background.note(now);
    }

    fn took(&self, busy: bool, time: Duration) {
        let mean = if busy { &self.stayed } else { &self.slept };
        let time = time.as_nanos() as u64;
        let next = match mean.load(Relaxed) {
            0 => time.max(1),
            before => before - before / SMOOTH + time.min(OUTLIER * before) / SMOOTH,
        };
        mean.store(next, Relaxed);
        let (stayed, slept) = (self.stayed.load(Relaxed), self.slept.load(Relaxed));
        if stayed == 0 || slept == 0 {
            return;
        }
        // What is chosen stays chosen while the two are close to the limit.
        let limit = if self.chosen.load(Relaxed) { slept / 20 * 19 } else { slept / 10 * 9 };
        let late = slept.max(stayed) > LONGEST.as_nanos() as u64;
        self.chosen.store(stayed < limit && !late, Relaxed);
    }
}

impl Wait<'_> {
    /// Whether this read busy-waits.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// The read has taken so long.
    pub(crate) fn took(self, time: Duration) {
        if self.counts {
            self.of.took(self.busy, time);
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if self.of.most == 0 {
            return;
        }
        self.of.reading.fetch_sub(1, Relaxed);
        if self.busy {
            self.of.busy.fetch_sub(1, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    /// So many reads one after the other that take so many microseconds in either way: how many busy-waited.
    fn reads(waits: &BusyWait, count: usize, slept: u64, stayed: u64) -> usize {
        let one = || {
            let wait = waits.begin(NOW);
            let busy = wait.is_busy();
            wait.took(Duration::from_micros(if busy { stayed } else { slept }));
            usize::from(busy)
        };
        (0..count).map(|_| one()).sum()
    }

    #[test]
    fn reads_busy_wait_as_long_as_that_makes_them_shorter_by_a_tenth() {
        let waits = BusyWait::new(2);
        assert!(reads(&waits, PERIOD, 80, 60) > PERIOD - 2 * TRIES);
        assert_eq!(reads(&waits, PERIOD, 80, 60), PERIOD - TRIES);
        // Others want the processor.
        reads(&waits, 40 * PERIOD, 80, 100);
        assert_eq!(reads(&waits, PERIOD, 80, 100), TRIES);
        // The device is late.
        reads(&waits, 40 * PERIOD, 1000, 500);
        assert_eq!(reads(&waits, PERIOD, 1000, 500), TRIES);
        // It gains a little.
        reads(&waits, 40 * PERIOD, 80, 74);
        assert_eq!(reads(&waits, PERIOD, 80, 74), TRIES);
        // One that takes as long as a hundred others decides nothing.
        reads(&waits, 40 * PERIOD, 80, 60);
        waits.took(true, Duration::from_millis(6));
        waits.took(true, Duration::from_micros(60));
        reads(&waits, PERIOD, 80, 60);
        assert_eq!(reads(&waits, PERIOD, 80, 60), PERIOD - TRIES);
    }

    #[test]
    fn nobody_busy_waits_beside_background_work() {
        let waits = BusyWait::new(2);
        reads(&waits, 2 * PERIOD, 80, 40);
        waits.background(NOW - LULL);
        assert_eq!(reads(&waits, 2 * PERIOD, 80, 40), 0);
        waits.background(NOW - LULL - Duration::from_nanos(2));
        assert_eq!(reads(&waits, PERIOD, 80, 40), PERIOD - TRIES);
    }

    #[test]
    fn half_of_the_processors_are_waited_on_or_both_and_none_where_more_threads_read() {
        let waits = BusyWait::new(4);
        reads(&waits, 2 * PERIOD + TRIES, 80, 40);
        let few: Vec<_> = (0..4).map(|_| waits.begin(NOW)).collect();
        assert_eq!(few.iter().filter(|wait| wait.is_busy()).count(), 2);
        drop(few);
        let waits = BusyWait::new(4);
        reads(&waits, TRIES, 80, 40);
        let many: Vec<_> = (0..4).map(|_| waits.begin(NOW)).collect();
        assert!(!many.iter().any(Wait::is_busy), "it is not known yet to be faster");
        waits.chosen.store(true, Relaxed);
        assert!(!waits.begin(NOW).is_busy(), "more threads than processors");
        drop(many);
        assert!(waits.begin(NOW).is_busy());
        assert_eq!((waits.reading.load(Relaxed), waits.busy.load(Relaxed)), (0, 0));
        let both = BusyWait::new(2);
        both.chosen.store(true, Relaxed);
        reads(&both, TRIES, 80, 40);
        let three: Vec<_> = (0..3).map(|_| both.begin(NOW)).collect();
        assert_eq!(three.iter().map(Wait::is_busy).collect::<Vec<_>>(), [true, true, false]);
        for none in [BusyWait::new(0), BusyWait::new(1)] {
            assert_eq!(reads(&none, 3 * PERIOD, 80, 10), 0);
        }
    }
}
