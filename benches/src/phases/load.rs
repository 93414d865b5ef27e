//! The load: random inserts, or the rest of them in key order.
//!
//! Invariant `load.contiguous`: whenever a load ends, the database holds exactly the records with numbers below `present`. Threads
//! therefore claim chunks from one counter and finish what they claimed also when the time is over.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::Result;

use super::runner::{self, Shared, Tally, Work};
use super::{Event, PhaseName, RunSpec};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, FIRST_VERSION};

/// Records claimed at a time, at least: large enough that the counter costs nothing.
const CLAIM: u64 = 256;
/// Records per commit when the order is that of the keys and nothing is measured.
const COMPLETE_BATCH: usize = 10_000;

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    if spec.phase == PhaseName::Complete {
        return complete(spec, engine, meter, before);
    }
    let next = AtomicU64::new(spec.present);
    let mut work = runner::run(
        spec,
        engine,
        meter,
        before,
        |_, session, shared| insert_claims(spec, session, shared, &next),
        |engine| {
            Event::Doing("final sync".into()).send()?;
            engine.sync()
        },
    )?;
    work.present = next.load(Ordering::Relaxed).min(spec.records);
    work.stopped = work.present < spec.records;
    Ok(work)
}

fn insert_claims(
    spec: &RunSpec,
    session: &mut dyn Session,
    shared: &Shared,
    next: &AtomicU64,
) -> Result<Tally> {
    let records = spec.records_of();
    let mut tally = Tally::new()?;
    let mut batch = Batch::new(spec.value_bytes);
    let claim = spec.batch * CLAIM.div_ceil(spec.batch);
    // One reading of the clock per commit: the end of one is the start of the next. Deriving the records is inside.
    let mut last = Instant::now();
    while !shared.stopped() {
        let start = next.fetch_add(claim, Ordering::Relaxed);
        if start >= spec.records {
            break;
        }
        let end = (start + claim).min(spec.records);
        let mut number = start;
        while number < end {
            batch.clear();
            let batch_end = (number + spec.batch).min(end);
            for n in number..batch_end {
                batch.push(&records, n, FIRST_VERSION);
            }
            session.insert(&batch)?;
            let now = Instant::now();
            tally.latencies.record(now - last);
            last = now;
            number = batch_end;
        }
        tally.operations += end - start;
        shared.add(end - start);
    }
    Ok(tally)
}

fn complete(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    let records = spec.records_of();
    let insert = |_: usize, session: &mut dyn Session, shared: &Shared| {
        let mut tally = Tally::new()?;
        let mut ranks: Vec<u64> = (spec.present..spec.records).map(|n| records.rank(n)).collect();
        ranks.sort_unstable();
        let mut batch = Batch::new(spec.value_bytes);
        for chunk in ranks.chunks(COMPLETE_BATCH) {
            batch.clear();
            for &rank in chunk {
                batch.push(&records, records.number_of_rank(rank), FIRST_VERSION);
            }
            session.insert(&batch)?;
            shared.add(chunk.len() as u64);
        }
        tally.operations = ranks.len() as u64;
        Ok(tally)
    };
    let mut work = runner::run(spec, engine, meter, before, insert, |engine| engine.sync())?;
    work.present = spec.records;
    Ok(work)
}
