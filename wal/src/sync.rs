//! Group commit: making what was appended durable, one sync for many callers.
//!
//! Called by any thread through [`crate::Wal::sync`]. The first caller that needs a sync becomes leader and syncs up
//! to the end of the log as it is then; callers that come meanwhile wait, and one of them leads the next round for all.
//! Lock `Shared::sync` is held only to change the state, never during a sync.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use betree_storage::File;

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
        let group = std::mem::take(&mut state.waiting) + u64::from(!counted);
        drop(state);

        // Read before the list of files: every file with bytes below it is then in the list.
        let target = self.end.load(Ordering::Acquire);
        let outcome = self.sync_files(target);
        if outcome.is_ok() {
            self.durable.store(target, Ordering::Release);
            add(&self.counters.syncs, 1);
            add(&self.counters.sync_callers, group);
            self.counters.largest_group.fetch_max(group, Ordering::Relaxed);
        }
        self.sync.lock().running = false;
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
