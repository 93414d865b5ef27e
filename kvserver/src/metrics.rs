//! Counters of the server itself; those of the engine are in `betree::Stats`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// Counted since the start, or since CONFIG RESETSTAT. Relaxed atomics: figures, not synchronisation.
#[derive(Debug)]
pub struct Metrics {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections turned away because there were `maxclients`.
    pub rejected: AtomicU64,
    /// Bytes read from clients.
    pub input_bytes: AtomicU64,
    /// Bytes sent to clients.
    pub output_bytes: AtomicU64,
    /// Commands executed.
    pub commands: AtomicU64,
    /// Error replies.
    pub errors: AtomicU64,
    /// Protocol errors.
    pub protocol_errors: AtomicU64,
    /// Engine batches written for pipelines.
    pub batches: AtomicU64,
    /// Reads that found their key.
    pub hits: AtomicU64,
    /// Reads that did not.
    pub misses: AtomicU64,
    /// Keys removed because their time had come.
    pub expired: AtomicU64,
    /// Replies waiting for all clients together, in bytes: a level, not a count.
    pub output_waiting: AtomicUsize,
    /// Commands by position in the command table.
    pub calls: Vec<AtomicU64>,
}

impl Metrics {
    /// Zero everywhere.
    pub fn new(commands: usize) -> Self {
        Metrics {
            connections: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            input_bytes: AtomicU64::new(0),
            output_bytes: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            protocol_errors: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            output_waiting: AtomicUsize::new(0),
            calls: (0..commands).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Relaxed);
    }

    /// CONFIG RESETSTAT.
    pub fn reset(&self) {
        let counters = [
            &self.connections,
            &self.rejected,
            &self.input_bytes,
            &self.output_bytes,
            &self.commands,
            &self.errors,
            &self.protocol_errors,
            &self.batches,
            &self.hits,
            &self.misses,
            &self.expired,
        ];
        counters.into_iter().chain(&self.calls).for_each(|counter| counter.store(0, Relaxed));
    }
}
