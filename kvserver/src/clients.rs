//! The connected clients: what CLIENT LIST shows and CLIENT KILL reaches.
//!
//! A connection owns its [`Client`] through an `Arc` and is the only writer of its figures; the registry is locked for
//! moments only, never across an await.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// One connected client.
#[derive(Debug)]
pub struct Client {
    /// Its number, never given twice.
    pub id: u64,
    /// Where it calls from.
    pub peer: SocketAddr,
    /// Where it called.
    pub local: SocketAddr,
    /// When it called.
    pub since: Instant,
    /// Milliseconds after `since` at which it last sent something.
    pub last_ms: AtomicU64,
    /// CLIENT SETNAME.
    pub name: Mutex<String>,
    /// CLIENT SETINFO lib-name and lib-ver.
    pub library: Mutex<(String, String)>,
    /// Its database.
    pub db: AtomicU8,
    /// Its protocol version.
    pub resp: AtomicU8,
    /// Commands queued in MULTI, or -1.
    pub multi: AtomicI64,
    /// Bytes of requests not yet executed.
    pub input: AtomicUsize,
    /// Bytes of replies not yet sent.
    pub output: AtomicUsize,
    /// The command it sent last.
    pub command: Mutex<&'static str>,
    stop: AtomicBool,
    wake: Notify,
}

impl Client {
    /// Asks the connection to end.
    pub fn stop(&self) {
        self.stop.store(true, Relaxed);
        self.wake.notify_one();
    }

    /// Whether the connection was asked to end.
    pub fn stopping(&self) -> bool {
        self.stop.load(Relaxed)
    }

    /// Waits until the connection is asked to end.
    pub async fn stopped(&self) {
        while !self.stopping() {
            self.wake.notified().await;
        }
    }

    /// Its line in CLIENT LIST.
    pub fn line(&self) -> String {
        let age = self.since.elapsed();
        let idle = age.as_millis() as u64 - self.last_ms.load(Relaxed).min(age.as_millis() as u64);
        let (lib, version) = self.library.lock().clone();
        let multi = self.multi.load(Relaxed);
        format!(
            "id={} addr={} laddr={} fd=-1 name={} age={} idle={} flags={} db={} sub=0 psub=0 ssub=0 multi={} qbuf={} \
             qbuf-free=0 argv-mem=0 multi-mem=0 rbs=0 rbp=0 obl=0 oll=0 omem={} tot-mem=0 events=r cmd={} user=default \
             redir=-1 resp={} lib-name={lib} lib-ver={version}\n",
            self.id,
            self.peer,
            self.local,
            self.name.lock(),
            age.as_secs(),
            idle / 1000,
            if multi >= 0 { "x" } else { "N" },
            self.db.load(Relaxed),
            multi,
            self.input.load(Relaxed),
            self.output.load(Relaxed),
            self.command.lock(),
            self.resp.load(Relaxed),
        )
    }
}

/// All clients by number.
#[derive(Debug, Default)]
pub struct Clients {
    next: AtomicU64,
    by_id: Mutex<BTreeMap<u64, Arc<Client>>>,
}

impl Clients {
    /// Adds a client.
    pub fn add(&self, peer: SocketAddr, local: SocketAddr) -> Arc<Client> {
        let client = Arc::new(Client {
            id: self.next.fetch_add(1, Relaxed) + 1,
            peer,
            local,
            since: Instant::now(),
            last_ms: AtomicU64::new(0),
            name: Mutex::default(),
            library: Mutex::default(),
            db: AtomicU8::new(0),
            resp: AtomicU8::new(2),
            multi: AtomicI64::new(-1),
            input: AtomicUsize::new(0),
            output: AtomicUsize::new(0),
            command: Mutex::new("NULL"),
            stop: AtomicBool::new(false),
            wake: Notify::new(),
        });
        self.by_id.lock().insert(client.id, client.clone());
        client
    }

    /// Removes a client.
    pub fn remove(&self, id: u64) {
        self.by_id.lock().remove(&id);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, oldest first.
    pub fn all(&self) -> Vec<Arc<Client>> {
        self.by_id.lock().values().cloned().collect()
    }
}
