//! Runs one closure in some threads and watches them: progress, the per-second series, peak memory, the time limit.
//!
//! The watched threads touch two atomics, relaxed: `done` from time to time and `stop`; nothing is locked.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use super::{Event, IngestRates, RunSpec};
use crate::engine::{Engine, Session};
use crate::latency::{Latencies, LatencySummary};
use crate::meter::{Counters, Meter, resident_bytes};
use crate::series::Point;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);
const POINT_EVERY: Duration = Duration::from_secs(1);

/// What the threads share with their watcher.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) done: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    /// Whether the time is over.
    pub(super) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, operations: u64) {
        self.done.fetch_add(operations, Ordering::Relaxed);
    }
}

/// What one thread, or all of them together, did.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) latencies: Latencies,
    pub(super) operations: u64,
    pub(super) rows: u64,
    pub(super) unsupported: bool,
}

impl Tally {
    pub(super) fn new() -> Result<Self> {
        Ok(Tally { latencies: Latencies::new()?, operations: 0, rows: 0, unsupported: false })
    }

    fn add(&mut self, other: &Tally) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.operations += other.operations;
        self.rows += other.rows;
        self.unsupported |= other.unsupported;
        Ok(())
    }
}

/// What a phase's work came to.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) operations: u64,
    pub(super) rows: u64,
    pub(super) present: u64,
    pub(super) stopped: bool,
    pub(super) unsupported: bool,
    pub(super) ingest: Option<IngestRates>,
    pub(super) seconds: f64,
    pub(super) sync_seconds: f64,
    pub(super) latency: LatencySummary,
    pub(super) series: Vec<Point>,
    pub(super) peak_anonymous: u64,
    pub(super) peak_resident: u64,
}

/// Runs `work` in `spec.threads` threads, each with a session and its number; then `finish`, timed as part of the whole.
pub(super) fn run<W, F>(
    spec: &RunSpec,
    engine: &dyn Engine,
    meter: &Meter,
    before: &Counters,
    work: W,
    finish: F,
) -> Result<Work>
where
    W: Fn(usize, &mut dyn Session, &Shared) -> Result<Tally> + Sync,
    F: FnOnce(&dyn Engine) -> Result<()>,
{
    let shared = Shared::default();
    let start = Instant::now();
    thread::scope(|scope| {
        let (ended, watch) = channel::<()>();
        let watcher = scope.spawn({
            let shared = &shared;
            move || watch_over(shared, spec, meter, before, start, &watch)
        });
        let workers: Vec<_> = (0..spec.threads)
            .map(|number| {
                let (shared, work) = (&shared, &work);
                scope.spawn(move || {
                    let result = engine.session().and_then(|mut session| work(number, &mut *session, shared));
                    if result.is_err() {
                        // The others must not run on to the time limit when the phase has failed already.
                        shared.stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        let mut total = Tally::new()?;
        let mut failure = None;
        for worker in workers {
            match worker.join().map_err(|_| anyhow!("a thread panicked")).and_then(|result| result) {
                Ok(tally) => total.add(&tally)?,
                Err(e) => {
                    failure.get_or_insert(e);
                }
            }
        }
        if let Some(e) = failure {
            return Err(e);
        }
        let syncing = Instant::now();
        finish(engine)?;
        let sync_seconds = syncing.elapsed().as_secs_f64();
        let seconds = start.elapsed().as_secs_f64();
        drop(ended);
        let watched = watcher.join().map_err(|_| anyhow!("the watcher panicked"))??;
        Ok(Work {
            operations: total.operations,
            rows: total.rows,
            present: spec.present,
            stopped: shared.stopped(),
            unsupported: total.unsupported,
            ingest: None,
            seconds,
            sync_seconds,
            latency: total.latencies.summary(),
            series: watched.series,
            peak_anonymous: watched.peak_anonymous,
            peak_resident: watched.peak_resident,
        })
    })
}

#[derive(Debug, Default)]
struct Watched {
    series: Vec<Point>,
    peak_anonymous: u64,
    peak_resident: u64,
}

/// Returns when the other end of `watch` is dropped.
fn watch_over(
    shared: &Shared,
    spec: &RunSpec,
    meter: &Meter,
    before: &Counters,
    start: Instant,
    watch: &std::sync::mpsc::Receiver<()>,
) -> Result<Watched> {
    let mut watched = Watched::default();
    watched.series.push(Point::default());
    let limit = Duration::from_secs(spec.max_seconds);
    let mut next_point = POINT_EVERY;
    loop {
        let wait = PROGRESS_EVERY.min(next_point.saturating_sub(start.elapsed()));
        let ended = watch.recv_timeout(wait) != Err(RecvTimeoutError::Timeout);
        let elapsed = start.elapsed();
        if spec.max_seconds > 0 && elapsed >= limit && !ended {
            shared.stop.store(true, Ordering::Relaxed);
        }
        let done = shared.done.load(Ordering::Relaxed);
        let (anonymous, resident) = resident_bytes();
        watched.peak_anonymous = watched.peak_anonymous.max(anonymous);
        watched.peak_resident = watched.peak_resident.max(resident);
        if ended || elapsed >= next_point {
            let counters = meter.read()?.since(before);
            watched.series.push(Point {
                seconds: elapsed.as_secs_f64(),
                done,
                process_write_bytes: counters.process_write_bytes,
                device_write_bytes: counters.device.map(|d| d.write_bytes),
                anonymous_bytes: anonymous,
            });
            next_point = elapsed + POINT_EVERY;
        }
        Event::Progress { done }.send()?;
        if ended {
            return Ok(watched);
        }
    }
}
