//! The engine behind numbered databases, and the expiry times beside the data.
//!
//! Database 0 is the keyspace `default`, database n the keyspace `db<n>`: values are stored as they came, so that a
//! program that embeds the crate sees the same records. A database that was never written has no keyspace yet.
//!
//! Expiry times live in a keyspace of their own, `<name>:expires`, created by the first command that needs it, with two
//! records for each time: `k<key>` → milliseconds since 1970 (8 bytes, little-endian), which decides; and
//! `t<time, big-endian><key>` → empty, in order of time, which the purge walks along. A `k` record that
//! is replaced or removed leaves its `t` record behind; the purge drops it when its time comes.

use std::sync::OnceLock;
use std::task::Poll;
use std::time::{SystemTime, UNIX_EPOCH};

use betree::{Bytes, Db, Keyspace};

use crate::config::DATABASES;
use crate::failure::Outcome;
use crate::locks::Locks;

/// Up to so many keys are counted.
const FEW: u64 = 1000;

/// A keyspace of a numbered database, as [`crate::pending::Pending`] names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// The data.
    Data,
    /// The expiry times.
    Expires,
}

/// One numbered database.
struct Database {
    name: String,
    data: OnceLock<Keyspace>,
    expires: OnceLock<Keyspace>,
}

/// The engine with its numbered databases and key locks.
pub struct Store {
    /// The engine.
    pub engine: Db,
    /// See [`Locks`].
    pub locks: Locks,
    databases: Vec<Database>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The key under which the expiry time of `key` is kept.
pub fn expiry_key(key: &[u8]) -> Vec<u8> {
    [b"k", key].concat()
}

/// The key by which the purge finds `key` at its time.
pub fn purge_key(time: u64, key: &[u8]) -> Vec<u8> {
    [b"t".as_slice(), &time.to_be_bytes(), key].concat()
}

/// The expiry time in a `k` record.
pub fn decode_time(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_le_bytes)
}

impl Store {
    /// Wraps an opened engine.
    pub fn new(engine: Db) -> betree::Result<Self> {
        let existing = engine.keyspaces();
        let databases = (0..DATABASES)
            .map(|n| {
                let name = if n == 0 { "default".to_string() } else { format!("db{n}") };
                let database = Database { data: OnceLock::new(), expires: OnceLock::new(), name };
                for (cell, name) in
                    [(&database.data, database.name.clone()), (&database.expires, database.expires_name())]
                {
                    if existing.contains(&name) {
                        let _ = cell.set(engine.keyspace(&name)?);
                    }
                }
                Ok(database)
            })
            .collect::<betree::Result<_>>()?;
        Ok(Store { engine, locks: Locks::default(), databases })
    }

    /// A keyspace if it exists.
    pub fn keyspace(&self, db: u8, space: Space) -> Option<&Keyspace> {
        let database = &self.databases[usize::from(db)];
        match space {
            Space::Data => database.data.get(),
            Space::Expires => database.expires.get(),
        }
    }

    /// A keyspace, created if need be.
    pub fn create(&self, db: u8, space: Space) -> betree::Result<&Keyspace> {
        let database = &self.databases[usize::from(db)];
        let (cell, name) = match space {
            Space::Data => (&database.data, database.name.clone()),
            Space::Expires => (&database.expires, database.expires_name()),
        };
        if let Some(keyspace) = cell.get() {
            return Ok(keyspace);
        }
        let keyspace = self.engine.keyspace(&name)?;
        Ok(cell.get_or_init(|| keyspace))
    }

    /// Whether keys of this database can have expiry times.
    pub fn expires(&self, db: u8) -> bool {
        self.keyspace(db, Space::Expires).is_some()
    }

    /// A committed value.
    pub fn read(&self, db: u8, space: Space, key: &[u8]) -> betree::Result<Option<Bytes>> {
        self.keyspace(db, space).map_or(Ok(None), |keyspace| keyspace.get(key))
    }

    /// A committed value, if memory can tell.
    pub fn try_read(&self, db: u8, space: Space, key: &[u8]) -> betree::Result<Poll<Option<Bytes>>> {
        self.keyspace(db, space).map_or(Ok(Poll::Ready(None)), |keyspace| keyspace.try_get(key))
    }

    /// Has the device read for these keys, and waits for it without keeping the thread. Errors come again when the keys are read.
    pub async fn prefetch(&self, db: u8, keys: &[&[u8]]) {
        let data = self.keyspace(db, Space::Data).map(|keyspace| keyspace.prefetch(keys));
        let times = self.keyspace(db, Space::Expires).map(|keyspace| {
            let keys: Vec<_> = keys.iter().map(|key| expiry_key(key)).collect();
            keyspace.prefetch(&keys)
        });
        for reading in [data, times].into_iter().flatten() {
            let _ = reading.await;
        }
    }

    /// Whether a committed record has expired. For walks over many keys; free where nothing ever had a time.
    pub fn expired(&self, db: u8, key: &[u8], now: u64) -> betree::Result<bool> {
        let Some(keyspace) = self.keyspace(db, Space::Expires) else { return Ok(false) };
        let time = keyspace.get(expiry_key(key))?;
        Ok(time.and_then(|t| decode_time(&t)).is_some_and(|t| t <= now))
    }

    /// Number of keys: counted if there are few, otherwise estimated, since writes are blind and count nothing.
    pub fn estimated_keys(&self, db: u8) -> u64 {
        let Some(keyspace) = self.keyspace(db, Space::Data) else { return 0 };
        let estimate = keyspace.approximate_len();
        if estimate > FEW {
            return estimate;
        }
        let mut count = 0;
        for item in keyspace.iter().take(FEW as usize) {
            match item {
                Ok(_) => count += 1,
                Err(_) => return estimate,
            }
        }
        count
    }

    /// Number of expiry times, estimated.
    pub fn estimated_expires(&self, db: u8) -> u64 {
        self.keyspace(db, Space::Expires).map_or(0, |keyspace| keyspace.approximate_len() / 2)
    }

    /// Removes every key of a database. The caller holds all locks. Data first: a time without a key means nothing.
    pub fn clear(&self, db: u8) -> Outcome {
        for space in [Space::Data, Space::Expires] {
            if let Some(keyspace) = self.keyspace(db, space) {
                keyspace.clear()?;
            }
        }
        Ok(())
    }
}

impl Database {
    fn expires_name(&self) -> String {
        format!("{}:expires", self.name)
    }
}
