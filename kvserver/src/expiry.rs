//! Removes keys whose time has come: a thread that walks along the times of each database.
//!
//! Reads do not need it (they look at the time themselves); it gives the space back. It takes the lock of each key like any
//! writer, and looks again under it: the time may have been changed since.

use std::sync::Arc;
use std::time::Duration;

use crate::config::DATABASES;
use crate::failure::Outcome;
use crate::metrics::Metrics;
use crate::pending::Pending;
use crate::shared::Shared;
use crate::store::{Space, decode_time, expiry_key, now_ms, purge_key};

const PAUSE: Duration = Duration::from_millis(100);
/// Keys removed from one database before the next has its turn.
const AT_ONCE: usize = 1000;

/// Runs until the server stops.
pub fn run(shared: &Arc<Shared>) {
    let mut pending = Pending::new(&shared.store);
    let mut failing = false;
    while !shared.stopping() {
        let mut again = false;
        for db in 0..DATABASES as u8 {
            match purge(shared, db, &mut pending) {
                Ok(full) => again |= full,
                Err(error) if !failing => {
                    failing = true;
                    eprintln!("kvserver: removing expired keys: {error:?}");
                }
                Err(_) => {}
            }
        }
        if !again {
            std::thread::sleep(PAUSE);
        }
    }
}

/// Removes some expired keys; `true` if there may be more.
fn purge(shared: &Shared, db: u8, pending: &mut Pending) -> Outcome<bool> {
    let store = &shared.store;
    let Some(expires) = store.keyspace(db, Space::Expires) else { return Ok(false) };
    let now = now_ms();
    let end = purge_key(now + 1, b"");
    let mut looked_at = 0;
    for item in expires.range(b"t".to_vec()..end).take(AT_ONCE) {
        let (entry, _) = item?;
        looked_at += 1;
        let Some((time, key)) = entry.get(1..9).zip(entry.get(9..)) else { continue };
        let time = u64::from_be_bytes(time.try_into().unwrap_or_default());
        let mut stripes = vec![store.locks.stripe(key)];
        let writing = shared.durable.writing();
        let mut held = store.locks.hold(&mut stripes);
        pending.begin(false);
        let decides = expires.get(expiry_key(key))?;
        if decides.and_then(|t| decode_time(&t)) == Some(time) {
            pending.remove(store, db, Space::Data, key)?;
            pending.remove(store, db, Space::Expires, &expiry_key(key))?;
            Metrics::add(&shared.metrics.expired, 1);
            held.bump();
        }
        pending.remove(store, db, Space::Expires, &entry)?;
        pending.commit(store)?;
        drop(held);
        drop(writing);
    }
    Ok(looked_at == AT_ONCE)
}
