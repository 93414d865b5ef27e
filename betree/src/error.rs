//! The one error of the public API, with coordinates.

use crate::types::{MAX_KEY_LEN, MAX_VALUE_LEN};

/// What can go wrong. A missing key is not an error: it is `Ok(None)`.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error(transparent)]
    Storage(betree_storage::Error),
    /// The log failed.
    #[error(transparent)]
    Log(std::sync::Arc<betree_wal::Error>),
    /// The data file failed.
    #[error(transparent)]
    Pager(betree_pager::Error),
    /// Another process (or another handle in this one) has the database open.
    #[error("{path}: the database is open elsewhere")]
    Locked {
        /// The directory.
        path: String,
    },
    /// What was read cannot be what was written.
    #[error("{file} at offset {offset}: {structure}: {detail}")]
    Corrupt {
        /// The file.
        file: String,
        /// Byte offset in it.
        offset: u64,
        /// The structure that does not decode.
        structure: &'static str,
        /// Expected and got.
        detail: String,
    },
    /// There is no database and `create_if_missing` is false.
    #[error("{path}: no database here, and creating one was not asked for")]
    Missing {
        /// The directory.
        path: String,
    },
    /// A directory for a new database has files in it already.
    #[error("{path}: there are files here; an empty directory is needed")]
    NotEmpty {
        /// The directory.
        path: String,
    },
    /// The device is full: the write had no effect; reads go on, and writing resumes when there is room.
    #[error("no space left on the device ({file})")]
    NoSpace {
        /// The file that could not grow.
        file: String,
    },
    /// An earlier failure of the device made the state of written data unknown. Reads go on; writes are refused until the
    /// database is opened anew, which recovers what was promised.
    #[error("writes are refused since an earlier failure: {cause}")]
    Poisoned {
        /// The failure.
        cause: String,
    },
    /// The key is longer than 65,535 bytes.
    #[error("key of {len} bytes is over the limit of {MAX_KEY_LEN}")]
    KeyTooLong {
        /// Its length.
        len: usize,
    },
    /// The value or operand is longer than 1 GiB.
    #[error("value of {len} bytes is over the limit of {MAX_VALUE_LEN}")]
    ValueTooLong {
        /// Its length.
        len: usize,
    },
    /// The batch is larger than [`crate::MAX_BATCH_LEN`] encoded.
    #[error("batch of {len} bytes is over the limit of {limit}", limit = crate::batch::MAX_BATCH_LEN)]
    BatchTooLarge {
        /// Its encoded length.
        len: usize,
    },
    /// An option is out of its limits, or contradicts another.
    #[error("option {option}: {detail}")]
    InvalidOption {
        /// The option's name.
        option: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Merge on a keyspace without operator, or with another one than it was created with.
    #[error("keyspace {keyspace:?}: {detail}")]
    MergeOperator {
        /// The keyspace.
        keyspace: String,
        /// What is wrong.
        detail: String,
    },
    /// The keyspace's name is empty or longer than 255 bytes, or there are too many keyspaces.
    #[error("keyspace {keyspace:?}: {detail}")]
    InvalidKeyspace {
        /// The name.
        keyspace: String,
        /// What is wrong.
        detail: String,
    },
    /// The keyspace was dropped.
    #[error("keyspace {keyspace:?} was dropped")]
    KeyspaceDropped {
        /// The name.
        keyspace: String,
    },
    /// The database was closed.
    #[error("the database is closed")]
    Closed,
    /// A handle of one database was used with another.
    #[error("keyspace {keyspace:?} belongs to another database")]
    ForeignKeyspace {
        /// The keyspace.
        keyspace: String,
    },
}

impl From<betree_storage::Error> for Error {
    fn from(e: betree_storage::Error) -> Self {
        match e {
            betree_storage::Error::Locked { path } => Error::Locked { path },
            betree_storage::Error::NoSpace { file, .. } => Error::NoSpace { file },
            other => Error::Storage(other),
        }
    }
}

impl From<betree_wal::Error> for Error {
    fn from(e: betree_wal::Error) -> Self {
        if e.is_no_space() {
            Error::NoSpace { file: "log".into() }
        } else {
            Error::Log(std::sync::Arc::new(e))
        }
    }
}

impl From<betree_pager::Error> for Error {
    fn from(e: betree_pager::Error) -> Self {
        match e {
            betree_pager::Error::NoSpace { file, .. } => Error::NoSpace { file },
            betree_pager::Error::Corruption { file, offset, what, expected, got } => Error::Corrupt {
                file,
                offset,
                structure: what,
                detail: format!("expected {expected}, got {got}"),
            },
            betree_pager::Error::Missing { file } => Error::Missing { path: file },
            betree_pager::Error::Storage(e) => e.into(),
            e => Error::Pager(e),
        }
    }
}

/// `Result` with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
