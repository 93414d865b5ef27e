//! The per-second series of a phase, and what the plots and the report derive from it.

use serde::{Deserialize, Serialize};

/// One reading, everything counted from the start of the phase.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Seconds.
    pub seconds: f64,
    /// Records inserted, or operations done.
    pub done: u64,
    /// Bytes that the process wrote.
    pub process_write_bytes: u64,
    /// Bytes that the device wrote, if it is known.
    pub device_write_bytes: Option<u64>,
    /// Bytes of memory without a file behind them.
    pub anonymous_bytes: u64,
}

/// Rate between each two neighbours, as (records at the end, records per second).
pub fn rates(series: &[Point]) -> Vec<(u64, f64)> {
    series
        .windows(2)
        .filter(|w| w[1].seconds > w[0].seconds)
        .map(|w| (w[1].done, w[1].done.saturating_sub(w[0].done) as f64 / (w[1].seconds - w[0].seconds)))
        .collect()
}

/// Rate over the last tenth of the time: what a longer run would go on with.
pub fn final_rate(series: &[Point]) -> Option<f64> {
    let last = series.last()?;
    let from = last.seconds * 0.9;
    let start = series.iter().rev().find(|p| p.seconds <= from)?;
    let seconds = last.seconds - start.seconds;
    (seconds > 0.0).then(|| last.done.saturating_sub(start.done) as f64 / seconds)
}

/// Rate over the last quarter of the time that passes once `warm` records are inserted, divided by that over the first quarter of it.
pub fn flatness(series: &[Point], warm: u64) -> Option<f64> {
    let end = series.last()?.seconds;
    let from = series.windows(2).find(|w| w[1].done >= warm)?;
    let share = (warm.saturating_sub(from[0].done)) as f64 / (from[1].done - from[0].done).max(1) as f64;
    let start = from[0].seconds + share * (from[1].seconds - from[0].seconds);
    let quarter = (end - start) / 4.0;
    let first = done_at(series, start + quarter)? - done_at(series, start)?;
    let last = done_at(series, end)? - done_at(series, end - quarter)?;
    (first > 0.0).then(|| last / first)
}

/// Records inserted at a moment, as if the rate were even between two readings.
fn done_at(series: &[Point], seconds: f64) -> Option<f64> {
    let pair = series.windows(2).find(|w| seconds <= w[1].seconds).or(series.windows(2).last())?;
    let (from, to) = (&pair[0], &pair[1]);
    let share =
        ((seconds - from.seconds) / (to.seconds - from.seconds).max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
    Some(from.done as f64 + share * (to.done as f64 - from.done as f64))
}

/// Lowest rate of any whole second, so that stalls show.
pub fn worst_second(series: &[Point]) -> Option<f64> {
    // The last reading may close a fraction of a second.
    let whole = series.windows(2).filter(|w| w[1].seconds - w[0].seconds > 0.5);
    whole
        .map(|w| w[1].done.saturating_sub(w[0].done) as f64 / (w[1].seconds - w[0].seconds))
        .min_by(f64::total_cmp)
}

/// Bytes written per byte inserted up to each reading, as (records, factor): the device's bytes if they are known, else the
/// process's.
pub fn bytes_per_byte(series: &[Point], record_len: u64) -> Vec<(u64, f64)> {
    series
        .iter()
        .filter(|p| p.done > 0)
        .map(|p| {
            let written = p.device_write_bytes.unwrap_or(p.process_write_bytes);
            (p.done, written as f64 / (p.done * record_len) as f64)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(seconds: f64, done: u64, written: u64) -> Point {
        Point { seconds, done, process_write_bytes: written, ..Point::default() }
    }

    #[test]
    fn rates_are_differences_over_differences() {
        let series = [point(0.0, 0, 0), point(1.0, 100, 0), point(3.0, 100, 0), point(3.5, 200, 0)];
        assert_eq!(rates(&series), [(100, 100.0), (100, 0.0), (200, 200.0)]);
        assert!(rates(&series[..1]).is_empty());
    }

    #[test]
    fn a_reading_repeated_at_the_same_moment_gives_no_rate() {
        assert!(rates(&[point(1.0, 5, 0), point(1.0, 9, 0)]).is_empty());
    }

    #[test]
    fn the_final_rate_looks_at_the_last_tenth_only() {
        let mut series: Vec<_> = (0..=90).map(|s| point(f64::from(s), s as u64 * 1000, 0)).collect();
        series.extend((91..=100).map(|s| point(f64::from(s), 90_000 + (s as u64 - 90) * 10, 0)));
        assert_eq!(final_rate(&series), Some(10.0));
        assert_eq!(final_rate(&[]), None);
    }

    #[test]
    fn flatness_compares_quarters_of_what_is_left_after_warming_up() {
        // 1000 a second for 10 s, then 500 a second for 8 s: quarters of 2 s after the first 10,000.
        let mut series: Vec<_> = (0..=10).map(|s| point(f64::from(s), s as u64 * 1000, 0)).collect();
        series.extend((11..=18).map(|s| point(f64::from(s), 10_000 + (s as u64 - 10) * 500, 0)));
        assert!((flatness(&series, 10_000).unwrap() - 1.0).abs() < 1e-9);
        // From the beginning quarters of 4.5 s: 4500 records, and 2250.
        assert!((flatness(&series, 0).unwrap() - 0.5).abs() < 1e-9);
        // 9 s are left, quarters of 2.25 s, of which the first has 1 s at the full rate and the rest at half of it.
        assert!((flatness(&series, 9_000).unwrap() - 1125.0 / 1625.0).abs() < 1e-9);
        assert_eq!(flatness(&series, 20_000), None);
        assert_eq!(flatness(&[], 0), None);
    }

    #[test]
    fn a_stall_is_the_worst_second_and_a_closing_fraction_is_not() {
        let series = [point(0.0, 0, 0), point(1.0, 100, 0), point(2.0, 101, 0), point(2.1, 101, 0)];
        assert_eq!(worst_second(&series), Some(1.0));
    }

    #[test]
    fn bytes_per_byte_prefers_the_device() {
        let mut with_device = point(1.0, 10, 100);
        with_device.device_write_bytes = Some(300);
        let series = [point(0.0, 0, 5), point(1.0, 10, 100), with_device];
        assert_eq!(bytes_per_byte(&series, 10), [(10, 1.0), (10, 3.0)]);
    }
}
