//! The Markdown report: one table, a column per engine, and what has to be known to read it.

mod rows;

use std::fmt::Write as _;

use serde::Serialize;

use crate::engine::EngineName;
use crate::host::{Host, package_version};
use crate::phases::{Condition, PhaseName, PhaseResult};
use crate::record::{KEY_LEN, KeyOrder};

/// Everything a comparison found.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    /// The machine and the build.
    pub host: Host,
    /// Records to insert.
    pub records: u64,
    /// Bytes of a value.
    pub value_bytes: usize,
    /// The memory limit in bytes.
    pub memory: u64,
    /// The time limit of a load.
    pub max_seconds: u64,
    /// The seed.
    pub seed: u64,
    /// Order of the keys.
    pub order: KeyOrder,
    /// Seconds of rest after a phase that changes records.
    pub rest_seconds: u64,
    /// Whether the memory limit was in force, or why not.
    pub limited: Result<(), String>,
    /// More to know.
    pub notes: Vec<String>,
    /// The engines in the order they ran.
    pub runs: Vec<EngineRun>,
}

impl Comparison {
    /// Bytes of key and value together.
    pub fn record_len(&self) -> u64 {
        (KEY_LEN + self.value_bytes) as u64
    }
}

/// One engine's way through the phases.
#[derive(Debug, Clone, Serialize)]
pub struct EngineRun {
    /// The engine.
    pub engine: EngineName,
    /// What it was through with, in order.
    pub phases: Vec<PhaseResult>,
    /// What ended it early.
    pub error: Option<String>,
    /// More to know about it.
    pub notes: Vec<String>,
}

impl EngineRun {
    /// Nothing yet.
    pub fn new(engine: EngineName) -> Self {
        EngineRun { engine, phases: Vec::new(), error: None, notes: Vec::new() }
    }

    /// Adds a note, once.
    pub fn note(&mut self, text: &str) {
        if !self.notes.iter().any(|note| note == text) {
            self.notes.push(text.into());
        }
    }

    /// The first result of a phase; for one that only reads, of all records and before the engine has settled.
    pub fn phase(&self, name: PhaseName) -> Option<&PhaseResult> {
        self.phase_in(name, Condition::default())
    }

    /// The first result of a phase; for one that only reads, of records in this condition.
    pub fn phase_in(&self, name: PhaseName, condition: Condition) -> Option<&PhaseResult> {
        self.phases
            .iter()
            .find(|p| p.phase == name && !p.unsupported && (name.writes() || p.condition == condition))
    }

    /// The first result of a workload of YCSB with this many threads.
    pub fn ycsb(&self, name: PhaseName, threads: usize) -> Option<&PhaseResult> {
        self.phases.iter().find(|p| p.phase == name && p.threads == threads)
    }
}

/// The whole report.
pub fn markdown(comparison: &Comparison) -> String {
    let mut text = String::from("# Comparison\n\n");
    describe(&mut text, comparison);
    table(&mut text, comparison);
    ratios(&mut text, comparison);
    configurations(&mut text, comparison);
    text
}

fn describe(text: &mut String, c: &Comparison) {
    let gib = (c.records * c.record_len()) as f64 / f64::from(1 << 30);
    let limit = match &c.limited {
        Ok(()) => format!("heap and page cache together limited to {} by a control group", bytes(c.memory)),
        Err(_) => "memory **not limited**".into(),
    };
    let order = match c.order {
        KeyOrder::Random => "random",
        KeyOrder::Ascending => "ascending",
        KeyOrder::Descending => "descending",
    };
    let _ = writeln!(
        text,
        "{} records of {KEY_LEN} + {} bytes ({gib:.2} GiB) in {order} order, {limit}, seed {}. A load or a full scan is stopped after {} s, and its \
         average up to then counts. Each phase is a process of its own, and finds an empty page cache unless noted otherwise.\n",
        count(c.records as f64),
        c.value_bytes,
        c.seed,
        c.max_seconds
    );
    let _ = writeln!(text, "{}.\n", c.host.describe());
    for note in &c.notes {
        let _ = writeln!(text, "{note}\n");
    }
}

fn table(text: &mut String, c: &Comparison) {
    text.push_str("| |");
    for run in &c.runs {
        let _ = write!(text, " {} |", run.engine);
    }
    text.push_str("\n|---|");
    text.push_str(&"---:|".repeat(c.runs.len()));
    text.push('\n');
    for (title, cell) in rows::rows(c) {
        let cells: Vec<_> = c.runs.iter().map(|run| cell(c, run)).collect();
        // A phase that nobody ran has no rows.
        if cells.iter().any(Option::is_some) {
            let _ = write!(text, "| {title} |");
            for cell in cells {
                let _ = write!(text, " {} |", cell.as_deref().unwrap_or("–"));
            }
            text.push('\n');
        }
    }
    text.push('\n');
}

/// betree's average rate of inserts over the fastest of the B-trees, the figure that this comparison is for.
fn ratios(text: &mut String, c: &Comparison) {
    let best = |wanted: fn(EngineName) -> bool| {
        let rates = c
            .runs
            .iter()
            .filter(|r| wanted(r.engine))
            .filter_map(|r| Some((r.engine, r.phase(PhaseName::Load)?.rate())));
        rates.max_by(|a, b| a.1.total_cmp(&b.1))
    };
    if let Some((_, ours)) = best(|e| e == EngineName::Betree)
        && let Some((peer, theirs)) = best(EngineName::is_btree)
        && theirs > 0.0
    {
        let _ =
            writeln!(text, "Inserts: betree {:.1} × {peer}, the fastest of the B-trees.\n", ours / theirs);
    }
}

fn configurations(text: &mut String, c: &Comparison) {
    let mut seen = Vec::new();
    for run in &c.runs {
        let Some(first) = run.phases.first() else { continue };
        if seen.contains(&run.engine) {
            continue;
        }
        seen.push(run.engine);
        let package = match run.engine {
            EngineName::Lmdb => "heed",
            EngineName::Sqlite => "rusqlite",
            EngineName::BetreeCold => EngineName::Betree.as_str(),
            engine => engine.as_str(),
        };
        let version = package_version(package).unwrap_or("?");
        let _ = writeln!(text, "- **{}** (crate {package} {version}): {}.", run.engine, first.configuration);
        for note in &run.notes {
            let _ = writeln!(text, "  {note}.");
        }
    }
}

/// A number to three digits with a unit of thousands.
pub fn count(number: f64) -> String {
    match number {
        n if n >= 999_500.0 => format!("{} M", digits(n / 1e6)),
        n if n >= 9_995.0 => format!("{} k", digits(n / 1e3)),
        n if n >= 10.0 || n.fract() == 0.0 => format!("{n:.0}"),
        n => format!("{n:.2}"),
    }
}

/// Nanoseconds with a unit.
pub fn time(ns: u64) -> String {
    match ns as f64 {
        n if n >= 999.5e6 => format!("{} s", digits(n / 1e9)),
        n if n >= 999.5e3 => format!("{} ms", digits(n / 1e6)),
        n => format!("{} µs", digits(n / 1e3)),
    }
}

/// Bytes with a unit.
pub fn bytes(number: u64) -> String {
    match number as f64 / f64::from(1 << 20) {
        m if m >= 10_240.0 => format!("{:.1} GiB", m / 1024.0),
        m => format!("{m:.0} MiB"),
    }
}

fn digits(number: f64) -> String {
    match number {
        n if n >= 99.95 => format!("{n:.0}"),
        n if n >= 9.995 => format!("{n:.1}"),
        n => format!("{n:.2}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::latency::LatencySummary;
    use crate::meter::{Counters, DeviceCounters};
    use crate::series::Point;

    pub(crate) fn result(phase: PhaseName, operations: u64, seconds: f64) -> PhaseResult {
        let point = |i: u64| Point {
            seconds: seconds * i as f64 / 20.0,
            done: operations * i / 20,
            process_write_bytes: operations * i * 40,
            device_write_bytes: Some(operations * i * 50),
            anonymous_bytes: 1 << 20,
        };
        PhaseResult {
            phase,
            configuration: "as it comes".into(),
            unsupported: false,
            batch: 100,
            threads: 1,
            condition: Condition::default(),
            operations,
            rows: operations,
            present: operations,
            stopped: false,
            open_seconds: 0.01,
            seconds,
            sync_seconds: 0.5,
            close_seconds: 0.25,
            latency: LatencySummary {
                count: operations,
                mean_ns: 1.0,
                p50_ns: 800,
                p99_ns: 1_500_000,
                p999_ns: 20_000_000,
                max_ns: 2_000_000_000,
                curve: vec![(0.5, 800), (0.99, 1_500_000), (0.999, 20_000_000)],
            },
            counters: Counters {
                cpu_user: 1.0,
                cpu_system: 1.0,
                process_write_bytes: operations * 116 * 3,
                device: Some(DeviceCounters {
                    reads: operations / 2,
                    write_bytes: operations * 116 * 4,
                    ..Default::default()
                }),
                ..Counters::default()
            },
            space_bytes: Some(operations * 116 * 2),
            rested_space_bytes: None,
            ingest: None,
            peak_anonymous_bytes: 300 << 20,
            peak_resident_bytes: 310 << 20,
            group_peak_bytes: Some(512 << 20),
            series: (0..=20).map(point).collect(),
            engine_stats: None,
        }
    }

    pub(crate) fn comparison() -> Comparison {
        let mut betree = EngineRun::new(EngineName::Betree);
        betree.phases = vec![result(PhaseName::Load, 2_000_000, 4.0), result(PhaseName::Get, 1000, 0.1)];
        let mut redb = EngineRun::new(EngineName::Redb);
        redb.phases = vec![result(PhaseName::Load, 400_000, 20.0)];
        redb.phases[0].stopped = true;
        let mut lmdb = EngineRun::new(EngineName::Lmdb);
        lmdb.error = Some("load: a | b\nc".into());
        Comparison {
            host: Host::default(),
            records: 2_000_000,
            value_bytes: 100,
            memory: 512 << 20,
            max_seconds: 20,
            seed: 1,
            order: KeyOrder::Random,
            rest_seconds: 0,
            limited: Ok(()),
            notes: vec!["A note.".into()],
            runs: vec![betree, redb, lmdb],
        }
    }

    fn row<'a>(text: &'a str, title: &str) -> Vec<&'a str> {
        let line = text.lines().find(|line| line.starts_with(&format!("| {title} |"))).unwrap();
        line.split('|').skip(2).map(str::trim).filter(|cell| !cell.is_empty()).collect()
    }

    #[test]
    fn the_table_has_a_column_per_engine_and_a_dash_for_what_is_missing() {
        let text = markdown(&comparison());
        assert_eq!(row(&text, "records inserted"), ["2.00 M", "400 k (stopped)", "–"]);
        assert_eq!(row(&text, "records/s, average"), ["500 k", "20.0 k", "–"]);
        assert_eq!(row(&text, "CPU per record, µs"), ["1.00", "5.00", "–"]);
        assert_eq!(row(&text, "bytes written per byte inserted, device"), ["4.00", "4.00", "–"]);
        assert_eq!(row(&text, "bytes written per byte inserted, process"), ["3.00", "3.00", "–"]);
        assert_eq!(row(&text, "space per byte inserted"), ["2.00", "2.00", "–"]);
        assert_eq!(row(&text, "commit p50 / p99"), ["0.80 µs / 1.50 ms", "0.80 µs / 1.50 ms", "–"]);
        assert_eq!(row(&text, "device reads per get"), ["0.500", "–", "–"]);
    }

    #[test]
    fn phases_that_nobody_ran_have_no_rows() {
        assert!(!markdown(&comparison()).contains("YCSB"));
    }

    #[test]
    fn reads_before_and_after_settling_have_rows_of_their_own() {
        let mut comparison = comparison();
        let settled = Condition { settled: true, ..Condition::default() };
        let mut after = result(PhaseName::Scan, 3000, 1.0);
        after.condition = settled;
        comparison.runs[0].phases.extend([
            result(PhaseName::Scan, 2000, 1.0),
            result(PhaseName::Settle, 1, 5.0),
            after,
        ]);
        let text = markdown(&comparison);
        assert_eq!(row(&text, "**scan of 100 rows** /s"), ["2000", "–", "–"]);
        assert_eq!(row(&text, "**settle**, s"), ["5.00", "–", "–"]);
        assert_eq!(row(&text, "**scan of 100 rows** /s, settled"), ["3000", "–", "–"]);
        assert!(!text.contains("get, Zipf 0.99** /s, settled"));
    }

    #[test]
    fn a_workload_has_a_row_for_each_number_of_threads() {
        let mut comparison = comparison();
        for (threads, rate) in [(1, 100), (2, 150)] {
            let mut of_threads = result(PhaseName::YcsbD, rate, 1.0);
            of_threads.threads = threads;
            comparison.runs[1].phases.push(of_threads);
        }
        let text = markdown(&comparison);
        assert_eq!(row(&text, "**YCSB D**, 1 thread /s"), ["–", "100", "–"]);
        assert_eq!(row(&text, "**YCSB D**, 2 threads /s"), ["–", "150", "–"]);
    }

    #[test]
    fn space_after_a_rest_is_beside_that_before() {
        let mut comparison = comparison();
        comparison.rest_seconds = 60;
        comparison.runs[0].phases[0].rested_space_bytes = Some(2_000_000 * 116);
        let text = markdown(&comparison);
        assert_eq!(row(&text, "space per byte inserted"), ["2.00", "2.00", "–"]);
        assert_eq!(row(&text, "space per byte inserted, after 60 s of rest"), ["1.00", "–", "–"]);
    }

    #[test]
    fn a_failure_is_in_the_table_and_cannot_break_it() {
        assert_eq!(row(&markdown(&comparison()), "failed"), ["–", "–", "load: a / b c"]);
    }

    #[test]
    fn the_ratio_is_to_the_fastest_b_tree() {
        assert!(markdown(&comparison()).contains("betree 25.0 × redb"));
    }

    #[test]
    fn a_run_without_limit_says_so() {
        let mut comparison = comparison();
        assert!(markdown(&comparison).contains("limited to 512 MiB"));
        comparison.limited = Err("not permitted".into());
        assert!(markdown(&comparison).contains("**not limited**"));
    }

    #[test]
    fn numbers_keep_three_digits() {
        assert_eq!(
            [0.0, 0.5, 42.0, 9_000.0, 12_345.0, 999_999.0, 20e6].map(count),
            ["0", "0.50", "42", "9000", "12.3 k", "1.00 M", "20.0 M"]
        );
        assert_eq!(
            [120, 45_000, 1_000_000, 2_500_000_000].map(time),
            ["0.12 µs", "45.0 µs", "1.00 ms", "2.50 s"]
        );
        assert_eq!([5 << 20, 20 << 30].map(bytes), ["5 MiB", "20.0 GiB"]);
    }
}
