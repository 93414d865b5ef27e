//! The rows of the report's table, in their order; those of phases that nobody ran stay empty, and the table leaves them out.

use super::{Comparison, EngineRun, bytes, count, time};
use crate::phases::{Condition, PhaseName, PhaseResult};
use crate::series;

/// How a cell is found.
type Cell = Box<dyn Fn(&Comparison, &EngineRun) -> Option<String>>;
/// A row of the table: its title and how a cell is found.
pub(super) type Row = (String, Cell);

const SETTLED: Condition = Condition { sliced: false, settled: true };
const SLICED: Condition = Condition { sliced: true, settled: false };
const SLICED_SETTLED: Condition = Condition { sliced: true, settled: true };

fn row(title: &str, cell: impl Fn(&Comparison, &EngineRun) -> Option<String> + 'static) -> Row {
    (title.into(), Box::new(cell))
}

/// All of them.
pub(super) fn rows(c: &Comparison) -> Vec<Row> {
    let mut rows = load_rows(c);
    rows.extend(read_rows());
    rows.extend(ycsb_rows(c));
    rows.extend(ingest_rows());
    rows.extend(churn_rows(c));
    rows.extend(settled_rows());
    rows.extend(delete_range_rows(c));
    rows.push(row("failed", |_, r| r.error.clone().map(|e| e.replace('|', "/").replace('\n', " "))));
    rows
}

fn load_rows(c: &Comparison) -> Vec<Row> {
    vec![
        row("**insert**: records per commit", |_, r| load(r).map(|p| p.batch.to_string())),
        row("records inserted", |_, r| {
            load(r).map(|p| {
                format!("{}{}", count(p.operations as f64), if p.stopped { " (stopped)" } else { "" })
            })
        }),
        row("records/s, average", |_, r| load(r).map(|p| count(p.rate()))),
        row("records/s, last tenth of the time", |_, r| series::final_rate(&load(r)?.series).map(count)),
        row("rate of the last quarter, of the first; once the memory is outgrown", |c, r| {
            let series = &load(r)?.series;
            let outgrown = series::flatness(series, c.memory / c.record_len());
            let outgrown = outgrown.map_or("–".into(), |x| format!("{x:.2}"));
            Some(format!("{:.2}; {outgrown}", series::flatness(series, 0)?))
        }),
        row("records/s, worst second", |_, r| series::worst_second(&load(r)?.series).map(count)),
        row("CPU per record, µs", |_, r| {
            load(r).map(|p| format!("{:.2}", p.counters.cpu() * 1e6 / p.operations.max(1) as f64))
        }),
        row("commit p50 / p99", |_, r| {
            load(r).map(|p| format!("{} / {}", time(p.latency.p50_ns), time(p.latency.p99_ns)))
        }),
        row("commit p99.9 / longest", |_, r| {
            load(r).map(|p| format!("{} / {}", time(p.latency.p999_ns), time(p.latency.max_ns)))
        }),
        row("bytes written per byte inserted, device", |c, r| {
            load(r)?.write_amplification(c.record_len()).0.map(|x| format!("{x:.2}"))
        }),
        row("bytes written per byte inserted, process", |c, r| {
            load(r).map(|p| format!("{:.2}", p.write_amplification(c.record_len()).1))
        }),
        row("space per byte inserted", |c, r| space(c, r, PhaseName::Load)),
        rested_row(c, "space per byte inserted", PhaseName::Load),
        row("most memory: heap / with page cache", |_, r| {
            let p = load(r)?;
            let all = p.group_peak_bytes.map_or("–".into(), bytes);
            Some(format!("{} / {all}", bytes(p.peak_anonymous_bytes)))
        }),
        row("final sync / closing, s", |_, r| {
            load(r).map(|p| format!("{:.2} / {:.2}", p.sync_seconds, p.close_seconds))
        }),
        row("checked after the load: rows", |_, r| {
            r.phase(PhaseName::Verify).map(|p| format!("{}, all right", count(p.rows as f64)))
        }),
    ]
}

fn read_rows() -> Vec<Row> {
    vec![
        row("records present at the reads", |_, r| {
            let read = r
                .phases
                .iter()
                .find(|p| !matches!(p.phase, PhaseName::Load | PhaseName::Complete | PhaseName::Verify))?;
            let completed =
                if r.phase(PhaseName::Complete).is_some() { " (completed in key order)" } else { "" };
            Some(format!("{}{completed}", count(read.present as f64)))
        }),
        row("open, cold, ms", |_, r| r.phase(PhaseName::Get).map(|p| format!("{:.0}", p.open_seconds * 1e3))),
        row("**random get**, 1 thread /s", |_, r| rate(r, PhaseName::Get)),
        row("device reads per get", |_, r| reads(r, PhaseName::Get)),
        row("get p50 / p99", |_, r| {
            r.phase(PhaseName::Get)
                .map(|p| format!("{} / {}", time(p.latency.p50_ns), time(p.latency.p99_ns)))
        }),
        row("**random get**, several threads /s", |_, r| {
            r.phase(PhaseName::GetThreads).map(|p| format!("{} ({})", count(p.rate()), p.threads))
        }),
        row("**multi-get** of 64, 1 thread, keys/s", |_, r| rate(r, PhaseName::MultiGet)),
        row("**async get**, 64 in flight, 1 thread, keys/s", |_, r| rate(r, PhaseName::AsyncGet)),
        row("**multi-get** of 64, Zipf 0.99, 1 thread, keys/s", |_, r| rate(r, PhaseName::MultiGetZipf)),
        row("**YCSB A**, 64 gets in flight, 1 thread, operations/s", |_, r| rate(r, PhaseName::AsyncYcsbA)),
        row("**miss** /s", |_, r| rate(r, PhaseName::Miss)),
        row("device reads per miss", |_, r| reads(r, PhaseName::Miss)),
        row("**get, Zipf 0.99** /s", |_, r| rate(r, PhaseName::Zipf)),
        row("device reads per get, Zipf", |_, r| reads(r, PhaseName::Zipf)),
        row("**scan of 100 rows** /s", |_, r| rate(r, PhaseName::Scan)),
        row("device reads per scan", |_, r| reads(r, PhaseName::Scan)),
        row("**full scan**, rows/s, every row checked", |_, r| full_scan_in(r, Condition::default())),
    ]
}

/// A workload's rate and latency, for each number of threads that any engine had.
fn ycsb_rows(c: &Comparison) -> Vec<Row> {
    let mut found: Vec<_> = c
        .runs
        .iter()
        .flat_map(|run| &run.phases)
        .filter(|p| p.phase.is_ycsb())
        .map(|p| (p.phase, p.threads))
        .collect();
    found.sort_unstable();
    found.dedup();
    let rows = found.into_iter().flat_map(|(phase, threads)| {
        let letter = phase.as_str().trim_start_matches("ycsb-").to_uppercase();
        let threads_word = if threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
        [
            row(&format!("**YCSB {letter}**, {threads_word} /s"), move |_, r| {
                r.ycsb(phase, threads).map(|p| count(p.rate()))
            }),
            row(&format!("YCSB {letter}, {threads_word}, p99 / longest"), move |_, r| {
                let latency = &r.ycsb(phase, threads)?.latency;
                Some(format!("{} / {}", time(latency.p99_ns), time(latency.max_ns)))
            }),
        ]
    });
    rows.collect()
}

fn ingest_rows() -> Vec<Row> {
    let ingest = |r: &EngineRun| r.phase(PhaseName::IngestGets)?.ingest;
    let latency = |r: &EngineRun| r.phase(PhaseName::IngestGets).map(|p| p.latency.clone());
    vec![
        row("**inserts on top**, alone, records/s", move |_, r| ingest(r).map(|i| count(i.alone_rate()))),
        row("the same beside random gets, records/s", move |_, r| ingest(r).map(|i| count(i.beside_rate()))),
        row("kept of the rate alone", move |_, r| {
            let rates = ingest(r)?;
            (rates.alone_records > 0)
                .then(|| format!("{:.0} %", rates.beside_rate() / rates.alone_rate() * 100.0))
        }),
        row("**random get** beside inserts, 1 thread /s", move |_, r| ingest(r).map(|i| count(i.get_rate()))),
        row("get beside inserts p50 / p99", move |_, r| {
            latency(r).map(|l| format!("{} / {}", time(l.p50_ns), time(l.p99_ns)))
        }),
        row("get beside inserts p99.9 / longest", move |_, r| {
            latency(r).map(|l| format!("{} / {}", time(l.p999_ns), time(l.max_ns)))
        }),
    ]
}

fn churn_rows(c: &Comparison) -> Vec<Row> {
    vec![
        row("**overwrites** /s", |_, r| rate(r, PhaseName::Overwrite)),
        row("overwrite p99.9 / longest", |_, r| tail(r, PhaseName::Overwrite)),
        row("overwrites: bytes written per byte, device", |c, r| written(c, r, PhaseName::Overwrite)),
        row("space per byte of live records, after overwrites", |c, r| space(c, r, PhaseName::Overwrite)),
        rested_row(c, "space per byte of live records, after overwrites", PhaseName::Overwrite),
        row("**deletes** /s", |_, r| rate(r, PhaseName::Delete)),
        row("space per byte of live records, after deletes", |c, r| space(c, r, PhaseName::Delete)),
        rested_row(c, "space per byte of live records, after deletes", PhaseName::Delete),
        row("**half puts, half deletes** /s", |_, r| rate(r, PhaseName::PutDelete)),
        row("put or delete p99.9 / longest", |_, r| tail(r, PhaseName::PutDelete)),
        row("space per byte of live records, after puts and deletes", |c, r| {
            space(c, r, PhaseName::PutDelete)
        }),
        rested_row(c, "space per byte of live records, after puts and deletes", PhaseName::PutDelete),
    ]
}

/// The reads once more, after the engine has merged everything.
fn settled_rows() -> Vec<Row> {
    let rate = |title: &str, phase| row(&format!("{title}, settled"), move |_, r| rate_in(r, phase, SETTLED));
    let reads =
        |title: &str, phase| row(&format!("{title}, settled"), move |_, r| reads_in(r, phase, SETTLED));
    vec![
        row("**settle**, s", |_, r| r.phase(PhaseName::Settle).map(|p| format!("{:.2}", p.seconds))),
        row("space per byte of live records, settled", |c, r| space(c, r, PhaseName::Settle)),
        rate("**random get**, 1 thread /s", PhaseName::Get),
        reads("device reads per get", PhaseName::Get),
        rate("**random get**, several threads /s", PhaseName::GetThreads),
        rate("**multi-get** of 64, 1 thread, keys/s", PhaseName::MultiGet),
        rate("**miss** /s", PhaseName::Miss),
        rate("**get, Zipf 0.99** /s", PhaseName::Zipf),
        rate("**multi-get** of 64, Zipf 0.99, 1 thread, keys/s", PhaseName::MultiGetZipf),
        rate("**YCSB A**, 64 gets in flight, 1 thread, operations/s", PhaseName::AsyncYcsbA),
        rate("**scan of 100 rows** /s", PhaseName::Scan),
        reads("device reads per scan", PhaseName::Scan),
        row("**full scan**, rows/s, every row checked, settled", |_, r| full_scan_in(r, SETTLED)),
    ]
}

fn delete_range_rows(c: &Comparison) -> Vec<Row> {
    vec![
        row("**delete by range**, ranges/s", |_, r| rate(r, PhaseName::DeleteRange)),
        row("delete by range p99 / longest", |_, r| {
            let latency = &r.phase(PhaseName::DeleteRange)?.latency;
            Some(format!("{} / {}", time(latency.p99_ns), time(latency.max_ns)))
        }),
        row("space per byte of live records, after deletes by range", |c, r| {
            space(c, r, PhaseName::DeleteRange)
        }),
        rested_row(c, "space per byte of live records, after deletes by range", PhaseName::DeleteRange),
        row("**full scan** of what they left, rows/s", |_, r| full_scan_in(r, SLICED)),
        row("**full scan** of what they left, rows/s, settled", |_, r| full_scan_in(r, SLICED_SETTLED)),
    ]
}

/// The space of `phase` after the rest, below the row `title`.
fn rested_row(c: &Comparison, title: &str, phase: PhaseName) -> Row {
    row(&format!("{title}, after {} s of rest", c.rest_seconds), move |c, r| {
        let p = r.phase(phase)?;
        Some(per_byte(c, p.rested_space_bytes?, p))
    })
}

fn load(run: &EngineRun) -> Option<&PhaseResult> {
    run.phase(PhaseName::Load)
}

fn tail(run: &EngineRun, phase: PhaseName) -> Option<String> {
    run.phase(phase).map(|p| format!("{} / {}", time(p.latency.p999_ns), time(p.latency.max_ns)))
}

fn written(c: &Comparison, run: &EngineRun, phase: PhaseName) -> Option<String> {
    run.phase(phase)?.write_amplification(c.record_len()).0.map(|x| format!("{x:.2}"))
}

fn space(c: &Comparison, run: &EngineRun, phase: PhaseName) -> Option<String> {
    let p = run.phase(phase)?;
    Some(per_byte(c, p.space_bytes?, p))
}

/// `bytes` per byte of the records that `p` left.
fn per_byte(c: &Comparison, bytes: u64, p: &PhaseResult) -> String {
    format!("{:.2}", bytes as f64 / (p.present * c.record_len()).max(1) as f64)
}

fn rate(run: &EngineRun, phase: PhaseName) -> Option<String> {
    rate_in(run, phase, Condition::default())
}

fn rate_in(run: &EngineRun, phase: PhaseName, condition: Condition) -> Option<String> {
    run.phase_in(phase, condition).map(|p| count(p.rate()))
}

fn full_scan_in(run: &EngineRun, condition: Condition) -> Option<String> {
    let scan = run.phase_in(PhaseName::FullScan, condition)?;
    Some(format!("{}{}", count(scan.rate()), if scan.stopped { " (stopped)" } else { "" }))
}

fn reads(run: &EngineRun, phase: PhaseName) -> Option<String> {
    reads_in(run, phase, Condition::default())
}

fn reads_in(run: &EngineRun, phase: PhaseName, condition: Condition) -> Option<String> {
    run.phase_in(phase, condition)?.device_reads_per_operation().map(|x| format!("{x:.3}"))
}
