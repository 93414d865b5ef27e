//! What the threads of the phases that read have in common: the choice of a record, a verified get or scan, the lap of the clock.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::RunSpec;
use super::order::Order;
use super::runner::{Shared, Tally};
use crate::engine::Session;
use crate::record::{Random, Records, Zipf, mix};

/// One thread of a phase.
pub(super) struct Task<'a> {
    pub(super) spec: &'a RunSpec,
    pub(super) session: &'a mut dyn Session,
    pub(super) shared: &'a Shared,
    pub(super) records: Records,
    pub(super) random: Random,
    pub(super) tally: Tally,
    last: Instant,
}

impl<'a> Task<'a> {
    pub(super) fn new(
        spec: &'a RunSpec,
        thread: usize,
        session: &'a mut dyn Session,
        shared: &'a Shared,
    ) -> Result<Self> {
        Ok(Task {
            spec,
            session,
            shared,
            records: spec.records_of(),
            // Each phase, also one that runs again, and each thread reads another choice of records, the same for every engine.
            random: Random::new(mix(spec.seed) ^ spec.turn << 48 ^ (spec.phase as u64) << 32 ^ thread as u64),
            tally: Tally::new()?,
            last: Instant::now(),
        })
    }

    /// Operations of this thread.
    pub(super) fn share(&self) -> u64 {
        self.spec.operations.div_ceil(self.spec.threads as u64)
    }

    /// Starts the clock anew: what came before is no operation.
    pub(super) fn start_lap(&mut self) {
        self.last = Instant::now();
    }

    /// Records the latency of a call.
    pub(super) fn end_lap(&mut self) {
        let now = Instant::now();
        self.tally.latencies.record(now - self.last);
        self.last = now;
    }

    /// Counts `operations` that were done by one call.
    pub(super) fn lap(&mut self, operations: u64) {
        self.end_lap();
        self.tally.operations += operations;
        self.shared.add(operations);
    }

    pub(super) fn any(&mut self) -> u64 {
        self.random.below(self.spec.present)
    }

    /// A record by Zipf's frequencies.
    pub(super) fn popular(&mut self, zipf: &Zipf) -> u64 {
        zipf.record(&mut self.random)
    }

    pub(super) fn get(&mut self, number: u64) -> Result<()> {
        let records = self.records;
        let mut right = false;
        let found = self
            .session
            .get(&records.key(number), &mut |value| right = records.value_matches(number, value))?;
        ensure!(found, "record {number} is missing");
        ensure!(right, "record {number} has a wrong value");
        Ok(())
    }

    /// Up to `limit` rows from the present record `number` on; `known` says which record numbers may be met.
    pub(super) fn scan(&mut self, number: u64, limit: u64, known: impl Fn(u64) -> bool) -> Result<()> {
        let start = self.records.key(number);
        let mut order = Order::new(self.records, known);
        let rows = self.session.scan(&start, limit, &mut |key, value| {
            ensure!(order.rows() > 0 || key == start, "a scan does not start at the key it was given");
            order.next(key, value)
        })?;
        ensure!(rows > 0, "a scan from a present key is empty");
        self.tally.rows += rows;
        Ok(())
    }
}
