//! The database handle.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use betree_storage::Storage;
use betree_storage::primitives::Mutex;
use betree_storage::primitives::thread::{self, JoinHandle};

use crate::check::{CheckReport, Progress, check};
use crate::options::{Builder, Durability, KeyspaceOptions};
use crate::readers::ColdRead;
use crate::recovery;
use crate::room::Nature;
use crate::shared::Shared;
use crate::state::State;
use crate::types::KeyspaceId;
use crate::{Error, Keyspace, Result, Snapshot, Stats, WriteBatch};

/// Longest name of a keyspace in bytes.
const MAX_NAME_LEN: usize = 255;

/// What keeps the background threads running: they end with the last handle.
#[derive(Debug)]
pub(crate) struct Handle {
    pub shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Handle {
    fn start(shared: Arc<Shared>) -> Arc<Handle> {
        let mut threads = Vec::new();
        if shared.options.background_threads > 0 {
            let mut spawn = |name: String, work: fn(&Shared)| {
                let worker = shared.clone();
                match thread::Builder::new().name(name).spawn(move || work(&worker)) {
                    Ok(thread) => threads.push(thread),
                    Err(e) => shared.poison.set(&Error::InvalidOption {
                        option: "background_threads",
                        detail: format!("a thread could not be started: {e}"),
                    }),
                }
            };
            for i in 0..shared.options.background_threads {
                spawn(format!("betree-{i}"), Shared::work);
            }
            spawn("betree-log".into(), Shared::keep_log);
            if shared.options.sync_interval.is_some() {
                spawn("betree-sync".into(), Shared::keep_synced);
            }
        }
        Arc::new(Handle { shared, threads: Mutex::new(threads) })
    }

    /// Has reads answered that need the device: by threads, or here if there are none.
    pub(crate) fn read_later(&self, reads: Vec<ColdRead>) {
        let shared = &self.shared;
        if shared.options.background_threads == 0 {
            return shared.answer(reads);
        }
        if shared.readers.push(reads) {
            let worker = shared.clone();
            let started =
                thread::Builder::new().name("betree-read".into()).spawn(move || worker.keep_reading());
            match started {
                Ok(thread) => self.threads.lock().push(thread),
                Err(_) => shared.answer(shared.readers.not_started()),
            }
        }
    }

    /// Ends background work after the tasks that are running.
    fn stop(&self) {
        self.shared.scheduler.stop();
        self.shared.readers.stop();
        self.shared.wal.rouse();
        for thread in self.threads.lock().drain(..) {
            // The last handle may be dropped by a background thread's own work only in a bug; never join oneself.
            if thread.thread().id() != thread::current().id() {
                let _ = thread.join();
            }
        }
        self.shared.closed.store(true, Ordering::Relaxed);
        // Under the lock, so that a writer between its look and its wait is not missed.
        drop(self.shared.commit.lock());
        self.shared.room.notify_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
        // What a Buffered write promised holds without it; this only shortens what power loss could take.
        if self.shared.poison.check().is_ok() {
            let _ = self.shared.sync_log(self.shared.wal.end());
        }
    }
}

/// A database: any number of [`Keyspace`]s that share one log, one page cache and one memory budget.
///
/// Cheap to clone, usable from any thread. The directory is locked while any handle, keyspace or snapshot of it lives.
/// Dropping the last one stops background work and syncs the log; [`Db::close`] also checkpoints, so that the
/// next open has nothing to replay, and reports errors.
#[derive(Clone, Debug)]
pub struct Db {
    handle: Arc<Handle>,
}

impl Db {
    /// Opens (or creates) the database in the directory `path` with default options.
    ///
    /// # Errors
    /// See [`Builder::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Db> {
        Builder::default().open(path)
    }

    /// Options for opening.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn open_with(path: &Path, builder: Builder) -> Result<Db> {
        recovery::check_options(&builder.options)?;
        Db::open_on(recovery::storage_at(path, &builder.options)?, builder)
    }

    pub(crate) fn open_on(storage: Arc<dyn Storage>, builder: Builder) -> Result<Db> {
        let shared = recovery::open(storage, builder)?;
        let db = Db { handle: Handle::start(shared) };
        db.shared().scheduler.wake();
        Ok(db)
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    /// Notes about the environment that an operator may want to know, such as the fallback from io_uring.
    pub fn notes(&self) -> Vec<String> {
        self.shared().storage.notes()
    }

    /// The failure since which writes are refused ([`Error::Poisoned`]), if there was one. Reads go on; opening anew recovers what was promised.
    pub fn failure(&self) -> Option<String> {
        self.shared().poison.cause().map(str::to_string)
    }

    /// Opens the keyspace `name`, creating it with default options if it is not there.
    ///
    /// # Errors
    /// [`Error::InvalidKeyspace`] for a name that is empty or longer than 255 bytes; errors of the checkpoint that makes a new
    /// keyspace durable.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace> {
        self.keyspace_with(name, KeyspaceOptions::default())
    }

    /// Opens the keyspace `name`, creating it with these options if it is not there.
    ///
    /// # Errors
    /// As [`Db::keyspace`], and [`Error::MergeOperator`] if it was created with another operator.
    pub fn keyspace_with(&self, name: &str, options: KeyspaceOptions) -> Result<Keyspace> {
        let shared = self.shared();
        shared.check_open()?;
        if name.is_empty() || name.len() > MAX_NAME_LEN {
            return Err(Error::InvalidKeyspace {
                keyspace: name.to_string(),
                detail: format!("a name has 1 to {MAX_NAME_LEN} bytes, this one has {}", name.len()),
            });
        }
        if let Some(tree) = &options.tree {
            recovery::check_tree(tree)?;
        }
        let _creating = shared.creating.lock();
        let known = shared.keyspaces.read().by_name.get(name).cloned();
        let state = match known {
            Some(state) => state,
            None => self.create(name, &options)?,
        };
        if let Some(operator) = options.merge_operator {
            self.set_operator(&state, operator)?;
        }
        Ok(Keyspace::new(self.handle.clone(), state))
    }

    fn create(&self, name: &str, options: &KeyspaceOptions) -> Result<Arc<State>> {
        let shared = self.shared();
        shared.poison.check()?;
        let state = {
            let commit = shared.commit.lock();
            let mut keyspaces = shared.keyspaces.write();
            if let Some(state) = keyspaces.by_name.get(name) {
                return Ok(state.clone());
            }
            if keyspaces.next_id == u32::MAX {
                return Err(Error::InvalidKeyspace {
                    keyspace: name.to_string(),
                    detail: "there is no number left for it".into(),
                });
            }
            let id = KeyspaceId(keyspaces.next_id);
            keyspaces.next_id += 1;
            let tree = options.tree.unwrap_or(shared.options.tree).within(shared.options.memory);
            let flushed = crate::Seqno(commit.next.0 - 1);
            let state = recovery::new_state(shared, id, name, options.merge_operator.clone(), tree, flushed);
            keyspaces.by_name.insert(name.to_string(), state.clone());
            keyspaces.by_id.insert(id, state.clone());
            state
        };
        // The log may name a keyspace only after the catalog does.
        if let Err(error) = shared.checkpoint_now(false) {
            state.dropped.store(true, Ordering::Relaxed);
            let mut keyspaces = shared.keyspaces.write();
            keyspaces.by_name.remove(name);
            keyspaces.by_id.remove(&state.id);
            return Err(error);
        }
        Ok(state)
    }

    fn set_operator(&self, state: &Arc<State>, operator: Arc<dyn crate::MergeOperator>) -> Result<()> {
        match state.operator() {
            Some(known) if known.name() != operator.name() => Err(Error::MergeOperator {
                keyspace: state.name.clone(),
                detail: format!("it was created with {:?}, not {:?}", known.name(), operator.name()),
            }),
            Some(_) => Ok(()),
            None => {
                let shared = self.shared();
                {
                    let _commit = shared.commit.lock();
                    state.set_operator(operator);
                    // The active memtable was made without it.
                    state.freeze();
                    shared.scheduler.wake();
                }
                shared.checkpoint_now(false)
            }
        }
    }

    /// Drops the keyspace `name` with everything in it; false if there is none. Its space is free after the next checkpoint.
    ///
    /// # Errors
    /// Those of the checkpoint that makes it durable.
    pub fn drop_keyspace(&self, name: &str) -> Result<bool> {
        let shared = self.shared();
        shared.check_open()?;
        shared.poison.check()?;
        let _creating = shared.creating.lock();
        let (state, operator) = {
            let _commit = shared.commit.lock();
            let mut keyspaces = shared.keyspaces.write();
            let Some(state) = keyspaces.by_name.remove(name) else { return Ok(false) };
            state.dropped.store(true, Ordering::Relaxed);
            keyspaces.by_id.remove(&state.id);
            let operator = keyspaces.operator_names.remove(&state.id);
            (state, operator)
        };
        // Writers that wait for room in it, and whoever waits for its memtables, have nothing to wait for.
        shared.room.notify_all();
        shared.scheduler.changed();
        if let Err(error) = shared.checkpoint_now(false) {
            // It is still in the durable catalog: it stays here as well.
            let mut keyspaces = shared.keyspaces.write();
            if let Some(operator) = operator {
                keyspaces.operator_names.insert(state.id, operator);
            }
            keyspaces.by_id.insert(state.id, state.clone());
            keyspaces.by_name.insert(name.to_string(), state.clone());
            state.dropped.store(false, Ordering::Relaxed);
            return Err(error);
        }
        state.view().heads.iter().for_each(|head| shared.discharge(head));
        Ok(true)
    }

    /// The names of all keyspaces, sorted.
    pub fn keyspaces(&self) -> Vec<String> {
        self.shared().keyspaces.read().by_name.keys().cloned().collect()
    }

    /// An empty batch.
    pub fn batch(&self) -> WriteBatch {
        WriteBatch::new()
    }

    /// Commits the batch with the database's durability: all of it takes effect, or none.
    ///
    /// # Errors
    /// As [`Keyspace::insert`]; [`Error::ForeignKeyspace`] if the batch names a keyspace of another database. It then had no effect.
    pub fn write(&self, mut batch: WriteBatch) -> Result<()> {
        self.write_with(&mut batch, self.shared().options.durability)
    }

    /// Commits the batch with this durability and empties it; its memory can be used again.
    ///
    /// # Errors
    /// As [`Db::write`]; the batch is then as it was.
    pub fn write_with(&self, batch: &mut WriteBatch, durability: Durability) -> Result<()> {
        for keyspace in &batch.keyspaces {
            keyspace.check_belongs(&self.handle)?;
        }
        let states: Vec<&State> = batch.keyspaces.iter().map(|k| &*k.state).collect();
        let nature = if batch.only_deletes { Nature::Deletes } else { Nature::Writes };
        self.shared().commit_batch(batch, &states, nature, durability)?;
        batch.clear();
        Ok(())
    }

    /// A fixed view of all keyspaces.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.handle.clone())
    }

    /// Everything whose write returned before survives power loss when this returns.
    ///
    /// # Errors
    /// A failed sync: the database then refuses writes ([`Error::Poisoned`]).
    pub fn persist(&self) -> Result<()> {
        let shared = self.shared();
        shared.check_open()?;
        shared.poison.check()?;
        let unlogged = |s: &Arc<State>| s.view().heads.iter().any(|h| h.unlogged.load(Ordering::Relaxed));
        if shared.states().iter().any(unlogged) {
            return self.checkpoint();
        }
        shared.sync_log(shared.wal.end())
    }

    /// Flushes the memtables and makes everything the start of the next recovery.
    ///
    /// # Errors
    /// Those of the device.
    pub fn checkpoint(&self) -> Result<()> {
        self.flush_and_checkpoint(false)
    }

    fn flush_and_checkpoint(&self, last: bool) -> Result<()> {
        let shared = self.shared();
        shared.check_open()?;
        shared.flush_memtables(&shared.states())?;
        shared.checkpoint_now(last)
    }

    /// Checks every invariant and every checksum of the trees as they are now, and of what the last checkpoint wrote. Reads everything
    /// from the device, whatever the page cache has. A closed database is checked by [`Builder::check_at`].
    ///
    /// # Errors
    /// Those of the device, after everything else was checked. What is wrong with the data is not an error but in the report.
    pub fn check(&self) -> Result<CheckReport> {
        self.check_with(&mut |_| ())
    }

    /// As [`Db::check`], and says how far it has come.
    ///
    /// # Errors
    /// As [`Db::check`].
    pub fn check_with(&self, progress: &mut dyn FnMut(Progress)) -> Result<CheckReport> {
        self.shared().check_open()?;
        check(self.shared(), progress)
    }

    /// Moves everything that was committed before the call down to the leaves, and checkpoints. Reads are cheapest and space is least after it.
    /// Part of a keyspace: [`Keyspace::compact_range`].
    ///
    /// # Errors
    /// Those of the device.
    pub fn compact(&self) -> Result<()> {
        let shared = self.shared();
        shared.check_open()?;
        for state in shared.states() {
            match shared.compact_range(&state, Vec::new(), None) {
                Ok(()) | Err(Error::KeyspaceDropped { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        shared.checkpoint_now(false)
    }

    /// Counters and sizes.
    pub fn stats(&self) -> Stats {
        self.shared().stats()
    }

    /// Carries out one step of background work in this thread; false if none is due. For databases opened with
    /// [`crate::Options::background_threads`] = 0.
    ///
    /// # Errors
    /// Those of the work.
    pub fn run_background(&self) -> Result<bool> {
        self.shared().check_open()?;
        self.shared().poison.check()?;
        self.shared().run_one_task()
    }

    /// Flushes, checkpoints (with popular rows, see [`crate::Options::remember_rows`]), gives free space back to the file system, and ends background work. Other handles then answer [`Error::Closed`].
    ///
    /// # Errors
    /// Those of the device; background work has ended all the same.
    pub fn close(self) -> Result<()> {
        let result = match self.shared().check_open() {
            Err(_) => return Ok(()),
            Ok(()) => self.flush_and_checkpoint(true),
        };
        self.handle.stop();
        result?;
        let shared = self.shared();
        shared.leave_little_space();
        shared.seal_log()
    }
}
