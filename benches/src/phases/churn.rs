//! The phases that change what is there: overwrites, deletes, a mix of puts and deletes, and deletes by range.
//!
//! Invariant `load.contiguous` (see `load`) holds again when a phase ends: overwriting keeps the set of records, deleting takes away those with
//! the highest numbers, and the mix deletes again all it puts. So every later phase can check what it reads. Only deleting by range breaks it:
//! what is left then is told by `slices.derivable`, and few phases can follow. One thread.

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use super::runner::{self, Shared, Tally, Work};
use super::slices::Slices;
use super::{Event, PhaseName, RunSpec};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};
use crate::record::{Batch, FIRST_VERSION, Key, Records, mix};

/// How far the deletes of the mix are behind its puts, as a part of all puts.
const LAG_PART: u64 = 10;

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    let work = |_: usize, session: &mut dyn Session, shared: &Shared| {
        let mut writer = Writer {
            session,
            shared,
            records: spec.records_of(),
            batch: Batch::new(spec.value_bytes),
            keys: Vec::new(),
            size: spec.batch as usize,
            tally: Tally::new()?,
            last: Instant::now(),
        };
        match spec.phase {
            PhaseName::Overwrite => writer.overwrite(spec)?,
            PhaseName::Delete => writer.delete(spec)?,
            PhaseName::PutDelete => writer.put_and_delete(spec)?,
            PhaseName::DeleteRange => writer.delete_ranges(spec)?,
            _ => bail!("not a phase of changes"),
        }
        Ok(writer.tally)
    };
    let mut work = runner::run(spec, engine, meter, before, work, |engine| {
        Event::Doing("final sync".into()).send()?;
        engine.sync()
    })?;
    match spec.phase {
        PhaseName::Delete => work.present = spec.present - work.operations,
        PhaseName::DeleteRange if !work.unsupported => {
            work.present = Slices::new(spec.records_of(), spec.present).kept(spec.present);
        }
        _ => {}
    }
    Ok(work)
}

/// A number that has no factor in common with `n` and scatters consecutive numbers over `0..n`.
fn stride(n: u64, round: u64) -> u64 {
    let greatest_common = |mut a: u64, mut b: u64| {
        while b > 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let mut stride = (mix(round + 1) % n.max(1)) | 1;
    while greatest_common(stride, n) != 1 {
        stride += 2;
    }
    stride
}

/// The numbers of `0..n`, each once, in an order that another round does not repeat.
fn scattered(n: u64, round: u64) -> impl Iterator<Item = u64> {
    let stride = stride(n, round);
    (0..n).map(move |i| ((u128::from(i) * u128::from(stride) + u128::from(round)) % u128::from(n)) as u64)
}

struct Writer<'a> {
    session: &'a mut dyn Session,
    shared: &'a Shared,
    records: Records,
    batch: Batch,
    keys: Vec<Key>,
    size: usize,
    tally: Tally,
    last: Instant,
}

impl Writer<'_> {
    fn lap(&mut self, operations: usize) {
        let now = Instant::now();
        self.tally.latencies.record(now - self.last);
        self.last = now;
        self.tally.operations += operations as u64;
        self.shared.add(operations as u64);
    }

    fn put(&mut self, number: u64, version: u64) -> Result<()> {
        self.batch.push(&self.records, number, version);
        if self.batch.len() == self.size { self.put_batch() } else { Ok(()) }
    }

    fn put_batch(&mut self) -> Result<()> {
        if !self.batch.is_empty() {
            self.session.insert(&self.batch)?;
            self.lap(self.batch.len());
            self.batch.clear();
        }
        Ok(())
    }

    fn remove(&mut self, number: u64) -> Result<()> {
        self.keys.push(self.records.key(number));
        if self.keys.len() == self.size { self.remove_batch() } else { Ok(()) }
    }

    fn remove_batch(&mut self) -> Result<()> {
        if !self.keys.is_empty() {
            self.session.delete(&self.keys)?;
            self.lap(self.keys.len());
            self.keys.clear();
        }
        Ok(())
    }

    /// Writes every record anew, as often as there are rounds.
    fn overwrite(&mut self, spec: &RunSpec) -> Result<()> {
        for round in 0..spec.rounds {
            for number in scattered(spec.present, round) {
                if self.shared.stopped() {
                    break;
                }
                self.put(number, FIRST_VERSION + 1 + round)?;
            }
        }
        self.put_batch()
    }

    /// Deletes the upper half of the records. A delete is not stopped half-way: which records are left must be known.
    fn delete(&mut self, spec: &RunSpec) -> Result<()> {
        let kept = spec.present / 2;
        for number in scattered(spec.present - kept, 0) {
            self.remove(kept + number)?;
        }
        self.remove_batch()
    }

    /// Puts new records and deletes each of them again some time later, in turn.
    fn put_and_delete(&mut self, spec: &RunSpec) -> Result<()> {
        let puts = spec.present / 2;
        let lag = puts / LAG_PART;
        for step in 0..puts + lag {
            if step < puts {
                self.put(spec.present + step, FIRST_VERSION)?;
            }
            if step >= lag {
                if step >= puts {
                    self.put_batch()?;
                }
                self.remove(spec.present + step - lag)?;
            }
        }
        self.remove_batch()
    }

    /// Deletes all but a tenth of every slice of the keys. Not stopped half-way, as a delete.
    fn delete_ranges(&mut self, spec: &RunSpec) -> Result<()> {
        ensure!(spec.present > 0, "there are no records to delete");
        let slices = Slices::new(self.records, spec.present);
        for index in scattered(slices.count(), 0) {
            let (start, end) = slices.range(index);
            if !self.session.delete_range(&start, &end)? {
                self.tally.unsupported = true;
                break;
            }
            self.lap(1);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn scattered_numbers_are_each_there_once_and_in_another_order_each_round() {
        for n in [1, 2, 30, 1000, 1024, 99_990] {
            let first: Vec<_> = scattered(n, 0).collect();
            let second: Vec<_> = scattered(n, 1).collect();
            assert_eq!(first.iter().collect::<HashSet<_>>().len() as u64, n);
            assert_eq!(second.iter().collect::<HashSet<_>>().len() as u64, n);
            assert!(first.iter().chain(&second).all(|x| *x < n));
            assert!(n < 30 || first != second);
        }
    }
}
