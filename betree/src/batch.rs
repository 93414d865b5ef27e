//! Write batches: encoded once, applied whole or not at all.

use crate::message::{Kind, MessageRef, encode_message};
use crate::room::length;
use crate::types::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::{Error, Keyspace, Result};

/// Longest encoded batch in bytes.
pub const MAX_BATCH_LEN: usize = (1 << 30) + (32 << 20);

/// Writes that take effect together: after a crash all of them are there or none, across keyspaces.
///
/// A batch is encoded as it is filled; [`crate::Db::write`] copies it into the log and the memtables as it is.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let db = betree::Db::open(dir.path())?;
/// let (users, index) = (db.keyspace("users")?, db.keyspace("by-mail")?);
/// let mut batch = db.batch();
/// batch.insert(&users, "17", "ada@example.org")?;
/// batch.insert(&index, "ada@example.org", "17")?;
/// db.write(batch)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WriteBatch {
    /// The messages as they will stand in the log.
    pub(crate) encoded: Vec<u8>,
    pub(crate) count: u32,
    /// Bytes of keys and values.
    pub(crate) user_bytes: u64,
    /// The greatest [`length`] of them.
    pub(crate) longest: usize,
    /// Whether every message is a Delete or RangeDelete.
    pub(crate) only_deletes: bool,
    /// The keyspaces named in the batch, each once.
    pub(crate) keyspaces: Vec<Keyspace>,
}

impl WriteBatch {
    pub(crate) fn new() -> Self {
        WriteBatch {
            encoded: Vec::new(),
            count: 0,
            user_bytes: 0,
            longest: 0,
            only_deletes: true,
            keyspaces: Vec::new(),
        }
    }

    /// Sets `key` to `value`.
    ///
    /// # Errors
    /// [`Error::KeyTooLong`], [`Error::ValueTooLong`], [`Error::BatchTooLarge`]: the batch is as it was before.
    pub fn insert(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
    ) -> Result<()> {
        self.push(keyspace, MessageRef { kind: Kind::Put, key: key.as_ref(), value: value.as_ref() })
    }

    /// Removes `key`, whether or not it is there.
    ///
    /// # Errors
    /// As [`WriteBatch::insert`].
    pub fn remove(&mut self, keyspace: &Keyspace, key: impl AsRef<[u8]>) -> Result<()> {
        self.push(keyspace, MessageRef { kind: Kind::Delete, key: key.as_ref(), value: b"" })
    }

    /// Folds `operand` onto the value of `key` with the keyspace's merge operator.
    ///
    /// # Errors
    /// As [`WriteBatch::insert`], and [`Error::MergeOperator`] if the keyspace has none.
    pub fn merge(
        &mut self,
        keyspace: &Keyspace,
        key: impl AsRef<[u8]>,
        operand: impl AsRef<[u8]>,
    ) -> Result<()> {
        keyspace.require_operator()?;
        self.push(keyspace, MessageRef { kind: Kind::Merge, key: key.as_ref(), value: operand.as_ref() })
    }

    /// Removes every key in `start..end` (end exclusive) in O(1). An empty or inverted range removes nothing.
    ///
    /// # Errors
    /// As [`WriteBatch::insert`].
    pub fn remove_range(
        &mut self,
        keyspace: &Keyspace,
        start: impl AsRef<[u8]>,
        end: impl AsRef<[u8]>,
    ) -> Result<()> {
        let (start, end) = (start.as_ref(), end.as_ref());
        if start >= end {
            return Ok(());
        }
        if end.len() > MAX_KEY_LEN {
            return Err(Error::KeyTooLong { len: end.len() });
        }
        self.push(keyspace, MessageRef { kind: Kind::RangeDelete, key: start, value: end })
    }

    /// Messages in the batch.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether the batch has no message.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch as it will stand in the log.
    pub fn encoded_len(&self) -> usize {
        self.encoded.len()
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.encoded.clear();
        self.count = 0;
        self.user_bytes = 0;
        self.longest = 0;
        self.only_deletes = true;
        self.keyspaces.clear();
    }

    fn push(&mut self, keyspace: &Keyspace, message: MessageRef<'_>) -> Result<()> {
        check_limits(message.key, message.value)?;
        let len = self.encoded.len() + message.key.len() + message.value.len() + 24;
        if len > MAX_BATCH_LEN || self.count == u32::MAX {
            return Err(Error::BatchTooLarge { len });
        }
        if !self.keyspaces.iter().rev().any(|k| k.same(keyspace)) {
            self.keyspaces.push(keyspace.clone());
        }
        encode_message(&mut self.encoded, keyspace.id(), message);
        self.count += 1;
        self.user_bytes += (message.key.len() + message.value.len()) as u64;
        self.longest = self.longest.max(length(message));
        self.only_deletes &= message.kind.is_delete();
        Ok(())
    }
}

/// The limits of keys and values.
pub(crate) fn check_limits(key: &[u8], value: &[u8]) -> Result<()> {
    if key.len() > MAX_KEY_LEN {
        return Err(Error::KeyTooLong { len: key.len() });
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(Error::ValueTooLong { len: value.len() });
    }
    Ok(())
}
