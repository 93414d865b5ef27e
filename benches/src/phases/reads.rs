//! The phases that only read: gets, misses, scans, the full scan.

use std::fmt;

use anyhow::{Result, bail, ensure};

use super::order::Order;
use super::runner::{self, Shared, Work};
use super::slices::Slices;
use super::task::Task;
use super::{MULTI_GET_KEYS, PhaseName, RunSpec, SCAN_ROWS, ZIPF_EXPONENT};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Key, Zipf};

/// Rows of a full scan between two looks at the clock.
const ROWS_PER_STEP: u64 = 4096;
/// Absent keys are those of the record numbers from here on.
const ABSENT: u64 = 1 << 48;

/// Ends a full scan before its end.
#[derive(Debug)]
struct TimeIsOver;

impl fmt::Display for TimeIsOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the time of the phase is over")
    }
}

impl std::error::Error for TimeIsOver {}

/// Rows that a full scan must find. Looks at every record if some were deleted, so it is asked before anything is measured.
pub(super) fn rows_expected(spec: &RunSpec) -> u64 {
    match spec.phase {
        PhaseName::FullScan | PhaseName::Verify if spec.condition.sliced => {
            Slices::new(spec.records_of(), spec.present).kept(spec.present)
        }
        _ => spec.present,
    }
}

/// `expected`: [`rows_expected`].
pub(super) fn run(
    spec: &RunSpec,
    engine: &dyn Engine,
    meter: &Meter,
    before: &Counters,
    expected: u64,
) -> Result<Work> {
    ensure!(spec.present > 0, "there are no records to read");
    let work = |thread: usize, session: &mut dyn Session, shared: &Shared| {
        let mut task = Task::new(spec, thread, session, shared)?;
        match spec.phase {
            PhaseName::Get | PhaseName::GetThreads => task.gets()?,
            PhaseName::Miss => task.misses()?,
            PhaseName::Zipf => task.zipf()?,
            PhaseName::MultiGet => task.multi_gets(Task::any)?,
            PhaseName::MultiGetZipf => {
                let zipf = Zipf::new(spec.present, ZIPF_EXPONENT);
                task.multi_gets(|task| task.popular(&zipf))?;
            }
            PhaseName::Scan => task.scans()?,
            PhaseName::FullScan | PhaseName::Verify => task.full_scan(expected)?,
            _ => bail!("not a phase of reads"),
        }
        Ok(task.tally)
    };
    let mut work = runner::run(spec, engine, meter, before, work, |_| Ok(()))?;
    if spec.condition.sliced {
        work.present = work.rows;
    }
    Ok(work)
}

impl Task<'_> {
    fn gets(&mut self) -> Result<()> {
        for _ in 0..self.share() {
            if self.shared.stopped() {
                break;
            }
            let number = self.any();
            self.get(number)?;
            self.lap(1);
        }
        Ok(())
    }

    fn zipf(&mut self) -> Result<()> {
        let zipf = Zipf::new(self.spec.present, ZIPF_EXPONENT);
        for _ in 0..self.share() {
            if self.shared.stopped() {
                break;
            }
            let number = self.popular(&zipf);
            self.get(number)?;
            self.lap(1);
        }
        Ok(())
    }

    fn misses(&mut self) -> Result<()> {
        for _ in 0..self.share() {
            if self.shared.stopped() {
                break;
            }
            let number = ABSENT + self.random.below(ABSENT);
            let found = self.session.get(&self.records.key(number), &mut |_| ())?;
            ensure!(!found, "record {number}, which was never written, was found");
            self.lap(1);
        }
        Ok(())
    }

    fn multi_gets(&mut self, choose: impl Fn(&mut Self) -> u64) -> Result<()> {
        let records = self.records;
        let mut numbers = vec![0; MULTI_GET_KEYS];
        let mut keys: Vec<Key> = vec![Key::default(); MULTI_GET_KEYS];
        for _ in 0..self.share().div_ceil(MULTI_GET_KEYS as u64) {
            if self.shared.stopped() {
                break;
            }
            for (number, key) in numbers.iter_mut().zip(&mut keys) {
                *number = choose(self);
                *key = records.key(*number);
            }
            let mut right = 0;
            let supported = self.session.multi_get(&keys, &mut |i, value| {
                right += usize::from(value.is_some_and(|value| records.value_matches(numbers[i], value)));
            })?;
            if !supported {
                self.tally.unsupported = true;
                break;
            }
            ensure!(
                right == keys.len(),
                "{} of {} records are missing or wrong",
                keys.len() - right,
                keys.len()
            );
            self.lap(MULTI_GET_KEYS as u64);
        }
        Ok(())
    }

    fn scans(&mut self) -> Result<()> {
        let present = self.spec.present;
        for _ in 0..self.share() {
            if self.shared.stopped() {
                break;
            }
            let number = self.any();
            self.scan(number, SCAN_ROWS, |number| number < present)?;
            self.lap(1);
        }
        Ok(())
    }

    fn full_scan(&mut self, expected: u64) -> Result<()> {
        let (shared, present) = (self.shared, self.spec.present);
        let slices = if self.spec.condition.sliced { Some(Slices::new(self.records, present)) } else { None };
        let mut slice = 0;
        let mut order = Order::new(self.records, |number| {
            number < present && slices.is_none_or(|slices| slices.keeps_near(number, &mut slice))
        });
        let scanned = self.session.scan(&[], u64::MAX, &mut |key, value| {
            order.next(key, value)?;
            if order.rows().is_multiple_of(ROWS_PER_STEP) {
                shared.add(ROWS_PER_STEP);
                ensure!(!shared.stopped(), TimeIsOver);
            }
            Ok(())
        });
        let rows = match scanned {
            Err(error) if error.is::<TimeIsOver>() => order.rows(),
            scanned => {
                let rows = scanned?;
                // Keys rise, so none comes twice; each belongs to a record that must be there; so equal counts mean equal sets.
                ensure!(rows == expected && order.rows() == expected, "{rows} records found of {expected}");
                rows
            }
        };
        shared.add(rows % ROWS_PER_STEP);
        self.tally.rows = rows;
        self.tally.operations = rows;
        Ok(())
    }
}
