//! A time series store: ingest in order of time, windows of one series, retention by one range delete per series.
//!
//! `cargo run -p betree --example timeseries [DIRECTORY]`. Without a directory it uses one of its own and removes it at the
//! end; with one, what an earlier run left is removed first. It ends with an error if a window or the retention is wrong.
//!
//! A key is the series and then the time, both big-endian, so that byte order is the order of time within a series and a
//! window is one contiguous range. Each tick writes one point to every series: for a B-tree that is a random write per
//! series; here it is one batch into the buffer of the root.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use betree::{Db, Keyspace};

const SERIES: u16 = 40;
const TICKS: u64 = 10_000;
/// Seconds between two ticks.
const STEP: u64 = 10;
const START: u64 = 1_700_000_000;

fn main() -> Result<(), Box<dyn Error>> {
    let (dir, _scratch) = directory()?;
    // A small budget, so that even this little data goes down the tree instead of staying in the memtable.
    let db = Db::builder().memory(8 << 20).open(&dir)?;
    let points = db.keyspace("points")?;
    points.clear()?;

    let start = Instant::now();
    let mut batch = db.batch();
    for tick in 0..TICKS {
        for series in 0..SERIES {
            batch.insert(&points, key(series, START + tick * STEP), value(series, tick).to_le_bytes())?;
        }
        // Empties the batch and keeps its memory.
        db.write_with(&mut batch, betree::Durability::Buffered)?;
    }
    let count = TICKS * u64::from(SERIES);
    println!(
        "{count} points of {SERIES} series: {:.0} per second",
        count as f64 / start.elapsed().as_secs_f64()
    );

    // One hour of one series.
    let from = START + TICKS / 2 * STEP;
    let (mut sum, mut seen) = (0.0, 0u32);
    for (expected, point) in (TICKS / 2..).zip(window(&points, 7, from, from + 3600)) {
        let (time, reading) = point?;
        ensure(time == START + expected * STEP, "the points of a window come in order, without gaps")?;
        ensure(reading == value(7, expected), "a point has the value that was written")?;
        sum += reading;
        seen += 1;
    }
    println!("series 7, one hour: {seen} points, mean {:.3}", sum / f64::from(seen));
    ensure(
        u64::from(seen) == 3600 / STEP,
        "a window has every point between its ends, the upper one excluded",
    )?;

    // The newest point of a series: the last of its range, found from the end.
    let newest = window(&points, 7, 0, u64::MAX).next_back().ok_or("series 7 is empty")??;
    ensure(newest.0 == START + (TICKS - 1) * STEP, "the newest point is the last one written")?;

    // Retention: everything older than the last tenth goes, by one message per series, whatever their number.
    db.compact()?;
    let before = db.stats();
    let cutoff = START + TICKS / 10 * 9 * STEP;
    let start = Instant::now();
    for series in 0..SERIES {
        points.remove_range(key(series, 0), key(series, cutoff))?;
    }
    let elapsed = start.elapsed();
    let left = points.iter().count() as u64;
    println!("retention took {elapsed:.1?} and leaves {left} of {count} points");
    ensure(left == count / 10, "the last tenth of every series is left")?;
    let oldest = window(&points, 7, 0, u64::MAX).next().ok_or("series 7 is empty")??;
    ensure(oldest.0 == cutoff, "what is left begins at the cutoff")?;

    // Background work gives the space back in its own time; `compact` does it at once.
    db.compact()?;
    let after = db.stats();
    println!(
        "live in the data file: {} KiB, then {} KiB",
        before.data_live_bytes >> 10,
        after.data_live_bytes >> 10
    );
    println!(
        "runs of memtables {} KiB, flushed {} KiB, compacted {} KiB, moved by reference {} KiB; write amplification {:.1}",
        after.memtable_flush_bytes >> 10,
        after.flush_bytes_written >> 10,
        after.compact_bytes_written >> 10,
        after.moved_bytes >> 10,
        after.write_amplification
    );
    ensure(after.data_live_bytes < before.data_live_bytes / 2, "the space of removed points is free")?;
    db.close()?;
    Ok(())
}

fn key(series: u16, time: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(&series.to_be_bytes());
    key[2..].copy_from_slice(&time.to_be_bytes());
    key
}

fn value(series: u16, tick: u64) -> f64 {
    f64::from(series) + (tick as f64 / 100.0).sin()
}

/// The points of a series with times in `from..to`.
fn window(
    points: &Keyspace,
    series: u16,
    from: u64,
    to: u64,
) -> impl DoubleEndedIterator<Item = Result<(u64, f64), Box<dyn Error>>> {
    points.range(key(series, from)..key(series, to)).map(|record| {
        let (key, value) = record?;
        Ok((u64::from_be_bytes(key[2..].try_into()?), f64::from_le_bytes(value[..].try_into()?)))
    })
}

fn ensure(holds: bool, what: &str) -> Result<(), Box<dyn Error>> {
    if holds { Ok(()) } else { Err(format!("expected: {what}").into()) }
}

/// The first argument, or a temporary directory that lives as long as the second value.
fn directory() -> std::io::Result<(PathBuf, Option<tempfile::TempDir>)> {
    if let Some(dir) = std::env::args_os().nth(1) {
        return Ok((Path::new(&dir).to_path_buf(), None));
    }
    let scratch = tempfile::tempdir()?;
    Ok((scratch.path().to_path_buf(), Some(scratch)))
}
