//! The errors of the log, with coordinates. Cloneable where it matters: the cause of a poisoned log is handed to
//! every later caller.

use crate::Lsn;

/// The result of log operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage refused an operation.
    #[error(transparent)]
    Storage(#[from] betree_storage::Error),
    /// A sync failed earlier. What is durable above the durable Lsn is unknown; only reopening tells.
    #[error("the log takes no more writes since a sync failed: {cause}")]
    Poisoned {
        /// The failed sync.
        cause: betree_storage::Error,
    },
    /// Bytes below a known-durable Lsn are not what was written.
    #[error("corrupt log: {file} at offset {offset} (lsn {}): {what}: expected {expected}, got {got}", .lsn.0)]
    Corrupt {
        /// The log file.
        file: String,
        /// Where in the file.
        offset: u64,
        /// Where in the log.
        lsn: Lsn,
        /// The structure and field.
        what: &'static str,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A log file is missing although the log goes on durably after it, or none holds the Lsn to replay from.
    #[error("log file {file} is missing (lsn {})", .lsn.0)]
    Missing {
        /// The file, as far as its name is known.
        file: String,
        /// The first Lsn that is missing.
        lsn: Lsn,
    },
    /// A log file was written by another format version.
    #[error("{file} has log format version {got}, this build reads {expected}")]
    Version {
        /// The log file.
        file: String,
        /// The version this build reads.
        expected: u32,
        /// The file's version.
        got: u32,
    },
    /// A log file belongs to another database.
    #[error("{file} belongs to another database: expected salt {expected:#x}, got {got:#x}")]
    Foreign {
        /// The log file.
        file: String,
        /// This database's salt.
        expected: u64,
        /// The file's salt.
        got: u64,
    },
    /// A log exists where a new one was to be created.
    #[error("a log exists already: {file}")]
    Exists {
        /// One of its files.
        file: String,
    },
    /// A record above [`crate::MAX_RECORD`].
    #[error("a record of {len} bytes is longer than {max}")]
    TooLong {
        /// Its payload length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// An option is out of its range.
    #[error("option {name} is {got}, it must be {expected}")]
    Option {
        /// Its name.
        name: &'static str,
        /// Its range.
        expected: &'static str,
        /// The value given.
        got: u64,
    },
    /// The replay callback refused a record.
    #[error("replay of the record at lsn {} failed: {source}", .lsn.0)]
    Replay {
        /// The record.
        lsn: Lsn,
        /// The callback's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Error {
    /// Whether freeing space on the device can cure it.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_no_space())
    }
}
