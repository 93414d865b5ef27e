//! Which background work is done next, by whom.
//!
//! Workers pick tasks under the scheduler's lock (`due`) and carry them out without it. No task recurses into another and no two work on
//! the same child. While the last writes of a task are in flight its worker begins the next one; the claim of the first stands until the tree has its
//! result, or it failed.
//!
//! While the scheduler *squeezes* (`room`), everything pending is due, and every few tasks a
//! checkpoint. It ends when nothing is left to do. A task that found no space is not tried again before a checkpoint has freed some, or, when
//! there is nothing to free, before a pause; others have their turn meanwhile, since a leaf that a range delete covers needs no space.

mod due;
mod freezing;
mod request;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use betree_pager::{Keep, Pager, PagerIo};
use betree_storage::primitives::{Condvar, Mutex, give_way, thread};

use self::request::Requests;
use crate::flush::{self, Install, Site};
use crate::node::{LeafId, Pivot};
use crate::room::Forecast;
use crate::shared::Shared;
use crate::state::State;
use crate::stats::Counters;
use crate::task_io::TaskIo;
use crate::types::KeyspaceId;
use crate::view::Head;
use crate::{Error, Result};

/// How long workers wait after the device was full before they try again.
const FULL_DEVICE_PAUSE: Duration = Duration::from_millis(200);
/// How often an idle worker looks around unasked.
const IDLE_LOOK: Duration = Duration::from_millis(500);

/// What no two tasks may work on at once.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Claim {
    Memtables(KeyspaceId),
    Leaf(LeafId),
    Inner(KeyspaceId, u32, Pivot),
    Checkpoint,
    GiveBack,
    Warm,
    Recall,
}

enum Task {
    Memtable(Arc<State>, Arc<Head>),
    CompactMemtables(Arc<State>, Vec<Arc<Head>>),
    Node(Arc<State>, Site),
    Leaf(Arc<State>, Site, bool),
    Checkpoint,
    GiveBack,
    Warm,
    Recall,
}

impl Task {
    /// Whether it neither reads nor writes.
    fn is_in_memory(&self) -> bool {
        matches!(self, Task::CompactMemtables(..))
    }
}

#[derive(Debug, Default)]
struct Inner {
    claims: HashSet<Claim>,
    /// How many of them compact memtables.
    compacting: usize,
    checkpoint_wanted: bool,
    /// Page indexes and filters should be read ahead (`pins`).
    warming_wanted: bool,
    /// Remembered rows should be read (`remember`).
    recall_wanted: bool,
    requests: Requests,
    /// Picked since something was last picked, or looked for, that was merely due.
    urgent_in_a_row: u32,
    /// The device is full: see the module's text.
    squeeze: bool,
    /// This squeeze has given free space back to the device.
    gave_back: bool,
    /// Tasks that changed a tree since the last checkpoint began.
    changed: u64,
    /// Bytes that flushes and compactions had written when it began.
    rewritten_at: u64,
    /// What found no space since the last checkpoint or pause.
    failed: HashSet<Claim>,
    /// Messages written when a task last found no space: until there are more, leaves are not settled.
    unsettled_at: Option<u64>,
    /// Publications of the pager when at rest no free space was left to be given back: until there are more, there is none.
    given_back_at: Option<u64>,
    stop: bool,
    error: Option<Error>,
    retry_at: Option<Instant>,
    /// Counts reasons to look for work. A worker that found none waits only if none came since before it looked.
    signals: u64,
    /// Tasks ended so far, and what else waiters of [`Shared::work_until`] may wait for: they watch it in the same way.
    ended: u64,
}

impl Inner {
    /// Whether somebody works on it, or nobody can for lack of space.
    fn is_busy(&self, claim: &Claim) -> bool {
        self.claims.contains(claim) || self.failed.contains(claim)
    }
}

/// A task whose writes are in flight. Its worker begins the next one meanwhile.
struct Unfinished {
    claim: Claim,
    task: Task,
    writes: PagerIo,
    install: Install,
}

/// What a worker works with.
struct Worker {
    io: TaskIo,
    /// A channel with nothing in flight.
    idle: Option<PagerIo>,
    unfinished: Option<Unfinished>,
}

impl Worker {
    fn new(pager: &Pager) -> Result<Worker> {
        Ok(Worker { io: TaskIo::new(pager)?, idle: None, unfinished: None })
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    inner: Mutex<Inner>,
    wake: Condvar,
    ended: Condvar,
    stopped: Condvar,
}

impl Scheduler {
    /// There may be something to do.
    pub(crate) fn wake(&self) {
        self.inner.lock().signals += 1;
        self.wake.notify_one();
    }

    /// Tells workers to stop after their current task.
    pub(crate) fn stop(&self) {
        self.inner.lock().stop = true;
        self.wake.notify_all();
        self.ended.notify_all();
        self.stopped.notify_all();
    }

    /// Whether a task is under way that reads or writes.
    pub(crate) fn is_working(&self) -> bool {
        let inner = self.inner.lock();
        inner.claims.len() > inner.compacting
    }

    /// Whether workers stop or wait.
    fn pauses(&self) -> bool {
        let inner = self.inner.lock();
        inner.stop || inner.retry_at.is_some()
    }

    /// The error that keeps background work from going on, if any.
    pub(crate) fn standing_error(&self) -> Option<Error> {
        self.inner.lock().error.clone()
    }

    /// The device is full: whatever makes room is due.
    pub(crate) fn squeeze(&self) {
        let mut inner = self.inner.lock();
        if !inner.squeeze {
            inner.squeeze = true;
            inner.gave_back = false;
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// Whether the device is full, as far as is known.
    pub(crate) fn squeezing(&self) -> bool {
        self.inner.lock().squeeze
    }

    pub(crate) fn want_checkpoint(&self) {
        {
            let mut inner = self.inner.lock();
            inner.checkpoint_wanted = true;
            inner.signals += 1;
        }
        self.wake.notify_one();
    }

    /// Remembered rows should be read.
    pub(crate) fn want_recall(&self) {
        {
            let mut inner = self.inner.lock();
            inner.recall_wanted = true;
            inner.signals += 1;
        }
        self.wake.notify_one();
    }

    /// What somebody waits for in [`Shared::work_until`] may have come true without a task.
    pub(crate) fn changed(&self) {
        self.inner.lock().ended += 1;
        self.ended.notify_all();
    }
}

impl Shared {
    /// Has page indexes and filters read ahead, if reads have waited for them, and remembered rows.
    #[inline]
    pub(crate) fn warm_if_asked(&self) {
        if self.pins.takes_warming() {
            {
                let mut inner = self.scheduler.inner.lock();
                inner.warming_wanted = true;
                inner.recall_wanted = self.recall.bytes() > 0;
            }
            self.scheduler.wake();
        }
    }

    /// Does a task but for what its writes must be on the device for. `begun` is called once its first reads are done.
    fn carry_out(&self, task: &Task, io: &mut TaskIo, begun: &mut dyn FnMut()) -> Result<Option<Install>> {
        match task {
            Task::Node(state, site) => return flush::flush_to_node(self, state, site, io, begun).map(Some),
            Task::Leaf(state, site, force) => {
                return flush::flush_to_leaf(self, state, site, io, *force, begun).map(Some);
            }
            Task::Memtable(state, head) => {
                begun();
                flush::flush_memtable(self, state, head, io)?;
                self.scheduler.want_checkpoint();
            }
            Task::CompactMemtables(state, olds) => {
                begun();
                self.compact_memtables(state, olds);
            }
            Task::Checkpoint => {
                begun();
                self.take_checkpoint(io, false)?;
            }
            Task::GiveBack => {
                begun();
                self.give_back();
            }
            Task::Warm => {
                begun();
                let roots: Vec<_> = self.states().iter().map(|state| state.peek().root.clone()).collect();
                self.pins.warm(&self.pager, &roots, || self.scheduler.pauses());
            }
            Task::Recall => {
                begun();
                // That there are reads may not have been seen yet.
                self.share_memory();
                self.recall_rows(io, || self.scheduler.pauses());
            }
        }
        Ok(None)
    }

    /// Gives some of the free space back to the device: to others if it is full, or since nobody writes.
    fn give_back(&self) {
        if self.scheduler.squeezing() {
            self.pager.give_back(Keep::Least);
            self.wal.remove_spares();
            return;
        }
        let publications = self.pager.publications();
        if self.pager.give_back(Keep::Little) == 0 {
            self.scheduler.inner.lock().given_back_at = Some(publications);
        }
    }

    /// Picks one task and carries it out, but for waiting for its writes. False: there was none.
    fn step(&self, worker: &mut Worker) -> Result<bool> {
        let (claim, task) = {
            let mut inner = self.scheduler.inner.lock();
            let Some((claim, task)) = self.pick(&mut inner) else { return Ok(false) };
            inner.claims.insert(claim.clone());
            inner.compacting += usize::from(task.is_in_memory());
            (claim, task)
        };
        let Worker { io, idle, unfinished } = worker;
        let outcome = self.carry_out(&task, io, &mut || self.finish_previous(unfinished, idle));
        self.finish_previous(unfinished, idle);
        match outcome {
            Ok(Some(install)) => {
                let idle = idle.take().map_or_else(|| self.pager.background_io().map_err(Error::from), Ok);
                match idle {
                    Ok(idle) => {
                        let writes = io.hand_over_writes(idle);
                        *unfinished = Some(Unfinished { claim, task, writes, install });
                    }
                    Err(_) => {
                        let written = io.finish_writes();
                        self.ended(claim, &task, written.map(|()| install(self)))?;
                    }
                }
            }
            Ok(None) => self.ended(claim, &task, Ok(true))?,
            Err(error) => self.ended(claim, &task, Err(error))?,
        }
        Ok(true)
    }

    /// Waits for the writes of the task before this one, and puts what it wrote into the tree. A failure is the scheduler's to remember.
    fn finish_previous(&self, unfinished: &mut Option<Unfinished>, idle: &mut Option<PagerIo>) {
        if let Some(previous) = unfinished.take() {
            let (channel, _remembered) = self.finish(previous);
            *idle = Some(channel);
        }
    }

    fn finish(&self, unfinished: Unfinished) -> (PagerIo, Result<()>) {
        let Unfinished { claim, task, mut writes, install } = unfinished;
        let written = writes.finish().map_err(Error::from);
        (writes, self.ended(claim, &task, written.map(|()| install(self))))
    }

    /// What follows from a task's end; `Ok(false)`: its result was not wanted.
    fn ended(&self, claim: Claim, task: &Task, result: Result<bool>) -> Result<()> {
        if let Ok(wanted) = result {
            Counters::add(&self.counters.tasks, u64::from(!task.is_in_memory()));
            Counters::add(&self.counters.discarded_tasks, u64::from(!wanted));
        }
        let is_memtable = matches!(task, Task::Memtable(..) | Task::CompactMemtables(..));
        {
            let mut inner = self.scheduler.inner.lock();
            inner.claims.remove(&claim);
            inner.compacting -= usize::from(task.is_in_memory());
            inner.requests.ended(&claim);
            inner.ended += 1;
            inner.signals += 1;
            match &result {
                Ok(_) => {
                    inner.error = None;
                    match task {
                        Task::Checkpoint => inner.failed.clear(),
                        Task::GiveBack | Task::Warm | Task::Recall | Task::CompactMemtables(..) => {}
                        _ => inner.changed += 1,
                    }
                }
                Err(error) => {
                    // What failed may have changed nodes on the way, and a checkpoint frees what those before it replaced.
                    inner.checkpoint_wanted |= matches!(task, Task::Checkpoint) || inner.changed > 0;
                    inner.error = Some(error.clone());
                    if matches!(error, Error::NoSpace { .. }) {
                        inner.failed.insert(claim);
                        inner.unsettled_at = Some(self.counters.messages.load(Relaxed));
                        if !inner.squeeze {
                            (inner.squeeze, inner.gave_back) = (true, false);
                        }
                    } else {
                        inner.retry_at = Some(Instant::now() + FULL_DEVICE_PAUSE);
                    }
                }
            }
        }
        if let Err(error) = &result
            && !matches!(error, Error::NoSpace { .. })
        {
            self.poison.set(error);
        }
        if is_memtable || result.is_err() {
            // Under the lock, so that a writer between its look and its wait is not missed.
            drop(self.commit.lock());
            self.room.notify_all();
        }
        self.scheduler.ended.notify_all();
        // What ended may have made more due than this worker can do alone.
        self.scheduler.wake.notify_one();
        result.map(drop)
    }

    /// One step of background work in this thread, for databases without background threads.
    pub(crate) fn run_one_task(&self) -> Result<bool> {
        self.relieve_log();
        self.relieve_device();
        self.share_memory();
        let mut worker = Worker::new(&self.pager)?;
        let found = self.step(&mut worker)?;
        if let Some(unfinished) = worker.unfinished.take() {
            self.finish(unfinished).1?;
        }
        Ok(found)
    }

    /// What a worker thread does until it is told to stop. Should an assert fail on the way, writing ends instead of waiting for
    /// work that nobody does.
    pub(crate) fn work(&self) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work_until_stopped())).is_err() {
            self.poison.set_panicked();
            drop(self.commit.lock());
            self.room.notify_all();
            self.scheduler.ended.notify_all();
        }
    }

    fn work_until_stopped(&self) {
        give_way();
        let mut worker = match Worker::new(&self.pager) {
            Ok(worker) => worker,
            Err(error) => {
                self.poison.set(&error);
                return;
            }
        };
        loop {
            let seen;
            if self.poison.check().is_err() || self.scheduler.pauses() {
                self.finish_previous(&mut worker.unfinished, &mut worker.idle);
            }
            {
                let mut inner = self.scheduler.inner.lock();
                if inner.stop {
                    break;
                }
                seen = inner.signals;
                if let Some(at) = inner.retry_at {
                    if Instant::now() < at {
                        self.scheduler.wake.wait_until(&mut inner, at);
                        continue;
                    }
                    inner.retry_at = None;
                }
            }
            if self.poison.check().is_err() {
                let mut inner = self.scheduler.inner.lock();
                if !inner.stop {
                    self.scheduler.wake.wait_for(&mut inner, IDLE_LOOK);
                }
                continue;
            }
            self.relieve_device();
            match self.step(&mut worker) {
                Ok(true) | Err(_) => {}
                Ok(false) if worker.unfinished.is_some() => {
                    self.finish_previous(&mut worker.unfinished, &mut worker.idle);
                }
                Ok(false) => {
                    let mut inner = self.scheduler.inner.lock();
                    if !inner.stop && inner.signals == seen {
                        self.scheduler.wake.wait_for(&mut inner, IDLE_LOOK);
                    }
                }
            }
        }
        self.finish_previous(&mut worker.unfinished, &mut worker.idle);
    }

    /// Keeps writers going until told to stop: windows of the log prepared ahead, space promised ahead, the bound on the log's length.
    pub(crate) fn keep_log(&self) {
        let tick = self.options.sync_interval.unwrap_or(IDLE_LOOK).min(IDLE_LOOK);
        let mut forecast = Forecast::default();
        while !self.scheduler.inner.lock().stop {
            if self.wal.wait_for_work(tick) && self.wal.prepare().is_err() {
                // A full device shows in the next append; a failed one poisons the log. Either way there is no hurry.
                thread::sleep(FULL_DEVICE_PAUSE);
            }
            if self.memory.at_rest(self.storage.now()) {
                self.wal.rest();
            }
            self.relieve_log();
            self.promise_ahead(&mut forecast);
            self.share_memory();
        }
    }

    /// Syncs the log every `sync_interval` until told to stop. A thread of its own: a sync may take longer than the prepared windows last.
    pub(crate) fn keep_synced(&self) {
        let Some(interval) = self.options.sync_interval else { return };
        loop {
            {
                let mut inner = self.scheduler.inner.lock();
                if !inner.stop {
                    self.scheduler.stopped.wait_for(&mut inner, interval);
                }
                if inner.stop {
                    return;
                }
            }
            if self.poison.check().is_ok() {
                let _ = self.sync_log(self.wal.end());
            }
        }
    }

    /// Does, or waits for, background work until `done` says so.
    fn work_until(&self, mut done: impl FnMut(&Shared) -> bool) -> Result<()> {
        let mut failure = None;
        loop {
            // Before the look, so that what ends after it is noticed.
            let seen = self.scheduler.inner.lock().ended;
            if done(self) {
                return Ok(());
            }
            self.poison.check()?;
            if self.options.background_threads == 0 {
                match self.run_one_task() {
                    Ok(true) => failure = None,
                    Ok(false) if !done(self) => return failure.map_or(Ok(()), Err),
                    Ok(false) => {}
                    // Others may need no space, and what they free is enough for this.
                    Err(error @ Error::NoSpace { .. }) => failure = Some(error),
                    Err(error) => return Err(error),
                }
                continue;
            }
            let mut inner = self.scheduler.inner.lock();
            if inner.stop {
                return Err(Error::Closed);
            }
            if let Some(error) = &inner.error {
                return Err(error.clone());
            }
            if inner.ended == seen {
                inner.signals += 1;
                self.scheduler.wake.notify_all();
                self.scheduler.ended.wait_for(&mut inner, Duration::from_millis(20));
            }
        }
    }

    /// Takes a checkpoint now, in this thread; the last one before the database is closed, or not.
    pub(crate) fn checkpoint_now(&self, last: bool) -> Result<()> {
        self.poison.check()?;
        let mut io = TaskIo::new(&self.pager)?;
        self.take_checkpoint(&mut io, last).inspect_err(|error| {
            if !matches!(error, Error::NoSpace { .. }) {
                self.poison.set(error);
            }
        })?;
        self.counters.tasks.fetch_add(1, Relaxed);
        Ok(())
    }
}
