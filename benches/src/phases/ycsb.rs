//! The workloads A to F of YCSB, one record per commit, in any number of threads.
//!
//! Invariant `load.contiguous` (see `load`) holds again at the end: a thread that claims a number inserts it, also when the time is over.
//! A thread reads only records that were there at the start and those that it inserted itself: an engine whose session reads from one
//! view between two of its own writes has these in view, and need not have another thread's.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail, ensure};

use super::runner::{self, Shared, Work};
use super::task::Task;
use super::{PhaseName, RunSpec, SCAN_ROWS, ZIPF_EXPONENT};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, FIRST_VERSION, Zipf};

/// What one operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    /// A get of a popular record.
    Read,
    /// A get of one of the newest records.
    ReadLatest,
    /// A scan of 1 to [`SCAN_ROWS`] rows from a popular record on.
    Scan,
    /// A new version of a popular record.
    Update,
    /// A get of a popular record, and then a new version of it.
    Modify,
    /// A new record.
    Insert,
}

/// The two operations of a workload, and how many of a hundred are the second.
fn mix_of(phase: PhaseName) -> Result<(Operation, Operation, u64)> {
    Ok(match phase {
        PhaseName::YcsbA => (Operation::Read, Operation::Update, 50),
        PhaseName::YcsbB => (Operation::Read, Operation::Update, 5),
        PhaseName::YcsbC => (Operation::Read, Operation::Read, 0),
        PhaseName::YcsbD => (Operation::ReadLatest, Operation::Insert, 5),
        PhaseName::YcsbE => (Operation::Scan, Operation::Insert, 5),
        PhaseName::YcsbF => (Operation::Read, Operation::Modify, 50),
        _ => bail!("not a workload of YCSB"),
    })
}

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    ensure!(spec.present > 0, "there are no records to read");
    let (first, second, percent) = mix_of(spec.phase)?;
    let next = AtomicU64::new(spec.present);
    let work = |thread: usize, session: &mut dyn Session, shared: &Shared| {
        let mut client = Client {
            task: Task::new(spec, thread, session, shared)?,
            zipf: Zipf::new(spec.present, ZIPF_EXPONENT),
            next: &next,
            inserted: Vec::new(),
            batch: Batch::new(spec.value_bytes),
        };
        for version in 1..=client.task.share() {
            if shared.stopped() {
                break;
            }
            let operation = if client.task.random.below(100) < percent { second } else { first };
            client.run(operation, version)?;
            client.task.lap(1);
        }
        Ok(client.task.tally)
    };
    let mut work = runner::run(spec, engine, meter, before, work, |_| Ok(()))?;
    work.present = next.load(Ordering::Relaxed);
    Ok(work)
}

/// One thread of a workload.
struct Client<'a> {
    task: Task<'a>,
    zipf: Zipf,
    /// The next number to insert, claimed by all threads.
    next: &'a AtomicU64,
    /// The numbers that this thread inserted, rising.
    inserted: Vec<u64>,
    batch: Batch,
}

impl Client<'_> {
    fn run(&mut self, operation: Operation, version: u64) -> Result<()> {
        match operation {
            Operation::Read => {
                let number = self.task.popular(&self.zipf);
                self.task.get(number)
            }
            Operation::ReadLatest => {
                let number = self.latest();
                self.task.get(number)
            }
            Operation::Scan => {
                let number = self.task.popular(&self.zipf);
                let rows = 1 + self.task.random.below(SCAN_ROWS);
                // A row of another thread's insert is there only after its number was claimed.
                let next = self.next;
                self.task.scan(number, rows, |number| number < next.load(Ordering::Acquire))
            }
            Operation::Update => {
                let number = self.task.popular(&self.zipf);
                self.put(number, version)
            }
            Operation::Modify => {
                let number = self.task.popular(&self.zipf);
                self.task.get(number)?;
                self.put(number, version)
            }
            Operation::Insert => {
                let number = self.next.fetch_add(1, Ordering::AcqRel);
                self.put(number, FIRST_VERSION)?;
                self.inserted.push(number);
                Ok(())
            }
        }
    }

    fn put(&mut self, number: u64, version: u64) -> Result<()> {
        self.batch.clear();
        self.batch.push(&self.task.records, number, version);
        self.task.session.insert(&self.batch)
    }

    /// A record that this thread knows, by Zipf's frequencies of how many are newer.
    fn latest(&mut self) -> u64 {
        let newer = self.zipf.sample(&mut self.task.random) - 1;
        let inserted = self.inserted.len() as u64;
        if newer < inserted {
            self.inserted[(inserted - 1 - newer) as usize]
        } else {
            // There are `present` ranks, so this is never below the first record.
            self.task.spec.present - 1 - (newer - inserted)
        }
    }
}
