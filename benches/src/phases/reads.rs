//! The phases after the load: gets, misses, scans, the full scan, and the mixed one.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::runner::{self, Shared, Tally, Work};
use super::{MULTI_GET_KEYS, PhaseName, RunSpec, SCAN_ROWS, ZIPF_EXPONENT};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, Key, Random, Records, Zipf, mix};

/// Rows of a full scan between two looks at the clock.
const ROWS_PER_STEP: u64 = 4096;
/// Absent keys are those of the record numbers from here on.
const ABSENT: u64 = 1 << 48;

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    ensure!(spec.present > 0, "there are no records to read");
    let work = |thread: usize, session: &mut dyn Session, shared: &Shared| {
        let mut task = Task {
            spec,
            session,
            shared,
            records: spec.records_of(),
            // Each phase and thread reads another choice of records, the same for every engine.
            random: Random::new(mix(spec.seed) ^ ((spec.phase as u64) << 32) ^ thread as u64),
            tally: Tally::new()?,
            last: Instant::now(),
        };
        match spec.phase {
            PhaseName::Get | PhaseName::GetThreads => task.gets()?,
            PhaseName::Miss => task.misses()?,
            PhaseName::Zipf => task.zipf()?,
            PhaseName::MultiGet => task.multi_gets()?,
            PhaseName::Scan => task.scans()?,
            PhaseName::FullScan | PhaseName::Verify => task.full_scan()?,
            PhaseName::YcsbA => task.mixed()?,
            _ => bail!("not a phase of reads"),
        }
        Ok(task.tally)
    };
    runner::run(spec, engine, meter, before, work, |_| Ok(()))
}

struct Task<'a> {
    spec: &'a RunSpec,
    session: &'a mut dyn Session,
    shared: &'a Shared,
    records: Records,
    random: Random,
    tally: Tally,
    last: Instant,
}

impl Task<'_> {
    /// Operations of this thread.
    fn share(&self) -> u64 {
        self.spec.operations.div_ceil(self.spec.threads as u64)
    }

    /// Counts `operations` that were done by one call.
    fn lap(&mut self, operations: u64) {
        let now = Instant::now();
        self.tally.latencies.record(now - self.last);
        self.last = now;
        self.tally.operations += operations;
        self.shared.add(operations);
    }

    fn any(&mut self) -> u64 {
        self.random.below(self.spec.present)
    }

    /// A record by Zipf's frequencies; the popular ones are spread over the order of insertion.
    fn popular(&mut self, zipf: &Zipf) -> u64 {
        mix(zipf.sample(&mut self.random)) % self.spec.present
    }

    fn get(&mut self, number: u64) -> Result<()> {
        let records = self.records;
        let mut right = false;
        let found = self
            .session
            .get(&records.key(number), &mut |value| right = records.value_matches(number, value))?;
        ensure!(found, "record {number} is missing");
        ensure!(right, "record {number} has a wrong value");
        Ok(())
    }

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

    fn multi_gets(&mut self) -> Result<()> {
        let records = self.records;
        let mut numbers = vec![0; MULTI_GET_KEYS];
        let mut keys: Vec<Key> = vec![Key::default(); MULTI_GET_KEYS];
        for _ in 0..self.share().div_ceil(MULTI_GET_KEYS as u64) {
            if self.shared.stopped() {
                break;
            }
            for (number, key) in numbers.iter_mut().zip(&mut keys) {
                *number = self.random.below(self.spec.present);
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
        let records = self.records;
        for _ in 0..self.share() {
            if self.shared.stopped() {
                break;
            }
            let start = records.key(self.any());
            let mut order = Order::new(records, self.spec.present);
            let rows = self.session.scan(&start, SCAN_ROWS, &mut |key, value| {
                ensure!(order.rows > 0 || key == start, "a scan does not start at the key it was given");
                order.next(key, value)
            })?;
            ensure!(rows > 0, "a scan from a present key is empty");
            self.tally.rows += rows;
            self.lap(1);
        }
        Ok(())
    }

    fn full_scan(&mut self) -> Result<()> {
        let (shared, present) = (self.shared, self.spec.present);
        let mut order = Order::new(self.records, present);
        let rows = self.session.scan(&[], u64::MAX, &mut |key, value| {
            order.next(key, value)?;
            if order.rows.is_multiple_of(ROWS_PER_STEP) {
                shared.add(ROWS_PER_STEP);
            }
            Ok(())
        })?;
        // Keys rise, so none comes twice; each belongs to a record below `present`; so equal counts mean equal sets.
        ensure!(rows == present && order.rows == present, "{rows} records found of {present}");
        shared.add(rows % ROWS_PER_STEP);
        self.tally.rows = rows;
        self.tally.operations = rows;
        Ok(())
    }

    fn mixed(&mut self) -> Result<()> {
        let zipf = Zipf::new(self.spec.present, ZIPF_EXPONENT);
        let mut batch = Batch::new(self.spec.value_bytes);
        for version in 1..=self.share() {
            if self.shared.stopped() {
                break;
            }
            let number = self.popular(&zipf);
            if self.random.next_u64() & 1 == 0 {
                self.get(number)?;
            } else {
                batch.clear();
                batch.push(&self.records, number, version);
                self.session.insert(&batch)?;
            }
            self.lap(1);
        }
        Ok(())
    }
}

/// Checks rows that come in key order.
struct Order {
    records: Records,
    present: u64,
    previous: Option<Key>,
    rows: u64,
}

impl Order {
    fn new(records: Records, present: u64) -> Self {
        Order { records, present, previous: None, rows: 0 }
    }

    fn next(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let Some(number) = self.records.number(key) else {
            bail!("row {}: no record has this key", self.rows)
        };
        ensure!(number < self.present, "row {}: record {number} was never written", self.rows);
        ensure!(self.records.value_matches(number, value), "record {number} has a wrong value");
        let key = self.records.key(number);
        ensure!(self.previous.is_none_or(|previous| previous < key), "row {}: keys do not rise", self.rows);
        self.previous = Some(key);
        self.rows += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(records: &Records, number: u64) -> (Key, Vec<u8>) {
        let mut value = Vec::new();
        records.append_value(number, 0, &mut value);
        (records.key(number), value)
    }

    #[test]
    fn rows_in_order_pass_and_a_repeated_one_does_not() {
        let records = Records::new(5, 40);
        let mut rows: Vec<_> = (0..50).map(|n| row(&records, n)).collect();
        rows.sort();
        let mut order = Order::new(records, 50);
        for (key, value) in &rows {
            order.next(key, value).unwrap();
        }
        let (key, value) = &rows[49];
        assert!(order.next(key, value).unwrap_err().to_string().contains("do not rise"));
    }

    #[test]
    fn foreign_keys_unwritten_records_and_wrong_values_are_told_apart() {
        let records = Records::new(5, 40);
        let mut order = Order::new(records, 50);
        let (key, value) = row(&records, 50);
        assert!(order.next(&key, &value).unwrap_err().to_string().contains("never written"));
        let (key, _) = row(&records, 3);
        assert!(order.next(&key, &value).unwrap_err().to_string().contains("wrong value"));
        assert!(order.next(b"something else!!", &value).unwrap_err().to_string().contains("no record"));
    }
}
