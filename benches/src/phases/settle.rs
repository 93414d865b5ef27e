//! The phase settle: the engine merges everything it has into its final form, as far as it has a call for that.
//!
//! Changes no record. What follows measures the engine at its best for reads and space.

use anyhow::Result;

use super::runner::{self, Shared, Tally, Work};
use super::slices::Slices;
use super::{Event, RunSpec};
use crate::engine::{Engine, Session};
use crate::meter::{Counters, Meter};

pub(super) fn run(spec: &RunSpec, engine: &dyn Engine, meter: &Meter, before: &Counters) -> Result<Work> {
    let work = |_: usize, _: &mut dyn Session, shared: &Shared| {
        let mut tally = Tally::new()?;
        if engine.settle()? {
            tally.operations = 1;
            shared.add(1);
        } else {
            tally.unsupported = true;
        }
        Ok(tally)
    };
    let mut work = runner::run(spec, engine, meter, before, work, |engine| {
        Event::Doing("final sync".into()).send()?;
        engine.sync()
    })?;
    if spec.condition.sliced {
        work.present = Slices::new(spec.records_of(), spec.present).kept(spec.present);
    }
    Ok(work)
}
