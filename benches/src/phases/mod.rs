//! The phases, each run by a child process of its own, so that CPU time, memory and bytes are the phase's alone and every
//! database is opened cold.
//!
//! The parent hands over a [`RunSpec`] as JSON and reads [`Event`]s as JSON lines from the child's standard output.
//! Invariant `phase.verified`: whatever an engine returns is compared byte for byte with what was written; a phase with one wrong
//! record has failed.

mod churn;
mod in_flight;
mod ingest;
mod load;
mod name;
mod order;
mod reads;
mod runner;
mod settle;
mod slices;
mod task;
mod ycsb;

use std::io::Write;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::engine::{CommitDurability, EngineName, Setup};
use crate::latency::LatencySummary;
use crate::limit;
use crate::meter::{Counters, Meter, resident_bytes, space_bytes};
use crate::record::{KeyOrder, Records};
use crate::series::Point;

pub use ingest::IngestRates;
pub use name::PhaseName;
pub use slices::RANGES;

/// Keys of one call in the phase multi-get.
pub const MULTI_GET_KEYS: usize = 64;
/// Reads in flight in the phases async-get and async-ycsb-a.
pub const ASYNC_GETS: usize = 64;
/// Rows of one scan.
pub const SCAN_ROWS: u64 = 100;
/// Skew of the phases zipf, multi-get-zipf, ycsb-a to ycsb-f and async-ycsb-a.
pub const ZIPF_EXPONENT: f64 = 0.99;

/// What earlier phases made of the records, beside their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Condition {
    /// Whether delete-range took its ranges out of the records below `present`.
    pub sliced: bool,
    /// Whether the engine has merged everything since the last change.
    pub settled: bool,
}

impl Condition {
    /// What it is after `result`.
    pub fn after(self, result: &PhaseResult) -> Condition {
        match result.phase {
            _ if result.unsupported => self,
            PhaseName::Settle => Condition { settled: true, ..self },
            PhaseName::DeleteRange => Condition { sliced: true, settled: false },
            phase => Condition { settled: self.settled && !phase.writes(), ..self },
        }
    }
}

/// What a child is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunSpec {
    /// The engine.
    pub engine: EngineName,
    /// The phase.
    pub phase: PhaseName,
    /// The database's directory.
    pub dir: PathBuf,
    /// Where to enter the memory control group, if there is one.
    pub group: Option<PathBuf>,
    /// The memory limit that the engine's settings are derived from.
    pub memory: u64,
    /// The budget of betree's options, if not the usual share.
    pub betree_memory: Option<u64>,
    /// Records in the database when the phase starts: those with the numbers below this, less what delete-range took.
    pub present: u64,
    /// What else is known of them.
    #[serde(flatten)]
    pub condition: Condition,
    /// Records to have at the end of a load.
    pub records: u64,
    /// Records per commit.
    pub batch: u64,
    /// Operations of a phase of reads.
    pub operations: u64,
    /// Rounds of overwriting.
    pub rounds: u64,
    /// In which order of their keys records are numbered.
    pub order: KeyOrder,
    /// What a commit promises.
    pub durability: CommitDurability,
    /// Seconds after which the phase is stopped.
    pub max_seconds: u64,
    /// Seconds that the engine stays open and idle after a phase that changes records.
    #[serde(default)]
    pub rest_seconds: u64,
    /// How many phases came before: one that runs again makes another choice.
    #[serde(default)]
    pub turn: u64,
    /// Threads.
    pub threads: usize,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// Seed of the records and of the choice.
    pub seed: u64,
}

impl RunSpec {
    fn records_of(&self) -> Records {
        Records::new(self.seed, self.value_bytes).in_order(self.order)
    }
}

/// What a child says while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Event {
    /// How far it is.
    Progress {
        /// Operations done.
        done: u64,
    },
    /// What it does beside the measured work.
    Doing(String),
    /// The end.
    Finished(Box<PhaseResult>),
}

impl Event {
    fn send(&self) -> Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&line)?;
        Ok(out.flush()?)
    }
}

/// What a phase measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PhaseResult {
    /// The phase.
    pub phase: PhaseName,
    /// The engine's settings in words.
    pub configuration: String,
    /// Whether the engine has no such operation; then nothing was measured.
    pub unsupported: bool,
    /// Records per commit.
    pub batch: u64,
    /// Threads.
    pub threads: usize,
    /// What the records were like at the start.
    #[serde(flatten)]
    pub condition: Condition,
    /// Operations done: commits' records for a load, keys for gets, scans for scans, rows for a full scan, ranges for delete-range.
    pub operations: u64,
    /// Rows that scans returned.
    pub rows: u64,
    /// Records in the database afterwards.
    pub present: u64,
    /// Whether the time limit ended it.
    pub stopped: bool,
    /// Seconds to open the database; not part of `seconds`.
    pub open_seconds: f64,
    /// Seconds of the operations, with the final sync of a load.
    pub seconds: f64,
    /// Seconds of the final sync, part of `seconds`.
    pub sync_seconds: f64,
    /// Seconds to close the database; not part of `seconds`.
    pub close_seconds: f64,
    /// Latency of commits, of gets, of scans.
    pub latency: LatencySummary,
    /// What it cost. For a phase that writes, the rest, closing and all write-back are included.
    pub counters: Counters,
    /// Bytes of the files afterwards, of a phase that writes: after closing, or right after the final sync if there is a rest.
    pub space_bytes: Option<u64>,
    /// Bytes of the files after the rest and closing, if there was a rest.
    pub rested_space_bytes: Option<u64>,
    /// What ingest-gets measured beside the latency of gets.
    pub ingest: Option<IngestRates>,
    /// Most bytes of memory without a file behind them.
    pub peak_anonymous_bytes: u64,
    /// Most resident bytes, mapped files included.
    pub peak_resident_bytes: u64,
    /// Most bytes in the control group, page cache included; filled in by the parent.
    pub group_peak_bytes: Option<u64>,
    /// The series.
    pub series: Vec<Point>,
    /// The engine's own counters at the end.
    pub engine_stats: Option<serde_json::Value>,
}

impl PhaseResult {
    /// Operations per second.
    pub fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.operations as f64 / self.seconds } else { 0.0 }
    }

    /// The device's reads per operation.
    pub fn device_reads_per_operation(&self) -> Option<f64> {
        let reads = self.counters.device?.reads;
        (self.operations > 0).then(|| reads as f64 / self.operations as f64)
    }

    /// Bytes written per byte inserted, as the device and as the process counts them.
    pub fn write_amplification(&self, record_len: u64) -> (Option<f64>, f64) {
        let user = (self.operations * record_len).max(1) as f64;
        let device = self.counters.device.map(|d| d.write_bytes as f64 / user);
        (device, self.counters.process_write_bytes as f64 / user)
    }
}

/// Runs the phase that `spec` describes and reports on standard output.
///
/// # Errors
/// What the engine says, and the first wrong record.
pub fn run_one(spec: &str) -> Result<()> {
    let spec: RunSpec = serde_json::from_str(spec).context("the phase's description")?;
    if let Some(entrance) = &spec.group {
        limit::enter(entrance)?;
    }
    limit::let_engines_ask_for_huge_pages();
    let result = run(&spec).with_context(|| format!("{}, {}", spec.engine, spec.phase))?;
    Event::Finished(Box::new(result)).send()
}

fn run(spec: &RunSpec) -> Result<PhaseResult> {
    let setup = Setup {
        dir: &spec.dir,
        purpose: spec.phase.purpose(),
        memory: spec.memory,
        threads: spec.threads,
        betree_memory: spec.betree_memory,
        durability: spec.durability,
    };
    let meter = Meter::new(&spec.dir)?;
    let opening = Instant::now();
    let engine = spec.engine.open(&setup).context("opening")?;
    let open_seconds = opening.elapsed().as_secs_f64();
    let configuration = engine.configuration();

    let expected = reads::rows_expected(spec);
    let before = meter.read()?;
    let work = match spec.phase {
        PhaseName::Load | PhaseName::Complete => load::run(spec, &*engine, &meter, &before)?,
        PhaseName::Settle => settle::run(spec, &*engine, &meter, &before)?,
        PhaseName::IngestGets => ingest::run(spec, &*engine, &meter, &before)?,
        phase if phase.is_churn() => churn::run(spec, &*engine, &meter, &before)?,
        phase if phase.is_ycsb() => ycsb::run(spec, &*engine, &meter, &before)?,
        PhaseName::AsyncGet | PhaseName::AsyncYcsbA => in_flight::run(spec, &*engine, &meter, &before)?,
        _ => reads::run(spec, &*engine, &meter, &before, expected)?,
    };
    let mut counters = meter.read()?.since(&before);
    let mut space = None;
    let rests = spec.rest_seconds > 0 && spec.phase.rests() && !work.unsupported;
    if rests {
        space = Some(space_bytes(&spec.dir)?);
        Event::Doing("resting".into()).send()?;
        thread::sleep(Duration::from_secs(spec.rest_seconds));
    }

    let engine_stats = engine.stats();
    let (anonymous, resident) = resident_bytes();
    let closing = Instant::now();
    Event::Doing("closing".into()).send()?;
    engine.close().context("closing")?;
    let close_seconds = closing.elapsed().as_secs_f64();
    let mut rested_space = None;
    if spec.phase.writes() {
        // What still waits in the page cache was caused by this phase; without this its bytes would be the next one's.
        nix::unistd::syncfs(std::fs::File::open(&spec.dir)?)?;
        counters = meter.read()?.since(&before);
        *(if rests { &mut rested_space } else { &mut space }) = Some(space_bytes(&spec.dir)?);
    }
    Ok(PhaseResult {
        phase: spec.phase,
        configuration,
        unsupported: work.unsupported,
        batch: spec.batch,
        threads: spec.threads,
        condition: spec.condition,
        operations: work.operations,
        rows: work.rows,
        present: work.present,
        stopped: work.stopped,
        open_seconds,
        seconds: work.seconds,
        sync_seconds: work.sync_seconds,
        close_seconds,
        latency: work.latency,
        counters,
        space_bytes: space,
        rested_space_bytes: rested_space,
        ingest: work.ingest,
        peak_anonymous_bytes: work.peak_anonymous.max(anonymous),
        peak_resident_bytes: work.peak_resident.max(resident),
        group_peak_bytes: None,
        series: work.series,
        engine_stats,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A description without the fields that came later.
    const OLD: &str = r#"{"engine":"betree","phase":"get","dir":"x","group":null,"memory":1,"betree_memory":null,
        "present":7,"records":7,"batch":1,"operations":5,"rounds":1,"order":"random","durability":"buffered",
        "max_seconds":1,"threads":1,"value_bytes":10,"seed":1}"#;

    #[test]
    fn a_description_without_later_fields_means_no_rest_and_all_records() {
        let spec: RunSpec = serde_json::from_str(OLD).unwrap();
        assert_eq!((spec.rest_seconds, spec.condition), (0, Condition::default()));
        let again: RunSpec = serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
        assert_eq!((again.present, again.condition), (7, Condition::default()));
    }
}
