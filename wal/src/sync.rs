//! Group commit: making what was appended durable, one sync for many callers.
//!
//! Called by any thread through [`crate::Wal::sync`]. The first caller that needs a sync becomes leader and syncs up
//! to the end of the log as it is then; callers that come meanwhile wait, and one of them leads the next round for all.
//! Lock `Shared::sync` is held only to change the state, never during a sync.
//!
//! Threads that commit one after the other would stay in two groups for ever, each of which appends while the other is synced, and a sync costs about
//! the same for both. So a leader first gives those a moment whom the last round released: they mostly come back with their next record at
//! once, and then one round is for all (`Gathering`). It takes less than a sync does, and is left alone where they do not come. Measured on two cores with a device that syncs in
//! 0.13 ms, in synced commits a second: 2 threads 10.9 k instead of 7.8 k, 4 threads 16.5 k instead of 11.2 k, 16 threads 39.1 k instead of 29.9 k, 64 threads the same.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use betree_storage::File;
use betree_storage::primitives::thread;

use crate::Lsn;
use crate::error::Result;
use crate::files::Shared;
use crate::format::FileHeader;
use crate::stats::add;

#[derive(Debug, Default)]
pub(crate) struct SyncState {
    /// A leader is at work.
    running: bool,
    /// Callers waiting for a round that has not begun.
    waiting: u64,
    gathering: Gathering,
}

/// What a leader knows of those who may come.
#[derive(Debug, Default)]
struct Gathering {
    /// Callers that the last round released.
    released: u64,
    /// How long its sync took, at most [`LONGEST`].
    took: Duration,
    /// Rounds that go on without waiting for anybody, because few came when one did.
    refrain: u32,
}

/// The part of the last sync's time after which a leader that waits goes on if nobody came meanwhile. In all it waits no longer than that sync took.
const QUIET: u32 = 2;
/// However long a sync takes: whoever waits for those who do not come shall not notice.
const LONGEST: Duration = Duration::from_millis(1);
/// Rounds that go on at once after one to which few came.
const REFRAIN: u32 = 64;

impl Gathering {
    /// How many callers to wait for, when so many are there and the leader is new among them or not.
    fn begin(&mut self, waiting: u64, leader_is_new: bool) -> Option<u64> {
        // One who was released leads already.
        let expected = self.released.saturating_sub(u64::from(leader_is_new));
        if self.refrain > 0 {
            self.refrain -= 1;
            return None;
        }
        (expected > 0 && !cfg!(feature = "shuttle")).then_some(waiting + expected)
    }

    /// So many of those who were waited for have come.
    fn end(&mut self, came: u64, expected: u64) {
        if came * 2 < expected {
            self.refrain = REFRAIN;
        }
    }
}

impl Shared {
    /// Returns when everything appended before `upto` is durable.
    pub fn sync_upto(&self, upto: Lsn) -> Result<()> {
        let upto = upto.0.min(self.end.load(Ordering::Acquire));
        let mut state = self.sync.lock();
        let mut counted = false;
        loop {
            self.check_poison()?;
            if self.durable.load(Ordering::Acquire) >= upto {
                return Ok(());
            }
            if !state.running {
                break;
            }
            // A caller may sleep through the end of a round that began too early for it: it counts for the next one.
            state.waiting += u64::from(!counted);
            counted = true;
            self.synced.wait(&mut state);
        }
        state.running = true;
        let before = state.waiting;
        if let Some(goal) = state.gathering.begin(before, !counted) {
            let took = state.gathering.took;
            let (began, mut last, mut there) = (Instant::now(), Duration::ZERO, before);
            loop {
                let elapsed = began.elapsed();
                if state.waiting > there {
                    (there, last) = (state.waiting, elapsed);
                }
                if there >= goal || elapsed >= took || elapsed - last >= took / QUIET {
                    break;
                }
                drop(state);
                thread::yield_now();
                state = self.sync.lock();
            }
            state.gathering.end(there - before, goal - before);
        }
        let group = std::mem::take(&mut state.waiting) + u64::from(!counted);
        drop(state);

        let begun = Instant::now();
        // Read before the list of files: every file with bytes below it is then in the list.
        let target = self.end.load(Ordering::Acquire);
        let outcome = self.sync_files(target);
        if outcome.is_ok() {
            self.durable.store(target, Ordering::Release);
            add(&self.counters.syncs, 1);
            add(&self.counters.sync_callers, group);
            self.counters.largest_group.fetch_max(group, Ordering::Relaxed);
        }
        {
            let mut state = self.sync.lock();
            state.running = false;
            (state.gathering.released, state.gathering.took) = (group, begun.elapsed().min(LONGEST));
        }
        self.synced.notify_all();
        if outcome.is_ok() {
            self.drop_drained();
        }
        outcome
    }

    /// Syncs every file with bytes between the durable Lsn and `target`, oldest first: a later file must not be
    /// known durable before an earlier one.
    fn sync_files(&self, target: u64) -> Result<()> {
        let durable = self.durable.load(Ordering::Acquire);
        let files: Vec<Arc<dyn File>> = {
            let queue = self.queue.lock();
            let ends = queue.live.iter().skip(1).map(|next| next.first.0).chain([u64::MAX]);
            let unsynced = |first: Lsn, end: u64| first.0 < target && end > durable;
            let live = queue.live.iter().zip(ends);
            live.filter(|(live, end)| unsynced(live.first, *end)).map(|(live, _)| live.file.clone()).collect()
        };
        for file in files {
            file.sync().map_err(|error| self.poison(error))?;
        }
        Ok(())
    }

    /// Writes the durable Lsn into the header of the newest file that has durable records.
    ///
    /// Not into a newer one: its header may be on its way through the appender's window. The header lies in one
    /// sector, so a crash leaves the old or the new one, and both are valid.
    pub fn mark_durable(&self) -> Result<()> {
        let durable = Lsn(self.durable.load(Ordering::Acquire));
        let newest = {
            let queue = self.queue.lock();
            let newest = queue.live.iter().rfind(|live| live.first < durable);
            newest.map(|live| (live.number, live.first, live.file.clone()))
        };
        if let Some((number, first, file)) = newest {
            let header = FileHeader { salt: self.options.salt, number, first, durable };
            file.write_at(0, &header.encode())?;
        }
        Ok(())
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn a_leader_waits_for_those_whom_the_last_round_released_unless_they_did_not_come() {
        let mut gathering = Gathering::default();
        assert_eq!(gathering.begin(7, false), None, "nobody was released yet");
        gathering.released = 8;
        assert_eq!(gathering.begin(7, false), Some(15));
        assert_eq!(gathering.begin(0, true), Some(7));
        gathering.end(4, 8);
        assert!(gathering.begin(7, false).is_some(), "half of them came");
        gathering.end(3, 8);
        for _ in 0..REFRAIN {
            assert_eq!(gathering.begin(7, false), None);
        }
        assert!(gathering.begin(7, false).is_some());
        // Alone, it waits for nobody.
        gathering.released = 1;
        assert_eq!(gathering.begin(0, true), None);
    }
}
