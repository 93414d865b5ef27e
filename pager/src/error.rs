//! The errors of the data file, with coordinates.
//!
//! Cloneable, because the error that poisoned the pager is handed to every later caller.

use betree_storage as storage;

/// The result of pager operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong in the data file.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The storage below refused.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// No free space for an extent, and the file cannot grow. Allocation works again once extents are dropped.
    #[error("no space for an extent of {len} bytes in {file}")]
    NoSpace {
        /// The data file.
        file: String,
        /// What was asked for.
        len: u64,
    },
    /// The file's bytes are not what was written there.
    #[error("corrupt {file} at offset {offset}: {what}: expected {expected}, got {got}")]
    Corruption {
        /// The data file.
        file: String,
        /// Where the structure begins.
        offset: u64,
        /// The structure, or the invariant that fails.
        what: &'static str,
        /// What it had to be.
        expected: String,
        /// What it is.
        got: String,
    },
    /// The file is of some other program.
    #[error("{file} is not a betree data file")]
    NotOurs {
        /// The file.
        file: String,
    },
    /// The file was written by a newer release.
    #[error("{file} has format version {found}, this release reads version {supported}")]
    UnknownVersion {
        /// The file.
        file: String,
        /// Its version.
        found: u16,
        /// What this release knows.
        supported: u16,
    },
    /// There is no data file and none was to be created.
    #[error("{file} does not exist")]
    Missing {
        /// The file.
        file: String,
    },
    /// An earlier sync or superblock write failed: what is durable is unknown. Reads go on; reopening recovers.
    #[error("the data file takes no more writes since an earlier failure: {cause}")]
    Poisoned {
        /// The first failure.
        cause: storage::Error,
    },
    /// A length beyond what the format can hold.
    #[error("{what} of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The writer given to [`dump`](crate::dump) failed.
    #[error("cannot write the dump: {cause}")]
    Output {
        /// The cause.
        cause: String,
    },
}

impl Error {
    /// Whether freeing space cures it.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Storage(error) => error.is_no_space(),
            _ => false,
        }
    }

    /// Whether the file's content is at fault.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        // A file shorter than what its superblock or a page reference says is as damaged as one with flipped bits.
        matches!(self, Self::Corruption { .. } | Self::Storage(storage::Error::ShortRead { .. }))
    }
}
