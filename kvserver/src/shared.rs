//! What all connections share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use tokio::sync::Notify;

use crate::clients::Clients;
use crate::config::Config;
use crate::cursors::Cursors;
use crate::durable::Durable;
use crate::metrics::Metrics;
use crate::store::Store;

/// The server's state. One for a server, behind an `Arc`.
#[derive(Debug)]
pub struct Shared {
    /// Settings in force.
    pub config: Config,
    /// The engine.
    pub store: Store,
    /// Connected clients.
    pub clients: Clients,
    /// SCAN positions.
    pub cursors: Cursors,
    /// Counters.
    pub metrics: Metrics,
    /// Syncs for `--durability sync`.
    pub durable: Arc<Durable>,
    /// When the server started.
    pub started: Instant,
    /// Seconds since 1970 of the last checkpoint that a client asked for.
    pub last_save: AtomicU64,
    /// A checkpoint that a client asked for is running.
    pub saving: AtomicBool,
    stopping: AtomicBool,
    stop: Notify,
}

impl Shared {
    /// State around an opened store.
    pub fn new(config: Config, store: Store) -> Self {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Shared {
            config,
            store,
            clients: Clients::default(),
            cursors: Cursors::default(),
            metrics: Metrics::new(crate::command::TABLE.len()),
            durable: Arc::default(),
            started: Instant::now(),
            last_save: AtomicU64::new(now),
            saving: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: Notify::new(),
        }
    }

    /// Asks the server to stop: SHUTDOWN or a signal.
    pub fn stop(&self) {
        self.stopping.store(true, Relaxed);
        self.stop.notify_one();
    }

    /// Whether the server is to stop.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Relaxed)
    }

    /// Waits until the server is to stop.
    pub async fn stopped(&self) {
        while !self.stopping() {
            self.stop.notified().await;
        }
    }
}
