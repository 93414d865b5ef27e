//! What a handler sees: its arguments, its session, and the keys of the selected database.
//!
//! Reads go through the writes of the group first, then to the engine, and never show a key whose time has come. Where others wait for the
//! thread, a command whose keys are not in memory is given up before it has written anything, and executed again when they are. Writes
//! join the group's batch together with what they mean for the key's expiry time, so that both become durable as one.

use std::sync::Arc;
use std::task::Poll;

use betree::Bytes;

use crate::failure::{Failure, NOT_AN_INTEGER, Outcome};
use crate::pending::{Known, Pending};
use crate::resp::{Reply, Span};
use crate::session::Session;
use crate::shared::Shared;
use crate::store::{Space, decode_time, expiry_key, purge_key};

/// The arguments of a command, its name first.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a> {
    bytes: &'a [u8],
    spans: &'a [Span],
}

impl<'a> Args<'a> {
    /// Arguments that lie at `spans` of `bytes`.
    pub fn new(bytes: &'a [u8], spans: &'a [Span]) -> Self {
        Args { bytes, spans }
    }

    /// Number of arguments, the name included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none; never so for a command.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Argument `i`; empty beyond the last.
    pub fn get(&self, i: usize) -> &'a [u8] {
        self.spans.get(i).map_or(&[], |s| &self.bytes[s.start..s.end])
    }

    /// The arguments from `i` on.
    pub fn from(&self, i: usize) -> impl DoubleEndedIterator<Item = &'a [u8]> + ExactSizeIterator + use<'a> {
        let (bytes, spans) = (self.bytes, self.spans.get(i..).unwrap_or_default());
        spans.iter().map(move |s| &bytes[s.start..s.end])
    }

    /// Whether argument `i` is this word, in whichever case.
    pub fn is(&self, i: usize, word: &str) -> bool {
        self.get(i).eq_ignore_ascii_case(word.as_bytes())
    }

    /// Argument `i` as integer.
    pub fn int(&self, i: usize) -> Outcome<i64> {
        crate::number::parse_i64(self.get(i)).ok_or(NOT_AN_INTEGER)
    }

    /// Argument `i` as text, for messages.
    pub fn text(&self, i: usize) -> String {
        String::from_utf8_lossy(self.get(i)).into_owned()
    }
}

/// What a write does to the expiry time of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// Leaves it; the key must exist.
    Keep,
    /// Removes it.
    Clear,
    /// Sets it, in milliseconds since 1970.
    At(u64),
}

/// What a handler works with.
#[derive(Debug)]
pub struct Context<'c> {
    /// The server.
    pub shared: &'c Arc<Shared>,
    /// The connection.
    pub session: &'c mut Session,
    /// The group's writes.
    pub pending: &'c mut Pending,
    /// The output.
    pub reply: &'c mut Reply,
    /// Milliseconds since 1970, the same for the whole group.
    pub now: u64,
    /// Whether reads wait for the device. Where not, they fail with [`Failure::Cold`] as long as the group's writes are where they were when the
    /// command began, so that it can be executed anew.
    pub waits: Waits,
}

/// See [`Context::waits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// For every page.
    Always,
    /// Only once the group's writes have moved on from here ([`Pending::position`]).
    Beyond((u64, usize)),
}

impl Context<'_> {
    fn read(&mut self, db: u8, space: Space, key: &[u8]) -> Outcome<Option<Bytes>> {
        let store = &self.shared.store;
        match self.pending.known(store, db, space, key) {
            Known::Yes(value) => return Ok(value),
            Known::No => {}
            Known::AfterCommit => self.pending.commit(store)?,
        }
        if self.may_wait() {
            return Ok(store.read(db, space, key)?);
        }
        match store.try_read(db, space, key)? {
            Poll::Ready(value) => Ok(value),
            Poll::Pending => Err(Failure::Cold),
        }
    }

    fn may_wait(&self) -> bool {
        match self.waits {
            Waits::Always => true,
            Waits::Beyond(position) => self.pending.position() != position,
        }
    }

    /// The expiry time of a key in a database, past or to come.
    pub fn expiry_in(&mut self, db: u8, key: &[u8]) -> Outcome<Option<u64>> {
        if !self.shared.store.expires(db) {
            return Ok(None);
        }
        let time = self.read(db, Space::Expires, &expiry_key(key))?;
        Ok(time.and_then(|t| decode_time(&t)))
    }

    /// The value of a key in a database.
    pub fn get_in(&mut self, db: u8, key: &[u8]) -> Outcome<Option<Bytes>> {
        // The time first: read the other way round, an old value could meet the time of a newer one.
        if self.expiry_in(db, key)?.is_some_and(|time| time <= self.now) {
            return Ok(None);
        }
        self.read(db, Space::Data, key)
    }

    /// The value of a key.
    pub fn get(&mut self, key: &[u8]) -> Outcome<Option<Bytes>> {
        self.get_in(self.session.db, key)
    }

    /// The values of several keys; those that are not in memory are read from the device together.
    pub fn multi_get(&mut self, keys: &[&[u8]]) -> Outcome<Vec<Option<Bytes>>> {
        let (db, store) = (self.session.db, &self.shared.store);
        if store.expires(db) || !self.may_wait() {
            return keys.iter().map(|key| self.get(key)).collect();
        }
        let mut values = vec![None; keys.len()];
        let (mut unknown, mut positions) = (Vec::with_capacity(keys.len()), Vec::with_capacity(keys.len()));
        for (i, &key) in keys.iter().enumerate() {
            match self.pending.known(store, db, Space::Data, key) {
                Known::Yes(value) => values[i] = value,
                Known::No => {
                    unknown.push(key);
                    positions.push(i);
                }
                Known::AfterCommit => {
                    self.pending.commit(store)?;
                    return self.multi_get(keys);
                }
            }
        }
        if let Some(keyspace) = store.keyspace(db, Space::Data) {
            for (i, value) in positions.into_iter().zip(keyspace.multi_get(&unknown)?) {
                values[i] = value;
            }
        }
        Ok(values)
    }

    /// Whether a key exists.
    pub fn exists(&mut self, key: &[u8]) -> Outcome<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// Writes a value in a database.
    pub fn put_in(&mut self, db: u8, key: &[u8], value: &[u8], expiry: Expiry) -> Outcome {
        self.set_expiry_in(db, key, expiry)?;
        self.pending.put(&self.shared.store, db, Space::Data, key, value)
    }

    /// Writes a value.
    pub fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) -> Outcome {
        self.put_in(self.session.db, key, value, expiry)
    }

    /// Changes only the expiry time of a key.
    pub fn set_expiry_in(&mut self, db: u8, key: &[u8], expiry: Expiry) -> Outcome {
        let store = &self.shared.store;
        match expiry {
            Expiry::Keep => Ok(()),
            Expiry::Clear if !store.expires(db) => Ok(()),
            Expiry::Clear => self.pending.remove(store, db, Space::Expires, &expiry_key(key)),
            Expiry::At(time) => {
                if key.len() > betree::MAX_KEY_LEN - 9 {
                    return Err("ERR a key with an expiry time is limited to 65526 bytes".into());
                }
                let value = time.to_le_bytes();
                self.pending.put(store, db, Space::Expires, &expiry_key(key), &value)?;
                self.pending.put(store, db, Space::Expires, &purge_key(time, key), &[])
            }
        }
    }

    /// Removes a key in a database.
    pub fn remove_in(&mut self, db: u8, key: &[u8]) -> Outcome {
        self.set_expiry_in(db, key, Expiry::Clear)?;
        self.pending.remove(&self.shared.store, db, Space::Data, key)
    }

    /// Removes a key.
    pub fn remove(&mut self, key: &[u8]) -> Outcome {
        self.remove_in(self.session.db, key)
    }

    /// Commits the group's writes so far, before something that walks over many keys.
    pub fn commit(&mut self) -> Outcome {
        self.pending.commit(&self.shared.store)
    }

    /// Parses a database number.
    pub fn database(&self, args: &Args<'_>, i: usize) -> Outcome<u8> {
        let n = args.int(i)?;
        if i32::try_from(n).is_err() {
            return Err("ERR value is out of range, value must between -2147483648 and 2147483647".into());
        }
        match u8::try_from(n) {
            Ok(n) if usize::from(n) < crate::config::DATABASES => Ok(n),
            _ => Err("ERR DB index is out of range".into()),
        }
    }
}
