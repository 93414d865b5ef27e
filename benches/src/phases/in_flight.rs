//! The phases in which one thread has many reads in flight: gets, and the workload A of YCSB, whose updates are written between them.
//!
//! An update does not wait for the reads that were begun before it: a get returns the version from before or after it, as those of two clients would.

use std::cell::RefCell;
use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use super::runner::{self, Shared, Tally, Work};
use super::task::Task;
use super::{ASYNC_GETS, PhaseName, RunSpec, ZIPF_EXPONENT};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, Random, Zipf};

/// One operation on the record of this number.
enum Operation {
    Read(u64),
    Update(u64),
}

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    ensure!(spec.present > 0, "there are no records to read");
    let work = |thread: usize, session: &mut dyn Session, shared: &Shared| {
        let task = Task::new(spec, thread, session, shared)?;
        match spec.phase {
            PhaseName::AsyncGet => in_flight(task, |random| Operation::Read(random.below(spec.present))),
            PhaseName::AsyncYcsbA => {
                let zipf = Zipf::new(spec.present, ZIPF_EXPONENT);
                in_flight(task, |random| {
                    let number = zipf.record(random);
                    if random.below(2) == 0 { Operation::Read(number) } else { Operation::Update(number) }
                })
            }
            _ => bail!("not a phase with reads in flight"),
        }
    };
    runner::run(spec, engine, meter, before, work, |_| Ok(()))
}

/// Does what `choose` says until all of the thread's operations are done or the time is over.
fn in_flight(task: Task<'_>, mut choose: impl FnMut(&mut Random) -> Operation) -> Result<Tally> {
    let share = task.share();
    let mut batch = Batch::new(task.spec.value_bytes);
    let Task { session, shared, records, mut random, tally, .. } = task;
    let tally = RefCell::new(tally);
    let done = |since: Instant| {
        let mut tally = tally.borrow_mut();
        tally.latencies.record(since.elapsed());
        tally.operations += 1;
        shared.add(1);
    };
    // What is in flight: the record's number, and since when.
    let flying = RefCell::new(HashMap::with_capacity(ASYNC_GETS));
    let mut begun = 0;
    let supported = session.gets_in_flight(
        ASYNC_GETS,
        &mut |insert| {
            while begun < share && !shared.stopped() {
                begun += 1;
                let since = Instant::now();
                match choose(&mut random) {
                    Operation::Read(number) => {
                        flying.borrow_mut().insert(begun, (number, since));
                        return Ok(Some((begun, records.key(number))));
                    }
                    Operation::Update(number) => {
                        batch.clear();
                        batch.push(&records, number, begun);
                        insert(&batch)?;
                        done(since);
                    }
                }
            }
            Ok(None)
        },
        &mut |token, value| {
            let (number, since) = flying.borrow_mut().remove(&token).context("an answer nobody asked for")?;
            let right = value.is_some_and(|value| records.value_matches(number, value));
            ensure!(right, "record {number} is missing or wrong");
            done(since);
            Ok(())
        },
    )?;
    let mut tally = tally.into_inner();
    tally.unsupported = !supported;
    Ok(tally)
}
