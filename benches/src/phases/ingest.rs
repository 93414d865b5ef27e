//! The phase ingest-gets: one thread inserts as fast as the engine takes it, in the middle half of the time beside a thread of random gets.
//!
//! Both rates of the inserts come from one run, and the mean of what was before the gets and what came after them is set against them: a load whose
//! rate falls or rises as it goes on has the same part of that in both, so their ratio says what the reader costs.
//! Invariant `load.contiguous` (see `load`) holds again at the end: the inserted numbers follow those that were there.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::runner::{self, Shared, Tally, Work};
use super::task::Task;
use super::{Event, RunSpec};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, FIRST_VERSION};

/// Gets from one view of an engine that has views; more would keep such an engine from using its space again.
const GETS_PER_VIEW: u64 = 100;
/// How often the reader looks whether its time has come.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What the two threads did, and in how many seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct IngestRates {
    /// Records inserted while nobody read.
    pub alone_records: u64,
    /// Seconds of that.
    pub alone_seconds: f64,
    /// Records inserted beside the gets.
    pub beside_records: u64,
    /// Seconds of that.
    pub beside_seconds: f64,
    /// Gets.
    pub gets: u64,
    /// Seconds of the gets.
    pub get_seconds: f64,
}

impl IngestRates {
    /// Inserts per second while nobody read.
    pub fn alone_rate(&self) -> f64 {
        rate(self.alone_records, self.alone_seconds)
    }

    /// Inserts per second beside the gets.
    pub fn beside_rate(&self) -> f64 {
        rate(self.beside_records, self.beside_seconds)
    }

    /// Gets per second.
    pub fn get_rate(&self) -> f64 {
        rate(self.gets, self.get_seconds)
    }
}

fn rate(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    ensure!(spec.present > 0, "there are no records to read");
    ensure!(spec.max_seconds > 0, "this phase ends by time only: --read-seconds must be above 0");
    let (start, time) = (Instant::now(), Duration::from_secs(spec.max_seconds));
    let gets = (start + time / 4)..(start + time * 3 / 4);
    let rates = Mutex::new(IngestRates::default());
    let work = |thread: usize, session: &mut dyn Session, shared: &Shared| {
        if thread == 0 {
            write(spec, session, shared, &gets, &rates)
        } else {
            read(Task::new(spec, thread, session, shared)?, &gets, &rates)
        }
    };
    let mut work = runner::run(spec, engine, meter, before, work, |engine| {
        Event::Doing("final sync".into()).send()?;
        engine.sync()
    })?;
    let rates = rates.into_inner().unwrap_or_else(PoisonError::into_inner);
    work.operations = rates.alone_records + rates.beside_records;
    work.present = spec.present + work.operations;
    // The time is what was asked for, not what cut it off.
    work.stopped = false;
    work.ingest = Some(rates);
    Ok(work)
}

fn write(
    spec: &RunSpec,
    session: &mut dyn Session,
    shared: &Shared,
    gets: &Range<Instant>,
    rates: &Mutex<IngestRates>,
) -> Result<Tally> {
    let records = spec.records_of();
    let mut batch = Batch::new(spec.value_bytes);
    let mut next = spec.present;
    let mut insert_until = |over: &dyn Fn() -> bool| -> Result<(u64, f64)> {
        let (first, start) = (next, Instant::now());
        while !over() {
            batch.clear();
            for number in next..next + spec.batch {
                batch.push(&records, number, FIRST_VERSION);
            }
            session.insert(&batch)?;
            next += spec.batch;
            shared.add(spec.batch);
        }
        Ok((next - first, start.elapsed().as_secs_f64()))
    };
    let before = insert_until(&|| Instant::now() >= gets.start || shared.stopped())?;
    let beside = insert_until(&|| Instant::now() >= gets.end || shared.stopped())?;
    // Never true, but the clock is read as before, so that it costs the same.
    let after = insert_until(&|| Instant::now() < gets.end || shared.stopped())?;
    let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
    (rates.alone_records, rates.alone_seconds) = (before.0 + after.0, before.1 + after.1);
    (rates.beside_records, rates.beside_seconds) = beside;
    Tally::new()
}

fn read(mut task: Task<'_>, time: &Range<Instant>, rates: &Mutex<IngestRates>) -> Result<Tally> {
    while Instant::now() < time.start && !task.shared.stopped() {
        thread::sleep(LOOK_EVERY);
    }
    let start = Instant::now();
    task.start_lap();
    let mut gets = 0;
    while Instant::now() < time.end && !task.shared.stopped() {
        let number = task.any();
        task.get(number)?;
        task.end_lap();
        gets += 1;
        if gets % GETS_PER_VIEW == 0 {
            task.session.renew_view()?;
        }
    }
    let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
    (rates.gets, rates.get_seconds) = (gets, start.elapsed().as_secs_f64());
    Ok(task.tally)
}
