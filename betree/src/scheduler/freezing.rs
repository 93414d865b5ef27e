//! Why memtables are frozen and flushed though they are not full: the log's length, a rest, a full device, and callers that want everything in the trees.

use std::sync::Arc;

use crate::Result;
use crate::shared::Shared;
use crate::state::State;
use crate::types::Seqno;
use crate::view::Head;

impl Shared {
    /// Freezes memtables that keep more of the log alive than recovery should read, such as those of idle keyspaces, and at rest those whose range
    /// deletes have yet to give space back.
    pub(super) fn relieve_log(&self) {
        let limit = self.log_limit();
        let end = self.wal.end().0;
        let at_rest = self.memory.at_rest(self.storage.now());
        let due = |head: &Head| {
            head.first_lsn.get().is_some_and(|lsn| lsn.0 + limit < end)
                || (at_rest && head.table.has_range_deletes())
        };
        for state in self.states() {
            if state.peek().heads.last().is_some_and(|head| due(head)) && state.flush_frozen() {
                self.scheduler.wake();
            }
            if due(&state.peek().heads[0]) {
                let mut commit = self.commit.lock();
                if due(&state.peek().heads[0]) {
                    self.freeze(&mut commit, &state);
                }
            }
        }
    }

    /// While squeezing, freezes memtables that no frozen one precedes: they may hold deletes, and they keep the log from being trimmed.
    pub(super) fn relieve_device(&self) {
        if !self.scheduler.inner.lock().squeeze {
            return;
        }
        self.release_allowance(0);
        for state in self.states() {
            if state.flush_frozen() {
                self.scheduler.wake();
            }
            let due = || state.peek().heads.len() == 1 && !state.peek().heads[0].table.is_empty();
            if due() {
                let mut commit = self.commit.lock();
                if due() {
                    self.freeze(&mut commit, &state);
                }
            }
        }
    }

    /// Moves everything committed so far out of the memtables of `states` into their trees.
    pub(crate) fn flush_memtables(&self, states: &[Arc<State>]) -> Result<()> {
        let mut frozen: Vec<(&Arc<State>, Seqno)> = Vec::new();
        {
            let mut commit = self.commit.lock();
            for state in states {
                self.freeze(&mut commit, state);
                let newest = state.peek().heads[1..].iter().find_map(|head| head.table.seqnos());
                frozen.extend(newest.map(|(_, last)| (state, last)));
            }
        }
        self.work_until(|_| {
            frozen.iter().all(|(state, last)| state.is_dropped() || state.peek().flushed >= *last)
        })
    }
}
