//! The commit path: Seqno, log, memtable, visible.
//!
//! One writer at a time holds the commit lock for a few hundred nanoseconds: it numbers the batch, appends it to the
//! log as one record, applies it to the active memtables and moves `visible`. Whoever needs `Sync` then waits outside the lock,
//! so that writers share syncs.
//!
//! Crash argument: a batch is one log record, replayed whole or not at all; records are replayed in Seqno order from
//! the checkpoint on; so what is recovered is a prefix of the committed batches. A failed append leaves the memtables
//! untouched. Before it, the space that the messages' flush will need is secured (`room`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use betree_storage::primitives::MutexGuard;
use betree_wal::Lsn;

use crate::message::{Head as RecordHead, MessageRef, Messages};
use crate::options::Durability;
use crate::room::{Nature, cost_in, length};
use crate::shared::{Commit, Shared};
use crate::state::State;
use crate::stats::Counters;
use crate::types::Seqno;
use crate::view::{Frozen, Head};
use crate::{Error, Result, WriteBatch};

/// Longest wait for room before a writer looks again whether it will ever come.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

impl Shared {
    /// Commits one message: the header is encoded on the stack, key and value go from the caller's memory to log and memtable.
    pub(crate) fn commit_one(
        &self,
        state: &State,
        message: MessageRef<'_>,
        durability: Durability,
    ) -> Result<()> {
        let bytes = message.key.len() + message.value.len();
        self.admit(state, bytes)?;
        let end;
        {
            let mut commit = self.turns.lock(&self.commit, &self.visible);
            // No other view can come while the lock is held that makes another memtable the active one.
            let mut view = state.peek();
            if view.heads[0].wants_look(self.memory.memtable_limit()) || state.is_dropped() {
                drop((view, commit));
                commit = self.lock_with_room(&[state])?;
                view = state.peek();
            }
            let nature = if message.kind.is_delete() { Nature::Deletes } else { Nature::Writes };
            let active = &*view.heads[0];
            let cost = cost_in(active, state.flush_cost.of(length(message), bytes as u64, 1));
            let means = self.secure(&mut commit, cost, nature)?;
            let first = commit.next;
            let mut head = RecordHead::of_batch(first, 1);
            head.message(state.id, message);
            let parts = [head.bytes(), message.key, message.value];
            let ready = active.table.expect(first, message.key);
            end = self.log(&mut commit, &parts, nature, durability, &[active])?;
            ready.apply(message);
            self.charge(&mut commit, active, cost, means);
            commit.next = Seqno(first.0 + 1);
            self.visible.store(first.0, Ordering::Release);
            Counters::add_alone(&self.counters.user_bytes, bytes as u64);
            Counters::add_alone(&self.counters.messages, 1);
        }
        self.make_durable(end, durability)
    }

    /// Commits a batch that concerns `states`.
    pub(crate) fn commit_batch(
        &self,
        batch: &WriteBatch,
        states: &[&State],
        nature: Nature,
        durability: Durability,
    ) -> Result<()> {
        let (encoded, count) = (&batch.encoded[..], batch.count);
        if count == 0 {
            return Ok(());
        }
        for state in states {
            self.admit(state, encoded.len() / states.len().max(1))?;
        }
        let end;
        {
            let mut commit = self.lock_with_room(states)?;
            let views: Vec<_> = states.iter().map(|state| state.peek()).collect();
            let active: Vec<&Head> = views.iter().map(|view| &*view.heads[0]).collect();
            let costs = costs(batch, states, &active);
            let means = self.secure(&mut commit, costs.iter().sum(), nature)?;
            let first = commit.next;
            let header = RecordHead::of_batch(first, count);
            end = self.log(&mut commit, &[header.bytes(), encoded], nature, durability, &active)?;
            match active[..] {
                [active] => {
                    let mut seqno = first.0;
                    let mut messages = Messages::new(encoded).map(|(_, message)| {
                        seqno += 1;
                        (Seqno(seqno - 1), message)
                    });
                    active.table.apply(&mut messages);
                }
                _ => {
                    for (state, active) in states.iter().zip(&active) {
                        let mut messages = Messages::new(encoded)
                            .enumerate()
                            .filter(|(_, (id, _))| *id == state.id)
                            .map(|(i, (_, message))| (Seqno(first.0 + i as u64), message));
                        active.table.apply(&mut messages);
                    }
                }
            }
            for (active, cost) in active.iter().zip(costs) {
                self.charge(&mut commit, active, cost, means);
            }
            let last = first.0 + u64::from(count) - 1;
            commit.next = Seqno(last + 1);
            self.visible.store(last, Ordering::Release);
            Counters::add_alone(&self.counters.user_bytes, batch.user_bytes);
            Counters::add_alone(&self.counters.messages, u64::from(count));
        }
        self.make_durable(end, durability)
    }

    /// What must hold before a write is considered, and the smooth part of back-pressure.
    fn admit(&self, state: &State, bytes: usize) -> Result<()> {
        self.check_open()?;
        self.poison.check()?;
        if state.is_dropped() {
            return Err(Error::KeyspaceDropped { keyspace: state.name.clone() });
        }
        if let Some(delay) = self.pressure.delay(bytes as u64, &*self.storage) {
            self.storage.pause(delay);
            Counters::add(&self.counters.pace_ns, delay.as_nanos() as u64);
        }
        Ok(())
    }

    /// The commit lock, with an active memtable that is not full in each of `states`. The hard limit of back-pressure.
    fn lock_with_room(&self, states: &[&State]) -> Result<MutexGuard<'_, Commit>> {
        let mut commit = self.turns.lock(&self.commit, &self.visible);
        let mut waiting_since: Option<Instant> = None;
        loop {
            // Asked again under the lock: nobody makes room in a keyspace that was dropped since the writer was admitted, and what it
            // was granted has been taken back.
            if let Some(state) = states.iter().find(|state| state.is_dropped()) {
                return Err(Error::KeyspaceDropped { keyspace: state.name.clone() });
            }
            let mut full = false;
            for state in states {
                let view = state.peek();
                let due = view.due(self.memory.memtable_limit());
                if due == Some(Frozen::Flush) && view.heads.len() > Shared::MAX_FROZEN {
                    full = true;
                } else if let Some(frozen) = due {
                    drop(view);
                    state.freeze_for(frozen);
                    self.storage.reached("memtable-frozen");
                    self.scheduler.wake();
                }
            }
            if !full {
                break;
            }
            self.poison.check()?;
            self.check_open()?;
            waiting_since.get_or_insert_with(Instant::now);
            if self.options.background_threads == 0 {
                MutexGuard::unlocked(&mut commit, || self.run_one_task())?;
            } else {
                if let Some(error) = self.scheduler.standing_error() {
                    return Err(error);
                }
                // With a limit, since a failure elsewhere may end background work without a signal.
                self.room.wait_for(&mut commit, LONGEST_WAIT);
            }
        }
        if let Some(since) = waiting_since {
            let waited = since.elapsed().as_nanos() as u64;
            Counters::add(&self.counters.stalls, 1);
            Counters::add(&self.counters.stall_ns, waited);
            self.counters.stall_max_ns.fetch_max(waited, Ordering::Relaxed);
        }
        Ok(commit)
    }

    /// Appends the record and notes in the memtables where their part of the log begins. The end of the record.
    fn log(
        &self,
        commit: &mut Commit,
        parts: &[&[u8]],
        nature: Nature,
        durability: Durability,
        active: &[&Head],
    ) -> Result<Option<Lsn>> {
        if durability == Durability::None {
            for head in active {
                head.unlogged.store(true, Ordering::Relaxed);
            }
            return Ok(None);
        }
        let start = commit.appender.end();
        let appended = match nature {
            Nature::Writes => commit.appender.append(parts),
            Nature::Deletes => commit.appender.append_reserved(parts),
        };
        let end = appended.map_err(|e| self.log_failed(e.into()))?;
        if nature == Nature::Deletes && self.wal.reserve_missing() {
            self.scheduler.squeeze();
        }
        for head in active {
            if head.first_lsn.get().is_none() {
                let _ = head.first_lsn.set(start);
            }
        }
        Ok(Some(end))
    }

    fn make_durable(&self, end: Option<Lsn>, durability: Durability) -> Result<()> {
        match (durability, end) {
            (Durability::Sync, Some(end)) => self.sync_log(end),
            _ => Ok(()),
        }
    }

    /// Everything in the log below `upto` survives power loss when this returns.
    pub(crate) fn sync_log(&self, upto: Lsn) -> Result<()> {
        self.wal.sync(upto).map_err(|e| self.log_failed(e.into()))
    }

    /// Marks the end of the log as durable, so that later damage to its last records is told from a torn tail.
    pub(crate) fn seal_log(&self) -> Result<()> {
        self.wal.seal().map_err(|e| self.log_failed(e.into()))
    }

    /// A full device is only told to the caller; any other failure of the log ends writing.
    fn log_failed(&self, error: Error) -> Error {
        if matches!(error, Error::NoSpace { .. }) {
            self.scheduler.squeeze();
        } else {
            self.poison.set(&error);
        }
        error
    }

    /// Freezes the active memtable if it holds anything, and has all frozen ones flushed. REQUIRES: the commit lock is held (the guard is the proof).
    pub(crate) fn freeze(&self, _commit: &mut Commit, state: &Arc<State>) {
        if !state.peek().heads[0].table.is_empty() {
            state.freeze();
            self.storage.reached("memtable-frozen");
            self.scheduler.wake();
        } else if state.flush_frozen() {
            self.scheduler.wake();
        }
    }
}

/// What the messages of a batch cost in each keyspace, with its active memtable.
fn costs(batch: &WriteBatch, states: &[&State], active: &[&Head]) -> Vec<u64> {
    if let ([state], [active]) = (states, active) {
        return vec![cost_in(active, state.flush_cost.of(batch.longest, batch.user_bytes, batch.count))];
    }
    let mut sums = vec![0; states.len()];
    for (id, message) in Messages::new(&batch.encoded) {
        if let Some(at) = states.iter().position(|state| state.id == id) {
            let bytes = message.key.len() + message.value.len();
            sums[at] += states[at].flush_cost.of(length(message), bytes as u64, 1);
        }
    }
    active.iter().zip(sums).map(|(active, sum)| cost_in(active, sum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Db;

    /// The writer was admitted before the keyspace was dropped: it waits for room that nobody makes.
    #[test]
    fn a_writer_without_room_in_a_keyspace_that_was_dropped_gets_an_error() {
        let disk = betree_testkit::SimStorage::new(1);
        let builder = Db::builder().memory(1 << 20).memtable_bytes(1024).background_threads(0);
        let db = builder.open_on(disk.as_storage()).unwrap();
        let keyspace = db.keyspace("brief").unwrap();
        for i in 0..=Shared::MAX_FROZEN {
            if i > 0 {
                keyspace.state.freeze();
            }
            keyspace.insert([i as u8], vec![0; 2000]).unwrap();
        }
        assert!(keyspace.state.view().heads.len() > Shared::MAX_FROZEN);
        assert!(db.drop_keyspace("brief").unwrap());
        let shared = db.shared();
        let refused = shared.lock_with_room(&[&keyspace.state]).err();
        assert!(matches!(refused, Some(Error::KeyspaceDropped { .. })), "{refused:?}");
        assert!(shared.lock_with_room(&[]).is_ok());
    }
}
