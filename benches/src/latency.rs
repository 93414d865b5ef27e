//! Latencies: a histogram while a phase runs, a summary that travels from the child to the report.
//!
//! Three significant digits from a nanosecond to an hour, so that a stall of minutes is not cut off. Each thread records into
//! its own histogram; they are added at the end, so nothing is locked.

use std::time::Duration;

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

const LONGEST_NS: u64 = 3_600_000_000_000;
/// The quantiles of the plotted curve, by their distance from 1.
const CURVE: [f64; 13] =
    [0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 0.99995, 0.99999, 0.999_995, 0.999_999];

/// Collects the latencies of one thread.
#[derive(Debug, Clone)]
pub struct Latencies(Histogram<u64>);

impl Latencies {
    /// An empty histogram.
    ///
    /// # Errors
    /// Never with the bounds given here.
    pub fn new() -> Result<Self> {
        Ok(Latencies(Histogram::new_with_bounds(1, LONGEST_NS, 3).map_err(|e| anyhow!("histogram: {e:?}"))?))
    }

    /// Records one operation; what is longer than an hour counts as an hour.
    pub fn record(&mut self, latency: Duration) {
        self.0.saturating_record((latency.as_nanos() as u64).max(1));
    }

    /// Adds another thread's.
    ///
    /// # Errors
    /// Never: all histograms have the same bounds.
    pub fn add(&mut self, other: &Latencies) -> Result<()> {
        self.0.add(&other.0).map_err(|e| anyhow!("histogram: {e:?}"))
    }

    /// The figures for the report.
    pub fn summary(&self) -> LatencySummary {
        let h = &self.0;
        let count = h.len();
        if count == 0 {
            return LatencySummary::default();
        }
        LatencySummary {
            count,
            mean_ns: h.mean(),
            p50_ns: h.value_at_quantile(0.5),
            p99_ns: h.value_at_quantile(0.99),
            p999_ns: h.value_at_quantile(0.999),
            max_ns: h.max(),
            curve: CURVE
                .iter()
                // A quantile finer than one operation would only repeat the maximum.
                .filter(|&&q| (1.0 - q) * count as f64 >= 0.999_999)
                .map(|&q| (q, h.value_at_quantile(q)))
                .collect(),
        }
    }
}

/// What is left of a histogram.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// Operations recorded.
    pub count: u64,
    /// Mean in nanoseconds.
    pub mean_ns: f64,
    /// Median in nanoseconds.
    pub p50_ns: u64,
    /// 99th percentile in nanoseconds.
    pub p99_ns: u64,
    /// 99.9th percentile in nanoseconds.
    pub p999_ns: u64,
    /// Longest in nanoseconds.
    pub max_ns: u64,
    /// Quantile and nanoseconds, for the plot.
    pub curve: Vec<(f64, u64)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_recorded_values_to_three_digits() {
        let mut latencies = Latencies::new().unwrap();
        for micros in 1..=10_000 {
            latencies.record(Duration::from_micros(micros));
        }
        let summary = latencies.summary();
        assert_eq!(summary.count, 10_000);
        for (got, expected) in [
            (summary.p50_ns, 5_000_000.0),
            (summary.p99_ns, 9_900_000.0),
            (summary.p999_ns, 9_990_000.0),
            (summary.max_ns, 10_000_000.0),
        ] {
            assert!((got as f64 / expected - 1.0).abs() < 0.002, "{got} for {expected}");
        }
        assert_eq!(summary.curve.last().unwrap().0, 0.9999);
    }

    #[test]
    fn adding_threads_is_the_same_as_recording_in_one() {
        let (mut a, mut b, mut both) =
            (Latencies::new().unwrap(), Latencies::new().unwrap(), Latencies::new().unwrap());
        for i in 1..1000u64 {
            let latency = Duration::from_nanos(i * i);
            if i % 3 == 0 {
                a.record(latency)
            } else {
                b.record(latency)
            }
            both.record(latency);
        }
        a.add(&b).unwrap();
        assert_eq!(a.summary(), both.summary());
    }

    #[test]
    fn a_stall_beyond_the_range_counts_as_the_longest() {
        let mut latencies = Latencies::new().unwrap();
        latencies.record(Duration::from_secs(7200));
        latencies.record(Duration::ZERO);
        assert!(latencies.summary().max_ns >= LONGEST_NS);
        assert_eq!(latencies.summary().count, 2);
    }

    #[test]
    fn an_empty_histogram_has_an_empty_summary() {
        assert_eq!(Latencies::new().unwrap().summary(), LatencySummary::default());
    }
}
