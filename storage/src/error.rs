//! The errors of the I/O layer: each names the file and, where there is one, the offset.
//!
//! Cloneable, because a latched sync failure is handed to every later caller and a failed completion may be reported
//! to several waiters. Called by everything above the storage.

use std::io;
use std::sync::Arc;

/// The result of storage operations.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong below the storage traits.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system or the device refused an operation.
    #[error("{op} failed on {file}{at}: {source}", at = At(*.offset))]
    Io {
        /// The operation, as a verb: `read`, `write`, `open`.
        op: &'static str,
        /// The file or directory.
        file: String,
        /// Where in the file, for reads and writes.
        offset: Option<u64>,
        /// The cause.
        source: Arc<io::Error>,
    },
    /// The device, a quota or a file size limit is exhausted.
    #[error("no space left on the device: {op} on {file}")]
    NoSpace {
        /// The operation, as a verb.
        op: &'static str,
        /// The file.
        file: String,
    },
    /// The file does not exist.
    #[error("file {file} does not exist")]
    NotFound {
        /// The file.
        file: String,
    },
    /// The file to be created exists already.
    #[error("file {file} exists already")]
    Exists {
        /// The file.
        file: String,
    },
    /// The directory is in use, here or in another process.
    #[error("{path} is locked: it is already open in this or in another process")]
    Locked {
        /// The directory.
        path: String,
    },
    /// A sync failed, now or earlier: what of the file is durable is unknown, and no later sync can tell.
    #[error("sync of {file} failed, its durable state is unknown: {source}")]
    SyncFailed {
        /// The file.
        file: String,
        /// The first failure.
        source: Arc<io::Error>,
    },
    /// A read reached past the end of the file.
    #[error("read of {len} bytes at {offset} reaches past the end of {file}")]
    ShortRead {
        /// The file.
        file: String,
        /// Where the read began.
        offset: u64,
        /// How much was asked for.
        len: usize,
    },
}

impl Error {
    /// Sorts an operating system error into the kinds above.
    ///
    /// A full device, an exhausted quota and a file size limit all become [`Error::NoSpace`]: the remedy is the same.
    #[must_use]
    pub fn from_io(op: &'static str, file: &str, offset: Option<u64>, source: io::Error) -> Self {
        let file = file.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::NoSpace { op, file }
            }
            io::ErrorKind::NotFound => Self::NotFound { file },
            io::ErrorKind::AlreadyExists => Self::Exists { file },
            _ => Self::Io { op, file, offset, source: Arc::new(source) },
        }
    }

    /// Whether freeing space on the device can cure it.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// Formats the optional offset of a message.
struct At(Option<u64>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(offset) => write!(f, " at offset {offset}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_file_and_the_offset() {
        let eio = io::Error::from_raw_os_error(libc::EIO);
        let error = Error::from_io("read", "data", Some(4096), eio);
        let text = error.to_string();
        assert!(text.starts_with("read failed on data at offset 4096: "), "{text}");
    }

    #[test]
    fn full_devices_quotas_and_size_limits_are_all_no_space() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EFBIG] {
            assert!(Error::from_io("write", "data", None, io::Error::from_raw_os_error(errno)).is_no_space());
        }
    }
}
